"""What `teacher-dump` costs: the field's way, hkd exact, and hkd with masks together, with and without wide context.

    python benchmarks/bench_dump.py [--shapes small,bert-base] [--k 8,64] [--only exact,reference] [--clock cpu]
    [--no-memory]

Random weights in BERT's architecture (V = 30,522) and transcripts of LibriSpeech-like length (38 tokens in the mean),
drawn from a fixed seed. The variants take turns, forwards and backwards, so that whatever else runs on the machine
meets all of them. Ratios are of positions/s.

(a) reference: one masked position a row, batches of 50 rows padded to the longest, logits everywhere, and the whole
vocabulary sorted for
    each position, as Futami et al. 2020 do (their published script); a second one takes the log-softmax everywhere
    instead of sorting
(b) exact      (c) --mask-every 7      (d) --context 256: (a) on 10 transcripts, exact, and --mask-every 7

A last row plans a manifest of a million utterances and writes its first shard: seconds of processor time, and memory.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import dump_memory
import numpy as np
import torch
from common import bar, machine, parser, save

from hkd.sparse import TopK
from hkd.teachers.base import Sentence
from hkd.teachers.load import TeacherOptions, choose_device, choose_precision
from hkd.teachers.transformer import MaskedTeacher
from hkd.testing.teachers import transformers, wordpiece

V, M = 30_522, 7
SHAPES = {"small": (4, 256, 4), "bert-base": (12, 768, 12), "bert-large": (24, 1024, 16)}
# transcripts of (a) and (b); the others get all, or four times as many
SLOW = {"small": 200, "bert-base": 32, "bert-large": 16}
TURNS = 2
BARS = {  # (shape, variant) → (compared with, least ratio)
    ("bert-base", "exact"): ("reference", 1.6),
    ("small", "exact"): ("reference", 6.0),
    ("bert-base", "masked"): ("exact", 4.0),
    ("small", "masked"): ("exact", 4.0),
    ("bert-base", "wide masked"): ("wide reference", 8.0),
    ("small", "wide masked"): ("wide reference", 8.0),
}


def bert(shape: str) -> Any:
    """BERT of a shape with random weights."""
    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return transformers.BertForMaskedLM(config)


def make_teacher(shape: str, device: str, options: TeacherOptions, model: Any = None) -> MaskedTeacher:
    """A model of a shape that was made before, or one with rather opinionated weights."""
    tokenizer, where = wordpiece(["a"]), choose_device(device)
    if model is None:
        model = bert(shape)
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.normal_(0, 0.1)
    teacher = MaskedTeacher(
        model, tokenizer, name=shape, options=options, device=where, dtype=choose_precision("auto", where)
    )
    teacher._exclude_V = torch.zeros(V, dtype=torch.bool, device=where)  # a tokenizer of V pieces is not needed here
    teacher._exclude_V[:5] = True
    return teacher


def transcripts(count: int) -> list[Sentence]:
    """Random pieces."""
    rng = np.random.default_rng(0)
    return [
        Sentence(id=str(n), unit_U=rng.integers(1000, V, u).astype(np.int32), word_U=np.arange(u, dtype=np.int32))
        for n, u in enumerate(lengths(rng, count))
    ]


def lengths(rng: np.random.Generator, count: int) -> list[int]:
    """As LibriSpeech's transcripts: 5 to 90 pieces, 38 in the mean."""
    return np.clip(rng.gamma(5.0, 8.0, count).round(), 5, 90).astype(int).tolist()


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
def reference(teacher: MaskedTeacher, sentences: Sequence[Sentence], k: int, *, everywhere: bool = False) -> list[TopK]:
    """One masked position a row, 50 rows a batch in order, padded, logits everywhere, then a sort, or the log-softmax
    `everywhere`."""
    model, device = teacher.model, teacher.device
    rows = [(s, n) for s in sentences for n in range(len(s.unit_U))]
    kept: list[tuple[Any, Any, Any]] = []
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
        if everywhere:
            logp_RV = torch.log_softmax(logits_RLV.float(), -1)[torch.arange(len(batch)), torch.tensor(at)]
            kept += [(*logp_V.topk(k), logp_V[unit]) for logp_V, unit in zip(logp_RV, gold, strict=True)]
            continue
        for logits_LV, place, unit in zip(logits_RLV, at, gold, strict=True):
            sorted_V, ids_V = torch.sort(logits_LV[place].float(), descending=True)
            lse = sorted_V.logsumexp(0)  # theirs is over the kept ones; this makes the figures comparable
            kept.append((sorted_V[:k] - lse, ids_V[:k], logits_LV[place, unit].float() - lse))
    logp, ids, gold_logp = (torch.stack(column).cpu().numpy() for column in zip(*kept, strict=True))
    gold_N = np.array([int(s.unit_U[n]) for s, n in rows], np.int32)
    joined = TopK(
        ids_NK=ids.astype(np.int32),
        logp_NK=logp,
        tail_N=np.zeros(len(rows), np.float32),
        gold_N=gold_N,
        gold_logp_N=gold_logp,
    )
    ends = np.cumsum([0, *(len(s.unit_U) for s in sentences)]).tolist()
    return [joined[a:b] for a, b in itertools.pairwise(ends)]


