"""An exported CTC student as an aligner."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hkd import manifest
from hkd.align.alignment import Alignment
from hkd.align.ctc import CtcSource
from hkd.align.fit import import_alignment
from hkd.decode.posteriors import StudentCtc, is_student
from hkd.errors import UserError
from hkd.manifest import Manifest
from hkd.student.config import EncoderConfig, StudentConfig
from hkd.student.export import save_student
from hkd.student.model import Student
from hkd.units.sequences import Units


def test_a_student_aligns_its_pieces(prepared: Path, tmp_path: Path) -> None:
    subwords = Units(prepared / "units").subwords
    torch.manual_seed(0)
    encoder = EncoderConfig(d_model=16, num_layers=1, num_heads=2, ff_factor=2, conv_kernel=3)
    config = StudentConfig(encoder=encoder, num_main_units=len(subwords.inventory) + 1)
    save_student(tmp_path / "model", Student(config), inventory=subwords.inventory, subword_model=subwords.path.read_bytes())
    assert is_student(tmp_path / "model")
    assert not is_student(tmp_path)
    model = StudentCtc(tmp_path / "model", device="cpu")
    unit_U, word_U = model.encode(["the", "door"])
    assert np.array_equal(unit_U - 1, subwords.encode(["the", "door"])[0])
    assert set(word_U) == {0, 1}
    two = Manifest(list(manifest.read(prepared / "manifest.jsonl"))[:2])
    report = import_alignment(two, tmp_path / "a.arrow", CtcSource(model))
    assert (report.kept, report.failed) == (2, {})
    found = Alignment(tmp_path / "a.arrow")
    for utterance in two:
        assert found[utterance.id].word_tier.unit_U.max() + 1 == len(found[utterance.id].words)


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        StudentCtc(tmp_path, device="cpu")
