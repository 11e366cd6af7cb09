"""A store in the student's pieces by a language model with other ones, and a run of `interpolation` on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hkd.errors import UserError
from hkd.labelling.dump import DumpConfig, dump
from hkd.labels.store import LabelReader
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.testing.teachers import make_teacher_folder
from hkd.train.data import open_data
from hkd.train.run import train
from hkd.units.inventory import UnitInventory
from kit.runs import config_of, inputs


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
    given = {**inputs(prepared), "labels": tmp_path / "shards"}
    with pytest.raises(UserError, match=r"`kd\.tail` must be renormalised for label store 'subword'"):
        open_data(config_of({**settings, "kd": {"tail": "ghost"}}), **{**given, "alignment": None})
    own_pieces = load_teacher(str(folder), unit="subword", device="cpu")
    dump(prepared / "manifest.jsonl", tmp_path / "shards" / "gpt2", own_pieces, config=DumpConfig(k=8))
    # each its kind
    for objective, chosen in {"interpolation": "subword", "auxiliary": "gpt2", "hierarchical": "gpt2"}.items():
        data = open_data(config_of({**settings, "objective": objective}), **given)
        assert data.needs.stores == (chosen,)
        tails = {term.kd.tail for term in data.plan.terms if term.store}
        assert tails == {"renormalised" if chosen == "subword" else "ghost"}  # what the store asks for
    train(config_of(settings), tmp_path / "run", device="cpu", **{**given, "alignment": None})
    assert (tmp_path / "run" / "model").is_dir()
