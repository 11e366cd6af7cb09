"""A prepared folder with label stores at all three levels, a tiny student's settings, and a process that trains it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkd import manifest as manifests
from hkd.config import merge
from hkd.manifest import Utterance
from hkd.train.bank import BankConfig, make_bank
from hkd.units.text import words
from kit.labelled import label_folder
from kit.runs import config_of, inputs

TINY: dict[str, Any] = {
    "encoder": {"d_model": 16, "num_layers": 3, "num_heads": 2, "conv_kernel": 5, "dropout": 0.1},
    "batch_seconds": 7.0,
    "loop": {"max_steps": 12, "warmup_steps": 4, "log_every": 2, "save_every": 4, "eval_every": 6},
}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from hkd.config import build
from hkd.errors import HkdError
from hkd.train.config import TrainConfig
from hkd.train.run import train
project, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
labels = settings.pop("labels", project / "shards")
def progress(done, total, **facts):
    print(int(done), flush=True)
try:
    train(build(TrainConfig, settings, where="train"), folder, manifest=project / "manifest.jsonl",
          units=project / "units", alignment=project / "alignment.arrow", labels=labels, progress=progress,
          device="cpu" if torch.cuda.is_available() else "auto")
except HkdError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="session")
def labelled(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of the tiny corpus with shards/{senone,monophone,subword}. Read-only: copy it before you write into
    it."""
    folder = tmp_path_factory.mktemp("labelled") / "project"
    shutil.copytree(prepared, folder)
    label_folder(folder)
    return folder


TEXT: dict[str, Any] = {
    "condition": ["monophone"], "taps": {"monophone": 1}, "text": {"share": 0.5, "labels": "text-shards"},
}  # fmt: skip


@pytest.fixture(scope="session")
def texted(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with text.jsonl (30 sentences of the words that are said), text-shards/ and bank/. Read-only."""
    folder = tmp_path_factory.mktemp("texted") / "project"
    shutil.copytree(labelled, folder)
    said = [
        word for utterance in manifests.read(folder / "manifest.jsonl").split("train") for word in words(utterance.text)
    ]
    said = [word for word in said if word != "our"]  # the lexicon says it first with a phone that the speech lacks
    order = np.random.default_rng(0)
    sentences = [Utterance(id=f"text{n:02d}", text=" ".join(order.choice(said, 2 + n % 6))) for n in range(30)]
    manifests.write(folder / "text.jsonl", sentences)
    label_folder(folder, manifest="text.jsonl", shards="text-shards")
    settings = merge(merge(TINY, TEXT), {"text": {"share": 0.0}, "loop": {"max_steps": 4}})
    make_bank(config_of(settings), folder / "bank", bank=BankConfig(folds=2), device="cpu", **inputs(folder))
    return folder


@pytest.fixture
def text_settings(texted: Path) -> dict[str, Any]:
    """Settings of a run of twelve steps with text, whatever the working folder."""
    paths = {"path": str(texted / "text.jsonl"), "labels": str(texted / "text-shards"), "bank": str(texted / "bank")}
    return merge(merge(TINY, TEXT), {"text": paths})


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings of a run of twelve steps."""
    return TINY


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """start(project, run_folder, settings, *, command=(python,)) -> a process that trains and prints each finished
    step.

    "labels" of the settings: where the label stores lie, if not in the project."""
    script = tmp_path / "train_tiny.py"
    script.write_text(SCRIPT)

    def run(
        project: Path, folder: Path, settings: dict[str, Any], *, command: tuple[str, ...] = (sys.executable,)
    ) -> "subprocess.Popen[str]":
        arguments = [*command, str(script), str(project), str(folder), json.dumps(settings)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run
