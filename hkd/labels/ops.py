"""Stores made from stores: in another backend or codec, merged, in part, averaged; as a table; and two stores compared.

- Encoding again loses nothing: a codec's own values are its fixed points.
- An average store is a control: every distribution is the teacher's average for that unit, as from a teacher that reads
  no context. A student that learns as much from it as from the teacher itself has learnt no context.
- Comparing spreads a store's tail mass evenly over the units that it did not keep, and compares what lies outside A's
  ids as one lump: an estimate where K < V.

Shape letters: N positions, K kept ids, V units, W = V + 1 (the last column is the tail).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hkd.errors import Progress, UserError, no_progress
from hkd.files import atomic_write, brief, differences, digest_of
from hkd.labels.card import figures, quality_of
from hkd.labels.card import merge as merge_sums
from hkd.labels.codec import layout
from hkd.labels.format import StoreSpec, UtteranceLabels
from hkd.labels.store import LabelReader, LabelWriter
from hkd.remote import same_place
from hkd.sparse import NO_GOLD, TopK
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.tying import Tying, split_senones

MAY_DIFFER = (
    "name", "manifest_digest", "alignment_digest", "num_utterances", "ids_digest", "utterances_per_shard",
    "merged_from",
)  # fmt: skip
EXPORT_UTTERANCES = 256


def utterances_of(reader: LabelReader, ids: Sequence[str]) -> Iterator[UtteranceLabels]:
    """The labels of these utterances, one by one."""
    block = reader.block(ids)
    for b, name in enumerate(ids):
        rows = slice(int(block.offset_B1[b]), int(block.offset_B1[b + 1]))
        yield UtteranceLabels(
            id=name,
            topk=block.topk[rows],
            word_U=block.word_N[rows],
            unit_digest=block.unit_digest_B[b],
            text_digest=block.text_digest_B[b],
        )


def _write(
    out: Path | str,
    spec: StoreSpec,
    sources: Sequence[LabelReader],
    ids: Iterable[str],
    write: Callable[[LabelWriter, int], None],
    *,
    overwrite: bool,
    progress: Progress,
    report: Mapping[str, Any] | None = None,
) -> StoreSpec:
    """Write a store made from others, by `write` of each pending shard but those that another process claims. Raises
    UserError where `out` is one of the others, which `overwrite` would remove."""
    if any(same_place(out, source.path) for source in sources):
        raise UserError(f"OUT must be another folder than the store, but is {out} instead.")
    writer = LabelWriter.open(out, spec, ids, overwrite=overwrite)
    pending = writer.pending()
    for done, shard in enumerate(pending, 1):
        with writer.claim(shard) as mine:
            if mine:
                write(writer, shard)
        progress(done, len(pending))
    writer.finish(report=report)
    return writer.spec


def convert(
    source: Path | str,
    out: Path | str,
    *,
    backend: str | None = None,
    codec: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """Write the store again with another backend or codec; what is not given stays. Resumable like any writer.

    Where only the backend changes, the stored planes are copied, so the way back gives the same files. Raises UserError
    for `out` as the source, and for grid labels that are to become f16 (which would look exact, but is not).
    """
    reader = LabelReader.open(source)
    old = reader.spec
    spec = replace(old, backend=backend or old.backend, codec=codec or old.codec)
    if old.codec != "f16" and spec.codec == "f16":
        rule = f"`codec` must stay {old.codec} for a store in {old.codec}, but is f16 instead"
        raise UserError(f"{rule}: the rounding cannot be taken back. Dump again.")
    same_planes = layout(spec) == layout(old) and spec.codec == old.codec

    def write(writer: LabelWriter, shard: int) -> None:
        quality = (reader.folder.mark(old, shard) or {}).get("quality", {})
        if same_planes:
            file = reader.folder.open_shard(old, shard)
            blocks = [file.planes(block) for block in range(len(file.cuts) - 1)]
            writer.copy_shard(shard, file.utterances, blocks, quality)
        else:
            writer.write_shard(shard, utterances_of(reader, writer.shard_ids(shard)), quality=quality)

    report = reader.folder.report() or None
    return _write(out, spec, [reader], reader.ids, write, overwrite=overwrite, progress=progress, report=report)


def merge(
    sources: Sequence[Path | str], out: Path | str, *, overwrite: bool = False, progress: Progress = no_progress
) -> StoreSpec:
    """Stores of different utterances by the same teacher with the same settings → one. Raises UserError where settings
    differ (naming which), or where an utterance stands in two of them."""
    if len(sources) < 2:
        raise UserError(f"merging needs at least two stores, but got {len(sources)}. Name all of them.")
    readers = [LabelReader.open(path) for path in sources]
    first = readers[0].spec
    of: dict[str, LabelReader] = {}
    for reader in readers:
        for key, left, right in differences(first.identity(), reader.spec.identity()):
            if key.partition(".")[0] not in MAY_DIFFER:
                found = f"{brief(left)} in {sources[0]} and {brief(right)} in {reader.path}"
                raise UserError(f"stores to merge must agree in `{key}`, but it is {found}.")
        for name in reader.ids:
            if name in of:
                found = f"{of[name].path} and {reader.path}"
                raise UserError(f"utterance '{name}' must be in one of the stores, but is in {found}.")
            of[name] = reader

    def joined(digests: Iterable[str]) -> str:
        different = sorted(set(digests))
        return different[0] if len(different) == 1 else digest_of(different)

    spec = replace(
        first,
        manifest_digest=joined(reader.spec.manifest_digest for reader in readers),
        alignment_digest=joined(reader.spec.alignment_digest or "" for reader in readers) or None,
        extra={**first.extra, "merged_from": sorted(reader.spec.digest for reader in readers)},
    )

    def write(writer: LabelWriter, shard: int) -> None:
        ids = writer.shard_ids(shard)
        parts = ((reader, [name for name in ids if of[name] is reader]) for reader in readers)
        writer.write_shard(shard, [row for reader, mine in parts for row in utterances_of(reader, mine)])

    return _write(out, spec, readers, of, write, overwrite=overwrite, progress=progress)


def subset(
    source: Path | str,
    out: Path | str,
    ids: Iterable[str],
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """A store of some of its utterances. Raises UserError for one that is not in it, and for none."""
    reader = LabelReader.open(source)
    wanted = list(ids)
    if not wanted:
        raise UserError(f"the part of {source} must have utterances, but none of those asked for is in it.")
    for name in wanted:
        reader.row(name)

    def write(writer: LabelWriter, shard: int) -> None:
        writer.write_shard(shard, utterances_of(reader, writer.shard_ids(shard)))

    return _write(out, reader.spec, [reader], wanted, write, overwrite=overwrite, progress=progress)


# Averages -------------------------------------------------------------------------------------------------------------

MOST_CELLS = 1 << 25
UTTERANCES_AT_ONCE = 256
GIVEN = "unit"  # what these predictions are conditioned on, as `given` of a teacher


def can_average(spec: StoreSpec) -> bool:
    """Whether a table of V × W fits in memory, and the rows are probabilities and no draws."""
    return spec.selection == "topk" and (len(spec.inventory) + 1) ** 2 <= MOST_CELLS


def summed(reader: LabelReader, ids: Sequence[str]) -> NDArray[np.float64]:
    """sum_VW: Σ of the probabilities over utterances' positions of reference unit v; a position adds 1 to its row."""
    num_units = len(reader.spec.inventory)
    width = num_units + 1
    sum_VW = np.zeros(num_units * width)
    for first in range(0, len(ids), UTTERANCES_AT_ONCE):
        topk = reader.block(ids[first : first + UTTERANCES_AT_ONCE]).topk
        topk = topk[np.flatnonzero(topk.gold_N != NO_GOLD)]
        start_N1 = topk.gold_N.astype(np.int64)[:, None] * width
        cell_N1K = start_N1 + np.pad(topk.ids_NK, ((0, 0), (0, 1)), constant_values=num_units)
        p_N1K = np.exp(np.concatenate([topk.logp_NK, topk.tail_N[:, None]], 1, dtype=np.float64))
        sum_VW += np.bincount(cell_N1K.ravel(), p_N1K.ravel(), minlength=len(sum_VW))
    return sum_VW.reshape(num_units, width)


