"""A drawing of a student as text: layers, taps, heads, parameters, and what export drops."""

import torch

from hkd.student.config import HeadConfig, StudentConfig
from hkd.student.model import Student


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count / 1e3:.1f} k"


def _units(num_units: int, slots: int) -> str:
    return f"{num_units:,} units" + (f" × {slots} slots of {40 // slots} ms" if slots > 1 else "")


def describe(config: StudentConfig) -> str:
    """The drawing, bottom to top as the signal flows; built without allocating weights."""
    with torch.device("meta"):
        student = Student(config)
    e = config.encoder
    layer_size = _short(_count(student.encoder.layers[0]))
    lines = [
        f"student: Conformer, {e.num_layers} layers × {e.d_model}, {e.num_heads} attention heads, kernel {e.conv_kernel}",
        f"  features   {e.num_bins} bins every 10 ms, normalised by the training set's mean and deviation",
        f"  front end  {e.front}, one frame in 4 → 40 ms   {_short(_count(student.encoder.front))}",
    ]
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
    lines.append(f"  parameters {total:,}: {total - dropped:,} exported, {dropped:,} in heads that export drops")
    return "\n".join(lines)
