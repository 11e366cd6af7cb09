"""Text in training: sentences become what the student would hear, were they spoken, by draws from a posterior bank.

The bank: what a student hears when a phone is said.

- Posteriors of encoder frames (40 ms) of speech that the student has not learnt from (`hkd.train.bank`), cut at phones.
- A segment is the frames whose middle lies in its phone; where none does, the frame that the phone's own middle lies
  in. Silences that follow each other are one segment.
- A draw takes a segment of the same phone between the same neighbours; where fewer than `LEAST` are known, of those
  with one of the two; else of the phone.
- A frame's posterior is its K likeliest ids with their probabilities (float16), the rest evenly over the other ids.

    bank.safetensors   segments and frames; metadata: what it was made from, heads, pauses

The sentences:

- words → phones → a segment of the bank for each, which gives each unit its frames, so that labels lie as in speech.
  Pauses are as frequent as in the speech; some words are said twice, some phones masked (a flat posterior).
- A draw is a function of (seed, epoch, utterance), a step's sentences of (seed, step), however it is resumed or shared.

Shape letters: as in `hkd.stream.loader`; S segments, F frames of the bank, K kept ids, V units of a head, T frames of a
text, U phones of a sentence, P phones and pauses as said, Q positions of a level.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from hkd.align.alignment import Positions, Tier, UtteranceAlignment
from hkd.errors import UserError
from hkd.features.fbank import generator
from hkd.files import digest_of_file, placed, write_bytes
from hkd.manifest import Utterance
from hkd.stream.join import Join
from hkd.stream.loader import Batch, ToDeviceMixin, View, hard_labels, soft_labels, targets
from hkd.timebase import FRAME_SHIFT_S, SUBSAMPLING
from hkd.units.inventory import MONOPHONE, SPELLED
from hkd.units.sequences import Units

FORMAT, VERSION, FILE = "hkd-bank", 1, "bank.safetensors"
SILENCE, EDGE = -1, -2  # in place of phone ids: a pause, and beyond the utterance
LEAST = 4

Ids = NDArray[np.int64]


class Segments(NamedTuple):
    """Stretches of frames: each one's phone, those beside it, its first frame and how many it has."""

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
    """A bank in memory. heads: name → (ids_FK, p_FK); facts: what it says of itself (`pauses`, `heads` ...)."""

    segments: Segments
    heads: Mapping[str, tuple[NDArray[np.int32], NDArray[np.float16]]]
    facts: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write folder/bank.safetensors, whole or not at all."""
        tensors: dict[str, Any] = {name: row_S.astype(np.int32) for name, row_S in self.segments._asdict().items()}
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
            what = f"a posterior bank must lie in {folder}, but {FILE} is missing"
            raise UserError(f"{what}. Run `hkd bank` first.") from None
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} must be a posterior bank, but cannot be read as one ({error}).") from None
        if (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
            rule = f"must be a posterior bank of version {VERSION}"
            raise UserError(f"{path} {rule}, but is another. Run `hkd bank` again.")
        segments = Segments(*(tensors[name].astype(np.int64) for name in Segments._fields))
        return cls(
            segments=segments,
            heads={name: (tensors[f"{name}/ids"], tensors[f"{name}/p"]) for name in facts["heads"]},
            facts={**facts, "digest": digest_of_file(path)},
        )

    def num_units(self, head: str) -> int:
        return int(self.facts["heads"][head])

    @cached_property
    def _phones(self) -> set[int]:
        return set(self.segments.phone_S.tolist())

    @cached_property
    def _known(self) -> dict[tuple[int, int | None, int | None], Ids]:
        """(phone, left, right) → its segments; None for any neighbour."""
        found: dict[tuple[int, int | None, int | None], list[int]] = defaultdict(list)
        phone_S, left_S, right_S = (column_S.tolist() for column_S in self.segments[:3])
        for s, (phone, left, right) in enumerate(zip(phone_S, left_S, right_S, strict=True)):
            for key in ((phone, left, right), (phone, left, None), (phone, None, right), (phone, None, None)):
                found[key].append(s)
        return {key: np.array(rows, np.int64) for key, rows in found.items()}

    def lacking(self, phone_P: NDArray[np.int32]) -> list[str]:
        """The phones that were never heard, by their symbols."""
        return [self.facts["phones"][phone] for phone in sorted({*phone_P.tolist()} - self._phones)]

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


POSTERIORS = ("bank", "clean")


@dataclass(frozen=True, kw_only=True)
class TextBatch(Batch):
    """Sentences: posteriors p_BTV of encoder frames, by the head that conditions, in place of features."""

    posteriors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SpeechAndText(ToDeviceMixin):
    """A share of a step: of its speech and of its text; either may be empty."""

    speech: Batch | None
    text: Batch | None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for part in (self.speech, self.text) if part is not None for name in part.ids)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in (self.speech, self.text) if part is not None)


@dataclass(frozen=True, kw_only=True)
class TextShares:
    """(step, rank, world size) → the share of the step's speech and, before `last_step`, its text; None if empty."""

    speech: Callable[[int, int, int], Batch | None]
    text: Callable[[int, int, int], Batch | None]
    last_step: int

    def __call__(self, step: int, rank: int, world_size: int) -> SpeechAndText | None:
        speech = self.speech(step, rank, world_size)
        text = self.text(step, rank, world_size) if step < self.last_step else None
        return None if speech is None and text is None else SpeechAndText(speech=speech, text=text)


