"""Common Voice: a release's folder of one language."""

from pathlib import Path

import pytest

from hkd import corpora
from hkd.audio import check_audio
from hkd.errors import UserError
from hkd.testing.files import sound, write_files

HEADER = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"


def release(language: str, *, ending: str = ".mp3") -> dict[str, bytes]:
    files: dict[str, bytes] = {f"{language}/validated.tsv": HEADER.encode()}
    for number, split in enumerate(("train", "dev", "test")):
        name = f"common_voice_{language}_{number}"
        row = f'c{number}\t{name}{ending}\ts{number}\tSie sagte: "Ja", Käse {number}.\t\t2\t0\t\t\t\t\t{language}\t'
        files[f"{language}/{split}.tsv"] = f"{HEADER}\n{row}\n".encode()
        files[f"{language}/clips/{name}.mp3"] = sound(0.5, format="MP3", rate_hz=32_000)
    return files


@pytest.mark.parametrize("ending", [".mp3", ""])
def test_the_releases_splits_are_taken(tmp_path: Path, ending: str) -> None:
    root = write_files(tmp_path / "cv-corpus-17.0", release("de", ending=ending))
    for given in (root, root / "de"):
        whole = corpora.prepare("common_voice", tmp_path / "p", root=given)
        assert [(u.split, u.speaker) for u in whole] == [("train", "c0"), ("dev", "c1"), ("test", "c2")]
        assert whole[0].text == 'Sie sagte: "Ja", Käse 0.'
        assert whole[0].id == "common_voice_de_0"
    assert check_audio(whole) == []


def test_several_languages_and_missing_clips(tmp_path: Path) -> None:
    root = write_files(tmp_path / "cv", release("de") | release("fr"))
    with pytest.raises(UserError, match=r"must be one language's folder, but .* has de, fr"):
        corpora.prepare("common_voice", tmp_path / "p", root=root)
    (root / "fr" / "clips" / "common_voice_fr_1.mp3").unlink()
    with pytest.raises(UserError, match=r"fr/dev\.tsv:2: audio file .*common_voice_fr_1\.mp3: No such file"):
        corpora.prepare("common_voice", tmp_path / "p", root=root / "fr")
    with pytest.raises(UserError, match="cannot be fetched without a form"):
        corpora.prepare("common_voice", tmp_path / "p", cache=tmp_path / "c")
