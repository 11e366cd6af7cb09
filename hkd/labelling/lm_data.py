"""Text: sentences as a manifest without sound, and text and transcripts as unit sequences on disk, for unit LMs.

- Text is streamed: a line is normalised, kept or held out, turned into units, and appended to a token cache.
- Held out is a sentence whose digest falls into the share: the same words always fall on the same side.
- A line that equals a transcript is left out: no LM meets what it will label, no student learns what it is tested on.
- The manifest of sentences is for label stores of text and for training beside speech. An id is `text-` and the first
  16 hex digits of the SHA-256 of the sentence's words: lines that are put in or moved, case and punctuation do not
  change it. Where the same words stand again the ids end in `-2`, `-3`. Left out, counted and listed: what has no
  words, or too many; words that the project cannot pronounce or spell; transcripts.

Shape letters: U units of a sentence.
"""

import json
import logging
import os
import re
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.corpora import Report
from hkd.corpora.importers import COLUMNS
from hkd.errors import HkdError, Progress, UserError, check_setting, no_progress
from hkd.files import digest_of, numbered_lines, write_json
from hkd.manifest import Manifest, Utterance
from hkd.teachers.cloze import SenoneMap, UnitBatch, UnitLm, collate
from hkd.teachers.unit_lm import TEXT_READ, TextRead
from hkd.units.inventory import SENONE, SPELLED
from hkd.units.sequences import Units, model_file
from hkd.units.text import text_digest, words, words_of_line

logger = logging.getLogger(__name__)
Sequence_U = NDArray[np.int32]
UNITS, OFFSETS = "units.i32", "offset.i64"
_READ_AT_ONCE = 4096  # sentences
_HEAD = 100  # lines that are looked at
_DIVIDER = "[,;\t|]"  # of a table's columns
_ID = re.compile(r"(?=\S*\d)(?=\S*[^\s\d])\S{4,}")  # utt-1, BAC009S0002W0122, 1034-121119-0000
_ID_BEHIND = re.compile(rf"\({_ID.pattern}\)")  # (spk1-utt1), as sclite has them; a sentence ends in 1995., too
_UNPACKED = 3  # about as many times larger than its .gz is a text


def read_lines(paths: Sequence[Path], *, progress: Progress = no_progress) -> Iterator[str]:
    """Lines of text files, plain or .gz. Raises UserError with file and line where one is missing or not UTF-8."""
    total = sum(path.stat().st_size * (_UNPACKED if path.suffix == ".gz" else 1) for path in paths if path.exists())
    done = 0
    for path in paths:
        for number, line in sentence_lines(path):
            yield line
            done += len(line)
            if number % 1000 == 0:
                progress(min(done, total), total)


