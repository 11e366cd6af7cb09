"""Kaldi data folders."""

from pathlib import Path

import numpy as np
import pytest

from hkd import corpora
from hkd.audio import read_audio, write_wav
from hkd.corpora.kaldi import is_kaldi_folder, read_kaldi
from hkd.errors import UserError


def data(folder: Path, **files: str) -> Path:
    write_wav(folder / "audio" / "r1.wav", np.linspace(-0.5, 0.5, 16_000).astype(np.float32))
    write_wav(folder / "audio" / "r2.wav", np.full(8000, 0.1, np.float32))
    base = {"wav.scp": "r1 audio/r1.wav\nr2\taudio/r2.wav\n", "text": "r2 B C\nr1 A  \n", "utt2spk": "r1 s1\nr2 s2\n"}
    for name, content in (base | {key.replace("_", "."): value for key, value in files.items()}).items():
        (folder / name).write_text(content)
    return folder


def test_paths_texts_speakers(tmp_path: Path) -> None:
    assert is_kaldi_folder(data(tmp_path))
    assert [(u.id, u.text, u.speaker, u.duration) for u in read_kaldi(tmp_path)] == [
        ("r1", "A", "s1", 1.0),
        ("r2", "B C", "s2", 0.5),
    ]
    assert len(corpora.read_corpus(str(tmp_path))) == 2


def test_segments(tmp_path: Path) -> None:
    data(tmp_path, segments="u1 r1 0.1 0.6\nu2 r1 0.6 1.0\n", text="u1 A\nu2 B\n", utt2spk="")
    found = read_kaldi(tmp_path)
    assert [(u.id, u.offset, round(u.duration or 0, 6)) for u in found] == [("u1", 0.1, 0.5), ("u2", 0.6, 0.4)]
    assert [len(read_audio(u)) for u in found] == [8000, 6400]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"wav_scp": "r1 sox x.wav -t wav - |\nr2 audio/r2.wav\n"}, "1 entries are commands"),
        ({"text": "r1 A\nr3 B\n"}, "1 utterances have no audio: line 2: r3"),
        ({"text": "r1 A\nr1 B\n"}, "text:2: 'r1' must stand once, but stands at line 1 too"),
        ({"wav_scp": "r1 audio/none.wav\nr2 audio/r2.wav\n"}, "none.wav"),
        ({"segments": "u1 r1 0.1\n", "text": "u1 A\n"}, "segments:1: a segment must be UTTERANCE RECORDING START END"),
        ({"segments": "u1 r9 0 1\n", "text": "u1 A\n"}, "not in wav.scp"),
        ({"segments": "u1 r1 1 0\n", "text": "u1 A\n"}, "segments:1: a segment must start"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: dict[str, str], says: str) -> None:
    data(tmp_path, **files)
    with pytest.raises(UserError) as caught:
        read_kaldi(tmp_path)
    assert says in str(caught.value)
