"""Teachers from n-grams: an ARPA or KenLM file, and the phone trigram that pocketsphinx carries.

- Given `left`: p(u_n | the units before). Given `outside-position`: p(u_n | all others) ∝ Π over the windows that contain n.
- Given `outside-phone` (senones): the two-sided n-gram over *phones*, folded through p(senone | phone in context, state).
- All renormalised over the inventory; rows do not depend on what stands together in a call.

Shape letters: N positions, V size of the inventory, Q phones.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, TeacherInfo, UnitTeacher
from hkd.teachers.kenlm import KENLM_SUFFIXES, KenLm
from hkd.teachers.ngram_model import Floats, Grams, Ints, NGram, read_arpa
from hkd.teachers.unit_lm_senones import IMPOSSIBLE, SenoneCounts, neighbours
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory

GIVEN = ("outside-position", "outside-phone", "left")
_CELLS = 4_000_000  # of a chunk of dense rows
_NO_CANDIDATE = -30.0  # nats below the likeliest: silence, so that a dense row stays finite and within a codec's range


class NGramTeacher(UnitTeacher):
    """An n-gram as a teacher. `allowed_V`: the units that may be candidates (no silence, no noise: those get e^-30 of the likeliest); all where None."""

    def __init__(
        self,
        ngram: NGram | KenLm,
        *,
        inventory: UnitInventory,
        info: TeacherInfo,
        counts: SenoneCounts | None = None,
        allowed_V: NDArray[np.bool_] | None = None,
    ) -> None:
        if (info.given == "outside-phone") != (counts is not None):
            raise ValueError("counts of senones go with given='outside-phone', and only with it")
        super().__init__(inventory=inventory, info=info)
        self._ngram, self._counts = ngram, counts
        self._allowed_V = np.ones(len(inventory), np.bool_) if allowed_V is None else allowed_V

    def logits(self, sentences: Sequence[NDArray[np.int32]]) -> Iterator[Floats]:
        """Chunks of (N, V) unnormalised log-probabilities of all positions of all sentences, in order."""
        pieces = [self._inputs(unit_U) for unit_U in sentences if len(unit_U)]
        if not pieces:
            return
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        rows = max(1, _CELLS // len(self._inventory))
        for start in range(0, len(columns[0]), rows):
            yield self._rows(*(column[start : start + rows] for column in columns))

    def _inputs(self, unit_U: NDArray[np.int32]) -> tuple[Ints, ...]:
        if self._counts is None:
            return self._ngram.windows(unit_U)
        phone_P, place_U, state_U = self._counts.senones.split(unit_U)
        before, after = self._ngram.windows(phone_P.astype(np.int32))
        return (before[place_U], after[place_U], *neighbours(self._counts.senones, unit_U), state_U)

    def _rows(self, before: Ints, after: Ints, *context: Ints) -> Floats:
        out = self._ngram.left(before) if self._info.given == "left" else self._ngram.both(before, after)
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
        """Per sentence the top-k rows of all its positions, in order."""
        gold_N = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(s.unit_U.astype(np.int64) for s in sentences)]))
        parts, start = [], 0
        for rows_NV in self.logits([s.unit_U for s in sentences]):
            gold = gold_N[start : start + len(rows_NV)]
            parts.append(select_topk(torch.from_numpy(rows_NV), gold, k=k, temperatures=temperatures))
            start += len(gold)
        if not parts:
            return [TopK.empty(min(k, len(self._inventory)), len(temperatures)) for _ in sentences]
        whole = TopK.concatenate(parts)
        bounds = np.cumsum([0, *(len(s.unit_U) for s in sentences)])
        return [whole[int(a) : int(b)] for a, b in pairwise(bounds)]


def load_ngram(
    path: Path,
    *,
    level: str,
    inventory: UnitInventory,
    given: str = "outside-position",
    counts_path: Path | None = None,
    phones: UnitInventory | None = None,
    tokens: str = "symbol",
    name: str | None = None,
    trained_on_transcripts: str = "unknown",
) -> NGramTeacher:
    """An ARPA or KenLM file as a teacher of `level`.

    `tokens`: the file's words are the inventory's symbols (`symbol`) or their ids in decimal (`id`, what `hkd lm train` writes).
    For given `outside-phone` the file is over `phones` and `counts_path` holds the senones' counts. Raises UserError where these do not fit.
    """
    if given not in GIVEN:
        raise UserError(f"`given` must be one of {', '.join(GIVEN)}, but is '{given}' instead.")
    if inventory.level != level:
        raise UserError(
            f"`inventory` must be of level '{level}', but is of '{inventory.level}' instead. Give that level's inventory."
        )
    counts = None
    units: int = len(inventory)
    symbols = inventory.symbols
    if given == "outside-phone":
        if counts_path is None:
            raise UserError(
                "given 'outside-phone' needs the senones' counts, but there are none. Train the LM with `hkd lm train`."
            )
        counts = SenoneCounts.load(counts_path)
        units = counts.senones.num_phones if phones is None else len(phones)
        symbols = tuple(str(i) for i in range(units)) if phones is None else phones.symbols
        if len(counts.senones.phone_of_V) != len(inventory):
            raise UserError(
                f"{counts_path} must be of {len(inventory)} senones, but is of {len(counts.senones.phone_of_V)} instead."
            )
    written = tuple(str(i) for i in range(units)) if tokens == "id" else symbols
    digests = [digest_of_file(path), inventory.digest, given, tokens]
    if counts_path is not None and counts is not None:
        digests.append(digest_of_file(counts_path))
    ngram: NGram | KenLm
    if path.name.endswith(KENLM_SUFFIXES):
        ngram = KenLm(path, symbols=written)
    else:
        ngram = read_arpa(path, id_of={symbol: i for i, symbol in enumerate(written)}, num_units=units)
    info = TeacherInfo(
        name=name or path.name,
        kind="ngram",
        direction="left" if given == "left" else "both",
        digest=digest_of(digests),
        given=given,
        options={"order": ngram.order},
        trained_on_transcripts=trained_on_transcripts,
    )
    return NGramTeacher(ngram, inventory=inventory, info=info, counts=counts)


def phone_trigram(
    *, inventory: UnitInventory | None = None, path: Path | None = None, given: str = "outside-position"
) -> NGramTeacher:
    """The phone trigram that pocketsphinx carries, over its phones: a monophone teacher from nothing.

    Its probabilities are asked for one by one (pocketsphinx gives them to 1e-4 nat) and stand here as an explicit trigram without
    back-off; silence and noise are no candidates, as a unit sequence has none.
    """
    import pocketsphinx

    if inventory is None:
        from hkd.units.tying import StateTying

        inventory = StateTying().monophone_inventory
    path = path or Path(pocketsphinx.get_model_path()) / "en-us" / "en-us-phone.lm.bin"
    try:
        model = pocketsphinx.NGramModel.readfile(str(path))
    except Exception as error:  # the C library raises what it likes
        raise UserError(f"{path} must be an n-gram that pocketsphinx reads, but is not ({error}).") from None
    base = np.log(1.0001)  # of pocketsphinx's integer logarithms
    num = len(inventory)
    symbols = [*inventory.symbols, "<s>", "</s>"]
    logp_VV1 = np.array([[[model.prob([w, b, a]) for w in symbols] for b in symbols] for a in symbols[: num + 1]]) * base
    pair_VV = np.array([[model.prob([w, b]) for w in symbols] for b in symbols[: num + 1]]) * base
    single_V = np.array([model.prob([w]) for w in symbols]) * base
    impossible = -200.0  # pocketsphinx gives unknown symbols 1e-99
    allowed_V = single_V[:num] > impossible
    if inventory.silence is not None:
        allowed_V[inventory.silence] = False
    if not allowed_V.any():
        raise UserError(f"{path} must know units of the inventory, but knows none. Give the phones of pocketsphinx's model.")
    grams = [_explicit(table, impossible) for table in (single_V, pair_VV, logp_VV1)]
    info = TeacherInfo(
        name="phone-trigram",
        kind="ngram",
        direction="left" if given == "left" else "both",
        digest=digest_of([digest_of_file(path), inventory.digest, given]),
        given=given,
        options={"order": 3},
        trained_on_transcripts="unknown",
    )
    return NGramTeacher(NGram(grams, num_units=num), inventory=inventory, info=info, allowed_V=allowed_V)


def _explicit(table: Floats, impossible: float) -> Grams:
    """A dense table, target last, as n-grams without back-off; impossible ones left out."""
    ids = np.argwhere(table > impossible)
    return Grams(ids_Mn=ids.astype(np.int64), logp_M=table[tuple(ids.T)], bow_M=np.zeros(len(ids)))
