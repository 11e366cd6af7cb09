"""A corpus becomes a project's manifest: split rules, refusals."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from hkd import corpora, manifest
from hkd.audio import write_wav
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits


def utterances(num: int, *, speakers: int = 0, texts: int = 1000) -> Manifest:
    return Manifest(
        Utterance(id=str(n), text=f"Text {n % texts}!", speaker=f"s{n % speakers}" if speakers else None) for n in range(num)
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
        "an4", "asterisk", "common_voice", "fortunes", "librispeech", "ljspeech", "mini_librispeech", "speechocean762", "timit", "yesno",
    }  # fmt: skip
