"""Text without sound: a manifest of sentences, and labels whose units are those of speech with the same words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hkd import manifest as manifests
from hkd.align.alignment import Alignment, aligned_to_units, sequence_digest
from hkd.cli.main import app
from hkd.corpora import Report
from hkd.errors import UserError
from hkd.labelling.dump import DumpConfig, DumpJob, execute
from hkd.labelling.lm_data import SentencesConfig, prepare_sentences
from hkd.labels.store import LabelReader
from hkd.manifest import Manifest, Utterance
from hkd.testing.teachers import tiny_sentences
from hkd.units.sequences import Units
from hkd.units.text import text_digest, words


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Manifest]:
    """make(LINES, ...): the manifest of a text of these lines, in a project that has no units yet."""

    def do(*lines: str, **options: object) -> Manifest:
        (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = {"units": Units(tmp_path / "units"), "overwrite": True, **options}
        return prepare_sentences([tmp_path / "a.txt"], tmp_path / "text.jsonl", **options)  # type: ignore[arg-type]

    return do


def test_an_id_is_of_the_words_and_stays_where_lines_are_put_in(make: Callable[..., Manifest], tmp_path: Path) -> None:
    before = make("The cat sat.", "Good morning!")
    assert [u.id for u in before] == [
        f"text-{text_digest(said).hex()}" for said in (["the", "cat", "sat"], ["good", "morning"])
    ]
    report = Report()
    after = make("", "It rains.", "the cat, sat", "The cat sat.", "Good morning!", report=report)
    assert {u.id: " ".join(words(u.text)) for u in before}.items() <= {
        u.id: " ".join(words(u.text)) for u in after
    }.items()
    assert [u.id for u in after][1:3] == [before[0].id, f"{before[0].id}-2"]
    assert report.note_lines() == [
        "1 sentences have the words of an earlier one and are kept, with ids that end in -2, -3 ..."
    ]
    assert [u.audio_filepath for u in after] == [None] * 4
    assert manifests.read(tmp_path / "text.jsonl").digest == after.digest


def test_what_is_left_out_is_counted_and_listed(make: Callable[..., Manifest], tmp_path: Path) -> None:
    report = Report()
    transcripts = Manifest([Utterance(id="u", text="Open the door!")])
    whole = make(
        "The cat sat.", " ", "%", "open the DOOR", "one two three four five", "Łódź is mp3.", "Is it?", report=report,
        transcripts=transcripts, config=SentencesConfig(max_words=4),
    )  # fmt: skip
    assert [u.text for u in whole] == ["The cat sat.", "Is it?"]
    rows = [line.split("\t") for line in (tmp_path / "text-left-out.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert rows == [
        ["lines without words", "a.txt:2:"],
        ["lines without words", "a.txt:3: %"],
        ["sentences that are transcripts of the project", "a.txt:4: open the DOOR"],
        ["sentences of more than 4 words", "a.txt:5: one two three four five"],
        ["sentences with a word that has no pronunciation", "a.txt:6: łódź"],
    ]
    with pytest.raises(UserError, match="none is left"):
        make("", "%")


def test_a_shuffled_text_has_the_same_words_and_lengths_and_a_part_has_so_many_words(
    make: Callable[..., Manifest],
) -> None:
    lines = [" ".join(["the", "cat", "sat", "on", "that", "mat", "and", "slept"][: 2 + n % 7]) for n in range(40)]
    whole = make(*lines)
    shuffled = make(*lines, config=SentencesConfig(shuffle=True))
    assert [len(words(u.text)) for u in shuffled] == [len(words(u.text)) for u in whole]
    pool, before = ([word for u in found for word in words(u.text)] for found in (shuffled, whole))
    assert sorted(pool) == sorted(before)
    assert pool != before
    assert make(*lines, config=SentencesConfig(shuffle=True)).digest == shuffled.digest
    part = make(*lines, config=SentencesConfig(total_words=60))
    assert 60 <= sum(len(words(u.text)) for u in part) < 60 + 8
    assert {u.text for u in part} <= {u.text for u in whole}
    with pytest.raises(UserError, match="`total_words` must be at least 1"):
        SentencesConfig(total_words=-1)


def test_other_sentences_are_refused_and_the_same_change_nothing(make: Callable[..., Manifest], tmp_path: Path) -> None:
    make("The cat sat.")
    before, report = (tmp_path / "text.jsonl").read_bytes(), Report()
    make("", "The cat sat.", overwrite=False, report=report)
    assert report.outcome == "up to date"
    assert (tmp_path / "text.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="--overwrite"):
        make("The cat sat.", "It rains.", overwrite=False)


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with text.jsonl: the words of its utterances, and more sentences."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("text") / "project")
    spoken = [u.text for u in manifests.read(folder / "manifest.jsonl")]
    (folder / "mine.txt").write_text("\n".join([*spoken, *tiny_sentences(60, seed=3)]), encoding="utf-8")
    prepare_sentences([folder / "mine.txt"], folder / "text.jsonl", units=Units(folder / "units"))
    return folder


def stores(project: Path, lm: str, unit: str) -> tuple[LabelReader, LabelReader]:
    """A teacher's labels of the speech, and of the text."""
    units = project / "units"
    shared = {
        "lm": lm,
        "unit": unit,
        "store": DumpConfig(k=8),
        "inventory": units / f"{unit}.json",
        "subwords": units / f"{unit}.model",
    }
    shared = {name: value for name, value in shared.items() if not isinstance(value, Path) or value.exists()}
    speech = DumpJob(
        manifest=project / "manifest.jsonl",
        out=project / "shards" / unit,
        alignment=project / "alignment.arrow",
        **shared,
    )
    text = DumpJob(manifest=project / "text.jsonl", out=project / "text-shards" / unit, units=units, **shared)
    for job in (speech, text):
        assert execute(job, overwrite=True).left_out == {}
    return LabelReader.open(speech.out), LabelReader.open(text.out)


