"""The student: features → main output, and the heads that teach its layers and are dropped at export.

- A head that conditions stays: its posteriors (softmax, the mean of a frame's slots) are projected to the model's width
  and added to its layer's output, which the layers above read (Nozaki & Komatsu 2021, arXiv 2104.02724). Text can
  supply such posteriors, too.
- The features' global mean and deviation are buffers (0 and 1 where an encoder's features are normalised already).
- Encoder, main output, heads and projections are built in this order: with one seed, a student begins from the same
  weights whatever heads it has.

Shape letters: B utterances, T encoder frames, F bins, D model width, V units of an output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from hkd.errors import check_setting
from hkd.student.config import EncoderConfig, SpeechEncoderConfig, StudentConfig
from hkd.student.encoder import Condition, ConformerEncoder, SpeechEncoder

MIN_STD = 1e-5


@dataclass(kw_only=True)
class StudentOutput:
    """logits_BTV of the main output (T counts its slots), lengths in the same unit, and per head logits_BSV, or
    logits_MV where slots were chosen. The first ceil(T/4) · slots of an utterance lie inside it."""

    logits_BTV: Tensor
    length_B: Tensor
    heads: dict[str, Tensor] = field(default_factory=dict)


class StudentModel(nn.Module):
    mean_F: Tensor
    std_F: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        d_model, d_out = config.encoder.d_model, config.encoder.d_out
        self.register_buffer("mean_F", torch.zeros(config.encoder.num_bins))
        self.register_buffer("std_F", torch.ones(config.encoder.num_bins))
        self.encoder: ConformerEncoder | SpeechEncoder
        self.encoder = SpeechEncoder(e) if isinstance(e := config.encoder, SpeechEncoderConfig) else ConformerEncoder(e)
        # encoders end in LayerNorm
        self.main = Head(d_out, config.num_main_units, slots=config.main_slots, d_head=d_model, norm=False)
        self.heads, self.condition = nn.ModuleDict(), nn.ModuleDict()
        for head in config.heads:
            self.heads[head.name] = Head(d_out, head.num_units, slots=head.slots, d_head=head.d_head or d_model)
        self._config_of = {head.name: head for head in config.heads}
        self._taps = frozenset(head.tap for head in config.heads)
        for head in config.heads:
            if head.condition:
                project = nn.Linear(head.num_units, d_out, bias=False)
                nn.init.normal_(project.weight)  # a sure posterior gives what a layer's output is: mean 0, variance 1
                self.condition[head.name] = project

    @torch.no_grad()
    def set_cmvn(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Set the features' global mean and standard deviation. Raises UserError for other shapes, infinity or NaN."""
        for name, value_F in (("mean_F", mean_F), ("std_F", std_F)):
            fits = value_F.shape == self.mean_F.shape and bool(torch.isfinite(value_F).all())
            check_setting(name, tuple(value_F.shape), f"be {self.mean_F.numel()} finite numbers", fits)
        self.mean_F.copy_(mean_F)
        self.std_F.copy_(std_F.clamp_min(MIN_STD))

    def forward(
        self,
        x_BTF: Tensor,
        length_B: Tensor,
        *,
        slots: Mapping[str, Tensor] | None = None,
        seed_B: Sequence[int] | None = None,
        alone_B: Tensor | None = None,
    ) -> StudentOutput:
        """x_BTF: features as the encoder's front end gives them; length_B: 10 ms frames, at least one each.

        slots: head name → slot_M (flat indices b · S + s); a head named here gives logits_MV of these slots alone.
        seed_B: of each utterance's dropout in training (an encoder of transformers draws from torch's generator).
        alone_B: true where the lowest conditioned layer loses its own output: those above read posteriors alone.
        """
        x_BTF = (x_BTF - self.mean_F) / self.std_F
        said: dict[str, Tensor] = {}
        # an encoder of transformers takes none
        more = {"condition": self._conditions(said, alone_B)} if self.condition else {}
        x_BTD, length_B, seen = self.encoder(x_BTF, length_B, self._taps, seed_B, **more)
        return self._output(x_BTD, length_B, seen, said, slots or {})

    def read(
        self,
        posteriors: Mapping[str, Tensor],
        length_B: Tensor,
        *,
        slots: Mapping[str, Tensor] | None = None,
        seed_B: Sequence[int] | None = None,
    ) -> StudentOutput:
        """What the student makes of posteriors that it has not heard: text. The heads of the layers above alone answer.
        posteriors: p_BTV of each head that conditions the lowest layer of those; length_B: encoder frames."""
        assert isinstance(self.encoder, ConformerEncoder)
        tap, said = self.text_tap, dict[str, Tensor]()
        x_BTD = torch.stack([self.condition[name](p_BTV) for name, p_BTV in posteriors.items()]).sum(0)
        drop = self.encoder.drops(x_BTD, seed_B)
        x_BTD, seen = self.encoder.above(x_BTD, length_B, self._taps, drop, self._conditions(said, None), tap=tap)
        return self._output(x_BTD, length_B, seen, said, slots or {})

    @property
    def text_tap(self) -> int:
        """The lowest layer that is conditioned, where text enters."""
        return min(self._config_of[name].tap for name in self.condition)

    def _conditions(self, said: dict[str, Tensor], alone_B: Tensor | None) -> dict[int, Condition]:
        """Layer → what is added to its output. The logits_BSV of the heads that do it are left in `said`."""

        def condition(tap: int, x_BTD: Tensor) -> Tensor:
            sum_BTD = x_BTD
            if alone_B is not None and tap == self.text_tap:
                sum_BTD = x_BTD.masked_fill(alone_B[:, None, None], 0.0)
            for name, project in self.condition.items():
                if self._config_of[name].tap == tap:
                    said[name] = self.heads[name](x_BTD)
                    sum_BTD = sum_BTD + project(posteriors_of(said[name], self._config_of[name].slots))
            return sum_BTD

        return {self._config_of[name].tap: partial(condition, self._config_of[name].tap) for name in self.condition}

    def _output(
        self,
        x_BTD: Tensor,
        length_B: Tensor,
        seen: Mapping[int, Tensor],
        said: Mapping[str, Tensor],
        slots: Mapping[str, Tensor],
    ) -> StudentOutput:
        heads = {}
        for name, head in self.heads.items():
            slot_M = slots.get(name)
            if name in said:
                heads[name] = said[name] if slot_M is None else said[name].flatten(0, 1).index_select(0, slot_M)
            elif self._config_of[name].tap in seen:
                heads[name] = head(seen[self._config_of[name].tap], slot_M)
        return StudentOutput(logits_BTV=self.main(x_BTD), length_B=length_B * self.config.main_slots, heads=heads)

    def num_parameters(self) -> int:
        """Trained numbers, heads included."""
        return _count(self)

    def num_exported(self) -> int:
        """Trained numbers that an export keeps."""
        dropped = (self.heads[head.name] for head in self.config.heads if not head.condition)
        return self.num_parameters() - sum(_count(head) for head in dropped)


