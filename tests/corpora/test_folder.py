"""One's own recordings: folder, TSV, manifest; and what is wrong with them."""

import re
from pathlib import Path

import numpy as np
import pytest

from hkd import manifest
from hkd.audio import write_wav
from hkd.corpora import read_corpus
from hkd.corpora.collect import Options, Report
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.units.text import words
from kit import files


def read_folder(path: Path, options: Options | None = None) -> Manifest:
    return read_corpus(str(path), kind="folder", options=options)


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
    path.write_bytes(
        b'\xef\xbb\xbfclient_id\tpath\tsentence\tsplit\toffset\r\nanna\tclips/1.wav\tSay "it"\tdev\t0.05\r\n\r\n'
    )
    (only,) = read_folder(path)
    assert (only.id, only.text, only.speaker, only.split, only.offset) == (
        "clips/1-0000050",
        'Say "it"',
        "anna",
        "dev",
        0.05,
    )
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
        read_folder(tmp_path / "t.tsv")
    assert says in str(caught.value)


def test_a_manifest_made_elsewhere(tmp_path: Path) -> None:
    manifest.write(
        tmp_path / "m.jsonl", [Utterance(id="a", text="x", audio_filepath=str(sound(tmp_path / "a.wav")), speaker="s")]
    )
    assert [(u.duration, u.speaker) for u in read_corpus(str(tmp_path / "m.jsonl"))] == [(0.2, "s")]
    (tmp_path / "m.xml").touch()
    with pytest.raises(UserError, match=r"a folder, a table \(\.tsv, \.csv\) or a \.jsonl"):
        read_corpus(str(tmp_path / "m.xml"))


def test_one_table_for_a_folder_of_audio(tmp_path: Path) -> None:
    for name in "ab":
        sound(tmp_path / "wav" / f"{name}.wav")
    (tmp_path / "all.tsv").write_text("file\ttext\nwav/a.wav\tone\nwav/b.wav\ttwo\n")
    assert [(u.id, u.text) for u in read_corpus(str(tmp_path))] == [("wav/a", "one"), ("wav/b", "two")]


def spoken(folder: Path, *names: str, ending: str = ".wav") -> Path:
    for name in names:
        path = folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SOUNDS[ending])
        path.with_suffix(".txt").write_text(f"said in {name}")
    return folder


SOUNDS = {
    ".wav": files.sound(),
    ".mp3": files.sound(format="MP3"),
    ".oga": files.sound(format="OGG"),
    ".au": files.sound(format="AU"),
}


@pytest.mark.parametrize("ending", SOUNDS)
@pytest.mark.parametrize(
    ("names", "splits", "speakers"),
    [
        (["train/anna/1", "dev/ben/1", "test/carl/1"], ["dev", "test", "train"], ["ben", "carl", "anna"]),
        (["train/1", "valid/1", "eval/1"], ["test", "train", "dev"], [None] * 3),
        (["wavs/Train-Clean/a/1", "wavs/testing/b/1"], ["train", "test"], ["a", "b"]),
        (["anna/train/1", "anna/test/1", "ben/train/1"], ["test", "train", "train"], ["anna", "anna", "ben"]),
        (["train/anna/1", "train/ben/1"], [None, None], ["anna", "ben"]),
        (["test/anna/1", "test/ben/1"], ["test", "test"], ["anna", "ben"]),
        (["train/1", "anna/1"], [None, None], ["anna", "train"]),
    ],
)
def test_folders_called_like_splits_are_splits(
    tmp_path: Path, ending: str, names: list[str], splits: list[str | None], speakers: list[str | None]
) -> None:
    options = Options()
    whole = read_folder(spoken(tmp_path, *names, ending=ending), options)
    assert [(u.split, u.speaker) for u in whole] == list(zip(splits, speakers, strict=True))
    assert [u.id for u in whole] == sorted(names)
    assert bool(options.report.notes) == (names == ["train/1", "anna/1"]), "names that are not heeded are said"


