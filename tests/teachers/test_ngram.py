"""n-grams against brute force, against kaldingram's own scorer, and pocketsphinx's phone trigram against pocketsphinx."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.teachers.base import Sentence
from hkd.teachers.ngram import load_ngram, phone_trigram
from hkd.teachers.ngram_model import read_arpa
from hkd.teachers.unit_lm_senones import SenoneCounts, SenoneMap, neighbours
from hkd.units.inventory import UnitInventory

SYMBOLS = ("a", "b", "c", "d", "e")
INVENTORY = UnitInventory(level="monophone", symbols=SYMBOLS)


def random_text(seed: int, lines: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    weight_VV = rng.dirichlet(np.full(len(SYMBOLS), 0.4), size=len(SYMBOLS))
    text = []
    for _ in range(lines):
        unit = [int(rng.integers(len(SYMBOLS)))]
        while rng.random() > 0.15:
            unit.append(int(rng.choice(len(SYMBOLS), p=weight_VV[unit[-1]])))
        text.append([SYMBOLS[u] for u in unit])
    return text


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def arpa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A Kneser-Ney n-gram that kaldingram trained on 60 sentences; of its order."""
    folder = tmp_path_factory.mktemp("arpa")
    first = "\n".join(line[0] if request.param == 1 else " ".join(line) for line in random_text(0, 60))
    (folder / "text").write_text(first + "\n")
    command = [sys.executable, "-m", "kaldingram.cli", "train", "--ngram-order", str(request.param)]
    subprocess.run([*command, "--text", str(folder / "text"), "--lm", str(folder / "lm")], check=True, capture_output=True)
    return folder / "lm", request.param


class Brute:
    """An ARPA file by the definition of back-off: dictionaries and recursion."""

    def __init__(self, path: Path) -> None:
        self.logp: dict[tuple[str, ...], float] = {}
        self.bow: dict[tuple[str, ...], float] = {}
        for line in path.read_text().splitlines():
            fields = line.split("\t")
            if len(fields) < 2:
                continue
            gram = tuple(fields[1].split(" "))
            self.logp[gram] = float(fields[0]) * math.log(10)
            if len(fields) > 2:
                self.bow[gram] = float(fields[2]) * math.log(10)
        self.order = max(map(len, self.logp))

    def log_p(self, word: str, history: tuple[str, ...]) -> float:
        history = history[len(history) - min(self.order - 1, len(history)) :]
        if (*history, word) in self.logp:
            return self.logp[*history, word]
        return self.bow.get(history, 0.0) + self.log_p(word, history[1:])

    def sentence(self, words: list[str]) -> float:
        whole = ["<s>", *words, "</s>"]
        return sum(self.log_p(whole[i], tuple(whole[:i])) for i in range(1, len(whole)))


def units(words: list[str]) -> np.ndarray:
    return np.array([SYMBOLS.index(w) for w in words], np.int32)


def dense(teacher, sentences: list[list[str]]) -> list[np.ndarray]:
    """Probabilities (U, V) of every sentence."""
    out = []
    rows = teacher.score([Sentence(id=str(i), unit_U=units(s), word_U=units(s)) for i, s in enumerate(sentences)], k=len(SYMBOLS))
    for topk in rows:
        p = np.zeros((len(topk), len(SYMBOLS)))
        np.put_along_axis(p, topk.ids_NK.astype(np.int64), np.exp(topk.logp_NK.astype(np.float64)), axis=1)
        out.append(p)
    return out


def test_two_sided_is_the_whole_sentence_renormalised_over_the_place(arpa):
    path, _ = arpa
    brute, sentences = Brute(path), [*random_text(1, 25), ["a"], ["e", "e"]]
    teacher = load_ngram(path, level="monophone", inventory=INVENTORY)
    for words, p_UV in zip(sentences, dense(teacher, sentences), strict=True):
        for n in range(len(words)):
            score_V = np.array([brute.sentence([*words[:n], v, *words[n + 1 :]]) for v in SYMBOLS])
            want_V = np.exp(score_V - score_V.max())
            np.testing.assert_allclose(p_UV[n], want_V / want_V.sum(), atol=2e-6)


def test_left_is_back_off_renormalised_over_units(arpa):
    path, _ = arpa
    brute, sentences = Brute(path), random_text(2, 25)
    teacher = load_ngram(path, level="monophone", inventory=INVENTORY, given="left")
    assert teacher.info.direction == "left"
    for words, p_UV in zip(sentences, dense(teacher, sentences), strict=True):
        for n in range(len(words)):
            want_V = np.exp([brute.log_p(v, ("<s>", *words[:n])) for v in SYMBOLS])
            np.testing.assert_allclose(p_UV[n], want_V / want_V.sum(), atol=2e-6)


def test_sentences_score_as_kaldingram_scores_them(arpa):
    from kaldingram.ppl import compute_ppl
    from kaldingram.prune import ArpaParser

    path, order = arpa
    if order == 1:
        pytest.skip("kaldingram's scorer needs histories")
    sentences = random_text(3, 30)
    stats = compute_ppl(ArpaParser().loadf(str(path), encoding="latin-1")[0], [" ".join(s) for s in sentences])
    ngram = read_arpa(path, id_of=INVENTORY.id_of, num_units=len(SYMBOLS))
    brute, total = Brute(path), 0.0
    for words in sentences:
        before, _ = ngram.windows(units(words))
        total += ngram.left(before)[np.arange(len(words)), units(words)].sum()
        total += brute.log_p("</s>", ("<s>", *words))  # no unit, so no place in our rows
    assert total / math.log(10) == pytest.approx(stats["logprob"], rel=1e-4)


