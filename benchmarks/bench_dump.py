"""What `teacher-dump` costs: the field's way, hkd exact, and hkd with masks together, with and without wide context.

    python benchmarks/bench_dump.py [--shapes small,bert-base] [--transcripts 500] [--seconds 120] [--threads 2] [--device auto]

Random weights in BERT's architecture (V = 30,522) and transcripts of about 40 tokens, drawn from a fixed seed. The variants take turns,
block by block, so that whatever else runs on the machine meets all of them; each stops after `--seconds`. Ratios are of positions/s.

(a) reference: one masked position a row, batches of 50 rows padded to the longest, full logits (as in Futami 2020)
(b) exact      (c) --mask-every 7      (d) --context 256: (a) on 10 transcripts, exact, and --mask-every 7
"""

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hkd.native import import_torchaudio

import_torchaudio()

import transformers  # noqa: E402

from hkd.teachers.base import Sentence  # noqa: E402
from hkd.teachers.load import choose_device, choose_precision  # noqa: E402
from hkd.teachers.masked import MaskedTeacher  # noqa: E402
from hkd.teachers.options import TeacherOptions  # noqa: E402
from hkd.testing.teachers import wordpiece  # noqa: E402
from hkd.topk import TopK  # noqa: E402

V, M = 30_522, 7
SHAPES = {"small": (4, 256, 4), "bert-base": (12, 768, 12), "bert-large": (24, 1024, 16)}
BARS = {  # (shape, variant) → (compared with, least ratio)
    ("bert-base", "exact"): ("reference", 1.6),
    ("small", "exact"): ("reference", 6.0),
    ("bert-base", "masked"): ("exact", 4.0),
    ("small", "masked"): ("exact", 4.0),
    ("bert-base", "wide masked"): ("wide reference", 8.0),
    ("small", "wide masked"): ("wide reference", 8.0),
}
RESULTS = Path(__file__).parent / "results" / "dump.json"


def make_teacher(shape: str, device: str, options: TeacherOptions, model: Any = None) -> MaskedTeacher:
    """BERT of a shape with random, rather opinionated weights."""
    layers, width, heads = SHAPES[shape]
    tokenizer = wordpiece(["a"])
    where = choose_device(device)
    if model is None:
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=V, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
            )
        )
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.normal_(0, 0.1)
    teacher = MaskedTeacher(model, tokenizer, name=shape, options=options, device=where, dtype=choose_precision("auto", where))
    teacher._exclude_V = torch.zeros(V, dtype=torch.bool, device=where)  # a tokenizer of V pieces is not needed here
    teacher._exclude_V[:5] = True
    return teacher


def transcripts(count: int) -> list[Sentence]:
    """Lengths as LibriSpeech's: 5 to 90 pieces, 40 in the mean."""
    rng = np.random.default_rng(0)
    length = np.clip(rng.gamma(5.0, 8.0, count).round(), 5, 90).astype(int)
    return [
        Sentence(id=str(n), unit_U=rng.integers(1000, V, u).astype(np.int32), word_U=np.arange(u, dtype=np.int32))
        for n, u in enumerate(length.tolist())
    ]


def widened(sentences: Sequence[Sentence], room: int) -> list[Sentence]:
    """All as one recording, in the windows of `--context`."""
    from hkd.labelling.context import windows

    tokens = np.concatenate([s.unit_U for s in sentences])
    sizes = [len(s.unit_U) for s in sentences]
    placed = windows(tokens, sizes, room=room, left_only=False)
    return [
        Sentence(id=s.id, unit_U=s.unit_U, word_U=s.word_U, before=whole[:begin], after=whole[begin + len(s.unit_U) :])
        for s, (whole, begin) in zip(sentences, placed, strict=True)
    ]


