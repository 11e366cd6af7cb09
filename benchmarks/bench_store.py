"""Label stores beside other ways to keep the same rows: size, speed, error. → benchmarks/results/store.md and store.json

    python benchmarks/bench_store.py [--positions 50000 500000] [--k 16 64] [--repeats 3]

- The labels are made here: a Zipf prior over 30,522 units and Gaussian evidence of varying sharpness, an exact softmax, the k largest kept
  with the gold unit among them, utterances of about 30 positions. Made once, kept in a temporary folder.
- Every system runs in a process of its own, one after another, with one thread for torch and BLAS. Medians of the repeats.
- write: rows in memory → closed files. read: every utterance once in one random order, in batches of 32, as int32 ids and float32 log-probabilities
  (a second epoch is `warm`). Times are wall-clock; on a busy machine compare within one run only.
- Peers that are not installed (litdata, webdataset, array_record) are left out and said; Parquet and a flat memory map are always there.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

NUM_UNITS = 30_522
BATCH = 32
RESULTS = Path(__file__).parent / "results"


def make_rows(path: Path, num_positions: int, k: int, seed: int = 1) -> None:
    """Write the labels as one .npz."""
    rng = np.random.default_rng(seed)
    prior_V = -1.05 * np.log(np.arange(NUM_UNITS) + 8.0)
    columns: dict[str, list[Any]] = {name: [] for name in ("ids", "logp", "tail", "gold", "gold_logp")}
    for start in range(0, num_positions, 512):
        n = min(512, num_positions - start)
        gold_N = rng.choice(NUM_UNITS, n, p=np.exp(prior_V) / np.exp(prior_V).sum())
        score_NV = prior_V + rng.uniform(1, 3, (n, 1)) * rng.standard_normal((n, NUM_UNITS), np.float32)
        score_NV[np.arange(n), gold_N] += rng.uniform(3, 16, n)
        largest_N1 = score_NV.max(1, keepdims=True)
        logp_NV = score_NV - largest_N1 - np.log(np.exp(score_NV - largest_N1).sum(1, keepdims=True))
        kept_NK = np.argpartition(-logp_NV, k, axis=1)[:, :k]
        lost_N = ~(kept_NK == gold_N[:, None]).any(1)
        smallest_N = np.take_along_axis(logp_NV, kept_NK, 1).argmin(1)
        kept_NK[lost_N, smallest_N[lost_N]] = gold_N[lost_N]
        value_NK = np.take_along_axis(logp_NV, kept_NK, 1)
        order_NK = np.argsort(-value_NK, axis=1, kind="stable")
        columns["ids"].append(np.take_along_axis(kept_NK, order_NK, 1).astype(np.int32))
        columns["logp"].append(np.take_along_axis(value_NK, order_NK, 1).astype(np.float32))
        columns["tail"].append(np.log(np.maximum(1 - np.exp(value_NK).sum(1), 1e-30)).astype(np.float32))
        columns["gold"].append(gold_N.astype(np.int32))
        columns["gold_logp"].append(logp_NV[np.arange(n), gold_N].astype(np.float32))
    lengths = np.minimum(rng.poisson(3, num_positions) * rng.integers(5, 16, num_positions) + 1, 150)
    offset = np.concatenate([[0], np.cumsum(lengths)])
    offset = np.append(offset[offset < num_positions], num_positions)
    np.savez(path, offset=offset, **{name: np.concatenate(parts) for name, parts in columns.items()})


class Labels:
    """The rows, as a writer gets them."""

    def __init__(self, path: Path) -> None:
        data = np.load(path)
        self.ids, self.logp, self.tail, self.gold, self.gold_logp = (
            data[n] for n in ("ids", "logp", "tail", "gold", "gold_logp")
        )
        self.offset = data["offset"].astype(np.int64)

    def __len__(self) -> int:
        return len(self.offset) - 1


Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # utterance numbers → ids_NK, logp_NK


def hkd(codec: str, compression: str, backend: str = "arrow") -> Any:
    def system(rows: Labels, folder: Path) -> tuple[Callable[[], None], Callable[[], Reader]]:
        import torch

        from hkd.labels.rows import UtteranceLabels
        from hkd.labels.schema import StoreSpec
        from hkd.labels.store import LabelReader, LabelWriter
        from hkd.topk import TopK
        from hkd.units.inventory import UnitInventory

        torch.set_num_threads(1)
        inventory = UnitInventory(level="subword", symbols=tuple(f"p{i}" for i in range(NUM_UNITS)))
        spec = StoreSpec(
            name="bench", level="subword", inventory=inventory, teacher={}, manifest_digest="", k=rows.ids.shape[1],
            codec=codec, compression=compression, backend=backend, utterances_per_shard=2048,
        )  # fmt: skip
        names = [f"utterance-{u:08d}" for u in range(len(rows))]
        whole = TopK(ids_NK=rows.ids, logp_NK=rows.logp, tail_N=rows.tail, gold_N=rows.gold, gold_logp_N=rows.gold_logp)
        labels = {}
        for name, a, b in zip(names, rows.offset[:-1].tolist(), rows.offset[1:].tolist(), strict=True):
            word = np.arange(b - a, dtype=np.int32) // 2
            labels[name] = UtteranceLabels(id=name, topk=whole[a:b], word_U=word, unit_digest=bytes(8), text_digest=bytes(8))

        def write() -> None:
            writer = LabelWriter.open(folder, spec, names)
            for shard in writer.pending():
                writer.write_shard(shard, [labels[name] for name in writer.shard_ids(shard)], quality={})
            writer.finish()

        def opened() -> Reader:
            reader = LabelReader.open(folder, cache_bytes=1 << 32)

            def read(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                topk = reader.block([names[u] for u in batch]).topk
                return topk.ids_NK, topk.logp_NK

            return read

        return write, opened

    return system


def parquet(rows: Labels, folder: Path) -> tuple[Callable[[], None], Callable[[], Reader]]:
    """float16, byte-stream-split, zstd; read whole, cut in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    k = rows.ids.shape[1]

    def write() -> None:
        folder.mkdir()
        table = pa.table(
            {
                "ids": pa.FixedSizeListArray.from_arrays(pa.array(rows.ids.astype(np.int16).reshape(-1)), k),
                "logp": pa.FixedSizeListArray.from_arrays(pa.array(rows.logp.astype(np.float16).reshape(-1)), k),
                "tail": pa.array(rows.tail.astype(np.float16)),
                "gold": pa.array(rows.gold),
                "gold_logp": pa.array(rows.gold_logp.astype(np.float16)),
            }
        )
        split = {"ids.list.element": "BYTE_STREAM_SPLIT", "logp.list.element": "BYTE_STREAM_SPLIT"}
        pq.write_table(table, folder / "t.parquet", compression="zstd", use_dictionary=False, column_encoding=split)
        np.save(folder / "offset.npy", rows.offset)

    def opened() -> Reader:
        table = pq.read_table(folder / "t.parquet", use_threads=False).combine_chunks()
        offset = np.load(folder / "offset.npy")
        ids, logp = (table[name].chunk(0).flatten().to_numpy().reshape(-1, k) for name in ("ids", "logp"))
        return cutter(ids.view(np.uint16), logp, offset)

    return write, opened


