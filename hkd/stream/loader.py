"""What a training step gets: utterances, their features and CTC targets, and each head's labels on its slots.

- The global batch of a step is a pure function of (seed, epoch, lengths, runs) and knows nothing of processes; share r
  of n takes every n-th utterance of it.
- An epoch is a permutation: every utterance once. It is sorted by length, jittered so that neighbours change from epoch
  to epoch, cut into batches of about equal total length, and the batches are shuffled. Little is padded, and every
  epoch has the same number of batches, so that the epoch of a step is a division and resuming is a cursor.
- Where label stores are larger than their readers' caches, an epoch goes through sections of them, drawn again: lengths
  are sorted and batches shuffled inside a section, so that each block of labels is decoded once an epoch. A section's
  last batch shares its utterances with the next one, which is sorted the other way round.

Shape letters: B utterances of a batch, U utterances of an epoch, T frames of 10 ms (padded), F feature bins, L all
targets of the batch, M labelled slots, N positions, K kept ids, J extra temperatures, S slots of an utterance (padded).
"""

import ctypes
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hkd.align.alignment import Positions
from hkd.errors import UserError
from hkd.features.cache import FeatureSource, portable, raised
from hkd.features.fbank import NO_AUGMENTATION, AugmentConfig, add_noise, draw_speed, generator, spec_augment
from hkd.labels.store import CACHE_BYTES, LabelReader
from hkd.manifest import Utterance
from hkd.stream.join import Join, JoinedStore, place
from hkd.timebase import FRAME_SHIFT_S, num_encoder_frames

JITTER = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """Which utterances are read together: each one's run, from 0, and how many runs are held at once, at least 1."""

    run_U: NDArray[np.int64]
    at_once: int


def runs_of(readers: Iterable[LabelReader], ids: Sequence[str], *, held_bytes: int = CACHE_BYTES) -> Runs | None:
    """How these utterances are best read where a label store is larger than a cache of `held_bytes`, else None. Runs
    are the blocks of the largest store; half a cache of them is held, since batches of two sections meet."""
    reader = max(readers, key=lambda reader: reader.decoded_bytes, default=None)
    if reader is None or reader.decoded_bytes <= held_bytes:
        return None
    runs = reader.runs()
    run_of = {name: number for number, names in enumerate(runs) for name in names}
    run_U = np.array([run_of.get(name, 0) for name in ids], np.int64)  # without labels: anywhere
    return Runs(run_U=run_U, at_once=max(1, int(len(runs) * held_bytes / reader.decoded_bytes / 2)))


