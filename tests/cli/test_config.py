"""`hkd config show`, and `--set` where commands share it."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.config import build, parse_overrides
from hkd.errors import UserError
from hkd.pipeline.settings import SETTINGS, DumpSettings
from hkd.train.config import TrainConfig


def test_every_setting_is_shown_with_one_line_of_explanation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for table in SETTINGS:
        done = CliRunner().invoke(app, ["config", "show", table])
        assert done.exit_code == 0, done.output
        lines = [line for line in done.stdout.splitlines() if line and not line.startswith("[")]
        assert lines
        assert [line for line in lines if not line.partition("  # ")[2].strip()] == []
        assert tomllib.loads(done.stdout)


def test_settings_are_shown_by_the_name_of_the_command_and_as_the_project_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hkd.toml").write_text(
        '[lm.senone]\nunit = "senone"\n[dump.s]\nlm = "lm/senone"\nunit = "senone"\nk = 8\n'
    )
    shown = tomllib.loads(CliRunner().invoke(app, ["config", "show", "lm"]).stdout)
    assert shown["lm"]["senone"]["unit"] == "senone"
    dump = tomllib.loads(CliRunner().invoke(app, ["config", "show", "teacher-dump"]).stdout)["dump"]["s"]
    assert (dump["k"], dump["lm"]) == (8, "lm/senone")
    assert build(DumpSettings, dump, where="dump").store.k == 8  # what is shown is read back
    refused = CliRunner().invoke(app, ["config", "show", "trian"])
    assert refused.exit_code == 2
    assert "train" in refused.stderr


def test_a_setting_may_be_named_with_its_table_and_one_name_needs_no_list() -> None:
    assert parse_overrides(["train.loop.seed=1", "lam=0.5"], "train") == parse_overrides(
        ["loop.seed=1", "train.lam=0.5"], "train"
    )
    assert build(TrainConfig, parse_overrides(["stores=subword"]), where="train").stores == ("subword",)
    with pytest.raises(UserError, match="must be a list"):
        build(TrainConfig, parse_overrides(["stores=3"]), where="train")
