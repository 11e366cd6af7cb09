"""Shards as Zarr v3 groups, each in one zip file (stored, not deflated): an array a plane, an array a property of the
utterances.

- The group is made in memory and zipped here, with fixed dates and sorted names: zarr's ZipStore writes the time.
- Arrays are read whole: slicing zarr per utterance is fifty times slower than cutting in memory.
"""

import io
import itertools
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore, ZipStore

from hkd.errors import one_line
from hkd.labels import format as files
from hkd.labels.codec import join, layout
from hkd.labels.format import META_KEY, DamagedShardError, Planes, StoreSpec, Utterances

CHUNK_BYTES = 1 << 20
ZSTD_LEVEL = 1
_DATE = (1980, 1, 1, 0, 0, 0)
_UTTERANCE_ARRAYS = {"id_utf8": "u1", "id_end": "i8", "num_positions": "i4", "unit_digest": "u1", "text_digest": "u1"}


def _chunks(array: NDArray[Any], axis: int) -> tuple[int, ...]:
    other = max(1, array.nbytes // max(1, array.shape[axis]))
    length = max(1, min(array.shape[axis], CHUNK_BYTES // other or 1))
    return tuple(length if i == axis else max(1, size) for i, size in enumerate(array.shape))


def encode_shard(
    spec: StoreSpec, shard: int, utterances: Utterances, blocks: Iterable[Callable[[], Planes]]
) -> memoryview:
    planes = join(spec, [block() for block in blocks])
    memory: dict[str, Any] = {}
    attributes: dict[str, Any] = {META_KEY: files.shard_meta(spec, shard)}
    group = zarr.open_group(MemoryStore(memory), mode="w", zarr_format=3, attributes=attributes)
    names = [name.encode() for name in utterances.id_array.to_pylist()]
    arrays: dict[str, tuple[NDArray[Any], int]] = {
        "id_utf8": (np.frombuffer(b"".join(names), np.uint8), 0),
        "id_end": (np.cumsum([len(name) for name in names], dtype="<i8"), 0),
        "num_positions": (utterances.length_B.astype("<i4"), 0),
        "unit_digest": (utterances.unit_digest_B8, 0),
        "text_digest": (utterances.text_digest_B8, 0),
    }
    arrays |= {name: (planes[name], plane.axis) for name, plane in layout(spec).items()}
    for name, (array, axis) in arrays.items():
        kind: dict[str, Any] = {"shape": array.shape, "dtype": array.dtype, "chunks": _chunks(array, axis)}
        made = group.create_array(name, **kind, compressors=[ZstdCodec(level=ZSTD_LEVEL)], fill_value=0)
        if array.size:
            made[...] = array
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(memory):
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, bytes(memory[name].to_bytes()))
    return file.getbuffer()


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What zarr, zipfile and their codecs raise for broken files, which is whatever they like → DamagedShardError."""
    try:
        yield
    except DamagedShardError:
        raise
    except Exception as error:
        raise DamagedShardError(path, f"{type(error).__name__}: {one_line(error)}") from None


class ZarrShard:
    """An open Zarr shard: one block, read whole."""

    def __init__(self, path: Path, spec: StoreSpec, shard: int) -> None:
        self._path, self._spec = path, spec
        with _one_line(path):
            self._stored_bytes = path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise DamagedShardError(path, "its zip members must be stored, not compressed")
            meta = self._read(list(_UTTERANCE_ARRAYS), {})
            files.check_meta(path, meta.pop(META_KEY), spec, shard)
            self.utterances = self._utterances(meta)
        self.cuts = [0, len(self.utterances.length_B)] if len(self.utterances.length_B) else [0]

    def _read(self, names: list[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        store = ZipStore(self._path, mode="r")
        try:
            group = zarr.open_group(store, mode="r", zarr_format=3)
            result: dict[str, Any] = {META_KEY: group.attrs.get(META_KEY)}
            for name in names:
                array, dtype = group[name], _UTTERANCE_ARRAYS.get(name, "u1")
                if not isinstance(array, zarr.Array) or np.dtype(array.dtype) != np.dtype(dtype):
                    raise DamagedShardError(self._path, f"{name} is no array of {dtype}")
                if name in shapes and array.shape != shapes[name]:
                    why = f"{name} must have the shape {shapes[name]}, but has {array.shape}"
                    raise DamagedShardError(self._path, why)
                for extent in (array.shape, array.chunks):  # a chunk is allocated whole
                    files.check_size(self._path, math.prod(extent) * array.dtype.itemsize, self._stored_bytes)
                result[name] = np.asarray(array[...])
            return result
        finally:
            store.close()

    def _utterances(self, meta: dict[str, Any]) -> Utterances:
        data, end, length = meta["id_utf8"].tobytes(), meta["id_end"], meta["num_positions"]
        digests = meta["unit_digest"], meta["text_digest"]
        if end.ndim != 1 or length.shape != end.shape or any(digest.shape != (len(end), 8) for digest in digests):
            raise DamagedShardError(self._path, "its utterances' arrays do not fit each other")
        starts = [0, *end.tolist()]
        if starts[-1] != len(data) or any(a > b for a, b in itertools.pairwise(starts)) or bool((length < 0).any()):
            raise DamagedShardError(self._path, "its lengths do not fit its ids")
        ids = [data[a:b].decode() for a, b in itertools.pairwise(starts)]
        found = pa.array(ids, pa.string()), length.astype(np.int64)
        return Utterances(id_array=found[0], length_B=found[1], unit_digest_B8=digests[0], text_digest_B8=digests[1])

    def planes(self, block: int) -> Planes:
        """All planes of the shard. Raises DamagedShardError."""
        assert block == 0
        n = int(self.utterances.length_B.sum())
        shapes: dict[str, tuple[int, ...]] = {name: plane.shape(n) for name, plane in layout(self._spec).items()}
        with _one_line(self._path):
            result = self._read(list(shapes), shapes)
        return {name: result[name] for name in shapes}


open_shard = ZarrShard
