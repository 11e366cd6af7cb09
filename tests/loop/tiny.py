"""A tiny task of two loss terms on random vectors; as a program it trains it: python tiny.py FOLDER OPTIONS_JSON, a
line a step."""

import json
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from hkd.loop import LoopConfig, fit


@dataclass
class Share:
    ids: tuple
    x_BF: torch.Tensor
    y_B: torch.Tensor
    seconds: float = 1.0

    def to(self, device):
        return Share(self.ids, self.x_BF.to(device), self.y_B.to(device))


class TinyTask:
    def __init__(self, dropout=0.0, sleep_s=0.0, bad_step=None, evaluation_s=0.0):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 3)
        )
        self.sleep_s, self.bad_step, self.evaluation_s = sleep_s, bad_step, evaluation_s

    def batches(self, start_step, rank, world_size):
        step = start_step
        while True:
            g = torch.Generator().manual_seed(step)
            size = 5 + step % 3
            x_BF, y_B = torch.randn(size, 4, generator=g), torch.randint(0, 3, (size,), generator=g)
            if step == self.bad_step:
                x_BF[0, 0] = float("nan")
            rows = torch.arange(size)[rank::world_size]
            yield Share(tuple(f"u{step}-{r}" for r in rows.tolist()), x_BF[rows], y_B[rows]) if len(rows) else None
            step += 1

    def counts(self, share):
        return {"main": len(share.y_B), "size": float((share.y_B == 0).sum())}

    def losses(self, share, step):
        time.sleep(self.sleep_s)
        logits_BV = self.model(share.x_BF)
        main = torch.nn.functional.cross_entropy(logits_BV, share.y_B, reduction="sum")
        return {"main": main, "size": (logits_BV[share.y_B == 0] ** 2).sum()}

    def weights(self, step):
        return {"main": 1.0, "size": 0.1 * min(1.0, step / 10)}

    def evaluate(self, rank, world_size):
        """The mean over twelve points, of which each takes its part of evaluation_s."""
        assert not self.model.training
        points = list(range(12))[rank::world_size]
        time.sleep(self.evaluation_s * len(points) / 12)
        norm = float(sum((p**2).sum() for p in self.model.parameters()))
        return {"norm": (norm * len(points), len(points)), "ranks": (world_size, 1), "unseen": (0.0, 0)}


if __name__ == "__main__":
    from hkd.errors import HkdError

    options = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if "timeout_s" in options:  # of collectives, in place of half an hour
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=options["timeout_s"]))

    def progress(done, total, **facts):
        print(int(done), flush=True)

    try:
        fit(
            TinyTask(**options.get("task", {})),
            LoopConfig(**options.get("config", {})),
            Path(sys.argv[1]),
            device="cpu",
            progress=progress,
        )
    except HkdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
