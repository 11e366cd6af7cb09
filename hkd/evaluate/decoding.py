"""A split decoded; the search's weights tuned on dev; likelihoods for Kaldi; the same words in another order.

The shuffle gap says how much worse a student reads the same words in an order that says nothing. The words of each
utterance are cut out at its alignment and joined again, in their own order (`spliced`) or in another (`shuffled`). A
word begins and ends with a ramp, a pause stands between two, in both alike. So the sound of the words and of the joins
is the same; what differs is what a neighbour says about a word. The gap, WER(shuffled) − WER(spliced), grows with what
the student has learnt about sentences.

Shape letters: B utterances, T frames, V classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, UtteranceAlignment
from hkd.audio import read_audio, write_wav
from hkd.decode.ctc import Search, SearchConfig
from hkd.decode.graph import HybridConfig, HybridSearch, kaldi_module, log_likelihoods, log_priors
from hkd.decode.recogniser import DecodingTimes, Recogniser, Wave_S
from hkd.errors import Progress, UserError, check_setting, check_settings, no_progress
from hkd.evaluate.score import NUM_DRAWS, Hypothesis, RankedHypothesis, score_words
from hkd.features.cache import FeatureCache, Features, FeatureSource, Wanted
from hkd.features.fbank import generator
from hkd.files import write_bytes
from hkd.manifest import Manifest, Utterance
from hkd.manifest import read as read_manifest
from hkd.timebase import FRAME_SHIFT_S, SAMPLE_RATE_HZ
from hkd.units.text import words

TIMED = 8
UNKNOWN_S = 5.0  # taken for the duration of an utterance that has none
CTC_GRID: Mapping[str, Sequence[float]] = {"lm_weight": (0.2, 0.4, 0.6, 0.8, 1.0), "word_bonus": (0.0, 1.0, 2.0, 3.0)}
HYBRID_GRID: Mapping[str, Sequence[float]] = {
    "acoustic_scale": (0.05, 0.07, 0.1, 0.14, 0.2),
    "prior_scale": (0.3, 0.6, 0.9),
}
ARK, SCP = "likelihoods.ark", "likelihoods.scp"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How to evaluate. Intervals: `num_draws` bootstrap draws at `level`, seeded by `seed`."""

    search: SearchConfig = field(default_factory=SearchConfig)  # how words are found
    n_best: int = 0  # hypotheses an utterance, written to eval-SPLIT.nbest.jsonl; 0: no such file
    batch_seconds: float = 60.0  # audio in a batch; only the time depends on it
    level: float = 0.95  # of the confidence intervals
    num_draws: int = NUM_DRAWS  # of the bootstrap
    seed: int = 0  # of the bootstrap
    device: str = "auto"  # auto | cpu | cuda
    features_cache: str = ""  # a folder for features on disk, made once for all runs on one front end; empty: none

    def __post_init__(self) -> None:
        check_settings(self, "batch_seconds", "be positive", lambda value: value > 0, "evaluate.")
        check_settings(self, "level", "lie between 0 and 1", lambda value: 0 < value < 1, "evaluate.")
        check_settings(self, "num_draws", "be at least 100", lambda value: value >= 100, "evaluate.")
        check_settings(self, "seed n_best", "not be negative", lambda value: value >= 0, "evaluate.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedSplit:
    """The utterances in the split's order, the n best of each (empty unless asked for), and the time it took."""

    rows: list[Hypothesis]
    n_best: list[list[RankedHypothesis]]
    seconds: DecodingTimes


def check_n_best(n_best: int, search: SearchConfig, *, is_hybrid: bool) -> None:
    """Raises UserError where the search cannot give so many hypotheses."""
    if is_hybrid:
        rule, most, remedy = "be 0 for a hybrid student, whose search finds the best path alone", 0, "Leave n_best out."
    elif search.decoder == "greedy":
        rule, most, remedy = "be 1 at most where the decoder is greedy", 1, "Take --decoder beam."
    else:
        rule, most = f"not exceed the beam of {search.beam.beam}", search.beam.beam
        remedy = f"Widen it: --set search.beam.beam={2 * n_best}."
    check_setting("n_best", n_best, rule, n_best <= most, remedy)


def rows_by_seconds(part: Manifest, batch_seconds: float) -> list[list[int]]:
    """Rows of the split by falling duration, in batches of about `batch_seconds`, padded (at least one utterance)."""
    seconds = [utterance.duration or UNKNOWN_S for utterance in part]
    groups: list[list[int]] = []
    for row in sorted(range(len(part)), key=lambda row: (-seconds[row], row)):
        if not groups or seconds[groups[-1][0]] * (len(groups[-1]) + 1) > batch_seconds:
            groups.append([])
        groups[-1].append(row)
    return groups


def batches(
    part: Manifest, batch_seconds: float, features: FeatureSource | None = None
) -> Iterator[tuple[list[int], list[Wave_S], list[Features] | None]]:
    """Rows of the split, their sound, and their features where they are on disk (see `rows_by_seconds`)."""
    for rows in rows_by_seconds(part, batch_seconds):
        given = None if features is None else [features(part[row]) for row in rows]
        yield rows, [read_audio(part[row]) for row in rows], given


def decode(
    recogniser: Recogniser,
    part: Manifest,
    *,
    batch_seconds: float,
    n_best: int,
    progress: Progress,
    features: FeatureSource | None = None,
) -> DecodedSplit:
    """Transcribe the split. features: on disk; every eighth utterance's are timed. Raises UserError for bad sound."""
    found: dict[int, tuple[Hypothesis, list[RankedHypothesis]]] = {}
    seconds, timed_s, timed_samples, samples = DecodingTimes(), 0.0, 0, 0
    recogniser.warm_up()
    for rows, waves, given in batches(part, batch_seconds, features):
        if given is not None:
            chosen = [wave_S for row, wave_S in zip(rows, waves, strict=True) if row % TIMED == 0]
            begin_s = recogniser.clock()
            for wave_S in chosen:
                recogniser.front_end(wave_S)
            timed_s, timed_samples = timed_s + recogniser.clock() - begin_s, timed_samples + sum(map(len, chosen))
        logits_BTV, length_B, spent = recogniser.logits(waves, given)
        begin_s = recogniser.clock()
        options = _n_best(recogniser.search, logits_BTV, length_B, n_best)
        seconds += spent + DecodingTimes(search=recogniser.clock() - begin_s)
        for row, wave_S, best in zip(rows, waves, options, strict=True):
            samples += len(wave_S)
            hypothesis = Hypothesis(
                id=part[row].id, speaker=part[row].speaker, seconds=len(wave_S) / SAMPLE_RATE_HZ,
                reference=" ".join(words(part[row].text)), hypothesis=best[0].text if best else "",
            )  # fmt: skip
            found[row] = hypothesis, best
        progress(len(found), len(part))
    if timed_samples:
        seconds += DecodingTimes(features=timed_s * samples / timed_samples)
    ordered = [found[row] for row in range(len(part))]
    lists = [options for _, options in ordered] if n_best else []
    return DecodedSplit(rows=[hypothesis for hypothesis, _ in ordered], n_best=lists, seconds=seconds)


def logits_of(
    recogniser: Recogniser, part: Manifest, batch_seconds: float, features: FeatureSource | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """(row of the split, its logits_TV of the main output), in the order of `batches`."""
    for rows, waves, given in batches(part, batch_seconds, features):
        logits_BTV, length_B, _ = recogniser.logits(waves, given)
        yield from ((row, logits_TV[:n]) for row, logits_TV, n in zip(rows, logits_BTV, length_B.tolist(), strict=True))


def features_on_disk(recogniser: Recogniser, part: Manifest, folder: str) -> FeatureSource | None:
    """The split's features, made where missing; None without a folder. Raises UserError for unreadable sound."""
    if not folder:
        return None
    front_end = recogniser.front_end
    wanted: Wanted = [(utterance, (1.0,)) for utterance in part if utterance.audio_filepath is not None]
    cache = FeatureCache(Path(folder), front_end=front_end, wanted=[wanted])
    cache.fill(FeatureSource(front_end=front_end, max_bytes=0).compute)
    return FeatureSource(front_end=front_end, max_bytes=0, cache=cache)


def _n_best(
    search: Search | HybridSearch, logits_BTV: torch.Tensor, length_B: torch.Tensor, n_best: int
) -> list[list[RankedHypothesis]]:
    """The n best of each utterance, distinct in words, best first (or fewer); with n = 0 the best, without a score."""
    if not n_best or isinstance(search, HybridSearch):
        texts = (" ".join(words(search.text(ids))) for ids in search.best(logits_BTV, length_B))
        return [[RankedHypothesis(text=text, score=0.0)] for text in texts]
    if search.config.decoder == "greedy":
        logp_BT = torch.log_softmax(logits_BTV, -1).amax(-1)
        scores = [float(logp_T[:length].sum()) for logp_T, length in zip(logp_BT, length_B.tolist(), strict=True)]
        found = [[(units, score)] for units, score in zip(search.best(logits_BTV, length_B), scores, strict=True)]
    else:
        beams = search.ranked(logits_BTV, length_B, n_best=search.config.beam.beam)
        found = [[(list(hypothesis.units), hypothesis.score) for hypothesis in beam] for beam in beams]
    lists = []
    for beam in found:
        score_of: dict[str, float] = {}  # each sequence of words once, with the score of its likeliest pieces
        for units, score in beam:
            score_of.setdefault(" ".join(words(search.text(units))), round(score, 4))
        lists.append([RankedHypothesis(text=text, score=score) for text, score in score_of.items()][:n_best])
    return lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Values by name and the word error rate that they gave."""

    values: dict[str, float]
    wer: float


def as_settings(values: Mapping[str, float]) -> list[str]:
    """A try's values as `hkd evaluate --set` and `hkd transcribe --set` take them."""
    if set(values) <= {field.name for field in fields(HybridConfig)}:
        return [f"search.hybrid.{name}={value}" for name, value in values.items()]
    return ["search.decoder=beam", *(f"search.{name}={value}" for name, value in values.items())]


def tune(
    run_folder: Path,
    *,
    manifest: Path,
    lm: str,
    split: str = "dev",
    grid: Mapping[str, Sequence[float]] | None = None,
    config: EvaluateConfig | None = None,
    progress: Progress = no_progress,
) -> list[Trial]:
    """Choose on dev how a search is weighed: all tries, best first (ties: the smaller values). Writes nothing.

    The network runs once, the search once for each point of the grid. grid: name → values; by default that of the
    student's kind. Raises UserError for the split `test`, for one without words, and where evaluation would.
    """
    if split == "test":
        raise UserError("split must not be test where values are chosen, but is 'test' instead. Take --split dev.")
    config = config or EvaluateConfig()
    part = read_manifest(manifest).split(split)
    references = [" ".join(words(utterance.text)) for utterance in part]
    if not any(references):
        raise UserError(f"split {split} must have words in its transcripts for values to be chosen, but has none.")
    beam = replace(config.search, decoder="beam")
    recogniser = Recogniser(run_folder / "model", device=config.device, search=beam, lm=lm)
    search: Any = recogniser.search
    chosen = grid or (HYBRID_GRID if isinstance(search, HybridSearch) else CTC_GRID)
    if not all(chosen.values()):
        raise UserError(f"there must be at least one value to try of each of {', '.join(chosen)}.")
    features = features_on_disk(recogniser, part, config.features_cache)
    logits = dict(logits_of(recogniser, part, config.batch_seconds, features))
    points = [dict(zip(chosen, values, strict=True)) for values in product(*chosen.values())]
    tries: list[Trial] = []
    for values in points:
        search.config = replace(search.config, **values)
        found = [search.best(logits[row][None], torch.tensor([len(logits[row])]))[0] for row in range(len(part))]
        said = [" ".join(words(search.text(units))) for units in found]
        tries.append(Trial(values=values, wer=score_words(references, said).rate))
        progress(len(tries), len(points), wer=100 * min(t.wer for t in tries))
    return sorted(tries, key=lambda t: (t.wer, tuple(t.values.values())))


def write_likelihoods(
    run_folder: Path,
    out: Path,
    *,
    manifest: Path,
    split: str = "test",
    prior_scale: float = 1.0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> int:
    """Write a hybrid student's log-likelihoods for Kaldi's decoders: out/likelihoods.{ark,scp}.

    A float matrix an utterance, (10 ms frames, senones): log p(senone | frame) − prior_scale · log p(senone). Returns
    their number. Raises UserError for no hybrid, a folder that Kaldi's tables cannot name, or no kaldi-native-io.
    """
    check_setting("prior_scale", prior_scale, "not be negative", prior_scale >= 0)
    if any(c in ", \t\n" for c in str(out)):
        rule = "must be a folder without commas and blanks in its name"
        raise UserError(f"out {rule}, but is '{out}' instead: Kaldi cannot read it back.")
    kaldi_native_io = kaldi_module("kaldi_native_io")
    recogniser = Recogniser(run_folder / "model", device=device)
    log_prior_V = log_priors(recogniser.senone_frames())
    part = read_manifest(manifest).split(split)
    out.mkdir(parents=True, exist_ok=True)
    with kaldi_native_io.FloatMatrixWriter(f"ark,scp:{out / ARK},{out / SCP}") as writer:
        for done, (row, logits_TV) in enumerate(logits_of(recogniser, part, EvaluateConfig().batch_seconds), start=1):
            writer.write(part[row].id, log_likelihoods(logits_TV, log_prior_V, prior_scale=prior_scale))
            progress(done, len(part))
    lines = (out / SCP).read_bytes().splitlines(keepends=True)
    write_bytes(out / SCP, b"".join(sorted(lines)))  # as `LC_ALL=C sort`; the ark keeps the order of computation
    return len(part)


SPLICED, SHUFFLED = "spliced", "shuffled"
RAMP_S, PAUSE_S, EDGE_S = 0.01, 0.1, 0.2  # of a word's ends; between two words; before the first and after the last


def splice(part: Manifest, alignment: Alignment, folder: Path, *, shuffled: bool) -> tuple[Manifest, list[str]]:
    """Write folder/NUMBER.wav for each utterance that is aligned and has two words or more, in both orders the same;
    (their manifest, ids of the others). Raises UserError where none is left, or sound cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    made, left_out = [], []
    for number, utterance in enumerate(part):
        aligned = alignment[utterance.id] if utterance.id in alignment else None  # noqa: SIM401 (no dict)
        order = np.arange(0) if aligned is None else _order(utterance, aligned, shuffled=shuffled)
        if aligned is None or len(order) < 2:
            left_out.append(utterance.id)
            continue
        wave_S = _joined(read_audio(utterance), aligned, order)
        write_wav(path := folder / f"{number}.wav", wave_S)
        text, duration = " ".join(aligned.words[word] for word in order), len(wave_S) / SAMPLE_RATE_HZ
        sound: dict[str, Any] = {"audio_filepath": str(path), "offset": 0.0, "duration": duration, "channel": None}
        made.append(replace(utterance, text=text, **sound))
    if not made:
        rule = "must have utterances of two words or more that are aligned"
        raise UserError(f"the split {rule}, but has none. Run `hkd align`.")
    return Manifest(made), left_out


def _order(utterance: Utterance, aligned: UtteranceAlignment, *, shuffled: bool) -> NDArray[np.int64]:
    """The words' numbers as they are to be said: a function of the utterance's id; shuffled, never their own order."""
    own = np.arange(len(aligned.words))
    order, random = own, generator(0, 0, f"splice {utterance.id}")
    while shuffled and len(own) > 1 and bool((order == own).all()):
        order = random.permutation(own)
    return order


def _joined(wave_S: NDArray[np.float32], aligned: UtteranceAlignment, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """The words one after the other, with ramps and pauses."""
    tier, per_frame = aligned.word_tier, round(FRAME_SHIFT_S * SAMPLE_RATE_HZ)
    pause_S, edge_S = (np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32) for seconds in (PAUSE_S, EDGE_S))
    parts = [edge_S]
    for word in order:
        [place] = np.flatnonzero(tier.unit_U == word)
        said_S = wave_S[tier.start_U1[place] * per_frame : tier.start_U1[place + 1] * per_frame].copy()
        ramp_R = np.linspace(0, 1, min(round(RAMP_S * SAMPLE_RATE_HZ), len(said_S) // 2), dtype=np.float32)
        said_S[: len(ramp_R)] *= ramp_R
        said_S[len(said_S) - len(ramp_R) :] *= ramp_R[::-1]
        parts += [said_S, pause_S]
    return np.concatenate([*parts[:-1], edge_S])
