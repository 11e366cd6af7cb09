"""fit: the steps, and what happens between them. The module docstring of hkd.loop says what it promises."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from hkd.errors import HkdError
from hkd.files import write_bytes, write_json
from hkd.loop.accelerator import make_accelerator, no_settings_from_the_environment, share_seed
from hkd.loop.best import Best, average
from hkd.loop.checkpoint import (
    Checkpoint,
    last_checkpoints,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    newest_checkpoint,
    optimizer_tensors,
    remove_checkpoints,
    write_checkpoint,
)
from hkd.loop.config import LoopConfig, Task, learning_rate
from hkd.loop.record import Metrics, claim, finished, flatten, locked, stop_signals
from hkd.loop.shares import gradient_norms, shares_of
from hkd.progress import Progress, no_progress

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

log = logging.getLogger(__name__)


class Terminated(HkdError):  # noqa: N818 (a state, not a fault)
    """SIGTERM came; the state is saved."""

    exit_code = 143


def identity_of(config: LoopConfig, identity: Mapping[str, Any] | None) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {"loop": asdict(config), **(identity or {})}


def fit(
    task: Task,
    config: LoopConfig,
    folder: Path,
    *,
    identity: Mapping[str, Any] | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Train to config.max_steps, from the newest whole checkpoint where there is one; returns the last figures.

    identity: JSON of all else that the result hangs on (configs, digests of the data); another one in the same folder is refused.
    tensorboard: write curves into folder/tensorboard too. Leaves folder/{final.safetensors, done.json, metrics.jsonl, timing.jsonl, checkpoints/}. A run that is done returns at once.
    Either way the task's model holds the final weights.
    Raises Terminated on SIGTERM and KeyboardInterrupt on Ctrl-C, both after saving; HkdError where the loss is not finite.
    """
    whole = identity_of(config, identity)
    if (metrics := finished(folder, whole)) is not None:
        log.info("%s is done", folder)
        load_model_tensors(task.model, load_file(folder / "final.safetensors"))
        return metrics
    if config.warmup_steps > config.max_steps:
        log.warning(
            "`warmup_steps` is %d, but there are %d steps: the learning rate ends at %.3g of %.3g. Take fewer, or more `max_steps`.",
            config.warmup_steps,
            config.max_steps,
            learning_rate(config, config.max_steps - 1),
            config.learning_rate,
        )
    with no_settings_from_the_environment():
        accelerator = make_accelerator(config.precision, device, tensorboard=folder if tensorboard else None)
        if not accelerator.is_main_process:
            accelerator.wait_for_everyone()
            return _Run(task, config, folder, accelerator, no_progress).to_the_end(claim(folder, whole))
        with locked(folder):
            digest = claim(folder, whole)
            accelerator.wait_for_everyone()
            return _Run(task, config, folder, accelerator, progress).to_the_end(digest)


