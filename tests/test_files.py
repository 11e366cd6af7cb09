"""Files that appear whole or not at all, and digests that depend on content alone."""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd.files import (
    atomic_write,
    digest_of,
    digest_of_file,
    digest_of_json,
    json_bytes,
    temporary,
    write_bytes,
    write_in_order,
    write_json,
)


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the new")
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic_write(path) as file:
        file.write(b"data")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"data"


def test_several_files_appear_in_order_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bool]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(
            (
                sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"),
                self.read_bytes() == target.name.encode(),
            )
        )
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_in_order([(tmp_path / name, name.encode()) for name in ("b", "c", "a")])
    assert seen == [([], True), (["b"], True), (["b", "c"], True)]
    with pytest.raises(FileExistsError):
        write_in_order([(tmp_path / "d", b""), (tmp_path / "a" / "e", b"")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_permissions_follow_the_umask_of_any_process_and_no_thread_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """os.umask sets what every thread's new files get: it is not called."""

    def never(mask: int) -> int:
        raise AssertionError(mask)

    monkeypatch.setattr(os, "umask", never)
    write_bytes(tmp_path / "x", b"")
    write_in_order([(tmp_path / "y", b"")])
    (tmp_path / "z").touch()
    assert len({stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xyz"}) == 1


def test_threads_that_write_one_file_share_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert len({temporary(path) for _ in range(1000)}) == 1000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_bytes(path, bytes([n]) * 100_000), range(64)))
    assert len(set(path.read_bytes())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_json_keeps_the_order_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": "é"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["b", "a"]
    assert "é" in text
    assert text.endswith("\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", float("nan"))
    assert not (tmp_path / "y.json").exists()


parts = st.lists(st.binary(max_size=6), max_size=5)


@given(parts, parts)
def test_digests_tell_lists_of_parts_apart(one: list[bytes], other: list[bytes]) -> None:
    assert (digest_of(one) == digest_of(other)) == (one == other)


def test_digests_are_what_the_docstrings_say(tmp_path: Path) -> None:
    expected = hashlib.sha256((2).to_bytes(8, "little") + "é".encode() + (0).to_bytes(8, "little")).hexdigest()
    assert digest_of(["é", b""]) == expected
    assert digest_of_json({"b": 1, "a": [2.5]}) == hashlib.sha256(b'{"a":[2.5],"b":1}').hexdigest()
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_of_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON | st.dictionaries(st.text(max_size=3), st.lists(st.text(max_size=3)), max_size=3))
def test_json_looks_as_the_standard_library_indents_it(value: object) -> None:
    assert json_bytes(value) == (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
