"""speechocean762: OpenSLR's layout, and a copy of its training part as one Kaldi folder."""

from pathlib import Path

from hkd import corpora
from hkd.testing.files import sound, tar_of, write_files


def speechocean(speakers: int = 10) -> dict[str, bytes]:
    files: dict[str, bytes] = {"speechocean762/resource/scores.json": b"{}"}
    for part, first in (("train", 1), ("test", 1 + speakers)):
        tables: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
        for speaker in range(first, first + speakers):
            name = f"{speaker:05d}0011"
            files[f"speechocean762/WAVE/SPEAKER{speaker:04d}/{name}.WAV"] = sound()
            tables["wav.scp"].append(f"{name}\tWAVE/SPEAKER{speaker:04d}/{name}.WAV")
            tables["text"].append(f"{name}\tWE CALL IT BEAR")
            tables["utt2spk"].append(f"{name} {speaker:04d}")
        files |= {f"speechocean762/{part}/{name}": ("\n".join(rows) + "\n").encode() for name, rows in tables.items()}
    return files


def test_the_archive_becomes_splits(publish, tmp_path: Path) -> None:
    url = publish(
        "speechocean762",
        {"speechocean762.tar.gz": tar_of(speechocean())},
        parts={"train": {"utterances": 10}, "test": {"utterances": 10}},
    )
    whole = corpora.prepare("speechocean762", tmp_path / "p", cache=tmp_path / "c", base_url=url)
    assert {name: len(whole.split(name)) for name in ("train", "dev", "test")} == {"train": 9, "dev": 1, "test": 10}
    assert whole.by_id("000010011").speaker == "0001"
    train = corpora.prepare("speechocean762", tmp_path / "q", cache=tmp_path / "c", parts=("train",))
    assert {u.split for u in train} == {"train", "dev"}


def test_the_training_part_as_one_kaldi_folder(publish, tmp_path: Path) -> None:
    publish("speechocean762", {}, parts={"train": {"utterances": 10}, "test": {"utterances": 10}})
    files = {name.split("/", 1)[1].removeprefix("train/"): data for name, data in speechocean().items()}
    whole = corpora.prepare("speechocean762", tmp_path / "p", root=write_files(tmp_path / "copy", files))
    assert {u.split for u in whole} == {"train", "dev"}
    assert {u.extra["part"] for u in whole} == {"train"}
