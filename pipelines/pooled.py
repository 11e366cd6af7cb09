"""The table of results that were collected in a file: all parts of the corpus and all finished seeds together, each
pair of runs compared on the seeds that both have.

    python pipelines/pooled.py pipelines/hybrid/results/prompts.jsonl none hard-heads interpolation hierarchical
    python pipelines/pooled.py pipelines/ablation/results/speakers.jsonl none hard-heads interpolation-heavy
    python pipelines/pooled.py pipelines/text/results/fresh.jsonl --add runs/text --part fresh self-conditioned text-ctc
    python pipelines/pooled.py pipelines/text/results/fresh.jsonl --beside pipelines/ablation/results/speakers.jsonl \\
        --part fresh none hard-heads

A line of the file is a student read in one way: hypothesis, words and errors of each utterance. `--add` puts the
evaluations of a work folder of `hkd run` there which the file lacks, so that seeds of several machines come together;
`--beside` reads a second file for comparisons. With `--part` one part of the corpus counts, else a seed counts where it
has all. Intervals and p: bootstrap by speaker where there are ten or more, else by utterance; p: two-sided, paired.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hkd.evaluate.score import bootstrap_interval, paired_bootstrap, read_result, score_all, tags_of

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
    for row in rows:  # one of a part's rows is enough to tell its speakers
        speakers |= row.get("speakers", {})
        if row["search"] == search:
            name, _, seed = str(row["run"]).removeprefix("hybrid-").rpartition("-seed")
            have.setdefault((name, int(seed)), set()).add(row["part"])
            counts = {u: (words, errors) for u, (_, words, errors) in row["utterances"].items()}
            found.setdefault(name, {}).setdefault(int(seed), {}).update(counts)
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


def lines(table: Mapping[str, Cell], against: Sequence[str]) -> Iterator[str]:
    """A Markdown row a configuration: WER, interval, and the difference to each of `against`."""
    against = [name for name in against if name in table]
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


def collected(work: Path, split: str, part: str) -> Iterator[dict[str, Any]]:
    """The evaluations of a split in a work folder, as rows of the file."""
    for run in sorted((work / "runs").iterdir()):
        plain = [""] if (run / f"eval-{split}.json").exists() else []
        for tag in [*plain, *tags_of(run, split)]:
            report = read_result(run, split, tag)
            scores = score_all(report.hypotheses)
            counts = zip(scores["wer"].tokens_N.tolist(), scores["wer"].errors_N.tolist(), strict=True)
            rows = list(zip(report.hypotheses, counts, strict=True))
            yield {
                "part": part, "run": run.name, "search": tag or report.decoder["name"],
                "per": round(100 * scores["per"].rate, 2),
                "utterances": {u.id: [u.hypothesis, *count] for u, count in rows},
                "speakers": {u.id: u.speaker for u, _ in rows if u.speaker is not None},
            }  # fmt: skip


def main() -> None:
    """Print a table a way of search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the results")
    parser.add_argument("against", nargs="*", help="configurations that the others are compared with")
    parser.add_argument("--add", type=Path, metavar="WORK", help="a work folder whose evaluations the file may lack")
    parser.add_argument("--split", default="test", help="of --add (default: test)")
    parser.add_argument("--part", help="only this part of the corpus; what --add calls the split (default: as it is)")
    parser.add_argument("--beside", type=Path, metavar="FILE", help="more results, to compare with")
    arguments = parser.parse_intermixed_args()
    rows = [json.loads(line) for line in arguments.file.open(encoding="utf-8")] if arguments.file.exists() else []
    if arguments.add is not None:
        done = {(row["part"], row["run"], row["search"]) for row in rows}
        found = collected(arguments.add, arguments.split, arguments.part or arguments.split)
        new = [row for row in found if (row["part"], row["run"], row["search"]) not in done]
        with arguments.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        rows += new
    if arguments.beside is not None:
        rows += map(json.loads, arguments.beside.open(encoding="utf-8"))
    rows = [row for row in rows if arguments.part in (None, row["part"])]
    for search in dict.fromkeys(row["search"] for row in rows):
        table = cells(rows, search)
        if table:
            counted = next(iter(table.values()))
            print(f"Search with the {search}: {len(counted.words)} utterances, {sum(counted.words):,} words.\n")
            print("\n".join(lines(table, arguments.against)), end="\n\n")


if __name__ == "__main__":
    main()
