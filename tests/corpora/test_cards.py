"""Cards, and how archives are had: downloads that resume and are checked, archives that cannot do harm, apt."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from hkd.corpora import cards, named
from hkd.corpora.cards import CORPORA, Archive, Card, Expected, check, differences, known_corpora, parse_card
from hkd.errors import HkdError
from hkd.manifest import Utterance


def test_every_card_says_where_from_under_which_licence_and_whose_checksums() -> None:
    cards = known_corpora()
    assert [card.name for card in cards] == sorted(CORPORA)
    for card in cards:
        assert card.kind == ("text" if CORPORA[card.name].is_text else "speech")
        assert card.title
        assert card.licence
        assert card.source.startswith(("https://", "http://"))
        for archive in card.archives:
            checksums = [checksum for checksum in (archive.sha256, archive.md5) if checksum]
            assert [len(checksum) for checksum in checksums] in ([64], [32], [])
            assert bool(archive.checksum_source) == bool(checksums)
        if card.kind == "speech":
            assert card.split_by
            figures = [*card.splits.values(), *card.parts.values(), *([card.whole] if card.whole else [])]
            assert figures or card.language == "any"
            if card.base_url:
                assert card.archives
                assert card.size_gb


def corpus(numbers: dict[str, int]) -> list[Utterance]:
    return [
        Utterance(id=f"{split}{n}", text="", duration=36.0, extra=MappingProxyType({"split": split}))
        for split, number in numbers.items()
        for n in range(number)
    ]


def card(**splits: Expected) -> Card:
    return Card(name="x", kind="speech", title="", language="en", source="", licence="", splits=splits)


def test_what_differs_is_said() -> None:
    expected = card(train=Expected(utterances=3, hours=0.03), dev=Expected(utterances=1, hours=0.01))
    assert differences(expected, corpus({"train": 3, "dev": 1})) == []
    check(expected, corpus({"train": 3, "dev": 1}))
    assert differences(expected, corpus({"train": 2, "dev": 1})) == [
        "split train has 2 utterances instead of 3",
        "split train has 0.020 hours instead of 0.030",
    ]
    with pytest.raises(HkdError, match="split dev has 0 utterances instead of 1"):
        check(expected, corpus({"train": 3}))
    assert differences(card(train=Expected()), []) == []


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(TypeError):
        parse_card({"name": "x", "kind": "speech", "licens": "?"})


def test_parts_that_are_not_there_count_where_all_are_wanted() -> None:
    parts = {"a": Expected(utterances=1), "b": Expected(utterances=1)}
    one = [Utterance(id="x", text="", extra=MappingProxyType({"part": "a"}))]
    whole = Card(name="x", kind="speech", title="", language="en", source="", licence="", parts=parts)
    assert differences(whole, one) == ["part b has 0 utterances instead of 1"]
    assert differences(replace(whole, some_parts=True), one) == []
    assert differences(replace(whole, parts={}, whole=Expected(utterances=2)), one) == [
        "corpus x has 1 utterances instead of 2"
    ]


DATA = os.urandom(300_000)


def archive(data: bytes = DATA, name: str = "x.bin") -> Archive:
    return Archive(file=name, checksum_source="here", md5=hashlib.md5(data).hexdigest())


def test_a_download_goes_on_where_it_broke(server, tmp_path: Path) -> None:
    url, folder, handler = server
    (folder / "x.bin").write_bytes(DATA)
    handler.limit_bytes = 100_000
    for _ in range(2):
        with pytest.raises(HkdError, match="goes on where it was"):
            cards.download(f"{url}/x.bin", tmp_path / "x.bin", archive())
        assert not (tmp_path / "x.bin").exists()
    seen: list[tuple[float, float]] = []
    handler.limit_bytes = None
    cards.download(
        f"{url}/x.bin", tmp_path / "x.bin", archive(), progress=lambda done, total, **_: seen.append((done, total))
    )
    assert (tmp_path / "x.bin").read_bytes() == DATA
    assert handler.asked == ["/x.bin", "/x.bin bytes=100000-", "/x.bin bytes=200000-"]
    assert seen[-1] == (len(DATA), len(DATA))


def test_a_part_that_is_whole_already_is_taken(server, tmp_path: Path) -> None:
    url, folder, _ = server
    (folder / "x.bin").write_bytes(DATA)
    (tmp_path / "x.bin.part").write_bytes(DATA)
    assert cards.download(f"{url}/x.bin", tmp_path / "x.bin", archive()).read_bytes() == DATA


def test_absolute_names_land_inside_and_no_bits_are_set(tmp_path: Path) -> None:
    info = tarfile.TarInfo("/abs")
    info.mode, info.size = 0o4777, 1
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(info, io.BytesIO(b"x"))
    out = cards.unpack(tmp_path / "x.tar.gz", tmp_path / "out")
    assert [p.name for p in out.iterdir()] == ["abs"]
    assert not (out / "abs").stat().st_mode & (stat.S_ISUID | stat.S_IWOTH)


def test_without_apt_it_says_how_to_give_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HkdError, match=r"need apt, which this machine has not.*hkd prepare FOLDER"):
        named.debian_packages(["asterisk-core-sounds-en"], [], tmp_path / "cache")


_FAKE_APT = """#!/bin/sh
# stands in for an apt that has lists only after an update into the folder that it is told
echo "$@" >> {log}
case "$*" in
  *update) for o in "$@"; do case "$o" in Dir::State::Lists=*) touch "${{o#*=}}/have";; esac; done;;
  *download*) for o in "$@"; do case "$o" in Dir::State::Lists=*) [ -e "${{o#*=}}/have" ] && {make} && exit 0;; esac; done
              echo "E: Unable to locate package" >&2; exit 100;;
