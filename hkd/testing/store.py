"""What tests of label stores need: strategies for rows, ready-made stores, and `LabelStoreContract`, which any backend
passes.

Use: `class TestMine(LabelStoreContract): backend = "mine"` in a test module; pytest finds the methods.
"""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hkd.errors import HkdError, UserError
from hkd.labels import format as files
from hkd.labels.format import StoreSpec, UtteranceLabels
from hkd.labels.ops import convert
from hkd.labels.share import verify
from hkd.labels.store import LabelReader, LabelWriter
from hkd.sparse import TopK
from hkd.units.inventory import UnitInventory

Rows = dict[str, UtteranceLabels]


def inventory(num_units: int, level: str = "subword") -> UnitInventory:
    """Units named u0, u1, ..."""
    return UnitInventory(level=level, symbols=tuple(f"u{i}" for i in range(num_units)))


def spec_for(num_units: int = 50, **changes: Any) -> StoreSpec:
    """A small spec; `changes` replace its fields."""
    values: dict[str, Any] = {
        "name": "subword",
        "level": "subword",
        "inventory": inventory(num_units),
        "teacher": {"name": "tiny", "kind": "ngram", "direction": "left", "digest": "0" * 64, "given": "left"},
        "manifest_digest": "1" * 64,
        "k": 8,
        "utterances_per_shard": 4,
        "block_positions": 16,
    }
    return StoreSpec(**{**values, **changes})


def random_topk(spec: StoreSpec, num_positions: int, rng: np.random.Generator, *, gold_share: float = 0.9) -> TopK:
    """Rows as a teacher would give them: falling, true log-probabilities, exact tails; a few without a gold unit."""
    v, k, n = len(spec.inventory), spec.width, num_positions
    sharpness = rng.uniform(0.1, 6, (n, 1))
    logits = rng.standard_normal((n, v)) * sharpness
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-logp, axis=1, kind="stable")
    gold = np.where(rng.random(n) < gold_share, rng.integers(0, v, n), -1)
    ids = order[:, : min(k, v)]
    if spec.selection == "sample":
        ids = np.pad(ids, ((0, 0), (0, k - ids.shape[1])))
    elif k < v:
        outside = (gold >= 0) & ~(ids == gold[:, None]).any(1)
        ids[outside, -1] = gold[outside]
        ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logp, ids, 1), axis=1, kind="stable"), 1)
    kept = np.take_along_axis(logp, ids, 1)
    rest = logp.copy()
    np.put_along_axis(rest, ids, -np.inf, 1)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.exp(values).sum(-1)))

    t_J1 = np.array(spec.temperatures).reshape(-1, 1)
    lse_NJ = total(logp[:, None] / t_J1)
    gold_logp = np.take_along_axis(logp, np.maximum(gold, 0)[:, None], 1)[:, 0]
    return TopK(
        ids_NK=ids.astype(np.int32),
        logp_NK=kept.astype(np.float32),
        tail_N=total(rest).astype(np.float32),
        gold_N=gold.astype(np.int32),
        gold_logp_N=np.where(gold >= 0, gold_logp, -np.inf).astype(np.float32),
        lse_NJ=lse_NJ.astype(np.float32),
        tail_NJ=(total(rest[:, None] / t_J1) - lse_NJ).astype(np.float32),
        count_NK=rng.integers(0, 65536, (n, k)).astype(np.uint16) if spec.selection == "sample" else None,
    )


def random_utterance(spec: StoreSpec, name: str, num_positions: int, rng: np.random.Generator) -> UtteranceLabels:
    return UtteranceLabels(
        id=name,
        topk=random_topk(spec, num_positions, rng),
        word_U=np.sort(rng.integers(-1, 40, num_positions)).astype(np.int32),
        unit_digest=hashlib.sha256(name.encode()).digest()[:8],
        text_digest=hashlib.sha256(b"text" + name.encode()).digest()[:8],
    )


def random_rows(spec: StoreSpec, lengths: Sequence[int], seed: int = 0) -> Rows:
    """Utterances of these lengths; ids with spaces, slashes and other letters among them."""
    rng = np.random.default_rng(seed)
    names = [f"utt/{i:04d} ü../" if i % 5 == 0 else f"utt-{i:04d}" for i in range(len(lengths))]
    return {name: random_utterance(spec, name, length, rng) for name, length in zip(names, lengths, strict=True)}


def write_store(path: Path | str, spec: StoreSpec, rows: Rows) -> LabelReader:
    """Write all shards, finish, and open."""
    writer = LabelWriter.open(path, spec, rows)
    for shard in writer.pending():
        writer.write_shard(shard, [rows[name] for name in writer.shard_ids(shard)])
    writer.finish()
    return LabelReader.open(path)


