"""Text in training: sentences become what the student would hear, were they spoken, by draws from a posterior bank.

- words → phones → a segment of the bank for each, with its duration and its confusions. Pauses are as frequent as in
  the speech; some words are said twice, some phones masked (a flat posterior). The segments give each unit its frames,
  so that labels lie on frames as in speech.
- A draw is a function of (seed, epoch, utterance), a step's sentences of (seed, step): resuming and processes change
  neither.

Shape letters: as in `hkd.stream.loader` and `hkd.stream.bank`; U phones of a sentence, P phones and pauses as said, Q
positions of a level.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.align.alignment import Positions, Tier, UtteranceAlignment
from hkd.errors import UserError
from hkd.features.augment import generator
from hkd.manifest import Utterance
from hkd.stream.bank import SILENCE, Bank, Ids
from hkd.stream.join import Join
from hkd.stream.loader import Batch, Moves, View, hard_labels, soft_labels, targets
from hkd.timebase import FRAME_SHIFT_S, SUBSAMPLING
from hkd.units.level import MONOPHONE, SPELLED
from hkd.units.sequences import Units

POSTERIORS = ("bank", "clean")


@dataclass(frozen=True, kw_only=True)
class TextBatch(Batch):
    """Sentences: posteriors p_BTV of encoder frames, by the head that conditions, in place of features."""

    posteriors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SpeechAndText(Moves):
    """A share of a step: of its speech and of its text; either may be empty."""

    speech: Batch | None
    text: Batch | None

    @property
    def ids(self) -> tuple[str, ...]:
        """Of both."""
        return tuple(name for part in (self.speech, self.text) if part is not None for name in part.ids)

    @property
    def seconds(self) -> float:
        """Of both."""
        return sum(part.seconds for part in (self.speech, self.text) if part is not None)


@dataclass(frozen=True, kw_only=True)
class TextShares:
    """(step, rank, world size) → the share of the step's speech and, before `last_step`, of its text; None for an empty
    one."""

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
    """The units of sentences, (id, words) each. Raises UserError, naming the sentence, where a word has no
    pronunciation, or there is none."""
    parts = []
    for name, words in said:
        try:
            parts.append(units.encode(words, level))
        except UserError as error:
            raise UserError(f"sentence '{name}': {error}") from None
        if not len(parts[-1][0]):
            raise UserError(f"sentence '{name}' must have words, but has none. Take it out.")
    none = np.zeros(0, np.int32)
    offset_N1 = np.cumsum([0, *(len(unit_U) for unit_U, _ in parts)])
    return Sequences(
        offset_N1, np.concatenate([none, *(u for u, _ in parts)]), np.concatenate([none, *(w for _, w in parts)])
    )


class Said(NamedTuple):
    """A sentence as it is said in an epoch: phones and pauses in order."""

    source_P: Ids  # place among the sentence's phones; −1 for a pause
    word_P: Ids  # −1 for a pause, and for a word's first saying where it is said twice
    masked_P: NDArray[np.bool_]
    bound_P1: Ids  # in 10 ms frames
    frame_T: Ids  # frames of the bank


class Placed(NamedTuple):
    """A level's units on the frames of a sentence."""

    positions: Positions
    word_Q: Ids
    masked_Q: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class TextMaker:
    """Makes batches of sentences."""

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
            found = (
                [self.join.spelled(r, level) for r in spoken]
                if level in SPELLED
                else [p.positions for p in placed[level]]
            )
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

    def _say(self, row: int, epoch: int) -> Said:
        random = generator(self.seed, epoch, f"text {self.utterances[row].id}")
        phone_U, word_U = self.sequences[MONOPHONE].row(row)
        before, between, after = self.bank.facts["pauses"]
        source: list[int] = []
        word: list[int] = []

        def say(places: Sequence[int], number: int) -> None:
            source.extend(places)
            word.extend([number] * len(places))

        for number in np.unique(word_U).tolist():
            first, last = np.searchsorted(word_U, [number, number + 1]).tolist()
            pause, twice = random.random(2)
            if pause < (between if first else before):
                say([-1], -1)
            if twice < self.repeats:
                say(range(first, last), -1)
            say(range(first, last), number)
        if random.random() < after:
            say([-1], -1)
        source_P = np.array(source, np.int64)
        masked_P = (random.random(len(source_P)) < self.masked) & (source_P >= 0)
        segment_P = self.bank.draw(np.where(source_P >= 0, phone_U[source_P], SILENCE).tolist(), random)
        bound_P1 = SUBSAMPLING * np.cumsum([0, *self.bank.segments.count_S[segment_P]])
        return Said(source_P, np.array(word, np.int64), masked_P, bound_P1, self.bank.frames(segment_P))

    def _place(self, row: int, said: Said, level: str) -> Placed:
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
        unit_Q = np.where(
            is_pause_P[of_Q], quiet, unit_V[np.minimum(first_U1[source_P[of_Q]] + place_Q, len(unit_V) - 1)]
        )
        positions = Positions(
            unit_U=unit_Q.astype(np.int32),
            start_U=(start_Q + length_Q * place_Q // count_P[of_Q]).astype(np.int32),
            stop_U=(start_Q + length_Q * (place_Q + 1) // count_P[of_Q]).astype(np.int32),
        )
        return Placed(positions, said.word_P[of_Q], said.masked_P[of_Q])

    def _spoken(self, utterance: Utterance, said: Said, phones: Placed) -> UtteranceAlignment:
        """The sentence as an aligned utterance: words and phones."""
        begins_P = np.append(True, said.word_P[1:] != said.word_P[:-1])
        word_tier = Tier(
            unit_U=said.word_P[begins_P].astype(np.int32),
            start_U1=np.append(said.bound_P1[:-1][begins_P], said.bound_P1[-1]).astype(np.int32),
        )
        tier = Tier(unit_U=phones.positions.unit_U, start_U1=said.bound_P1.astype(np.int32))
        return UtteranceAlignment(
            id=utterance.id, words=self.join.words(utterance.id), word_tier=word_tier, tiers={MONOPHONE: tier}
        )

    def _heard(self, head: str, said: Sequence[Said], placed: Sequence[Placed]) -> Tensor:
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


def _labelled(placed: Placed, *, only_masked: bool) -> Positions:
    """The positions that a store labels; where only masked ones are to be read, the others have no frames."""
    keep_Q = placed.word_Q >= 0
    unit_U, start_U, stop_U = (getattr(placed.positions, name)[keep_Q] for name in ("unit_U", "start_U", "stop_U"))
    if only_masked:
        stop_U = np.where(placed.masked_Q[keep_Q], stop_U, start_U)
    return Positions(unit_U=unit_U, start_U=start_U, stop_U=stop_U)
