"""Writing a store: shard by shard, in any order, by any number of processes that share the plan.

- A shard is published by temp file + fsync + rename, then its mark: JSON with size and SHA-256. Killed at any instant, a writer loses
  at most the shards that it was at; `pending` lists those without a mark.
- Whoever writes a shard holds its lock (flock on a file in .locks/), so that a file never gets another writer's mark.
- The same rows give the same bytes.
"""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hkd.errors import HkdError, UserError
from hkd.files import write_bytes, write_json
from hkd.labels import folder as files
from hkd.labels.backend import Utterances, backend_of, block_cuts, recut
from hkd.labels.card import card
from hkd.labels.codec import Planes, encode
from hkd.labels.quality import merge, quality_of
from hkd.labels.rows import UtteranceLabels
from hkd.labels.schema import StoreSpec, differences, sorted_ids
from hkd.topk import TopK

logger = logging.getLogger(__name__)


@contextmanager
def _world(what: str, path: Path) -> Iterator[None]:
    """OSError → one sentence."""
    try:
        yield
    except OSError as error:
        raise HkdError(
            f"{what} {path} cannot be written ({error.strerror or error}). Mend that, then run the same command again."
        ) from None


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on a file, made for it and removed after; False where another holds it and `wait` is false."""
    handle = None
    while handle is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder went with the last lock
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(handle).st_ino != path.stat().st_ino:  # removed by the one who held it
                raise FileNotFoundError
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        except FileNotFoundError:
            os.close(handle)
            handle = None
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # others are in it
            path.parent.rmdir()


class LabelWriter:
    """Writes one store; open it with `LabelWriter.open`."""

    def __init__(self, path: Path, spec: StoreSpec, ids: list[str]) -> None:
        self.path, self.spec, self._ids = path, spec, ids
        self._claimed: set[int] = set()

    @classmethod
    def open(cls, path: Path | str, spec: StoreSpec, ids: Iterable[str], *, overwrite: bool = False) -> "LabelWriter":
        """Begin a store for these utterances, or go on with one that was begun with the same spec and ids.

        `overwrite` removes a store that is there, after checking that it is one. Raises UserError where the folder holds something
        else, or a store of another identity.
        """
        root = Path(path)
        ordered = sorted_ids(ids)
        spec = spec.with_ids(ordered)
        with _world("label store", root):
            _check_place(root)
            stack = contextlib.ExitStack()
            stack.enter_context(_lock(root / files.LOCKS / "store.lock", wait=True))
        with _world("label store", root), stack:
            if overwrite and (root / files.SPEC).exists():
                files.load_spec(root)
                _remove_store(root)
            if (root / files.SPEC).exists():
                found = files.load_spec(root)
                if found.digest != spec.digest:
                    key, wanted, there = differences(spec, found)[0]
                    raise UserError(
                        f"label store {root} must have been written with `{key}` {wanted}, but with {there} instead. "
                        "Give another folder, or --overwrite."
                    )
                return cls(root, found, ordered)
            spec.inventory.save(root / files.INVENTORY)
            write_json(root / files.SPEC, spec.to_json())
            (root / files.DATA).mkdir(exist_ok=True)
        return cls(root, spec, ordered)

    def shard_ids(self, shard: int) -> list[str]:
        """The utterances that shard number `shard` holds, in order."""
        rows = self.spec.plan.rows(shard)
        return self._ids[rows.start : rows.stop]

    def is_done(self, shard: int) -> bool:
        """Whether the shard has its mark and its file."""
        return (
            files.load_mark(self.path, self.spec, shard) is not None and files.shard_path(self.path, self.spec, shard).is_file()
        )

    def pending(self) -> list[int]:
        """The shards without a mark."""
        return [shard for shard in range(self.spec.plan.num_shards) if not self.is_done(shard)]

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Hold a shard while computing it: False where another writer holds it, or where it is done.

        Several processes share a plan by claiming each pending shard in turn.
        """
        with _lock(self._lock_path(shard), wait=False) as mine:
            if not mine or self.is_done(shard):
                yield False
                return
            self._claimed.add(shard)
            try:
                yield True
            finally:
                self._claimed.discard(shard)

    def _lock_path(self, shard: int) -> Path:
        return self.path / files.LOCKS / f"{shard:05d}.lock"

    def write_shard(self, shard: int, rows: Iterable[UtteranceLabels], *, quality: Mapping[str, float] | None = None) -> None:
        """Publish a shard: exactly the utterances of `shard_ids`, in any order. A shard that is done is left as it is.

        `quality`: sums over the shard (None: computed here, see quality.quality_of). Raises HkdError for rows that do not belong.
        """
        ordered = sorted(rows, key=lambda row: row.id)
        self._check_rows(shard, [row.id for row in ordered])
        with contextlib.ExitStack() as stack:
            if shard not in self._claimed:
                with _world("label store", self.path):
                    stack.enter_context(_lock(self._lock_path(shard), wait=True))
                if self.is_done(shard):
                    return
            self._write(shard, ordered, quality)

    def _check_rows(self, shard: int, found: Sequence[str]) -> None:
        if not 0 <= shard < self.spec.plan.num_shards:
            raise HkdError(f"a shard's number must be below {self.spec.plan.num_shards}, but is {shard} instead.")
        wanted = self.shard_ids(shard)
        if found != wanted:
            odd = sorted(set(wanted).symmetric_difference(found)) or [a for a, b in itertools.pairwise(found) if a == b]
            where = "is missing" if odd[0] in set(wanted) - set(found) else "does not belong there"
            raise HkdError(f"shard {shard} must hold exactly its {len(wanted)} utterances, but '{odd[0]}' {where}.")

    def _write(self, shard: int, rows: list[UtteranceLabels], quality: Mapping[str, float] | None) -> None:
        utterances = Utterances(
            id_array=pa.array([row.id for row in rows], pa.string()),
            length_B=np.array([len(row.topk) for row in rows], np.int64),
            unit_digest_B8=np.frombuffer(b"".join(row.unit_digest for row in rows), np.uint8).reshape(-1, 8),
            text_digest_B8=np.frombuffer(b"".join(row.text_digest for row in rows), np.uint8).reshape(-1, 8),
        )
        offset_B1 = utterances.offset_B1
        sums: list[dict[str, float]] = []

        def blocks() -> Iterator[Planes]:
            for a, b in itertools.pairwise(block_cuts(utterances.length_B, self.spec.block_positions)):
                topk = TopK.concatenate([row.topk for row in rows[a:b]])
                word_N = np.concatenate([row.word_U for row in rows[a:b]]).astype(np.int32, copy=False)
                if quality is None:
                    sums.append(quality_of(topk))
                yield encode(self.spec, topk, word_N, offset_B1[a : b + 1] - offset_B1[a])

        data = backend_of(self.spec).encode(self.spec, shard, utterances, blocks())
        self._publish(shard, utterances, data, merge(sums) if quality is None else quality)

    def copy_shard(self, shard: int, utterances: Utterances, blocks: list[Planes], quality: Mapping[str, float | None]) -> None:
        """Publish planes as they are stored elsewhere: for conversion between backends."""
        data = backend_of(self.spec).encode(self.spec, shard, utterances, recut(self.spec, utterances, blocks))
        self._publish(shard, utterances, data, quality)

    def _publish(self, shard: int, utterances: Utterances, data: Any, quality: Mapping[str, float | None]) -> None:
        """Write the file, then the mark."""
        mark = {
            "shard": shard,
            "store": self.spec.digest,
            "utterances": len(utterances.length_B),
            "positions": int(utterances.length_B.sum()),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "quality": {key: value if value is not None and math.isfinite(value) else None for key, value in quality.items()},
        }
        with _world("label store", self.path):
            write_bytes(files.shard_path(self.path, self.spec, shard), data)
            write_json(files.mark_path(self.path, shard), mark)

    def finish(self, *, report: Mapping[str, Any] | None = None) -> None:
        """Write the index, the card and `report` (free figures, such as the n-gram's perplexity). Raises HkdError where shards are missing."""
        pending = self.pending()
        if pending:
            raise HkdError(f"label store {self.path} is not complete: {len(pending)} shards are missing, first {pending[0]}.")
        with _world("label store", self.path), _lock(self.path / files.LOCKS / "store.lock", wait=True):
            for place in (self.path, self.path / files.DATA):
                for left in place.glob(".*.tmp"):  # of writers that were killed
                    left.unlink(missing_ok=True)
            if files.load_index(self.path, self.spec) is None:
                files.write_index(self.path, self.spec)
            if report is not None:
                write_json(self.path / files.REPORT, dict(report))
            write_bytes(self.path / files.CARD, card(self.path, self.spec).encode())
            for left in (self.path / files.LOCKS).glob("0*.lock"):
                left.unlink(missing_ok=True)


