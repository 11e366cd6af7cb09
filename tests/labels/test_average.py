"""A store of averages: what a teacher without context would have written."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.labels.format import UtteranceLabels
from hkd.labels.ops import average, average_rows, summed
from hkd.labels.share import verify
from hkd.labels.store import LabelReader
from hkd.sparse import TopK
from hkd.testing.store import random_rows, spec_for, write_store


def dense(topk: TopK, num_units: int) -> np.ndarray:
    """p_NW: the kept probabilities, and the tail in the last column."""
    p_NW = np.zeros((len(topk), num_units + 1))
    np.put_along_axis(p_NW, topk.ids_NK.astype(np.int64), np.exp(topk.logp_NK.astype(np.float64)), 1)
    p_NW[:, -1] = np.exp(topk.tail_N)
    return p_NW


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(num_units=st.sampled_from([2, 9, 50]), backend=st.sampled_from(["arrow", "zarr"]), seed=st.integers(0, 99))
def test_each_position_holds_the_average_of_its_units_rows(
    tmp_path_factory: pytest.TempPathFactory, num_units: int, backend: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("stores")
    spec = spec_for(num_units, backend=backend, temperatures=(2.0,))
    reader = write_store(folder / "s", spec, random_rows(spec, [9, 0, 40, 25], seed))
    made = average(folder / "s", folder / "a", k=num_units)
    assert verify(folder / "a") == []
    out = LabelReader.open(folder / "a")
    assert out.spec.digest == made.digest != reader.spec.digest
    assert out.spec.teacher["given"] == "unit"
    assert list(out.ids) == list(reader.ids)
    old, new = reader.block(reader.ids), out.block(out.ids)
    np.testing.assert_array_equal(new.topk.gold_N, old.topk.gold_N)
    np.testing.assert_array_equal(new.word_N, old.word_N)
    assert new.unit_digest_B == old.unit_digest_B
    assert new.text_digest_B == old.text_digest_B
    p_NW, q_NW = dense(old.topk, num_units), dense(new.topk, num_units)
    for unit in set(old.topk.gold_N.tolist()):
        rows = p_NW[old.topk.gold_N == unit] if unit >= 0 else p_NW[old.topk.gold_N >= 0]
        expected = rows.sum(0) / rows.sum()
        for row in q_NW[old.topk.gold_N == unit]:
            assert row == pytest.approx(expected, rel=0.02, abs=1e-6)  # the grid's rounding
            if unit < 0:
                continue
            tempered = row[:-1] ** 0.5
            n = np.flatnonzero(old.topk.gold_N == unit)[0]
            left_out = np.exp(new.topk.tail_NJ[n, 0])
            assert np.log(tempered.sum()) - np.log1p(-left_out) == pytest.approx(new.topk.lse_NJ[n, 0], abs=0.02)


def test_averages_are_over_the_utterances_asked_for(tmp_path: Path) -> None:
    spec = spec_for(6, k=6)
    reader = write_store(tmp_path / "s", spec, random_rows(spec, [30, 30]))
    first, second = reader.ids
    average(tmp_path / "s", tmp_path / "a", over=[first, "not in the store"])
    out = LabelReader.open(tmp_path / "a")
    own = average_rows(summed(reader, [first]), k=6, temperatures=())
    block = out.block([second]).topk
    np.testing.assert_allclose(block.logp_NK, own[block.gold_N.astype(np.int64)].logp_NK, atol=1 / 128 + 1e-5)


def test_a_unit_never_seen_has_the_average_of_all_and_keeps_itself() -> None:
    sum_VW = np.array([[3.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    rows = average_rows(sum_VW, k=3, temperatures=())
    p_K = dict(zip(rows.ids_NK[2].tolist(), np.exp(rows.logp_NK[2]).tolist(), strict=True))
    assert p_K == pytest.approx({0: 4 / 9, 1: 3 / 9, 2: 1.5 / 9})
    assert np.exp(rows.gold_logp_N[2]) == pytest.approx(1.5 / 9)
    assert np.exp(rows.tail_N[[2, 3]]) == pytest.approx([0.5 / 9, 0.5 / 8])
    assert rows.gold_N[3] == -1


def test_an_average_of_averages_is_the_same(tmp_path: Path) -> None:
    spec = spec_for(20, k=20, codec="f16")
    write_store(tmp_path / "s", spec, random_rows(spec, [50, 20]))
    average(tmp_path / "s", tmp_path / "a")
    average(tmp_path / "a", tmp_path / "b")
    a, b = (LabelReader.open(tmp_path / name) for name in "ab")
    np.testing.assert_allclose(dense(b.block(b.ids).topk, 20), dense(a.block(a.ids).topk, 20), atol=1e-3)


def test_left_out_utterances_stay_left_out(tmp_path: Path) -> None:
    spec = spec_for(5, k=5)
    rows = random_rows(spec, [4, 4])
    name = sorted(rows)[0]
    rows[name] = UtteranceLabels(
        id=name, topk=TopK.empty(5), word_U=np.zeros(0, np.int32), unit_digest=bytes(8), text_digest=bytes(8)
    )
    write_store(tmp_path / "s", spec, rows)
    average(tmp_path / "s", tmp_path / "a")
    assert LabelReader.open(tmp_path / "a").unit_digest(name) == bytes(8)


def test_what_has_no_average_is_refused(tmp_path: Path) -> None:
    drawn = spec_for(selection="sample")
    write_store(tmp_path / "drawn", drawn, random_rows(drawn, [3]))
    with pytest.raises(UserError, match="has draws"):
        average(tmp_path / "drawn", tmp_path / "out")
    large = spec_for(6000)
    write_store(tmp_path / "large", large, random_rows(large, [3]))
    with pytest.raises(UserError, match="has 6,000 units"):
        average(tmp_path / "large", tmp_path / "out")
    write_store(tmp_path / "s", spec_for(), random_rows(spec_for(), [3]))
    with pytest.raises(UserError, match="none is"):
        average(tmp_path / "s", tmp_path / "out", over=["nobody"])
    assert not (tmp_path / "out").exists()