def memory_map(rows: Labels, folder: Path) -> tuple[Callable[[], None], Callable[[], Reader]]:
    """uint16 ids and float16 log-probabilities in flat files."""

    def write() -> None:
        folder.mkdir()
        np.save(folder / "ids.npy", rows.ids.astype(np.uint16))
        np.save(folder / "logp.npy", rows.logp.astype(np.float16))
        for name in ("tail", "gold_logp"):
            np.save(folder / f"{name}.npy", getattr(rows, name).astype(np.float16))
        np.save(folder / "gold.npy", rows.gold.astype(np.uint16))
        np.save(folder / "offset.npy", rows.offset)

    def opened() -> Reader:
        ids, logp = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "logp"))
        return cutter(ids, logp, np.load(folder / "offset.npy"))

    return write, opened


def cutter(ids: np.ndarray, logp: np.ndarray, offset: np.ndarray) -> Reader:
    def read(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spans = [(offset[u], offset[u + 1]) for u in batch]
        picked_ids, picked_logp = (np.concatenate([array[a:b] for a, b in spans]) for array in (ids, logp))
        return picked_ids.astype(np.int32), picked_logp.astype(np.float32)

    return read


def webdataset(rows: Labels, folder: Path) -> tuple[Callable[[], None], Callable[[], Reader]]:
    """A tar member an utterance, float16; a sequential format, so read in its own order into memory and cut from there."""
    import webdataset as wds

    k = rows.ids.shape[1]

    def write() -> None:
        folder.mkdir()
        with wds.TarWriter(str(folder / "t.tar")) as sink:
            for u in range(len(rows)):
                span = slice(rows.offset[u], rows.offset[u + 1])
                data = rows.ids[span].astype(np.uint16).tobytes() + rows.logp[span].astype(np.float16).tobytes()
                data += rows.tail[span].astype(np.float16).tobytes() + rows.gold[span].astype(np.uint16).tobytes()
                sink.write({"__key__": f"{u:08d}", "bin": data})

    def opened() -> Reader:
        ids, logp = [], []
        for sample in wds.WebDataset(str(folder / "t.tar"), shardshuffle=False):
            flat = np.frombuffer(sample["bin"], np.uint16)
            n = len(flat) // (2 * k + 2)
            ids.append(flat[: n * k].reshape(n, k))
            logp.append(flat[n * k : 2 * n * k].view(np.float16).reshape(n, k))
        return lambda batch: (
            np.concatenate([ids[u] for u in batch]).astype(np.int32),
            np.concatenate([logp[u] for u in batch]).astype(np.float32),
        )

    return write, opened


SYSTEMS: dict[str, tuple[Any, str]] = {
    "hkd grid": (hkd("grid", "zstd"), "hkd"),
    "hkd f16": (hkd("f16", "zstd"), "hkd"),
    "hkd f16, uncompressed": (hkd("f16", "none"), "hkd"),
    "hkd grid, zarr": (hkd("grid", "zstd", "zarr"), "hkd"),
    "Parquet, byte-stream-split, zstd": (parquet, "pyarrow"),
    "webdataset tar": (webdataset, "webdataset"),
    "flat memory map": (memory_map, "numpy"),
}


def measure(name: str, path: Path, repeats: int) -> dict[str, Any]:
    """One system in this process."""
    rows = Labels(path)
    n = int(rows.offset[-1])
    times: dict[str, list[float]] = {"write": [], "open": [], "read": [], "warm": []}
    result: dict[str, Any] = {"system": name}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        write, opened = SYSTEMS[name][0](rows, folder)
        order = np.random.default_rng(0).permutation(len(rows))
        batches = [order[a : a + BATCH] for a in range(0, len(order), BATCH)]
        for _ in range(repeats):
            shutil.rmtree(folder, ignore_errors=True)
            times["write"].append(timed(write)[0])
            seconds, read = timed(opened)
            times["open"].append(seconds)
            for epoch in ("read", "warm"):
                times[epoch].append(timed(lambda read=read: [read(batch) for batch in batches] and None)[0])
        result["bytes_per_position"] = (
            sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.name.startswith("inv")) / n
        )
        ids, logp = read(np.arange(len(rows)))
    np.testing.assert_array_equal(ids, rows.ids)
    result |= {f"{key}_per_s": n / statistics.median(times[key]) for key in ("write", "read", "warm")}
    result["open_s"] = statistics.median(times["open"])
    result["max_error"] = float(np.abs(logp - rows.logp).max())
    p, q = np.exp(rows.logp.astype(np.float64)), np.exp(logp.astype(np.float64))
    tail = np.exp(rows.tail.astype(np.float64))
    total = q.sum(1) + np.exp(rows.tail.astype(np.float16).astype(np.float64))
    kl = (
        (p * (rows.logp - logp)).sum(1)
        + tail * (rows.tail - rows.tail.astype(np.float16))
        + np.log(total)
        - np.log(p.sum(1) + tail)
    )
    result["kl"] = float(kl.mean())
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


