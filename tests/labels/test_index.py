"""The index of a large store, asked in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hkd.labels.rows import UtteranceLabels
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
print(json.dumps([positions, spent, grown, "pandas" in sys.modules]))
"""


@pytest.mark.slow
def test_a_million_utterances_open_at_once(tmp_path: Path) -> None:
    spec = spec_for(500, k=4, utterances_per_shard=512, block_positions=4096)
    topk = random_topk(spec, 5, np.random.default_rng(0))
    ids = [f"speaker-{i // 100:05d}-utterance-{i:08d}" for i in range(1_000_000)]
    writer = LabelWriter.open(tmp_path / "s", spec, ids)

    def rows(shard: int) -> Iterator[UtteranceLabels]:
        for name in writer.shard_ids(shard):
            length = int(name[-1]) % 5 + 1
            word_U = np.arange(length, dtype=np.int32)
            yield UtteranceLabels(id=name, topk=topk[:length], word_U=word_U, unit_digest=bytes(8), text_digest=bytes(8))

    for shard in writer.pending():
        writer.write_shard(shard, rows(shard))
    writer.finish()
    command = [sys.executable, "-c", ASK, str(tmp_path / "s"), ids[654_321]]
    positions, seconds, kilobytes, pandas = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert positions == 2
    assert seconds < 0.3
    assert kilobytes < 50_000
    assert not pandas  # which pyarrow imports for to_numpy: a quarter of a second
