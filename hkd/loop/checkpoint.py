"""What a run keeps in its folder: checkpoints, metrics.jsonl, timing.jsonl, whose folder it is, the lock, stop signals.

- A checkpoint is step-000123/{model,optimizer}.safetensors and state.json, whole or not at all: written into a
  temporary folder, flushed to the disk, then renamed. state.json names each file's size and SHA-256, and its own
  digest, so that a folder that lost bytes (power off) is told from a whole one, and the one before is taken.
- Tensors go by parameter name; nothing is pickled.
- metrics.jsonl holds nothing that differs between a disturbed and an undisturbed run (no clock); resuming cuts it back
  to the checkpoint's length. Times go to timing.jsonl, which only grows.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hkd.errors import HkdError, UserError, some
from hkd.files import check_same, digest_of_json, lock, sync, write_bytes, write_json

logger = logging.getLogger(__name__)

FINAL = "final.safetensors"
IDENTITY = "identity.json"
Tensors = Mapping[str, Tensor]  # by name


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One whole checkpoint: where it lies, and its state.json."""

    folder: Path
    step: int
    state: dict[str, Any]

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file: model or optimizer."""
        return safetensors.torch.load_file(self.folder / f"{name}.safetensors")


def _named(model: torch.nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers; a tensor with two names only under its first."""
    own: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own.setdefault(id(tensor), (name, tensor))
    return dict(own.values())


def model_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers by name, on the CPU; a tensor with two names only under its first."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _named(model).items()}


@torch.no_grad()
def load_model_tensors(model: torch.nn.Module, tensors: Tensors) -> None:
    """Copy what `model_tensors` gave into the model. Raises HkdError where names or shapes differ."""
    own = _named(model)
    there, here = ({(name, tensor.shape) for name, tensor in side.items()} for side in (tensors, own))
    if differs := sorted({name for name, _ in there ^ here}):
        raise HkdError(f"the weights must fit the model, but {len(differs)} tensors differ ({some(differs)}).")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def load_final(model: torch.nn.Module, folder: Path) -> None:
    """Put a run's final weights into the model. Raises UserError for unreadable, HkdError for unfit ones."""
    path = folder / FINAL
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"a run must be done, but {folder} has no {FINAL}. Run `hkd train` first.") from None
    except SafetensorError as error:
        raise UserError(f"{path} must be weights, but cannot be read ({error}). Train the run again.") from None
    load_model_tensors(model, tensors)


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as NAME/KEY → tensor, on the CPU."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    parameter_of = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameter_of[name]
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def write(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write folder/step-NNNNNN with a file for each entry of `tensors`, atomically; replaces one of the same step."""
    target = folder / f"step-{step:06d}"
    partial = folder / f".partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {}
    for name, values in tensors.items():
        data = safetensors.torch.save(dict(values))
        write_bytes(partial / f"{name}.safetensors", data)
        files[f"{name}.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    value = {"step": step, **state, "files": files}
    text = json.dumps({**value, "digest": digest_of_json(value)}, indent=2)
    write_bytes(partial / "state.json", f"{text}\n".encode())
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    sync(folder)


def newest(folder: Path, *, accept: Callable[[dict[str, Any]], bool]) -> Checkpoint | None:
    """The newest whole checkpoint whose state.json `accept` says yes to, or None; others are said and passed over."""
    for path in reversed(_paths(folder)):
        found = _read(path)
        if isinstance(found, Checkpoint) and accept(found.state):
            return found
        reason = "what it goes with is gone" if isinstance(found, Checkpoint) else found
        logger.warning("checkpoint %s is broken (%s) and is passed over", path, reason)
    return None


def last(folder: Path, num: int) -> list[Checkpoint]:
    """The newest `num` whole checkpoints, oldest first."""
    return _whole(_paths(folder))[-num:]


def remove(folder: Path, *, after: int | None = None, keep: int | None = None) -> None:
    """Remove checkpoints after a step, all but the newest `keep`, and what an interrupted write left."""
    paths = _paths(folder)
    gone = [p for p in paths if after is not None and int(p.name.removeprefix("step-")) > after]
    gone += paths[: max(0, len(paths) - keep)] if keep is not None else []
    for path in [*folder.glob(".partial-*"), *gone]:
        shutil.rmtree(path, ignore_errors=True)


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _read(path: Path) -> Checkpoint | str:
    """A whole checkpoint, or why it is not whole."""
    try:
        state = json.loads((path / "state.json").read_bytes())
        if state["digest"] != digest_of_json({name: value for name, value in state.items() if name != "digest"}):
            return "state.json does not match its digest"
        for name, facts in state["files"].items():
            data = (path / name).read_bytes()
            if len(data) != facts["bytes"] or hashlib.sha256(data).hexdigest() != facts["sha256"]:
                return f"{name} has {len(data)} bytes of {facts['bytes']}, or others"
        return Checkpoint(folder=path, step=int(state["step"]), state=state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _whole(paths: Iterable[Path]) -> list[Checkpoint]:
    return [found for path in paths if isinstance(found := _read(path), Checkpoint)]


def check_figure(best_by: str, figures: Collection[str]) -> None:
    """Raises UserError where `best_by` is none of the evaluation's figures."""
    if best_by not in figures:
        known = ", ".join(figures) or "there is none: is there a dev split?"
        raise UserError(f"`best_by` must be a figure of the evaluation ({known}), but is '{best_by}' instead.")


@dataclass
class BestCheckpoints:
    """The `keep` best evaluations, as (figure, step), best first: the lower is better, the earlier of equals."""

    folder: Path
    by: str
    keep: int
    rows: list[tuple[float, int]] = field(default_factory=list)
    waited: int = 0  # evaluations since the best one

    def note(self, figures: Mapping[str, float], step: int) -> bool:
        """Take an evaluation in; whether its weights are among the best. Raises UserError for a missing figure."""
        check_figure(self.by, figures)
        value = figures[self.by]
        value = math.inf if math.isnan(value) else value
        rows = sorted([*self.rows, (value, step)])
        self.waited = 0 if rows[0][1] == step else self.waited + 1
        self.rows = rows[: self.keep]
        return any(row[1] == step for row in self.rows)

    def save(self, step: int, model: Tensors) -> None:
        """Keep these weights, drop those that are no longer among the best."""
        write(self.folder, step, {"model": model}, {})
        kept = {f"step-{row[1]:06d}" for row in self.rows}
        for path in _paths(self.folder):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows], "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rows, self.waited = [(float(value), int(at)) for value, at in state["rows"]], int(state["waited"])

    def checkpoints(self) -> list[Checkpoint]:
        """The best weights, best first."""
        return _whole([self.folder / f"step-{at:06d}" for _, at in self.rows])