HEAD = "| store | bytes/position | write M/s | read M/s | warm M/s | open s | peak MB | max error | KL |\n|---|---|---|---|---|---|---|---|---|\n"


def line(row: dict[str, Any]) -> str:
    speeds = " | ".join(f"{row[f'{key}_per_s'] / 1e6:.2f}" for key in ("write", "read", "warm"))
    rest = f"{row['open_s']:.3f} | {row['peak_mb']:.0f} | {row['max_error']:.5f} | {row['kl']:.1e}"
    return f"| {row['system']} | {row['bytes_per_position']:.1f} | {speeds} | {rest} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]), options.repeats)))
        return
    text, results = "# Label stores\n\nMade by benchmarks/bench_store.py, which says what is measured and how.\n", []
    with tempfile.TemporaryDirectory() as temporary:
        for n in options.positions:
            for k in options.k:
                path = Path(temporary) / f"{n}-{k}.npz"
                make_rows(path, n, k)
                text += f"\n## {n:,} positions, k = {k}\n\n{HEAD}"
                for name in options.only:
                    if importlib.util.find_spec(SYSTEMS[name][1]) is None:
                        print(f"{name}: {SYSTEMS[name][1]} is not installed, left out", file=sys.stderr)
                        continue
                    command = [sys.executable, __file__, "--one", name, str(path), "--repeats", str(options.repeats)]
                    row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                    results.append({"positions": n, "k": k, **row})
                    text += line(row)
                    print(f"{n} {k} {line(row)}", end="")
                path.unlink()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "store.md").write_text(text, encoding="utf-8")
    (RESULTS / "store.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
