"""The search graph of a hybrid student: senones in, words out, with a lexicon and a word n-gram (Mohri, Pereira & Riley 2002).

    graph = H ∘ C ∘ det(L ∘ G)

G is the n-gram, L the pronunciations with optional silence between words, C puts phones into the context of their neighbours (across
words too, as the aligner has it), H gives each phone in context the tied states of the acoustic model, each with a self-loop. Phones carry
their position in the word where the senones depend on it, so that C finds the senones that text has by the same tying; transition
probabilities are left out, since states of equal rank would have equal ones. kaldifst does the algebra, kaldilm reads the n-gram.

Input labels: senone + 1 (0 is ε). Output labels: words, numbered as in `Graph.words`.
"""

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from hkd.decode.arpa import usable_words
from hkd.decode.context import ContextPhones, context_phones
from hkd.errors import UserError
from hkd.units.acoustic import Tying
from hkd.units.lexicon import Lexicon

EPSILON, BACKOFF, START, STOP = "<eps>", "#0", "<s>", "</s>"
SILENCE_PROBABILITY = 0.5  # between words, and at both ends


@dataclass(frozen=True, kw_only=True)
class Graph:
    """`fst`: a kaldifst.StdVectorFst; `words`: of its output labels, ε first."""

    fst: Any
    words: tuple[str, ...]
    num_states: int


