"""A split decoded: its sound in batches, what was understood in the split's order, and n-best lists where they are asked for.

Shape letters: B utterances, T frames, V classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hkd.audio import read_audio
from hkd.decode.hybrid import HybridSearch
from hkd.decode.recogniser import Recogniser, Seconds, Wave_S
from hkd.decode.search import SearchConfig
from hkd.errors import UserError
from hkd.evaluate.result import Hypothesis, Option
from hkd.features.cache import FeatureCache, Wanted
from hkd.features.source import Features, FeatureSource
from hkd.manifest import Manifest
from hkd.progress import Progress
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.text import words

TIMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The utterances in the split's order, the n best of each (empty where none were asked for), and the time it took."""

    rows: list[Hypothesis]
    n_best: list[list[Option]]
    seconds: Seconds


def check_n_best(n_best: int, search: SearchConfig, *, is_hybrid: bool) -> None:
    """Raises UserError where the search cannot give so many hypotheses."""
    if is_hybrid:
        return
    if n_best > 1 and search.decoder == "greedy":
        raise UserError(f"n_best must be 1 at most where the decoder is greedy, but is {n_best} instead. Take --decoder beam.")
    if n_best > search.beam.beam and search.decoder == "beam":
        raise UserError(
            f"n_best must not exceed the beam of {search.beam.beam}, but is {n_best} instead. Widen it: "
            f"--set search.beam.beam={2 * n_best}."
        )


def batches(part: Manifest, batch_seconds: float) -> Iterator[tuple[list[int], list[Wave_S]]]:
    """Rows of the split and their sound, longest first, in batches of at most `batch_seconds` (or one utterance)."""
    order = sorted(range(len(part)), key=lambda row: (-(part[row].duration or 0.0), row))
    rows: list[int] = []
    waves: list[Wave_S] = []
    longest = 0
    for row in order:
        wave_S = read_audio(part[row])
        if rows and max(longest, len(wave_S)) * (len(rows) + 1) > batch_seconds * SAMPLE_RATE_HZ:
            yield rows, waves
            rows, waves, longest = [], [], 0
        rows.append(row)
        waves.append(wave_S)
        longest = max(longest, len(wave_S))
    if rows:
        yield rows, waves


def decode(
    recogniser: Recogniser,
    part: Manifest,
    *,
    batch_seconds: float,
    n_best: int,
    progress: Progress,
    features: FeatureSource | None = None,
) -> Decoded:
    """Transcribe the split. features: where they are on disk; the time that they would take is then measured on every eighth utterance.

    Raises UserError where an utterance's sound cannot be read.
    """
    found: dict[int, Hypothesis] = {}
    lists: dict[int, list[Option]] = {}
    seconds, timed = Seconds(), (0.0, 0)
    recogniser.warm_up()
    for rows, waves in batches(part, batch_seconds):
        given = None if features is None else [features(part[row]) for row in rows]
        if given is not None:
            timed = _timed(recogniser, rows, waves, timed)
        if n_best:
            texts, options, spent = ranked(recogniser, waves, n_best, given)
            lists |= dict(zip(rows, options, strict=True))
        else:
            recognition = recogniser.recognise(waves, given)
            texts, spent = [" ".join(words(text)) for text in recognition.texts], recognition.seconds
        seconds += spent
        for row, wave_S, text in zip(rows, waves, texts, strict=True):
            found[row] = Hypothesis(
                id=part[row].id,
                speaker=part[row].speaker,
                seconds=len(wave_S) / SAMPLE_RATE_HZ,
                reference=" ".join(words(part[row].text)),
                hypothesis=text,
            )
        progress(len(found), len(part))
    if timed[1]:
        seconds += Seconds(features=timed[0] * sum(row.seconds for row in found.values()) * SAMPLE_RATE_HZ / timed[1])
    order = range(len(part))
    return Decoded(rows=[found[row] for row in order], n_best=[lists[row] for row in order if row in lists], seconds=seconds)


def features_on_disk(recogniser: Recogniser, part: Manifest, folder: str) -> FeatureSource | None:
    """The split's features, made where they are not there; None where no folder is given. Raises UserError for sound that cannot be read."""
    if not folder:
        return None
    front_end = recogniser.front_end
    wanted: Wanted = [(utterance, (1.0,)) for utterance in part if utterance.audio_filepath is not None]
    cache = FeatureCache(Path(folder), front_end=front_end, wanted=[wanted])
    cache.fill(FeatureSource(front_end=front_end, max_bytes=0).compute)
    return FeatureSource(front_end=front_end, max_bytes=0, cache=cache)


def _timed(recogniser: Recogniser, rows: Sequence[int], waves: Sequence[Wave_S], before: tuple[float, int]) -> tuple[float, int]:
    """Seconds that the features of utterances took whose number is a multiple of TIMED, and their samples, added to those before."""
    chosen = [wave_S for row, wave_S in zip(rows, waves, strict=True) if row % TIMED == 0]
    begin_s = recogniser.clock()
    for wave_S in chosen:
        recogniser.front_end(wave_S)
    return before[0] + recogniser.clock() - begin_s, before[1] + sum(map(len, chosen))


def ranked(
    recogniser: Recogniser, waves: Sequence[Wave_S], n_best: int, features: Sequence[Features] | None = None
) -> tuple[list[str], list[list[Option]], Seconds]:
    """The hypothesis of each wave, the n best, distinct in words, best first (fewer where the beam has fewer), and the time.

    Of a CTC student the hypothesis is the first of the list. Of a hybrid it is what is found without a list, where no more than
    `max_active` states are kept alive: the list's search keeps all, and may begin with a better one.
    """
    search = recogniser.search
    logits_BTV, length_B, seconds = recogniser.logits(waves, features)
    begin_s = recogniser.clock()
    found: list[list[tuple[list[int], float]]]
    if isinstance(search, HybridSearch):
        texts = [" ".join(words(search.text(units))) for units in search.best(logits_BTV, length_B)]
        found = search.ranked(logits_BTV, length_B, n_best=n_best)
    elif search.config.decoder == "greedy":
        logp_BT = torch.log_softmax(logits_BTV, -1).amax(-1)
        scores = [float(logp_T[:length].sum()) for logp_T, length in zip(logp_BT, length_B.tolist(), strict=True)]
        found = [[(units, score)] for units, score in zip(search.best(logits_BTV, length_B), scores, strict=True)]
    else:
        beams = search.ranked(logits_BTV, length_B, n_best=search.config.beam.beam)
        found = [[(list(hypothesis.units), hypothesis.score) for hypothesis in beam] for beam in beams]
    options = [_distinct([(search.text(units), score) for units, score in beam])[:n_best] for beam in found]
    if not isinstance(search, HybridSearch):
        texts = [best[0].text if best else "" for best in options]
    return texts, options, seconds + Seconds(search=recogniser.clock() - begin_s)


def _distinct(hypotheses: Sequence[tuple[str, float]]) -> list[Option]:
    """Each sequence of words once, with the score of its likeliest pieces."""
    found: dict[str, float] = {}
    for text, score in hypotheses:
        found.setdefault(" ".join(words(text)), round(score, 4))
    return [Option(text=text, score=score) for text, score in found.items()]
