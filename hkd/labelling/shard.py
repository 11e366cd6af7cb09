"""The labels of one shard: read its transcripts, score what does not repeat, and tell the utterances that cannot be labelled."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hkd.align.alignment import sequence_digest
from hkd.errors import HkdError, UserError
from hkd.labelling.context import ContextRule
from hkd.labelling.plan import Transcripts, UnitSource
from hkd.labels.format import LEFT_OUT, UtteranceLabels
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, Teacher
from hkd.units.text import text_digest


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
        self._alone = teacher.info.trained_on_transcripts == "cross-fitted"  # who has not seen an utterance depends on its id
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
            first_of.setdefault(s.id if self._alone else (s.unit_U.tobytes(), s.before, s.after), n)
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
            return self._rule.sentence(name, self._source.units(name, spoken))
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
