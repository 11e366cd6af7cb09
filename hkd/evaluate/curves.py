"""Training curves: what a run's metrics.jsonl says, step by step."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hkd.evaluate.svg import Point

NOT_TERMS = frozenset({"step", "lr", "gradient"})
DEV = "dev_"  # what the trainer puts before figures of the dev split
RATES = ("wer", "cer", "per")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Per figure its points (step, value). `terms`: loss terms, logged in training; `dev`: what the run measured on dev."""

    terms: Mapping[str, Sequence[Point]]
    dev: Mapping[str, Sequence[Point]]


def read_curves(run_folder: Path) -> Curves:
    """The curves of a run; empty where it has no metrics.jsonl. A torn last line (a run still going on) is left out."""
    path = run_folder / "metrics.jsonl"
    terms: dict[str, list[Point]] = {}
    dev: dict[str, list[Point]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(text)
            step = float(row["step"])
        except (ValueError, KeyError, TypeError):
            continue
        into = terms if "loss" in row else dev
        for name, value in row.items():
            if name not in NOT_TERMS and isinstance(value, int | float) and not isinstance(value, bool):
                into.setdefault(name, []).append((step, float(value)))
    return Curves(terms=terms, dev=dev)


def panels(curves: Mapping[str, Curves]) -> list[tuple[str, dict[str, Sequence[Point]]]]:
    """(title, run → points), one a panel: error rates on dev first, then the whole loss, then each term, in training and on dev."""
    dev = list(dict.fromkeys(name for c in curves.values() for name in c.dev))
    terms = list(dict.fromkeys(name for c in curves.values() for name in c.terms))
    rates = [name for name in dev if name.removeprefix(DEV) in RATES]
    ordered = [(f"{name.removeprefix(DEV).upper()} on dev, %", "dev", name) for name in rates]
    for term in terms:
        ordered.append((f"{term}, training", "terms", term))
        ordered += [(f"{term} on dev", "dev", name) for name in dev if name == DEV + term]
    rest = [name for name in dev if name not in rates and name.removeprefix(DEV) not in terms]
    ordered += [(f"{name.removeprefix(DEV)} on dev", "dev", name) for name in rest]
    result = []
    for title, kind, name in ordered:
        series = {run: getattr(c, kind)[name] for run, c in curves.items() if name in getattr(c, kind)}
        if any(len(points) > 1 for points in series.values()):
            result.append((title, series))
    return result
