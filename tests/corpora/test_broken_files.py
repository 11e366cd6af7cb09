"""Broken archives, servers and sounds, through the command line: one clear line and exit code 1."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hkd.corpora import cards
from kit.broken import WAV, only_line, rate, row
from kit.files import sound, tar_of, write_files


def member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", claims: int | None = None
) -> bytes:
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
def test_archives_that_are_broken_or_evil(
    hkd, publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cards, "FREE_BYTES", 1 << 20)  # 64 MiB by default: a bomb of that size would make the test slow
    data, says = ARCHIVES[name]
    url = publish("yesno", {"waves_yesno.tar.gz": data}, whole={"utterances": 5})
    before = {path.name for path in tmp_path.iterdir()}
    code, _, lines = hkd("prepare", "yesno", "--set", f"base_url={url}", "--folder", "p")
    only_line(lines, (says,))
    assert code == 1
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache"}
    if "unpack" in says:
        assert [path.name for path in (tmp_path / "cache" / "yesno").iterdir()] == ["waves_yesno.tar.gz"], (
            "whole or not at all"
        )
    assert not [
        path for path in tmp_path.rglob("*") if path.is_symlink() or path.name in ("out", "secret") or path.is_fifo()
    ]


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
        code, _, lines = hkd(*start, "--set", f"base_url={address}")
        only_line(lines, (says,))
        assert code == 1
        assert not list(tmp_path.rglob("waves_yesno.tar.gz.part"))
    (served / "waves_yesno.tar.gz").write_bytes(WHOLE)
    handler.limit_bytes = 100
    assert "goes on where it was" in only_line(hkd(*start, "--set", f"base_url={url}")[2], ("could not be fetched",))
    handler.limit_bytes = None
    assert hkd(*start, "--set", f"base_url={url}")[0] == 0


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