def sentence_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text, plain or .gz. Raises UserError where it is missing or broken, or where its first
    lines hold other things beside the sentences, which would be read as words."""
    lines = numbered_lines(path, "text", remedy="Give a text file, one sentence a line.")
    head = list(islice(lines, _HEAD))
    if found := _beside_sentences([line.strip() for _, line in head if line.strip()]):
        raise UserError(
            f"{path} must be text, one sentence a line and nothing else, but looks like {found[0]}. Write the "
            f"sentences alone: {found[1]}"
        )
    yield from chain(head, lines)


def _beside_sentences(lines: Sequence[str]) -> tuple[str, str] | None:
    """What a text is, if no plain one, and a command that makes one of it."""
    if not lines:
        return None
    columns = [cell.strip(' "').lower() for cell in re.split(_DIVIDER, lines[0])]
    first, last = ([line.split()[place] for line in lines] for place in (0, -1))
    if lines[0] in ("[", "{") or all(line[0] + line[-1] == "{}" for line in lines):
        return "JSON", "jq -r .text FILE"
    if any(re.search(r"\d --> \d", line) for line in lines):
        return "subtitles with times", "grep -v -e '-->' -e '^[0-9]*$' FILE"
    if any("\r" in line for line in lines):
        return "text whose lines end in CR alone, as on old Macs", r"tr '\r' '\n' < FILE"
    if len({line.count("\t") for line in lines} - {0}) == 1 and all("\t" in line for line in lines):
        return "a table, with tabs between its columns", "cut -f2 FILE"
    is_table = all(len(re.split(_DIVIDER, line)) >= len(columns) > 1 for line in lines)
    if is_table and not {*columns}.isdisjoint(COLUMNS["text"]):
        return f"a table with the columns {', '.join(columns[:5])}", "its column of text, without this first line"
    for names, place, pattern in ((first, "before", _ID), (last, "behind", _ID_BEHIND)):
        if len(names) == len({*names}) > 1 and all(map(pattern.fullmatch, names)):
            command = "cut -d' ' -f2- FILE" if place == "before" else "sed 's/ *[^ ]*$//' FILE"
            return f"transcripts with an id {place} each ({names[0]})", command
    return None


def is_held_out(line: str, share: float) -> bool:
    """Whether a normalised sentence is held out: a function of its words and the share alone."""
    return int(digest_of(["held-out", line])[:8], 16) < share * 2**32


def cut(unit_U: Sequence_U, may_begin_U: NDArray[np.bool_], max_units: int) -> Iterator[Sequence_U]:
    """A sequence in pieces of at most max_units, which begin where they may (anywhere, where no such place is near)."""
    start = 0
    while len(unit_U) - start > max_units:
        places = np.flatnonzero(may_begin_U[start + 1 : start + max_units + 1])
        stop = start + (int(places[-1]) + 1 if len(places) else max_units)
        yield unit_U[start:stop]
        start = stop
    yield unit_U[start:]


class TokenCache:
    """Unit sequences in one file, by number. Read piece by piece: the pages of a memory map would count as memory."""

    def __init__(self, folder: Path) -> None:
        self._units, self._offsets = (os.open(folder / name, os.O_RDONLY) for name in (UNITS, OFFSETS))
        for file in (self._units, self._offsets):
            weakref.finalize(self, os.close, file)
        self._len = (folder / OFFSETS).stat().st_size // 8 - 1
        self.num_units = self._bounds(self._len, 1)[0]  # of all sentences
        self.facts: dict[str, int] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))

    def _bounds(self, number: int, count: int) -> list[int]:
        """Where this sequence and those after it begin, `count` numbers."""
        bounds: list[int] = np.frombuffer(os.pread(self._offsets, 8 * count, 8 * number), "<i8").tolist()
        return bounds

    def _read(self, start: int, stop: int) -> Sequence_U:
        return np.frombuffer(os.pread(self._units, 4 * (stop - start), 4 * start), "<i4")

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, number: int) -> Sequence_U:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._read(*self._bounds(number, 2))

    def __iter__(self) -> Iterator[Sequence_U]:
        for first in range(0, len(self), _READ_AT_ONCE):
            bounds = self._bounds(first, min(_READ_AT_ONCE, len(self) - first) + 1)
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
    `transcripts`: normalised sentences to leave out. Raises HkdError where the disk is full."""
    names = (folder / "text-train", folder / "text-held-out")
    if not all((name / OFFSETS).exists() for name in names):
        facts, seen = {"lines": 0, "left_out": 0, "unpronounceable": 0}, TextRead()
        try:
            with ExitStack() as stack:
                train, held = writers = [_Writer(name, stack) for name in names]
                for sentence in filter(None, map(words_of_line, read_lines(paths, progress=progress))):
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
    """`text_digest` of a transcript → fold, whatever utterance says it; dealt out in the order of other digests."""
    texts = {tuple(words(u.text)) for u in manifest}
    groups = sorted(texts, key=lambda text: digest_of(["fold", " ".join(text)]))
    most = f"be at most the {len(groups)} different transcripts"
    check_setting("`folds`", folds, most, len(groups) >= folds, "Use fewer folds.")
    return {text_digest(text): number % folds for number, text in enumerate(groups)}


Sentences = TokenCache | Sequence[Sequence_U]


class ConcatSentences:
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
            logger.info("The n-gram is estimated on every %dth of %d sentences.", every, len(self))
        return islice(self, 0, None, every)

    def counts(self, num_units: int) -> NDArray[np.int64]:
        """How often each unit of the inventory occurs, counts_V."""
        counts_V = np.zeros(num_units, np.int64)
        for unit_U in self:
            counts_V += np.bincount(unit_U, minlength=num_units)
        return counts_V

    @property
    def num_units(self) -> int:
        return sum(p.num_units if isinstance(p, TokenCache) else sum(map(len, p)) for p in self.parts)


_POOL = 64  # batches sorted together


