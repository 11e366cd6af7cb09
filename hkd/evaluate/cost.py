"""What a run learned from and what that cost: its teachers' quality, steps, sound and time, from the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMING, STUDENT = "timing.jsonl", "student.json"


def training_facts(run_folder: Path, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Steps, audio hours, wall hours, audio seconds a second, share of the time that was spent waiting for data, hard heads' levels and teachers.

    stores: label store → its facts (`top1_hit_rate`, `perplexity`). Times cover what was logged, work that a kill undid included; None
    where the run has no timing.
    """
    rows = _rows(run_folder / TIMING)
    if not rows:
        return None
    wall_s, audio_s, wait_s = (sum(float(row.get(name, 0.0)) for row in rows) for name in ("wall_s", "audio_s", "wait_s"))
    heads = _heads(run_folder / STUDENT)
    taught = list(dict.fromkeys(str(head["store"]) for head in heads if head.get("store")))
    return {
        "steps": int(rows[-1]["step"]),
        "audio_hours": audio_s / 3600,
        "wall_hours": wall_s / 3600,
        "rate": audio_s / wall_s if wall_s else None,
        "waiting": wait_s / wall_s if wall_s else None,
        "hard": [str(head["level"]) for head in heads if head.get("kind") == "hard"],
        "teachers": [
            {"store": name, **{key: stores.get(name, {}).get(key) for key in ("top1_hit_rate", "perplexity")}} for name in taught
        ],
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file; a torn one is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(text)
            float(row["step"]), float(row["wall_s"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(row)
    return found


def _heads(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["heads"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return []
