"""The table of the results: all parts of the corpus and all finished seeds together, each pair of runs compared on the
seeds that both have.

    python pipelines/hybrid/pooled.py prompts

Intervals and p: bootstrap by speaker where there are ten or more, else by utterance; p is two-sided and paired.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hkd.evaluate.score import bootstrap_interval, paired_bootstrap

HERE = Path(__file__).parent
AGAINST = (
    "none",
    "hard-heads",
    "interpolation",
    "interpolation-heavy",
    "hierarchical",
    "hierarchical-average",
    "soft-average",
)
BY_SPEAKER = 10


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A configuration's finished seeds: errors of every utterance by seed, words by utterance, and the block of
    each."""

    errors: Mapping[int, Sequence[int]]
    words: Sequence[int]
    blocks: Sequence[str] | None

    def pooled(self, seeds: Sequence[int]) -> tuple[list[int], list[int]]:
        """Errors and words of each utterance over these seeds."""
        return np.sum([self.errors[seed] for seed in seeds], axis=0).tolist(), [len(seeds) * n for n in self.words]


def cells(rows: Sequence[Mapping[str, Any]], search: str) -> dict[str, Cell]:
    """The configurations by name; a seed counts where all parts of the corpus are there."""
    parts = {row["part"] for row in rows}
    found: dict[str, dict[int, dict[str, tuple[int, int]]]] = {}
    have: dict[tuple[str, int], set[object]] = {}
    speakers: dict[str, str] = {}
    for row in rows:
        if row["search"] == search:
            name, _, seed = str(row["run"]).removeprefix("hybrid-").rpartition("-seed")
            have.setdefault((name, int(seed)), set()).add(row["part"])
            counts = {u: (words, errors) for u, (_, words, errors) in row["utterances"].items()}
            found.setdefault(name, {}).setdefault(int(seed), {}).update(counts)
            speakers |= row.get("speakers", {})
    blocks = len(set(speakers.values())) >= BY_SPEAKER
    table = {}
    for name, by_seed in found.items():
        whole = {seed: counts for seed, counts in by_seed.items() if have[name, seed] == parts}
        if whole:
            ids = sorted(next(iter(whole.values())))
            table[name] = Cell(
                errors={seed: [counts[u][1] for u in ids] for seed, counts in sorted(whole.items())},
                words=[next(iter(whole.values()))[u][0] for u in ids],
                blocks=[speakers[u] for u in ids] if blocks else None,
            )
    return table


def lines(table: Mapping[str, Cell]) -> Iterator[str]:
    """A Markdown row a configuration: WER, interval, and the difference to each of AGAINST."""
    against = [name for name in AGAINST if name in table]
    yield f"| run | seeds: WER % | WER % | 95 % interval | {' | '.join(f'against {name} (p)' for name in against)} |"
    yield f"| :-- | :-- | --: | --: | {' | '.join('--:' for _ in against)} |"
    for name, cell in table.items():
        errors, words = cell.pooled(list(cell.errors))
        by_seed = [f"{100 * sum(of) / sum(cell.words):.1f}" for of in cell.errors.values()]
        found = bootstrap_interval(errors, words, group_N=cell.blocks)
        interval = f"{100 * found.low:.1f}–{100 * found.high:.1f}" if found is not None else "–"
        compared = [difference(cell, table[other]) if other != name else "–" for other in against]
        yield (
            f"| {name} | {', '.join(by_seed)} | {100 * sum(errors) / sum(words):.2f} | {interval} | "
            f"{' | '.join(compared)} |"
        )


def difference(a: Cell, b: Cell) -> str:
    """WER of a − that of b in points, in per cent of b's, and p, over the seeds that both have."""
    seeds = sorted(a.errors.keys() & b.errors.keys())
    if not seeds:
        return ""
    (errors_a, words), (errors_b, _) = a.pooled(seeds), b.pooled(seeds)
    found = paired_bootstrap(errors_a, errors_b, words, group_N=a.blocks)
    relative = 100 * (sum(errors_a) / sum(errors_b) - 1)
    return (
        f"{100 * (sum(errors_a) - sum(errors_b)) / sum(words):+.2f}, {relative:+.1f} % "
        f"({f'{max(found.p, 0.001):.3f}' if found is not None else '–'})"
    )


def main(name: str) -> None:
    """Print a table a way of search."""
    rows = [json.loads(line) for line in (HERE / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    for search in dict.fromkeys(row["search"] for row in rows):
        table = cells(rows, search)
        if table:
            counted = next(iter(table.values()))
            print(f"Search with the {search}: {len(counted.words)} utterances, {sum(counted.words):,} words.\n")
            print("\n".join(lines(table)), end="\n\n")


if __name__ == "__main__":
    main(sys.argv[1])
