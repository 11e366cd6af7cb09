"""A store in the student's pieces by a language model with other ones, and a run of `interpolation` on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hkd.config import build
from hkd.errors import UserError
from hkd.labelling.dump import DumpConfig, dump
from hkd.labels.store import LabelReader
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.testing.teachers import make_teacher_folder
from hkd.train.config import TrainConfig
from hkd.train.data import open_data
from hkd.train.run import train
from hkd.units.inventory import UnitInventory


def test_interpolation_trains_on_a_projected_store(prepared: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = make_teacher_folder(tmp_path / "gpt2", "gpt2")
    options = TeacherOptions(project=str(prepared / "units" / "subword.json"), look_ahead=1)
    teacher = load_teacher(str(folder), unit="subword", device="cpu", options=options)
    report = dump(prepared / "manifest.jsonl", tmp_path / "shards" / "subword", teacher, config=DumpConfig(k=8))
    assert report.quality is not None
    assert 0 < report.quality["unplaced_mass"] < 1
    stored = json.loads((tmp_path / "shards" / "subword" / "report.json").read_text())
    assert stored["unplaced_mass"] == report.quality["unplaced_mass"]
    store = LabelReader.open(tmp_path / "shards" / "subword")
    assert store.spec.inventory.digest == UnitInventory.load(prepared / "units" / "subword.json").digest
    settings = {**tiny, "objective": "interpolation", "loop": {**tiny["loop"], "max_steps": 2}}
    with pytest.raises(UserError, match=r"`kd\.tail` must be renormalised for label store 'subword'"):
        open_data(
            build(TrainConfig, {**settings, "kd": {"tail": "ghost"}}, where="train"), manifest=prepared / "manifest.jsonl",
            units=prepared / "units", alignment=None, labels=tmp_path / "shards",
        )  # fmt: skip
    own_pieces = load_teacher(str(folder), unit="subword", device="cpu")
    dump(prepared / "manifest.jsonl", tmp_path / "shards" / "gpt2", own_pieces, config=DumpConfig(k=8))
    for objective, chosen in {"interpolation": "subword", "auxiliary": "gpt2", "hierarchical": "gpt2"}.items():  # each its kind
        data = open_data(
            build(TrainConfig, {**settings, "objective": objective}, where="train"), manifest=prepared / "manifest.jsonl",
            units=prepared / "units", alignment=prepared / "alignment.arrow", labels=tmp_path / "shards",
        )  # fmt: skip
        assert data.needs.stores == (chosen,)
        tails = {term.kd.tail for term in data.plan.terms if term.store}
        assert tails == {"renormalised" if chosen == "subword" else "ghost"}  # what the store asks for
    train(
        build(TrainConfig, settings, where="train"), tmp_path / "run", manifest=prepared / "manifest.jsonl", units=prepared / "units",
        labels=tmp_path / "shards", device="cpu",
    )  # fmt: skip
    assert (tmp_path / "run" / "model").is_dir()
