"""A pipeline's TOML → stages.

    title, jobs               what it is called; how many stages run side by side
    base = "FILE"             a pipeline beside it whose tables come first; what this one says wins, key by key
    seeds = [0, 1, 2]         every run once a seed, NAME-seed0 ...; a run's own `seeds` win
    [prepare] [units] [align] corpus → manifest → inventories → alignment; [align] from = "kaldi" and path = "..." take another tool's
    [tie]                     senones of our own instead of the aligner's (settings of `hkd units tie`)
    [words]                   a word n-gram for search, lm/words.arpa (settings of `hkd lm words`)
    [ngrams.NAME]             another one, lm/NAME.arpa: what differs from [words]
    [lm.NAME]                 a unit LM (settings of `hkd lm train`)
    [dump.NAME]               a label store (settings of `hkd teacher-dump`): lm = "lm/NAME" waits for that LM
    [train]                   what all runs share
    [runs.NAME]               a run: what differs from [train]
    [evaluate]                how all runs are scored on [report].split; lm = "lm/words.arpa" beside a hybrid student
    [searches.TAG]            another way to decode: runs = [...] and settings of [evaluate]; its rows are RUN@TAG
    [report]                  the page, where there are runs: report.html; report-dev.html for another split than test

Every table is checked against its component's config before anything starts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.config import PROJECT_FILE, merge, read_toml, to_table, to_toml
from hkd.errors import UserError
from hkd.evaluate.result import result_paths
from hkd.evaluate.table import configuration_of
from hkd.files import write_bytes
from hkd.pipeline import actions
from hkd.pipeline.actions import CHECKS, OWN_WORDS, ngram_path
from hkd.pipeline.aligning import aligner_of
from hkd.pipeline.runner import Stage

SINGLE = ("prepare", "units", "align", "tie", "words", "train", "evaluate", "report")
SEVERAL = ("ngrams", "lm", "dump", "runs", "searches")
SHARED = {"runs": "train", "ngrams": "words"}  # the single table whose settings those of several start from
OPTIONAL = ("tie",)  # single tables that do nothing where they are not there


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A pipeline as read: its tables, checked."""

    name: str  # of its file
    title: str
    jobs: int
    tables: Mapping[str, Any]

    def table(self, name: str) -> Mapping[str, Any]:
        """The table of that name, empty where there is none."""
        table: Mapping[str, Any] = self.tables.get(name, {})
        return table

    @property
    def report(self) -> str:
        """The stage that makes the page, and the page's name: of its own for each file and split, as several may share a working folder."""
        split = actions.ReportSettings(**self.table("report")).split
        return "-".join(["report", *([self.name] if self.name != "pipeline" else []), *([split] if split != "test" else [])])


