"""What does not fit together is refused in one line with both digests; what only looks different is not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd import manifest as manifests
from hkd.align.alignment import Alignment, Positions, Tier, UtteranceAlignment, sequence_digest, write_alignment
from hkd.errors import UserError
from hkd.labels.format import LEFT_OUT
from hkd.labels.ops import utterances_of
from hkd.labels.store import LabelWriter, open_stores
from hkd.manifest import Manifest, Utterance
from hkd.stream.join import Join, measure, place
from hkd.timebase import num_encoder_frames, retime
from hkd.units.inventory import UnitInventory
from hkd.units.sequences import SubwordModel
from hkd.units.text import text_digest, words
from kit.labelled import label_folder


def opened(folder: Path, **changes: Any) -> Join:
    parts: dict[str, Any] = {
        "manifest": manifests.read(folder / "manifest.jsonl"),
        "subwords": SubwordModel(folder / "units" / "subword.model"),
        "alignment": Alignment(folder / "alignment.arrow"),
        "stores": open_stores(folder / "shards"),
    }
    parts |= changes
    return Join(parts.pop("manifest"), **parts)


def checked(join: Join) -> None:
    join.check(join.manifest)


def rewritten(
    folder: Path, out: Path, change: Callable[[UtteranceAlignment], UtteranceAlignment], **meta: Any
) -> Alignment:
    """The folder's alignment with each row changed."""
    old = Alignment(folder / "alignment.arrow")
    options: dict[str, Any] = {
        "manifest_digest": old.manifest_digest, "inventories": old.inventories, "silences": old.silences,
        "aligner": old.aligner,
        "failed": old.failed,
    }  # fmt: skip
    write_alignment(out, (change(old[name]) for name in old), **{**options, **meta})
    return Alignment(out)


def test_what_fits_is_accepted(labelled: Path) -> None:
    checked(opened(labelled))


def test_moved_audio_and_other_splits_are_accepted(labelled: Path) -> None:
    whole = manifests.read(labelled / "manifest.jsonl")
    moved = Manifest(
        Utterance(id=u.id, text=f" {u.text.upper()}!", audio_filepath="/elsewhere.wav", extra={"split": "train"})
        for u in whole
    )
    checked(opened(labelled, manifest=moved))


def test_a_retimed_alignment_is_accepted(labelled: Path, tmp_path: Path) -> None:
    def late(row: UtteranceAlignment) -> UtteranceAlignment:
        def move(tier: Tier) -> Tier:
            start_U1 = tier.start_U1.copy()
            middle = start_U1[1:-1]
            start_U1[1:-1] = np.minimum(middle + 1, start_U1[2:] - 1)
            return Tier(unit_U=tier.unit_U, start_U1=start_U1)

        return replace(row, tiers={level: move(tier) for level, tier in row.tiers.items()})

    retimed = rewritten(labelled, tmp_path / "a.arrow", late)
    assert (
        retimed["utt000"].tiers["monophone"].start_U1.tolist()
        != Alignment(labelled / "alignment.arrow")["utt000"].tiers["monophone"].start_U1.tolist()
    )
    checked(opened(labelled, alignment=retimed))


def test_an_edited_transcript_is_refused_with_both_digests(labelled: Path) -> None:
    whole = manifests.read(labelled / "manifest.jsonl")
    edited = Manifest(replace(u, text=u.text + " indeed") if u.id == "utt004" else u for u in whole)
    before, after = (text_digest(words(m.by_id("utt004").text)).hex() for m in (whole, edited))
    with pytest.raises(
        UserError, match=f"'utt004': the transcript .* aligned, digest {before}, but is another, digest {after}"
    ):
        checked(opened(labelled, manifest=edited))
    stores = {"subword": open_stores(labelled / "shards")["subword"]}
    with pytest.raises(
        UserError, match=f"'utt004': .* labelled in store 'subword', digest {before}, .* digest {after}"
    ):
        checked(opened(labelled, manifest=edited, alignment=None, stores=stores))


def test_an_alignment_that_gives_another_unit_sequence_is_refused_with_both_digests(
    labelled: Path, tmp_path: Path
) -> None:
    def other(row: UtteranceAlignment) -> UtteranceAlignment:
        tier = row.tiers["monophone"]
        unit_U = tier.unit_U.copy()
        unit_U[2] = (unit_U[2] + 1) % 40
        return (
            replace(row, tiers={**row.tiers, "monophone": replace(tier, unit_U=unit_U)}) if row.id == "utt002" else row
        )

    realigned = rewritten(labelled, tmp_path / "a.arrow", other)
    old, new = (
        sequence_digest(a.positions("utt002", "monophone").unit_U).hex()
        for a in (Alignment(labelled / "alignment.arrow"), realigned)
    )
    with pytest.raises(
        UserError, match=f"'utt002': the alignment .* store 'monophone' .* digest {old}, but gives {new}"
    ):
        checked(opened(labelled, alignment=realigned))


