"""Greedy decoding and prefix beam search: hypotheses held against the enumeration of all paths."""

import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.decode.ctc import BeamConfig, Ranked, WordFusion, beam_search, collapse, greedy_ctc, prefix_tree
from hkd.decode.lm import ArpaLm
from hkd.errors import UserError


def oracle(path: list[int]) -> list[int]:
    """torch.unique_consecutive, then the blank out."""
    return [c - 1 for c in torch.unique_consecutive(torch.tensor(path, dtype=torch.long)).tolist() if c]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_collapse_equals_unique_consecutive(path: list[int]) -> None:
    assert collapse(path) == oracle(path)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_a_batch_decodes_like_its_utterances_whatever_the_padding_holds(paths: list[list[int]], random) -> None:  # type: ignore[no-untyped-def]
    width = max(map(len, paths))
    padded = [p + [random.randrange(5) for _ in range(width - len(p))] for p in paths]
    logits_BTV = torch.nn.functional.one_hot(torch.tensor(padded), 5).float()
    decoded = greedy_ctc(logits_BTV, torch.tensor([len(p) for p in paths]))
    assert decoded == [oracle(p) for p in paths]


def test_repeated_units_need_a_blank_between() -> None:
    assert collapse([0, 2, 2, 0, 2, 1, 1, 0]) == [1, 1, 0]


def test_no_frames_no_units() -> None:
    assert greedy_ctc(torch.zeros(2, 3, 4), torch.tensor([0, 3])) == [[], []]


def test_lengths_past_the_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="length_B must lie within 0 and 3"):
        greedy_ctc(torch.zeros(1, 3, 4), torch.tensor([4]))


UNBOUNDED = BeamConfig(beam=10**6, units=10**6, threshold=1e9)
SYMBOLS = ("▁a", "b", "▁b", "▁")  # pieces of the made-up words below


def random_logp(seed: int, frames: int, classes: int, sharpness: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(frames, classes)) * sharpness
    return torch.log_softmax(torch.as_tensor(logits, dtype=torch.float32), -1).numpy()


def all_paths(logp_TV: np.ndarray) -> dict[tuple[int, ...], float]:
    """Units → log of the sum of the probabilities of all paths that collapse to them."""
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    frames, classes = logp_TV.shape
    for path in itertools.product(range(classes), repeat=frames):
        sums[tuple(collapse(list(path)))] += math.exp(sum(float(logp_TV[t, c]) for t, c in enumerate(path)))
    return {units: math.log(p) for units, p in sums.items()}


@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_without_bounds_it_is_exact(seed: int, frames: int, classes: int) -> None:
    logp_TV = random_logp(seed, frames, classes)
    wanted = all_paths(logp_TV) if frames else {(): 0.0}
    found = beam_search(logp_TV, config=UNBOUNDED, n_best=10**6)
    assert {r.units: r.ctc for r in found} == pytest.approx(wanted, abs=1e-5)
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_sum_equals_torchs_ctc_loss(seed: int) -> None:
    logp_TV = random_logp(seed, 6, 4)
    best = beam_search(logp_TV, config=UNBOUNDED)[0]
    target = torch.tensor([u + 1 for u in best.units])
    loss = torch.nn.functional.ctc_loss(
        torch.as_tensor(logp_TV)[:, None], target[None], torch.tensor([6]), torch.tensor([len(target)]), reduction="sum"
    )
    assert best.ctc == pytest.approx(-float(loss), abs=1e-4)


ARPA = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-0.7 <unk>
-99 <s> -0.3
-0.6 </s>
-0.5 a -0.2
-0.9 ab -0.4

\\2-grams:
-0.2 <s> a
-0.4 a ab
-0.1 ab </s>
-0.6 a </s>

