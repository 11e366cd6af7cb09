"""A run with text: terms of its own, the same weights however it is cut and however often it is killed, and what it
refuses."""

import json
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hkd.config import merge
from hkd.errors import UserError
from hkd.stream.loader import BatchPlan
from hkd.stream.text import SpeechAndText
from hkd.train.bank import BankConfig, make_bank
from hkd.train.config import TextConfig, TrainConfig
from hkd.train.run import make_task
from kit.runs import config_of, inputs, opened, rows, trained
from kit.workers import two_processes

Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"objective": "none", "text": {"labels": ""}}, {"ctc"}),
        ({"objective": "hard-heads", "text": {"labels": ""}}, {"ctc", "hard-subword"}),
        ({"objective": "interpolation"}, {"ctc"}),
        pytest.param(
            {"objective": "none", "main": "senone", "condition": ["senone"],
                "text": {"labels": ""}}, {"senone"}, marks=pytest.mark.slow
        ),
        ({"objective": "hierarchical", "hard_heads": False, "taps": {"monophone": 2}, "condition": ["senone"]},
            {"ctc", "kd-monophone", "kd-subword"}),
        ({"objective": "hierarchical", "hard_heads": False, "text": {"posteriors": "clean"}}, {"ctc", "kd-subword"}),
    ],
)  # fmt: skip
def test_each_objective_teaches_on_text_what_lies_above_the_tap(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path, settings: dict[str, Any], terms: set[str]
) -> None:
    asked = merge(
        merge(text_settings, {"loop": {"max_steps": 10, "log_every": 1, "eval_every": 0, "learning_rate": 3e-3}}),
        settings,
    )
    if settings.get("main") == "senone" or asked["condition"] == ["senone"]:  # a bank of that student
        config = config_of(merge(asked, {"loop": {"max_steps": 1}}))
        make_bank(config, tmp_path / "bank", bank=BankConfig(folds=2), device="cpu", **inputs(texted))
        asked = merge(asked, {"text": {"bank": str(tmp_path / "bank")}})
    trained(texted, tmp_path / "run", asked)
    found = rows(tmp_path / "run")
    names = {f"text-{name}" for name in terms}
    assert {name for name in found[0]["gradient_share"] if name.startswith("text-")} == names
    assert all(found[0]["gradient_norm"][name] > 0 for name in names - {"text-kd-monophone"})
    first, *later = (row for row in found if "lr" in row)
    main = next(name for name in names if name in ("text-ctc", "text-senone"))
    assert min(row[main] for row in later) < first[main] or asked["text"]["bank"] == str(
        tmp_path / "bank"
    )  # the posteriors of one step say nothing


