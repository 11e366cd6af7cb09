"""The export format, version 1: a folder that gives the trainer's own outputs with no training code.

    student.json         configuration, unit symbols and their digest, feature settings; the mark of completeness
    model.safetensors    weights and the features' mean and deviation
    subword.model        the SentencePiece model of a subword student (absent otherwise)
    upstream/            the frozen encoder below the student, for transformers too (absent where it has none)
    acoustic.json ...    the acoustic model of a hybrid student's senones, as in units/ (absent: it is pocketsphinx's)

- `student.json` holds the SHA-256 of the other files; a folder whose files do not match is refused.
- Heads are dropped unless they are asked for. The bytes are a pure function of what is saved.
"""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from hkd.errors import UserError, check_setting
from hkd.features.pretrained import UPSTREAM_FILES
from hkd.files import digest_of_file, write_bytes, write_json
from hkd.student.config import EncoderConfig, SpeechEncoderConfig, StudentConfig, config_from_json, config_to_json
from hkd.student.model import StudentModel, export_student
from hkd.units.inventory import UnitInventory
from hkd.units.tying import ACOUSTIC_FILES

FORMAT, VERSION = "hkd-student", 1
CARD, WEIGHTS, SUBWORDS = "student.json", "model.safetensors", "subword.model"
UPSTREAM = "upstream"
BESIDE = (SUBWORDS, *ACOUSTIC_FILES)
_IN_UPSTREAM = tuple(f"{UPSTREAM}/{name}" for name in UPSTREAM_FILES)
SENONE_FRAMES = "senone_frames"  # in `extra` of a hybrid student: of each senone in the training data, for its priors


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentMeta:
    """What an export says of itself. `inventory`: the main output's units; in a CTC output unit u is class u + 1."""

    config: StudentConfig
    inventory: UnitInventory
    features: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    subword_model: Path | None = None


def save_student(
    folder: Path,
    student: StudentModel,
    *,
    inventory: UnitInventory,
    subword_model: bytes | None = None,
    acoustic: Mapping[str, bytes] | None = None,
    extra: Mapping[str, Any] | None = None,
    heads: bool = False,
) -> None:
    """Write the folder, without heads unless `heads`. Raises UserError where the inventory does not fit the output."""
    expected = student.config.num_main_units - (1 if student.config.main == "ctc" else 0)
    if len(inventory) != expected:
        raise UserError(f"the main output's inventory must have {expected} units, but has {len(inventory)} instead.")
    kept = student if heads else export_student(student)
    state = {name: value.detach().cpu().contiguous() for name, value in kept.state_dict().items()}
    (folder / CARD).unlink(missing_ok=True)  # without it the folder is no student
    write_bytes(folder / WEIGHTS, save(state))
    beside = {**(acoustic or {}), **({SUBWORDS: subword_model} if subword_model is not None else {})}
    for name in BESIDE:
        if name in beside:
            write_bytes(folder / name, beside[name])
        else:
            (folder / name).unlink(missing_ok=True)
    upstream = kept.config.encoder.front_end.upstream
    if upstream is not None:
        upstream.save(folder / UPSTREAM)
    files = [WEIGHTS, *beside, *(_IN_UPSTREAM if upstream is not None else ())]
    card = {
        "format": FORMAT,
        "version": VERSION,
        "config": config_to_json(kept.config),
        "inventory": inventory.to_json(),
        "features": kept.config.encoder.front_end.to_json(),
        "files": {name: digest_of_file(folder / name) for name in files},
        "extra": dict(extra or {}),
    }
    write_json(folder / CARD, card)


def placed(config: StudentConfig, folder: Path) -> StudentConfig:
    """The configuration with its upstream, where it has one, in the exported folder."""
    encoder = config.encoder
    if not isinstance(encoder, EncoderConfig) or not encoder.upstream:
        return config
    return replace(config, encoder=replace(encoder, upstream_folder=str(folder / UPSTREAM)))


def _read_card(folder: Path) -> dict[str, Any]:
    """student.json, its format and version checked."""
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} must be an exported student, but has no {CARD}. Run `hkd train` first.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} must be a student's card, but cannot be read as one ({error}).") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path} must have the format '{FORMAT}', but has another instead.")
    if (version := card.get("version")) != VERSION:
        raise UserError(f"{path} must have version {VERSION}, but has {version} instead. Use the hkd that wrote it.")
    return card


def load_student(folder: str | Path, *, device: str | torch.device = "cpu") -> tuple[StudentModel, StudentMeta]:
    """Student in eval mode on `device`, and its card. Raises UserError where the folder is no whole student."""
    folder = Path(folder)
    card = _read_card(folder)
    try:
        config = placed(config_from_json(card["config"]), folder)
        inventory = UnitInventory.from_json(card["inventory"], folder / CARD)
        known = (WEIGHTS, *BESIDE, *_IN_UPSTREAM)
        files = {name: str(card["files"][name]) for name in known if name in card["files"] or name == WEIGHTS}
        meta = StudentMeta(
            config=config, inventory=inventory, features=dict(card["features"]), extra=dict(card["extra"]),
            subword_model=folder / SUBWORDS if SUBWORDS in files else None,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} must be a student's card, but cannot be read as one ({error!r}).") from None
    for name, digest in files.items():
        found = digest_of_file(folder / name) if (folder / name).is_file() else "missing"
        fits, remedy = found == digest, "Export the student again."
        check_setting(f"{folder / name}", found, f"have the SHA-256 {digest}", fits, remedy)
    student = StudentModel(config)
    try:
        student.load_state_dict(load((folder / WEIGHTS).read_bytes()))
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} must fit {CARD}, but does not ({str(error).splitlines()[0]}).") from None
    return student.to(device).eval(), meta


ONNX = "model.onnx"
OPSET = 20
EXAMPLE_FRAMES = (203, 150)


class _MainOutput(nn.Module):
    """The student as a function of tensors alone."""

    def __init__(self, student: StudentModel) -> None:
        super().__init__()
        self.student = student

    def forward(self, x_BTF: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        output = self.student(x_BTF, length_B)
        return output.logits_BTV, output.length_B


def write_onnx(student: StudentModel, path: Path) -> None:
    """Write the student without its heads, for any batch and length. Raises UserError for missing packages, or an
    encoder of transformers. Inputs: x_BTF (float32, features as the student's card says: log-mel, or an upstream's
    values, which no ONNX file makes), length_B (int64, 10 ms frames). Outputs: logits_BTV, out_length_B."""
    if isinstance(encoder := student.config.encoder, SpeechEncoderConfig):
        whose = f"hkd's own encoder alone, but this student's is {encoder.name}"
        raise UserError(f"ONNX is written of {whose}. Leave it out.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"writing ONNX needs the package {error.name}. Install it: pip install 'hkd[onnx]'.") from None
    kept = _MainOutput(export_student(student).cpu())
    shape = len(EXAMPLE_FRAMES), max(EXAMPLE_FRAMES), encoder.num_bins
    batch, time = torch.export.Dim("batch"), torch.export.Dim("frames")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / ONNX
        torch.onnx.export(
            kept, (torch.zeros(shape), torch.tensor(EXAMPLE_FRAMES)), out,
            input_names=["x_BTF", "length_B"], output_names=["logits_BTV", "out_length_B"],
            dynamic_shapes={"x_BTF": {0: batch, 1: time}, "length_B": {0: batch}},
            opset_version=OPSET, external_data=False, dynamo=True, verbose=False,
        )  # fmt: skip
        write_bytes(path, out.read_bytes())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress on stdout and warns of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
