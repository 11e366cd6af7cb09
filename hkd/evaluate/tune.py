"""Choosing on dev how a search is weighed: the network runs once, the search once for each pair of values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path

import torch

from hkd.decode.hybrid import HybridConfig, HybridSearch
from hkd.decode.recogniser import Recogniser
from hkd.decode.search import Search
from hkd.errors import UserError
from hkd.evaluate.decoding import batches, features_on_disk
from hkd.evaluate.run import EvaluateConfig
from hkd.evaluate.score import score_words
from hkd.manifest import read as read_manifest
from hkd.progress import Progress, no_progress
from hkd.units.text import words

CTC_GRID: Mapping[str, Sequence[float]] = {"lm_weight": (0.2, 0.4, 0.6, 0.8, 1.0), "word_bonus": (0.0, 1.0, 2.0, 3.0)}
HYBRID_GRID: Mapping[str, Sequence[float]] = {"acoustic_scale": (0.05, 0.07, 0.1, 0.14, 0.2), "prior_scale": (0.3, 0.6, 0.9)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
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
) -> list[Try]:
    """All tries, best first (ties: the smaller values). Writes nothing. grid: name → values; by default that of the student's kind.

    Raises UserError for the split `test`, which is not for choosing, for one without words, and where evaluation would.
    """
    if split == "test":
        raise UserError("split must not be test where values are chosen, but is 'test' instead. Take --split dev.")
    config = config or EvaluateConfig()
    part = read_manifest(manifest).split(split)
    references = [" ".join(words(utterance.text)) for utterance in part]
    if not any(references):
        raise UserError(f"split {split} must have words in its transcripts for values to be chosen, but has none.")
    recogniser = Recogniser(run_folder / "model", device=config.device, search=replace(config.search, decoder="beam"), lm=lm)
    search = recogniser.search
    chosen = grid or (HYBRID_GRID if isinstance(search, HybridSearch) else CTC_GRID)
    if not all(chosen.values()):
        raise UserError(f"there must be at least one value to try of each of {', '.join(chosen)}.")
    logits: dict[int, torch.Tensor] = {}
    features = features_on_disk(recogniser, part, config.features_cache)
    for rows, waves in batches(part, config.batch_seconds):
        given = None if features is None else [features(part[row]) for row in rows]
        logits_BTV, length_B, _ = recogniser.logits(waves, given)
        logits |= {row: logits_TV[:length] for row, logits_TV, length in zip(rows, logits_BTV, length_B.tolist(), strict=True)}
    points = [dict(zip(chosen, values, strict=True)) for values in product(*chosen.values())]
    tries: list[Try] = []
    for values in points:
        best = _searching(search, values)
        said = [" ".join(words(search.text(best(logits[row])))) for row in range(len(part))]
        tries.append(Try(values=values, wer=score_words(references, said).rate))
        progress(len(tries), len(points), wer=100 * min(t.wer for t in tries))
    return sorted(tries, key=lambda t: (t.wer, tuple(t.values.values())))


def _searching(search: Search | HybridSearch, values: Mapping[str, float]) -> Callable[[torch.Tensor], Sequence[int]]:
    """logits_TV → units, under these values."""
    if isinstance(search, HybridSearch):
        hybrid, settings = search, replace(search.config, **values)  # type: ignore[arg-type]
        return lambda logits_TV: hybrid.best(logits_TV[None], torch.tensor([len(logits_TV)]), config=settings)[0]
    ctc, fusion = search, search.fusion(**values)

    def best(logits_TV: torch.Tensor) -> Sequence[int]:
        [ranked] = ctc.ranked(logits_TV[None], torch.tensor([len(logits_TV)]), n_best=1, fusion=fusion)
        return ranked[0].units if ranked else ()

    return best
