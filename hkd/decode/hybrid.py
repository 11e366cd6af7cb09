"""Senone posteriors → words, through a search graph (see `hkd.decode.graph`).

score(state, frame) = acoustic_scale · (log p(senone | frame) − prior_scale · log p(senone)), the hybrid's scaled likelihood (Bourlard &
Morgan 1994). The search is kaldi-decoder's token passing.

Shape letters: B utterances, T slots of 10 ms, V senones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.decode.graph import Graph, build_graph, kaldi_module
from hkd.decode.lattice import LATTICE_BEAM, best_sequences
from hkd.errors import UserError
from hkd.units.acoustic import Tying
from hkd.units.inventory import UnitInventory
from hkd.units.level import SENONE
from hkd.units.lexicon import Lexicon


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """How a hybrid student's output is searched. Costs are natural logarithms after scaling."""

    acoustic_scale: float = 0.1  # of log-likelihoods of 10 ms frames beside the LM's log-probabilities
    prior_scale: float = 0.6
    beam: float = 14.0
    max_active: int = 4000  # states alive at once

    def __post_init__(self) -> None:
        for name in ("acoustic_scale", "beam", "max_active"):
            if not getattr(self, name) > 0:
                raise UserError(f"hybrid.{name} must be positive, but is {getattr(self, name)} instead.")
        if self.prior_scale < 0:
            raise UserError(f"hybrid.prior_scale must not be negative, but is {self.prior_scale} instead.")


def log_priors(frames_V: Sequence[int]) -> NDArray[np.float32]:
    """Frames of each senone in the training data → log p(senone), one added to each so that none is impossible."""
    count_V = np.asarray(frames_V, np.float64) + 1
    prior_V: NDArray[np.float32] = np.log(count_V / count_V.sum()).astype(np.float32)
    return prior_V


def log_likelihoods(logits_TV: torch.Tensor, log_prior_V: NDArray[np.float32], *, prior_scale: float) -> NDArray[np.float32]:
    """log p(senone | frame) − prior_scale · log p(senone), (T, V): what decoders of Kaldi's kind take."""
    logp_TV = logits_TV.float().log_softmax(-1) - prior_scale * torch.from_numpy(log_prior_V)
    scaled_TV: NDArray[np.float32] = logp_TV.numpy()
    return scaled_TV


class HybridSearch:
    """Logits over senones → word numbers, by one graph."""

    lm_parameters = 0

    def __init__(
        self,
        config: HybridConfig,
        inventory: UnitInventory,
        log_prior_V: NDArray[np.float32],
        arpa: Path,
        *,
        tying: Tying,
        lexicon: Lexicon,
    ) -> None:
        """arpa: a word n-gram. Raises UserError where the senones are not the tying's, or as `hkd.decode.graph.build_graph` does."""
        known = tying.inventories.get(SENONE)
        if known is None or inventory.digest != known.digest:
            raise UserError(
                f"a hybrid student must have the senones of the acoustic model beside it (pocketsphinx's English one where there is none), digest "
                f"{known.digest[:12] if known else 'none'}, "
                f"to be searched here, but has {inventory.digest[:12]} instead. Write its likelihoods for Kaldi: `hkd likelihoods`."
            )
        self.config, self._log_prior_V = config, log_prior_V
        self.graph: Graph = build_graph(arpa, tying=tying, lexicon=lexicon)
        self.symbols = self.graph.words
        self._kaldifst, self._decoder = kaldi_module("kaldifst"), kaldi_module("kaldi_decoder")

    def best(self, logits_BTV: torch.Tensor, length_B: torch.Tensor, *, config: HybridConfig | None = None) -> list[list[int]]:
        """The best word numbers of every utterance; [] where no path survives to a word's end."""
        chosen = config or self.config
        return [
            self._best_one(logits_TV[:length], chosen) for logits_TV, length in zip(logits_BTV, length_B.tolist(), strict=True)
        ]

    def _best_one(self, logits_TV: torch.Tensor, config: HybridConfig) -> list[int]:
        options = self._decoder.FasterDecoderOptions(beam=config.beam, max_active=config.max_active)
        decoder = self._decoder.FasterDecoder(self.graph.fst, options)
        decoder.decode(self._decoder.DecodableCtc(self._scores(logits_TV, config)))
        if not decoder.reached_final():
            return []
        found, path = decoder.get_best_path()
        if not found:
            return []
        linear, _, words, _ = self._kaldifst.get_linear_symbol_sequence(path)
        return list(words) if linear else []

    def ranked(
        self, logits_BTV: torch.Tensor, length_B: torch.Tensor, *, n_best: int, lattice_beam: float = LATTICE_BEAM
    ) -> list[list[tuple[list[int], float]]]:
        """(word numbers, score) of the n best of every utterance, best first (see `hkd.decode.lattice`)."""
        config = self.config
        return [
            best_sequences(
                self.graph.fst, self._scores(logits_TV[:length], config), beam=config.beam, n=n_best, lattice_beam=lattice_beam
            )
            for logits_TV, length in zip(logits_BTV, length_B.tolist(), strict=True)
        ]

    def _scores(self, logits_TV: torch.Tensor, config: HybridConfig) -> NDArray[np.float32]:
        score_TV = log_likelihoods(logits_TV, self._log_prior_V, prior_scale=config.prior_scale) * config.acoustic_scale
        return np.ascontiguousarray(score_TV, np.float32)

    def text(self, units: Sequence[int]) -> str:
        """Word numbers → text."""
        return " ".join(self.symbols[unit] for unit in units)
