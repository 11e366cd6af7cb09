"""More than a hundred broken inputs, each through the command line: one clear line and the right exit code, or, where harmless, accepted.

2: what the user gave; 1: the world (archives, servers, files that are damaged).
"""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from hkd.cli.main import app
from hkd.corpora import fetch
from hkd.lines import MAX_LINE_BYTES
from hkd.manifest import read
from hkd.testing.files import sound, tar_of, write_files

WAV = sound(1.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`files` are written, the command runs beside them; `says` must stand in its last line. `kept`: accepted, with so many utterances."""

    name: str
    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    code: int = 2
    says: tuple[str, ...] = ()
    kept: int | None = None
    warns: str = ""


def row(**fields: object) -> str:
    return json.dumps({"id": "a", "text": "x", "audio_filepath": "a.wav", "split": "train", **fields})


GOOD = row(id="good", duration=0.5)


def own(name: str, second: str | bytes, *says: str, files: dict[str, bytes] | None = None, **more: Any) -> Case:
    """A manifest of ours: one good line, and the second."""
    data = GOOD.encode() + b"\n" + (second if isinstance(second, bytes) else second.encode())
    return Case(
        name=f"own: {name}", arguments=("prepare", "m.jsonl", "--folder", "p"), says=says,
        files={"a.wav": WAV, "m.jsonl": data, **(files or {})}, **more,
    )  # fmt: skip


def own_cases() -> Iterator[Case]:
    for name, line, says in (
        ("no JSON", "{", "no JSON"),
        ("half a line", row()[:-5], "no JSON"),
        ("single quotes", str({"id": "a"}), "no JSON"),
        ("an array", "[]", "is a list"),
        ("a number", "3", "is a int"),
        ("null", "null", "is a NoneType"),
        ("an empty object", "{}", "'id' must be there"),
        ("no text", '{"id": "a"}', "'text' must be there"),
        ("text null", row(text=None), "'text' must be there"),
        ("text a number", row(text=3), "'text' must be a string"),
        ("id empty", row(id=""), "non-empty"),
        ("id a number", row(id=7), "'id' must be a string"),
        ("path a list", row(audio_filepath=["a.wav"]), "'audio_filepath' must be a string"),
        ("speaker a number", row(speaker=7), "'speaker' must be a string"),
        ("duration NaN", row(duration=float("nan")), "NaN"),
        ("duration infinite", row(duration=float("inf")), "Infinity"),
        ("offset minus infinite", row(offset=float("-inf")), "-Infinity"),
        ("duration negative", row(duration=-1), "duration of utterance 'a' must be finite and not negative"),
        ("offset negative", row(offset=-0.1), "offset of utterance 'a' must be finite and not negative"),
        ("duration a string", row(duration="1"), "'duration' must be a number"),
        ("duration true", row(duration=True), "'duration' must be a number"),
        ("duration of 400 digits", row(duration=10**400), "401 digits"),
        ("duration zero", row(duration=0), "longer than 0 s"),
        ("duration beyond the end", row(duration=1.2), "a.wav at 1.000 s"),
        ("offset beyond the end", row(offset=1.5), "a.wav at 1.000 s"),
        ("a duplicate id", GOOD, "'good' stands at"),
        ("a NUL byte", b'{"id": "a\0"}', "NUL byte"),
        ("Latin-1", '{"id": "é"}'.encode("latin-1"), "must be UTF-8"),
        ("1 MB", row(text="x" * MAX_LINE_BYTES), "lines shorter than"),
        ("half a surrogate pair", '{"id": "a", "text": "\\ud800"}', "surrogate"),
        ("deep nesting", "[" * 100_000, "no JSON"),
        ("audio missing", row(audio_filepath="none.wav"), "none.wav: No such file"),
        ("audio's name with a NUL", row(audio_filepath="a\0.wav"), "null byte"),
        ("audio's name too long", row(audio_filepath="n" * 5000), "too long"),
    ):
        yield own(name, line, "m.jsonl:2: ", says)
    audio = {
        "text": b"no sound at all",
        "empty": b"",
        "header": sound(0.0),
        "half a header": WAV[:20],
        "rate 0": rate(0),
        "a picture": b"\x89PNG\r\n\x1a\n" * 9,
    }
    for name, data in audio.items():
        yield own(f"audio is {name}", row(audio_filepath="b.wav"), "m.jsonl:2: ", "b.wav", files={"b.wav": data})
    yield own("audio is a folder", row(audio_filepath="b"), "m.jsonl:2: ", "audio file", folders=("b",))
    yield own("audio is a loop of links", row(audio_filepath="b.wav"), "m.jsonl:2: ", "symbolic links", links={"b.wav": "b.wav"})
    yield own("only one has a split", row(split=None), "1 of 2 have none")
    start = ("prepare", "m.jsonl", "--folder", "p")
    yield Case(name="own: empty", arguments=start, files={"m.jsonl": b""}, says=("m.jsonl must list utterances",))
    yield Case(name="own: UTF-16", arguments=start, files={"m.jsonl": GOOD.encode("utf-16")}, says=("m.jsonl:1: ", "UTF-16"))
    yield Case(name="own: a folder", arguments=(*start, "--from", "hkd"), folders=("m.jsonl",), says=("m.jsonl: Is a directory",))
    yield Case(name="own: a loop of links", arguments=(*start, "--from", "hkd"), links={"m.jsonl": "m.jsonl"}, says=("m.jsonl",))
    yield Case(
        name="own: gzip cut off",
        arguments=("prepare", "m.jsonl.gz"),
        files={"m.jsonl.gz": gzip.compress(GOOD.encode())[:30]},
        says=("m.jsonl.gz:1: ",),
    )
    second = row(id="b", offset=0.5)
    yield own("CRLF", second + "\r\n\r\n", kept=2)
    yield own("blank lines and tabs", "\n\t\n" + second.replace(" ", "\t"), kept=2)
    yield own("a line separator within a text", second.replace('"x"', '"x\u2028y\x85z"'), kept=2)
    yield own("no words", row(id="b", text=" ", offset=0.5), kept=2, warns="have no words")
    yield own("overlapping utterances", row(id="b", offset=0.25, duration=0.25), kept=2, warns="overlap others")
    yield Case(
        name="own: a byte order mark",
        arguments=start,
        files={"a.wav": WAV, "m.jsonl": f"\ufeff{GOOD}\n{second}".encode()},
        kept=2,
    )


def rate(hertz: int) -> bytes:
    """A WAV header with that rate."""
    return WAV[:24] + struct.pack("<I", hertz) + WAV[28:]


def tsv_cases() -> Iterator[Case]:
    head = "path\tsentence\toffset\tid"
    for name, table, says in (
        ("empty", "", "t.tsv:1: the header"),
        ("no header", "a.wav\tx\t0\ta\n", "t.tsv:1: the header must name a column 'audio'"),
        ("commas", "path,sentence\na.wav,x\n", "t.tsv:1: the header"),
        ("no rows", head, "lists none"),
        ("a short row", f"{head}\na.wav\tx\n", "t.tsv:2: a row must have 4 columns or more, but has 2"),
        ("no audio named", f"{head}\n\tx\t0\ta\n", "t.tsv:2: a row must name its audio file"),
        (
            "an offset that is a word",
            f"{head}\na.wav\tx\tsoon\ta\n",
            "t.tsv:2: offset must be a number of seconds, but is 'soon'",
        ),
        ("an offset that is NaN", f"{head}\na.wav\tx\tnan\ta\n", "t.tsv:2: offset of utterance 'a' must be finite"),
        ("an offset beyond the end", f"{head}\na.wav\tx\t2\ta\n", "t.tsv:2: utterance 'a' must lie within its audio"),
        (
            "a duplicate id",
            f"{head}\na.wav\tx\t0\ta\na.wav\ty\t0\ta\n",
            "t.tsv:3: id must be unique, but 'a' stands at t.tsv:2 too",
        ),
        ("audio missing", f"{head}\nb.wav\tx\t0\ta\n", "t.tsv:2: audio file"),
        ("a NUL byte", f"{head}\na.wav\tx\0\t0\ta\n", "t.tsv:2: "),
        ("1 MB", f"{head}\na.wav\t{'x' * MAX_LINE_BYTES}\t0\ta\n", "t.tsv:2: "),
    ):
        yield Case(
            name=f"tsv: {name}",
            arguments=("prepare", "t.tsv", "--folder", "p"),
            files={"a.wav": WAV, "t.tsv": table.encode()},
            says=(says,),
        )
    yield Case(
        name="tsv: CRLF, a mark, quotes", arguments=("prepare", "t.tsv", "--folder", "p"), kept=3,
        files={"a.wav": WAV, "t.tsv": f'\ufeff{head}\r\na.wav\t"x\t0\ta\r\n\r\na.wav\ty\t0.5\tb\r\na.wav\tz\t0.7\tc\r\n'.encode()}, warns="overlap others",
    )  # fmt: skip


def folder_cases() -> Iterator[Case]:
    def case(name: str, files: dict[str, bytes], *says: str, **more: Any) -> Case:
        return Case(
            name=f"folder: {name}",
            arguments=("prepare", "in", "--folder", "p"),
            files={f"in/{key}": data for key, data in files.items()},
            says=says,
            **more,
        )

    yield Case(name="folder: nothing in it", arguments=("prepare", "in"), folders=("in",), says=("in must hold audio files",))
    yield case("no text", {"a.wav": WAV, "b.wav": WAV, "b.txt": b"x"}, "1 audio files have no .txt beside them: a.wav")
    yield case("text in UTF-16", {"a.wav": WAV, "a.txt": "x".encode("utf-16")}, "a.txt:1: ", "UTF-16")
    yield case("text in Latin-1", {"a.wav": WAV, "a.txt": b"one\ntw\xf6"}, "a.txt:2: ", "UTF-8")
    yield case("text is a folder", {"a.wav": WAV}, "a.txt: Is a directory", folders=("in/a.txt",))
    yield case("text is a loop", {"a.wav": WAV}, "no .txt beside them: a.wav", links={"in/a.txt": "a.txt"})
    yield case("empty audio", {"a.wav": b"", "a.txt": b"x"}, "a.wav must hold sound, but is empty")
    yield case("a table of other columns", {"a.wav": WAV, "x.tsv": b"a\tb\n"}, "x.tsv:1: the header")
    yield case(
        "a loop of folders",
        {"a.wav": WAV, "a.txt": b"x", "b.wav": WAV, "b.txt": b"y", "c.wav": WAV, "c.txt": b"z"},
        links={"in/again": "."},
        kept=3,
    )
    yield Case(
        name="folder: not there",
        arguments=("prepare", "in", "--from", "folder"),
        says=("in must be a folder of audio", "not there"),
    )
    yield Case(name="folder: neither name nor path", arguments=("prepare", "./in"), says=("must be a known name or a path",))


KALDI = {"in/wav.scp": b"r1 a.wav\nr2 a.wav\n", "in/text": b"r1 A\nr2 B\n", "in/a.wav": WAV}


def kaldi_cases() -> Iterator[Case]:
    segments = {"text": "u A\n", "segments": "u r1 0 0.5\n"}
    broken: tuple[tuple[str, dict[str, str], str], ...] = (
        ("a pipe", {"wav.scp": "r1 sph2pipe a.sph |\nr2 a.wav\n"}, "wav.scp: 1 entries are commands, where only paths are read"),
        ("an archive", {"wav.scp": "r1 wav.ark:17\nr2 a.wav\n"}, "wav.scp: 1 entries lie in archives"),
        ("no path", {"wav.scp": "r1\nr2 a.wav\n"}, "wav.scp:1: 'r1' must have a path"),
        ("no such path", {"wav.scp": "r1 none.wav\nr2 a.wav\n"}, "text:1: audio file"),
        ("a duplicate", {"text": "r1 A\nr1 B\n"}, "text:2: 'r1' must stand once, but stands at line 1 too"),
        ("text without audio", {"text": "r1 A\nr9 B\n"}, "text: 1 utterances have no audio: line 2: r9"),
        ("nothing", {"text": ""}, "in must list utterances"),
        ("an unknown speaker", {"utt2spk": "r1 s\n"}, "utt2spk: every utterance must have a speaker, but 'r2' has none"),
        (
            "a length that is a word",
            {"reco2dur": "r1 long\n"},
            "reco2dur:1: a duration must be a number of seconds, but is 'long'",
        ),
        ("a negative length", {"reco2dur": "r1 1.0\nr2 -1\n"}, "reco2dur:2: a duration must be finite and above 0"),
        ("a NaN length", {"reco2dur": "r1 nan\n"}, "reco2dur:1: a duration must be finite"),
        ("a length beyond the end", {"reco2dur": "r1 3.5\n"}, "text:1: utterance 'r1' must lie within its audio"),
        ("a NUL byte", {"text": "r1 A\0\nr2 B\n"}, "text:1: "),
        ("1 MB", {"text": f"r1 {'A ' * MAX_LINE_BYTES}\nr2 B\n"}, "text:1: "),
        (
            "a short segment line",
            {**segments, "segments": "u r1 0\n"},
            "segments:1: a segment must be UTTERANCE RECORDING START END",
        ),
        ("a segment of words", {**segments, "segments": "u r1 now then\n"}, "segments:1: a segment must be UTTERANCE"),
        ("a segment backwards", {**segments, "segments": "u r1 0.5 0.2\n"}, "segments:1: a segment must start at 0 s or later"),
        ("a segment before 0", {**segments, "segments": "u r1 -0.5 0.2\n"}, "segments:1: a segment must start at 0 s or later"),
        ("a segment of no length", {**segments, "segments": "u r1 0.5 0.5\n"}, "segments:1: a segment must start"),
        ("a NaN segment", {**segments, "segments": "u r1 nan 0.5\n"}, "segments:1: a segment must start"),
        ("a segment beyond the end", {**segments, "segments": "u r1 0.5 2\n"}, "text:1: utterance 'u' must lie within its audio"),
        (
            "a segment of nothing",
            {**segments, "segments": "u r9 0 1\n"},
            "segments:1: 'u' is cut from 'r9', which is not in wav.scp",
        ),
    )
    arguments = ("prepare", "in", "--folder", "p")
    for name, changes, says in broken:
        files = {**KALDI, **{f"in/{key}": value.encode() for key, value in changes.items()}}
        yield Case(name=f"kaldi: {name}", arguments=arguments, files=files, says=(says,))
    yield Case(
        name="kaldi: no text",
        arguments=arguments,
        files={key: KALDI[key] for key in KALDI if key != "in/text"},
        says=("in/text: No such file",),
    )
    yield Case(
        name="kaldi: UTF-16",
        arguments=arguments,
        files={**KALDI, "in/text": "r1 A\n".encode("utf-16")},
        says=("in/text:1: ", "UTF-16"),
    )
    yield Case(
        name="kaldi: a table is a folder",
        arguments=arguments,
        files={**KALDI},
        folders=("in/utt2spk",),
        says=("in/utt2spk: Is a directory",),
    )
    yield Case(
        name="kaldi: none", arguments=("prepare", "in", "--from", "kaldi"), folders=("in",), says=("must be a Kaldi data folder",)
    )
    three = {f"in/{name}.wav": WAV for name in "abc"} | {
        "in/wav.scp": b"r1\ta.wav\r\nr2 b.wav\r\nr3  c.wav\r\n",
        "in/text": b"\xef\xbb\xbfr1\tA\r\nr2 B\r\n\r\nr3\r\n",
    }
    yield Case(name="kaldi: CRLF, tabs, a mark, no words", arguments=arguments, files=three, kept=3, warns="have no words")
    overlapping = {**KALDI, "in/text": b"u A\nv B\nw C\n", "in/segments": b"u r1 0 0.5\nv r1 0.4 0.9\nw r2 0.2 -1\n"}
    yield Case(
        name="kaldi: overlapping segments, one to the end", arguments=arguments, files=overlapping, kept=3, warns="overlap others"
    )


def nemo_cases() -> Iterator[Case]:
    for name, line, says in (
        (
            "no JSON",
            "{",
            "n.json:1: ",
        ),
        ("an array", '[{"audio_filepath": "a.wav"}]', "n.json:1: a line must be one JSON object, but is a list"),
        ("no text", '{"audio_filepath": "a.wav"}', "n.json:1: field 'text' must be there"),
        ("no audio", '{"text": "x"}', "n.json:1: field 'audio_filepath' must be there"),
        ("tarred", '{"text": "x", "shard_id": 0}', "n.json:1: tarred NeMo data"),
        ("NaN", '{"audio_filepath": "a.wav", "text": "x", "duration": NaN}', "n.json:1: numbers must be finite"),
        ("negative", '{"audio_filepath": "a.wav", "text": "x", "duration": -2}', "n.json:1: duration"),
        ("text a list", '{"audio_filepath": "a.wav", "text": ["x"]}', "n.json:1: field 'text' must be a string"),
        ("beyond the end", '{"audio_filepath": "a.wav", "text": "x", "duration": 2}', "n.json:1: utterance 'a' must lie within"),
        (
            "duplicates",
            '{"audio_filepath": "a.wav", "text": "x"}\n{"audio_filepath": "a.wav", "text": "y"}',
            "n.json:2: id must be unique",
        ),
        ("a command for a path", '{"audio_filepath": "cat a.wav |", "text": "x"}', "n.json:1: audio file"),
        ("empty", "", "n.json must list utterances"),
    ):
        yield Case(
            name=f"nemo: {name}",
            arguments=("prepare", "n.json", "--folder", "p"),
            files={"a.wav": WAV, "n.json": line.encode()},
            says=(says,),
        )


RECORDING = {
    "id": "r",
    "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    "sampling_rate": 16000,
    "num_samples": 16000,
    "duration": 1.0,
}
SUPERVISION = {"id": "u", "recording_id": "r", "start": 0.0, "duration": 0.5, "channel": 0, "text": "x"}
CUT = {
    "id": "c",
    "type": "MonoCut",
    "start": 0,
    "duration": 1.0,
    "channel": 0,
    "supervisions": [SUPERVISION],
    "recording": RECORDING,
}


def lhotse_cases() -> Iterator[Case]:
    def source(**change: object) -> dict[str, object]:
        return {**RECORDING, "sources": [{**RECORDING["sources"][0], **change}]}  # type: ignore[index]

    for name, items, says in (
        (
            "a recording that is missing",
            [RECORDING, {**SUPERVISION, "recording_id": "s"}],
            "all.jsonl:2: supervision 'u' is cut from 's'",
        ),
        ("recordings alone", [RECORDING], "there is no text"),
        ("no text", [RECORDING, {**SUPERVISION, "text": None}], "all.jsonl:2: supervision 'u' must have a text"),
        ("a command", [source(type="command", source="rm -rf x"), SUPERVISION], "must be a file, but is a command ('rm -rf x')"),
        ("a URL", [source(type="url", source="http://x/a.wav"), SUPERVISION], "must be a file, but is a url"),
        ("a file that is missing", [source(source="none.wav"), SUPERVISION], "none.wav: No such file"),
        (
            "a channel that is missing",
            [source(channels=[0, 1]), {**SUPERVISION, "channel": 1}],
            "must have channel 1, but has 1 channels",
        ),
        ("two sources", [{**RECORDING, "sources": RECORDING["sources"] * 2}, SUPERVISION], "must be one file, but is 2"),  # type: ignore[operator]
        (
            "a negative start",
            [RECORDING, {**SUPERVISION, "start": -1}],
            "all.jsonl:2: offset of utterance 'u' must be finite and not negative",
        ),
        ("beyond the end", [RECORDING, {**SUPERVISION, "duration": 5}], "all.jsonl:2: utterance 'u' must lie within its audio"),
        ("a start that is a word", [RECORDING, {**SUPERVISION, "start": "now"}], "all.jsonl:2: "),
        ("a duplicate", [RECORDING, SUPERVISION, SUPERVISION], "all.jsonl:3: id must be unique, but 'u' stands at"),
        ("a supervision beyond its cut", [{**CUT, "duration": 0.25}], "must lie within its cut"),
        ("a cut without a recording", [{key: CUT[key] for key in CUT if key != "recording"}], "must have one recording"),
        ("features", [{"type": "fbank", "num_features": 80}], "all.jsonl:1: "),
        ("a cut of another kind", [{**CUT, "type": "Kut"}], "all.jsonl:1: must be an item of lhotse's"),
    ):
        lines = "".join(json.dumps(item) + "\n" for item in items)
        yield Case(
            name=f"lhotse: {name}", arguments=("prepare", "in", "--from", "lhotse", "--folder", "p"), says=(says,),
            files={"in/a.wav": WAV, "in/all.jsonl": lines.encode()},
        )  # fmt: skip
    arguments = ("prepare", "c.jsonl.gz", "--folder", "p")
    yield Case(
        name="lhotse: no gzip", arguments=arguments, files={"c.jsonl.gz": b"{}"}, says=("c.jsonl.gz:1: ", "cannot be unpacked")
    )
    yield Case(
        name="lhotse: gzip cut off",
        arguments=arguments,
        files={"c.jsonl.gz": gzip.compress(json.dumps(CUT).encode())[:-9]},
        says=("c.jsonl.gz:1: ",),
    )
    yield Case(
        name="lhotse: one endless line",
        arguments=arguments,
        files={"c.jsonl.gz": gzip.compress(bytes([120]) * (MAX_LINE_BYTES + 9))},
        says=("c.jsonl.gz:1: ",),
    )
    yield Case(
        name="lhotse: empty", arguments=arguments, files={"c.jsonl.gz": gzip.compress(b"")}, says=("must list utterances",)
    )
    yield Case(
        name="lhotse: nothing in the folder",
        arguments=("prepare", "in", "--from", "lhotse"),
        folders=("in",),
        says=("in must hold lhotse's manifests",),
    )
    yield Case(
        name="lhotse: no such recipe",
        arguments=("prepare", "vctkk", "--from", "lhotse", "--root", "."),
        says=("recipe of lhotse's", "vctk"),
    )


def hf_cases() -> Iterator[Case]:
    for name, files, says in (
        ("state that is no JSON", {"state.json": b"{"}, "it says"),
        ("a list of splits that is no JSON", {"dataset_dict.json": b"["}, "it says"),
        ("parquet that is none", {"data/train-00000-of-00001.parquet": b"PAR1"}, "it says"),
        ("nothing", {"README": b""}, "it says"),
        ("metadata without sound", {"metadata.csv": b"file_name,text\nnone.wav,x\n"}, "data set in"),
    ):
        yield Case(
            name=f"hf: {name}",
            arguments=("prepare", "in", "--from", "hf", "--folder", "p"),
            files={f"in/{key}": data for key, data in files.items()},
            says=(says,),
        )
    yield Case(
        name="hf: no network",
        arguments=("prepare", "no/such", "--from", "hf"),
        code=1,
        says=("data set no/such could not be reached",),
    )


def argument_cases() -> Iterator[Case]:
    folder = {"in/a.wav": WAV, "in/a.txt": b"x", "x.xml": b"<x/>", "m.jsonl": b'{"id": "a", "text": "x"}\n'}
    for name, arguments, *says in (
        ("no corpus", ("prepare",), "CORPUS must be given"),
        ("a corpus that is nearly known", ("prepare", "librispeach"), "Did you mean 'librispeech'?"),
        ("a kind that is unknown", ("prepare", "in", "--from", "espnet"), "--from must be one of"),
        ("a file of no kind", ("prepare", "x.xml"), "x.xml must be a folder, a .tsv or a .jsonl"),
        ("a root for a path", ("prepare", "in", "--root", "."), "--root must go with the name of a corpus"),
        ("a part of a path", ("prepare", "in", "--part", "x"), "--part must go with a corpus that has parts"),
        ("a part that is unknown", ("prepare", "librispeech", "--part", "train"), "part of librispeech must be one of"),
        ("a root that is missing", ("prepare", "timit", "--root", "none"), "--root must be a folder, but none is none"),
        ("a root of another corpus", ("prepare", "timit", "--root", "in"), "in must be the folder of timit"),
        (
            "a corpus that needs a licence",
            ("prepare", "timit", "--download"),
            "get it from https://catalog.ldc.upenn.edu/LDC93S1",
        ),
        ("a corpus that is large", ("prepare", "librispeech"), "or --download (about 60 GB)"),
        ("text for a manifest", ("prepare", "fortunes", "--from", "folder"), "fortunes must be a folder"),
        ("too few texts for splits", ("prepare", "in", "--folder", "p"), "splitting needs at least 3 groups"),
        ("export to nowhere", ("manifest", "export", "out", "--to", "espnet", "--manifest", "m.jsonl"), "--to must be one of"),
        (
            "export without audio",
            ("manifest", "export", "out", "--to", "nemo", "--manifest", "m.jsonl"),
            "must have audio to be exported",
        ),
        (
            "export of a split that is not there",
            ("manifest", "export", "out", "--to", "nemo", "--manifest", "m.jsonl", "--split", "dev"),
            "split must be",
        ),
        (
            "export of nothing",
            ("manifest", "export", "out", "--to", "nemo", "--manifest", "none.jsonl"),
            "none.jsonl: No such file",
        ),
        ("split by nothing", ("manifest", "split", "m.jsonl", "--by", "moon"), "--by must be one of"),
        ("split by speakers that are unknown", ("manifest", "split", "m.jsonl"), "utterance 'a' must have a speaker"),
    ):
        yield Case(name=f"arguments: {name}", arguments=arguments, files=folder, says=tuple(says))


CASES = [
    case
    for family in (own_cases, tsv_cases, folder_cases, kaldi_cases, nemo_cases, lhotse_cases, hf_cases, argument_cases)
    for case in family()
]


COMMAND = typer.main.get_command(app)


@pytest.fixture
def hkd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, list[str]]]:
    """Run a command in a folder of its own: exit code, stdout, and the lines of stderr that tell of no progress."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("typer.testing._get_command", lambda _: COMMAND)  # building it anew took two thirds of the time

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, [line for line in result.stderr.splitlines() if "s to go" not in line]

    return run


def only_line(lines: list[str], says: tuple[str, ...]) -> str:
    assert len(lines) == 1, lines
    assert lines[0].startswith("hkd: ")
    assert lines[0].endswith((".", "?", ")"))
    assert len(lines[0]) < 900
    assert all(words in lines[0] for words in says), lines[0]
    return lines[0]


def test_there_are_a_hundred_of_them_each_with_its_own_name() -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.says or case.kept for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line_or_accepted(
    hkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: Case
) -> None:
    if case.name.startswith("lhotse"):
        pytest.importorskip("lhotse")
    if case.name.startswith("hf"):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_files(tmp_path, case.files)
    for name in case.folders:
        (tmp_path / name).mkdir(parents=True)
    for name, target in case.links.items():
        (tmp_path / name).symlink_to(target)
    code, _, lines = hkd(*case.arguments)
    if case.kept is None:
        only_line(lines, case.says)
        assert code == case.code
        assert not (tmp_path / "p" / "manifest.jsonl").exists()
    else:
        assert code == 0, lines
        assert len(read(tmp_path / "p" / "manifest.jsonl")) == case.kept
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            message for message in caplog.messages if case.warns and case.warns in message
        ]
        assert bool(caplog.messages) == bool(case.warns)


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", claims: int | None = None) -> bytes:
    """A tar archive with one member; `claims`: the size that its header tells of."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, len(data)
        if claims is not None:
            info.size = claims
            out_raw = info.tobuf(tarfile.PAX_FORMAT)
            return gzip.compress(out_raw + data + bytes(1024))
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


NAMES = ["_".join(f"{n:08b}") for n in range(5)]
WHOLE = tar_of({f"waves_yesno/{name}.wav": sound(rate_hz=8000) for name in NAMES})
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "a name that leads out": (member("../../out"), "cannot be unpacked"),
    "a name that leads in and out": (member("a/../../../out"), "cannot be unpacked"),
    "a link to a file elsewhere": (member("x", kind=tarfile.SYMTYPE, link="/etc/passwd"), "'x' is a link"),
    "a link to a folder above": (member("x", kind=tarfile.SYMTYPE, link="../.."), "'x' is a link"),
    "a link within": (member("x", kind=tarfile.SYMTYPE, link="y"), "'x' is a link"),
    "a hard link": (member("x", kind=tarfile.LNKTYPE, link="../../secret"), "'x' is a link"),
    "a device": (member("x", kind=tarfile.CHRTYPE), "cannot be unpacked"),
    "a pipe": (member("x", kind=tarfile.FIFOTYPE), "cannot be unpacked"),
    "a bomb": (member("x", bytes(4 << 20)), "must not unpack to more than"),
    "a file that claims a terabyte": (member("x", b"x", claims=1 << 40), "must not unpack to more than"),
    "cut off": (WHOLE[: len(WHOLE) // 2], "cannot be unpacked"),
    "no archive": (b"<html>Not found</html>", "cannot be unpacked"),
    "empty": (b"", "cannot be unpacked"),
    "of something else": (tar_of({"README": b""}), "there is no [01]_[01]_*.wav in it"),
    "with an utterance less": (
        tar_of({f"{name}.wav": sound() for name in NAMES[:4]}),
        "corpus yesno has 4 utterances instead of 5",
    ),
    "damaged in the middle": (WHOLE[:200] + b"\0\0\0\0" + WHOLE[204:], "cannot be unpacked"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_broken_or_evil(hkd, publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(fetch, "FREE_BYTES", 1 << 20)  # 64 MiB by default: a bomb of that size would make the test slow
    data, says = ARCHIVES[name]
    url = publish("yesno", {"waves_yesno.tar.gz": data}, whole={"utterances": 5})
    before = {path.name for path in tmp_path.iterdir()}
    code, _, lines = hkd("prepare", "yesno", "--base-url", url, "--folder", "p")
    only_line(lines, (says,))
    assert code == 1
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache"}
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.name in ("out", "secret") or path.is_fifo()]


def test_servers_that_have_something_else_or_nothing(hkd, publish, server, tmp_path: Path) -> None:
    url, served, handler = server
    publish("yesno", {"waves_yesno.tar.gz": WHOLE}, whole={"utterances": 5})
    (served / "waves_yesno.tar.gz").write_bytes(WHOLE[:-1] + b"!")
    start = ("prepare", "yesno", "--folder", "p")
    for address, says in (
        (url, "must have the sha256"),
        (f"{url}/none", "waves_yesno.tar.gz could not be fetched (404"),
        ("http://127.0.0.1:9", "could not be fetched ("),
        ("http://[bad", "could not be fetched ("),
        ("ftp:", "could not be fetched ("),
        ("no address", "could not be fetched ("),
    ):
        code, _, lines = hkd(*start, "--base-url", address)
        only_line(lines, (says,))
        assert code == 1
    (served / "waves_yesno.tar.gz").write_bytes(WHOLE)
    handler.limit_bytes = 100
    assert "goes on where it was" in only_line(hkd(*start, "--base-url", url)[2], ("could not be fetched",))
    handler.limit_bytes = None
    assert hkd(*start, "--base-url", url)[0] == 0


def float_wav(value: float) -> bytes:
    out = io.BytesIO()
    wave_S = np.full(16_000, 0.1, np.float32)
    wave_S[8000] = value
    soundfile.write(out, wave_S, 16_000, format="WAV", subtype="FLOAT")
    return out.getvalue()


FLAC = sound(1.0, format="FLAC")
DAMAGED: dict[str, tuple[bytes, str]] = {
    "WAV cut off": (WAV[: len(WAV) // 2], "ends at 0.49"),
    "FLAC cut off": (FLAC[: len(FLAC) // 2], "b.audio"),
    "FLAC with zeros in it": (FLAC[: len(FLAC) // 2] + bytes(2000) + FLAC[len(FLAC) // 2 + 2000 :], "b.audio"),
    "silence": (sound(1.0, loudness=0.0), "must not be silent"),
    "NaN": (float_wav(float("nan")), "must hold finite samples"),
    "infinity": (float_wav(float("inf")), "must hold finite samples"),
    "another rate than declared": (rate(32_000), "ends at 0.500 s"),
    "a rate of 0": (rate(0), "b.audio"),
    "nothing": (b"", "is empty"),
    "text": (b"no sound", "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_sound_is_found_by_check(hkd, tmp_path: Path, name: str) -> None:
    data, says = DAMAGED[name]
    lines = [row(id="good", duration=1.0), row(audio_filepath="b.audio", duration=1.0)]
    write_files(tmp_path, {"a.wav": WAV, "b.audio": data, "m.jsonl": "\n".join(lines).encode()})
    code, out, err = hkd("manifest", "check", "m.jsonl")
    assert code == 1
    assert err == []
    found, summary = out.splitlines()
    assert found.startswith("m.jsonl:2: utterance 'a': ")
    assert says in found
    assert summary == "2 utterances, 1 with problems"