def average_rows(sum_VW: NDArray[np.float64], *, k: int, temperatures: Sequence[float]) -> TopK:
    """W rows: each unit's average, then the average of all, for a position without a reference unit. A unit that was
    never seen has the average of all plus one position of itself."""
    import torch

    from hkd.topk import select_topk

    num_units = len(sum_VW)
    all_W, unseen = sum_VW.sum(0), np.flatnonzero(sum_VW.sum(1) <= 0)
    row_WW = np.concatenate([sum_VW, all_W[None]])
    row_WW[unseen] = all_W
    row_WW[unseen, unseen] += 1
    with np.errstate(divide="ignore"):
        logit_WW = np.log(row_WW)
    outside_W = torch.arange(num_units + 1) == num_units
    gold_W = torch.cat([torch.arange(num_units), torch.tensor([NO_GOLD])])
    return select_topk(torch.from_numpy(logit_WW), gold_W, k=k, temperatures=temperatures, exclude_V=outside_W)


def average(
    source: Path | str,
    out: Path | str,
    *,
    over: Iterable[str] | None = None,
    k: int | None = None,
    command: str = "",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> StoreSpec:
    """Write the store again with each position's distribution replaced by the average of its reference unit's.

    over: the utterances that count, of those that the store has (default: all). k: ids a row; default: the store's,
    though averages are broader. Extra temperatures are those of the average, not averages over tempered distributions.
    Raises UserError for draws, an inventory too large for a table, or none of `over` in the store.
    """
    reader = LabelReader.open(source)
    old = reader.spec
    if not can_average(old):
        what = f"{len(old.inventory):,} units" if old.selection == "topk" else "draws"
        rule = f"a store to average must hold probabilities of at most {int(MOST_CELLS**0.5) - 1:,} units"
        raise UserError(f"{rule}, but {source} has {what}.")
    ids = list(reader.ids if over is None else (name for name in over if name in reader))
    sum_VW = summed(reader, ids)
    if not sum_VW.any():
        remedy = "Name others, or another split."
        raise UserError(f"the utterances to average over must be in {source} with labels, but none is. {remedy}")
    teacher = {**old.teacher, "name": f"averages of {old.teacher.get('name', '?')}", "given": GIVEN}
    spec = replace(
        old,
        k=k or old.k,
        teacher=teacher,
        extra={**old.extra, "averaged_from": old.digest, "averaged_over": digest_of(sorted(ids))},
        command=command or old.command,
    )
    row_W = average_rows(sum_VW, k=spec.width, temperatures=spec.temperatures)

    def write(writer: LabelWriter, shard: int) -> None:
        rows = utterances_of(reader, writer.shard_ids(shard))
        writer.write_shard(shard, [replace(row, topk=row_W[row.topk.gold_N.astype(np.int64)]) for row in rows])

    return _write(out, spec, [reader], reader.ids, write, overwrite=overwrite, progress=progress)


# A table --------------------------------------------------------------------------------------------------------------

Times = Callable[[str], tuple[NDArray[np.float64], NDArray[np.float64]] | None]


def _columns(reader: LabelReader, names: Sequence[str], times: Times | None) -> pa.RecordBatch:
    """A row an utterance; lists over positions, lists of lists over positions and kept ids."""
    block = reader.block(names)
    topk, offset = block.topk, pa.array(block.offset_B1.astype(np.int32))

    def flat(values_N: Any) -> Any:
        return pa.ListArray.from_arrays(offset, pa.array(values_N))

    def nested(values_NK: Any) -> Any:
        n, k = values_NK.shape
        ends = pa.array(np.arange(n + 1, dtype=np.int32) * k)
        return pa.ListArray.from_arrays(offset, pa.ListArray.from_arrays(ends, pa.array(values_NK.reshape(-1))))

    columns = {"id": pa.array(names, pa.string()), "unit": flat(topk.gold_N), "unit_logp": flat(topk.gold_logp_N)}
    columns |= {"word": flat(block.word_N), "ids": nested(topk.ids_NK)}
    columns |= {"logp": nested(topk.logp_NK), "tail": flat(topk.tail_N)}
    if times is not None:
        found = [times(name) or (None, None) for name in names]
        for i, name in enumerate(("start_s", "stop_s")):
            columns[name] = pa.array([pair[i] for pair in found], pa.list_(pa.float64()))
    if reader.spec.temperatures:
        columns |= {"lse": nested(topk.lse_NJ), "tail_t": nested(topk.tail_NJ)}
    if topk.count_NK is not None:
        columns["count"] = nested(topk.count_NK)
    metadata = {"hkd_label_store": reader.spec.digest, "inventory": "\n".join(reader.spec.inventory.symbols)}
    return pa.record_batch(columns).replace_schema_metadata(metadata)


def export_parquet(
    source: Path | str, out: Path, *, times: Times | None = None, progress: Progress = no_progress
) -> int:
    """Write a store as one Parquet file, decoded; returns the number of utterances. times: id → when each position
    begins and ends, in seconds from the utterance's start; None: not aligned."""
    reader = LabelReader.open(source)
    schema = _columns(reader, [], times).schema
    with atomic_write(out) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for first in range(0, len(reader), EXPORT_UTTERANCES):
            names = list(reader.ids[first : first + EXPORT_UTTERANCES])
            writer.write_batch(_columns(reader, names, times))
            progress(first + len(names), len(reader))
    return len(reader)


# Two stores -----------------------------------------------------------------------------------------------------------

BATCH_UTTERANCES = 128


def lookup(topk: TopK, ids_NK: NDArray[np.int32], num_units: int) -> NDArray[np.float64]:
    """log-probabilities that `topk` gives to other ids (N, K'): its own where kept, else the evenly spread tail."""
    n, k = topk.ids_NK.shape
    key_NK = np.arange(n, dtype=np.int64)[:, None] * num_units + topk.ids_NK
    order = np.argsort(key_NK, axis=None, kind="stable")
    keys, values = key_NK.reshape(-1)[order], topk.logp_NK.reshape(-1)[order].astype(np.float64)
    wanted = np.arange(n, dtype=np.int64)[:, None] * num_units + ids_NK
    place = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    spread_N = topk.tail_N.astype(np.float64) - np.log(max(1, num_units - k))
    return np.where(keys[place] == wanted, values[place], spread_N[:, None])


def kl(a: TopK, b: TopK, num_units: int) -> NDArray[np.float64]:
    """Estimated KL(a ‖ b) of every position, in nats; ∞ where b gives a unit no mass that a gives some."""
    logp_NK, logq_NK = a.logp_NK.astype(np.float64), lookup(b, a.ids_NK, num_units)
    p_NK, tail_N = np.exp(logp_NK), np.exp(a.tail_N.astype(np.float64))
    total_N = p_NK.sum(1) + tail_N
    with np.errstate(invalid="ignore", divide="ignore"):
        kept_N = np.where(p_NK > 0, p_NK * (logp_NK - logq_NK), 0).sum(1)
        rest_N = np.maximum(1 - np.exp(logq_NK).sum(1), 1e-12)
        lump_N = np.where(tail_N > 0, tail_N * (a.tail_N - np.log(rest_N)), 0)
        return np.asarray(np.maximum((kept_N + lump_N) / total_N - np.log(total_N), 0))


def folded(topk: TopK, phone_of_V: NDArray[np.int32], num_phones: int) -> TopK:
    """Senone rows → rows of all phones: the kept senones' mass by phone, and the tail spread evenly over the phones
    that have no kept senone."""
    n = len(topk)
    p_NQ = np.zeros((n, num_phones))
    np.add.at(p_NQ, (np.arange(n)[:, None], phone_of_V[topk.ids_NK]), np.exp(topk.logp_NK.astype(np.float64)))
    not_kept_NQ, tail_N1 = p_NQ == 0, np.exp(topk.tail_N.astype(np.float64))[:, None]
    p_NQ += not_kept_NQ * tail_N1 / np.maximum(1, not_kept_NQ.sum(1, keepdims=True))
    with np.errstate(divide="ignore"):
        logp_NQ = np.log(p_NQ / p_NQ.sum(1, keepdims=True))
    order_NQ = np.argsort(-logp_NQ, 1, kind="stable")
    gold_N = np.where(topk.gold_N >= 0, phone_of_V[topk.gold_N], NO_GOLD)
    return TopK(
        ids_NK=order_NQ.astype(np.int32),
        logp_NK=np.take_along_axis(logp_NQ, order_NQ, 1).astype(np.float32),
        tail_N=np.full(n, -np.inf, np.float32),
        gold_N=gold_N.astype(np.int32),
        gold_logp_N=np.where(gold_N >= 0, logp_NQ[np.arange(n), gold_N], -np.inf).astype(np.float32),
    )


def _pairs(
    a: LabelReader, b: LabelReader, names: Sequence[str], tying: Tying | None
) -> Iterator[tuple[int, TopK, TopK]]:
    """(number of utterances, rows of A, rows of B at the same positions)."""
    left, right = a.block(names), b.block(names)
    if tying is None:
        yield len(names), left.topk, right.topk
        return
    for number in range(len(names)):
        senones, phones = left.utterance(number), right.utterance(number)
        phone_P, place_U, _ = split_senones(senones.gold_N, tying.phone_of_senone_V, tying.state_of_senone_V)
        if np.array_equal(phone_P, phones.gold_N):
            yield 1, folded(senones, tying.phone_of_senone_V, len(b.spec.inventory)), phones[place_U]


def _agreement(left: TopK, right: TopK, num_units: int) -> dict[str, float]:
    """Sums over positions."""
    ids_NK = np.sort(np.concatenate([left.ids_NK, right.ids_NK], axis=1), axis=1)
    return {
        "positions": len(left),
        "kl_ab": float(kl(left, right, num_units).sum()),
        "kl_ba": float(kl(right, left, num_units).sum()),
        "top1_agreement": float((left.ids_NK[:, 0] == right.ids_NK[:, 0]).sum()),
        "topk_overlap": float((ids_NK[:, 1:] == ids_NK[:, :-1]).sum()) / min(left.k, right.k),
    }


def compare(
    path_a: Path | str, path_b: Path | str, *, tying: Tying | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Figures of two stores on the utterances that both hold with the same unit sequence.

    `tying`: A holds senones of it and B its phones: A's rows are folded to phones, B's are repeated for each state. The
    two need not be equal, but labels of other units, or shifted ones, show as agreement near chance. Raises UserError
    for other inventories, draws, or no utterance that both have.
    """
    a, b = LabelReader.open(path_a), LabelReader.open(path_b)
    found = [reader.spec.inventory.digest for reader in (a, b)]
    wanted = [found[0]] * 2 if tying is None else [tying.inventories[level].digest for level in (SENONE, MONOPHONE)]
    if found != wanted:
        what = "one unit inventory" if tying is None else "the senones and the phones of the project's acoustic model"
        raise UserError(f"stores to compare must have {what}, but have those of the digests {found[0]} and {found[1]}.")
    if "sample" in (a.spec.selection, b.spec.selection):
        raise UserError("stores to compare must hold top-k rows, but one holds samples.")
    in_both = [name for name in a.ids if name in b]
    same = [name for name in in_both if tying is not None or a.unit_digest(name) == b.unit_digest(name)]
    utterances, sums, of_a, of_b = 0, defaultdict[str, float](float), [], []
    for first in range(0, len(same), BATCH_UTTERANCES):
        for count, left, right in _pairs(a, b, same[first : first + BATCH_UTTERANCES], tying):
            utterances += count
            for name, value in _agreement(left, right, len(b.spec.inventory)).items():
                sums[name] += value
            of_a.append(quality_of(left))
            of_b.append(quality_of(right))
        progress(min(first + BATCH_UTTERANCES, len(same)), len(same))
    if not utterances:
        rule = "stores to compare must share utterances with the same units"
        raise UserError(f"{rule}, but {path_a} and {path_b} share none.")
    positions = int(sums.pop("positions"))
    return {
        "utterances": utterances,
        "only_in_a": len(a) - len(in_both),
        "only_in_b": len(b) - len(in_both),
        "other_units": len(in_both) - utterances,
        "positions": positions,
        **{name: value / max(1, positions) for name, value in sums.items()},
        "a": {"teacher": a.spec.teacher.get("name"), **figures(merge_sums(of_a))},
        "b": {"teacher": b.spec.teacher.get("name"), **figures(merge_sums(of_b))},
    }
