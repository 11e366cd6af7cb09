"""What a label store is: `store.json`, its files, the plan that says which utterance lies in which shard, its rows and
its index.

- docs/label-store.md specifies every byte. A newer minor version is read (unknown keys are kept), a major one refused.
- The plan is a pure function of the sorted ids: shard n holds the run [n·m, (n+1)·m) of them, m = utterances_per_shard.
- A store is resumed where the *identity* is the same: all of the spec but hkd's version and the command.
- Nothing in a file is trusted: sizes, lengths and digests are checked first.

Shape letters: B utterances, U positions of an utterance, N positions over all utterances, K kept ids.
"""

import importlib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hkd.errors import HkdError, UserError
from hkd.files import digest_of, digest_of_json
from hkd.sparse import TopK
from hkd.units.inventory import UnitInventory

FORMAT = "1.0"
MAJOR = 1
SUFFIXES = {"arrow": ".arrow", "zarr": ".zarr.zip"}  # of a backend's shards
COMPRESSIONS = ("zstd",)
SELECTIONS = ("topk", "sample")
NOT_IDENTITY = ("format", "hkd_version", "command")
MAX_UNITS = 2**31 - 2
MAX_SHARDS = 100_000


def _refuse(name: str, rule: str, value: object) -> UserError:
    return UserError(f"`{name}` of a label store must {rule}, but is {value!r} instead.")


class Codec:
    """How a store keeps log-probabilities: as 16-bit codes. A new one: `CODECS["name"] = MyCodec()`. `mode`: the
    codec's number in the kernels; None: the kernels look values up in a table."""

    mode: int | None = None
    has_step = False  # whether it depends on the spec's `step`

    def codes(self, logp_NK: NDArray[np.float32], step: float) -> NDArray[np.uint16]:
        """Log-probabilities (at most 0, no NaN) → their codes."""
        raise NotImplementedError

    def values(self, step: float) -> NDArray[np.float32]:
        """The log-probabilities of all 65,536 codes."""
        raise NotImplementedError

    def error_bound(self, step: float) -> dict[str, float]:
        """|Δ log p| ≤ absolute + relative · |log p| for every kept id, down to log p = −lowest."""
        raise NotImplementedError


class Grid(Codec):
    """−log p in steps of `step` nats, rounded half to even; 65535 is −∞."""

    mode, has_step = 0, True

    def codes(self, logp_NK: NDArray[np.float32], step: float) -> NDArray[np.uint16]:
        code_NK = np.rint(np.minimum(-logp_NK / np.float32(step), np.float32(65534)))
        return np.where(np.isneginf(logp_NK), 65535, code_NK).astype(np.uint16)

    def values(self, step: float) -> NDArray[np.float32]:
        value_C = np.arange(65536, dtype=np.float32) * -np.float32(step)
        value_C[65535] = -np.inf
        return value_C

    def error_bound(self, step: float) -> dict[str, float]:
        return {"absolute": step / 2 + 1e-6, "relative": 0.0, "lowest": 65534 * step}


class Half(Codec):
    """The bits of −log p as a float16, so lossless to that; finite values stay finite."""

    mode = 1

    def codes(self, logp_NK: NDArray[np.float32], step: float) -> NDArray[np.uint16]:
        half_NK = np.where(np.isneginf(logp_NK), np.inf, np.minimum(-logp_NK, 65504)).astype(np.float16)
        return np.abs(half_NK).view(np.uint16)

    def values(self, step: float) -> NDArray[np.float32]:
        return -np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)

    def error_bound(self, step: float) -> dict[str, float]:
        return {"absolute": 2.0**-25, "relative": 2.0**-11, "lowest": 65504.0}