class BatchPlan:
    """Batches of about `batch_frames` frames. runs: where not all are held at once. Raises UserError without any."""

    def __init__(
        self, length_U: Sequence[int] | NDArray[np.int64], *, batch_frames: float, seed: int, runs: Runs | None = None
    ) -> None:
        self._length_U = np.asarray(length_U, np.int64)
        if not len(self._length_U):
            raise UserError("training needs utterances, but there is none. Check the manifest's split.")
        if batch_frames <= 0:
            raise UserError(f"`batch_seconds` must be positive, but is {batch_frames / 100} instead.")
        self._seed, self._runs = seed, runs
        total = int(self._length_U.sum())
        self.batches_per_epoch = min(len(self._length_U), max(1, -(-total // int(batch_frames))))
        self._made: tuple[int, list[NDArray[np.int64]]] = (-1, [])  # the epoch that was asked for last, and its batches

    def epoch_of(self, step: int) -> int:
        return step // self.batches_per_epoch

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the utterances of a step's global batch."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._made[0]:
            self._made = epoch, self._make_epoch(epoch)
        return self._made[1][index]

    def share(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Every world_size-th utterance of the global batch, from `rank` on; may be empty."""
        return self.batch(step)[rank::world_size]

    def _make_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, epoch))))
        num = len(self._length_U)
        shuffled = random.permutation(num)
        key = self._length_U[shuffled] * (1 + JITTER * random.uniform(-1, 1, num))
        section_U = self._sections(random)
        odd = section_U[shuffled] % 2 == 1
        order = shuffled[np.lexsort((np.where(odd, -key, key), section_U[shuffled]))]
        ends = np.cumsum(self._length_U[order])
        count = self.batches_per_epoch
        cut = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
        least, steps = np.arange(1, count), np.arange(count - 1)
        cut = np.maximum.accumulate(np.maximum(cut, least) - steps) + steps if count > 1 else cut  # no batch is empty
        cut = np.minimum(cut, num - count + least)
        batches, places = np.split(order, cut), random.permutation(count)
        first = np.array([section_U[batches[i][0]] for i in places])
        return [batches[i] for i in places[np.argsort(first, kind="stable")]]

    def _sections(self, random: np.random.Generator) -> NDArray[np.int64]:
        """The section of each utterance, (U,): 0 for all where there are no runs."""
        if self._runs is None:
            return np.zeros(len(self._length_U), np.int64)
        rank_R = random.permutation(int(self._runs.run_U.max()) + 1)
        section_U: NDArray[np.int64] = rank_R[self._runs.run_U] // self._runs.at_once
        return section_U


class ToDeviceMixin:
    """A dataclass of tensors (and of such dataclasses, and dictionaries of both) that goes to a device."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        return cast(Self, _each(self, lambda tensor: tensor.to(device, non_blocking=True)))

    def pin_memory(self) -> Self:
        return cast(Self, _each(self, Tensor.pin_memory))


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, ToDeviceMixin):
        return type(value)(**{f.name: _each(getattr(value, f.name), change) for f in fields(value)})  # type: ignore[arg-type]
    return {key: _each(part, change) for key, part in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True, kw_only=True)
class HardLabels(ToDeviceMixin):
    """Reference labels. slot_M: flat index b · S + s into a head's (B, S) slots; unit_M: unit ids."""

    slot_M: Tensor
    unit_M: Tensor


@dataclass(frozen=True, kw_only=True)
class SoftLabels(ToDeviceMixin):
    """A teacher's labels of the batch's positions, and which slot carries which. Ids are the head's (trimmed)."""

    ids_NK: Tensor  # int64
    logp_NK: Tensor
    tail_N: Tensor
    gold_N: Tensor  # int64, −1 for none
    lse_NJ: Tensor
    tail_NJ: Tensor
    count_NK: Tensor | None
    offset_B1: Tensor  # positions of utterance b: offset_B1[b] to offset_B1[b + 1]
    slot_M: Tensor  # flat index b · S + s
    position_M: Tensor  # row of the N positions that slot_M carries


@dataclass(frozen=True, kw_only=True)
class Batch(ToDeviceMixin):
    """One share of a step's global batch."""

    ids: tuple[str, ...]
    x_BTF: Tensor  # float32, zeros after the end
    length_B: Tensor  # 10 ms frames
    target_L: Tensor  # the utterances' CTC targets one after the other: unit id + 1, 0 is the blank
    target_length_B: Tensor
    hard: dict[str, HardLabels] = field(default_factory=dict)  # by level
    soft: dict[str, SoftLabels] = field(default_factory=dict)  # by label store
    alone_B: Tensor | None = None  # true where a conditioned layer loses its own output
    seconds: float = 0.0  # of audio, without padding


class View(NamedTuple):
    """How an utterance is seen in an epoch."""

    speed: float
    offset: int  # random; where strides begin


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    utterances: Sequence[Utterance]
    join: Join
    features: FeatureSource
    hard: Mapping[str, int]  # level → slots
    soft: Mapping[str, int]  # label store → slots; 0 for labels that need none
    augment: AugmentConfig = NO_AUGMENTATION
    fill_F: NDArray[np.float32] | None = None  # what masks are filled with
    stride: Mapping[str, int] = field(default_factory=dict)  # level → n: an epoch shows every n-th labelled slot
    alone: float = 0.0  # probability of `Batch.alone_B`
    seed: int = 0

    def __call__(self, rows: Sequence[int] | NDArray[np.int64], *, epoch: int = 0) -> Batch | None:
        """The batch of these utterances in that epoch; None for none."""
        chosen = [self.utterances[int(row)] for row in rows]
        if not chosen:
            return None
        parts, views = zip(*(self._features(utterance, epoch) for utterance in chosen), strict=True)
        length_B = np.array([len(x_TF) for x_TF in parts], np.int64)
        x_BTF = np.zeros((len(parts), int(length_B.max()), parts[0].shape[1]), np.float32)
        for b, x_TF in enumerate(parts):
            x_BTF[b, : len(x_TF)] = x_TF
        return Batch(
            **targets(self.join, chosen),
            x_BTF=torch.from_numpy(x_BTF),
            length_B=torch.from_numpy(length_B),
            hard={level: self._hard(chosen, views, length_B, level, slots) for level, slots in self.hard.items()},
            soft={name: self._soft(chosen, views, length_B, name, slots) for name, slots in self.soft.items()},
            alone_B=self._alone(chosen, epoch) if self.alone else None,
            seconds=float(length_B.sum()) * FRAME_SHIFT_S,
        )

    def _alone(self, chosen: Sequence[Utterance], epoch: int) -> Tensor:
        return torch.tensor([generator(self.seed, epoch, f"alone {u.id}").random() < self.alone for u in chosen])

    def _features(self, utterance: Utterance, epoch: int) -> tuple[NDArray[np.float32], View]:
        random = generator(self.seed, epoch, utterance.id)
        speed = draw_speed(self.augment, random)
        view = View(speed, int(random.integers(1 << 30)))
        if self.augment.noise_probability > 0:
            x_TF = self.features.front_end(add_noise(self.features.wave(utterance, speed), self.augment, random))
        else:
            x_TF = self.features(utterance, speed)
        if self.fill_F is not None and (self.augment.freq_masks or self.augment.time_masks):
            x_TF = spec_augment(x_TF, self.augment, random, fill_F=self.fill_F)
        return x_TF, view

    def _hard(
        self, chosen: Sequence[Utterance], views: Sequence[View], length_B: NDArray[np.int64], level: str, slots: int
    ) -> HardLabels:
        found = [self.join.segments(u.id, level) if self.join.aligned(u.id) else None for u in chosen]
        return hard_labels(found, views, length_B, slots=slots, stride=self.stride.get(level, 1))

    def _soft(
        self, chosen: Sequence[Utterance], views: Sequence[View], length_B: NDArray[np.int64], name: str, slots: int
    ) -> SoftLabels:
        store = self.join.stores[name]
        ids = [u.id if store.labels(u.id) and (slots == 0 or self.join.aligned(u.id)) else None for u in chosen]
        found = [self.join.positions(u_id, name) if slots and u_id is not None else None for u_id in ids]
        return soft_labels(store, ids, found, views, length_B, slots=slots, stride=self.stride.get(store.level, 1))


def targets(join: Join, chosen: Sequence[Utterance]) -> dict[str, Any]:
    """The ids and CTC targets of a `Batch` of these utterances."""
    target_BU = [join.target(utterance) for utterance in chosen]
    return {
        "ids": tuple(utterance.id for utterance in chosen),
        "target_L": torch.from_numpy(np.concatenate(target_BU).astype(np.int64) + 1),
        "target_length_B": torch.tensor([len(target_U) for target_U in target_BU]),
    }


def hard_labels(
    found: Sequence[Positions | None],
    views: Sequence[View],
    length_B: NDArray[np.int64],
    *,
    slots: int,
    stride: int = 1,
) -> HardLabels:
    """The units of a batch's positions on its slots; None for an utterance that has none."""
    slot_M, position_M, _ = _place_all(found, views, length_B, slots, stride)
    units = np.concatenate([np.zeros(0, np.int32), *(p.unit_U for p in found if p is not None)])
    return HardLabels(slot_M=torch.from_numpy(slot_M), unit_M=torch.from_numpy(units[position_M].astype(np.int64)))


def soft_labels(
    store: JoinedStore,
    ids: Sequence[str | None],
    found: Sequence[Positions | None],
    views: Sequence[View],
    length_B: NDArray[np.int64],
    *,
    slots: int,
    stride: int = 1,
) -> SoftLabels:
    """A store's labels of a batch. ids: None for utterances without labels; found: their positions, where slots > 0."""
    block = store.reader.block([name for name in ids if name is not None])
    if slots:
        slot_M, position_M, offset_B1 = _place_all(found, views, length_B, slots, stride)
    else:
        slot_M = position_M = np.zeros(0, np.int64)
        offset_B1 = np.zeros(len(ids) + 1, np.int64)
        offset_B1[1:][[name is not None for name in ids]] = np.diff(block.offset_B1)
        offset_B1 = offset_B1.cumsum()
    topk = block.topk
    gold_N = np.where(topk.gold_N >= 0, store.head_unit_V[np.maximum(topk.gold_N, 0)], -1)
    return SoftLabels(
        ids_NK=torch.from_numpy(store.head_unit_V[topk.ids_NK]),
        logp_NK=_tensor(topk.logp_NK),
        tail_N=_tensor(topk.tail_N),
        gold_N=torch.from_numpy(gold_N),
        lse_NJ=_tensor(topk.lse_NJ),
        tail_NJ=_tensor(topk.tail_NJ),
        count_NK=None if topk.count_NK is None else torch.from_numpy(topk.count_NK.astype(np.int64)),
        offset_B1=torch.from_numpy(offset_B1),
        slot_M=torch.from_numpy(slot_M),
        position_M=torch.from_numpy(position_M),
    )


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _place_all(
    found: Sequence[Positions | None], views: Sequence[View], length_B: NDArray[np.int64], slots: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(slot_M, position_M, offset_B1) over the batch: slots as b · S + s, positions counted through."""
    slots_padded = num_encoder_frames(int(length_B.max())) * slots
    slot_parts, position_parts, offsets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [0]
    for b, (here, view) in enumerate(zip(found, views, strict=True)):
        offsets.append(offsets[b] + (len(here.start_U) if here is not None else 0))
        if here is None:
            continue
        slot_M, position_M = place(here, num_frames=int(length_B[b]), slots=slots, speed=view.speed)
        if stride > 1:
            slot_M, position_M = slot_M[view.offset % stride :: stride], position_M[view.offset % stride :: stride]
        slot_parts.append(slot_M + b * slots_padded)
        position_parts.append(position_M + offsets[b])
    return np.concatenate(slot_parts), np.concatenate(position_parts), np.array(offsets, np.int64)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """(step, rank, world size) → the share of the step's global batch; None for an empty one."""

    maker: Callable[..., Batch | None]
    plan: BatchPlan

    def __call__(self, step: int, rank: int, world_size: int) -> Batch | None:
        return self.maker(self.plan.share(step, rank, world_size), epoch=self.plan.epoch_of(step))


class _Steps(IterableDataset[Any]):
    """The shares of the steps from start_step on; worker w of n makes steps w, w + n ..., which DataLoader puts in
    order again. A worker's error is an item: DataLoader would put a trace in its place."""

    def __init__(self, shares: Callable[[int, int, int], Any], start_step: int, rank: int, world_size: int) -> None:
        self.shares, self.start_step, self.rank, self.world_size = shares, start_step, rank, world_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            for step in count(self.start_step + first, stride):
                yield self.shares(step, self.rank, self.world_size)
                if worker is not None:
                    _give_back()
        except Exception as error:  # whatever it is, it is raised where the batch is asked for
            if worker is None:
                raise
            yield portable(error)


def _give_back() -> None:
    """Return freed memory to the system: else each worker keeps what its largest batch took."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc alone has the call
        trim(0)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def batches(
    shares: Callable[[int, int, int], Any],
    *,
    start_step: int,
    rank: int,
    world_size: int,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Any]:
    """Endless: the share of every step from start_step on. Workers change neither it nor what errors are raised."""
    steps = _Steps(shares, start_step, rank, world_size)
    if workers == 0:
        return iter(steps)
    loader: DataLoader[Any] = DataLoader(
        steps, batch_size=None, num_workers=workers, worker_init_fn=_one_thread, prefetch_factor=4, pin_memory=pin
    )
    gc.freeze()  # workers share this process's memory until somebody writes to it, as garbage collection would
    try:
        return raised(iter(loader))
    finally:
        gc.unfreeze()
