"""fit: resuming equals an undisturbed run byte for byte, shares change nothing, and what stops it says so."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hkd.errors import HkdError, UserError
from hkd.loop import LoopConfig, fit, learning_rate
from hkd.loop.checkpoint import steps_done
from hkd.loop.run import ENGINES
from kit.workers import two_processes

Start = Callable[..., "subprocess.Popen[str]"]


def artefacts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("final.safetensors", "metrics.jsonl", "done.json")}


def kill_at(process: "subprocess.Popen[str]", step: int, number: int) -> tuple[int, str]:
    """Send a signal once a step is printed; the exit code and stderr."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= step:
            process.send_signal(number)
            break
    _, errors = process.communicate()
    return process.returncode, errors


def test_killed_at_random_steps_and_started_again_ends_in_the_same_bytes(
    tmp_path: Path, start: Start, tiny_task: Any
) -> None:
    config = {
        "max_steps": 60,
        "save_every": 7,
        "log_every": 5,
        "eval_every": 13,
        "warmup_steps": 10,
        "keep_last": 2,
        "shares_every": 25,
    }
    torch.set_num_threads(1)
    fit(tiny_task(dropout=0.3), LoopConfig(**config), tmp_path / "whole", device="cpu")
    options = {"config": config, "task": {"dropout": 0.3, "sleep_s": 0.005}}
    for step in (random.Random(0).randrange(4, 55), 30):
        assert kill_at(start(tmp_path / "killed", options), step, signal.SIGKILL)[0] == -signal.SIGKILL
    newest = max((tmp_path / "killed" / "checkpoints").glob("step-*"))  # then power fails: the newest loses its end
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert kill_at(start(tmp_path / "killed", options), 45, signal.SIGTERM)[0] == 143
    fit(tiny_task(dropout=0.3), LoopConfig(**config), tmp_path / "killed", device="cpu")
    assert artefacts(tmp_path / "killed") == artefacts(tmp_path / "whole")


def test_sigterm_saves_the_very_step_and_says_so(tmp_path: Path, start: Start) -> None:
    process = start(tmp_path, {"config": {"max_steps": 500, "save_every": 500}, "task": {"sleep_s": 0.01}})
    code, errors = kill_at(process, 3, signal.SIGTERM)
    assert code == 143
    [line] = [line for line in errors.splitlines() if "stop" in line]
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    assert f"step {int(checkpoint.name.removeprefix('step-'))}." in line


