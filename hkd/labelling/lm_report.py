"""What `hkd lm train` found: a unit LM's perplexity beside its n-gram's and the unigram's, and who is the teacher."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hkd.errors import UserError
from hkd.files import write_json
from hkd.teachers.unit_lm import read_json

_NAMES = {"neural": "neural LM", "ngram": "n-gram", "unigram": "unigram"}
_CONDITION = {
    "outside-position": "p(unit | all other units)",
    "outside-phone": "p(senone | the phones outside its own, its state's number)",
    "left": "p(unit | the units before it)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LmReport:
    """report.json. `figures`: per set of sentences, for neural, ngram and unigram {perplexity, top1}, and `positions`."""

    unit: str
    direction: str
    given: str
    teacher: str  # neural | ngram: which has the lower perplexity on `judged_on`
    judged_on: str  # transcripts (what it will label; never trained on by who labels) | text (held out)
    figures: dict[str, dict[str, Any]]
    ngram_order: int
    transcripts: str
    folds: int
    sentences: list[int]  # trained on, a fold
    units: list[int]
    text: dict[str, int] = field(default_factory=dict)  # lines, left_out (equal to a transcript), unpronounceable
    steps: int = 0
    sizes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write report.json."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "LmReport":
        """Read report.json. Raises UserError where it is missing or none."""
        value = read_json(path)
        try:
            return cls(**{f.name: value[f.name] for f in fields(cls)})
        except KeyError as error:
            raise UserError(f"{path} must be the report of a unit LM, but lacks {error}. Train the LM anew.") from None


def render(value: dict[str, Any]) -> str:
    """A report's JSON as text: one table a set of sentences, then the verdict."""
    lines = [f"{value['unit']} LM, {value['direction']}: {_CONDITION[value['given']]}"]
    trained = " + ".join(f"{n:,}" for n in value["units"])
    source = "text and the other folds' transcripts" if value["transcripts"] == "cross-fit" else "text, no transcripts"
    lines.append(f"trained on {trained} units ({source}), {value['steps']:,} steps")
    for name, table in value["figures"].items():
        title = "held-out text" if name == "text" else "transcripts, by an LM that has not seen them"
        lines += ["", f"{title}: {table['positions']:,} positions", f"  {'':<12}{'perplexity':>11}{'top-1':>8}"]
        for kind, label in _NAMES.items():
            label = f"{value['ngram_order']}-gram" if kind == "ngram" else label
            lines.append(f"  {label:<12}{table[kind]['perplexity']:>11.2f}{table[kind]['top1']:>8.1%}")
    judged = value["figures"][value["judged_on"]]
    pair = f"{judged['neural']['perplexity']:.2f} against {judged['ngram']['perplexity']:.2f}"
    if value["teacher"] == "neural":
        lines += ["", f"The neural LM is the teacher: it beats the n-gram ({pair} on the {value['judged_on']})."]
    else:
        lines += ["", f"The n-gram is the teacher: this text and training are too small for the neural LM to beat it ({pair})."]
    if judged[value["teacher"]]["perplexity"] > judged["unigram"]["perplexity"]:
        lines.append("WARNING: the teacher is worse than the unigram; its text does not fit.")
    return "\n".join(lines)
