"""n-grams against brute force, against kaldingram's own scorer, and pocketsphinx's phone trigram against
pocketsphinx."""

import bz2
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hkd.arpa import read_arpa
from hkd.errors import UserError
from hkd.teachers.base import Sentence
from hkd.teachers.cloze import SenoneCounts, SenoneMap, neighbours
from hkd.teachers.load import load_teacher
from hkd.teachers.ngram import load_ngram, ngram_over, phone_trigram
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
    subprocess.run(
        [*command, "--text", str(folder / "text"), "--lm", str(folder / "lm")], check=True, capture_output=True
    )
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
    rows = teacher.score(
        [Sentence(id=str(i), unit_U=units(s), word_U=units(s)) for i, s in enumerate(sentences)], k=len(SYMBOLS)
    )
    for topk in rows:
        p = np.zeros((len(topk), len(SYMBOLS)))
        np.put_along_axis(p, topk.ids_NK.astype(np.int64), np.exp(topk.logp_NK.astype(np.float64)), axis=1)
        out.append(p)
    return out


def test_two_sided_is_the_whole_sentence_renormalised_over_the_place(arpa):
    path, _ = arpa
    brute, sentences = Brute(path), [*random_text(1, 25), ["a"], ["e", "e"]]
    teacher = load_ngram(path, inventory=INVENTORY)
    for words, p_UV in zip(sentences, dense(teacher, sentences), strict=True):
        for n in range(len(words)):
            score_V = np.array([brute.sentence([*words[:n], v, *words[n + 1 :]]) for v in SYMBOLS])
            want_V = np.exp(score_V - score_V.max())
            np.testing.assert_allclose(p_UV[n], want_V / want_V.sum(), atol=2e-6)


def test_left_is_back_off_renormalised_over_units(arpa):
    path, _ = arpa
    brute, sentences = Brute(path), random_text(2, 25)
    teacher = load_ngram(path, inventory=INVENTORY, given="left")
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
    ngram = ngram_over(read_arpa(path), symbols=SYMBOLS)
    brute, total = Brute(path), 0.0
    for words in sentences:
        before, _ = ngram.windows(units(words))
        total += ngram.left(before)[np.arange(len(words)), units(words)].sum()
        total += brute.log_p("</s>", ("<s>", *words))  # no unit, so no place in our rows
    assert total / math.log(10) == pytest.approx(stats["logprob"], rel=1e-4)


def test_rows_do_not_depend_on_the_call(arpa):
    teacher = load_ngram(arpa[0], inventory=INVENTORY)
    sentences = [Sentence(id=str(i), unit_U=units(s), word_U=units(s)) for i, s in enumerate(random_text(4, 9))]
    together = teacher.score(sentences, k=3, temperatures=(2.0,))
    for sentence, row in zip(sentences, together, strict=True):
        alone = teacher.score([sentence], k=3, temperatures=(2.0,))[0]
        for name in ("ids_NK", "logp_NK", "tail_N", "gold_logp_N", "lse_NJ"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(row, name))


def test_a_unit_that_the_text_lacks_is_possible(arpa):
    wider = UnitInventory(level="monophone", symbols=(*SYMBOLS, "never"))
    teacher = load_ngram(arpa[0], inventory=wider)
    row = teacher.score([Sentence(id="x", unit_U=np.array([0, 5, 1], np.int32), word_U=np.zeros(3, np.int32))], k=6)[0]
    assert np.isfinite(row.gold_logp_N).all()
    assert row.gold_logp_N[1] < row.logp_NK[1].max()


@pytest.mark.parametrize(
    "text", ["", "\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0\ta\n", "\\data\\\n\\1-grams:\nx\ta\n\\end\\\n"]
)
def test_what_is_no_arpa_is_refused(tmp_path, text):
    (tmp_path / "lm").write_text(text)
    with pytest.raises(UserError, match="ARPA"):
        load_ngram(tmp_path / "lm", inventory=INVENTORY)