CODECS: dict[str, Codec] = {"grid": Grid(), "f16": Half()}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSpec:
    """The content of `store.json`. Raises UserError for a value that is not allowed. `teacher`: TeacherInfo as a
    dictionary. `k`: the ids asked for, of which a row holds `width`. `num_utterances`, `ids_digest`: the writer's."""

    name: str
    level: str
    inventory: UnitInventory
    teacher: Mapping[str, Any]
    manifest_digest: str
    k: int
    alignment_digest: str | None = None
    selection: str = "topk"
    temperatures: tuple[float, ...] = ()
    codec: str = "grid"
    step: float = 1 / 64  # of the codec `grid`, in nats
    compression: str = "zstd"
    backend: str = "arrow"
    normalisation: str = "hkd-words-1"
    context: str = "utterance"
    utterances_per_shard: int = 512
    block_positions: int = 4096
    num_utterances: int = 0
    ids_digest: str = ""
    hkd_version: str = ""
    command: str = ""
    format: str = FORMAT
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of a newer minor version

    def __post_init__(self) -> None:
        choices: list[Collection[str]] = [CODECS, SUFFIXES, COMPRESSIONS, SELECTIONS]
        for name, allowed in zip(("codec", "backend", "compression", "selection"), choices, strict=True):
            if getattr(self, name) not in allowed:
                raise _refuse(name, f"be one of {', '.join(allowed)}", getattr(self, name))
        for name, least in (("k", 1), ("utterances_per_shard", 1), ("block_positions", 1), ("num_utterances", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**40:
                raise _refuse(name, f"be a whole number of at least {least}", value)
        if self.num_shards > MAX_SHARDS:
            raise _refuse("utterances_per_shard", f"give at most {MAX_SHARDS} shards", self.utterances_per_shard)
        if not all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in self.temperatures):
            raise _refuse("temperatures", "be positive numbers", self.temperatures)
        if not (isinstance(self.step, float) and math.isfinite(self.step) and 1e-4 <= self.step <= 1):
            raise _refuse("step", "lie between 0.0001 and 1", self.step)
        if len(self.inventory) > MAX_UNITS:
            raise _refuse("inventory", f"have at most {MAX_UNITS} units", len(self.inventory))

    @property
    def width(self) -> int:
        """Ids that a row holds."""
        return min(self.k, len(self.inventory)) if self.selection == "topk" else self.k

    @property
    def id_bytes(self) -> int:
        """Bytes of a stored unit id: 2 for up to 65,536 units, else 4."""
        return 2 if len(self.inventory) <= 65536 else 4

    @property
    def num_shards(self) -> int:
        """Shards in all; a store without utterances has none."""
        return -(-self.num_utterances // self.utterances_per_shard)

    def rows(self, shard: int) -> range:
        """Which of the sorted ids a shard holds: a contiguous run."""
        first = shard * self.utterances_per_shard
        return range(first, min(first + self.utterances_per_shard, self.num_utterances))

    @property
    def error_bound(self) -> dict[str, float]:
        """|Δ log p| ≤ absolute + relative · |log p| for every kept id, down to log p = −lowest."""
        return CODECS[self.codec].error_bound(self.step)

    def with_ids(self, sorted_ids: Sequence[str]) -> "StoreSpec":
        return replace(self, num_utterances=len(sorted_ids), ids_digest=digest_of(sorted_ids))

    def to_json(self) -> dict[str, Any]:
        """The value of `store.json`; the inventory's symbols lie beside it in inventory.json."""
        others = ("format", "extra", "inventory", "step")
        value = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}
        value = {"format": self.format, "kind": "hkd label store", **value, "temperatures": [*self.temperatures]}
        units, step = self.inventory, {"step": self.step} if CODECS[self.codec].has_step else {}
        value["inventory"] = {"digest": units.digest, "size": len(units), "silence": units.silence, "file": INVENTORY}
        value["codec"] = {"name": self.codec, "error_bound": self.error_bound, **step}
        return {**value, **self.extra}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a store to be resumed."""
        return identity_of(json.loads(json.dumps(self.to_json(), ensure_ascii=False)))  # tuples as when read back

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, which every shard and every mark holds."""
        return digest_of_json(self.identity())

    @classmethod
    def from_json(cls, value: Any, inventory: UnitInventory) -> "StoreSpec":
        """The inverse of `to_json`. Raises UserError for anything else, a newer major version, or another inventory."""
        check_format(value)
        known = {f.name for f in fields(cls)} - {"extra", "inventory", "step"}
        try:
            wanted, found, codec = value["inventory"]["digest"], inventory.digest, value["codec"]
            if wanted != found:
                rule = f"the inventory's digest must be {wanted}"
                raise UserError(f"{rule}, but is {found} instead. Restore inventory.json.")
            texts = ("name", "level", "manifest_digest", "normalisation", "context", "ids_digest", "hkd_version")
            for key in (*texts, "command"):
                if not isinstance(value[key], str):
                    raise _refuse(key, "be a text", value[key])
            if not isinstance(value["teacher"], dict):
                raise _refuse("teacher", "be an object", value["teacher"])
            arguments = {key: item for key, item in value.items() if key in known}
            arguments |= {"codec": codec["name"], "temperatures": tuple(float(t) for t in value["temperatures"])}
            arguments |= {"step": float(codec["step"])} if "step" in codec else {}
            extra = {key: item for key, item in value.items() if key not in known | {"inventory", "kind"}}
            return cls(inventory=inventory, extra=extra, **arguments)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"store.json must describe a label store, but {type(error).__name__}: {error}.") from None


