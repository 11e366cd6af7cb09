"""Label stores beside other ways to keep the same rows: size, speed, error → a table, BAR lines,
benchmarks/results/store.json

    python benchmarks/bench_store.py [--positions 50000 500000] [--k 16 64] [--repeats 3] [--million 1000000] [--only
    "hkd grid" ...]

- The rows are made here: scores of 30,522 units that follow Zipf's law with evidence of varying sharpness, and a target
  that stands out by 4 to 18 nats; the 64 likeliest kept with the target among them (hkd.topk), k = 16 cut from them;
  utterances of about 30 positions. The first 100,000 positions are made, more repeat them. Errors are those of the
  first 50,000. An epoch of more than 10 s is cut and scaled.
- Every system writes in one process and reads in another, one after another, after 50 utterances that are not counted,
  with one thread for torch and BLAS (hkd writes with as many threads as there are cores, at most four; it reads with
  one). Medians of the repeats, wall-clock: on a busy machine compare within one run only (CPU seconds stand in the
  JSON).
- write: rows in memory → closed files. read: open apart, every utterance once in batches of 64, as int32 ids and
  float32 log-probabilities, tail, gold. First a shuffled epoch after opening; hkd's goes by runs of what is decoded
  together, four of them mixed, as the others' random order would decode each block many times. Then (`again`) one
  random order, read for the second time, everything in memory.
- Peak memory is that of the reading process, Python and torch included.
- Peers run in .venv-bench (see peers.txt); one that is not there or fails is said in its row.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, bar, peak_mb, save
from store_systems import COLUMNS, NUM_UNITS, OURS, PEERS, Labels, Reader, utterances

HERE = Path(__file__).parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PEER_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
WIDTH = 64
PARQUET = "Parquet, byte-stream-split, zstd"  # with its whole table in memory: what speeds are held against
OVER_PARQUET = {
    "write": ("write", 1.3),
    "read": ("first shuffled epoch", 0.5),
    "again": ("later epochs", 2.0),
}  # what, least ratio
LONGEST_S = 10.0  # of an epoch
DIFFERENT_ROWS = 100_000  # more positions repeat these: making them takes a minute
CHECKED = 50_000  # positions whose errors are looked at
WARM = 50  # utterances written and read first, unmeasured: imports
MILLION_K, MILLION_SHARD = 8, 8192


def make_rows(path: Path, num_positions: int, seed: int = 1) -> None:
    """Write the rows as one .npz. Noise is cut from one long piece of it, at a random place a position."""
    import torch

    from hkd.topk import select_topk

    torch.set_num_threads(2)
    random = np.random.default_rng(seed)
    zipf_V = torch.from_numpy(np.roll(-np.log(np.arange(NUM_UNITS) + 10.0), 999).astype(np.float32))
    zipf_V[:999] = -14.0  # special and unused tokens
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed))
    parts: list[Any] = []
    different = min(num_positions, DIFFERENT_ROWS)
    for start in range(0, different, 128):
        n = min(128, different - start)
        first_N = random.integers(0, len(noise) - NUM_UNITS, n)
        sharp_N = random.uniform(1.2, 3.2, n)
        score_NV = torch.stack(
            [noise[a : a + NUM_UNITS] * s for a, s in zip(first_N.tolist(), sharp_N.tolist(), strict=True)]
        )
        score_NV += zipf_V
        gold_N = torch.from_numpy(np.minimum((random.pareto(0.6, n) * 20).astype(np.int64) + 999, NUM_UNITS - 1))
        score_NV[torch.arange(n), gold_N] += torch.from_numpy(random.uniform(4, 18, n).astype(np.float32))
        parts.append(select_topk(score_NV, gold_N, k=WIDTH))
    fields = dict(zip(COLUMNS, ("ids_NK", "logp_NK", "tail_N", "gold_N", "gold_logp_N"), strict=True))
    columns = {name: np.concatenate([getattr(part, field) for part in parts]) for name, field in fields.items()}
    columns = {name: np.resize(column, (num_positions, *column.shape[1:])) for name, column in columns.items()}
    length = np.clip(random.lognormal(math.log(27), 0.5, num_positions // 3), 3, 120).astype(np.int64)
    np.savez(path, offset=np.cumsum(length) - length, **columns)


# In a process of its own ----------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """(seconds of wall, of CPU), and what the work gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    return (time.perf_counter() - wall, time.process_time() - cpu), value


def write_phase(system: str, rows: Labels, folder: Path, repeats: int) -> dict[str, Any]:
    """Write once for each repeat, into folders 0, 1, ..."""
    times = []
    for _ in (OURS | PEERS)[system](folder / "warm")[0](rows.first(WARM)):
        pass
    for repeat in range(repeats):
        steps = (OURS | PEERS)[system](folder / str(repeat))[0](rows)
        next(steps)
        times.append(timed(lambda steps=steps: next(steps, None))[0])
    files = [file for file in (folder / "0").rglob("*") if file.is_file() and file.name != "inventory.json"]
    size = sum(file.stat().st_size for file in files)
    return {**_speed("write", times, int(rows.offset[-1])), "bytes_per_position": size / rows.offset[-1]}