class BatchOrder:
    """Step → numbers of the sentences."""

    def __init__(self, corpus: ConcatSentences, *, batch_sentences: int, seed: int) -> None:
        self._corpus, self._size, self._seed = corpus, batch_sentences, seed
        self.steps_per_epoch = -(-len(corpus) // batch_sentences)
        self._order, self._batches = lru_cache(1)(self._make_order), lru_cache(1)(self._make_batches)

    def __call__(self, step: int) -> NDArray[np.int64]:
        """The sentences of a step (0 first)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        pool, index = divmod(place, _POOL)
        return self._batches(epoch, pool)[index]

    def _make_order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._corpus))

    def _make_batches(self, epoch: int, pool: int) -> list[NDArray[np.int64]]:
        width = _POOL * self._size
        member = self._order(epoch)[pool * width : (pool + 1) * width]
        length = np.array([len(self._corpus[int(number)]) for number in member])
        member = member[np.argsort(length, kind="stable")]
        batches = [member[start : start + self._size] for start in range(0, len(member), self._size)]
        return [batches[i] for i in np.random.default_rng([self._seed, epoch, pool]).permutation(len(batches))]


class LmTask:
    """Fits the loop's Task: one loss term, `nll`, divided by positions."""

    def __init__(self, model: UnitLm, corpus: ConcatSentences, *, batch_sentences: int, seed: int) -> None:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencesConfig:
    """Which sentences are taken."""

    max_words: int = 40  # longer sentences are left out, and said; 40 words are about 16 seconds of speech
    total_words: int = 0  # sentences at random, up to so many words in all; 0: all sentences
    shuffle: bool = False  # the control: the words of all sentences in a random order, the sentences as long as before

    def __post_init__(self) -> None:
        check_setting("`total_words`", self.total_words, "be at least 1, or 0 for all", self.total_words >= 0)
        check_setting("`max_words`", self.max_words, "be at least 1", self.max_words >= 1)


def prepare_sentences(
    texts: Sequence[Path],
    out: Path,
    *,
    units: Units,
    transcripts: Manifest | None = None,
    config: SentencesConfig | None = None,
    report: Report | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Text files, plain or .gz, a sentence a line → the manifest `out`. The same call again changes nothing.

    units: the project's; before `hkd units train`, those of the English dictionary. transcripts: not to be in it.
    Raises UserError where no sentence is left, and where `out` has other sentences, unless `overwrite`.
    """
    config, report = config or SentencesConfig(), report or Report()
    report.path = out.with_name(f"{out.stem}-left-out.tsv")
    spoken = frozenset(" ".join(words_of_line(u.text)) for u in transcripts or ())
    spelled = [units.spelling(level) for level in SPELLED if (units.folder / model_file(level)).exists()]

    @cache
    def problem(word: str) -> str:
        if not units.lexicon.pronounce(word):
            return "sentences with a word that has no pronunciation"
        lacking = any(model.unknown in model.encode([word])[0] for model in spelled)
        return "sentences with a letter that the project's units lack" if lacking else ""

    def left_out(line: str, said: Sequence[str]) -> tuple[str, str]:
        """Why a line is left out ("" where it is not), and what of it is named."""
        if not said:
            return "lines without words", line
        if len(said) > config.max_words:
            return f"sentences of more than {config.max_words} words", line
        if " ".join(said) in spoken:
            return "sentences that are transcripts of the project", line
        return next(((why, word) for word in said if (why := problem(word))), ("", ""))

    kept: list[tuple[str, tuple[str, ...]]] = []
    for done, path in enumerate(texts):
        for number, line in sentence_lines(path):
            said = words_of_line(line)
            why, named = left_out(line, said)
            if why:
                report.leave_out(why, [f"{path.name}:{number}: {named}"])
                continue
            kept.append((line.strip(), tuple(said)))
            if number % 1000 == 0:
                progress(done, len(texts), sentences=len(kept))
    report.write()
    if not kept:
        raise UserError(f"{', '.join(map(str, texts))} must have sentences, but none is left. {report.path} says why.")
    count: Counter[bytes] = Counter()
    found: list[Utterance] = []
    for text, own in _chosen(kept, config):
        digest = text_digest(own)
        count[digest] += 1
        again = f"-{count[digest]}" if count[digest] > 1 else ""
        found.append(Utterance(id=f"text-{digest.hex()}{again}", text=text))
    if repeats := count.total() - len(count):
        ids = "ids that end in -2, -3 ..."
        report.note(f"{repeats} sentences have the words of an earlier one and are kept, with {ids}")
    for kind in report.lines():
        logger.warning("%s (all in %s)", kind, report.path)
    whole = Manifest(found)
    if out.exists() and not overwrite:
        if manifests.read(out).digest != whole.digest:
            remedy = "Take another file (--out), or --overwrite."
            raise UserError(f"{out} must not be replaced, but has other sentences. {remedy}")
        report.outcome = "up to date"
    else:
        manifests.write(out, whole)
    return whole


def _chosen(kept: list[tuple[str, tuple[str, ...]]], config: SentencesConfig) -> list[tuple[str, tuple[str, ...]]]:
    """(text, words) of the sentences that are taken, in their order; shuffled if that is asked for."""
    order = np.random.default_rng(0)
    if config.total_words:
        picked = order.permutation(len(kept))
        before = np.cumsum([0, *(len(kept[n][1]) for n in picked)])[:-1]
        kept = [kept[n] for n in sorted(picked[before < config.total_words])]
    if not config.shuffle:
        return kept
    pool = [word for _, said in kept for word in said]
    words = iter([pool[n] for n in order.permutation(len(pool))])
    shuffled = [tuple(islice(words, len(said))) for _, said in kept]
    return [(" ".join(said), said) for said in shuffled]
