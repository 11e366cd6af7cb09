"""The student as a task of the trainer.

Shape letters: B utterances, T frames, V classes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hkd.decode.ctc import greedy_ctc
from hkd.stream.batch import Batch
from hkd.stream.loader import BatchMaker, batches
from hkd.stream.plan import BatchPlan
from hkd.student.model import Student
from hkd.train.config import TrainConfig
from hkd.train.terms import Term


@dataclass
class StudentTask:
    """What `hkd.loop.fit` asks for."""

    config: TrainConfig
    student: Student
    terms: Sequence[Term]
    base_weights: Mapping[str, float]  # α, λ or 1
    maker: BatchMaker
    plan: BatchPlan
    dev: BatchMaker | None
    max_steps: int

    @property
    def model(self) -> torch.nn.Module:
        """The student."""
        return self.student

    def batches(self, start_step: int, rank: int, world_size: int) -> Iterator[Batch | None]:
        """Shares of the global batches."""
        pin = torch.cuda.is_available()
        return batches(
            self.maker, self.plan, start_step=start_step, rank=rank, world_size=world_size, workers=self.config.workers, pin=pin
        )

    def counts(self, batch: Batch) -> dict[str, float]:
        """Target units of the main term, labelled slots of the others."""
        return {term.name: term.count(batch) for term in self.terms}

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Sums. Each utterance's dropout is seeded by (seed, step, utterance), so that no cut of the batch into shares changes it."""
        slots: dict[str, Tensor] = {}
        for term in self.terms:
            slots.update(term.slots(batch))
        seed_B = [dropout_seed(self.config.loop.seed, step, name) for name in batch.ids]
        output = self.student(batch.x_BTF, batch.length_B, slots=slots, seed_B=seed_B)
        return {term.name: term.loss(batch, output) for term in self.terms}

    def weights(self, step: int) -> dict[str, float]:
        """1 for the main term; α and λ rise over heads_warmup_steps, λ moves on to lam_end of itself at the last step."""
        config = self.config
        rise = min(1.0, (step + 1) / config.heads_warmup_steps) if config.heads_warmup_steps else 1.0
        span = max(1, self.max_steps - config.heads_warmup_steps)
        move = 1 + (config.lam_end - 1) * max(0.0, (step - config.heads_warmup_steps) / span)
        factor = {"hard": rise, "kd": rise * move}
        return {term.name: self.base_weights[term.name] * factor.get(term.name.partition("-")[0], 1.0) for term in self.terms}

    def evaluate(self) -> dict[str, float]:
        """Losses and, for a CTC output, the word error rate (greedy, in per cent) on the dev split."""
        if self.dev is None:
            return {}
        sums, counts = dict.fromkeys(self.base_weights, 0.0), dict.fromkeys(self.base_weights, 0.0)
        said: list[str] = []
        understood: list[str] = []
        device = self.student.mean_F.device
        for batch in _in_order(self.dev, self.config.batch_seconds):
            moved = batch.to(device)
            slots = {head: slot_M for term in self.terms for head, slot_M in term.slots(moved).items()}
            output = self.student(moved.x_BTF, moved.length_B, slots=slots)
            for term in self.terms:
                count = term.count(moved)
                if count:
                    sums[term.name] += float(term.loss(moved, output))
                    counts[term.name] += count
            if self.config.main == "ctc":
                join = self.dev.join
                said += [" ".join(join.words(join.manifest.by_id(name))) for name in batch.ids]
                understood += [join.subwords.decode(ids) for ids in greedy_ctc(output.logits_BTV, output.length_B)]
        figures = {f"dev_{name}": sums[name] / counts[name] for name in sums if counts[name]}
        return figures | ({"dev_wer": word_error_rate(said, understood)} if said else {})


def dropout_seed(seed: int, step: int, utterance_id: str) -> int:
    """What the dropout of an utterance at a step is drawn from."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {utterance_id}".encode()).digest()[:7], "little")


def word_error_rate(said: Sequence[str], understood: Sequence[str]) -> float:
    """Per cent, over all words; utterances without words are left out."""
    import jiwer

    pairs = [(a, b) for a, b in zip(said, understood, strict=True) if a]
    if not pairs:
        return float("nan")
    return 100 * float(jiwer.wer([a for a, _ in pairs], [b for _, b in pairs]))


def _in_order(maker: BatchMaker, batch_seconds: float) -> Iterator[Batch]:
    """All utterances once, in the maker's order, in batches of about batch_seconds."""
    rows: list[int] = []
    seconds = 0.0
    for row, utterance in enumerate(maker.utterances):
        rows.append(row)
        seconds += utterance.duration or 5.0
        if seconds >= batch_seconds or row == len(maker.utterances) - 1:
            batch = maker(rows)
            assert batch is not None
            yield batch
            rows, seconds = [], 0.0
