"""What distilling costs a training step: the same student on the same batches, without labels, with hard heads, with
label stores.

    python benchmarks/bench_train.py [--presets xs,s] [--steps 12] [--threads 1] [--device auto] [--precision fp32]

Three stores: monophones (V = 42, dense), senones (V = 5,126, K = 16), a foreign subword vocabulary (V = 30,522 trimmed,
K = 16), with made-up labels over synthesised speech: what is measured is time alone. The variants take turns on each
batch, so that whatever else runs on the machine meets all of them. A step is as hkd.loop does it: batch, loss,
gradient, clipping, AdamW.

Hard heads come twice: as `--objective hard-heads` has them, the subword head over the student's own 120 pieces; and
`hard heads, same sizes`, each as wide as the auxiliary head of its level (13,319 outputs for the foreign pieces). The
bar is against the second: what distilling costs, not what a wider head costs. The first is printed beside it.

On the CPU the time is the process's own (user + system), else the wall's after a synchronisation. Features are in
memory.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, clock_of, machine, parser, save

from hkd.config import build, merge
from hkd.stream.loader import BatchPlan
from hkd.testing.teachers import prepare_folder, tiny_corpus
from hkd.train.config import TrainConfig
from hkd.train.data import TrainingData, open_data
from hkd.train.run import StudentTask, make_task
from hkd.units.inventory import UnitInventory

SAME = "hard heads, same sizes"
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"objective": "none"},
    "hard heads": {"objective": "hard-heads"},
    SAME: {"objective": "hard-heads"},
    "labels": {"objective": "hierarchical", "hard_heads": False},
    "labels and hard heads": {"objective": "hierarchical"},
}
BAR_RATE, BAR_READING, BAR_LOADER = 0.90, 0.02, 20.0


def make_project(folder: Path, num_utterances: int) -> None:
    """A prepared folder with three label stores; made once and kept."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from kit.labelled import label_folder

    if (folder / "made").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tiny_corpus(folder, num_utterances=num_utterances)
    prepare_folder(folder, vocab_size=120, jobs=1)
    label_folder(folder, levels=["senone"], k=16)
    label_folder(folder, levels=["monophone"], k=42)
    foreign = UnitInventory(level="subword", symbols=tuple(f"piece{n}" for n in range(30_522)))
    label_folder(folder, levels=["subword"], k=16, inventory=foreign)
    (folder / "made").touch()


class Timer:
    """Seconds spent inside a wrapped function."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds = clock, 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            start = self.clock()
            result = function(*args, **options)
            self.seconds += self.clock() - start
            return result

        return timed


def opened(project: Path, settings: dict[str, Any]) -> TrainingData:
    """The inputs of a run."""
    return open_data(
        build(TrainConfig, settings, where="bench"), manifest=project / "manifest.jsonl", units=project / "units",
        alignment=project / "alignment.arrow", labels=project / "shards",
    )  # fmt: skip


def as_wide(data: TrainingData, other: TrainingData) -> TrainingData:
    """The same with heads as wide as the other's at their levels, where those are wider."""
    width = {head.level: head.num_units for head in other.plan.student.heads}
    heads = tuple(replace(head, num_units=max(head.num_units, width[head.level])) for head in data.plan.student.heads)
    return replace(data, plan=replace(data.plan, student=replace(data.plan.student, heads=heads)))


