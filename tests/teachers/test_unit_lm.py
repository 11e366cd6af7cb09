"""The folder of a unit LM: what loads, what is refused, and which fold answers."""

import json

import numpy as np
import pytest
from safetensors.torch import save_file

from hkd.errors import UserError
from hkd.teachers.base import Sentence, TeacherInfo
from hkd.teachers.cloze import UnitLmSizes, make_unit_lm
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.unit_lm import CrossFitTeacher, UnitLmTeacher, load_unit_lm
from hkd.units.inventory import UnitInventory

INVENTORY = UnitInventory(level="subword", symbols=tuple("abcdefgh"))
SIZES = {"width": 8, "num_layers": 1, "dropout": 0.0}


def sentences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Sentence(id="", unit_U=rng.integers(8, size=n).astype(np.int32), word_U=np.zeros(n, np.int32), text=b"s%d" % i)
        for i, n in enumerate(lengths)
    ]


def neural(seed):
    info = TeacherInfo(name="lm", kind="cloze", direction="both", digest=str(seed))
    return UnitLmTeacher(
        make_unit_lm(UnitLmSizes(**SIZES), num_units=8, direction="cloze", seed=seed), inventory=INVENTORY, info=info
    )


@pytest.fixture
def folder(tmp_path):
    """A finished folder, without its n-gram."""
    config = {
        "hkd_lm": 1,
        "level": "subword",
        "direction": "cloze",
        "given": "outside-position",
        "sizes": SIZES,
        "transcripts": "none",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "report.json").write_text(json.dumps({"teacher": "neural"}))
    INVENTORY.save(tmp_path / "inventory.json")
    model = make_unit_lm(UnitLmSizes(**SIZES), num_units=8, direction="cloze", seed=3)
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_gives_back_its_model(folder):
    asked = sentences([5, 1, 9])
    for got, want in zip(load_unit_lm(folder).score(asked, k=8), neural(3).score(asked, k=8), strict=True):
        np.testing.assert_array_equal(got.logp_NK, want.logp_NK)
    assert load_unit_lm(folder).info.name == folder.name


def test_the_device_is_heeded_and_options_of_other_teachers_are_refused(folder):
    assert load_teacher(str(folder), unit="subword", device="cpu").level == "subword"
    with pytest.raises(UserError, match="device must be one of"):
        load_teacher(str(folder), unit="subword", device="abacus")
    with pytest.raises(UserError, match="mask_every must be left out for"):
        load_teacher(str(folder), unit="subword", options=TeacherOptions(mask_every=7))


def test_rows_come_in_order_and_do_not_depend_on_the_call(monkeypatch):
    teacher = neural(0)
    asked = sentences([3, 0, 40, 1, 7, 7, 0, 25])
    together = teacher.score(asked, k=3, temperatures=(2.0, 3.0))
    monkeypatch.setattr("hkd.teachers.unit_lm._INPUTS", 30)  # many small passes
    small = teacher.score(asked, k=3, temperatures=(2.0, 3.0))
    for sentence, row, other in zip(asked, together, small, strict=True):
        assert len(row) == len(sentence.unit_U)
        assert row.lse_NJ.shape == (len(row), 2)
        np.testing.assert_array_equal(row.gold_N, sentence.unit_U)
        np.testing.assert_allclose(row.gold_logp_N, other.gold_logp_N, atol=1e-5)
        np.testing.assert_allclose(
            row.lse_NJ, teacher.score([sentence], k=3, temperatures=(2.0, 3.0))[0].lse_NJ, atol=1e-5
        )


def test_each_text_is_answered_by_its_fold():
    parts = [neural(0), neural(1), neural(2)]
    teacher = CrossFitTeacher(parts, {b"s0": 2, b"s1": 0, b"s2": 1})
    asked = sentences([4, 4, 4, 4])
    rows = teacher.score(asked, k=8)
    for sentence, row, fold in zip(asked, rows, (2, 0, 1, 0), strict=True):  # s3 is unknown: fold 0
        np.testing.assert_allclose(row.logp_NK, parts[fold].score([sentence], k=8)[0].logp_NK, atol=1e-5)
        assert np.abs(row.gold_logp_N - parts[(fold + 1) % 3].score([sentence], k=8)[0].gold_logp_N).max() > 1e-3
    assert teacher.info.trained_on_transcripts == "cross-fitted"
    assert teacher.info.digest != CrossFitTeacher(parts, {b"s0": 1, b"s1": 0, b"s2": 1}).info.digest
    assert teacher.info.digest != CrossFitTeacher(parts[::-1], {b"s0": 2, b"s1": 0, b"s2": 1}).info.digest


def test_other_weights_are_another_digest(folder):
    before = load_unit_lm(folder).info.digest
    model = make_unit_lm(UnitLmSizes(**SIZES), num_units=8, direction="cloze", seed=4)
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    assert load_unit_lm(folder).info.digest != before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "hkd lm train"),
        ("config.json", "{", "JSON"),
        ("config.json", "[]", "JSON object"),
        ("config.json", '{"hkd_lm": 99}', "format 1"),
        ("report.json", None, "hkd lm train"),
        ("model.safetensors", None, "weights"),
        ("model.safetensors", "x" * 40, "weights"),
        ("inventory.json", "{}", "inventory"),
    ],
)
def test_what_is_no_finished_lm_is_refused(folder, file, content, said):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=said):
        load_unit_lm(folder)


def test_weights_of_another_size_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sizes": {**SIZES, "width": 9}}))
    with pytest.raises(UserError, match="weights"):
        load_unit_lm(folder)
