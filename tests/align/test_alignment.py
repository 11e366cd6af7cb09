"""The alignment artefact: tiers, positions, round trip, digests, pieces on frames."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.align.alignment import (
    Alignment,
    Tier,
    UtteranceAlignment,
    aligned_to_units,
    positions,
    sequence_digest,
    word_positions,
    write_alignment,
)
from hkd.errors import UserError
from hkd.files import digest_of
from hkd.manifest import Manifest, Utterance
from hkd.units.inventory import MONOPHONE, SENONE
from kit.alignments import TOY_SILENCES, random_alignment, toy_inventories, write_random_alignment

seeds = st.integers(0, 2**32 - 1)


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("units", "bounds"), [([1], [0]), ([1], [1, 2]), ([1, 2], [0, 3, 3]), ([1, 2], [0, 3, 2]), ([1], [0, 1, 2])]
)
def test_tiers_with_gaps_or_empty_segments_are_refused(units: list[int], bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="gaps"):
        Tier(unit_U=array(*units), start_U1=array(*bounds))


@given(seeds)
def test_positions_are_the_segments_without_silence(seed: int) -> None:
    found = random_alignment(np.random.default_rng(seed))
    for level, tier in found.tiers.items():
        kept = positions(tier, TOY_SILENCES[level])
        frames = np.repeat(tier.unit_U, np.diff(tier.start_U1))
        for unit, start, stop in zip(kept.unit_U, kept.start_U, kept.stop_U, strict=True):
            assert (frames[start:stop] == unit).all()
        silent = np.isin(frames, TOY_SILENCES[level]).sum()
        assert (kept.stop_U - kept.start_U).sum() + silent == found.num_frames
        unit_U, word_U = aligned_to_units(found, level, TOY_SILENCES[level])
        assert np.array_equal(unit_U, kept.unit_U)
        assert sorted(set(word_U.tolist())) == [0, 1, 2]


@given(seeds, st.lists(st.integers(1, 7), min_size=3, max_size=3))
def test_pieces_of_a_word_share_out_its_frames_in_order(seed: int, pieces: list[int]) -> None:
    found = random_alignment(np.random.default_rng(seed))
    word_of_U = np.repeat(np.arange(3), pieces).astype(np.int32)
    placed = word_positions(found, word_of_U, np.arange(len(word_of_U), dtype=np.int32))
    tier = found.word_tier
    for word in range(3):
        mine = word_of_U == word
        (segment,) = np.flatnonzero(tier.unit_U == word)
        start, stop = placed.start_U[mine], placed.stop_U[mine]
        assert (start[0], stop[-1]) == (tier.start_U1[segment], tier.start_U1[segment + 1])
        assert np.array_equal(start[1:], stop[:-1])
        assert (stop >= start).all()
        if mine.sum() <= stop[-1] - start[0]:
            assert (stop > start).all()  # no piece goes without a frame where there are enough


def one_word(phones: list[int], pieces: int, letters: list[int]) -> list[list[int]]:
    """[start, stop] of the pieces of a word with phones of these lengths."""
    ends = np.cumsum([0, *phones]).astype(np.int32)
    row = UtteranceAlignment(
        id="u", words=("w",), word_tier=Tier(unit_U=array(0), start_U1=ends[[0, -1]]),
        tiers={MONOPHONE: Tier(unit_U=np.zeros(len(phones), np.int32), start_U1=ends)},
    )  # fmt: skip
    placed = word_positions(
        row, np.zeros(pieces, np.int32), np.arange(pieces, dtype=np.int32), letters_V=np.array(letters)
    )
    return np.stack([placed.start_U, placed.stop_U], 1).tolist()


@pytest.mark.parametrize(
    ("phones", "letters", "wanted"),
    [
        ([10] * 11, [11, 1], [[0, 100], [100, 110]]),  # ▁participant s: one of eleven phones
        ([10] * 4, [3, 3], [[0, 20], [20, 40]]),
        ([10] * 3, [9, 1, 1], [[0, 10], [10, 20], [20, 30]]),  # every piece gets a phone where there are enough
        ([12], [3, 1], [[0, 9], [9, 12]]),  # fewer phones than pieces: frames
        ([10, 10], [0, 3], [[0, 1], [1, 20]]),  # ▁ the: the mark has no letters
        ([10, 10], [0, 0], [[0, 10], [10, 20]]),
        ([2], [1, 1, 1], [[0, 1], [1, 1], [1, 2]]),  # fewer frames than pieces
    ],
)
def test_pieces_share_a_words_phones_by_their_letters(
    phones: list[int], letters: list[int], wanted: list[list[int]]
) -> None:
    assert one_word(phones, len(letters), letters) == wanted


def test_pieces_of_no_word_have_no_frames() -> None:
    found = random_alignment(np.random.default_rng(0))
    placed = word_positions(found, array(-1, 0, 7), array(1, 2, 3))
    assert placed.start_U[0] == placed.stop_U[0]
    assert placed.start_U[2] == placed.stop_U[2]
    assert placed.stop_U[1] > placed.start_U[1]


def corpus(num: int = 4) -> Manifest:
    return Manifest(Utterance(id=f"u/{n} é", text=f"word {'and more ' * n}") for n in range(num))


def test_round_trip(tmp_path: Path) -> None:
    whole = corpus()
    alignment = write_random_alignment(whole, tmp_path / "a.arrow", seed=1)
    rng = np.random.default_rng(1)
    assert list(alignment) == [u.id for u in whole]
    for u in whole:
        wanted = random_alignment(rng, id=u.id, spoken=u.text.split())
        found = alignment[u.id]
        assert (found.words, found.num_frames) == (wanted.words, wanted.num_frames)
        for one, other in zip(
            (found.word_tier, *found.tiers.values()), (wanted.word_tier, *wanted.tiers.values()), strict=True
        ):
            assert np.array_equal(one.unit_U, other.unit_U)
            assert np.array_equal(one.start_U1, other.start_U1)
    assert alignment.inventories == toy_inventories()
    assert alignment.manifest_digest == whole.digest
    again = write_random_alignment(whole, tmp_path / "b.arrow", seed=1)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    assert again.digest == alignment.digest


@pytest.mark.parametrize("rows_a_batch", [1, 3, 4, 1024])
def test_batches_of_any_size_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_a_batch: int) -> None:
    """Earlier versions wrote a batch a row."""
    whole = corpus(7)
    usual = write_random_alignment(whole, tmp_path / "a.arrow", seed=3)
    monkeypatch.setattr("hkd.align.alignment._BATCH_ROWS", rows_a_batch)
    other = write_random_alignment(whole, tmp_path / "b.arrow", seed=3)
    assert other[whole[6].id].num_frames == usual[whole[6].id].num_frames  # read batch by batch
    assert other.digest == usual.digest
    monkeypatch.undo()
    other = Alignment(tmp_path / "b.arrow")  # read as one
    assert list(other) == list(usual)
    parts: list[str | bytes] = []
    for level in (MONOPHONE, SENONE):
        parts += [level, other.inventories[level].digest]
        offset_N1, unit = other.unit_sequences(level)
        for row, name in enumerate(other):
            wanted = usual.positions(name, level)
            assert np.array_equal(unit[offset_N1[row] : offset_N1[row + 1]], wanted.unit_U)
            assert np.array_equal(other.positions(name, level).start_U, wanted.start_U)
            assert np.array_equal(other[name].word_tier.start_U1, usual[name].word_tier.start_U1)
            assert other[name].words == usual[name].words
    for name in sorted(usual):
        parts += [name, *(usual.positions(name, level).unit_U.astype("<i4").tobytes() for level in (MONOPHONE, SENONE))]
    assert other.digest == usual.digest == digest_of(parts)


def test_an_alignment_of_no_phones_or_no_utterances_has_a_digest(tmp_path: Path) -> None:
    row = random_alignment(np.random.default_rng(0))
    words_alone = type(row)(id=row.id, words=row.words, word_tier=row.word_tier, tiers={})
    common = {"manifest_digest": "", "aligner": {}, "failed": {}}
    write_alignment(tmp_path / "a.arrow", [words_alone], inventories={}, silences={}, **common)
    assert Alignment(tmp_path / "a.arrow").digest == digest_of([row.id])
    write_alignment(tmp_path / "b.arrow", [], inventories=toy_inventories(), silences=TOY_SILENCES, **common)
    empty = Alignment(tmp_path / "b.arrow")
    assert (len(empty), empty.unit_sequences(SENONE)[0].tolist()) == (0, [0])
    assert len(empty.digest) == 64


def test_the_digest_covers_units_and_not_times(tmp_path: Path) -> None:
    def write(name: str, change) -> str:
        row = random_alignment(np.random.default_rng(0))
        tiers = {
            level: Tier(unit_U=change(level, t.unit_U.copy()), start_U1=stretch * t.start_U1)
            for level, t in row.tiers.items()
        }
        changed = type(row)(
            id=row.id,
            words=row.words,
            word_tier=Tier(unit_U=row.word_tier.unit_U, start_U1=stretch * row.word_tier.start_U1),
            tiers=tiers,
        )
        write_alignment(
            tmp_path / name,
            [changed],
            manifest_digest="",
            inventories=toy_inventories(),
            silences=TOY_SILENCES,
            aligner={},
            failed={},
        )
        return Alignment(tmp_path / name).digest

    def other_unit(level: str, unit_U: np.ndarray) -> np.ndarray:
        if level == SENONE:
            at = np.flatnonzero(~np.isin(unit_U, TOY_SILENCES[SENONE]))[0]
            unit_U[at] ^= 1
        return unit_U

    stretch = 1
    first = write("a", lambda level, unit_U: unit_U)
    assert write("b", other_unit) != first
    stretch = 2
    assert write("c", lambda level, unit_U: unit_U) == first


def test_unknown_ids_and_broken_files_are_sentences(tmp_path: Path) -> None:
    alignment = write_random_alignment(corpus(), tmp_path / "a.arrow")
    with pytest.raises(UserError, match="'nobody' has no alignment"):
        alignment["nobody"]
    assert "nobody" not in alignment
    with pytest.raises(UserError, match="hkd align"):
        Alignment(tmp_path / "none.arrow")
    data = (tmp_path / "a.arrow").read_bytes()
    for name, content in {"text": b"text", "empty": b"", "cut": data[: len(data) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="must be an alignment"):
            Alignment(tmp_path / name)


def test_sequence_digests_are_eight_bytes_of_the_ids() -> None:
    assert sequence_digest(array(1, 2)) == sequence_digest(np.array([1, 2], np.int64))
    assert len(sequence_digest(array())) == 8
    assert len({sequence_digest(array(*ids)) for ids in ([], [0], [0, 0], [1], [1, 2], [2, 1])}) == 6


def test_a_position_is_of_the_word_that_it_begins_in() -> None:
    word_tier = Tier(unit_U=array(-1, 0, 1), start_U1=array(0, 3, 5, 9))
    tier = Tier(unit_U=array(4, 2, 0, 3, 1, 2), start_U1=array(0, 2, 3, 4, 5, 8, 9))
    row = UtteranceAlignment(id="u", words=("a", "b"), word_tier=word_tier, tiers={MONOPHONE: tier})
    unit_U, word_U = aligned_to_units(row, MONOPHONE, [0])
    assert (unit_U.tolist(), word_U.tolist()) == ([4, 2, 3, 1, 2], [-1, -1, 0, 1, 1])
