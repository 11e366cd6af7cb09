"""A loopback server with range requests, small archives of the true layout, and cards with their checksums and
counts."""

import functools
import hashlib
import http.server
import io
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.corpora import cards
from hkd.files import to_toml
from hkd.manifest import read
from kit.broken import Case, only_line
from kit.files import tar_of, write_files


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, honours `Range: bytes=N-`, and breaks off after `limit_bytes` of a body where that is set."""

    limit_bytes: int | None = None
    asked: list[str]

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        self.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: type(self).limit_bytes])

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, type[RangeHandler]]]:
    """(base URL, the folder that it serves, the handler's class)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (RangeHandler,), {"asked": [], "limit_bytes": None})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}", folder, handler
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def publish(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """publish(NAME, {archive: bytes}, parts={...}): the real card of a corpus with the checksums and counts of small
    archives, and their URL."""
    url, served, _ = server
    monkeypatch.setattr(cards, "CARDS", tmp_path / "cards")

    def do(name: str, archives: Mapping[str, bytes], **figures: Mapping[str, object]) -> str:
        card = tomllib.loads((cards.shipped("data_manifests") / f"{name}.toml").read_text())
        listed = card.pop("archives", [])
        assert {row["file"] for row in listed} >= set(archives)
        for group in ("whole", "splits", "parts"):
            card.pop(group, None)
        text = to_toml(card)
        for row in listed:
            data = archives.get(row["file"], b"nothing")
            for algorithm in {"md5", "sha256"} & set(row):
                row[algorithm] = hashlib.new(algorithm, data).hexdigest()
            text += "[[archives]]\n" + to_toml(row)
            if row["file"] in archives:
                (served / row["file"]).write_bytes(data)
        (tmp_path / "cards").mkdir(exist_ok=True)
        (tmp_path / "cards" / f"{name}.toml").write_text(text + to_toml(figures))
        return url

    return do


def librispeech_archive(part: str, speakers: int, *, first: int = 100, chapters: int = 1, utterances: int = 2) -> bytes:
    """A .tar.gz of LibriSpeech's true layout with noise for speech."""
    rng = np.random.default_rng(len(part))
    files: dict[str, bytes] = {"LibriSpeech/README.TXT": b"readme", "LibriSpeech/SPEAKERS.TXT": b"; speakers"}
    for speaker in range(speakers):
        for chapter in range(chapters):
            name = f"{first + speaker}-{2000 + chapter}"
            home = f"LibriSpeech/{part}/{first + speaker}/{2000 + chapter}"
            lines = []
            for number in range(utterances):
                flac = io.BytesIO()
                soundfile.write(flac, rng.normal(size=1600) * 0.1, 16_000, format="FLAC")
                files[f"{home}/{name}-{number:04d}.flac"] = flac.getvalue()
                lines.append(f"{name}-{number:04d} THE TEXT OF {name} {number}")
            files[f"{home}/{name}.trans.txt"] = ("\n".join(lines) + "\n").encode()
    return tar_of(files)


@pytest.fixture
def make_librispeech():
    """`librispeech_archive`."""
    return librispeech_archive


COMMAND = typer.main.get_command(app)


@pytest.fixture
def hkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, list[str]]]:
    """Run a command in a folder of its own: exit code, stdout, and the lines of stderr that tell of no progress."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("typer.testing._get_command", lambda _: COMMAND)  # building it took two thirds of the time

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, [line for line in result.stderr.splitlines() if "s to go" not in line]

    return run


@pytest.fixture
def check_case(
    hkd: Callable[..., tuple[int, str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Callable[[Case], None]:
    """Write a case's files, run its command, and hold what comes against what it says."""

    def check(case: Case) -> None:
        if case.name.startswith("lhotse"):
            pytest.importorskip("lhotse")
        if case.name.startswith("hf"):
            datasets = pytest.importorskip("datasets")
            monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
            monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        write_files(tmp_path, case.files)
        for name in case.folders:
            (tmp_path / name).mkdir(parents=True)
        for name, target in case.links.items():
            (tmp_path / name).symlink_to(target)
        code, _, lines = hkd(*case.arguments)
        if case.kept is None:
            only_line(lines, case.says)
            assert code == case.code
            assert not (tmp_path / "p" / "manifest.jsonl").exists()
        else:
            assert code == 0, lines
            assert len(read(tmp_path / "p" / "manifest.jsonl")) == case.kept
            assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
                message for message in caplog.messages if case.warns and case.warns in message
            ]
            assert bool(caplog.messages) == bool(case.warns)

    return check
