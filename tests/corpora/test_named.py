"""Corpora that are known by name: archives and folders of the true layouts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hkd import corpora, manifest
from hkd.audio import check_audio, write_wav
from hkd.corpora.cards import CORPORA, Expected
from hkd.corpora.named import TIMIT_SPLITS
from hkd.errors import HkdError, UserError
from hkd.manifest import Utterance
from kit.files import sound, tar_of, write_files


def an4(train_speakers: int = 10) -> dict[str, bytes]:
    files: dict[str, bytes] = {"an4/README": b"readme"}
    for part, folder, speakers in (("train", "an4_clstk", train_speakers), ("test", "an4test_clstk", 2)):
        ids, lines = [], []
        for n in range(speakers):
            speaker = f"{part}{n}"
            name = f"an{n}-{speaker}-b"
            files[f"an4/wav/{folder}/{speaker}/{name}.sph"] = sound(format="NIST")
            ids.append(f"{folder}/{speaker}/{name}")
            lines.append(f"<s> ENTER FIVE  SIX </s> ({name})" if part == "train" else f"RUBOUT G M E F ({name})")
        files[f"an4/etc/an4_{part}.fileids"] = ("\n".join(ids) + "\n").encode()
        files[f"an4/etc/an4_{part}.transcription"] = ("\n".join(lines) + "\n").encode()
    return files


def test_an4_has_splits(publish, tmp_path: Path) -> None:
    url = publish(
        "an4", {"an4_sphere.tar.gz": tar_of(an4())}, parts={"train": {"utterances": 10}, "test": {"utterances": 2}}
    )
    whole = corpora.prepare("an4", tmp_path / "p", corpora.Options(cache=tmp_path / "c", base_url=url))
    assert {name: len(whole.split(name)) for name in ("train", "dev", "test")} == {"train": 9, "dev": 1, "test": 2}
    one = whole.by_id("an0-train0-b")
    assert (one.duration, one.speaker) == (0.2, "train0")
    assert {u.text for u in whole} == {"ENTER FIVE SIX", "RUBOUT G M E F"}
    assert check_audio(whole) == {}


def test_an4_in_a_folder_and_what_is_wrong_in_it(publish, tmp_path: Path) -> None:
    publish("an4", {}, parts={})
    root = write_files(tmp_path / "data", an4())
    assert len(corpora.prepare("an4", tmp_path / "p", corpora.Options(root=root))) == 12
    transcription = root / "an4" / "etc" / "an4_test.transcription"
    for line, says in (
        ("no id here", r"transcription:1: a line must be TEXT \(ID\)"),
        ("A (an9-x-b)", "an4_test.fileids too"),
    ):
        transcription.write_text(line)
        with pytest.raises(UserError, match=says):
            corpora.prepare("an4", tmp_path / "q", corpora.Options(root=root))
    with pytest.raises(UserError, match=r"must be the folder of an4, but there is no etc/an4_train\.fileids"):
        corpora.prepare("an4", tmp_path / "q", corpora.Options(root=tmp_path / "p"))


HEADER = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"  # noqa: E501


def release(language: str, *, ending: str = ".mp3") -> dict[str, bytes]:
    files: dict[str, bytes] = {f"{language}/validated.tsv": HEADER.encode()}
    for number, split in enumerate(("train", "dev", "test")):
        name = f"common_voice_{language}_{number}"
        row = f'c{number}\t{name}{ending}\ts{number}\tSie sagte: "Ja", Käse {number}.\t\t2\t0\t\t\t\t\t{language}\t'
        files[f"{language}/{split}.tsv"] = f"{HEADER}\n{row}\n".encode()
        files[f"{language}/clips/{name}.mp3"] = sound(0.5, format="MP3", rate_hz=32_000)
    return files


@pytest.mark.parametrize("ending", [".mp3", ""])
def test_common_voice_has_the_releases_splits(tmp_path: Path, ending: str) -> None:
    root = write_files(tmp_path / "cv-corpus-17.0", release("de", ending=ending))
    for given in (root, root / "de"):
        whole = corpora.prepare("common_voice", tmp_path / "p", corpora.Options(root=given))
        assert [(u.split, u.speaker) for u in whole] == [("train", "c0"), ("dev", "c1"), ("test", "c2")]
        assert whole[0].text == 'Sie sagte: "Ja", Käse 0.'
        assert whole[0].id == "common_voice_de_0"
    write_files(root, {"de/clips/common_voice_de_9.mp3": sound(0.5, format="MP3", rate_hz=32_000)})
    options = corpora.Options(root=root)
    assert len(corpora.prepare("common_voice", tmp_path / "p", options, overwrite=True)) == 3
    assert options.report.left_out["audio files that no row of a table names"] == ["clips/common_voice_de_9.mp3"]
    assert check_audio(whole) == {}


def test_common_voice_of_several_languages_and_with_missing_clips(tmp_path: Path) -> None:
    root = write_files(tmp_path / "cv", release("de") | release("fr"))
    with pytest.raises(UserError, match=r"must be one language's folder, but .* has de, fr"):
        corpora.prepare("common_voice", tmp_path / "p", corpora.Options(root=root))
    (root / "fr" / "clips" / "common_voice_fr_1.mp3").unlink()
    with pytest.raises(UserError, match=r"fr/dev\.tsv:2: audio file .*common_voice_fr_1\.mp3: No such file"):
        corpora.prepare("common_voice", tmp_path / "p", corpora.Options(root=root / "fr"))
    with pytest.raises(UserError, match="cannot be fetched without a form"):
        corpora.prepare("common_voice", tmp_path / "p", corpora.Options(cache=tmp_path / "c"))


@pytest.fixture
def small_librispeech(publish, make_librispeech) -> str:
    """A server with both archives of Mini LibriSpeech, and a card with their checksums and counts."""
    archives = {
        f"{part}.tar.gz": make_librispeech(part, n, first=f)
        for part, n, f in (("train-clean-5", 3, 100), ("dev-clean-2", 4, 200))
    }
    return publish(
        "mini_librispeech", archives, parts={"train-clean-5": {"utterances": 6}, "dev-clean-2": {"utterances": 8}}
    )


def test_from_nothing_to_a_manifest_with_splits(small_librispeech: str, tmp_path: Path) -> None:
    whole = corpora.prepare(
        "mini_librispeech", tmp_path / "p", corpora.Options(cache=tmp_path / "cache", base_url=small_librispeech)
    )
    assert len(whole) == 14
    assert {u.split for u in whole} == {"train", "dev", "test"}
    assert len(whole.split("train")) == 6
    speakers = {name: {u.speaker for u in whole.split(name)} for name in ("dev", "test")}
    assert not speakers["dev"] & speakers["test"]
    one = whole.by_id("100-2000-0000")
    assert one.text == "THE TEXT OF 100-2000 0"
    assert (one.recording, one.extra["part"], one.duration) == ("100-2000", "train-clean-5", 0.1)
    assert manifest.read(tmp_path / "p" / "manifest.jsonl").digest == whole.digest
    assert not list(tmp_path.rglob("cache/**/*.tar.gz"))
    before = (tmp_path / "p" / "manifest.jsonl").read_bytes()
    nowhere = "http://127.0.0.1:9"  # all is in the cache
    corpora.prepare("mini_librispeech", tmp_path / "p", corpora.Options(cache=tmp_path / "cache", base_url=nowhere))
    assert (tmp_path / "p" / "manifest.jsonl").read_bytes() == before


def test_a_manifest_that_is_not_as_the_card_says_is_refused(small_librispeech: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    corpora.prepare("mini_librispeech", tmp_path / "p", corpora.Options(cache=cache, base_url=small_librispeech))
    transcript = next((cache / "mini_librispeech").rglob("*.trans.txt"))
    transcript.write_text(transcript.read_text().splitlines()[0] + "\n")
    with pytest.raises(HkdError, match="utterances instead of"):
        corpora.prepare("mini_librispeech", tmp_path / "q", corpora.Options(cache=cache, base_url=small_librispeech))
    for flac in transcript.parent.glob("*.flac"):
        flac.unlink()
    with pytest.raises(HkdError, match=r"trans\.txt:1: audio file .*\.flac: No such file"):
        corpora.prepare("mini_librispeech", tmp_path / "q", corpora.Options(cache=cache, base_url=small_librispeech))


LIBRISPEECH_PARTS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")


@pytest.fixture
def large_librispeech(publish, make_librispeech) -> tuple[str, dict[str, bytes]]:
    """A server with five of LibriSpeech's seven archives."""
    archives = {
        f"{part}.tar.gz": make_librispeech(part, 1, first=100 * n) for n, part in enumerate(LIBRISPEECH_PARTS, 1)
    }
    return publish("librispeech", archives, parts={part: {"utterances": 2} for part in LIBRISPEECH_PARTS}), archives


