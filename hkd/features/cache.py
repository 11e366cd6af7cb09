"""Features kept on disk: made once, memory-mapped by every run and process that reads them.

    FOLDER/<digest>.arrow    the features of some utterances at some speeds; one row each: id, speed, x (float32, T × F)

- The digest is of all that the values hang on: the front end, and each utterance's file (path, size, time of change), span and speeds. So nothing is
  ever stale: what changed has another name. Files that no run asks for any more can be removed at any time.
- A file appears whole (temporary file, rename) and is the same whoever makes it (of an upstream up to its last bits): any number of processes
  fill one folder, each in an order of its own, passing over what is there. One that was damaged is made anew.
- Disk: 4 · F · 100 bytes a second of sound and speed, 32 kB for 80 bins: 115 MB an hour, three times that with three speeds.

Shape letters: T frames, F values a frame.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hkd.audio import stamp
from hkd.errors import HkdError
from hkd.features.front_end import FrontEnd
from hkd.features.workers import portable, raised
from hkd.files import atomic_write, digest_of_json
from hkd.manifest import Utterance

log = logging.getLogger(__name__)

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


def _channel(u: Utterance) -> list[int]:
    """The channel, where one is named: caches made before manifests had channels keep their names."""
    return [] if u.channel is None else [u.channel]


class FeatureCache:
    """The features of some utterances at some speeds in a folder. `fill` makes what is missing; then they are there to be read."""

    def __init__(self, folder: Path, *, front_end: FrontEnd, wanted: Sequence[Wanted]) -> None:
        """wanted: splits, each as its utterances with their speeds. A file holds utterances of one split, 128 that follow each other."""
        self._num_bins = front_end.num_bins
        self._shards: list[_Shard] = []
        self._place: dict[tuple[str, float], tuple[int, int]] = {}
        for part in (split[n : n + SHARD_UTTERANCES] for split in wanted for n in range(0, len(split), SHARD_UTTERANCES)):
            named = [[u.id, stamp(str(u.audio_filepath)), u.offset, u.duration, list(speeds), *_channel(u)] for u, speeds in part]
            digest = digest_of_json([FORMAT, VERSION, front_end.key, named])
            rows = tuple((u, speed) for u, speeds in part for speed in speeds)
            self._place |= {(u.id, speed): (len(self._shards), row) for row, (u, speed) in enumerate(rows)}
            self._shards.append(_Shard(folder / f"{digest}.arrow", rows))
        self._tables: dict[int, pa.Table] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def get(self, utterance_id: str, speed: float) -> Features | None:
        """x_TF, not to be written to; None where it is not among those wanted. Raises HkdError where its file is gone."""
        place = self._place.get((utterance_id, speed))
        if place is None:
            return None
        values: Features = np.frombuffer(self._open(place[0])["x"][place[1]].as_buffer(), np.float32)
        return values.reshape(-1, self._num_bins)

    def _open(self, number: int) -> pa.Table:
        if number not in self._tables:
            table = _read(self._shards[number])
            if table is None:
                raise HkdError(f"{self._shards[number].path} was there and is gone or damaged. Run the same command again.")
            self._tables[number] = table
        return self._tables[number]

    def fill(self, compute: Compute, *, workers: int = 0) -> int:
        """Make the files that are not there, in `workers` processes (0: this one); gives how many were missing.

        Raises UserError for sound that cannot be read, HkdError where the disk is full.
        """
        todo = [shard for shard in self._shards if _read(shard) is None]
        Random().shuffle(todo)  # by the system's own randomness: runs that begin together do not make the same files
        if not todo:
            return 0
        folder = todo[0].path.parent
        log.info("making features of %d utterances in %s", sum(len({u.id for u, _ in shard.rows}) for shard in todo), folder)
        folder.mkdir(parents=True, exist_ok=True)
        made: DataLoader[Any] = DataLoader(_Maker(todo, compute), batch_size=None, num_workers=workers)
        for _ in raised(made):
            pass
        log.info("features: %.2f GB in %s", sum(s.path.stat().st_size for s in self._shards) / 1e9, folder)
        return len(todo)


class _Maker(Dataset[Any]):
    """Item n makes shard n: None, or the error that stopped it."""

    def __init__(self, shards: Sequence[_Shard], compute: Compute) -> None:
        self.shards, self.compute = shards, compute

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Exception | None:
        shard = self.shards[number]
        try:
            if _read(shard) is None:  # another process may have been here since
                _write(shard, self.compute)
            return None
        except OSError as error:
            free = shutil.disk_usage(shard.path.parent).free
            return HkdError(
                f"{shard.path} cannot be written ({error.strerror}; {free / 1e9:.1f} GB are free). Name another `features_cache`."
            )
        except Exception as error:
            return portable(error)


def _write(shard: _Shard, compute: Compute) -> None:
    with atomic_write(shard.path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for utterance, speed in shard.rows:
            x_TF = np.ascontiguousarray(compute(utterance, speed), np.float32)
            columns: list[list[Any]] = [[utterance.id], [speed], [x_TF.tobytes()]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))


def _read(shard: _Shard) -> pa.Table | None:
    """The memory-mapped table; None where it is missing, cut short, or not of these rows."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(shard.path))).read_all()
        said = list(zip(table["id"].to_pylist(), table["speed"].to_pylist(), strict=True))
        return table if said == [(u.id, speed) for u, speed in shard.rows] else None
    except (OSError, pa.ArrowException, KeyError):
        return None
