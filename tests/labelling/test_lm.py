"""train_lm on a few hundred sentences: the report, the folder, cross-fitting, and being killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.errors import UserError
from hkd.files import digest_of_file
from hkd.labelling import lm as lm_module
from hkd.labelling.lm import LmConfig, LmLoopConfig, LmReport, render, train_lm
from hkd.manifest import Manifest, Utterance
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.cloze import UnitLmSizes
from hkd.teachers.unit_lm import CrossFitTeacher, load_unit_lm
from hkd.testing.teachers import tiny_sentences
from hkd.units.sequences import Units, train_units
from hkd.units.text import text_digest, words

SENTENCES = tiny_sentences(180)
TEXT, SPOKEN = SENTENCES[:150], SENTENCES[150:]
LOOP = LmLoopConfig(max_steps=12, learning_rate=1e-2, warmup_steps=2, log_every=4, save_every=4)
CONFIG = LmConfig(
    neural=True,
    unit="monophone",
    sizes=UnitLmSizes(width=8),
    loop=LOOP,
    batch_sentences=8,
    held_out=0.1,
    max_scored_positions=300,
    ngram_order=3,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Units:
    folder = tmp_path_factory.mktemp("units")
    train_units(SENTENCES, folder, vocab_size=80)
    return Units(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(TEXT) + "\n")
    return path


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Thirty utterances, the last two of which say what the first two say."""
    return Manifest(Utterance(id=f"u{n}", text=line) for n, line in enumerate([*SPOKEN, *SPOKEN[:2]]))


def sentence(units: Units, line: str, level: str, name: str = "x") -> Sentence:
    unit_U, word_U = units.encode(words(line), level)
    return Sentence(id=name, unit_U=unit_U, word_U=word_U, text=digest(line))


def digest(line: str) -> bytes:
    return text_digest(words(line))


@pytest.mark.parametrize(
    ("unit", "direction"), [("subword", "cloze"), ("monophone", "causal"), ("senone", "cloze"), ("senone", "causal")]
)
def test_each_level_gives_a_report_and_a_teacher(unit, direction, units, text, tmp_path):
    report = train_lm(
        replace(CONFIG, unit=unit, direction=direction), texts=[text], units=units, folder=tmp_path / "lm"
    )
    table = report.figures["text"]
    assert 1 < table["ngram"]["perplexity"] < table["unigram"]["perplexity"] < len(units.inventory(unit))
    assert report.teacher == ("neural" if table["neural"]["perplexity"] < table["ngram"]["perplexity"] else "ngram")
    assert LmReport.load(tmp_path / "lm" / "report.json") == report
    assert report.teacher in render(asdict(report)).replace("-", "")
    assert not (tmp_path / "lm" / "work").exists()
    assert load_unit_lm(tmp_path / "lm").info.kind == ("ngram" if report.teacher == "ngram" else direction)
    for verdict, kind in (("neural", direction), ("ngram", "ngram")):
        teacher = loaded(tmp_path / "lm", verdict)
        assert teacher.info.kind == kind
        assert teacher.info.direction == ("left" if direction == "causal" else "both")
        assert teacher.info.trained_on_transcripts == "no"
        assert teacher.inventory.digest == units.inventory(unit).digest
        asked = sentence(units, SPOKEN[0], unit)
        row = teacher.score([asked], k=5)[0]
        assert len(row) == len(asked.unit_U)
        np.testing.assert_allclose(np.exp(row.logp_NK).sum(1) + np.exp(row.tail_N), 1, atol=1e-4)


def loaded(folder: Path, verdict: str) -> Teacher:
    """The teacher that a report with another verdict would make."""
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**report, "teacher": verdict}))
    return load_unit_lm(folder)


