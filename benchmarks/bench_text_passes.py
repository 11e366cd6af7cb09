"""How much a noisy listener learns from the positions of text: what bounds injected text (after `bench_passes`, whose
network this is).

    python benchmarks/bench_text_passes.py [--text tatoeba-en.txt] [--work runs/hybrid-speakers/first] [--run
    hybrid-hard-heads-seed0]

A position of text is heard as a student hears that unit: a posterior of its head, averaged over an aligned segment of
dev, is drawn for it and for its neighbours (segments shorter than a slot: the nearest slot's). The network learns to
say the unit from these, and is asked about speakers that the drawn segments are not of: on sentences that nobody has
learnt from, heard by the same lottery (`text`), and on dev itself, as it was heard (`speech`). Labels: the unit itself
(hard), an n-gram's of the true neighbours (LM), and p(unit | sound) · p(unit | LM) / p(unit). An LM labels the half of
the text that it has not read. Text: as it is, its words shuffled over all sentences, its units drawn one by one from
their shares. WORK is a folder of pipelines/hybrid, its text the one that is taken. Several folds' folders are heard
together where their units are the same.

Shape letters: N positions, O places (neighbours and the position itself), M segments, V units.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_passes import BATCH, REACH, Network
from common import bar, machine, parser, save
from numpy.typing import NDArray
from torch import Tensor

from hkd.align.alignment import Alignment
from hkd.evaluate.decoding import rows_by_seconds
from hkd.evaluate.score import read_json
from hkd.features.cache import FeatureSource
from hkd.labelling.lm import LmConfig, LmLoopConfig, train_lm
from hkd.labelling.lm_data import Encoder
from hkd.manifest import read
from hkd.stream.join import Join, place
from hkd.stream.loader import BatchMaker
from hkd.teachers.load import load_teacher
from hkd.teachers.ngram import NGramTeacher
from hkd.train.run import load_run
from hkd.units.inventory import SPELLED, SUBWORD
from hkd.units.sequences import Units
from hkd.units.text import words

COUNTS = (30_000, 120_000, 480_000, 1_500_000)
RUNG_AT = 480_000  # positions at which text of other orders is compared
ASKED = 20_000  # positions of held-out text
STEPS, EVERY = 4_000, 500
LABELS = ("hard", "lm", "both")
Sequences = list[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a head says of the segments of some utterances: by segment its posterior, unit, utterance, and group: the
    speaker, of a single speaker the utterance."""

    posterior_MV: Tensor
    unit_M: NDArray[np.int64]
    group_M: NDArray[np.str_]
    utterance_M: NDArray[np.str_]

    def of(self, groups: set[str]) -> "Heard":
        """The segments of these groups."""
        keep_M = np.isin(self.group_M, list(groups))
        columns = {name: getattr(self, name)[keep_M] for name in ("unit_M", "group_M", "utterance_M")}
        return Heard(posterior_MV=self.posterior_MV[torch.from_numpy(keep_M)], **columns)


