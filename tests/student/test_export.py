"""The export format: round trip, same bytes, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hkd.errors import UserError
from hkd.student.config import EncoderConfig, HeadConfig, StudentConfig
from hkd.student.export import load_student, save_student, write_onnx
from hkd.student.model import StudentModel
from hkd.units.inventory import UnitInventory

INVENTORY = UnitInventory(level="subword", symbols=tuple("abcdefghijk"))


@pytest.fixture
def student(make: Callable[..., StudentModel], config: StudentConfig) -> StudentModel:
    return make(config)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_round_trip_gives_the_trainers_own_outputs(
    make: Callable[..., StudentModel], config: StudentConfig, tmp_path: Path, heads: bool, conditioned: bool
) -> None:
    first, *rest = config.heads
    student = make(replace(config, heads=(replace(first, condition=conditioned), *rest)))
    save_student(
        tmp_path / "model",
        student,
        inventory=INVENTORY,
        subword_model=b"sentencepiece",
        extra={"run": "a"},
        heads=heads,
    )
    loaded, meta = load_student(tmp_path / "model")
    x_BTF, length_B = torch.randn(2, 30, 16), torch.tensor([30, 7])
    with torch.no_grad():
        ours, theirs = student(x_BTF, length_B), loaded(x_BTF, length_B)
    assert torch.equal(ours.logits_BTV, theirs.logits_BTV)
    assert set(theirs.heads) == (set(ours.heads) if heads else {first.name} if conditioned else set())
    assert not loaded.training
    assert meta.inventory == INVENTORY
    assert meta.extra == {"run": "a"}
    assert meta.features["num_bins"] == 16
    assert meta.subword_model is not None
    assert meta.subword_model.read_bytes() == b"sentencepiece"


def test_bytes_are_a_function_of_what_is_saved(student: StudentModel, tmp_path: Path) -> None:
    for name in "ab":
        save_student(tmp_path / name, student, inventory=INVENTORY)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_saving_again_without_subwords_leaves_none_behind(student: StudentModel, tmp_path: Path) -> None:
    save_student(tmp_path, student, inventory=INVENTORY, subword_model=b"x")
    save_student(tmp_path, student, inventory=INVENTORY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "student.json"]
    assert load_student(tmp_path)[1].subword_model is None


def test_what_does_not_fit_is_refused(student: StudentModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="11 units"):
        save_student(tmp_path, student, inventory=UnitInventory(level="subword", symbols=("a",)))
    with pytest.raises(UserError, match="hkd train"):
        load_student(tmp_path / "nowhere")
    save_student(tmp_path, student, inventory=INVENTORY)
    card = json.loads((tmp_path / "student.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()

    def broken(**changes: object) -> None:
        (tmp_path / "student.json").write_text(json.dumps({**card, **changes}))

    for changes, named in (
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"inventory": {**card["inventory"], "symbols": ["z", *card["inventory"]["symbols"][1:]]}}, "digest"),
        ({"config": {**card["config"], "colour": 1}}, "colour"),
        ({"files": {}}, "card"),
    ):
        broken(**changes)
        with pytest.raises(UserError, match=named):
            load_student(tmp_path)
    (tmp_path / "student.json").write_text("[1")
    with pytest.raises(UserError, match="card"):
        load_student(tmp_path)
    broken()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match="SHA-256"):
        load_student(tmp_path)


def test_a_folder_that_was_being_written_is_no_student(student: StudentModel, tmp_path: Path) -> None:
    """The card is the mark: it goes first and comes last."""
    save_student(tmp_path, student, inventory=INVENTORY)
    (tmp_path / "student.json").unlink()
    with pytest.raises(UserError, match=r"student\.json"):
        load_student(tmp_path)


# ----------------------------------------------------------------------------------------------------
# The ONNX file gives the student's own outputs, for other batches and lengths than it was written with.


SMALL = {"d_model": 16, "num_layers": 2, "num_heads": 2, "conv_kernel": 5}


@pytest.mark.parametrize(
    ("main", "conditioned"), [("ctc", False), ("ctc", True), pytest.param("senone", False, marks=pytest.mark.slow)]
)
def test_it_gives_the_students_outputs(tmp_path: Path, main: str, conditioned: bool) -> None:
    torch.manual_seed(0)
    head = HeadConfig(name="kd-x", level="monophone", num_units=5, tap=1, slots=4, condition=conditioned)
    config = StudentConfig(encoder=EncoderConfig(**SMALL), num_main_units=11, main=main, heads=(head,))
    student = StudentModel(config).eval()
    write_onnx(student, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for lengths in ([1], [7], [333, 17, 64], [2, 5]):
        x_BTF, length_B = torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)
        logits_BTV, out_length_B = session.run(None, {"x_BTF": x_BTF.numpy(), "length_B": length_B.numpy()})
        with torch.no_grad():
            wanted = student(x_BTF, length_B)
        assert out_length_B.tolist() == wanted.length_B.tolist()
        for found_TV, wanted_TV, length in zip(logits_BTV, wanted.logits_BTV.numpy(), out_length_B, strict=True):
            np.testing.assert_allclose(found_TV[:length], wanted_TV[:length], atol=2e-5)
