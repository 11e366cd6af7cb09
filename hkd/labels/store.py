"""Reading and writing stores.

- `LabelReader.block(ids)` gives the labels of a batch, concatenated. Opening a reader reads store.json, the inventory
  and the index (memory-mapped, or from a URL), no shard.
- A shard's blocks are decoded whole and kept in a cache of bounded size, in 16-bit codes; a batch is gathered from
  there. An epoch whose order goes block by block (`runs`) decodes each block once, whatever the cache.
- Several threads may use one reader. A pickled reader opens its store again in the other process.
- `LabelWriter` writes shard by shard, in any order, by any number of processes that share the plan. The same rows give
  the same bytes. The writer holds the shard's lock (a file in .locks/), so a file never gets another writer's mark.
- A shard is published by temp file + fsync + rename, then its mark: JSON with size and SHA-256. A writer that is killed
  loses at most the shards that it was writing; `pending` lists those that are not done.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import struct
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hkd.errors import HkdError, UserError, did_you_mean
from hkd.files import check_same, digest_of, json_bytes
from hkd.labels import format as files
from hkd.labels.card import card, facts, merge, quality_of
from hkd.labels.codec import DecodedBlock, block_cuts, decode_block, decoded_bytes, encode, gather, recut
from hkd.labels.folder import StoreFolder, keep_shard, store_folder
from hkd.labels.format import DamagedShardError, LabelBlock, Planes, ShardFile, StoreSpec, UtteranceLabels, Utterances
from hkd.remote import HUB, cached, hub_parts
from hkd.sparse import TopK

logger = logging.getLogger(__name__)
CACHE_BYTES = 256 << 20
OPEN_SHARDS = 128
KEPT = "labels/kept"  # in the cache: the ids that rows keep, by the store's digest
NO_BLOCK = -1  # of an utterance without positions
IDS_PER_LOOKUP = 128  # to look one id up in the index takes as long as to put so many into a dictionary


class _Ids(Sequence[str]):
    """The sorted ids of a memory-mapped index, without making a list of them."""

    def __init__(self, column: Any) -> None:
        self._array = column.chunk(0) if column.num_chunks else column

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self._array[row].to_pylist() if len(self._array) else []
        return self._array[range(len(self._array))[row]].as_py()


class LabelReader:
    """A read store; open it with `LabelReader.open`."""

    def __init__(self, folder: StoreFolder, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder, self.spec, self._cache_bytes = folder, folder.load_spec(), cache_bytes
        index = folder.index(self.spec)
        self._index = index_table(folder, self.spec) if index is None else index
        self.ids: Sequence[str] = _Ids(self._index["id"])  # sorted
        self._row_of: dict[str, int] | None = None
        self._lookups = 0
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, ShardFile] = OrderedDict()
        # Of each utterance: the row that its block begins with, its first position there, the end, a place for `block`;
        # digests of its units and its text. Filled in as shards are opened: memory not written to yet costs nothing.
        self._located: set[int] = set()
        self._run_U4 = np.zeros((len(self.ids), 4), np.int64)
        self._digest_2U8 = np.zeros((2, len(self.ids), files.DIGEST_BYTES), np.uint8)
        self._blocks: OrderedDict[int, DecodedBlock] = OrderedDict()  # by the row that it begins with
        self._held_bytes = 0
        self.num_decoded = 0  # blocks decoded so far

    @classmethod
    def open(cls, path: Path | str, *, cache_bytes: int = CACHE_BYTES) -> "LabelReader":
        """Open a complete store: a folder, or a URL, whose shards are fetched into the cache as they are needed. Raises
        UserError where there is no store or one of a newer format, HkdError where it is damaged or not complete."""
        reader = cls(store_folder(path), cache_bytes=cache_bytes)
        if lost := reader.folder.lost(reader.spec):
            raise _incomplete(reader.folder, reader.spec, lost[0])
        return reader

    @property
    def path(self) -> Path | str:
        """Where the store lies: a folder, or a URL."""
        return self.folder.path

    def __reduce__(self) -> Any:
        return partial(LabelReader, cache_bytes=self._cache_bytes), (self.folder,)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, utterance_id: object) -> bool:
        return isinstance(utterance_id, str) and self._find(utterance_id) is not None

    def _find(self, utterance_id: str) -> int | None:
        if self._row_of is None:
            self._lookups += 1
            if self._lookups * IDS_PER_LOOKUP <= len(self.ids):
                row = bisect_left(self.ids, utterance_id)
                return row if row < len(self.ids) and self.ids[row] == utterance_id else None
            self._row_of = {name: row for row, name in enumerate(self.ids[:])}
        return self._row_of.get(utterance_id)

    def row(self, utterance_id: str) -> int:
        """Its place among the sorted ids. Raises UserError where it is not in the store."""
        row = self._find(utterance_id)
        if row is None:
            hint = did_you_mean(utterance_id, self.ids)
            raise UserError(f"utterance '{utterance_id}' is not in label store {self.path}.{hint}")
        return row

    def _rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        if self._row_of is not None:
            with contextlib.suppress(KeyError):
                return np.fromiter(map(self._row_of.__getitem__, ids), np.int64, len(ids))
        return np.array([self.row(utterance_id) for utterance_id in ids], np.int64)

    @cached_property
    def length_B(self) -> NDArray[np.int32]:
        """Positions of every utterance, in the order of `ids`."""
        return np.asarray(np.from_dlpack(self._index["num_positions"].combine_chunks()), np.int32)

    def unit_digest(self, utterance_id: str) -> bytes:
        """8 bytes of the SHA-256 of its unit sequence, as hkd.align.alignment.sequence_digest gives them."""
        return self._digests[0][self.row(utterance_id)]

    def text_digest(self, utterance_id: str) -> bytes:
        """8 bytes of the SHA-256 of its normalised transcript."""
        return self._digests[1][self.row(utterance_id)]

    @cached_property
    def _digests(self) -> tuple[list[bytes], list[bytes]]:
        return self._index["unit_digest"].to_pylist(), self._index["text_digest"].to_pylist()

    @property
    def decoded_bytes(self) -> int:
        """The size of the whole store, decoded. Where the cache holds it, nothing is ever decoded twice."""
        return int(self.length_B.sum(dtype=np.int64)) * decoded_bytes(self.spec)

    def runs(self) -> list[list[str]]:
        """The ids that share a decoded block, run by run: an order that shuffles within few runs decodes each once."""
        result: list[list[str]] = []
        for shard in range(self.spec.num_shards):
            rows = self.spec.rows(shard)
            names, length_B = self.ids[rows.start : rows.stop], self.length_B[rows.start : rows.stop].astype(np.int64)
            cuts = [0, len(names)] if self.spec.backend == "zarr" else block_cuts(length_B, self.spec.block_positions)
            result += [list(names[a:b]) for a, b in itertools.pairwise(cuts)]
        return result

    def _shard(self, number: int) -> ShardFile:
        file = self.folder.open_shard(self.spec, number)
        rows = self.spec.rows(number)
        ids = self._index["id"].slice(rows.start, len(rows)).combine_chunks()
        same = file.utterances.id_array.cast(ids.type).equals(ids)
        if not same or not np.array_equal(file.utterances.length_B, self.length_B[rows.start : rows.stop]):
            name = f"{self.path}/{files.shard_name(self.spec, number)}"
            raise DamagedShardError(name, "its utterances are not those of the index")
        self._locate(file, rows)
        with self._lock:
            self._located.add(number)
            self._shards[number] = file
            while len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        return file

    def _locate(self, file: ShardFile, rows: range) -> None:
        here, offset_B1, cuts = slice(rows.start, rows.stop), file.utterances.offset_B1, np.array(file.cuts)
        block_B = np.repeat(cuts[:-1], np.diff(cuts))
        first_B, stop_B = offset_B1[:-1] - offset_B1[block_B], offset_B1[1:] - offset_B1[block_B]
        key_B = np.where(stop_B > first_B, rows.start + block_B, NO_BLOCK)
        self._run_U4[here, :3] = np.stack([key_B, first_B, stop_B], axis=1)
        self._digest_2U8[:, here] = file.utterances.unit_digest_B8, file.utterances.text_digest_B8

    def _decode(self, key: int) -> DecodedBlock:
        """The block that begins with this row."""
        number, place = divmod(key, self.spec.utterances_per_shard)
        file = self._shards.get(number) or self._shard(number)
        block = bisect_right(file.cuts, place) - 1
        try:
            decoded = decode_block(self.spec, file, block)
        except DamagedShardError:
            if isinstance(self.path, Path):
                raise
            said = "%s: shard %d cannot be read from the cache any more and is fetched again."
            logger.warning(said, self.path, number)
            self.folder.shard_file(self.spec, number, fresh=True)
            decoded = decode_block(self.spec, self._shard(number), block)
        with self._lock:
            self.num_decoded += 1
        return decoded

    def _keep(self, used: dict[int, DecodedBlock]) -> None:
        with self._lock:
            for key, decoded in used.items():
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                else:
                    self._blocks[key] = decoded
                    self._held_bytes += decoded.num_bytes
            while self._held_bytes > self._cache_bytes and len(self._blocks) > 1:
                self._held_bytes -= self._blocks.popitem(last=False)[1].num_bytes

    def block(self, ids: Sequence[str]) -> LabelBlock:
        """The labels of these utterances, in this order. Raises UserError for one that is absent, HkdError: damage."""
        row_B = self._rows(ids)
        if len(self._located) < self.spec.num_shards:
            for number in set((row_B // self.spec.utterances_per_shard).tolist()) - self._located:
                self._shard(number)
        run_B4, offset_B1 = self._run_U4[row_B], np.zeros(len(row_B) + 1, np.int64)
        np.cumsum(run_B4[:, 2] - run_B4[:, 1], out=offset_B1[1:])
        run_B4[:, 3] = offset_B1[:-1]
        keys = run_B4[:, 0].tolist()
        used = {key: self._blocks.get(key) or self._decode(key) for key in dict.fromkeys(keys) if key != NO_BLOCK}
        self._keep(used)
        place = dict(zip([*used, NO_BLOCK], range(len(used) + 1), strict=True))
        run_B4[:, 0] = [place[key] for key in keys]
        topk, word_N = gather(self.spec, list(used.values()), run_B4, int(offset_B1[-1]))
        return LabelBlock(
            topk=topk,
            offset_B1=offset_B1,
            word_N=word_N,
            unit_digest_B=_cut(self._digest_2U8[0, row_B]),
            text_digest_B=_cut(self._digest_2U8[1, row_B]),
        )

    def kept_ids(self) -> NDArray[np.int64]:
        """The unit ids that any row keeps, and gold units, sorted. The whole store is read, once on this machine."""

        def fetch(part: Path) -> None:
            with part.open("xb") as file:
                np.save(file, self._kept_ids)

        with contextlib.suppress(HkdError):
            return np.asarray(np.load(cached(KEPT, f"{digest_of_store(self)}.npy", fetch)), np.int64)
        return self._kept_ids  # without a cache, or from a damaged store: that raises again

    @cached_property
    def _kept_ids(self) -> NDArray[np.int64]:
        seen = np.zeros(len(self.spec.inventory), np.bool_)
        for number in range(self.spec.num_shards):
            first = self.spec.rows(number).start
            for cut in self._shard(number).cuts[:-1]:
                decoded = self._decode(first + cut)
                ids, gold = decoded.unit_NK, decoded.narrow_WN[0]
                seen[ids if decoded.count_NK is None else ids[decoded.count_NK > 0]] = True
                seen[gold[gold >= 0]] = True
        return np.flatnonzero(seen)


def _cut(digest_B8: NDArray[np.uint8]) -> tuple[bytes, ...]:
    return struct.unpack(f"{files.DIGEST_BYTES}s" * len(digest_B8), digest_B8.data)


# The index, made from the shards --------------------------------------------------------------------------------------


def _incomplete(folder: StoreFolder, spec: StoreSpec, shard: int) -> HkdError:
    return HkdError(
        f"label store {folder.path} is not complete: shard {shard} of {spec.num_shards} is missing or damaged. Copy it "
        "again, or run the command that writes it again (`hkd labels verify` lists what is wrong)."
    )


def shard_tables(folder: StoreFolder, spec: StoreSpec) -> Iterator[pa.Table]:
    """The index, shard by shard, made from the shards. Raises HkdError for one that is missing, damaged or foreign."""
    for shard in range(spec.num_shards):
        if folder.mark(spec, shard) is None:
            raise _incomplete(folder, spec, shard)
        table, wanted = files.rows_of(shard, folder.open_shard(spec, shard).utterances), len(spec.rows(shard))
        if (found := table.num_rows) != wanted:
            raise HkdError(f"shard {shard} of {folder.path} must hold {wanted} utterances, but holds {found} instead.")
        yield table


def index_table(folder: StoreFolder, spec: StoreSpec) -> pa.Table:
    """The index, made from the shards. Raises HkdError for a shard that is missing, damaged or foreign."""
    table = pa.concat_tables([files.INDEX_SCHEMA.empty_table(), *shard_tables(folder, spec)]).combine_chunks()
    return table.replace_schema_metadata({files.INDEX_KEY: json.dumps({"store": spec.digest})})


# All stores of a folder -----------------------------------------------------------------------------------------------


def store_folders(folder: Path | str) -> dict[str, Path | str]:
    """The stores in a folder or at a URL, by their folder's name: the folder itself, where it is a store, else those
    right below it. Raises UserError where there is none."""
    here = store_folder(folder)
    place: Path | str = here.path
    if here.size(files.SPEC) is not None:
        return {store_name(place): place}
    names = [name for name in here.names() if here.size(f"{name}/{files.SPEC}") is not None]
    if not names:
        raise UserError(f"{place} must be a label store or hold some, but does not. Run `hkd teacher-dump` first.")
    return {name: place / name if isinstance(place, Path) else f"{place}/{name}" for name in names}


def store_name(place: Path | str) -> str:
    """The last folder of a path or a URL; for a whole data set of the Hub its name, without the revision."""
    if isinstance(place, Path):
        return place.name
    repo, _, folder = hub_parts(place) if place.startswith(HUB) else ("", None, place)
    return (folder or repo).rpartition("/")[2]


def open_stores(folder: Path | str) -> dict[str, LabelReader]:
    """Open the stores in a folder or at a URL, by name. Raises UserError for none, HkdError for an incomplete one."""
    return {name: LabelReader.open(path) for name, path in store_folders(folder).items()}


def digest_of_store(reader: LabelReader) -> str:
    """Of the spec and of every shard's mark (which holds its SHA-256)."""
    folder, numbers = reader.folder, range(reader.spec.num_shards)
    marks = [(files.mark_name(n).rpartition("/")[2], folder.mark_bytes(n)) for n in numbers]
    named = [(files.SPEC, folder.read(files.SPEC)), *marks]
    return digest_of(part for name, data in named if data is not None for part in (name, data))


