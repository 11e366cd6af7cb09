"""A student as one ONNX file: features in, logits of the main output out, any batch and any length.

Inputs x_BTF (float32, features as the student's card says: log-mel, or an upstream's values, which no ONNX file makes) and length_B (int64, 10 ms frames); outputs logits_BTV and out_length_B.
"""

import contextlib
import logging
import os
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.files import write_bytes
from hkd.student.config import SpeechEncoderConfig
from hkd.student.model import Student, export_student

ONNX = "model.onnx"
OPSET = 20
EXAMPLE_FRAMES = (203, 150)


class _MainOutput(nn.Module):
    """The student as a function of tensors alone."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, x_BTF: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        output = self.student(x_BTF, length_B)
        return output.logits_BTV, output.length_B


def write_onnx(student: Student, path: Path) -> None:
    """Write the student without its heads. Raises UserError where the packages are missing, or for an encoder of transformers."""
    if isinstance(student.config.encoder, SpeechEncoderConfig):
        raise UserError(
            f"ONNX is written of hkd's own encoder alone, but this student's is {student.config.encoder.name}. Leave it out."
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"writing ONNX needs the package {error.name}. Install it: pip install 'hkd[onnx]'.") from None
    kept = _MainOutput(export_student(student).cpu())
    frames = max(EXAMPLE_FRAMES)
    example = (torch.zeros(len(EXAMPLE_FRAMES), frames, student.config.encoder.num_bins), torch.tensor(EXAMPLE_FRAMES))
    batch, time = torch.export.Dim("batch"), torch.export.Dim("frames")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / ONNX
        torch.onnx.export(
            kept,
            example,
            out,
            input_names=["x_BTF", "length_B"],
            output_names=["logits_BTV", "out_length_B"],
            dynamic_shapes={"x_BTF": {0: batch, 1: time}, "length_B": {0: batch}},
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        write_bytes(path, out.read_bytes())


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """The exporter reports its progress on stdout and warns of its own deprecations."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        before = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(before)