def test_what_a_folder_holds_beside_utterances_is_counted(tmp_path: Path) -> None:
    spoken(tmp_path, "a", "b")
    (tmp_path / "b.wav").unlink()
    for name in ("b.m4a", "README.txt", "c.webm", "._a.wav", "._a.txt"):
        (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(
        UserError,
        match=r"1 recordings have an ending that libsndfile cannot read .*ffmpeg -i NAME\.m4a NAME\.flac\): b\.m4a\.",
    ):
        read_folder(tmp_path)
    options = Options(report=Report(skip_bad=True))
    assert [u.id for u in read_folder(tmp_path, options)] == ["a"]
    assert sorted(map(sorted, options.report.left_out.values())) == [
        ["._a.txt", "._a.wav"],
        ["README.txt"],
        ["b.m4a"],
        ["c.webm"],
    ]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UserError, match="holds no audio that libsndfile reads, but 2 other recordings"):
        read_folder(tmp_path, options)


def test_endings_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "A.WAV").write_bytes(SOUNDS[".wav"])
    (tmp_path / "A.TXT").write_text("x")
    assert [(u.id, u.text) for u in read_folder(tmp_path)] == [("A", "x")]


def test_tables_for_splits_and_audio_that_none_of_them_names(tmp_path: Path) -> None:
    for name in "abcd":
        sound(tmp_path / "wav" / f"{name}.wav")
    (tmp_path / "all.tsv").write_text(
        "file\ttext\tsplit\nwav/a.wav\tone\tTraining\nwav/b.wav\ttwo\tvalidation\nwav/c.wav\tthree\textra\n"
    )
    assert [u.split for u in read_folder(tmp_path)] == ["train", "dev", "extra"]
    (tmp_path / "all.tsv").unlink()
    for split, name in (("train", "a"), ("dev", "b"), ("my_test", "c")):
        (tmp_path / f"{split}.tsv").write_text(f"path\ttranscription\nwav/{name}.wav\tsaid\n")
    options = Options()
    whole = read_folder(tmp_path, options)
    assert {u.id: u.split for u in whole} == {"wav/a": "train", "wav/b": "dev", "wav/c": "test"}
    assert options.report.left_out == {"audio files that no row of a table names": ["wav/d.wav"]}


@pytest.mark.parametrize(
    ("header", "row", "offset", "duration"),
    [
        ("start_time\tend_time", "0.5\t1.5", 0.5, 1.0),
        ("start\tend", "0\t0.25", 0.0, 0.25),
        ("begin\tstop", "1.25\t2", 1.25, 0.75),
        ("begin_time\tduration", "1.25\t0.5", 1.25, 0.5),
        ("startTime\tendTime", "0.5\t1.5", 0.5, 1.0),
        ("Start Time\tEnd Time", "0.5\t1.5", 0.5, 1.0),
        ("start (s)\tend [s]", "0.5\t1.5", 0.5, 1.0),
        ("start_sec\tend_sec", "0.5\t1.5", 0.5, 1.0),
        ("offset\tduration", "\t", 0.0, 2.0),
        ("start\tend", "7.5\t9.5", 0.0, 2.0),  # two seconds, as long as the file: a clip that was cut there
    ],
)
def test_times_in_tables(tmp_path: Path, header: str, row: str, offset: float, duration: float) -> None:
    sound(tmp_path / "a.wav", 2.0)
    (tmp_path / "t.tsv").write_text(f"wav_filename\ttext_normalized\t{header}\na.wav\thi\t{row}\n")
    options = Options()
    (only,) = read_folder(tmp_path / "t.tsv", options)
    assert (only.offset, only.duration) == (offset, pytest.approx(duration))
    assert any("cut already" in kind for kind in options.report.notes) == (row == "7.5\t9.5")


def test_parts_of_a_recording_need_no_ids(tmp_path: Path) -> None:
    sound(tmp_path / "wav" / "talk.wav", 2.0)
    (tmp_path / "t.csv").write_text("path,start,end,text\nwav/talk.wav,0,1,hi\nwav/talk.wav,1.25,2,you\n")
    assert [u.id for u in read_folder(tmp_path / "t.csv")] == ["wav/talk", "wav/talk-0001250"]


