"""Utterances to look at: which are chosen, errors marked, the teacher's candidates true to the store."""

import base64
import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from hkd.align.alignment import Alignment
from hkd.audio import read_audio
from hkd.evaluate.report import examples, flac_address, marked
from hkd.evaluate.result import read_result
from hkd.labels.store import open_stores
from hkd.manifest import read as read_manifest

WORDS = st.lists(st.sampled_from(["a", "b<", "c&d"]), max_size=6).map(" ".join)


@given(WORDS, WORDS)
def test_marks_count_the_errors_and_escape(reference: str, hypothesis: str) -> None:
    markup, wrong = marked(reference, hypothesis)
    assert (wrong == 0) == (reference == hypothesis)
    assert "<" not in str(markup).replace("<mark", "").replace("</mark", "").replace("<ins", "").replace("</ins", "").replace(
        "<del", ""
    ).replace("</del", "")
    if wrong == 0:
        assert markup.unescape() == hypothesis


def test_sound_survives_as_a_data_address() -> None:
    wave_S = np.round(np.sin(np.arange(1600) / 9) * 32767).astype(np.float32) / 32768
    head, _, body = flac_address(wave_S).partition(",")
    assert head == "data:audio/flac;base64"
    back, rate = soundfile.read(io.BytesIO(base64.b64decode(body)), dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(back, wave_S)


def test_candidates_are_the_stores(evaluated) -> None:  # type: ignore[no-untyped-def]
    reports, stores = [read_result(evaluated.runs[0], "test")], open_stores(evaluated.labels)
    arguments = {"reports": reports, "alignment": Alignment(evaluated.alignment), "stores": stores}
    [example] = examples(read_manifest(evaluated.manifest), number=1, **arguments)
    assert [labels["store"] for labels in example["labels"]] == list(stores)
    for labels in example["labels"]:
        store = stores[labels["store"]]
        topk, symbols = store.block([example["id"]]).topk, store.spec.inventory.symbols
        assert len(labels["positions"]) == len(topk)
        for n, row in enumerate(labels["positions"]):
            assert row["unit"] == symbols[topk.gold_N[n]]
            assert row["start_s"] is not None
            assert [c["unit"] for c in row["candidates"]] == [symbols[i] for i in topk.ids_NK[n, :5]]
            assert row["p"] == pytest.approx(np.exp(topk.gold_logp_N[n]))
            assert sum(c["p"] for c in row["candidates"]) <= 1.02
            assert f"{row['unit']} · {row['candidates'][0]['unit']}" in example["drawing"].unescape()


def test_examples_show_where_the_runs_differ(evaluated) -> None:  # type: ignore[no-untyped-def]
    manifest, reports = read_manifest(evaluated.manifest), [read_result(run, "test") for run in evaluated.runs]
    stores = open_stores(evaluated.labels)
    found = examples(manifest, reports=reports, alignment=Alignment(evaluated.alignment), stores=stores, number=2)
    assert len(found) == 2
    spreads = []
    for example in found:
        assert example["split"] == "test"
        assert example["seconds"] == pytest.approx(len(read_audio(manifest.by_id(example["id"]))) / 16_000)
        assert [run for run, _, _ in example["hypotheses"]] == [report.run for report in reports]
        assert {o["store"] for o in example["labels"]} == set(stores)
        assert example["drawing"] is not None
        wrong = [errors for _, _, errors in example["hypotheses"]]
        spreads.append(max(wrong) - min(wrong))
    assert spreads == sorted(spreads, reverse=True)


def test_without_alignment_or_stores_there_is_still_sound_and_text(evaluated) -> None:  # type: ignore[no-untyped-def]
    reports = [read_result(evaluated.runs[0], "test")]
    (example,) = examples(read_manifest(evaluated.manifest), reports=reports, alignment=None, stores={}, number=1)
    assert example["drawing"] is None
    assert example["labels"] == []
    assert example["audio"] is not None
