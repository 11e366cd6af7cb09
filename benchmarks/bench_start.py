"""What it takes from the command to the first batch, at the size of LibriSpeech: processor seconds and memory of real
commands.

    python benchmarks/bench_start.py [--utterances 28100 281000] [--project FOLDER]

The corpus is made up: 33 words an utterance, 12.3 s, 120 phones and 360 senones, all cut from one recording of noise;
an alignment and three label stores (senones, monophones, the student's subwords; k = 4) with made-up labels.
`hkd train` is stopped at the end of its first step, then resumed and stopped at its next one; `hkd teacher-dump` of
senones is stopped at its first shard. `tree`: the proportional memory (PSS) of `hkd train` and its workers, at its peak
over forty steps.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import RESULTS, bar, machine, parser, save

LEVELS = ("senone", "monophone", "subword")
WORDS, PHONES, STATES, FRAMES, K = 33, 120, 3, 1230, 4
PART = 512
TRAIN = [
    "train", "--objective", "hierarchical", "--run", "start", "--set", "encoder.preset=xs", "--set", "batch_seconds=60",
    "--set", "loop.log_every=1",
    "--set", "loop.save_every=1", "--set", "loop.max_steps=40", "--set", "shares_every=0", "--set",
    "loop.eval_every=1000",
]  # fmt: skip


def make_project(folder: Path, utterances: int) -> None:
    """Made once and kept."""
    if (folder / "made").exists():
        return
    from hkd import manifest as manifests
    from hkd.align.alignment import Alignment, Tier, UtteranceAlignment, write_alignment
    from hkd.audio import write_wav
    from hkd.manifest import Utterance
    from hkd.units.sequences import Units, train_units
    from hkd.units.text import words

    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    write_wav(folder / "noise.wav", rng.uniform(-0.1, 0.1, 16 * 12_300).astype(np.float32))
    lexicon = _lexicon(rng)
    texts = [" ".join(lexicon[n] for n in rng.integers(len(lexicon), size=WORDS)) for _ in range(utterances)]
    ids = [f"{n % 2338:04d}-{n // 2338:06d}-{n % 37:04d}" for n in range(utterances)]
    sound = str((folder / "noise.wav").absolute())
    rows = [
        Utterance(
            id=name, text=text, audio_filepath=sound, duration=FRAMES / 100, speaker=name[:4],
            extra={"split": "dev" if n % 1000 == 999 else "train"},
        )
        for n, (name, text) in enumerate(zip(ids, texts, strict=True))
    ]  # fmt: skip
    manifests.write(folder / "manifest.jsonl", rows)
    (folder / "hkd.toml").write_text('[prepare]\ncorpus = "made up"\n', encoding="utf-8")
    train_units(texts[:500], folder / "units", vocab_size=500)
    units = Units(folder / "units")
    inventories = {level: units.inventory(level) for level in ("senone", "monophone")}

    def alignments() -> Any:
        cut_W1 = np.linspace(0, PHONES, WORDS + 1).astype(np.int64)
        for row in rows:
            start_P1 = np.sort(rng.choice(np.arange(1, FRAMES // 3), PHONES - 1, replace=False)) * 3
            start_P1 = np.concatenate([[0], start_P1, [FRAMES]]).astype(np.int32)
            start_S1 = np.concatenate([(start_P1[:-1, None] + np.arange(STATES)).ravel(), [FRAMES]]).astype(np.int32)
            yield UtteranceAlignment(
                id=row.id, words=tuple(words(row.text)),
                word_tier=Tier(unit_U=np.arange(WORDS, dtype=np.int32), start_U1=start_P1[cut_W1]),
                tiers={
                    "senone": Tier(unit_U=rng.integers(126, 5126, PHONES * STATES).astype(np.int32), start_U1=start_S1),
                    "monophone": Tier(unit_U=rng.integers(3, 39, PHONES).astype(np.int32), start_U1=start_P1),
                },
            )  # fmt: skip

    write_alignment(
        folder / "alignment.arrow", alignments(), manifest_digest=manifests.Manifest(rows).digest,
        inventories=inventories,
        silences={level: [inventory.silence] for level, inventory in inventories.items()}, aligner={"name": "made up"},
        failed={},
    )  # fmt: skip
    aligned, text_of = Alignment(folder / "alignment.arrow"), dict(zip(ids, texts, strict=True))
    for level in LEVELS:
        _label(folder, level, units, aligned, text_of)
    (folder / "made").touch()


def _lexicon(rng: np.random.Generator) -> list[str]:
    """20,000 made-up words, in order of their making."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return sorted({"".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(20_000)})


