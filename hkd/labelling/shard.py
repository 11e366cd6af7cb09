"""One shard: read its transcripts, score what does not repeat, name the utterances that cannot be labelled, and write it.

A thread compresses and writes shards while the teacher scores the next ones.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import sequence_digest
from hkd.errors import HkdError, UserError
from hkd.labelling.context import ContextRule, Transcripts, UnitSource
from hkd.labels.card import calibration_bins, calibration_error, figures, quality_of
from hkd.labels.format import LEFT_OUT, UtteranceLabels
from hkd.labels.writer import LabelWriter
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, Teacher
from hkd.units.text import text_digest


def quality_sums(rows: TopK) -> dict[str, float]:
    """Sums over the positions of some rows, for a shard's mark; those of several shards add up."""
    has_N = rows.gold_N >= 0
    sure_N = np.exp(rows.logp_NK[:, 0].astype(np.float64)) if len(rows) else np.zeros(0)
    hit_N = rows.ids_NK[:, 0] == rows.gold_N if len(rows) else np.zeros(0, bool)
    return quality_of(rows) | calibration_bins(sure_N[has_N], hit_N[has_N])


def summary(sums: Mapping[str, float | None], *, unigram: float | None) -> dict[str, Any]:
    """The figures of a report; None where one cannot be said."""
    return {**figures(sums), "calibration_error": calibration_error(sums), "unigram_perplexity": unigram}


def unigram_perplexity(units: Iterable[NDArray[np.int32]], size: int) -> float | None:
    """Leave-one-out perplexity of the add-one unigram LM of some unit sequences over `size` units: what any teacher must beat.

    Each position is predicted from all others' counts: p = (c_u − 1 + 1) / (N − 1 + V). None below two positions.
    """
    count_V = np.zeros(size, np.float64)
    for unit_U in units:
        count_V += np.bincount(unit_U[unit_U >= 0], minlength=size)
    total = count_V.sum()
    if total < 2:
        return None
    seen = count_V[count_V > 0]
    return math.exp(-float((seen * np.log(seen / (total - 1 + size))).sum()) / total)


@dataclass(kw_only=True, slots=True)
class Labelled:
    """A shard's labels and what they took."""

    rows: list[UtteranceLabels] = field(default_factory=list)
    scored_positions: int = 0  # fewer than positions, where transcripts repeat
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "score": 0.0})
    left_out: dict[str, str] = field(default_factory=dict)  # id → why

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Clock what runs inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - started


