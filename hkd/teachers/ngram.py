"""Teachers from n-grams: an ARPA file, and the phone trigram that pocketsphinx carries.

- An n-gram is arrays over unit ids: dense rows p(v | history) and p(u_n | all others) for many positions at once. Units
  are 0 … V−1; V is <s>, V + 1 is </s>, V + 2 is "no unit".
- Back-off (Katz 1987): p(w | h) = explicit, or bow(h) · p(w | h without its oldest unit).
- N-grams with one place left open are looked up by keys of the other places, packed into 64 bits and sorted: one
  `searchsorted` a batch.
- A unit that the n-gram lacks gets half the probability of its rarest one, so that no unit is impossible.
- Given `left`: p(u_n | the units before). Given `outside-position`: p(u_n | all others) ∝ Π over the windows that
  contain n.
- Given `outside-phone` (senones): the two-sided n-gram over *phones*, folded through p(senone | phone in context,
  state).
- All renormalised over the inventory; rows do not depend on what stands together in a call.

Shape letters: N positions, V size of the inventory, Q phones, M n-grams of an order.
"""

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.arpa import START, STOP, ZERO, Arpa, Grams, read_arpa
from hkd.errors import UserError, check_choice, check_setting, some
from hkd.files import digest_of, digest_of_file
from hkd.sparse import TopK
from hkd.teachers.base import GIVEN, Sentence, Teacher, TeacherInfo, cut_rows
from hkd.teachers.cloze import IMPOSSIBLE, SenoneCounts, neighbours, pairs
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory
from hkd.units.lexicon import model_folder
from hkd.units.tying import StateTying

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_CELLS = 4_000_000  # of a chunk of dense rows
_NO_CANDIDATE = -30.0  # nats below the likeliest: silence, so that a dense row stays finite and within a codec's range


