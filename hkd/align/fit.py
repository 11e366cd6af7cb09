"""What aligners share: a tool's alignment → a row of the artefact, checked, in frames and the transcript's own words.

- A `Source` reads one tool's files. It gives pieces: the finest stretches of sound that the tool knows (states, else
  phones, else words), each with its word and phone. Times are samples at 16 kHz from the utterance's start; all
  rounding to frames happens here.
- Gaps become silence, at the edges too (less than 50 ms there goes to the neighbour). Refused are overlaps, times that
  run backwards or past the sound's end, pieces that do not cover the sound, and phones that last for seconds. Gaps and
  overlaps within the tool's own rounding (5 ms, a CTM's 10 ms) are none.
- The tool's words are compared with the transcript's by their letters: a tool may write `well-known` or `we` + `'ll`,
  and `<unk>` stands for one word of the transcript.
- What a source lacks of an utterance is a reason in the report; what belongs to no utterance is counted. Rows are in
  the manifest's order.

Shape letters: P pieces, M pieces of a word.
"""

import logging
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import (
    Alignment,
    Tier,
    UtteranceAlignment,
    aligned_to_units,
    at_least_one_apart,
    write_alignment,
)
from hkd.audio import probe
from hkd.errors import HkdError, Progress, UserError, no_progress, some
from hkd.files import check_same, differences, digest_of_json
from hkd.manifest import Manifest, Utterance
from hkd.timebase import (
    FRAME_SHIFT_S,
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    samples_to_boundaries,
    samples_to_frames,
    seconds_to_samples,
)
from hkd.units.inventory import MONOPHONE, SENONE, UnitInventory
from hkd.units.lexicon import is_silence_name, phone_inventory, without_stress
from hkd.units.text import normalisation, words

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignReport:
    """What came out."""

    kept: int
    failed: dict[str, str] = field(default_factory=dict)  # id → reason
    seconds_of_audio: float = 0.0  # of the kept utterances
    real_time_factor: float = 0.0  # processor time a second of audio
    predicted_words: dict[str, str] = field(default_factory=dict)  # in no dictionary → their phones
    unused: tuple[str, ...] = ()  # what another tool aligned and the manifest does not have
    notes: tuple[str, ...] = ()  # sentences for people: what was coarse, what was moved


ABOUT = ("seconds_of_audio", "predicted_words", "unused", "notes")


def about(report: AlignReport, names: Sequence[str] = ABOUT) -> dict[str, Any]:
    """The part of a report that is kept in the artefact."""
    return {name: getattr(report, name) for name in names}


def finished(out: Path, manifest: Manifest, aligner: Mapping[str, Any], *, overwrite: bool) -> AlignReport | None:
    """The report of a finished alignment with these settings; None where `out` may be (re)written, else UserError."""
    if not out.exists():
        return None
    there = Alignment(out)
    wanted = {"manifest": manifest.digest, **aligner}
    found = {"manifest": there.manifest_digest, **{key: there.aligner.get(key) for key in aligner}}
    if overwrite and differences(found, wanted):
        return None
    check_same(f"{out} must be of the same settings and sound", found, wanted, "Use --overwrite to align again.")
    kept = {name: there.aligner[name] for name in ABOUT if name in there.aligner}
    kept |= {name: tuple(kept[name]) for name in ("unused", "notes") if name in kept}
    return AlignReport(kept=len(there), failed=there.failed, **kept)


def check_any(kept: Sized, failed: Mapping[str, str], manifest: Manifest, unused: Sequence[str] = ()) -> None:
    """Raise HkdError where nothing was kept of a manifest. unused: the names of what was aligned and is not in it."""
    if not len(kept):
        name, reason = next(iter(failed.items()), ("none", "the manifest is empty"))
        more = f" What was aligned has names such as '{unused[0]}'." if unused else ""
        reason = reason.rstrip(".")
        raise HkdError(f"none of {len(manifest)} utterances could be aligned, '{name}' for one: {reason}.{more}")


def warn(report: AlignReport) -> AlignReport:
    """Log what was left out, a line an utterance; the report."""
    for utterance_id, reason in report.failed.items():
        logger.warning("utterance '%s' could not be aligned: %s", utterance_id, reason)
    return report


