"""Windows of neighbouring utterances."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hkd.labelling.context import windows


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=12), room=st.integers(8, 40), left_only=st.booleans())
def test_windows_hold_their_utterance_and_no_more_than_fits(sizes: list[int], room: int, left_only: bool) -> None:
    token_N = np.arange(sum(sizes), dtype=np.int32)
    begin = np.concatenate([[0], np.cumsum(sizes)])
    placed = windows(token_N, sizes, room=room, left_only=left_only)
    assert len(placed) == len(sizes)
    for number, (tokens, at) in enumerate(placed):
        assert list(tokens[at : at + sizes[number]]) == list(range(begin[number], begin[number + 1]))
        assert list(tokens) == list(range(tokens[0], tokens[0] + len(tokens))) if tokens else True
        assert len(tokens) <= max(room, sizes[number])
        if not left_only:
            assert len(tokens) == min(len(token_N), max(room, len(tokens)))


def test_utterances_in_the_middle_share_a_window() -> None:
    placed = windows(np.arange(100, dtype=np.int32), [10] * 10, room=60, left_only=False)
    assert [tokens[0] for tokens, _ in placed] == [0, 0, 0, 15, 15, 15, 40, 40, 40, 40]
    assert len({tokens for tokens, _ in placed}) == 3
    left = windows(np.arange(100, dtype=np.int32), [10] * 10, room=60, left_only=True)
    assert [(tokens[0], tokens[-1]) for tokens, _ in left[-1:]] == [(40, 99)]
