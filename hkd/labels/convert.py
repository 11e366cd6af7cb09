"""The same labels in another backend (bit for bit) or in another codec (within its error bound)."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hkd.errors import UserError
from hkd.labels import folder as files
from hkd.labels.cache import open_shard
from hkd.labels.codec import encode, layout
from hkd.labels.decoding import decode, gather
from hkd.labels.reader import LabelReader
from hkd.labels.schema import StoreSpec
from hkd.labels.writer import LabelWriter
from hkd.progress import Progress, no_progress
from hkd.remote import location


def convert(
    source: Path | str,
    out: Path | str,
    *,
    backend: str | None = None,
    codec: str | None = None,
    command: str = "",
    hkd_version: str = "",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """Write the store again with another backend or codec; what is not given stays.

    Where only the backend changes, the stored planes are copied, so that the labels are bit-identical and the way back gives the same
    files. Resumable like any writer. Raises UserError where source and out are one folder, or grid labels shall become f16
    (which would look exact, but is not).
    """
    reader = LabelReader.open(source)
    old, root = reader.spec, reader.path
    if _absolute(out) in (_absolute(source), _absolute(root)):
        raise UserError(f"OUT must be another folder than the store, but is {out} instead.")
    wanted: dict[str, Any] = {
        "backend": backend or old.backend,
        "codec": codec or old.codec,
    }
    if old.codec == "grid" and wanted["codec"] == "f16":
        raise UserError(
            "`codec` must stay grid for a store in grid, but is f16 instead: the rounding cannot be taken back. Dump again."
        )
    spec = replace(old, **wanted, command=command or old.command, hkd_version=hkd_version or old.hkd_version)
    same_planes = layout(spec) == layout(old) and spec.codec == old.codec
    writer = LabelWriter.open(out, spec, reader.ids, overwrite=overwrite)
    pending = writer.pending()
    for done, shard in enumerate(pending):
        with writer.claim(shard) as mine:
            if mine:
                _convert_shard(reader, writer, shard, same_planes=same_planes)
        progress(done + 1, len(pending))
    report = files.load_json(root / files.REPORT) if (root / files.REPORT).is_file() else None
    writer.finish(report=report)
    return writer.spec


def _absolute(place: Path | str) -> Path | str:
    where = location(str(place))
    return where.absolute() if isinstance(where, Path) else where.rstrip("/")


def _convert_shard(reader: LabelReader, writer: LabelWriter, shard: int, *, same_planes: bool) -> None:
    root, old = reader.path, reader.spec
    file = open_shard(root, old, shard)
    blocks = [file.planes(block) for block in range(len(file.cuts) - 1)]
    if not same_planes:
        offset_B1 = file.utterances.offset_B1
        for block, (a, b) in enumerate(pairwise(file.cuts)):
            inner_B1 = offset_B1[a : b + 1] - offset_B1[a]
            topk, word_N = gather(
                old, [decode(old, blocks[block], inner_B1)], np.array([[0, 0, inner_B1[-1]]]), inner_B1[[0, -1]]
            )
            blocks[block] = encode(writer.spec, [topk], word_N, inner_B1)
    mark = files.load_mark(root, old, shard)
    writer.copy_shard(shard, file.utterances, blocks, mark["quality"] if mark else {})