def files_of(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def same_rows(found: TopK, wanted: TopK, spec: StoreSpec) -> None:
    """Asserts that ids, gold and counts came back exactly, numbers within the codec's error bound, −∞ as such."""
    bound = spec.error_bound
    np.testing.assert_array_equal(found.ids_NK, wanted.ids_NK)
    np.testing.assert_array_equal(found.gold_N, wanted.gold_N)
    if wanted.count_NK is None:
        assert found.count_NK is None
    else:
        np.testing.assert_array_equal(found.count_NK, wanted.count_NK)
    pairs = [(found.logp_NK, wanted.logp_NK, bound["absolute"], bound["relative"])]
    half = (2.0**-25, 2.0**-11)  # float16
    pairs += [(found.tail_N, wanted.tail_N, *half), (found.tail_NJ, wanted.tail_NJ, *half)]
    pairs.append((found.gold_logp_N, wanted.gold_logp_N, max(bound["absolute"], half[0]), half[1]))
    for got, given_, absolute, relative in pairs:
        np.testing.assert_array_equal(np.isinf(got), np.isinf(given_))
        finite = np.isfinite(given_)
        error = np.abs(got[finite].astype(np.float64) - np.minimum(given_[finite], 0))
        assert (error <= absolute + relative * np.abs(given_[finite])).all(), error.max()
    np.testing.assert_array_equal(found.lse_NJ, wanted.lse_NJ)


@st.composite
def specs(
    draw: st.DrawFn, backend: str = "arrow", num_units: Sequence[int] = (1, 2, 42, 300, 300, 42, 65536, 65537)
) -> StoreSpec:
    """Specs of all kinds: ids of 16 and 32 bits, dense and sparse, both selections, temperatures, both codecs."""
    units = draw(st.sampled_from(num_units))
    return spec_for(
        units,
        k=draw(st.sampled_from([1, 2, 7, 64])) if units > 300 else draw(st.integers(1, units + 3)),
        codec=draw(st.sampled_from(["grid", "f16"])),
        selection=draw(st.sampled_from(["topk", "topk", "sample"])),
        temperatures=tuple(draw(st.lists(st.sampled_from([0.5, 2.0, 3.0]), max_size=2))),
        backend=backend,
        block_positions=draw(st.sampled_from([1, 5, 64, 4096])),
        utterances_per_shard=draw(st.sampled_from([1, 3, 512])),
    )


def logps(shape: tuple[int, ...]) -> st.SearchStrategy[NDArray[np.float32]]:
    """Any float32 log-probabilities, −∞ among them, in any order."""
    from hypothesis.extra.numpy import arrays

    value = st.floats(min_value=-1000, max_value=0, width=32) | st.sampled_from([0.0, -0.0, -np.inf])
    return arrays(np.float32, shape, elements=value)


class LabelStoreContract:
    """What every backend must do. Subclass it and set `backend`."""

    backend = "arrow"

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_what_is_written_is_read(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        spec = data.draw(specs(self.backend))
        lengths = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 9, 30]), min_size=0, max_size=7))
        rows = random_rows(spec, lengths, seed=data.draw(st.integers(0, 99)))
        path = tmp_path_factory.mktemp("store") / "s"
        reader = write_store(path, spec, rows)
        assert list(reader.ids) == sorted(rows)
        order = data.draw(st.permutations(sorted(rows)))
        block = reader.block(order)
        assert len(block) == len(order)
        for b, name in enumerate(order):
            same_rows(block.utterance(b), rows[name].topk, spec)
            np.testing.assert_array_equal(block.word_N[block.offset_B1[b] : block.offset_B1[b + 1]], rows[name].word_U)
            digests = rows[name].unit_digest, rows[name].text_digest
            assert (block.unit_digest_B[b], block.text_digest_B[b]) == digests
            assert (reader.unit_digest(name), reader.text_digest(name)) == digests
        assert verify(path) == []
        kept = {int(i) for row in rows.values() for i in row.topk.gold_N if i >= 0}
        for row in rows.values():
            mask = slice(None) if row.topk.count_NK is None else row.topk.count_NK > 0
            kept |= set(row.topk.ids_NK[mask].reshape(-1).tolist())
        assert reader.kept_ids().tolist() == sorted(kept)

    def _store(self, path: Path, lengths: Sequence[int], **changes: Any) -> tuple[Rows, LabelReader]:
        """Utterances of these lengths, and the store of them that was written at the path."""
        spec = spec_for(backend=self.backend, **changes)
        rows = random_rows(spec, lengths)
        return rows, write_store(path, spec, rows)

    def test_who_writes_and_in_which_order_changes_no_byte(self, tmp_path: Path) -> None:
        spec = spec_for(backend=self.backend)
        rows = random_rows(spec, [3, 0, 7, 12, 1, 30, 2, 2, 5])
        write_store(tmp_path / "a", spec, rows)
        first, second = (LabelWriter.open(tmp_path / "b", spec, reversed(list(rows))) for _ in range(2))
        assert first.pending() == [0, 1, 2]
        with first.claim(2) as mine, second.claim(2) as theirs:
            assert (mine, theirs) == (True, False)
            first.write_shard(2, [rows[name] for name in reversed(first.shard_ids(2))])
        assert second.pending() == [0, 1]
        for shard in (1, 0):
            second.write_shard(shard, [rows[name] for name in second.shard_ids(shard)])
            first.write_shard(shard, [rows[name] for name in first.shard_ids(shard)])  # done: left as it is
        first.finish()
        second.finish()
        assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    def test_reading_again_after_pickling(self, tmp_path: Path) -> None:
        _, reader = self._store(tmp_path / "s", [3, 4])
        again: LabelReader = pickle.loads(pickle.dumps(reader))
        np.testing.assert_array_equal(again.block(reader.ids).topk.logp_NK, reader.block(reader.ids).topk.logp_NK)

    def test_one_long_utterance(self, tmp_path: Path) -> None:
        rows, reader = self._store(tmp_path / "s", [100_000, 1], num_units=4, k=2)
        for name, row in rows.items():
            same_rows(reader.block([name]).topk, row.topk, reader.spec)

    def test_a_block_is_decoded_once_when_the_order_goes_by_runs(self, tmp_path: Path) -> None:
        rows, _ = self._store(tmp_path / "s", [5] * 40)
        reader = LabelReader.open(tmp_path / "s", cache_bytes=1)
        runs = reader.runs()
        assert [name for run in runs for name in run] == sorted(rows)
        for run in reversed(runs):
            for name in reversed(run):
                reader.block([name])
        assert reader.num_decoded == len(runs)

    @pytest.mark.parametrize("other", ["arrow", "zarr"])
    def test_conversion_there_and_back_gives_the_same_files(self, tmp_path: Path, other: str) -> None:
        _, reader = self._store(tmp_path / "a", [3, 0, 7, 12, 1], temperatures=(2.0,))
        convert(tmp_path / "a", tmp_path / "b", backend=other)
        convert(tmp_path / "b", tmp_path / "c", backend=self.backend)
        assert files_of(tmp_path / "a") == files_of(tmp_path / "c")
        there, here = LabelReader.open(tmp_path / "b").block(reader.ids), reader.block(reader.ids)
        np.testing.assert_array_equal(there.topk.logp_NK, here.topk.logp_NK)

    def test_damage_is_found(self, tmp_path: Path) -> None:
        spec = self._store(tmp_path / "s", [3, 2, 7, 12, 1, 4])[1].spec
        self._store(tmp_path / "other", [3] * 6, k=7)
        shards = [(tmp_path / "s" / files.shard_name(spec, n)) for n in (0, 1)]
        marks = [(tmp_path / "s" / files.mark_name(n)) for n in (0, 1)]
        whole = {file: file.read_bytes() for file in [*shards, *marks]}
        foreign = tmp_path / "other" / files.shard_name(spec, 0)

        def kinds() -> list[str]:
            found = [problem.kind for problem in verify(tmp_path / "s")]
            for file, data in whole.items():
                file.write_bytes(data)
            return found

        for place in (0, 100, len(whole[shards[0]]) // 2, -1):
            data = bytearray(whole[shards[0]])
            data[place] ^= 1
            shards[0].write_bytes(data)
            assert kinds() == ["flipped"]
        shards[1].unlink()
        assert kinds() == ["missing"]
        marks[1].unlink()
        assert kinds() == ["missing"]
        marks[0].write_bytes(whole[marks[0]][:40])
        assert kinds() == ["torn"]
        shards[0].write_bytes(foreign.read_bytes())
        assert kinds() == ["flipped"]
        shards[0].write_bytes(foreign.read_bytes())
        marks[0].write_bytes((tmp_path / "other" / files.mark_name(0)).read_bytes())
        assert kinds() == ["foreign"]
        shards[0].write_bytes(whole[shards[1]])
        marks[0].write_bytes(whole[marks[1]].replace(b'"shard": 1', b'"shard": 0'))
        assert kinds() == ["foreign"]
        assert kinds() == []

    def test_a_damaged_shard_is_an_error_when_read(self, tmp_path: Path) -> None:
        rows, reader = self._store(tmp_path / "s", [3, 2, 7])
        path = tmp_path / "s" / files.shard_name(reader.spec, 0)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(HkdError, match="damaged"):
            LabelReader.open(tmp_path / "s").block(sorted(rows))

    def test_rows_that_do_not_belong_are_refused(self, tmp_path: Path) -> None:
        spec = spec_for(backend=self.backend)
        rows = random_rows(spec, [3, 2, 7])
        writer = LabelWriter.open(tmp_path / "s", spec, rows)
        values = list(rows.values())
        with pytest.raises(HkdError, match="is missing"):
            writer.write_shard(0, values[:2])
        with pytest.raises(HkdError, match="does not belong"):
            writer.write_shard(0, [*values, random_utterance(spec, "stranger", 3, np.random.default_rng())])
        beyond = random_rows(spec_for(90), [300, 2, 7]).values()
        with pytest.raises(HkdError, match="unit ids must lie"):
            writer.write_shard(0, beyond)
        assert writer.pending() == [0]
        with pytest.raises(HkdError, match="not complete"):
            LabelReader.open(tmp_path / "s")
        with pytest.raises(UserError, match="is not in label store"):
            write_store(tmp_path / "t", spec, rows).block(["nobody"])
