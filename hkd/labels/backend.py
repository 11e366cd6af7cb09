"""What a backend must do: write one shard as one file, deterministically, and give its blocks back. See arrow.py and zarr.py."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkd.errors import HkdError
from hkd.labels.codec import Planes, layout
from hkd.labels.schema import StoreSpec

FREE_BYTES = 1 << 26  # a plane of a block may have so many bytes ...
MAX_EXPANSION = 4096  # ... or, beyond that, so many times its compressed size
Write = Callable[[memoryview], None]
META_KEY = "hkd_label_shard"


class DamagedShardError(HkdError):
    """A shard file that is not what a store of this spec holds."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"shard {path} is damaged or foreign ({reason}). Run `hkd labels verify --repair`.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterances:
    """Who lies in a shard, in order."""

    id_array: Any  # pyarrow strings
    length_B: NDArray[np.int64]
    unit_digest_B8: NDArray[np.uint8]
    text_digest_B8: NDArray[np.uint8]

    @property
    def ids(self) -> list[str]:
        """Their ids, as a new list."""
        return list(self.id_array.to_pylist())

    @property
    def offset_B1(self) -> NDArray[np.int64]:
        """First position of every utterance, and the end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.length_B, dtype=np.int64)])


class ShardFile(Protocol):
    """An open shard."""

    @property
    def utterances(self) -> Utterances:
        """Who is in it."""

    @property
    def cuts(self) -> list[int]:
        """Block i holds the utterances cuts[i] to cuts[i + 1]."""

    def planes(self, block: int) -> Planes:
        """The planes of a block. Raises DamagedShardError."""


class Backend(Protocol):
    """A file format for shards."""

    suffix: str

    def encode(
        self, spec: StoreSpec, shard: int, utterances: Utterances, blocks: Iterable[Callable[[], Planes]], write: Write
    ) -> tuple[bytes | memoryview, str]:
        """A whole shard's bytes and their SHA-256; the same content gives the same bytes.

        `blocks` make the planes, cut as `block_cuts` says; each is called once, several may be at the same time. `write` gets the bytes,
        too, piece by piece in their order, from any one thread.
        """

    def open(self, path: Path, spec: StoreSpec, shard: int) -> ShardFile:
        """Open a shard. Raises DamagedShardError where it is none of this store."""


def block_cuts(length_B: NDArray[np.int64], block_positions: int) -> list[int]:
    """Runs of whole utterances: a block ends with the utterance that brings it to `block_positions` or more."""
    cuts, total = [0], 0
    for row, length in enumerate(length_B.tolist()):
        total += length
        if total >= block_positions and row + 1 < len(length_B):
            cuts.append(row + 1)
            total = 0
    return [*cuts, len(length_B)] if len(length_B) else [0]


def cut(spec: StoreSpec, planes: Planes, start: int, stop: int) -> Planes:
    """The positions start to stop of every plane."""
    return {name: planes[name][start:stop] if p.axis == 0 else planes[name][:, start:stop] for name, p in layout(spec).items()}


def recut(spec: StoreSpec, utterances: Utterances, parts: list[Planes]) -> list[Planes]:
    """Blocks cut in any way → blocks cut as `block_cuts` says."""
    cuts = block_cuts(utterances.length_B, spec.block_positions)
    if len(parts) == len(cuts) - 1:
        return parts
    whole, offset_B1 = join(spec, parts), utterances.offset_B1
    return [cut(spec, whole, int(offset_B1[a]), int(offset_B1[b])) for a, b in pairwise(cuts)]


def join(spec: StoreSpec, parts: list[Planes]) -> Planes:
    """Blocks → one."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts], axis=p.axis) for name, p in layout(spec).items()}


def shard_meta(spec: StoreSpec, shard: int) -> dict[str, Any]:
    """What stands in a shard file itself, so that a foreign one is known."""
    return {"format": spec.format, "store": spec.digest, "shard": shard}


def check_meta(path: Path, meta: Any, spec: StoreSpec, shard: int) -> None:
    """Raises DamagedShardError where the shard belongs to another store or another place."""
    if not isinstance(meta, dict) or meta.get("store") != spec.digest or meta.get("shard") != shard:
        raise DamagedShardError(path, "it was written for another store or another place")


def check_size(path: Path, num_bytes: int, stored_bytes: int) -> None:
    """Raises DamagedShardError where a few bytes claim to stand for very many."""
    if num_bytes > FREE_BYTES and num_bytes > MAX_EXPANSION * stored_bytes:
        raise DamagedShardError(path, f"{stored_bytes} bytes claim to stand for {num_bytes}")


def backend_of(spec: StoreSpec) -> Backend:
    """The backend that a spec names."""
    if spec.backend == "arrow":
        from hkd.labels.arrow import ArrowBackend

        return ArrowBackend()
    from hkd.labels.zarr import ZarrBackend

    return ZarrBackend()