@torch.inference_mode()
def reference(teacher: MaskedTeacher, sentences: Sequence[Sentence], k: int) -> list[TopK]:
    """One masked position a row, 50 rows a batch in order, padded, logits everywhere, softmax, top-k."""
    model, device = teacher.model, teacher._device
    rows = [(s, n) for s in sentences for n in range(len(s.unit_U))]
    logp_parts, id_parts, gold_parts, tail_parts = [], [], [], []
    for a in range(0, len(rows), 50):
        batch = rows[a : a + 50]
        size = [2 + len(s.before) + len(s.unit_U) + len(s.after) for s, _ in batch]
        token_RL = np.zeros((len(batch), max(size)), np.int64)
        at, gold = [], []
        for r, (s, n) in enumerate(batch):
            token_RL[r, : size[r]] = [2, *s.before, *s.unit_U.tolist(), *s.after, 3]
            at.append(1 + len(s.before) + n)
            gold.append(int(s.unit_U[n]))
            token_RL[r, at[-1]] = 4
        mask_RL = (np.arange(max(size)) < np.array(size)[:, None]).astype(np.int64)
        logits_RLV = model(
            input_ids=torch.from_numpy(token_RL).to(device), attention_mask=torch.from_numpy(mask_RL).to(device)
        ).logits
        logp_RV = torch.log_softmax(logits_RLV[torch.arange(len(batch)), torch.tensor(at)].float(), -1)
        logp_RK, ids_RK = logp_RV.topk(k, -1)
        logp_parts.append(logp_RK.cpu().numpy())
        id_parts.append(ids_RK.cpu().numpy().astype(np.int32))
        gold_parts.append(logp_RV[torch.arange(len(batch)), torch.tensor(gold)].cpu().numpy())
        tail_parts.append(np.zeros(len(batch), np.float32))
    joined = TopK(
        ids_NK=np.concatenate(id_parts), logp_NK=np.concatenate(logp_parts), tail_N=np.concatenate(tail_parts),
        gold_N=np.array([int(s.unit_U[n]) for s, n in rows], np.int32), gold_logp_N=np.concatenate(gold_parts),
    )  # fmt: skip
    ends = np.cumsum([0, *(len(s.unit_U) for s in sentences)]).tolist()
    return [joined[a:b] for a, b in itertools.pairwise(ends)]


def kl_to(exact: TopK, other: TopK) -> float:
    """Mean KL(exact ‖ other) over the units that both keep and one rest, nats: a lower bound of the KL over V."""
    total = 0.0
    for n in range(len(exact)):
        q = dict(zip(other.ids_NK[n].tolist(), other.logp_NK[n].tolist(), strict=True))
        both = [(p, q[i]) for i, p in zip(exact.ids_NK[n].tolist(), exact.logp_NK[n].tolist(), strict=True) if i in q]
        p, r = np.array(both, np.float64).reshape(-1, 2).T
        rest_p, rest_q = (max(1e-12, 1 - float(np.exp(x).sum())) for x in (p, r))
        total += float((np.exp(p) * (p - r)).sum()) + rest_p * float(np.log(rest_p / rest_q))
    return total / max(1, len(exact))


