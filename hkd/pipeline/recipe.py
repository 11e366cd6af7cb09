"""A pipeline's TOML → stages.

    title, jobs               what it is called; how many stages run side by side
    base = "FILE"             a pipeline beside it whose tables come first; what this one says wins, key by key
    seeds = [0, 1, 2]         every run once a seed, NAME-seed0 ...; a run's own `seeds` win
    [prepare] [units] [align] corpus → manifest → inventories → alignment; [align] from, path: of another tool
    [tie]                     senones of our own instead of the aligner's (settings of `hkd units tie`)
    [words]                   a word n-gram for search, lm/words.arpa (settings of `hkd lm words`)
    [ngrams.NAME]             another one, lm/NAME.arpa: what differs from [words]
    [sentences.NAME]          text without sound, sentences/NAME.jsonl, of [prepare]'s (as `hkd prepare --text`)
    [lm.NAME]                 a unit LM (settings of `hkd lm train`); sentences = "NAME": of these, cross-fitted
    [dump.NAME]               a label store (settings of `hkd teacher-dump`): lm = "lm/NAME" waits for that LM;
                              sentences = "NAME": of these too
    [averages.NAME]           another one that a run names: of = "NAME" of a dump, each unit's average over `split`
    [train]                   what all runs share
    [bank]                    a posterior bank, for runs with text (settings of `hkd bank`)
    [runs.NAME]               a run: what differs from [train]; with text.share, text.path = "sentences/NAME.jsonl"
    [evaluate]                how all runs are scored on [report].split; lm = "lm/words.arpa" beside a hybrid student
    [searches.TAG]            another way to decode: runs = [...] and settings of [evaluate]; its rows are RUN@TAG
    [report]                  the page, where there are runs: report.html; report-dev.html for another split than test

Every table is checked against its component's config before anything starts.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.config import PROJECT_FILE, SEVERAL, SINGLE, TABLES, build, check_tables, merge, read_toml
from hkd.errors import UserError, check_choice, check_setting
from hkd.evaluate.score import result_paths
from hkd.evaluate.table import configuration_of
from hkd.files import placed, to_toml, write_bytes
from hkd.labelling.ngram import WORDS
from hkd.pipeline import stages as actions
from hkd.pipeline.runner import AUDIO, Stage, linked
from hkd.pipeline.settings import WHO_LABELS, ReportSettings, Settings, aligner_of, checked, show_table
from hkd.train.config import TrainConfig
from hkd.train.objectives import needs_of, objective_of
from hkd.units.inventory import SENONE, SUBWORD
from hkd.units.tying import MADE_FROM_FILE

SHARED = {"runs": "train", "ngrams": "words"}  # the single table whose settings those of several start from
KINDS = {**SHARED, "searches": "evaluate"}  # whose settings a table has
OWN_WORDS = f"lm/{WORDS}"
TEXTS = "text/*.txt*"
TOOL_FILES = ("path", "model", "lang", "words", "phones", "lexicon")  # settings of [align] that name files or folders
OPTIONAL = ("normalisation", "tie", "bank")  # single tables that do nothing where they are not there


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
    def split(self) -> str:
        """What is scored."""
        return ReportSettings(**self.table("report")).split

    @property
    def report(self) -> str:
        """The stage that makes the page, and the page's name: one a file and split, as several may share a folder."""
        own = [self.name] if self.name != "pipeline" else []
        return "-".join(["report", *own, *([self.split] if self.split != "test" else [])])

    @property
    def normalisation(self) -> Mapping[str, Any]:
        """The rule for words, as a setting of the stages whose results depend on it."""
        table = self.table("normalisation")
        return {"normalisation": table} if table else {}

    @property
    def stores(self) -> list[str]:
        """The label stores."""
        return [*self.table("dump"), *self.table("averages")]

    @property
    def ngrams(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """The word n-grams of [words] and [ngrams.NAME], by the paths of their files: (stage, settings)."""
        found = {OWN_WORDS: ("words", self.table("words"))} if "words" in self.tables else {}
        own = self.table("ngrams").items()
        return found | {f"lm/{name}.arpa": (f"ngram-{name}", merge(self.table("words"), table)) for name, table in own}

    def run(self, name: str) -> dict[str, Any]:
        """The settings of [runs.NAME], those of [train] included."""
        return merge(self.table("train"), self.table("runs")[name])

    def sentences(self, name: str | None, where: str) -> tuple[str, ...]:
        """The file of a [sentences.NAME]; none for no name. Raises UserError where there is no such table."""
        if name and name not in self.table("sentences"):
            raise UserError(f"{where} must name a table [sentences.{name}] of the pipeline, but there is none.")
        return (actions.sentences_output(name),) if name else ()


def load_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Read `path` (a folder's pipeline.toml, or the file) with overrides. Raises UserError for what does not fit."""
    file = path / "pipeline.toml" if path.is_dir() else path
    tables = merge(_with_base(file), overrides)
    title, jobs, seeds = tables.pop("title", path.name), tables.pop("jobs", 1), tables.pop("seeds", [])
    check_setting(f"{file}: jobs", repr(jobs), "be a whole number of at least 1", type(jobs) is int and jobs >= 1)
    check_tables(tables, file)
    if "runs" in tables:
        tables["runs"] = _with_seeds(tables["runs"], seeds, file)
    merged_settings(tables)  # which checks them
    return Recipe(name=file.stem, title=str(title), jobs=jobs, tables=tables)


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
    """Each run once a seed; without seeds as it is. Raises UserError unless seeds are different whole numbers."""
    found: dict[str, Any] = {}
    for name, table in runs.items():
        rest = dict(table)
        own = rest.pop("seeds", seeds)
        is_whole = isinstance(own, list) and all(type(seed) is int and seed >= 0 for seed in own)
        if not is_whole or len(set(own)) < len(own):
            raise UserError(f"{file}: seeds must be different whole numbers, but are {own} instead.")
        if own and "seed" in rest.get("loop", {}):
            raise UserError(f"{file}: [runs.{name}] must have seeds or loop.seed, but has both.")
        found |= {f"{name}-seed{seed}": merge(rest, {"loop": {"seed": seed}}) for seed in own} if own else {name: rest}
    return found


def merged_settings(tables: Mapping[str, Any], sections: Sequence[str] = TABLES) -> list[tuple[str, str, Settings]]:
    """(section, dotted name, all settings) of each table. Raises UserError for an unknown section or bad setting."""
    for section in sections:
        check_choice("section", section, TABLES)
    found: list[tuple[str, str, Settings]] = []
    for section in (name for name in TABLES if name in sections):
        own = tables.get(section, {})
        if section in SEVERAL:
            own = {f"{section}.{name}": table for name, table in own.items()}
        else:
            own = {section: own} if section in tables or section not in OPTIONAL else {}
        for name, table in own.items():
            settings = merge(tables.get(SHARED.get(section, ""), {}), table)
            if section == "searches":
                settings.pop("runs", None)
            found.append((section, name, checked(KINDS.get(section, section), settings, f"[{name}]")))
    return found


COMMANDS = {"teacher-dump": "dump", "transcribe": "evaluate", "likelihoods": "evaluate"}  # whose table has another name


def show_tables(tables: Mapping[str, Any], sections: Sequence[str] | None = None) -> str:
    """All settings as TOML, defaults included, each with its explanation. Raises as `merged_settings`.

    A section of several tables is shown once a table; where it is asked for and has none, as NAME with the defaults.
    """
    asked = [COMMANDS.get(section, section) for section in sections or TABLES]
    found: list[tuple[str, str, Settings | None]] = [*merged_settings(tables, asked)]
    if sections:
        absent = dict.fromkeys(asked).keys() - {section for section, _, _ in found}
        found += [(name, name if name in SINGLE else f"{name}.NAME", None) for name in absent]
        found.sort(key=lambda table: TABLES.index(table[0]))
    return "\n\n".join("\n".join(show_table(KINDS.get(kind, kind), name, table)) for kind, name, table in found)


_WRITTEN = "# Written by `hkd run`:"


def write_project(recipe: Recipe, work: Path) -> None:
    """Write the working folder's hkd.toml, so that every hkd command works in it with the pipeline's settings.

    Raises UserError where the folder has one that `hkd run` did not write.
    """
    text = to_toml({name: table for name, table in recipe.tables.items() if isinstance(table, Mapping)})
    data = f"{_WRITTEN} {recipe.title}\n\n{text}".encode()
    path = work / PROJECT_FILE
    if path.exists() and not path.read_bytes().startswith(_WRITTEN.encode()):
        remedy = "Take another folder with --work, or put the file elsewhere."
        raise UserError(f"{path} must be written by `hkd run`, but is your own. {remedy}")
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe, each after those whose files it reads. Raises UserError for a table that is not there."""
    found = [*_data_stages(recipe), *_lm_stages(recipe), *_store_stages(recipe)]
    if recipe.table("runs"):  # else label stores alone
        found += [*_bank_stages(recipe), *_train_stages(recipe), *_evaluate_stages(recipe)]
        found.append(_report_stage(recipe, [stage for stage in found if stage.action is actions.run_evaluate]))
    return linked(found)


def _data_stages(recipe: Recipe) -> Iterator[Stage]:
    """Corpus → manifest, alignment, units; text → sentences without sound."""
    prepare, text = recipe.table("prepare"), recipe.table("prepare").get("text")
    outputs = ("manifest.jsonl", *([actions.text_output(text)] if text else []))
    sources = [str(prepare[name]) for name in ("corpus", "root", "text") if prepare.get(name)]
    read = tuple(os.path.join(".", name) for name in sources if Path(name).exists())  # noqa: PTH118
    yield Stage(name="prepare", action=actions.run_prepare, settings=prepare, outputs=outputs, inputs=read)
    align, units, is_tied = recipe.table("align"), recipe.table("units"), "tie" in recipe.tables
    files = tuple(str(align[name]) for name in TOOL_FILES if align.get(name))
    brings_units = is_tied or aligner_of(align, "[align]").brings_units
    if is_tied:
        align, units = {**align, "tie": recipe.table("tie")}, {**units, "is_tied": True}
    yield Stage(
        name="align", action=actions.run_align, settings={**align, **recipe.normalisation},
        outputs=("alignment.arrow",),
        inputs=("manifest.jsonl", AUDIO, *files),
    )  # fmt: skip
    yield Stage(
        name="units", action=actions.run_units, settings={**units, **recipe.normalisation},
        outputs=(f"units/{MADE_FROM_FILE}",) if is_tied else ("units",),  # tying has put its tree there before
        inputs=("manifest.jsonl", *(("alignment.arrow", *files) if brings_units else ())),
    )  # fmt: skip
    for name, table in recipe.table("sentences").items():
        yield Stage(
            name=f"sentences-{name}", action=actions.run_sentences, settings={"name": name, **table},
            outputs=(actions.sentences_output(name),), inputs=(TEXTS, "manifest.jsonl", "units"),
        )  # fmt: skip


def _lm_stages(recipe: Recipe) -> Iterator[Stage]:
    """Text → word n-grams and unit LMs. Raises UserError where two n-grams would be one file."""
    if "words" in recipe.tables and Path(WORDS).stem in recipe.table("ngrams"):
        raise UserError(f"[ngrams.{Path(WORDS).stem}]: {OWN_WORDS} is what [words] makes. Take another name.")
    for path, (name, table) in recipe.ngrams.items():
        yield Stage(
            name=name, action=actions.run_words, settings={"path": path, **table, **recipe.normalisation},
            outputs=(path,),
            inputs=(TEXTS, *(("manifest.jsonl",) if table.get("transcripts") else ())),
        )  # fmt: skip
    for name, table in recipe.table("lm").items():
        files = recipe.sentences(table.get("sentences"), f"[lm.{name}]: sentences")
        yield Stage(
            name=f"lm-{name}", action=actions.run_lm, settings={"name": name, **table}, outputs=(f"lm/{name}",),
            inputs=(TEXTS, "manifest.jsonl", "alignment.arrow", "units", *files),
        )  # fmt: skip


def _store_stages(recipe: Recipe) -> Iterator[Stage]:
    """LMs → label stores of the speech and of the sentences that a table names; and their averages."""
    dumps = recipe.table("dump")
    for name, table in dumps.items():
        folder, _, own = table["lm"].partition("/")
        if folder == "lm" and own not in recipe.table("lm"):
            raise UserError(f"[dump.{name}]: lm must name a table [lm.{own}] of the pipeline, but there is none.")
        settings = {"name": name, **{key: value for key, value in table.items() if key not in WHO_LABELS}}
        yield Stage(
            name=f"dump-{name}", action=actions.run_dump, settings=settings, outputs=(f"shards/{name}",),
            inputs=("manifest.jsonl", "alignment.arrow", "units", table["lm"]),
        )  # fmt: skip
        files = recipe.sentences(table.get("sentences"), f"[dump.{name}]: sentences")
        if files:
            yield Stage(
                name=f"dump-{name}-text", action=actions.run_dump, settings={"is_text": True, **settings},
                outputs=(f"text-shards/{name}",), inputs=(*files, "units", table["lm"]),
            )  # fmt: skip
    for name, table in recipe.table("averages").items():
        of = table["of"]
        if of not in dumps or name in dumps:
            raise UserError(f"[averages.{name}]: of must name a table [dump.{of}], and no [dump.{name}] may be there.")
        folders = ("shards", "text-shards") if dumps[of].get("sentences") else ("shards",)
        yield Stage(
            name=f"average-{name}", action=actions.run_average, settings={"name": name, **table},
            outputs=tuple(f"{folder}/{name}" for folder in folders),
            inputs=("manifest.jsonl", *(f"{folder}/{of}" for folder in folders)),
        )  # fmt: skip


def _bank_stages(recipe: Recipe) -> Iterator[Stage]:
    """What the student hears → a posterior bank."""
    if "bank" not in recipe.tables:
        return
    table = recipe.table("bank")
    train = merge(recipe.table("train"), table.get("train", {}))
    heads = [name.removeprefix("kd-") for name in train.get("condition", ()) if name.startswith("kd-")]
    yield Stage(
        name="bank", action=actions.run_bank, settings={**table, "train": train}, outputs=("bank",),
        inputs=("manifest.jsonl", AUDIO, "alignment.arrow", "units", *(f"shards/{store}" for store in heads)),
    )  # fmt: skip


def _train_stages(recipe: Recipe) -> Iterator[Stage]:
    """Label stores → students."""
    for name in recipe.table("runs"):
        settings, where = recipe.run(name), f"[runs.{name}]"
        config = build(TrainConfig, settings, where=where)
        stores = _stores_of(recipe, config)
        lost = [store for store in stores if store not in recipe.stores]
        if lost:
            none = ", ".join(lost)
            raise UserError(f"{where}: stores must be tables [dump.NAME] or [averages.NAME], but {none} is none.")
        with placed(where):
            _check_levels(recipe, config, stores)
        text = _text_of(recipe, settings, stores, where)
        encoder = str(settings.get("encoder", {}).get("name") or "")  # a pretrained one, where it is a folder
        yield Stage(
            name=f"train-{name}", action=actions.run_train, settings={"name": name, **settings},
            outputs=(f"runs/{name}",),
            inputs=("manifest.jsonl", AUDIO, "alignment.arrow", "units", *(f"shards/{s}" for s in stores), *text,
                *([encoder] if encoder else [])),
        )  # fmt: skip


def _stores_of(recipe: Recipe, config: TrainConfig) -> list[str]:
    """The label stores that a run reads: those it names, or of its levels, or all; or none, as its objective says."""
    if objective_of(config).stores == "none":
        return []
    if config.stores:
        return list(config.stores)
    return [name for name, table in recipe.table("dump").items() if not config.levels or table["unit"] in config.levels]


def _check_levels(recipe: Recipe, config: TrainConfig, stores: Sequence[str]) -> None:
    """Raises UserError where the objective cannot be had from stores of these levels. Which of two stores of a level
    fits, training alone knows, where none is named."""
    dumps, averages = recipe.table("dump"), recipe.table("averages")
    chosen = stores if config.stores else {dumps[name]["unit"]: name for name in stores}.values()
    of = {name: averages[name]["of"] if name in averages else name for name in chosen}
    needs_of(config, {name: dumps[source]["unit"] for name, source in of.items()}, aligned=True)


def _text_of(recipe: Recipe, settings: Mapping[str, Any], stores: Sequence[str], where: str) -> Sequence[str]:
    """The files that a run with text reads, and none without. Raises UserError where nothing makes them."""
    text = settings.get("text", {})
    if not text.get("share"):
        return ()
    if "bank" not in recipe.tables:
        raise UserError(f"{where}: text.share must go with the table [bank], but there is none.")
    files = recipe.sentences(Path(str(text.get("path", "text.jsonl"))).stem, f"{where}: text.path")
    return ("bank/bank.safetensors", *files, *(f"text-shards/{store}" for store in stores if text.get("labels")))


def _evaluate_stages(recipe: Recipe) -> Iterator[Stage]:
    """Students → their figures, once for each way to decode."""
    split, runs = recipe.split, list(recipe.table("runs"))
    for tag, table, where, chosen in _searches(recipe, runs):
        lm = str(table.get("lm", ""))
        if lm == OWN_WORDS and lm not in recipe.ngrams:
            raise UserError(f"{where}: lm is {OWN_WORDS}, which the table [words] makes, but there is none.")
        for run in chosen:
            is_ctc = recipe.run(run).get("main") != SENONE
            if lm and is_ctc and table.get("search", {}).get("decoder") != "beam":
                raise UserError(f'{where}: search.decoder must be "beam" where {run}, a CTC student, has an LM.')
            if not lm and not is_ctc:
                why = f"the senones of {run} become words by a word n-gram (of [words]: {OWN_WORDS})"
                raise UserError(f"{where}: lm must be given, as {why}.")
            # The store that a CTC main output is held against, whoever taught it
            is_held = not tag and SUBWORD in recipe.stores and is_ctc
            stores = (f"shards/{SUBWORD}",) if is_held else ()
            yield Stage(
                name=f"evaluate-{run}" + (f"@{tag}" if tag else ""), action=actions.run_evaluate,
                settings={"name": run, "split": split, **({"tag": tag} if tag else {}), **table},
                outputs=tuple(f"runs/{run}/{path.name}" for path in result_paths(Path(), split, tag)),
                inputs=(f"runs/{run}/model", "manifest.jsonl", AUDIO, *stores, *([lm] if lm else [])),
            )  # fmt: skip


def _searches(recipe: Recipe, runs: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any], str, Sequence[str]]]:
    """(tag, settings, the table's name, runs) of each way to decode. Raises UserError where a run is not there."""
    yield "", recipe.table("evaluate"), "[evaluate]", runs
    for tag, table in recipe.table("searches").items():
        rest = dict(table)
        wanted = rest.pop("runs", None)
        chosen = [run for run in runs if wanted is None or run in wanted or configuration_of(run) in wanted]
        lost = [name for name in wanted or () if name not in runs and name not in map(configuration_of, runs)]
        if lost or not chosen:
            none = ", ".join(lost) or "none"
            raise UserError(f"[searches.{tag}]: runs must be runs of the pipeline, but {none} is instead.")
        yield tag, merge(recipe.table("evaluate"), rest), f"[searches.{tag}]", chosen


def _report_stage(recipe: Recipe, scored: Sequence[Stage]) -> Stage:
    """Figures → the page."""
    page, results = recipe.report, (output for stage in scored for output in stage.outputs)
    runs = list(recipe.table("runs"))
    known = [*map(configuration_of, runs), *(str(recipe.run(run).get("objective", "")) for run in runs)]
    for name in recipe.table("report").get("baselines", ()):
        check_choice("[report].baselines", name.partition("@")[0], dict.fromkeys(known))
    return Stage(
        name=page, action=actions.run_report, is_view=True,
        settings={"runs": runs, "title": recipe.title, "page": f"{page}.html", **recipe.table("report")},
        inputs=(*results, "runs/*/metrics.jsonl", "shards/*/store.json"),
        outputs=tuple(f"{page}.{end}" for end in ("html", "md", "txt")),
    )  # fmt: skip
