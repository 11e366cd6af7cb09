"""store.json and the shard plan."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.errors import UserError
from hkd.files import differences
from hkd.labels.format import StoreSpec, sorted_ids
from hkd.testing.store import inventory, spec_for, specs


@given(st.integers(0, 3000), st.integers(1, 700))
def test_the_plan_puts_every_utterance_in_one_shard(n: int, m: int) -> None:
    plan = spec_for(num_utterances=n, utterances_per_shard=m)
    rows = [row for shard in range(plan.num_shards) for row in plan.rows(shard)]
    assert rows == list(range(n))
    for shard in range(plan.num_shards):
        assert all(
            divmod(row, plan.utterances_per_shard) == (shard, place) for place, row in enumerate(plan.rows(shard))
        )
        assert len(plan.rows(shard)) > 0


@settings(max_examples=30, deadline=None)
@given(specs())
def test_json_round_trip(spec: StoreSpec) -> None:
    value = json.loads(json.dumps(spec.to_json()))
    again = StoreSpec.from_json(value, spec.inventory)
    assert again == spec
    assert again.digest == spec.digest


def test_a_newer_minor_version_is_read_and_its_keys_are_kept() -> None:
    value = spec_for().to_json() | {"format": "1.7", "colour": "green"}
    spec = StoreSpec.from_json(value, inventory(50))
    assert spec.extra == {"colour": "green"}
    assert spec.to_json() == value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "2.0"}, "must be 1.x, but is 2.0"),
        ({"format": 1}, "no format"),
        ({"kind": "something"}, "no format"),
        ({"k": 0}, "`k`"),
        ({"k": True}, "`k`"),
        ({"k": "8"}, "`k`"),
        ({"num_utterances": -1}, "`num_utterances`"),
        ({"utterances_per_shard": 10**30}, "`utterances_per_shard`"),
        ({"codec": {"name": "pickle"}}, "`codec`"),
        ({"codec": "grid"}, "TypeError"),
        ({"codec": {"name": "grid", "step": 0}}, "`step`"),
        ({"temperatures": [-1]}, "`temperatures`"),
        ({"temperatures": None}, "TypeError"),
        ({"level": 7}, "`level`"),
        ({"teacher": []}, "`teacher`"),
        ({"compression": "none"}, "`compression`"),
        ({"inventory": {"digest": "x"}}, "inventory"),
    ],
)
def test_what_is_no_store_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        StoreSpec.from_json(json.loads(json.dumps(spec_for().to_json() | change)), inventory(50))


def test_a_missing_key_is_refused() -> None:
    value = spec_for().to_json()
    for key in ("teacher", "k", "codec", "inventory", "manifest_digest", "temperatures"):
        with pytest.raises(UserError):
            StoreSpec.from_json({name: item for name, item in value.items() if name != key}, inventory(50))


def test_the_identity_leaves_out_who_ran_it() -> None:
    spec = spec_for()
    assert replace(spec, hkd_version="9", command="other").digest == spec.digest
    others: list[dict[str, Any]] = [{"k": 7}, {"codec": "f16"}, {"manifest_digest": "2"}, {"inventory": inventory(49)}]
    others += [{"teacher": {"name": "other"}}, {"context": "256"}, {"temperatures": (2.0,)}, {"selection": "sample"}]
    for change in others:
        assert replace(spec, **change).digest != spec.digest


def test_differences_name_the_key() -> None:
    other = replace(spec_for(), teacher={**spec_for().teacher, "digest": "f" * 64})
    assert differences(spec_for().identity(), other.identity()) == [("teacher.digest", "0" * 64, "f" * 64)]


def test_ids_are_sorted_and_unique() -> None:
    assert sorted_ids(["b", "a", "ä", "B"]) == ["B", "a", "b", "ä"]
    with pytest.raises(UserError, match="'a' stands twice"):
        sorted_ids(["a", "b", "a"])
    with pytest.raises(UserError, match="non-empty"):
        sorted_ids([""])
