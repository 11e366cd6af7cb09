"""Search as it is configured: greedy or beam, LM by file, lexicon from the LM's words, teachers as LMs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.decode.ctc import BeamConfig, Search, SearchConfig, greedy_ctc
from hkd.decode.lm import ArpaLm, TeacherLm
from hkd.errors import UserError
from hkd.sparse import TopK
from hkd.teachers.base import TeacherInfo
from hkd.testing.teachers import tiny_sentences
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory
from hkd.units.sequences import SubwordModel, train_subwords
from hkd.units.text import words

SENTENCES = [" ".join(words(s)) for s in tiny_sentences(40)]


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> SubwordModel:
    folder = tmp_path_factory.mktemp("units")
    train_subwords(SENTENCES, vocab_size=60, folder=folder)
    return SubwordModel(folder / "subword.model")


def write_unigram(path: Path, spoken: Sequence[str]) -> str:
    """An LM in which all words are as likely."""
    lines = [f"{-np.log10(len(spoken) + 1):.6f}\t{w}" for w in ("</s>", *spoken)]
    head = ["\\data\\", f"ngram 1={len(lines) + 1}", "", "\\1-grams:", "-99\t<s>"]
    path.write_text("\n".join([*head, *lines, "", "\\end\\", ""]))
    return str(path)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An LM of the sentences' words."""
    return write_unigram(
        tmp_path_factory.mktemp("lm") / "words.arpa", sorted({w for s in SENTENCES for w in s.split()})
    )