def test_large_corpora_are_fetched_when_told_to_and_by_parts(large_librispeech, tmp_path: Path) -> None:
    url, _ = large_librispeech
    with pytest.raises(
        UserError, match=r"train-clean-100\.tar\.gz, which is not in .*--root DIR .* or --download \(about 60 GB\)"
    ):
        corpora.prepare("librispeech", tmp_path / "p", corpora.Options(cache=tmp_path / "c", base_url=url))
    whole = corpora.prepare(
        "librispeech",
        tmp_path / "p",
        corpora.Options(cache=tmp_path / "c", base_url=url, download=True, parts=LIBRISPEECH_PARTS),
    )
    assert {u.split for u in whole} == {"train", "dev", "dev-other", "test", "test-other"}
    assert {u.extra["part"] for u in whole.split("test")} == {"test-clean"}
    two = corpora.prepare(
        "librispeech", tmp_path / "q", corpora.Options(cache=tmp_path / "c", parts=("dev-clean", "train-clean-100"))
    )
    assert [u.split for u in two] == ["train", "train", "dev", "dev"]
    with pytest.raises(UserError, match=r"part of librispeech must be one of train-clean-100, .* but is 'dev' instead"):
        corpora.prepare("librispeech", tmp_path / "r", corpora.Options(cache=tmp_path / "c", parts=("dev",)))
    with pytest.raises(HkdError, match=r"train-clean-360\.tar\.gz could not be fetched \(404 Not Found\)"):
        corpora.prepare(
            "librispeech", tmp_path / "r", corpora.Options(cache=tmp_path / "c", base_url=url, download=True)
        )


