"""The search over a CTC student's output: its settings, and logits to unit ids with a language model beside it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hkd.arpa import is_arpa
from hkd.decode.ctc import BeamConfig, Node, Ranked, WordFusion, WordLm, beam_search, greedy_ctc, prefix_tree
from hkd.decode.graph import HybridConfig
from hkd.decode.lm import ArpaLm, TeacherLm, usable_words
from hkd.errors import UserError, check_setting
from hkd.units.subword import SubwordModel

log = logging.getLogger(__name__)

DECODERS = ("greedy", "beam")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """greedy, or beam: with an LM (given beside) `lm_weight` · log p_LM + `word_bonus` · words are added; `lexicon`:
    only the LM's words.

    A hybrid student's output is always searched with a graph, as `hybrid` says.
    """

    decoder: str = "greedy"  # greedy | beam (which an LM needs)
    beam: BeamConfig = field(default_factory=BeamConfig)  # how wide the beam search of CTC is
    lm_weight: float = 0.5  # of the LM's log-probability beside the student's
    word_bonus: float = 0.0  # added for each word
    lexicon: bool = True  # only the LM's words, where the LM has a list of words (ARPA)
    hybrid: HybridConfig = field(default_factory=HybridConfig)  # how the output of a hybrid student is searched

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise UserError(f"decoder must be one of {', '.join(DECODERS)}, but is '{self.decoder}' instead.")
        check_setting("lm_weight", self.lm_weight, "not be negative", self.lm_weight >= 0)
        check_setting("word_bonus", self.word_bonus, "be a number", True)


class Search:
    """Logits → unit ids. Made once for a student; the LM is loaded once."""

    def __init__(
        self, config: SearchConfig, subwords: SubwordModel, *, lm: str | None = None, device: str = "cpu"
    ) -> None:
        """lm: an ARPA file over words, a folder of `hkd lm train` (causal or n-gram, over the student's subwords), or a
        causal LM's folder or hub name. Raises UserError where it is none of them, holds no word that the subwords
        spell, or is given for greedy decoding."""
        if lm is not None and config.decoder == "greedy":
            raise UserError(
                f"decoder must be beam where there is an LM ({lm}), but is greedy instead. Take --decoder beam."
            )
        self.config, self.lm_parameters, self._subwords = config, 0, subwords
        self._words: WordLm | None = None
        self._lexicon: Node | None = None
        self.symbols: Sequence[str] = subwords.inventory.symbols
        if lm is not None:
            self._words = self._load(lm, subwords, device)
            if isinstance(self._words, ArpaLm):
                pieces = cache(lambda word: subwords.encode([word])[0].tolist())
                rule = "the student's pieces can spell"
                spelled, note = usable_words(
                    lm, self._words.words, lambda word: subwords.unknown not in pieces(word), rule=rule
                )
                if note:
                    log.warning("%s %s", lm, note)
                if config.lexicon:
                    self._lexicon = prefix_tree(spelled, pieces, self._words.unigram)

    def _load(self, lm: str, subwords: SubwordModel, device: str) -> WordLm:
        if is_arpa(lm):
            return ArpaLm(Path(lm).expanduser())
        from hkd.teachers.load import load_teacher

        teacher = load_teacher(lm, unit="subword", device=device)
        own = teacher.inventory.digest == subwords.inventory.digest
        model: Any = getattr(teacher, "model", None) or getattr(teacher, "_model", None)
        if isinstance(model, torch.nn.Module):
            self.lm_parameters = sum(p.numel() for p in model.parameters())
        return TeacherLm(teacher, subwords.encode if own else None)

    @property
    def fusion(self) -> WordFusion | None:
        """What is added to the acoustic score; None without an LM."""
        if self._words is None:
            return None
        weight, bonus = self.config.lm_weight, self.config.word_bonus
        return WordFusion(self._words, self.symbols, weight=weight, bonus=bonus, lexicon=self._lexicon)

    def ranked(self, logits_BTV: torch.Tensor, length_B: torch.Tensor, *, n_best: int) -> list[list[Ranked]]:
        """The n best of every utterance by beam search."""
        logp_BTV = torch.log_softmax(logits_BTV.float(), -1).cpu().numpy()
        options: dict[str, Any] = {"config": self.config.beam, "fusion": self.fusion, "n_best": n_best}
        rows = zip(logp_BTV, length_B.tolist(), strict=True)
        return [beam_search(logp_TV[:length], **options) for logp_TV, length in rows]

    def best(self, logits_BTV: torch.Tensor, length_B: torch.Tensor) -> list[list[int]]:
        """The best unit ids of every utterance; [] where the lexicon lets nothing end."""
        if self.config.decoder == "greedy":
            return greedy_ctc(logits_BTV, length_B)
        return [list(row[0].units) if row else [] for row in self.ranked(logits_BTV, length_B, n_best=1)]

    def text(self, units: Sequence[int]) -> str:
        """Unit ids → text."""
        return self._subwords.decode(units)
