"""Hugging Face data sets, written by `datasets` itself."""

import csv
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hkd.audio import read_audio
from hkd.corpora import read_corpus
from hkd.corpora.collect import Options, Report
from hkd.errors import HkdError, UserError
from kit.files import sound, tar_of, write_files

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
    rows = [
        {"audio": {"bytes": sound(0.1 * (1 + n)), "path": "x.wav"}, "sentence": f"Number  {first + n}."}
        for n in range(num)
    ]
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
    whole = read_corpus(str(tmp_path / "set"), options=Options(audio_to=tmp_path / "out" / "audio"))
    assert facts(whole) == [
        ("a", "Number 0.", "train", "1"),
        ("b/c", "Number 1.", "train", "2"),
        ("../d", "Number 2.", "dev", "3"),
    ]
    assert [u.duration for u in whole] == pytest.approx([0.1, 0.2, 0.1])
    assert {Path(u.audio_filepath or "").parent for u in whole} == {tmp_path / "out" / "audio"}
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 2, "two of the three are the same sound"
    assert len(read_audio(whole[1])) == 3200


def test_one_split_called_train_is_no_split(tmp_path: Path) -> None:
    made(2).save_to_disk(str(tmp_path / "set"))
    assert facts(read_corpus(str(tmp_path / "set"), options=Options(audio_to=tmp_path / "out"))) == [
        ("row-0000000", "Number 0.", None, None), ("row-0000001", "Number 1.", None, None),
    ]  # fmt: skip
    (tmp_path / "p" / "data").mkdir(parents=True)
    made(1, emotion=["calm"]).to_parquet(str(tmp_path / "p" / "data" / "train-00000-of-00001.parquet"))
    for path in (tmp_path / "p", tmp_path / "p" / "data" / "train-00000-of-00001.parquet"):
        whole = read_corpus(str(path), options=Options(audio_to=tmp_path / "out"))
        assert facts(whole) == [("train-0000000", "Number 0.", None, None)]
        assert dict(whole[0].extra) == {"emotion": "calm"}
    made(1).to_parquet(str(tmp_path / "p" / "data" / "test-00000-of-00001.parquet"))
    assert [u.split for u in read_corpus(str(tmp_path / "p"), options=Options(audio_to=tmp_path / "out"))] == [
        "train",
        "test",
    ]


def test_a_folder_of_audio_with_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_files(tmp_path / split, {"a.wav": sound()})
        with (tmp_path / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "transcription"), ("a.wav", 'He said: "yes, no"')])
    options = Options(audio_to=tmp_path / "out")
    whole = read_corpus(str(tmp_path), options=options)
    assert facts(whole) == [
        ("train-0000000", 'He said: "yes, no"', "train", None),
        ("test-0000000", 'He said: "yes, no"', "test", None),
    ]
    assert whole[0].audio_filepath == str(tmp_path / "train" / "a.wav")
    assert options.report.left_out == {}
    write_files(tmp_path, {"train/b.wav": sound(), "test/c.m4a": b"x", "train/._a.wav": b"x"})
    read_corpus(str(tmp_path), options=options)
    assert options.report.left_out == {
        "hidden files or folders": ["train/._a.wav"],
        "audio files that no row of a table names": ["train/b.wav", "test/c.m4a"],
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"audio": "rename"}, "must name a column 'text', but has audio. Say which: --column text=NAME"),
        ({"sentence": "rename"}, "must have a column of audio, but has sentence"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, columns: dict[str, object], says: str) -> None:
    kept = [name for name, value in columns.items() if value == "rename"]
    whole = made(2).select_columns(kept) if kept else made(2, **columns)
    whole.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=says):
        read_corpus(str(tmp_path / "set"), options=Options(audio_to=tmp_path / "out"))


