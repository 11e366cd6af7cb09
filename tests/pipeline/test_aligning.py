"""Other tools' alignments in `hkd run`: the table [align], the order of stages, and units that are the tool's."""

import shutil
from pathlib import Path

import pytest

from hkd.align.alignment import Alignment
from hkd.align.sphinx import SphinxConfig
from hkd.errors import UserError, no_progress
from hkd.pipeline.recipe import load_recipe, merged_settings, stages_of, write_project
from hkd.pipeline.settings import TOOLS, WHO_LABELS, Aligner, ToolConfig, aligner_of
from hkd.pipeline.stages import run_align, run_units
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.sequences import Units
from kit.files import write_files

GOLDEN = Path(__file__).parent.parent / "golden"
RECIPE = """
[prepare]
corpus = "asterisk"
[units]
vocab_size = 60
[align]
from = "kaldi"
path = "exp"
[dump.monophone]
lm = "phone-trigram"
unit = "monophone"
executor = "ray"
workers = 2
"""


def test_the_table_goes_there_and_back() -> None:
    for tool in TOOLS:
        table = {} if tool == "pocketsphinx" else {"from": tool, "path": "exp", "stress": False, "silence": ["lau"]}
        aligner = aligner_of(table, "[align]")
        assert aligner == aligner_of(aligner.to_table(), "[align]")
        assert aligner.brings_units == (tool != "pocketsphinx")
    assert aligner_of({"beam": 1e-70}, "[align]") == Aligner(tool="pocketsphinx", config=SphinxConfig(beam=1e-70))
    assert aligner_of({"model": "fr"}, "[align]").brings_units
    config = aligner_of({"from": "mfa", "path": "x", "silence": ["lau"]}, "[align]").config
    assert isinstance(config, ToolConfig)
    assert config.imports.silence_phones == ("lau",)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"from": "praat"}, "from must be one of pocketsphinx, kaldi, mfa, ctm, ctc, timit"),
        ({"from": "kaldi"}, "kaldi needs a path"),
        ({"from": "kaldi", "path": "x", "beam": 0.1}, "'beam' is no setting"),
        ({"lang": "x"}, "'lang' is no setting"),
    ],
)
def test_what_does_not_fit_is_refused(table: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        aligner_of(table, "[align]")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with Kaldi's files in it, as `hkd run` leaves it after `prepare`."""
    (tmp_path / "pipeline.toml").write_text(RECIPE, encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(GOLDEN / "kaldi", work / "exp")
    shutil.copy(GOLDEN / "kaldi" / "manifest.jsonl", work)
    write_project(load_recipe(tmp_path, {}), work)
    return work


def test_the_tools_phones_and_senones_are_the_pipelines(work: Path) -> None:
    recipe = load_recipe(work.parent, {})
    stages = stages_of(recipe)
    assert set(stages["units"].needs) == {"prepare", "align"}  # else the two run side by side
    assert "12 of 12" in run_align(work, stages["align"].settings, no_progress)
    said = run_units(work, stages["units"].settings, no_progress)
    assert run_units(work, stages["units"].settings, no_progress) == said  # killed and run again
    found, units = Alignment(work / "alignment.arrow"), Units(work / "units")
    for level in (SENONE, MONOPHONE):
        assert units.inventory(level) == found.inventories[level]
    shutil.rmtree(work / "units")  # as when vocab_size is changed
    assert run_units(work, stages["units"].settings, no_progress) == said
    [(_, name, settings)] = merged_settings(recipe.tables, ["align"])
    assert (name, settings["from"]) == ("align", "kaldi")


def test_who_labels_is_no_part_of_a_stage(work: Path) -> None:
    stage = stages_of(load_recipe(work.parent, {}))["dump-monophone"]
    assert not set(WHO_LABELS) & set(stage.settings)
    with pytest.raises(UserError, match="executor must be one of local, ray"):
        stages_of(load_recipe(work.parent, {"dump": {"monophone": {"executor": "slurm"}}}))


def test_timits_units_know_words_that_nobody_said_there(tmp_path: Path) -> None:
    recipe = '[prepare]\ncorpus = "timit"\n[units]\nvocab_size = 40\n[align]\nfrom = "timit"\npath = "ldc"\n'
    (tmp_path / "pipeline.toml").write_text(recipe, encoding="utf-8")
    row = '{"id": "FCJF0-SI1", "text": "a cab", "duration": 0.4, "split": "train"}\n'
    segments = (
        b"0 1600 h#\n1600 2400 ax\n2400 3200 kcl\n3200 3600 k\n3600 4400 ae\n4400 4800 bcl\n4800 5000 b\n5000 6400 h#\n"
    )
    files = {"ldc/TRAIN/DR1/FCJF0/SI1.PHN": segments, "ldc/TRAIN/DR1/FCJF0/SI1.WRD": b"1600 2400 a\n2400 5000 cab\n"}
    write_files(tmp_path, {**files, "manifest.jsonl": row.encode()})
    loaded = load_recipe(tmp_path, {})
    write_project(loaded, tmp_path)
    run_align(tmp_path, loaded.table("align"), no_progress)
    run_units(tmp_path, loaded.table("units"), no_progress)
    units = Units(tmp_path / "units")
    symbols = units.inventory(MONOPHONE).symbols
    assert [symbols[unit] for unit in units.encode(["a", "cab", "law"], MONOPHONE)[0]] == [
        "ah",
        "k",
        "ae",
        "b",
        "l",
        "aa",
    ]