def read_phase(system: str, rows: Callable[[], Labels], folder: Path, repeats: int) -> dict[str, Any]:
    """Open and read what was written, then hold it against the rows."""
    times: dict[str, list[tuple[float, float]]] = {"open": [], "read": [], "again": []}
    _epoch(*(OURS | PEERS)[system](folder / "warm")[1]("shuffled"))
    for repeat in range(repeats):
        opened = (OURS | PEERS)[system](folder / str(repeat))[1]
        seconds, (batches, read) = timed(lambda opened=opened: opened("shuffled"))
        times["open"].append(seconds)
        times["read"].append(_epoch(batches, read))
        batches, read = opened("random")
        _epoch(batches, read)
        times["again"].append(_epoch(batches, read))
    peak = peak_mb()
    expected = rows()
    n, result = (
        int(expected.offset[-1]),
        {"open_s": statistics.median(wall for wall, _ in times["open"]), "peak_mb": peak},
    )
    for key in ("read", "again"):
        result |= _speed(key, times[key], n)
    return result | errors(read, expected)


def _epoch(batches: Any, read: Reader) -> tuple[float, float]:
    """Seconds of an epoch; after LONGEST_S those of the part that is done, scaled to the whole."""
    batches = list(batches)

    def work() -> int:
        end = time.perf_counter() + LONGEST_S
        for done, batch in enumerate(batches, 1):
            read(batch)
            if time.perf_counter() > end:
                return done
        return len(batches)

    (wall, cpu), done = timed(work)
    return wall * len(batches) / done, cpu * len(batches) / done


def _speed(key: str, times: list[tuple[float, float]], num_positions: int) -> dict[str, float]:
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return {f"{key}_per_s": num_positions / wall, f"{key}_cpu_s": cpu}


def errors(read: Reader, rows: Labels) -> dict[str, Any]:
    """Largest |Δ log p|, KL (tail as one more unit, what was read renormalised), and whether float16 came back bit for
    bit."""
    largest, total, lossless = 0.0, 0.0, True
    count = int(np.searchsorted(rows.offset, CHECKED, side="right")) - 1  # utterances
    for start in range(0, count, 512):
        batch = np.arange(start, min(count, start + 512))
        span = slice(rows.offset[batch[0]], rows.offset[batch[-1] + 1])
        wanted, found = {name: column[span] for name, column in rows.columns.items()}, read(batch)
        for name in ("ids", "gold"):
            np.testing.assert_array_equal(found[name], wanted[name])
        logp, true = found["logp"].astype(np.float32), wanted["logp"]
        largest = max(largest, float(np.abs(logp - true).max()))
        lossless &= bool((logp == true.astype(np.float16)).all())
        p, q = (np.column_stack([c["logp"], c["tail"]]).astype(np.float64) for c in (wanted, found))
        p_norm, q_norm = (np.log(np.exp(c).sum(1)) for c in (p, q))
        total += float((np.where(np.isfinite(p), np.exp(p) * (p - q), 0).sum(1) - p_norm + q_norm).sum())
    return {"max_error": largest, "kl": total / int(rows.offset[count]), "lossless_f16": lossless}


def million_write(folder: Path, count: int) -> dict[str, Any]:
    """A store of many short utterances."""
    from hkd.labels.format import StoreSpec
    from hkd.labels.store import LabelWriter
    from hkd.units.inventory import UnitInventory

    random = np.random.default_rng(0)
    offset = np.cumsum(random.integers(1, 4, count))
    n = int(offset[-1])
    ids = (random.integers(0, 1000, (n, 1)) + np.arange(MILLION_K) * 1000).astype(np.int32)
    logp = -np.sort(random.exponential(1.0, (n, MILLION_K)).astype(np.float32) + 1, axis=1)
    rows = Labels.of(
        offset=np.concatenate([[0], offset]), ids=ids, logp=logp, tail=logp[:, 0], gold=ids[:, 0], gold_logp=logp[:, 0]
    )
    inventory = UnitInventory(level="subword", symbols=tuple(f"p{i}" for i in range(NUM_UNITS)))
    spec = StoreSpec(
        name="bench", level="subword", inventory=inventory, teacher={}, manifest_digest="", k=MILLION_K,
        utterances_per_shard=MILLION_SHARD,
    )  # fmt: skip
    labels = {row.id: row for row in utterances(rows)}

    def write() -> None:
        writer = LabelWriter.open(folder, spec, list(labels))
        for shard in writer.pending():
            writer.write_shard(shard, [labels[name] for name in writer.shard_ids(shard)])
        writer.finish()

    return {"utterances": count, "write_s": timed(write)[0][0]}


def million_read(folder: Path, count: int) -> dict[str, Any]:
    """Open the store and read one utterance from the middle."""
    from hkd.labels.store import LabelReader

    (wall, cpu), block = timed(lambda: LabelReader.open(folder).block([f"utterance-{count // 2:08d}"]))
    assert 1 <= len(block.topk) <= 3
    return {"open_and_read_s": wall, "open_and_read_cpu_s": cpu, "peak_mb": peak_mb()}


