"""What other tools say of an utterance → an alignment row: checked, closed, on the 10 ms grid, in the transcript's own words.

- A tool gives pieces: stretches of sound, the finest that it knows (states, else phones, else words), each with the word and phone that it
  is part of. Times are samples at 16 kHz from the utterance's start; all rounding to frames happens here, by `hkd.timebase`.
- Gaps become silence, at the edges too (less than 50 ms there goes to the neighbour). What overlaps, runs backwards or ends after the
  sound is refused, and so is what does not cover the sound, or holds a phone for seconds. Gaps and overlaps within the tool's own rounding
  (5 ms, a CTM's 10 ms) are none.
- The tool's words are held against the transcript's by their letters: a tool may write `well-known` or `we` + `'ll`, and `<unk>`
  stands for one word of the transcript.

Shape letters: P pieces.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Tier, UtteranceAlignment, at_least_one_apart
from hkd.errors import UserError
from hkd.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ, samples_to_boundaries, samples_to_frames
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.phones import without_stress
from hkd.units.text import words

SILENCE_PHONE = "sil"
UNKNOWN_WORDS = frozenset({"<unk>", "<oov>", "[unk]", "<unk/>", "<spoken_noise>"})
NOISE = re.compile(r"<.*>|\[.*\]|\{.*\}|\+.*\+|!.*")
_EDGE_FRAMES = 5  # of silence that a tool need not say
_MAX_MOVED_FRAMES = 5
_SLACK_SAMPLES = HOP_SAMPLES // 2


class FailureError(Exception):
    """Why an utterance has no alignment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """What is accepted of another tool's alignment, and how its phones are read."""

    stress: bool = True  # keep ARPAbet's stress marks (AH0, AH1); without, all are AH
    silence_phones: tuple[str, ...] = ()  # besides those that are known by name: sil, sp, spn, nsn, lau ...
    max_phone_s: float = 3.0  # a phone that lasts longer is a failed alignment
    min_coverage: float = 0.5  # share of the sound that the tool's segments, silence included, must cover

    def __post_init__(self) -> None:
        if not self.max_phone_s > 0 or not 0 <= self.min_coverage <= 1:
            raise UserError(
                f"max_phone_s must be positive and min_coverage between 0 and 1, but are {self.max_phone_s}, {self.min_coverage}."
            )

    def fold(self, phone: str) -> str:
        """A tool's phone → the inventory's."""
        return phone if self.stress else without_stress(phone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Foreign:
    """An utterance as a tool aligned it. word_P: index into `tokens`, −1 for silence and noise; phone_P: symbols, or None for words alone."""

    tokens: tuple[str, ...]
    start_P: NDArray[np.int64]  # samples
    stop_P: NDArray[np.int64]
    word_P: NDArray[np.int64]
    phone_P: tuple[str, ...] | None = None
    begins_P: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, np.bool_))  # a new phone; read where there are senones
    senone_P: NDArray[np.int64] | None = None
    slack: int = _SLACK_SAMPLES  # what the tool's times may be wrong by, in samples: overlaps up to it and gaps below it are none


@dataclass(frozen=True, kw_only=True, slots=True)
class Silence:
    """Which phones are silence or noise, and what is put into gaps."""

    names: frozenset[str]
    phone: str = SILENCE_PHONE
    senone: int = 0

    def __contains__(self, phone: object) -> bool:
        return phone in self.names


def pieces(
    segments: Sequence[tuple[float, float, int, str | None]],
    tokens: Sequence[str],
    *,
    offset_s: float = 0.0,
    grid_s: float | None = None,
) -> Foreign:
    """(start, stop, word, phone) in seconds → Foreign. grid_s: what times are rounded to. Raises FailureError for times that are no numbers."""
    times = np.array([row[:2] for row in segments], np.float64).reshape(-1, 2) - offset_s
    if not np.isfinite(times).all() or (np.abs(times) > 1e7).any():
        raise FailureError("a segment's time is not a finite number of seconds")
    sample_P2 = np.floor(times * SAMPLE_RATE_HZ + 0.5).astype(np.int64)
    has_phones = bool(segments) and segments[0][3] is not None
    return Foreign(
        tokens=tuple(tokens), start_P=sample_P2[:, 0], stop_P=sample_P2[:, 1],
        word_P=np.array([row[2] for row in segments], np.int64),
        phone_P=tuple(str(row[3]) for row in segments) if has_phones else None,
        slack=_SLACK_SAMPLES if grid_s is None else round(grid_s * SAMPLE_RATE_HZ) + 1,
    )  # fmt: skip