def check_format(value: Any) -> None:
    """Raises UserError unless the value is a store.json of a major version that this hkd reads."""
    version = value.get("format") if isinstance(value, dict) else None
    if not isinstance(version, str) or value.get("kind") != "hkd label store":
        remedy = "Give the folder of a label store."
        raise UserError(f"store.json must describe a label store, but has no format of one. {remedy}")
    if version.partition(".")[0] != str(MAJOR):
        found = version[:20]
        raise UserError(f"the format of a label store must be {MAJOR}.x, but is {found} instead. Install a newer hkd.")


def identity_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """A store.json → what must be equal for a store to be resumed."""
    return {key: item for key, item in value.items() if key not in NOT_IDENTITY}


def sorted_ids(ids: Iterable[str]) -> list[str]:
    """Ids in the order of the plan (by code points). Raises UserError for an empty id and for one given twice."""
    result = sorted(ids)
    if result and not result[0]:
        raise UserError("an utterance's id must be a non-empty text, but is '' instead. Give every utterance an id.")
    for left, right in itertools.pairwise(result):
        if left == right:
            rule = "an utterance's id must be unique in a store"
            raise UserError(f"{rule}, but '{left}' stands twice. Give each its own id.")
    return result


# Files ----------------------------------------------------------------------------------------------------------------

SPEC, INVENTORY, INDEX, CARD, REPORT = "store.json", "inventory.json", "index.arrow", "README.md", "report.json"
DATA, LOCKS = "data", ".locks"
MAX_JSON_BYTES = 1 << 28


def shard_name(spec: StoreSpec, shard: int) -> str:
    return f"{DATA}/{shard:05d}{SUFFIXES[spec.backend]}"


def mark_name(shard: int) -> str:
    return f"{DATA}/{shard:05d}.json"


def is_shard_or_mark(name: str) -> bool:
    """Whether a file in a store's folder has the name of a shard or a mark, of any plan and backend."""
    return re.fullmatch(rf"{DATA}/\d{{5,9}}\.(json|arrow|zarr\.zip)", name) is not None


