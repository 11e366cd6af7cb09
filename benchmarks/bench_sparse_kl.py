"""The sparse KL against building dense targets: time and peak memory of one head's loss, forward and backward.

    python benchmarks/bench_sparse_kl.py [--frames 4000] [--units 30522] [--k 16] [--rounds 5] [--threads 1]
        [--device cpu]

    softmax        log-softmax and its backward pass: what no loss can do without (torch's, or hkd's in chunks:
                   whichever is cheaper)
    sparse         hkd.losses.sparse_kl, the tail as one outcome
    renormalised   the same without a tail
    dense          targets p / Σ p in a V-wide tensor, −Σ p log q: what distill-bert (Futami 2020) does with BERT's
                   top-k
    dense + tail   the tail's mass spread over the other units, KL against a V-wide teacher: what SpeechBrain's recipe
                   has on disk

Time is the process's own, one process, the methods take turns. Memory is the peak of a fresh process a method, beyond
the logits and their gradient.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, bar, clock_of, in_process, machine, parser, peak_mb, save
from torch import Tensor

from hkd.losses import hard_cross_entropy, sparse_kl

BAR_TIME, BAR_MEMORY = 4.0, 1 / 8
# of the softmax's time: what a loss is said to cost beyond it at least, for the chunked ones cost less than torch's
# softmax alone
LEAST = 0.01
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
    rest_M1 = labels["tail_M"].exp()[:, None] / (logits_MV.shape[1] - labels["ids_MK"].shape[1])
    target_MV = rest_M1.expand_as(logits_MV).clone().scatter_(1, labels["ids_MK"], labels["logp_MK"].exp())
    return F.kl_div(torch.log_softmax(logits_MV, 1), target_MV, reduction="none").sum(1)


METHODS: dict[str, Callable[[Tensor, Labels], Tensor]] = {
    "softmax (torch)": lambda logits_MV, labels: F.cross_entropy(logits_MV, labels["ids_MK"][:, 0], reduction="none"),
    "softmax (hkd)": lambda logits_MV, labels: hard_cross_entropy(logits_MV, labels["ids_MK"][:, 0]),
    "sparse": lambda logits_MV, labels: sparse_kl(logits_MV, **labels),
    "renormalised": lambda logits_MV, labels: sparse_kl(logits_MV, **labels, tail="renormalised"),
    "dense": dense,
    "dense + tail": dense_tail,
}


def step(method: str, logits_MV: Tensor, labels: Labels) -> None:
    """Forward and backward."""
    leaf_MV = logits_MV.detach().requires_grad_()
    METHODS[method](leaf_MV, labels).sum().backward()


def extra_mb(method: str, frames: int, units: int, k: int, device: str) -> float:
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
    arguments = parser(__doc__)
    arguments.add_argument("--frames", type=int, default=4000)
    arguments.add_argument("--units", type=int, default=30_522)
    arguments.add_argument("--k", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments.add_argument(
        "--out", type=Path, default=None, help="default: results/sparse_kl.json, or sparse_kl-cuda.json"
    )
    arguments.add_argument("--memory-of", help="print what a method needs, and end")
    options = arguments.parse_args()
    sizes = options.frames, options.units, options.k, options.device
    if options.memory_of:
        print(json.dumps({"extra_mb": round(extra_mb(options.memory_of, *sizes), 1)}))
        return
    torch.set_num_threads(options.threads)
    out = options.out or RESULTS / ("sparse_kl.json" if options.device == "cpu" else "sparse_kl-cuda.json")
    names = ("--frames", "--units", "--k", "--device")
    given = [word for pair in zip(names, sizes, strict=True) for word in pair]
    rows: dict[str, dict[str, float]] = {
        method: in_process(__file__, "--memory-of", method, *given) for method in METHODS
    }
    found: dict[str, Any] = {
        "machine": machine(),
        "frames": options.frames,
        "units": options.units,
        "k": options.k,
        "rows": rows,
    }
    save(out, found)
    logits_MV, labels = make(*sizes)
    clock = clock_of(options.device)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(options.rounds + 1):  # the first one is not counted
        for method in METHODS:
            start = clock()
            step(method, logits_MV, labels)
            seconds[method].append(clock() - start)
    for method, row in rows.items():
        row["seconds"] = round(statistics.median_high(seconds[method][1:]), 4)
    softmax = min(rows["softmax (torch)"]["seconds"], rows["softmax (hkd)"]["seconds"])
    print(f"{'':<18}{'seconds':>10}{'beyond softmax':>16}{'MB beyond':>12}")
    for method, row in rows.items():
        row["beyond_softmax_s"] = round(row["seconds"] - softmax, 4)
        print(f"{method:<18}{row['seconds']:>10.3f}{row['beyond_softmax_s']:>16.3f}{row['extra_mb']:>12.0f}")
    found["bars"] = []
    for name in ("sparse", "renormalised"):
        memory = max(0.0, rows[name]["extra_mb"]) / rows["dense"]["extra_mb"]
        speed = rows["dense"]["beyond_softmax_s"] / max(rows[name]["beyond_softmax_s"], LEAST * softmax)
        found["bars"] += [
            bar(f"{name}: memory beyond logits and gradient, share of dense", memory, BAR_MEMORY),
            bar(f"{name}: time beyond the softmax, dense / {name}", speed, BAR_TIME, "x", least=True),
        ]
    save(out, found)


if __name__ == "__main__":
    main()