def test_phones_of_text_are_those_of_the_alignment_where_words_have_one_pronunciation(project: Path) -> None:
    speech, text = stores(project, "phone-trigram", "monophone")
    units, alignment = Units(project / "units"), Alignment(project / "alignment.arrow")
    words_compared = same = 0
    for utterance in manifests.read(project / "manifest.jsonl"):
        said = words(utterance.text)
        name = f"text-{text_digest(said).hex()}"
        unit_U, word_U = units.encode(said, "monophone")
        assert text.unit_digest(name) == sequence_digest(unit_U)
        heard_U, heard_word_U = aligned_to_units(alignment[utterance.id], "monophone", alignment.silences["monophone"])
        for number, word in enumerate(said):
            if len(units.lexicon.variants(word)) == 1:
                words_compared += 1
                assert np.array_equal(unit_U[word_U == number], heard_U[heard_word_U == number])
        if np.array_equal(unit_U, heard_U):  # the others said a word in another way than the first of its dictionary
            same += 1
            heard, read = speech.block([utterance.id]), text.block([name])
            assert speech.unit_digest(utterance.id) == text.unit_digest(name)
            assert np.array_equal(heard.topk.ids_NK, read.topk.ids_NK)
            assert np.array_equal(heard.topk.logp_NK, read.topk.logp_NK)
    assert words_compared >= 20
    assert same >= 1
    assert text.spec.alignment_digest is None
    assert len(text) == len(manifests.read(project / "text.jsonl"))


def test_the_command_labels_text_at_every_level_as_speech(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    run = CliRunner()

    def hkd(*arguments: str) -> str:
        result = run.invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    (project / "lm.txt").write_text("\n".join(tiny_sentences(80, seed=9)), encoding="utf-8")
    small = [
        "--text",
        "lm.txt",
        "--steps",
        "2",
        "--set",
        "sizes.width=8",
        "--set",
        "batch_sentences=4",
        "--set",
        "held_out=0.2",
    ]
    units = Units(project / "units")
    for unit in ("subword", "senone"):
        hkd("lm", "train", "--unit", unit, *small, "--set", "ngram_order=2", "--set", "given=outside-position")
        hkd("teacher-dump", "--lm", unit, "--unit", unit, "--k", "4")
        report = json.loads(hkd("teacher-dump", "--text", "--lm", unit, "--unit", unit, "--k", "4", "--json"))
        assert report["go_on"] == ""
        text = LabelReader.open(project / "text-shards" / unit)
        for utterance in manifests.read(project / "text.jsonl"):
            assert text.unit_digest(utterance.id) == sequence_digest(units.encode(words(utterance.text), unit)[0])
    speech, text = (LabelReader.open(project / name / "subword") for name in ("shards", "text-shards"))
    for utterance in manifests.read(project / "manifest.jsonl"):
        name = f"text-{text_digest(words(utterance.text)).hex()}"
        assert speech.unit_digest(utterance.id) == text.unit_digest(name)
        assert np.array_equal(speech.block([utterance.id]).topk.logp_NK, text.block([name]).topk.logp_NK)
    refused = run.invoke(
        app,
        [
            "teacher-dump",
            "--text",
            "--manifest",
            "manifest.jsonl",
            "--lm",
            "subword",
            "--unit",
            "subword",
            "--out",
            "x",
        ],
    )
    assert refused.exit_code == 2
    assert "without sound" in refused.stderr
