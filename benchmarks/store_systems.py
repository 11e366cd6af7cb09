"""The systems that bench_store.py holds against each other: each writes the same rows and reads them back in batches of
utterances.

A system is a function of a folder that gives `write(rows)` and `opened(epoch)`: it opens what was written and returns
the order of the epoch as batches of utterance numbers, and a reader: batch → the five columns of `Labels`,
concatenated, in the types of `Labels` (32 bits). Orders: `shuffled` is a first epoch in a shuffled order, whichever the
system allows at full speed; `random` one random order for all.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NUM_UNITS = 30_522
BATCH = 64  # utterances
MIXED_RUNS = {"arrow": 4, "zarr": 1}  # hkd's shuffled epoch mixes so many runs at a time: blocks, or whole shards
COLUMNS = ("ids", "logp", "tail", "gold", "gold_logp")
STORED = {"ids": np.uint16, "logp": np.float16, "tail": np.float16, "gold": np.uint16, "gold_logp": np.float16}
GIVEN = {"ids": np.int32, "logp": np.float32, "tail": np.float32, "gold": np.int32, "gold_logp": np.float32}
Columns = dict[str, np.ndarray]
Reader = Callable[[np.ndarray], Columns]  # utterance numbers → columns
Opened = tuple[Iterable[np.ndarray], Reader]
# write runs up to its yield, unmeasured, then on
System = tuple[Callable[["Labels"], Iterator[None]], Callable[[str], Opened]]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The rows, as a writer gets them: utterance u has the positions offset[u] to offset[u + 1]."""

    offset: np.ndarray
    columns: Columns

    @classmethod
    def of(cls, *, offset: np.ndarray, **columns: np.ndarray) -> "Labels":
        """From the columns by name."""
        return cls(offset=offset, columns=columns)

    @classmethod
    def load(cls, path: Path, positions: int, k: int) -> "Labels":
        """The first positions of what make_rows wrote, cut to k."""
        with np.load(path) as data:
            offset = data["offset"]
            columns = {name: data[name][:positions] for name in COLUMNS}
        if k < columns["ids"].shape[1]:  # the rest of the kept mass joins the tail
            mass = np.exp(columns["logp"][:, k:].astype(np.float64)).sum(1) + np.exp(columns["tail"].astype(np.float64))
            columns["tail"] = np.log(mass).astype(np.float32)
            columns |= {name: np.ascontiguousarray(columns[name][:, :k]) for name in ("ids", "logp")}
        return cls(offset=np.append(offset[offset < positions], positions), columns=columns)

    def __len__(self) -> int:
        return len(self.offset) - 1

    @property
    def k(self) -> int:
        return int(self.columns["ids"].shape[1])

    def first(self, num_utterances: int) -> "Labels":
        """The first utterances."""
        offset = self.offset[: num_utterances + 1]
        return Labels(offset=offset, columns={name: column[: offset[-1]] for name, column in self.columns.items()})

    def stored(self) -> Columns:
        """In the types that the others store: 16 bits."""
        return {name: column.astype(STORED[name]) for name, column in self.columns.items()}


def random_batches(num_utterances: int) -> list[np.ndarray]:
    order = np.random.default_rng(0).permutation(num_utterances)
    return [order[a : a + BATCH] for a in range(0, len(order), BATCH)]


def cutter(columns: Columns, offset: np.ndarray, *, widen: bool = True) -> Reader:
    """Cuts batches out of whole columns."""
    bounds = offset.tolist()

    def read(batch: np.ndarray) -> Columns:
        spans = [(bounds[u], bounds[u + 1]) for u in batch.tolist()]
        cut = {name: np.concatenate([column[a:b] for a, b in spans]) for name, column in columns.items()}
        return {name: column.astype(GIVEN[name]) for name, column in cut.items()} if widen else cut

    return read


# hkd ------------------------------------------------------------------------------------------------------------------


