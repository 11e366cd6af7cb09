"""The command line as people read it: every command explains itself, and no option changes its name unnoticed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hkd.cli.main import GONE, app
from hkd.config import merge, parse_overrides
from hkd.pipeline.settings import checked

FROZEN = Path(__file__).with_name("options.txt")  # written again by: python tests/cli/test_help.py


def commands(command: Any = None, name: str = "hkd") -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    yield name, command
    for child, value in getattr(command, "commands", {}).items():
        yield from commands(value, f"{name} {child}")


def options() -> str:
    lines = []
    for name, command in commands():
        for parameter in command.params:
            words = (
                parameter.opts + parameter.secondary_opts
                if parameter.param_type_name == "option"
                else [parameter.name.upper()]
            )
            lines.append(f"{name}: {' '.join(words)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("name", "command"), [row for row in commands() if not hasattr(row[1], "commands")])
def test_every_command_says_what_it_does_with_examples(name: str, command: Any):
    first = command.help.split("\n")[0]
    assert first.endswith((".", "."))
    assert "Examples:" in command.help
    assert f"{name} " in f"{command.help} " or f"{name}\n" in f"{command.help}\n"
    assert all(p.help for p in command.params if p.param_type_name == "option")


def test_options_are_the_frozen_ones():
    assert options() == FROZEN.read_text(), (
        "options changed: say so in CHANGELOG.md and run `python tests/cli/test_help.py`"
    )


TABLES = {  # command → kind of its table, and what that needs
    "prepare": ("prepare", {}),
    "align": ("align", {"from": "kaldi", "path": "exp"}),
    "units tie": ("tie", {}),
    "lm train": ("lm", {"unit": "senone"}),
    "lm words": ("words", {}),
    "teacher-dump": ("dump", {"lm": "gpt2", "unit": "subword", "executor": "ray"}),
    "evaluate": ("evaluate", {}),
}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, gone in GONE.items() for option in gone]
)
def test_an_option_that_is_gone_is_refused_in_a_line_that_names_its_setting(command: str, option: str):
    done = CliRunner().invoke(app, [*command.split(), option, "x"])
    [line] = done.stderr.splitlines()
    assert done.exit_code == 2
    assert line.startswith(f"hkd: {option} is no option any more. Give {GONE[command][option]};")
    word, _, assignment = GONE[command][option].partition(" ")
    if word == "--set":
        kind, table = TABLES[command] if not assignment.startswith("sentences.") else ("sentences", {})
        assert checked(kind, merge(table, parse_overrides([assignment], kind)), command)  # such a setting is there


def hkd(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "hkd", *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", "--labels", "shards/"], 2, "hkd prepare"),
        (["teacher-dump", "--lm", "bert-large", "--unit", "subword"], 2, "hkd prepare"),
        (["evaluate"], 2, "hkd prepare"),
        (["align"], 2, "hkd prepare"),
        (["labels", "info", "nowhere"], 2, "nowhere"),
        (["run", "nowhere"], 2, "nowhere"),
        (["train", "--lables", "x"], 2, "--lables"),
        (["transcribe", "x.wav"], 2, "hkd train"),
    ],
)
def test_elsewhere_one_line_says_what_to_do(tmp_path: Path, words: list[str], code: int, says: str):
    done = hkd(*words, cwd=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if words[-1] != "x":  # a usage error comes with its usage
        assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_ends_in_130_and_says_how_to_go_on(tmp_path: Path):
    program = "from hkd.cli import main, corpora\nimport typer\n"
    program += "def stop() -> None:\n    raise KeyboardInterrupt\n"
    program += "main.app.command('stop')(stop)\nmain.app(['stop'])\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "Run the same command again" in done.stderr


if __name__ == "__main__":
    FROZEN.write_text(options())
