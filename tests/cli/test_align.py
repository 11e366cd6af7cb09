"""`hkd align --from`: exit codes, one line each, and a project that takes a tool's units along."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hkd.cli.main import app

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def hkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in a folder with the golden manifest: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "kaldi" / "manifest.jsonl", tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.stdout, result.stderr

    return run


def test_a_kaldi_alignment_brings_its_phones_senones_and_words_along(hkd, tmp_path: Path) -> None:
    code, out, err = hkd("align", "--from", "kaldi", str(GOLDEN / "kaldi"), "--json")
    assert (code, json.loads(out)["kept"]) == (0, 12), err
    assert hkd("units", "train", "--vocab-size", "60")[0] == 0
    code, out, err = hkd("units", "show", "the teacher likes mp3s", "--json")
    assert code == 2
    assert "mp3s" in err
    code, out, _ = hkd("units", "show", "the teacher likes the letters", "--json")
    shown = json.loads(out)
    assert shown["monophone"][:6] == ["DH", "AH", "T", "IY", "CH", "ER"]
    assert shown["senone"][0].startswith("DH-0-")
    assert hkd("align", "--from", "kaldi", str(GOLDEN / "kaldi"))[0] == 0  # again: nothing to do
    assert hkd("units", "train", "--vocab-size", "60")[0] == 0


def test_another_models_units_are_not_replaced_in_silence(hkd, tmp_path: Path) -> None:
    assert hkd("units", "train", "--vocab-size", "60")[0] == 0  # pocketsphinx's
    code, _, err = hkd("align", "--from", "kaldi", str(GOLDEN / "kaldi"))
    assert code == 2
    assert "another acoustic model" in err
    assert hkd("align", "--from", "kaldi", str(GOLDEN / "kaldi"), "--overwrite")[0] == 0
    assert "230 units" in hkd("units", "show")[1]
    assert hkd("units", "train", "--vocab-size", "60")[0] == 0  # the subwords are as they were


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--from", "praat", "x"], 2, "from must be one of pocketsphinx, kaldi, mfa, ctm, ctc, timit"),
        (["--from", "mfa"], 2, "needs a path"),
        (["--from", "mfa", "nowhere"], 2, "is not there"),
        (["--from", "kaldi", "nowhere"], 2, "holds none"),
        (["--from", "ctm", "nowhere"], 2, "is not there"),
        (["--from", "ctm", "a.ctm"], 2, "has 2 columns"),
        (["--from", "ctm", "b.ctm", "--lexicon", "nowhere"], 2, "No such file"),
        (["--from", "ctm", "b.ctm", "--lexicon", "b.ctm"], 1, "none of 12 utterances"),
        (["--from", "ctm", "b.ctm"], 1, "none of 12 utterances"),
        (["--from", "ctc", "."], 2, "the CTC model must be a folder with config.json"),
        (["--from", "kaldi", str(GOLDEN / "kaldi"), "--manifest", "nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["--from", "kaldi", str(GOLDEN / "kaldi"), "--set", "model=."], 2, "phones.txt"),
        (["--from", "kaldi", str(GOLDEN / "kaldi"), "--set", "subsampling=3"], 1, "subsampling"),
    ],
)
def test_mistakes_end_in_one_line(hkd, tmp_path: Path, arguments: list[str], code: int, line: str) -> None:
    (tmp_path / "a.ctm").write_text("utt000 1\n")
    (tmp_path / "b.ctm").write_text("stranger 1 0 1 hello\n")
    found, _, err = hkd("align", *arguments)
    said = [row for row in err.splitlines() if row.startswith("hkd: ")]
    assert (found, len(said)) == (code, 1), err
    assert line in said[0]
    assert "Traceback" not in err
