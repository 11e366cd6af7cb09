"""The index of a manifest: the same as the manifest itself, in little memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd import manifest as manifests
from hkd.errors import UserError
from hkd.labelling.plan import Transcripts, _plain_facts
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


ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=1),
    st.just(10**400),
)
MUST = {"id": st.text(min_size=1, max_size=3), "text": st.text(max_size=5)}
RIGHT = {
    "audio_filepath": st.sampled_from(["a.wav", "./b/../a.wav", "/x/a.wav", "s3://b/a.wav", "//x"]),
    "offset": st.integers(0, 9) | st.floats(0, 99),
    "duration": st.floats(0, 9),
    "speaker": st.text(max_size=2),
    "recording": ODD,
    "split": ODD,
}


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_the_quick_look_at_a_line_agrees_with_the_whole_check_or_leaves_it_to_that(data: st.DataObject) -> None:
    row: dict[str, Any] = data.draw(st.fixed_dictionaries(MUST, optional=RIGHT))
    for name in data.draw(st.sets(st.sampled_from([*MUST, *RIGHT, "more"]), max_size=2)):
        row[name] = data.draw(ODD)
    line = json.dumps(row, ensure_ascii=data.draw(st.booleans())) + data.draw(st.sampled_from(["\n", "\r\n", "", " x\n", "}\n"]))
    folder = Path("/data/corpus")
    quick = _plain_facts(line.encode("utf-8", "surrogatepass"), str(folder))
    try:
        whole = manifests.parse_line(line, folder)
    except UserError:
        assert quick is None
        return
    assert quick in (None, (whole.id, whole.recording, whole.offset, whole.split))


def test_plain_lines_are_read_quickly() -> None:
    line = b'{"id": "a", "audio_filepath": "b/../a.wav", "offset": 1, "duration": 2.5, "text": "x y", "speaker": "s", "split": "dev"}\n'
    assert _plain_facts(line, "/data") == ("a", "/data/a.wav", 1.0, "dev")
