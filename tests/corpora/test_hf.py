"""Hugging Face data sets, written by `datasets` itself."""

import csv
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from hkd.audio import read_audio
from hkd.corpora import read_corpus
from hkd.errors import HkdError, UserError
from hkd.testing.files import sound, write_files

datasets = pytest.importorskip("datasets")


# `datasets` leaves the metadata of a folder of audio open
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    datasets.disable_progress_bars()
    yield
    gc.collect()  # so that the files are closed while their warnings are ignored


def made(num: int = 3, *, first: int = 0, **columns: list[object]):
    rows = [{"audio": {"bytes": sound(0.1 * (1 + n)), "path": "x.wav"}, "sentence": f"Number  {first + n}."} for n in range(num)]
    whole = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    for name, values in columns.items():
        whole = whole.add_column(name, values)
    return whole


def facts(whole) -> list[tuple[object, ...]]:
    return [(u.id, u.text, u.split, u.speaker) for u in whole]


def test_saved_to_disk_with_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict(
        train=made(2, id=["a", "b/c"], speaker_id=[1, 2]), validation=made(1, first=2, id=["../d"], speaker_id=[3])
    )
    both.save_to_disk(str(tmp_path / "set"))
    whole = read_corpus(str(tmp_path / "set"), audio_to=tmp_path / "out" / "audio")
    assert facts(whole) == [
        ("a", "Number 0.", "train", "1"),
        ("b/c", "Number 1.", "train", "2"),
        ("../d", "Number 2.", "dev", "3"),
    ]
    assert [u.duration for u in whole] == pytest.approx([0.1, 0.2, 0.1])
    assert {Path(u.audio_filepath or "").parent for u in whole} == {tmp_path / "out" / "audio"}
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 3
    assert len(read_audio(whole[1])) == 3200


def test_one_split_called_train_is_no_split(tmp_path: Path) -> None:
    made(2).save_to_disk(str(tmp_path / "set"))
    assert facts(read_corpus(str(tmp_path / "set"), audio_to=tmp_path / "out")) == [
        ("row-0000000", "Number 0.", None, None), ("row-0000001", "Number 1.", None, None),
    ]  # fmt: skip
    (tmp_path / "p" / "data").mkdir(parents=True)
    made(1, emotion=["calm"]).to_parquet(str(tmp_path / "p" / "data" / "train-00000-of-00001.parquet"))
    for path in (tmp_path / "p", tmp_path / "p" / "data" / "train-00000-of-00001.parquet"):
        whole = read_corpus(str(path), audio_to=tmp_path / "out")
        assert facts(whole) == [("train-0000000", "Number 0.", None, None)]
        assert dict(whole[0].extra) == {"emotion": "calm"}
    made(1).to_parquet(str(tmp_path / "p" / "data" / "test-00000-of-00001.parquet"))
    assert [u.split for u in read_corpus(str(tmp_path / "p"), audio_to=tmp_path / "out")] == ["train", "test"]


def test_a_folder_of_audio_with_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_files(tmp_path / split, {"a.wav": sound()})
        with (tmp_path / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "transcription"), ("a.wav", 'He said: "yes, no"')])
    whole = read_corpus(str(tmp_path), audio_to=tmp_path / "out")
    assert facts(whole) == [
        ("train-0000000", 'He said: "yes, no"', "train", None),
        ("test-0000000", 'He said: "yes, no"', "test", None),
    ]
    assert whole[0].audio_filepath == str(tmp_path / "train" / "a.wav")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"audio": "rename"}, "must have a column of text, but has audio"),
        ({"sentence": "rename"}, "must have a column of audio, but has sentence"),
        ({"id": ["a", "a"]}, r"train 1: id must be unique|row 1: id must be unique"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, columns: dict[str, object], says: str) -> None:
    kept = [name for name, value in columns.items() if value == "rename"]
    whole = made(2).select_columns(kept) if kept else made(2, **columns)
    whole.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=says):
        read_corpus(str(tmp_path / "set"), audio_to=tmp_path / "out")


@pytest.mark.parametrize(("bytes_", "says"), [(None, "must have audio, but has none"), (b"no sound", "its bytes are none")])
def test_rows_without_sound_are_named(tmp_path: Path, bytes_: bytes | None, says: str) -> None:
    rows = [{"audio": {"bytes": sound(), "path": "x.wav"}, "text": "x"}, {"audio": {"bytes": bytes_, "path": None}, "text": "y"}]
    datasets.Dataset.from_list(rows).save_to_disk(
        str(tmp_path / "set")
    )  # a plain struct of bytes and path, as parquet without metadata has
    with pytest.raises(UserError, match=rf"set: row 1: .*{says}"):
        read_corpus(str(tmp_path / "set"), audio_to=tmp_path / "out")


def test_broken_folders_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match="must be one that `datasets` can read, but it says"):
        read_corpus(str(tmp_path), audio_to=tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="must be one that `datasets` can read, but it says"):
        read_corpus(str(tmp_path / "x.parquet"), audio_to=tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HkdError, match="could not be reached") as caught:
        read_corpus("nobody/no-such-set:clean", kind="hf", audio_to=tmp_path)
    assert caught.value.exit_code == 1
