"""What a manifest of a million utterances costs `teacher-dump`: planning it and writing its first shard, in a process
of its own."""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import in_process, peak_mb

UTTERANCES = 1_000_000


def write_manifest(path: Path, utterances: int) -> None:
    """LibriSpeech-like ids and lengths, in shuffled order of ids."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(2_000)]
    with path.open("w", encoding="utf-8") as file:
        for n in range(utterances):
            speaker, number = n % 2_000, n // 2_000
            row = {
                "id": f"{speaker:04d}-{number:06d}-{n % 37:04d}",
                "audio_filepath": f"audio/{speaker}/{n}.flac",
                "duration": 12.3,
                "text": " ".join(rng.choices(words, k=rng.randint(2, 40))),
                "speaker": str(speaker),
                "split": "train",
            }
            file.write(json.dumps(row) + "\n")


def first_shard(folder: Path) -> dict[str, Any]:
    """Plan the manifest of a folder and write the first shard with a tiny BERT."""
    from hkd.labelling.dump import DumpConfig, DumpRun
    from hkd.teachers.load import load_teacher
    from hkd.testing.teachers import make_teacher_folder

    make_teacher_folder(folder / "lm", "bert", positions=512)
    teacher = load_teacher(str(folder / "lm"), unit="subword", device="cpu")
    started = time.process_time()
    run = DumpRun(folder / "manifest.jsonl", folder / "store", teacher, config=DumpConfig(k=16))
    shards = run.pending()
    planned = time.process_time()
    run.shards(shards[:1])
    return {
        "utterances": UTTERANCES,
        "shards": len(shards),
        "plan_cpu_seconds": round(planned - started, 2),
        "first_shard_cpu_seconds": round(time.process_time() - planned, 2),
        "peak_gb": round(peak_mb() * 1024**2 / 1e9, 3),
    }


def measure() -> dict[str, Any]:
    """`first_shard` in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        write_manifest(Path(name) / "manifest.jsonl", UTTERANCES)
        return in_process(__file__, name)


if __name__ == "__main__":
    print(json.dumps(first_shard(Path(sys.argv[1]))))
