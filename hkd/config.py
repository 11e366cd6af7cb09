"""Settings: TOML ⇄ the components' config dataclasses.

- Each component owns a frozen dataclass; this module only fills them, says where a key is unknown, and prints them.
- `hkd.toml` in the working directory holds what differs from the defaults, a table a component; `[paths]` says where.
- `a.b=c` on the command line wins over the file; c is a TOML value, or a bare word taken as a string.
"""

import dataclasses
import inspect
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hkd.errors import UserError, check_setting, did_you_mean
from hkd.files import assignment
from hkd.units.text import WordsConfig, use

PROJECT_FILE = "hkd.toml"
PATHS = {
    "manifest": "manifest.jsonl",
    "alignment": "alignment.arrow",
    "units": "units",
    "lm": "lm",
    "labels": "shards",
    "sentences": "text.jsonl",
    "sentence_labels": "text-shards",
    "runs": "runs",
}
SINGLE = ("prepare", "normalisation", "units", "align", "tie", "words", "bank", "train", "evaluate", "report")
SEVERAL = ("ngrams", "sentences", "lm", "dump", "averages", "runs", "searches")  # tables of tables, each with a name
TABLES = (*SINGLE, *SEVERAL)
_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}  # for people

T = TypeVar("T")
# metadata of a field that is a config whose settings stand in the table itself, beside the others
BESIDE = {"beside": True}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UserError with the file's name and, for bad syntax, the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Give an existing TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be TOML, but is not: {error}.") from None


def check_tables(tables: Mapping[str, Any], path: Path) -> None:
    """Raises UserError for a table that is none of hkd's, and for a value where a table must be."""
    for name, table in tables.items():
        if name not in TABLES:
            known = f"{did_you_mean(name, TABLES)} There are {', '.join(TABLES)}."
            raise UserError(f"{path}: [{name}] is no table of hkd.{known}")
        inner = table if name in SEVERAL and isinstance(table, Mapping) else {}
        for called, value in {name: table, **{f"{name}.{part}": value for part, value in inner.items()}}.items():
            if not isinstance(value, Mapping):
                raise UserError(f"{path}: [{called}] must be a table, but is {value!r} instead.")