@pytest.mark.parametrize("header", ["from,to", "start_ms,end_ms", "startms,endms", "t0,t1", "start_sample,end_sample"])
def test_times_of_other_units_are_refused(tmp_path: Path, header: str) -> None:
    sound(tmp_path / "talk.wav", 2.0)
    (tmp_path / "t.csv").write_text(f"path,{header},text\ntalk.wav,0,1,hi\n")
    with pytest.raises(UserError, match="t.csv:1: times must be in seconds.* but are in " + header.replace(",", ", ")):
        read_folder(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(f"path,{header},text\ntalk.wav,en,de,hi\n")
    assert len(read_folder(tmp_path / "t.csv")) == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1.5\t0.5", "t.tsv:2: end must be after the start"),
        ("now\t1", "t.tsv:2: start must be a number"),
        ("1\t9", "must lie within its audio"),
    ],
)
def test_times_that_cannot_be(tmp_path: Path, row: str, says: str) -> None:
    sound(tmp_path / "a.wav", 2.0)
    (tmp_path / "t.tsv").write_text(f"audio\ttext\tstart\tend\na.wav\thi\t{row}\n")
    with pytest.raises(UserError, match=says):
        read_folder(tmp_path / "t.tsv")


def test_columns_of_other_names_and_channels(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(files.sound(1.0, channels=2))
    (tmp_path / "t.tsv").write_text(
        "clip\tsaid\tnormalized_text\tchannel\tid\tonset_ms\na.wav\tHi!\thi\tB\tx\t5\na.wav\tYo!\tyo\t0\ty\t6\n"
    )
    with pytest.raises(
        UserError, match=r"must name a column 'audio', but has clip, said.* Say which: --column audio=NAME"
    ):
        read_folder(tmp_path / "t.tsv")
    options = Options(columns={"audio": "clip", "text": "SAID"})
    whole = read_folder(tmp_path / "t.tsv", options)
    assert [(u.id, u.text, u.channel) for u in whole] == [("x", "Hi!", 1), ("y", "Yo!", 0)]
    assert options.report.left_out == {"columns that may hold times are not read": ["onset_ms"]}
    with pytest.raises(UserError, match="must have the column 'word' that --column names, but has clip"):
        read_folder(tmp_path / "t.tsv", Options(columns={"text": "word"}))
    with pytest.raises(UserError, match="--column must name one of audio, text, id"):
        read_folder(tmp_path / "t.tsv", Options(columns={"words": "said"}))


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbfpath,sentence,speaker\r\nclips/1.wav,"Say ""it"", now",anna\r\n\r\n',
        b'sep=;\npath;sentence;speaker\nclips/1.wav;Say "it", now;anna\n'.replace(b'"', b""),
        b"path|speaker|sentence\nclips/1.wav|anna|Say it, now\n",
        b'path\tspeaker\tsentence\nclips\\1.wav\tanna\t"Say\nit, now"\n',
    ],
    ids=["commas and quotes", "Excel with semicolons", "bars", "tabs, a cell of two lines, a path of Windows"],
)
def test_csv(tmp_path: Path, content: bytes) -> None:
    sound(tmp_path / "clips" / "1.wav")
    (tmp_path / "t.csv").write_bytes(content)
    for path in (tmp_path, tmp_path / "t.csv"):
        (only,) = read_corpus(str(path))
        assert (only.id, words(only.text), only.speaker) == ("clips/1", ["say", "it", "now"], "anna")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('path,text\nx.wav,one\n\nx.wav,"two\n', "t.csv:4: a row must be CSV, but is not (unexpected end of data)"),
        ('path,text\nx.wav,"a" b\n', "t.csv:2: a row must be CSV"),
        ('path,text\nx.wav,"a\nb"\nx.wav\n', "t.csv:4: a row must have 2 columns or more, but has 1"),
        ("path,text\nx.wav,caf\xe9\n", "t.csv:2: a table must be UTF-8"),
        ("path,text\nx.wav,Hello, there\n", "t.csv:2: a row must have 2 columns as the header has, but has 3"),
        ("path,text,Path\nx.wav,a,b\n", "t.csv:1: the header must name each column once, but has 'Path' twice"),
        ("x.wav,hello\n", "t.csv:1: a table must begin with a header"),
        (f"{'long' * 100}|hello\n", "t.csv:1: the header must name a column 'audio'"),
    ],
)
def test_a_broken_csv_is_named_by_its_line(tmp_path: Path, content: str, says: str) -> None:
    sound(tmp_path / "x.wav")
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(says)):
        read_folder(tmp_path / "t.csv")


