"""The files of a store: their names, and reading store.json, marks and the index without trusting them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hkd.errors import HkdError, UserError
from hkd.files import atomic_write
from hkd.labels.backend import backend_of
from hkd.labels.schema import StoreSpec, check_format
from hkd.units.inventory import UnitInventory

SPEC, INVENTORY, INDEX, CARD, REPORT, DATA, LOCKS = (
    "store.json",
    "inventory.json",
    "index.arrow",
    "README.md",
    "report.json",
    "data",
    ".locks",
)
MAX_JSON_BYTES = 1 << 28
INDEX_KEY = "hkd_label_index"
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("num_positions", pa.int32()),
        ("unit_digest", pa.binary(8)),
        ("text_digest", pa.binary(8)),
    ]
)


def shard_path(folder: Path, spec: StoreSpec, shard: int) -> Path:
    """Where shard number `shard` lies."""
    return folder / DATA / f"{shard:05d}{backend_of(spec).suffix}"


def mark_path(folder: Path, shard: int) -> Path:
    """Where its mark lies."""
    return folder / DATA / f"{shard:05d}.json"


def shard_number(name: str) -> int | None:
    """The number in the name of a shard or a mark; None for any other file."""
    match = re.fullmatch(r"(\d{5,9})\.(json|arrow|zarr\.zip)", name)
    return int(match[1]) if match else None


def load_json(path: Path) -> Any:
    """A JSON file of moderate size. Raises UserError where it is missing, HkdError where it is broken."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise HkdError(f"{path} must have at most {MAX_JSON_BYTES} bytes, but has {path.stat().st_size} instead.")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} must be a label store, but {path.name} is missing. Give the folder of a label store."
        ) from None
    except (ValueError, RecursionError) as error:
        raise HkdError(f"{path} must be JSON, but is not ({str(error)[:100]}). Restore it from a copy.") from None
    except OSError as error:
        raise HkdError(f"{path} cannot be read ({error.strerror}).") from None


def load_spec(folder: Path) -> StoreSpec:
    """Read store.json and inventory.json. Raises UserError or HkdError."""
    value = load_json(folder / SPEC)
    try:
        check_format(value)
        load_json(folder / INVENTORY)
        return StoreSpec.from_json(value, UnitInventory.load(folder / INVENTORY))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def load_mark(folder: Path, spec: StoreSpec, shard: int) -> dict[str, Any] | None:
    """A shard's mark; None where there is none that counts (absent, torn, or of another store)."""
    try:
        value = load_json(mark_path(folder, shard))
    except HkdError:
        return None
    keys = {"shard": int, "store": str, "utterances": int, "positions": int, "bytes": int, "sha256": str, "quality": dict}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in keys.items()):
        return None
    return value if value["store"] == spec.digest and value["shard"] == shard else None


def index_table(folder: Path, spec: StoreSpec) -> pa.Table:
    """The index, made from the shards. Raises HkdError for a shard that is missing, damaged or foreign."""
    parts: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    backend = backend_of(spec)
    for shard in range(spec.plan.num_shards):
        if load_mark(folder, spec, shard) is None:
            raise HkdError(
                f"label store {folder} is not complete: shard {shard} of {spec.plan.num_shards} is missing. "
                "Run the command that writes it again (`hkd labels verify` lists what is missing)."
            )
        utterances = backend.open(shard_path(folder, spec, shard), spec, shard).utterances
        count = len(utterances.length_B)
        if count != len(spec.plan.rows(shard)):
            raise HkdError(
                f"shard {shard} of {folder} must hold {len(spec.plan.rows(shard))} utterances, but holds {count} instead."
            )
        parts["id"].append(utterances.id_array.cast(pa.large_string()))
        parts["shard"].append(pa.array(np.full(count, shard, np.int32)))
        parts["row"].append(pa.array(np.arange(count, dtype=np.int32)))
        parts["num_positions"].append(pa.array(utterances.length_B.astype(np.int32)))
        for name, digest_B8 in (("unit_digest", utterances.unit_digest_B8), ("text_digest", utterances.text_digest_B8)):
            buffer = pa.py_buffer(digest_B8.tobytes())
            parts[name].append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), count, [None, buffer]))
    columns = [pa.chunked_array(parts[f.name], f.type).combine_chunks() for f in INDEX_SCHEMA]
    schema = INDEX_SCHEMA.with_metadata({INDEX_KEY: json.dumps({"store": spec.digest})})
    return pa.Table.from_arrays(columns, schema=schema)


def write_index(folder: Path, spec: StoreSpec) -> pa.Table:
    """Make the index and write it atomically."""
    table = index_table(folder, spec)
    with atomic_write(folder / INDEX) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return table


def load_index(folder: Path, spec: StoreSpec) -> pa.Table | None:
    """The memory-mapped index; None where it is absent or not that of this store."""
    path = folder / INDEX
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        meta = json.loads((table.schema.metadata or {}).get(INDEX_KEY.encode(), b"null"))
        if meta != {"store": spec.digest} or not table.schema.equals(INDEX_SCHEMA):
            return None
        if table.num_rows != spec.num_utterances or any(column.null_count for column in table.columns):
            return None
        table.validate()
        return table.combine_chunks() if table.column("id").num_chunks > 1 else table
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return None