def test_a_root_may_hold_folders_or_archives(large_librispeech, tmp_path: Path) -> None:
    _, archives = large_librispeech
    corpora.prepare(
        "librispeech",
        tmp_path / "p",
        corpora.Options(cache=tmp_path / "c", base_url=large_librispeech[0], download=True, parts=("dev-clean",)),
    )
    unpacked = tmp_path / "c" / "librispeech" / "dev-clean"
    for root in (unpacked, unpacked / "LibriSpeech"):
        whole = corpora.prepare("librispeech", tmp_path / "p", corpora.Options(cache=tmp_path / "none", root=root))
        assert {u.extra["part"] for u in whole} == {"dev-clean"}
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "test-other.tar.gz").write_bytes(archives["test-other.tar.gz"])
    assert {
        u.split
        for u in corpora.prepare("librispeech", tmp_path / "q", corpora.Options(cache=tmp_path / "d", root=packed))
    } == {"test-other"}
    (packed / "dev-other.tar.gz").write_bytes(b"something else")
    with pytest.raises(HkdError, match="sha256"):
        corpora.prepare("librispeech", tmp_path / "q", corpora.Options(cache=tmp_path / "d", root=packed))
    assert (packed / "dev-other.tar.gz").exists(), "the user's own file stays"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold parts of librispeech"):
        corpora.prepare("librispeech", tmp_path / "q", corpora.Options(cache=tmp_path / "e", root=tmp_path / "empty"))


def ljspeech(num: int = 10) -> dict[str, bytes]:
    rows = [f'LJ001-{n:04d}|Chapter {n}, "see p. {n}"|Chapter number {n}, "see page {n}"' for n in range(num)]
    files = {f"LJSpeech-1.1/wavs/LJ001-{n:04d}.wav": sound(rate_hz=22_050) for n in range(num)}
    return {"LJSpeech-1.1/metadata.csv": ("\n".join(rows) + "\n").encode(), "LJSpeech-1.1/README": b"", **files}


def test_ljspeech_has_splits(publish, tmp_path: Path) -> None:
    archive = {"LJSpeech-1.1.tar.bz2": tar_of(ljspeech(), packed="bz2")}
    url = publish("ljspeech", archive, whole={"utterances": 10, "hours": 10 * 0.2 / 3600})
    whole = corpora.prepare(
        "ljspeech", tmp_path / "p", corpora.Options(cache=tmp_path / "c", base_url=url, download=True)
    )
    assert whole.by_id("LJ001-0003").text == 'Chapter number 3, "see page 3"'
    assert {u.split for u in whole} == {"train", "dev", "test"}


