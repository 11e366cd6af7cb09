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
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from hkd.errors import HkdError, UserError
from hkd.files import write_bytes, write_json
from hkd.loop.checkpoint import (
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    newest_checkpoint,
    optimizer_tensors,
    remove_checkpoints,
    write_checkpoint,
)
from hkd.loop.config import LoopConfig, Task, learning_rate
from hkd.loop.record import Metrics, claim, finished, locked, stop_signals
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
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Train to config.max_steps, from the newest whole checkpoint where there is one; returns the last figures.

    identity: JSON of all else that the result hangs on (configs, digests of the data); another one in the same folder is refused.
    Leaves folder/{final.safetensors, done.json, metrics.jsonl, timing.jsonl, checkpoints/}. A run that is done returns at once.
    Raises Terminated on SIGTERM and KeyboardInterrupt on Ctrl-C, both after saving; HkdError where the loss is not finite.
    """
    whole = identity_of(config, identity)
    if (metrics := finished(folder, whole)) is not None:
        log.info("%s is done", folder)
        return metrics
    accelerator = make_accelerator(config.precision, device)
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return _Run(task, config, folder, accelerator, no_progress).to_the_end(claim(folder, whole))
    with locked(folder):
        digest = claim(folder, whole)
        accelerator.wait_for_everyone()
        return _Run(task, config, folder, accelerator, progress).to_the_end(digest)


def make_accelerator(precision: str, device: str) -> "Accelerator":
    """accelerate's Accelerator for this precision and device (auto | cpu | cuda); one process may make several in turn."""
    from accelerate import Accelerator  # here, since it takes a second
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("`device` must be one that is there, but is 'cuda' and no GPU is seen. Take --device cpu.")
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device == "cpu")


def share_seed(seed: int, step: int, share: int) -> int:
    """The seed of dropout and the like for one share of one step."""
    return int(np.random.SeedSequence((seed, step, share)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
        self.pending: tuple[int, list[str], Tensor] | None = None  # the last step's finiteness, read a step later
        self.seconds, self.wait_s, self.clock_s = 0.0, 0.0, time.perf_counter()
        self.step = 0

    def to_the_end(self, digest: str) -> dict[str, float]:
        self._restore()
        config = self.config
        shares = config.accumulate * self.accelerator.num_processes
        first = config.accumulate * self.accelerator.process_index
        batches = [self.task.batches(self.step, first + a, shares) for a in range(config.accumulate)]
        self.model.train()
        with stop_signals() as stop:
            while self.step < config.max_steps:
                stopping = self._update(batches, first, bool(stop))
                last = self.step == config.max_steps
                if last or self.step % config.log_every == 0:
                    self._log()
                if last or (config.eval_every and self.step % config.eval_every == 0):
                    self._evaluate()
                if last or stopping or self.step % config.save_every == 0:
                    self._save()
                self.progress(self.step, config.max_steps, **self.latest)
                if stopping and not last:
                    self._stop(stop)
        self._finish(digest)
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
                    accelerator.backward(total)
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
            raise HkdError(
                f"the device ran out of memory at step {self.step}. Lower `batch_seconds`, or raise `accumulate` (now {self.config.accumulate})."
            ) from None
        zero = torch.zeros((), device=self.accelerator.device)
        total = zero
        for term, count in zip(self.terms, counts, strict=True):
            if term in losses and count > 0 and weights[term] != 0:
                total = total + losses[term].float() * (weights[term] / count)
        return total, torch.stack([losses[term].detach().float() if term in losses else zero for term in self.terms])

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
        """Write the gradient norm of each weighted term, over the parameters that the first term reaches, in this process's first share."""
        share = shares[0]
        if share is None:
            return
        norms: dict[str, float] = {}
        reached: list[bool] | None = None
        for term in self.terms:
            total, _ = self._loss(share, first, counts, {**dict.fromkeys(self.terms, 0.0), term: weights[term]})
            if not total.requires_grad:
                norms[term] = 0.0
                continue
            gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
            reached = reached or [g is not None for g in gradients]
            kept = [g.float().norm() for g, ok in zip(gradients, reached, strict=True) if ok and g is not None]
            norms[term] = float(torch.stack(kept).norm()) if kept else 0.0
        whole = sum(norms.values()) or 1.0
        row = {"step": self.step, "gradient_norm": norms, "gradient_share": {term: norm / whole for term, norm in norms.items()}}
        self.metrics.write(row)
        log.info("step %d: share of the gradient: %s", self.step, ", ".join(f"{t} {n / whole:.1%}" for t, n in norms.items()))

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
        self.metrics.write(
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
        self.clock_s, self.wait_s, self.seconds = now_s, 0.0, 0.0
        self.window_sums.zero_()
        self.window_counts[:] = 0

    def _evaluate(self) -> None:
        evaluate = getattr(self.task, "evaluate", None)
        self._check_pending()
        if evaluate is not None and self.accelerator.is_main_process:
            self.model.eval()
            with torch.no_grad():
                figures = {name: float(value) for name, value in evaluate().items()}
            self.model.train()
            self.latest |= figures
            self.metrics.write({"step": self.step, **figures})
        self.accelerator.wait_for_everyone()

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
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            tensors = {"model": model_tensors(self.model), "optimizer": optimizer_tensors(self.model, self.adam)}
            write_checkpoint(self.checkpoints, self.step, tensors, state)
            remove_checkpoints(self.checkpoints, keep=self.config.keep_last)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        found = newest_checkpoint(self.checkpoints, accept=lambda state: self.metrics.num_bytes >= int(state["metrics_bytes"]))
        if found is not None:
            self.step = found.step
            load_model_tensors(self.model, found.load("model"))
            load_optimizer_tensors(self.model, self.adam, found.load("optimizer"))
            for index, term in enumerate(self.terms):
                self.window_sums[index], self.window_counts[index] = found.state["window"][term]
            self.latest = dict(found.state["latest"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(found.state["scaler"])
            log.info("going on from step %d", self.step)
        self.accelerator.wait_for_everyone()
        self.metrics.cut(0 if found is None else int(found.state["metrics_bytes"]))
        if self.accelerator.is_main_process:
            remove_checkpoints(self.checkpoints, after=self.step)

    def _stop(self, received: Sequence[int]) -> None:
        if received and received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(f"training was told to stop and has saved its state at step {self.step}. Run the same command to go on.")

    def _finish(self, digest: str) -> None:
        if self.accelerator.is_main_process:
            write_bytes(self.folder / "final.safetensors", safetensors_bytes(model_tensors(self.model)))
            write_json(self.folder / "done.json", {"digest": digest, "steps": self.step, "metrics": self.latest})
        self.accelerator.wait_for_everyone()


def _to(share: Any, device: torch.device) -> Any:
    return share.to(device) if hasattr(share, "to") else share
