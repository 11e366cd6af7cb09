"""Our own LMs over units: `cloze` (two towers joined at each position) and `causal` (the left tower alone).

- The left tower has read <s>, u_0 … u_{n−1} when it stands at n, the right tower </s>, u_{U−1} … u_{n+1}: neither ever
  sees u_n, so one pass gives p(u_n | all others) for every n, exactly and without masking.
- Towers are LSTMs: on phones of 0.65 M words and after 60 s of one core, perplexity 2.2 against 4.1 of a two-layer
  Transformer of the same width; and LSTMs have no longest input.
- Given `outside-phone` a position of senones is conditioned on the phones outside its own phone and on its state's
  number, never on senones, for their tying encodes the phone between them. The towers read the phones of the senone
  sequence, and only senones of that state are candidates. `SenoneCounts` says the same for the n-gram, from what a
  senone says of its phone.
- Both towers run from their own beginning over padding at the end, so padding and batch-mates change nothing.

Shape letters: B sentences, U tower inputs (units, or phones) or positions of a sentence, P its phones, N positions of
all sentences, V inventory, Q phones, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from hkd.errors import UserError, check_choice, check_setting, check_settings
from hkd.files import write_bytes
from hkd.units.tying import split_senones

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_COUNTED_AT_ONCE = 20_000  # sentences
# log-probability of senones of another state than the position's: exp is 0, yet it is finite in float16
IMPOSSIBLE = -1e4


@dataclass(frozen=True, kw_only=True, eq=False)
class SenoneMap:
    """Which phone and which state of it each senone is."""

    phone_of_V: Ints
    state_of_V: Ints

    @property
    def num_phones(self) -> int:
        """Q."""
        return int(self.phone_of_V.max()) + 1

    @property
    def num_states(self) -> int:
        """States a phone, at most."""
        return int(self.state_of_V.max()) + 1

    def split(self, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints, Ints]:
        """As `hkd.units.tying.split_senones`: phone_P, place_U, state_U."""
        return split_senones(unit_U, self.phone_of_V, self.state_of_V)


class SenoneCounts:
    """p(senone | its phone, the phones beside it, state), from counts.

    p(s | l, q, r) = (c(l, q, r, s) + κ · p0(s)) / (c(l, q, r, state of s) + κ), with p0(s) = p(s | q, state) the
    add-half estimate over all contexts (Jelinek-Mercer smoothing with a count-dependent weight). Folding a posterior of
    the phone through it, p(s | phones outside, state) = P(q(s) | phones outside) · p(s | l, q(s), r), sums to one over
    the senones of each state.
    """

    def __init__(self, senones: SenoneMap, *, lrs_M3: Ints, count_M: Floats, prior: float = 1.0) -> None:
        self.senones, self.prior = senones, prior
        self._radix = senones.num_phones + 2
        key_M = lrs_M3[:, 0] * self._radix + lrs_M3[:, 1]
        order = np.argsort(key_M, kind="stable")
        self._key_M, self._lrs_M3, self._count_M = key_M[order], lrs_M3[order], count_M[order]
        group = senones.phone_of_V * senones.num_states + senones.state_of_V
        self._num_groups = senones.num_phones * senones.num_states
        self._group_V = group
        total_V = np.bincount(lrs_M3[:, 2], weights=count_M, minlength=len(group)) + 0.5
        self._p0_V = total_V / np.bincount(group, weights=total_V, minlength=self._num_groups)[group]

    @classmethod
    def count(cls, senones: SenoneMap, sentences: Iterable[NDArray[np.int32]], *, prior: float = 1.0) -> "SenoneCounts":
        """Count triples over sentences, a chunk at a time."""
        num_units, radix = len(senones.phone_of_V), senones.num_phones + 2
        keys, counts = np.zeros(0, np.int64), np.zeros(0)
        filled = filter(len, sentences)
        while chunk := list(islice(filled, _COUNTED_AT_ONCE)):
            beside = [(unit_U, *neighbours(senones, unit_U)) for unit_U in chunk]
            key_N = np.concatenate([(left * radix + right) * num_units + unit_U for unit_U, left, right in beside])
            new, count = np.unique(key_N, return_counts=True)
            keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
            counts = np.bincount(place, weights=np.concatenate([counts, count])).astype(np.float64)
        lrs_M3 = np.stack([keys // num_units // radix, keys // num_units % radix, keys % num_units], axis=1)
        return cls(senones, lrs_M3=lrs_M3, count_M=counts, prior=prior)

    def fold(self, phone_logp_NQ: Floats, left_N: Ints, right_N: Ints) -> Floats:
        """log p(senone | phones outside), (N, V), one a state's number, from log P(phone | phones outside)."""
        key_N = left_N * self._radix + right_N
        row, entry = pairs(self._key_M, key_N)
        unit, weight = self._lrs_M3[entry, 2], self._count_M[entry]
        num_units = len(self._group_V)
        seen_NV = np.zeros((len(key_N), num_units))
        seen_NV[row, unit] = weight
        total_NG = np.zeros((len(key_N), self._num_groups))
        np.add.at(total_NG, (row, self._group_V[unit]), weight)
        p_NV = (seen_NV + self.prior * self._p0_V) / (total_NG[:, self._group_V] + self.prior)
        out_NV: Floats = np.log(p_NV) + phone_logp_NQ[:, self.senones.phone_of_V]
        return out_NV

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tensors: dict[str, NDArray[Any]] = {
            "lrs": self._lrs_M3.astype(np.int32),
            "count": self._count_M.astype(np.int64),
            "phone_of_unit": self.senones.phone_of_V.astype(np.int32),
            "state_of_unit": self.senones.state_of_V.astype(np.int32),
        }
        write_bytes(path, save(tensors, metadata={"hkd_senone_counts": "1"}))

    @classmethod
    def load(cls, path: Path) -> "SenoneCounts":
        """Read what `save` wrote. Raises UserError where it is missing or no such file."""
        try:
            t = load_file(path)
            phone_of_V, state_of_V = (t[name].astype(np.int64) for name in ("phone_of_unit", "state_of_unit"))
            senones = SenoneMap(phone_of_V=phone_of_V, state_of_V=state_of_V)
            return cls(senones, lrs_M3=t["lrs"].astype(np.int64), count_M=t["count"].astype(np.float64))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} must hold counts of senones in context, but cannot be read ({error}).") from None


