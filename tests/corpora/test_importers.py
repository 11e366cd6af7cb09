"""Which kind of data a path is."""

import gzip
import json
import re
from pathlib import Path

import pytest

from hkd.corpora import KINDS, kind_of, read_corpus
from hkd.corpora.collect import Options, Report
from hkd.corpora.importers import guess_kind
from hkd.errors import UserError
from kit.files import sound, write_files

NEMO, OWN, CUT = (
    b'{"audio_filepath": "a.wav", "text": "x"}\n',
    b'{"id": "a", "text": "x"}\n',
    b'{"id": "a", "type": "MonoCut", "recording": {}}\n',
)


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("kaldi", {"wav.scp": b"", "text": b""}),
        ("kaldi", {"train/wav.scp": b"", "dev/wav.scp": b""}),
        ("nemo", {"train.json": NEMO, "README": b""}),
        ("lhotse", {"cuts.jsonl.gz": gzip.compress(CUT, mtime=0)}),
        ("lhotse", {"cuts.jsonl": CUT}),
        ("lhotse", {"x_recordings.jsonl.gz": b"", "x_supervisions.jsonl.gz": b""}),
        ("hf", {"dataset_dict.json": b""}),
        ("hf", {"data/train-00000-of-00001.parquet": b""}),
        ("hf", {"train/metadata.csv": b"file_name,text\n", "train/a.wav": b""}),
        ("folder", {"metadata.csv": b"path,text\n", "a.wav": b""}),
        ("folder", {"a.wav": b"", "a.txt": b""}),
        ("folder", {}),
    ],
)
def test_folders(tmp_path: Path, kind: str, files: dict[str, bytes]) -> None:
    assert guess_kind(write_files(tmp_path, files)) == kind


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("folder", "x.tsv", b""),
        ("hf", "x.parquet", b""),
        ("nemo", "x.json", NEMO),
        ("nemo", "x.jsonl", b"\n" + NEMO),
        ("hkd", "x.jsonl", OWN),
        ("hkd", "x.jsonl", b"{broken"),
        ("hkd", "x.jsonl", b""),
        ("lhotse", "x.jsonl", CUT),
        ("lhotse", "x.jsonl.gz", gzip.compress(CUT, mtime=0)),
        ("lhotse", "x.jsonl.gz", b"broken"),
        ("hkd", "x.jsonl.gz", gzip.compress(OWN, mtime=0)),
    ],
)
def test_files(tmp_path: Path, kind: str, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert guess_kind(tmp_path / name) == kind
    assert kind_of(str(tmp_path / name)) == kind
    assert kind_of(str(tmp_path / name), "kaldi") == "kaldi"


def test_what_could_be_several_or_none_is_asked_for(tmp_path: Path) -> None:
    write_files(tmp_path, {"wav.scp": b"", "cuts.jsonl.gz": b"", "x.xml": b""})
    with pytest.raises(
        UserError, match=r"could be a Kaldi data folder or manifests of lhotse's\. Say which: --from kaldi\|lhotse"
    ):
        guess_kind(tmp_path)
    with pytest.raises(UserError, match="or what --from names"):
        guess_kind(tmp_path / "x.xml")
    with pytest.raises(UserError, match="--from must be one of folder, kaldi, nemo, lhotse, hf, hkd, but is 'espnet'"):
        read_corpus(str(tmp_path), kind="espnet")
    for kind in set(KINDS) - {"hf"}:
        with pytest.raises(UserError, match="but is not there"):
            read_corpus(str(tmp_path / "none"), kind=kind)


def _rows(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROWS_OF_WHICH_ONE_IS_BAD: dict[str, tuple[str, dict[str, bytes], str]] = {  # kind, files, where and what
    "table": ("folder", {"t.tsv": b"path\ttext\tstart\na.wav\tx\t0\nb.wav\ty\tzero\nc.wav\tz\t0\n"},
        "t.tsv:3: start must be a number of seconds"),
    "short row": ("folder", {"t.tsv": b"path\ttext\na.wav\tx\nb.wav\nc.wav\tz\n"}, "t.tsv:3: a row must have 2"),
    "ljspeech": ("folder", {"t.csv": b"a|x\nb\nc|z\n"}, "t.csv:2: a row must be ID|TEXT"),
    "nemo": ("nemo", {"t.json": _rows({"audio_filepath": "a.wav", "text": "x"}, {"audio_filepath": "b.wav"},
        {"audio_filepath": "c.wav", "text": "z"})}, "t.json:2: field 'text' must be there"),
    "nemo, broken": ("nemo", {"t.json": NEMO + b"{broken\n" + NEMO.replace(b"a.", b"c.")}, "t.json:2: "),
    "nemo, channel": ("nemo", {"t.json": NEMO + b'{"audio_filepath": "b.wav", "text": "y", "channel": "left"}\n'
        + NEMO.replace(b"a.", b"c.")}, "t.json:2: channel must be"),
    "segments": ("kaldi", {"t/wav.scp": b"a ../a.wav\n", "t/text": b"a x\nb y\nc z\n",
        "t/segments": b"a a 0 0.1\nb a 0.1 x\nc a 0.1 0.2\n"}, "segments:2: a segment must be"),
    "speakers": ("kaldi", {"t/wav.scp": b"a ../a.wav\nb ../b.wav\nc ../c.wav\n", "t/text": b"a x\nb y\nc z\n",
        "t/utt2spk": b"a s\nb\nc s\n"}, "every utterance must have a speaker, but 'b' has none"),
    "own": ("hkd", {"t.jsonl": _rows({"id": "a", "text": "x", "audio_filepath": "a.wav"}, {"id": "b"},
        {"id": "c", "text": "z", "audio_filepath": "c.wav"})}, "t.jsonl:2: field 'text' must be there"),
    "supervisions": ("lhotse", {
        "recordings.jsonl": _rows({"id": "r", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
            "sampling_rate": 16_000, "num_samples": 3200, "duration": 0.2}),
        "supervisions.jsonl": _rows(*({"id": name, "recording_id": of, "start": 0.0, "duration": 0.1, "channel": 0,
            "text": name} for name, of in (("a", "r"), ("b", "q"), ("c", "r")))),
    }, "supervisions.jsonl:2: supervision 'b' is cut from 'q'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_OF_WHICH_ONE_IS_BAD)
def test_all_bad_rows_are_named_at_once_and_may_be_left_out(tmp_path: Path, name: str) -> None:
    kind, files, says = ROWS_OF_WHICH_ONE_IS_BAD[name]
    if kind == "lhotse":
        pytest.importorskip("lhotse")
    wavs = "wavs/" if name == "ljspeech" else ""
    write_files(tmp_path, {**files, **{f"{wavs}{stem}.wav": sound() for stem in "abc"}})
    path = next(tmp_path.glob("t*"), tmp_path)
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        read_corpus(str(path), kind=kind)
    assert "1 rows cannot be used: " in str(refused.value)
    options = Options(report=Report(skip_bad=True))
    assert [u.id for u in read_corpus(str(path), kind=kind, options=options)] == ["a", "c"]
    ((what, (left_out,)),) = options.report.left_out.items()
    assert what == "rows cannot be used"
    assert says in left_out
