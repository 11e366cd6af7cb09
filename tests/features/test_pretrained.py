"""A frozen encoder as a front end: transformers' own values for an utterance alone, and nothing lost when it is
saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hkd.audio import import_torchaudio
from hkd.errors import UserError
from hkd.features.fbank import FrontEnd
from hkd.features.pretrained import Upstream
from kit.encoders import tiny_encoder

import_torchaudio()
import transformers  # noqa: E402


def front_end(folder: Path) -> FrontEnd:
    upstream = Upstream(name=str(folder))
    return FrontEnd(kind="upstream", num_bins=upstream.width // 2, upstream=upstream)


def sound(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)


@pytest.mark.parametrize("num_samples", [1, 500, 15_999, 16_320])
@pytest.mark.parametrize("architecture", ["wav2vec2", "whisper"])
def test_rows_of_10_ms_hold_the_frames_of_20_ms(tmp_path: Path, architecture: str, num_samples: int) -> None:
    read = front_end(tiny_encoder(tmp_path / "encoder", architecture))
    wave_S = sound(num_samples)
    x_TF = read(wave_S)
    assert x_TF.shape == (max(1, num_samples // 160), 8)
    assert np.isfinite(x_TF).all()
    np.testing.assert_array_equal(read(wave_S), x_TF)


def test_wav2vec2_says_what_transformers_says_of_the_utterance_alone(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder", "wav2vec2")
    wave_S = sound(320 * 49 + 400)  # exactly 50 frames of 20 ms
    model = transformers.AutoModel.from_pretrained(folder).eval()
    x_TF = front_end(folder)(wave_S)
    normal_S = (wave_S - wave_S.mean()) / np.sqrt(wave_S.var() + 1e-7)
    normal_S[len(wave_S) // 160 * 160 :] = 0
    with torch.no_grad():
        expected_TD = model(torch.from_numpy(normal_S)[None]).last_hidden_state[0]
    np.testing.assert_allclose(x_TF[:100].reshape(50, 16), expected_TD.numpy(), atol=1e-4)


def test_whisper_of_its_full_length_says_what_transformers_says(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder", "whisper")  # reads up to 6 s
    wave_S = sound(6 * 16_000)
    model = transformers.AutoModel.from_pretrained(folder).encoder.eval()
    mel_TF = FrontEnd(kind="whisper", num_bins=80)(wave_S)
    with torch.no_grad():
        expected_TD = model(torch.from_numpy(mel_TF).T[None]).last_hidden_state[0]
    np.testing.assert_allclose(front_end(folder)(wave_S).reshape(300, 16), expected_TD.numpy(), atol=1e-5)
    with pytest.raises(UserError, match=r"at most 6 s long for this encoder"):
        front_end(folder)(sound(7 * 16_000))


@pytest.mark.parametrize("architecture", ["hubert", "whisper"])
def test_what_is_saved_gives_the_same_values(tmp_path: Path, architecture: str) -> None:
    first = front_end(tiny_encoder(tmp_path / "encoder", architecture))
    assert first.upstream is not None
    first.upstream.save(tmp_path / "saved")
    again = front_end(tmp_path / "saved")
    np.testing.assert_array_equal(again(sound(9_000)), first(sound(9_000)))
    assert again.num_parameters == first.num_parameters > 0
    assert again.key == first.key  # wherever it lies


def test_a_checkpoint_without_a_vector_for_masks_is_read(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder", "wav2vec2")
    x_TF = front_end(folder)(sound(9_000))
    weights = load_file(folder / "model.safetensors")
    del weights["masked_spec_embed"]  # as of models fine-tuned without masks
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(front_end(folder)(sound(9_000)), x_TF)


def test_an_adapter_is_refused_and_so_is_a_broken_preprocessor(tmp_path: Path) -> None:
    longer = tiny_encoder(tmp_path / "longer", "wav2vec2", add_adapter=True)
    with pytest.raises(UserError, match="no adapter"):
        Upstream(name=str(longer))
    folder = tiny_encoder(tmp_path / "encoder", "wav2vec2")
    first = front_end(folder)
    key = first.key
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert first.key != key  # other values are another key
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json must be"):
        Upstream(name=str(folder))


def test_its_key_goes_by_the_weights_not_by_the_place(tmp_path: Path) -> None:
    first = front_end(tiny_encoder(tmp_path / "a", "whisper"))
    same = front_end(tiny_encoder(tmp_path / "b", "whisper"))
    assert first.key == same.key
    x_TF = first(sound(3_200))
    tiny_encoder(tmp_path / "b", "whisper", seed=1)  # in the same place
    assert same.key != first.key
    assert not np.allclose(same(sound(3_200)), x_TF)


def test_what_is_no_encoder_is_one_sentence(tmp_path: Path) -> None:
    for name in ("./nowhere", str(tmp_path)):
        with pytest.raises(UserError, match=r"encoder\.upstream must be a"):
            Upstream(name=name)
    with pytest.raises(UserError, match="upstream must be given"):
        FrontEnd(kind="upstream", num_bins=8)
