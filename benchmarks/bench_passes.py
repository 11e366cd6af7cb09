"""How much of a teacher passes through the labels of so many positions, whoever hears them: what bounds a student that
hears perfectly.

    python benchmarks/bench_passes.py [--work runs/ablation] [--stores monophone subword]

A small network is told the true units of a position and of its neighbours (none of the sound) and learns from the store
what the teacher says of the position; it is asked on dev, whose utterances it has not seen. Beside it: a table of the
teacher's average by unit, which knows no neighbour. The teacher itself has KL 0. WORK is a folder that
`hkd run pipelines/ablation` has filled.

Shape letters: N positions, O neighbours, K kept ids, V units.
"""

from pathlib import Path

import numpy as np
import torch
from common import machine, parser, save
from torch import Tensor, nn

from hkd.labels.ops import summed
from hkd.labels.store import LabelReader
from hkd.losses import sparse_kl
from hkd.manifest import read

REACH = 4  # neighbours on each side
SHARES = (0.125, 0.25, 0.5, 1.0)
WIDTH, EMBEDDING, EPOCHS, BATCH = 256, 32, 60, 256


def positions(reader: LabelReader, ids: list[str]) -> dict[str, Tensor]:
    """unit_NO (the position's own in the middle, V past an end) and the teacher's rows, of the utterances that the
    store has."""
    block = reader.block([i for i in ids if i in reader])
    nothing = len(reader.spec.inventory)
    rows = []
    for b in range(len(block)):
        gold_U = block.utterance(b).gold_N.astype(np.int64)
        padded = np.pad(gold_U, REACH, constant_values=nothing)
        rows.append(np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH + 1))
    topk = block.topk
    return {
        "unit_NO": torch.from_numpy(np.concatenate(rows).copy()),
        "ids": torch.from_numpy(topk.ids_NK.astype(np.int64)),
        "logp": torch.from_numpy(topk.logp_NK.astype(np.float32)),
        "tail": torch.from_numpy(topk.tail_N.astype(np.float32)),
    }


def divergence(logits_NV: Tensor, part: dict[str, Tensor], rows: Tensor | slice) -> Tensor:
    """KL(teacher ‖ network), summed."""
    return sparse_kl(logits_NV, ids_MK=part["ids"][rows], logp_MK=part["logp"][rows], tail_M=part["tail"][rows]).sum()


class Network(nn.Module):
    """Embeddings of the units side by side, two layers. A place is a unit's number, or shares of the units (V, and one
    for past an end)."""

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_units + 1, EMBEDDING)
        self.layers = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(EMBEDDING * (2 * REACH + 1), WIDTH), nn.SiLU(), nn.Dropout(0.2),
            nn.Linear(WIDTH, WIDTH), nn.SiLU(),
            nn.Dropout(0.2), nn.Linear(WIDTH, num_units),
        )  # fmt: skip

    def forward(self, unit_NO: Tensor) -> Tensor:
        embedded_NOE = unit_NO @ self.embed.weight if unit_NO.is_floating_point() else self.embed(unit_NO)
        return torch.as_tensor(self.layers(embedded_NOE.flatten(1)))


def learnt(train: dict[str, Tensor], dev: dict[str, Tensor], num_units: int, share: float) -> float:
    """The lowest KL on dev over the epochs, which flatters the network."""
    torch.manual_seed(0)
    count = int(share * len(train["tail"]))
    network = Network(num_units)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    best = float("inf")
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.randperm(count).split(BATCH):
            optimiser.zero_grad()
            (divergence(network(train["unit_NO"][rows]), train, rows) / len(rows)).backward()
            optimiser.step()
        network.eval()
        with torch.no_grad():
            best = min(best, float(divergence(network(dev["unit_NO"]), dev, slice(None))) / len(dev["tail"]))
    return best


def main() -> None:
    known = parser(__doc__, out="passes")
    known.add_argument("--work", type=Path, default=Path("runs/ablation"))
    known.add_argument("--stores", nargs="*", default=["monophone", "subword"])
    arguments = known.parse_args()
    manifest = read(arguments.work / "manifest.jsonl")
    rows: list[dict[str, object]] = []
    results = {"machine": machine(), "rows": rows}
    print(f"{'store':12} {'positions':>10} {'KL, network':>12} {'KL, no neighbour':>17}")
    for name in arguments.stores:
        reader = LabelReader.open(arguments.work / "shards" / name)
        ids = {split: [u.id for u in manifest.split(split)] for split in ("train", "dev")}
        train, dev = positions(reader, ids["train"]), positions(reader, ids["dev"])
        num_units = len(reader.spec.inventory)
        sum_VW = summed(reader, [i for i in ids["train"] if i in reader])
        mean_VW = torch.from_numpy(sum_VW / np.maximum(sum_VW.sum(1, keepdims=True), 1e-12)).float().clamp_min(1e-9)
        table_NV = mean_VW[dev["unit_NO"][:, REACH], :num_units].log()
        table = float(divergence(table_NV, dev, slice(None))) / len(dev["tail"])
        for share in SHARES:
            kl = learnt(train, dev, num_units, share)
            count = int(share * len(train["tail"]))
            rows.append({"store": name, "positions": count, "kl": kl, "kl_no_neighbour": table})
            save(arguments.out, results)
            print(f"{name:12} {count:10,} {kl:12.3f} {table:17.3f}", flush=True)


if __name__ == "__main__":
    main()