def hkd(codec: str, backend: str = "arrow") -> Callable[[Path], System]:
    """Shuffled epoch: the runs (what is decoded together) in random order, a few of them mixed, with a cache of 32
    MB."""

    def system(folder: Path) -> System:
        import torch

        from hkd.labels.format import StoreSpec
        from hkd.labels.store import LabelReader, LabelWriter
        from hkd.units.inventory import UnitInventory

        torch.set_num_threads(1)

        def write(rows: Labels) -> Iterator[None]:
            inventory = UnitInventory(level="subword", symbols=tuple(f"p{i}" for i in range(NUM_UNITS)))
            assert inventory.digest  # known already of one that was loaded
            spec = StoreSpec(
                name="bench", level="subword", inventory=inventory, teacher={}, manifest_digest="", k=rows.k,
                codec=codec, backend=backend, utterances_per_shard=2048,
            )  # fmt: skip
            labels = {row.id: row for row in utterances(rows)}
            yield  # what stands above is the caller's work
            writer = LabelWriter.open(folder, spec, list(labels))
            for shard in writer.pending():
                writer.write_shard(shard, [labels[name] for name in writer.shard_ids(shard)], quality={})
            writer.finish()

        def opened(epoch: str) -> Opened:
            reader = LabelReader.open(folder, cache_bytes=32 << 20 if epoch == "shuffled" else 1 << 40)
            names = list(reader.ids)

            def read(batch: np.ndarray) -> Columns:
                topk = reader.block([names[u] for u in batch.tolist()]).topk
                found = (topk.ids_NK, topk.logp_NK, topk.tail_N, topk.gold_N, topk.gold_logp_N)
                return dict(zip(COLUMNS, found, strict=True))

            if epoch == "random":
                return random_batches(len(names)), read
            return _mixed_runs([len(run) for run in reader.runs()], MIXED_RUNS[backend]), read

        return write, opened

    return system


def utterances(rows: Labels) -> Iterable[Any]:
    """The rows as hkd's writer takes them."""
    from hkd.labels.format import UtteranceLabels
    from hkd.sparse import TopK

    c = rows.columns
    whole = TopK(ids_NK=c["ids"], logp_NK=c["logp"], tail_N=c["tail"], gold_N=c["gold"], gold_logp_N=c["gold_logp"])
    word = np.arange(1000, dtype=np.int32) // 2
    for u, (a, b) in enumerate(itertools.pairwise(rows.offset.tolist())):
        yield UtteranceLabels(
            id=f"utterance-{u:08d}", topk=whole[a:b], word_U=word[: b - a], unit_digest=bytes(8), text_digest=bytes(8)
        )


def _mixed_runs(lengths: list[int], mixed: int) -> list[np.ndarray]:
    random, first = np.random.default_rng(0), np.cumsum([0, *lengths])
    batches = []
    order = random.permutation(len(lengths))
    for a in range(0, len(order), mixed):
        group = random.permutation(np.concatenate([np.arange(first[r], first[r + 1]) for r in order[a : a + mixed]]))
        batches += [group[b : b + BATCH] for b in range(0, len(group), BATCH)]
    return batches


# Others ---------------------------------------------------------------------------------------------------------------


def memory_map(*, widen: bool) -> Callable[[Path], System]:
    """A flat file a column, memory-mapped. widen: to the types that hkd gives; else as stored."""

    def system(folder: Path) -> System:
        def write(rows: Labels) -> Iterator[None]:
            folder.mkdir()
            yield
            for name, column in (rows.stored() | {"offset": rows.offset}).items():
                np.save(folder / f"{name}.npy", column)

        def opened(epoch: str) -> Opened:
            offset = np.load(folder / "offset.npy")
            columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
            return random_batches(len(offset) - 1), cutter(columns, offset, widen=widen)

        return write, opened

    return system