def load_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Read `path` (a folder's pipeline.toml, or the file) with overrides. Raises UserError for whatever does not fit, before any work."""
    file = path / "pipeline.toml" if path.is_dir() else path
    tables = merge(_with_base(file), overrides)
    title, jobs, seeds = tables.pop("title", path.name), tables.pop("jobs", 1), tables.pop("seeds", [])
    for name in tables:
        if name not in SINGLE and name not in SEVERAL:
            raise UserError(f"{file}: [{name}] is no table of a pipeline. Use one of {', '.join((*SINGLE, *SEVERAL))}.")
    if "runs" in tables:
        tables["runs"] = _with_seeds(tables["runs"], seeds, file)
    merged_settings(tables)
    return Recipe(name=file.stem, title=str(title), jobs=int(jobs), tables=tables)


def _with_base(file: Path) -> dict[str, Any]:
    """The file's tables over those of its `base`. Raises UserError where that is no file, or has a base itself."""
    tables = read_toml(file)
    if "base" not in tables:
        return tables
    base = read_toml(file.parent / str(tables.pop("base")))
    if "base" in base:
        raise UserError(f"{file}: its base must have no base itself, but has '{base['base']}' instead.")
    return merge(base, tables)


def _with_seeds(runs: Mapping[str, Any], seeds: Sequence[int], file: Path) -> dict[str, Any]:
    """Each run once a seed, by name; without seeds as it is. Raises UserError where seeds are no different whole numbers."""
    found: dict[str, Any] = {}
    for name, table in runs.items():
        rest = dict(table)
        own = rest.pop("seeds", seeds)
        if not isinstance(own, list) or not all(type(seed) is int and seed >= 0 for seed in own) or len(set(own)) < len(own):
            raise UserError(f"{file}: seeds must be different whole numbers, but are {own} instead.")
        if own and "seed" in rest.get("loop", {}):
            raise UserError(f"{file}: [runs.{name}] must have seeds or loop.seed, but has both.")
        found |= {f"{name}-seed{seed}": merge(rest, {"loop": {"seed": seed}}) for seed in own} if own else {name: rest}
    return found


def merged_settings(tables: Mapping[str, Any], sections: Sequence[str] | None = None) -> dict[str, Any]:
    """All settings of the tables, defaults included. Raises UserError where one does not fit, or a section is unknown."""
    for section in sections or ():
        if section not in SINGLE and section not in SEVERAL:
            raise UserError(f"section must be one of {', '.join((*SINGLE, *SEVERAL))}, but is '{section}' instead.")
    found: dict[str, Any] = {}
    for name in SINGLE:
        if (sections is None or name in sections) and (name not in OPTIONAL or name in tables):
            found[name] = to_table(CHECKS[name](tables.get(name, {}), f"[{name}]"))
    for name in SEVERAL:
        if name in tables and (sections is None or name in sections):
            shared = SHARED.get(name, "")
            check, common = CHECKS[shared or name], tables.get(shared, {})
            found[name] = {key: to_table(check(merge(common, table), f"[{name}.{key}]")) for key, table in tables[name].items()}
    return found


def write_project(recipe: Recipe, work: Path) -> None:
    """Write the working folder's hkd.toml, so that every hkd command works in it with the pipeline's settings."""
    text = to_toml({name: table for name, table in recipe.tables.items() if isinstance(table, Mapping)})
    data = f"# Written by `hkd run`: {recipe.title}\n\n{text}".encode()
    path = work / PROJECT_FILE
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe, each after what it needs."""
    stages: dict[str, Stage] = {}

    def add(
        name: str, action: Callable[..., str], settings: Mapping[str, Any], outputs: Sequence[str], needs: Sequence[str]
    ) -> None:
        stages[name] = Stage(name=name, needs=tuple(needs), settings=settings, outputs=tuple(outputs), action=action)

    text = recipe.table("prepare").get("text")
    add(
        "prepare",
        actions.prepare,
        recipe.table("prepare"),
        ["manifest.jsonl", *([actions.text_output(text)] if text else [])],
        [],
    )
    is_tied = "tie" in recipe.tables
    brings_units = is_tied or aligner_of(recipe.table("align"), "[align]").brings_units
    add(
        "align",
        actions.align,
        {**recipe.table("align"), **({"tie": recipe.table("tie")} if is_tied else {})},
        ["alignment.arrow"],
        ["prepare"],
    )
    add(
        "units",
        actions.units,
        {**recipe.table("units"), **({"is_tied": True} if is_tied else {})},
        ["units"],
        ["prepare", *(["align"] if brings_units else [])],
    )
    ngrams = _ngrams(recipe)
    for path, (name, table) in ngrams.items():
        add(name, actions.words, {"path": path, **table}, [path], ["prepare"])
    for name, table in recipe.table("lm").items():
        add(f"lm-{name}", actions.lm, {"name": name, **table}, [f"lm/{name}"], ["units", "align"])
    stores = {name: actions.dump_settings(table, f"[dump.{name}]") for name, table in recipe.table("dump").items()}
    for name, store in stores.items():
        own = _own_lm(store.lm)
        if own is not None and own not in recipe.table("lm"):
            raise UserError(f"[dump.{name}]: lm must name a table [lm.{own}] of the pipeline, but there is none.")
        table = {key: value for key, value in recipe.table("dump")[name].items() if key not in actions.WHO_LABELS}
        settings = {"name": name, **table}
        add(f"dump-{name}", actions.dump, settings, [f"shards/{name}"], ["units", "align", *([f"lm-{own}"] if own else [])])
    runs, split = recipe.table("runs"), actions.ReportSettings(**recipe.table("report")).split
    for name, table in runs.items():
        merged = merge(recipe.table("train"), table)
        wanted = actions.stores_of(merged, stores)
        settings = {"name": name, **merged}
        add(
            f"train-{name}", actions.train, settings, [f"runs/{name}"], ["units", "align", *(f"dump-{store}" for store in wanted)]
        )
    scored = []
    for tag, table, where, chosen in _searches(recipe, list(runs)):
        lm = str(table.get("lm", ""))
        if lm == OWN_WORDS and lm not in ngrams:
            raise UserError(f"{where}: lm is {OWN_WORDS}, which the table [words] makes, but there is none.")
        made_by = ngrams[lm][0] if lm in ngrams else f"lm-{_own_lm(lm)}"
        for name in chosen:
            scored.append(f"evaluate-{name}" + (f"@{tag}" if tag else ""))
            add(
                scored[-1],
                actions.evaluate,
                {"name": name, "split": split, "tag": tag, **table} if tag else {"name": name, "split": split, **table},
                [f"runs/{name}/{path.name}" for path in result_paths(Path(), split, tag)],
                [f"train-{name}", *([made_by] if made_by in stages else [])],
            )
    if not runs:  # label stores alone
        return stages
    page = f"{recipe.report}.html"
    settings = {"runs": list(runs), "title": recipe.title, "page": page, **recipe.table("report")}
    pages = [page, f"{recipe.report}.md", f"{recipe.report}.txt"]
    add(recipe.report, actions.report, settings, pages, [*scored, *(f"dump-{store}" for store in stores)])
    return stages


def _own_lm(lm: str) -> str | None:
    """The NAME of [lm.NAME] where that is meant."""
    return lm.removeprefix("lm/") if lm.startswith("lm/") else None


def _ngrams(recipe: Recipe) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The word n-grams by the paths of their files: (stage, settings). Raises UserError where two would be one file."""
    found = {OWN_WORDS: ("words", recipe.table("words"))} if "words" in recipe.tables else {}
    for name, table in recipe.table("ngrams").items():
        path = ngram_path(name)
        if path in found:
            raise UserError(f"[ngrams.{name}]: {path} is what [words] makes. Take another name.")
        found[path] = (f"ngram-{name}", merge(recipe.table("words"), table))
    return found


def _searches(recipe: Recipe, runs: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any], str, Sequence[str]]]:
    """(tag, settings, the table's name, runs) of each way to decode. Raises UserError where a run is not there."""
    yield "", recipe.table("evaluate"), "[evaluate]", runs
    for tag, table in recipe.table("searches").items():
        rest = dict(table)
        wanted = rest.pop("runs", None)
        chosen = [run for run in runs if wanted is None or run in wanted or configuration_of(run) in wanted]
        lost = [name for name in wanted or () if name not in runs and name not in map(configuration_of, runs)]
        if lost or not chosen:
            raise UserError(f"[searches.{tag}]: runs must be runs of the pipeline, but {', '.join(lost) or 'none'} is instead.")
        yield tag, merge(recipe.table("evaluate"), rest), f"[searches.{tag}]", chosen


def results_table(page: Path) -> str:
    """The tables of a finished pipeline's page, as text."""
    return page.with_suffix(".txt").read_text(encoding="utf-8").rstrip()
