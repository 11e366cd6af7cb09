"""A hybrid student's search: senone posteriors → words by a graph of lexicon and n-gram (Mohri, Pereira & Riley 2002).

    graph = H ∘ C ∘ det(L ∘ G)

- G is the n-gram. L has the pronunciations, with optional silence between words. C puts phones into the context of
  their neighbours, across words too, as the aligner does. H gives each phone in context its tied states, each with a
  self-loop.
- Phones are the labels of a `Tying`, which carry their place in the word where the senones depend on it.
- Transition probabilities are left out: states of equal rank would have equal ones.
- score(state, frame) = acoustic_scale · (log p(senone | frame) − prior_scale · log p(senone)): the hybrid's scaled
  likelihood (Bourlard & Morgan 1994).
- kaldifst does the algebra, kaldilm reads the n-gram, kaldi-decoder searches by token passing.

Input labels: senone + 1 (0 is ε). Output labels: words, numbered as in `Graph.words`. Phone labels count from 1; 0 is
beyond the ends. Shape letters: B utterances, T slots of 10 ms, V senones.
"""

import contextlib
import importlib
import json
import logging
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkd.arpa import START, STOP, Arpa, write_arpa
from hkd.decode.lm import read_word_ngram, usable_words
from hkd.errors import UserError, check_setting
from hkd.files import digest_of, digest_of_file, write_json
from hkd.remote import cached
from hkd.units.inventory import SENONE, UnitInventory
from hkd.units.lexicon import Lexicon
from hkd.units.tying import Tying

logger = logging.getLogger(__name__)

FORMAT = 1  # of graphs in the cache: another where they are built in another way
EPSILON, BACKOFF = "<eps>", "#0"
SILENCE_PROBABILITY = 0.5  # between words, and at both ends
_FOR_KALDI = "Write the student's likelihoods for Kaldi: `hkd likelihoods`."


@dataclass(frozen=True, kw_only=True)
class Graph:
    """`fst`: a kaldifst.StdVectorFst; `words`: of its output labels, ε first; `note`: on words that are left out."""

    fst: Any
    words: tuple[str, ...]
    note: str


