"""The last handler: no error, no terminal and no reader of our output ends in a stack trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hkd.errors import InternalError, UserError, explained

REPORT = "Please report it with the output of the same command with --verbose."
PLANT = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import threading

import typer
from hkd.cli import main

class OddError(Exception):
    pass

def fail(text: str = "planted") -> None:
    raise OddError(text + "\\nand a second line")

def in_worker() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(fail, "in a worker").result()

def in_loader() -> None:
    from torch.utils.data import DataLoader
    list(DataLoader(Broken(), num_workers=1, multiprocessing_context="fork"))

class Broken:
    def __len__(self) -> int:
        return 1
    def __getitem__(self, n: int) -> int:
        return fail("in a loader")

def in_thread() -> None:
    thread = threading.Thread(target=fail, args=("in a thread",))
    thread.start()
    thread.join()

def parse(text: str) -> int:
    return fail("in an option")

def in_option(number: int = typer.Option(..., parser=parse)) -> None:
    pass

def recurse() -> None:
    recurse()

def leave() -> None:
    raise SystemExit(7)

def no_memory() -> None:
    raise MemoryError

def no_disk() -> None:
    raise OSError(28, "No space left on device", "some/file")

if __name__ == "__main__":
    for command in (fail, in_worker, in_loader, in_thread, in_option, recurse, leave, no_memory, no_disk):
        main.app.command(command.__name__.replace("_", "-"))(command)
    main.main()
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "job.py"
    path.write_text(PLANT)
    return path


def run(*words: object, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["fail"], "hkd: internal error: OddError: planted, in "),
        (["in-worker"], "hkd: internal error: OddError: in a worker, in "),
        (["in-loader"], "hkd: internal error: OddError: "),
        (["in-option", "--number", "3"], "hkd: internal error: OddError: in an option, in "),
        (["recurse"], "hkd: internal error: RecursionError: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_fault_of_our_own_is_one_line_that_asks_for_a_report(planted: Path, command: list[str], line: str):
    done = run(planted, *command)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.endswith(f"{REPORT}\n")
    assert done.stderr.count("\n") == 1


def test_verbose_shows_the_trace(planted: Path):
    done = run(planted, "--verbose", "fail")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()[:2]
    assert first.endswith(REPORT)
    assert second == "Traceback (most recent call last):"
    assert "in fail" in done.stderr
    assert "in a worker" in run(planted, "-v", "in-worker").stderr


def test_a_threads_fault_is_one_line(planted: Path):
    done = run(planted, "in-thread")
    assert done.stderr.startswith("hkd: internal error: OddError: in a thread")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("leave", 7, ""),
        ("no-memory", 1, "hkd: the memory ran out."),
        ("no-disk", 1, "hkd: No space left on device: some/file."),
    ],
)
def test_other_ends_keep_their_codes_and_sentences(planted: Path, command: str, code: int, says: str):
    done = run(planted, command)
    assert (done.returncode, done.stderr[: len(says)]) == (code, says)
    assert REPORT not in done.stderr
    assert done.stderr.count("\n") == bool(says)


def test_any_exception_becomes_one_with_a_sentence():
    assert explained(UserError("x must be y.")).exit_code == 2
    empty = explained(ValueError())
    assert isinstance(empty, InternalError)
    assert str(empty) == f"internal error: ValueError: . {REPORT}"
    assert empty.exit_code == 1


def test_a_reader_that_has_gone_and_a_full_disk(prepared: Path):
    command = [sys.executable, "-m", "hkd", "units", "show"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=prepared, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=prepared, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "hkd: No space left on device.\n")
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], cwd=prepared, capture_output=True, text=True, timeout=120
    )
    assert (closed.returncode, closed.stderr) == (0, "")


TERMINALS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LC_ALL": "POSIX", "LANG": "POSIX"},
}


@pytest.mark.parametrize("terminal", TERMINALS.values(), ids=list(TERMINALS))
def test_a_terminal_that_is_not_unicode_gets_replacements(prepared: Path, terminal: dict[str, str]):
    shown = run("-m", "hkd", "units", "show", "the number", cwd=prepared, **terminal)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("words")
    value = run("-m", "hkd", "units", "show", "the number", "--json", cwd=prepared, **terminal)
    symbols = json.loads(value.stdout)["subword"]
    assert "".join(symbols).startswith("▁the")  # escapes, which say the same to a machine
    refused = run("-m", "hkd", "labels", "show", "ünbekannt▁", cwd=prepared, **terminal)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_files_are_utf8_whatever_the_locale(prepared: Path, tmp_path: Path):
    """Here and in the libraries that open files: the process starts again in Python's UTF-8 mode."""
    (tmp_path / "hkd.toml").write_text("[runs.x]\nobjective = 'none'  # ▁ é\n", encoding="utf-8")
    (tmp_path / "wörter.txt").write_text("the number is\n", encoding="utf-8")
    done = run("-m", "hkd", "units", "lexicon", "--text", "wörter.txt", "--json", cwd=tmp_path, **TERMINALS["C"])
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["running_words"] == 3


@pytest.mark.parametrize(
    ("data", "right"),
    [
        (b"\xef\xbb\xbfthe number\r\nplease\r\n", 3),
        (b"the number\nplease", 3),
        ("the number\nplease\n".encode("utf-16"), 0),
        ("the number\nplease\n".encode("utf-16-le"), 0),
        ("caf\xe9\n".encode("latin-1"), 0),
    ],
    ids=["bom+crlf", "no last newline", "utf-16", "utf-16 without mark", "latin-1"],
)
def test_texts_of_other_systems_are_read_right_or_refused_in_a_line(tmp_path: Path, data: bytes, right: int):
    (tmp_path / "text.txt").write_bytes(data)
    done = run("-m", "hkd", "units", "lexicon", "--text", "text.txt", "--json", cwd=tmp_path)
    if right:
        assert json.loads(done.stdout)["running_words"] == right
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "must be UTF-8" in done.stderr or "must be text in UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("given", "tries"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_how(given: dict[str, str], tries: str | None) -> None:
    """On two idle cores as fast as the default, beside other jobs 2.8 times as fast (docs/decisions.md)."""
    code = "import hkd.cli.main as m, os; m.app = lambda: print(os.environ.get('GOMP_SPINCOUNT')); m.main()"
    plain = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**plain, **given}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(tries)
