"""Training in a prepared folder: its inputs by name, opened or trained on with a table of settings."""

import json
from pathlib import Path
from typing import Any

from hkd.config import build
from hkd.train.config import TrainConfig
from hkd.train.data import TrainingData, open_data
from hkd.train.run import TrainReport, train


def config_of(settings: dict[str, Any]) -> TrainConfig:
    """The settings of a run."""
    return build(TrainConfig, settings, where="train")


def inputs(project: Path) -> dict[str, Any]:
    """What `open_data`, `train` and `make_bank` read."""
    paths = {"manifest": "manifest.jsonl", "units": "units", "alignment": "alignment.arrow", "labels": "shards"}
    return {name: project / path for name, path in paths.items()}


def opened(project: Path, settings: dict[str, Any]) -> TrainingData:
    """The inputs of a run."""
    return open_data(config_of(settings), **inputs(project))


def trained(
    project: Path, folder: Path, settings: dict[str, Any], *, device: str = "cpu", **options: Any
) -> TrainReport:
    """A run. options: of `train`."""
    return train(config_of(settings), folder, **inputs(project), device=device, **options)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Its metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
