"""The alignment: when each word, phone and senone of an utterance was spoken, on a grid of 10 ms frames.

- One Arrow IPC file for a manifest: a row an utterance in batches of 1,024, memory-mapped. Its schema's metadata holds
  the manifest's digest, the inventories, the aligner, and the utterances that could not be aligned, with reasons.
- A tier is `(unit_id, start_frame, num_frames)`, contiguous and ordered, from frame 0 to the end; silence is an
  explicit segment.
- A unit sequence is a tier collapsed to its unit ids without silence, one position a segment.
"""

import hashlib
import json
import mmap
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import atomic_write, digest_of
from hkd.units.inventory import MONOPHONE, UnitInventory
from hkd.units.text import text_digest

METADATA_KEY = b"hkd_alignment"
_BATCH_ROWS = 1024  # utterances in a batch of the file


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """Segments of one level, from frame 0 to the end, without gaps or empty ones: else it raises ValueError."""

    unit_U: NDArray[np.int32]
    start_U1: NDArray[np.int32]  # U + 1 boundaries; the last is the number of frames

    def __post_init__(self) -> None:
        is_framed = len(self.start_U1) == len(self.unit_U) + 1 and self.start_U1[0] == 0
        if not is_framed or bool((np.diff(self.start_U1) <= 0).any()):
            raise ValueError("the segments of a tier must run from frame 0 to the end, without gaps or empty segments")

    @property
    def num_frames(self) -> int:
        """Frames of 10 ms in all."""
        return int(self.start_U1[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class UtteranceAlignment:
    """Alignment of one utterance. `tiers` by level (senone, monophone); silence is explicit."""

    id: str
    words: tuple[str, ...]  # the normalised words of the transcript, in order
    word_tier: Tier  # unit = index into `words`, −1 for silence
    tiers: Mapping[str, Tier]

    @property
    def num_frames(self) -> int:
        """Frames of 10 ms in all."""
        return self.word_tier.num_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """The unit sequence of an utterance at one level, with the frames of each position: [start, stop)."""

    unit_U: NDArray[np.int32]
    start_U: NDArray[np.int32]
    stop_U: NDArray[np.int32]


def positions(tier: Tier, silence_ids: Iterable[int]) -> Positions:
    """A tier's segments that are not silence, one position a segment."""
    keep_U = ~np.isin(tier.unit_U, np.fromiter(silence_ids, np.int32))
    return Positions(unit_U=tier.unit_U[keep_U], start_U=tier.start_U1[:-1][keep_U], stop_U=tier.start_U1[1:][keep_U])


def word_positions(
    utterance: UtteranceAlignment,
    word_of_U: NDArray[np.int32],
    unit_U: NDArray[np.int32],
    *,
    letters_V: NDArray[np.int64] | None = None,
) -> Positions:
    """Frames for pieces of words: a word's frames are split along its phones, in proportion to the pieces' letters.

    word_of_U: for each piece the index of its word (−1: no frames; start = stop); pieces of one word are neighbours.
    letters_V: letters of each unit (`letters_per_unit`); None: all pieces alike. A piece with L of its word's L_w
    letters up to its end reaches to phone floor(P · L / L_w + 1/2) of P. Every piece with letters gets a phone, or a
    frame where there are fewer phones; ▁ alone gets one frame.
    """
    tier = utterance.word_tier
    spans = zip(tier.start_U1[:-1].tolist(), tier.start_U1[1:].tolist(), strict=True)
    word_start = dict(zip(tier.unit_U.tolist(), spans, strict=True))
    phones = utterance.tiers.get(MONOPHONE, tier).start_U1.tolist()
    num = len(word_of_U)
    letters = [1] * num if letters_V is None else letters_V[unit_U].tolist()
    start_U, stop_U = np.zeros(num, np.int32), np.zeros(num, np.int32)
    for word, places in groupby(range(num), key=word_of_U.tolist().__getitem__):
        if word < 0 or word not in word_start:
            continue
        first, *rest = places
        last, bounds = first + len(rest) + 1, list(word_start[word])
        if rest:
            inside = phones[bisect_left(phones, bounds[0]) : bisect_right(phones, bounds[1])]
            bounds = _share(inside, letters[first:last])
        start_U[first:last], stop_U[first:last] = bounds[:-1], bounds[1:]
    return Positions(unit_U=unit_U, start_U=start_U, stop_U=stop_U)


def _share(cuts: Sequence[int], letters: Sequence[int]) -> list[int]:
    """Phone boundaries of a word (P + 1) and its pieces' letters → frame boundaries, one more than pieces."""
    if not any(letters):
        letters = [1] * len(letters)
    weights = [number for number in letters if number]
    grid = cuts if len(cuts) > len(weights) else range(cuts[0], cuts[-1] + 1)
    places = _apart([0, *accumulate(weights)], scale=len(grid) - 1)
    bounds, place = [cuts[0]], 0
    for number in letters:
        place += number > 0
        bounds.append(grid[places[place]])
    if len(weights) < len(letters):
        bounds = [cuts[0] + bound for bound in _apart([bound - cuts[0] for bound in bounds], scale=cuts[-1] - cuts[0])]
    return bounds


def _apart(rising: Sequence[int], *, scale: int) -> list[int]:
    """Weights from 0 up → places from 0 to `scale` in proportion, rounded half up, apart where there is room."""
    total = rising[-1]
    places = [(2 * scale * value + total) // (2 * total) for value in rising]
    return at_least_one_apart(places, scale) if scale >= len(places) - 1 else places


def at_least_one_apart(rising: Sequence[int], last: int) -> list[int]:
    """The numbers from 0 to `last`, where there must be room, that rise by one at least, nearest to ascending ones."""
    place, found = -1, []
    for most, bound in enumerate(rising, last - len(rising) + 1):
        place = min(max(bound, place + 1), most)
        found.append(place)
    return found


def sequence_digest(unit_U: NDArray[np.int32]) -> bytes:
    """The first 8 bytes of the SHA-256 of a unit sequence (ids as little-endian int32)."""
    data = np.ascontiguousarray(unit_U, "<i4").tobytes()
    # that of `digest_of`, which takes twice as long
    return hashlib.sha256(len(data).to_bytes(8, "little") + data).digest()[:8]


_TIER = pa.struct([("unit", pa.list_(pa.int32())), ("start", pa.list_(pa.int32()))])


class Alignment:
    """A read alignment: ids → rows, which are views of the memory-mapped file. `failed`: id → reason."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = pa.ipc.open_file(pa.py_buffer(self._map)).read_all()
            meta = json.loads((table.schema.metadata or {})[METADATA_KEY])
        except FileNotFoundError:
            raise UserError(f"alignment {path} must be there, but is missing. Run `hkd align` first.") from None
        except (KeyError, ValueError, OSError) as error:
            raise UserError(f"{path} must be an alignment, but cannot be read as one ({error}).") from None
        self.path = path
        self.manifest_digest: str = meta["manifest_digest"]
        self.aligner: dict[str, Any] = meta["aligner"]
        self.failed: dict[str, str] = meta["failed"]
        listed = meta["inventories"].items()
        self.inventories = {
            name: UnitInventory(level=name, symbols=tuple(v["symbols"]), silence=v["silence"]) for name, v in listed
        }
        self.silences: dict[str, tuple[int, ...]] = {level: tuple(ids) for level, ids in meta["silences"].items()}
        if table["id"].num_chunks > max(1, 2 * len(table) // _BATCH_ROWS):
            table = table.combine_chunks()  # one batch a row, as earlier versions wrote it; a copy
        self._batches: list[pa.RecordBatch] = table.to_batches()
        self._first_row = list(accumulate((len(batch) for batch in self._batches), initial=0))
        self._columns: dict[tuple[int, str], tuple[NDArray[np.int32], ...]] = {}
        self._digests: dict[str, list[bytes]] = {}
        self._row_of = {name: row for row, name in enumerate(table["id"].to_pylist())}

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._row_of

    def row(self, utterance_id: str) -> int | None:
        """The place of an utterance among the ids; None where it has no alignment."""
        return self._row_of.get(utterance_id)

    def __len__(self) -> int:
        return len(self._row_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_of)

    def __getitem__(self, utterance_id: str) -> UtteranceAlignment:
        """Raises UserError for an id that has no alignment, with the reason where one is known."""
        batch, row = self._place(utterance_id)
        return UtteranceAlignment(
            id=utterance_id,
            words=tuple(self._batches[batch]["words"][row].as_py()),
            word_tier=self._tier(batch, row, "word"),
            tiers={level: self._tier(batch, row, level) for level in self.inventories},
        )

    def positions(self, utterance_id: str, level: str) -> Positions:
        """The unit sequence of an utterance at an aligned level, silence left out."""
        return positions(self._tier(*self._place(utterance_id), level), self.silences[level])

    def _place(self, utterance_id: str) -> tuple[int, int]:
        """The batch of an utterance, and its row there."""
        if utterance_id not in self._row_of:
            why = self.failed.get(utterance_id, "not in the alignment")
            raise UserError(f"utterance '{utterance_id}' has no alignment ({why}).")
        row = self._row_of[utterance_id]
        batch = bisect_right(self._first_row, row) - 1
        return batch, row - self._first_row[batch]

    def _arrays(self, batch: int, tier: str) -> tuple[NDArray[np.int32], ...]:
        """A tier of a batch of R rows: offsets_R1 and values of the units, offsets_R1 and values of the starts."""
        if (batch, tier) not in self._columns:
            lists = map(self._batches[batch][tier].field, ("unit", "start"))
            parts = (part for each in lists for part in (each.offsets, each.values))
            self._columns[batch, tier] = tuple(part.to_numpy() for part in parts)
        return self._columns[batch, tier]

    def _tier(self, batch: int, row: int, name: str) -> Tier:
        unit_at_R1, unit, start_at_R1, start = self._arrays(batch, name)
        return Tier(
            unit_U=unit[unit_at_R1[row] : unit_at_R1[row + 1]], start_U1=start[start_at_R1[row] : start_at_R1[row + 1]]
        )

    def unit_sequences(self, level: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """offset_N1, and the units of all ids in order, silence left out; row n has [offset[n], offset[n + 1])."""
        silence_ids = np.array(self.silences[level], np.int32)
        arrays = [self._arrays(batch, level)[:2] for batch in range(len(self._batches))]
        num_units = sum(int(at_R1[-1] - at_R1[0]) for at_R1, _ in arrays)
        offset_N1, kept, end = np.zeros(len(self) + 1, np.int64), np.zeros(num_units, np.int32), 0
        for first, (at_R1, unit) in zip(self._first_row, arrays, strict=False):
            unit = unit[at_R1[0] : at_R1[-1]]
            keep = ~np.isin(unit, silence_ids)
            before = np.concatenate([[0], np.cumsum(keep)])
            offset_N1[first : first + len(at_R1)] = end + before[at_R1 - at_R1[0]]
            kept[end : end + before[-1]] = unit[keep]
            end += int(before[-1])
            self._let_go()
        return offset_N1, kept[:end]

    def _let_go(self) -> None:
        """Free the memory of the pages that were read; the system reads them again on demand."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def sequence_digests(self, level: str) -> list[bytes]:
        """`sequence_digest` of every utterance's units of a level, in the order of the ids; computed once."""
        if level not in self._digests:
            offset_N1, unit = self.unit_sequences(level)
            self._digests[level] = [sequence_digest(unit[a:b]) for a, b in pairwise(offset_N1.tolist())]
        return self._digests[level]

    @cached_property
    def text_digests(self) -> list[bytes]:
        """`hkd.units.text.text_digest` of every utterance's words, in the order of the ids."""
        digests = []
        for batch in self._batches:
            digests += [text_digest(spoken) for spoken in batch["words"].to_pylist()]
            self._let_go()
        return digests

    @cached_property
    def frames_N(self) -> NDArray[np.int32]:
        """10 ms frames of every utterance, in the order of the ids."""
        tiers = [self._arrays(batch, "word")[2:] for batch in range(len(self._batches))]
        return np.concatenate([np.zeros(0, np.int32), *(start[at_R1[1:] - 1] for at_R1, start in tiers)])

    @property
    def digest(self) -> str:
        """SHA-256 of unit sequences, not of times, and inventories: a label store at an aligned level is of it."""
        levels = sorted(self.inventories)
        parts: list[str | bytes] = [part for level in levels for part in (level, self.inventories[level].digest)]
        sequences = [self.unit_sequences(level) for level in levels]
        places = [(offset_N1, unit.astype("<i4", copy=False).data.cast("B")) for offset_N1, unit in sequences]
        utterances = (
            part
            for name, row in sorted(self._row_of.items())
            for part in (name, *(data[4 * at[row] : 4 * at[row + 1]] for at, data in places))
        )
        return digest_of(chain(parts, utterances))


def write_alignment(
    path: Path,
    rows: Iterable[UtteranceAlignment],
    *,
    manifest_digest: str,
    inventories: Mapping[str, UnitInventory],
    silences: Mapping[str, Sequence[int]],
    aligner: Mapping[str, Any],
    failed: Mapping[str, str],
) -> None:
    """Write an alignment atomically. `silences`: per level the ids that label frames but are no positions."""
    listed = {
        level: {"digest": v.digest, "silence": v.silence, "symbols": list(v.symbols)}
        for level, v in inventories.items()
    }
    meta = {
        "manifest_digest": manifest_digest, "aligner": dict(aligner), "failed": dict(failed),
        "silences": {level: list(ids) for level, ids in silences.items()}, "inventories": listed,
    }  # fmt: skip
    columns_of_tiers = [(name, _TIER) for name in ("word", *inventories)]
    fields = [("id", pa.string()), ("words", pa.list_(pa.string())), *columns_of_tiers]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(meta, ensure_ascii=False).encode()})

    left = iter(rows)
    with atomic_write(path) as file, pa.ipc.new_file(file, schema) as writer:
        while batch := list(islice(left, _BATCH_ROWS)):
            tiers = {"word": [row.word_tier for row in batch]}
            tiers |= {level: [row.tiers[level] for row in batch] for level in inventories}
            columns: dict[str, Any] = {"id": [row.id for row in batch], "words": [list(row.words) for row in batch]}
            for name, column in tiers.items():
                columns[name] = [{"unit": tier.unit_U, "start": tier.start_U1} for tier in column]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def aligned_to_units(
    utterance: UtteranceAlignment, level: str, silence_ids: Iterable[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(unit_U, word_U) of an aligned level (else KeyError), without silence, a position a segment; word −1: silence."""
    found, word_tier = positions(utterance.tiers[level], silence_ids), utterance.word_tier
    segment_U = np.searchsorted(word_tier.start_U1, found.start_U, side="right") - 1
    return found.unit_U, word_tier.unit_U[segment_U].astype(np.int32)


def pronunciations(alignment: Alignment) -> dict[str, list[tuple[str, ...]]]:
    """How each word was said, the usual way first: a lexicon of what was aligned, without words of noise alone."""
    counts: dict[str, Counter[tuple[str, ...]]] = {}
    symbols = alignment.inventories[MONOPHONE].symbols
    for name in alignment:
        row = alignment[name]
        unit_U, word_U = aligned_to_units(row, MONOPHONE, alignment.silences[MONOPHONE])
        for number, word in enumerate(row.words):
            if phones := tuple(symbols[unit] for unit in unit_U[word_U == number]):
                counts.setdefault(word, Counter())[phones] += 1
    return {
        word: [phones for phones, _ in sorted(rows.items(), key=lambda row: (-row[1], row[0]))]
        for word, rows in counts.items()
    }
