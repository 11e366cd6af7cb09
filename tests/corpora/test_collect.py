"""What every reader ends in."""

import logging
import os
from pathlib import Path

import pytest

from hkd.corpora.collect import collect, find_audio, split_named
from hkd.errors import UserError
from hkd.manifest import Utterance
from hkd.testing.files import sound, write_files


def row(name: str, audio: Path | None, line: int = 1, **fields: object) -> tuple[str, Utterance]:
    return f"x:{line}", Utterance(
        id=name, text=str(fields.pop("text", "words")), audio_filepath=None if audio is None else str(audio), **fields
    )


def test_durations_are_filled_in_and_spans_held_against_the_audio(tmp_path: Path) -> None:
    audio = write_files(tmp_path, {"a.wav": sound(1.0)}) / "a.wav"
    whole = collect([row("a", audio, offset=0.25), row("b", audio, duration=0.5), row("c", None)], "x")
    assert [u.duration for u in whole] == [0.75, 0.5, None]
    assert len(collect([row("a", audio, duration=1.04)], "x")) == 1, (
        "what is off by less than 50 ms is the rounding of somebody's table"
    )
    for fields in ({"offset": 1.0}, {"offset": 0.6, "duration": 0.5}, {"duration": 1.2}, {"offset": 0.2, "duration": 0.0}):
        with pytest.raises(UserError, match=r"x: 1 of the utterances have audio that cannot be used: x:1: utterance 'a' must"):
            collect([row("a", audio, **fields)], "x")


def test_problems_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"5 of .* cannot be used: x:0: .*none0\.wav: No such file.*; x:1: .*; x:2: .* and 2 more\.$"
    ):
        collect([row(str(n), tmp_path / f"none{n}.wav", n) for n in range(5)], "x")
    with pytest.raises(UserError, match="x:2: id must be unique, but 'a' stands at x:1 too"):
        collect([row("a", None, 1), row("a", None, 2)], "x")
    with pytest.raises(UserError, match="lists none"):
        collect([], "x")
    (tmp_path / "header.wav").write_bytes(sound(0.0))
    with pytest.raises(UserError, match="must lie within its audio, but ends at 0"):
        collect([row("a", tmp_path / "header.wav")], "x")


def test_overlaps_and_silence_are_said_but_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = write_files(tmp_path, {"a.wav": sound(1.0)}) / "a.wav"
    with caplog.at_level(logging.WARNING):
        collect([row("a", audio, duration=0.5), row("b", audio, offset=0.46, duration=0.5)], "x")
        assert caplog.messages == []
        collect(
            [row("a", audio, duration=0.5, text=" "), row("b", audio, offset=0.4, duration=0.5), row("c", audio, duration=0.1)],
            "x",
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