\\end\\
"""


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> ArpaLm:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(ARPA)
    return ArpaLm(path)


def sentence_score(lm: ArpaLm, spoken: list[str], weight: float, bonus: float) -> float:
    state, total = lm.start(), 0.0
    for word in spoken:
        state, logp = lm.extend(state, word)
        total += weight * logp + bonus
    return total + weight * lm.finish(state)


def spoken_words(units: tuple[int, ...]) -> list[str]:
    return "".join(SYMBOLS[u] for u in units).replace("▁", " ").split()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_lexicon", [False, True])
def test_with_a_language_model_it_is_exact(lm: ArpaLm, seed: int, with_lexicon: bool) -> None:
    logp_TV = random_logp(seed, 5, len(SYMBOLS) + 1, sharpness=1.0)
    lexicon = {"a": (0,), "ab": (0, 1), "b": (2,)} if with_lexicon else None
    tree = None if lexicon is None else prefix_tree(lexicon, lexicon.__getitem__, lm.unigram)
    fusion = WordFusion(lm, SYMBOLS, weight=0.7, bonus=0.3, lexicon=tree)
    found = beam_search(logp_TV, config=UNBOUNDED, fusion=fusion, n_best=10**6)
    allowed = (
        {
            tuple(u for word in row for u in lexicon[word])
            for n in range(6)
            for row in itertools.product(lexicon, repeat=n)
        }
        if lexicon
        else None
    )
    wanted = {
        units: ctc + sentence_score(lm, spoken_words(units), 0.7, 0.3)
        for units, ctc in all_paths(logp_TV).items()
        if allowed is None or units in allowed
    }
    assert {r.units: r.score for r in found} == pytest.approx(wanted, abs=1e-5)
    assert found[0].units == max(wanted, key=wanted.__getitem__)


def test_the_lookahead_changes_no_total(lm: ArpaLm) -> None:
    lexicon = {"a": (0,), "ab": (0, 1), "b": (2,)}
    logp_TV = random_logp(1, 6, len(SYMBOLS) + 1)

    def scores(tree_scores: bool) -> dict[tuple[int, ...], float]:
        tree = (
            prefix_tree(lexicon, lexicon.__getitem__, lm.unigram)
            if tree_scores
            else prefix_tree(lexicon, lexicon.__getitem__)
        )
        fusion = WordFusion(lm, SYMBOLS, lexicon=tree)
        return {r.units: r.score for r in beam_search(logp_TV, config=UNBOUNDED, fusion=fusion, n_best=99)}

    assert scores(True) == pytest.approx(scores(False), abs=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_a_narrow_beam_never_overrates_and_a_sharp_output_gives_the_greedy_path(seed: int) -> None:
    logp_TV = random_logp(seed, 12, 6)
    best = beam_search(logp_TV, config=BeamConfig(beam=4, threshold=1e9))[0]
    target = torch.tensor([u + 1 for u in best.units])[None]
    loss = torch.nn.functional.ctc_loss(
        torch.as_tensor(logp_TV)[:, None], target, torch.tensor([12]), torch.tensor([target.numel()]), reduction="sum"
    )
    assert best.ctc <= -float(loss) + 1e-4
    logits_BTV = torch.nn.functional.one_hot(torch.as_tensor(logp_TV).argmax(-1), 6).float()[None] * 50
    [best] = beam_search(logits_BTV[0].log_softmax(-1).numpy())
    assert list(best.units) == greedy_ctc(logits_BTV, torch.tensor([12]))[0]


def test_nothing_where_the_lexicon_lets_nothing_end() -> None:
    tree = prefix_tree(["ab"], lambda _: (0, 1))
    logp_TV = np.log(np.array([[1e-30, 1.0, 1e-30, 1e-30, 1e-30]], np.float32))
    assert beam_search(logp_TV, config=BeamConfig(beam=1), fusion=WordFusion(None, SYMBOLS, lexicon=tree)) == []


def test_settings_are_checked() -> None:
    for change in ({"beam": 0}, {"units": 0}, {"threshold": 0.0}):
        with pytest.raises(UserError, match=f"beam.{next(iter(change))}"):
            BeamConfig(**change)  # type: ignore[arg-type]
    assert Ranked(units=(1,), ctc=-1.0, fusion=-0.5).score == -1.5


def test_arpa_backs_off(lm: ArpaLm) -> None:
    ten = math.log(10)
    state, logp = lm.extend(lm.start(), "a")
    assert logp == pytest.approx(-0.2 * ten)
    _, logp = lm.extend(lm.start(), "ab")
    assert logp == pytest.approx((-0.3 - 0.9) * ten)
    after, logp = lm.extend(state, "ab")
    assert logp == pytest.approx(-0.4 * ten)
    assert lm.finish(after) == pytest.approx(-0.1 * ten)
    unknown, logp = lm.extend(state, "zebra")
    assert logp == pytest.approx(-0.7 * ten)
    assert lm.finish(unknown) == pytest.approx(-0.6 * ten)


def test_what_is_no_arpa_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.arpa").write_text("no model")
    with pytest.raises(UserError, match="must be an ARPA"):
        ArpaLm(tmp_path / "x.arpa")
    with pytest.raises(UserError, match="No such file"):
        ArpaLm(tmp_path / "y.arpa")