def pairs(key_M: Ints, wanted_N: Ints) -> tuple[Ints, Ints]:
    """All (n, m) with key_M[m] = wanted_N[n], by n; key_M is sorted."""
    low, high = np.searchsorted(key_M, wanted_N, "left"), np.searchsorted(key_M, wanted_N, "right")
    count = high - low
    row = np.repeat(np.arange(len(wanted_N)), count)
    return row, np.arange(int(count.sum())) + np.repeat(low - (np.cumsum(count) - count), count)


def neighbours(senones: SenoneMap, unit_U: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Of each position the phone before and after its own: Q stands for the sentence's begin, Q + 1 for its end."""
    phone_P, place_U, _ = senones.split(unit_U)
    left_P = np.concatenate([[senones.num_phones], phone_P[:-1]])
    right_P = np.concatenate([phone_P[1:], [senones.num_phones + 1]])
    return left_P[place_U], right_P[place_U]


DIRECTIONS = ("cloze", "causal")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitLmSizes:
    """How large a unit LM is."""

    width: int = 128  # of embeddings, towers and the join
    num_layers: int = 1  # a tower
    dropout: float = 0.1  # of embeddings and towers

    def __post_init__(self) -> None:
        check_settings(self, "width num_layers", "be at least 1", lambda value: value >= 1)
        check_setting("`dropout`", self.dropout, "be at least 0 and below 1", 0 <= self.dropout < 1)


@dataclass(kw_only=True, slots=True)
class UnitBatch:
    """Sentences for one pass. `cell_N` = b · U + place: which tower position each of the N positions reads."""

    input_BU: Tensor
    length_B: Tensor
    cell_N: Tensor
    gold_N: Tensor
    state_N: Tensor

    def to(self, device: torch.device | str) -> "UnitBatch":
        """On another device."""
        return UnitBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def collate(sentences: Sequence[NDArray[np.int32]], *, senones: SenoneMap | None = None) -> UnitBatch:
    """Unit sequences (not empty) → one batch; with `senones`, the towers' input is the phones."""
    if senones is None:
        parts = [
            (unit_U.astype(np.int64), np.arange(len(unit_U)), np.zeros(len(unit_U), np.int64)) for unit_U in sentences
        ]
    else:
        parts = [senones.split(unit_U) for unit_U in sentences]
    inputs, cells, states = zip(*parts, strict=True)
    input_BU = nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in inputs], batch_first=True)
    return UnitBatch(
        input_BU=input_BU,
        length_B=torch.tensor([len(x) for x in inputs]),
        cell_N=torch.from_numpy(np.concatenate([row * input_BU.shape[1] + cell for row, cell in enumerate(cells)])),
        gold_N=torch.from_numpy(np.concatenate(list(sentences)).astype(np.int64)),
        state_N=torch.from_numpy(np.concatenate(states)),
    )


class Tower(nn.Module):
    """An LSTM over a sequence that begins with a sentence mark: position n has read what stands before n."""

    def __init__(self, sizes: UnitLmSizes) -> None:
        super().__init__()
        dropout = sizes.dropout if sizes.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(sizes.width, sizes.width, sizes.num_layers, batch_first=True, dropout=dropout)

    def forward(self, x_BUD: Tensor) -> Tensor:
        """Embedded input → hidden states, (B, U, D)."""
        out_BUD: Tensor = self.lstm(x_BUD)[0]
        return out_BUD


