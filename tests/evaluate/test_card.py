"""The model card: its figures are the evaluation's, its Python is Python, and it says what the student is."""

from pathlib import Path

import pytest

from hkd.errors import UserError
from hkd.evaluate.card import model_card, write_card
from hkd.evaluate.result import read_result
from hkd.student.export import load_student


def test_it_says_what_the_student_is_and_how_well_it_understands(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = evaluated.runs[-1]
    text = model_card(run)
    report, (student, meta) = read_result(run, "test"), load_student(run / "model")
    for rate in report.errors.values():
        assert f"{100 * rate.rate:.2f}" in text
    assert f"{student.num_parameters():,}" in text
    assert meta.inventory.digest[:12] in text
    assert "hierarchical: auxiliary output layers" in text
    assert "label store senone" in text
    assert text.startswith("---\nlibrary_name: hkd\n")
    assert "{" not in text
    compile(text.split("```python")[1].split("```")[0], "card", "exec")
    write_card(run, tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text


def test_without_figures_there_is_no_card(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="Run `hkd evaluate hierarchical` first"):
        model_card(evaluated.runs[-1], splits=("nonsense",))
    with pytest.raises(UserError, match="must be an exported student"):
        model_card(tmp_path)