def fit(
    foreign: Foreign,
    *,
    id: str,
    text: str,
    num_samples: int,
    silence: Silence,
    config: ImportConfig,
    id_of: "SymbolTable",
) -> UtteranceAlignment:
    """One utterance on the grid. Raises FailureError with the reason where it is refused."""
    spoken = words(text)
    if not spoken:
        raise FailureError("the transcript has no words")
    if not len(foreign.start_P):
        raise FailureError("the alignment has no segments")
    _check(foreign, num_samples, silence, config)
    closed = _close(_in_words(foreign, spoken), num_samples, silence)
    bound_P1 = _on_grid(closed, num_samples)
    word_P = closed.word_P
    tiers = {}
    if closed.phone_P is not None:
        code_P = np.array([id_of[config.fold(phone)] for phone in closed.phone_P], np.int32)
        begins_P = closed.begins_P if closed.senone_P is not None else np.ones(len(code_P), np.bool_)
        begins_P = begins_P | np.concatenate([[True], word_P[1:] != word_P[:-1]])
        tiers[MONOPHONE] = _tier(code_P, bound_P1, begins_P)
    if closed.senone_P is not None:
        tiers[SENONE] = _tier(closed.senone_P.astype(np.int32), bound_P1, np.ones(len(word_P), np.bool_))
    new_word_P = np.concatenate([[True], word_P[1:] != word_P[:-1]])
    return UtteranceAlignment(
        id=id, words=tuple(spoken), word_tier=_tier(word_P.astype(np.int32), bound_P1, new_word_P), tiers=tiers
    )


class SymbolTable(dict[str, int]):
    """Symbols numbered as they first occur; a symbol that is asked for is there."""

    def __missing__(self, symbol: str) -> int:
        self[symbol] = len(self)
        return self[symbol]


def _tier(unit_P: NDArray[np.int32], bound_P1: NDArray[np.int64], begins_P: NDArray[np.bool_]) -> Tier:
    start_U1 = np.concatenate([bound_P1[:-1][begins_P], bound_P1[-1:]]).astype(np.int32)
    return Tier(unit_U=unit_P[begins_P], start_U1=start_U1)


def _at(sample: int) -> str:
    return f"{sample / SAMPLE_RATE_HZ:.2f} s"


def _check(foreign: Foreign, num_samples: int, silence: Silence, config: ImportConfig) -> None:
    """Order, overlap, end, coverage, durations."""
    start_P, stop_P = foreign.start_P, foreign.stop_P
    if (bad := np.flatnonzero(stop_P <= start_P)).size:
        raise FailureError(f"a segment at {_at(int(start_P[bad[0]]))} has no duration")
    if (bad := np.flatnonzero(start_P[1:] < stop_P[:-1] - foreign.slack)).size:
        raise FailureError(f"segments overlap at {_at(int(start_P[bad[0] + 1]))}")
    edge = max(_EDGE_FRAMES * HOP_SAMPLES, foreign.slack)
    if start_P[0] < -edge or stop_P[-1] > num_samples + edge:
        raise FailureError(
            f"the alignment runs from {_at(int(start_P[0]))} to {_at(int(stop_P[-1]))}, but the sound from 0 to {_at(num_samples)}"
        )
    covered = (stop_P - start_P).sum() / max(1, num_samples)
    if covered < config.min_coverage:
        raise FailureError(f"the alignment covers {covered:.0%} of {_at(num_samples)}: is it of another recording?")
    if foreign.phone_P is None:
        return
    speech_P = np.array([phone not in silence for phone in foreign.phone_P])
    length_P = stop_P - start_P
    if (bad := np.flatnonzero(speech_P & (length_P > config.max_phone_s * SAMPLE_RATE_HZ))).size:
        at = int(bad[0])
        raise FailureError(f"phone '{foreign.phone_P[at]}' lasts {_at(int(length_P[at]))}, longer than {config.max_phone_s:g} s")
    if (bad := np.flatnonzero(speech_P & (foreign.word_P < 0))).size:
        at = int(bad[0])
        raise FailureError(f"phone '{foreign.phone_P[at]}' at {_at(int(start_P[at]))} lies in no word")