class UnitLm(nn.Module):
    """A cloze or causal LM. `senones` stands for given `outside-phone`, whose towers read phones."""

    def __init__(
        self, sizes: UnitLmSizes, *, num_units: int, direction: str = "cloze", senones: SenoneMap | None = None
    ) -> None:
        super().__init__()
        check_choice("`direction`", direction, DIRECTIONS)
        self.direction, self.senones, self.num_units = direction, senones, num_units
        width = sizes.width
        num_inputs = num_units if senones is None else senones.num_phones
        self.bos, self.eos = num_inputs, num_inputs + 1
        self.embedding = nn.Embedding(num_inputs + 2, width)
        self.left = Tower(sizes)
        self.right = Tower(sizes) if direction == "cloze" else None
        self.join = nn.Linear(width * (1 if self.right is None else 2), 2 * width)
        self.state = None if senones is None else nn.Embedding(senones.num_states, 2 * width)
        self.project = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_units)
        self.dropout = nn.Dropout(sizes.dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        nn.init.normal_(self.output.weight, std=width**-0.5)
        nn.init.zeros_(self.output.bias)
        if senones is not None:
            place_V = np.zeros(num_units, np.int64)
            for state in range(senones.num_states):
                unit_S = np.flatnonzero(senones.state_of_V == state)
                place_V[unit_S] = np.arange(len(unit_S))
                self.register_buffer(f"unit_{state}", torch.from_numpy(unit_S), persistent=False)
            self.register_buffer("place_V", torch.from_numpy(place_V), persistent=False)

    def hidden(self, batch: UnitBatch) -> Tensor:
        """What is known at each position without it, (N, D)."""
        size = batch.input_BU.shape[1]
        start_B1 = torch.full_like(batch.input_BU[:, :1], self.bos)
        parts = [self.left(self._embed(torch.cat([start_B1, batch.input_BU[:, :-1]], dim=1)))]
        if self.right is not None:
            # reverse each sentence within its length, so that the padding stays at the end
            turn_BU = batch.length_B[:, None] - 1 - torch.arange(size, device=batch.input_BU.device)[None, :]
            turn_BU = torch.where(turn_BU < 0, turn_BU + size, turn_BU)
            reversed_BU = batch.input_BU.gather(1, turn_BU)
            end_B1 = torch.full_like(batch.input_BU[:, :1], self.eos)
            out_BUD = self.right(self._embed(torch.cat([end_B1, reversed_BU[:, :-1]], dim=1)))
            parts.append(out_BUD.gather(1, turn_BU[:, :, None].expand_as(out_BUD)))
        joined_ND = torch.cat(parts, dim=-1).flatten(0, 1)[batch.cell_N]
        z = self.join(self.dropout(joined_ND))
        if self.state is not None:
            z = z + self.state(batch.state_N)
        out_ND: Tensor = self.dropout(self.norm(self.project(nn.functional.gelu(z))))
        return out_ND

    def _embed(self, input_BU: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.embedding(input_BU))
        return out

    def _parts(self, batch: UnitBatch, hidden_ND: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """With senones: for each state the rows of its positions, the ids of its candidates, and their logits there."""
        assert self.senones is not None
        for state in range(self.senones.num_states):
            rows, unit_S = (batch.state_N == state).nonzero()[:, 0], self.get_buffer(f"unit_{state}")
            logits = nn.functional.linear(hidden_ND[rows], self.output.weight[unit_S], self.output.bias[unit_S])
            yield rows, unit_S, logits.float()

    def loss_sum(self, batch: UnitBatch) -> Tensor:
        """Sum over the positions of −log p(gold | the others), a scalar."""
        hidden_ND = self.hidden(batch)
        if self.senones is None:
            return nn.functional.cross_entropy(self.output(hidden_ND).float(), batch.gold_N, reduction="sum")
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for rows, _, logits in self._parts(batch, hidden_ND):
            gold = self.get_buffer("place_V")[batch.gold_N[rows]]
            total = total + nn.functional.cross_entropy(logits, gold, reduction="sum")
        return total

    def logits(self, batch: UnitBatch) -> Tensor:
        """Unnormalised scores of all units at all positions, (N, V)."""
        hidden_ND = self.hidden(batch)
        if self.senones is None:
            out_NV: Tensor = self.output(hidden_ND)
            return out_NV.float()
        out = hidden_ND.new_full((len(hidden_ND), self.num_units), IMPOSSIBLE, dtype=torch.float32)
        for rows, unit_S, logits in self._parts(batch, hidden_ND):
            out[rows[:, None], unit_S[None, :]] = logits
        return out


def make_unit_lm(
    sizes: UnitLmSizes, *, num_units: int, direction: str, senones: SenoneMap | None = None, seed: int = 0
) -> UnitLm:
    """A unit LM with freshly drawn weights, the same for the same seed whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UnitLm(sizes, num_units=num_units, direction=direction, senones=senones)
