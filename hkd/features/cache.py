"""Features kept on disk: made once, memory-mapped by every run and process that reads them.

    FOLDER/<digest>.arrow    the features of some utterances at some speeds; one row each: id, speed, x (float32, T × F)

- The digest is of all that the values depend on: the front end, and each utterance's file (path, size, time of change),
  span and speeds. So nothing is ever stale. Files that no run asks for any more can be removed at any time.
- A file appears whole (temporary file, rename) and is the same whoever makes it (of an upstream up to its last bits),
  so any number of processes fill one folder. A damaged file is made again.
- Disk: 4 · F · 100 bytes a second of sound and speed: 115 MB an hour for 80 bins, three times that with three speeds.

Shape letters: T frames, F values a frame.
"""

import logging
import pickle
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from hkd.audio import read_audio, stamp
from hkd.errors import HkdError, Progress, UserError, no_progress
from hkd.features.fbank import FrontEnd, change_speed
from hkd.files import atomic_write, digest_of_json, placed
from hkd.manifest import Utterance

logger = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT, VERSION = "hkd-features", 1
SHARD_UTTERANCES = 128
SCHEMA = pa.schema(
    {"id": pa.string(), "speed": pa.float64(), "x": pa.large_binary()}, {"format": FORMAT, "version": str(VERSION)}
)

Features = NDArray[np.float32]  # x_TF
Wanted = Sequence[tuple[Utterance, Sequence[float]]]  # a split: its utterances, with their speeds
Compute = Callable[[Utterance, float], Features]


class _Shard(NamedTuple):
    path: Path
    rows: tuple[tuple[Utterance, float], ...]


def _named(u: Utterance, speeds: Sequence[float]) -> list[Any]:
    channel = [] if u.channel is None else [u.channel]  # caches made before manifests had channels keep their names
    return [u.id, stamp(str(u.audio_filepath)), u.offset, u.duration, list(speeds), *channel]


class FeatureCache:
    """The features of some utterances at some speeds in a folder. `fill` makes what is missing; then they are read."""

    def __init__(self, folder: Path, *, front_end: FrontEnd, wanted: Sequence[Wanted]) -> None:
        """wanted: splits, each as its utterances with their speeds; a file holds 128 in a row of one split."""
        self._num_bins = front_end.num_bins
        self._shards: list[_Shard] = []
        self._place: dict[tuple[str, float], tuple[int, int]] = {}
        size = SHARD_UTTERANCES
        for part in (split[n : n + size] for split in wanted for n in range(0, len(split), size)):
            digest = digest_of_json([FORMAT, VERSION, front_end.key, [_named(u, speeds) for u, speeds in part]])
            rows = tuple((u, speed) for u, speeds in part for speed in speeds)
            self._place |= {(u.id, speed): (len(self._shards), row) for row, (u, speed) in enumerate(rows)}
            self._shards.append(_Shard(folder / f"{digest}.arrow", rows))
        self._tables: dict[int, pa.Table] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def get(self, utterance_id: str, speed: float) -> Features | None:
        """x_TF, not to be written to; None where it is not wanted. Raises HkdError where its file is gone."""
        if (utterance_id, speed) not in self._place:
            return None
        number, row = self._place[utterance_id, speed]
        if number not in self._tables:
            shard = self._shards[number]
            if (table := _read(shard)) is None:
                raise HkdError(f"{shard.path} was there and is gone or damaged. Run the same command again.")
            self._tables[number] = table
        values: Features = np.frombuffer(self._tables[number]["x"][row].as_buffer(), np.float32)
        return values.reshape(-1, self._num_bins)

    def fill(self, compute: Compute, *, workers: int = 0, progress: Progress = no_progress) -> int:
        """Make the files that are not there, in `workers` processes (0: this one), and give their number. Raises
        UserError for sound that cannot be read, HkdError where the disk is full."""
        todo = [shard for shard in self._shards if _read(shard) is None]
        Random().shuffle(todo)  # by the system's own randomness: runs that begin together do not make the same files
        if not todo:
            return 0
        folder, num_utterances = todo[0].path.parent, sum(len({u.id for u, _ in shard.rows}) for shard in todo)
        logger.info("making features of %d utterances in %s", num_utterances, folder)
        folder.mkdir(parents=True, exist_ok=True)
        shards: Any = todo  # a list is a data set
        made = DataLoader(shards, batch_size=None, collate_fn=partial(_make, compute), num_workers=workers)
        for number, _ in enumerate(raised(made), start=1):
            progress(number, len(todo), making="features")
        logger.info("features: %.2f GB in %s", sum(s.path.stat().st_size for s in self._shards) / 1e9, folder)
        return len(todo)