def export_student(student: StudentModel) -> StudentModel:
    """What inference runs: a copy in eval mode, on the same device, whose only heads are those that condition."""
    kept = StudentModel(replace(student.config, heads=tuple(head for head in student.config.heads if head.condition)))
    state = student.state_dict()
    kept.load_state_dict({name: state[name] for name in kept.state_dict()})
    return kept.to(student.mean_F.device).eval()


def posteriors_of(logits_BSV: Tensor, slots: int) -> Tensor:
    """p_BTV of the encoder frames: softmax at temperature 1, the mean of a frame's slots."""
    p_BTSV: Tensor = logits_BSV.float().softmax(-1).unflatten(1, (-1, slots))  # type: ignore[no-untyped-call]
    return p_BTSV.mean(2)


class Head(nn.Module):
    """LayerNorm (where asked for), a projection D → slots × d_head for each slot of a frame (where there are several),
    and one output matrix d_head × V, which the slots share: with V = 5,126 and D = 144 that is 0.83 M parameters
    instead of 2.97 M, and no slower. S = T · slots slots, M of them chosen."""

    def __init__(self, d_model: int, num_units: int, *, slots: int = 1, d_head: int = 0, norm: bool = True) -> None:
        super().__init__()
        self.slots = slots
        self.norm = nn.LayerNorm(d_model) if norm else nn.Identity()
        width = (d_head or d_model) if slots > 1 else d_model
        self.place = nn.Linear(d_model, slots * width) if slots > 1 else nn.Identity()
        self.out = nn.Linear(width, num_units)

    def forward(self, x_BTD: Tensor, slot_M: Tensor | None = None) -> Tensor:
        """logits_BSV, or logits_MV of slot_M alone (flat indices b · S + s), which saves the matrix elsewhere."""
        b, t, _ = x_BTD.shape
        x_BSD = self.place(self.norm(x_BTD)).reshape(b, t * self.slots, -1)
        if slot_M is not None:
            x_BSD = x_BSD.flatten(0, 1).index_select(0, slot_M)
        return torch.as_tensor(self.out(x_BSD))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count / 1e3:.1f} k"


