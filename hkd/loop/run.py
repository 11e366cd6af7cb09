"""fit: settings (LoopConfig), what a task gives (Task), the steps; `hkd.loop` says what it promises."""

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from hkd.errors import HkdError, MissingPackageError, Progress, UserError, check_choice, check_settings, no_progress
from hkd.files import flatten, write_bytes, write_json
from hkd.loop import checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how fast, how often. A step is one update of the weights."""

    least_steps: ClassVar[int] = 1  # 0 where it stands for a default that goes by the data

    max_steps: int = 2000  # updates of the weights
    learning_rate: float = 1e-3  # at the end of the warm-up
    warmup_steps: int = 200  # linear, from 0
    schedule: str = "cosine"  # cosine | linear (both to 0 at max_steps) | constant
    weight_decay: float = 0.01  # AdamW's; not for vectors (biases, norms)
    beta2: float = 0.98  # AdamW's memory of squared gradients
    clip_norm: float = 1.0  # of the whole gradient, after the backward pass; 0: no clipping
    accumulate: int = 1  # shares that a process works off one by one: less memory, the same global batch
    precision: str = "fp32"  # fp32 | bf16 | fp16
    seed: int = 0  # of weights, order and dropout
    log_every: int = 10  # steps between lines of metrics.jsonl
    save_every: int = 200  # steps between checkpoints
    keep_last: int = 2  # checkpoints that are kept
    eval_every: int = 500  # steps between evaluations on the dev split; 0: at the end only
    best_by: str = ""  # a figure of the evaluation, lower is better: the final weights are the best ones
    average: int = 0  # the final weights are the mean of the n best (by best_by) or else of the n last checkpoints
    patience: int = 0  # evaluations without a better `best_by` after which to stop; 0: go on to max_steps
    shares_every: int = 0  # steps between measurements of each loss term's share of the gradient; 0: never

    def __post_init__(self) -> None:
        check_choice("`schedule`", self.schedule, ("cosine", "linear", "constant"))
        check_choice("`precision`", self.precision, ("fp32", "bf16", "fp16"))
        positive = "accumulate log_every save_every keep_last"
        others = "warmup_steps weight_decay clip_norm eval_every shares_every seed average patience"
        check_settings(self, positive, "be at least 1", lambda value: value >= 1)
        check_settings(self, "max_steps", f"be at least {self.least_steps}", lambda value: value >= self.least_steps)
        check_settings(self, others, "not be negative", lambda value: value >= 0)
        check_settings(self, "learning_rate", "be positive", lambda value: value > 0)
        if self.patience and not self.best_by:
            raise UserError("`best_by` must name a figure of the evaluation where `patience` is given, but is empty.")


def is_main_process() -> bool:
    """Whether this process is the one that writes and reports: the first of torchrun's, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def learning_rate(config: LoopConfig, step: int) -> float:
    """The learning rate of the update that follows `step` completed ones: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done)


class Task(Protocol):
    """What is trained. Batches may have `.to(device)`, `.ids` (named if the loss is not finite), `.seconds` (of audio).

    A task may also have `evaluate(rank, world_size) -> Mapping[str, tuple[float, float]]`, called every eval_every
    steps and at the end with the model in evaluation mode and no gradients: each figure's sum and count over that
    process's share. Figures are sums over counts of all processes, those without a count left out.
    """

    @property
    def model(self) -> torch.nn.Module:
        """The module whose parameters are updated."""

    def batches(self, start_step: int, rank: int, world_size: int) -> Iterator[Any]:
        """Endless; item n is share `rank` of `world_size` of the global batch of step start_step + n, a pure function
        of (seed, step). An empty share (fewer utterances than shares) is None."""

    def counts(self, batch: Any) -> Mapping[str, float]:
        """Per loss term: utterances or labelled frames in this share."""

    def losses(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Per loss term: the sum over this share, a scalar."""

    def weights(self, step: int) -> Mapping[str, float]:
        """Per loss term; names all terms, the main one first."""


ENGINES = {  # variables that hand training over to another engine → what it is
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism",
}
_SETTINGS = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FP8_")  # how accelerate's names begin
_NOTHING = ("", "0", "false", "no", "off", "n", "f")


@contextmanager
def no_settings_from_the_environment() -> Iterator[None]:
    """Without accelerate's own environment variables, since hkd's settings alone decide what is learnt. Which were left
    aside is said. Raises UserError, naming the variable, where another engine is asked for."""
    given = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    for name, engine in ENGINES.items():
        if given.get(name, "").lower() not in _NOTHING:
            why, remedy = f"hkd trains without {engine}", "Take it out, and start processes with torchrun."
            raise UserError(f"{name} must not be set, but is {given[name]} instead: {why}. {remedy}")
    if aside := [f"{name}={value}" for name, value in sorted(given.items()) if value.lower() not in _NOTHING]:
        settings = "Settings are --device, loop.precision and loop.accumulate."
        logger.warning("accelerate's environment variables are not read: %s. %s", ", ".join(aside), settings)
    for name in given:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(given)


