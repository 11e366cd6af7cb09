"""Batches hold what the alignment and the stores say, re-timed with the sound, whoever makes them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.features.cache import FeatureSource
from hkd.features.fbank import AugmentConfig, draw_speed, generator
from hkd.labels.store import open_stores
from hkd.stream.join import Join
from hkd.stream.loader import Batch, BatchMaker, BatchPlan, Shares, batches
from hkd.timebase import num_encoder_frames, retime
from hkd.units.sequences import SubwordModel


@pytest.fixture(scope="module")
def maker(labelled: Path) -> BatchMaker:
    whole = manifests.read(labelled / "manifest.jsonl")
    join = Join(
        whole,
        subwords=SubwordModel(labelled / "units" / "subword.model"),
        alignment=Alignment(labelled / "alignment.arrow"),
        stores=open_stores(labelled / "shards"),
    )
    return BatchMaker(
        utterances=list(whole.split("train")), join=join, features=FeatureSource(), hard={"senone": 4, "subword": 1},
        soft={"senone": 4, "monophone": 1}, fill_F=np.zeros(80, np.float32),
    )  # fmt: skip


def same(a: Batch, b: Batch) -> None:
    assert a.ids == b.ids
    assert torch.equal(a.x_BTF, b.x_BTF)
    for store, soft in a.soft.items():
        for name in ("ids_NK", "logp_NK", "tail_N", "slot_M", "position_M", "offset_B1"):
            assert torch.equal(getattr(soft, name), getattr(b.soft[store], name))
    for level, hard in a.hard.items():
        assert torch.equal(hard.slot_M, b.hard[level].slot_M)
        assert torch.equal(hard.unit_M, b.hard[level].unit_M)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_every_slot_carries_what_was_said_at_its_time_at_that_speed(maker: BatchMaker, speed: float) -> None:
    batch = replace(maker, augment=AugmentConfig(speeds=(speed,)))([0, 3, 1])
    assert batch is not None
    alignment = maker.join.alignment
    assert alignment is not None
    slots = num_encoder_frames(batch.x_BTF.shape[1]) * 4
    label_of = dict(zip(batch.hard["senone"].slot_M.tolist(), batch.hard["senone"].unit_M.tolist(), strict=True))
    soft = batch.soft["senone"]
    position_of = dict(zip(soft.slot_M.tolist(), soft.position_M.tolist(), strict=True))
    store = maker.join.stores["senone"]
    for b, name in enumerate(batch.ids):
        tier = alignment[name].tiers["senone"]
        start_U1 = retime(tier.start_U1.astype(np.int64), speed)
        silences = set(alignment.silences["senone"])
        position = int(soft.offset_B1[b])
        for u, unit in enumerate(tier.unit_U.tolist()):
            for frame in range(start_U1[u], min(start_U1[u + 1], int(batch.length_B[b]))):
                assert label_of[b * slots + frame] == unit
                if unit in silences:
                    assert b * slots + frame not in position_of
                else:
                    assert position_of[b * slots + frame] == position
                    assert int(soft.gold_N[position]) == store.head_unit_V[unit]
            position += unit not in silences
        assert position == int(soft.offset_B1[b + 1])
    assert torch.all(torch.logsumexp(torch.cat([soft.logp_NK, soft.tail_N[:, None]], 1), 1).abs() < 0.02)


def test_an_utterance_is_augmented_alike_in_any_company(maker: BatchMaker) -> None:
    augmented = replace(maker, augment=AugmentConfig(noise_probability=0.5), seed=3)
    together, alone = augmented([0, 1, 2], epoch=5), augmented([1], epoch=5)
    assert together is not None
    assert alone is not None
    length = int(alone.length_B[0])
    assert int(together.length_B[1]) == length
    assert torch.equal(together.x_BTF[1, :length], alone.x_BTF[0])
    assert torch.all(together.x_BTF[1, length:] == 0)
    later = augmented([1], epoch=6)
    assert later is not None
    assert later.x_BTF.shape != alone.x_BTF.shape or not torch.equal(later.x_BTF, alone.x_BTF)
    random = generator(3, 5, alone.ids[0])
    assert abs(length - alone.seconds * 100) < 1e-6
    assert draw_speed(augmented.augment, random) in (0.9, 1.0, 1.1)


def test_a_share_of_the_utterances_is_alone_by_seed_epoch_and_id(maker: BatchMaker) -> None:
    rows = list(range(6))
    drawn = [replace(maker, alone=0.5, seed=3)(rows, epoch=epoch) for epoch in range(20)]
    alone_EB = torch.stack([batch.alone_B for batch in drawn if batch is not None and batch.alone_B is not None])
    assert 0.3 < float(alone_EB.float().mean()) < 0.7
    assert bool((alone_EB != alone_EB[0]).any())
    again = replace(maker, alone=0.5, seed=3)([4, 1], epoch=7)
    assert again is not None
    assert again.alone_B is not None
    assert again.alone_B.tolist() == alone_EB[7, [4, 1]].tolist()
    without = maker(rows)
    assert without is not None
    assert without.alone_B is None


def test_strides_show_every_nth_slot_and_over_the_epochs_all_of_them(maker: BatchMaker) -> None:
    whole = maker([0, 1])
    assert whole is not None
    seen: set[tuple[int, int]] = set()
    for epoch in range(30):
        part = replace(maker, stride={"senone": 3})([0, 1], epoch=epoch)
        assert part is not None
        for all_, some in ((whole.hard["senone"], part.hard["senone"]), (whole.soft["senone"], part.soft["senone"])):
            assert abs(len(some.slot_M) - len(all_.slot_M) / 3) <= 2
            assert set(some.slot_M.tolist()) < set(all_.slot_M.tolist())
        assert torch.equal(part.hard["subword"].slot_M, whole.hard["subword"].slot_M)
        seen |= set(zip(part.hard["senone"].slot_M.tolist(), part.hard["senone"].unit_M.tolist(), strict=True))
    assert seen == set(zip(whole.hard["senone"].slot_M.tolist(), whole.hard["senone"].unit_M.tolist(), strict=True))


def test_workers_and_resuming_give_the_same_batches_as_this_process(maker: BatchMaker) -> None:
    augmented = replace(maker, augment=AugmentConfig())
    plan = BatchPlan([300] * len(maker.utterances), batch_frames=600, seed=0)
    here = batches(Shares(maker=augmented, plan=plan), start_step=0, rank=0, world_size=1)
    first = [next(here) for _ in range(5)]
    for workers, start in ((0, 3), (2, 2)):
        there = batches(Shares(maker=augmented, plan=plan), start_step=start, rank=0, world_size=1, workers=workers)
        for step in range(start, 5):
            batch, expected = next(there), first[step]
            assert batch is not None
            assert expected is not None
            same(batch, expected)


def test_an_empty_share_is_none_and_utterances_without_labels_have_none(maker: BatchMaker, labelled: Path) -> None:
    assert maker([]) is None
    store = maker.join.stores["senone"]

    class Half:
        """A reader that lacks the first utterance."""

        spec = store.reader.spec

        def __contains__(self, name: object) -> bool:
            return name != maker.utterances[0].id

        def block(self, ids: list[str]) -> object:
            return store.reader.block(ids)

        def unit_digest(self, name: str) -> bytes:
            return store.reader.unit_digest(name)

    join = Join(maker.join.manifest, subwords=maker.join.subwords, alignment=maker.join.alignment)
    join.stores = {"senone": replace(store, reader=Half())}  # type: ignore[arg-type]
    batch = replace(maker, join=join, soft={"senone": 4})([0, 1])
    assert batch is not None
    soft = batch.soft["senone"]
    assert soft.offset_B1[:2].tolist() == [0, 0]
    assert int(soft.slot_M.min()) >= num_encoder_frames(batch.x_BTF.shape[1]) * 4
    assert int(soft.offset_B1[2]) == len(soft.ids_NK)
