"""The cells of a table that its results lack, one after another: seed by seed, in each seed cell by cell, each cell on
all parts of the corpus.

    python pipelines/hybrid/cells.py prompts
    python pipelines/hybrid/cells.py speakers --corpus PATH/speechocean762/train --text tatoeba-en.txt

`prompts` (prompts.toml): five folds; a fold's test part is a fifth of the prompts, an eighth of the others is its dev,
and the same words never stand in two parts. `speakers` (../ablation/hybrid.toml): the first test's 12 speakers and the
25 of fresh_speakers.py, each with the other speakers' speech for training. A row of results/TABLE.jsonl is a student
read in one way: hypothesis, words and errors of each utterance. Stopped and started again, on this machine or another,
it goes on; a cell whose rows are there is not trained again. A search graph is built once for all students of a part,
which share senones, lexicon and priors.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hkd.config import build, merge, parse_overrides
from hkd.corpora import prepare
from hkd.corpora.prepare import GROUPS
from hkd.decode.graph import HybridConfig, HybridSearch
from hkd.decode.recogniser import Recogniser
from hkd.errors import no_progress
from hkd.evaluate.decoding import DecodedSplit, EvaluateConfig, decode, features_on_disk
from hkd.evaluate.score import score_words
from hkd.manifest import Manifest, assign_splits, read, write
from hkd.pipeline.recipe import Recipe, load_recipe, stages_of, write_project
from hkd.pipeline.runner import Watcher, needed, run_stages
from hkd.pipeline.settings import EvaluateSettings

HERE = Path(__file__).parent
PIPELINES = {"prompts": HERE / "prompts.toml", "speakers": HERE.parent / "ablation" / "hybrid.toml"}
NUM_FOLDS = 5
NUM_DEV = 8  # one of so many of a fold's other prompts is dev
ACOUSTIC, PRIOR = (0.07, 0.1, 0.14, 0.2), (0.3, 0.6)  # the scales tried on dev
OF_DEV = ", scales of dev"


class Lines(Watcher):
    """A line when a stage has ended."""

    def finished(self, stage: str, summary: str, seconds: float) -> None:
        print(f"{stage}: {summary} ({seconds:.0f} s)", flush=True)


def with_splits(whole: Manifest, split: Mapping[str, str | None]) -> Manifest:
    """The manifest with the splits by id."""
    return Manifest(replace(u, extra=MappingProxyType({**u.extra, "split": split[u.id]})) for u in whole)


def folds(whole: Manifest) -> dict[str, Manifest]:
    """The manifest with the splits of each fold: by the SHA-256 of the words, as `assign_splits` deals."""
    dealt = assign_splits(whole, dict.fromkeys(map(str, range(NUM_FOLDS)), 1.0), by=GROUPS["text"])
    found = {}
    for fold in map(str, range(NUM_FOLDS)):
        rest = Manifest(u for u in dealt if u.split != fold)
        kept = {u.id: u.split for u in assign_splits(rest, {"train": NUM_DEV - 1.0, "dev": 1.0}, by=GROUPS["text"])}
        found[fold] = with_splits(whole, {u.id: kept.get(u.id, "test") for u in whole})
    return found


def speakers(first: Path, fresh: Path) -> dict[str, Manifest]:
    """The splits of the ablation's first test, and of its fresh speakers."""
    subprocess.run(
        [sys.executable, str(HERE.parent / "ablation" / "fresh_speakers.py"), str(first), str(fresh)], check=True
    )
    return {"first": read(first), "fresh": read(fresh)}


