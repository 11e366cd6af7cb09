"""The codecs: what comes back, and how far it may be from what went in."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.errors import HkdError, UserError
from hkd.labels.codec import decode, encode, gather, layout
from hkd.labels.format import CODECS, Codec, StoreSpec
from hkd.labels.ops import convert
from hkd.labels.share import verify
from hkd.labels.store import LabelReader
from hkd.sparse import TopK
from hkd.testing.store import files_of, logps, random_rows, random_topk, same_rows, spec_for, specs, write_store


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_in_any_order_come_back(data: st.DataObject) -> None:
    spec = data.draw(specs())
    n, k, v = data.draw(st.integers(0, 6)), spec.width, len(spec.inventory)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    base = random_topk(spec, n, rng)
    topk = TopK(
        ids_NK=rng.integers(0, v, (n, k)).astype(np.int32),
        logp_NK=data.draw(logps((n, k))),
        tail_N=data.draw(logps((n,))),
        gold_N=rng.integers(-1, v, n).astype(np.int32),
        gold_logp_N=data.draw(logps((n,))),
        lse_NJ=base.lse_NJ,
        tail_NJ=base.tail_NJ,
        count_NK=base.count_NK,
    )
    cut = data.draw(st.integers(0, n))
    offset_B1 = np.array([0, 0, cut, cut, n, n], np.int64)
    word_N = rng.integers(-1, 2**31 - 1, n).astype(np.int32)
    planes = encode(spec, [topk], word_N, offset_B1)
    assert {name: plane.shape for name, plane in planes.items()} == {
        name: p.shape(n) for name, p in layout(spec).items()
    }
    decoded = decode(spec, planes, offset_B1)
    assert decoded.num_bytes == sum(
        a.nbytes for a in (decoded.unit_NK, decoded.code_NK, decoded.count_NK, decoded.narrow_WN) if a is not None
    )
    back, words = gather(spec, [decoded], np.array([[0, 0, n, 0]]), n)
    same_rows(back, topk, spec)
    np.testing.assert_array_equal(words, word_N)


def encode_rows(spec: StoreSpec, topk: TopK) -> None:
    encode(spec, [topk], np.zeros(len(topk), np.int32), np.array([0, len(topk)]))


def test_what_cannot_be_stored_is_refused() -> None:
    spec = spec_for()
    good = random_topk(spec, 3, np.random.default_rng(0))

    def changed(logp: float | None = None, unit: int | None = None) -> TopK:
        ids_NK, logp_NK = good.ids_NK.copy(), good.logp_NK.copy()
        if logp is not None:
            logp_NK[1, 1] = logp
        if unit is not None:
            ids_NK[1, 1] = unit
        return TopK(
            ids_NK=ids_NK, logp_NK=logp_NK, tail_N=good.tail_N, gold_N=good.gold_N, gold_logp_N=good.gold_logp_N
        )

    encode_rows(spec, changed(logp=1e-6))
    for bad, sentence in (
        (changed(logp=0.5), "log-prob"),
        (changed(logp=np.nan), "log-prob"),
        (changed(unit=50), "50 units"),
    ):
        with pytest.raises(HkdError, match=sentence):
            encode_rows(spec, bad)
    with pytest.raises(HkdError, match="unit ids"):
        encode_rows(spec, changed(unit=-1))
    with pytest.raises(HkdError, match="k = 8"):
        encode_rows(spec, random_topk(spec_for(k=7), 3, np.random.default_rng(0)))
    with pytest.raises(HkdError, match="2 temperatures"):
        encode_rows(spec_for(temperatures=(2.0, 3.0)), good)


def test_grid_is_smaller_than_f16_and_both_than_raw() -> None:
    """On rows like a language model's; the figures themselves are in benchmarks/."""
    import zstandard

    sizes = {}
    for codec in ("grid", "f16"):
        spec = spec_for(3000, k=32, codec=codec)
        topk = random_topk(spec, 500, np.random.default_rng(0))
        planes = encode(spec, [topk], np.zeros(500, np.int32), np.array([0, 500]))
        sizes[codec] = (
            sum(len(zstandard.compress(np.ascontiguousarray(plane).tobytes(), 1)) for plane in planes.values()) / 500
        )
    assert sizes["grid"] < sizes["f16"] < 32 * 4


