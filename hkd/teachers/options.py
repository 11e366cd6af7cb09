"""The options of a teacher that change its labels or its speed."""

from dataclasses import asdict, dataclass
from typing import Any

from hkd.errors import UserError

CASES = ("auto", "lower", "sentence", "upper")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """How a downloaded language model is asked. Raises UserError for values out of range."""

    mask_every: int = 0  # 0: one masked copy a position (exact); m: positions n ≡ r (mod m) are masked together
    context: int = 0  # tokens of the window that neighbouring utterances fill; 0: the utterance alone
    case: str = "auto"  # lower | sentence ("I think I'm …") | upper; auto: lower for uncased tokenizers, else sentence
    final_mark: str = ""  # written after the last word as context (never a position), "." say
    token_budget: int = 0  # tokens of a batch, padding included; 0: by device
    compile: bool = False  # torch.compile of the model's body

    def __post_init__(self) -> None:
        for name in ("mask_every", "context", "token_budget"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, but is {getattr(self, name)} instead.")
        if 0 < self.context < 8:
            raise UserError(f"context must be 0 (the utterance alone) or at least 8 tokens, but is {self.context} instead.")
        if self.case not in CASES:
            raise UserError(f"case must be one of {', '.join(CASES)}, but is '{self.case}' instead.")

    def that_change_labels(self) -> dict[str, Any]:
        """The options that belong to a teacher's digest."""
        return {name: value for name, value in asdict(self).items() if name not in ("token_budget", "compile")}