def average(parts: Iterable[Tensors]) -> dict[str, Tensor]:
    """The mean of several weights, summed in float64 in the given order; whole numbers are taken from the first."""
    tensors = list(parts)
    mean = dict(tensors[0])
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = torch.stack([part[name].double() for part in tensors]).mean(0).to(value.dtype)
    return mean


def begun_with(folder: Path) -> dict[str, Any]:
    """What a run's folder says it began with; nothing where it did not begin."""
    path = folder / IDENTITY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def claim(folder: Path, identity: Mapping[str, Any]) -> str:
    """Write identity.json, or compare it with the one there; gives the digest. Raises UserError where they differ."""
    identity = json.loads(json.dumps(identity))
    if not (folder / IDENTITY).exists():
        write_json(folder / IDENTITY, identity)
    remedy = "Undo the change or take another folder."
    check_same(f"the run in {folder} must go on as it began", begun_with(folder), identity, remedy)
    return digest_of_json(identity)


def finished(folder: Path, identity: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of a run that is done, or None. Raises UserError where the folder holds another run."""
    if not (folder / "done.json").exists():
        return None
    digest = claim(folder, identity)
    done = json.loads((folder / "done.json").read_text())
    return dict(done["metrics"]) if done["digest"] == digest else None


def steps_done(folder: Path) -> int:
    """The steps that a finished run took: fewer than it might, where it stopped for want of better figures."""
    return int(json.loads((folder / "done.json").read_text())["steps"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second process; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock", wait=False) as held:
        if not held:
            raise HkdError(f"{folder} is being trained in by another process. Wait for it, or take another folder.")
        yield


class Metrics:
    """metrics.jsonl and timing.jsonl. Only the main process writes (`active`)."""

    def __init__(self, folder: Path, *, active: bool) -> None:
        self._path, self._timing, self._active = folder / "metrics.jsonl", folder / "timing.jsonl", active

    @property
    def num_bytes(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def write(self, row: Mapping[str, Any], *, timing: bool = False) -> None:
        """Append a row, to metrics.jsonl or to timing.jsonl."""
        if self._active:
            with (self._timing if timing else self._path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def cut(self, num_bytes: int) -> None:
        if self._active and self._path.exists():
            os.truncate(self._path, num_bytes)

    def sync(self) -> None:
        """See to it that the rows are on the disk."""
        if self._active and self._path.exists():
            sync(self._path)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the first SIGTERM's or SIGINT's number; a second SIGINT interrupts at once. Main thread only."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
