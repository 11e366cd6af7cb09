"""The manifest: which utterances there are. JSONL, one utterance a line, NeMo's field names.

- `id` is unique and stable, and never parsed for meaning. `audio_filepath` is relative to the manifest's folder, or
  absolute, or a URL; `offset` and `duration` are seconds; `channel` is the channel of the file that is read, from 0
  (without it: the mean of all). Free extra fields are kept (`split` and `recording` are the ones that hkd reads).
- A broken line is an error that names file and line; nothing is skipped in silence.
- The digest covers the (id, text) pairs in order of the ids, not where audio lies, splits and extra fields.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hkd.errors import UserError, check_choice, did_you_mean
from hkd.files import atomic_write, digest_of
from hkd.files import numbered_lines as text_lines

_OWN_ID = "Give each utterance its own id."


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One utterance. `audio_filepath` is already resolved against the manifest's folder; None for text alone."""

    id: str
    text: str
    audio_filepath: str | None = None
    offset: float = 0.0
    duration: float | None = None
    speaker: str | None = None
    channel: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.extra) is not MappingProxyType:
            object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))
        if not self.id:
            raise UserError("id must be a non-empty string, but is '' instead. Give every utterance an id.")
        for name in ("offset", "duration"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} of utterance '{self.id}' must be finite and not negative, but is {value}.")
        if self.channel is not None and self.channel < 0:
            raise UserError(f"channel of utterance '{self.id}' must be 0 or above, but is {self.channel} instead.")

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which cannot store a read-only view of a dict."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return partial(Utterance, **{**values, "extra": dict(self.extra)}), ()

    @property
    def split(self) -> str | None:
        """The extra field `split` (train, dev, test), or None."""
        split = self.extra.get("split")
        return None if split is None else str(split)

    @property
    def span(self) -> str:
        """What is read of its file, as digests hold it: offset, duration and, where one is named, the channel."""
        return f"{self.offset}:{self.duration}" + ("" if self.channel is None else f":{self.channel}")

    @property
    def recording(self) -> str:
        """Which recording it was cut from: the extra field `recording`, else the audio file."""
        return str(self.extra.get("recording") or self.audio_filepath or self.id)


class Manifest(Sequence[Utterance]):
    """Utterances in file order, with look-up by id. Ids are unique."""

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        self._utterances = list(utterances)
        self._row_of = {u.id: row for row, u in enumerate(self._utterances)}
        if len(self._row_of) != len(self._utterances):
            twice = Counter(u.id for u in self._utterances).most_common(1)[0][0]
            raise UserError(f"id must be unique in a manifest, but '{twice}' stands twice. {_OWN_ID}")

    def __getitem__(self, row: Any) -> Any:
        return self._utterances[row]

    def __len__(self) -> int:
        return len(self._utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self._utterances)

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._row_of

    def by_id(self, utterance_id: str) -> Utterance:
        """The utterance of that id. Raises UserError where there is none."""
        if utterance_id not in self._row_of:
            hint = did_you_mean(utterance_id, self._row_of)
            raise UserError(f"utterance '{utterance_id}' is not in the manifest.{hint}")
        return self._utterances[self._row_of[utterance_id]]

    def where(self, keep: Callable[[Utterance], bool]) -> "Manifest":
        """The utterances that `keep` says yes to, in order."""
        return Manifest(u for u in self._utterances if keep(u))

    def split(self, name: str | None) -> "Manifest":
        """The utterances of a split; all for None. Raises UserError where the split is empty."""
        if name is None:
            return self
        part = self.where(lambda u: u.split == name)
        if not part:
            check_choice("split", name, sorted({u.split or "(none)" for u in self._utterances}))
        return part

    @property
    def digest(self) -> str:
        """SHA-256 over the (id, text) pairs by id."""
        return digest_of(part for u in sorted(self._utterances, key=lambda u: u.id) for part in (u.id, u.text))


def _refuse_constant(name: str) -> None:
    raise UserError(f"numbers must be finite, but one is {name} instead.")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # json.loads would make one for each line


