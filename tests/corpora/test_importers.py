"""Which kind of data a path is."""

import gzip
from pathlib import Path

import pytest

from hkd.corpora import KINDS, kind_of, read_corpus
from hkd.corpora.importers import guess_kind
from hkd.errors import UserError
from kit.files import write_files

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