esac
"""  # noqa: E501


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, make: str) -> Path:
    tools = folder / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(_FAKE_APT.format(log=folder / "log", make=make))
    (tools / "dpkg-deb").write_text('#!/bin/sh\nmkdir -p "$3" && cp "$2" "$3/content"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return folder / "log"


def test_package_lists_are_fetched_into_the_cache_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fake_apt(tmp_path, monkeypatch, "printf data > p_1_all.deb")
    good = Archive(file="p_1_all.deb", checksum_source="here", sha256=hashlib.sha256(b"data").hexdigest())
    files = named.debian_packages(["p"], [good], tmp_path / "cache")
    assert (files / "content").read_bytes() == b"data"
    commands = log.read_text().splitlines()
    assert [line.split()[-2:] for line in commands if "download" in line] == [["download", "p"]] * 2
    assert str(tmp_path / "cache" / "apt" / "lists") in commands[1]
    assert named.debian_packages(["p"], [good], tmp_path / "cache") == files
    assert len(log.read_text().splitlines()) == 3


def test_a_package_that_is_not_the_cards_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path, monkeypatch, "printf other > p_1_all.deb")
    good = Archive(file="p_1_all.deb", checksum_source="here", sha256=hashlib.sha256(b"data").hexdigest())
    with pytest.raises(HkdError, match="sha256"):
        named.debian_packages(["p"], [good], tmp_path / "cache")
    assert not list((tmp_path / "cache" / "debian").iterdir())


def test_apt_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path, monkeypatch, "false")
    with pytest.raises(HkdError, match=r"could not be had \(.*\)\. Give a folder"):
        named.debian_packages(["p"], [], tmp_path / "cache")


def test_a_disk_that_takes_no_more_is_no_fault_of_the_archive(tmp_path: Path):
    """A limit on the size of files stands for a full disk: both stop the write with an OSError."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("long.wav")
        member.size = 100_000
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    code = (
        "import resource, sys; from pathlib import Path; from hkd.corpora.cards import unpack; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.tar"), str(tmp_path / "there")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"cannot be unpacked ([Errno 27] File too large). Make room in {tmp_path} and try again." in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