def test_done_is_left_and_another_config_is_refused_by_name(tmp_path: Path, tiny_task: Any) -> None:
    config = LoopConfig(max_steps=3)
    first = fit(tiny_task(), config, tmp_path, identity={"data": {"digest": "a"}}, device="cpu")
    before = (tmp_path / "done.json").stat().st_mtime_ns
    assert fit(tiny_task(), config, tmp_path, identity={"data": {"digest": "a"}}, device="cpu") == first
    assert (tmp_path / "done.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"its data\.digest is a instead of b"):
        fit(tiny_task(), config, tmp_path, identity={"data": {"digest": "b"}}, device="cpu")
    with pytest.raises(UserError, match=r"its loop\.max_steps is 3 instead of 4"):
        fit(tiny_task(), LoopConfig(max_steps=4), tmp_path, identity={"data": {"digest": "a"}}, device="cpu")


@pytest.mark.parametrize("accumulate", [2, 9])  # 9: more shares than rows, so that some are empty
def test_accumulation_gives_what_one_share_gives(tmp_path: Path, tiny_task: Any, accumulate: int) -> None:
    one = fit(tiny_task(), LoopConfig(max_steps=20), tmp_path / "one", device="cpu")
    many = fit(tiny_task(), LoopConfig(max_steps=20, accumulate=accumulate), tmp_path / "many", device="cpu")
    assert many == pytest.approx(one, rel=1e-5)


def test_two_processes_give_what_one_gives(tmp_path: Path, start: Start, tiny_task: Any) -> None:
    config = {"max_steps": 20, "log_every": 1}
    process = start(tmp_path / "two", {"config": config}, command=two_processes())
    fit(tiny_task(), LoopConfig(**config), tmp_path / "one", device="cpu")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")
    )
    assert len(one) == len(two) == 21
    for a, b in zip(one, two, strict=True):
        a.pop("ranks", None), b.pop("ranks", None)
        assert a == pytest.approx(b, rel=1e-5)
    weights = [safetensors.torch.load_file(tmp_path / n / "final.safetensors") for n in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("best_by", ["", "norm"])
def test_all_processes_evaluate_and_none_waits_for_another_longer_than_they_allow(
    tmp_path: Path, start: Start, tiny_task: Any, best_by: str
) -> None:
    """An evaluation of 5 s, collectives that end after 3 s: one process alone would keep the other waiting for too
    long."""
    config = {
        "max_steps": 6,
        "eval_every": 3,
        "save_every": 3,
        "average": 2,
        "best_by": best_by,
        "patience": 5 if best_by else 0,
    }
    options = {"config": config, "task": {"evaluation_s": 5.0}, "timeout_s": 3.0}
    process = start(tmp_path / "two", options, command=two_processes())
    fit(tiny_task(), LoopConfig(**config), tmp_path / "one", device="cpu")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    done = [json.loads((tmp_path / name / "done.json").read_text())["metrics"] for name in ("one", "two")]
    assert [figures.pop("ranks") for figures in done] == [1, 2]
    assert "unseen" not in done[0]
    assert done[0] == pytest.approx(done[1], rel=1e-5)
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count('"ranks"') == 3  # twice, and of the mean weights


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_utterances(tmp_path: Path, tiny_task: Any) -> None:
    with pytest.raises(HkdError, match=r"finite, but are not at step 6 \(utterances u6-0, u6-1"):
        fit(tiny_task(bad_step=6), LoopConfig(max_steps=20, save_every=2), tmp_path, device="cpu")
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    tensors = safetensors.torch.load_file(newest / "model.safetensors")
    assert newest.name == "step-000006"
    assert all(bool(t.isfinite().all()) for t in tensors.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_TORCH_DEVICE", "meta"),
        ("ACCELERATE_FP8_BACKEND", "TE"),
        ("ACCELERATE_USE_SAGEMAKER", "true"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
    ],
)
def test_accelerates_environment_changes_nothing_and_is_named(
    tmp_path: Path,
    tiny_task: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    fit(tiny_task(dropout=0.2), LoopConfig(max_steps=5, log_every=1), tmp_path / "plain", device="cpu")
    assert not [r for r in caplog.records if "environment" in r.message]
    monkeypatch.setenv(name, value)
    fit(tiny_task(dropout=0.2), LoopConfig(max_steps=5, log_every=1), tmp_path / "set", device="cpu")
    assert artefacts(tmp_path / "set") == artefacts(tmp_path / "plain")
    assert [r for r in caplog.records if f"{name}={value}" in r.message]
    assert os.environ[name] == value


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("value", ["true", "1", "yes"])
def test_another_engine_is_refused_by_its_variable(
    tmp_path: Path, tiny_task: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} must not be set, but is {value} instead"):
        fit(tiny_task(), LoopConfig(max_steps=5), tmp_path, device="cpu")
    monkeypatch.setenv(name, "false")
    fit(tiny_task(), LoopConfig(max_steps=2), tmp_path, device="cpu")


def test_half_precision_on_a_cpu_is_refused_and_not_left_out(tmp_path: Path, tiny_task: Any) -> None:
    with pytest.raises(UserError, match=r"`loop\.precision` must be fp32 or bf16 on a CPU, but is fp16"):
        fit(tiny_task(), LoopConfig(max_steps=2, precision="fp16"), tmp_path / "half", device="cpu")
    fit(tiny_task(), LoopConfig(max_steps=2), tmp_path / "whole", device="cpu")
    fit(tiny_task(), LoopConfig(max_steps=2, precision="bf16"), tmp_path / "bf16", device="cpu")
    weights = [
        safetensors.torch.load_file(tmp_path / name / "final.safetensors")["0.weight"] for name in ("whole", "bf16")
    ]
    assert not torch.equal(*weights)


def test_a_warm_up_that_does_not_end_is_said(tmp_path: Path, tiny_task: Any, caplog: pytest.LogCaptureFixture) -> None:
    fit(tiny_task(), LoopConfig(max_steps=3, warmup_steps=3), tmp_path / "ends", device="cpu")
    assert not [r for r in caplog.records if "warmup" in r.message]
    fit(tiny_task(), LoopConfig(max_steps=3, warmup_steps=4), tmp_path / "goes on", device="cpu")
    assert [r for r in caplog.records if "`warmup_steps` is 4, but there are 3 steps" in r.message]


def steps_of(folder: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"norm": [row["norm"] for row in rows if "norm" in row and "weights_of_steps" not in row]}


class Valley:
    """A task whose evaluation falls to a lowest figure and rises again."""

    def __init__(self, inner: Any, lowest: int) -> None:
        self.inner, self.lowest, self.calls = inner, lowest, 0
        self.model = inner.model
        for name in ("batches", "counts", "losses", "weights"):
            setattr(self, name, getattr(inner, name))

    def evaluate(self, rank: int, world_size: int) -> dict[str, tuple[float, float]]:
        self.calls += 1
        return {"error": (abs(self.calls - self.lowest), 1), "norm": self.inner.evaluate(rank, world_size)["norm"]}


def test_the_best_weights_are_kept_and_waiting_for_better_ones_ends(tmp_path: Path, tiny_task: Any) -> None:
    config = LoopConfig(max_steps=50, eval_every=2, save_every=7, log_every=2, best_by="error", patience=3)
    figures = fit(Valley(tiny_task(), lowest=4), config, tmp_path / "best", device="cpu")
    assert steps_done(tmp_path / "best") == 14  # best at 8, then three that are not
    until = LoopConfig(max_steps=50, eval_every=8, save_every=8)
    fit(tiny_task(), until, tmp_path / "whole", device="cpu")
    assert figures["norm"] == steps_of(tmp_path / "whole")["norm"][0]
    [kept] = (tmp_path / "best" / "best").glob("step-*")
    assert kept.name == "step-000008"
    final = safetensors.torch.load_file(tmp_path / "best" / "final.safetensors")
    assert all(
        torch.equal(final[name], value)
        for name, value in safetensors.torch.load_file(kept / "model.safetensors").items()
    )


def test_the_best_of_no_evaluation_is_refused(tmp_path: Path, tiny_task: Any) -> None:
    task = tiny_task()
    task.evaluate = lambda rank, world_size: {}
    with pytest.raises(UserError, match=r"`best_by` must be a figure of the evaluation \(there is none.*'norm'"):
        fit(task, LoopConfig(max_steps=4, eval_every=2, best_by="norm"), tmp_path, device="cpu")


@pytest.mark.parametrize("best_by", ["", "norm"])
def test_the_final_weights_are_the_mean_of_the_chosen_ones(tmp_path: Path, tiny_task: Any, best_by: str) -> None:
    task = tiny_task()
    config = LoopConfig(max_steps=20, eval_every=4, save_every=4, average=3, keep_last=1, best_by=best_by)
    fit(task, config, tmp_path, device="cpu")
    folders = sorted((tmp_path / ("best" if best_by else "checkpoints")).glob("step-*"))
    assert len(folders) == 3
    parts = [safetensors.torch.load_file(folder / "model.safetensors") for folder in folders]
    final = safetensors.torch.load_file(tmp_path / "final.safetensors")
    for name, value in final.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts) / 3)
    assert torch.equal(task.model.state_dict()["0.weight"], final["0.weight"])


def test_curves_go_to_tensorboard_where_asked_for(tmp_path: Path, tiny_task: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tiny_task(), LoopConfig(max_steps=20, log_every=5), tmp_path, device="cpu", tensorboard=True)
    [events] = (tmp_path / "tensorboard").rglob("events*")
    curves = EventAccumulator(str(events)).Reload()
    assert [point.step for point in curves.Scalars("loss")] == [5, 10, 15, 20]


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path, start: Start, tiny_task: Any) -> None:
    process = start(tmp_path, {"config": {"max_steps": 100}, "task": {"sleep_s": 0.05}})
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(HkdError, match="by another process"):
        fit(tiny_task(), LoopConfig(max_steps=100), tmp_path, device="cpu")
    process.kill()
    process.communicate()


def test_the_learning_rate_rises_linearly_then_falls_to_nothing() -> None:
    config = LoopConfig(max_steps=30, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(30)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.02


@pytest.mark.parametrize(
    "wrong", [{"schedule": "step"}, {"precision": "int8"}, {"max_steps": 0}, {"learning_rate": -1.0}, {"seed": -1}]
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}`"):
        LoopConfig(**wrong)