def parse_json(line: str) -> dict[str, Any]:
    """One JSON object, only with what can be written again: finite numbers, and text that is Unicode."""
    rule = "a line must be one JSON object"
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{rule}, but is no JSON ({error.msg} at column {error.colno}).") from None
    except (RecursionError, ValueError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else "a number is too long"
        raise UserError(f"{rule}, but is no JSON that can be read ({why}).") from None
    if not isinstance(row, dict):
        raise UserError(f"{rule}, but is a {type(row).__name__} instead.")
    if "\\u" in line:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError("text must be Unicode, but holds half of a surrogate pair.") from None
    return row


Kind = tuple[tuple[type, ...], str]  # what JSON may hold, and what that is called
STRING, NUMBER, WHOLE = ((str,), "a string"), ((float, int), "a number"), ((int,), "a whole number")
_FIELDS: dict[str, Kind] = {
    "id": STRING, "audio_filepath": STRING, "offset": NUMBER, "duration": NUMBER, "channel": WHOLE, "text": STRING,
    "speaker": STRING,
}  # fmt: skip
KNOWN_FIELDS = tuple(_FIELDS)


def check_field(row: Mapping[str, Any], name: str, kind: Kind, *, needed: bool = False, called: str = "") -> Any:
    """A row's field or None; any number as a float. `called`: its name in the file.

    Raises UserError where it is missing although needed, or of another kind.
    """
    value = row.get(name)
    if value is None and needed:
        raise UserError(f"field '{called or name}' must be there, but is missing.")
    if value is not None and type(value) not in kind[0]:
        raise UserError(f"field '{called or name}' must be {kind[1]}, but is {repr(value)[:60]}.")
    try:
        return float(value) if kind is NUMBER and value is not None else value
    except OverflowError:
        raise UserError(f"field '{name}' must be finite, but has {len(str(value))} digits.") from None


def parse_line(line: str, folder: str | Path) -> Utterance:
    """One JSONL line → utterance. Raises UserError (without file and line: `read` adds them)."""
    row = parse_json(line)
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in row.items():
        kind = _FIELDS.get(name)
        if kind is None:
            extra[name] = value
        elif value is not None:
            known[name] = value if type(value) is kind[0][0] else check_field(row, name, kind)
    for name in ("id", "text"):
        if name not in known:
            check_field(row, name, STRING, needed=True)
    if "://" not in known.get("audio_filepath", "://"):
        # this is done for every utterance, and a Path costs six times as much
        known["audio_filepath"] = os.path.normpath(os.path.join(folder, known["audio_filepath"]))  # noqa: PTH118
    return Utterance(**known, extra=MappingProxyType(extra))


def numbered_lines(path: Path) -> Iterator[tuple[int, Utterance]]:
    """Stream a manifest with line numbers. Raises UserError with file and line number at the first broken line."""
    folder = str(path.parent.absolute())
    for number, line in text_lines(path, "a manifest", remedy="Run `hkd prepare` first."):
        if line and not line.isspace():
            try:
                yield number, parse_line(line, folder)
            except UserError as error:
                raise UserError(f"{path}:{number}: {error}") from None


def read_lines(path: Path) -> Iterator[Utterance]:
    """Stream a manifest. Raises as `numbered_lines`."""
    return (utterance for _, utterance in numbered_lines(path))


def read(path: Path) -> Manifest:
    """Read a whole manifest. Raises UserError with file and line number, for duplicate ids too."""
    utterances: dict[str, Utterance] = {}
    for number, utterance in numbered_lines(path):
        if utterance.id in utterances:
            raise UserError(f"{path}:{number}: id must be unique, but '{utterance.id}' stands twice. {_OWN_ID}")
        utterances[utterance.id] = utterance
    return Manifest(utterances.values())


def write(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write atomically. Audio below the manifest's folder is written relative to it, other paths absolute."""
    folder = path.parent.absolute()
    with atomic_write(path) as file:
        for u in utterances:
            audio = u.audio_filepath
            if audio is not None and "://" not in audio and Path(audio).is_relative_to(folder):
                audio = str(Path(audio).relative_to(folder))
            row = {**{name: getattr(u, name) for name in _FIELDS}, "audio_filepath": audio}
            kept = {name: value for name, value in row.items() if value is not None}
            file.write((json.dumps({**kept, **u.extra}, ensure_ascii=False, allow_nan=False) + "\n").encode())


def assign_splits(manifest: Manifest, shares: Mapping[str, float], *, by: Callable[[Utterance], str]) -> Manifest:
    """Set `split` so that all utterances of one group (`by`: the speaker, say) fall into one split.

    Groups are ordered by the SHA-256 of their name and dealt out until each split has its share of the groups: the rule
    depends on nothing but the names. `shares` need not sum to one; every split with a positive share gets at least one
    group. Raises UserError where there are fewer groups than splits.
    """
    groups = sorted({by(u) for u in manifest}, key=lambda name: digest_of([name]))
    if len(groups) < len(shares):
        least = f"at least {len(shares)} groups"
        raise UserError(f"splitting needs {least}, but there are {len(groups)}. Split by another field.")
    total = sum(shares.values())
    split_of: dict[str, str] = {}
    start, cumulated = 0, 0.0
    for index, (name, share) in enumerate(shares.items()):
        cumulated += share
        last = len(groups) - (len(shares) - 1 - index)
        stop = min(max(start + 1, math.floor(len(groups) * cumulated / total + 0.5)), last)
        split_of.update(dict.fromkeys(groups[start:stop], name))
        start = stop
    return Manifest(replace(u, extra={**u.extra, "split": split_of[by(u)]}) for u in manifest)