@torch.no_grad()
def hear(work: Path, run: str, level: str, splits: Sequence[str]) -> Heard:
    """A run's hard head of a level over aligned segments, silence left out: means of posteriors."""
    folder, part = work / "runs" / run, read(work / "manifest.jsonl").where(lambda u: u.split in splits)
    trained = read_json(folder / "student.json", "a student with heads")
    student = load_run(folder)
    name, head = next((n, h) for n, h in trained["heads"].items() if (h["level"], h["kind"]) == (level, "hard"))
    alignment, units = Alignment(work / "alignment.arrow"), Units(work / "units")
    join = Join(part, subwords=units.spelling(SUBWORD), alignment=alignment, units=units.folder)
    silence = [] if level in SPELLED else list(alignment.silences[level])
    features = FeatureSource(front_end=student.config.encoder.front_end)
    one_speaker = len({u.speaker for u in part}) == 1
    maker = BatchMaker(utterances=list(part), join=join, features=features, hard={}, soft={})
    slots, rows, facts = int(head["slots"]), [], []
    for numbers in rows_by_seconds(part, 60.0):
        batch = maker(numbers)
        assert batch is not None
        for b, number in enumerate(numbers):
            if not join.aligned(part[number].id):
                continue
            one = slice(b, b + 1)
            length = int(batch.length_B[b])
            count = -(-length // (4 // slots))
            output = student(batch.x_BTF[one, :length], batch.length_B[one], slots={name: torch.arange(count)})
            posterior_SV = output.heads[name].softmax(-1)
            positions = join.segments(part[number].id, level)
            slot_M, position_M = place(positions, num_frames=length, slots=slots)
            for u, (unit, start, stop) in enumerate(
                zip(positions.unit_U, positions.start_U, positions.stop_U, strict=True)
            ):
                if unit in silence:
                    continue
                own = slot_M[position_M == u]
                middle = min(int(start + stop) // 2 // (4 // slots), count - 1)
                rows.append(posterior_SV[own].mean(0) if len(own) else posterior_SV[middle])
                facts.append(
                    (int(unit), str(part[number].id if one_speaker else part[number].speaker), part[number].id)
                )
    unit_M, group_M, utterance_M = zip(*facts, strict=True)
    return Heard(
        posterior_MV=torch.stack(rows),
        unit_M=np.array(unit_M),
        group_M=np.array(group_M),
        utterance_M=np.array(utterance_M),
    )


def together(parts: Sequence[Heard]) -> Heard:
    """The segments of all."""
    return Heard(
        posterior_MV=torch.cat([p.posterior_MV for p in parts]),
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in ("unit_M", "group_M", "utterance_M")},
    )


def same_units(work: Path, units: Units, level: str) -> bool:
    """Whether a folder's units of the level are these."""
    return Units(work / "units").inventory(level).digest == units.inventory(level).digest


class Bank:
    """Segments by unit, to be drawn; a unit without any is heard as all units alike."""

    def __init__(self, heard: Heard, num_units: int) -> None:
        order = np.argsort(heard.unit_M, kind="stable")
        self.count_V = torch.from_numpy(np.bincount(heard.unit_M, minlength=num_units + 1))
        self.first_V = torch.cat([torch.zeros(1, dtype=torch.long), self.count_V.cumsum(0)[:-1]])
        nothing = torch.zeros(2, num_units + 1)  # past an end; a unit without segments
        nothing[0, num_units], nothing[1, :num_units] = 1, 1 / num_units
        own_MV = torch.nn.functional.pad(heard.posterior_MV[torch.from_numpy(order)], (0, 1))
        self.share_MV = torch.cat([own_MV, nothing])
        self.past, self.unknown, self.num_units = len(own_MV), len(own_MV) + 1, num_units

    def draw(self, unit_NO: Tensor, generator: torch.Generator) -> Tensor:
        """share_NOV: what is heard of each place."""
        count_NO = self.count_V[unit_NO]
        row_NO = self.first_V[unit_NO] + (torch.rand(unit_NO.shape, generator=generator) * count_NO).long()
        row_NO = torch.where(count_NO > 0, row_NO, torch.where(unit_NO == self.num_units, self.past, self.unknown))
        return self.share_MV[row_NO]


def places(sequences: Sequences, num_units: int) -> NDArray[np.int64]:
    """unit_NO of all positions; num_units past an end."""
    padded = [np.pad(unit_U, REACH, constant_values=num_units) for unit_U in sequences if len(unit_U)]
    return np.concatenate([np.lib.stride_tricks.sliding_window_view(p, 2 * REACH + 1) for p in padded])


def as_heard(heard: Heard, num_units: int) -> tuple[Tensor, Tensor]:
    """share_NOV and unit_N of the utterances themselves."""
    share_MV = torch.nn.functional.pad(heard.posterior_MV, (0, 1))
    past_1V = torch.zeros(1, num_units + 1)
    past_1V[0, num_units] = 1
    rows, table = [], torch.cat([share_MV, past_1V])
    for utterance in dict.fromkeys(heard.utterance_M.tolist()):
        row_U = np.flatnonzero(heard.utterance_M == utterance)
        rows.append(
            np.lib.stride_tricks.sliding_window_view(np.pad(row_U, REACH, constant_values=len(share_MV)), 2 * REACH + 1)
        )
    row_NO = torch.from_numpy(np.concatenate(rows).copy())
    return table[row_NO], torch.from_numpy(heard.unit_M)[row_NO[:, REACH]]


def teacher_of(half: Path, level: str, units: Units, folder: Path) -> NGramTeacher:
    """The n-gram of one half of the text, both sides of a position known (the settings of `hkd lm train`)."""
    train_lm(LmConfig(unit=level, loop=LmLoopConfig(max_steps=10)), texts=[half], units=units, folder=folder)
    teacher = load_teacher(str(folder), unit=level, inventory=units.inventory(level))
    assert isinstance(teacher, NGramTeacher)
    return teacher


class Text:
    """Sentences as units, in an order that mixes both halves, with the other half's LM for each."""

    def __init__(self, text: Path, level: str, units: Units, work: Path) -> None:
        self.level, self.units, self.num_units = level, units, len(units.inventory(level))
        encoder = Encoder(units, level, senones=None, max_units=300)
        spoken = [words(line) for line in text.read_text(encoding="utf-8").splitlines()]
        random = np.random.default_rng(0)
        self.sentences = [spoken[n] for n in random.permutation(len(spoken))]
        self.encode = lambda sentence: [piece.astype(np.int64) for piece in encoder.text(sentence)]
        work.mkdir(parents=True, exist_ok=True)
        self.teachers = []
        for half in range(2):  # the LM of a half labels the other
            path = work / f"half-{half}.txt"
            path.write_text("".join(" ".join(s) + "\n" for s in self.sentences[half::2]), encoding="utf-8")
            self.teachers.append(teacher_of(path, level, units, work / f"lm-{level}-{half}"))

    def encoded(self, sentences: Iterable[Sequence[str]], count: int) -> tuple[Sequences, list[int]]:
        """The first sentences with at least `count` positions in all, and the number of each sequence's sentence."""
        sequences: Sequences = []
        numbers, found = [], 0
        for n, sentence in enumerate(sentences):
            for unit_U in self.encode(sentence):
                sequences.append(unit_U)
                numbers.append(n)
                found += len(unit_U)
            if found >= count:
                break
        return sequences, numbers

    def real(self, start: int, count: int) -> tuple[Sequences, list[int]]:
        """Sentences from the start-th on with at least `count` positions, and the half of each."""
        sequences, numbers = self.encoded(self.sentences[start:], count)
        return sequences, [(start + n) % 2 for n in numbers]

    def shuffled(self, start: int, count: int) -> Sequences:
        """The same number of positions of sentences whose words come from all of the text."""
        mixed = [word for sentence in self.sentences[start:] for word in sentence]
        np.random.default_rng(1).shuffle(mixed)
        rest = iter(mixed)
        return self.encoded((list(islice(rest, len(sentence))) for sentence in self.sentences[start:]), count)[0]

    def independent(self, start: int, count: int) -> Sequences:
        """Sentences of the same lengths, each unit by itself from the units' shares."""
        sequences, _ = self.real(start, count)
        share_V = np.bincount(np.concatenate(sequences), minlength=self.num_units) / sum(map(len, sequences))
        random = np.random.default_rng(2)
        return [random.choice(self.num_units, len(unit_U), p=share_V) for unit_U in sequences]

    def labels(self, sequences: Sequences, halves: list[int]) -> Tensor:
        """logp_NV of the LM that has not read the sentence, as float16."""
        of_half = []
        for half in range(2):
            own = [unit_U.astype(np.int32) for unit_U, h in zip(sequences, halves, strict=True) if h != half]
            chunks = [torch.from_numpy(np.asarray(c)).log_softmax(-1).half() for c in self.teachers[half].logits(own)]
            of_half.append(torch.cat(chunks) if chunks else torch.zeros(0, self.num_units).half())
        logp_NV = torch.empty(sum(map(len, sequences)), self.num_units, dtype=torch.float16)
        labelled_by = torch.from_numpy(np.repeat([1 - h for h in halves], [len(s) for s in sequences]))
        for half in range(2):
            logp_NV[labelled_by == half] = of_half[half]
        return logp_NV


Question = dict[str, tuple[Tensor, Tensor]]


def learnt(
    train_NO: Tensor, logp_NV: Tensor | None, label: str, bank: Bank, prior_V: Tensor, asked: Question, *, seed: int
) -> dict[str, float]:
    """Right % and NLL of each question at the step with the lowest NLL on `text`, which flatters all alike."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network(bank.num_units)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
    best: dict[str, float] = {}
    order = _rows(len(train_NO), generator)
    for step in range(1, STEPS + 1):
        rows = next(order)
        unit_NO = train_NO[rows]
        share_NOV = bank.draw(unit_NO, generator)
        network.train()
        own_N = unit_NO[:, REACH]
        logits_NV = network(share_NOV)
        if label == "hard" or logp_NV is None:
            loss = torch.nn.functional.cross_entropy(logits_NV, own_N)
        else:
            target_NV = logp_NV[rows].float()
            if label == "both":
                sound_NV = share_NOV[:, REACH, : bank.num_units].clamp_min(1e-6)
                target_NV = target_NV + sound_NV.log() - prior_V.log()
            loss = torch.nn.functional.cross_entropy(logits_NV, target_NV.softmax(-1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % EVERY == 0:
            found = judged(network, asked)
            if not best or found["text_nll"] < best["text_nll"]:
                best = found
    return best


def _rows(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    size = 2 * BATCH
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (part for part in order.split(size) if len(part) == size)


@torch.no_grad()
def judged(network: Network, asked: Question) -> dict[str, float]:
    """Right % and NLL of each question."""
    network.eval()
    found = {}
    for name, (share_NOV, unit_N) in asked.items():
        logits_NV = torch.cat([network(part) for part in share_NOV.split(4096)])
        found[f"{name}_right"] = 100 * float((logits_NV.argmax(1) == unit_N).float().mean())
        found[f"{name}_nll"] = float(torch.nn.functional.cross_entropy(logits_NV, unit_N))
    return found


def cells() -> Iterator[tuple[str, str, int]]:
    """(text, label, positions), the bar's first."""
    yield from (("real", "hard", count) for count in COUNTS)
    yield from ((text, "hard", RUNG_AT) for text in ("shuffled", "independent"))
    yield from (("real", label, count) for label in LABELS[:0:-1] for count in COUNTS)


def main() -> None:
    known = parser(__doc__, out="text_passes")
    known.add_argument("--work", type=Path, nargs="+", default=[Path("runs/hybrid-speakers/first")])
    known.add_argument("--text", type=Path, help="default: the first of WORK/text")
    known.add_argument("--run", default="hybrid-hard-heads-seed0")
    known.add_argument("--split", nargs="+", default=["dev"], help="not train")
    known.add_argument("--levels", nargs="*", default=["monophone", "subword"])
    known.add_argument("--scratch", type=Path, default=Path("runs/bench-text-passes"))
    known.add_argument(
        "--folds",
        type=int,
        default=1,
        help="halves of the speakers that are asked about; of the others segments are drawn",
    )
    arguments = known.parse_args()
    units = Units(arguments.work[0] / "units")
    path = arguments.text or min((arguments.work[0] / "text").glob("*.txt"))
    rows: list[dict[str, Any]] = []
    results = {"machine": machine(), "run": arguments.run, "text": path.name, "rows": rows}
    for level in arguments.levels:
        text = Text(path, level, units, arguments.scratch)
        heard = together(
            [
                hear(work, arguments.run, level, arguments.split)
                for work in arguments.work
                if same_units(work, units, level)
            ]
        )
        held, held_halves = text.real(0, ASKED)
        start = len(held_halves)
        groups = sorted(set(heard.group_M.tolist()))
        real, halves = text.real(start, max(COUNTS))
        real_NO, logp_NV = torch.from_numpy(places(real, text.num_units)), text.labels(real, halves)
        prior_V = torch.bincount(real_NO[:, REACH], minlength=text.num_units).float() + 1
        for fold in range(arguments.folds):
            asked_of = set(groups[fold::2])
            bank, other = Bank(heard.of(set(groups) - asked_of), text.num_units), heard.of(asked_of)
            generator = torch.Generator().manual_seed(0)
            held_NO = torch.from_numpy(places(held, text.num_units))
            lottery = Bank(other, text.num_units)
            asked = {
                "text": (lottery.draw(held_NO, generator), held_NO[:, REACH]),
                "speech": as_heard(other, text.num_units),
            }
            alone = {
                name: 100 * float((s[:, REACH].argmax(1) == unit_N).float().mean())
                for name, (s, unit_N) in asked.items()
            }
            print(f"{level}, fold {fold}: {len(bank.share_MV)} segments; the head alone: {alone}", flush=True)
            for kind, label, count in cells():
                begin_s = time.monotonic()
                if kind == "real":
                    train_NO, labels = real_NO[:count], logp_NV[:count]
                else:
                    made = text.shuffled(start, count) if kind == "shuffled" else text.independent(start, count)
                    train_NO, labels = torch.from_numpy(places(made, text.num_units))[:count], None
                found = learnt(train_NO, labels, label, bank, prior_V / prior_V.sum(), asked, seed=fold)
                row = {"level": level, "fold": fold, "text": kind, "labels": label, "positions": len(train_NO), **found}
                rows.append(row | {"alone": alone, "seconds": round(time.monotonic() - begin_s, 1)})
                save(arguments.out, results)
                shown = " ".join(f"{name} {value:.3f}" for name, value in found.items())
                print(f"{level:10} {kind:12} {label:5} {len(train_NO):10,} {shown}", flush=True)
        bars(rows, level)


def bars(rows: list[dict[str, Any]], level: str) -> None:
    """The bar that decides on injecting text."""
    for asked in ("text", "speech"):
        right = {}
        for count in (COUNTS[0], RUNG_AT):
            own = [
                r
                for r in rows
                if (r["level"], r["text"], r["labels"], r["positions"]) == (level, "real", "hard", count)
            ]
            right[count] = float(np.mean([r[f"{asked}_right"] for r in own]))
        gained = right[RUNG_AT] - right[COUNTS[0]]
        bar(f"right {level}s of {asked}, 30k to 480k positions", gained, 4.0, "points", least=True, form="+.2f")


if __name__ == "__main__":
    main()
