"""Text and transcripts → unit sequences on disk, for the training of unit LMs.

- Text is streamed: a line is normalised, kept or held out, turned into units, and appended to a token cache; memory
  stays constant.
- Held out is a sentence whose digest falls into the share: the same words always fall on the same side, wherever they
  stand.
- A line of text that equals a transcript is left out, so that no LM meets in its text what it will label.

Shape letters: U units of a sentence.
"""

import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hkd.align.alignment import Alignment
from hkd.errors import HkdError, UserError
from hkd.files import digest_of, write_json
from hkd.lines import numbered_lines
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress
from hkd.teachers.cloze import UnitBatch, UnitLm, collate
from hkd.teachers.unit_lm import TEXT_READ, TextRead
from hkd.teachers.unit_lm_senones import SenoneMap
from hkd.units.level import SENONE, SPELLED
from hkd.units.sequences import Units
from hkd.units.text import text_digest, words, words_of_line

log = logging.getLogger(__name__)
Sequence_U = NDArray[np.int32]
UNITS, OFFSETS = "units.i32", "offset.i64"
_READ_AT_ONCE = 4096  # sentences
_UNPACKED = 3  # about as many times larger than its .gz is a text


def read_lines(paths: Sequence[Path], *, progress: Progress = no_progress) -> Iterator[str]:
    """Lines of text files, plain or .gz, in order. Raises UserError with file and line where one is missing or no
    UTF-8."""
    total = sum(path.stat().st_size * (_UNPACKED if path.suffix == ".gz" else 1) for path in paths if path.exists())
    done = 0
    for path in paths:
        for number, line in numbered_lines(path, "text", remedy="Give a text file, one sentence a line."):
            yield line
            done += len(line)
            if number % 1000 == 0:
                progress(min(done, total), total)


def is_held_out(line: str, share: float) -> bool:
    """Whether a normalised sentence is held out: a function of its words and the share alone."""
    return int(digest_of(["held-out", line])[:8], 16) < share * 2**32


def cut(unit_U: Sequence_U, may_begin_U: NDArray[np.bool_], max_units: int) -> Iterator[Sequence_U]:
    """A sequence in pieces of at most max_units, each beginning where it may (at max_units, where no such place is
    near)."""
    start = 0
    while len(unit_U) - start > max_units:
        places = np.flatnonzero(may_begin_U[start + 1 : start + max_units + 1])
        stop = start + (int(places[-1]) + 1 if len(places) else max_units)
        yield unit_U[start:stop]
        start = stop
    yield unit_U[start:]


class TokenCache:
    """Unit sequences in one file; random access by number. Read piece by piece: a memory map would count as memory,
    page by page."""

    def __init__(self, folder: Path) -> None:
        self._units, self._offsets = (os.open(folder / name, os.O_RDONLY) for name in (UNITS, OFFSETS))
        for file in (self._units, self._offsets):
            weakref.finalize(self, os.close, file)
        self._len = (folder / OFFSETS).stat().st_size // 8 - 1
        self.num_units = int(self._bounds(self._len, 1)[0])  # of all sentences
        self.facts: dict[str, int] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))

    def _bounds(self, number: int, count: int) -> NDArray[np.int64]:
        return np.frombuffer(os.pread(self._offsets, 8 * count, 8 * number), "<i8")

    def _read(self, start: int, stop: int) -> Sequence_U:
        return np.frombuffer(os.pread(self._units, 4 * (stop - start), 4 * start), "<i4")

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, number: int) -> Sequence_U:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._read(*self._bounds(number, 2).tolist())

    def __iter__(self) -> Iterator[Sequence_U]:
        for first in range(0, len(self), _READ_AT_ONCE):
            bounds = self._bounds(first, min(_READ_AT_ONCE, len(self) - first) + 1).tolist()
            unit_U = self._read(bounds[0], bounds[-1])
            yield from (unit_U[start - bounds[0] : stop - bounds[0]] for start, stop in pairwise(bounds))


