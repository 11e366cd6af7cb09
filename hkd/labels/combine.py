"""Other sets of utterances: several stores as one, a part of a store, a table for other tools."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hkd.errors import UserError
from hkd.files import atomic_write, digest_of
from hkd.labels.reader import LabelReader
from hkd.labels.rows import LabelBlock, UtteranceLabels
from hkd.labels.schema import StoreSpec, differences
from hkd.labels.writer import LabelWriter
from hkd.progress import Progress, no_progress

MAY_DIFFER = {
    "name",
    "manifest_digest",
    "alignment_digest",
    "num_utterances",
    "ids_digest",
    "utterances_per_shard",
    "merged_from",
}
EXPORT_UTTERANCES = 256


def utterances_of(block: LabelBlock, ids: Sequence[str]) -> Iterator[UtteranceLabels]:
    """A read block → its utterances."""
    for b, name in enumerate(ids):
        rows = slice(int(block.offset_B1[b]), int(block.offset_B1[b + 1]))
        yield UtteranceLabels(
            id=name,
            topk=block.topk[rows],
            word_U=block.word_N[rows],
            unit_digest=block.unit_digest_B[b],
            text_digest=block.text_digest_B[b],
        )


def write(
    out: Path | str,
    spec: StoreSpec,
    ids: Iterable[str],
    fetch: Callable[[Sequence[str]], Iterable[UtteranceLabels]],
    *,
    overwrite: bool,
    progress: Progress,
) -> StoreSpec:
    """Encode again, which loses nothing: a codec's own values are its fixed points."""
    writer = LabelWriter.open(out, spec, ids, overwrite=overwrite)
    pending = writer.pending()
    for done, shard in enumerate(pending):
        with writer.claim(shard) as mine:
            if mine:
                writer.write_shard(shard, fetch(writer.shard_ids(shard)))
        progress(done + 1, len(pending))
    writer.finish()
    return writer.spec


def merge(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    command: str = "",
    hkd_version: str = "",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """Stores of different utterances by the same teacher with the same settings → one.

    Raises UserError where settings differ (naming which), or where an utterance stands in two of them.
    """
    if len(sources) < 2:
        raise UserError(f"merging needs at least two stores, but got {len(sources)}. Name all of them.")
    readers = [LabelReader.open(path) for path in sources]
    first = readers[0].spec
    of: dict[str, LabelReader] = {}
    for reader in readers:
        differing = [
            row for row in differences(first.identity(), reader.spec.identity()) if row[0].partition(".")[0] not in MAY_DIFFER
        ]
        if differing:
            key, left, right = differing[0]
            raise UserError(
                f"stores to merge must agree in `{key}`, but it is {left} in {sources[0]} and {right} in {reader.place}."
            )
        for name in reader.ids:
            if name in of:
                raise UserError(
                    f"utterance '{name}' must stand in one of the stores, but is in {of[name].place} and {reader.place}."
                )
            of[name] = reader

    def joined(digests: set[str]) -> str:
        return digests.pop() if len(digests) == 1 else digest_of(sorted(digests))

    alignments = {reader.spec.alignment_digest or "" for reader in readers}
    spec = replace(
        first,
        manifest_digest=joined({reader.spec.manifest_digest for reader in readers}),
        alignment_digest=joined(alignments) or None,
        extra={**first.extra, "merged_from": sorted(reader.spec.digest for reader in readers)},
        command=command or first.command,
        hkd_version=hkd_version or first.hkd_version,
    )

    def fetch(ids: Sequence[str]) -> Iterator[UtteranceLabels]:
        for reader in readers:
            mine = [name for name in ids if of[name] is reader]
            yield from utterances_of(reader.block(mine), mine)

    return write(out, spec, of, fetch, overwrite=overwrite, progress=progress)


def subset(
    source: Path | str,
    out: Path | str,
    ids: Iterable[str],
    *,
    command: str = "",
    hkd_version: str = "",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """A store of some of its utterances. Raises UserError for one that is not in it."""
    reader = LabelReader.open(source)
    wanted = list(ids)
    for name in wanted:
        reader.row(name)
    spec = replace(reader.spec, command=command or reader.spec.command, hkd_version=hkd_version or reader.spec.hkd_version)

    def fetch(names: Sequence[str]) -> Iterator[UtteranceLabels]:
        return utterances_of(reader.block(names), names)

    return write(out, spec, wanted, fetch, overwrite=overwrite, progress=progress)


def parquet_schema(spec: StoreSpec) -> pa.Schema:
    """A row an utterance; lists over positions, lists of lists over positions and kept ids."""
    wide = pa.list_(pa.list_(pa.float32()))
    fields = [
        ("id", pa.string()),
        ("unit", pa.list_(pa.int32())),
        ("unit_logp", pa.list_(pa.float32())),
        ("word", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.list_(pa.int32()))),
        ("logp", wide),
        ("tail", pa.list_(pa.float32())),
    ]
    if spec.temperatures:
        fields += [("lse", wide), ("tail_t", wide)]
    if spec.selection == "sample":
        fields.append(("count", pa.list_(pa.list_(pa.uint16()))))
    return pa.schema(fields, metadata={"hkd_label_store": spec.digest, "inventory": "\n".join(spec.inventory.symbols)})


def export_parquet(source: Path | str, out: Path, *, progress: Progress = no_progress) -> int:
    """Write a store as one Parquet file, decoded, for tools that know no hkd. Returns the number of utterances."""
    reader = LabelReader.open(source)
    schema = parquet_schema(reader.spec)
    with atomic_write(out) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for first in range(0, len(reader), EXPORT_UTTERANCES):
            names = list(reader.ids[first : first + EXPORT_UTTERANCES])
            block = reader.block(names)
            topk, offset = block.topk, pa.array(block.offset_B1.astype(np.int32))

            def flat(values: Any, offset: Any = offset) -> Any:
                return pa.ListArray.from_arrays(offset, pa.array(values))

            def nested(values_NK: Any, offset: Any = offset) -> Any:
                n, k = values_NK.shape
                inner = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * k), pa.array(values_NK.reshape(-1)))
                return pa.ListArray.from_arrays(offset, inner)

            columns = [pa.array(names), flat(topk.gold_N), flat(topk.gold_logp_N), flat(block.word_N)]
            columns += [nested(topk.ids_NK), nested(topk.logp_NK), flat(topk.tail_N)]
            if reader.spec.temperatures:
                columns += [nested(topk.lse_NJ), nested(topk.tail_NJ)]
            if topk.count_NK is not None:
                columns.append(nested(topk.count_NK))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            progress(min(first + EXPORT_UTTERANCES, len(reader)), len(reader))
    return len(reader)
