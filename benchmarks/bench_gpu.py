"""What hkd gets out of a CUDA GPU: `teacher-dump`, training with and without labels, and batches of text, all in bf16.

    python benchmarks/bench_gpu.py [--parts dump,train,text] [--transcripts 100000] [--presets s,m]

dump: bert-large's shape, transcripts of LibriSpeech-like length, writing included. train: bench_train.py's variants.
text: a self-conditioned student without and with text, half of a step. Bars: model FLOP utilisation of the dump at
least 45 % end to end (operations counted from weights, tokens and scored places, against the data sheet's dense bf16
peak), the GPU idle for at most 5 % of the dump and 20 % of training (kernel intervals, as torch.profiler sees them).
Without a CUDA GPU it says what it would measure, and ends well. The tests that need one: `pytest -m cuda`.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_dump import SHAPES, V, bert, lengths
from bench_train import VARIANTS, Variant, make_project, opened
from common import bar, clock_of, machine, parser, save
from utilisation import peak_flops

from hkd import manifest as manifests
from hkd.config import build, merge
from hkd.labelling.dump import DumpConfig, DumpReport, dump
from hkd.manifest import Utterance
from hkd.teachers.load import TeacherOptions
from hkd.teachers.transformer import MaskedTeacher
from hkd.testing.teachers import transformers
from hkd.train.bank import BankConfig, make_bank
from hkd.train.config import TrainConfig
from hkd.units.text import words

CUDA = torch.cuda.is_available()
CONDITIONED = {"objective": "none", "condition": ["monophone"], "taps": {"monophone": 1}}
TEXT = {"none, conditioned": CONDITIONED, "text, half of a step": {**CONDITIONED, "text": {"share": 0.5}}}
PROFILED = 4_096  # transcripts of the dump that is watched kernel by kernel


def vocabulary() -> list[str]:
    """As many short words as bert-large has pieces, behind its special tokens."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = (a + b + c + d for a in letters for b in letters for c in letters for d in letters)
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(next(words) for _ in range(V - 5))]


def make_teacher(options: TeacherOptions, shape: str) -> MaskedTeacher:
    """BERT of a shape with random weights on the GPU, and a tokenizer of whole words."""
    tokenizer = transformers.BertTokenizer({word: n for n, word in enumerate(vocabulary())})
    where, dtype = (torch.device("cuda"), torch.bfloat16) if CUDA else (torch.device("cpu"), torch.float32)
    return MaskedTeacher(bert(shape), tokenizer, name=shape, options=options, device=where, dtype=dtype)


def write_manifest(path: Path, count: int) -> None:
    """Transcripts of words that are pieces."""
    rng = np.random.default_rng(0)
    words = np.array(vocabulary()[5:])
    with path.open("w", encoding="utf-8") as file:
        for n, size in enumerate(lengths(rng, count)):
            file.write(
                json.dumps({"id": f"u{n:07d}", "text": " ".join(words[rng.integers(0, len(words), size)])}) + "\n"
            )