def one(phase: str, system: str, data: str, positions: int, k: int, folder: str, repeats: int) -> dict[str, Any]:
    if phase == "million-write":
        return million_write(Path(folder), positions)
    if phase == "million-read":
        return million_read(Path(folder), positions)
    if phase == "write":
        return write_phase(system, Labels.load(Path(data), positions, k), Path(folder), repeats)
    return read_phase(system, lambda: Labels.load(Path(data), positions, k), Path(folder), repeats)


# The driver -----------------------------------------------------------------------------------------------------------


def run(phase: str, system: str, *arguments: Any) -> dict[str, Any]:
    """A phase in a process of its own; `failed` says why there is no result."""
    python = str(PEER_PYTHON) if system in PEERS else sys.executable
    if system in PEERS and not PEER_PYTHON.exists():
        return {"failed": "not installed (make bench-store installs the peers)"}
    command = [python, __file__, "--one", phase, system, *map(str, arguments)]
    environment = ONE_THREAD | os.environ | {"PYTHONPATH": str(HERE.parent)}  # hkd is not installed where the peers are
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(system: str, data: Path, positions: int, k: int, repeats: int) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {"system": system, "positions": positions, "k": k}
    with tempfile.TemporaryDirectory() as folder:
        for phase in ("write", "read"):
            row |= run(phase, system, data, positions, k, folder, repeats)
            if "failed" in row:
                break
    return row


HEAD = (
    f"{'store':34s} {'B/pos':>7s} {'write M/s':>9s} {'read M/s':>9s} {'again M/s':>9s} {'open s':>7s} {'peak MB':>7s} "
    f"{'max error':>9s} {'KL':>8s}"
)


def line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['system']:34s} failed: {row['failed']}"
    speeds = " ".join(f"{row[f'{key}_per_s'] / 1e6:9.2f}" for key in ("write", "read", "again"))
    rest = f"{row['open_s']:7.3f} {row['peak_mb']:7.0f} {row['max_error']:9.5f} {row['kl']:8.1e}"
    return f"{row['system']:34s} {row['bytes_per_position']:7.1f} {speeds} {rest}"


def bars(rows: list[dict[str, Any]], million: dict[str, Any]) -> list[str]:
    """What the stores must show at k = 64: a line a bar."""
    result: list[str] = []
    for n in sorted({row["positions"] for row in rows}):
        of = {row["system"]: row for row in rows if row["positions"] == n and row["k"] == WIDTH and "failed" not in row}
        at = f"at {n:,} positions"
        for system, largest in (("hkd grid", 130), ("hkd f16", 165)):
            if system in of:
                result.append(bar(f"{system}, size {at}", of[system]["bytes_per_position"], largest, "bytes/position"))
        if "hkd grid" in of:
            grid = of["hkd grid"]
            result.append(bar(f"hkd grid, max error {at}", grid["max_error"], 0.0079, "nats"))
            result.append(bar(f"hkd grid, KL {at}", grid["kl"], 1e-5, "nats"))
            for key, (what, least) in OVER_PARQUET.items() if PARQUET in of else ():
                ratio = grid[f"{key}_per_s"] / of[PARQUET][f"{key}_per_s"]
                result.append(bar(f"hkd grid, {what} over Parquet's {at}", ratio, least, "times", least=True))
        if "hkd f16" in of:
            lossless = float(of["hkd f16"]["lossless_f16"])
            result.append(bar(f"hkd f16, lossless to float16 {at}", lossless, 1, "(1: yes)", least=True))
    if "open_and_read_s" in million:
        what = f"a store of {million['utterances']:,} utterances, open and read one"
        result.append(bar(what, million["open_and_read_s"], 0.3, "s"))
        result.append(bar(f"{what}, memory", million["peak_mb"], 300, "MB"))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--million", type=int, default=1_000_000, help="utterances of the large store; 0: none")
    parser.add_argument("--only", nargs="*", default=[*OURS, *PEERS])
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        phase, system, data, positions, k, folder, repeats = options.one
        print(json.dumps(one(phase, system, data, int(positions), int(k), folder, int(repeats))))
        return
    rows: list[dict[str, Any]] = []
    million: dict[str, Any] = {}
    found = {"rows": rows, "million": million}
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "rows.npz"
        make_rows(data, max(options.positions))
        for n in options.positions:
            for k in options.k:
                print(f"\n{n:,} positions, k = {k}\n{HEAD}", flush=True)
                for system in options.only:
                    rows.append(measure(system, data, n, k, options.repeats))
                    print(line(rows[-1]), flush=True)
                    save(RESULTS / "store.json", found)
        data.unlink()
        if options.million:
            for phase in ("million-write", "million-read"):
                million |= run(phase, "hkd grid", "-", options.million, MILLION_K, Path(temporary) / "million", 1)
            print(f"\n{million}", flush=True)
    print()
    save(RESULTS / "store.json", found | {"bars": bars(rows, million)})


if __name__ == "__main__":
    main()
