"""A bank cuts at phones, keeps their neighbours, and draws segments that fit."""

from pathlib import Path

import numpy as np
import pytest

from hkd.align.alignment import Tier, UtteranceAlignment
from hkd.errors import UserError
from hkd.stream.text import EDGE, LEAST, SILENCE, Bank, Segments, cut, pauses


def row(units: list[int], starts: list[int], words: list[int], word_starts: list[int]) -> UtteranceAlignment:
    def tier(unit: list[int], start: list[int]) -> Tier:
        return Tier(unit_U=np.array(unit, np.int32), start_U1=np.array(start, np.int32))

    return UtteranceAlignment(
        id="a", words=("x", "y"), word_tier=tier(words, word_starts), tiers={"monophone": tier(units, starts)}
    )


# 8 and 9 are silences
ROW = row([9, 8, 1, 2, 3, 9, 1], [0, 4, 10, 13, 14, 22, 25, 33], [-1, 0, -1, 1], [0, 10, 22, 25, 33])


def test_segments_are_the_frames_whose_middle_lies_in_the_phone() -> None:
    """Middles of the encoder frames: 2, 6, 10, 14, 18, 22, 26, 30, 34. Phone 2 (frame 13 alone) has none: it takes the
    one that covers 13."""
    found = cut(ROW, [8, 9], 9)
    assert found.phone_S.tolist() == [SILENCE, 1, 2, 3, SILENCE, 1]
    assert found.left_S.tolist() == [EDGE, SILENCE, 1, 2, 3, SILENCE]
    assert found.right_S.tolist() == [1, 2, 3, SILENCE, 1, EDGE]
    assert list(zip(found.first_S.tolist(), found.count_S.tolist(), strict=True)) == [
        (0, 2),
        (2, 1),
        (3, 1),
        (3, 2),
        (5, 1),
        (6, 2),
    ]


def test_pauses_are_counted_before_between_and_after_words() -> None:
    silent = row([1, 2], [0, 8, 16], [0, 1], [0, 8, 16])
    both = [(r, cut(r, [8, 9], 9)) for r in (ROW, silent)]
    assert pauses(both) == (0.5, 0.5, 0.0)


def bank(
    phone: list[int],
    left: list[int],
    right: list[int],
    count: list[int],
    **heads: tuple[int, list[list[int]], list[list[float]]],
) -> Bank:
    first = np.cumsum([0, *count[:-1]])
    columns = (np.array(column, np.int64) for column in (phone, left, right, first, count))
    return Bank(
        segments=Segments(*columns),
        heads={name: (np.array(ids, np.int32), np.array(p, np.float16)) for name, (_, ids, p) in heads.items()},
        facts={
            "heads": {name: units for name, (units, _, _) in heads.items()},
            "phones": ["A", "B", "C"],
            "pauses": [0, 0, 0],
        },
    )


def test_draws_back_off_from_both_neighbours_to_one_to_none() -> None:
    """A between B and C is there often enough; between C and C only its right neighbour is; B has no neighbours that
    fit at all."""
    phone = [0] * (LEAST + 2) + [1, 2]
    left = [1] * LEAST + [0, EDGE] + [0, 1]
    right = [2] * LEAST + [2, 0] + [0, 0]
    known = bank(phone, left, right, [1] * len(phone))
    random = np.random.default_rng(0)
    drawn = [known.draw([1, 0, 2], random).tolist() for _ in range(100)]
    assert {d[1] for d in drawn} == set(range(LEAST))
    assert {d[0] for d in drawn} == {LEAST + 2}
    assert {known.draw([2, 0, 2], random)[1] for _ in range(100)} == set(range(LEAST + 1))
    assert {known.draw([2, 0, 1], random)[1] for _ in range(100)} == set(range(LEAST + 2))
    assert known.lacking(np.array([0, 2, 0], np.int32)) == []
    assert bank([0], [0], [0], [1]).lacking(np.array([0, 2, 1], np.int32)) == ["B", "C"]


def test_frames_of_segments_and_their_posteriors() -> None:
    heads = (4, [[2, 0], [1, 3], [0, 1]], [[0.5, 0.25], [1.0, 0.0], [0.5, 0.125]])
    known = bank([0, 1], [EDGE, 0], [1, EDGE], [2, 1], senone=heads)
    assert known.frames(np.array([1, 0, 1])).tolist() == [2, 0, 1, 2]
    expected = [[0.5, 0.125, 0.1875, 0.1875], [0.25, 0.125, 0.5, 0.125], [0, 1, 0, 0]]
    np.testing.assert_allclose(known.posteriors("senone", np.array([2, 0, 1])), expected, atol=1e-6)


def test_round_trip_and_what_is_no_bank(tmp_path: Path) -> None:
    known = bank([0, 1], [EDGE, 0], [1, EDGE], [1, 1], senone=(3, [[2], [1]], [[0.5], [0.25]]))
    known.save(tmp_path)
    loaded = Bank.load(tmp_path)
    for name, column_S in known.segments._asdict().items():
        assert np.array_equal(getattr(loaded.segments, name), column_S)
    np.testing.assert_array_equal(
        loaded.posteriors("senone", np.array([0, 1])), known.posteriors("senone", np.array([0, 1]))
    )
    first = (tmp_path / "bank.safetensors").read_bytes()
    known.save(tmp_path)
    assert (tmp_path / "bank.safetensors").read_bytes() == first
    with pytest.raises(UserError, match="Run `hkd bank` first"):
        Bank.load(tmp_path / "nowhere")
    (tmp_path / "bank.safetensors").write_bytes(first[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        Bank.load(tmp_path)