def _units(num_units: int, slots: int) -> str:
    return f"{num_units:,} units" + (f" × {slots} slots of {40 // slots} ms" if slots > 1 else "")


def _below(e: EncoderConfig | SpeechEncoderConfig, student: StudentModel) -> list[str]:
    """The encoder's name, its features, and what stands in front of its layers."""
    if isinstance(e, SpeechEncoderConfig):
        name = f"{e.name} ({e.architecture}), {e.num_layers} layers × {e.d_model}"
        what = f"{e.num_bins} log-mel bins every 10 ms, as Whisper's, up to {(e.max_frames or 0) / 100:g} s"
        if e.front_end.kind == "wave":
            what = "samples at 16 kHz" + (", each utterance at mean 0 and variance 1" if e.normalise else "")
        frozen = sum(p.numel() for p in student.encoder.parameters() if not p.requires_grad)
        front = f"frames of 20 ms, two side by side → 40 ms   {_short(frozen)} frozen"
    else:
        name = f"Conformer, {e.num_layers} layers × {e.d_model}, {e.num_heads} attention heads, kernel {e.conv_kernel}"
        what = f"{e.num_bins} bins every 10 ms"
        if e.upstream:
            what = f"{e.upstream}, {_short(e.front_end.num_parameters)} frozen: {2 * e.num_bins} values every 20 ms"
        what += ", normalised by the training set's mean and deviation"
        assert isinstance(student.encoder, ConformerEncoder)
        front = f"two convolutions, one frame in 4 → 40 ms   {_short(_count(student.encoder.front))}"
    return [f"student: {name}", f"  features   {what}", f"  front end  {front}"]


def describe(config: StudentConfig) -> str:
    """A drawing as text, bottom to top as the signal flows: layers, taps, heads, parameters, what export drops."""
    with torch.device("meta"):  # no weights are allocated
        student = StudentModel(config)
    e, layer_size = config.encoder, _short(_count(student.encoder.layers[0]))
    lines = _below(e, student)
    for number in range(1, e.num_layers + 1):
        lines.append(f"  layer {number:<4} {layer_size}")
        for head in (head for head in config.heads if head.tap == number):
            params, fate = _count(student.heads[head.name]), "dropped at export"
            if head.condition:
                params, fate = params + _count(student.condition[head.name]), "conditions the layers above"
            units = _units(head.num_units, head.slots)
            lines.append(f"    ├─ {head.name}: {head.level} {head.kind}, {units}   {_short(params)}   {fate}")
    what = "CTC, blank first" if config.main == "ctc" else "senone posteriors"
    units, size = _units(config.num_main_units, config.main_slots), _short(_count(student.main))
    lines.append(f"    └─ main: {what}, {units}   {size}")
    kept, frozen = student.num_exported(), e.front_end.num_parameters
    dropped = student.num_parameters() - kept
    below = f" ({frozen:,} of them frozen)" if frozen else ""
    exported = f"{kept + frozen:,} exported{below}, {dropped:,} in heads that export drops"
    return "\n".join([*lines, f"  parameters {kept + dropped + frozen:,}: {exported}"])
