"""The search graph: what was said comes back; the best path is the one that trying all of them finds."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.decode.graph import (
    SILENCE_PROBABILITY,
    HybridConfig,
    HybridSearch,
    build_graph,
    log_likelihoods,
    log_priors,
    open_graph,
)
from hkd.errors import UserError
from hkd.units.inventory import SENONE, UnitInventory
from hkd.units.kaldi import PDF_CLASS, ConstantMap, ContextTree, SplitMap, TableMap
from hkd.units.lexicon import Lexicon
from hkd.units.tying import StateTying, TreeTying, Tying

WORDS = {"red": -0.3, "read": -0.7, "the": -0.5, "ready": -0.9}  # log10; red and read sound alike, and as ready begins
STOP = -0.6
PAIRS = {
    ("<s>", "ready"): -0.2,
    ("the", "red"): -0.1,
    ("the", "read"): -1.4,
    ("ready", "the"): -0.33,
    ("read", "</s>"): -0.37,
}
BACKOFF = {"<s>": -0.4, "the": -0.6, "ready": -0.2, "read": -0.1}  # of the histories of PAIRS


def write_arpa(path: Path, words: dict[str, float], pairs: dict[tuple[str, str], float] | None = None) -> Path:
    single = {"<s>": -99.0, **words, "</s>": STOP}
    lines = [
        f"{logp}\t{word}" + (f"\t{BACKOFF[word]}" if pairs and word in BACKOFF else "") for word, logp in single.items()
    ]
    parts = [
        "\\data\\",
        f"ngram 1={len(lines)}",
        *([f"ngram 2={len(pairs)}"] if pairs else []),
        "",
        "\\1-grams:",
        *lines,
        "",
    ]
    if pairs:
        parts += ["\\2-grams:", *(f"{logp}\t{first} {second}" for (first, second), logp in pairs.items()), ""]
    path.write_text("\n".join([*parts, "\\end\\", ""]))
    return path


def logp_of(spoken: Sequence[str], pairs: dict[tuple[str, str], float] | None) -> float:
    """log10 of a sentence. As in a graph whose back-off takes no input, a pair that is listed may be had by backing
    off, too."""
    total = 0.0
    for first, second in itertools.pairwise(["<s>", *spoken, "</s>"]):
        backed_off = (WORDS | {"</s>": STOP})[second] + (BACKOFF.get(first, 0.0) if pairs else 0.0)
        total += max(backed_off, (pairs or {}).get((first, second), -math.inf))
    return total


def tree_tying(seed: int = 0) -> TreeTying:
    """A made-up tree over ARPAbet: each state asks which phone is before it, or which is after, in random halves."""
    symbols = StateTying().definition.phones
    phones = {symbol: number for number, symbol in enumerate(symbols, 1)}
    generator, owner, tables = np.random.default_rng(seed), {}, [None]

    def leaf(phone: int, state: int) -> ConstantMap:
        owner[len(owner)] = phone, state
        return ConstantMap(len(owner) - 1)

    for phone in phones.values():
        states = []
        for state in range(3):
            asked = frozenset(np.flatnonzero(generator.random(len(phones) + 1) < 0.5).tolist())
            states.append(SplitMap(2 * int(generator.integers(2)), asked, leaf(phone, state), leaf(phone, state)))
        tables.append(TableMap(PDF_CLASS, tuple(states)))
    tree = ContextTree(width=3, central=1, root=TableMap(1, tuple(tables)))
    return TreeTying(phones=phones, tree=tree, places=dict.fromkeys(phones.values(), (0, 1, 2)), owner=owner)


@pytest.fixture(scope="module", params=["pocketsphinx", "tree"])
def tying(request: pytest.FixtureRequest) -> Tying:
    return StateTying() if request.param == "pocketsphinx" else tree_tying()


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arpa(tmp_path_factory.mktemp("arpa") / "words.arpa", WORDS)


@pytest.fixture(scope="module")
def search(tying: Tying, arpa: Path) -> HybridSearch:
    return exhaustive(tying, arpa)


def exhaustive(tying: Tying, arpa: Path) -> HybridSearch:
    config = HybridConfig(acoustic_scale=1.0, prior_scale=0.0, beam=1e4, max_active=10**6)
    inventory = tying.inventories[SENONE]
    return HybridSearch(config, inventory, np.zeros(len(inventory), np.float32), arpa, tying=tying, lexicon=Lexicon())


def viterbi(states: list[int], logp_TV: np.ndarray) -> float:
    """The best way through the states in order, each for a frame or more."""
    best = np.full(len(states), -math.inf)
    best[0] = logp_TV[0, states[0]]
    for logp_V in logp_TV[1:]:
        best = np.maximum(best, np.concatenate([[-math.inf], best[:-1]])) + logp_V[states]
    return float(best[-1])


def sphinx_states(tying: StateTying, groups: list[list[tuple[str, ...]]], before: bool, after: bool) -> list[int]:
    """Silence is the neighbour at a group's edges, as at an utterance's."""
    silence = tying.definition.senones_PS[tying.definition.silence].tolist()
    states: list[int] = silence[:] if before else []
    for place, part in enumerate(groups):
        states += tying.senones(part)[0].tolist()
        states += silence if place < len(groups) - 1 or after else []
    return states


def tree_states(tying: TreeTying, groups: list[list[tuple[str, ...]]], before: bool, after: bool) -> list[int]:
    """Silence is a phone among phones; beyond the utterance is nothing."""
    silence = [tying.phones["SIL"]]
    phones = silence[:] if before else []
    for place, part in enumerate(groups):
        phones += [label for word in part for label in tying.labels(word)]
        phones += silence if place < len(groups) - 1 or after else []
    return [senone for states in tying.tied(phones) for senone in states]


def paths(
    tying: Tying, most_words: int, pairs: dict[tuple[str, str], float] | None = None
) -> list[tuple[str, float, list[int]]]:
    """(words, log p without sound, states) of all sequences: pronunciations, with silence or not at each place where it
    may be."""
    lexicon, found = Lexicon(), []
    for number in range(1, most_words + 1):
        for spoken in itertools.product(WORDS, repeat=number):
            logp = math.log(10) * logp_of(spoken, pairs)
            for phones in itertools.product(*(dict.fromkeys(lexicon.variants(word)) for word in spoken)):
                for pauses in itertools.product([False, True], repeat=number + 1):
                    groups, group = [], []
                    for pronunciation, pause in zip(phones, pauses[1:], strict=True):
                        group.append(pronunciation)
                        if pause:
                            groups.append(group)
                            group = []
                    groups += [group] if group else []
                    if isinstance(tying, TreeTying):
                        states = tree_states(tying, groups, pauses[0], pauses[-1])
                    else:
                        states = sphinx_states(tying, groups, pauses[0], pauses[-1])
                    found.append((" ".join(spoken), logp + (number + 1) * math.log(SILENCE_PROBABILITY), states))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_best_path_is_that_of_trying_all(tying: Tying, search: HybridSearch, seed: int) -> None:
    check_against_all_paths(tying, search, paths(tying, 2), seed)


@pytest.fixture(scope="module")
def bigram_search(tying: Tying, tmp_path_factory: pytest.TempPathFactory) -> HybridSearch:
    return exhaustive(tying, write_arpa(tmp_path_factory.mktemp("arpa") / "words.arpa", WORDS, PAIRS))


@pytest.mark.parametrize("seed", range(6))
def test_so_it_is_with_a_bigram_that_backs_off(tying: Tying, bigram_search: HybridSearch, seed: int) -> None:
    check_against_all_paths(tying, bigram_search, paths(tying, 2, PAIRS), seed)


def check_against_all_paths(
    tying: Tying, search: HybridSearch, known: list[tuple[str, float, list[int]]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = 24
    logits_TV = torch.randn(frames, len(tying.inventories[SENONE]), generator=generator)
    text, _, states = known[int(torch.randint(len(known), (), generator=generator))]
    states = [state for state in states for _ in range(max(1, frames // len(states)))][:frames]
    states += states[-1:] * (frames - len(states))
    # near one of them, so that the best has two words at most
    logits_TV[torch.arange(frames), torch.tensor(states)] += 3.0
    logp_TV = logits_TV.log_softmax(-1).numpy().astype(np.float64)
    scores = {}
    for text, logp, states in known:
        if len(states) <= frames:
            scores[text] = max(scores.get(text, -math.inf), logp + viterbi(states, logp_TV))
    [units] = search.best(logits_TV[None], torch.tensor([frames]))
    assert len(units) <= 2
    assert search.text(units) == max(scores, key=lambda text: scores[text])


def test_what_was_said_comes_back_whatever_is_beyond_the_end(tying: Tying, search: HybridSearch) -> None:
    lexicon = Lexicon()
    spoken = ["the", "red", "the", "the"]
    unit_U, _ = tying.senones([lexicon.pronounce(word) for word in spoken])
    frames_T = torch.from_numpy(np.repeat(unit_U, 3)).long()
    logits_TV = torch.full((len(frames_T) + 20, len(tying.inventories[SENONE])), -12.0)
    logits_TV[torch.arange(len(frames_T)), frames_T] = 0
    [units] = search.best(logits_TV[None], torch.tensor([len(frames_T)]))
    assert search.text(units) == "the red the the"


def test_a_frame_too_few_for_any_word_gives_nothing(tying: Tying, search: HybridSearch) -> None:
    assert search.best(torch.zeros(1, 2, len(tying.inventories[SENONE])), torch.tensor([2])) == [[]]


def test_likelihoods_are_posteriors_over_priors() -> None:
    frames_V = [7, 0, 2]
    logits_TV = torch.randn(5, 3)
    prior_V = np.array([8, 1, 3]) / 12
    wanted_TV = logits_TV.softmax(-1).numpy() / prior_V**0.4
    found_TV = log_likelihoods(logits_TV, log_priors(frames_V), prior_scale=0.4)
    np.testing.assert_allclose(np.exp(found_TV), wanted_TV, rtol=1e-5)


def test_words_that_nobody_can_pronounce_are_left_out_and_told(
    tmp_path: Path, tying: Tying, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_arpa(tmp_path / "a.arpa", WORDS | {"mp3": -2.0})
    inventory, prior_V = tying.inventories[SENONE], np.zeros(len(tying.inventories[SENONE]), np.float32)
    for _ in range(2):  # the second time from the cache
        search = HybridSearch(HybridConfig(), inventory, prior_V, path, tying=tying, lexicon=Lexicon())
        assert "mp3" not in search.symbols
        [message] = caplog.messages
        assert message.endswith("a.arpa must hold words that the lexicon can pronounce: 1 of 5 are left out (mp3).")
        assert capfd.readouterr().err == ""
        caplog.clear()


def test_a_graph_is_built_once_and_again_where_anything_that_it_is_made_of_differs(
    tmp_path: Path, tying: Tying, arpa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    first, built = open_graph(arpa, tying=tying, lexicon=Lexicon()), build_graph(arpa, tying=tying, lexicon=Lexicon())
    assert (first.words, first.fst.num_states) == (built.words, built.fst.num_states)
    calls: list[Path] = []
    monkeypatch.setattr(
        "hkd.decode.graph.build_graph", lambda path, **rest: calls.append(path) or build_graph(path, **rest)
    )
    again = open_graph(arpa, tying=tying, lexicon=Lexicon())
    assert (again.words, again.fst.num_states) == (built.words, built.fst.num_states)
    assert calls == []
    (tmp_path / "own.dict").write_text("ready R EH D\nred R EH D IY\n")
    open_graph(arpa, tying=tying, lexicon=Lexicon(tmp_path / "own.dict"))
    assert calls == [arpa]
    (tmp_path / "own.dict").write_text("ready R EH D IY\nred R EH D\n")  # edited in place
    open_graph(arpa, tying=tying, lexicon=Lexicon(tmp_path / "own.dict"))
    other = write_arpa(tmp_path / "other.arpa", WORDS | {"ready": -1.5})
    open_graph(other, tying=tying, lexicon=Lexicon())
    assert calls == [arpa, arpa, other]


def test_what_cannot_be_searched_is_refused(tmp_path: Path, tying: Tying, arpa: Path) -> None:
    for text, message in [
        ("", r"no \\1-grams: section"),
        ("\\1-grams:\n-1\tready\n\\end\\\n", "with <s> and </s>"),
        (
            "\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\tmp3\n\\end\\\n",
            "words that the lexicon can pronounce, but none of its 1 is one. Give one in the language",
        ),
        (
            "\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\tREADY\n-1\tX9\n\\end\\\n",
            "In lower case, as .*, 1 of them would do: write the LM so",
        ),
    ]:
        path = tmp_path / "bad.arpa"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            build_graph(path, tying=tying, lexicon=Lexicon())
    with pytest.raises(UserError, match="cannot be read"):
        build_graph(tmp_path / "none.arpa", tying=tying, lexicon=Lexicon())
    other = UnitInventory(level="senone", symbols=("A-0-0", "B-0-1"), silence=0)
    with pytest.raises(UserError, match="senones of the acoustic model beside it"):
        HybridSearch(HybridConfig(), other, np.zeros(2, np.float32), arpa, tying=tying, lexicon=Lexicon())
