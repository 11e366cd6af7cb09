"""`hkd prepare`, `align`, `units`, `manifest`, as processes would call them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.manifest import read


@pytest.fixture
def hkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.stdout, result.stderr

    return run


def test_from_a_folder_to_an_aligned_project(hkd, tiny_manifest: Path, tmp_path: Path) -> None:
    code, out, _ = hkd("prepare", str(tiny_manifest), "--json")
    assert code == 0
    assert {name: row["utterances"] for name, row in json.loads(out)["splits"].items()} == {
        "train": 6,
        "dev": 3,
        "test": 3,
    }
    assert (tmp_path / "hkd.toml").exists()
    assert hkd("prepare", str(tiny_manifest))[0] == 0
    assert hkd("units", "train", "--vocab-size", "60")[0] == 0
    code, out, _ = hkd("units", "show", "the green door", "--json")
    shown = json.loads(out)
    assert shown["monophone"] == ["DH", "AH", "G", "R", "IY", "N", "D", "AO", "R"]
    assert len(shown["senone"]) == 27
    assert "5126 units" in hkd("units", "show")[1]
    code, out, err = hkd("align", "--jobs", "1", "--json")
    assert code == 0, err
    assert (json.loads(out)["kept"], json.loads(out)["failed"]) == (12, {})
    before = (tmp_path / "alignment.arrow").stat().st_mtime_ns
    assert "12 of 12" in hkd("align")[1]
    assert (tmp_path / "alignment.arrow").stat().st_mtime_ns == before
    code, _, err = hkd("align", "--min-score", "-10")
    assert code == 2
    assert "--overwrite" in err


def test_check_names_lines_and_exits_1(hkd, tiny_manifest: Path, tmp_path: Path) -> None:
    assert hkd("manifest", "check", str(tiny_manifest))[0] == 0
    lines = tiny_manifest.read_text().splitlines()
    rows = [json.loads(line) for line in lines[:3]]
    for row in rows:
        row["audio_filepath"] = str(tiny_manifest.parent / row["audio_filepath"])
    rows[1]["audio_filepath"] = "gone.wav"
    (tmp_path / "m.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    code, out, _ = hkd("manifest", "check", "m.jsonl")
    assert code == 1
    assert "m.jsonl:3: utterance 'utt001': audio file" in out
    assert "3 utterances, 1 with problems" in out


def test_split(hkd, tiny_manifest: Path, tmp_path: Path) -> None:
    hkd("prepare", str(tiny_manifest))
    assert hkd("manifest", "split", "--by", "text", "--train", "0.5", "--dev", "0.5", "--test", "0")[0] == 0
    assert {u.split for u in read(tmp_path / "manifest.jsonl")} == {"train", "dev"}
    assert hkd("manifest", "split", "--by", "moon")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("prepare",), "CORPUS must be given"),
        (("prepare", "asterix"), "Did you mean 'asterisk'?"),
        (("align",), "hkd prepare"),
        (("units", "train"), "hkd prepare"),
        (("units", "show"), "hkd units train"),
        (("manifest", "check"), "hkd prepare"),
    ],
)
def test_what_is_missing_is_said_in_one_line(hkd, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = hkd(*arguments)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_the_list_of_corpora(hkd) -> None:
    code, out, _ = hkd("prepare", "--list", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} >= {"asterisk", "mini_librispeech", "fortunes"}