def _label(folder: Path, level: str, units: Any, aligned: Any, text_of: dict[str, str]) -> None:
    """A store of made-up labels: the gold unit and the three after it."""
    from hkd.align.alignment import sequence_digest
    from hkd.labels.format import StoreSpec, UtteranceLabels
    from hkd.labels.store import LabelWriter
    from hkd.sparse import TopK
    from hkd.units.text import normalisation, text_digest, words

    inventory = units.inventory(level)
    kept = np.array([0.6, 0.2, 0.1, 0.05])
    spec = StoreSpec(
        name=level, level=level, inventory=inventory, manifest_digest="0" * 64, k=K, normalisation=normalisation(),
        teacher={"name": "made up", "kind": "ngram", "direction": "both", "digest": "0" * 64},
        alignment_digest=None if level == "subword" else aligned.digest,
    )  # fmt: skip

    def labels(name: str) -> UtteranceLabels:
        said = words(text_of[name])
        unit_U, word_U = (
            units.spelling(level).encode(said) if level == "subword" else (aligned.positions(name, level).unit_U, None)
        )
        logp_UK = np.tile(np.log(kept).astype(np.float32), (len(unit_U), 1))
        topk = TopK(
            ids_NK=((unit_U[:, None] + np.arange(K)) % len(inventory)).astype(np.int32), logp_NK=logp_UK, gold_N=unit_U,
            tail_N=np.full(len(unit_U), np.log(0.05), np.float32), gold_logp_N=logp_UK[:, 0],
        )  # fmt: skip
        return UtteranceLabels(
            id=name, topk=topk, word_U=np.zeros(len(unit_U), np.int32) if word_U is None else word_U,
            unit_digest=sequence_digest(unit_U),
            text_digest=text_digest(said),
        )  # fmt: skip

    writer = LabelWriter.open(folder / "shards" / level, spec, list(text_of))
    for shard in writer.pending():
        writer.write_shard(shard, [labels(name) for name in writer.shard_ids(shard)])
    writer.finish()


def _memory_mb(process: psutil.Process, *, tree: bool) -> float:
    """The peak of the process so far; with `tree` what it and its children hold now, shared memory divided among
    them."""
    if not tree:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024 if "VmHWM" in status else 0.0
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            total += one.memory_full_info().pss
    return total / 2**20


def measured(project: Path, command: list[str], arrived: Callable[[], bool], *, tree: bool = False) -> dict[str, float]:
    """Start `hkd COMMAND`, kill it when `arrived` says so (or let it end); processor seconds, wall seconds and the peak
    of its memory.

    Processor seconds are its own and those of its children that have ended.
    """
    start, seconds, peak_mb = time.monotonic(), 0.0, 0.0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (project / "log.txt").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "hkd", *command], cwd=project, env=environment, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and not arrived():
                seconds = sum(process.cpu_times()[:4])
                peak_mb = max(peak_mb, _memory_mb(process, tree=tree))
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit((project / "log.txt").read_text())
    return {
        "cpu_s": round(seconds, 2),
        "wall_s": round(time.monotonic() - start, 2),
        "peak_gb": round(peak_mb * 2**20 / 1e9, 3),
    }


def _steps(run: Path) -> int:
    lines = run / "timing.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


def starts(project: Path) -> dict[str, dict[str, float]]:
    """The first batch cold and resumed, and the first shard."""
    run, store = project / "runs" / "start", project / "dumped"
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(store, ignore_errors=True)
    rows = {"train, cold": measured(project, TRAIN, lambda: _steps(run) > 0)}
    before = _steps(run)
    rows["train, resumed"] = measured(project, TRAIN, lambda: _steps(run) > before)
    dump = ["teacher-dump", "--lm", "phone-trigram", "--unit", "monophone", "--out", str(store)]
    rows["teacher-dump"] = measured(project, dump, lambda: any((store / "data").glob("*.arrow")))
    return rows


def trees(project: Path) -> dict[str, dict[str, float]]:
    """The whole process tree with one worker and with eight, to the end of forty steps."""
    rows, run = {}, project / "runs" / "start"
    for workers in (1, 8):
        shutil.rmtree(run, ignore_errors=True)
        rows[f"train, workers={workers}"] = measured(
            project, [*TRAIN, "--set", f"workers={workers}"], lambda: _steps(run) >= 40, tree=True
        )
    return rows


def main() -> None:
    """Measure, print, write results/start.json."""
    arguments = parser(__doc__)
    arguments.add_argument("--utterances", type=int, nargs="+", default=[28_100, 281_000])
    arguments.add_argument("--project", type=Path, default=Path(tempfile.gettempdir()) / "hkd-bench-start")
    options = arguments.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rows": {}, "bars": []}
    for utterances in options.utterances:
        project = options.project / str(utterances)
        make_project(project, utterances)
        rows = found["rows"][str(utterances)] = starts(project) | (trees(project) if utterances < 100_000 else {})
        save(RESULTS / "start.json", found)
        print(f"{utterances:,} utterances")
        for name, row in rows.items():
            print(
                f"  {name:<18} {row['cpu_s']:8.1f} s of processor {row['wall_s']:8.1f} s of wall {row['peak_gb']:7.2f} "
                f"GB"
            )
    found["bars"] = bars(found["rows"])
    save(RESULTS / "start.json", found)


def bars(rows: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """A line a bar, for the sizes that were measured."""
    lines = []
    if large := rows.get("281000"):
        for name, seconds, gigabytes in (("train, cold", 60, 4), ("train, resumed", 20, 4), ("teacher-dump", 30, 1.5)):
            lines.append(bar(f"281,000: {name}", large[name]["cpu_s"], seconds, "s of processor"))
            lines.append(bar(f"281,000: {name}", large[name]["peak_gb"], gigabytes, "GB"))
    if small := rows.get("28100"):
        for name in ("train, cold", "teacher-dump"):
            if large:
                lines.append(bar(f"281,000 / 28,100: {name}", large[name]["cpu_s"] / small[name]["cpu_s"], 12))
        ratio = small["train, workers=8"]["peak_gb"] / small["train, workers=1"]["peak_gb"]
        lines.append(bar("28,100: memory of 8 workers / of one", ratio, 1.5, form=".2f"))
    return lines


if __name__ == "__main__":
    main()
