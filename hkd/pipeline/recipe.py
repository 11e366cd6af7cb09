"""A pipeline's TOML → stages.

    title, jobs               what it is called; how many stages run side by side
    [prepare] [units] [align] corpus → manifest → inventories → alignment; [align] from = "kaldi" and path = "..." take another tool's
    [words]                   a word n-gram for search, lm/words.arpa (settings of `hkd lm words`)
    [lm.NAME]                 a unit LM (settings of `hkd lm train`)
    [dump.NAME]               a label store (settings of `hkd teacher-dump`): lm = "lm/NAME" waits for that LM
    [train]                   what all runs share
    [runs.NAME]               a run: what differs from [train]
    [evaluate]                how all runs are scored on [report].split; lm = "lm/words.arpa" beside a hybrid student
    [report]                  the page

Every table is checked against its component's config before anything starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.config import PROJECT_FILE, merge, read_toml, to_table, to_toml
from hkd.errors import UserError
from hkd.evaluate.result import result_paths
from hkd.files import write_bytes
from hkd.labelling.kneser_ney import WORDS
from hkd.pipeline import actions
from hkd.pipeline.actions import CHECKS
from hkd.pipeline.aligning import aligner_of
from hkd.pipeline.runner import Stage

SINGLE = ("prepare", "units", "align", "words", "train", "evaluate", "report")
SEVERAL = ("lm", "dump", "runs")
OWN_WORDS = f"lm/{WORDS}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A pipeline as read: its tables, checked."""

    title: str
    jobs: int
    tables: Mapping[str, Any]

    def table(self, name: str) -> Mapping[str, Any]:
        """The table of that name, empty where there is none."""
        table: Mapping[str, Any] = self.tables.get(name, {})
        return table


def load_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Read `path` (a folder's pipeline.toml, or the file) with overrides. Raises UserError for whatever does not fit, before any work."""
    file = path / "pipeline.toml" if path.is_dir() else path
    tables = merge(read_toml(file), overrides)
    title, jobs = tables.pop("title", path.name), tables.pop("jobs", 1)
    for name in tables:
        if name not in SINGLE and name not in SEVERAL:
            raise UserError(f"{file}: [{name}] is no table of a pipeline. Use one of {', '.join((*SINGLE, *SEVERAL))}.")
    merged_settings(tables)
    return Recipe(title=str(title), jobs=int(jobs), tables=tables)


def merged_settings(tables: Mapping[str, Any], sections: Sequence[str] | None = None) -> dict[str, Any]:
    """All settings of the tables, defaults included. Raises UserError where one does not fit, or a section is unknown."""
    for section in sections or ():
        if section not in SINGLE and section not in SEVERAL:
            raise UserError(f"section must be one of {', '.join((*SINGLE, *SEVERAL))}, but is '{section}' instead.")
    found: dict[str, Any] = {}
    for name in SINGLE:
        if sections is None or name in sections:
            found[name] = to_table(CHECKS[name](tables.get(name, {}), f"[{name}]"))
    for name in SEVERAL:
        if name in tables and (sections is None or name in sections):
            check, shared = (CHECKS["train"], tables.get("train", {})) if name == "runs" else (CHECKS[name], {})
            found[name] = {key: to_table(check(merge(shared, table), f"[{name}.{key}]")) for key, table in tables[name].items()}
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
    add("prepare", actions.prepare, recipe.table("prepare"), ["manifest.jsonl", *([f"text/{text}.txt"] if text else [])], [])
    brings_units = aligner_of(recipe.table("align"), "[align]").brings_units
    add("units", actions.units, recipe.table("units"), ["units"], ["prepare", *(["align"] if brings_units else [])])
    add("align", actions.align, recipe.table("align"), ["alignment.arrow"], ["prepare"])
    if "words" in recipe.tables:
        add("words", actions.words, recipe.table("words"), [OWN_WORDS], ["prepare"])
    for name, table in recipe.table("lm").items():
        add(f"lm-{name}", actions.lm, {"name": name, **table}, [f"lm/{name}"], ["units", "align"])
    stores = {name: actions.dump_settings(table, f"[dump.{name}]") for name, table in recipe.table("dump").items()}
    for name, store in stores.items():
        own = store.lm.removeprefix("lm/") if store.lm.startswith("lm/") else None
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
    lm = recipe.table("evaluate").get("lm")
    if lm == OWN_WORDS and "words" not in recipe.tables:
        raise UserError(f"[evaluate]: lm is {OWN_WORDS}, which the table [words] makes, but there is none.")
    for name in runs:
        settings = {"name": name, "split": split, **recipe.table("evaluate")}
        outputs = [f"runs/{name}/{path.name}" for path in result_paths(Path(), split)]
        add(
            f"evaluate-{name}",
            actions.evaluate,
            settings,
            outputs,
            [f"train-{name}", *(f"dump-{store}" for store in stores), *(["words"] if lm == OWN_WORDS else [])],
        )
    settings = {"runs": list(runs), "title": recipe.title, **recipe.table("report")}
    add("report", actions.report, settings, ["report.html", "report.md", "report.txt"], [f"evaluate-{name}" for name in runs])
    return stages


def results_table(work: Path) -> str:
    """The objectives' table of a finished pipeline, as text."""
    return (work / "report.txt").read_text(encoding="utf-8").rstrip()
