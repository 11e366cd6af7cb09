"""Broken inputs as a table: what is written, what is run, and the one line that must come of it."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from kit.files import sound

WAV = sound(1.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`files` are written, the command runs beside them; `says` must stand in its last line. `kept`: accepted, with so
    many utterances."""

    name: str
    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    code: int = 2
    says: tuple[str, ...] = ()
    kept: int | None = None
    warns: str = ""


def only_line(lines: list[str], says: tuple[str, ...]) -> str:
    """The one line of stderr, which names the program, is a sentence, is no essay, and says all of `says`. Raises
    AssertionError."""
    assert len(lines) == 1, lines
    assert lines[0].startswith("hkd: ")
    assert lines[0].endswith((".", "?", ")"))
    assert len(lines[0]) < 900
    assert all(words in lines[0] for words in says), lines[0]
    return lines[0]


def check_table(cases: Sequence[Case]) -> None:
    """Many cases, each with a name of its own, that say what must come of them. Raises AssertionError."""
    assert len(cases) >= 50
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.says or case.kept for case in cases)


def row(**fields: object) -> str:
    """A line of a manifest."""
    return json.dumps({"id": "a", "text": "x", "audio_filepath": "a.wav", "split": "train", **fields})


def rate(hertz: int) -> bytes:
    """A WAV header with that rate."""
    return WAV[:24] + struct.pack("<I", hertz) + WAV[28:]
