"""The index of a manifest: the same as the manifest itself, in little memory."""

from pathlib import Path

import pytest

from hkd import manifest as manifests
from hkd.errors import UserError
from hkd.labelling.plan import Transcripts
from hkd.units.text import words


def test_it_says_what_the_manifest_says(texts: Path) -> None:
    index, manifest = Transcripts(texts), manifests.read(texts)
    assert index.digest == manifest.digest
    assert index.ids == sorted(u.id for u in manifest)
    rows = [index.row(name) for name in index.ids]
    assert rows == list(range(len(manifest)))
    assert index.words(rows) == [words(manifest.by_id(name).text) for name in index.ids]
    assert Transcripts(texts, split="dev").ids == sorted(u.id for u in manifest if u.split == "dev")
    with pytest.raises(KeyError):
        index.row("nobody")


def test_recordings_are_in_the_order_of_time(texts: Path) -> None:
    index, manifest = Transcripts(texts), manifests.read(texts)
    for utterance in manifest:
        rows, at = index.recording(index.row(utterance.id))
        together = sorted((u for u in manifest if u.recording == utterance.recording), key=lambda u: u.offset)
        assert [index.id_of(row) for row in rows.tolist()] == [u.id for u in together]
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
    with pytest.raises(UserError, match="must not change"):
        index.words([0])
    with pytest.raises(UserError, match="hkd prepare"):
        Transcripts(tmp_path / "none.jsonl")
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        Transcripts(path)
