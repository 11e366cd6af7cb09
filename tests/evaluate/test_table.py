"""The objectives' table: its numbers, its order, pooling of seeds, blocks, refusals."""

import dataclasses
import re

import pytest

from hkd.errors import UserError
from hkd.evaluate.decoding import EvaluateConfig
from hkd.evaluate.run import error_rate
from hkd.evaluate.score import EvaluationReport, Hypothesis, paired_bootstrap, read_result, score_all
from hkd.evaluate.table import configuration_of, format_p, objectives_table


def report_of(
    run: str, said: list[str], *, objective: str = "none", speakers: int = 12, seed: int = 0
) -> EvaluationReport:
    """An evaluation of "one two three four five" by many speakers, made from what was understood."""
    rows = tuple(
        Hypothesis(
            id=f"u{n}", speaker=f"s{n % speakers}", seconds=2.0, reference="one two three four five", hypothesis=text
        )
        for n, text in enumerate(said)
    )
    errors = {name: error_rate(score, None, EvaluateConfig(num_draws=100)) for name, score in score_all(rows).items()}
    data = {"utterances": len(rows), "speakers": speakers, "hours": len(rows) / 1800, "words": 5 * len(rows)}
    inputs = {"settings": {"level": 0.95}, "model": "0" * 64, "normalisation": "hkd-words-1"}
    return EvaluationReport(
        run=run, split="test", objective=objective, seed=seed, data=data, errors=errors, frames={},
        parameters=1_000_000,
        decoder={"name": "greedy"}, inputs=inputs, rtf=0.01, hypotheses=rows,
    )  # fmt: skip


GOOD, BAD = "one two three four five", "one two six seven five"


def test_rows_come_in_the_order_of_the_objectives_with_the_evaluations_rates(evaluated) -> None:  # type: ignore[no-untyped-def]
    reports = [read_result(run, "test") for run in reversed(evaluated.runs)]
    table = objectives_table(reports)
    assert [row.name for row in table.rows] == ["none", "hard-heads", "interpolation", "hierarchical"]
    assert table.baseline == "none"
    assert table.blocks == "utterance"
    for row in table.rows:
        report = next(r for r in reports if r.run == row.name)
        for metric, rate in report.errors.items():
            assert row.cells[metric].rate == pytest.approx(rate.rate)
    for rendered in (table.text(), table.markdown()):
        for report in reports:
            assert f"{100 * report.errors['wer'].rate:.2f}" in rendered
        assert re.search(r"\b27 words", rendered)
        assert "Fewer than 10 speakers" in rendered


def test_columns_are_aligned(evaluated) -> None:  # type: ignore[no-untyped-def]
    lines = objectives_table([read_result(run, "test") for run in evaluated.runs]).text().splitlines()
    widths = {len(line) for line in lines[: 2 + len(evaluated.runs)]}
    assert len(widths) == 1


def test_seeds_are_pooled_and_tested_by_speaker() -> None:
    base = [report_of(f"none-seed{s}", [BAD] * 24) for s in (1, 2)]
    best = [report_of(f"best-seed{s}", [GOOD] * (20 + s) + [BAD] * (4 - s), objective="hierarchical") for s in (1, 2)]
    table = objectives_table([*base, *best])
    none, row = table.rows
    assert (none.name, none.against) == ("none", {})
    assert row.runs == ("best-seed1", "best-seed2")
    assert row.cells["wer"].by_seed == pytest.approx((0.4 * 3 / 24, 0.4 * 2 / 24))
    assert row.cells["wer"].rate == pytest.approx(0.4 * 2.5 / 24)
    assert table.blocks == "speaker"
    against = row.against["none"]
    assert against.p < 0.01
    assert against.difference == pytest.approx(0.4 * 2.5 / 24 - 0.4)
    speakers = [f"s{n % 12}" for n in range(24)]
    errors = [0.0] * 21 + [1.0] + [2.0] * 2
    alone = paired_bootstrap(errors, [2.0] * 24, [5] * 24, group_N=speakers)
    assert alone is not None
    assert against.p == alone.p
    assert "2 seeds each" in table.text()
    assert f"2 ({100 * 0.4 * 2 / 24:.1f}–{100 * 0.4 * 3 / 24:.1f})" in table.text()
    assert row.segments == {}


