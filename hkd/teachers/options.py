"""The options of a teacher that change its labels or its speed."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hkd.errors import UserError

CASES = ("auto", "lower", "sentence", "upper")
PRECISIONS = ("auto", "fp32", "bf16")
_OTHERS = ("project", "look_ahead", "token_budget", "compile")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """How a downloaded language model is asked. Raises UserError for values out of range."""

    mask_every: int = 0  # 0: one masked copy a position (exact); m: positions n ≡ r (mod m) are masked together
    context: int = 0  # tokens of the window that neighbouring utterances fill; 0: the utterance alone
    case: str = "auto"  # lower | sentence ("I think I'm …") | upper; auto: lower for uncased tokenizers, else sentence
    final_mark: str = ""  # written after the last word as context (never a position), "." say
    project: str = ""  # the student's subword.json (or .model): its pieces are labelled instead of the teacher's own
    look_ahead: int = 4  # projected: further rows a position, for likely tokens that leave the piece open
    token_budget: int = 0  # tokens of a batch, padding included; 0: by device
    compile: bool = False  # torch.compile of the model's body

    def __post_init__(self) -> None:
        for name in ("mask_every", "context", "look_ahead", "token_budget"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, but is {getattr(self, name)} instead.")
        if 0 < self.context < 8:
            raise UserError(f"context must be 0 (the utterance alone) or at least 8 tokens, but is {self.context} instead.")
        if self.case not in CASES:
            raise UserError(f"case must be one of {', '.join(CASES)}, but is '{self.case}' instead.")

    def within(self, folder: Path) -> "TeacherOptions":
        """With paths that are relative to a folder."""
        return replace(self, project=str(folder / self.project)) if self.project else self

    def that_change_labels(self) -> dict[str, Any]:
        """The options that belong to the digest of a teacher over its own pieces."""
        return {name: value for name, value in asdict(self).items() if name not in _OTHERS}