SILENCE_PHONE = "sil"
UNKNOWN_WORDS = frozenset({"<unk>", "<oov>", "[unk]", "<unk/>", "<spoken_noise>"})
NOISE = re.compile(r"<.*>|\[.*\]|\{.*\}|\+.*\+|!.*")
_EDGE_FRAMES = 5  # of silence that a tool need not say
_MAX_MOVED_FRAMES = 5
_SLACK_SAMPLES = HOP_SAMPLES // 2


class FailureError(HkdError):
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
            are = f"{self.max_phone_s}, {self.min_coverage}"
            raise UserError(f"max_phone_s must be positive and min_coverage between 0 and 1, but are {are}.")

    def fold(self, phone: str) -> str:
        """A tool's phone → the inventory's."""
        phone = unicodedata.normalize("NFC", phone)
        return phone if self.stress else without_stress(phone)


@dataclass(frozen=True, kw_only=True, eq=False)
class ToolAlignment:
    """An utterance as a tool aligned it."""

    tokens: tuple[str, ...]
    start_P: NDArray[np.int64]  # samples
    stop_P: NDArray[np.int64]
    word_P: NDArray[np.int64]  # index into `tokens`, −1 for silence and noise
    phone_P: tuple[str, ...] | None = None  # symbols; None for words alone
    begins_P: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, np.bool_))  # a new phone; for senones
    senone_P: NDArray[np.int64] | None = None
    slack: int = _SLACK_SAMPLES  # how wrong the tool's times may be, in samples: overlaps and smaller gaps are none


@dataclass(frozen=True, kw_only=True, slots=True)
class Silence:
    """Which phones are silence or noise, by the names that tools use or as given, and what is put into gaps."""

    names: frozenset[str]
    phone: str
    senone: int

    def __contains__(self, phone: object) -> bool:
        return phone in self.names or is_silence_name(str(phone))


def pieces(
    segments: Sequence[tuple[float, float, int, str | None]],
    tokens: Sequence[str],
    *,
    offset_s: float = 0.0,
    grid_s: float | None = None,
) -> ToolAlignment:
    """(start, stop, word, phone) in seconds (rounded to grid_s) → a tool's alignment. Raises FailureError for NaN."""
    times = np.array([row[:2] for row in segments], np.float64).reshape(-1, 2) - offset_s
    if not np.isfinite(times).all() or (np.abs(times) > 1e7).any():
        raise FailureError("a segment's time is not a finite number of seconds")
    sample_P2 = np.floor(times * SAMPLE_RATE_HZ + 0.5).astype(np.int64)
    has_phones = bool(segments) and segments[0][3] is not None
    return ToolAlignment(
        tokens=tuple(tokens), start_P=sample_P2[:, 0], stop_P=sample_P2[:, 1],
        word_P=np.array([row[2] for row in segments], np.int64),
        phone_P=tuple(str(row[3]) for row in segments) if has_phones else None,
        slack=_SLACK_SAMPLES if grid_s is None else round(grid_s * SAMPLE_RATE_HZ) + 1,
    )  # fmt: skip


def fit(
    foreign: ToolAlignment,
    utterance: Utterance,
    *,
    silence: Silence,
    config: ImportConfig,
    id_of: defaultdict[str, int],
) -> UtteranceAlignment:
    """One utterance on the grid. id_of: numbers phones as they occur. Raises FailureError where it is refused."""
    spoken, num_samples = words(utterance.text), samples_of(utterance)
    if not spoken:
        raise FailureError("the transcript has no words")
    if not len(foreign.start_P):
        raise FailureError("the alignment has no segments")
    _check(foreign, num_samples, silence, config)
    closed = _close(_in_words(foreign, spoken), num_samples, silence)
    bound_P1 = _on_grid(closed, num_samples)
    word_P = closed.word_P
    new_word_P = np.concatenate([[True], word_P[1:] != word_P[:-1]])
    all_P = np.ones(len(word_P), np.bool_)
    tiers = {}
    if closed.phone_P is not None:
        code_P = np.array([id_of[config.fold(phone)] for phone in closed.phone_P], np.int32)
        tiers[MONOPHONE] = _tier(code_P, bound_P1, new_word_P | (all_P if closed.senone_P is None else closed.begins_P))
    if closed.senone_P is not None:
        tiers[SENONE] = _tier(closed.senone_P.astype(np.int32), bound_P1, all_P)
    word_tier = _tier(word_P.astype(np.int32), bound_P1, new_word_P)
    return UtteranceAlignment(id=utterance.id, words=tuple(spoken), word_tier=word_tier, tiers=tiers)