class Sequences(NamedTuple):
    """The units of all sentences at a level: sentence n has [offset_N1[n], offset_N1[n + 1])."""

    offset_N1: Ids
    unit: NDArray[np.int32]
    word: NDArray[np.int32]

    def row(self, n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(unit_U, word_U) of a sentence."""
        at = slice(int(self.offset_N1[n]), int(self.offset_N1[n + 1]))
        return self.unit[at], self.word[at]


def encode(units: Units, said: Iterable[tuple[str, Sequence[str]]], level: str) -> Sequences:
    """The units of sentences, (id, words) each. Raises UserError for no word, or one without a pronunciation."""
    unit, word = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for name, words in said:
        with placed(f"sentence '{name}'"):
            unit_U, word_U = units.encode(words, level)
        if not len(unit_U):
            raise UserError(f"sentence '{name}' must have words, but has none. Take it out.")
        unit.append(unit_U)
        word.append(word_U)
    return Sequences(np.cumsum([len(unit_U) for unit_U in unit]), np.concatenate(unit), np.concatenate(word))


class SpokenSentence(NamedTuple):
    """A sentence as it is said in an epoch: phones and pauses in order."""

    source_P: Ids  # place among the sentence's phones; −1 for a pause
    word_P: Ids  # −1 for a pause, and for a word's first saying where it is said twice
    masked_P: NDArray[np.bool_]
    bound_P1: Ids  # in 10 ms frames
    frame_T: Ids  # frames of the bank


class PlacedUnits(NamedTuple):
    """A level's units on the frames of a sentence."""

    positions: Positions
    word_Q: Ids
    masked_Q: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class TextMaker:
    utterances: Sequence[Utterance]
    join: Join  # of the text, with its label stores
    bank: Bank
    heads: Mapping[str, str]  # whose posteriors text stands for → their level
    sequences: Mapping[str, Sequences]  # by aligned level, monophones always
    hard: Mapping[str, int]  # level → slots
    soft: Mapping[str, int]  # label store → slots; 0 for labels that need none
    posteriors: str = "bank"
    masked: float = 0.0
    masked_only: Sequence[str] = ()  # levels whose label stores are read at masked phones alone
    repeats: float = 0.0
    seed: int = 0

    def lengths(self) -> NDArray[np.int64]:
        """About how many 10 ms frames each sentence has."""
        segments, phones = self.bank.segments, self.sequences[MONOPHONE]
        quiet_S = segments.phone_S == SILENCE
        phone, pause = (float(segments.count_S[which].mean()) if which.any() else 0.0 for which in (~quiet_S, quiet_S))
        before, between, after = self.bank.facts["pauses"]
        count_N, last_word_N = np.diff(phones.offset_N1), phones.word[phones.offset_N1[1:] - 1]
        encoder_frames_N = count_N * phone + (before + after + between * last_word_N) * pause
        frames_N: NDArray[np.int64] = np.rint(SUBSAMPLING * encoder_frames_N).astype(np.int64)
        return frames_N

    def __call__(self, rows: Sequence[int] | Ids, *, epoch: int = 0) -> TextBatch | None:
        """The batch of these sentences in that epoch; None for none."""
        chosen = [self.utterances[int(row)] for row in rows]
        if not chosen:
            return None
        said = [self._say(int(row), epoch) for row in rows]
        length_B = np.array([said_.bound_P1[-1] for said_ in said], np.int64)
        views = [View(1.0, 0)] * len(chosen)
        levels = {*self.hard, *(self.join.stores[name].level for name in self.soft)}
        placed = {
            level: [self._place(int(row), s, level) for row, s in zip(rows, said, strict=True)]
            for level in {MONOPHONE, *levels, *self.heads.values()}.difference(SPELLED)
        }
        spoken = [self._spoken(*parts) for parts in zip(chosen, said, placed[MONOPHONE], strict=True)]
        hard, soft = {}, {}
        for level, slots in self.hard.items():
            if level in SPELLED:
                found = [self.join.spelled(r, level) for r in spoken]
            else:
                found = [p.positions for p in placed[level]]
            hard[level] = hard_labels(found, views, length_B, slots=slots)
        for name, slots in self.soft.items():
            store = self.join.stores[name]
            ids = [u.id if store.labels(u.id) else None for u in chosen]
            if store.level in SPELLED:
                found = [self.join.spelled(r, store.level, name) for r in spoken]
            else:
                found = [_labelled(p, only_masked=store.level in self.masked_only) for p in placed[store.level]]
            there = [part if u_id is not None else None for u_id, part in zip(ids, found, strict=True)]
            soft[name] = soft_labels(store, ids, there, views, length_B, slots=slots)
        return TextBatch(
            **targets(self.join, chosen),
            x_BTF=torch.zeros(0),
            length_B=torch.from_numpy(length_B),
            hard=hard,
            soft=soft,
            seconds=float(length_B.sum()) * FRAME_SHIFT_S,
            posteriors={name: self._heard(name, said, placed.get(level, [])) for name, level in self.heads.items()},
        )

    def _say(self, row: int, epoch: int) -> SpokenSentence:
        random = generator(self.seed, epoch, f"text {self.utterances[row].id}")
        phone_U, word_U = self.sequences[MONOPHONE].row(row)
        before, between, after = self.bank.facts["pauses"]
        said: list[tuple[Sequence[int], int]] = []  # places among the phones (−1: a pause), and their word
        for number in np.unique(word_U).tolist():
            first, last = np.searchsorted(word_U, [number, number + 1]).tolist()
            pause, twice = random.random(2)
            if pause < (between if first else before):
                said.append(([-1], -1))
            if twice < self.repeats:
                said.append((range(first, last), -1))
            said.append((range(first, last), number))
        if random.random() < after:
            said.append(([-1], -1))
        source_P = np.array([place for places, _ in said for place in places], np.int64)
        word_P = np.array([number for places, number in said for _ in places], np.int64)
        masked_P = (random.random(len(source_P)) < self.masked) & (source_P >= 0)
        segment_P = self.bank.draw(np.where(source_P >= 0, phone_U[source_P], SILENCE).tolist(), random)
        bound_P1 = SUBSAMPLING * np.cumsum([0, *self.bank.segments.count_S[segment_P]])
        return SpokenSentence(source_P, word_P, masked_P, bound_P1, self.bank.frames(segment_P))

    def _place(self, row: int, said: SpokenSentence, level: str) -> PlacedUnits:
        """A phone's units (its states, at the level of senones) share its frames evenly; a pause is one silent unit."""
        assert self.join.alignment is not None
        unit_V, word_V = self.sequences[level].row(row)
        first_U1 = _shares(self.sequences[MONOPHONE].row(row)[1], word_V)
        quiet = self.join.alignment.silences[level][0] if self.join.alignment.silences[level] else 0
        is_pause_P = said.source_P < 0
        source_P = np.where(is_pause_P, 0, said.source_P)
        count_P = np.where(is_pause_P, 1, first_U1[source_P + 1] - first_U1[source_P])
        of_Q = np.repeat(np.arange(len(count_P)), count_P)
        place_Q = np.arange(len(of_Q)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
        start_Q, length_Q = said.bound_P1[of_Q], np.diff(said.bound_P1)[of_Q]
        at_Q = np.minimum(first_U1[source_P[of_Q]] + place_Q, len(unit_V) - 1)
        unit_Q = np.where(is_pause_P[of_Q], quiet, unit_V[at_Q])
        positions = Positions(
            unit_U=unit_Q.astype(np.int32),
            start_U=(start_Q + length_Q * place_Q // count_P[of_Q]).astype(np.int32),
            stop_U=(start_Q + length_Q * (place_Q + 1) // count_P[of_Q]).astype(np.int32),
        )
        return PlacedUnits(positions, said.word_P[of_Q], said.masked_P[of_Q])

    def _spoken(self, utterance: Utterance, said: SpokenSentence, phones: PlacedUnits) -> UtteranceAlignment:
        """The sentence as an aligned utterance: words and phones."""
        begins_P = np.append(True, said.word_P[1:] != said.word_P[:-1])
        word_tier = Tier(
            unit_U=said.word_P[begins_P].astype(np.int32),
            start_U1=np.append(said.bound_P1[:-1][begins_P], said.bound_P1[-1]).astype(np.int32),
        )
        tiers = {MONOPHONE: Tier(unit_U=phones.positions.unit_U, start_U1=said.bound_P1.astype(np.int32))}
        said_words = self.join.words(utterance.id)
        return UtteranceAlignment(id=utterance.id, words=said_words, word_tier=word_tier, tiers=tiers)

    def _heard(self, head: str, said: Sequence[SpokenSentence], placed: Sequence[PlacedUnits]) -> Tensor:
        """p_BTV of a head, zeros past the end."""
        num_units = self.bank.num_units(head)
        p_BTV = np.zeros((len(said), max(len(s.frame_T) for s in said), num_units), np.float32)
        for b, s in enumerate(said):
            if self.posteriors == "bank":
                p_TV = self.bank.posteriors(head, s.frame_T)
            else:
                where = placed[b].positions
                unit = np.repeat(where.unit_U, where.stop_U - where.start_U)
                p_TV = np.zeros((len(s.frame_T), num_units), np.float32)
                np.add.at(p_TV, (np.arange(len(unit)) // SUBSAMPLING, unit), 1 / SUBSAMPLING)
            p_TV[np.repeat(s.masked_P, np.diff(s.bound_P1) // SUBSAMPLING)] = 1 / num_units
            p_BTV[b, : len(p_TV)] = p_TV
        return torch.from_numpy(p_BTV)


def _shares(word_U: NDArray[np.int32], word_V: NDArray[np.int32]) -> Ids:
    """first_U1: where the units of each phone begin, a word's units dealt evenly over its phones."""
    first_U1 = np.zeros(len(word_U) + 1, np.int64)
    for number in np.unique(word_U).tolist():
        first, last = np.searchsorted(word_U, [number, number + 1])
        begin, end = np.searchsorted(word_V, [number, number + 1])
        first_U1[first : last + 1] = begin + (end - begin) * np.arange(last - first + 1) // (last - first)
    return first_U1


def _labelled(placed: PlacedUnits, *, only_masked: bool) -> Positions:
    """The positions that a store labels; where only masked ones are to be read, the others have no frames."""
    keep_Q = placed.word_Q >= 0
    unit_U, start_U, stop_U = (getattr(placed.positions, name)[keep_Q] for name in ("unit_U", "start_U", "stop_U"))
    if only_masked:
        stop_U = np.where(placed.masked_Q[keep_Q], stop_U, start_U)
    return Positions(unit_U=unit_U, start_U=start_U, stop_U=stop_U)