class Reader:
    """Reads the students of one part: a graph for each word n-gram, kept."""

    def __init__(self, work: Path, recipe: Recipe) -> None:
        self.work, self.recipe = work, recipe
        self.graphs: dict[str, tuple[list[int], HybridSearch]] = {}

    def rows(self, run: str, *, on_dev: bool) -> list[dict[str, Any]]:
        """A row for each way of the pipeline; with scales as they are set, or as dev chooses them for this student."""
        found = []
        for tag in ways(self.recipe):
            table = merge(self.recipe.table("evaluate"), self.recipe.table("searches").get(tag, {}))
            settings = build(EvaluateSettings, table, where=tag)
            config, lm = settings.config, settings.lm
            recogniser = Recogniser(
                self.work / "runs" / run / "model", search=config.search, lm=str(self.work / str(lm))
            )
            frames_V = recogniser.senone_frames()
            prior_V, search = self.graphs.get(str(lm)) or (frames_V, recogniser.search)
            assert prior_V == frames_V
            self.graphs[str(lm)] = prior_V, search
            recogniser.search = search
            search.config = self.chosen(recogniser, config) if on_dev else config.search.hybrid
            decoded = self.decoded(recogniser, config, "test")
            scores = score_words([u.reference for u in decoded.rows], [u.hypothesis for u in decoded.rows])
            counts = zip(decoded.rows, scores.tokens_N.tolist(), scores.errors_N.tolist(), strict=True)
            row: dict[str, Any] = {"search": tag + OF_DEV if on_dev else tag, "scales": asdict(search.config)}
            row["rtf"] = round(decoded.seconds.total / sum(u.seconds for u in decoded.rows), 4)
            row["utterances"] = {u.id: [u.hypothesis, words, errors] for u, words, errors in counts}
            if len({u.speaker for u in decoded.rows}) > 1:
                row["speakers"] = {u.id: u.speaker for u in decoded.rows}
            found.append(row)
            print(f"{run}, {row['search']}: WER {100 * scores.rate:.1f} %", flush=True)
        return found

    def chosen(self, recogniser: Recogniser, config: EvaluateConfig) -> HybridConfig:
        """The scales with the fewest words wrong on dev (ties: the smaller)."""

        def wrong(scales: tuple[float, float]) -> float:
            recogniser.search.config = replace(config.search.hybrid, acoustic_scale=scales[0], prior_scale=scales[1])
            rows = self.decoded(recogniser, config, "dev").rows
            return score_words([u.reference for u in rows], [u.hypothesis for u in rows]).rate

        acoustic, prior = min(product(ACOUSTIC, PRIOR), key=wrong)
        return replace(config.search.hybrid, acoustic_scale=acoustic, prior_scale=prior)

    def decoded(self, recogniser: Recogniser, config: EvaluateConfig, split: str) -> DecodedSplit:
        """The split as the student hears it."""
        part = read(self.work / "manifest.jsonl").split(split)
        features = features_on_disk(
            recogniser, part, str(self.work / config.features_cache) if config.features_cache else ""
        )
        return decode(
            recogniser, part, batch_seconds=config.batch_seconds, n_best=0, progress=no_progress, features=features
        )


def ways(recipe: Recipe) -> list[str]:
    """The tags of the pipeline's ways to read; the usual one is with the trigram."""
    return ["trigram", *recipe.table("searches")]


def train(recipe: Recipe, work: Path, run: str) -> None:
    """One student, and the word n-grams for reading it."""
    stages = stages_of(recipe)
    write_project(recipe, work)
    read_by = [name for name in stages if name.split("@")[0] == f"evaluate-{run}"]
    wanted = {name: stage for name, stage in needed(stages, read_by).items() if name not in read_by}
    run_stages(work, wanted, jobs=min(recipe.jobs, os.cpu_count() or 1), watcher=Lines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=PIPELINES)
    parser.add_argument("--corpus", default="asterisk")
    parser.add_argument("--text", default="fortunes")
    parser.add_argument("--work", type=Path, help="default: runs/hybrid-TABLE")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="*", help="which, and in which order (default: all, as in the TOML)")
    parser.add_argument(
        "--scales",
        choices=("set", "dev"),
        help="of the search: as set (prompts), or chosen on dev for each student (speakers)",
    )
    parser.add_argument("--set", dest="assignments", nargs="*", default=[], help="settings, as of `hkd run`")
    arguments = parser.parse_args()
    pipeline, work = PIPELINES[arguments.table], arguments.work or Path("runs") / f"hybrid-{arguments.table}"
    on_dev = (arguments.scales or {"prompts": "set", "speakers": "dev"}[arguments.table]) == "dev"
    whole = prepare(arguments.corpus, work / "whole", overwrite=True)
    parts = (
        folds(whole)
        if arguments.table == "prompts"
        else speakers(work / "whole" / "manifest.jsonl", work / "fresh.jsonl")
    )
    shared = merge({"prepare": {"text": arguments.text, "kind": "hkd"}}, parse_overrides(arguments.assignments))
    recipe_of, readers = {}, {}
    for part, manifest in parts.items():
        path = work / f"{part}.jsonl"
        write(path, manifest)
        recipe_of[part] = load_recipe(pipeline, merge(shared, {"prepare": {"corpus": str(path.absolute())}}))
        readers[part] = Reader(work / part, recipe_of[part])
    results = HERE / "results" / f"{arguments.table}.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = {(row["part"], row["run"], row["search"]) for row in map(json.loads, lines)}
    known = recipe_of[next(iter(parts))]
    names = [tag + OF_DEV if on_dev else tag for tag in ways(known)]
    chosen = arguments.runs or list(dict.fromkeys(run.rsplit("-seed", 1)[0] for run in known.table("runs")))
    for run, part in ((f"{name}-seed{seed}", part) for seed in arguments.seeds for name in chosen for part in parts):
        if done.issuperset((part, run, name) for name in names):
            continue
        print(f"{run} on {part}", flush=True)
        train(recipe_of[part], work / part, run)
        rows = readers[part].rows(run, on_dev=on_dev)
        with results.open("a", encoding="utf-8") as file:  # at once: no cell is there in part
            file.write(
                "".join(json.dumps({"part": part, "run": run, **row}, ensure_ascii=False) + "\n" for row in rows)
            )


if __name__ == "__main__":
    main()