def kaldi_module(name: str) -> Any:
    """A package of the extra `kaldi`. Raises UserError that says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"decoding with a graph needs the package {name}. Install it: pip install 'hkd[kaldi]'.") from None


def build_graph(arpa: Path, *, tying: Tying, lexicon: Lexicon) -> Graph:
    """The graph of a word n-gram (ARPA, plain text). Raises UserError where the file is none, or shares no word with the lexicon."""
    kaldifst = kaldi_module("kaldifst")
    variants = cache(partial(_pronunciations, lexicon))
    can_say = usable_words(arpa, _unigrams(arpa), lambda word: bool(variants(word)), rule="the lexicon can pronounce")
    spoken = {word: variants(word) for word in can_say}
    words = (EPSILON, *sorted(spoken), BACKOFF, START, STOP)
    number = {word: place for place, word in enumerate(words)}
    phones = context_phones(tying)
    first_free = phones.num_labels + 1
    l_fst, last = _lexicon_fst(kaldifst, spoken, number, phones)
    kaldifst.add_self_loops(l_fst, [first_free], [number[BACKOFF]])
    kaldifst.arcsort(l_fst, "olabel")
    lg_fst = kaldifst.compose(l_fst, _lm_fst(kaldifst, arpa, words))
    lg_fst = kaldifst.StdVectorFst(lg_fst)
    kaldifst.determinize_star(lg_fst)
    kaldifst.minimize_encoded(lg_fst)
    kaldifst.arcsort(lg_fst, "ilabel")
    disambiguation = list(range(first_free, last + 1))
    clg_fst, windows = kaldifst.compose_context(disambiguation, 3, 1, lg_fst)
    sequences, label_of = _state_sequences(windows, phones)
    relabelled = _relabelled(kaldifst, clg_fst, label_of)
    kaldifst.arcsort(relabelled, "ilabel")
    whole = kaldifst.StdVectorFst(kaldifst.compose(_states_fst(kaldifst, sequences), relabelled))
    kaldifst.connect(whole)
    return Graph(fst=whole, words=words, num_states=whole.num_states)


def _unigrams(arpa: Path) -> list[str]:
    """The words of an ARPA file."""
    words: list[str] = []
    inside = False
    try:
        with arpa.open(encoding="utf-8") as file:
            for line in file:
                text = line.strip()
                if text.startswith("\\"):
                    if inside:
                        break
                    inside = text == "\\1-grams:"
                elif inside and text:
                    words.append(text.split()[1])
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{arpa} must be an ARPA language model in plain text, but cannot be read as one ({error}).") from None
    if START not in words or STOP not in words:
        raise UserError(f"{arpa} must be an ARPA language model with <s> and </s>, but is not.")
    return [word for word in words if not (word.startswith("<") and word.endswith(">"))]


def _pronunciations(lexicon: Lexicon, word: str) -> list[tuple[str, ...]]:
    variants = lexicon.variants(word) or [variant for variant in [lexicon.pronounce(word)] if variant]
    return list(dict.fromkeys(variants))


def _lexicon_fst(
    kaldifst: Any, spoken: Mapping[str, Sequence[tuple[str, ...]]], number: Mapping[str, int], phones: ContextPhones
) -> tuple[Any, int]:
    """L, and the last disambiguation symbol. Words that sound alike, or as another begins, end in different ones."""
    fst = kaldifst.StdVectorFst()
    start, loop, silent = fst.add_state(), fst.add_state(), fst.add_state()
    fst.start = start
    fst.set_final(loop, 0.0)
    with_silence, without = -math.log(SILENCE_PROBABILITY), -math.log(1 - SILENCE_PROBABILITY)
    fst.add_arc(start, kaldifst.StdArc(0, 0, without, loop))
    fst.add_arc(start, kaldifst.StdArc(0, 0, with_silence, silent))
    alike: dict[tuple[int, ...], int] = {}
    last = phones.num_labels + 2  # after silence; before it stands #0
    before_loop = fst.add_state()
    fst.add_arc(silent, kaldifst.StdArc(phones.silence, 0, 0.0, before_loop))
    fst.add_arc(before_loop, kaldifst.StdArc(last, 0, 0.0, loop))
    first_alike = last + 1
    sequences = {word: [tuple(phones.labels(p)) for p in variants] for word, variants in spoken.items()}
    count: dict[tuple[int, ...], int] = {}
    for variants in sequences.values():
        for labels in variants:
            count[labels] = count.get(labels, 0) + 1
    begun = {labels[:length] for labels in count for length in range(1, len(labels))}
    for word, variants in sequences.items():
        for labels in variants:
            marks: tuple[int, ...] = ()
            if count[labels] > 1 or labels in begun:
                alike[labels] = alike.get(labels, -1) + 1
                marks = (first_alike + alike[labels],)
                last = max(last, *marks)
            state, symbols = loop, (*labels, *marks)
            for place, label in enumerate(symbols):
                output = number[word] if place == 0 else 0
                if place < len(symbols) - 1:
                    after = fst.add_state()
                    fst.add_arc(state, kaldifst.StdArc(label, output, 0.0, after))
                    state = after
                else:
                    fst.add_arc(state, kaldifst.StdArc(label, output, without, loop))
                    fst.add_arc(state, kaldifst.StdArc(label, output, with_silence, silent))
    return fst, last


def _lm_fst(kaldifst: Any, arpa: Path, words: Sequence[str]) -> Any:
    """G, its words numbered as given; n-grams with other words are left out."""
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "words.txt", Path(folder) / "G.fst"
        table.write_text("".join(f"{word} {place}\n" for place, word in enumerate(words)), encoding="utf-8")
        arpa2fst = kaldi_module("kaldilm").arpa2fst
        with _silent_stderr():
            arpa2fst(
                input_arpa=str(arpa),
                output_fst=str(out),
                disambig_symbol=BACKOFF,
                read_symbol_table=str(table),
                max_arpa_warnings=0,
            )
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


def _state_sequences(windows: Sequence[Sequence[int]], phones: ContextPhones) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different state sequences, and for each input label of C ∘ L ∘ G its number among them from 1 (0: ε)."""
    number_of: dict[tuple[int, ...], int] = {}
    label_of = []
    for window in windows:
        if len(window) != 3:  # ε, or a disambiguation symbol
            label_of.append(0)
            continue
        label_of.append(number_of.setdefault(phones.states(*window), len(number_of) + 1))
    return list(number_of), label_of


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
