"""Shards as Arrow IPC files, memory-mapped, a record batch of one row a block. `datasets.load_dataset("arrow", ...)`
opens them, too.

Columns: `id` and `num_positions` of the block's utterances, their digests (8 bytes each, joined), and one binary column
a plane, a Zstandard frame of its bytes.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from hkd.errors import one_line
from hkd.files import num_cores
from hkd.labels import format as files
from hkd.labels.codec import block_cuts, layout
from hkd.labels.format import META_KEY, DamagedShardError, Planes, StoreSpec, Utterances
from hkd.labels.kernels import entropy

THREADS = min(4, 1 + num_cores())  # that make and pack blocks: one waits for Python's lock now and then
AHEAD = 1  # blocks that wait for a thread
# Byte planes have skewed bytes and hardly any repeats: a match finder that looks for long repeats alone is faster and
# packs better. A window of 32 KiB makes blocks of 32 KiB, with a code table each: it fits the few ranks in one.
ZSTD = {"window_log": 15, "chain_log": 6, "hash_log": 6, "search_log": 1, "min_match": 7}
NOISE_SAMPLE, NOISE_BITS = 4096, 7.8  # zstd, too, gives up above 7.9 bits a byte, but has tried by then
BLOCK_OVERHEAD = 1 << 16  # bytes that a block needs beside its planes and utterances, at most


class _OfThread(threading.local):
    """What zstd works with, which no two threads may share."""

    def __init__(self) -> None:
        make, fast = zstandard.ZstdCompressionParameters, zstandard.STRATEGY_FAST
        self.usual, self.hasty = (  # with a target length, literals are not compressed
            zstandard.ZstdCompressor(compression_params=make(target_length=length, strategy=fast, **ZSTD))
            for length in (0, 64)
        )
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _OfThread()


def _schema(spec: StoreSpec, shard: int) -> pa.Schema:
    utterances = [("id", pa.list_(pa.string())), ("num_positions", pa.list_(pa.int32()))]
    utterances += [(name, pa.binary()) for name in ("unit_digest", "text_digest")]
    planes = [(name, pa.large_binary()) for name in layout(spec)]
    return pa.schema([*utterances, *planes], metadata={META_KEY: json.dumps(files.shard_meta(spec, shard))})


def _pack(spec: StoreSpec, block: Callable[[], Planes]) -> list[Any]:
    whole = [np.ascontiguousarray(plane) for plane in block().values()]
    return [(_zstd.hasty if _is_noise(plane) else _zstd.usual).compress(plane.data) for plane in whole]


def _is_noise(plane: NDArray[np.uint8]) -> bool:
    """Whether bytes look evenly distributed, as the low bytes of unit ids do."""
    if plane.size < 2 * NOISE_SAMPLE:
        return False
    return bool(entropy(plane.reshape(-1), (plane.size // NOISE_SAMPLE) | 1) > NOISE_BITS)  # odd: not one rank alone


def _largest_size(spec: StoreSpec, utterances: Utterances) -> int:
    n, b = int(utterances.length_B.sum()), len(utterances.length_B)
    planes, names = sum(plane.num_bytes(n) for plane in layout(spec).values()), int(utterances.id_array.nbytes)
    return planes + planes // 64 + names + 32 * b + (n // spec.block_positions + 2) * BLOCK_OVERHEAD


def _one_value(data: Any) -> Any:
    """A binary array of one value, not copied."""
    buffer = pa.py_buffer(data)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, buffer.size])), buffer])


def encode_shard(
    spec: StoreSpec, shard: int, utterances: Utterances, blocks: Iterable[Callable[[], Planes]]
) -> memoryview:
    """See `format.Backend`. Threads make and pack the blocks."""
    schema = _schema(spec, shard)
    memory = pa.py_buffer(np.empty(_largest_size(spec, utterances), np.uint8))
    sink = pa.FixedSizeBufferWriter(memory)
    with pa.ipc.new_file(sink, schema) as writer, ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[list[Any]]] = deque()
        waiting = iter(blocks)
        for a, b in pairwise(block_cuts(utterances.length_B, spec.block_positions)):
            pending.extend(pool.submit(_pack, spec, block) for block in islice(waiting, THREADS + AHEAD - len(pending)))
            ends = pa.array([0, b - a], pa.int32())
            arrays: list[Any] = [
                pa.ListArray.from_arrays(ends, utterances.id_array[a:b]),
                pa.ListArray.from_arrays(ends, pa.array(utterances.length_B[a:b], pa.int32())),
                pa.array([utterances.unit_digest_B8[a:b].tobytes()], pa.binary()),
                pa.array([utterances.text_digest_B8[a:b].tobytes()], pa.binary()),
                *map(_one_value, pending.popleft().result()),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return memoryview(memory).cast("B")[: sink.tell()]


class ArrowShard:
    """An open Arrow shard; the file is memory-mapped."""

    def __init__(self, path: Path, spec: StoreSpec, shard: int) -> None:
        self._path, self._spec = path, spec
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            meta = json.loads((self._file.schema.metadata or {}).get(META_KEY.encode(), b"null"))
            files.check_meta(path, meta, spec, shard)
            if not self._file.schema.equals(_schema(spec, shard)):
                raise DamagedShardError(path, "its columns are not those of the store")
            self._batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
            self.utterances = self._read_utterances()
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise DamagedShardError(path, one_line(error)) from None

    def _read_utterances(self) -> Utterances:
        table = pa.Table.from_batches(self._batches, self._file.schema)
        table.validate(full=True)
        if any(batch.num_rows != 1 for batch in self._batches) or any(column.null_count for column in table.columns):
            raise DamagedShardError(self._path, "a block is not one row")
        ids, lengths = (table[name].combine_chunks() for name in ("id", "num_positions"))
        id_array, length_array = ids.flatten(), lengths.flatten()
        length_B = np.from_dlpack(length_array).astype(np.int64)
        self.cuts = ids.offsets.to_pylist()
        same_cuts = self.cuts[:1] in ([], [0]) and ids.offsets.equals(lengths.offsets)
        if not same_cuts or id_array.null_count or length_array.null_count or (length_B < 0).any():
            raise DamagedShardError(self._path, "its lengths do not fit its ids")
        digests = [b"".join(table[name].to_pylist()) for name in ("unit_digest", "text_digest")]
        if any(len(data) != 8 * len(length_B) for data in digests):
            raise DamagedShardError(self._path, "its digests do not fit its ids")
        unit, text = (np.frombuffer(data, np.uint8).reshape(-1, 8) for data in digests)
        return Utterances(id_array=id_array, length_B=length_B, unit_digest_B8=unit, text_digest_B8=text)

    def planes(self, block: int) -> Planes:
        """The planes of a block. Raises DamagedShardError."""
        n = int(self.utterances.length_B[self.cuts[block] : self.cuts[block + 1]].sum())
        planes = layout(self._spec)
        frames = [_only_value(self._batches[block].column(name)) for name in planes]
        sizes = [plane.num_bytes(n) for plane in planes.values()]
        try:
            for name, frame, size in zip(planes, frames, sizes, strict=True):
                self._check_size(name, size, zstandard.frame_content_size(frame), "claims")
                files.check_size(self._path, size, frame.size)
            parts = np.split(np.empty(sum(sizes), np.uint8), np.cumsum(sizes)[:-1])
            for name, frame, part in zip(planes, frames, parts, strict=True):
                found = _zstd.decompressor.stream_reader(frame).readinto(part) if part.size else 0
                self._check_size(name, part.size, found, "has")
        except (zstandard.ZstdError, MemoryError) as error:
            raise DamagedShardError(self._path, one_line(error)) from None
        return {name: part.reshape(plane.shape(n)) for (name, plane), part in zip(planes.items(), parts, strict=True)}

    def _check_size(self, plane: str, wanted: int, size: int, verb: str) -> None:
        if size != wanted:
            raise DamagedShardError(self._path, f"plane {plane} must have {wanted} bytes, but {verb} {size}")


open_shard = ArrowShard


def _only_value(array: Any) -> pa.Buffer:
    """The bytes of a binary array's one value, not copied (a pyarrow scalar copies them)."""
    _, ends, data = array.buffers()
    start, stop = np.frombuffer(ends, np.int64)[array.offset : array.offset + 2].tolist()
    return data.slice(start, stop - start)