def kaldi_module(name: str) -> Any:
    """A package of the extra `kaldi`. Raises UserError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        remedy = "Install it: pip install 'hkd[kaldi]'."
        raise UserError(f"graphs and tables of Kaldi need the package {name}. {remedy}") from None


def open_graph(arpa: Path, *, tying: Tying, lexicon: Lexicon) -> Graph:
    """The graph of a word n-gram, built once and kept in the cache. Raises as `build_graph` and `cached`."""
    key = digest_of([str(FORMAT), digest_of_file(arpa), tying.digest, lexicon.digest])
    built = cache(lambda: build_graph(arpa, tying=tying, lexicon=lexicon))

    def write_words(path: Path) -> None:
        write_json(path, {"words": built().words, "note": built().note})

    table = json.loads(cached("graphs", f"{key}.json", write_words).read_text(encoding="utf-8"))
    path = cached("graphs", f"{key}.fst", lambda path: built().fst.write(str(path)))
    fst = kaldi_module("kaldifst").StdVectorFst.read(str(path))
    return Graph(fst=fst, words=tuple(table["words"]), note=table["note"])


def build_graph(arpa: Path, *, tying: Tying, lexicon: Lexicon) -> Graph:
    """The graph of a word n-gram. Raises UserError for no ARPA file, or one that shares no word with the lexicon."""
    kaldifst = kaldi_module("kaldifst")
    ngram = read_word_ngram(arpa)

    @cache
    def variants(word: str) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(lexicon.variants(word) or filter(None, [lexicon.pronounce(word)])))

    can_say, note = usable_words(arpa, ngram.words, lambda word: bool(variants(word)), rule="the lexicon can pronounce")
    spoken = {word: variants(word) for word in can_say}
    words = (EPSILON, *sorted(spoken), BACKOFF, START, STOP)
    number = {word: place for place, word in enumerate(words)}
    if (tying.width, tying.central) not in ((1, 0), (3, 1)):
        rule = "must see one phone or three to be searched here"
        raise UserError(f"the senones' tree {rule}, but sees {tying.width}. {_FOR_KALDI}")
    if tying.silence is None:
        raise UserError("the acoustic model must have a phone of silence to be searched, but has none.")
    first_free = tying.num_labels + 1
    l_fst, last = _lexicon_fst(kaldifst, spoken, number, tying)
    kaldifst.add_self_loops(l_fst, [first_free], [number[BACKOFF]])
    kaldifst.arcsort(l_fst, "olabel")
    lg_fst = kaldifst.compose(l_fst, _lm_fst(kaldifst, ngram, words))
    lg_fst = kaldifst.StdVectorFst(lg_fst)
    kaldifst.determinize_star(lg_fst)
    kaldifst.minimize_encoded(lg_fst)
    kaldifst.arcsort(lg_fst, "ilabel")
    clg_fst, windows = kaldifst.compose_context(list(range(first_free, last + 1)), 3, 1, lg_fst)
    number_of: dict[tuple[int, ...], int] = {}  # state sequence → its number, from 1
    label_of = [0] * len(windows)  # 0 stays for ε and disambiguation symbols, which are no windows of three
    for label, window in enumerate(windows):
        if len(window) == 3:
            states = tying.states(tuple(window) if tying.width == 3 else (window[1],))
            label_of[label] = number_of.setdefault(states, len(number_of) + 1)
    relabelled = _relabelled(kaldifst, clg_fst, label_of)
    kaldifst.arcsort(relabelled, "ilabel")
    whole = kaldifst.StdVectorFst(kaldifst.compose(_states_fst(kaldifst, list(number_of)), relabelled))
    kaldifst.connect(whole)
    return Graph(fst=whole, words=words, note=note)


def _lexicon_fst(
    kaldifst: Any, spoken: Mapping[str, Sequence[tuple[str, ...]]], number: Mapping[str, int], tying: Tying
) -> tuple[Any, int]:
    """L, and the last disambiguation symbol. Words that sound alike, or as another begins, end in different ones."""
    fst = kaldifst.StdVectorFst()
    start, loop, silent, before_loop = (fst.add_state() for _ in range(4))
    fst.start = start
    fst.set_final(loop, 0.0)

    def arc(state: int, label: int, output: int, cost: float, to: int) -> None:
        fst.add_arc(state, kaldifst.StdArc(label, output, cost, to))

    with_silence, without = -math.log(SILENCE_PROBABILITY), -math.log(1 - SILENCE_PROBABILITY)
    last = first = tying.num_labels + 2  # the mark after silence; the label before it is #0's
    arc(start, 0, 0, without, loop)
    arc(start, 0, 0, with_silence, silent)
    arc(silent, tying.silence or 0, 0, 0.0, before_loop)
    arc(before_loop, first, 0, 0.0, loop)
    sequences = [(word, tuple(tying.labels(phones))) for word, variants in spoken.items() for phones in variants]
    count = Counter(labels for _, labels in sequences)
    begun = {labels[:length] for labels in count for length in range(1, len(labels))}
    alike: Counter[tuple[int, ...]] = Counter()
    for word, labels in sequences:
        symbols = list(labels)
        if count[labels] > 1 or labels in begun:
            alike[labels] += 1
            symbols.append(first + alike[labels])
            last = max(last, symbols[-1])
        state, output = loop, number[word]
        for label in symbols[:-1]:
            after = fst.add_state()
            arc(state, label, output, 0.0, after)
            state, output = after, 0
        arc(state, symbols[-1], output, without, loop)
        arc(state, symbols[-1], output, with_silence, silent)
    return fst, last


def _lm_fst(kaldifst: Any, ngram: Arpa, words: Sequence[str]) -> Any:
    """G, its words numbered as given; n-grams with other words are left out."""
    with tempfile.TemporaryDirectory() as folder:
        arpa, table, out = (Path(folder) / name for name in ("G.arpa", "words.txt", "G.fst"))
        write_arpa(arpa, ngram, only=words)
        table.write_text("".join(f"{word} {place}\n" for place, word in enumerate(words)), encoding="utf-8")
        options = {"disambig_symbol": BACKOFF, "read_symbol_table": str(table), "max_arpa_warnings": 0}
        arpa2fst = kaldi_module("kaldilm").arpa2fst
        with _silent_stderr():
            arpa2fst(input_arpa=str(arpa), output_fst=str(out), **options)
        fst = kaldifst.StdVectorFst.read(str(out))
    kaldifst.arcsort(fst, "ilabel")
    return fst


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Kaldi's own code reports each section of a file on the process's stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _relabelled(kaldifst: Any, fst: Any, label_of: Sequence[int]) -> Any:
    """The same FST with other input labels."""
    renewed = kaldifst.StdVectorFst()
    for _ in range(fst.num_states):
        renewed.add_state()
    renewed.start = fst.start
    for state in kaldifst.StateIterator(fst):
        renewed.set_final(state, fst.final(state))
        for arc in kaldifst.ArcIterator(fst, state):
            renewed.add_arc(state, kaldifst.StdArc(label_of[arc.ilabel], arc.olabel, arc.weight, arc.nextstate))
    return renewed


def _states_fst(kaldifst: Any, sequences: Sequence[Sequence[int]]) -> Any:
    """H: state sequence number j + 1 out, its senones (+ 1) in, each as often as it likes but at least once."""
    fst = kaldifst.StdVectorFst()
    start = fst.add_state()
    fst.start = start
    fst.set_final(start, 0.0)
    for number, states in enumerate(sequences, 1):
        before = start
        for place, senone in enumerate(states):
            here = fst.add_state()
            fst.add_arc(before, kaldifst.StdArc(senone + 1, number if place == 0 else 0, 0.0, here))
            fst.add_arc(here, kaldifst.StdArc(senone + 1, 0, 0.0, here))
            before = here
        fst.add_arc(before, kaldifst.StdArc(0, 0, 0.0, start))
    kaldifst.arcsort(fst, "olabel")
    return fst


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """How a hybrid student's output is searched. Costs are natural logarithms after scaling."""

    acoustic_scale: float = 0.1  # of log-likelihoods of 10 ms frames beside the LM's log-probabilities
    prior_scale: float = 0.6  # of the senones' log-priors, which are taken off the log-posteriors
    beam: float = 14.0  # states whose cost lies further above the best are dropped
    max_active: int = 4000  # states alive at once

    def __post_init__(self) -> None:
        for name in ("acoustic_scale", "beam", "max_active"):
            check_setting(f"hybrid.{name}", getattr(self, name), "be positive", getattr(self, name) > 0)
        check_setting("hybrid.prior_scale", self.prior_scale, "not be negative", self.prior_scale >= 0)