def test_pairs_hold_every_row_against_every_baseline() -> None:
    reports = [
        report_of("none", [BAD] * 24), report_of("a", [BAD] * 20 + [GOOD] * 4, objective="auxiliary"),
        report_of("b", [BAD] * 6 + [GOOD] * 18, objective="hierarchical"),
    ]  # fmt: skip
    table = objectives_table(reports, baselines=["none", "auxiliary"])
    assert table.baselines == ("none", "a")
    assert [pair[:2] for pair in table.pairs()] == [("a", "none"), ("b", "none"), ("none", "a"), ("b", "a")]
    _, _, delta, _, relative, p, segments = table.pairs()[3]
    assert (delta, relative) == ("−23.33", "−70.0")
    assert float(p) < 0.05
    assert segments == "< 0.001"
    assert "p by matched pairs" in table.text()
    assert "| b | a | −23.33 |" in table.markdown()
    with pytest.raises(UserError, match="one of none, a, b, or their objective, but is 'nobody' instead"):
        objectives_table(reports, baselines=["nobody"])
    with pytest.raises(UserError, match=r"'auxilary' instead\. Did you mean 'auxiliary'\?"):
        objectives_table(reports, baselines=["auxilary"])


def test_another_way_to_decode_is_held_against_the_baseline_decoded_alike() -> None:
    plain = [report_of("none", [BAD] * 24), report_of("best", [BAD] * 12 + [GOOD] * 12, objective="hierarchical")]
    fused = [dataclasses.replace(report, tag="fusion") for report in plain]
    table = objectives_table([*plain, *fused, dataclasses.replace(plain[1], tag="alone")])
    assert {pair[:2] for pair in table.pairs()} == {
        ("best", "none"), ("none@fusion", "none"), ("best@fusion", "none@fusion"), ("best@alone", "none"),
    }  # fmt: skip
    assert [row[8] for row in table.cells()] == ["–", "+0.00", "−20.00", "−20.00", "−20.00"]


def test_what_only_looks_like_seeds_is_refused() -> None:
    one, other = report_of("x-seed0", [GOOD] * 3), report_of("x-seed1", [BAD] * 3)
    with pytest.raises(UserError, match="would be seeds of one row, x, but differ in parameters: 1000000 and 7"):
        objectives_table([one, dataclasses.replace(other, parameters=7)])
    with pytest.raises(UserError, match="two are called x-seed0"):
        objectives_table([one, one])


def test_without_a_baseline_no_test() -> None:
    table = objectives_table(
        [report_of("a", [GOOD] * 3, objective="auxiliary"), report_of("b", [BAD] * 3, objective="auxiliary")]
    )
    assert table.baseline is None
    assert all(row.against == {} for row in table.rows)


def test_other_references_are_refused() -> None:
    other = report_of("b", [GOOD] * 4)
    with pytest.raises(UserError, match=r"same utterances, but those of b and a differ"):
        objectives_table([report_of("a", [GOOD] * 3), other])
    with pytest.raises(UserError, match="same utterances"):
        objectives_table([report_of("a", [GOOD] * 3), dataclasses.replace(report_of("b", [GOOD] * 3), split="dev")])
    with pytest.raises(UserError, match="at least one evaluated run"):
        objectives_table([])


def test_students_that_say_nothing_are_named_with_the_remedy() -> None:
    silent, almost = report_of("none", [""] * 24), report_of("best", [""] * 23 + [GOOD], objective="hierarchical")
    fine = report_of("hard-heads", [GOOD] * 23 + [""], objective="hard-heads")
    graph = dataclasses.replace(report_of("graph", [""] * 24), decoder={"name": "graph"})
    table = objectives_table([silent, almost, fine, graph])
    of_graph, of_ctc, *others = table.notes()
    assert of_graph.startswith("Nothing, or almost nothing, is said by graph (120 of 120 words are left out).")
    assert "search.hybrid.beam" in of_graph
    assert (
        "by none (120 of 120 words are left out), best (115 of 120 words are left out). CTC needs more speech" in of_ctc
    )
    assert "--set main=senone" in of_ctc
    assert not any("hard-heads" in note or "Nothing" in note for note in others)


def test_names() -> None:
    names = {
        "none": "none",
        "best-seed3": "best",
        "conformer-s12": "conformer-s12",
        "senones": "senones",
        "x.seed0": "x",
    }
    assert {name: configuration_of(name) for name in names} == names
    assert [format_p(p) for p in (0.0002, 0.0123, 0.5)] == ["< 0.001", "0.012", "0.50"]


def test_what_an_lm_at_the_search_still_gains_is_said_beside_the_baselines_gain() -> None:
    def searched(run: str, said: list[str]) -> EvaluationReport:
        return dataclasses.replace(report_of(run, said), decoder={"name": "beam", "lm": "words.arpa"}, tag="fusion")

    none, fused = report_of("none", [BAD] * 24), searched("none", [GOOD] * 24)  # 40 points
    # 10 points
    best, best_fused = report_of("best", [BAD] * 12 + [GOOD] * 12), searched("best", [BAD] * 6 + [GOOD] * 18)
    [note] = [line for line in objectives_table([none, fused, best, best_fused]).notes() if "still gains" in line]
    assert (
        note == "Points of WER that the LM of @fusion still gains (share of the baseline): none 40.0, best 10.0 (25 %)."
    )
    assert not [line for line in objectives_table([none, best]).notes() if "still gains" in line]
