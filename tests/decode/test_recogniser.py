"""Cutting long sound, choosing a device, and an exported CTC student as an aligner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hkd import manifest
from hkd.align.alignment import Alignment
from hkd.align.ctc import CtcSource
from hkd.align.fit import import_alignment
from hkd.decode.recogniser import StudentCtc, cut_at_quiet, is_student
from hkd.errors import UserError
from hkd.manifest import Manifest
from hkd.pretrained import choose_device
from hkd.student.config import EncoderConfig, StudentConfig
from hkd.student.export import save_student
from hkd.student.model import StudentModel
from hkd.units.inventory import SUBWORD
from hkd.units.sequences import Units


@given(st.integers(1, 16_000 * 9), st.integers(0, 5))
def test_pieces_are_short_enough_and_make_up_the_whole(num_samples: int, seed: int) -> None:
    wave_S = np.random.default_rng(seed).normal(size=num_samples).astype(np.float32)
    pieces = cut_at_quiet(wave_S, max_piece_s=2.0)
    assert all(0 < len(piece) <= 32_000 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), wave_S)


def test_the_cut_lies_in_the_pause() -> None:
    wave_S = np.random.default_rng(0).normal(size=48_000).astype(np.float32)
    wave_S[24_000:28_000] = 0  # a quarter of a second from 1.5 s on
    first = cut_at_quiet(wave_S, max_piece_s=2.0)[0]
    assert 24_000 <= len(first) <= 28_000


def test_devices() -> None:
    assert str(choose_device("cpu")) == "cpu"
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(UserError, match="device must be one of"):
        choose_device("tpu")


def test_a_student_aligns_its_pieces(prepared: Path, tmp_path: Path) -> None:
    subwords = Units(prepared / "units").spelling(SUBWORD)
    torch.manual_seed(0)
    encoder = EncoderConfig(d_model=16, num_layers=1, num_heads=2, ff_factor=2, conv_kernel=3)
    config = StudentConfig(encoder=encoder, num_main_units=len(subwords.inventory) + 1)
    save_student(
        tmp_path / "model", StudentModel(config), inventory=subwords.inventory, subword_model=subwords.path.read_bytes()
    )
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
