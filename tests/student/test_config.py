"""Sizes, presets, and what is refused."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from hkd.errors import UserError
from hkd.student.config import EncoderConfig, HeadConfig, StudentConfig, config_from_json, default_slots, default_tap
from hkd.student.model import StudentModel


@pytest.mark.parametrize(("preset", "millions"), [("xs", 2), ("s", 10), ("m", 30)])
def test_presets_have_the_size_that_they_promise(preset: str, millions: float) -> None:
    with torch.device("meta"):
        student = StudentModel(StudentConfig(encoder=EncoderConfig(preset=preset), num_main_units=501))
    assert student.num_parameters() == pytest.approx(millions * 1e6, rel=0.1)


def test_given_sizes_win_over_the_presets() -> None:
    config = EncoderConfig(preset="s", num_layers=3)
    assert (config.num_layers, config.d_model) == (3, EncoderConfig(preset="s").d_model)


def test_default_taps_are_at_a_third_two_thirds_and_the_top() -> None:
    assert [default_tap(level, 12) for level in ("senone", "monophone", "subword", "word")] == [4, 8, 12, 12]
    for layers in range(1, 30):
        taps = [default_tap(level, layers) for level in ("senone", "monophone", "subword")]
        assert taps == sorted(taps)
        assert taps[0] >= 1
        assert taps[2] == layers
        assert abs(taps[0] - layers / 3) < 0.67
    assert (default_slots("senone"), default_slots("monophone")) == (4, 1)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: EncoderConfig(preset="xl"), "preset"),
        (lambda: EncoderConfig(d_model=10, num_heads=3), "d_model"),
        (lambda: EncoderConfig(conv_kernel=4), "conv_kernel"),
        (lambda: EncoderConfig(dropout=1.0), "dropout"),
        (lambda: EncoderConfig(num_layers=-1), "num_layers"),
        (lambda: config_from_json({"encoder": {"front": "conv2d"}, "num_main_units": 5}), "front must be conv1d"),
        (lambda: HeadConfig(name="a.b", level="senone", num_units=3, tap=1), "a.b"),
        (lambda: HeadConfig(name="a", level="senone", num_units=3, tap=1, slots=3), "slots"),
        (lambda: HeadConfig(name="a", level="senone", num_units=3, tap=1, kind="soft"), "kind"),
        (lambda: StudentConfig(num_main_units=1), "num_main_units"),
        (lambda: StudentConfig(num_main_units=5, main="rnnt"), "main"),
        (
            lambda: StudentConfig(num_main_units=5, heads=(HeadConfig(name="a", level="senone", num_units=3, tap=99),)),
            "tap",
        ),
        (
            lambda: StudentConfig(
                num_main_units=5, heads=(HeadConfig(name="a", level="senone", num_units=3, tap=1),) * 2
            ),
            "distinct",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(build: Callable[[], Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        build()


def test_json_round_trip_and_unknown_keys(config: StudentConfig) -> None:
    assert config_from_json(asdict(config)) == config
    with pytest.raises(UserError, match="Did you mean 'd_model'"):
        config_from_json({**asdict(config), "encoder": {"d_modell": 3}})
