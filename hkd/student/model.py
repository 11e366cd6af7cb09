"""The student: features → main output, and the heads that teach its layers and are dropped at export.

- Global mean and deviation of the features are buffers of the model, so an export needs nothing else (0 and 1 where an encoder's features are
  normalised already).
- Encoder and main output are built before the heads: with one seed, a student begins from the same weights whatever heads it has.
- Teachers have no place here: their labels are numbers in a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.student.config import SpeechEncoderConfig, StudentConfig
from hkd.student.encoder import ConformerEncoder
from hkd.student.heads import Head
from hkd.student.speech_encoder import SpeechEncoder

MIN_STD = 1e-5


@dataclass(kw_only=True)
class StudentOutput:
    """logits_BTV of the main output (T counts its slots), lengths in the same unit, and per head logits_BSV, or logits_MV where
    slots were chosen. A head's slots of utterance b that lie inside it are the first ceil(T/4) · slots."""

    logits_BTV: Tensor
    length_B: Tensor
    heads: dict[str, Tensor] = field(default_factory=dict)


class Student(nn.Module):
    """Encoder, main output, heads."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        d_model, d_out = config.encoder.d_model, config.encoder.d_out
        self.register_buffer("mean_F", torch.zeros(config.encoder.num_bins))
        self.register_buffer("std_F", torch.ones(config.encoder.num_bins))
        self.encoder: ConformerEncoder | SpeechEncoder
        if isinstance(config.encoder, SpeechEncoderConfig):
            self.encoder = SpeechEncoder(config.encoder)
        else:
            self.encoder = ConformerEncoder(config.encoder)
        self.main = Head(
            d_out, config.num_main_units, slots=config.main_slots, d_head=d_model, norm=False
        )  # encoders end in LayerNorm
        self.heads = nn.ModuleDict(
            {head.name: Head(d_out, head.num_units, slots=head.slots, d_head=head.d_head or d_model) for head in config.heads}
        )
        self._tap_of = {head.name: head.tap for head in config.heads}

    @torch.no_grad()
    def set_cmvn(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Set the features' global mean and standard deviation. Raises UserError for other shapes or values that are not finite."""
        for name, value_F in (("mean_F", mean_F), ("std_F", std_F)):
            if value_F.shape != self.mean_F.shape or not bool(torch.isfinite(value_F).all()):
                raise UserError(f"{name} must be {self.mean_F.numel()} finite numbers, but is {tuple(value_F.shape)} instead.")
        self.mean_F.copy_(mean_F)
        self.std_F.copy_(std_F.clamp_min(MIN_STD))

    def forward(
        self,
        x_BTF: Tensor,
        length_B: Tensor,
        *,
        slots: Mapping[str, Tensor] | None = None,
        seed_B: Sequence[int] | None = None,
    ) -> StudentOutput:
        """x_BTF: features as the encoder's front end gives them; length_B: 10 ms frames, at least one each.

        slots: head name → slot_M (flat indices b · S + s); a head that stands there gives logits_MV of these slots alone.
        seed_B: in training, what each utterance's dropout is drawn from (an encoder of transformers draws from torch's generator instead).
        """
        x_BTF = (x_BTF - self.mean_F) / self.std_F
        x_BTD, length_B, seen = self.encoder(x_BTF, length_B, frozenset(self._tap_of.values()), seed_B)
        chosen = slots or {}
        heads = {name: head(seen[self._tap_of[name]], chosen.get(name)) for name, head in self.heads.items()}
        return StudentOutput(logits_BTV=self.main(x_BTD), length_B=length_B * self.config.main_slots, heads=heads)

    def num_parameters(self) -> int:
        """Trained numbers, heads included."""
        return sum(p.numel() for p in self.parameters())


def export_student(student: Student) -> Student:
    """A copy without heads, on the same device, in eval mode: what inference runs, and exactly the `none` objective's student."""
    kept = Student(replace(student.config, heads=()))
    kept.load_state_dict({name: value for name, value in student.state_dict().items() if not name.startswith("heads.")})
    return kept.to(student.mean_F.device).eval()
