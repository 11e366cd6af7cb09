"""Lines of text files: what is accepted, and what is refused with file and line."""

import gzip
from pathlib import Path

import pytest

from hkd.errors import UserError
from hkd.files import MAX_LINE_BYTES, numbered_lines


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", []),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\n\nb\n", ["a", "", "b"]),
        ("é\u2028x\x85y\n".encode(), ["é\u2028x\x85y"]),
        (b"x" * (MAX_LINE_BYTES - 1) + b"\n", ["x" * (MAX_LINE_BYTES - 1)]),
    ],
)
def test_what_is_text_is_read(tmp_path: Path, data: bytes, wanted: list[str]) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(data))
    for name in ("x.txt", "x.txt.gz"):
        assert list(numbered_lines(tmp_path / name)) == list(enumerate(wanted, 1))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("a\n".encode("utf-16"), "x.txt:1: a list must be UTF-8, but is UTF-16"),
        (b"a\nb\xff\n", "x.txt:2: a list must be UTF-8, but this line is not"),
        (b"a\n" * 9000 + b"\xe9\n", "x.txt:9001:"),
        (b"a\n\nb\0\n", "x.txt:3: .* NUL byte"),
        (b"a\n" + b"x" * (MAX_LINE_BYTES + 1), "x.txt:2: .* lines shorter than"),
    ],
)
def test_what_is_not_is_named_with_its_line(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UserError, match=says):
        list(numbered_lines(tmp_path / "x.txt", "a list"))


def test_files_that_cannot_be_opened_or_unpacked(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, says in (("none", "No such file"), ("", "Is a directory"), ("loop", "symbolic links"), ("a\0b", "null")):
        with pytest.raises(UserError, match=f"a list must be a readable file, but .*{says}.* Make it."):
            list(numbered_lines(tmp_path / name, "a list", remedy="Make it."))
    packed = gzip.compress(b"line\n" * 10_000)
    for name, data in (("a.gz", b"no gzip"), ("b.gz", packed[: len(packed) // 2]), ("c.gz", packed[:-8] + bytes(8))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}:[0-9]+: a list must be whole, but cannot be unpacked"):
            list(numbered_lines(tmp_path / name, "a list"))
