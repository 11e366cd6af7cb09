"""What a cloze LM saves: p(u_n | all others) for every position of long senone sequences, against masking one position
at a time.

    python benchmarks/bench_cloze.py [--sequences 1000] [--positions 400] [--masked-positions 200] [--width 128]
    [--threads 2] [--clock wall]

The cloze LM gives all positions in one pass. The other side is BERT's encoder with as many parameters in its body
(layers of the same width, as many as come nearest), over the same V = 5,126 senones: one masked copy a position, copies
of one sequence in batches of 50, so without padding, the head on masked places alone. Both end in the same top-k (k =
16). Random weights: what is measured is time alone. The masked side is timed on some positions; the two take turns, so
that whatever else runs on the machine meets both. Beside it, without a bar, the cloze LM as it labels senones by
default (given `outside-phone`), whose towers read phones: a third as many steps.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import bar, clock_of, machine, parser, save

from hkd.teachers.base import Sentence, TeacherInfo
from hkd.teachers.cloze import SenoneMap, UnitLmSizes, make_unit_lm
from hkd.teachers.unit_lm import UnitLmTeacher
from hkd.testing.teachers import transformers
from hkd.topk import select_topk
from hkd.units.tying import StateTying

K, BATCH, BAR = 16, 50, 100.0
TURNS = 4


def num_parameters(module: torch.nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def cloze_teacher(tying: StateTying, width: int, given: str) -> UnitLmTeacher:
    """A cloze LM over the acoustic model's senones, with random weights."""
    inventory = tying.senone_inventory
    phone_V, state_V = (np.asarray(a, np.int64) for a in (tying.phone_of_senone_V, tying.state_of_senone_V))
    senones = SenoneMap(phone_of_V=phone_V, state_of_V=state_V) if given == "outside-phone" else None
    model = make_unit_lm(UnitLmSizes(width=width), num_units=len(inventory), direction="cloze", senones=senones)
    info = TeacherInfo(name="bench", kind="cloze", direction="both", digest="", given=given)
    return UnitLmTeacher(model, inventory=inventory, info=info)


def masked_encoder(size: int, width: int, body: int, positions: int) -> Any:
    """BERT over the senones, of about `body` parameters without embeddings and head."""
    layers = max(1, round(body / (12 * width * width)))
    config = transformers.BertConfig(
        vocab_size=size + 3, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width, max_position_embeddings=positions + 2,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).eval()


@torch.inference_mode()
def score_masked(model: Any, unit_U: np.ndarray, places: np.ndarray) -> int:
    """Top-k rows of some positions of a sequence, one masked copy each; how many."""
    size = model.config.vocab_size - 3
    whole_L = torch.from_numpy(np.concatenate([[size], unit_U, [size + 1]]))
    for start in range(0, len(places), BATCH):
        at_R = torch.from_numpy(places[start : start + BATCH]) + 1
        row_R = torch.arange(len(at_R))
        token_RL = whole_L.repeat(len(at_R), 1)
        token_RL[row_R, at_R] = size + 2
        hidden_RD = model.bert(input_ids=token_RL).last_hidden_state[row_R, at_R]
        select_topk(model.cls(hidden_RD)[:, :size], whole_L[at_R], k=K)
    return len(places)


def sequences(tying: StateTying, count: int, positions: int) -> list[Sentence]:
    """Senone sequences of random phones in context."""
    rng = np.random.default_rng(0)
    phones = [p for p in tying.monophone_inventory.symbols if p.isalpha() and p != "SIL"]
    out = []
    for number in range(count):
        words = [rng.choice(phones, 5).tolist() for _ in range(-(-positions // 15))]
        unit_U = tying.senones(words)[0][: positions - positions % 3]
        out.append(Sentence(id=str(number), unit_U=unit_U, word_U=np.full(len(unit_U), -1, np.int32)))
    return out


def measure(
    arguments: argparse.Namespace, keep: Callable[[dict[str, dict[str, float]]], None]
) -> dict[str, dict[str, float]]:
    """Positions a second of each side; `keep` gets what there is after every turn."""
    clock = clock_of("cpu", wall=arguments.clock == "wall")
    tying = StateTying()
    said = sequences(tying, arguments.sequences, arguments.positions)
    teachers = {given: cloze_teacher(tying, arguments.width, given) for given in ("outside-position", "outside-phone")}
    lm = teachers["outside-position"]._model
    body = num_parameters(lm) - num_parameters(lm.embedding) - num_parameters(lm.output)
    encoder = masked_encoder(len(tying.senone_inventory), arguments.width, body, arguments.positions)
    places = np.linspace(0, len(said[0].unit_U) - 1, arguments.masked_positions).astype(np.int64)
    sides: dict[str, Callable[[int], int]] = {
        "masked": lambda turn: score_masked(encoder, said[turn].unit_U.astype(np.int64), places[turn::TURNS]),
        **{
            f"cloze {given}": lambda turn, teacher=teacher: sum(map(len, teacher.score(said[turn::TURNS], k=K)))  # type: ignore[misc]
            for given, teacher in teachers.items()
        },
    }
    score_masked(encoder, said[0].unit_U.astype(np.int64), places[:2])  # warm
    for teacher in teachers.values():
        teacher.score(said[:2], k=K)
    total: dict[str, dict[str, float]] = {name: {"positions": 0, "seconds": 0.0} for name in sides}
    for turn in range(TURNS):
        for name, side in sides.items():
            started = clock()
            total[name]["positions"] += side(turn)
            total[name]["seconds"] += clock() - started
        keep(total)
    for row in total.values():
        row["positions_per_s"] = round(row["positions"] / row["seconds"], 2)
        row["seconds"] = round(row["seconds"], 2)
    sizes = {"masked": num_parameters(encoder.bert.encoder), "cloze outside-position": body}
    for name, count in sizes.items():
        total[name]["body_parameters"] = count
    return total


def main() -> None:
    """Measure, print, write results/cloze.json as it goes."""
    known = parser(__doc__, out="cloze")
    known.add_argument("--sequences", type=int, default=1000)
    known.add_argument("--positions", type=int, default=400, help="of a sequence")
    known.add_argument("--masked-positions", type=int, default=200, help="on which the masked side is timed")
    known.add_argument("--width", type=int, default=128)
    known.add_argument("--threads", type=int, default=0)
    known.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for machines that are busy with other work"
    )
    arguments = known.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    asked = {key: str(value) for key, value in vars(arguments).items() if key != "out"}
    results: dict[str, Any] = {"machine": machine(), "arguments": asked, "rows": {}}

    def keep(rows: dict[str, dict[str, float]]) -> None:
        save(arguments.out, results | {"rows": rows})

    rows = measure(arguments, keep)
    ratio = rows["cloze outside-position"]["positions_per_s"] / rows["masked"]["positions_per_s"]
    print(f"{'':<24}{'positions/s':>14}{'positions':>12}{'seconds':>10}{'parameters':>12}")
    for name, row in rows.items():
        size = row.get("body_parameters", "")
        print(f"{name:<24}{row['positions_per_s']:>14,.1f}{row['positions']:>12,}{row['seconds']:>10.1f}{size:>12}")
    line = bar("cloze / masked one at a time", ratio, BAR, "times", least=True, form=".0f")
    save(arguments.out, results | {"rows": rows, "bars": [line]})


if __name__ == "__main__":
    main()
