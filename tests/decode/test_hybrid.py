"""The search graph: what was said comes back; the best path is the one that trying all of them finds."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.decode.graph import SILENCE_PROBABILITY, build_graph
from hkd.decode.hybrid import HybridConfig, HybridSearch, log_likelihoods, log_priors
from hkd.errors import UserError
from hkd.units.inventory import UnitInventory
from hkd.units.lexicon import Lexicon
from hkd.units.tying import StateTying

WORDS = {"red": -0.3, "read": -0.7, "the": -0.5}  # log10; red and read (one of its two pronunciations) sound alike
STOP = -0.6


def write_arpa(path: Path, words: dict[str, float]) -> Path:
    lines = [f"{logp}\t{word}" for word, logp in (words | {"</s>": STOP}).items()]
    path.write_text("\n".join(["\\data\\", f"ngram 1={len(lines) + 1}", "", "\\1-grams:", "-99\t<s>", *lines, "", "\\end\\", ""]))
    return path


@pytest.fixture(scope="module")
def tying() -> StateTying:
    return StateTying()


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arpa(tmp_path_factory.mktemp("arpa") / "words.arpa", WORDS)


@pytest.fixture(scope="module")
def search(tying: StateTying, arpa: Path) -> HybridSearch:
    config = HybridConfig(acoustic_scale=1.0, prior_scale=0.0, beam=1e4, max_active=10**6)
    inventory = tying.senone_inventory
    return HybridSearch(config, inventory, np.zeros(len(inventory), np.float32), arpa)


def viterbi(states: list[int], logp_TV: np.ndarray) -> float:
    """The best way through the states in order, each for a frame or more."""
    best = np.full(len(states), -math.inf)
    best[0] = logp_TV[0, states[0]]
    for logp_V in logp_TV[1:]:
        best = np.maximum(best, np.concatenate([[-math.inf], best[:-1]])) + logp_V[states]
    return float(best[-1])


def paths(tying: StateTying, most_words: int) -> list[tuple[str, float, list[int]]]:
    """(words, log p without sound, states) of all sequences: pronunciations, with silence or not at each place where it may be."""
    lexicon, definition = Lexicon(), tying.definition
    silence = tying.definition.senones_PS[definition.silence].tolist()
    found = []
    for number in range(1, most_words + 1):
        for spoken in itertools.product(WORDS, repeat=number):
            logp = math.log(10) * (sum(WORDS[word] for word in spoken) + STOP)
            for phones in itertools.product(*(dict.fromkeys(lexicon.variants(word)) for word in spoken)):
                for pauses in itertools.product([False, True], repeat=number + 1):
                    groups, group = [], []
                    for pronunciation, pause in zip(phones, pauses[1:], strict=True):
                        group.append(pronunciation)
                        if pause:
                            groups.append(group)
                            group = []
                    groups += [group] if group else []
                    states: list[int] = silence[:] if pauses[0] else []
                    for place, part in enumerate(groups):  # silence is the neighbour at a group's edges, as at an utterance's
                        states += tying.senones(part)[0].tolist()
                        states += silence if place < len(groups) - 1 or pauses[-1] else []
                    found.append((" ".join(spoken), logp + (number + 1) * math.log(SILENCE_PROBABILITY), states))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_best_path_is_that_of_trying_all(tying: StateTying, search: HybridSearch, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    known = paths(tying, 2)
    frames = 24
    logits_TV = torch.randn(frames, len(tying.senone_inventory), generator=generator)
    text, _, states = known[int(torch.randint(len(known), (), generator=generator))]
    states = [state for state in states for _ in range(max(1, frames // len(states)))][:frames]
    logits_TV[torch.arange(len(states)), torch.tensor(states)] += 3.0  # near one of them, so that the best has two words at most
    logp_TV = logits_TV.log_softmax(-1).numpy().astype(np.float64)
    scores = {}
    for text, logp, states in known:
        if len(states) <= frames:
            scores[text] = max(scores.get(text, -math.inf), logp + viterbi(states, logp_TV))
    [units] = search.best(logits_TV[None], torch.tensor([frames]))
    assert len(units) <= 2
    assert search.text(units) == max(scores, key=lambda text: scores[text])


def test_what_was_said_comes_back_whatever_is_beyond_the_end(tying: StateTying, search: HybridSearch) -> None:
    lexicon = Lexicon()
    spoken = ["the", "red", "the", "the"]
    unit_U, _ = tying.senones([lexicon.pronounce(word) for word in spoken])
    frames_T = torch.from_numpy(np.repeat(unit_U, 3)).long()
    logits_TV = torch.full((len(frames_T) + 20, len(tying.senone_inventory)), -12.0)
    logits_TV[torch.arange(len(frames_T)), frames_T] = 0
    [units] = search.best(logits_TV[None], torch.tensor([len(frames_T)]))
    assert search.text(units) == "the red the the"


def test_a_frame_too_few_for_any_word_gives_nothing(tying: StateTying, search: HybridSearch) -> None:
    assert search.best(torch.zeros(1, 2, len(tying.senone_inventory)), torch.tensor([2])) == [[]]


def test_likelihoods_are_posteriors_over_priors() -> None:
    frames_V = [7, 0, 2]
    logits_TV = torch.randn(5, 3)
    prior_V = np.array([8, 1, 3]) / 12
    wanted_TV = logits_TV.softmax(-1).numpy() / prior_V**0.4
    found_TV = log_likelihoods(logits_TV, log_priors(frames_V), prior_scale=0.4)
    np.testing.assert_allclose(np.exp(found_TV), wanted_TV, rtol=1e-5)


def test_words_that_nobody_can_pronounce_are_left_out(
    tmp_path: Path, tying: StateTying, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = build_graph(write_arpa(tmp_path / "a.arpa", WORDS | {"mp3": -2.0}), tying=tying, lexicon=Lexicon())
    assert graph.left_out == ("mp3",)
    assert "mp3" not in graph.words
    assert capfd.readouterr().err == ""


def test_what_cannot_be_searched_is_refused(tmp_path: Path, tying: StateTying, arpa: Path) -> None:
    for text, message in [
        ("", "with <s> and </s>"),
        ("\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\tmp3\n\\end\\\n", "words with pronunciations"),
    ]:
        path = tmp_path / "bad.arpa"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            build_graph(path, tying=tying, lexicon=Lexicon())
    with pytest.raises(UserError, match="cannot be read"):
        build_graph(tmp_path / "none.arpa", tying=tying, lexicon=Lexicon())
    other = UnitInventory(level="senone", symbols=("A-0-0", "B-0-1"), silence=0)
    with pytest.raises(UserError, match="senones of pocketsphinx's English model"):
        HybridSearch(HybridConfig(), other, np.zeros(2, np.float32), arpa)