def _tier(unit_P: NDArray[np.int32], bound_P1: NDArray[np.int64], begins_P: NDArray[np.bool_]) -> Tier:
    start_U1 = np.concatenate([bound_P1[:-1][begins_P], bound_P1[-1:]]).astype(np.int32)
    return Tier(unit_U=unit_P[begins_P], start_U1=start_U1)


def _at(sample: int | np.int64) -> str:
    return f"{sample / SAMPLE_RATE_HZ:.2f} s"


def _check(foreign: ToolAlignment, num_samples: int, silence: Silence, config: ImportConfig) -> None:
    """Order, overlap, end, coverage, durations."""
    start_P, stop_P = foreign.start_P, foreign.stop_P
    for at in np.flatnonzero(stop_P <= start_P):
        raise FailureError(f"a segment at {_at(start_P[at])} has no duration")
    for at in np.flatnonzero(start_P[1:] < stop_P[:-1] - foreign.slack):
        raise FailureError(f"segments overlap at {_at(start_P[at + 1])}")
    edge = max(_EDGE_FRAMES * HOP_SAMPLES, foreign.slack)
    if start_P[0] < -edge or stop_P[-1] > num_samples + edge:
        sound = f"the sound from 0 to {_at(num_samples)}"
        raise FailureError(f"the alignment runs from {_at(start_P[0])} to {_at(stop_P[-1])}, but {sound}")
    covered = (stop_P - start_P).sum() / max(1, num_samples)
    if covered < config.min_coverage:
        raise FailureError(f"the alignment covers {covered:.0%} of {_at(num_samples)}: is it of another recording?")
    if foreign.phone_P is None:
        return
    speech_P = np.array([phone not in silence for phone in foreign.phone_P])
    length_P = stop_P - start_P
    for at in np.flatnonzero(speech_P & (length_P > config.max_phone_s * SAMPLE_RATE_HZ)):
        lasts = f"phone '{foreign.phone_P[at]}' lasts {_at(length_P[at])}"
        raise FailureError(f"{lasts}, longer than {config.max_phone_s:g} s")
    for at in np.flatnonzero(speech_P & (foreign.word_P < 0)):
        phone = foreign.phone_P[at]
        raise FailureError(
            f"phone '{phone}' at {_at(start_P[at])} lies in no word: if it is no speech, say so (--set silence={phone})"
        )


def _letters(text: str) -> str:
    return "".join(words(text)).replace("'", "")


