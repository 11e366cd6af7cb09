"""A program: trains the tiny task with many kills, each run a fork of this process (the imports are paid once).

    python kills.py FOLDER NUM_KILLS MIXED(0|1) SEED

Kills with SIGKILL (some with SIGTERM) some steps after where the run went on, at times cuts bytes off the newest
checkpoint, goes on with one or (MIXED) two processes. Prints the number of kills.
"""

import os
import random
import select
import signal
import socket
import sys
import traceback
from pathlib import Path

import accelerate  # noqa: F401 (here, so that no fork pays for it)
import torch
import torch._dynamo
from tiny import TinyTask

from hkd.loop import LoopConfig, fit

CONFIG = LoopConfig(max_steps=500, save_every=7, log_every=5, eval_every=40, warmup_steps=50, keep_last=3)


def child(folder: Path, rank: int, world_size: int, port: int, pipe: int, dropout: float) -> None:
    """Train until done or killed, saying each step."""
    code = 1
    try:
        torch.set_num_threads(1)
        if world_size > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1",
            }  # fmt: skip

        def progress(done: float, total: float, **facts: object) -> None:
            os.write(pipe, f"{int(done)}\n".encode())

        fit(TinyTask(dropout=dropout), CONFIG, folder, device="cpu", progress=progress)
        code = 0
    except Exception as error:
        code = getattr(error, "exit_code", 1)
        if code != 143:
            traceback.print_exc()
    finally:
        os._exit(code)


def attempt(folder: Path, world_size: int, kill_after: int | None, number: int, dropout: float) -> bool:
    """One run; whether it came to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reader, writer = os.pipe()
    children = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            child(folder, rank, world_size, port, writer, dropout)
        children.append(pid)
    os.close(writer)
    seen, text = 0, b""
    while True:
        select.select([reader], [], [])
        part = os.read(reader, 4096)
        if not part:
            break
        text += part
        seen += part.count(b"\n")
        if kill_after is not None and seen >= kill_after:
            for pid in children:
                os.kill(pid, number)
            kill_after = None
    os.close(reader)
    return all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)


def main() -> None:
    """Kill, go on, and so forth, then let it end."""
    folder, kills, mixed, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4])
    dropout = 0.0 if mixed else 0.3
    rng = random.Random(seed)
    done = 0
    for _ in range(kills):
        number = signal.SIGTERM if rng.random() < 0.3 else signal.SIGKILL
        if attempt(folder, rng.choice([1, 2]) if mixed else 1, rng.randrange(1, 17), number, dropout):
            break
        done += 1
        newest = max((folder / "checkpoints").glob("step-*"), default=None)
        if newest is not None and rng.random() < 0.2:
            path = newest / rng.choice(["model.safetensors", "optimizer.safetensors", "state.json"])
            path.write_bytes(path.read_bytes()[: rng.randrange(40)])
    assert attempt(folder, 1, None, 0, dropout)
    print(done)


if __name__ == "__main__":
    main()