Sums = Mapping[str, float | None]


class LabelWriter:
    """Writes one store; open it with `LabelWriter.open`."""

    def __init__(self, folder: StoreFolder, spec: StoreSpec, ids: list[str]) -> None:
        self.folder, self.spec, self._ids = folder, spec, ids
        self._digest = spec.digest
        self._claimed: set[int] = set()

    @classmethod
    def open(cls, path: Path | str, spec: StoreSpec, ids: Iterable[str], *, overwrite: bool = False) -> "LabelWriter":
        """Begin a store for these utterances in a folder or at a URL, or go on with one of the same spec and ids.

        `overwrite` removes a store that is there, after checking that it is one. Raises UserError where the folder
        holds something else, or a store of another identity.
        """
        folder = store_folder(path)
        if str(folder.path).startswith(HUB):
            remedy = "Write it to a folder, then `hkd labels push` it."
            raise UserError(f"a store must not be written at {folder.path} shard by shard. {remedy}")
        ordered = files.sorted_ids(ids)
        spec = spec.with_ids(ordered)
        _check_folder(folder)
        with folder.lock("store", wait=True):
            if overwrite:
                _remove_store(store_folder(path))
            if not folder.create(files.SPEC, json_bytes(spec.to_json())):
                rule = f"label store {folder.path} must have been written with the same settings"
                there, remedy = folder.load_json(), "Give another folder, or --overwrite."
                check_same(rule, files.identity_of(there), spec.identity(), remedy)
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
        """Hold a shard while computing it: False where another writer holds it, or where it is done. Several processes
        share a plan by claiming each pending shard in turn."""
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
        """Publish a shard, unless it is done: exactly the utterances of `shard_ids`, in any order. `quality`: sums over
        the shard (None: computed, see card.quality_of). Raises HkdError for rows of other ids."""
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
        """Write the file, then its mark, unless the shard is done. At a URL, read it again: another may replace it."""
        folder, name, name_of_mark = self.folder, files.shard_name(self.spec, shard), files.mark_name(shard)
        known = {key: value if value is not None and math.isfinite(value) else None for key, value in quality.items()}
        counts = {"utterances": len(utterances.length_B), "positions": int(utterances.length_B.sum())}

        def mark(data: bytes | memoryview, sha256: str) -> bytes:
            here = {"shard": shard, "store": self._digest, **counts, "bytes": len(data), "sha256": sha256}
            return json_bytes({**here, "quality": known})

        with contextlib.nullcontext() if shard in self._claimed else folder.lock(f"{shard:05d}", wait=True):
            if folder.is_done(self.spec, shard):
                return
            data: bytes | memoryview = files.backend_of(self.spec).encode_shard(self.spec, shard, utterances, blocks)
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
        """Write the index, the card and `report` (free figures). Raises HkdError where shards are missing."""
        marks = self.folder.done(self.spec)
        if pending := [shard for shard in range(self.spec.num_shards) if shard not in marks]:
            what = f"{len(pending)} shards are missing, first {pending[0]}"
            raise HkdError(f"label store {self.folder.path} is not complete: {what}.")
        with self.folder.lock("store", wait=True):
            self.folder.sweep()
            now = store_folder(self.folder.path)
            now.load_spec()
            named: list[tuple[str, bytes | memoryview]] = []
            if now.index(self.spec) is None:
                named.append((files.INDEX, files.index_bytes(index_table(now, self.spec))))
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
    others = [name for name in names if name not in (files.INVENTORY, files.LOCKS) and not name.endswith(".tmp")]
    if others and files.SPEC not in names:
        what = f"{folder.path} must be empty or a label store"
        raise UserError(f"{what}, but holds '{others[0]}'. Give another folder.")


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
