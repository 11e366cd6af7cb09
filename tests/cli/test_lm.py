"""`hkd lm` in a working folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hkd.cli.teacher import lm_app
from hkd.errors import UserError
from hkd.labelling.dump import DumpConfig, dump
from hkd.labels.store import LabelReader
from hkd.teachers.unit_lm import load_unit_lm
from hkd.testing.teachers import tiny_sentences
from hkd.units.inventory import SUBWORD
from hkd.units.sequences import Units, train_units
from hkd.units.text import text_digest, words

SMALL = (  # noqa: SIM905
    "--steps 3 --set neural=true --set sizes.width=8 --set batch_sentences=4 --set held_out=0.2"
).split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Units and a text."""
    (tmp_path / "text.txt").write_text("\n".join(tiny_sentences(60)))
    train_units(tiny_sentences(60), tmp_path / "units", vocab_size=60)
    (tmp_path / "hkd.toml").write_text("[lm.subword]\nngram_order = 2\n[lm.subword.loop]\nseed = 7\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_then_score(folder):
    run = CliRunner()
    trained = run.invoke(lm_app, ["train", "--unit", "subword", "--text", "text.txt", *SMALL], catch_exceptions=False)
    assert trained.exit_code == 0
    assert "2-gram" in trained.stdout  # from hkd.files
    assert (
        json.loads((folder / "lm" / "subword" / "config.json").read_text())["identity"]["config"]["loop"]["seed"] == 7
    )
    scored = run.invoke(lm_app, ["score", "subword"], catch_exceptions=False)
    assert scored.stdout == trained.stdout
    value = json.loads(run.invoke(lm_app, ["score", "lm/subword", "--json"], catch_exceptions=False).stdout)
    assert value["steps"] == 3
    small_2 = [*SMALL, "--name", "other"]
    (folder / "hkd.toml").write_text("[lm.subword]\nngram_order = 2\n[lm.other]\nngram_order = 3\n")
    named = run.invoke(lm_app, ["train", "--unit", "subword", "--text", "text.txt", *small_2], catch_exceptions=False)
    assert "3-gram" in named.stdout  # a table of the LM's own name wins
    (folder / "hkd.toml").write_text("[lm.subword]\nngram_order = 2\n[lm.subword.loop]\nseed = 7\n")
    again = run.invoke(lm_app, ["train", "--unit", "subword", "--text", "text.txt", *SMALL], catch_exceptions=False)
    assert again.stdout == trained.stdout


def test_the_ngram_is_told_before_the_neural_lm_is_trained(folder, caplog):
    with caplog.at_level("INFO", logger="hkd"):
        CliRunner().invoke(lm_app, ["train", "--unit", "subword", "--text", "text.txt", *SMALL], catch_exceptions=False)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("hkd.labelling.lm")]
    report = json.loads((folder / "lm" / "subword" / "report.json").read_text())
    perplexity = report["figures"]["text"]["ngram"]["perplexity"]
    assert told[0].startswith(
        f"the n-gram has perplexity {perplexity:.2f} on the text; the neural LM, which is trained next"
    )


def test_what_is_missing_is_said(folder):
    run = CliRunner()
    assert isinstance(run.invoke(lm_app, ["train", "--unit", "subword"]).exception, UserError)
    assert isinstance(run.invoke(lm_app, ["train", "--unit", "sentence", "--text", "text.txt"]).exception, UserError)
    assert "hkd lm train" in str(run.invoke(lm_app, ["score", "nothing"]).exception)


def digest(line: str) -> str:
    return text_digest(words(line)).hex()


def test_halves_of_a_text_are_each_labelled_by_the_lm_of_the_other(folder):
    lines = tiny_sentences(24, seed=4)
    rows = [json.dumps({"id": f"t{n}", "text": line}) for n, line in enumerate([*lines, lines[0]])]
    (folder / "text.jsonl").write_text("\n".join(rows))
    options = ["--manifest", "text.jsonl", "--transcripts", "cross-fit", "--name", "halves", *SMALL]
    CliRunner().invoke(lm_app, ["train", "--unit", "subword", *options], catch_exceptions=False)
    fold_of = json.loads((folder / "lm" / "halves" / "folds.json").read_text())
    assert set(fold_of.values()) == {0, 1}
    assert len(fold_of) == 24  # t24 has the words of t0
    report = json.loads((folder / "lm" / "halves" / "report.json").read_text())
    assert report["sentences"] == [sum(fold_of[digest(line)] != own for line in (*lines, lines[0])) for own in (0, 1)]
    assert report["judged_on"] == "transcripts"


def test_whose_lm_has_read_a_sentence_does_not_hang_on_its_id(folder):
    """The halves are of text; speech with the same words is labelled by the LM that has not read them."""
    lines = tiny_sentences(24, seed=4)
    (folder / "text.jsonl").write_text(
        "\n".join(json.dumps({"id": f"t{n}", "text": line}) for n, line in enumerate(lines))
    )
    options = ["--manifest", "text.jsonl", "--transcripts", "cross-fit", "--name", "halves", *SMALL]
    CliRunner().invoke(lm_app, ["train", "--unit", "subword", *options], catch_exceptions=False)
    speech = [json.dumps({"id": f"s{n}", "text": line.upper()}) for n, line in enumerate(lines)]
    (folder / "speech.jsonl").write_text("\n".join(speech))
    units = Units(folder / "units")
    rows = {}
    for name in ("text", "speech"):
        teacher = load_unit_lm(folder / "lm" / "halves")
        dump(folder / f"{name}.jsonl", folder / name, teacher, config=DumpConfig(k=4), subwords=units.spelling(SUBWORD))
        reader = LabelReader.open(folder / name)
        rows[name] = reader.block([f"{name[0]}{n}" for n in range(len(lines))]).topk
    np.testing.assert_array_equal(rows["speech"].gold_logp_N, rows["text"].gold_logp_N)


def test_an_lm_does_not_label_text_that_it_has_learnt_from(folder, caplog):
    lines = tiny_sentences(40, seed=5)
    (folder / "read.txt").write_text("\n".join(lines))
    (folder / "read.jsonl").write_text(
        "\n".join(json.dumps({"id": f"t{n}", "text": line}) for n, line in enumerate(lines))
    )
    CliRunner().invoke(lm_app, ["train", "--unit", "subword", "--text", "read.txt", *SMALL], catch_exceptions=False)
    units = Units(folder / "units")
    teacher = load_unit_lm(folder / "lm" / "subword")
    with pytest.raises(UserError, match=r"has learnt from [78]\d% of these sentences.*cross-fit"):
        dump(
            folder / "read.jsonl",
            folder / "store",
            teacher,
            config=DumpConfig(k=4),
            units=units,
            subwords=units.spelling(SUBWORD),
        )
    dump(
        folder / "read.jsonl", folder / "store", teacher, config=DumpConfig(k=4), subwords=units.spelling(SUBWORD)
    )  # transcripts: said
    assert "there it repeats the words" in caplog.text