def test_the_reports_perplexity_is_the_teachers(units, text, tmp_path, manifest):
    """Recomputed from the finished folder, on all transcripts."""
    report = train_lm(
        replace(CONFIG, max_scored_positions=10**6),
        texts=[text],
        units=units,
        folder=tmp_path / "lm",
        manifest=manifest,
    )
    assert report.judged_on == "transcripts"
    for kind in ("neural", "ngram"):
        rows = loaded(tmp_path / "lm", kind).score([sentence(units, u.text, "monophone") for u in manifest], k=3)
        nats = -np.concatenate([row.gold_logp_N for row in rows]).mean()
        assert report.figures["transcripts"][kind]["perplexity"] == pytest.approx(np.exp(nats), rel=1e-4)


def test_a_neural_lm_that_beats_the_n_gram_is_the_teacher_and_else_the_n_gram_is(units, text, tmp_path):
    weak = train_lm(CONFIG, texts=[text], units=units, folder=tmp_path / "weak")
    assert weak.teacher == "ngram"
    assert load_unit_lm(tmp_path / "weak").info.kind == "ngram"
    assert "The n-gram is the teacher" in render(asdict(weak))
    longer = replace(LOOP, max_steps=150, save_every=100, learning_rate=2e-2)
    strong = train_lm(
        replace(CONFIG, loop=longer, sizes=UnitLmSizes(width=24, dropout=0.0), ngram_order=2, batch_sentences=16),
        texts=[text],
        units=units,
        folder=tmp_path / "strong",
    )
    assert strong.teacher == "neural"
    assert load_unit_lm(tmp_path / "strong").info.kind == "cloze"


def test_little_text_makes_an_n_gram_alone_and_a_neural_lm_can_be_added(units, text, tmp_path):
    folder, default = tmp_path / "lm", replace(CONFIG, neural=None)
    alone = train_lm(default, texts=[text], units=units, folder=folder)
    assert set(alone.figures["text"]) == {"ngram", "unigram", "positions"}
    assert (alone.teacher, alone.steps, alone.is_neural) == ("ngram", 0, False)
    assert "--set neural=true" in render(asdict(alone))
    assert load_unit_lm(folder).info.kind == "ngram"
    before = (folder / "ngram.arpa").read_bytes()
    both = train_lm(CONFIG, texts=[text], units=units, folder=folder)
    assert both.figures["text"]["ngram"] == alone.figures["text"]["ngram"]
    assert both.is_neural
    assert (folder / "ngram.arpa").read_bytes() == before
    # what is there is more than was asked for
    assert train_lm(default, texts=[text], units=units, folder=folder) == both


@pytest.mark.parametrize("unit", ["subword", "senone"])
def test_cross_fitting_keeps_an_utterances_text_from_the_lm_that_labels_it(
    unit, units, manifest, tmp_path, monkeypatch
):
    seen: list[list[bytes]] = []
    real = lm_module.LmTask

    def recording(model, corpus, **rest):
        seen.append([unit_U.tobytes() for unit_U in corpus])
        return real(model, corpus, **rest)

    monkeypatch.setattr(lm_module, "LmTask", recording)
    source = tmp_path / "text.txt"
    source.write_text("\n".join([*TEXT[:60], SPOKEN[3].upper(), SPOKEN[4]]))  # transcripts that stand in the text, too
    config = replace(CONFIG, unit=unit, transcripts="cross-fit", folds=3)
    report = train_lm(config, texts=[source], units=units, folder=tmp_path / "lm", manifest=manifest)
    assert report.text["left_out"] == 2
    teacher = load_unit_lm(tmp_path / "lm")
    assert isinstance(teacher, CrossFitTeacher)
    assert teacher.info.trained_on_transcripts == "cross-fitted"
    assert len({teacher.fold(digest(u.text)) for u in manifest}) == 3
    for utterance in manifest:
        key = units.encode(words(utterance.text), unit)[0].tobytes()
        for fold in range(3):
            assert (key in seen[fold]) == (fold != teacher.fold(digest(utterance.text)))
    # and the right fold answers, whatever stands together in the call
    asked = [sentence(units, u.text, unit, u.id) for u in manifest]
    for verdict in ("neural", "ngram"):
        whole = loaded(tmp_path / "lm", verdict)
        rows = whole.score(asked, k=4)
        for one, row in zip(asked, rows, strict=True):
            alone = whole._teachers[whole.fold(one.text)].score([one], k=4)[0]
            np.testing.assert_allclose(row.gold_logp_N, alone.gold_logp_N, atol=1e-4)
    assert whole.fold(digest("never heard of")) == 0


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): digest_of_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("transcripts", ["none", "cross-fit"])
def test_stopped_anywhere_and_started_again_ends_with_the_same_bytes(units, text, manifest, tmp_path, transcripts):
    config = replace(CONFIG, transcripts=transcripts)
    calls = 0

    def count(done, total, **facts):
        nonlocal calls
        calls += 1

    train_lm(config, texts=[text], units=units, folder=tmp_path / "whole", manifest=manifest, progress=count)
    assert calls > 5
    kills = 0
    for stop in (1, 2, 3, 5, 7, 9, calls + 1):  # calls of a run that goes on where the one before was killed
        at = 0

        def kill(done, total, stop=stop, **facts):
            nonlocal at
            at += 1
            if at == stop:
                raise KilledError

        try:
            train_lm(config, texts=[text], units=units, folder=tmp_path / "cut", manifest=manifest, progress=kill)
        except KilledError:
            kills += 1
    assert kills >= 4
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_lm as t
calls = 0
def progress(done, total, **facts):
    global calls
    calls += 1
    if calls == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