def noisy_logits(
    subwords: SubwordModel, sentence: str, noise: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that say a sentence, a piece in every other frame, with noise on top."""
    unit_U, _ = subwords.encode(sentence.split())
    path = [c for unit in unit_U for c in (int(unit) + 1, 0)]
    logits_TV = 6 * torch.nn.functional.one_hot(torch.tensor(path), len(subwords.inventory) + 1).float()
    return (logits_TV + noise * torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(seed)))[
        None
    ], torch.tensor([len(path)])


def test_without_an_lm_a_beam_of_a_clear_output_is_greedy(subwords: SubwordModel) -> None:
    logits_BTV, length_B = noisy_logits(subwords, SENTENCES[0], noise=0.1)
    for decoder in ("greedy", "beam"):
        [units] = Search(SearchConfig(decoder=decoder), subwords).best(logits_BTV, length_B)
        assert subwords.decode(units) == SENTENCES[0]


def test_the_lexicon_lets_only_words_through_and_mends_errors(subwords: SubwordModel, arpa: str) -> None:
    search = Search(SearchConfig(decoder="beam", lm_weight=0.3), subwords, lm=arpa)
    known = {w for s in SENTENCES for w in s.split()}
    greedy_wrong = beam_wrong = 0
    for seed, sentence in enumerate(SENTENCES[:8]):
        logits_BTV, length_B = noisy_logits(subwords, sentence, noise=2.2, seed=seed)
        [units] = search.best(logits_BTV, length_B)
        said = subwords.decode(units).split()
        assert set(said) <= known
        beam_wrong += said != sentence.split()
        greedy_wrong += subwords.decode(greedy_ctc(logits_BTV, length_B)[0]) != sentence
    assert beam_wrong < greedy_wrong


def test_words_that_the_pieces_cannot_spell_never_come_out(
    subwords: SubwordModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoken = SENTENCES[0].split()
    mixed = write_unigram(tmp_path / "mixed.arpa", [*dict.fromkeys(spoken), "HELLO", "WORLD", "żółw", "日本"])
    search = Search(SearchConfig(decoder="beam"), subwords, lm=mixed)
    [message] = caplog.messages
    assert "spell: 4 of" in message
    assert "are left out (HELLO, WORLD, żółw and 1 more)" in message
    assert "2 of them would do" in message
    logits_BTV, length_B = noisy_logits(subwords, SENTENCES[0], noise=0.1)
    logits_BTV[:, 1::2, subwords.unknown + 1] += 20
    [ranked] = search.ranked(logits_BTV, length_B, n_best=8)
    assert ranked
    assert all(set(search.text(row.units).split()) <= set(spoken) for row in ranked)


def test_an_lm_without_a_word_to_spell_is_refused(subwords: SubwordModel, tmp_path: Path) -> None:
    for lexicon in (True, False):
        config = SearchConfig(decoder="beam", lexicon=lexicon)
        with pytest.raises(
            UserError, match=r"none of its 2 is one\. In lower case, as .*, 2 of them would do: write the LM so"
        ):
            Search(config, subwords, lm=write_unigram(tmp_path / "upper.arpa", ["HELLO", "WORLD"]))
        with pytest.raises(UserError, match=r"can spell, but none of its 1 is one\. Give one in the language"):
            Search(config, subwords, lm=write_unigram(tmp_path / "other.arpa", ["日本"]))


class CountingTeacher:
    """Says that a piece is likely where it has been said before in the sentence: a left-to-right teacher with an easy
    rule."""

    def __init__(self, inventory: UnitInventory, direction: str = "left") -> None:
        self.inventory, self.level = inventory, inventory.level
        self.info = TeacherInfo(name="counting", kind="ngram", direction=direction, digest="0" * 64)
        self.calls = 0

    def encode(self, words):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def score(self, sentences, *, k, temperatures=()):  # type: ignore[no-untyped-def]
        self.calls += 1
        rows: list[TopK] = []
        for sentence in sentences:
            logits_UV = torch.zeros(len(sentence.unit_U), len(self.inventory))
            for n in range(len(sentence.unit_U)):
                for unit in sentence.unit_U[:n]:
                    logits_UV[n, int(unit)] += 1
            rows.append(select_topk(logits_UV, torch.as_tensor(sentence.unit_U.astype(np.int64)), k=k))
        return rows


def test_a_teacher_scores_words_as_sentences_and_remembers(subwords: SubwordModel) -> None:
    teacher = CountingTeacher(subwords.inventory)
    lm = TeacherLm(teacher, subwords.encode)
    spoken = SENTENCES[0].split()
    state, total = lm.start(), 0.0
    for word in spoken:
        state, logp = lm.extend(state, word)
        total += logp
    unit_U, word_U = subwords.encode(spoken)
    from hkd.teachers.base import Sentence

    [whole] = teacher.score([Sentence(id="x", unit_U=unit_U, word_U=word_U)], k=1)
    assert total == pytest.approx(float(whole.gold_logp_N.sum()), abs=1e-4)
    calls = teacher.calls
    lm.prepare([(tuple(spoken[:-1]), spoken[-1])])
    assert teacher.calls == calls
    assert lm.finish(state) == 0


def test_what_cannot_stand_beside_the_decoder_is_refused(subwords: SubwordModel, arpa: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads both ways"):
        TeacherLm(CountingTeacher(subwords.inventory, direction="both"), subwords.encode)
    phones = UnitInventory(level="monophone", symbols=("A", "B"))
    with pytest.raises(UserError, match="is over monophones"):
        TeacherLm(CountingTeacher(phones))
    with pytest.raises(UserError, match="decoder must be beam where there is an LM"):
        Search(SearchConfig(), subwords, lm=arpa)
    with pytest.raises(UserError, match="No such file"):
        Search(SearchConfig(decoder="beam"), subwords, lm=str(tmp_path / "missing.arpa"))
    with pytest.raises(UserError, match="decoder must be one of greedy, beam"):
        SearchConfig(decoder="magic")
    with pytest.raises(UserError, match="lm_weight must not be negative"):
        SearchConfig(lm_weight=-1.0)


def test_weight_and_bonus_can_be_tried_without_loading_anew(subwords: SubwordModel, arpa: str) -> None:
    search = Search(SearchConfig(decoder="beam", beam=BeamConfig(beam=8)), subwords, lm=arpa)
    logits_BTV, length_B = noisy_logits(subwords, SENTENCES[1], noise=1.0)
    [plain] = search.ranked(logits_BTV, length_B, n_best=3)
    search.config = replace(search.config, lm_weight=0.0, word_bonus=9.0)
    [many] = search.ranked(logits_BTV, length_B, n_best=3)
    assert [r.score for r in plain] == sorted((r.score for r in plain), reverse=True)
    assert len(subwords.decode(many[0].units).split()) >= len(subwords.decode(plain[0].units).split())
    assert len(ArpaLm(Path(arpa)).words) > 10
