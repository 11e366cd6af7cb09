"""Writing a store: shard by shard, in any order, by any number of processes that share the plan.

- A shard is published by temp file + fsync + rename, then its mark: JSON with size and SHA-256. Killed at any instant, a writer loses
  at most the shards that it was at; `pending` lists those without a mark.
- A writer holds the lock of the shard that it writes (a file in .locks/), so that a file never gets another writer's mark.
- The same rows give the same bytes.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hkd.errors import HkdError, UserError
from hkd.files import json_bytes
from hkd.labels import format as files
from hkd.labels.card import card, facts, merge, quality_of
from hkd.labels.codec import block_cuts, encode, recut
from hkd.labels.folder import StoreFolder, keep_shard, store_folder
from hkd.labels.format import (
    Planes,
    StoreSpec,
    UtteranceLabels,
    Utterances,
    backend_of,
    check_format,
    differences,
    identity_of,
    index_bytes,
    rows_of,
    sorted_ids,
)
from hkd.labels.store import index_table
from hkd.remote import HUB
from hkd.sparse import TopK

logger = logging.getLogger(__name__)


class LabelWriter:
    """Writes one store; open it with `LabelWriter.open`."""

    def __init__(self, folder: StoreFolder, spec: StoreSpec, ids: list[str]) -> None:
        self._folder, self.spec, self._ids = folder, spec, ids
        self._digest = spec.digest
        self._claimed: set[int] = set()

    @classmethod
    def open(cls, path: Path | str, spec: StoreSpec, ids: Iterable[str], *, overwrite: bool = False) -> "LabelWriter":
        """Begin a store for these utterances in a folder or at a URL, or go on with one that was begun with the same spec and ids.

        `overwrite` removes a store that is there, after checking that it is one. Raises UserError where the folder holds something
        else, or a store of another identity.
        """
        folder = store_folder(path)
        if str(folder.path).startswith(HUB):
            raise UserError(
                f"a store must not be written at {folder.path} shard by shard. Write it to a folder, then `hkd labels push` it."
            )
        ordered = sorted_ids(ids)
        spec = spec.with_ids(ordered)
        _check_folder(folder)
        with folder.lock("store", wait=True):
            if overwrite:
                _remove_store(folder)
            inventory = (files.INVENTORY, json_bytes(spec.inventory.to_json()))
            created = folder.create(files.SPEC, json_bytes(spec.to_json()), inventory)
            found = spec if created else _resumed(folder, spec)
            if not created and not folder.exists(files.INVENTORY):
                folder.publish([inventory])
        return cls(folder, found, ordered)

    @property
    def path(self) -> Path | str:
        """Where the store lies: a folder, or a URL."""
        return self._folder.path

    def shard_ids(self, shard: int) -> list[str]:
        """The utterances that shard number `shard` holds, in order."""
        rows = self.spec.plan.rows(shard)
        return self._ids[rows.start : rows.stop]

    def is_done(self, shard: int) -> bool:
        """Whether the shard has its mark and its file."""
        return self._mark(shard, self._folder.read(files.mark_name(shard))) is not None and self._folder.exists(
            self._shard_name(shard)
        )

    def pending(self) -> list[int]:
        """The shards without a mark."""
        marks = self._marks()
        return [shard for shard in range(self.spec.plan.num_shards) if shard not in marks]

    def _marks(self) -> dict[int, dict[str, Any]]:
        """The marks of the shards that are done."""
        there = set(self._folder.names(files.DATA))
        names = {
            files.mark_name(n): n for n in range(self.spec.plan.num_shards) if self._shard_name(n).rpartition("/")[2] in there
        }
        found = self._folder.read_many([name for name in names if name.rpartition("/")[2] in there])
        marks = {names[name]: self._mark(names[name], data) for name, data in found.items()}
        return {shard: mark for shard, mark in marks.items() if mark is not None}

    def _mark(self, shard: int, data: bytes | None) -> dict[str, Any] | None:
        return None if data is None else files.parse_mark(data, self._digest, shard)

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Hold a shard while computing it: False where another writer holds it, or where it is done.

        Several processes share a plan by claiming each pending shard in turn.
        """
        with self._folder.lock(f"{shard:05d}", wait=False) as mine:
            if not mine or self.is_done(shard):
                yield False
                return
            self._claimed.add(shard)
            try:
                yield True
            finally:
                self._claimed.discard(shard)

    def write_shard(self, shard: int, rows: Iterable[UtteranceLabels], *, quality: Mapping[str, float] | None = None) -> None:
        """Publish a shard: exactly the utterances of `shard_ids`, in any order. A shard that is done is left as it is.

        `quality`: sums over the shard (None: computed here, see card.quality_of). Raises HkdError for rows that do not belong.
        """
        ordered = sorted(rows, key=lambda row: row.id)
        self._check_rows(shard, [row.id for row in ordered])
        with contextlib.ExitStack() as stack:
            if shard not in self._claimed:
                stack.enter_context(self._folder.lock(f"{shard:05d}", wait=True))
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
        cuts = block_cuts(utterances.length_B, self.spec.block_positions)
        sums: list[dict[str, float]] = [{} for _ in cuts[1:]]

        def planes(number: int) -> Planes:
            a, b = cuts[number : number + 2]
            topks, word_N = [row.topk for row in rows[a:b]], np.concatenate([row.word_U for row in rows[a:b]])
            if quality is None:
                sums[number] = quality_of(TopK.concatenate(topks))
            return encode(self.spec, topks, word_N, offset_B1[a : b + 1] - offset_B1[a])

        blocks = [partial(planes, number) for number in range(len(sums))]
        self._publish(shard, utterances, blocks, lambda: merge(sums) if quality is None else quality)

    def copy_shard(self, shard: int, utterances: Utterances, blocks: list[Planes], quality: Mapping[str, float | None]) -> None:
        """Publish planes as they are stored elsewhere: for conversion between backends."""
        made = [partial(_same, planes) for planes in recut(self.spec, utterances, blocks)]
        self._publish(shard, utterances, made, lambda: quality)

    def _publish(
        self,
        shard: int,
        utterances: Utterances,
        blocks: Iterable[Callable[[], Planes]],
        quality: Callable[[], Mapping[str, float | None]],
    ) -> None:
        """Write the file, then the mark. `quality` is asked after the blocks were made."""
        name, folder = self._shard_name(shard), self._folder
        with folder.draft(name) as draft:
            data, sha256 = backend_of(self.spec).encode(self.spec, shard, utterances, blocks, draft.write)
            if isinstance(folder.path, Path):
                mark = self._mark_of(shard, utterances, data, sha256, quality())
                folder.publish([(name, draft.path), (files.mark_name(shard), mark)])
            else:
                self._publish_first(shard, utterances, data, quality())

    def _mark_of(
        self, shard: int, utterances: Utterances, data: bytes | memoryview, sha256: str, quality: Mapping[str, float | None]
    ) -> bytes:
        mark = {
            "shard": shard,
            "store": self._digest,
            "utterances": len(utterances.length_B),
            "positions": int(utterances.length_B.sum()),
            "bytes": len(data),
            "sha256": sha256,
            "quality": {key: value if value is not None and math.isfinite(value) else None for key, value in quality.items()},
        }
        return json_bytes(mark)

    def _publish_first(
        self, shard: int, utterances: Utterances, data: bytes | memoryview, quality: Mapping[str, float | None]
    ) -> None:
        """Publish a shard where no lock keeps others from doing the same: the first bytes stay, and are what the mark is for.

        Teachers whose last bits depend on the device give other bytes of the same utterances.
        """
        name, folder = self._shard_name(shard), self._folder
        created = folder.create(name, data)
        found = None if created else folder.read(name)
        theirs = found is not None and (found == data or self._is_whole(shard, utterances, found))
        if not created and not theirs:
            folder.publish([(name, data)])
        kept = found if found is not None and theirs else data
        while True:
            sha256 = hashlib.sha256(kept).hexdigest()
            folder.publish([(files.mark_name(shard), self._mark_of(shard, utterances, kept, sha256, quality))])
            last = kept if created or theirs else folder.read(name)  # whoever found the same damage has written over it, too
            if last is None or last == kept:
                break
            kept = last
        keep_shard(kept, sha256, files.SUFFIXES[self.spec.backend])

    def _is_whole(self, shard: int, utterances: Utterances, data: bytes) -> bool:
        """Whether these are a shard of this store with these utterances."""
        with tempfile.NamedTemporaryFile(suffix=files.SUFFIXES[self.spec.backend]) as file:
            file.write(data)
            file.flush()
            try:
                found = backend_of(self.spec).open(Path(file.name), self.spec, shard).utterances
            except HkdError:
                return False
        return bool(rows_of(shard, found).equals(rows_of(shard, utterances)))

    def _shard_name(self, shard: int) -> str:
        return files.shard_name(self.spec, shard)

    def finish(self, *, report: Mapping[str, Any] | None = None) -> None:
        """Write the index, the card and `report` (free figures, such as the n-gram's perplexity). Raises HkdError where shards are missing."""
        marks = self._marks()
        pending = [shard for shard in range(self.spec.plan.num_shards) if shard not in marks]
        if pending:
            raise HkdError(f"label store {self.path} is not complete: {len(pending)} shards are missing, first {pending[0]}.")
        with self._folder.lock("store", wait=True):
            self._folder.sweep()
            folder = store_folder(self.path)  # what lies there now
            named: list[tuple[str, bytes | memoryview]] = []
            folder.load_spec()
            if folder.index(self.spec) is None:
                named.append((files.INDEX, index_bytes(index_table(folder, self.spec))))
            if report is not None:
                named.append((files.REPORT, json_bytes(dict(report))))
            text = card(self.spec, facts(self.spec, [marks[shard] for shard in sorted(marks)], report or self.report()))
            self._folder.publish([*named, (files.CARD, text.encode())])

    def report(self) -> dict[str, Any]:
        """The free figures that a finished store holds; empty where there are none."""
        return self._folder.report()

    def quality_sums(self) -> dict[str, float | None]:
        """The quality of all shards that are done, added up."""
        return merge(mark["quality"] for mark in self._marks().values())


