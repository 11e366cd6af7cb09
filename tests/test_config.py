from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkd import config
from hkd.errors import UserError
from hkd.files import to_toml


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str = "x"
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    weights: dict[str, float] = field(default_factory=dict)


def test_build_fills_nested_tables_and_widens_integers_to_floats():
    built = config.build(Outer, {"inner": {"rate": 1, "sizes": [3]}, "weights": {"senone": 2}, "limit": 4}, where="t")
    assert built == Outer(inner=Inner(rate=1.0, sizes=(3,)), weights={"senone": 2.0}, limit=4)
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"nmae": 1}, ["'nmae'", "'name'"]),
        ({"inner": {"rates": 1}}, ["t.inner", "'rate'"]),
        ({"name": 3}, ["t.name", "a text"]),
        ({"flag": 1}, ["t.flag", "true or false"]),
        ({"mode": "c"}, ["t.mode", "a, b"]),
        ({"inner": 3}, ["t.inner", "table"]),
        ({"limit": True}, ["t.limit", "a whole number"]),
    ],
)
def test_what_does_not_fit_is_named(table, words):
    with pytest.raises(UserError) as caught:
        config.build(Outer, table, where="t")
    assert all(word in str(caught.value) for word in words)


scalars = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=20))
tables = st.recursive(
    st.dictionaries(st.text(min_size=1, max_size=8), scalars | st.lists(scalars, max_size=3), max_size=4),
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=8), scalars | inner, max_size=4),
    max_leaves=8,
)


@given(tables)
def test_toml_that_is_written_reads_back_the_same(table):
    import tomllib

    assert tomllib.loads(to_toml(table)) == table


def test_a_config_survives_toml():
    import tomllib

    outer = Outer(name="q", inner=Inner(rate=3e-4), weights={"a": 1.0})
    assert config.build(Outer, tomllib.loads(to_toml(config.to_table(outer))), where="t") == outer


def test_overrides():
    tree = config.parse_overrides(["a.b=1", "a.c=word", "d=[1, 2]", 'e="x y"', "f=3e-4"])
    assert tree == {"a": {"b": 1, "c": "word"}, "d": [1, 2], "e": "x y", "f": 3e-4}
    with pytest.raises(UserError, match="NAME=VALUE"):
        config.parse_overrides(["nothing"])


def test_the_texts_of_a_project_are_no_copies_that_an_editor_or_macos_left(tmp_path: Path):
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "b.txt.gz", "a.txt~", "a.txt.bak", ".a.txt.swp", "._a.txt", "notes.md"):
        (tmp_path / "text" / name).write_text("one\n")
    assert [path.name for path in config.ProjectSettings.load(tmp_path).texts] == ["a.txt", "b.txt.gz"]


def test_project_paths_and_tables(tmp_path: Path):
    (tmp_path / "hkd.toml").write_text('[paths]\nlabels = "elsewhere"\n[train.inner]\nrate = 2\n')
    project = config.ProjectSettings.load(tmp_path)
    assert project.labels == tmp_path / "elsewhere"
    assert project.manifest == tmp_path / "manifest.jsonl"
    assert config.build(Outer, project.table("train"), where="train") == Outer(inner=Inner(rate=2.0))
    with pytest.raises(UserError, match="hkd prepare"):
        project.require("manifest", "hkd prepare FOLDER")
    for text, words in [
        ('[paths]\nlables = "x"\n', "'labels'"),
        ("[trian]\nlam = 1\n", r"hkd.toml: \[trian\] is no table of hkd. Did you mean 'train'?"),
        ("[runs]\nhierarchical = 3\n", r"\[runs.hierarchical\] must be a table, but is 3"),
    ]:
        (tmp_path / "hkd.toml").write_text(text)
        with pytest.raises(UserError, match=words):
            config.ProjectSettings.load(tmp_path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    pair: tuple[float, float] = (1.0, 2.0)
    mixed: tuple[str, int, float] = ("a", 1, 2.0)
    nested: tuple[tuple[int, int], ...] = ()
    by_name: dict[str, tuple[int, int]] = field(default_factory=dict)
    maybe: tuple[int, int] | None = None


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"pair": [1.0]}, r"t\.pair must be a list of 2 values, but has 1"),
        ({"nested": [[1.5, 2]]}, r"t\.nested\[0\]\[0\] must be a whole number, but is 1\.5 instead"),
        ({"pair": []}, r"t\.pair must be a list of 2 values, but has 0"),
        ({"pair": [1, 2, 3]}, r"t\.pair must be a list of 2 values, but has 3"),
        ({"mixed": ["a", 1]}, r"t\.mixed must be a list of 3 values"),
        ({"nested": [[1, 2], [3]]}, r"t\.nested\[1\] must be a list of 2 values"),
        ({"by_name": {"x": [1]}}, r"t\.by_name\.x must be a list of 2 values"),
        ({"maybe": [1, 2, 3]}, r"t\.maybe must be a list of 2 values"),
    ],
)
def test_a_list_of_fixed_length_takes_no_other_length(table, where):
    with pytest.raises(UserError, match=where):
        config.build(Fixed, table, where="t")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value):
    with pytest.raises(UserError, match=r"t\.inner\.rate must be a finite number"):
        config.build(Outer, {"inner": {"rate": value}}, where="t")
    with pytest.raises(UserError, match=r"t\.weights\.senone must be a finite number"):
        config.build(Outer, {"weights": {"senone": value}}, where="t")
