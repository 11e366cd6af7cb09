"""A state machine drives a store against a dictionary: write, kill, damage, repair, resume, read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from hkd.errors import HkdError
from hkd.labels import format as files
from hkd.labels.share import repair, verify
from hkd.labels.store import LabelReader, LabelWriter
from hkd.testing.store import random_rows, same_rows, spec_for

BACKENDS: Sequence[str] = ("arrow", "zarr")


class StoreMachine(RuleBasedStateMachine):
    """The model: which shards are whole, and what every utterance holds."""

    shards: Bundle[int] = Bundle("shards")

    @initialize(backend=st.sampled_from(BACKENDS), lengths=st.lists(st.sampled_from([0, 1, 5]), min_size=1, max_size=6))
    def begin(self, backend: str, lengths: list[int]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "s"
        self.spec = spec_for(backend=backend, utterances_per_shard=2)
        self.rows = random_rows(self.spec, lengths)
        self.writer = LabelWriter.open(self.path, self.spec, self.rows)
        self.whole: set[int] = set()
        self.num_shards = self.writer.spec.num_shards

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        shard = data.draw(st.integers(0, self.num_shards - 1))
        self.writer.write_shard(shard, [self.rows[name] for name in self.writer.shard_ids(shard)])
        self.whole.add(shard)

    @rule()
    def another_process(self) -> None:
        self.writer = LabelWriter.open(self.path, self.spec, self.rows)

    @rule(data=st.data(), keep=st.floats(0, 0.99))
    def killed_while_writing(self, data: st.DataObject, keep: float) -> None:
        """A shard's file is there, the mark is not, or half of a temporary file is left."""
        shard = data.draw(st.integers(0, self.num_shards - 1))
        if shard not in self.whole:
            path = self.path / files.shard_name(self.writer.spec, shard)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * int(100 * keep))
            (path.parent / f".{path.name}.abc.tmp").write_bytes(b"half")

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A byte flips; verify finds exactly that shard (and those that are missing), repair takes it away."""
        shard = data.draw(st.sampled_from(sorted(self.whole)))
        path = self.path / files.shard_name(self.writer.spec, shard)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        problems = verify(self.path)
        missing = set(range(self.num_shards)) - self.whole
        assert {problem.shard for problem in problems if problem.shard is not None} == missing | {shard}
        self.whole.remove(shard)
        assert set(repair(self.path, problems).dump_again) == missing | {shard}

    @rule()
    def read(self) -> None:
        if len(self.whole) < self.num_shards:
            with pytest.raises(HkdError, match="not complete"):
                LabelReader.open(self.path)
            return
        if verify(self.path):
            self.writer.finish()
        assert verify(self.path) == []
        reader = LabelReader.open(self.path, cache_bytes=500)
        order = list(np.random.default_rng(0).permutation(sorted(self.rows)))
        block = reader.block([str(name) for name in order])
        for b, name in enumerate(order):
            same_rows(block.utterance(b), self.rows[name].topk, self.spec)

    @invariant()
    def pending_is_what_is_not_whole(self) -> None:
        if hasattr(self, "whole"):
            assert self.writer.pending() == sorted(set(range(self.num_shards)) - self.whole)


StoreMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreMachine = StoreMachine.TestCase