def test_ljspeech_with_a_row_that_is_none(publish, tmp_path: Path) -> None:
    publish("ljspeech", {})
    root = write_files(tmp_path / "data", ljspeech(2))
    (root / "LJSpeech-1.1" / "metadata.csv").write_text("LJ001-0000|a|b\nno bars\n")
    with pytest.raises(UserError, match=r"metadata\.csv:2: a row must be ID"):
        corpora.prepare("ljspeech", tmp_path / "p", corpora.Options(root=root))


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


def test_speechocean762_has_splits(publish, tmp_path: Path) -> None:
    url = publish(
        "speechocean762",
        {"speechocean762.tar.gz": tar_of(speechocean())},
        parts={"train": {"utterances": 10}, "test": {"utterances": 10}},
    )
    whole = corpora.prepare("speechocean762", tmp_path / "p", corpora.Options(cache=tmp_path / "c", base_url=url))
    assert {name: len(whole.split(name)) for name in ("train", "dev", "test")} == {"train": 9, "dev": 1, "test": 10}
    assert whole.by_id("000010011").speaker == "0001"
    train = corpora.prepare("speechocean762", tmp_path / "q", corpora.Options(cache=tmp_path / "c", parts=("train",)))
    assert {u.split for u in train} == {"train", "dev"}


def test_speechocean762_as_one_kaldi_folder(publish, tmp_path: Path) -> None:
    publish("speechocean762", {}, parts={"train": {"utterances": 10}, "test": {"utterances": 10}})
    files = {name.split("/", 1)[1].removeprefix("train/"): data for name, data in speechocean().items()}
    whole = corpora.prepare(
        "speechocean762", tmp_path / "p", corpora.Options(root=write_files(tmp_path / "copy", files))
    )
    assert {u.split for u in whole} == {"train", "dev"}
    assert {u.extra["part"] for u in whole} == {"train"}


TIMIT_SPEAKERS = {
    "TRAIN/DR1/FCJF0": 1,
    "TRAIN/DR8/MTCS0": 1,
    "TEST/DR1/FAKS0": 1,
    "TEST/DR2/MWEW0": 1,
    "TEST/DR7/MDLR1": 0,
}


def timit(*, upper: bool = True) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for speaker in TIMIT_SPEAKERS:
        for sentence, text in (
            ("SA1", "She had your dark suit."),
            ("SI648", "A sailboat may have a bone in her teeth one minute."),
        ):
            stem = f"TIMIT/{speaker}/{sentence}"
            files |= {
                f"{stem}.WAV": sound(format="NIST"),
                f"{stem}.TXT": f"0 3200 {text} \n".encode(),
                f"{stem}.PHN": b"0 3200 h#\n",
                f"{stem}.WRD": b"0 3200 she\n",
            }
    return files if upper else {name.lower(): data for name, data in files.items()}


def test_timits_lists_of_speakers() -> None:
    assert Counter(TIMIT_SPLITS.values()) == {"test": 24, "dev": 50}
    assert all(name[0] in "fm" and len(name) == 5 for name in TIMIT_SPLITS)
    assert [TIMIT_SPLITS.get(name) for name in ("mwew0", "faks0", "mdlr1")] == ["test", "dev", None]


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("below", ["", "TIMIT", "data"])
def test_timit_in_either_case(publish, tmp_path: Path, upper: bool, below: str) -> None:
    publish("timit", {}, splits={"train": {"utterances": 2}, "dev": {"utterances": 1}, "test": {"utterances": 1}})
    root = write_files(
        tmp_path / "ldc",
        {name.replace("TIMIT/", f"{below}/" if below else ""): data for name, data in timit(upper=upper).items()},
    )
    (next(root.rglob("*[0-9].[Ww][Aa][Vv]")).parent / "SI9.WAV.wav").write_bytes(b"a copy as RIFF is left alone")
    whole = corpora.prepare("timit", tmp_path / "p", corpora.Options(root=root))
    assert [(u.id, u.split, u.speaker) for u in sorted(whole, key=lambda u: u.id)] == [
        ("FAKS0-SI648", "dev", "FAKS0"), ("FCJF0-SI648", "train", "FCJF0"), ("MTCS0-SI648", "train", "MTCS0"),
        ("MWEW0-SI648", "test", "MWEW0"),
    ]  # fmt: skip
    assert whole[0].text == "A sailboat may have a bone in her teeth one minute."
    assert check_audio(whole) == {}


