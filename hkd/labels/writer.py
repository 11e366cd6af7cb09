"""Writing a store: shard by shard, in any order, by any number of processes that share the plan.

- A shard is published by temp file + fsync + rename, then its mark: JSON with size and SHA-256. A writer that is killed
  loses at most the shards that it was writing; `pending` lists those that are not done.
- A writer holds the lock of the shard that it writes (a file in .locks/), so that a file never gets another writer's
  mark.
- The same rows give the same bytes.
"""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hkd.artefact import check_same
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
    identity_of,
    index_bytes,
    sorted_ids,
)
from hkd.labels.store import index_table
from hkd.remote import HUB
from hkd.sparse import TopK

Sums = Mapping[str, float | None]


class LabelWriter:
    """Writes one store; open it with `LabelWriter.open`."""

    def __init__(self, folder: StoreFolder, spec: StoreSpec, ids: list[str]) -> None:
        self.folder, self.spec, self._ids = folder, spec, ids
        self._digest = spec.digest
        self._claimed: set[int] = set()

    @classmethod
    def open(cls, path: Path | str, spec: StoreSpec, ids: Iterable[str], *, overwrite: bool = False) -> "LabelWriter":
        """Begin a store for these utterances in a folder or at a URL, or go on with one that was begun with the same
        spec and ids.

        `overwrite` removes a store that is there, after checking that it is one. Raises UserError where the folder
        holds something else, or a store of another identity.
        """
        folder = store_folder(path)
        if str(folder.path).startswith(HUB):
            raise UserError(
                f"a store must not be written at {folder.path} shard by shard. Write it to a folder, then `hkd labels "
                f"push` it."
            )
        ordered = sorted_ids(ids)
        spec = spec.with_ids(ordered)
        _check_folder(folder)
        with folder.lock("store", wait=True):
            if overwrite:
                _remove_store(store_folder(path))
            if not folder.create(files.SPEC, json_bytes(spec.to_json())):
                there, rule = (
                    folder.load_json(),
                    f"label store {folder.path} must have been written with the same settings",
                )
                check_same(rule, identity_of(there), spec.identity(), "Give another folder, or --overwrite.")
                spec = StoreSpec.from_json(there, spec.inventory)
            folder.create(files.INVENTORY, json_bytes(spec.inventory.to_json()))
        return cls(folder, spec, ordered)

    def shard_ids(self, shard: int) -> list[str]:
        """The utterances that shard number `shard` holds, in order."""
        rows = self.spec.rows(shard)
        return self._ids[rows.start : rows.stop]

    def pending(self) -> list[int]:
        """The shards that are not done."""
        done = self.folder.done(self.spec)
        return [shard for shard in range(self.spec.num_shards) if shard not in done]

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Hold a shard while computing it: False where another writer holds it, or where it is done.

        Several processes share a plan by claiming each pending shard in turn.
        """
        with self.folder.lock(f"{shard:05d}", wait=False) as mine:
            if not mine or self.folder.is_done(self.spec, shard):
                yield False
                return
            self._claimed.add(shard)
            try:
                yield True
            finally:
                self._claimed.discard(shard)

    def write_shard(self, shard: int, rows: Iterable[UtteranceLabels], *, quality: Sums | None = None) -> None:
        """Publish a shard: exactly the utterances of `shard_ids`, in any order. A shard that is done is left as it is.

        `quality`: sums over the shard (None: computed here, see card.quality_of). Raises HkdError for rows that do not
        belong.
        """
        ordered = sorted(rows, key=lambda row: row.id)
        self._check_rows(shard, [row.id for row in ordered])
        utterances = Utterances(
            id_array=pa.array([row.id for row in ordered], pa.string()),
            length_B=np.array([len(row.topk) for row in ordered], np.int64),
            unit_digest_B8=np.frombuffer(b"".join(row.unit_digest for row in ordered), np.uint8).reshape(-1, 8),
            text_digest_B8=np.frombuffer(b"".join(row.text_digest for row in ordered), np.uint8).reshape(-1, 8),
        )
        offset_B1 = utterances.offset_B1
        cuts = block_cuts(utterances.length_B, self.spec.block_positions)

        def planes(a: int, b: int) -> Planes:
            word_N = np.concatenate([row.word_U for row in ordered[a:b]])
            return encode(self.spec, [row.topk for row in ordered[a:b]], word_N, offset_B1[a : b + 1] - offset_B1[a])

        if quality is None:
            parts = (TopK.concatenate([row.topk for row in ordered[a:b]]) for a, b in itertools.pairwise(cuts))
            quality = merge(map(quality_of, parts))
        self._publish(shard, utterances, [partial(planes, a, b) for a, b in itertools.pairwise(cuts)], quality)

    def copy_shard(self, shard: int, utterances: Utterances, blocks: list[Planes], quality: Sums) -> None:
        """Publish the planes of another store's shard: for conversion between backends."""
        made = recut(self.spec, utterances, blocks)
        self._publish(shard, utterances, [partial(dict, planes) for planes in made], quality)

    def _check_rows(self, shard: int, found: Sequence[str]) -> None:
        if not 0 <= shard < self.spec.num_shards:
            raise HkdError(f"a shard's number must be below {self.spec.num_shards}, but is {shard} instead.")
        wanted = self.shard_ids(shard)
        if found != wanted:
            odd = sorted(set(wanted).symmetric_difference(found)) or [a for a, b in itertools.pairwise(found) if a == b]
            where = "is missing" if odd[0] in set(wanted) - set(found) else "does not belong there"
            raise HkdError(f"shard {shard} must hold exactly its {len(wanted)} utterances, but '{odd[0]}' {where}.")

    def _publish(self, shard: int, utterances: Utterances, blocks: list[Callable[[], Planes]], quality: Sums) -> None:
        """Write the file, then its mark, unless the shard is done. At a URL, read it again: another writer may have
        replaced it."""
        folder, name, name_of_mark = self.folder, files.shard_name(self.spec, shard), files.mark_name(shard)
        known = {key: value if value is not None and math.isfinite(value) else None for key, value in quality.items()}
        counts = {"utterances": len(utterances.length_B), "positions": int(utterances.length_B.sum())}

        def mark(data: bytes | memoryview, sha256: str) -> bytes:
            here = {"shard": shard, "store": self._digest, **counts, "bytes": len(data), "sha256": sha256}
            return json_bytes({**here, "quality": known})

        with contextlib.nullcontext() if shard in self._claimed else folder.lock(f"{shard:05d}", wait=True):
            if folder.is_done(self.spec, shard):
                return
            data: bytes | memoryview = backend_of(self.spec).encode_shard(self.spec, shard, utterances, blocks)
            with ThreadPoolExecutor(1) as pool:  # the digest, while the file is written
                sha256 = pool.submit(_sha256, data)
                folder.publish([(name, data), (name_of_mark, lambda: mark(data, sha256.result()))])
            if isinstance(folder.path, Path):
                return
            while (there := folder.read(name)) is not None and there != data:
                data = there
                folder.publish([(name_of_mark, mark(data, _sha256(data)))])
            keep_shard(data, _sha256(data), files.SUFFIXES[self.spec.backend])

    def finish(self, *, report: Mapping[str, Any] | None = None) -> None:
        """Write the index, the card and `report` (free figures, such as the n-gram's perplexity). Raises HkdError where
        shards are missing."""
        marks = self.folder.done(self.spec)
        if pending := [shard for shard in range(self.spec.num_shards) if shard not in marks]:
            raise HkdError(
                f"label store {self.folder.path} is not complete: {len(pending)} shards are missing, first "
                f"{pending[0]}."
            )
        with self.folder.lock("store", wait=True):
            self.folder.sweep()
            now = store_folder(self.folder.path)
            now.load_spec()
            named: list[tuple[str, bytes | memoryview]] = []
            if now.index(self.spec) is None:
                named.append((files.INDEX, index_bytes(index_table(now, self.spec))))
            if report is not None:
                named.append((files.REPORT, json_bytes(dict(report))))
            text = card(self.spec, facts(self.spec, [*marks.values()], report or now.report()))
            self.folder.publish([*named, (files.CARD, text.encode())])

    def quality_sums(self) -> dict[str, float | None]:
        """The quality of all shards that are done, added up."""
        return merge(mark["quality"] for mark in self.folder.done(self.spec).values())


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_folder(folder: StoreFolder) -> None:
    names = folder.names()
    if files.SPEC not in names:
        others = [name for name in names if name not in (files.INVENTORY, files.LOCKS) and not name.endswith(".tmp")]
        if others:
            raise UserError(
                f"{folder.path} must be empty or a label store, but holds '{others[0]}'. Give another folder."
            )


def _remove_store(folder: StoreFolder) -> None:
    """Remove a store's own files, and no others; store.json goes last, so that a killed removal can be repeated."""
    if folder.size(files.SPEC) is None:
        return
    folder.load_json()  # raises where it is no label store
    for name in (files.INDEX, files.CARD, files.REPORT):
        folder.remove(name)
    for name in folder.names(files.DATA):
        if files.is_shard_or_mark(f"{files.DATA}/{name}") or name.endswith(".tmp"):
            folder.remove(f"{files.DATA}/{name}")
    folder.remove(files.INVENTORY)
    folder.remove(files.SPEC)