class Variant:
    """One student in training."""

    def __init__(self, data: TrainingData, device: torch.device, precision: str, clock: Callable[[], float]) -> None:
        config = data.config
        frames = [data.frames[u.id] for u in data.train]
        self.plan = BatchPlan(frames, batch_frames=config.batch_seconds * 100, seed=0)
        self.task: StudentTask = make_task(data, self.plan, max_steps=1000)
        self.student = self.task.student.to(device)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=True)
        self.batches = self.task.batches(0, 0, 1)
        self.device, self.precision, self.clock = device, precision, clock
        self.reading = Timer(clock)
        for store in data.join.stores.values():
            store.reader.block = self.reading.wrap(store.reader.block)  # type: ignore[method-assign]
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.step, self.loading, self.seconds, self.audio, self.reading.seconds = 0, 0.0, 0.0, 0.0, 0.0

    def run(self) -> None:
        """One step."""
        start = self.clock()
        share = next(self.batches)
        assert share is not None
        self.loading += self.clock() - start
        batch = share.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            losses = self.task.losses(batch, self.step)
        counts, weights = self.task.counts(batch), self.task.weights(self.step)
        loss = sum(
            (losses[name] * (weights[name] / counts[name]) for name in losses), torch.zeros((), device=self.device)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += self.clock() - start
        self.audio += share.seconds
        self.step += 1

    def figures(self) -> dict[str, float]:
        """What was measured."""
        return {
            "steps_per_s": round(self.step / self.seconds, 4),
            "audio_s_per_s": round(self.audio / self.seconds, 2),
            "loading_share": round(self.loading / self.seconds, 4),
            "reading_share": round(self.reading.seconds / self.seconds, 4),
            "loader_audio_s_per_s": round(self.audio / self.loading, 1),
        }


def bench_preset(
    project: Path, preset: str, options: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, float]]:
    """Figures of all variants of a preset."""
    shared = {"encoder": {"preset": preset}, "batch_seconds": options.batch_seconds, "augment": {"speeds": [1.0]}}
    data = {name: opened(project, merge(shared, v)) for name, v in VARIANTS.items()}
    data[SAME] = as_wide(data[SAME], data["labels"])
    clock = clock_of(device.type)
    variants = {name: Variant(d, device, options.precision, clock) for name, d in data.items()}
    epoch = next(iter(variants.values())).plan.batches_per_epoch
    for variant in variants.values():
        while variant.step < max(2, epoch if device.type == "cuda" else 2):
            variant.run()
        variant.reset()
    for _ in range(options.steps):
        for variant in variants.values():
            variant.run()
    return {name: variant.figures() for name, variant in variants.items()}


def main() -> None:
    """Measure, print, write results/train.json."""
    arguments = parser(__doc__)
    arguments.add_argument("--presets", default="xs,s")
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--utterances", type=int, default=160)
    arguments.add_argument("--batch-seconds", type=float, default=60.0)
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    arguments.add_argument("--project", type=Path, default=Path(tempfile.gettempdir()) / "hkd-bench-train")
    arguments.add_argument("--out", type=Path, default=None, help="default: results/train.json, or train-cuda.json")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    device = torch.device("cuda" if cuda else "cpu")
    make_project(options.project, options.utterances)
    found: dict[str, Any] = {
        "machine": machine(), "batch_s": options.batch_seconds, "steps": options.steps, "precision": options.precision,
        "presets": {}, "bars": [],
    }  # fmt: skip
    out = options.out or RESULTS / ("train-cuda.json" if cuda else "train.json")
    for preset in options.presets.split(","):
        rows = found["presets"][preset] = bench_preset(options.project, preset, options, device)
        save(out, found)
        print(f"preset {preset}")
        for name, row in rows.items():
            print(
                f"  {name:<22} {row['steps_per_s']:8.3f} steps/s {row['audio_s_per_s']:9.1f} audio s/s   loading "
                f"{row['loading_share']:.1%}, reading labels {row['reading_share']:.2%}"
            )
        labels = rows["labels"]
        ratio, plain = (labels["steps_per_s"] / rows[name]["steps_per_s"] for name in (SAME, "hard heads"))
        print(f"  labels / hard heads with the student's own pieces: {plain:.3f}")
        reading = max(rows[name]["reading_share"] for name in ("labels", "labels and hard heads"))
        loader = labels["loader_audio_s_per_s"] / labels["audio_s_per_s"]
        found["bars"] += [
            bar(f"{preset}: labels / hard heads of the same sizes", ratio, BAR_RATE, least=True, form=".3f"),
            bar(f"{preset}: reading labels, share of a step", reading, BAR_READING, form=".4f"),
        ]
        if not cuda:
            found["bars"].append(bar(f"{preset}: loader / trainer", loader, BAR_LOADER, least=True, form=".1f"))
        save(out, found)


if __name__ == "__main__":
    main()