def test_rows_do_not_depend_on_the_call(arpa):
    teacher = load_ngram(arpa[0], level="monophone", inventory=INVENTORY)
    sentences = [Sentence(id=str(i), unit_U=units(s), word_U=units(s)) for i, s in enumerate(random_text(4, 9))]
    together = teacher.score(sentences, k=3, temperatures=(2.0,))
    for sentence, row in zip(sentences, together, strict=True):
        alone = teacher.score([sentence], k=3, temperatures=(2.0,))[0]
        for name in ("ids_NK", "logp_NK", "tail_N", "gold_logp_N", "lse_NJ"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(row, name))


def test_a_unit_that_the_text_lacks_is_possible(arpa):
    wider = UnitInventory(level="monophone", symbols=(*SYMBOLS, "never"))
    teacher = load_ngram(arpa[0], level="monophone", inventory=wider)
    row = teacher.score([Sentence(id="x", unit_U=np.array([0, 5, 1], np.int32), word_U=np.zeros(3, np.int32))], k=6)[0]
    assert np.isfinite(row.gold_logp_N).all()
    assert row.gold_logp_N[1] < row.logp_NK[1].max()


@pytest.mark.parametrize("text", ["", "\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0\ta\n", "\\data\\\n\\1-grams:\nx\ta\n\\end\\\n"])
def test_what_is_no_arpa_is_refused(tmp_path, text):
    (tmp_path / "lm").write_text(text)
    with pytest.raises(UserError, match="ARPA"):
        load_ngram(tmp_path / "lm", level="monophone", inventory=INVENTORY)


SENONES = SenoneMap(phone_of_V=np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]), state_of_V=np.array([0, 0, 1, 2, 0, 1, 2, 0, 1, 2]))


def test_folding_sums_to_one_and_follows_its_formula():
    rng = np.random.default_rng(0)
    phones = [rng.integers(3, size=8) for _ in range(40)]
    sentences = []
    for phone_P in phones:
        unit: list[int] = []
        for q in phone_P.tolist():
            first = int(rng.integers(2)) if q == 0 else {1: 4, 2: 7}[q]
            unit += [first, 2 if q == 0 else first + 1, 3 if q == 0 else first + 2]
        sentences.append(np.array(unit, np.int32))
    counts = SenoneCounts.count(SENONES, sentences, prior=2.0)
    posterior = rng.dirichlet(np.ones(3), size=1)
    for left, right in itertools.product(range(3), range(3)):
        p_V = np.exp(counts.fold(np.log(posterior), np.array([left]), np.array([right])))[0]
        for state in range(3):
            assert p_V[SENONES.state_of_V == state].sum() == pytest.approx(1)
        seen = np.zeros(10)
        total = np.full(10, 0.5)
        for unit_U in sentences:
            l_U, r_U = neighbours(SENONES, unit_U)
            np.add.at(seen, unit_U[(l_U == left) & (r_U == right)], 1)
            np.add.at(total, unit_U, 1)
        for v in range(10):
            group = (SENONES.phone_of_V == SENONES.phone_of_V[v]) & (SENONES.state_of_V == SENONES.state_of_V[v])
            prior = total[v] / total[group].sum()
            want = posterior[0, SENONES.phone_of_V[v]] * (seen[v] + 2 * prior) / (seen[group].sum() + 2)
            assert p_V[v] == pytest.approx(want)


def test_counts_survive_their_file(tmp_path):
    counts = SenoneCounts.count(SENONES, [np.array([0, 2, 3, 4, 5, 6], np.int32)])
    counts.save(tmp_path / "c")
    args = (np.log(np.full((1, 3), 1 / 3)), np.array([0]), np.array([4]))
    np.testing.assert_array_equal(SenoneCounts.load(tmp_path / "c").fold(*args), counts.fold(*args))


def test_the_phone_trigram_is_pocketsphinxs():
    import pocketsphinx

    teacher = phone_trigram()
    model = pocketsphinx.NGramModel.readfile(str(Path(pocketsphinx.get_model_path()) / "en-us" / "en-us-phone.lm.bin"))
    symbols = teacher.inventory.symbols
    words = ["DH", "AH", "K", "AE", "T"]
    unit_U = np.array([teacher.inventory.id_of[p] for p in words], np.int32)
    row = teacher.score([Sentence(id="x", unit_U=unit_U, word_U=unit_U)], k=len(symbols))[0]
    phones = [s for s in symbols if s != "SIL" and not s.startswith("+")]
    for n in range(len(words)):

        def whole(v: str, n: int = n) -> int:
            said = ["<s>", *words[:n], v, *words[n + 1 :], "</s>"]
            return sum(model.prob([said[i], *said[max(0, i - 2) : i][::-1]]) for i in range(1, len(said)))

        score = np.array([whole(v) for v in phones]) * math.log(1.0001)
        want = np.exp(score - score.max())
        want /= want.sum()
        got = dict(zip(row.ids_NK[n].tolist(), np.exp(row.logp_NK[n]).tolist(), strict=True))
        np.testing.assert_allclose([got[teacher.inventory.id_of[p]] for p in phones], want, atol=1e-3)
        assert got[teacher.inventory.id_of["SIL"]] < 1e-12
        assert np.isfinite(row.logp_NK[n]).all()
