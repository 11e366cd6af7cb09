"""Makes the golden label stores beside this file. Run once a format version; today's readers must read what it wrote
for ever.

    python tests/golden/make_label_stores.py

Each folder label-store-1.0/NAME is a store, and expected.json beside it has every number that a reader must give.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hkd.labels.format import StoreSpec
from hkd.sparse import TopK
from hkd.testing.store import random_rows, spec_for, write_store

LENGTHS = [3, 0, 7, 12, 1, 30, 2, 2, 5]
KINDS: dict[str, dict[str, Any]] = {
    "grid-arrow": {},
    "f16-arrow": {"codec": "f16", "temperatures": (2.0, 0.5)},
    "grid-zarr": {"backend": "zarr"},
    "sample-arrow": {"selection": "sample", "k": 5},
    "dense-arrow": {"k": 50, "step": 1 / 16},
}


def rows_as_json(topk: TopK, word_N: Any) -> dict[str, Any]:
    """Exact: floats as hex."""

    def exact(values: Any) -> list[str]:
        return [float(value).hex() for value in np.asarray(values).reshape(-1)]

    result: dict[str, Any] = {
        "unit": topk.ids_NK.reshape(-1).tolist(),
        "logp": exact(topk.logp_NK),
        "tail": exact(topk.tail_N),
    }
    result |= {"gold": topk.gold_N.tolist(), "gold_logp": exact(topk.gold_logp_N), "word": word_N.tolist()}
    result |= {"lse_t": exact(topk.lse_NJ), "tail_t": exact(topk.tail_NJ)}
    if topk.count_NK is not None:
        result["count"] = topk.count_NK.reshape(-1).tolist()
    return result


def spec_of(kind: str) -> StoreSpec:
    """The spec of a golden store."""
    return spec_for(**{"name": kind, "hkd_version": "0.1.0", "command": "make_label_stores.py", **KINDS[kind]})


def main() -> None:
    folder = Path(__file__).parent / "label-store-1.0"
    for kind in KINDS:
        if (folder / kind).exists():
            print(f"{kind}: there already, left")
            continue
        spec = spec_of(kind)
        reader = write_store(folder / kind, spec, random_rows(spec, LENGTHS, seed=20))
        expected = {}
        for name in reader.ids:
            block = reader.block([name])
            expected[name] = rows_as_json(block.topk, block.word_N)
        (folder / f"{kind}.expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8")
        print(kind)


if __name__ == "__main__":
    main()
