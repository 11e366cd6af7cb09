"""Worker processes change nothing: forked or spawned they give the same run, and their errors are those of no
workers."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from hkd.errors import HkdError, MissingPackageError, UserError
from hkd.features.cache import portable, raised
from hkd.files import to_toml
from hkd.labels.format import DamagedShardError

SCRIPT = (
    "import multiprocessing, sys; multiprocessing.set_start_method(sys.argv.pop(1)); from hkd.cli.main import main; "
    "main()"
)


def hkd_train(project: Path, run: str, *options: str, method: str = "fork") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", SCRIPT, method, "train", "--device", "cpu", "--run", run, *options]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=240)


@pytest.fixture
def project(labelled: Path, tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A copy of the labelled project whose hkd.toml says that training takes five steps."""
    folder = tmp_path / "project"
    shutil.copytree(labelled, folder)
    loop = {"max_steps": 3, "warmup_steps": 1, "log_every": 1, "eval_every": 0}
    (folder / "hkd.toml").write_text(to_toml({"train": {**tiny, "loop": loop, "shares_every": 0}}))
    return folder


def test_spawned_workers_train_the_same_weights(project: Path) -> None:
    """Where processes are spawned (macOS, Windows), all that makes batches is pickled: utterances, alignment, stores,
    features on disk."""
    for name, workers, method in (("none", 0, "fork"), ("one", 1, "spawn"), ("kept", 2, "spawn")):
        cache = ["--set", "features_cache=features"] if name == "kept" else []
        done = hkd_train(project, name, "--set", f"workers={workers}", *cache, method=method)
        assert done.returncode == 0, done.stderr
    weights = [(project / "runs" / name / "final.safetensors").read_bytes() for name in ("none", "one", "kept")]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_damaged_shard_is_one_line_with_and_without_workers(project: Path, method: str) -> None:
    shard = next((project / "shards" / "subword").rglob("00000.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(bytes(data))
    lines = []
    for workers in (0, 2):
        done = hkd_train(
            project, f"w{workers}", "--objective", "interpolation", "--set", f"workers={workers}", method=method
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        lines.append(done.stderr.strip().splitlines()[-1])
    assert shard.name in lines[0]
    assert lines[0] == lines[1]


class Failing(IterableDataset[Any]):
    """Two items, then an error, or a death."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        yield from (1, 2)
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        yield portable(self.error)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UserError("what you gave"), UserError, 2),
        (HkdError("the disk is full"), HkdError, 1),
        (MissingPackageError("zarr", "zarr", "Reading zarr"), HkdError, 1),
        (DamagedShardError(Path("x.arrow"), "cut short"), HkdError, 1),
        (OSError(28, "No space left on device", "x"), OSError, None),
    ],
)
def test_an_error_arrives_as_it_was(error: Exception, kind: type[Exception], code: int | None) -> None:
    items = raised(DataLoader(Failing(error), batch_size=None, num_workers=1))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(kind) as caught:
        next(items)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "exit_code", None) == code


def test_an_error_that_cannot_be_pickled_keeps_its_sentence_and_code() -> None:
    class LocalError(UserError):
        """Nobody can import it."""

    found = portable(LocalError("what you gave"))
    assert (type(found), str(found)) == (UserError, "what you gave")
    assert str(portable(ValueError(lambda: 1))).startswith("ValueError: ")
    assert pickle.loads(pickle.dumps(found)).exit_code == 2


def test_a_killed_worker_is_one_line() -> None:
    items = raised(DataLoader(Failing(None), batch_size=None, num_workers=1))
    with pytest.raises(HkdError, match=r"a worker process ended .* take fewer `workers`, or 0"):
        list(items)