def test_rows_without_a_header_as_ljspeech_has_them(tmp_path: Path) -> None:
    for name in "ab":
        sound(tmp_path / "wavs" / f"{name}.wav")
    (tmp_path / "metadata.csv").write_text('a|"Chapter" 2|Chapter two\nb|Hi, you\n')
    assert [(u.id, u.text) for u in read_corpus(str(tmp_path))] == [("a", "Chapter two"), ("b", "Hi, you")]
    (tmp_path / "metadata.csv").write_text("a|one|two|three\n")
    with pytest.raises(UserError, match=r"metadata\.csv:1: a row must be ID\|TEXT\|NORMALISED TEXT"):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize("name", ["filelist.txt", "train.csv"])
def test_filelists_with_paths(tmp_path: Path, name: str) -> None:
    for number in range(6):
        sound(tmp_path / "wavs" / f"{number}.wav")
    rows = [f"wavs/{number}.wav|{number % 2}|say {number} there" for number in range(6)]
    (tmp_path / name).write_text("\n".join(rows))
    found = read_corpus(str(tmp_path / name))
    assert [(u.id, u.speaker, u.text) for u in found] == [
        (f"wavs/{number}", str(number % 2), f"say {number} there") for number in range(6)
    ]
    (tmp_path / name).write_text("wavs/0.wav|hi|Hi you\n")
    assert [(u.speaker, u.text) for u in read_corpus(str(tmp_path / name))] == [("hi", "Hi you")]
    (tmp_path / name).write_text("wavs/0.wav|YES|yes\nwavs\\1.wav|No 2|no two\n")
    assert [(u.id, u.speaker) for u in read_corpus(str(tmp_path / name))] == [("wavs/0", None), ("wavs/1", None)]
    (tmp_path / name).write_text(
        "audio_file|text|speaker_name\nwavs/0.wav|hi|ann\n" if name[-1] == "v" else "wavs/0.wav|ann|hi\n"
    )
    assert [u.speaker for u in read_corpus(str(tmp_path / name))] == ["ann"]


@pytest.mark.parametrize("row", ["a.wav,hi", "0,hi,wavs/a.m4a"])
def test_a_table_without_a_header_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "t.csv").write_text(f"{row}\n")
    with pytest.raises(UserError, match=r"t\.csv:1: a table must begin with a header .* but begins with the row of "):
        read_folder(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("rows", "speakers"),
    [
        (
            "a|anna|Hi there\nb|anna|Hi you\nc|ben|Chapter two\nd|ben|yes\ne|ben|Good night\n",
            "anna anna ben ben ben",
        ),
        ("a|21|twenty one\nb|Dr. Ben|doctor Ben\nc|21|twenty one\nd|21|twenty one\n", ""),
        ("a|YES|yes\nb|YES|yes\nc|NO|no\nd|NO|no\n", ""),
    ],
    ids=["Piper", "LJSpeech", "commands"],
)
def test_speakers_between_id_and_text(tmp_path: Path, rows: str, speakers: str) -> None:
    for row in rows.splitlines():
        sound(tmp_path / "wavs" / f"{row[0]}.wav")
    (tmp_path / "metadata.csv").write_text(rows)
    found = read_corpus(str(tmp_path))
    assert " ".join(u.speaker or "" for u in found).strip() == speakers
    assert [u.text for u in found] == [row.split("|")[2] for row in rows.splitlines()]


@pytest.mark.parametrize(
    "text",
    [
        "0.500000\t2.000000\thello there\n3.000000\t5.000000\thow are you\n",
        "1\n00:00:00,500 --> 00:00:02,000\nHello\n",
        "[00:00.000 --> 00:02.000]  Hello\n",
        "00:00:01.250\t00:00:02.000\thello\n",
        "0 46797 She had your dark suit\n",
    ],
    ids=["Audacity", "SRT", "Whisper", "ELAN", "TIMIT"],
)
def test_times_are_no_words(tmp_path: Path, text: str) -> None:
    for name, said in {"a": text, "b": "3.5 4 times --> 2", "c": "0 1 2", "d": "caf\xe9"}.items():
        sound(tmp_path / f"{name}.wav").with_suffix(".txt").write_bytes(said.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"2 transcripts cannot be read: .*a\.txt must be a .* holds labels with times.*d\.txt:1: a"
    ):
        read_folder(tmp_path)
    assert [u.id for u in read_folder(tmp_path, Options(report=Report(skip_bad=True)))] == ["b", "c"]


