"""The heads of a trained run as `hkd.evaluate.frames` asks them: from its cards, its label stores and the units that are there.

Shape letters: V units of a level, H units of a head.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hkd.errors import HkdError, UserError
from hkd.evaluate.context import average_teacher
from hkd.labels.store import LabelReader, store_folders
from hkd.manifest import Manifest
from hkd.stream.join import Join
from hkd.student.config import default_slots
from hkd.units.level import SENONE

log = logging.getLogger(__name__)

MAIN = "main"  # no head of training is called so


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head and how the units of its level become its own. `unit_V`: −1 for units that it is not asked about; None: foreign pieces."""

    name: str
    level: str
    slots: int
    store: str | None
    unit_V: NDArray[np.int64] | None
    hard: str | None = None  # the hard head of its level
    table_VH: Tensor | None = None  # what that head's units mean to the teacher


def read_card(run_folder: Path) -> dict[str, Any] | None:
    """The run's student.json, with a hybrid student's main output as the first of the heads; None without weights."""
    path = run_folder / "student.json"
    if not path.exists() or not (run_folder / "final.safetensors").exists():
        return None
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if card["config"]["main"] == SENONE and (run_folder / "model" / "student.json").exists():
        card["heads"] = {MAIN: _main_row(run_folder), **card["heads"]}
    return card


def _main_row(run_folder: Path) -> dict[str, Any]:
    """A senone main output, as `hkd.train.student.describe_heads` has its heads."""
    exported = json.loads((run_folder / "model" / "student.json").read_text(encoding="utf-8"))
    digest = exported["inventory"]["digest"]
    row: dict[str, Any] = {"level": SENONE, "kind": "hard", "slots": default_slots(SENONE), "store": None, "inventory": digest}
    identity = run_folder / "identity.json"
    trained = json.loads(identity.read_text(encoding="utf-8")) if identity.exists() else None
    if trained is not None and trained["train"]["objective"] == "interpolation":
        [row["store"]] = trained["data"]["stores"]
    return row


def stores_of(heads: Mapping[str, Mapping[str, Any]], labels: Path | None) -> dict[str, LabelReader]:
    """The stores that the heads were taught by, where they are there, whole, and of the same inventory."""
    wanted = {row["store"]: row for row in heads.values() if row.get("store") is not None}
    try:
        folders = store_folders(labels) if wanted and labels is not None else {}
    except UserError:  # there is none
        folders = {}
    found = {}
    for name, path in folders.items():
        if name in wanted:
            try:
                reader = LabelReader.open(path)
            except HkdError as error:
                log.warning("label store '%s' is left out: %s", name, error)
                continue
            if reader.spec.inventory.digest == wanted[name].get("inventory"):
                found[name] = reader
    return found


def heads_of(card: Mapping[str, Any], join: Join, part: Manifest) -> list[Head]:
    """The heads of a card (of `read_card`) of which something can be said on this part."""
    heads = _of_equal_slots([head for name, row in card["heads"].items() if (head := _head(name, row, join)) is not None])
    return [_with_table(head, heads, join, part) for head in heads]


def _head(name: str, row: Mapping[str, Any], join: Join) -> Head | None:
    """What is known of a head; None where nothing can be said of it."""
    level, store = str(row["level"]), row.get("store")
    own = join.inventory(level)
    kept = row.get("units")
    joined = join.stores.get(store) if store is not None else None
    if joined is not None and not _same_ids(joined.head_unit_V, kept):
        joined = None  # the store has been made anew and keeps other ids
    unit_V: NDArray[np.int64] | None = None
    if own and row.get("inventory", own.digest) == own.digest:
        unit_V = np.arange(len(own)) if kept is None else np.full(len(own), len(kept))
        if kept is not None:
            unit_V[kept] = np.arange(len(kept))
        if row["kind"] != "hard" and join.alignment is not None:
            unit_V[list(join.alignment.silences.get(level, ()))] = -1
    if unit_V is None and joined is None:
        return None
    return Head(name=name, level=level, slots=int(row["slots"]), store=None if joined is None else joined.name, unit_V=unit_V)


def _same_ids(head_unit_V: NDArray[np.int64], kept: Sequence[int] | None) -> bool:
    """Whether a store's ids become the head's as in training, where the head had these units of the store (None: all)."""
    ids_V = head_unit_V if kept is None else head_unit_V[kept]
    return np.array_equal(ids_V, np.arange(len(ids_V)))


def _of_equal_slots(heads: list[Head]) -> list[Head]:
    """A batch holds a level's references at one number of slots: a head with another than its level's first is held against what its store
    calls gold, or left out."""
    first: dict[str, int] = {}
    for head in heads:
        if head.unit_V is not None:
            first.setdefault(head.level, head.slots)
    fitting = [head if first.get(head.level, head.slots) == head.slots else replace(head, unit_V=None) for head in heads]
    return [head for head in fitting if head.unit_V is not None or head.store is not None]


def _with_table(head: Head, heads: list[Head], join: Join, part: Manifest) -> Head:
    """The same with its table, where its store and a hard head have the level's own units at the same slots."""
    own = join.inventory(head.level)
    hard = next((h for h in heads if h.store is None and (h.level, h.slots) == (head.level, head.slots)), None)
    if head.store is None or hard is None or own is None or own.digest != join.stores[head.store].reader.spec.inventory.digest:
        return head
    return replace(head, hard=hard.name, table_VH=average_teacher(join.stores[head.store], without={u.id for u in part}))
