"""The index of a large store, asked in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hkd.labels.format import UtteranceLabels
from hkd.labels.store import LabelWriter
from hkd.testing.store import random_topk, spec_for

ASK = """
import json, resource, sys, time
import hkd.labels.arrow
from hkd.labels.store import LabelReader
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
reader = LabelReader.open(sys.argv[1])
positions = len(reader.block([sys.argv[2]]).topk)
spent = time.process_time() - started
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
imported = [name for name in ("pandas", "torch") if name in sys.modules]
print(json.dumps([positions, spent, grown, imported]))
"""


def ask(folder: Path, count: int, row: int) -> tuple[int, float, int, list[str]]:
    """A store of so many utterances, opened and asked for one: its positions, seconds, kilobytes more, and slow
    packages imported."""
    spec = spec_for(500, k=4, utterances_per_shard=512, block_positions=4096)
    topk = random_topk(spec, 5, np.random.default_rng(0))
    ids = [f"speaker-{i // 100:05d}-utterance-{i:08d}" for i in range(count)]
    writer = LabelWriter.open(folder, spec, ids)

    def rows(shard: int) -> Iterator[UtteranceLabels]:
        for name in writer.shard_ids(shard):
            length = int(name[-1]) % 5 + 1
            word_U = np.arange(length, dtype=np.int32)
            yield UtteranceLabels(
                id=name, topk=topk[:length], word_U=word_U, unit_digest=bytes(8), text_digest=bytes(8)
            )

    for shard in writer.pending():
        writer.write_shard(shard, rows(shard))
    writer.finish()
    command = [sys.executable, "-c", ASK, str(folder), ids[row]]
    positions, seconds, kilobytes, imported = json.loads(
        subprocess.run(command, capture_output=True, check=True).stdout
    )
    return positions, seconds, kilobytes, imported


def test_reading_imports_neither_pandas_nor_torch(tmp_path: Path) -> None:
    positions, *_, imported = ask(tmp_path / "s", 20, 11)
    assert positions == 2
    assert not imported  # pyarrow imports pandas for to_numpy and __array__: a quarter of a second


@pytest.mark.slow
def test_a_million_utterances_open_at_once(tmp_path: Path) -> None:
    positions, seconds, kilobytes, _ = ask(tmp_path / "s", 1_000_000, 654_321)
    assert positions == 2
    assert seconds < 0.3
    assert kilobytes < 50_000