@dataclass(kw_only=True)
class Variant:
    """One way, its clocks, and what it gave."""

    name: str
    score: Callable[[Sequence[Sentence]], list[TopK]]
    texts: list[Sentence]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    positions: int = 0
    rows: dict[str, TopK] = field(default_factory=dict)

    def turn(self, number: int) -> None:
        """Score this turn's share."""
        share = self.texts[number::TURNS]
        started, used = perf_counter(), process_time()
        rows = self.score(share)
        self.seconds += perf_counter() - started
        self.cpu_seconds += process_time() - used
        self.positions += sum(map(len, rows))
        self.rows |= {s.id: r for s, r in zip(share, rows, strict=True)}

    def figures(self) -> dict[str, Any]:
        """Positions a second, by the wall clock and of processor time (for machines that are busy with other work)."""
        return {
            "positions_per_s": round(self.positions / self.seconds, 2),
            "positions_per_cpu_s": round(self.positions / self.cpu_seconds, 2),
            "transcripts": len(self.texts),
            "positions": self.positions,
            "seconds": round(self.seconds, 2),
        }


def make_variants(
    shape: str, k: int, arguments: argparse.Namespace, *, wide: bool
) -> tuple[list[Variant], dict[str, float]]:
    """All variants of a shape, and what masking together costs (nats a position, over the whole vocabulary, on a few
    transcripts)."""
    base = make_teacher(shape, arguments.device, TeacherOptions(token_budget=arguments.token_budget))

    def teacher(*, context: int = 0, mask_every: int = 0) -> MaskedTeacher:
        options = TeacherOptions(token_budget=arguments.token_budget, context=context, mask_every=mask_every)
        return make_teacher(shape, arguments.device, options, base.model)

    def scorer(one: MaskedTeacher) -> Callable[[Sequence[Sentence]], list[TopK]]:
        return lambda sentences: one.score(sentences, k=k)

    texts = transcripts(arguments.transcripts)
    slow = texts[: arguments.slow_transcripts or SLOW[shape]]
    masked = teacher(mask_every=M)
    variants = [
        Variant(name="masked", score=scorer(masked), texts=texts[: 4 * len(slow)]),
        Variant(name="exact", score=scorer(base), texts=slow),
        Variant(name="reference", score=lambda s: reference(base, s, k), texts=slow),
        Variant(
            name="reference, softmax everywhere",
            score=lambda s: reference(base, s, k, everywhere=True),
            texts=slow[::2],
        ),
    ]
    costs = {"masked": masked.measured(texts[:4])["mask_every_kl_nats"]}
    if wide:
        wide_texts = widened(texts, 254)
        wide_masked = teacher(context=256, mask_every=M)
        variants += [
            Variant(name="wide masked", score=scorer(wide_masked), texts=wide_texts[: 2 * len(slow)]),
            Variant(name="wide exact", score=scorer(teacher(context=256)), texts=wide_texts[:10]),
            Variant(name="wide reference", score=lambda s: reference(base, s, k), texts=wide_texts[:10]),
        ]
        costs["wide masked"] = wide_masked.measured(wide_texts[:2])["mask_every_kl_nats"]
    base.score(texts[:2], k=k)  # warm
    wanted = [v for v in variants if not arguments.only or v.name in arguments.only.split(",")]
    return wanted, costs