class NGram:
    """A back-off n-gram. Raises UserError where its order and V are too large for 64-bit keys."""

    def __init__(self, orders: Sequence[Grams], *, num_units: int) -> None:
        self.num_units = num_units
        self.bos, self.eos, self.nothing = num_units, num_units + 1, num_units + 2
        self.order = len(orders)
        self._radix = num_units + 3
        rule, fits = f"fit {num_units} units into 64-bit keys", self.order * math.log2(self._radix) < 63
        check_setting("the n-gram's order", self.order, rule, fits, "Use a lower order.")
        self._orders = list(orders)
        self._indices: dict[tuple[int, int], tuple[Ints, Ints]] = {}
        logp = np.full(self._radix, -np.inf)
        logp[orders[0].ids_Mn[:, 0]] = orders[0].logp_M
        possible = logp > ZERO * math.log(10)
        # what the n-gram lacks or gives a probability of 0 has half that of its rarest unit
        floor = float(logp[:num_units][possible[:num_units]].min(initial=0.0)) - math.log(2)
        self._unigram = np.where(possible, logp, floor)

    def _pack(self, ids_Nn: Ints) -> Ints:
        key = np.zeros(len(ids_Nn), np.int64)
        for column in range(ids_Nn.shape[1]):
            key = key * self._radix + ids_Nn[:, column]
        return key

    def _index(self, order: int, open_place: int) -> tuple[Ints, Ints]:
        """Sorted keys of an order's n-grams without the open place (−1: none is), and which n-gram each belongs to."""
        if (order, open_place) not in self._indices:
            ids = self._orders[order - 1].ids_Mn
            key = self._pack(ids if open_place < 0 else np.delete(ids, open_place, axis=1))
            row = np.argsort(key, kind="stable")
            self._indices[order, open_place] = (key[row], row)
        return self._indices[order, open_place]

    def _exact(self, ids_Nn: Ints, column: str, otherwise: Floats | float) -> Floats:
        """`logp_M` or `bow_M` of each n-gram; `otherwise` of those that are not there."""
        order = ids_Nn.shape[1]
        keys, row = self._index(order, -1)
        if not len(keys):
            return np.full(len(ids_Nn), otherwise)
        wanted = self._pack(ids_Nn)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, getattr(self._orders[order - 1], column)[row[at]], otherwise)

    def _open(self, rest_Nn: Ints, order: int, place: int) -> tuple[Ints, Ints, Ints]:
        """All n-grams that fit the rows when `place` is open: (row, unit at the place, n-gram), units only."""
        keys, gram = self._index(order, place)
        row, at = pairs(keys, self._pack(rest_Nn))
        found = gram[at]
        unit = self._orders[order - 1].ids_Mn[found, place]
        keep = unit < self.num_units
        return row[keep], unit[keep], found[keep]

    def windows(self, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Of each position of a sentence the (order − 1) ids before it and those after it, in the order of the text."""
        reach = self.order - 1
        if not reach or not len(unit_U):
            return (np.zeros((len(unit_U), 0), np.int64),) * 2
        none = [self.nothing] * (reach - 1)
        padded = np.array([*none, self.bos, *unit_U.tolist(), self.eos, *none], np.int64)
        view = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
        return view[:, :reach].copy(), view[:, reach + 1 :].copy()

    def left(self, before_Nr: Ints) -> Floats:
        """log p(v | the ids before) for every v, (N, V); sums to 1 − p(</s> | ...) over V, so renormalise."""
        out_NV = np.tile(self._unigram[: self.num_units], (len(before_Nr), 1))
        for length in range(1, self.order):
            context = before_Nr[:, before_Nr.shape[1] - length :]
            out_NV += self._exact(context, "bow_M", 0.0)[:, None]
            n, unit, gram = self._open(context, length + 1, length)
            out_NV[n, unit] = self._orders[length].logp_M[gram]
        return out_NV

    def both(self, before_Nr: Ints, after_Nr: Ints) -> Floats:
        """log of Π over the windows that contain the position, for every v, (N, V); not normalised over V."""
        out_NV = self.left(before_Nr)
        for i in range(1, self.order):
            there = after_Nr[:, i - 1] != self.nothing
            if there.any():
                out_NV[there] += self._window(before_Nr[there], after_Nr[there], i)
        return out_NV

    def _window(self, before_Nr: Ints, after_Nr: Ints, i: int) -> Floats:
        """log p(the i-th id after | as much as the order allows of: before, v, the i − 1 ids between), for every v."""
        between, target = after_Nr[:, : i - 1], after_Nr[:, i - 1]
        base = self._unigram[target].copy()  # without v: the history does not reach it
        for length in range(1, i):
            context = between[:, i - 1 - length :]
            base += self._exact(context, "bow_M", 0.0)
            base = self._exact(np.concatenate([context, target[:, None]], axis=1), "logp_M", base)
        out_NV = np.tile(base[:, None], (1, self.num_units))
        for reach in range(self.order - i):  # ids before v in the history
            rest = np.concatenate([before_Nr[:, before_Nr.shape[1] - reach :], between], axis=1)
            n, unit, gram = self._open(rest, reach + i, reach)
            out_NV[n, unit] += self._orders[reach + i - 1].bow_M[gram]
            n, unit, gram = self._open(np.concatenate([rest, target[:, None]], axis=1), reach + i + 1, reach)
            out_NV[n, unit] = self._orders[reach + i].logp_M[gram]
        return out_NV


class NGramTeacher(Teacher):
    """An n-gram as a teacher. `allowed_V`: which units are candidates (others, as silence, get e^-30); None: all."""

    def __init__(
        self,
        ngram: NGram,
        *,
        inventory: UnitInventory,
        info: TeacherInfo,
        counts: SenoneCounts | None = None,
        allowed_V: NDArray[np.bool_] | None = None,
    ) -> None:
        if (info.given == "outside-phone") != (counts is not None):
            raise ValueError("counts of senones go with given='outside-phone', and only with it")
        super().__init__(inventory=inventory, info=info)
        self._ngram, self._counts, self._at_once = ngram, counts, max(1, _CELLS // len(inventory))
        self._allowed_V = np.ones(len(inventory), np.bool_) if allowed_V is None else allowed_V

    def logits(self, sentences: Sequence[NDArray[np.int32]]) -> Iterator[Floats]:
        """Chunks of (N, V) unnormalised log-probabilities of all positions of all sentences, in order."""
        pieces = [self._inputs(unit_U) for unit_U in sentences if len(unit_U)]
        if not pieces:
            return
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        for start in range(0, len(columns[0]), self._at_once):
            yield self._rows(*(column[start : start + self._at_once] for column in columns))

    def _inputs(self, unit_U: NDArray[np.int32]) -> tuple[Ints, ...]:
        if self._counts is None:
            return self._ngram.windows(unit_U)
        phone_P, place_U, state_U = self._counts.senones.split(unit_U)
        before, after = self._ngram.windows(phone_P.astype(np.int32))
        return (before[place_U], after[place_U], *neighbours(self._counts.senones, unit_U), state_U)

    def _rows(self, before: Ints, after: Ints, *context: Ints) -> Floats:
        out = self._ngram.left(before) if self.info.given == "left" else self._ngram.both(before, after)
        if self._counts is not None:
            left_N, right_N, state_N = context
            peak = out.max(axis=1, keepdims=True)
            phone_logp = out - peak - np.log(np.exp(out - peak).sum(axis=1, keepdims=True))
            out = self._counts.fold(phone_logp, left_N, right_N)
            out[self._counts.senones.state_of_V[None, :] != state_N[:, None]] = IMPOSSIBLE
        if not self._allowed_V.all():
            out[:, ~self._allowed_V] = out.max(axis=1, keepdims=True) + _NO_CANDIDATE
        return out

    def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
        units = np.concatenate([np.zeros(0, np.int64), *(s.unit_U for s in sentences)])
        gold_N = torch.from_numpy(units.astype(np.int64))
        if not len(gold_N):
            return [TopK.empty(min(k, len(self.inventory)), len(temperatures)) for _ in sentences]
        chunks = zip(self.logits([s.unit_U for s in sentences]), torch.split(gold_N, self._at_once), strict=True)
        parts = [select_topk(torch.from_numpy(rows), gold, k=k, temperatures=temperatures) for rows, gold in chunks]
        return cut_rows(TopK.concatenate(parts), sentences)


# How files of other projects write units: each as a function that takes both spellings to one.
_SPELLINGS: dict[str, Callable[[str], str]] = {
    "upper and lower case": str.casefold,
    "stress digits (AH0 for AH)": lambda symbol: re.sub(r"(?<=[A-Za-z])[0-2](?=$|_)", "", symbol),
    "place suffixes (_B, _I, _E, _S)": lambda symbol: re.sub(r"_[BIES]$", "", symbol),
    "marks of word pieces (▁, ##, @@, Ġ)": lambda symbol: re.sub(r"^(▁|##|Ġ)|@@$", "", symbol),
    "Unicode's composed form (NFC)": partial(unicodedata.normalize, "NFC"),
}
_OTHERWISE = 0.05  # of a level's units: spelt otherwise in a file, they are no accident


def ngram_over(arpa: Arpa, *, symbols: Sequence[str], silence: int | None = None, report: bool = True) -> NGram:
    """The n-gram over units that a file writes as `symbols`; n-grams with other symbols are left out and reported.

    Raises UserError where the file is not over these units: it has none of them, or most of its probability is on other
    symbols, or it writes them otherwise (case, stress, place in the word, marks of word pieces).
    """
    num_units, known = len(symbols), {*symbols} & {*arpa.symbols}
    number = {symbol: i for i, symbol in enumerate(symbols)} | {START: num_units, STOP: num_units + 1}
    id_V = np.array([number.get(symbol, -1) for symbol in arpa.symbols], np.int64)
    lacking = [
        symbol for i, symbol in enumerate(symbols) if symbol not in known and i != silence and not _is_mark(symbol)
    ]
    strange = [symbol for symbol in arpa.symbols if symbol not in known and not _is_mark(symbol)]
    spelt, how = _spelt_otherwise(lacking, strange)
    p_V = np.zeros(len(arpa.symbols))
    p_V[arpa.orders[0].ids_Mn[:, 0]] = 10.0 ** arpa.orders[0].logp_M
    unit_mass, strange_mass = (p_V[[s in part for s in arpa.symbols]].sum() for part in (known, {*strange}))
    if not known or spelt > _OTHERWISE * num_units or strange_mass > unit_mass:
        named = f"{some(strange)} instead of {some(lacking)}"
        remedy = "Give the ARPA file of this level"
        if how:
            remedy = f"{spelt} more would fit if {how} were the same: rewrite the file's symbols so"
        rule = f"{arpa.path} must hold n-grams of the inventory's {num_units} units"
        raise UserError(f"{rule}, but has {len(known)} of them ({named}). {remedy}.")
    grams, left_out = [], 0
    for order in arpa.orders:
        ids_Mn = id_V[order.ids_Mn]
        kept_M = (ids_Mn >= 0).all(axis=1)
        left_out += int((~kept_M).sum())
        logp_M, bow_M = (values[kept_M] * math.log(10) for values in (order.logp_M, order.bow_M))
        grams.append(Grams(ids_Mn=ids_Mn[kept_M], logp_M=logp_M, bow_M=bow_M))
    if lacking and report:
        logger.warning(
            "%s lacks %d of the level's %d units (%s); each gets half the probability of its rarest one.",
            arpa.path, len(lacking), num_units, some(lacking),
        )  # fmt: skip
    if strange:
        logger.warning(
            "%s: %d n-grams with symbols that are no units of the level (%s) are left out.",
            arpa.path, left_out, some(strange),
        )  # fmt: skip
    return NGram(grams, num_units=num_units)


def _is_mark(symbol: str) -> bool:
    """Whether a symbol is a mark that files have beside units: <unk>, [noise], +NSN+, #0."""
    return symbol[:1] + symbol[-1:] in ("<>", "[]", "++") or (symbol.startswith("#") and symbol[1:].isdigit())


def _spelt_otherwise(lacking: Sequence[str], strange: Sequence[str]) -> tuple[int, str]:
    """How many of the units that a file lacks are among its other symbols in another spelling, and how they differ."""
    best, how = 0, ""
    for count in range(1, len(_SPELLINGS) + 1):
        for chosen in combinations(_SPELLINGS.items(), count):

            def plain(symbol: str, chosen: Any = chosen) -> str:
                for _, change in chosen:
                    symbol = change(symbol)
                return symbol

            found = {plain(symbol) for symbol in strange} - {""}
            fit = sum(plain(symbol) in found for symbol in lacking)
            if fit > best:
                best, how = fit, " and ".join(name for name, _ in chosen)
    return best, how


def load_ngram(
    path: Path,
    *,
    inventory: UnitInventory,
    given: str = "outside-position",
    counts_path: Path | None = None,
    tokens: str = "symbol",
    name: str | None = None,
    trained_on_transcripts: str = "unknown",
) -> NGramTeacher:
    """An ARPA file as a teacher of the inventory's level.

    `tokens`: the file's words are the inventory's symbols (`symbol`) or ids (`id`, what `hkd lm train` writes). Given
    `outside-phone` it is over phones and `counts_path` has the senones' counts. Raises UserError where they do not fit.
    """
    check_choice("`given`", given, GIVEN)
    counts, silence, units = None, inventory.silence, len(inventory)
    digests = [digest_of_file(path), inventory.digest, given, tokens]
    if counts_path is not None:
        counts = SenoneCounts.load(counts_path)
        senones = len(counts.senones.phone_of_V)
        check_setting(str(counts_path), f"of {senones}", f"be of {units} senones", senones == units)
        silence, units = None, counts.senones.num_phones
        digests.append(digest_of_file(counts_path))
    written = inventory.symbols if tokens == "symbol" and counts is None else tuple(map(str, range(units)))
    ngram = ngram_over(read_arpa(path), symbols=written, silence=silence, report=tokens == "symbol")
    info = _info(name or path.name, digests, given, ngram.order, trained_on_transcripts)
    return NGramTeacher(ngram, inventory=inventory, info=info, counts=counts)


def _info(
    name: str, digests: Sequence[str], given: str, order: int, trained_on_transcripts: str = "unknown"
) -> TeacherInfo:
    return TeacherInfo(
        name=name,
        kind="ngram",
        direction="left" if given == "left" else "both",
        digest=digest_of(digests),
        given=given,
        options={"order": order},
        trained_on_transcripts=trained_on_transcripts,
    )


def phone_trigram() -> NGramTeacher:
    """The phone trigram that pocketsphinx carries, over its phones: a monophone teacher from nothing.

    Its probabilities are asked for one by one (pocketsphinx gives them to 1e-4 nat) and stand here as an explicit
    trigram without back-off; silence and noise are no candidates, as a unit sequence has none.
    """
    import pocketsphinx

    inventory, path = StateTying().monophone_inventory, model_folder() / "en-us-phone.lm.bin"
    model = pocketsphinx.NGramModel.readfile(str(path))
    base, impossible = np.log(1.0001), -200.0  # of pocketsphinx's integer logarithms; it gives unknown symbols 1e-99
    num, symbols = len(inventory), [*inventory.symbols, "<s>", "</s>"]
    triples = [[[model.prob([w, b, a]) for w in symbols] for b in symbols] for a in symbols[: num + 1]]
    pair_VV = np.array([[model.prob([w, b]) for w in symbols] for b in symbols[: num + 1]]) * base
    single_V = np.array([model.prob([w]) for w in symbols]) * base
    allowed_V = single_V[:num] > impossible
    allowed_V[inventory.silence] = False
    logp_VV1 = np.array(triples) * base
    ngram = NGram([_explicit(table, impossible) for table in (single_V, pair_VV, logp_VV1)], num_units=num)
    given = "outside-position"
    info = _info("phone-trigram", [digest_of_file(path), inventory.digest, given], given, 3)
    return NGramTeacher(ngram, inventory=inventory, info=info, allowed_V=allowed_V)


def _explicit(table: Floats, impossible: float) -> Grams:
    """A dense table, target last, as n-grams without back-off; impossible ones left out."""
    ids = np.argwhere(table > impossible)
    return Grams(ids_Mn=ids.astype(np.int64), logp_M=table[tuple(ids.T)], bow_M=np.zeros(len(ids)))
