"""The comparison's parts: unigram, sampling, and kaldingram's determinism."""

import numpy as np
import pytest

from hkd.labelling.ngram import figures, sample, summed, train_ngram, unigram, unigram_figures
from hkd.teachers.cloze import SenoneMap
from hkd.teachers.ngram import load_ngram
from hkd.units.inventory import UnitInventory

SENONES = SenoneMap(phone_of_V=np.array([0, 0, 1, 1]), state_of_V=np.array([0, 1, 0, 1]))


def text(num=50):
    rng = np.random.default_rng(0)
    return [rng.integers(4, size=rng.integers(1, 9)).astype(np.int32) for _ in range(num)]


def test_the_unigram_sums_to_one_for_what_is_given():
    counts_V = np.array([3, 0, 7, 2])
    assert np.exp(unigram(counts_V, None)).sum() == pytest.approx(1)
    p_V = np.exp(unigram(counts_V, SENONES))
    assert p_V[[0, 2]].sum() == pytest.approx(1)
    assert p_V[[1, 3]].sum() == pytest.approx(1)
    nats, hits, count = unigram_figures(np.log(p_V), SENONES, [np.array([0, 1], np.int32), np.array([2, 3], np.int32)])
    assert (hits, count) == (2, 4)  # the likelier of 0 and 2 is 2, of 1 and 3 it is 3
    assert nats == pytest.approx(-np.log(p_V).sum())


def test_a_sample_is_of_whole_sentences_enough_and_the_same_for_the_same_seed():
    sentences = text()
    chosen = sample(sentences, max_positions=60, seed=0)
    assert 60 <= sum(map(len, chosen)) < 69
    keys = [u.tobytes() for u in sentences]
    assert all(u.tobytes() in keys for u in chosen)
    assert [u.tobytes() for u in chosen] == [u.tobytes() for u in sample(sentences, max_positions=60, seed=0)]
    assert len(sample(sentences, max_positions=10**6, seed=0)) == len(sentences)


def test_the_n_gram_is_the_same_bytes_and_its_figures_are_its_rows(tmp_path):
    for name in ("a", "b"):
        train_ngram(text(), tmp_path / name, order=3, work=tmp_path / "work")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    inventory = UnitInventory(level="monophone", symbols=tuple("wxyz"))
    teacher = load_ngram(tmp_path / "a", inventory=inventory, tokens="id")
    nats, hits, count = 0.0, 0, 0
    for rows in teacher.logits(text()):
        p_NV = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        gold_N = np.concatenate(text())
        nats -= np.log(p_NV[np.arange(len(gold_N)), gold_N]).sum()
        hits += int((p_NV.argmax(1) == gold_N).sum())
        count += len(gold_N)
    want = summed([(nats, hits, count)])
    got = summed([figures(teacher, text())])
    assert got["perplexity"] == pytest.approx(want["perplexity"], rel=1e-5)
    assert got["top1"] == want["top1"]
    halves = [figures(teacher, text()[:20]), figures(teacher, text()[20:])]
    assert summed(halves)["perplexity"] == pytest.approx(got["perplexity"], rel=1e-6)
