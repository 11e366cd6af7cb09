"""One's own recordings: folder, TSV, manifest; and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest

from hkd import manifest
from hkd.audio import write_wav
from hkd.corpora import read_corpus
from hkd.corpora.folder import read_folder, read_tsv
from hkd.errors import UserError
from hkd.manifest import Utterance


def sound(path: Path, seconds: float = 0.2) -> Path:
    write_wav(path, np.full(round(16_000 * seconds), 0.1, np.float32))
    return path


def test_audio_with_text_beside_it(tmp_path: Path) -> None:
    for name in ("anna/1", "anna/2", "ben/1"):
        sound(tmp_path / f"{name}.wav").with_suffix(".txt").write_bytes(b"\xef\xbb\xbfsaid by\r\n " + name.encode())
    found = read_folder(tmp_path)
    assert [(u.id, u.text, u.speaker, u.duration) for u in found] == [
        (name, f"said by {name}", name.split("/")[0], 0.2) for name in ("anna/1", "anna/2", "ben/1")
    ]


def test_a_flat_folder_has_no_speakers(tmp_path: Path) -> None:
    sound(tmp_path / "a.flac").with_suffix(".txt").write_text("hi")
    assert [(u.id, u.speaker) for u in read_corpus(str(tmp_path))] == [("a", None)]


def test_what_is_missing_is_counted_and_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no audio"):
        read_folder(tmp_path)
    for name in "abcde":
        sound(tmp_path / f"{name}.wav")
    with pytest.raises(UserError, match=r"5 audio files have no \.txt beside them: a\.wav; b\.wav; c\.wav and 2 more"):
        read_folder(tmp_path)
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text("x")
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of the utterances have audio that cannot be used: .*b\.wav.*empty"):
        read_folder(tmp_path)
    (tmp_path / "b.wav").unlink()
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.txt:1: a transcript must be UTF-8, but is UTF-16"):
        read_folder(tmp_path)


def test_tsv(tmp_path: Path) -> None:
    sound(tmp_path / "clips" / "1.wav")
    path = tmp_path / "x.tsv"
    path.write_bytes(b'\xef\xbb\xbfclient_id\tpath\tsentence\tsplit\toffset\r\nanna\tclips/1.wav\tSay "it"\tdev\t0.05\r\n\r\n')
    (only,) = read_tsv(path)
    assert (only.id, only.text, only.speaker, only.split, only.offset) == ("clips/1", 'Say "it"', "anna", "dev", 0.05)
    assert only.duration == pytest.approx(0.15)
    assert Path(only.audio_filepath or "") == tmp_path / "clips" / "1.wav"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ":1: the header"),
        ("a\tb\n1\t2\n", ":1: the header"),
        ("audio\ttext\n", "must list utterances, but lists none"),
        ("audio\ttext\nx.wav\n", ":2: a row must have 2"),
        ("audio\ttext\toffset\nx.wav\thi\tsoon\n", ":2: "),
        ("audio\ttext\toffset\nx.wav\thi\tnan\n", ":2: offset"),
        ("audio\ttext\nnone.wav\thi\n", "none.wav"),
        ("id\taudio\ttext\na\tx.wav\thi\na\tx.wav\thi\n", "t.tsv:3: id must be unique, but 'a' stands at"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, content: str, says: str) -> None:
    sound(tmp_path / "x.wav")
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(UserError) as caught:
        read_tsv(tmp_path / "t.tsv")
    assert says in str(caught.value)


def test_a_manifest_made_elsewhere(tmp_path: Path) -> None:
    manifest.write(
        tmp_path / "m.jsonl", [Utterance(id="a", text="x", audio_filepath=str(sound(tmp_path / "a.wav")), speaker="s")]
    )
    assert [(u.duration, u.speaker) for u in read_corpus(str(tmp_path / "m.jsonl"))] == [(0.2, "s")]
    (tmp_path / "m.xml").touch()
    with pytest.raises(UserError, match=r"a folder, a \.tsv or a \.jsonl"):
        read_corpus(str(tmp_path / "m.xml"))


def test_one_table_for_a_folder_of_audio(tmp_path: Path) -> None:
    for name in "ab":
        sound(tmp_path / "wav" / f"{name}.wav")
    (tmp_path / "all.tsv").write_text("file\ttext\nwav/a.wav\tone\nwav/b.wav\ttwo\n")
    assert [(u.id, u.text) for u in read_corpus(str(tmp_path))] == [("wav/a", "one"), ("wav/b", "two")]