def test_what_timit_lacks(publish, tmp_path: Path) -> None:
    publish("timit", {})
    with pytest.raises(
        UserError,
        match=r"without a form or a licence: get it from https://catalog\.ldc\.upenn\.edu/LDC93S1 and give --root DIR",
    ):
        corpora.prepare("timit", tmp_path / "p", corpora.Options(cache=tmp_path / "c", download=True))
    root = write_files(tmp_path / "ldc", timit())
    transcript = next(root.rglob("SI*.TXT"))
    transcript.write_text("no times")
    with pytest.raises(UserError, match=r"TXT:1: a transcript must be START END TEXT"):
        corpora.prepare("timit", tmp_path / "p", corpora.Options(root=root))
    transcript.unlink()
    with pytest.raises(UserError, match=r"SI648\.TXT: No such file"):
        corpora.prepare("timit", tmp_path / "p", corpora.Options(root=root))


def yesno(num: int = 12) -> dict[str, bytes]:
    names = ["_".join(f"{n:08b}") for n in range(num)]
    return {"waves_yesno/README": b"", **{f"waves_yesno/{name}.wav": sound(rate_hz=8000) for name in names}}


def test_yesno_has_splits(publish, tmp_path: Path) -> None:
    url = publish("yesno", {"waves_yesno.tar.gz": tar_of(yesno())}, whole={"utterances": 12})
    whole = corpora.prepare("yesno", tmp_path / "p", corpora.Options(cache=tmp_path / "c", base_url=url))
    assert whole.by_id("0_0_0_0_1_0_1_1").text == "NO NO NO NO YES NO YES YES"
    assert {u.split for u in whole} == {"train", "dev", "test"}
    assert {u.duration for u in whole} == {0.2}


def test_yesno_with_a_name_that_is_no_text(publish, tmp_path: Path) -> None:
    publish("yesno", {})
    root = write_files(tmp_path / "data", yesno(2))
    (root / "waves_yesno" / "0_1_2.wav").write_bytes(sound())
    with pytest.raises(UserError, match=r"0_1_2\.wav: a name must be eight zeros or ones"):
        corpora.prepare("yesno", tmp_path / "p", corpora.Options(root=root))


def test_a_corpus_from_outside_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORPORA, "digits", CORPORA["yesno"])  # gone after the test
    for part in ("a", "b"):
        for number in range(12):
            write_wav(tmp_path / "mine" / part / f"{number}.wav", np.full(1600, 0.1 + 0.01 * number, np.float32))
    card = corpora.Card(
        name="digits", kind="speech", title="Counting", language="en", source="https://example.org", licence="none",
        parts={"a": Expected(utterances=12), "b": Expected(utterances=12)},
    )  # fmt: skip

    @corpora.register(card, splits={"a": {"train": 0.75, "dev": 0.25}, "b": "test"})
    def read(card: corpora.Card, options: corpora.Options) -> Iterator[tuple[str, Path, list]]:
        for part in card.parts:
            rows = []
            for path in sorted((options.root / part).glob("*.wav")):
                fields = {
                    "text": f"number {path.stem}",
                    "audio_filepath": str(path),
                    "speaker": f"s{int(path.stem) % 4}",
                }
                rows.append((str(path), Utterance(id=f"{part}{path.stem}", **fields, extra={"part": part})))
            yield part, options.root / part, rows

    whole = corpora.prepare("digits", tmp_path / "p", corpora.Options(root=tmp_path / "mine"))
    assert {name: len(whole.split(name)) for name in ("train", "dev", "test")} == {"train": 9, "dev": 3, "test": 12}
    assert manifest.read(tmp_path / "p" / "manifest.jsonl").by_id("b7").duration == 0.1
    assert "digits" in {known.name for known in corpora.known_corpora()}
    (tmp_path / "mine" / "b" / "0.wav").unlink()
    with pytest.raises(HkdError, match="part b has 11 utterances instead of 12"):
        corpora.prepare("digits", tmp_path / "q", corpora.Options(root=tmp_path / "mine"))