def test_the_loss_is_that_of_the_posteriors_and_each_term_has_its_count(
    texted: Path, text_settings: dict[str, Any]
) -> None:
    data = opened(texted, merge(text_settings, {"text": {"weight": 0.5}}))
    task = make_task(data, BatchPlan([data.frames[u.id] for u in data.train], batch_frames=700, seed=0), max_steps=12)
    task.student.eval()  # without dropout
    batch = next(task.batches(3, 0, 1))
    assert isinstance(batch, SpeechAndText)
    assert batch.text is not None
    assert batch.speech is not None
    share = batch.text.seconds / batch.seconds
    assert 0.2 < share < 0.8  # asked for: half, of lengths that are drawn
    counts, losses = task.counts(batch), task.losses(batch, 3)
    assert counts["text-ctc"] == len(batch.text.target_L)
    assert counts["ctc"] == len(batch.speech.target_L)
    output = task.student.read(batch.text.posteriors, batch.text.length_B // 4)
    targets = torch.split(batch.text.target_L, batch.text.target_length_B.tolist())
    expected = [
        torch.nn.functional.ctc_loss(logits_TV[:length].log_softmax(-1), target, length[None],
            torch.tensor([len(target)]), reduction="sum")
        for logits_TV, length, target in zip(output.logits_BTV, output.length_B, targets, strict=True)
        if length >= len(target) + int((target[1:] == target[:-1]).sum())
    ]  # fmt: skip
    torch.testing.assert_close(losses["text-ctc"], torch.stack(expected).sum(), rtol=1e-4, atol=1e-3)
    weights = task.weights(0)
    assert (weights["ctc"], weights["text-ctc"], weights["kd-subword"], weights["text-kd-subword"]) == (
        1.0,
        0.5,
        0.3,
        0.15,
    )
    assert set(counts) == set(losses) == set(weights)


# 50: more shares than utterances, so that some are empty, or text alone
@pytest.mark.parametrize("accumulate", [3, 50])
def test_cut_into_shares_it_gives_the_same(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path, accumulate: int
) -> None:
    settings = merge(text_settings, {"shares_every": 0, "loop": {"max_steps": 4, "log_every": 1}})
    trained(texted, tmp_path / "one", settings)
    trained(texted, tmp_path / "many", merge(settings, {"loop": {"accumulate": accumulate}}))
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a == pytest.approx(b, rel=2e-4)


def test_workers_make_the_same_and_the_last_epochs_are_speech_alone(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = merge(
        text_settings, {"epochs": 3, "text": {"speech_last": 1}, "loop": {"log_every": 1, "eval_every": 0}}
    )
    trained(texted, tmp_path / "a" / "run", settings)
    trained(texted, tmp_path / "b" / "run", {**settings, "workers": 1})
    for name in ("final.safetensors", "metrics.jsonl"):
        assert (tmp_path / "a" / "run" / name).read_bytes() == (tmp_path / "b" / "run" / name).read_bytes()
    steps = [row for row in rows(tmp_path / "a" / "run") if "lr" in row]
    per_epoch = len(steps) // 3
    assert all("text-ctc" in row for row in steps[: 2 * per_epoch])
    assert not any("text-ctc" in row for row in steps[2 * per_epoch :])


@pytest.mark.parametrize(
    ("kills", "mixed"),
    [(2, False), pytest.param(20, True, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=["same", "mixed"],
)
def test_killed_many_times_it_ends_in_the_same_weights(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path, start: Start, kills: int, mixed: bool
) -> None:
    """At one world size in the same bytes; at one and two processes in turn in the same weights."""
    settings = merge(text_settings, {"loop": {"max_steps": 3 * kills + 6, "save_every": 2}, "shares_every": 0})
    trained(texted, tmp_path / "a" / "run", settings)
    order = random.Random(0)
    folder = tmp_path / "b" / "run"
    for kill in range(kills):
        processes = order.choice((1, 2)) if mixed else 1
        process = start(texted, folder, settings, command=(sys.executable,) if processes == 1 else two_processes())
        for line in process.stdout:
            if line.strip().isdigit() and int(line) >= 3 * (kill + 1):
                break
        process.send_signal(signal.SIGKILL if processes == 1 else signal.SIGTERM)  # torchrun passes SIGTERM on
        process.communicate()
        assert not (folder / "done.json").exists()
    trained(texted, folder, settings)
    if not mixed:
        for name in ("final.safetensors", "metrics.jsonl"):
            assert (folder / name).read_bytes() == (tmp_path / "a" / "run" / name).read_bytes()
    one, other = (safetensors.torch.load_file(path / "final.safetensors") for path in (tmp_path / "a" / "run", folder))
    torch.testing.assert_close(other, one, rtol=2e-3, atol=5e-5)


def test_a_bank_of_other_inputs_and_missing_stores_are_refused(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"its student\.encoder\.conv_kernel is 5 instead of 7\. Run `hkd bank`"):
        opened(texted, merge(text_settings, {"encoder": {"conv_kernel": 7}}))
    with pytest.raises(UserError, match=r"its data\.train is .* Run `hkd bank`"):
        opened(texted, {**text_settings, "train_share": 0.5})
    with pytest.raises(UserError, match="Run `hkd bank` first"):
        opened(texted, merge(text_settings, {"text": {"bank": str(tmp_path)}}))
    shutil.copytree(texted / "text-shards" / "subword", tmp_path / "few" / "subword")
    with pytest.raises(UserError, match=r"`text\.labels` must have a label store 'senone', but .* has subword"):
        opened(texted, merge(text_settings, {"text": {"labels": str(tmp_path / "few")}}))
    for wrong, message in (
        ({"share": 1.0}, "below 1"),
        ({"posteriors": "x"}, "bank, clean"),
        ({"masked_only": ("subword",)}, "subword"),
    ):
        with pytest.raises(UserError, match=message):
            TextConfig(**wrong)
    with pytest.raises(UserError, match=r"`condition` must name heads where `text\.share`"):
        TrainConfig(text=TextConfig(share=0.5))


def test_text_that_cannot_be_said_or_is_not_what_was_labelled_is_refused(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path
) -> None:
    def with_text(**row: str) -> dict[str, Any]:
        (tmp_path / "text.jsonl").write_text(json.dumps(row) + "\n")
        return merge(text_settings, {"text": {"path": str(tmp_path / "text.jsonl")}, "min_coverage": 0.0})

    with pytest.raises(UserError, match="sentence 'a' must have words"):
        opened(texted, with_text(id="a", text="..."))
    with pytest.raises(
        UserError, match=r"1 of 1 sentences of .*: 'a' \(ZH in measure\)\. Add speech that has these phones"
    ):
        opened(texted, with_text(id="a", text="measure pleasure"))
    with pytest.raises(UserError, match="utterance 'text00': the transcript must be the one that was labelled"):
        opened(texted, with_text(id="text00", text="the the the"))
    with pytest.raises(
        UserError, match=r"`min_coverage` must be reached by the text's label store 'subword', but 1 of 1"
    ):
        opened(texted, {**with_text(id="a", text="the the"), "min_coverage": 1.0})


def test_a_sentence_with_a_phone_that_the_speech_lacks_is_left_out_and_named(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.jsonl").write_text(
        "".join(
            json.dumps({"id": name, "text": text}) + "\n" for name, text in [("a", "the measure"), ("b", "the the")]
        )
    )
    settings = merge(text_settings, {"text": {"path": str(tmp_path / "text.jsonl"), "labels": ""}, "objective": "none"})
    data = opened(texted, settings)
    assert data.text is not None
    assert [u.id for u in data.text.maker.utterances] == ["b"]
    assert "1 of 2 sentences" in caplog.text
    assert "'a' (ZH in measure). They are left out." in caplog.text


def test_where_text_lies_is_no_part_of_a_run_and_what_it_says_is(
    texted: Path, text_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = merge(text_settings, {"text": {"share": 0.3}})
    first = opened(texted, settings).identity
    shutil.copy(texted / "text.jsonl", tmp_path / "other.jsonl")
    assert opened(texted, merge(settings, {"text": {"path": str(tmp_path / "other.jsonl")}})).identity == first
    lines = (tmp_path / "other.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert opened(texted, merge(settings, {"text": {"path": str(tmp_path / "other.jsonl")}})).identity != first
    assert "text" not in opened(texted, merge(settings, {"text": {"share": 0.0}})).identity["train"]
    assert np.isclose(first["train"]["text"]["share"], 0.3)
