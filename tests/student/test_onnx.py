"""The ONNX file gives the student's own outputs, for other batches and lengths than it was written with."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hkd.student import EncoderConfig, HeadConfig, Student, StudentConfig
from hkd.student.onnx import write_onnx

SMALL = {"d_model": 16, "num_layers": 2, "num_heads": 2, "conv_kernel": 5}


@pytest.mark.parametrize(
    ("main", "front"), [pytest.param("ctc", "conv1d"), pytest.param("senone", "conv2d", marks=pytest.mark.slow)]
)
def test_it_gives_the_students_outputs(tmp_path: Path, main: str, front: str) -> None:
    torch.manual_seed(0)
    head = HeadConfig(name="kd-x", level="monophone", num_units=5, tap=1)
    config = StudentConfig(encoder=EncoderConfig(**SMALL, front=front), num_main_units=11, main=main, heads=(head,))
    student = Student(config).eval()
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
