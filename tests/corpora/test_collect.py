"""What every reader ends in."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hkd.corpora.collect import (
    Options,
    Report,
    channel_of,
    collect,
    find_audio,
    sort_files,
    split_named,
    walk,
    write_sound,
)
from hkd.errors import UserError
from hkd.manifest import Utterance
from kit.files import sound, write_files


def row(name: str, audio: Path | None, line: int = 1, **fields: object) -> tuple[str, Utterance]:
    return f"x:{line}", Utterance(
        id=name, text=str(fields.pop("text", "words")), audio_filepath=None if audio is None else str(audio), **fields
    )


def test_durations_are_filled_in_and_spans_held_against_the_audio(tmp_path: Path) -> None:
    audio = write_files(tmp_path, {"a.wav": sound(1.0)}) / "a.wav"
    whole = collect([row("a", audio, offset=0.25), row("b", audio, duration=0.5), row("c", None)], "x", Options())
    assert [u.duration for u in whole] == [0.75, 0.5, None]
    assert len(collect([row("a", audio, duration=1.04)], "x", Options())) == 1, (
        "what is off by less than 50 ms is the rounding of somebody's table"
    )
    for fields in (
        {"offset": 1.0},
        {"offset": 0.6, "duration": 0.5},
        {"duration": 1.2},
        {"offset": 0.2, "duration": 0.0},
    ):
        with pytest.raises(
            UserError, match=r"x: 1 of the utterances have audio that cannot be used: x:1: utterance 'a' must"
        ):
            collect([row("a", audio, **fields)], "x", Options())


def test_what_a_short_duration_leaves_unread_is_said(tmp_path: Path) -> None:
    files = write_files(tmp_path, {f"{name}.wav": sound(1.0) for name in "abcd"})
    rows = [row("a", files / "a.wav", duration=0.8), row("b", files / "b.wav", duration=0.95)]
    rows += [row("c1", files / "c.wav", duration=0.4), row("c2", files / "c.wav", offset=0.5, duration=0.4)]
    report = Report()
    assert collect([*rows, row("d", files / "d.wav")], "x", Options(report=report))[0].duration == 0.8
    kind = "recordings are read to the duration that is given, and are longer (leave it out to read all)"
    assert report.notes == {kind: ["a: 0.8 of 1 s"]}


@pytest.mark.parametrize("name", ["N/A", "nan", "None", "unknown"])
def test_a_speaker_of_no_name_is_none(tmp_path: Path, name: str) -> None:
    audio = write_files(tmp_path, {"a.wav": sound(1.0)}) / "a.wav"
    rows = [row("a", audio, duration=0.5, speaker=name), row("b", audio, offset=0.5, speaker="Nan Ann")]
    report = Report()
    assert [u.speaker for u in collect(rows, "x", Options(report=report))] == [None, "Nan Ann"]
    assert report.notes == {"names of speakers that say that none is known, and are left out": [name]}


def test_problems_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"5 of .* cannot be used: x:0: .*none0\.wav: No such file.*; x:1: .*; x:2: .* and 2 more\.$"
    ):
        collect([row(str(n), tmp_path / f"none{n}.wav", n) for n in range(5)], "x", Options())
    with pytest.raises(UserError, match="x:2: id must be unique, but 'a' stands at x:1 too"):
        collect([row("a", None, 1), row("a", None, 2)], "x", Options())
    with pytest.raises(UserError, match="lists none"):
        collect([], "x", Options())
    (tmp_path / "header.wav").write_bytes(sound(0.0))
    with pytest.raises(UserError, match="must hold sound, but has no samples"):
        collect([row("a", tmp_path / "header.wav")], "x", Options())


def test_overlaps_and_silence_are_said_but_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = write_files(tmp_path, {"a.wav": sound(1.0)}) / "a.wav"
    with caplog.at_level(logging.WARNING):
        collect([row("a", audio, duration=0.5), row("b", audio, offset=0.46, duration=0.5)], "x", Options())
        assert caplog.messages == []
        collect(
            [
                row("a", audio, duration=0.5, text=" "),
                row("b", audio, offset=0.4, duration=0.5),
                row("c", audio, duration=0.1),
            ],
            "x",
            Options(),
        )
    assert caplog.messages == [
        "x: 1 utterances have no words, the first is 'a'",
        "x: 2 utterances overlap others of their recording, the first is 'c'",
    ]


def test_paths_are_looked_for_where_recipes_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path, {"s5/wav/a.wav": b"", "s5/data/train/wav.scp": b"", "here/b.wav": b""})
    folder = root / "s5" / "data" / "train"
    monkeypatch.chdir(root / "here")
    assert find_audio("wav/a.wav", folder) == str(root / "s5" / "wav" / "a.wav")
    assert find_audio("b.wav", folder) == str(root / "here" / "b.wav")
    assert find_audio("../x/c.wav", folder) == str(root / "s5" / "data" / "x" / "c.wav")
    assert find_audio("s3://x/y.wav", folder) == "s3://x/y.wav"
    assert find_audio("n" * 5000, folder) == os.path.normpath(folder / ("n" * 5000))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_manifest", "train"),
        ("dev-clean", "dev"),
        ("x.validation", "dev"),
        ("eval2000", "test"),
        ("trainer", None),
        ("train-dev", None),
    ],
)
def test_splits_told_by_names(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_the_walk_follows_links_reads_a_folder_once_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    disk = write_files(tmp_path / "disk", {"ben/1.wav": b"", "ben/deep/2.wav": b""})
    root = write_files(
        tmp_path / "in",
        {
            "anna/1.wav": b"",
            "anna/._1.wav": b"",
            ".DS_Store": b"",
            "anna/Thumbs.db": b"",
            ".ipynb_checkpoints/1.wav": b"",
            "__MACOSX/1.wav": b"",
        },
    )
    for name, target in (
        ("ben", disk / "ben"),
        ("ann", root / "anna"),
        ("up", tmp_path),
        ("anna/loop", root),
        ("gone", disk / "none"),
    ):
        (root / name).symlink_to(target)
    report = Report()
    assert [str(path.relative_to(root)) for path in walk(root, report)] == [
        "anna/1.wav",
        "ben/1.wav",
        "ben/deep/2.wav",
        "gone",
    ]
    assert sorted(report.left_out["hidden files or folders"]) == [
        ".DS_Store", ".ipynb_checkpoints/", "__MACOSX/", "anna/._1.wav", "anna/Thumbs.db",
    ]  # fmt: skip
    ((kind, names),) = report.notes.items()
    assert kind.startswith("linked folders that were read under another name")
    assert sorted(names) == ["ann", "anna/loop", "up"]
    assert [path.name for path in walk(root / "ben", Report(), depth=1)] == ["1.wav"]
    (tmp_path / "link").symlink_to(root)
    assert len(walk(tmp_path / "link", Report())) == 4, "the folder itself may be a link"


def test_what_libsndfile_reads_and_what_it_does_not(tmp_path: Path) -> None:
    formats = {
        "a.WAV": "WAV",
        "b.oga": "OGG",
        "c.mp3": "MP3",
        "d.au": "AU",
        "e.aiff": "AIFF",
        "f.caf": "CAF",
        "g.w64": "W64",
        "h.sph": "NIST",
    }
    for name, format in formats.items():
        soundfile.write(tmp_path / name, np.zeros(1600), 16_000, format=format)
    soundfile.write(tmp_path / "i.opus", np.zeros(1600), 16_000, format="OGG", subtype="OPUS")
    soundfile.write(tmp_path / "j.gsm", np.zeros(1600), 8000, format="WAV")  # WAV under another ending
    write_files(
        tmp_path,
        dict.fromkeys(("k.m4a", "l.WebM", "m.wma", "n.mp4", "o.amr", "p.raw", "q.txt", "r.json", "s"), b"\x00" * 99),
    )
    readable, other = sort_files(walk(tmp_path, Report()))
    assert [path.name for path in readable] == [*formats, "i.opus", "j.gsm"]
    assert [path.name for path in other] == ["k.m4a", "l.WebM", "m.wma", "n.mp4", "o.amr", "p.raw"]


def test_all_names_go_to_a_file_and_those_who_say_so_go_on(tmp_path: Path) -> None:
    audio = write_files(tmp_path, {"a.wav": sound(1.0)}) / "a.wav"
    rows = [row("a", audio, 0), *(row(str(n), tmp_path / f"none{n}.wav", n) for n in range(1, 8))]
    report = Report(path=tmp_path / "left-out.tsv")
    with pytest.raises(
        UserError, match=r"7 of .*and 4 more\. .*left-out\.tsv lists all; --skip-bad goes on without them\."
    ):
        collect(rows, "x", Options(report=report))
    report.write()
    lines = (tmp_path / "left-out.tsv").read_text().splitlines()
    assert len(lines) == 8
    assert all(f"none{n}.wav" in line and "\t" in line for n, line in enumerate(lines[1:], 1))
    report = Report(path=tmp_path / "left-out.tsv", skip_bad=True)
    assert [u.id for u in collect(rows, "x", Options(report=report))] == ["a"]
    assert report.lines()[0].startswith("left out: 7 of the utterances have audio that cannot be used: x:1: ")
    assert report.to_json()["left_out"][0]["count"] == 7
    with pytest.raises(UserError, match="must list utterances with audio that can be used, but lists none"):
        collect(rows[1:], "x", Options(report=report))
    Report(path=tmp_path / "left-out.tsv").write()
    assert not (tmp_path / "left-out.tsv").exists()


def test_channels_are_held_against_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_files(tmp_path, {"mono.wav": sound(1.0), "call.flac": sound(1.0, channels=2, format="FLAC")})
    mono, call = files / "mono.wav", files / "call.flac"
    report = Report()
    rows = [
        row("a", mono, channel=0),
        row("b", call, channel=1),
        row("c", call),
        row("d", mono),
        row("e", mono, channel=1),
    ]
    whole = collect(rows, "x", Options(report=report, told={"e"}))
    assert [u.channel for u in whole] == [None, 1, None, None, None]
    assert list(report.notes.values()) == [["call.flac"]]
    for bad in (row("a", call, channel=2), row("a", mono, channel=1)):
        with pytest.raises(
            UserError, match=r"must have channel \d, but has \d channels, the first of which is 0 \(utterance 'a'\)"
        ):
            collect([bad], "x", Options())
    caplog.clear()
    collect([row("a", call, channel=0, duration=1.0), row("b", call, channel=1, duration=1.0)], "x", Options())
    assert caplog.messages == [], "two sides of a call do not overlap"


@pytest.mark.parametrize(
    ("value", "first", "channel"),
    [("A", 0, 0), ("b", 1, 1), ("0", 0, 0), (1, 0, 1), ("1", 1, 0), ("2", 1, 1), (" B ", 1, 1)],
)
def test_channels_as_tables_write_them(value: object, first: int, channel: int) -> None:
    assert channel_of(value, first=first) == channel


@pytest.mark.parametrize(("value", "first"), [("-1", 0), ("0", 1), ("", 0), ("left", 0), ("1.0", 0), (True, 0)])
def test_what_is_no_channel(value: object, first: int) -> None:
    with pytest.raises(UserError, match="channel must be A, B"):
        channel_of(value, first=first)


def test_sound_is_named_by_its_content(tmp_path: Path) -> None:
    one, other = sound(0.2), sound(0.2, loudness=0.3)
    paths = [write_sound(data, tmp_path, "x") for data in (one, other, one, sound(0.2, format="FLAC"))]
    assert paths[0] == paths[2]
    assert len(set(paths)) == 3
    assert [path.read_bytes() for path in paths[:2]] == [one, other]
    assert [path.suffix for path in paths] == [".wav", ".wav", ".wav", ".flac"]
    paths[0].write_bytes(b"damaged")
    assert write_sound(one, tmp_path, "x").read_bytes() == one