def make_accelerator(precision: str, device: str, *, tensorboard: Path | None = None) -> "Accelerator":
    """accelerate's Accelerator for precision and device (auto | cpu | cuda); one process may make several in turn."""
    if tensorboard is not None and find_spec("tensorboard") is None:
        raise MissingPackageError("tensorboard", "tensorboard", "Drawing curves with TensorBoard")
    from accelerate import Accelerator  # here, since it takes a second
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("`device` must be one that is there, but is 'cuda' and no GPU is seen. Take --device cpu.")
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()),  # so that all meet
        log_with=None if tensorboard is None else "tensorboard",
        project_dir=tensorboard,
        gradient_accumulation_steps=1,  # ours is `loop.accumulate`
    )
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would train in fp32
        remedy = "Take --set loop.precision=bf16."
        raise UserError(f"`loop.precision` must be fp32 or bf16 on a CPU, but is fp16 instead. {remedy}")
    if tensorboard is not None:
        accelerator.init_trackers("tensorboard")
    return accelerator


def share_seed(seed: int, step: int, share: int) -> int:
    """The seed of dropout and the like for one share of one step."""
    return int(np.random.SeedSequence((seed, step, share)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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

    identity: JSON of all else that the result depends on (configs, digests of the data); another one in the same folder
    is refused. tensorboard: write curves into folder/tensorboard too. Leaves folder/{final.safetensors, done.json,
    metrics.jsonl, timing.jsonl, checkpoints/}; a run that is done returns at once, the final weights in its model too.
    Raises Terminated on SIGTERM and KeyboardInterrupt on Ctrl-C, after saving; HkdError where the loss is not finite.
    """
    whole = identity_of(config, identity)
    if (metrics := checkpoint.finished(folder, whole)) is not None:
        logger.info("%s is done", folder)
        checkpoint.load_final(task.model, folder)
        return metrics
    if config.warmup_steps > config.max_steps:
        long = f"`warmup_steps` is {config.warmup_steps}, but there are {config.max_steps} steps"
        end = f"{learning_rate(config, config.max_steps - 1):.3g} of {config.learning_rate:.3g}"
        logger.warning("%s: the learning rate ends at %s. Take fewer, or more `max_steps`.", long, end)
    with no_settings_from_the_environment():
        accelerator = make_accelerator(config.precision, device, tensorboard=folder if tensorboard else None)
        is_main = accelerator.is_main_process
        with checkpoint.locked(folder) if is_main else nullcontext():
            if is_main:  # the others wait until it has claimed the folder
                checkpoint.claim(folder, whole)
            accelerator.wait_for_everyone()
            digest = checkpoint.claim(folder, whole)
            return _Run(task, config, folder, accelerator, progress if is_main else no_progress).to_the_end(digest)


class _Run:
    def __init__(
        self, task: Task, config: LoopConfig, folder: Path, accelerator: "Accelerator", progress: Progress
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.accelerator, self.progress = accelerator, progress
        self.model = task.model.to(accelerator.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in self.parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
        decays = ((matrices, config.weight_decay), (vectors, 0.0))
        groups = [{"params": part, "weight_decay": decay} for part, decay in decays if part]
        self.adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
        self.optimizer: Any = accelerator.prepare(self.adam)
        self.checkpoints = folder / "checkpoints"
        self.metrics = checkpoint.Metrics(folder, active=accelerator.is_main_process)
        self.terms = list(task.weights(0))
        self.window_sums = torch.zeros(len(self.terms), dtype=torch.float64, device=accelerator.device)
        self.window_counts = np.zeros(len(self.terms))
        self.latest: dict[str, float] = {}  # the last figures: losses of the last window, and of the last evaluation
        self.rate: dict[str, float] = {}  # for the progress bar alone: figures must not depend on the machine
        self.pending: tuple[int, list[str], Tensor] | None = None  # the last step's finiteness, read a step later
        self.seconds, self.wait_s, self.clock_s = 0.0, 0.0, time.perf_counter()
        best = checkpoint.BestCheckpoints(folder=folder / "best", by=config.best_by, keep=max(1, config.average))
        self.best = best if config.best_by else None
        self.step, self.ended = 0, False  # ended: before max_steps, for want of better figures

    def to_the_end(self, digest: str) -> dict[str, float]:
        self._restore()
        config = self.config
        shares = config.accumulate * self.accelerator.num_processes
        first = config.accumulate * self.accelerator.process_index
        batches = [self.task.batches(self.step, first + a, shares) for a in range(config.accumulate)]
        self.model.train()
        with checkpoint.stop_signals() as stop:
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
        shares = [next(iterator) for iterator in batches]
        shares = [share.to(accelerator.device) if hasattr(share, "to") else share for share in shares]
        self.wait_s += time.perf_counter() - begin_s
        own_counts = [{} if share is None else self.task.counts(share) for share in shares]
        counts = np.array([[float(row.get(term, 0.0)) for term in self.terms] for row in own_counts]).sum(0)
        if accelerator.num_processes > 1:
            own = torch.tensor([*counts, float(stop)], device=accelerator.device)
            gathered = accelerator.reduce(own, "sum").cpu().double().numpy()
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
                    with self._memory():
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

    def _loss(
        self, share: Any, number: int, counts: np.ndarray[Any, Any], weights: Mapping[str, float]
    ) -> tuple[Tensor, Tensor]:
        """The share's part of the loss (a scalar), and its sum for each term, detached."""
        torch.manual_seed(share_seed(self.config.seed, self.step, number))
        with self._memory(), self.accelerator.autocast():
            losses = self.task.losses(share, self.step)
        zero = torch.zeros((), device=self.accelerator.device)
        total = zero
        for term, count in zip(self.terms, counts, strict=True):
            if term in losses and count > 0 and weights[term] != 0:
                total = total + losses[term].float() * (weights[term] / count)
        return total, torch.stack([losses[term].detach().float() if term in losses else zero for term in self.terms])

    @contextmanager
    def _memory(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise HkdError(
                f"the device ran out of memory at step {self.step}. Raise `loop.accumulate` (now "
                f"{self.config.accumulate}: the same batch in more parts), or lower the batch's size (`batch_seconds`)."
            ) from None

    def _reduce(self, sums: Tensor) -> Tensor:
        """Add up gradients and losses over the processes, as one buffer; a process with an empty share gives zeros."""
        if self.accelerator.num_processes == 1:
            return sums
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parts = [p.grad for p in self.parameters if p.grad is not None]
        flat: Tensor = self.accelerator.reduce(torch.cat([*(part.flatten() for part in parts), sums]), "sum")
        *reduced, sums = torch.split(flat, [*(part.numel() for part in parts), len(sums)])
        for part, whole in zip(parts, reduced, strict=True):
            part.copy_(whole.view_as(part))
        return sums.clone()

    def _gradient_shares(
        self, shares: Sequence[Any], first: int, counts: np.ndarray[Any, Any], weights: Mapping[str, float]
    ) -> None:
        """Write each term's share of the gradient's norm, in this process's first share of the batch, over the
        parameters that the first (main) term reaches: a head's own weights would flatter its term."""
        if shares[0] is None:
            return
        norms: dict[str, float] = {}
        reached: list[bool] | None = None
        for term in self.terms:
            alone = {**dict.fromkeys(self.terms, 0.0), term: weights[term]}
            total, _ = self._loss(shares[0], first, counts, alone)
            norms[term] = 0.0
            if total.requires_grad:
                gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
                reached = reached or [gradient is not None for gradient in gradients]
                kept = [g.float().norm() for g, ok in zip(gradients, reached, strict=True) if ok and g is not None]
                norms[term] = float(torch.stack(kept).norm()) if kept else 0.0
        whole = sum(norms.values()) or 1.0
        found = {term: norm / whole for term, norm in norms.items()}
        self._write({"step": self.step, "gradient_norm": norms, "gradient_share": found})
        said = ", ".join(f"{term} {share:.1%}" for term, share in found.items())
        logger.info("step %d of %d: shares of the gradient: %s", self.step, self.config.max_steps, said)

    def _write(self, row: Mapping[str, Any]) -> None:
        self.metrics.write(row)
        numbers = {name: value for name, value in flatten(row).items() if name != "step"}
        self.accelerator.log(numbers, step=row["step"])  # to the trackers, where there are some

    def _check_pending(self) -> None:
        if self.pending is not None and not bool(self.pending[2]):
            step, ids, _ = self.pending
            named = f" (utterances {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''})" if ids else ""
            remedy = "Lower `learning_rate` or look at these."
            raise HkdError(f"loss and gradient must be finite, but are not at step {step}{named}. {remedy}")
        self.pending = None

    def _log(self) -> None:
        self._check_pending()
        sums = self.window_sums.cpu().numpy()
        means = {t: float(s / c) for t, s, c in zip(self.terms, sums, self.window_counts, strict=True) if c > 0}
        weights = self.task.weights(self.step - 1)
        total = sum(weights[term] * mean for term, mean in means.items())
        self.latest = {**self.latest, "loss": total, **means}
        lr = learning_rate(self.config, self.step - 1)
        self._write({"step": self.step, "loss": total, **means, "lr": lr, "gradient": float(self.norm)})
        now_s = time.perf_counter()
        spent = {"wall_s": now_s - self.clock_s, "wait_s": self.wait_s, "audio_s": self.seconds}
        self.metrics.write({"step": self.step, **spent, "time": time.time()}, timing=True)
        if self.seconds:
            self.rate = {"audio_s_per_s": self.seconds * self.accelerator.num_processes / (now_s - self.clock_s)}
        self.clock_s, self.wait_s, self.seconds = now_s, 0.0, 0.0
        self.window_sums.zero_()
        self.window_counts[:] = 0

    def _figures(self) -> dict[str, float]:
        """What the task says of the weights as they are: each process evaluates its share, and all get the figures."""
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        evaluate = getattr(self.task, "evaluate", None)
        if evaluate is None:
            return {}
        self.model.eval()
        with torch.no_grad():
            shares = gather_object([evaluate(self.accelerator.process_index, self.accelerator.num_processes)])
        self.model.train()
        totals = {name: np.sum([share[name] for share in shares], axis=0) for name in shares[0]}
        return {name: float(value / count) for name, (value, count) in totals.items() if count}

    def _evaluate(self) -> None:
        self._check_pending()
        if figures := self._figures():
            self.latest |= figures
            self._write({"step": self.step, **figures})
        if self.best is not None:
            if self.best.note(figures, self.step) and self.accelerator.is_main_process:
                self.best.save(self.step, checkpoint.model_tensors(self.model))
            self.ended = bool(self.config.patience) and self.best.waited >= self.config.patience

    def _save(self) -> None:
        self._check_pending()
        if self.accelerator.is_main_process:
            self.metrics.sync()
            scaler = self.accelerator.scaler
            sums = zip(self.terms, self.window_sums, self.window_counts, strict=True)
            state = {
                "metrics_bytes": self.metrics.num_bytes,
                "window": {term: [float(value), float(count)] for term, value, count in sums},
                "latest": self.latest,
                "best": None if self.best is None else self.best.state(),
                "ended": self.ended,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            model, optimizer = checkpoint.model_tensors(self.model), checkpoint.optimizer_tensors(self.model, self.adam)
            checkpoint.write(self.checkpoints, self.step, {"model": model, "optimizer": optimizer}, state)
            averaged = 0 if self.best is not None else self.config.average
            checkpoint.remove(self.checkpoints, keep=max(self.config.keep_last, averaged))
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        num_bytes = self.metrics.num_bytes
        found = checkpoint.newest(self.checkpoints, accept=lambda state: num_bytes >= int(state["metrics_bytes"]))
        if found is not None:
            self.step = found.step
            checkpoint.load_model_tensors(self.model, found.load("model"))
            checkpoint.load_optimizer_tensors(self.model, self.adam, found.load("optimizer"))
            for index, term in enumerate(self.terms):
                self.window_sums[index], self.window_counts[index] = found.state["window"][term]
            self.latest, self.ended = dict(found.state["latest"]), bool(found.state["ended"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(found.state["scaler"])
            logger.info("going on from step %d", self.step)
        self.accelerator.wait_for_everyone()
        self.metrics.cut(0 if found is None else int(found.state["metrics_bytes"]))
        if self.best is not None and found is not None:
            self.best.restore(found.state["best"])
        if self.accelerator.is_main_process:
            for folder in (self.checkpoints, self.folder / "best"):
                checkpoint.remove(folder, after=self.step)

    def _stop(self, received: Sequence[int]) -> None:
        if received and received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(
            f"training was told to stop and has saved its state at step {self.step}. Run the same command to go on."
        )

    def _finish(self, digest: str) -> None:
        chosen: list[checkpoint.Checkpoint] = []
        if self.best is not None:
            chosen = self.best.checkpoints()
        elif self.config.average > 1:
            chosen = checkpoint.last(self.checkpoints, self.config.average)
        if chosen:
            checkpoint.load_model_tensors(self.model, checkpoint.average(each.load("model") for each in chosen))
            self.latest |= self._figures()
            self._write({"step": self.step, "weights_of_steps": [c.step for c in chosen], **self.latest})
        if self.accelerator.is_main_process:
            write_bytes(self.folder / checkpoint.FINAL, safetensors_bytes(checkpoint.model_tensors(self.model)))
            write_json(self.folder / "done.json", {"digest": digest, "steps": self.step, "metrics": self.latest})
        self.accelerator.wait_for_everyone()
