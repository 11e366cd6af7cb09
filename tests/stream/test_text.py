"""Text becomes what would be heard: segments in order, labels on their frames, the same draw in any company."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd import manifest as manifests
from hkd.align.alignment import Alignment
from hkd.labels.store import open_stores
from hkd.manifest import Manifest, Utterance
from hkd.stream.join import Join
from hkd.stream.loader import BatchPlan, Shares
from hkd.stream.text import EDGE, SILENCE, Bank, Segments, SpeechAndText, TextBatch, TextMaker, TextShares, encode
from hkd.units.inventory import SUBWORD
from hkd.units.sequences import Units
from kit.labelled import label_folder

SENTENCES = ("the old dog", "a green door", "seven apples")


def sure_bank(num_phones: int, symbols: tuple[str, ...], *, pauses: tuple[float, float, float]) -> Bank:
    """A bank in which phone p lasts 1 + p % 3 frames that surely say p, a pause two that say the last unit."""
    phone = np.array([*range(num_phones), SILENCE], np.int64)
    count = np.array([*(1 + p % 3 for p in range(num_phones)), 2], np.int64)
    around = np.full(len(phone), EDGE)
    said = np.repeat(np.where(phone == SILENCE, num_phones - 1, phone), count)[:, None]
    return Bank(
        segments=Segments(phone, around, around, np.cumsum(count) - count, count),
        heads={"hard-monophone": (said.astype(np.int32), np.ones(said.shape, np.float16))},
        facts={"heads": {"hard-monophone": num_phones}, "phones": list(symbols), "pauses": pauses},
    )


@pytest.fixture(scope="module")
def maker(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> TextMaker:
    folder = tmp_path_factory.mktemp("text")
    for name in ("alignment.arrow", "units"):
        (folder / name).symlink_to(prepared / name)
    whole = Manifest([Utterance(id=f"s{n}", text=text) for n, text in enumerate(SENTENCES)])
    manifests.write(folder / "text.jsonl", whole)
    label_folder(folder, manifest="text.jsonl")
    units = Units(folder / "units")
    join = Join(
        whole,
        subwords=units.spelling(SUBWORD),
        alignment=Alignment(folder / "alignment.arrow"),
        stores=open_stores(folder / "shards"),
    )
    phones = units.inventory("monophone")
    said = [(u.id, join.words(u.id)) for u in whole]
    return TextMaker(
        utterances=list(whole), join=join, bank=sure_bank(len(phones), phones.symbols, pauses=(0, 0, 0)),
        heads={"hard-monophone": "monophone"},
        sequences={level: encode(units, said, level) for level in ("monophone", "senone")},
        hard={"senone": 4, "subword": 1, "monophone": 1}, soft={"monophone": 1, "subword": 1},
    )  # fmt: skip


def labels(batch: TextBatch, b: int, slots: int, slot_M: torch.Tensor, value_M: torch.Tensor) -> dict[int, int]:
    """Slot of utterance b → its label."""
    width = int(batch.length_B.max()) // 4 * slots
    return {s - b * width: v for s, v in zip(slot_M.tolist(), value_M.tolist(), strict=True) if s // width == b}


def test_sure_posteriors_are_the_phones_with_their_durations(maker: TextMaker) -> None:
    batch = maker([0, 2])
    assert isinstance(batch, TextBatch)
    for b, row in enumerate((0, 2)):
        phone_U, word_U = maker.sequences["monophone"].row(row)
        said = np.repeat(phone_U, 1 + phone_U % 3)
        assert int(batch.length_B[b]) == 4 * len(said)
        p_TV = batch.posteriors["hard-monophone"][b]
        assert torch.equal(p_TV[: len(said)], torch.eye(p_TV.shape[1])[said.tolist()])
        assert not bool(p_TV[len(said) :].any())
        hard = batch.hard["monophone"]
        assert labels(batch, b, 1, hard.slot_M, hard.unit_M) == dict(enumerate(said.tolist()))
        senone_Q, _ = maker.sequences["senone"].row(row)
        assert len(senone_Q) == 3 * len(phone_U)
        expected = [
            int(senone_Q[3 * u + sum(frame >= 4 * frames * state // 3 for state in (1, 2))])
            for u, frames in enumerate((1 + phone_U % 3).tolist())
            for frame in range(4 * frames)
        ]
        hard = batch.hard["senone"]
        assert labels(batch, b, 4, hard.slot_M, hard.unit_M) == dict(enumerate(expected))
        soft = batch.soft["subword"]
        _, piece_word_U = maker.join.subwords.encode(maker.join.words(maker.utterances[row].id))
        word_T = np.repeat(word_U, 1 + phone_U % 3)
        for slot, position in labels(batch, b, 1, soft.slot_M, soft.position_M - soft.offset_B1[b]).items():
            assert piece_word_U[position] == word_T[slot]
    target = [maker.join.target(maker.utterances[row]) + 1 for row in (0, 2)]
    assert batch.target_L.tolist() == np.concatenate(target).tolist()


def test_pauses_and_repeats_are_heard_and_have_no_labels_of_a_store(maker: TextMaker) -> None:
    phones = maker.bank.facts["phones"]
    paused = replace(maker, bank=sure_bank(len(phones), phones, pauses=(1, 1, 1)), repeats=0.999)
    batch = paused([0])
    assert isinstance(batch, TextBatch)
    phone_U, word_U = maker.sequences["monophone"].row(0)
    expected: list[int] = []
    labelled: list[int] = []
    for word in range(3):
        once = np.repeat(phone_U[word_U == word], 1 + phone_U[word_U == word] % 3).tolist()
        expected += [len(phones) - 1] * 2 + once + once
        labelled += [0] * (2 + len(once)) + [1] * len(once)
    expected += [len(phones) - 1] * 2
    labelled += [0, 0]
    assert batch.posteriors["hard-monophone"][0].argmax(1).tolist() == expected
    for name in ("monophone", "subword"):
        assert batch.soft[name].slot_M.tolist() == np.flatnonzero(labelled).tolist()
        assert len(batch.soft[name].ids_NK) == batch.soft[name].offset_B1[1] == batch.soft[name].position_M.max() + 1


def test_masked_phones_are_flat_and_only_there_a_masked_levels_store_is_read(maker: TextMaker) -> None:
    masking = replace(maker, masked=0.4, masked_only=("monophone",))
    batches = [masking([0, 1, 2], epoch=epoch) for epoch in range(8)]
    shares = []
    for batch in batches:
        assert isinstance(batch, TextBatch)
        p_NV = batch.posteriors["hard-monophone"].flatten(0, 1)
        flat = ((p_NV.std(1) < 1e-6) & (p_NV.sum(1) > 0)).nonzero()[:, 0]
        assert torch.allclose(p_NV[flat], torch.tensor(1 / p_NV.shape[1]))
        assert batch.soft["monophone"].slot_M.tolist() == flat.tolist()
        whole = maker([0, 1, 2])
        assert isinstance(whole, TextBatch)
        assert torch.equal(batch.soft["subword"].slot_M, whole.soft["subword"].slot_M)
        assert torch.equal(batch.hard["monophone"].slot_M, whole.hard["monophone"].slot_M)
        shares.append(len(flat) / len(whole.hard["monophone"].slot_M))
    assert 0.25 < np.mean(shares) < 0.55


def test_clean_posteriors_are_the_units_themselves(maker: TextMaker) -> None:
    unsure = sure_bank(len(maker.bank.facts["phones"]), maker.bank.facts["phones"], pauses=(0, 0, 0))
    ids_FK, p_FK = unsure.heads["hard-monophone"]
    unsure = replace(unsure, heads={"hard-monophone": (ids_FK, p_FK / 2)})
    sure, clean = maker([0, 1]), replace(maker, bank=unsure, posteriors="clean")([0, 1])
    assert isinstance(sure, TextBatch)
    assert isinstance(clean, TextBatch)
    torch.testing.assert_close(clean.posteriors["hard-monophone"], sure.posteriors["hard-monophone"])


def test_a_sentence_is_said_alike_in_any_company_and_anew_in_each_epoch(maker: TextMaker) -> None:
    phones = maker.bank.facts["phones"]
    free = replace(maker, bank=sure_bank(len(phones), phones, pauses=(0.5, 0.5, 0.5)), repeats=0.3, masked=0.3, seed=5)
    together, single = free([0, 1, 2], epoch=4), free([1], epoch=4)
    assert isinstance(together, TextBatch)
    assert isinstance(single, TextBatch)
    length = int(single.length_B[0]) // 4
    assert int(together.length_B[1]) == 4 * length
    assert torch.equal(together.posteriors["hard-monophone"][1, :length], single.posteriors["hard-monophone"][0])
    others = [free([1], epoch=epoch) for epoch in range(5, 9)]
    assert any(
        isinstance(o, TextBatch)
        and not torch.equal(o.posteriors["hard-monophone"], single.posteriors["hard-monophone"])
        for o in others
    )
    assert free([]) is None


def test_shares_of_a_step_are_the_whole_and_text_ends_where_it_is_told_to(maker: TextMaker) -> None:
    plan = BatchPlan(maker.lengths(), batch_frames=60, seed=0)
    shares = TextShares(speech=lambda step, rank, world_size: None, text=Shares(maker=maker, plan=plan), last_step=2)
    for step in range(2):
        whole = shares(step, 0, 1)
        assert isinstance(whole, SpeechAndText)
        parts = [shares(step, rank, 4) for rank in range(4)]
        assert sorted(name for part in parts if part is not None for name in part.ids) == sorted(whole.ids)
        assert any(part is None for part in parts)
        assert whole.text is not None
        assert whole.seconds == whole.text.seconds
    assert shares(2, 0, 1) is None
    lengths = np.array(maker.lengths())
    assert np.all(lengths > 0)
    assert lengths.argmax() == max(range(3), key=lambda n: len(maker.sequences["monophone"].row(n)[0]))
