"""A drawing of a student as text: layers, taps, heads, parameters, and what export drops."""

import torch

from hkd.student.config import EncoderConfig, HeadConfig, SpeechEncoderConfig, StudentConfig
from hkd.student.model import Student


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count / 1e3:.1f} k"


def _units(num_units: int, slots: int) -> str:
    return f"{num_units:,} units" + (f" × {slots} slots of {40 // slots} ms" if slots > 1 else "")


def _conformer(e: EncoderConfig, student: Student) -> list[str]:
    front: torch.nn.Module = student.encoder.front  # type: ignore[assignment]
    features = f"{e.num_bins} bins every 10 ms"
    if e.upstream:
        features = f"{e.upstream}, {_short(e.front_end.num_parameters)} frozen: {2 * e.num_bins} values every 20 ms"
    return [
        f"student: Conformer, {e.num_layers} layers × {e.d_model}, {e.num_heads} attention heads, kernel {e.conv_kernel}",
        f"  features   {features}, normalised by the training set's mean and deviation",
        f"  front end  {e.front}, one frame in 4 → 40 ms   {_short(_count(front))}",
    ]


def _speech_encoder(e: SpeechEncoderConfig, student: Student) -> list[str]:
    what = f"{e.num_bins} log-mel bins every 10 ms, as Whisper's, up to {(e.max_frames or 0) / 100:g} s"
    if e.front_end.kind == "wave":
        what = "samples at 16 kHz" + (", each utterance at mean 0 and variance 1" if e.normalise else "")
    frozen = sum(p.numel() for p in student.encoder.parameters() if not p.requires_grad)
    return [
        f"student: {e.name} ({e.architecture}), {e.num_layers} layers × {e.d_model}",
        f"  features   {what}",
        f"  front end  frames of 20 ms, two side by side → 40 ms   {_short(frozen)} frozen",
    ]


def describe(config: StudentConfig) -> str:
    """The drawing, bottom to top as the signal flows; built without allocating weights."""
    with torch.device("meta"):
        student = Student(config)
    e = config.encoder
    layer_size = _short(_count(student.encoder.layers[0]))
    lines = _conformer(e, student) if isinstance(e, EncoderConfig) else _speech_encoder(e, student)
    heads_at: dict[int, list[HeadConfig]] = {}
    for head in config.heads:
        heads_at.setdefault(head.tap, []).append(head)
    for number in range(1, e.num_layers + 1):
        lines.append(f"  layer {number:<4} {layer_size}")
        lines.extend(
            f"    ├─ {head.name}: {head.level} {head.kind}, {_units(head.num_units, head.slots)}   "
            f"{_short(_count(student.heads[head.name]))}   dropped at export"
            for head in heads_at.get(number, [])
        )
    what = "CTC, blank first" if config.main == "ctc" else "senone posteriors"
    lines.append(f"    └─ main: {what}, {_units(config.num_main_units, config.main_slots)}   {_short(_count(student.main))}")
    total, dropped = student.num_parameters(), _count(student.heads)
    frozen = e.front_end.num_parameters
    total += frozen
    below = f" ({frozen:,} of them frozen)" if frozen else ""
    lines.append(f"  parameters {total:,}: {total - dropped:,} exported{below}, {dropped:,} in heads that export drops")
    return "\n".join(lines)
