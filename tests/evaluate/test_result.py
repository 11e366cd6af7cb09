"""What an evaluation leaves can be read back and recomputed."""

import json
from pathlib import Path

import pytest

from hkd.errors import UserError
from hkd.evaluate.result import METRICS, read_result, result_paths, score_all


def test_the_figures_follow_from_the_hypotheses_alone(evaluated) -> None:  # type: ignore[no-untyped-def]
    for run in evaluated.runs:
        report = read_result(run, "test")
        again = score_all(report.hypotheses)
        rows = [json.loads(line) for line in result_paths(run, "test")[1].read_text().splitlines()]
        for metric in METRICS:
            rate = report.errors[metric]
            assert rate.rate == again[metric].rate
            assert {name: getattr(rate, name) for name in again[metric].totals()} == again[metric].totals()
            counts = [row[metric] for row in rows]
            assert sum(c["tokens"] for c in counts) == rate.tokens
            assert sum(c["substitutions"] + c["insertions"] + c["deletions"] for c in counts) == rate.errors


def test_what_is_missing_or_broken_is_said_with_the_command(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="Run `hkd evaluate none --split dev` first"):
        read_result(evaluated.runs[0], "dev")
    folder = tmp_path / "broken"
    for source, target in zip(result_paths(evaluated.runs[0], "test"), result_paths(folder, "test"), strict=True):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read as one"):
        read_result(folder, "test")
