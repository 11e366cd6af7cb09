"""A finished run → a folder with its student, anew from final.safetensors."""

import json
from pathlib import Path

import safetensors.torch

from hkd.errors import UserError
from hkd.loop.checkpoint import load_model_tensors
from hkd.student.config import config_from_json
from hkd.student.export import load_student, placed, save_student
from hkd.student.model import Student
from hkd.student.onnx import ONNX, write_onnx
from hkd.student.speech_encoder import SpeechEncoder, save_pretrained
from hkd.units.acoustic import acoustic_files

ENCODER = "encoder"


def load_run(folder: Path) -> Student:
    """The student of a finished run with all its heads, in eval mode. Raises UserError where the run is not done."""
    try:
        config = placed(config_from_json(json.loads((folder / "student.json").read_text())["config"]), folder / "model")
        tensors = safetensors.torch.load((folder / "final.safetensors").read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"a run must be done, but {folder} has no {Path(str(error.filename)).name}. Run `hkd train` first."
        ) from None
    student = Student(config)
    load_model_tensors(student, tensors)
    return student.eval()


def export_run(folder: Path, out: Path, *, heads: bool = False, onnx: bool = False) -> None:
    """Write a finished run's student to `out`, without its heads unless `heads`; with `onnx` as one ONNX file too.

    An encoder of transformers is written once more into `out`/encoder, for transformers alone.
    """
    _, meta = load_student(folder / "model")
    subword_model = None if meta.subword_model is None else meta.subword_model.read_bytes()
    student = load_run(folder)
    save_student(
        out,
        student,
        inventory=meta.inventory,
        subword_model=subword_model,
        acoustic=acoustic_files(folder / "model"),
        extra=meta.extra,
        heads=heads,
    )
    if isinstance(student.encoder, SpeechEncoder):
        save_pretrained(student.encoder, out / ENCODER)
    if onnx:
        write_onnx(student, out / ONNX)