class ShardLabeller:
    """Labels shards, several at once if asked by several threads. `asked`: what `Teacher.score` is given beside the sentences."""

    def __init__(
        self, *, teacher: Teacher, source: UnitSource, transcripts: Transcripts, asked: dict[str, Any], keep_going: bool
    ) -> None:
        self._teacher, self._source, self._transcripts = teacher, source, transcripts
        self._asked, self._keep_going = asked, keep_going
        room = int(getattr(teacher, "room", 0)) if teacher.info.options.get("context") else 0
        self._rule = ContextRule(transcripts, source, room=room, left_only=teacher.info.direction == "left")
        self._by_text = teacher.info.trained_on_transcripts == "cross-fitted"  # which of its LMs has not seen an utterance
        self._reading = threading.Lock()

    def label(self, ids: Sequence[str]) -> Labelled:
        """The labels of some utterances; transcripts that repeat (in the same context) are scored once.

        Raises UserError or HkdError with the name of an utterance that cannot be labelled; with `keep_going` those are left out.
        """
        done = Labelled()
        with self._reading, done.phase("read"):
            spoken = self._transcripts.words([self._transcripts.row(name) for name in ids])
            sentences = [self._sentence(name, words, done.left_out) for name, words in zip(ids, spoken, strict=True)]
        first_of: dict[Any, int] = {}
        first = [
            first_of.setdefault((s.unit_U.tobytes(), s.before, s.after, s.text if self._by_text else b""), n)
            for n, s in enumerate(sentences)
        ]
        unique = sorted(set(first))
        with done.phase("score"):
            answers = dict(zip(unique, self._scored([sentences[n] for n in unique]), strict=True))
            for name, n in zip(ids, first, strict=True):
                if isinstance(problem := answers[n], Exception):
                    self._leave_out(name, problem, done.left_out)
            scored = {n: rows for n, rows in answers.items() if isinstance(rows, TopK)}
            if done.left_out:
                [nothing] = self._teacher.score([_empty("")], **self._asked)
        done.scored_positions = sum(map(len, scored.values()))
        for name, words, sentence, n in zip(ids, spoken, sentences, first, strict=True):
            out = name in done.left_out
            done.rows.append(
                UtteranceLabels(
                    id=name,
                    topk=nothing if out else scored[n],
                    word_U=_empty(name).word_U if out else sentence.word_U,
                    unit_digest=LEFT_OUT if out else sequence_digest(sentence.unit_U),
                    text_digest=text_digest(words),
                )
            )
        return done

    def sample(self, ids: Sequence[str]) -> list[Sentence]:
        """The sentences of some utterances, without those that cannot be labelled."""
        spoken = self._transcripts.words([self._transcripts.row(name) for name in ids])
        left_out: dict[str, str] = {}
        sentences = [self._sentence(name, words, left_out) for name, words in zip(ids, spoken, strict=True)]
        return [sentence for sentence in sentences if sentence.id not in left_out]

    def _scored(self, sentences: Sequence[Sentence]) -> list[TopK | Exception]:
        """Each sentence's rows, or why there are none: what fails together is halved, so that few are scored again.

        Raises the error where every sentence has one: then it is not theirs.
        """
        try:
            return list(self._teacher.score(sentences, **self._asked))
        except Exception as error:  # whatever a model makes of an odd text
            if len(sentences) == 1:
                return [error]
            half = len(sentences) // 2
            parts = [*self._halves(sentences[:half]), *self._halves(sentences[half:])]
            if all(isinstance(part, Exception) for part in parts):
                raise
            return parts

    def _halves(self, sentences: Sequence[Sentence]) -> list[TopK | Exception]:
        try:
            return self._scored(sentences)
        except Exception as error:
            return [error] * len(sentences)

    def _sentence(self, name: str, spoken: Sequence[str], left_out: dict[str, str]) -> Sentence:
        try:
            return self._rule.sentence(name, self._source.units(name, spoken), spoken)
        except Exception as error:  # whatever a tokenizer makes of an odd text
            self._leave_out(name, error, left_out)
            return _empty(name)

    def _leave_out(self, name: str, problem: Exception, left_out: dict[str, str]) -> None:
        why = str(problem) if isinstance(problem, HkdError) else f"{type(problem).__name__}: {problem}"
        if self._keep_going:
            left_out[name] = why
            return
        kind = UserError if isinstance(problem, UserError) else HkdError
        raise kind(f"utterance '{name}' cannot be labelled: {why} Or leave such utterances out: --keep-going.") from problem


def _empty(name: str) -> Sentence:
    nothing = np.zeros(0, np.int32)
    return Sentence(id=name, unit_U=nothing, word_U=nothing)


log = logging.getLogger(__name__)

WAITING_SHARDS = 2

_Item = tuple[int, list[UtteranceLabels]]


class WriterThread:
    """Writes shards behind a bounded queue. Whatever ends the thread is raised by the next `put` or by `close`, at once."""

    def __init__(self, writer: LabelWriter) -> None:
        self._writer = writer
        self._queue: queue.Queue[_Item | None] = queue.Queue(maxsize=WAITING_SHARDS)
        self._error: BaseException | None = None
        self.seconds = 0.0  # spent on quality, compression and writing
        self._thread = threading.Thread(target=self._work, name="hkd-writer", daemon=True)

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Above, all is well or something was raised (SIGTERM and Ctrl-C too): what was handed over is written in any case."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()

    def put(self, shard: int, rows: list[UtteranceLabels]) -> None:
        """Hand over a shard; waits while the queue is full. Raises the thread's error."""
        self._hand_over((shard, rows))

    def close(self) -> None:
        """Wait until all is written. Raises the thread's error."""
        self._hand_over(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _hand_over(self, item: _Item | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                started = time.monotonic()
                self._write(*item)
                self.seconds += time.monotonic() - started
        except BaseException as error:
            self._error = error

    def _write(self, shard: int, rows: list[UtteranceLabels]) -> None:
        sums = quality_sums(TopK.concatenate([row.topk for row in rows]))
        self._writer.write_shard(shard, rows, quality={key: float(np.float64(value)) for key, value in sums.items()})
