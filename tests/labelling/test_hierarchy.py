"""Labels of one level against another's: folding against a dense sum, and stores that agree by construction."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hkd import manifest
from hkd.align.alignment import Alignment, aligned_to_units, sequence_digest
from hkd.errors import UserError
from hkd.labelling.hierarchy import check_hierarchy, fold_rows
from hkd.labels.format import UtteranceLabels
from hkd.labels.store import LabelReader
from hkd.labels.writer import LabelWriter
from hkd.sparse import TopK
from hkd.testing.labelled import label_folder, made_up_topk
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.text import text_digest
from hkd.units.tying import StateTying


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "p")
    return tmp_path / "p"


def test_mass_folds_as_a_dense_sum_says() -> None:
    phone_of_V = np.random.default_rng(0).integers(0, 7, 40)
    rows = made_up_topk(np.arange(30, dtype=np.int32), num_units=40, k=40, seed=1)
    dense_NV = np.zeros((30, 40))
    np.put_along_axis(dense_NV, rows.ids_NK.astype(np.int64), np.exp(rows.logp_NK), 1)
    wanted = np.stack([dense_NV[:, phone_of_V == phone].sum(1) for phone in range(7)], 1)
    assert np.allclose(fold_rows(rows, phone_of_V, 7), wanted)


def senones_that_know_phones(folder: Path, phones: LabelReader, tying: StateTying) -> LabelReader:
    """A senone store that gives each senone of a phone an equal part of the phone's probability in `phones` (dense)."""
    alignment, out = Alignment(folder / "alignment.arrow"), folder / "shards" / SENONE
    reader = LabelReader.open(out)
    of_phone = [np.flatnonzero(tying.phone_of_senone_V == phone) for phone in range(42)]
    whole = manifest.read(folder / "manifest.jsonl")

    def row(name: str) -> UtteranceLabels:
        unit_U, word_U = aligned_to_units(alignment[name], SENONE, alignment.silences[SENONE])
        given = phones.block([name]).topk
        p_NQ = np.zeros((len(given), 42))
        np.put_along_axis(p_NQ, given.ids_NK.astype(np.int64), np.exp(given.logp_NK.astype(np.float64)), 1)
        p_NV = np.zeros((len(given), len(tying.senone_inventory)))
        for phone, senones in enumerate(of_phone):
            p_NV[:, senones] = p_NQ[:, [phone]] / len(senones)
        p_UV = np.maximum(np.repeat(p_NV, 3, axis=0), 1e-12)
        order = np.argsort(-p_UV, 1, kind="stable")[:, :2000]
        topk = TopK(
            ids_NK=order.astype(np.int32), logp_NK=np.log(np.take_along_axis(p_UV, order, 1)).astype(np.float32),
            tail_N=np.log(np.maximum(1e-9, 1 - np.take_along_axis(p_UV, order, 1).sum(1))).astype(np.float32), gold_N=unit_U,
            gold_logp_N=np.log(p_UV[np.arange(len(unit_U)), unit_U]).astype(np.float32),
        )  # fmt: skip
        return UtteranceLabels(
            id=name, topk=topk, word_U=word_U, unit_digest=sequence_digest(unit_U),
            text_digest=text_digest(alignment[name].words),
        )  # fmt: skip

    from dataclasses import replace

    names = [u.id for u in whole][:3]
    writer = LabelWriter.open(folder / "made", replace(reader.spec, k=2000, codec="f16", name="made"), names)
    for shard in writer.pending():
        with writer.claim(shard):
            writer.write_shard(shard, (row(name) for name in writer.shard_ids(shard)))
    writer.finish()
    return LabelReader.open(folder / "made")


def test_senones_that_say_what_the_phones_say_agree_wholly(folder: Path) -> None:
    tying = StateTying()
    readers = label_folder(folder, k={SENONE: 8, MONOPHONE: 42, "subword": 8})
    made = senones_that_know_phones(folder, readers[MONOPHONE], tying)
    report = check_hierarchy({"made": made, MONOPHONE: readers[MONOPHONE]}, tying=tying)
    (fold,) = report.folds
    assert (fold.utterances, fold.other_sequence) == (3, 0)
    assert fold.agreement > 0.95
    assert fold.kl < 0.1
    assert fold.fine_gold == pytest.approx(fold.coarse_gold, abs=0.02)
    random = check_hierarchy(readers, tying=tying)
    (other,) = random.folds
    assert other.kl > 10 * fold.kl
    assert len(random.words) == 3
    assert [row for row in random.words if not (abs(row.correlation) <= 1 and row.words > 10)] == []


def test_what_cannot_be_compared_is_refused_in_a_line(folder: Path) -> None:
    readers = label_folder(folder, levels=(MONOPHONE,))
    with pytest.raises(UserError, match="needs two stores"):
        check_hierarchy(readers, tying=StateTying())