@pytest.mark.parametrize(
    ("bytes_", "says"), [(None, "must have audio, but has none"), (b"no sound", "its bytes are none")]
)
def test_rows_without_sound_are_named(tmp_path: Path, bytes_: bytes | None, says: str) -> None:
    rows = [
        {"audio": {"bytes": sound(), "path": "x.wav"}, "text": "x"},
        {"audio": {"bytes": bytes_, "path": None}, "text": "y"},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(
        str(tmp_path / "set")
    )  # a plain struct of bytes and path, as parquet without metadata has
    with pytest.raises(UserError, match=rf"set: row 1: .*{says}"):
        read_corpus(str(tmp_path / "set"), options=Options(audio_to=tmp_path / "out"))


def test_broken_folders_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match="must be one that `datasets` can read, but it says"):
        read_corpus(str(tmp_path), options=Options(audio_to=tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="must be one that `datasets` can read, but it says"):
        read_corpus(str(tmp_path / "x.parquet"), options=Options(audio_to=tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HkdError, match="could not be reached") as caught:
        read_corpus("nobody/no-such-set:clean", kind="hf", options=Options(audio_to=tmp_path))
    assert caught.value.exit_code == 1


def test_ids_that_repeat_give_way_to_numbers(tmp_path: Path) -> None:
    """FLEURS: the id is the sentence's, which several people read."""
    datasets.DatasetDict(train=made(3, id=[1, 1, 2]), validation=made(1, id=[2])).save_to_disk(str(tmp_path / "set"))
    options = Options(audio_to=tmp_path / "out")
    whole = read_corpus(str(tmp_path / "set"), options=options)
    assert [u.id for u in whole] == ["train-0000000", "train-0000001", "train-0000002", "validation-0000000"]
    assert [(kind[:26], names) for kind, names in options.report.notes.items()] == [
        ("ids of the data set repeat", ["1", "2"])
    ]
    made(2, id=[7, 9]).save_to_disk(str(tmp_path / "other"))
    assert [u.id for u in read_corpus(str(tmp_path / "other"), options=options)] == ["7", "9"]


@pytest.mark.parametrize(
    ("columns", "given", "text"),
    [
        ({"text_normalized": "n", "text_original": "o"}, {}, "n"),
        ({"transcription": "t", "raw_transcription": "r"}, {}, "t"),
        ({"normalized_transcript": "n"}, {}, "n"),
        ({"transcription": "t", "raw_transcription": "r"}, {"text": "raw_transcription"}, "r"),
        ({"words_spoken": "w"}, {"text": "words_spoken"}, "w"),
    ],
)
def test_columns_of_text(tmp_path: Path, columns: dict[str, str], given: dict[str, str], text: str) -> None:
    whole = made(1, **{name: [value] for name, value in columns.items()}).remove_columns("sentence")
    whole.save_to_disk(str(tmp_path / "set"))
    options = Options(audio_to=tmp_path / "out", columns=given)
    assert [u.text for u in read_corpus(str(tmp_path / "set"), options=options)] == [text]
    assert bool(options.report.notes) == (len(columns) > 1 and not given)


@pytest.mark.parametrize(
    ("times", "span", "said"),
    [
        (([0.05, 0.0], [0.08, 0.1]), [(0.05, 0.03), (0.0, 0.1)], False),
        (([7.0, 9.0], [7.1, 9.2]), [(0.0, 0.1), (0.0, 0.2)], True),  # clips that were cut there
        (([7.0, 9.0], [99.0, 99.0]), [(0.0, 0.1), (0.0, 0.2)], True),
        ((["a", "b"], ["c", "d"]), [(0.0, 0.1), (0.0, 0.2)], True),
        (([0.05, 0.1], None), [(0.05, 0.05), (0.1, 0.1)], False),
        (([7.0, 9.0], None), [(0.0, 0.1), (0.0, 0.2)], True),
    ],
)
def test_columns_of_times(
    tmp_path: Path, times: tuple[list, list | None], span: list[tuple[float, float]], said: bool
) -> None:
    columns = {name: values for name, values in zip(("start_time", "end_time"), times, strict=True) if values}
    made(2, **columns).save_to_disk(str(tmp_path / "set"))
    options = Options(audio_to=tmp_path / "out")
    whole = read_corpus(str(tmp_path / "set"), options=options)
    assert [(u.offset, pytest.approx(u.duration)) for u in whole] == span
    assert bool(options.report.notes or options.report.left_out) == said


def test_rows_without_text_and_channels_of_another_kind(tmp_path: Path) -> None:
    made(2, channel=["BBC", "ITV"], text=[None, "x"]).remove_columns("sentence").save_to_disk(str(tmp_path / "set"))
    options = Options(audio_to=tmp_path / "out")
    (only,) = read_corpus(str(tmp_path / "set"), options=options)
    assert (only.text, only.channel, only.extra["channel_name"]) == ("x", None, "ITV")
    assert options.report.left_out == {"rows without a text": [f"{tmp_path / 'set'}: row 0"]}
    call = [{"audio": {"bytes": sound(channels=2), "path": None}, "text": "x", "channel": n} for n in range(2)]
    datasets.Dataset.from_list(call).save_to_disk(str(tmp_path / "calls"))
    assert [u.channel for u in read_corpus(str(tmp_path / "calls"), options=options)] == [0, 1]
    made(2, channel=[0, 1]).save_to_disk(str(tmp_path / "sides"))
    assert [u.channel for u in read_corpus(str(tmp_path / "sides"), options=options)] == [None, None], (
        "each side has its file"
    )


def test_rows_that_cannot_be_used_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"audio": {"bytes": data, "path": None}, "text": "x"} for data in (sound(), b"no sound", None, sound(0.3))]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    options = Options(audio_to=tmp_path / "out", report=Report(skip_bad=True))
    assert [u.id for u in read_corpus(str(tmp_path / "set"), options=options)] == ["row-0000000", "row-0000003"]
    assert [len(names) for names in options.report.left_out.values()] == [2]