def _same(planes: Planes) -> Planes:
    return planes


def _check_folder(folder: StoreFolder) -> None:
    """Raises UserError where the folder holds something that is no label store."""
    names = folder.names()
    if files.SPEC not in names:
        others = [name for name in names if name not in (files.INVENTORY, files.LOCKS) and not name.endswith(".tmp")]
        if others:
            raise UserError(f"{folder.path} must be empty or a label store, but holds '{others[0]}'. Give another folder.")


def _stored(folder: StoreFolder) -> dict[str, Any] | None:
    """The value of store.json; None where there is none. Raises UserError where it is no label store's."""
    data = folder.read(files.SPEC)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    try:
        check_format(value)
    except UserError as error:
        raise UserError(f"{folder.path}: {error}") from None
    return dict(value)


def _resumed(folder: StoreFolder, spec: StoreSpec) -> StoreSpec:
    """The spec of the store that is there. Raises UserError where it is another's."""
    value = _stored(folder) or {}
    for key, wanted, there in differences(spec.identity(), identity_of(value)):
        raise UserError(
            f"label store {folder.path} must have been written with `{key}` {wanted}, but with {there} instead. "
            "Give another folder, or --overwrite."
        )
    return StoreSpec.from_json(value, spec.inventory)


def _remove_store(folder: StoreFolder) -> None:
    """Remove a store's own files, and no others; store.json goes last, so that a killed removal can be repeated."""
    if _stored(folder) is None:
        return
    for name in (files.INDEX, files.CARD, files.REPORT):
        folder.remove(name)
    for name in folder.names(files.DATA):
        if files.shard_number(name) is not None or name.endswith(".tmp"):
            folder.remove(f"{files.DATA}/{name}")
    folder.remove(files.INVENTORY)
    folder.remove(files.SPEC)
