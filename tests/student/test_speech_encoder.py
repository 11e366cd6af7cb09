"""Encoders of transformers: their own outputs, whatever the batch; weights, taps, lengths, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.audio import import_torchaudio
from hkd.errors import HkdError, UserError
from hkd.student.config import (
    EncoderConfig,
    HeadConfig,
    SpeechEncoderConfig,
    StudentConfig,
    config_from_json,
    config_to_json,
)
from hkd.student.encoder import SpeechEncoder, load_pretrained, open_speech_encoder, save_pretrained
from hkd.student.export import load_student, save_student, write_onnx
from hkd.student.model import StudentModel, describe
from hkd.units.inventory import UnitInventory
from kit.encoders import tiny_encoder

import_torchaudio()
import transformers  # noqa: E402

FOUR = ("wav2vec2", "hubert", "wavlm", "whisper")
KIN = ("unispeech", "unispeech-sat")
Make = Callable[..., tuple[SpeechEncoder, Path]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(architecture, **settings) -> the encoder with its weights, in eval mode, and its folder."""
    made: dict[str, tuple[SpeechEncoder, Path]] = {}

    def build(architecture: str, **settings: object) -> tuple[SpeechEncoder, Path]:
        key = json.dumps([architecture, settings])
        if key not in made:
            folder = tiny_encoder(tmp_path_factory.mktemp(architecture) / "model", architecture, **settings)
            encoder = SpeechEncoder(open_speech_encoder(EncoderConfig(name=str(folder), dropout=0.0)))
            load_pretrained(encoder)
            made[key] = encoder.eval(), folder
        return made[key]

    return build


def sounds(*seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in seconds]