def test_an_inventory_that_does_not_fit_is_refused_with_both_digests(labelled: Path, tmp_path: Path) -> None:
    old = Alignment(labelled / "alignment.arrow").inventories
    symbols = old["senone"].symbols
    swapped = UnitInventory(level="senone", symbols=(symbols[1], symbols[0], *symbols[2:]))
    alignment = rewritten(labelled, tmp_path / "a.arrow", lambda row: row, inventories={**old, "senone": swapped})
    with pytest.raises(
        UserError, match=f"'senone' must have .* digest {swapped.digest}, but has {old['senone'].digest}"
    ):
        opened(labelled, alignment=alignment)


def test_foreign_pieces_serve_an_auxiliary_head_and_are_refused_for_interpolation(
    labelled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(labelled, folder)
    foreign = UnitInventory(level="subword", symbols=tuple(f"piece{n}" for n in range(30)))
    label_folder(folder, levels=["subword"], inventory=foreign, shards="foreign")
    stores = open_stores(folder / "foreign")
    join = opened(folder, stores=stores)
    checked(join)
    found = join.positions("utt000", "subword")
    row = Alignment(folder / "alignment.arrow")["utt000"]
    spoken = row.word_tier.unit_U >= 0
    assert found.start_U.tolist() == row.word_tier.start_U1[:-1][spoken].tolist()  # its pieces are whole words
    own = join.subwords.inventory.digest
    with pytest.raises(UserError, match=f"subword inventory, digest {own}, but has {foreign.digest}"):
        opened(folder, stores=stores, same_units=["subword"])


def test_an_utterance_that_was_left_out_of_the_dump_has_no_labels(labelled: Path, tmp_path: Path) -> None:
    whole = open_stores(labelled / "shards")["monophone"]
    ids = list(whole.ids)
    first, *others = utterances_of(whole, ids)
    left = replace(first, topk=first.topk[:0], word_U=first.word_U[:0], unit_digest=LEFT_OUT)
    writer = LabelWriter.open(tmp_path / "monophone", whole.spec, ids)
    writer.write_shard(0, [left, *others])
    writer.finish()
    join = opened(labelled, stores=open_stores(tmp_path))
    checked(join)
    assert [join.stores["monophone"].labels(name) for name in ids] == [False, *(True for _ in others)]
    utterances = [join.manifest.by_id(name) for name in ids]
    covered = measure(
        join, utterances, frames=dict.fromkeys(ids, 300), needed={}, hard={}, soft={"monophone": 1}
    ).heads[0]
    assert (covered.covered, covered.missing) == (len(others), (first.id,))


def test_a_head_has_the_kept_units_and_one_for_the_rest(labelled: Path) -> None:
    store = opened(labelled).stores["senone"]
    kept = store.reader.kept_ids()
    assert store.num_units == len(kept) + 1 < len(store.reader.spec.inventory)
    assert store.head_unit_V[kept].tolist() == list(range(len(kept)))
    assert set(np.delete(store.head_unit_V, kept).tolist()) == {len(kept)}
    untrimmed = opened(labelled, trim=False).stores["senone"]
    assert untrimmed.num_units == len(untrimmed.reader.spec.inventory)
    assert (untrimmed.head_unit_V == np.arange(untrimmed.num_units)).all()


# ----------------------------------------------------------------------------------------------------
# Placement against a search frame by frame.


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=20),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.9, 1.0, 1.1]),
    st.integers(0, 5),
)
def test_a_slot_carries_the_position_over_its_middle_frame(
    runs: list[tuple[int, int]], slots: int, speed: float, after: int
) -> None:
    start_U, stop_U, now = [], [], 0
    for gap, length in runs:
        start_U.append(now + gap)
        now += gap + length
        stop_U.append(now)
    found = Positions(
        unit_U=np.zeros(len(runs), np.int32), start_U=np.array(start_U, np.int32), stop_U=np.array(stop_U, np.int32)
    )
    num_frames = max(1, int(retime(np.array([now + after]), speed)[0]))
    slot_M, position_M = place(found, num_frames=num_frames, slots=slots, speed=speed)
    expected = {}
    width = 4 // slots
    for s in range(num_encoder_frames(num_frames) * slots):
        middle = min(s * width + width // 2, num_frames - 1)
        for u, (start, stop) in enumerate(zip(start_U, stop_U, strict=True)):
            bounds = retime(np.array([start, stop]), speed)
            if s * width < num_frames and bounds[0] <= middle < bounds[1]:
                expected[s] = u
    assert dict(zip(slot_M.tolist(), position_M.tolist(), strict=True)) == expected


def test_at_ten_milliseconds_every_frame_is_its_own_slot() -> None:
    found = Positions(unit_U=np.array([5, 6]), start_U=np.array([1, 3]), stop_U=np.array([3, 4]))
    slot_M, position_M = place(found, num_frames=6, slots=4)
    assert slot_M.tolist() == [1, 2, 3]
    assert position_M.tolist() == [0, 0, 1]
