"""Label stores for a prepared folder from a made-up teacher: right units, right digests, probabilities out of thin air.

The teacher is sure of the gold unit by a random amount and spreads the rest over other units: enough for what trains on
labels, and made at once. Shape letters: N positions, K kept ids, V units.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd import manifest as manifests
from hkd.align.alignment import Alignment, sequence_digest
from hkd.files import digest_of
from hkd.labels.format import StoreSpec, UtteranceLabels
from hkd.labels.store import LabelReader, LabelWriter
from hkd.sparse import TopK
from hkd.units.inventory import LEVELS, SUBWORD, UnitInventory
from hkd.units.sequences import Units
from hkd.units.text import text_digest, words


def made_up_topk(gold_N: NDArray[np.int32], *, num_units: int, k: int, seed: int) -> TopK:
    """Rows with the gold unit first, K − 1 others, and a tail where K < V; sums to 1."""
    random = np.random.default_rng(seed)
    n, k = len(gold_N), min(k, num_units)
    shift_NK = (
        np.stack([np.sort(random.choice(num_units - 1, k - 1, replace=False)) for _ in range(n)]) + 1
        if k > 1 and n
        else None
    )
    ids_NK = (
        gold_N[:, None]
        if shift_NK is None
        else np.concatenate([gold_N[:, None], (gold_N[:, None] + shift_NK) % num_units], 1)
    )
    sure_N1 = random.uniform(0.3, 0.9, (n, 1))
    rest_NK = np.sort(random.exponential(size=(n, k)), 1)[:, ::-1]  # the last is the tail's where there is one
    rest_NK = rest_NK[:, : k - 1] if k == num_units else rest_NK
    rest_NK = (1 - sure_N1) * rest_NK / rest_NK.sum(1, keepdims=True)
    p_NK = np.concatenate([sure_N1, rest_NK[:, : k - 1]], 1)
    tail_N = np.log(rest_NK[:, k - 1]) if k < num_units else np.full(n, -np.inf)
    order_NK = np.argsort(-p_NK, 1, kind="stable")
    return TopK(
        ids_NK=np.take_along_axis(ids_NK, order_NK, 1).astype(np.int32),
        logp_NK=np.log(np.take_along_axis(p_NK, order_NK, 1)).astype(np.float32),
        tail_N=tail_N.astype(np.float32),
        gold_N=gold_N.astype(np.int32),
        gold_logp_N=np.log(sure_N1[:, 0]).astype(np.float32),
    )


def label_folder(
    folder: Path,
    *,
    levels: Iterable[str] = LEVELS,
    k: int | Mapping[str, int] = 8,
    manifest: str = "manifest.jsonl",
    shards: str = "shards",
    ids: Iterable[str] | None = None,
    inventory: UnitInventory | None = None,
    **spec_changes: Any,
) -> dict[str, LabelReader]:
    """Write a store for each level into folder/shards. inventory: a foreign one for subwords, whose pieces are then
    whole words.

    Utterances without sound have the units that their words give, the others those of the alignment.
    """
    whole = manifests.read(folder / manifest)
    alignment = Alignment(folder / "alignment.arrow")
    units = Units(folder / "units")
    wanted = set(ids) if ids is not None else {u.id for u in whole if u.id in alignment or u.audio_filepath is None}
    readers = {}
    for level in levels:
        own = units.spelling(SUBWORD).inventory if level == SUBWORD else alignment.inventories[level]
        symbols = inventory if inventory is not None and level == SUBWORD else own
        rows = {}
        for number, utterance in enumerate(sorted((u for u in whole if u.id in wanted), key=lambda u: u.id)):
            said = words(utterance.text)
            if symbols is not own:
                word_U = np.arange(len(said), dtype=np.int32)
                unit_U = np.array([int(digest_of([w])[:6], 16) % len(symbols) for w in said], np.int32)
            elif level == SUBWORD or utterance.id not in alignment:
                unit_U, word_U = units.encode(said, level)
            else:
                unit_U = alignment.positions(utterance.id, level).unit_U
                word_U = np.zeros(len(unit_U), np.int32)
            kept = k if isinstance(k, int) else k[level]
            rows[utterance.id] = UtteranceLabels(
                id=utterance.id,
                topk=made_up_topk(unit_U, num_units=len(symbols), k=kept, seed=number),
                word_U=word_U,
                unit_digest=sequence_digest(unit_U),
                text_digest=text_digest(said),
            )
        settings = {
            "teacher": {"name": "made-up", "kind": "ngram", "direction": "both", "digest": "0" * 64},
            **spec_changes,
        }
        kept = k if isinstance(k, int) else k[level]
        spec = StoreSpec(name=level, level=level, inventory=symbols, manifest_digest=whole.digest, k=kept, **settings)
        writer = LabelWriter.open(folder / shards / level, spec, rows)
        for shard in writer.pending():
            writer.write_shard(shard, [rows[name] for name in writer.shard_ids(shard)])
        writer.finish()
        readers[level] = LabelReader.open(folder / shards / level)
    return readers