def idle_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the time between the first start and the last end in which nothing runs."""
    ordered = sorted(intervals)
    covered, end = 0.0, ordered[0][0]
    for start, stop in ordered:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - covered / (end - ordered[0][0])


def idle(work: Callable[[], object]) -> float | None:
    """The share of the time that the GPU is idle while it is done; None without a GPU."""
    if not CUDA:
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
    kernels = [e for e in seen.events() if e.device_type.name == "CUDA"]
    return idle_share((e.time_range.start, e.time_range.end) for e in kernels)


def bench_dump(options: argparse.Namespace) -> dict[str, Any]:
    """A dump of all transcripts: the share of the device's peak that its model used, and the idle share of another,
    smaller dump."""
    teacher_options = TeacherOptions(
        mask_every=options.mask_every, compile=options.compile, token_budget=options.token_budget, case="lower"
    )
    teacher, config = make_teacher(teacher_options, options.shape), DumpConfig(k=options.k)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "warm.jsonl", min(PROFILED, options.transcripts))
        write_manifest(folder / "all.jsonl", options.transcripts)
        dump(folder / "warm.jsonl", folder / "warm", teacher, config=config)
        before = teacher.flops
        report: DumpReport = dump(folder / "all.jsonl", folder / "all", teacher, config=config)
        peak, source = peak_flops(teacher.device, teacher.dtype)
        used = (teacher.flops - before) / report.seconds["total"] / peak
        unused = idle(lambda: dump(folder / "warm.jsonl", folder / "watched", teacher, config=config))
    row = {
        "positions_per_s": round(report.positions_per_s, 1),
        "flop_utilisation": used,
        "peak": source,
        "idle_share": unused,
    }
    bars = [bar("dump: model FLOP utilisation, end to end", used, 0.45, least=True)]
    return {"rows": row, "bars": bars + ([] if unused is None else [bar("dump: GPU idle share", unused, 0.05)])}


def with_text(project: Path) -> dict[str, Any]:
    """Sentences of the words that are said in the project, and a bank; the settings of text."""
    if not (project / "bank").exists():
        said = [word for u in manifests.read(project / "manifest.jsonl").split("train") for word in words(u.text)]
        said = [word for word in said if word != "our"]  # the lexicon says it first with a phone that the speech lacks
        order = np.random.default_rng(0)
        rows = [Utterance(id=f"text{n:04d}", text=" ".join(order.choice(said, 8))) for n in range(2000)]
        manifests.write(project / "text.jsonl", rows)
        settings = merge(CONDITIONED, {"encoder": {"preset": "xs"}, "batch_seconds": 60.0, "epochs": 1})
        make_bank(
            build(TrainConfig, settings, where="bank"), project / "bank", bank=BankConfig(folds=2),
            manifest=project / "manifest.jsonl",
            units=project / "units", alignment=project / "alignment.arrow",
        )  # fmt: skip
    return {"text": {"path": str(project / "text.jsonl"), "bank": str(project / "bank")}}


def bench_steps(options: argparse.Namespace, variants: dict[str, dict[str, Any]], preset: str) -> dict[str, Any]:
    """Audio seconds a second of each variant in training, one after another, and the GPU's idle share."""
    shared = merge({"encoder": {"preset": preset}, "batch_seconds": options.batch_seconds}, with_text(options.project))
    device, rows, bars = torch.device("cuda" if CUDA else "cpu"), {}, []
    for name, settings in variants.items():
        variant = Variant(
            opened(options.project, merge(shared, settings)), device, "bf16", clock_of(device.type, wall=True)
        )
        for _ in range(3):
            variant.run()
        variant.reset()
        for _ in range(options.steps):
            variant.run()
        rows[name] = variant.figures()
        rows[name]["idle_share"] = unused = idle(lambda variant=variant: [variant.run() for _ in range(5)])  # type: ignore[misc]
        print(f"{preset}, {name}: {rows[name]}", flush=True)
        if unused is not None:
            bars.append(bar(f"{preset}, {name}: GPU idle share", unused, 0.20))
    return {"rows": rows, "bars": bars}


def main() -> None:
    """Run, print the bars, write results/gpu.json."""
    known = parser(__doc__, out="gpu")
    known.add_argument("--parts", default="dump,train,text")
    known.add_argument("--transcripts", type=int, default=100_000)
    known.add_argument("--shape", choices=SHAPES, default="bert-large")
    known.add_argument("--k", type=int, default=16)
    known.add_argument("--mask-every", type=int, default=0)
    known.add_argument("--token-budget", type=int, default=0)
    known.add_argument("--compile", action="store_true")
    known.add_argument("--presets", default="s,m")
    known.add_argument("--steps", type=int, default=30)
    known.add_argument("--batch-seconds", type=float, default=120.0)
    known.add_argument("--utterances", type=int, default=400)
    known.add_argument("--project", type=Path, default=Path(tempfile.gettempdir()) / "hkd-bench-gpu")
    known.add_argument(
        "--on-cpu", action="store_true", help="run without a GPU, too: a try-out with few transcripts and steps"
    )
    options = known.parse_args()
    if not CUDA and not options.on_cpu:
        print(
            f"SKIPPED: torch sees no CUDA GPU here. There, this dumps {options.transcripts:,} transcripts with "
            f"{options.shape} in bf16 and measures model FLOP utilisation, writing included (at least 45 %), and the "
            f"GPU's idle share (at most 5 %); trains the presets {options.presets} in bf16 without labels, with hard "
            "heads and with labels, and with batches of text, and measures audio seconds a second and idle share (at "
            "most 20 %)."
        )
        return
    asked = {name: str(value) for name, value in vars(options).items()}
    found: dict[str, Any] = {"machine": machine(), "arguments": asked, "parts": {}, "bars": []}
    parts = set(options.parts.split(","))
    work: dict[str, Callable[[], dict[str, Any]]] = {"dump": lambda: bench_dump(options)} if "dump" in parts else {}
    if parts & {"train", "text"}:
        make_project(options.project, options.utterances)
        for part, variants in (("train", VARIANTS), ("text", TEXT)):
            for preset in options.presets.split(",") if part in parts else ():
                work[f"{part}, preset {preset}"] = lambda variants=variants, preset=preset: bench_steps(
                    options, variants, preset
                )  # type: ignore[misc]
    for part, run in work.items():
        result = run()
        found["parts"][part], found["bars"] = result["rows"], found["bars"] + result["bars"]
        save(options.out, found)


if __name__ == "__main__":
    main()
