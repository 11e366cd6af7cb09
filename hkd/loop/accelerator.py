"""Device, precision and processes, by accelerate; and the seeds of what is random."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hkd.errors import MissingPackageError, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

ENGINES = {  # variables that hand training over to another engine → what it is
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism",
}
_SETTINGS = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FP8_")  # how names of accelerate's variables begin
_NOTHING = ("", "0", "false", "no", "off", "n", "f")


@contextmanager
def no_settings_from_the_environment() -> Iterator[None]:
    """Without accelerate's own environment variables, which its launcher and its users set: hkd's settings alone decide what is learnt.

    Which were left aside is said. Raises UserError, naming the variable, where another engine is asked for.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    for name, engine in ENGINES.items():
        if given.get(name, "").lower() not in _NOTHING:
            raise UserError(
                f"{name} must not be set, but is {given[name]} instead: hkd trains without {engine}. Take it out, and start processes "
                "with torchrun."
            )
    aside = [f"{name}={value}" for name, value in sorted(given.items()) if value.lower() not in _NOTHING]
    if aside:
        log.warning(
            "accelerate's environment variables are not read: %s. Settings are --device, loop.precision and loop.accumulate.",
            ", ".join(aside),
        )
    for name in given:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(given)


def make_accelerator(precision: str, device: str, *, tensorboard: Path | None = None) -> "Accelerator":
    """accelerate's Accelerator for this precision and device (auto | cpu | cuda); one process may make several in turn."""
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
        cpu=device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()),  # else processes do not meet
        log_with=None if tensorboard is None else "tensorboard",
        project_dir=tensorboard,
        gradient_accumulation_steps=1,  # ours is `loop.accumulate`
    )
    if tensorboard is not None:
        accelerator.init_trackers("tensorboard")
    return accelerator


def share_seed(seed: int, step: int, share: int) -> int:
    """The seed of dropout and the like for one share of one step."""
    return int(np.random.SeedSequence((seed, step, share)).generate_state(1, np.uint64)[0] >> np.uint64(1))