def bench(shape: str, k: int, arguments: argparse.Namespace, *, wide: bool) -> dict[str, Any]:
    """All variants of a shape in turns; a row of figures each."""
    variants, costs = make_variants(shape, k, arguments, wide=wide)
    for number in range(TURNS):
        for variant in variants if number % 2 == 0 else reversed(variants):
            variant.turn(number)
    by_name = {v.name: v for v in variants}
    figures = {v.name: v.figures() for v in variants}
    for name, cost in costs.items():
        if name in figures:
            figures[name]["kl_to_exact_nats"] = float(f"{cost:.3g}")
    for left, right in (("exact", "reference"), ("wide exact", "wide reference")):
        if left in by_name and right in by_name:
            pairs = [(rows, by_name[right].rows[name]) for name, rows in by_name[left].rows.items()]
            gaps = [np.abs(a.gold_logp_N - b.gold_logp_N).max() for a, b in pairs]
            tops = [np.abs(a.logp_NK[:, : k - 1] - b.logp_NK[:, : k - 1]).max() for a, b in pairs]
            figures[left]["largest_difference_to_reference"] = float(max(*gaps, *tops))
    return figures


def bars(shape: str, k: int, figures: dict[str, Any], rate: str) -> list[str]:
    """Print a line a bar, and return them."""
    lines = []
    for (of, name), (other, least) in BARS.items():
        if of == shape and name in figures and other in figures:
            ratio = figures[name][rate] / figures[other][rate]
            figures[name]["ratio"] = {"to": other, "is": round(ratio, 3), "bar": least}
            lines.append(bar(f"{shape} k={k} {name} / {other}", ratio, least, least=True))
    for name, row in figures.items():
        if (gap := row.get("largest_difference_to_reference")) is not None:
            lines.append(bar(f"{shape} k={k} {name}: largest difference", gap, 1e-4, "nats", form=".1e"))
    return lines


def main() -> None:
    """Run, print the bars, write results/dump.json as it goes."""
    known = parser(__doc__, out="dump")
    known.add_argument("--shapes", default="small,bert-base")
    known.add_argument("--k", default="8,64", help="wide context is measured for the first one")
    known.add_argument("--transcripts", type=int, default=500)
    known.add_argument("--slow-transcripts", type=int, default=0, help="transcripts of (a) and (b); 0: by shape")
    known.add_argument("--threads", type=int, default=0)
    known.add_argument("--device", default="auto")
    known.add_argument("--token-budget", type=int, default=0)
    known.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for machines that are busy with other work"
    )
    known.add_argument("--only", default="", help="some variants")
    known.add_argument("--no-memory", action="store_true", help="leave the million utterances out")
    arguments = known.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    asked = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
    results: dict[str, Any] = {"machine": machine(), "arguments": asked, "runs": {}, "bars": []}
    for shape in arguments.shapes.split(","):
        for number, k in enumerate(map(int, arguments.k.split(","))):
            figures = results["runs"][f"{shape} k={k}"] = bench(shape, k, arguments, wide=number == 0)
            rate = "positions_per_cpu_s" if arguments.clock == "cpu" else "positions_per_s"
            results["bars"] += bars(shape, k, figures, rate)
            print(f"{shape} k={k}: {json.dumps(figures)}", flush=True)
            save(arguments.out, results)
    if not arguments.no_memory:
        row = results["a million utterances"] = dump_memory.measure()
        results["bars"] += [
            bar("a million utterances: peak memory", row["peak_gb"], 1.0, "GB"),
            bar("a million utterances: planning, processor time", row["plan_cpu_seconds"], 30.0, "s"),
        ]
    save(arguments.out, results)


if __name__ == "__main__":
    main()