def parquet(folder: Path) -> System:
    """float16, byte-stream-split, zstd; read whole, cut in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(rows: Labels) -> Iterator[None]:
        folder.mkdir()
        yield
        stored = rows.stored()
        columns = {name: pa.array(stored[name]) for name in ("tail", "gold", "gold_logp")}
        for name, dtype in (("ids", np.int16), ("logp", np.float16)):  # Parquet splits no unsigned numbers
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(stored[name].view(dtype).reshape(-1)), rows.k)
        split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("ids", "logp")}
        pq.write_table(
            pa.table(columns), folder / "t.parquet", compression="zstd", use_dictionary=False, column_encoding=split
        )
        np.save(folder / "offset.npy", rows.offset)

    def opened(epoch: str) -> Opened:
        table = pq.read_table(folder / "t.parquet", use_threads=False).combine_chunks()
        offset = np.load(folder / "offset.npy")
        columns = {name: table[name].chunk(0) for name in COLUMNS}
        for name in ("ids", "logp"):
            columns[name] = columns[name].flatten().to_numpy().view(STORED[name]).reshape(int(offset[-1]), -1)
        return random_batches(len(offset) - 1), cutter({n: np.asarray(columns[n]) for n in COLUMNS}, offset)

    return write, opened


def _packed(rows: Labels) -> Iterable[bytes]:
    """An utterance's columns, one after another."""
    stored = rows.stored()
    for a, b in itertools.pairwise(rows.offset.tolist()):
        yield b"".join(stored[name][a:b].tobytes() for name in COLUMNS)


def _unpacked(data: list[bytes], k: int) -> Columns:
    """The columns of a batch of `_packed` utterances."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for item in data:
        n, at = len(item) // (4 * k + 6), 0
        for name in COLUMNS:
            width = k if name in ("ids", "logp") else 1
            column = np.frombuffer(item, STORED[name], n * width, at)
            parts[name].append(column.reshape(n, k) if width > 1 else column)
            at += 2 * n * width
    return {name: np.concatenate(columns).astype(GIVEN[name]) for name, columns in parts.items()}


def webdataset(folder: Path) -> System:
    """A tar member an utterance; a sequential format, so read in its own order into memory and cut from there."""
    import webdataset as wds

    def write(rows: Labels) -> Iterator[None]:
        folder.mkdir()
        yield
        (folder / "k").write_text(str(rows.k))
        with wds.TarWriter(str(folder / "t.tar")) as sink:
            for u, data in enumerate(_packed(rows)):
                sink.write({"__key__": f"{u:08d}", "bin": data})

    def opened(epoch: str) -> Opened:
        k = int((folder / "k").read_text())
        items = [sample["bin"] for sample in wds.WebDataset(str(folder / "t.tar"), shardshuffle=False)]
        return random_batches(len(items)), lambda batch: _unpacked([items[u] for u in batch], k)

    return write, opened


def litdata(folder: Path) -> System:
    """Chunks of 64 MB with zstd, an item an utterance."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    def write(rows: Labels) -> Iterator[None]:
        folder.mkdir()
        yield
        writer = BinaryWriter(str(folder), chunk_bytes=64 << 20, compression="zstd", compression_level="chunk")
        for u, data in enumerate(_packed(rows)):
            writer[u] = {"k": rows.k, "data": data}
        writer.done()
        writer.merge(num_workers=1)

    def opened(epoch: str) -> Opened:
        dataset = StreamingDataset(str(folder))
        k = int(dataset[0]["k"])
        return random_batches(len(dataset)), lambda batch: _unpacked([dataset[int(u)]["data"] for u in batch], k)

    return write, opened


def array_record(folder: Path) -> System:
    """Records of one utterance, zstd."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    def write(rows: Labels) -> Iterator[None]:
        folder.mkdir()
        yield
        (folder / "k").write_text(str(rows.k))
        writer = ArrayRecordWriter(str(folder / "t.array_record"), "group_size:1,zstd")
        for data in _packed(rows):
            writer.write(data)
        writer.close()

    def opened(epoch: str) -> Opened:
        k = int((folder / "k").read_text())
        reader = ArrayRecordReader(str(folder / "t.array_record"))
        return random_batches(reader.num_records()), lambda batch: _unpacked(reader.read(batch.tolist()), k)

    return write, opened


OURS: dict[str, Callable[[Path], System]] = {
    "hkd grid": hkd("grid"),
    "hkd f16": hkd("f16"),
    "hkd grid, zarr": hkd("grid", backend="zarr"),
    "flat memory map": memory_map(widen=True),
    "flat memory map, as stored": memory_map(widen=False),
    "Parquet, byte-stream-split, zstd": parquet,
}
PEERS: dict[str, Callable[[Path], System]] = {  # in an environment of their own: peers.txt
    "litdata, zstd": litdata,
    "webdataset tar": webdataset,
    "array_record, zstd": array_record,
}
