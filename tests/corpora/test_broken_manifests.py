"""Broken manifests, tables, folders and arguments, through the command line: one clear line and exit code 2, or, where
harmless, accepted."""

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hkd.files import MAX_LINE_BYTES
from kit.broken import WAV, Case, check_table, rate, row
from kit.files import sound

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
        ("half a line", row()[:-5], "no JSON"),
        ("single quotes", str({"id": "a"}), "no JSON"),
        ("a number", "3", "is a int"),
        ("null", "null", "is a NoneType"),
        ("an empty object", "{}", "'id' must be there"),
        ("text a number", row(text=3), "'text' must be a string"),
        ("speaker a number", row(speaker=7), "'speaker' must be a string"),
        ("duration infinite", row(duration=float("inf")), "Infinity"),
        ("offset minus infinite", row(offset=float("-inf")), "-Infinity"),
        ("offset negative", row(offset=-0.1), "offset of utterance 'a' must be finite and not negative"),
        ("duration zero", row(duration=0), "longer than 0 s"),
        ("duration beyond the end", row(duration=1.2), "a.wav at 1.000 s"),
        ("offset beyond the end", row(offset=1.5), "a.wav at 1.000 s"),
        ("a NUL byte", b'{"id": "a\0"}', "NUL byte"),
        ("Latin-1", '{"id": "é"}'.encode("latin-1"), "must be UTF-8"),
        ("1 MB", row(text="x" * MAX_LINE_BYTES), "lines shorter than"),
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
    yield own(
        "audio is a loop of links",
        row(audio_filepath="b.wav"),
        "m.jsonl:2: ",
        "symbolic links",
        links={"b.wav": "b.wav"},
    )
    yield own("only one has a split", row(split=None), "1 of 2 have none")
    start = ("prepare", "m.jsonl", "--folder", "p")
    yield Case(name="own: empty", arguments=start, files={"m.jsonl": b""}, says=("m.jsonl must list utterances",))
    yield Case(
        name="own: UTF-16", arguments=start, files={"m.jsonl": GOOD.encode("utf-16")}, says=("m.jsonl:1: ", "UTF-16")
    )
    yield Case(
        name="own: a folder",
        arguments=(*start, "--from", "hkd"),
        folders=("m.jsonl",),
        says=("m.jsonl: Is a directory",),
    )
    yield Case(
        name="own: a loop of links",
        arguments=(*start, "--from", "hkd"),
        links={"m.jsonl": "m.jsonl"},
        says=("m.jsonl",),
    )
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


def tsv_cases() -> Iterator[Case]:
    head = "path\tsentence\toffset\tid"
    for name, table, says in (
        ("empty", "", "t.tsv:1: the header"),
        ("no header", "a.wav\tx\t0\ta\n", "t.tsv:1: a table must begin with a header"),
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
        files={"a.wav": WAV, "t.tsv": f'\ufeff{head}\r\na.wav\t"x\t0\ta\r\n\r\na.wav\ty\t0.5\tb\r\na.wav\tz\t0.7\tc\r\n'.encode()}, warns="overlap others",  # noqa: E501
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

    yield Case(
        name="folder: nothing in it", arguments=("prepare", "in"), folders=("in",), says=("in must hold audio files",)
    )
    yield case("no text", {"a.wav": WAV, "b.wav": WAV, "b.txt": b"x"}, "1 audio files have no .txt beside them: a.wav")
    yield case("text in UTF-16", {"a.wav": WAV, "a.txt": "x".encode("utf-16")}, "a.txt:1: ", "UTF-16")
    yield case("text in Latin-1", {"a.wav": WAV, "a.txt": b"one\ntw\xf6"}, "a.txt:2: ", "UTF-8")
    yield case("text is a folder", {"a.wav": WAV}, "no .txt beside them: a.wav", folders=("in/a.txt",))
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
    yield Case(
        name="folder: neither name nor path", arguments=("prepare", "./in"), says=("must be a known name or a path",)
    )


def argument_cases() -> Iterator[Case]:
    folder = {"in/a.wav": WAV, "in/a.txt": b"x", "x.xml": b"<x/>", "m.jsonl": b'{"id": "a", "text": "x"}\n'}
    for name, arguments, *says in (
        ("no corpus", ("prepare",), "CORPUS must be given"),
        ("a corpus that is nearly known", ("prepare", "librispeach"), "Did you mean 'librispeech'?"),
        ("a kind that is unknown", ("prepare", "in", "--from", "espnet"), "--from must be one of"),
        ("a file of no kind", ("prepare", "x.xml"), "x.xml must be a folder, a table (.tsv, .csv) or a .jsonl"),
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
        ("a column without a name", ("prepare", "in", "--column", "text"), "--column must be WHAT=NAME, but is 'text'"),
        (
            "a column of a folder without tables",
            ("prepare", "timit", "--column", "text=x"),
            "--column must go with a table",
        ),
        (
            "a speaker's pattern that is none",
            ("prepare", "in", "--speaker", "("),
            "--speaker must be a regular expression",
        ),
        (
            "a speaker's pattern that finds nothing",
            ("prepare", "in", "--speaker", "^x_"),
            "finds nothing in 1 of 1, 'a' first",
        ),
        ("several of NeMo's shards", ("prepare", "tar/m__OP_0..7_CL_.json"), "tarred NeMo data cannot be read"),
        (
            "export to nowhere",
            ("manifest", "export", "out", "--to", "espnet", "--manifest", "m.jsonl"),
            "--to must be one of",
        ),
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


CASES = [case for family in (own_cases, tsv_cases, folder_cases, argument_cases) for case in family()]


def test_there_are_many_each_with_its_own_name() -> None:
    check_table(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line_or_accepted(check_case: Callable[[Case], None], case: Case) -> None:
    check_case(case)
