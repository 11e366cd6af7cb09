"""How much of a GPU `teacher-dump` uses: bert-large's shape in bf16, transcripts of LibriSpeech-like length, writing included.

    python benchmarks/bench_dump_gpu.py [--transcripts 100000] [--mask-every 0] [--compile] [--token-budget 65536]

Bars: model FLOP utilisation at least 45 % end to end (operations counted from weights, tokens and scored places, against the data sheet's
dense bf16 peak), the GPU idle for at most 5 % of the time (kernel intervals of a second dump, as torch.profiler sees them). Without a
CUDA GPU it says so and ends well.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_dump import SHAPES, V, bar, machine, transformers  # type: ignore[attr-defined]  # which must come after torchaudio
from utilisation import peak_flops

from hkd.labelling.dump import DumpConfig, DumpReport, dump
from hkd.teachers.load import TeacherOptions
from hkd.teachers.transformer import MaskedTeacher

RESULTS = Path(__file__).parent / "results" / "dump-gpu.json"
PROFILED = 4_096  # transcripts of the dump that is watched kernel by kernel


def vocabulary() -> list[str]:
    """As many short words as bert-large has pieces, behind its special tokens."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = (a + b + c + d for a in letters for b in letters for c in letters for d in letters)
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(next(words) for _ in range(V - 5))]


def make_teacher(options: TeacherOptions, shape: str) -> MaskedTeacher:
    """BERT of a shape with random weights on the GPU, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    layers, width, heads = SHAPES[shape]
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]
    where, dtype = (torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else (torch.device("cpu"), torch.float32)
    return MaskedTeacher(model, fast, name=shape, options=options, device=where, dtype=dtype)


def write_manifest(path: Path, count: int) -> None:
    """Transcripts of 5 to 90 words, 38 in the mean, each word a piece."""
    rng = np.random.default_rng(0)
    words = np.array(vocabulary()[5:])
    with path.open("w", encoding="utf-8") as file:
        for n, size in enumerate(np.clip(rng.gamma(5.0, 8.0, count).round(), 5, 90).astype(int).tolist()):
            file.write(json.dumps({"id": f"u{n:07d}", "text": " ".join(words[rng.integers(0, len(words), size)])}) + "\n")


def idle_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the time between the first start and the last end in which nothing runs."""
    ordered = sorted(intervals)
    covered, end = 0.0, ordered[0][0]
    for start, stop in ordered:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - covered / (end - ordered[0][0])


def watched(manifest: Path, store: Path, teacher: MaskedTeacher, config: DumpConfig) -> float:
    """The idle share of the GPU during a dump."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        dump(manifest, store, teacher, config=config)
    kernels = [e for e in seen.events() if e.device_type.name == "CUDA"]
    return idle_share((e.time_range.start, e.time_range.end) for e in kernels)


def measure(arguments: argparse.Namespace) -> tuple[DumpReport, float, float | None]:
    """A dump of all transcripts, the share of the device's peak that its model used, and the idle share of another, smaller dump."""
    options = TeacherOptions(
        mask_every=arguments.mask_every, compile=arguments.compile, token_budget=arguments.token_budget, case="lower"
    )
    teacher, config = make_teacher(options, arguments.shape), DumpConfig(k=arguments.k)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "warm.jsonl", PROFILED)
        write_manifest(folder / "all.jsonl", arguments.transcripts)
        dump(folder / "warm.jsonl", folder / "warm", teacher, config=config)
        before = teacher.flops
        report = dump(folder / "all.jsonl", folder / "all", teacher, config=config)
        peak, _ = peak_flops(teacher.device, teacher.dtype)
        used = (teacher.flops - before) / report.seconds["total"] / peak
        idle = watched(folder / "warm.jsonl", folder / "watched", teacher, config) if torch.cuda.is_available() else None
    return report, used, idle


def main() -> None:
    """Run, print the bars, write results/dump-gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transcripts", type=int, default=100_000)
    parser.add_argument("--shape", choices=SHAPES, default="bert-large")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--mask-every", type=int, default=0)
    parser.add_argument("--token-budget", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--on-cpu", action="store_true", help="run without a GPU, too: a try-out with few transcripts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.on_cpu:
        print(
            f"SKIPPED: torch sees no CUDA GPU here; there, this dumps {arguments.transcripts:,} transcripts with {arguments.shape} in bf16 and "
            "measures model FLOP utilisation, writing included (at least 45 %), and the GPU's idle share (at most 5 %)."
        )
        sys.exit(0)
    report, used, idle = measure(arguments)
    results: dict[str, Any] = {
        "machine": machine(),
        "arguments": {name: str(value) for name, value in vars(arguments).items() if name != "out"},
        "report": {**report.to_json(), "store": "", "go_on": ""},
        "utilisation": used,
        "idle_share": idle,
    }
    print(json.dumps(results["report"]), flush=True)
    passed = bar("model FLOP utilisation, end to end", used, 0.45, least=True)
    if idle is not None:
        passed &= bar("GPU idle share", idle, 0.05, least=False)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
