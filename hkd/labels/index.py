"""index.arrow: utterance → shard and row, made from the shards and memory-mapped, so that a store of any size opens at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hkd.errors import HkdError
from hkd.files import write_bytes
from hkd.labels import folder as files
from hkd.labels.backend import Utterances
from hkd.labels.cache import open_shard, origin
from hkd.labels.schema import StoreSpec

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


def shard_tables(folder: Path, spec: StoreSpec) -> Iterator[pa.Table]:
    """The index, shard by shard, made from the shards. Raises HkdError for one that is missing, damaged or foreign."""
    place = origin(folder) or folder
    for shard in range(spec.plan.num_shards):
        if files.load_mark(folder, spec, shard) is None:
            raise HkdError(
                f"label store {place} is not complete: shard {shard} of {spec.plan.num_shards} is missing. "
                "Run the command that writes it again (`hkd labels verify` lists what is missing)."
            )
        table = rows_of(shard, open_shard(folder, spec, shard).utterances)
        if table.num_rows != len(spec.plan.rows(shard)):
            raise HkdError(
                f"shard {shard} of {place} must hold {len(spec.plan.rows(shard))} utterances, but holds {table.num_rows} instead."
            )
        yield table


def index_table(folder: Path, spec: StoreSpec) -> pa.Table:
    """The index, made from the shards. Raises HkdError for a shard that is missing, damaged or foreign."""
    table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *shard_tables(folder, spec)]).combine_chunks()
    return table.replace_schema_metadata({INDEX_KEY: json.dumps({"store": spec.digest})})


def index_bytes(table: pa.Table) -> memoryview:
    """The bytes of index.arrow."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def write_index(folder: Path, spec: StoreSpec) -> pa.Table:
    """Make the index and write it atomically."""
    table = index_table(folder, spec)
    write_bytes(folder / files.INDEX, index_bytes(table))
    return table


def load_index(folder: Path, spec: StoreSpec) -> pa.Table | None:
    """The memory-mapped index; None where it is absent or not that of this store."""
    path = folder / files.INDEX
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        meta = json.loads((table.schema.metadata or {}).get(INDEX_KEY.encode(), b"null"))
        if meta != {"store": spec.digest} or not table.schema.equals(INDEX_SCHEMA):
            return None
        if table.num_rows != spec.num_utterances or any(column.null_count for column in table.columns):
            return None
        table.validate(full=True)  # that ids are UTF-8, too
        return table.combine_chunks() if table.column("id").num_chunks > 1 else table
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return None