def write_lm(
    path: Path, symbols: list[str], *, start: str = "-99", stop: str | None = "-1.0", value: float = -0.5
) -> Path:
    """A bigram over some symbols, with their unigrams equally likely and each symbol likely after the one before it in
    the list."""
    marks = [f"{start}\t<s>\t-0.3", *([] if stop is None else [f"{stop}\t</s>"])]
    unigrams = [f"{-math.log10(len(symbols)):.6f}\t{symbol}\t-0.4" for symbol in symbols]
    pairs = [f"{value}\t{a} {b}" for a, b in itertools.pairwise(symbols)]
    head = ["\\data\\", f"ngram 1={len(marks) + len(unigrams)}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    path.write_text("\n".join([*head, *marks, *unigrams, "", "\\2-grams:", *pairs, "", "\\end\\", ""]))
    return path


PHONES = ("SIL", "AA", "AE", "AH", "B", "D", "K", "S", "T", "+NSN+")
PHONE_INVENTORY = UnitInventory(level="monophone", symbols=PHONES, silence=0)
SPOKEN = [p for p in PHONES if p[0] not in "S+" or p == "S"]
PIECES = UnitInventory(level="subword", symbols=("<unk>", "▁the", "▁cat", "▁a", "t", "s", "ing", "▁on", "▁in", "▁to"))


@pytest.mark.parametrize(
    ("inventory", "written", "how"),
    [
        (PHONE_INVENTORY, [p.lower() for p in SPOKEN], "upper and lower case"),
        (PHONE_INVENTORY, [p + "0" * (p[0] == "A") for p in SPOKEN], "stress digits"),
        (PHONE_INVENTORY, [f"{p}_{place}" for p in SPOKEN for place in "BIES"], "place suffixes"),
        (
            PHONE_INVENTORY,
            [f"{p}1_B" if p[0] == "A" else f"{p}_E" for p in SPOKEN],
            "stress digits .* and place suffixes",
        ),
        (PHONE_INVENTORY, [p.lower() + "2" * (p[0] == "A") for p in SPOKEN], "upper and lower case and stress digits"),
        (PIECES, ["THE", "CAT", "A", "ON", "IN", "TO", "DOG"], "case and marks of word pieces"),
        (PIECES, ["the", "cat", "a", "on", "in", "to", "s", "dog"], "marks of word pieces"),
        (PIECES, ["the", "cat", "a", "##t", "##s", "##ing", "on"], "marks of word pieces"),
        (UnitInventory(level="word", symbols=("café", "éa", "x")), ["cafe\u0301", "e\u0301a"], "composed form"),
        (
            UnitInventory(level="monophone", symbols=tuple(f"{p}{n}" for p in ("AA", "AE") for n in "012")),
            ["AA", "AE"],
            "stress",
        ),
        (PHONE_INVENTORY, ["hello", "world"], "Give the ARPA file of this level"),
        (PIECES, [*"tsxyz", "ing", "dog", "cat", "mouse", "tree"], None),
    ],
)
def test_a_file_of_other_units_is_refused_with_the_spelling_that_would_serve(tmp_path, inventory, written, how):
    path = write_lm(tmp_path / "lm.arpa", written)
    with pytest.raises(UserError, match=rf"lm\.arpa must hold n-grams of the inventory's .* units.*{how or ''}"):
        load_ngram(path, inventory=inventory)


def test_units_that_the_file_lacks_and_symbols_that_the_level_lacks_are_counted(tmp_path, caplog):
    path = write_lm(tmp_path / "lm.arpa", [*SPOKEN[:-1], "zh", "ng"])
    teacher = load_ngram(path, inventory=PHONE_INVENTORY)
    said = [message.partition("lm.arpa")[2] for message in caplog.messages]
    assert said == [
        " lacks 1 of the level's 10 units (T); each gets half the probability of its rarest one.",
        ": 4 n-grams with symbols that are no units of the level (zh, ng) are left out.",
    ]
    unit_U = np.array([1, 8, 2], np.int32)
    row = teacher.score([Sentence(id="x", unit_U=unit_U, word_U=unit_U)], k=10)[0]
    assert row.gold_logp_N[1] < row.gold_logp_N[0]
    caplog.clear()
    load_ngram(write_lm(path, [*SPOKEN, "<eps>", "#0"]), inventory=PHONE_INVENTORY)
    assert not caplog.messages  # silence, noise, and the marks of other tools are no units of text


@pytest.mark.parametrize("stop", [None, "-inf", "-99", "0", "-1.0"])
@pytest.mark.parametrize("start", ["-inf", "-99", "0"])
@pytest.mark.parametrize("given", ["left", "outside-position"])
def test_labels_are_probabilities_whatever_the_sentence_marks_have(tmp_path, start, stop, given):
    path = write_lm(tmp_path / "lm.arpa", list(SYMBOLS), start=start, stop=stop)
    want = dense(load_ngram(write_lm(tmp_path / "b", list(SYMBOLS)), inventory=INVENTORY, given=given), [["a", "b"]])
    got = dense(load_ngram(path, inventory=INVENTORY, given=given), [["a", "b"]])
    np.testing.assert_allclose(got[0].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)  # no pair has a mark in it: they weigh all units alike


def test_a_pair_that_is_impossible_has_finite_labels(tmp_path):
    path = write_lm(tmp_path / "lm.arpa", list(SYMBOLS), value=-math.inf)
    teacher = load_ngram(path, inventory=INVENTORY, given="left")
    unit_U = np.array([0, 1, 2], np.int32)
    row = teacher.score([Sentence(id="x", unit_U=unit_U, word_U=unit_U)], k=5)[0]
    assert np.isfinite(row.logp_NK).all()
    assert row.gold_logp_N[1] < -200


@pytest.mark.parametrize("name", ["lm.ARPA", "lm.arpa.bz2", "lm", "three.lm.txt"])
def test_a_teacher_by_any_files_name(tmp_path, name):
    path = write_lm(tmp_path / "plain.arpa", list(SYMBOLS))
    (tmp_path / name).write_bytes(bz2.compress(path.read_bytes()) if name.endswith("bz2") else path.read_bytes())
    teachers = [load_teacher(str(p), unit="monophone", inventory=INVENTORY) for p in (path, tmp_path / name)]
    np.testing.assert_array_equal(*(dense(teacher, [["a", "b", "e"]])[0] for teacher in teachers))


SENONES = SenoneMap(
    phone_of_V=np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]), state_of_V=np.array([0, 0, 1, 2, 0, 1, 2, 0, 1, 2])
)


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