def test_shards_of_webdataset_and_columns_of_bytes(tmp_path: Path) -> None:
    members = {f"{n}.{ending}": data for n in range(3) for ending, data in (("wav", sound()), ("txt", b"said %d" % n))}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-000.tar").write_bytes(tar_of(members, packed=""))
    whole = read_corpus(str(tmp_path / "shards"), kind="hf", options=Options(audio_to=tmp_path / "out"))
    assert [(u.id, u.text) for u in whole] == [(str(n), f"said {n}") for n in range(3)]
    datasets.Dataset.from_dict({"text": ["x"], "audio": [sound()]}).to_parquet(str(tmp_path / "x.parquet"))
    (only,) = read_corpus(str(tmp_path / "x.parquet"), options=Options(audio_to=tmp_path / "out"))
    assert (only.text, only.duration) == ("x", pytest.approx(0.2))


def test_a_json_beside_the_sound_in_webdatasets_shards(tmp_path: Path) -> None:
    said = [{"id": f"de-{n}", "text": f"said {n}", "speaker": "anna", "duration": 0.2} for n in range(2)] + [
        {"id": "de-2", "text": None, "speaker": "ben", "duration": 0.2}
    ]
    members = {f"{n}.wav": sound() for n in range(3)}
    members |= {f"{n}.json": json.dumps(row).encode() for n, row in enumerate(said)}
    (tmp_path / "train-000.tar").write_bytes(tar_of(dict(sorted(members.items())), packed=""))
    with pytest.raises(UserError, match=r"holds no audio\. Unpack train-000\.tar first, or say --from hf"):
        read_corpus(str(tmp_path))
    options = Options(audio_to=tmp_path / "out")
    whole = read_corpus(str(tmp_path), kind="hf", options=options)
    assert [(u.id, u.text, u.speaker) for u in whole] == [("de-0", "said 0", "anna"), ("de-1", "said 1", "anna")]
    assert [len(names) for names in options.report.left_out.values()] == [1]


def test_paths_in_parquet_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "set", {"wav/a.wav": sound()})
    datasets.Dataset.from_dict({"text": ["x"], "audio": ["wav/a.wav"]}).to_parquet(str(tmp_path / "set" / "x.parquet"))
    monkeypatch.chdir(tmp_path)
    (only,) = read_corpus("set/x.parquet", options=Options(columns={"audio": "audio"}))
    assert only.audio_filepath == str(tmp_path / "set" / "wav" / "a.wav")
