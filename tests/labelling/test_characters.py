"""The level of characters from text to a student: an LM of them, its labels, their frames, heads that learn them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.config import build
from hkd.errors import UserError
from hkd.evaluate.heads import frame_figures
from hkd.labelling.dump import DumpConfig, DumpJob, execute
from hkd.labelling.lm import LmConfig, LmLoopConfig, train_lm
from hkd.labels.store import LabelReader
from hkd.stream.join import Join
from hkd.teachers.cloze import UnitLmSizes
from hkd.testing.teachers import tiny_sentences
from hkd.train.config import TrainConfig
from hkd.train.run import train
from hkd.units.inventory import CHARACTER
from hkd.units.sequences import SubwordModel, Units


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an LM of characters and its label store."""
    folder = tmp_path_factory.mktemp("characters") / "project"
    shutil.copytree(prepared, folder)
    (folder / "text.txt").write_text("\n".join(tiny_sentences(120, seed=5)), encoding="utf-8")
    loop = LmLoopConfig(max_steps=6, warmup_steps=2, save_every=3)
    config = LmConfig(
        unit=CHARACTER, sizes=UnitLmSizes(width=8), loop=loop, batch_sentences=8, held_out=0.1, max_scored_positions=200
    )
    report = train_lm(config, texts=[folder / "text.txt"], units=Units(folder / "units"), folder=folder / "lm" / "c")
    assert (report.unit, report.ngram_order) == (CHARACTER, 5)
    job = DumpJob(
        manifest=folder / "manifest.jsonl", out=folder / "shards" / CHARACTER, lm=str(folder / "lm" / "c"),
        unit=CHARACTER,
        store=DumpConfig(k=4), subwords=folder / "units" / "character.model",
    )  # fmt: skip
    assert execute(job).left_out == {}
    return folder


def opened(folder: Path) -> Join:
    return Join(
        manifests.read(folder / "manifest.jsonl"), subwords=SubwordModel(folder / "units" / "subword.model"),
        alignment=Alignment(folder / "alignment.arrow"),
        stores={CHARACTER: LabelReader.open(folder / "shards" / CHARACTER)},
    )  # fmt: skip


def test_characters_lie_where_their_word_does(folder: Path) -> None:
    join = opened(folder)
    join.check(join.manifest)
    symbols = join.spelling(CHARACTER).inventory.symbols
    for utterance in join.manifest:
        row, found = join.alignment[utterance.id], join.segments(utterance.id, CHARACTER)  # type: ignore[index]
        spelled = "".join(symbols[unit] for unit in found.unit_U)
        assert spelled == "".join(f"▁{word}" for word in row.words)
        spans = {
            word: (a, b)
            for word, a, b in zip(
                row.word_tier.unit_U, row.word_tier.start_U1[:-1], row.word_tier.start_U1[1:], strict=True
            )
        }
        word_U = join.spelling(CHARACTER).encode(row.words)[1]
        for word in range(len(row.words)):
            mine = word_U == word
            start_U, stop_U = found.start_U[mine], found.stop_U[mine]
            assert (start_U[0], stop_U[-1]) == spans[word]
            assert np.array_equal(start_U[1:], stop_U[:-1])
            if spans[word][1] - spans[word][0] >= mine.sum():
                assert (stop_U > start_U).all()
                assert stop_U[0] - start_U[0] == 1  # the word mark is no letter: one frame
        store = join.positions(utterance.id, CHARACTER)
        assert np.array_equal(store.unit_U, found.unit_U)
        assert np.array_equal(store.start_U, found.start_U)


def test_a_student_learns_them_in_heads_of_its_own(folder: Path, tmp_path: Path) -> None:
    settings = {
        "objective": "hierarchical", "batch_seconds": 8.0, "encoder": {"d_model": 16, "num_layers": 3, "num_heads": 2},
        "loop": {"max_steps": 2, "save_every": 2, "log_every": 1},
    }  # fmt: skip
    parts = {"alignment": folder / "alignment.arrow", "labels": folder / "shards"}
    train(
        build(TrainConfig, settings, where="train"), tmp_path / "run", manifest=folder / "manifest.jsonl",
        units=folder / "units",
        device="cpu", **parts,
    )  # fmt: skip
    figures = frame_figures(
        tmp_path / "run", manifests.read(folder / "manifest.jsonl"),
        subword_model=tmp_path / "run" / "model" / "subword.model",
        units=folder / "units", **parts,
    )  # fmt: skip
    assert set(figures) == {"kd-character", "hard-character"}
    assert figures["kd-character"]["kl"] > 0


def test_labels_of_another_alphabet_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "p")
    shutil.copy(tmp_path / "p" / "units" / "subword.model", tmp_path / "p" / "units" / "character.model")
    with pytest.raises(UserError, match="must have the student's character inventory"):
        opened(tmp_path / "p")