def parse_mark(data: bytes, store: str, shard: int) -> dict[str, Any] | None:
    """The mark in these bytes; None where it is torn or of another store."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    numbers, texts = ("shard", "utterances", "positions", "bytes"), ("store", "sha256")
    kinds = {**dict.fromkeys(numbers, int), **dict.fromkeys(texts, str), "quality": dict}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
        return None
    ours = value["store"] == store and value["shard"] == shard and re.fullmatch("[0-9a-f]{64}", value["sha256"])
    return value if ours else None


# Rows and shards ------------------------------------------------------------------------------------------------------

DIGEST_BYTES = 8
LEFT_OUT = bytes(DIGEST_BYTES)  # unit digest of an utterance that could not be labelled; it has no positions


@dataclass(frozen=True, kw_only=True, slots=True)
class UtteranceLabels:
    """The labels of one utterance. `word_U`: the word of each position, −1: none. Digests: 8 bytes of SHA-256 each."""

    id: str
    topk: TopK
    word_U: NDArray[np.int32]
    unit_digest: bytes  # of the unit sequence: hkd.align.alignment.sequence_digest
    text_digest: bytes  # of the normalised transcript

    def __post_init__(self) -> None:
        if self.word_U.shape != (len(self.topk),):
            raise ValueError(f"word_U must have the shape ({len(self.topk)},), but has {self.word_U.shape} instead")
        sizes = len(self.unit_digest), len(self.text_digest)
        if {*sizes} != {DIGEST_BYTES}:
            raise ValueError(f"digests must have {DIGEST_BYTES} bytes, but have {sizes[0]} and {sizes[1]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBlock:
    """The labels of B utterances, concatenated: utterance b has the positions offset_B1[b] to offset_B1[b + 1]."""

    topk: TopK
    offset_B1: NDArray[np.int64]
    word_N: NDArray[np.int32]
    unit_digest_B: tuple[bytes, ...]
    text_digest_B: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.offset_B1) - 1

    def utterance(self, b: int) -> TopK:
        return self.topk[int(self.offset_B1[b]) : int(self.offset_B1[b + 1])]


FREE_BYTES = 1 << 26  # a plane of a block may have so many bytes ...
MAX_EXPANSION = 4096  # ... or, beyond that, so many times its compressed size
Planes = dict[str, NDArray[Any]]
META_KEY = "hkd_label_shard"


class DamagedShardError(HkdError):
    """A shard file that is not what a store of this spec holds."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"shard {path} is damaged or foreign ({reason}). Run `hkd labels verify --repair`.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterances:
    """The utterances of a shard, in order."""

    id_array: Any  # pyarrow strings
    length_B: NDArray[np.int64]
    unit_digest_B8: NDArray[np.uint8]
    text_digest_B8: NDArray[np.uint8]

    @property
    def offset_B1(self) -> NDArray[np.int64]:
        """First position of every utterance, and the end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.length_B, dtype=np.int64)])


class ShardFile(Protocol):
    """An open shard. Block i holds the utterances cuts[i] to cuts[i + 1]."""

    utterances: Utterances
    cuts: list[int]

    def planes(self, block: int) -> Planes:
        """The planes of a block. Raises DamagedShardError."""


class Backend(Protocol):
    """A module that reads and writes shards in one file format."""

    def encode_shard(
        self, spec: StoreSpec, shard: int, utterances: Utterances, blocks: Iterable[Callable[[], Planes]]
    ) -> memoryview:
        """A whole shard's bytes; the same content gives the same bytes. `blocks` make the planes, cut as `block_cuts`
        says; each is called once, several may be at the same time."""

    def open_shard(self, path: Path, spec: StoreSpec, shard: int) -> ShardFile:
        """Open a shard. Raises DamagedShardError where it is none of this store."""


def shard_meta(spec: StoreSpec, shard: int) -> dict[str, Any]:
    """What a shard file says of itself, so that a foreign one is recognised."""
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
    module: Backend = importlib.import_module(f"hkd.labels.{spec.backend}")
    return module


# The index ------------------------------------------------------------------------------------------------------------

INDEX_KEY = "hkd_label_index"
INDEX_SCHEMA = pa.schema(
    [("id", pa.large_string()), ("shard", pa.int32()), ("row", pa.int32()), ("num_positions", pa.int32()),
     ("unit_digest", pa.binary(8)), ("text_digest", pa.binary(8))]
)  # fmt: skip


def rows_of(shard: int, utterances: Utterances) -> pa.Table:
    """A shard's rows of the index."""
    count = len(utterances.length_B)

    def digests(digest_B8: Any) -> Any:
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), count, [None, pa.py_buffer(digest_B8.tobytes())])

    columns = [
        utterances.id_array.cast(pa.large_string()),
        pa.array(np.full(count, shard, np.int32)),
        pa.array(np.arange(count, dtype=np.int32)),
        pa.array(utterances.length_B.astype(np.int32)),
        digests(utterances.unit_digest_B8),
        digests(utterances.text_digest_B8),
    ]
    return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)


def index_bytes(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def parse_index(data: Any, spec: StoreSpec) -> pa.Table | None:
    """The index in these bytes, or in this memory-mapped file; None where it is damaged or that of another store."""
    try:
        table = pa.ipc.open_file(data).read_all()
        meta = json.loads((table.schema.metadata or {}).get(INDEX_KEY.encode(), b"null"))
        if meta != {"store": spec.digest} or not table.schema.equals(INDEX_SCHEMA):
            return None
        if table.num_rows != spec.num_utterances or any(column.null_count for column in table.columns):
            return None
        table.validate(full=True)  # that ids are UTF-8, too
        return table.combine_chunks() if table.column("id").num_chunks > 1 else table
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return None
