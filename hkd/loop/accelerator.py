"""Device, precision and processes, by accelerate; and the seeds of what is random."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hkd.errors import MissingPackageError, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]


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
    )
    if tensorboard is not None:
        accelerator.init_trackers("tensorboard")
    return accelerator


def share_seed(seed: int, step: int, share: int) -> int:
    """The seed of dropout and the like for one share of one step."""
    return int(np.random.SeedSequence((seed, step, share)).generate_state(1, np.uint64)[0] >> np.uint64(1))