class _Writer:
    """Appends sequences to a cache in the making; the folder gets its name only when it is whole."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.part, self.num_units = folder, folder.with_name(f".{folder.name}.part"), 0
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        self.units, self.offsets = (stack.enter_context((self.part / name).open("wb")) for name in (UNITS, OFFSETS))
        self.add(np.zeros(0, np.int32))  # where the first one begins

    def add(self, unit_U: Sequence_U) -> None:
        self.units.write(np.ascontiguousarray(unit_U, "<i4").tobytes())
        self.num_units += len(unit_U)
        self.offsets.write(np.int64(self.num_units).tobytes())


class Encoder:
    """Sentences → training sequences of one level."""

    def __init__(self, units: Units, level: str, *, senones: SenoneMap | None, max_units: int) -> None:
        self.units, self.level, self.senones, self.max_units = units, level, senones, max_units

    def text(self, sentence: Sequence[str]) -> list[Sequence_U]:
        """Words → sequences, cut between words; [] where a word has no pronunciation."""
        if not sentence or (self.level not in SPELLED and self.units.lexicon.unknown(sentence)):
            return []
        return self._cut(*self.units.encode(sentence, self.level))

    def utterance(self, utterance: Utterance, alignment: Alignment | None) -> list[Sequence_U]:
        """A transcript → sequences: as aligned where it is, else from its words."""
        if self.level in SPELLED or alignment is None or utterance.id not in alignment:
            return self.text(words(utterance.text))
        unit_U = np.asarray(alignment.positions(utterance.id, self.level).unit_U)
        if self.senones is not None and self.level == SENONE:
            return self._cut(unit_U, self.senones.split(unit_U)[1])
        return self._cut(unit_U, np.arange(len(unit_U)))

    def _cut(self, unit_U: Sequence_U, group_U: NDArray[Any]) -> list[Sequence_U]:
        """A sequence in pieces that begin where a group (a word, a phone) does."""
        begins_U = np.diff(group_U, prepend=-2) != 0
        return [piece for piece in cut(unit_U, begins_U, self.max_units) if len(piece)]


def cache_text(
    paths: Sequence[Path],
    folder: Path,
    *,
    encode: Callable[[Sequence[str]], list[Sequence_U]],
    held_out: float,
    transcripts: frozenset[str],
    progress: Progress = no_progress,
) -> tuple[TokenCache, TokenCache]:
    """Text files → the caches folder/text-train and folder/text-held-out; what is there already is taken as it is.

    `transcripts`: normalised sentences to leave out. Raises HkdError where the disk is full.
    """
    names = (folder / "text-train", folder / "text-held-out")
    if not all((name / OFFSETS).exists() for name in names):
        facts, seen = {"lines": 0, "left_out": 0, "unpronounceable": 0}, TextRead()
        try:
            with ExitStack() as stack:
                train, held = writers = [_Writer(name, stack) for name in names]
                for text in read_lines(paths, progress=progress):
                    sentence = words_of_line(text)
                    if not sentence:
                        continue
                    facts["lines"] += 1
                    line = " ".join(sentence)
                    if line in transcripts:
                        facts["left_out"] += 1
                        continue
                    pieces = encode(sentence)
                    facts["unpronounceable"] += not pieces
                    is_held = is_held_out(line, held_out)
                    if pieces and not is_held:
                        seen.add(sentence)
                    for piece in pieces:
                        (held if is_held else train).add(piece)
                seen.save(train.part / TEXT_READ)
            for writer in writers:
                write_json(writer.part / "facts.json", facts)
                shutil.rmtree(writer.folder, ignore_errors=True)
                writer.part.rename(writer.folder)
        except OSError as error:
            raise HkdError(f"the token cache {folder} cannot be written ({error.strerror}).") from None
    return TokenCache(names[0]), TokenCache(names[1])


def folds_of(manifest: Manifest, folds: int) -> dict[bytes, int]:
    """`text_digest` of a transcript → fold: the same words are of one fold, whatever utterance says them. Dealt out in
    the order of other digests."""
    texts = {tuple(words(u.text)) for u in manifest}
    groups = sorted(texts, key=lambda text: digest_of(["fold", " ".join(text)]))
    if len(groups) < folds:
        raise UserError(
            f"`folds` must be at most the {len(groups)} different transcripts, but is {folds} instead. Use fewer folds."
        )
    return {text_digest(text): number % folds for number, text in enumerate(groups)}


Sentences = TokenCache | Sequence[Sequence_U]


class Corpus:
    """Several collections of sequences as one."""

    def __init__(self, parts: Iterable[Sentences]) -> None:
        self.parts = [part for part in parts if len(part)]
        self._end = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._end[-1]) if self.parts else 0

    def __getitem__(self, number: int) -> Sequence_U:
        part = int(np.searchsorted(self._end, number, "right"))
        return self.parts[part][number - (int(self._end[part - 1]) if part else 0)]

    def __iter__(self) -> Iterator[Sequence_U]:
        for part in self.parts:
            yield from part

    def part(self, max_units: int) -> Iterable[Sequence_U]:
        """Every n-th sentence, so that there are about `max_units` units at most."""
        every = max(1, -(-self.num_units // max_units))
        if every > 1:
            log.info("The n-gram is estimated on every %dth of %d sentences.", every, len(self))
        return islice(self, 0, None, every)

    def counts(self, num_units: int) -> NDArray[np.int64]:
        """How often each unit of the inventory occurs, counts_V."""
        counts_V = np.zeros(num_units, np.int64)
        for unit_U in self:
            counts_V += np.bincount(unit_U, minlength=num_units)
        return counts_V

    @property
    def num_units(self) -> int:
        """Units of all sentences."""
        return sum(p.num_units if isinstance(p, TokenCache) else sum(map(len, p)) for p in self.parts)


Numbers = NDArray[np.int64]
_POOL = 64  # batches sorted together


class BatchOrder:
    """Step → numbers of the sentences."""

    def __init__(self, corpus: Corpus, *, batch_sentences: int, seed: int) -> None:
        self._corpus, self._size, self._seed = corpus, batch_sentences, seed
        self.steps_per_epoch = -(-len(corpus) // batch_sentences)
        self._order, self._batches = lru_cache(1)(self._make_order), lru_cache(1)(self._make_batches)

    def __call__(self, step: int) -> Numbers:
        """The sentences of a step (0 first)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        pool, index = divmod(place, _POOL)
        return self._batches(epoch, pool)[index]

    def _make_order(self, epoch: int) -> Numbers:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._corpus))

    def _make_batches(self, epoch: int, pool: int) -> list[Numbers]:
        width = _POOL * self._size
        member = self._order(epoch)[pool * width : (pool + 1) * width]
        length = np.array([len(self._corpus[int(number)]) for number in member])
        member = member[np.argsort(length, kind="stable")]
        batches = [member[start : start + self._size] for start in range(0, len(member), self._size)]
        return [batches[i] for i in np.random.default_rng([self._seed, epoch, pool]).permutation(len(batches))]


class LmTask:
    """Fits the loop's Task: one loss term, `nll`, divided by positions."""

    def __init__(self, model: UnitLm, corpus: Corpus, *, batch_sentences: int, seed: int) -> None:
        self._model, self._corpus = model, corpus
        self._order = BatchOrder(corpus, batch_sentences=batch_sentences, seed=seed)

    @property
    def model(self) -> nn.Module:
        return self._model

    def batches(self, start_step: int, rank: int, world_size: int) -> Iterator[UnitBatch | None]:
        """Endless shares; None where this process gets no sentence."""
        for step in count(start_step):
            member = [self._corpus[int(number)] for number in self._order(step)[rank::world_size]]
            yield collate(member, senones=self._model.senones) if member else None

    def counts(self, batch: UnitBatch) -> Mapping[str, float]:
        return {"nll": float(len(batch.gold_N))}

    def losses(self, batch: UnitBatch, step: int) -> Mapping[str, Tensor]:
        return {"nll": self._model.loss_sum(batch)}

    def weights(self, step: int) -> Mapping[str, float]:
        return {"nll": 1.0}