def _letters(text: str) -> str:
    return "".join(c for word in words(text) for c in word if c != "'")


def _pairs(tokens: Sequence[str], spoken: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """The tool's tokens against the transcript's words: groups of equal letters. Raises FailureError at the first difference."""
    letters = [word.replace("'", "") for word in spoken]
    groups: list[tuple[list[int], list[int]]] = []
    at = 0  # next word of the transcript
    number = 0
    while number < len(tokens):
        token = tokens[number]
        ours, mine, theirs = "", [], [number]
        said = _letters(token)
        number += 1
        if token.lower() in UNKNOWN_WORDS and at < len(spoken):
            groups.append((theirs, [at]))
            at += 1
            continue
        if not said or (NOISE.fullmatch(token) and not (at < len(spoken) and said.startswith(letters[at]))):
            continue
        while ours != said:
            if len(ours) < len(said) and said.startswith(ours) and at < len(spoken):
                ours += letters[at]
                mine.append(at)
                at += 1
            elif len(ours) > len(said) and ours.startswith(said) and number < len(tokens):
                said += _letters(tokens[number])
                theirs.append(number)
                number += 1
            else:
                there = spoken[mine[0]] if mine else "the end"
                raise FailureError(f"the alignment has the word '{token}' where the transcript has '{there}'")
        groups.append((theirs, mine))
    if at < len(spoken):
        raise FailureError(f"the alignment ends before the transcript's word '{spoken[at]}'")
    return groups


def _in_words(foreign: Foreign, spoken: Sequence[str]) -> Foreign:
    """word_P as indices into the transcript's words."""
    word_P = np.full(len(foreign.word_P), -1, np.int64)
    split: list[tuple[int, list[int]]] = []
    for theirs, mine in _pairs(foreign.tokens, spoken):
        at_M = np.flatnonzero(np.isin(foreign.word_P, theirs))
        if not at_M.size:
            raise FailureError(f"the word '{spoken[mine[0]]}' has no sound")
        if at_M[-1] - at_M[0] + 1 != at_M.size:
            raise FailureError(f"the word '{spoken[mine[0]]}' is interrupted")
        weight = np.cumsum([len(spoken[word]) for word in mine])
        if at_M.size == 1 and len(mine) > 1 and foreign.phone_P is None:
            split.append((int(at_M[0]), mine))
            continue
        starts_M = np.flatnonzero(foreign.begins_P[at_M]) if foreign.senone_P is not None else np.arange(at_M.size)
        if len(starts_M) < len(mine):
            raise FailureError(f"the word '{foreign.tokens[theirs[0]]}' has fewer phones than words in the transcript")
        share = np.concatenate([[0], (2 * weight * len(starts_M) + weight[-1]) // (2 * weight[-1])])
        share = at_least_one_apart(share, len(starts_M))
        edges = np.concatenate([starts_M, [at_M.size]])[share]
        for word, first, last in zip(mine, edges[:-1], edges[1:], strict=True):
            word_P[at_M[first:last]] = word
    return _split(replace(foreign, word_P=word_P), split, spoken)


def _split(foreign: Foreign, split: Sequence[tuple[int, list[int]]], spoken: Sequence[str]) -> Foreign:
    """Pieces that are several words of the transcript, cut in proportion to the words' letters."""
    if not split:
        return foreign
    rows = dict(split)
    start, stop, word = [], [], []
    for at, (first, last, own) in enumerate(zip(foreign.start_P, foreign.stop_P, foreign.word_P, strict=True)):
        mine = rows.get(at, [int(own)])
        weight = np.cumsum([0, *(len(spoken[number]) if number >= 0 else 1 for number in mine)])
        cuts = first + (last - first) * weight // weight[-1]
        start += cuts[:-1].tolist()
        stop += cuts[1:].tolist()
        word += mine
    return replace(foreign, start_P=np.array(start), stop_P=np.array(stop), word_P=np.array(word, np.int64))


def _close(foreign: Foreign, num_samples: int, silence: Silence) -> Foreign:
    """Silence in the gaps; the first piece begins at 0 and the last ends with the sound."""
    start, stop = foreign.start_P.copy(), foreign.stop_P.copy()
    quiet_P = foreign.word_P < 0
    edge = _EDGE_FRAMES * HOP_SAMPLES
    if quiet_P[0] or start[0] < edge:
        start[0] = 0
    if quiet_P[-1] or stop[-1] > num_samples - edge:
        stop[-1] = num_samples
    before = np.concatenate([[0], stop[:-1]])
    gap_P = start - before >= foreign.slack
    within_P = np.concatenate([[False], ~quiet_P[1:] & (foreign.word_P[1:] == foreign.word_P[:-1])])
    if (bad := np.flatnonzero(within_P & (start - before > edge))).size:
        raise FailureError(f"there is a gap within a word at {_at(int(before[bad[0]]))}")
    gap_P &= ~within_P  # the piece before takes what lies between it and the next of its word
    joins_P = gap_P & quiet_P  # a silence after a gap takes it
    joins_P[0] = False
    gap_P &= ~joins_P
    start = np.where(gap_P, start, before)
    order: list[int] = []
    for at in range(len(start)):
        if gap_P[at]:
            order.append(-1 if not (at and quiet_P[at - 1]) else -2)  # −2: the silence before takes it
        order.append(at)
    last_gap = stop[-1] < num_samples
    if last_gap:
        order.append(-1)
    order = [at for at in order if at != -2]
    index = np.array(order)
    begin = [0]
    for place, at in enumerate(order[1:], 1):
        begin.append(int(start[at]) if at >= 0 else int(stop[order[place - 1]]))
    bound = [*begin, num_samples]
    new = index < 0
    keep = np.maximum(index, 0)
    return Foreign(
        tokens=foreign.tokens, start_P=np.array(bound[:-1], np.int64), stop_P=np.array(bound[1:], np.int64),
        word_P=np.where(new, -1, foreign.word_P[keep]),
        phone_P=None if foreign.phone_P is None else tuple(silence.phone if at < 0 else foreign.phone_P[at] for at in order),
        begins_P=new | foreign.begins_P[keep] if foreign.senone_P is not None else foreign.begins_P,
        senone_P=None if foreign.senone_P is None else np.where(new, silence.senone, foreign.senone_P[keep]),
    )  # fmt: skip


def _on_grid(foreign: Foreign, num_samples: int) -> NDArray[np.int64]:
    """Frame boundaries of contiguous pieces, P + 1; each piece gets a frame at least. Raises FailureError where there are too few."""
    num_frames = samples_to_frames(num_samples)
    wanted_P1 = samples_to_boundaries(np.concatenate([foreign.start_P, foreign.stop_P[-1:]]))
    wanted_P1[0], wanted_P1[-1] = 0, num_frames
    if len(foreign.start_P) > num_frames:
        raise FailureError(f"the alignment has {len(foreign.start_P)} segments, but the sound {num_frames} frames")
    bound_P1 = at_least_one_apart(wanted_P1, num_frames)
    if (moved := int(np.abs(bound_P1 - wanted_P1).max())) > _MAX_MOVED_FRAMES:
        raise FailureError(f"segments are shorter than a frame: giving each one moves a boundary by {moved} frames")
    return bound_P1
