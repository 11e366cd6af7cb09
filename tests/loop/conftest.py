"""The tiny task, in this process and in one of its own (that can be killed)."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="session")
def tiny_task() -> Any:
    """The class TinyTask(dropout, sleep_s, bad_step)."""
    spec = importlib.util.spec_from_file_location("tiny", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tiny"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TinyTask


@pytest.fixture
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """start(folder, options, *, command=(python,)) -> a process that trains the tiny task and prints each finished
    step."""

    def run(
        folder: Path, options: dict[str, Any], *, command: tuple[str, ...] = (sys.executable,)
    ) -> "subprocess.Popen[str]":
        arguments = [*command, str(SCRIPT), str(folder), json.dumps(options)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run
