"""Which heads and terms an objective has, and what it refuses."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hkd.config import merge
from hkd.errors import UserError
from hkd.stream.loader import Batch
from hkd.student.export import load_student
from hkd.student.model import StudentOutput
from hkd.train import objectives
from hkd.train.config import TrainConfig
from hkd.train.objectives import Objective, Term, needs_of, plan_student, register
from hkd.train.run import contradictions, too_little
from kit import runs
from kit.labelled import label_folder
from kit.runs import config_of

STORES = {"senone": "senone", "monophone": "monophone", "subword": "subword", "bert": "subword"}
THREE = {name: level for name, level in STORES.items() if name != "bert"}


def opened(folder: Path, **settings: Any) -> Any:
    return runs.opened(folder, settings)


@pytest.mark.parametrize(
    ("settings", "stores", "hard"),
    [
        ({"objective": "none"}, (), ()),
        ({"objective": "none", "main": "senone"}, (), ()),
        ({"objective": "hard-heads"}, (), ("senone", "monophone", "subword")),
        ({"objective": "hard-heads", "levels": ("monophone",)}, (), ("monophone",)),
        ({"objective": "interpolation"}, ("subword",), ()),
        ({"objective": "interpolation", "main": "senone"}, ("senone",), ()),
        ({"objective": "interpolation", "hard_heads": True}, ("subword",), ("senone", "monophone", "subword")),
        ({"objective": "hierarchical", "main": "senone", "stores": ("subword",)}, ("subword",), ("subword",)),
        ({"objective": "auxiliary", "levels": ("senone",)}, ("senone",), ()),
        ({"objective": "auxiliary", "stores": ("senone",), "hard_heads": True}, ("senone",), ("senone",)),
        ({"objective": "hierarchical"}, ("senone", "monophone", "subword"), ("senone", "monophone", "subword")),
        (
            {"objective": "hierarchical", "levels": ("subword", "senone"), "hard_heads": False},
            ("senone", "subword"),
            (),
        ),
    ],
)
def test_each_objective_takes_what_it_is_defined_by(
    settings: dict[str, Any], stores: tuple[str, ...], hard: tuple[str, ...]
) -> None:
    needs = needs_of(TrainConfig(**settings), THREE, aligned=True)
    assert (needs.stores, needs.hard) == (stores, hard)


@pytest.mark.parametrize(
    ("settings", "stores", "aligned", "message"),
    [
        ({"objective": "hierarchical"}, STORES, True, "subword has subword, bert"),
        ({"objective": "hierarchical"}, {}, True, "there is none"),
        ({"objective": "hierarchical", "stores": ("bart",)}, STORES, True, "'bart' is none of them"),
        ({"objective": "hierarchical", "levels": ("word",)}, THREE, True, "'word' has none"),
        ({"objective": "auxiliary"}, THREE, True, "takes one label store, but senone, monophone, subword would do"),
        ({"objective": "hard-heads"}, {}, False, "needs an alignment"),
        ({"objective": "none", "main": "senone"}, {}, False, "needs an alignment"),
    ],
)
def test_what_cannot_be_had_is_refused(
    settings: dict[str, Any], stores: dict[str, str], aligned: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        needs_of(TrainConfig(**settings), stores, aligned=aligned)


def test_heads_sit_at_their_taps_and_terms_follow_the_main_one(labelled: Path, tmp_path: Path) -> None:
    small = {"num_layers": 6, "d_model": 16, "num_heads": 2}
    copied = shutil.copytree(labelled, tmp_path / "project")
    (copied / "shards" / "monophone").rename(copied / "shards" / "phones")
    # a store's own layer goes before its level's
    of_store = opened(copied, encoder=small, taps={"monophone": 5, "phones": 6})
    assert {head.name: head.tap for head in of_store.plan.student.heads if head.level == "monophone"} == {
        "hard-monophone": 5,
        "kd-phones": 6,
    }
    data = opened(labelled, encoder=small, taps={"monophone": 5})
    heads = {head.name: (head.tap, head.slots, head.num_units) for head in data.plan.student.heads}
    units = {name: store.num_units for name, store in data.join.stores.items()}
    assert heads == {
        "hard-senone": (2, 4, 5126), "hard-monophone": (5, 1, 42),
        "hard-subword": (6, 1, len(data.join.subwords.inventory)),
        "kd-senone": (2, 4, units["senone"]), "kd-monophone": (5, 1, units["monophone"]),
        "kd-subword": (6, 1, units["subword"]),
    }  # fmt: skip
    assert [term.name for term in data.plan.terms] == ["ctc", *heads]


def test_a_temperature_that_was_not_dumped_and_a_tail_that_does_not_fit_are_refused(labelled: Path) -> None:
    with pytest.raises(UserError, match=r"label store 'senone' holds \(1\), but is 3 instead"):
        opened(labelled, kd={"temperature": 3.0})
    with pytest.raises(UserError, match=r"`kd\.tail` must fit label store 'senone', whose selection is topk"):
        opened(labelled, kd={"tail": "sampled"})
    with pytest.raises(UserError, match=r"`kd\.where` must be frames or segments for label store 'senone'"):
        opened(labelled, kd={"where": "ctc"}, levels=["senone"])


@pytest.mark.parametrize("name", ["taps", "slots", "stride", "alphas"])
def test_a_table_by_level_that_names_no_level_is_refused(labelled: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"`{name}` must name levels .*'subwords' is none of them"):
        opened(labelled, **{name: {"subwords": 1}})


@pytest.mark.parametrize(("name", "value"), [("lams", 0.5), ("kds", {"tail": "renormalised"})])
def test_a_table_by_store_that_names_no_store_is_refused(labelled: Path, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"`{name}` must name label stores .*'subwords' is none of them"):
        opened(labelled, **{name: {"subwords": value}})
    opened(labelled, **{name: {"subword": value}}, levels=["senone"])  # it is there: another run's of the same table


@pytest.mark.parametrize("main", ["ctc", "senone"])
def test_condition_adds_hard_heads_and_takes_those_of_label_stores_by_name(labelled: Path, main: str) -> None:
    plan = opened(labelled, objective="interpolation", main=main, condition=["monophone"]).plan
    assert [(head.name, head.condition) for head in plan.student.heads] == [("hard-monophone", True)]
    assert [term.name for term in plan.terms][1:] == ["hard-monophone"]
    settings = {"objective": "hierarchical", "hard_heads": False, "stores": ["senone", "subword"]}
    heads = opened(labelled, main=main, condition=["senone", "kd-senone"], **settings).plan.student.heads
    assert {head.name: head.condition for head in heads} == {
        "hard-senone": True,
        "kd-senone": True,
        "kd-subword": False,
    }
    with pytest.raises(
        UserError, match=r"`condition` must name levels or heads \(.*kd-senone.*\), but 'kd-x' is none of them"
    ):
        opened(labelled, main=main, condition=["kd-x"], **settings)
    if main == "senone":
        with pytest.raises(UserError, match=r"`slots\.senone` must be 4 where `main` is senone"):
            opened(labelled, main=main, condition=["senone"], slots={"senone": 1}, **settings)
    with pytest.raises(UserError, match=r"`condition` must name heads where `condition_alone` is given"):
        TrainConfig(condition_alone=0.5)


def test_the_hybrid_main_output_takes_every_slot(labelled: Path) -> None:
    with pytest.raises(UserError, match=r"`stride\.senone` must be 1 where `main` is senone"):
        opened(labelled, main="senone", stride={"senone": 3})


def test_ctc_occupancies_take_one_slot_a_frame(labelled: Path) -> None:
    with pytest.raises(UserError, match=r"`slots\.subword` must be 1 where `kd\.where` is ctc, but is 2"):
        opened(labelled, objective="auxiliary", levels=["subword"], kd={"where": "ctc"}, slots={"subword": 2})


MIXED = [
    {"objective": "interpolation"},
    {"objective": "interpolation", "main": "senone"},
    {"objective": "auxiliary", "levels": ["subword"], "kd": {"where": "ctc"}},
]


@pytest.mark.parametrize("settings", MIXED)
def test_where_targets_are_for_one_softmax_the_student_is_at_temperature_one(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    data = opened(labelled, **settings)
    [store] = data.needs.stores
    reader = data.join.stores[store].reader
    monkeypatch.setattr(reader, "spec", replace(reader.spec, temperatures=(3.0,)))

    def made(**kd: Any) -> Any:
        config = replace(data.config, kd=replace(data.config.kd, **kd))
        return plan_student(config, data.needs, data.join)

    for wrong in ({"student_temperature": 3.0}, {"temperature": 3.0}, {"temperature": 3.0, "student_temperature": 2.0}):
        with pytest.raises(
            UserError, match=r"`kd\.student_temperature` must be 1 with .* Take --set kd\.student_temperature=1"
        ):
            made(**wrong)
    for tail in ("gold-residual", "sampled"):
        with pytest.raises(UserError, match=r"`kd\.tail` must be ghost or renormalised"):
            made(tail=tail)
    with pytest.raises(
        UserError, match=r"`kd\.temperature` must be one that label store '\w+' holds \(1, 3\), but is 2"
    ):
        made(temperature=2.0, student_temperature=1.0)
    terms = made(temperature=3.0, student_temperature=1.0).terms
    [term] = [term for term in terms if getattr(term, "store", None)]
    assert (term.kd.temperature, term.column) == (3.0, 0)


@pytest.mark.parametrize(("main", "where"), [("ctc", "segments"), ("senone", "segments"), ("senone", "ctc")])
def test_interpolation_teaches_every_frame(labelled: Path, main: str, where: str) -> None:
    with pytest.raises(UserError, match=rf"`kd\.where` must be frames.* with interpolation .*, but is {where} instead"):
        opened(labelled, objective="interpolation", main=main, kd={"where": where})


@pytest.mark.parametrize(
    "settings", [{"objective": "interpolation"}, {"objective": "auxiliary", "kd": {"where": "ctc"}}]
)
def test_draws_are_refused_where_the_distribution_itself_is_wanted(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    data = opened(labelled, levels=["subword"], **settings)
    reader = data.join.stores["subword"].reader
    monkeypatch.setattr(reader, "spec", replace(reader.spec, selection="sample"))
    with pytest.raises(UserError, match="that of 'subword' is sample"):
        plan_student(data.config, data.needs, data.join)


def test_a_temperature_that_was_dumped_is_taken(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "shards")
    label_folder(tmp_path / "p", levels=["monophone"], k=42)
    data = opened(tmp_path / "p", objective="auxiliary", kd={"temperature": 3.0})  # dense: any temperature
    assert data.plan.terms[1].column is None


def test_an_unknown_objective_is_refused_with_those_that_are_known(labelled: Path) -> None:
    with pytest.raises(UserError, match=r"`objective` must be one of none, hard-heads, .* but is 'both' instead"):
        opened(labelled, objective="both")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lam": -1.0}, "`lam`"),
        ({"min_coverage": 2.0}, "`min_coverage`"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TrainConfig(), **wrong)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"encoder": {"preset": "s"}}, []),
        ({"encoder": {"d_model": 16, "num_heads": 2}}, []),  # a preset that is not named loses nothing
        ({"encoder": {"preset": "s", "d_model": 192}}, []),
        (
            {"encoder": {"preset": "s", "d_model": 112}},
            ["`encoder.d_model` is 112 and wins over `encoder.preset` s, which has 192"],
        ),
        (
            {"encoder": {"preset": "m", "num_layers": 3, "conv_kernel": 5}},
            ["`encoder.num_layers` is 3 and wins", "`encoder.conv_kernel` is 5 and wins"],
        ),
        ({"heads_warmup_steps": 300}, []),
        ({"heads_warmup_steps": 301}, ["`heads_warmup_steps` is 301, but there are 300 steps"]),
    ],
)
def test_settings_that_lose_against_another_are_said(settings: dict[str, Any], said: list[str]) -> None:
    lines = contradictions(config_of(settings), max_steps=300)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_interpolation_asks_nothing_of_levels_that_it_does_not_read() -> None:
    stores = {"monophone": "monophone", "own-lm": "monophone", "projected": "subword"}
    config = config_of({"objective": "interpolation"})
    assert needs_of(config, stores, aligned=True).stores == ("projected",)
    with pytest.raises(UserError, match="a level must have one label store, but subword has"):
        needs_of(config, {**stores, "other": "subword"}, aligned=True)


@pytest.mark.parametrize(
    ("settings", "hours", "said"),
    [
        ({}, 0.3, True),
        ({}, 10.0, False),
        ({"main": "senone"}, 0.3, False),
        ({"encoder": {"upstream": "openai/whisper-base"}}, 0.3, False),
        ({"encoder": {"name": "facebook/wav2vec2-base"}}, 0.3, False),
    ],
)
def test_little_speech_for_ctc_from_scratch_is_said_with_what_to_take(
    settings: dict[str, Any], hours: float, said: bool
) -> None:
    lines = too_little(config_of(settings), hours)
    assert [("main=senone" in line, "encoder.upstream" in line) for line in lines] == [(True, True)] * said


@dataclass(frozen=True, kw_only=True)
class Entropy(Term):
    """A term of somebody else's: the main output's entropy, subtracted."""

    name: str = "entropy"

    def count(self, batch: Batch) -> float:
        return float(batch.x_BTF.shape[0])

    def loss(self, batch: Batch, output: StudentOutput) -> Tensor:
        logp_BTV = torch.log_softmax(output.logits_BTV, -1)
        return (logp_BTV.exp() * logp_BTV).sum(-1).mean(-1).sum()


def test_an_objective_registered_from_outside_trains(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that adds a term without a head to a teacher's head: nothing else names it."""
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    register(
        Objective(
            name="sure-and-taught",
            help="a penalty of certainty beside one taught layer",
            stores="one",
            heads=lambda given: [*objectives.auxiliary_heads(given), (None, Entropy())],
        )
    )
    settings = merge(
        tiny, {"objective": "sure-and-taught", "levels": ["monophone"], "loop": {"max_steps": 3, "log_every": 1}}
    )
    report = runs.trained(labelled, tmp_path / "run", settings)
    assert {"ctc", "kd-monophone", "entropy"} <= report.metrics.keys()
    assert report.metrics["entropy"] < 0
    extra = load_student(tmp_path / "run" / "model")[1].extra
    assert (extra["objective"], extra["objective_help"]) == (
        "sure-and-taught",
        "a penalty of certainty beside one taught layer",
    )
