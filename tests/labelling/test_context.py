"""Transcripts of a manifest in little memory, and windows of context."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd import manifest as manifests
from hkd.errors import UserError
from hkd.labelling.context import Transcripts, windows
from hkd.units.text import words


def test_it_says_what_the_manifest_says(texts: Path) -> None:
    index, manifest = Transcripts(texts), manifests.read(texts)
    assert index.digest == manifest.digest
    assert index.ids == sorted(u.id for u in manifest)
    rows = [index.row(name) for name in index.ids]
    assert rows == list(range(len(manifest)))
    assert index.words(index.ids) == [words(manifest.by_id(name).text) for name in index.ids]
    assert Transcripts(texts, split="dev").ids == sorted(u.id for u in manifest if u.split == "dev")
    with pytest.raises(KeyError):
        index.row("nobody")


def test_recordings_are_in_the_order_of_time(texts: Path) -> None:
    index, manifest = Transcripts(texts), manifests.read(texts)
    for utterance in manifest:
        rows, at = index.recording(index.row(utterance.id))
        together = sorted((u for u in manifest if u.recording == utterance.recording), key=lambda u: u.offset)
        assert [index.all_ids[row] for row in rows.tolist()] == [u.id for u in together]
        assert together[at].id == utterance.id


def test_broken_lines_doubles_and_changes_are_named(texts: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"m\.jsonl:2: field 'text'"):
        Transcripts(path)
    path.write_text('{"id": "a", "text": "x"}\n\n{"id": "a", "text": "y"}')
    with pytest.raises(UserError, match="'a' stands twice"):
        Transcripts(path)
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n')
    index = Transcripts(path)
    path.write_text('{"id": "c", "text": "x"}\n{"id": "b", "text": "y"}\n')
    assert (index.ids, index.words(["a", "b"])) == (["a", "b"], [["x"], ["y"]])  # as it was read
    with pytest.raises(UserError, match=r"split must be one of \(none\), but is 'dev'"):
        Transcripts(path, split="dev")
    with pytest.raises(UserError, match="hkd prepare"):
        Transcripts(tmp_path / "none.jsonl")
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        Transcripts(path)


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
