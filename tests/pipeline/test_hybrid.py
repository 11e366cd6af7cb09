"""pipelines/hybrid: the folds keep the same words together and test each utterance once; the table counts whole seeds
alone."""

import importlib.util
import sys
from collections import Counter
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.files import shipped
from hkd.manifest import Manifest, Utterance


def script(path: str) -> ModuleType:
    name = f"pipelines_{path.replace('/', '_')}"
    spec = importlib.util.spec_from_file_location(name, shipped("pipelines") / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CELLS, POOLED = script("hybrid/cells"), script("pooled")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=60, max_size=200).filter(lambda numbers: len(set(numbers)) >= 12))
def test_each_prompt_is_tested_once_and_the_same_words_stand_on_one_side(numbers: list[int]):
    whole = Manifest(Utterance(id=f"u{n}", text=f"Press {number}!") for n, number in enumerate(numbers))
    parts = CELLS.folds(whole)
    assert len(parts) == CELLS.NUM_FOLDS
    tested = Counter(u.id for part in parts.values() for u in part.split("test"))
    assert tested == Counter(u.id for u in whole)
    for part in parts.values():
        sides = [{u.text for u in part.split(split)} for split in ("train", "dev", "test")]
        assert all(sides)
        assert sum(map(len, sides)) == len({u.text for u in whole})


def row(part: str, run: str, errors: int) -> dict[str, object]:
    return {
        "part": part,
        "run": run,
        "search": "trigram",
        "utterances": {f"{part}-{n}": ["x", 4, errors] for n in range(5)},
    }


def test_the_table_counts_seeds_that_all_parts_have():
    rows = [
        row(part, f"{run}-seed0", errors) for part in "ab" for run, errors in (("none", 2), ("hybrid-hierarchical", 1))
    ]
    table = POOLED.cells([*rows, row("a", "none-seed1", 4)], "trigram")
    assert {name: sorted(cell.errors) for name, cell in table.items()} == {"none": [0], "hierarchical": [0]}
    header, _, none, hierarchical = POOLED.lines(table, ["none"])
    assert "against none" in header
    assert none.startswith("| none | 50.0 | 50.00 |")
    assert "-25.00, -50.0 %" in hierarchical


@pytest.mark.parametrize("table", ["prompts", "speakers"])
def test_a_cell_needs_neither_another_cell_nor_a_page(table: str):
    recipe = CELLS.load_recipe(CELLS.PIPELINES[table], {})
    stages = CELLS.stages_of(recipe)
    run = next(iter(recipe.table("runs")))
    names = CELLS.needed(stages, [f"evaluate-{run}"])
    assert {name for name in names if name.startswith("train-")} == {f"train-{run}"}
    assert "words" in names
    assert not [name for name in names if name.startswith("report")]
