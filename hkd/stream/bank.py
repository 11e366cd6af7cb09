"""The posterior bank: what a student hears when a phone is said. From it a phone of text becomes a stretch of
posteriors.

- Posteriors of encoder frames (40 ms) of real speech, by students that have not learnt from it (`hkd.train.bank` makes
  them), cut at aligned phones.
- A segment is the frames whose middle lies in its phone; where none does, the frame that the phone's own middle lies
  in. Silences that follow each other are one segment.
- Each is kept with its neighbours. A draw takes a segment of the same phone between the same neighbours; where fewer
  than `LEAST` are known, of those with one of the two; else of the phone.
- A frame's posterior is its K likeliest ids with their probabilities (float16); the rest is spread evenly over the
  other ids.

    bank.safetensors   segments and frames; metadata: what it was made from, heads, pauses

Shape letters: S segments, F frames, K kept ids, V units of a head, T frames of a text, P phones of an utterance.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hkd.align.alignment import UtteranceAlignment
from hkd.errors import UserError
from hkd.files import digest_of_file, write_bytes
from hkd.timebase import SUBSAMPLING
from hkd.units.level import MONOPHONE

FORMAT, VERSION, FILE = "hkd-bank", 1, "bank.safetensors"
SILENCE, EDGE = -1, -2  # in place of phone ids: a pause, and beyond the utterance
LEAST = 4

Ids = NDArray[np.int64]


class Segments(NamedTuple):
    """Stretches of frames: the phone of each, those beside it, its first frame and how many it has."""

    phone_S: Ids
    left_S: Ids
    right_S: Ids
    first_S: Ids
    count_S: Ids


def cut(row: UtteranceAlignment, silences: Sequence[int], num_frames: int) -> Segments:
    """The segments of an utterance of so many encoder frames."""
    tier = row.tiers[MONOPHONE]
    phone_U = np.where(np.isin(tier.unit_U, silences), SILENCE, tier.unit_U).astype(np.int64)
    begins_U = np.ones(len(phone_U), bool)
    begins_U[1:] = (phone_U[1:] != SILENCE) | (phone_U[:-1] != SILENCE)
    phone_S = phone_U[begins_U]
    bound_S1 = np.append(tier.start_U1[:-1][begins_U], tier.start_U1[-1]).astype(np.int64)
    middle = SUBSAMPLING // 2
    first_S1 = np.minimum(np.maximum(bound_S1 + SUBSAMPLING - 1 - middle, 0) // SUBSAMPLING, num_frames)
    count_S, first_S = np.diff(first_S1), first_S1[:-1]
    own_S = np.minimum((bound_S1[:-1] + bound_S1[1:]) // 2 // SUBSAMPLING, num_frames - 1)
    around = np.concatenate([[EDGE], phone_S, [EDGE]])
    return Segments(phone_S, around[:-2], around[2:], np.where(count_S > 0, first_S, own_S), np.maximum(count_S, 1))


def pauses(rows: Iterable[tuple[UtteranceAlignment, Segments]]) -> tuple[float, float, float]:
    """How often there is silence before the first word, between two, and after the last."""
    first = between = last = gaps = num = 0
    for row, (phone_S, *_) in rows:
        num_words = int((row.word_tier.unit_U >= 0).sum())
        quiet_S = phone_S == SILENCE
        if num_words:
            num, gaps = num + 1, gaps + num_words - 1
            first, last, between = first + int(quiet_S[0]), last + int(quiet_S[-1]), between + int(quiet_S[1:-1].sum())
    return first / max(1, num), min(1.0, between / max(1, gaps)), last / max(1, num)


@dataclass(frozen=True, kw_only=True)
class Bank:
    """A bank in memory. heads: name → (ids_FK, p_FK); facts: what it says of itself (`pauses`, `heads`, `heard`
    ...)."""

    segments: Segments
    heads: Mapping[str, tuple[NDArray[np.int32], NDArray[np.float16]]]
    facts: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write folder/bank.safetensors, whole or not at all."""
        tensors: dict[str, NDArray[Any]] = {
            name: column_S.astype(np.int32) for name, column_S in self.segments._asdict().items()
        }
        for name, (ids_FK, p_FK) in self.heads.items():
            tensors |= {f"{name}/ids": ids_FK, f"{name}/p": p_FK}
        facts = json.dumps({"format": FORMAT, "version": VERSION, **self.facts}, sort_keys=True)
        write_bytes(folder / FILE, save(tensors, metadata={"facts": facts}))

    @classmethod
    def load(cls, folder: Path) -> "Bank":
        """Read what `save` wrote. Raises UserError where it is not there or cannot be read."""
        path = folder / FILE
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {}).get("facts", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(
                f"a posterior bank must lie in {folder}, but {FILE} is missing. Run `hkd bank` first."
            ) from None
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} must be a posterior bank, but cannot be read as one ({error}).") from None
        if (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
            raise UserError(
                f"{path} must be a posterior bank of version {VERSION}, but is another. Run `hkd bank` again."
            )
        segments = Segments(*(tensors[name].astype(np.int64) for name in Segments._fields))
        return cls(
            segments=segments,
            heads={name: (tensors[f"{name}/ids"], tensors[f"{name}/p"]) for name in facts["heads"]},
            facts={**facts, "digest": digest_of_file(path)},
        )

    def num_units(self, head: str) -> int:
        """The units of a head."""
        return int(self.facts["heads"][head])

    @cached_property
    def _known(self) -> dict[tuple[int, int | None, int | None], Ids]:
        """(phone, left, right) → its segments; None for any neighbour."""
        found: dict[tuple[int, int | None, int | None], list[int]] = {}
        phone_S, left_S, right_S = (column_S.tolist() for column_S in self.segments[:3])
        for s, (phone, left, right) in enumerate(zip(phone_S, left_S, right_S, strict=True)):
            for key in ((phone, left, right), (phone, left, None), (phone, None, right), (phone, None, None)):
                found.setdefault(key, []).append(s)
        return {key: np.array(rows, np.int64) for key, rows in found.items()}

    def lacking(self, phone_P: NDArray[np.int32]) -> list[str]:
        """The phones that were never heard, by their symbols."""
        return [self.facts["phones"][phone] for phone in np.setdiff1d(phone_P, self.segments.phone_S).tolist()]

    def draw(self, phone_P: Sequence[int], random: np.random.Generator) -> Ids:
        """A segment for each phone (or SILENCE) of an utterance."""
        drawn, none = [], np.zeros(0, np.int64)
        around = [EDGE, *phone_P, EDGE]
        for place, u in enumerate(random.random(len(phone_P)).tolist()):
            left, phone, right = around[place : place + 3]
            rows = self._known.get((phone, left, right), none)
            if len(rows) < LEAST:
                sides = (self._known.get((phone, left, None), none), self._known.get((phone, None, right), none))
                rows = np.concatenate(sides)
            if len(rows) < LEAST:
                rows = self._known.get((phone, None, None), none)
            drawn.append(int(rows[int(u * len(rows))]))
        return np.array(drawn, np.int64)

    def frames(self, segment_P: Ids) -> Ids:
        """frame_T: the frames of segments, one after the other."""
        first_P, count_P = self.segments.first_S[segment_P], self.segments.count_S[segment_P]
        ends_P = np.cumsum(count_P)
        return np.arange(ends_P[-1]) + np.repeat(first_P - ends_P + count_P, count_P)

    def posteriors(self, head: str, frame_T: Ids) -> NDArray[np.float32]:
        """p_TV of frames."""
        ids_FK, p_FK = self.heads[head]
        ids_TK, p_TK = ids_FK[frame_T].astype(np.int64), p_FK[frame_T].astype(np.float32)
        rest_T1 = np.maximum(0.0, 1 - p_TK.sum(1, keepdims=True)) / max(1, self.num_units(head) - ids_TK.shape[1])
        p_TV: NDArray[np.float32] = np.repeat(rest_T1, self.num_units(head), axis=1)
        np.put_along_axis(p_TV, ids_TK, p_TK, axis=1)
        p_TV /= p_TV.sum(1, keepdims=True)
        return p_TV