def test_files_that_may_have_the_texts_are_named(tmp_path: Path) -> None:
    sound(tmp_path / "clips" / "a.wav")
    for name in ("other.tsv", "validated.tsv"):
        (tmp_path / name).write_text("path\tsentence\na.wav\tx\n")
    with pytest.raises(UserError, match=r"beside them \(other\.tsv, validated\.tsv may have the texts: give a table"):
        read_folder(tmp_path)


def test_names_that_a_table_writes_otherwise(tmp_path: Path) -> None:
    for name in ("cafe\u0301.wav", "LOUD.WAV", "one/x.wav", "Twice.wav", "twice.wav"):
        sound(tmp_path / "Clips" / name)
    said = {"clips/caf\u00e9.wav": "accents", "Clips/loud.wav": "case", "Clips\\one\\x.wav": "separators"}
    (tmp_path / "t.tsv").write_text("path\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in said.items()))
    options = Options()
    found = {u.text: Path(u.audio_filepath or "") for u in read_folder(tmp_path / "t.tsv", options)}
    clips = tmp_path / "Clips"
    expected = {"accents": clips / "cafe\u0301.wav", "case": clips / "LOUD.WAV", "separators": clips / "one/x.wav"}
    assert found == expected
    assert any("written otherwise" in line for line in options.report.note_lines())
    (tmp_path / "t.tsv").write_text("path\ttext\nClips/TWICE.wav\twhich?\n")
    with pytest.raises(UserError, match=r"Clips/TWICE\.wav"):
        read_folder(tmp_path / "t.tsv")


@pytest.mark.parametrize(
    ("audio", "text"), [("wav48/{}/{}.wav", "txt/{}/{}.txt"), ("{}/wav/{}.wav", "{}/transcript/{}.txt")]
)
def test_texts_below_another_folder(tmp_path: Path, audio: str, text: str) -> None:
    for speaker in ("p1", "p2"):
        for name in "ab":
            sound(tmp_path / audio.format(speaker, name))
            path = tmp_path / text.format(speaker, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{speaker} {name}")
    options = Options()
    found = [(u.text, u.speaker) for u in read_folder(tmp_path, options)]
    assert sorted(found) == [("p1 a", "p1"), ("p1 b", "p1"), ("p2 a", "p2"), ("p2 b", "p2")]
    assert any("texts lie below another folder" in line for line in options.report.note_lines())
    (tmp_path / text.format("p1", "a")).unlink()
    with pytest.raises(UserError, match=r"1 audio files have no \.txt beside them"):
        read_folder(tmp_path)


def test_a_table_beside_texts_is_said_to_be_left_out(tmp_path: Path) -> None:
    spoken(tmp_path, "a")
    (tmp_path / "metadata.csv").write_text("path,text,speaker\na.wav,said,anna\n")
    options = Options()
    assert [u.text for u in read_folder(tmp_path, options)] == ["said in a"]
    assert list(options.report.left_out.values()) == [["metadata.csv"]]


def test_a_text_of_another_speaker_is_not_taken(tmp_path: Path) -> None:
    for name in ("anna/1", "ben/2"):
        sound(tmp_path / f"{name}.wav")
    for name in ("anna/2", "ben/1"):
        (tmp_path / f"{name}.txt").write_text("of another")
    with pytest.raises(UserError, match=r"2 audio files have no \.txt beside them"):
        read_folder(tmp_path)


def test_lab_files_are_transcripts_unless_they_hold_times(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav").with_suffix(".lab").write_text("hello there")
    sound(tmp_path / "b.wav").with_suffix(".lab").write_text("not this")
    (tmp_path / "b.txt").write_text("but this")
    options = Options()
    assert [u.text for u in read_folder(tmp_path, options)] == ["hello there", "but this"]
    assert options.report.left_out == {"text files whose recording has a .txt, too, which is taken": ["b.lab"]}
    (tmp_path / "a.lab").write_text("0 1200000 hh\n1200000 3400000 ah\n")
    with pytest.raises(UserError, match=r"a\.lab must be a transcript, but holds labels with times"):
        read_folder(tmp_path)
