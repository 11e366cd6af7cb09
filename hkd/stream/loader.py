"""What a training step gets: features, CTC targets, and for each head which slots carry which labels.

Shape letters: B utterances, T frames of 10 ms (padded), F feature bins, L all targets of the batch, M labelled slots, N positions, K kept
ids, J extra temperatures, S slots of an utterance (padded).
"""

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hkd.align.alignment import Positions
from hkd.features.augment import NO_AUGMENTATION, AugmentConfig, add_noise, draw_speed, generator, spec_augment
from hkd.features.cache import FeatureSource, portable, raised
from hkd.manifest import Utterance
from hkd.stream.join import Join, JoinedStore, place
from hkd.stream.plan import BatchPlan
from hkd.timebase import FRAME_SHIFT_S, num_encoder_frames

T = TypeVar("T")


class Moves:
    """A dataclass of tensors (and dataclasses, and dictionaries of them) that goes to a device."""

    __slots__ = ()

    def to(self: T, device: torch.device | str) -> T:
        """The same on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor | Moves):
                return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            return {key: move(part) for key, part in value.items()} if isinstance(value, dict) else value

        return type(self)(**{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def pin_memory(self: T) -> T:
        """The same in page-locked memory."""

        def pin(value: Any) -> Any:
            if isinstance(value, Tensor | Moves):
                return value.pin_memory()
            return {key: pin(part) for key, part in value.items()} if isinstance(value, dict) else value

        return type(self)(**{f.name: pin(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class HardLabels(Moves):
    """Reference labels. slot_M: flat index b · S + s into a head's (B, S) slots; unit_M: unit ids."""

    slot_M: Tensor
    unit_M: Tensor


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Moves):
    """A teacher's labels of the batch's positions, and which slot carries which. Ids are those of the head (trimmed)."""

    ids_NK: Tensor  # int64
    logp_NK: Tensor
    tail_N: Tensor
    gold_N: Tensor  # int64, −1 for none
    gold_logp_N: Tensor
    lse_NJ: Tensor
    tail_NJ: Tensor
    count_NK: Tensor | None
    offset_B1: Tensor  # positions of utterance b: offset_B1[b] to offset_B1[b + 1]
    slot_M: Tensor  # flat index b · S + s
    position_M: Tensor  # row of the N positions that slot_M carries


@dataclass(frozen=True, kw_only=True)
class Batch(Moves):
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
    """Makes batches of utterances. hard: level → slots; soft: store → slots, 0 for labels that no head places on slots. `fill_F` is what masks are filled with.
    stride: level → n, so that in each epoch an utterance shows every n-th of its labelled slots, from a random one on (default 1).
    alone: the probability of `Batch.alone_B`.
    """

    utterances: Sequence[Utterance]
    join: Join
    features: FeatureSource
    hard: Mapping[str, int]
    soft: Mapping[str, int]
    augment: AugmentConfig = NO_AUGMENTATION
    fill_F: NDArray[np.float32] | None = None
    stride: Mapping[str, int] = field(default_factory=dict)
    alone: float = 0.0
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
        targets = [self.join.target(utterance) for utterance in chosen]
        return Batch(
            ids=tuple(utterance.id for utterance in chosen),
            x_BTF=torch.from_numpy(x_BTF),
            length_B=torch.from_numpy(length_B),
            target_L=torch.from_numpy(np.concatenate(targets).astype(np.int64) + 1),
            target_length_B=torch.tensor([len(target) for target in targets]),
            hard={level: self._hard(chosen, views, length_B, level, slots) for level, slots in self.hard.items()},
            soft={name: self._soft(chosen, views, length_B, name, slots) for name, slots in self.soft.items()},
            alone_B=torch.tensor([self._is_alone(u, epoch) for u in chosen]) if self.alone else None,
            seconds=float(length_B.sum()) * FRAME_SHIFT_S,
        )

    def _is_alone(self, utterance: Utterance, epoch: int) -> bool:
        return bool(generator(self.seed, epoch, f"alone {utterance.id}").random() < self.alone)

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