def _pairs(tokens: Sequence[str], spoken: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """The tool's tokens against the transcript's words: groups of equal letters; FailureError where they differ."""
    letters = [word.replace("'", "") for word in spoken]
    groups: list[tuple[list[int], list[int]]] = []
    at = number = 0  # the next word, the next token
    while number < len(tokens):
        token, said = tokens[number], _letters(tokens[number])
        ours, mine, theirs = "", list[int](), [number]
        number += 1
        if token.lower() in UNKNOWN_WORDS and at < len(spoken):
            groups.append((theirs, [at]))
            at += 1
            continue
        is_spoken = at < len(spoken) and said.startswith(letters[at])
        if not said or (not is_spoken and (NOISE.fullmatch(token) or is_silence_name(token))):
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


def _in_words(foreign: ToolAlignment, spoken: Sequence[str]) -> ToolAlignment:
    """word_P as indices into the transcript's words."""
    word_P = np.full(len(foreign.word_P), -1, np.int64)
    split: dict[int, list[int]] = {}  # pieces that are several words
    for theirs, mine in _pairs(foreign.tokens, spoken):
        at_M = np.flatnonzero(np.isin(foreign.word_P, theirs))
        if not at_M.size:
            raise FailureError(f"the word '{spoken[mine[0]]}' has no sound")
        if at_M[-1] - at_M[0] + 1 != at_M.size:
            raise FailureError(f"the word '{spoken[mine[0]]}' is interrupted")
        weight = np.cumsum([len(spoken[word]) for word in mine])
        if at_M.size == 1 and len(mine) > 1 and foreign.phone_P is None:
            split[int(at_M[0])] = mine
            continue
        starts_M = np.flatnonzero(foreign.begins_P[at_M]) if foreign.senone_P is not None else np.arange(at_M.size)
        if len(starts_M) < len(mine):
            raise FailureError(f"the word '{foreign.tokens[theirs[0]]}' has fewer phones than words in the transcript")
        share = np.concatenate([[0], (2 * weight * len(starts_M) + weight[-1]) // (2 * weight[-1])])
        edges = np.concatenate([starts_M, [at_M.size]])[at_least_one_apart(share.tolist(), len(starts_M))]
        for word, first, last in zip(mine, edges[:-1], edges[1:], strict=True):
            word_P[at_M[first:last]] = word
    found = replace(foreign, word_P=word_P)
    return _split(found, split, spoken) if split else found


def _split(foreign: ToolAlignment, split: Mapping[int, list[int]], spoken: Sequence[str]) -> ToolAlignment:
    """Pieces that are several words of the transcript, cut in proportion to the words' letters."""
    rows: list[tuple[int, int, int]] = []
    for at, (first, last, own) in enumerate(zip(foreign.start_P, foreign.stop_P, foreign.word_P.tolist(), strict=True)):
        mine = split.get(at, [own])
        weight = np.cumsum([0, *(len(spoken[number]) if number >= 0 else 1 for number in mine)])
        cuts = first + (last - first) * weight // weight[-1]
        rows += zip(cuts[:-1].tolist(), cuts[1:].tolist(), mine, strict=True)
    start_P, stop_P, word_P = np.array(rows, np.int64).T
    return replace(foreign, start_P=start_P, stop_P=stop_P, word_P=word_P)


def _close(foreign: ToolAlignment, num_samples: int, silence: Silence) -> ToolAlignment:
    """Silence in the gaps, from 0 to the sound's end. Raises FailureError for a gap within a word.

    A gap goes to the silence that the tool has before or after it; between two words it becomes a silence of its own.
    Within a word, and where it is no longer than the tool's rounding, the piece before takes it.
    """
    start, stop, word = foreign.start_P.tolist(), foreign.stop_P.tolist(), foreign.word_P.tolist()
    edge = _EDGE_FRAMES * HOP_SAMPLES
    if word[0] < 0 or start[0] < edge:
        start[0] = 0
    if word[-1] < 0 or stop[-1] > num_samples - edge:
        stop[-1] = num_samples
    rows: list[tuple[int, int]] = []  # (piece, or -1 for a silence that the tool did not write; where it begins)
    end = 0
    for at in range(len(start)):
        gap = start[at] - end
        is_within = at > 0 and word[at] >= 0 and word[at] == word[at - 1]
        if is_within and gap > edge:
            raise FailureError(f"there is a gap within a word at {_at(end)}")
        begin = end
        if gap >= foreign.slack and not is_within and word[at] >= 0:
            begin = start[at]
            if at == 0 or word[at - 1] >= 0:
                rows.append((-1, end))
        rows.append((at, begin))
        end = stop[at]
    if end < num_samples:
        rows.append((-1, end))
    piece, begin_P = np.array(rows, np.int64).T
    is_new, old = piece < 0, np.maximum(piece, 0)
    return ToolAlignment(
        tokens=foreign.tokens, start_P=begin_P, stop_P=np.append(begin_P[1:], num_samples),
        word_P=np.where(is_new, -1, foreign.word_P[old]),
        phone_P=None
        if foreign.phone_P is None
        else tuple(silence.phone if at < 0 else foreign.phone_P[at] for at in piece.tolist()),
        begins_P=is_new | foreign.begins_P[old] if foreign.senone_P is not None else foreign.begins_P,
        senone_P=None if foreign.senone_P is None else np.where(is_new, silence.senone, foreign.senone_P[old]),
    )  # fmt: skip


def _on_grid(foreign: ToolAlignment, num_samples: int) -> NDArray[np.int64]:
    """Frame boundaries of contiguous pieces, P + 1, a frame a piece at least; FailureError where there are too few."""
    num_frames = samples_to_frames(num_samples)
    wanted_P1 = samples_to_boundaries(np.concatenate([foreign.start_P, foreign.stop_P[-1:]]))
    wanted_P1[0], wanted_P1[-1] = 0, num_frames
    if len(foreign.start_P) > num_frames:
        raise FailureError(f"the alignment has {len(foreign.start_P)} segments, but the sound {num_frames} frames")
    bound_P1 = np.array(at_least_one_apart(wanted_P1.tolist(), num_frames), np.int64)
    if (moved := int(np.abs(bound_P1 - wanted_P1).max())) > _MAX_MOVED_FRAMES:
        raise FailureError(f"segments are shorter than a frame: giving each one moves a boundary by {moved} frames")
    return bound_P1


ALGORITHM = 2  # raised whenever the same files would give another alignment
# of an utterance. Raises FailureError, or HkdError where its own files cannot be read
AlignmentLoader = Callable[[], ToolAlignment]


class Source(ABC):
    """One tool's alignments."""

    phones: tuple[str, ...] | None = None  # all that the tool's model has, silence too; None: those that occur
    senones: tuple[UnitInventory, tuple[int, ...]] | None = None  # and those that are silence; None: the tool has none
    notes: tuple[str, ...] = ()  # sentences for people, once all is read

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the result depends on besides the manifest: the tool's name, digests of what is read, settings."""

    @abstractmethod
    def read(self, manifest: Manifest) -> Iterator[tuple[str, AlignmentLoader]]:
        """Utterances by their ids, in any order; ids that the manifest does not have too, each once."""


def refused(error: str | HkdError) -> AlignmentLoader:
    """The reading of an utterance that has no alignment."""

    def fail() -> ToolAlignment:
        raise FailureError(str(error))

    return fail


NO_UTTERANCE = refused("no utterance")


def samples_of(utterance: Utterance) -> int:
    """An utterance's samples at 16 kHz: the manifest's word, else the file's header. Raises FailureError, UserError."""
    if utterance.duration is not None:
        return seconds_to_samples(utterance.duration)
    if utterance.audio_filepath is None:
        raise FailureError("the manifest has neither a duration nor audio")
    return seconds_to_samples(probe(utterance.audio_filepath).duration_s - utterance.offset)


def import_alignment(
    manifest: Manifest,
    out: Path,
    source: Source,
    *,
    config: ImportConfig | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> AlignReport:
    """Write `out` (an `Alignment`) from what a source has; it and the report list the other utterances with reasons.

    Raises UserError where `out` is of something else, unless `overwrite`, or the source cannot be read, and HkdError
    where nothing fits.
    """
    config = config or ImportConfig()
    # besides the text these decide how a recording's alignment is cut
    cuts = ([u.id, u.speaker, u.offset, u.duration, u.channel] for u in manifest)
    spans = digest_of_json([row[:-1] if row[-1] is None else row for row in cuts])
    aligner = source.identity | {"algorithm": ALGORITHM, "words": normalisation(), "spans": spans}
    aligner["config"] = {**asdict(config), "silence_phones": sorted(config.silence_phones)}
    if (done := finished(out, manifest, aligner, overwrite=overwrite)) is not None:
        return done
    names = frozenset(config.silence_phones)
    quiet = [phone for phone in source.phones or () if is_silence_name(phone) or phone in names]
    phone = next((phone for phone in quiet if phone.lower().startswith("sil")), quiet[0] if quiet else SILENCE_PHONE)
    silence = Silence(names=names, phone=phone, senone=0 if source.senones is None else source.senones[0].silence or 0)
    rows, failed, unused, table = _collect(manifest, source, silence, config, progress)
    check_any(rows, failed, manifest, unused)
    inventories, silences, phone_id_V = _inventories(source, table, config)
    report = AlignReport(
        kept=len(rows), failed=failed, unused=tuple(unused),
        notes=source.notes + _unheard(rows.values(), [table[phone] for phone in table if phone in silence]),
        seconds_of_audio=sum(row.num_frames for row in rows.values()) * FRAME_SHIFT_S,
    )  # fmt: skip
    write_alignment(
        out, (_renumbered(rows[u.id], phone_id_V) for u in manifest if u.id in rows), manifest_digest=manifest.digest,
        inventories=inventories, silences=silences, aligner=aligner | about(report), failed=failed,
    )  # fmt: skip
    return warn(report)


def _unheard(rows: Iterable[UtteranceAlignment], silent_ids: Sequence[int]) -> tuple[str, ...]:
    """A note on words without phones, since the tool knew them as `<unk>` or noise: there they are silence."""
    words: Counter[str] = Counter()
    utterances = 0
    for row in rows:
        if MONOPHONE in row.tiers:
            heard = set(aligned_to_units(row, MONOPHONE, silent_ids)[1].tolist())
            without = [word for number, word in enumerate(row.words) if number not in heard]
            words.update(without)
            utterances += bool(without)
    if not words:
        return ()
    named = some((f"'{word}'" for word, _ in words.most_common()), 10)
    return (
        f"{words.total()} words ({len(words)} different) of {utterances} utterances have no phones, since the tool "
        f"knew them as unknown or noise: {named}",
    )


def _collect(
    manifest: Manifest, source: Source, silence: Silence, config: ImportConfig, progress: Progress
) -> tuple[dict[str, UtteranceAlignment], dict[str, str], list[str], dict[str, int]]:
    """Rows with phones numbered as they occur, reasons, ids that the manifest lacks, and the phones."""
    table, by_id = defaultdict[str, int](count().__next__), {u.id: u for u in manifest}
    rows: dict[str, UtteranceAlignment] = {}
    reasons: dict[str, str] = {}
    unused: list[str] = []
    for number, (name, read) in enumerate(source.read(manifest), 1):
        progress(min(number, len(manifest)), len(manifest), failed=len(reasons))
        if name not in by_id:
            unused.append(name)
            continue
        try:
            rows[name] = fit(read(), by_id[name], silence=silence, config=config, id_of=table)
        except HkdError as error:
            reasons[name] = str(error)
    failed = {u.id: reasons.get(u.id, "it is not among what was aligned") for u in manifest if u.id not in rows}
    return rows, failed, sorted(unused), table


def _inventories(
    source: Source, table: Iterable[str], config: ImportConfig
) -> tuple[dict[str, UnitInventory], dict[str, tuple[int, ...]], NDArray[np.int32]]:
    """Inventories, silences, and the phones' ids as they occurred → as they are in the inventory."""
    inventories: dict[str, UnitInventory] = {}
    silences: dict[str, tuple[int, ...]] = {}
    if source.senones is not None:
        inventories[SENONE], silences[SENONE] = source.senones
    own = next((phone for phone in table if phone != SILENCE_PHONE and phone.lower() == SILENCE_PHONE), SILENCE_PHONE)
    # what was put into gaps is the tool's own silence
    symbol_V = [own if phone == SILENCE_PHONE else phone for phone in table]
    known = sorted(set(symbol_V)) if source.phones is None else dict.fromkeys(map(config.fold, source.phones))
    symbols = tuple(dict.fromkeys((*known, *symbol_V)))
    if not symbols:
        return inventories, silences, np.zeros(0, np.int32)
    phones, silences[MONOPHONE] = phone_inventory(symbols, config.silence_phones)
    inventories[MONOPHONE] = phones
    return inventories, silences, np.array([phones.id_of[symbol] for symbol in symbol_V], np.int32)


def _renumbered(row: UtteranceAlignment, phone_id_V: NDArray[np.int32]) -> UtteranceAlignment:
    if MONOPHONE not in row.tiers:
        return row
    tier = row.tiers[MONOPHONE]
    return replace(row, tiers={**row.tiers, MONOPHONE: Tier(unit_U=phone_id_V[tier.unit_U], start_U1=tier.start_U1)})