def parse_overrides(assignments: Iterable[str], own: str = "") -> dict[str, Any]:
    """["a.b=1", "c=word"] → {"a": {"b": 1}, "c": "word"}. Raises UserError where there is no "=".

    own: the command's own table; its name may stand before a setting ("train.lam=1") or not ("lam=1").
    """
    tree: dict[str, Any] = {}
    for given in assignments:
        name, equals, text = given.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set must be NAME=VALUE, but is '{given}' instead.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, leaf = (name.strip().removeprefix(f"{own}.") if own else name.strip()).split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {given}: '{parent}' is a value already. Set one or the other.")
        node[leaf] = value
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key, `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


def build(cls: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """A config dataclass from a table. Raises UserError for an unknown key (naming the nearest) or a wrong type."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in [name for name, f in fields.items() if f.metadata == BESIDE]:
        own = {key: value for key, value in table.items() if key in fields and key != name}
        rest = {key: value for key, value in table.items() if key not in own}
        table = {**own, name: build(hints[name], rest, where=where)}
    for key in table:
        if key not in fields:
            raise UserError(f"{where}: '{key}' is no setting.{did_you_mean(key, fields, cutoff=0.0)}")
    no_default = dataclasses.MISSING
    missing = [name for name, f in fields.items() if f.default is f.default_factory is no_default and name not in table]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{where}: {' and '.join(missing)} must be given, but {are} missing.")
    return cls(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in table.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the type of a field."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        [option] = [a for a in args if a is not type(None)]
        return None if value is None else _convert(value, option, where)
    is_config = dataclasses.is_dataclass(hint)
    if is_config or origin is dict:
        if is_config and isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a table, but is {value!r} instead.")
        if is_config:
            return build(hint, value, where=where)
        return {str(k): _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        if isinstance(value, str) and args == (str, Ellipsis):  # one name: stores=subword
            value = [value]
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} must be a list, but is {value!r} instead.")
        any_length = args[1:] == (Ellipsis,)
        if not any_length and len(value) != len(args):
            raise UserError(f"{where} must be a list of {len(args)} values, but has {len(value)}: {list(value)}.")
        kinds = [args[0]] * len(value) if any_length else list(args)
        return tuple(_convert(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True)))
    if origin is typing.Literal:
        check_setting(where, repr(value), f"be one of {', '.join(args)}", value in args)
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float):
        check_setting(where, value, "be a finite number", math.isfinite(value))
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise UserError(f"{where} must be {_TYPES.get(hint, hint.__name__)}, but is {value!r} instead.")
    return value


def to_table(config: Any) -> Any:
    """A config dataclass as plain dicts and lists, None left out: what `build` reads back."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        table: dict[str, Any] = {}
        for f in dataclasses.fields(config):
            value = to_table(getattr(config, f.name))
            if f.init and value is not None:
                table |= value if f.metadata == BESIDE else {f.name: value}
        return table
    if isinstance(config, Mapping):
        return {str(key): to_table(value) for key, value in config.items() if value is not None}
    if isinstance(config, list | tuple):
        return [to_table(value) for value in config]
    return config


def explanations(cls: type) -> dict[str, str]:
    """Setting → the comment behind it in the source of a config dataclass and of its base classes; "" for none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            for name, said in re.findall(r"^    (\w+): .*?(?:  # (.*))?$", inspect.getsource(base), re.MULTILINE):
                found[name] = said or found.get(name, "")
    return {f.name: found.get(f.name, "") for f in dataclasses.fields(cls) if f.init}


def show_settings(
    name: str, cls: type, table: Mapping[str, Any] | None = None, *, note: str = "", first: Sequence[str] = ()
) -> Iterator[str]:
    """Lines of TOML: the table `name`, the lines `first`, each setting of the dataclass `cls` with its explanation.

    table: the values, as `to_table` gives them; None: the defaults. A setting without a value is a comment.
    """
    yield f"[{name}]" + (f"  # {note}" if note else "")
    yield from first
    inner: list[tuple[str, type, Any, str]] = []
    for setting, hint, said in _settings(cls):
        value = _default(setting) if table is None else table.get(setting.name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner.append((setting.name, hint, value, said))
            continue
        line = f"# {setting.name} =" if value is None else assignment(setting.name, value)
        yield f"{line}  # {said}" if said else line
    for key, kind, value, text in inner:
        yield ""
        yield from show_settings(f"{name}.{key}", kind, value, note=text)


def _settings(cls: type) -> Iterator[tuple[dataclasses.Field[Any], Any, str]]:
    """The settings of a table: field, type, explanation."""
    hints, said = typing.get_type_hints(cls), explanations(cls)
    for setting in dataclasses.fields(cls):
        if setting.metadata == BESIDE:
            yield from _settings(hints[setting.name])
        elif setting.init:
            yield setting, hints[setting.name], said[setting.name]


def _default(setting: dataclasses.Field[Any]) -> Any:
    if setting.default_factory is not dataclasses.MISSING:
        return to_table(setting.default_factory())
    return None if setting.default is dataclasses.MISSING else to_table(setting.default)


class _Part:
    """The path of a project's part, by the part's name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, project: "ProjectSettings", owner: type) -> Path:
        return project.path(self._name)


@dataclass(frozen=True, kw_only=True)
class ProjectSettings:
    """A working folder: where its parts lie, and the tables of its `hkd.toml`."""

    folder: Path
    tables: Mapping[str, Any] = field(default_factory=dict)

    manifest = _Part()  # JSONL
    alignment = _Part()  # Arrow
    units = _Part()  # the folder of the unit inventories
    lm = _Part()  # the folder of the unit LMs
    labels = _Part()  # the folder of the label stores
    runs = _Part()  # the folder of the training runs

    @classmethod
    def load(cls, folder: Path) -> "ProjectSettings":
        """Read `folder`/hkd.toml where there is one. Its table [normalisation] rules all words from now on.

        Raises UserError for an unknown table or path, or broken TOML.
        """
        path = folder / PROJECT_FILE
        use(WordsConfig())
        if not path.exists():
            return cls(folder=folder)
        tables = read_toml(path)
        for key, value in tables.items():
            if not isinstance(value, Mapping):
                raise UserError(f"{path}: '{key}' must be in a table. Paths belong in [paths].")
        for key in tables.get("paths", {}):
            if key not in PATHS:
                raise UserError(f"{path}: '{key}' is no path of a project.{did_you_mean(key, PATHS, cutoff=0.0)}")
        check_tables({name: table for name, table in tables.items() if name != "paths"}, path)
        project = cls(folder=folder, tables=tables)
        use(build(WordsConfig, project.table("normalisation"), where="normalisation"))
        return project

    def path(self, name: str) -> Path:
        """Where a part lies: the hkd.toml's word or the default, relative to the project's folder."""
        return self.folder / str(self.table("paths").get(name, PATHS[name]))

    @property
    def texts(self) -> list[Path]:
        """Text to train LMs on: all that lies in the folder `text`, plain or gzipped, a sentence a line."""
        found = (self.folder / "text").glob("[!.]*")  # no editor's copies: a.txt~, a.txt.bak, .a.txt.swp
        return sorted(path for path in found if path.name.endswith((".txt", ".txt.gz")) and path.is_file())

    def require(self, name: str, command: str) -> Path:
        """The path of a part that must exist. Raises UserError that says which command makes it."""
        path = self.path(name)
        if not path.exists():
            remedy = f"Run `{command}` first, or start with `hkd prepare`."
            raise UserError(f"{name} must be at {path}, but is not there. {remedy}")
        return path

    def table(self, name: str) -> dict[str, Any]:
        """The table of a dotted name ("lm.senone"), empty where the file has none."""
        node: Any = self.tables
        for part in name.split("."):
            node = node.get(part, {}) if isinstance(node, Mapping) else {}
        return dict(node) if isinstance(node, Mapping) else {}
