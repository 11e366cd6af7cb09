"""What the benchmarks share: arguments, lines for bars, results that are written as they come, processes, clocks,
memory, the machine."""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None, out: str = "") -> argparse.ArgumentParser:
    """For a script's docstring; with --out where its results have a name."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if out:
        found.add_argument("--out", type=Path, default=RESULTS / f"{out}.json")
    return found


def bar(what: str, measured: float, target: float, unit: str = "", *, least: bool = False, form: str = ".4g") -> str:
    """Print, and return, `BAR what: measured unit >= target met|missed`. A missed bar is a finding: a benchmark that
    ran ends with 0."""
    met = measured >= target if least else measured <= target
    parts = [
        f"BAR {what}:",
        f"{measured:{form}}",
        unit,
        ">=" if least else "<=",
        f"{target:g}",
        "met" if met else "missed",
    ]
    line = " ".join(part for part in parts if part)
    print(line, flush=True)
    return line


def save(path: Path, results: dict[str, Any]) -> None:
    """Write what there is so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def in_process(*arguments: object) -> dict[str, Any]:
    """What a Python script, given with its arguments, prints as its last line: one JSON object."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def clock_of(device: str, *, wall: bool = False) -> Callable[[], float]:
    """On a CPU this process's own seconds (or the wall's); else the wall's, when the device has done what it was asked
    for."""
    import torch

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised if device == "cuda" else time.perf_counter if wall else time.process_time


def peak_mb() -> float:
    """The most memory that this process has held, in MB of 2²⁰ bytes. On Linux not ru_maxrss, which counts the parent
    process, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}
