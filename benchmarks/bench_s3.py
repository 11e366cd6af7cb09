"""Training from label stores on S3 through a bounded cache: two processes, stores larger than the cache.

    python benchmarks/bench_s3.py [--utterances 281000] [--cache 0.25] [--steps 40] [--project FOLDER]

The made-up corpus of bench_start.py (three stores), pushed to an S3 server on loopback (moto's, in a process of its
own). The same run from the folder and from S3, the second with a cache of `--cache` times the stores' size: audio
seconds a second over the steps after the first ten, bytes that came over the loopback, and the size of the cache at the
end. Bars: at least 0.8 of the folder's rate; the cache within its bound.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_start import TRAIN, make_project
from common import RESULTS, bar, machine, parser, save

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from kit.s3 import S3Server
from kit.workers import two_processes

FIRST = 10  # steps that are not counted: processes warm up, the first shards come


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def received() -> int:
    """Bytes over the loopback so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def trained(project: Path, run: str, labels: str, steps: int, environment: dict[str, str]) -> dict[str, float]:
    """Two processes train; audio seconds a second of the steps after the first ones, and bytes over the loopback."""
    shutil.rmtree(project / "runs" / run, ignore_errors=True)
    settings = ["--labels", labels, "--run", run, "--set", f"loop.max_steps={steps}"]
    command = [*two_processes(), "-m", "--", "hkd", *TRAIN, *settings]
    before = received()
    subprocess.run(command, cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, check=True)
    rows = [json.loads(line) for line in (project / "runs" / run / "timing.jsonl").read_text().splitlines()]
    audio_s, wall_s = (sum(row[name] for row in rows[FIRST:]) for name in ("audio_s", "wall_s"))
    return {"audio_s_per_s": round(audio_s / wall_s, 2), "received_mb": round((received() - before) / 1e6, 1)}


def main() -> None:
    """Measure, print, write results/s3.json."""
    arguments = parser(__doc__)
    arguments.add_argument("--utterances", type=int, default=281_000)
    arguments.add_argument("--cache", type=float, default=0.25)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--project", type=Path, default=Path(tempfile.gettempdir()) / "hkd-bench-start")
    options = arguments.parse_args()
    project = options.project / str(options.utterances)
    make_project(project, options.utterances)
    stores = size_of(project / "shards")
    bound = int(stores * options.cache)
    found: dict[str, Any] = {
        "machine": machine(),
        "utterances": options.utterances,
        "stores_mb": round(stores / 1e6),
        "rows": {},
    }
    with tempfile.TemporaryDirectory() as cache, S3Server() as server:
        environment = {**server.environment, "HKD_CACHE": cache, "HKD_CACHE_BYTES": str(bound)}
        server.make_bucket("stores")
        for folder in sorted((project / "shards").iterdir()):
            subprocess.run(
                [sys.executable, "-m", "hkd", "labels", "push", str(folder), f"s3://stores/{folder.name}"],
                env={**os.environ, **environment}, check=True,
            )  # fmt: skip
        found["rows"]["folder"] = trained(project, "from-folder", "shards", options.steps, environment)
        found["rows"]["S3"] = trained(project, "from-s3", "s3://stores", options.steps, environment)
        held = size_of(Path(cache) / "labels" / "shards")
    print(f"stores of {stores / 1e6:.0f} MB, a cache of {bound / 1e6:.0f} MB")
    for name, row in found["rows"].items():
        print(f"  {name:<8} {row['audio_s_per_s']:8.1f} audio s/s {row['received_mb']:10.1f} MB over the loopback")
    ratio = found["rows"]["S3"]["audio_s_per_s"] / found["rows"]["folder"]["audio_s_per_s"]
    found["bars"] = [
        bar("rate of S3 / of the folder", ratio, 0.8, least=True, form=".2f"),
        bar("the cache at the end / its bound", held / bound, 1.0, form=".2f"),
    ]
    save(RESULTS / "s3.json", found)


if __name__ == "__main__":
    main()
