"""Tying by a tree: likelihoods against Kaldi's, questions and splits against what the data was made by."""

import json
import subprocess
import sys

import numpy as np
import pytest

from hkd.labelling.tie import Statistics, grow_tree, log_likelihood, phone_questions
from hkd.units.kaldi import parse_tree

VOWELS, CONSONANTS, SILENCE = (2, 3, 4), (5, 6, 7, 8), 1
FLOOR_F = np.full(3, 1e-8)


def sums(x_TF: np.ndarray) -> np.ndarray:
    return np.concatenate([[len(x_TF)], x_TF.sum(0), (x_TF**2).sum(0)])


def made_up(seed: int = 0, frames: int = 40) -> Statistics:
    """Phones alike in two groups; the last state hears whether a vowel follows, the first whether silence stands
    before."""
    rng = np.random.default_rng(seed)
    rows = []
    for phone in (*VOWELS, *CONSONANTS):
        for left in (SILENCE, *VOWELS, *CONSONANTS):
            for right in (SILENCE, *VOWELS, *CONSONANTS):
                for state in range(3):
                    mean = 5.0 * (phone in VOWELS) + 0.2 * phone
                    mean += 3.0 * (state == 2 and right in VOWELS) - 3.0 * (state == 0 and left == SILENCE)
                    x_TF = rng.normal(mean, 1.0, (frames, 2))
                    rows.append(((left, phone, right, state), sums(x_TF)))
    return Statistics(context_M4=np.array([row[0] for row in rows]), sums_MG=np.stack([row[1] for row in rows]))


STATES = dict.fromkeys((SILENCE, *VOWELS, *CONSONANTS), 3)


THEIRS = """
import json, sys
import _kaldi_hmm_gmm as khg
def objective(rows):
    theirs = khg.GaussClusterable(dim=3, var_floor=1e-8)
    for row in rows:
        theirs.add_stats(row, 1.0)
    return theirs.objf()
print(json.dumps([objective(rows) for rows in json.load(sys.stdin)]))
"""


def test_likelihoods_are_kaldis() -> None:
    """Theirs in a process of its own: kaldifst, which other tests import, and this package hang beside each other."""
    random = np.random.default_rng(0)
    cases = [
        random.normal(size=(frames, 3)) * 10.0 ** random.uniform(-1, 1)
        for frames in (2, 3, 5, 9, 17, 50)
        for _ in range(3)
    ]
    told = json.dumps([x_TF.tolist() for x_TF in cases])
    done = subprocess.run(
        [sys.executable, "-c", THEIRS], input=told, capture_output=True, text=True, check=True, timeout=120
    )
    for x_TF, theirs in zip(cases, json.loads(done.stdout), strict=True):
        ours = log_likelihood(sums(x_TF), FLOOR_F)
        assert float(ours) == pytest.approx(theirs, rel=1e-4, abs=1e-3)


def test_questions_are_the_groups_that_sound_alike() -> None:
    questions = phone_questions(made_up(), [*VOWELS, *CONSONANTS])
    assert {frozenset(VOWELS), frozenset(CONSONANTS)} <= set(questions)
    assert all(frozenset((phone,)) in questions for phone in (*VOWELS, *CONSONANTS))
    assert len(questions) == len(set(questions)) == 2 * 7 - 2


def test_the_tree_asks_what_the_data_was_made_by() -> None:
    tree, owner = grow_tree(made_up(), states=STATES, num_senones=24 + 14, whole=[SILENCE])
    assert tree.num_senones == len(owner) == 24 + 14
    for phone in (*VOWELS, *CONSONANTS):
        assert tree.senone((SILENCE, phone, 5), 0) != tree.senone((5, phone, 5), 0)
        assert tree.senone((5, phone, 2), 2) == tree.senone((6, phone, 3), 2) != tree.senone((5, phone, 5), 2)
        assert tree.senone((SILENCE, phone, 2), 1) == tree.senone((5, phone, 5), 1)
        assert owner[tree.senone((2, phone, 2), 1) or 0] == (phone, 1)
    assert tree.senone((2, SILENCE, 5), 0) == tree.senone((5, SILENCE, 2), 0)
    assert parse_tree(tree.to_text().encode()) == tree


def test_the_same_statistics_give_the_same_tree_and_no_senone_has_too_few_frames() -> None:
    one, _ = grow_tree(made_up(), states=STATES, num_senones=60, whole=[SILENCE])
    other, _ = grow_tree(made_up(), states=STATES, num_senones=60, whole=[SILENCE])
    assert one == other
    few, owner = grow_tree(made_up(), states=STATES, num_senones=5000, whole=[SILENCE], min_frames=500)
    stats = made_up()
    frames = np.zeros(len(owner))
    for context, count in zip(stats.context_M4.tolist(), stats.sums_MG[:, 0], strict=True):
        frames[few.senone(context[:3], context[3]) or 0] += count
    speech = [senone for senone, (phone, _) in owner.items() if phone != SILENCE]
    assert frames[speech].min() >= 500
    with pytest.raises(ValueError, match="more than 23"):
        grow_tree(made_up(), states=STATES, num_senones=23)
