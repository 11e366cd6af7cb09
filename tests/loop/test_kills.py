"""Many kills: at one world size the run ends in the same bytes, at mixed ones in the same weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hkd.loop import LoopConfig, fit

PROGRAM = Path(__file__).parent / "kills.py"


def killed(folder: Path, kills: int, *, mixed: bool) -> int:
    arguments = [sys.executable, str(PROGRAM), str(folder), str(kills), str(int(mixed)), "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def undisturbed(folder: Path, tiny_task: Any, dropout: float) -> None:
    torch.set_num_threads(1)
    config = LoopConfig(max_steps=500, save_every=7, log_every=5, eval_every=40, warmup_steps=50, keep_last=3)
    fit(tiny_task(dropout=dropout), config, folder, device="cpu")


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_many_times_it_ends_in_the_same_bytes(tmp_path: Path, tiny_task: Any, kills: int) -> None:
    undisturbed(tmp_path / "whole", tiny_task, 0.3)
    assert killed(tmp_path / "killed", kills, mixed=False) == kills
    for name in ("final.safetensors", "metrics.jsonl", "done.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_many_times_at_mixed_world_sizes_it_ends_in_the_same_weights(
    tmp_path: Path, tiny_task: Any, kills: int
) -> None:
    undisturbed(tmp_path / "whole", tiny_task, 0.0)
    assert killed(tmp_path / "killed", kills, mixed=True) == kills
    one, other = (safetensors.torch.load_file(tmp_path / name / "final.safetensors") for name in ("whole", "killed"))
    torch.testing.assert_close(other, one, rtol=2e-3, atol=2e-5)