def batch(encoder: SpeechEncoder, waves: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [torch.from_numpy(encoder.config.front_end(wave_S)) for wave_S in waves]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.tensor([len(part) for part in parts])


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        *((name, {}) for name in (*FOUR, *KIN)),
        ("wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        ("wavlm", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ],
)
def test_an_utterances_output_is_the_same_in_any_batch(
    make: Make, architecture: str, settings: dict[str, object]
) -> None:
    encoder, _ = make(architecture, **settings)
    waves = sounds(0.51, 1.9, 0.033)
    taps = (1, 3)
    with torch.no_grad():
        top_BTD, length_B, seen = encoder(*batch(encoder, waves), taps)
        assert length_B.tolist() == [13, 48, 1]  # ceil(frames / 4)
        assert top_BTD.shape == (3, 48, encoder.config.d_out)
        for b, wave_S in enumerate(waves):
            alone_1TD, [length], seen_alone = encoder(*batch(encoder, [wave_S]), taps)
            torch.testing.assert_close(top_BTD[b, :length], alone_1TD[0], atol=2e-5, rtol=1e-4)
            for tap in taps:
                torch.testing.assert_close(seen[tap][b, :length], seen_alone[tap][0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", FOUR)
def test_the_output_is_what_transformers_gives_for_the_utterance_alone(make: Make, architecture: str) -> None:
    encoder, folder = make(architecture)
    wave_S = sounds(2.0)[0]  # 50 frames of 40 ms
    wave_S[-480:] = 0.0  # silence at the end, so that Whisper's last window sees none of what is cut
    x_BTF, length_B = batch(encoder, [wave_S])
    with torch.no_grad():
        ours_BTD, _, seen = encoder(x_BTF, length_B, (2,))
        if architecture == "whisper":
            model = transformers.AutoModel.from_pretrained(folder).encoder.eval()
            features = transformers.WhisperFeatureExtractor()(wave_S, sampling_rate=16_000, return_tensors="pt")
            theirs = model(features.input_features[:, :, :600], output_hidden_states=True)
        else:
            model = transformers.AutoModel.from_pretrained(folder).eval()
            features = transformers.Wav2Vec2FeatureExtractor()(wave_S, sampling_rate=16_000, return_tensors="pt")
            theirs = model(torch.nn.functional.pad(features.input_values, (0, 80)), output_hidden_states=True)
    for ours, their in ((ours_BTD, theirs.last_hidden_state), (seen[2], theirs.hidden_states[2])):
        torch.testing.assert_close(ours[0].reshape(100, -1), their[0, :100], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", FOUR)
def test_a_student_trains_its_layers_and_not_what_stands_before_them(make: Make, architecture: str) -> None:
    encoder, _ = make(architecture)
    heads = (HeadConfig(name="senone", level="senone", num_units=30, tap=1, slots=4),)
    student = StudentModel(StudentConfig(encoder=encoder.config, num_main_units=12, heads=heads)).train()
    x_BTF, length_B = batch(encoder, sounds(0.5, 0.9))
    output = student(x_BTF, length_B)
    assert output.logits_BTV.shape == (2, 23, 12)
    assert output.heads["senone"].shape == (2, 92, 30)
    (output.logits_BTV.sum() + output.heads["senone"].sum()).backward()
    learning = {name for name, p in student.named_parameters() if p.requires_grad}
    assert {name for name, p in student.named_parameters() if p.grad is not None} == learning
    front = ("conv1.", "conv2.", "embed_positions.") if architecture == "whisper" else ("feature_extractor.",)
    assert {name for name, _ in student.named_parameters()} - learning == {
        name
        for name, _ in student.named_parameters()
        if name.startswith(tuple(f"encoder.model.{part}" for part in front))
    }


@pytest.mark.parametrize("architecture", FOUR)
def test_an_export_needs_no_folder_and_the_encoder_reloads_with_transformers_alone(
    make: Make, tmp_path: Path, architecture: str
) -> None:
    encoder, _ = make(architecture)
    config = StudentConfig(encoder=encoder.config, num_main_units=12)
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
    student = StudentModel(config).eval()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.01)  # as if it had been trained
    save_student(tmp_path, student, inventory=UnitInventory(level="subword", symbols=tuple("abcdefghijk")))
    loaded, meta = load_student(tmp_path)
    assert meta.features == encoder.config.front_end.to_json()
    x_BTF, length_B = batch(encoder, sounds(0.5, 0.9))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(x_BTF, length_B).logits_BTV, student(x_BTF, length_B).logits_BTV, rtol=0, atol=0
        )
    assert isinstance(student.encoder, SpeechEncoder)
    save_pretrained(student.encoder, tmp_path / "encoder")
    again = SpeechEncoder(open_speech_encoder(EncoderConfig(name=str(tmp_path / "encoder"), dropout=0.0)))
    load_pretrained(again)
    assert again.config.front_end == encoder.config.front_end
    for name, value in student.encoder.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert "frozen" in describe(config)
    with pytest.raises(UserError, match="ONNX"):
        write_onnx(student, tmp_path / "model.onnx")


def test_dropout_and_normalisation_are_what_they_are_said_to_be(make: Make, tmp_path: Path) -> None:
    _, folder = make("wavlm")
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    config = open_speech_encoder(EncoderConfig(name=str(tmp_path / "model"), dropout=0.25))
    assert not config.normalise
    assert config.settings["hidden_dropout"] == config.settings["attention_dropout"] == 0.25
    assert (
        config.settings["layerdrop"]
        == config.settings["mask_time_prob"]
        == config.settings["activation_dropout"]
        == 0.0
    )


def test_what_does_not_fit_is_refused_in_one_line(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: object, match: str, error: type[HkdError] = UserError) -> None:
        with pytest.raises(error, match=match) as raised:
            load_pretrained(SpeechEncoder(open_speech_encoder(EncoderConfig(name=str(name)))))
        assert "\n" not in str(raised.value)

    refused(tmp_path / "nowhere", "no folder")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    refused(tmp_path / "pickled", "safetensors")
    bert = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bert.save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "speech encoder")
    # its position convolutions are five in a row, and the second one reads what the first made of the padding
    refused(tiny_encoder(tmp_path / "data2vec", "data2vec-audio"), "speech encoder")
    refused(tiny_encoder(tmp_path / "slow", "wav2vec2", conv_stride=(5, 2, 2, 2, 2, 2, 1)), "160")
    refused("someone/nothing", "local cache", HkdError)
    _, folder = make("hubert")
    shutil.copytree(folder, tmp_path / "lacking")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "layers.1" in name)
    save_file(
        {name: value for name, value in tensors.items() if name != lost},
        tmp_path / "lacking" / "model.safetensors",
        {"format": "pt"},
    )
    refused(tmp_path / "lacking", "but lacks encoder.layers.1", HkdError)
    weights = (tmp_path / "lacking" / "model.safetensors").read_bytes()
    (tmp_path / "lacking" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(tmp_path / "lacking", "must be a whole safetensors file", HkdError)
    with pytest.raises(UserError, match=r"encoder\.num_layers must be left out"):
        EncoderConfig(name="facebook/wav2vec2-base", num_layers=3)
    encoder, _ = make("whisper")
    with torch.no_grad(), pytest.raises(UserError, match="at most 6 s"):
        encoder(torch.zeros(1, 601, 80), torch.tensor([601]), ())


def test_the_config_is_plain_values(make: Make) -> None:
    encoder, folder = make("whisper")
    config = encoder.config
    assert config == SpeechEncoderConfig(name=str(folder), settings=json.loads(json.dumps(dict(config.settings))))
    assert (config.d_model, config.num_layers, config.max_frames) == (16, 3, 600)
