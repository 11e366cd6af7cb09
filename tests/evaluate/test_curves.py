"""Curves from metrics.jsonl."""

import json
from pathlib import Path

from hkd.evaluate.curves import panels, read_curves


def write(folder: Path, rows: list[dict[str, object]], tail: str = "") -> Path:
    """A run folder with these rows."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return folder


def test_terms_and_dev_figures_are_told_apart_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": 10, "loss": 3.0, "ctc": 2.0, "lr": 0.1, "gradient": 1.0},
        {"step": 10, "gradient_norm": {"ctc": 1.0}, "gradient_share": {"ctc": 1.0}},
        {"step": 10, "dev_wer": 50.0, "dev_ctc": 2.5},
        {"step": 20, "loss": 2.0, "ctc": 1.0, "lr": 0.1, "gradient": 1.0},
    ]
    curves = read_curves(write(tmp_path / "run", rows, tail='{"step": 30, "lo'))
    assert curves.terms == {"loss": [(10, 3.0), (20, 2.0)], "ctc": [(10, 2.0), (20, 1.0)]}
    assert curves.dev == {"dev_wer": [(10, 50.0)], "dev_ctc": [(10, 2.5)]}


def test_a_run_without_metrics_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path).terms == {}


def test_panels_are_shared_by_runs_error_rates_first(tmp_path: Path) -> None:
    def run(name: str, *terms: str) -> Path:
        rows: list[dict[str, object]] = []
        for step in (1, 2):
            rows.append({"step": step, "loss": 1.0, **dict.fromkeys(terms, 1.0)})
            rows.append({"step": step, "dev_wer": 9.0, **{f"dev_{t}": 1.0 for t in terms}})
        return write(tmp_path / name, rows)

    curves = {"a": read_curves(run("a", "ctc")), "b": read_curves(run("b", "ctc", "kd-senone"))}
    found = panels(curves)
    assert [title for title, _ in found] == [
        "WER on dev, %", "loss, training", "ctc, training", "ctc on dev", "kd-senone, training", "kd-senone on dev",
    ]  # fmt: skip
    assert list(found[0][1]) == ["a", "b"]
    assert list(found[-1][1]) == ["b"]
