"""A corpus becomes a project's manifest: split rules, refusals."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from hkd import corpora, manifest
from hkd.audio import write_wav
from hkd.corpora import Report
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits
from kit.files import sound, write_files


def utterances(num: int, *, speakers: int = 0, texts: int = 1000) -> Manifest:
    return Manifest(
        Utterance(id=str(n), text=f"Text {n % texts}!", speaker=f"s{n % speakers}" if speakers else None)
        for n in range(num)
    )


def test_by_speaker_where_there_are_enough_of_them() -> None:
    whole, rule = corpora.split(utterances(60, speakers=12, texts=2))
    assert rule == "by speaker"
    assert {u.speaker: u.split for u in whole} == {u.speaker: u.split for u in reversed(whole)}
    assert {u.split for u in whole} == {"train", "dev", "test"}


@pytest.mark.parametrize("speakers", [0, 1, 9])
def test_by_text_otherwise_the_same_words_never_in_two_splits(speakers: int) -> None:
    whole, rule = corpora.split(utterances(60, speakers=speakers, texts=20))
    assert rule == "by text"
    split_of: dict[str, set] = {}
    for u in whole:
        split_of.setdefault(u.text, set()).add(u.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set.union(*split_of.values()) == {"train", "dev", "test"}


def test_case_and_punctuation_are_the_same_words() -> None:
    texts = ["Thank you.", "thank you", "THANK  YOU!", "a", "b", "c", "d"]
    whole, _ = corpora.split(Manifest(Utterance(id=str(n), text=text) for n, text in enumerate(texts)))
    assert len({u.split for u in whole[:3]}) == 1
    same = corpora.GROUPS["text"]
    for one, other in (("caf\u00e9", "cafe\u0301"), ("don’t", "don't"), ("oʻzbek", "o‘zbek")):
        assert same(Utterance(id="1", text=one)) == same(Utterance(id="2", text=other))
    assert same(Utterance(id="1", text="की")) != same(Utterance(id="2", text="का"))


def test_given_splits_are_kept_and_half_given_ones_refused() -> None:
    given = [Utterance(id=str(n), text="", extra=MappingProxyType({"split": "mine"})) for n in range(3)]
    whole, rule = corpora.split(Manifest(given))
    assert (rule, {u.split for u in whole}) == ("as given", {"mine"})
    with pytest.raises(UserError, match="1 of 4 have none"):
        corpora.split(Manifest([*given, Utterance(id="x", text="")]))


def own_folder(folder: Path, num: int = 5) -> Path:
    for n in range(num):
        write_wav(folder / f"{n}.wav", np.full(1600, 0.1, np.float32))
        (folder / f"{n}.txt").write_text(f"sentence {n}")
    return folder


def test_preparing_again_changes_nothing_and_another_corpus_is_refused(tmp_path: Path) -> None:
    source = own_folder(tmp_path / "mine")
    whole = corpora.prepare(str(source), tmp_path / "p")
    path = tmp_path / "p" / "manifest.jsonl"
    assert manifest.read(path).digest == whole.digest
    before = path.read_bytes()
    corpora.prepare(str(source), tmp_path / "p")
    assert path.read_bytes() == before
    other = own_folder(tmp_path / "other", 7)
    with pytest.raises(UserError, match="--overwrite"):
        corpora.prepare(str(other), tmp_path / "p")
    assert path.read_bytes() == before
    manifest.write(path, assign_splits(manifest.read(path), {"test": 1.0}, by=lambda u: u.id))  # splits of one's own
    assert {u.split for u in corpora.prepare(str(source), tmp_path / "p")} == {"test"}
    assert len(corpora.prepare(str(other), tmp_path / "p", overwrite=True)) == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [("asterix", "Did you mean 'asterisk'"), ("/no/such/folder", "Known corpora"), ("fortunes", "language models")],
)
def test_unknown_names(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        corpora.prepare(name, tmp_path)
    with pytest.raises(UserError, match="text corpus must be one of"):
        corpora.prepare_text("asterisk", tmp_path / "x.txt")


def test_all_known_corpora_are_listed() -> None:
    assert {card.name for card in corpora.known_corpora()} == {
        "an4", "asterisk", "common_voice", "fortunes", "librispeech", "ljspeech", "mini_librispeech", "speechocean762",
        "timit", "yesno",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("num", "speakers", "texts", "rule", "same_texts"),
    [
        (60, 12, 2, "by speaker", True),
        (60, 3, 12, "by text", False),
        (60, 3, 4, "by speaker", True),  # keywords: three people say four words
        (60, 0, 4, "by text", False),
        (60, 0, 2, "by recording", True),
        (12, 2, 1, "by recording", True),
        (3, 0, 1, "by recording", True),
        (2, 0, 2, "all train", False),
        (1, 1, 1, "all train", False),
    ],
)
def test_few_speakers_and_texts(num: int, speakers: int, texts: int, rule: str, same_texts: bool) -> None:
    report = Report()
    given = utterances(num, speakers=speakers, texts=texts)
    whole, found = corpora.split(given, report)
    assert found == rule
    assert {u.split for u in whole} == ({"train"} if rule == "all train" else {"train", "dev", "test"})
    few = [kind for kind in report.notes if kind.startswith(("splits are made", "all is train"))]
    assert len(few) == (speakers < 10 and texts < 10)
    assert any("same texts are in train and test" in kind for kind in few) == (same_texts and bool(few))
    assert any("no speaker is known" in kind for kind in report.notes) == (not speakers)


def test_segments_of_one_recording(tmp_path: Path) -> None:
    one = Manifest(Utterance(id=str(n), text="yes", audio_filepath="/x.wav") for n in range(4))
    assert corpora.split(one)[1] == "by utterance"


def again(source: Path, folder: Path, **settings: object) -> tuple[Manifest, Report]:
    report = Report()
    return corpora.prepare(str(source), folder, corpora.Options(report=report), **settings), report


def test_preparing_again_takes_what_has_changed_and_says_so(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "data",
        {
            "talk.wav": sound(10.0, channels=2), "wav.scp": b"talk talk.wav\n",
            "text": b"t-0 one\nt-1 two\nt-2 three\n",
            "segments": b"t-0 talk 0 2\nt-1 talk 2 4\nt-2 talk 4 6\n",
        },
    )  # fmt: skip
    again(source, tmp_path / "p")
    path = tmp_path / "p" / "manifest.jsonl"
    stamp = path.stat().st_mtime_ns
    assert again(source, tmp_path / "p")[1].outcome == "up to date"
    assert path.stat().st_mtime_ns == stamp
    (tmp_path / "p" / "alignment.arrow").touch()
    changes: list[tuple[str, str, str, object]] = [
        (
            "segments",
            "t-0 talk 0.5 2\nt-1 talk 2 4\nt-2 talk 4 6\n",
            "offset of 1 utterances was another",
            (0.5, 1.5, None, None),
        ),
        (
            "segments",
            "t-0 talk 0.5 2 1\nt-1 talk 2 4 0\nt-2 talk 4 6 0\n",
            "channel of 3 utterances",
            (0.5, 1.5, 1, None),
        ),
        ("utt2spk", "t-0 anna\nt-1 ben\nt-2 carl\n", "speaker of 3 utterances", (0.5, 1.5, 1, "anna")),
    ]
    for name, table, says, facts in changes:
        (source / name).write_text(table)
        splits = {u.id: u.split for u in manifest.read(path)}
        whole, report = again(source, tmp_path / "p")
        assert report.outcome == "updated"
        assert any(line.startswith(says) and "is replaced" in line for line in report.note_lines()), report.note_lines()
        assert any("hkd align --overwrite" in line for line in report.note_lines()) == (name == "segments")
        first = manifest.read(path).by_id("t-0")
        assert (first.offset, first.duration, first.channel, first.speaker) == facts
        assert {u.id: u.split for u in whole} == splits
    source.rename(tmp_path / "moved")
    report = again(tmp_path / "moved", tmp_path / "p")[1]
    assert any(line.startswith("audio_filepath of 3 utterances") for line in report.note_lines())
    assert {u.audio_filepath for u in manifest.read(path)} == {str(tmp_path / "moved" / "talk.wav")}
    (tmp_path / "moved" / "text").write_text("t-0 one\nt-1 two\nt-2 four\n")
    with pytest.raises(UserError, match=r"has other utterances \(1 new or with another text, 0 gone, 't-2' first\)"):
        again(tmp_path / "moved", tmp_path / "p")


def test_splits_that_were_made_since_are_kept_and_that_is_said(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    for split, num in (("train", 4), ("dev", 2), ("test", 2)):
        own_folder(source / split, num)
    again(source, tmp_path / "p")
    path = tmp_path / "p" / "manifest.jsonl"
    manifest.write(path, assign_splits(manifest.read(path), {"test": 1.0}, by=lambda u: u.id))
    whole, report = again(source, tmp_path / "p")
    assert {u.split for u in whole} == {"test"}
    assert report.note_lines() == [
        f"6 utterances keep the split that {path} has, where the corpus has another (--overwrite takes that)"
    ]
    assert {u.split for u in again(source, tmp_path / "p", overwrite=True)[0]} == {"train", "dev", "test"}


def test_what_is_left_out_is_listed_beside_the_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = own_folder(tmp_path / "mine", 6)
    for name in ("0.wav", "1.wav", "2.wav", "3.wav"):
        (source / name).write_bytes(b"")
    (source / "notes.txt").touch()
    with pytest.raises(
        UserError, match=r"4 of the utterances have audio.*and 1 more\..*left-out\.tsv lists all; --skip-bad goes on"
    ):
        corpora.prepare(str(source), tmp_path / "p")
    listed = (tmp_path / "p" / "left-out.tsv").read_text()
    assert [f"{n}.wav must hold sound" in listed for n in range(5)] == [True, True, True, True, False]
    assert not (tmp_path / "p" / "manifest.jsonl").exists()
    caplog.clear()
    report = Report(skip_bad=True)
    assert [u.id for u in corpora.prepare(str(source), tmp_path / "p", corpora.Options(report=report))] == ["4", "5"]
    assert [message.split(":")[0] for message in caplog.messages] == ["left out", "left out"]
    assert "left out: 1 text files without audio: notes.txt (all in " in caplog.text
    assert report.to_json()["left_out"][0]["count"] == 1
    for n in range(4):
        (source / f"{n}.txt").unlink()
        (source / f"{n}.wav").unlink()
    (source / "notes.txt").unlink()
    corpora.prepare(str(source), tmp_path / "p")
    assert not (tmp_path / "p" / "left-out.tsv").exists()


@pytest.mark.parametrize("pattern", ["^[^_]+", "(speaker[0-9]+)_"])
def test_speakers_out_of_ids(tmp_path: Path, pattern: str) -> None:
    for n in range(3):
        write_files(tmp_path / "mine", {f"speaker{n}_1.wav": sound(), f"speaker{n}_1.txt": b"yes"})
    whole = corpora.prepare(str(tmp_path / "mine"), tmp_path / "p", speaker=pattern)
    assert [u.speaker for u in whole] == ["speaker0", "speaker1", "speaker2"]
    with pytest.raises(
        UserError, match="--speaker must match every id, but 'r0' finds nothing in 2 of 3, 'speaker1_1' first"
    ):
        corpora.prepare(str(tmp_path / "mine"), tmp_path / "q", speaker="r0")