class _Run:
    def __init__(self, task: Task, config: LoopConfig, folder: Path, accelerator: "Accelerator", progress: Progress) -> None:
        self.task, self.config, self.folder, self.accelerator, self.progress = task, config, folder, accelerator, progress
        self.model = task.model.to(accelerator.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, config.beta2), fused=True
        )
        self.optimizer: Any = accelerator.prepare(self.adam)
        self.checkpoints = folder / "checkpoints"
        self.metrics = Metrics(folder, active=accelerator.is_main_process)
        self.terms = list(task.weights(0))
        self.window_sums = torch.zeros(len(self.terms), dtype=torch.float64, device=accelerator.device)
        self.window_counts = np.zeros(len(self.terms))
        self.latest: dict[str, float] = {}  # the last figures: losses of the last window, and of the last evaluation
        self.rate: dict[str, float] = {}  # for the progress bar alone: figures must not depend on the machine
        self.pending: tuple[int, list[str], Tensor] | None = None  # the last step's finiteness, read a step later
        self.seconds, self.wait_s, self.clock_s = 0.0, 0.0, time.perf_counter()
        self.best = Best(folder=folder / "best", by=config.best_by, keep=max(1, config.average)) if config.best_by else None
        self.step, self.ended = 0, False  # ended: before max_steps, for want of better figures

    def to_the_end(self, digest: str) -> dict[str, float]:
        self._restore()
        config = self.config
        shares = config.accumulate * self.accelerator.num_processes
        first = config.accumulate * self.accelerator.process_index
        batches = [self.task.batches(self.step, first + a, shares) for a in range(config.accumulate)]
        self.model.train()
        with stop_signals() as stop:
            while self.step < config.max_steps and not self.ended:
                stopping = self._update(batches, first, bool(stop))
                last = self.step == config.max_steps
                if last or self.step % config.log_every == 0:
                    self._log()
                if last or (config.eval_every and self.step % config.eval_every == 0):
                    self._evaluate()
                    last = last or self.ended
                if last or stopping or self.step % config.save_every == 0:
                    self._save()
                self.progress(self.step, config.max_steps, **self.latest, **self.rate)
                if stopping and not last:
                    self._stop(stop)
        self._finish(digest)
        self.accelerator.end_training()
        return self.latest

    def _update(self, batches: Sequence[Iterator[Any]], first: int, stop: bool) -> bool:
        """One step; returns whether any process was told to stop."""
        config, accelerator = self.config, self.accelerator
        begin_s = time.perf_counter()
        shares = [_to(next(iterator), accelerator.device) for iterator in batches]
        self.wait_s += time.perf_counter() - begin_s
        counts = np.array([[self._count(share, term) for term in self.terms] for share in shares]).sum(0)
        if accelerator.num_processes > 1:
            gathered = (
                accelerator.reduce(torch.tensor([*counts, float(stop)], device=accelerator.device), "sum").cpu().double().numpy()
            )
            counts, stop = gathered[:-1], bool(gathered[-1])
        weights = self.task.weights(self.step)
        if config.shares_every and self.step % config.shares_every == 0:
            self._gradient_shares(shares, first, counts, weights)
        sums = torch.zeros(len(self.terms), device=accelerator.device)
        for a, share in enumerate(shares):
            if share is not None:
                self.seconds += float(getattr(share, "seconds", 0.0))
                total, values = self._loss(share, first + a, counts, weights)
                if total.requires_grad:
                    self._backward(total)
                sums += values
        sums = self._reduce(sums)
        if accelerator.scaler is not None:
            accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm or float("inf"))
        self._check_pending()
        ids = [str(name) for share in shares for name in getattr(share, "ids", ())]
        finite = torch.isfinite(sums).all() & (torch.isfinite(norm) | (accelerator.scaler is not None))
        self.pending = (self.step, ids, finite)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.window_sums += sums
        self.window_counts += counts
        self.norm = norm
        self.step += 1
        return stop

    def _count(self, share: Any, term: str) -> float:
        return 0.0 if share is None else float(self.task.counts(share).get(term, 0.0))

    def _loss(self, share: Any, number: int, counts: np.ndarray[Any, Any], weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """The share's part of the loss (a scalar), and its sum for each term, detached."""
        torch.manual_seed(share_seed(self.config.seed, self.step, number))
        try:
            with self.accelerator.autocast():
                losses = self.task.losses(share, self.step)
        except torch.OutOfMemoryError:
            raise self._out_of_memory() from None
        zero = torch.zeros((), device=self.accelerator.device)
        total = zero
        for term, count in zip(self.terms, counts, strict=True):
            if term in losses and count > 0 and weights[term] != 0:
                total = total + losses[term].float() * (weights[term] / count)
        return total, torch.stack([losses[term].detach().float() if term in losses else zero for term in self.terms])

    def _backward(self, total: Tensor) -> None:
        try:
            self.accelerator.backward(total)
        except torch.OutOfMemoryError:
            raise self._out_of_memory() from None

    def _out_of_memory(self) -> HkdError:
        return HkdError(
            f"the device ran out of memory at step {self.step}. Raise `loop.accumulate` (now {self.config.accumulate}: the same batch in "
            "more parts), or lower the batch's size (`batch_seconds`)."
        )

    def _reduce(self, sums: Tensor) -> Tensor:
        """Add up gradients and losses over the processes, as one buffer; a process with an empty share gives zeros."""
        if self.accelerator.num_processes == 1:
            return sums
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parts = [p.grad for p in self.parameters if p.grad is not None]
        flat: Tensor = self.accelerator.reduce(torch.cat([*(part.flatten() for part in parts), sums]), "sum")
        start = 0
        for part in parts:
            part.copy_(flat[start : start + part.numel()].view_as(part))
            start += part.numel()
        return flat[start:].clone()

    def _gradient_shares(
        self, shares: Sequence[Any], first: int, counts: np.ndarray[Any, Any], weights: Mapping[str, float]
    ) -> None:
        """Write each term's share of the gradient, in this process's first share of the batch."""
        if shares[0] is None:
            return
        none = dict.fromkeys(self.terms, 0.0)
        norms = gradient_norms(
            lambda term: self._loss(shares[0], first, counts, {**none, term: weights[term]})[0], self.terms, self.parameters
        )
        found = shares_of(norms)
        self._write({"step": self.step, "gradient_norm": norms, "gradient_share": found})
        log.info("step %d: share of the gradient: %s", self.step, ", ".join(f"{t} {share:.1%}" for t, share in found.items()))

    def _write(self, row: Mapping[str, Any]) -> None:
        self.metrics.write(row)
        numbers = {name: value for name, value in flatten(row).items() if name != "step"}
        self.accelerator.log(numbers, step=row["step"])  # to the trackers, where there are some

    def _check_pending(self) -> None:
        if self.pending is not None and not bool(self.pending[2]):
            step, ids, _ = self.pending
            named = f" (utterances {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''})" if ids else ""
            raise HkdError(
                f"loss and gradient must be finite, but are not at step {step}{named}. Lower `learning_rate` or look at these."
            )
        self.pending = None

    def _log(self) -> None:
        self._check_pending()
        sums = self.window_sums.cpu().numpy()
        means = {t: float(s / c) for t, s, c in zip(self.terms, sums, self.window_counts, strict=True) if c > 0}
        weights = self.task.weights(self.step - 1)
        total = sum(weights[term] * mean for term, mean in means.items())
        self.latest = {**self.latest, "loss": total, **means}
        self._write(
            {
                "step": self.step,
                "loss": total,
                **means,
                "lr": learning_rate(self.config, self.step - 1),
                "gradient": float(self.norm),
            }
        )
        now_s = time.perf_counter()
        self.metrics.write_timing(
            {
                "step": self.step,
                "wall_s": now_s - self.clock_s,
                "wait_s": self.wait_s,
                "audio_s": self.seconds,
                "time": time.time(),
            }
        )
        if self.seconds:
            self.rate = {"audio_s_per_s": self.seconds * self.accelerator.num_processes / (now_s - self.clock_s)}
        self.clock_s, self.wait_s, self.seconds = now_s, 0.0, 0.0
        self.window_sums.zero_()
        self.window_counts[:] = 0

    def _figures(self) -> dict[str, float]:
        """What the task says of the weights as they are."""
        evaluate = getattr(self.task, "evaluate", None)
        if evaluate is None:
            return {}
        self.model.eval()
        with torch.no_grad():
            figures = {name: float(value) for name, value in evaluate().items()}
        self.model.train()
        return figures

    def _evaluate(self) -> None:
        self._check_pending()
        if self.accelerator.is_main_process and (figures := self._figures()):
            self.latest |= figures
            self._write({"step": self.step, **figures})
            if self.best is not None:
                if self.best.note(figures, self.step):
                    self.best.save(self.step, model_tensors(self.model))
                self.ended = bool(self.config.patience) and self.best.waited >= self.config.patience
        if self.accelerator.num_processes > 1:
            ended = torch.tensor([float(self.ended)], device=self.accelerator.device)
            self.ended = bool(self.accelerator.reduce(ended, "sum").item())

    def _save(self) -> None:
        self._check_pending()
        if self.accelerator.is_main_process:
            self.metrics.sync()
            scaler = self.accelerator.scaler
            state = {
                "metrics_bytes": self.metrics.num_bytes,
                "window": {
                    t: [float(s), float(c)] for t, s, c in zip(self.terms, self.window_sums, self.window_counts, strict=True)
                },
                "latest": self.latest,
                "best": None if self.best is None else self.best.state(),
                "ended": self.ended,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            tensors = {"model": model_tensors(self.model), "optimizer": optimizer_tensors(self.model, self.adam)}
            write_checkpoint(self.checkpoints, self.step, tensors, state)
            averaged = 0 if self.best is not None else self.config.average
            remove_checkpoints(self.checkpoints, keep=max(self.config.keep_last, averaged))
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        found = newest_checkpoint(self.checkpoints, accept=lambda state: self.metrics.num_bytes >= int(state["metrics_bytes"]))
        if found is not None:
            self.step = found.step
            load_model_tensors(self.model, found.load("model"))
            load_optimizer_tensors(self.model, self.adam, found.load("optimizer"))
            for index, term in enumerate(self.terms):
                self.window_sums[index], self.window_counts[index] = found.state["window"][term]
            self.latest, self.ended = dict(found.state["latest"]), bool(found.state["ended"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(found.state["scaler"])
            log.info("going on from step %d", self.step)
        self.accelerator.wait_for_everyone()
        self.metrics.cut(0 if found is None else int(found.state["metrics_bytes"]))
        if self.accelerator.is_main_process:
            remove_checkpoints(self.checkpoints, after=self.step)
            if self.best is not None:
                self.best.restore(None if found is None else found.state["best"], self.step)

    def _chosen(self) -> list[Checkpoint]:
        """The checkpoints whose mean are the final weights; none where those of the last step are."""
        if self.best is not None:
            return self.best.checkpoints()
        return last_checkpoints(self.checkpoints, self.config.average) if self.config.average > 1 else []

    def _stop(self, received: Sequence[int]) -> None:
        if received and received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(f"training was told to stop and has saved its state at step {self.step}. Run the same command to go on.")

    def _finish(self, digest: str) -> None:
        if self.accelerator.is_main_process:
            chosen = self._chosen()
            if chosen:
                load_model_tensors(self.model, average(checkpoint.load("model") for checkpoint in chosen))
                self.latest |= self._figures()
                self._write({"step": self.step, "weights_of_steps": [c.step for c in chosen], **self.latest})
            write_bytes(self.folder / "final.safetensors", safetensors_bytes(model_tensors(self.model)))
            write_json(self.folder / "done.json", {"digest": digest, "steps": self.step, "metrics": self.latest})
        self.accelerator.wait_for_everyone()


def _to(share: Any, device: torch.device) -> Any:
    return share.to(device) if hasattr(share, "to") else share