class Variant:
    """One way, its clock, and what it gave."""

    def __init__(self, name: str, score: Callable[[Sequence[Sentence]], list[TopK]], blocks: list[list[Sentence]]) -> None:
        self.name, self._score, self._blocks = name, score, blocks
        self.seconds = self.cpu_seconds = 0.0
        self.positions = 0
        self.rows: dict[str, TopK] = {}

    def step(self, number: int) -> None:
        """Score the next block."""
        if number >= len(self._blocks):
            return
        started, used = time.perf_counter(), time.process_time()
        rows = self._score(self._blocks[number])
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - used
        self.positions += sum(map(len, rows))
        self.rows |= {s.id: r for s, r in zip(self._blocks[number], rows, strict=True)}

    @property
    def rate(self) -> float:
        """Positions a second."""
        return self.positions / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Positions a second of processor time: what the ratios rest on with --clock cpu, for machines that are busy with other work."""
        return self.positions / self.cpu_seconds


def bench(shape: str, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All variants of a shape; a figure each and the ratios."""
    base = make_teacher(shape, arguments.device, TeacherOptions(token_budget=arguments.token_budget))
    model = base.model

    def teacher(**options: int) -> MaskedTeacher:
        return make_teacher(shape, arguments.device, TeacherOptions(token_budget=arguments.token_budget, **options), model)

    texts = transcripts(arguments.transcripts)
    wide = widened(texts, 254)

    def cut(sentences: list[Sentence], size: int, most: int) -> list[list[Sentence]]:
        return [sentences[a : a + size] for a in range(0, min(most, len(sentences)), size)]

    masked, wide_exact, wide_masked = teacher(mask_every=M), teacher(context=256), teacher(context=256, mask_every=M)

    def scorer(one: MaskedTeacher) -> Callable[[Sequence[Sentence]], list[TopK]]:
        return lambda sentences: one.score(sentences, k=k)

    slow = arguments.slow_transcripts or len(texts)
    variants = [
        Variant("masked", scorer(masked), cut(texts, arguments.block, len(texts))),
        Variant("exact", scorer(base), cut(texts, arguments.block, slow)),
        Variant("reference", lambda s: reference(base, s, k), cut(texts, arguments.block, slow)),
        Variant("wide masked", scorer(wide_masked), cut(wide, arguments.block, len(texts))),
        Variant("wide exact", scorer(wide_exact), cut(wide, 10, 10)),
        Variant("wide reference", lambda s: reference(base, s, k), cut(wide, 10, 10)),
    ]
    if arguments.only:
        variants = [v for v in variants if v.name in arguments.only.split(",")]
    base.score(texts[:4], k=k)  # warm
    for number in range(max(len(v._blocks) for v in variants)):
        for variant in variants:
            if variant.seconds < arguments.seconds:
                variant.step(number)
    by_name = {v.name: v for v in variants}
    figures: dict[str, Any] = {
        v.name: {
            "positions_per_s": round(v.rate, 2),
            "positions_per_cpu_s": round(v.cpu_rate, 2),
            "positions": v.positions,
            "seconds": round(v.seconds, 2),
        }
        for v in variants
    }
    for left, right in (("exact", "reference"), ("wide exact", "wide reference")):
        if left in by_name and right in by_name:
            shared = [name for name in by_name[left].rows if name in by_name[right].rows]
            gaps = [np.abs(by_name[left].rows[n].gold_logp_N - by_name[right].rows[n].gold_logp_N).max() for n in shared]
            tops = [
                np.abs(by_name[left].rows[n].logp_NK[:, : k - 1] - by_name[right].rows[n].logp_NK[:, : k - 1]).max()
                for n in shared
            ]
            figures[left]["largest_difference_to_reference"] = float(max(*gaps, *tops))
    for left, right in (("masked", "exact"), ("wide masked", "wide exact")):
        if left in by_name and right in by_name:
            pairs = [(by_name[right].rows[n], r) for n, r in by_name[left].rows.items() if n in by_name[right].rows]
            figures[left]["kl_to_exact_nats"] = float(
                np.average([kl_to(a, b) for a, b in pairs], weights=[len(a) for a, _ in pairs])
            )
    return figures


def main() -> None:
    """Run, print the bars, write results/dump.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="small,bert-base")
    parser.add_argument("--k", default="8,64")
    parser.add_argument("--transcripts", type=int, default=500)
    parser.add_argument("--slow-transcripts", type=int, default=0, help="transcripts of (a) and (b); 0: all")
    parser.add_argument("--block", type=int, default=125, help="transcripts a turn")
    parser.add_argument("--seconds", type=float, default=600.0, help="a variant takes no further block after so long")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--token-budget", type=int, default=0)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for machines that are busy with other work"
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {
        "machine": machine(),
        "arguments": {k: str(v) for k, v in vars(arguments).items() if k != "out"},
        "runs": {},
    }
    passed = True
    for shape in arguments.shapes.split(","):
        for k in map(int, arguments.k.split(",")):
            figures = results["runs"][f"{shape} k={k}"] = bench(shape, k, arguments)
            print(f"{shape} k={k}: {json.dumps(figures)}", flush=True)
            passed &= bars(shape, k, figures, "positions_per_cpu_s" if arguments.clock == "cpu" else "positions_per_s")
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    raise SystemExit(0 if passed else 1)


def bars(shape: str, k: int, figures: dict[str, Any], rate: str) -> bool:
    """Print a line a bar; whether all hold."""
    good = True
    for (of, name), (other, least) in BARS.items():
        if of == shape and name in figures and other in figures:
            ratio = figures[name][rate] / figures[other][rate]
            figures[name]["ratio"] = {"to": other, "is": round(ratio, 3), "bar": least}
            good &= ratio >= least
            print(
                f"BAR {'ok  ' if ratio >= least else 'FAIL'} {shape} k={k} {name} / {other}: {ratio:.2f} (at least {least})",
                flush=True,
            )
    for name, row in figures.items():
        gap = row.get("largest_difference_to_reference")
        if gap is not None:
            good &= gap <= 1e-4
            print(
                f"BAR {'ok  ' if gap <= 1e-4 else 'FAIL'} {shape} k={k} {name}: largest difference {gap:.1e} (at most 1e-4)",
                flush=True,
            )
    return good


def machine() -> dict[str, Any]:
    """What it ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
