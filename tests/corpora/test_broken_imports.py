"""Broken data of Kaldi, NeMo, lhotse and Hugging Face, through the command line: one clear line and exit code 2, or,
where harmless, accepted."""

import gzip
import json
from collections.abc import Callable, Iterator

import pytest

from hkd.files import MAX_LINE_BYTES
from kit.broken import WAV, Case, check_table

KALDI = {"in/wav.scp": b"r1 a.wav\nr2 a.wav\n", "in/text": b"r1 A\nr2 B\n", "in/a.wav": WAV}


def kaldi_cases() -> Iterator[Case]:
    segments = {"text": "u A\n", "segments": "u r1 0 0.5\n"}
    broken: tuple[tuple[str, dict[str, str], str], ...] = (
        (
            "a pipe",
            {"wav.scp": "r1 sph2pipe a.sph |\nr2 a.wav\n"},
            "wav.scp: 1 entries are commands, where only paths are read",
        ),
        ("an archive", {"wav.scp": "r1 wav.ark:17\nr2 a.wav\n"}, "wav.scp: 1 entries lie in archives"),
        ("no path", {"wav.scp": "r1\nr2 a.wav\n"}, "wav.scp:1: 'r1' must have a path"),
        ("no such path", {"wav.scp": "r1 none.wav\nr2 a.wav\n"}, "text:1: audio file"),
        ("a duplicate", {"text": "r1 A\nr1 B\n"}, "text:2: 'r1' must stand once, but stands at line 1 too"),
        ("text without audio", {"text": "r1 A\nr9 B\n"}, "text: 1 utterances have no audio: line 2: r9"),
        ("nothing", {"text": ""}, "in must list utterances"),
        ("a speaker without a name", {"utt2spk": "r1 s\nr2\n"}, "utt2spk: every utterance must have a speaker"),
        (
            "an unknown speaker",
            {"utt2spk": "r1 s\n"},
            "utt2spk: every utterance must have a speaker, but 'r2' has none",
        ),
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
        (
            "a segment backwards",
            {**segments, "segments": "u r1 0.5 0.2\n"},
            "segments:1: a segment must start at 0 s or later",
        ),
        (
            "a segment before 0",
            {**segments, "segments": "u r1 -0.5 0.2\n"},
            "segments:1: a segment must start at 0 s or later",
        ),
        ("a segment of no length", {**segments, "segments": "u r1 0.5 0.5\n"}, "segments:1: a segment must start"),
        ("a NaN segment", {**segments, "segments": "u r1 nan 0.5\n"}, "segments:1: a segment must start"),
        (
            "a segment beyond the end",
            {**segments, "segments": "u r1 0.5 2\n"},
            "text:1: utterance 'u' must lie within its audio",
        ),
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
        name="kaldi: none",
        arguments=("prepare", "in", "--from", "kaldi"),
        folders=("in",),
        says=("must be a Kaldi data folder",),
    )
    three = {f"in/{name}.wav": WAV for name in "abc"} | {
        "in/wav.scp": b"r1\ta.wav\r\nr2 b.wav\r\nr3  c.wav\r\n",
        "in/text": b"\xef\xbb\xbfr1\tA\r\nr2 B\r\n\r\nr3\r\n",
    }
    yield Case(
        name="kaldi: CRLF, tabs, a mark, no words", arguments=arguments, files=three, kept=3, warns="have no words"
    )
    overlapping = {**KALDI, "in/text": b"u A\nv B\nw C\n", "in/segments": b"u r1 0 0.5\nv r1 0.4 0.9\nw r2 0.2 -1\n"}
    yield Case(
        name="kaldi: overlapping segments, one to the end",
        arguments=arguments,
        files=overlapping,
        kept=3,
        warns="overlap others",
    )


def nemo_cases() -> Iterator[Case]:
    for name, line, says in (
        ("no JSON", "{", "n.json:1: "),
        ("an array", '[{"audio_filepath": "a.wav"}]', "n.json:1: a line must be one JSON object, but is a list"),
        ("no text", '{"audio_filepath": "a.wav"}', "n.json:1: field 'text' must be there"),
        ("no audio", '{"text": "x"}', "n.json:1: field 'audio_filepath' must be there"),
        ("tarred", '{"text": "x", "shard_id": 0}', "n.json:1: tarred NeMo data"),
        ("NaN", '{"audio_filepath": "a.wav", "text": "x", "duration": NaN}', "n.json:1: numbers must be finite"),
        ("negative", '{"audio_filepath": "a.wav", "text": "x", "duration": -2}', "n.json:1: duration"),
        ("text a list", '{"audio_filepath": "a.wav", "text": ["x"]}', "n.json:1: field 'text' must be a string"),
        (
            "beyond the end",
            '{"audio_filepath": "a.wav", "text": "x", "duration": 2}',
            "n.json:1: utterance 'a' must lie within",
        ),
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
        ("no text", [RECORDING, {**SUPERVISION, "text": None}], "in must list utterances, but lists none"),
        (
            "a command",
            [source(type="command", source="rm -rf x"), SUPERVISION],
            "must be a file, but is a command ('rm -rf x')",
        ),
        ("a URL", [source(type="url", source="http://x/a.wav"), SUPERVISION], "must be a file, but is a url"),
        ("a file that is missing", [source(source="none.wav"), SUPERVISION], "none.wav: No such file"),
        (
            "a channel that is missing",
            [source(channels=[0, 1]), {**SUPERVISION, "channel": 1}],
            "must have channel 1, but has 1 channels",
        ),
        (
            "two sources",
            [{**RECORDING, "sources": RECORDING["sources"] * 2}, SUPERVISION],
            "must have each channel once, but has [0, 0]",
        ),  # type: ignore[operator]
        (
            "a negative start",
            [RECORDING, {**SUPERVISION, "start": -1}],
            "all.jsonl:2: offset of utterance 'u' must be finite and not negative",
        ),
        (
            "beyond the end",
            [RECORDING, {**SUPERVISION, "duration": 5}],
            "all.jsonl:2: utterance 'u' must lie within its audio",
        ),
        ("a start that is a word", [RECORDING, {**SUPERVISION, "start": "now"}], "all.jsonl:2: "),
        ("a duplicate", [RECORDING, SUPERVISION, SUPERVISION], "all.jsonl:3: id must be unique, but 'u' stands at"),
        ("a supervision beyond its cut", [{**CUT, "duration": 0.25}], "must lie within its cut"),
        (
            "a cut without a recording",
            [{key: CUT[key] for key in CUT if key != "recording"}],
            "must have one recording",
        ),
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
        name="lhotse: no gzip",
        arguments=arguments,
        files={"c.jsonl.gz": b"{}"},
        says=("c.jsonl.gz:1: ", "cannot be unpacked"),
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
        name="lhotse: empty",
        arguments=arguments,
        files={"c.jsonl.gz": gzip.compress(b"")},
        says=("must list utterances",),
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


CASES = [case for family in (kaldi_cases, nemo_cases, lhotse_cases, hf_cases) for case in family()]


def test_there_are_many_each_with_its_own_name() -> None:
    check_table(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line_or_accepted(check_case: Callable[[Case], None], case: Case) -> None:
    check_case(case)