units, texts, folder = t.Units(Path(sys.argv[2])), [Path(sys.argv[3])], Path(sys.argv[4])
t.train_lm(t.CONFIG, texts=texts, units=units, folder=folder, progress=progress)
"""


def test_sigkill(units, text, tmp_path):
    train_lm(CONFIG, texts=[text], units=units, folder=tmp_path / "whole")
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(Path(__file__).parent),
        str(units.folder),
        str(text),
        str(tmp_path / "cut"),
    ]
    killed = subprocess.run([*command, "9"], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "report.json").exists()
    (tmp_path / "cut" / ".config.json.x1.tmp").write_text("half a fi")  # as a kill while writing leaves it
    train_lm(CONFIG, texts=[text], units=units, folder=tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_what_is_finished_is_left_and_what_differs_is_refused(units, text, manifest, tmp_path):
    folder = tmp_path / "lm"
    first = train_lm(CONFIG, texts=[text], units=units, folder=folder)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert train_lm(CONFIG, texts=[text], units=units, folder=folder) == first
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times
    other = replace(CONFIG, sizes=UnitLmSizes(width=10))
    with pytest.raises(UserError, match=r"config\.sizes\.width.*8.*10"):
        train_lm(other, texts=[text], units=units, folder=folder)
    with pytest.raises(UserError, match="manifest"):
        train_lm(CONFIG, texts=[text], units=units, folder=folder, manifest=manifest)
    assert train_lm(other, texts=[text], units=units, folder=folder, overwrite=True).sizes["width"] == 10
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="something else"):
        train_lm(CONFIG, texts=[text], units=units, folder=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": "word"},
        {"direction": "right"},
        {"given": "left"},
        {"given": "outside-phone"},
        {"direction": "causal", "given": "outside-position"},
        {"folds": 1},
        {"held_out": 0.0},
        {"ngram_order": 6},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match="`"):
        replace(CONFIG, **wrong)


def test_nothing_to_train_on_is_refused(units, tmp_path):
    with pytest.raises(UserError, match="--text"):
        train_lm(CONFIG, texts=[], units=units, folder=tmp_path / "lm")
    with pytest.raises(UserError, match="manifest"):
        train_lm(replace(CONFIG, transcripts="cross-fit"), texts=[], units=units, folder=tmp_path / "lm")
    with pytest.raises(UserError, match=r"none\.txt"):
        train_lm(CONFIG, texts=[tmp_path / "none.txt"], units=units, folder=tmp_path / "lm")
