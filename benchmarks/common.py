"""What the benchmarks share: lines for bars, results that are written as they come, memory, the machine."""

import json
import platform
from pathlib import Path
from typing import Any

from hkd.peak_memory import peak_mb

__all__ = ["RESULTS", "bar", "machine", "peak_mb", "save"]

RESULTS = Path(__file__).parent / "results"


def bar(what: str, measured: float, target: float, unit: str = "", *, least: bool = False, form: str = ".4g") -> str:
    """Print, and return, `BAR what: measured unit >= target met|missed`. A missed bar is a finding: a benchmark that ran ends with 0."""
    met = measured >= target if least else measured <= target
    parts = [f"BAR {what}:", f"{measured:{form}}", unit, ">=" if least else "<=", f"{target:g}", "met" if met else "missed"]
    line = " ".join(part for part in parts if part)
    print(line, flush=True)
    return line


def save(path: Path, results: dict[str, Any]) -> None:
    """Write what there is so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}
