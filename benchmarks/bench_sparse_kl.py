"""The sparse KL against building dense targets: time and peak memory of one head's loss, forward and backward.

    python benchmarks/bench_sparse_kl.py [--frames 4000] [--units 30522] [--k 16] [--rounds 5] [--threads 1] [--device cpu]

    softmax        log-softmax and its backward pass: what no loss can do without (torch's, or hkd's in chunks: whichever is cheaper)
    sparse         hkd.losses.sparse_kl, the tail as one outcome
    renormalised   the same without a tail
    dense          targets p / Σ p in a V-wide tensor, −Σ p log q: what distill-bert (Futami 2020) does with BERT's top-k
    dense + tail   the tail's mass spread over the other units, KL against a V-wide teacher: what SpeechBrain's recipe has on disk

Time is the process's own, one process, the methods take turns. Memory is the peak of a fresh process a method, beyond the logits and their gradient.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, bar, machine, peak_mb, save
from torch import Tensor

from hkd.losses import hard_cross_entropy, sparse_kl

BAR_TIME, BAR_MEMORY = 4.0, 1 / 8
LEAST = 0.01  # of the softmax's time: what a loss is said to cost beyond it at least, for the chunked ones cost less than torch's softmax alone
Labels = dict[str, Tensor]


def make(frames: int, units: int, k: int, device: str) -> tuple[Tensor, Labels]:
    """logits_MV and a teacher's top k of each frame."""
    torch.manual_seed(0)
    logits_MV = torch.randn(frames, units, device=device)
    ids_MK = torch.stack([torch.randperm(units)[:k].clone() for _ in range(frames)]).to(device)
    logp_M = torch.log_softmax(torch.randn(frames, k + 1, device=device) * 2, 1)
    return logits_MV, {"ids_MK": ids_MK, "logp_MK": logp_M[:, :k].contiguous(), "tail_M": logp_M[:, k].contiguous()}


def dense(logits_MV: Tensor, labels: Labels) -> Tensor:
    """Cross-entropy against renormalised targets in a V-wide tensor."""
    target_MV = torch.zeros_like(logits_MV).scatter_(1, labels["ids_MK"], torch.softmax(labels["logp_MK"], 1))
    return -(target_MV * torch.log_softmax(logits_MV, 1)).sum(1)


def dense_tail(logits_MV: Tensor, labels: Labels) -> Tensor:
    """KL against the V-wide teacher whose tail is spread evenly."""
    rest = logits_MV.shape[1] - labels["ids_MK"].shape[1]
    target_MV = (
        (labels["tail_M"].exp() / rest)[:, None]
        .expand_as(logits_MV)
        .clone()
        .scatter_(1, labels["ids_MK"], labels["logp_MK"].exp())
    )
    return F.kl_div(torch.log_softmax(logits_MV, 1), target_MV, reduction="none").sum(1)


METHODS: dict[str, Callable[[Tensor, Labels], Tensor]] = {
    "softmax (torch)": lambda logits_MV, labels: F.cross_entropy(logits_MV, labels["ids_MK"][:, 0], reduction="none"),
    "softmax (hkd)": lambda logits_MV, labels: hard_cross_entropy(logits_MV, labels["ids_MK"][:, 0]),
    "sparse": lambda logits_MV, labels: sparse_kl(logits_MV, **labels),
    "renormalised": lambda logits_MV, labels: sparse_kl(logits_MV, **labels, tail="renormalised"),
    "dense": dense,
    "dense + tail": dense_tail,
}  # fmt: skip


def step(method: str, logits_MV: Tensor, labels: Labels) -> None:
    """Forward and backward."""
    leaf_MV = logits_MV.detach().requires_grad_()
    METHODS[method](leaf_MV, labels).sum().backward()  # type: ignore[no-untyped-call]


def clock(device: str) -> float:
    """CPU time on the CPU, wall time after all is done on a device."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def memory_of(method: str, options: argparse.Namespace) -> float:
    """MB beyond the logits and their gradient, in a process of its own."""
    sizes = [str(value) for value in (options.frames, options.units, options.k, options.device)]
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", method, *sizes], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(method: str, frames: int, units: int, k: int, device: str) -> float:
    """What this process needs beyond the logits and their gradient, in MB."""
    torch.set_num_threads(1)
    step(method, *make(8, 64, min(k, 4), device))  # loads the code
    logits_MV, labels = make(frames, units, k, device)
    gradient = logits_MV.nbytes / 2**20
    if device == "cpu":
        before = peak_mb()
        step(method, logits_MV, labels)
        return peak_mb() - before - gradient
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20
    step(method, logits_MV, labels)
    return torch.cuda.max_memory_allocated() / 2**20 - before - gradient


def main() -> None:
    """Measure, print, write results/sparse_kl.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--units", type=int, default=30_522)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=None, help="default: results/sparse_kl.json, or sparse_kl-cuda.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = options.out or RESULTS / ("sparse_kl.json" if options.device == "cpu" else "sparse_kl-cuda.json")
    rows: dict[str, dict[str, float]] = {method: {"extra_mb": round(memory_of(method, options), 1)} for method in METHODS}
    found: dict[str, Any] = {"machine": machine(), "frames": options.frames, "units": options.units, "k": options.k, "rows": rows}
    save(out, found)
    logits_MV, labels = make(options.frames, options.units, options.k, options.device)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(options.rounds + 1):
        for method in METHODS:
            start = clock(options.device)
            step(method, logits_MV, labels)
            if turn:
                seconds[method].append(clock(options.device) - start)
    for method, row in rows.items():
        row["seconds"] = round(sorted(seconds[method])[options.rounds // 2], 4)
    softmax = min(rows["softmax (torch)"]["seconds"], rows["softmax (hkd)"]["seconds"])
    print(f"{'':<18}{'seconds':>10}{'beyond softmax':>16}{'MB beyond':>12}")
    for method, row in rows.items():
        row["beyond_softmax_s"] = round(row["seconds"] - softmax, 4)
        print(f"{method:<18}{row['seconds']:>10.3f}{row['beyond_softmax_s']:>16.3f}{row['extra_mb']:>12.0f}")
    found["bars"] = [
        bar(f"{name}: memory beyond logits and gradient, share of dense", max(0.0, rows[name]["extra_mb"]) / rows["dense"]["extra_mb"], BAR_MEMORY)
        for name in ("sparse", "renormalised")
    ] + [
        bar(
            f"{name}: time beyond the softmax, dense / {name}",
            rows["dense"]["beyond_softmax_s"] / max(rows[name]["beyond_softmax_s"], LEAST * softmax), BAR_TIME, "x", least=True,
        )
        for name in ("sparse", "renormalised")
    ]  # fmt: skip
    save(out, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory-of"]:
        name, frames, units, k, device = sys.argv[2:]
        print(json.dumps(measure_memory(name, int(frames), int(units), int(k), device)))
    else:
        main()
