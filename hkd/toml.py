"""Writing TOML: the standard library only reads it."""

import json
from collections.abc import Mapping
from typing import Any


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A table as TOML text: values first, then sub-tables, in the given order; None is left out."""
    lines = []
    for key, value in table.items():
        if not isinstance(value, Mapping) and value is not None:
            lines.append(assignment(key, value))
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_key(key)}"
            body = to_toml(value, f"{name}.")
            head = f"[{name}]\n" if not value or any(not isinstance(v, Mapping) for v in value.values()) else ""
            text += ("\n" if text and head else "") + head + body
    return text


def assignment(key: str, value: Any) -> str:
    """A line "key = value"; a table is written inline."""
    return f"{_key(key)} = {_value(value)}"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _quote(name)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(assignment(key, part) for key, part in value.items()) + "}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return _quote(value) if isinstance(value, str) else repr(value)


def _quote(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL's, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
