"""Students whose encoder is one of transformers': trained, stopped, resumed, exported, recognising."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from hkd import manifest as manifests
from hkd.audio import import_torchaudio, read_audio
from hkd.config import merge
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.evaluate.run import evaluate
from hkd.student.encoder import SpeechEncoder
from hkd.train.data import open_data, show_data
from hkd.train.run import export_run, load_run
from kit.encoders import tiny_encoder
from kit.runs import config_of, inputs, trained

import_torchaudio()
import transformers  # noqa: E402
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402


def with_transformers_alone(folder: Path, wave_S: NDArray[np.float32]) -> torch.Tensor:
    """logits_BTV of an export, read without hkd: the encoder, the main output's matrix, two frames of 20 ms side by
    side."""
    kind = transformers.AutoConfig.from_pretrained(folder / "encoder").model_type
    extract = transformers.AutoFeatureExtractor.from_pretrained(folder / "encoder")
    head = load_file(folder / "model.safetensors")
    frames = -(-(len(wave_S) // 160) // 4)
    given = extract(wave_S, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        if kind == "whisper":
            encoder = WhisperEncoder.from_pretrained(folder / "encoder").eval()
            x_BFT = given.input_features[:, :, : 2 * encoder.config.max_source_positions]
            y_BTD = encoder(x_BFT).last_hidden_state
        else:
            encoder = transformers.AutoModel.from_pretrained(folder / "encoder").eval()
            x_BS = torch.nn.functional.pad(given.input_values, (0, 640))[:, : 640 * frames + 80]
            x_BS[:, len(wave_S) // 160 * 160 :] = 0
            y_BTD = encoder(x_BS).last_hidden_state
        return y_BTD[:, : 2 * frames].reshape(1, frames, -1) @ head["main.out.weight"].T + head["main.out.bias"]


@pytest.mark.parametrize("architecture", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_stopped_and_resumed_it_ends_in_the_same_bytes_and_recognises(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any], architecture: str
) -> None:
    given = {"max_source_positions": 500} if architecture == "whisper" else {}
    encoder = tiny_encoder(tmp_path / "encoder", architecture, **given)
    changes = {"max_steps": 4, "warmup_steps": 1, "log_every": 1, "save_every": 2, "eval_every": 4}
    settings = {
        **merge(tiny, {"loop": changes}), "encoder": {"name": str(encoder)}, "objective": "hierarchical",
        "stride": {"senone": 3},
        "augment": {"speeds": [0.9, 1.0], "noise_probability": 0.5},
    }  # fmt: skip

    def stop(done: float, total: float, **facts: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = trained(labelled, tmp_path / "a" / "run", settings)
    with pytest.raises(KeyboardInterrupt):
        trained(labelled, tmp_path / "b" / "run", settings, progress=stop)
    assert trained(labelled, tmp_path / "b" / "run", settings).metrics == whole.metrics
    for name in ("final.safetensors", "metrics.jsonl", "model/model.safetensors", "model/student.json"):
        assert (tmp_path / "a" / "run" / name).read_bytes() == (tmp_path / "b" / "run" / name).read_bytes(), name
    before = SpeechEncoder(load_run(tmp_path / "a" / "run").config.encoder)  # type: ignore[arg-type]
    assert before.config.architecture == architecture

    export_run(tmp_path / "a" / "run", tmp_path / "out")
    student = load_run(tmp_path / "a" / "run")
    for file in encoder.iterdir():
        file.unlink()  # an export needs nothing of it
    recogniser = Recogniser(tmp_path / "out", device="cpu")
    wave_S = read_audio(manifests.read(labelled / "manifest.jsonl")[0])
    logits_BTV, _, _ = recogniser.logits([wave_S])
    x_TF = torch.from_numpy(student.config.encoder.front_end(wave_S))
    with torch.no_grad():
        expected = student(x_TF[None], torch.tensor([len(x_TF)])).logits_BTV
    torch.testing.assert_close(logits_BTV, expected)
    torch.testing.assert_close(with_transformers_alone(tmp_path / "out", wave_S), expected, rtol=1e-3, atol=1e-3)


def test_show_draws_the_encoder_and_other_weights_are_another_run(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    encoder = tiny_encoder(tmp_path / "encoder", "hubert")
    config = config_of({**tiny, "encoder": {"name": str(encoder)}})
    data = open_data(config, **inputs(labelled))
    drawing = show_data(data)
    assert "(hubert), 3 layers × 16" in drawing
    assert "frozen" in drawing
    assert drawing.index("layer 1") < drawing.index("kd-senone") < drawing.index("layer 2")
    tiny_encoder(tmp_path / "encoder", "hubert", seed=1)
    assert open_data(config, **inputs(labelled)).identity != data.identity


def test_utterances_that_whisper_cannot_read_at_every_speed_are_left_out(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    plain = config_of({**tiny, "objective": "none"})
    frames = open_data(plain, **inputs(labelled)).frames
    longest = max(frames.values())
    encoder = tiny_encoder(tmp_path / "encoder", "whisper", max_source_positions=longest // 2 + 1)
    config = config_of({**tiny, "objective": "none", "encoder": {"name": str(encoder)}})
    data = open_data(config, **inputs(labelled))
    assert all(frames[u.id] / 0.9 <= longest + 2 for u in data.train)
    assert set(data.left_out) <= {name for name, count in frames.items() if count / 0.9 > longest - 1}


def test_an_encoder_that_is_not_there_is_one_sentence(labelled: Path, tiny: dict[str, Any]) -> None:
    config = config_of({**tiny, "encoder": {"name": "./nowhere"}})
    with pytest.raises(UserError, match=r"encoder\.name must be a folder or a hub name"):
        open_data(config, **inputs(labelled))


def test_settings_that_came_later_leave_the_identity_of_earlier_runs(labelled: Path, tiny: dict[str, Any]) -> None:
    table = open_data(config_of(tiny), **inputs(labelled)).identity["train"]
    assert list(table["encoder"]) == [
        "preset", "d_model", "num_layers", "num_heads", "ff_factor", "conv_kernel", "dropout", "num_bins", "front",
        "front_channels",
    ]  # fmt: skip
    assert list(table) == [
        "objective", "levels", "stores", "hard_heads", "main", "encoder", "taps", "slots", "stride", "alpha", "alphas",
        "lam", "lams",
        "kd", "kds", "interpolation_weight", "label_smoothing", "heads_warmup_steps", "lam_end", "train_split",
        "dev_split",
        "batch_seconds", "max_utterance_seconds", "epochs", "min_coverage", "shares_every", "augment",
    ]  # fmt: skip


def test_a_student_on_a_frozen_upstream_takes_it_along(labelled: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    upstream = tiny_encoder(tmp_path / "upstream", "whisper", max_source_positions=500)
    encoder = {**tiny["encoder"], "upstream": str(upstream)}
    settings = {
        **merge(tiny, {"loop": {"max_steps": 4, "eval_every": 4}}), "encoder": encoder, "objective": "hierarchical",
        "augment": {"speeds": [0.9, 1.0], "freq_masks": 2}, "features_cache": str(tmp_path / "features"),
    }  # fmt: skip
    plain = trained(labelled, tmp_path / "plain", {**merge(tiny, {"loop": {"max_steps": 1}}), "objective": "none"})
    report = trained(labelled, tmp_path / "run", settings)
    values = 8  # a row: half the width of 16
    smaller_front = 3 * (80 - values) * 16  # of the first convolution
    weights = load_file(upstream / "model.safetensors")
    below = sum(value.numel() for name, value in weights.items() if name.startswith("encoder."))
    assert report.parameters == plain.parameters - smaller_front + below
    assert f"{values * 2} values every 20 ms" in show_data(open_data(config_of(settings), **inputs(labelled)))

    for wrong, message in (
        ({"upstream_folder": "."}, "upstream_folder must be left out"),
        ({"num_bins": 40}, "num_bins must be left out"),
    ):
        with pytest.raises(UserError, match=message):
            open_data(config_of(merge(settings, {"encoder": wrong})), **inputs(labelled))

    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    wave_S = read_audio(manifests.read(labelled / "manifest.jsonl")[0])
    expected = Recogniser(moved / "model", device="cpu")
    for file in upstream.iterdir():
        file.unlink()  # neither the export nor the run's folder needs it
    export_run(moved, tmp_path / "out")
    student = load_run(moved)
    assert not any(name.startswith("upstream") for name in student.state_dict())
    for recogniser in (expected, Recogniser(tmp_path / "out", device="cpu")):
        assert recogniser.num_parameters == report.parameters
        logits_BTV, _, _ = recogniser.logits([wave_S])
        x_TF = torch.from_numpy(student.config.encoder.front_end(wave_S))
        with torch.no_grad():
            torch.testing.assert_close(logits_BTV, student(x_TF[None], torch.tensor([len(x_TF)])).logits_BTV)
    whole = inputs(labelled)
    figures = evaluate(
        moved, split="train", manifest=whole["manifest"], alignment=whole["alignment"], labels=whole["labels"]
    )
    assert {"hard-senone", "kd-subword"} <= figures.frames.keys()
    assert figures.parameters == report.parameters