def _check_place(root: Path) -> None:
    """Raises UserError where the folder holds something that is no label store."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} must be a folder, but is a file. Give another folder.")
    if root.is_dir() and not (root / files.SPEC).exists():
        others = sorted(
            p.name for p in root.iterdir() if p.name not in (files.INVENTORY, files.LOCKS) and not p.name.endswith(".tmp")
        )
        if others:
            raise UserError(f"{root} must be empty or a label store, but holds '{others[0]}'. Give another folder.")


def _remove_store(root: Path) -> None:
    """Remove a store's own files, and no others; store.json goes last, so that a killed removal can be repeated."""
    for name in (files.INDEX, files.CARD, files.REPORT):
        (root / name).unlink(missing_ok=True)
    data = root / files.DATA
    if data.is_symlink():
        raise UserError(f"{data} must be a folder, but is a link. Remove it yourself.")
    shutil.rmtree(data, ignore_errors=True)
    (root / files.INVENTORY).unlink(missing_ok=True)
    (root / files.SPEC).unlink(missing_ok=True)


def quality_sums(folder: Path, spec: StoreSpec) -> dict[str, float | None]:
    """The quality of all shards that have a mark, added up."""
    marks = (files.load_mark(folder, spec, shard) for shard in range(spec.plan.num_shards))
    return merge(mark["quality"] for mark in marks if mark is not None)
