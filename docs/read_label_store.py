"""A second reader of hkd's label stores, from docs/label-store.md alone: pyarrow and NumPy, Arrow backend. python
read_label_store.py STORE [ID]"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa


def read(folder):
    """Yields (id, columns) for every utterance; columns maps value names to arrays, positions first."""
    spec = json.loads(Path(folder, "store.json").read_text(encoding="utf-8"))
    assert (spec["kind"], spec["format"].split(".")[0], spec["backend"]) == ("hkd label store", "1", "arrow")
    size, num_t = spec["inventory"]["size"], len(spec["temperatures"])
    k = min(spec["k"], size) if spec["selection"] == "topk" else spec["k"]
    for path in sorted(Path(folder, "data").glob("*.arrow")):
        with pa.memory_map(str(path)) as mapped:
            for batch in map(pa.ipc.open_file(mapped).get_batch, range(pa.ipc.open_file(mapped).num_record_batches)):
                row = {name: batch.column(name)[0] for name in batch.schema.names}
                length = np.array(row["num_positions"].as_py(), np.int64)
                start, n = np.cumsum(length) - length, int(length.sum())
                values = coded(row, n, k, size, num_t, spec, start)
                for name, a, b in zip(row["id"].as_py(), start, start + length, strict=True):
                    yield name, {key: value[a:b] for key, value in values.items()}


def coded(row, n, k, size, num_t, spec, start):
    def plane(name, rows):
        return np.frombuffer(
            pa.decompress(row[name].as_buffer(), rows * n, codec="zstd") if rows * n else b"", np.uint8
        )

    def number(name, dtype, columns=1):  # bytes of one plane, rank-major: byte i of column j is row i * columns + j
        width = np.dtype(dtype).itemsize
        return plane(name, width * columns).reshape(width, columns, n).transpose(2, 1, 0).copy().view(dtype)[..., 0]

    unit = sum(plane(f"unit.{i}", k).reshape(n, k).astype(np.int64) << 8 * i for i in range(2 if size <= 65536 else 4))
    steps = plane("code.0", k).reshape(k, n).astype(np.uint16) + (
        plane("code.1", k).reshape(k, n).astype(np.uint16) << 8
    )
    code = np.ascontiguousarray(np.cumsum(steps, axis=0, dtype=np.uint16).T)
    if spec["codec"]["name"] == "grid":
        logp = np.where(code == 65535, -np.inf, code.astype(np.float32) * -np.float32(spec["codec"]["step"]))
    else:
        logp = -code.view("<f2").astype(np.float32)
    rank, at = number("gold_rank", "<u4")[:, 0].astype(np.int64), np.arange(n)
    gold = np.where(rank > 0, unit[at, rank - 1], number("gold", "<u4")[:, 0].astype(np.int64) - 1)
    gold_logp = np.where(rank > 0, logp[at, rank - 1], number("gold_logp", "<f2")[:, 0].astype(np.float32))
    word = np.split(number("word", "<u4")[:, 0], start)  # before the first utterance lies nothing
    word = np.concatenate([np.cumsum(steps, dtype=np.uint32) - np.uint32(1) for steps in word]).view(np.int32)
    values = {
        "unit": unit,
        "logp": logp,
        "tail": number("tail", "<f2")[:, 0],
        "gold": gold,
        "gold_logp": gold_logp,
        "word": word,
    }
    values |= {name: number(name, dtype, num_t) for name, dtype in (("lse_t", "<f4"), ("tail_t", "<f2")) if num_t}
    if spec["selection"] == "sample":
        values["count"] = sum(plane(f"count.{i}", k).reshape(k, n).T.astype(np.int64) << 8 * i for i in range(2))
    return values


if __name__ == "__main__":
    symbols = json.loads(Path(sys.argv[1], "inventory.json").read_text(encoding="utf-8"))["symbols"]
    for name, columns in read(sys.argv[1]):
        if name in sys.argv[2:] or len(sys.argv) == 2:
            print(name, *(symbols[g] if g >= 0 else "-" for g in columns["gold"]))