@pytest.mark.parametrize("selection", ["topk", "sample"])
def test_rows_in_pieces_give_the_same_planes(selection: str) -> None:
    """However the pieces lie in memory, and in whichever types."""
    spec = spec_for(70, k=9, codec="f16", selection=selection, temperatures=(2.0,))
    topk, word_N = random_topk(spec, 300, np.random.default_rng(0)), np.arange(300, dtype=np.int32)
    offset_B1 = np.array([0, 3, 200, 200, 300])
    wanted = encode(spec, [topk], word_N, offset_B1)
    apart = [topk[a:b] for a, b in pairwise(offset_B1)]
    apart[1] = replace(apart[1], ids_NK=apart[1].ids_NK.copy(), logp_NK=apart[1].logp_NK.copy())
    strided = [replace(part, ids_NK=np.asfortranarray(part.ids_NK)) for part in apart]
    other = [
        replace(part, ids_NK=part.ids_NK.astype(np.int64), logp_NK=part.logp_NK.astype(np.float64)) for part in apart
    ]
    for pieces in (apart, strided, other):
        found = encode(spec, pieces, word_N, offset_B1)
        assert all((found[name] == plane).all() for name, plane in wanted.items())
    beyond = replace(apart[0], ids_NK=apart[0].ids_NK + np.int64(2**32))  # its lowest bits are units
    with pytest.raises(HkdError, match="unit ids must lie in an inventory"):
        encode(spec, [beyond, *apart[1:]], word_N, offset_B1)
    narrower = replace(apart[0], ids_NK=apart[0].ids_NK[:, :8], logp_NK=apart[0].logp_NK[:, :8])
    with pytest.raises(HkdError, match="must have k = 9"):
        encode(spec, [*apart[1:], narrower], word_N, offset_B1)
    with pytest.raises(ValueError, match="300 positions"):
        encode(spec, apart[1:], word_N, offset_B1)


class Eighths(Codec):
    """A codec of somebody else: eighths of a nat, and −∞."""

    def codes(self, logp_NK: np.ndarray, step: float) -> np.ndarray:  # type: ignore[type-arg]
        return np.where(np.isneginf(logp_NK), 65535, np.rint(np.minimum(-logp_NK, 8191) * 8)).astype(np.uint16)

    def values(self, step: float) -> np.ndarray:  # type: ignore[type-arg]
        value_C = -np.arange(65536, dtype=np.float32) / 8
        value_C[65535] = -np.inf
        return value_C

    def error_bound(self, step: float) -> dict[str, float]:
        return {"absolute": 1 / 16, "relative": 0.0, "lowest": 8191.0}


@pytest.mark.parametrize("backend", ["arrow", "zarr"])
def test_a_codec_from_outside_needs_no_change_inside(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS, "eighths", Eighths())
    spec = spec_for(codec="eighths", backend=backend, temperatures=(2.0,))
    rows = random_rows(spec, [3, 0, 200, 12])
    reader = write_store(tmp_path / "s", spec, rows)
    for name, row in rows.items():
        same_rows(reader.block([name]).topk, row.topk, spec)
    assert verify(tmp_path / "s") == []
    assert json.loads((tmp_path / "s/store.json").read_text())["codec"] == {
        "name": "eighths",
        "error_bound": {"absolute": 1 / 16, "relative": 0.0, "lowest": 8191.0},
    }
    convert(tmp_path / "s", tmp_path / "grid", codec="grid")
    convert(tmp_path / "grid", tmp_path / "back", codec="eighths")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "s")
    with pytest.raises(UserError, match="must stay eighths"):
        convert(tmp_path / "s", tmp_path / "f16", codec="f16")
    broken = replace(next(iter(rows.values())).topk, logp_NK=np.full((3, 8), 0.5, np.float32))
    with pytest.raises(HkdError, match="log-probabilities"):
        encode(spec, [broken], np.zeros(3, np.int32), np.array([0, 3]))
    monkeypatch.setattr(Eighths, "values", lambda self, step: np.zeros(65535, np.float32))
    with pytest.raises(ValueError, match="must give 65536 values"):
        LabelReader.open(tmp_path / "s").block(list(reader.ids))
    monkeypatch.delitem(CODECS, "eighths")
    with pytest.raises(UserError, match="`codec` of a label store must be one of grid, f16, but is 'eighths'"):
        verify(tmp_path / "s")


@pytest.mark.parametrize("name", ["grid", "f16"])
def test_the_kernels_do_what_the_codecs_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in codecs by NumPy, through the table: the same planes, the same numbers."""
    spec = spec_for(70, k=9, codec=name)
    topk, word_N, offset_B1 = (
        random_topk(spec, 300, np.random.default_rng(3)),
        np.zeros(300, np.int32),
        np.array([0, 300]),
    )
    topk.logp_NK[::7, -1] = -np.inf
    topk.logp_NK[5, :] = np.float32(-70000)
    planes = encode(spec, [topk], word_N, offset_B1)
    run_14 = np.array([[0, 0, 300, 0]])
    want = gather(spec, [decode(spec, planes, offset_B1)], run_14, 300)[0]
    monkeypatch.setattr(type(CODECS[name]), "mode", None)
    for plane, data in encode(spec, [topk], word_N, offset_B1).items():
        np.testing.assert_array_equal(data, planes[plane], plane)
    np.testing.assert_array_equal(gather(spec, [decode(spec, planes, offset_B1)], run_14, 300)[0].logp_NK, want.logp_NK)