def hard_labels(
    found: Sequence[Positions | None], views: Sequence[View], length_B: NDArray[np.int64], *, slots: int, stride: int = 1
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
    """A store's labels of a batch. ids: None for utterances without labels; found: the labelled positions, which slots == 0 does not read."""
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
        gold_logp_N=_tensor(topk.gold_logp_N),
        lse_NJ=_tensor(topk.lse_NJ),
        tail_NJ=_tensor(topk.tail_NJ),
        count_NK=None if topk.count_NK is None else torch.from_numpy(topk.count_NK.astype(np.int64)),
        offset_B1=torch.from_numpy(offset_B1),
        slot_M=torch.from_numpy(slot_M),
        position_M=torch.from_numpy(position_M),
    )


def _tensor(values: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _place_all(
    found: Sequence[Positions | None], views: Sequence[View], length_B: NDArray[np.int64], slots: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(slot_M, position_M, offset_B1) over the batch: slots as b · S + s, positions counted through."""
    slots_padded = num_encoder_frames(int(length_B.max())) * slots
    slot_parts, position_parts, offsets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [0]
    for b, (here, view) in enumerate(zip(found, views, strict=True)):
        if here is None:
            offsets.append(offsets[-1])
            continue
        slot_M, position_M = place(here, num_frames=int(length_B[b]), slots=slots, speed=view.speed)
        if stride > 1:
            slot_M, position_M = slot_M[view.offset % stride :: stride], position_M[view.offset % stride :: stride]
        slot_parts.append(slot_M + b * slots_padded)
        position_parts.append(position_M + offsets[-1])
        offsets.append(offsets[-1] + len(here.start_U))
    return np.concatenate(slot_parts), np.concatenate(position_parts), np.array(offsets, np.int64)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """(step, rank, world size) → the share of the step's global batch; None for an empty one."""

    maker: Callable[..., Batch | None]
    plan: BatchPlan

    def __call__(self, step: int, rank: int, world_size: int) -> Batch | None:
        return self.maker(self.plan.share(step, rank, world_size), epoch=self.plan.epoch_of(step))


class _Steps(IterableDataset[Any]):
    """The shares of the steps from start_step on; worker w of n makes steps w, w + n ..., which DataLoader puts in order again."""

    def __init__(self, shares: Callable[[int, int, int], Any], start_step: int, rank: int, world_size: int) -> None:
        self.shares, self.start_step, self.rank, self.world_size = shares, start_step, rank, world_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in count(self.start_step + first, stride):
            yield self.shares(step, self.rank, self.world_size)
            if worker is not None:
                _give_back()


class _InWorker(IterableDataset[Any]):
    """_Steps, whose errors are items: DataLoader would put a worker's trace in their place."""

    def __init__(self, steps: _Steps) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.steps
        except Exception as error:  # whatever it is, it is raised where the batch is asked for
            yield portable(error)


def _give_back() -> None:
    """Return freed memory to the system: else each of the workers keeps what its largest batch took. glibc alone has the call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def batches(
    shares: Callable[[int, int, int], Any], *, start_step: int, rank: int, world_size: int, workers: int = 0, pin: bool = False
) -> Iterator[Any]:
    """Endless: the share of every step from start_step on. Workers change when it is ready, never what it is, nor what errors are raised."""
    steps = _Steps(shares, start_step, rank, world_size)
    if workers == 0:
        return iter(steps)
    loader: DataLoader[Any] = DataLoader(
        _InWorker(steps), batch_size=None, num_workers=workers, worker_init_fn=_one_thread, prefetch_factor=4, pin_memory=pin
    )
    gc.freeze()  # workers share this process's memory as long as nobody writes to it: their garbage collection would write to every object
    try:
        return raised(iter(loader))
    finally:
        gc.unfreeze()