def log_priors(frames_V: Sequence[int]) -> NDArray[np.float32]:
    """Frames of each senone in the training data → log p(senone), one added to each so that none is impossible."""
    count_V = np.asarray(frames_V, np.float64) + 1
    prior_V: NDArray[np.float32] = np.log(count_V / count_V.sum()).astype(np.float32)
    return prior_V


def log_likelihoods(logits_TV: Tensor, log_prior_V: NDArray[np.float32], *, prior_scale: float) -> NDArray[np.float32]:
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
        """arpa: a word n-gram. Raises UserError where the senones are not the tying's, or as `build_graph` does."""
        known = tying.inventories.get(SENONE)
        if known is None or inventory.digest != known.digest:
            raise UserError(
                "a hybrid student must have the senones of the acoustic model beside it (pocketsphinx's English one "
                f"where there is none), digest {known.digest[:12] if known else 'none'}, to be searched here, but has "
                f"{inventory.digest[:12]} instead. {_FOR_KALDI}"
            )
        self.config, self._log_prior_V = config, log_prior_V
        self.graph: Graph = open_graph(arpa, tying=tying, lexicon=lexicon)
        if self.graph.note:
            logger.warning("%s %s", arpa, self.graph.note)
        self.symbols = self.graph.words
        self._kaldifst, self._decoder = kaldi_module("kaldifst"), kaldi_module("kaldi_decoder")

    def best(self, logits_BTV: Tensor, length_B: Tensor) -> list[list[int]]:
        """The best word numbers of every utterance; [] where no path survives to a word's end."""
        rows = zip(logits_BTV, length_B.tolist(), strict=True)
        return [self._best_one(logits_TV[:length]) for logits_TV, length in rows]

    def _best_one(self, logits_TV: Tensor) -> list[int]:
        config = self.config
        options = self._decoder.FasterDecoderOptions(beam=config.beam, max_active=config.max_active)
        decoder = self._decoder.FasterDecoder(self.graph.fst, options)
        score_TV = log_likelihoods(logits_TV, self._log_prior_V, prior_scale=config.prior_scale) * config.acoustic_scale
        decoder.decode(self._decoder.DecodableCtc(np.ascontiguousarray(score_TV, np.float32)))
        found, path = decoder.get_best_path() if decoder.reached_final() else (False, None)
        linear, _, words, _ = self._kaldifst.get_linear_symbol_sequence(path) if found else (False, [], [], 0)
        return list(words) if linear else []

    def text(self, units: Sequence[int]) -> str:
        return " ".join(self.symbols[unit] for unit in units)
