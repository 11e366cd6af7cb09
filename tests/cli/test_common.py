"""Progress: signs of life without a terminal, and what is shown on a narrow one."""

import io
import re
import time

import pytest
from rich.console import Console

from hkd.cli import common


def test_without_a_terminal_a_line_comes_though_nothing_is_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "QUIET_INTERVAL_S", 0.5)
    with common.progress_bar("align") as progress:
        time.sleep(2.5)
        progress(1, 4, failed=0.0)
        time.sleep(1.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("align: 0% after")
    assert any(line.startswith("align: 25% after") and "to go failed=0" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_shows_share_and_times_whatever_its_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        common, "console", lambda: Console(file=shown, force_terminal=True, width=width, soft_wrap=True)
    )
    facts = {"loss": 7.862, "senone": 5.427, "hard-senone": 5.55, "kd-senone": 2.431, "dev_wer": 93.2}
    with common.progress_bar("train hierarchical") as progress:
        progress(1, 2, **facts)
    line = [line for line in re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.getvalue()).splitlines() if "%" in line][-1]
    assert "100%" in line  # it has come to its end
    assert line.count(":") >= 4  # time gone and time to go
    assert "…" not in line
    assert ("loss=7.862" in line) == (width >= 80)
