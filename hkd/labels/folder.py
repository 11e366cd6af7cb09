"""The files of a store: their names, and reading store.json and marks without trusting them."""

import json
import re
from pathlib import Path
from typing import Any

from hkd.errors import HkdError, UserError
from hkd.labels.backend import backend_of
from hkd.labels.schema import StoreSpec, check_format
from hkd.units.inventory import UnitInventory

SPEC, INVENTORY, INDEX, CARD, REPORT, DATA, LOCKS = (
    "store.json",
    "inventory.json",
    "index.arrow",
    "README.md",
    "report.json",
    "data",
    ".locks",
)
MAX_JSON_BYTES = 1 << 28


def shard_path(folder: Path, spec: StoreSpec, shard: int) -> Path:
    """Where shard number `shard` lies."""
    return folder / DATA / f"{shard:05d}{backend_of(spec).suffix}"


def mark_path(folder: Path, shard: int) -> Path:
    """Where its mark lies."""
    return folder / DATA / f"{shard:05d}.json"


def shard_number(name: str) -> int | None:
    """The number in the name of a shard or a mark; None for any other file."""
    match = re.fullmatch(r"(\d{5,9})\.(json|arrow|zarr\.zip)", name)
    return int(match[1]) if match else None


def load_json(path: Path) -> Any:
    """A JSON file of moderate size. Raises UserError where it is missing, HkdError where it is broken."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise HkdError(f"{path} must have at most {MAX_JSON_BYTES} bytes, but has {path.stat().st_size} instead.")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} must be a label store, but {path.name} is missing. Give the folder of a label store."
        ) from None
    except (ValueError, RecursionError) as error:
        raise HkdError(f"{path} must be JSON, but is not ({str(error)[:100]}). Restore it from a copy.") from None
    except OSError as error:
        raise HkdError(f"{path} cannot be read ({error.strerror}).") from None


def load_spec(folder: Path) -> StoreSpec:
    """Read store.json and inventory.json. Raises UserError or HkdError."""
    value = load_json(folder / SPEC)
    try:
        check_format(value)
        inventory = UnitInventory.from_json(load_json(folder / INVENTORY), folder / INVENTORY)
        return StoreSpec.from_json(value, inventory)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def load_mark(folder: Path, spec: StoreSpec, shard: int) -> dict[str, Any] | None:
    """A shard's mark; None where there is none that counts (absent, torn, or of another store)."""
    try:
        return parse_mark(mark_path(folder, shard).read_bytes(), spec.digest, shard)
    except OSError:
        return None


def parse_mark(data: bytes, store: str, shard: int) -> dict[str, Any] | None:
    """The mark in these bytes; None where it is torn or of another store."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    keys = {"shard": int, "store": str, "utterances": int, "positions": int, "bytes": int, "sha256": str, "quality": dict}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in keys.items()):
        return None
    ours = value["store"] == store and value["shard"] == shard and re.fullmatch("[0-9a-f]{64}", value["sha256"])
    return value if ours else None