def _make(compute: Compute, shard: _Shard) -> Exception | None:
    """Make a shard; gives the error that stopped it."""
    try:
        if _read(shard) is None:  # another process may have been here since
            _write(shard, compute)
        return None
    except OSError as error:
        why = f"{error.strerror}; {shutil.disk_usage(shard.path.parent).free / 1e9:.1f} GB are free"
        return HkdError(f"{shard.path} cannot be written ({why}). Name another `features_cache`.")
    except Exception as error:
        return portable(error)


def _write(shard: _Shard, compute: Compute) -> None:
    with atomic_write(shard.path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for utterance, speed in shard.rows:
            x_TF = np.ascontiguousarray(compute(utterance, speed), np.float32)
            row = {"id": utterance.id, "speed": speed, "x": x_TF.tobytes()}
            writer.write_batch(pa.RecordBatch.from_pylist([row], schema=SCHEMA))


def _read(shard: _Shard) -> pa.Table | None:
    """The memory-mapped table; None where it is missing, cut short, or not of these rows."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(shard.path))).read_all()
        said = list(zip(table["id"].to_pylist(), table["speed"].to_pylist(), strict=True))
        return table if said == [(u.id, speed) for u, speed in shard.rows] else None
    except (OSError, pa.ArrowException, KeyError):
        return None


class FeatureSource:
    """Features of utterances at a speed, from disk or memory where they are there; the same wherever they are from."""

    def __init__(
        self, *, front_end: FrontEnd | None = None, max_bytes: int = 1 << 30, cache: FeatureCache | None = None
    ) -> None:
        """max_bytes: kept in memory; the longest unused goes first. cache: on disk, filled; not kept in memory too."""
        self.front_end, self._max_bytes, self._cache = front_end or FrontEnd(), max_bytes, cache
        self._kept: OrderedDict[tuple[str, float], Features] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def wave(self, utterance: Utterance, speed: float = 1.0) -> NDArray[np.float32]:
        """The sound at a speed, 16 kHz. Raises UserError where it cannot be read."""
        return change_speed(read_audio(utterance), speed)

    def compute(self, utterance: Utterance, speed: float = 1.0) -> Features:
        """x_TF, computed. Raises UserError for sound that cannot be read, or is too long for the front end."""
        wave_S = self.wave(utterance, speed)
        with placed(f"utterance '{utterance.id}'"):
            return self.front_end(wave_S)

    def __call__(self, utterance: Utterance, speed: float = 1.0) -> Features:
        """x_TF; not to be written to."""
        if self._cache is not None and (cached_TF := self._cache.get(utterance.id, speed)) is not None:
            return cached_TF
        key = (utterance.id, speed)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        x_TF = self.compute(utterance, speed)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = x_TF
                self._bytes += x_TF.nbytes
            while self._bytes > self._max_bytes and self._kept:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return x_TF

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FeatureSource, front_end=self.front_end, max_bytes=self._max_bytes, cache=self._cache), ()


def mean_and_std(parts: "list[Features]") -> tuple[torch.Tensor, torch.Tensor]:
    """(mean_F, std_F) over all frames, summed in float64 in the given order."""
    count = sum(len(x_TF) for x_TF in parts)
    sum_F = np.sum([x_TF.sum(0, dtype=np.float64) for x_TF in parts], axis=0)
    mean_F = sum_F / count
    square_F = np.sum([((x_TF - mean_F) ** 2).sum(0, dtype=np.float64) for x_TF in parts], axis=0)
    return torch.from_numpy(mean_F.astype(np.float32)), torch.from_numpy(np.sqrt(square_F / count).astype(np.float32))


def portable(error: Exception) -> Exception:
    """A worker's error as an item to send on, for `raised`: its sentence and exit code where it cannot be pickled."""
    with suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    if isinstance(error, HkdError):
        return (UserError if error.exit_code == UserError.exit_code else HkdError)(str(error))
    return HkdError(f"{type(error).__name__}: {error}")


def raised(items: Iterable[T]) -> Iterator[T]:
    """The items; one that is an error is raised. Raises HkdError where a worker was killed."""
    rest = iter(items)
    while True:
        try:
            item = next(rest)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise HkdError(
                f"a worker process ended ({str(error).splitlines()[0][:200]}). It may have had too little memory "
                "(shared memory in a container): take fewer `workers`, or 0."
            ) from None
        if isinstance(item, Exception):
            raise item
        yield item
