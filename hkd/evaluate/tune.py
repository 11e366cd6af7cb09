"""Choosing the weight of an LM and the word bonus on dev: the network runs once, the search once for each pair of values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.evaluate.run import EvaluateConfig, batches
from hkd.evaluate.score import score_words
from hkd.manifest import read as read_manifest
from hkd.progress import Progress, no_progress
from hkd.units.text import words

WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
BONUSES = (0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """A pair of values and the word error rate that it gave."""

    lm_weight: float
    word_bonus: float
    wer: float


def tune(
    run_folder: Path,
    *,
    manifest: Path,
    lm: str,
    split: str = "dev",
    weights: Sequence[float] = WEIGHTS,
    bonuses: Sequence[float] = BONUSES,
    config: EvaluateConfig | None = None,
    progress: Progress = no_progress,
) -> list[Try]:
    """All tries, best first (ties: the smaller weight, then the smaller bonus). Writes nothing.

    Raises UserError for the split `test`, which is not for choosing, and where evaluation would.
    """
    if split == "test":
        raise UserError("split must not be test where values are chosen, but is 'test' instead. Take --split dev.")
    if not weights or not bonuses:
        raise UserError("there must be at least one weight and one bonus to try.")
    config = config or EvaluateConfig()
    part = read_manifest(manifest).split(split)
    search = replace(config.search, decoder="beam")
    recogniser = Recogniser(run_folder / "model", device=config.device, search=search, lm=lm)
    logits: dict[int, torch.Tensor] = {}
    for rows, waves in batches(part, config.batch_seconds):
        logits_BTV, length_B, _ = recogniser.logits(waves)
        logits |= {row: logits_TV[:length] for row, logits_TV, length in zip(rows, logits_BTV, length_B.tolist(), strict=True)}
    references = [" ".join(words(utterance.text)) for utterance in part]
    pairs = list(product(weights, bonuses))
    tries: list[Try] = []
    for lm_weight, word_bonus in pairs:
        fusion = recogniser.search.fusion(lm_weight=lm_weight, word_bonus=word_bonus)
        said = []
        for row in range(len(part)):
            [best] = recogniser.search.ranked(logits[row][None], torch.tensor([len(logits[row])]), n_best=1, fusion=fusion)
            said.append(" ".join(words(recogniser.subwords.decode(best[0].units if best else ()))))
        tries.append(Try(lm_weight=lm_weight, word_bonus=word_bonus, wer=score_words(references, said).rate))
        progress(len(tries), len(pairs), wer=100 * min(t.wer for t in tries))
    return sorted(tries, key=lambda t: (t.wer, t.lm_weight, t.word_bonus))
