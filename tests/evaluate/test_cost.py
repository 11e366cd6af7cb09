"""What a run cost: sums over its timing, teachers beside it."""

import json
from pathlib import Path

from hkd.evaluate.cost import training_facts

HEADS = {
    "hard-senone": {"level": "senone", "kind": "hard", "store": None},
    "kd-a": {"level": "senone", "kind": "aux", "store": "a"},
    "kd-b": {"level": "subword", "kind": "aux", "store": "b"},
}


def test_times_add_up_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "wall_s": 6.0, "wait_s": 1.0, "audio_s": 300.0},
        {"step": 20, "wall_s": 4.0, "wait_s": 0.5, "audio_s": 420.0},
    ]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30, "wa')
    (tmp_path / "student.json").write_text(json.dumps({"heads": HEADS}))
    facts = training_facts(tmp_path, {"a": {"top1_hit_rate": 0.5, "perplexity": 4.0, "level": "senone"}})
    assert facts == {
        "steps": 20, "audio_hours": 0.2, "wall_hours": 10 / 3600, "rate": 72.0, "waiting": 0.15, "hard": ["senone"],
        "teachers": [
            {"store": "a", "top1_hit_rate": 0.5, "perplexity": 4.0}, {"store": "b", "top1_hit_rate": None, "perplexity": None},
        ],
    }  # fmt: skip


def test_a_folder_without_timing_has_none(tmp_path: Path) -> None:
    assert training_facts(tmp_path, {}) is None
