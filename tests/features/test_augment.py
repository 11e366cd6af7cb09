"""Augmentation depends on (seed, epoch, utterance) and nothing else, and does what its numbers say."""

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.features.fbank import (
    NO_AUGMENTATION,
    AugmentConfig,
    add_noise,
    change_speed,
    draw_speed,
    generator,
    spec_augment,
)
from hkd.timebase import SAMPLE_RATE_HZ, retime, samples_to_frames


def test_the_same_triple_gives_the_same_numbers_and_another_gives_others() -> None:
    first = generator(0, 3, "u").random(4)
    assert (generator(0, 3, "u").random(4) == first).all()
    for other in (generator(1, 3, "u"), generator(0, 4, "u"), generator(0, 3, "v")):
        assert (other.random(4) != first).all()


def test_every_speed_is_drawn_about_as_often() -> None:
    speeds = [draw_speed(AugmentConfig(), generator(0, 0, f"u{n}")) for n in range(600)]
    assert all(150 < speeds.count(speed) < 250 for speed in (0.9, 1.0, 1.1))


@pytest.mark.parametrize("snr", [(10.0,), (), (1.0, 2.0, 3.0), (30.0, 10.0), (float("nan"), 10.0), (0.0, float("inf"))])
def test_a_noise_range_is_two_numbers_in_order(snr: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="`noise_snr_db` must be the lowest and the highest ratio"):
        AugmentConfig(noise_snr_db=snr)  # type: ignore[arg-type]


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_a_click_moves_to_where_retiming_says(speed: float) -> None:
    wave_S = np.zeros(SAMPLE_RATE_HZ, np.float32)
    wave_S[40 * 160 : 40 * 160 + 16] = 0.5
    changed_S = change_speed(wave_S, speed)
    assert abs(samples_to_frames(len(changed_S)) - int(retime(np.array([100]), speed)[0])) <= 1
    assert abs(int(np.abs(changed_S).argmax()) / 160 - int(retime(np.array([40]), speed)[0])) <= 1


def test_masks_fill_whole_bins_and_frames_with_the_mean_and_leave_the_rest() -> None:
    x_TF = np.random.default_rng(0).standard_normal((200, 80)).astype(np.float32)
    fill_F = np.full(80, 7, np.float32)
    config = AugmentConfig()
    y_TF = spec_augment(x_TF, config, generator(0, 0, "u"), fill_F=fill_F)
    masked_TF = y_TF == 7
    assert ((y_TF == x_TF) | masked_TF).all()
    frames_T, bins_F = masked_TF.all(1), masked_TF.all(0)
    assert (masked_TF == (frames_T[:, None] | bins_F[None])).all()
    assert 0 < bins_F.sum() <= config.freq_masks * config.freq_width
    assert 0 < frames_T.sum() <= config.time_masks * config.time_share * 200
    assert (spec_augment(x_TF, NO_AUGMENTATION, generator(0, 0, "u"), fill_F=fill_F) == x_TF).all()


def test_noise_has_the_asked_for_ratio() -> None:
    wave_S = np.sin(np.arange(160_000) * 0.05).astype(np.float32)
    config = AugmentConfig(noise_probability=1.0, noise_snr_db=(20.0, 20.0))
    noise_S = add_noise(wave_S, config, generator(0, 0, "u")) - wave_S
    assert 10 * np.log10(np.mean(wave_S**2) / np.mean(noise_S**2)) == pytest.approx(20, abs=0.1)
    assert add_noise(wave_S, AugmentConfig(), generator(0, 0, "u")) is wave_S


@pytest.mark.parametrize("wrong", [{"speeds": (3.0,)}, {"time_share": 2.0}, {"freq_masks": -1}])
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}`"):
        AugmentConfig(**wrong)  # type: ignore[arg-type]
