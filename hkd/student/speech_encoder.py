"""Speech encoders of transformers as a student's encoder: wav2vec 2.0, HuBERT, WavLM and their kin, and Whisper's.

- What stands in front of the layers (convolutions, positions) is frozen; the layers learn. Layers are not dropped, nor
  latent frames masked.
- Their frames are 20 ms. Two of them side by side are one encoder frame of 40 ms, so that slots, labels and lengths are
  those of any student.
- An utterance's output depends on nothing but its own sound. Convolutions over samples read its 40 ms frames padded
  with zeros. A group norm over time after them (wav2vec2-base, hubert-base) takes mean and variance of the utterance's
  own frames, where transformers takes the padding too. Whisper always reads its full 30 s, silence after the end, and
  knows no padding.
- Taps are the layers' outputs, before a final norm where there is one.

Shape letters: B utterances, S samples, C channels, T frames, F values a frame, D model width.
"""

import warnings
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.features.pretrained import (
    SHIFT_SAMPLES,
    WHISPER,
    WINDOW_SAMPLES,
    check_length,
    load_encoder,
    normalises,
    open_config,
    padded,
    settings_of,
)
from hkd.pretrained import transformers_package
from hkd.student.config import EncoderConfig, SpeechEncoderConfig
from hkd.student.encoder import subsampled, valid_frames
from hkd.timebase import HOP_SAMPLES, SUBSAMPLING

FRAMES = SUBSAMPLING * HOP_SAMPLES // SHIFT_SAMPLES  # of theirs in an encoder frame
OFF = ("layerdrop", "encoder_layerdrop", "mask_time_prob", "mask_feature_prob")
DROPOUTS = ("dropout", "hidden_dropout", "attention_dropout")  # set to encoder.dropout
OTHER_DROPOUTS = ("activation_dropout", "feat_proj_dropout")


def open_speech_encoder(encoder: EncoderConfig) -> SpeechEncoderConfig:
    """What the named encoder is. Raises UserError for an architecture that is none of those known, or another frame
    rate."""
    config = open_config(encoder.name)
    settings = settings_of(config)
    for key in settings:
        settings[key] = 0.0 if key in OFF + OTHER_DROPOUTS else encoder.dropout if key in DROPOUTS else settings[key]
    settings["apply_spec_augment"] = False
    if settings.get("conv_pos_batch_norm"):
        raise UserError(
            f"encoder.name must have no batch norm, but {encoder.name} has one: outputs would depend on the batch."
        )
    return SpeechEncoderConfig(name=encoder.name, settings=settings, normalise=normalises(encoder.name))


class SpeechEncoder(nn.Module):
    """An encoder of transformers with the interface of `ConformerEncoder`. Weights are random until
    `load_pretrained`."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config, self.is_whisper = config, config.architecture == WHISPER
        settings = dict(config.settings)
        with transformers_package() as transformers:
            own = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
            if self.is_whisper:
                from transformers.models.whisper.modeling_whisper import WhisperEncoder

                self.model: Any = WhisperEncoder(own)
                front = [self.model.conv1, self.model.conv2, self.model.embed_positions]
            else:
                self.model = transformers.AutoModel.from_config(own, dtype=torch.float32)
                front = [self.model.feature_extractor]
        for module in front:
            module.requires_grad_(False)

    @property
    def layers(self) -> nn.ModuleList:
        """What taps count."""
        layers: nn.ModuleList = (self.model if self.is_whisper else self.model.encoder).layers
        return layers

    def forward(
        self, x_BTF: Tensor, length_B: Tensor, taps: Collection[int], seed_B: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """As `ConformerEncoder.forward`, with x_BTF as the config's front end gives it; D is `d_out`. seed_B is not
        read: dropout within transformers draws from torch's generator. Raises UserError for an utterance longer than
        the encoder can read."""
        del seed_B
        seen: dict[int, Tensor] = {}
        num_frames = -(-x_BTF.shape[1] // SUBSAMPLING)
        x_BTF = x_BTF.masked_fill(~valid_frames(length_B, x_BTF.shape[1])[:, :, None], 0.0)

        def note(number: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[number] = _paired(output[0] if isinstance(output, tuple) else output, num_frames)

        with ExitStack() as hooks:
            for number in taps:
                hooks.callback(self.layers[number - 1].register_forward_hook(partial(note, number)).remove)
            run = self._whisper if self.is_whisper else self._convolutional
            top_BTD = run(x_BTF, length_B, num_frames)
        return _paired(top_BTD, num_frames), subsampled(length_B), seen

    def _convolutional(self, x_BTF: Tensor, length_B: Tensor, num_frames: int) -> Tensor:
        frames_B = FRAMES * subsampled(length_B)
        with torch.no_grad():
            y_BCT = self._samples_to_frames(padded(x_BTF.flatten(1), FRAMES * num_frames), frames_B)
        y_BTD = self.model.feature_projection(y_BCT.transpose(1, 2))
        y_BTD = y_BTD[0] if isinstance(y_BTD, tuple) else y_BTD
        with warnings.catch_warnings():
            # WavLM's own attention
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            output = self.model.encoder(y_BTD, attention_mask=valid_frames(frames_B, y_BTD.shape[1]))
        top_BTD: Tensor = output.last_hidden_state
        return top_BTD

    def _samples_to_frames(self, wave_BS: Tensor, frames_B: Tensor) -> Tensor:
        """The convolutions, a group norm over each utterance's own frames."""
        y_BCT = wave_BS[:, None]
        length_B = (frames_B - 1) * SHIFT_SAMPLES + WINDOW_SAMPLES
        for layer in self.model.feature_extractor.conv_layers:
            length_B = (length_B - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                y_BCT = layer.activation(_group_norm(norm, layer.conv(y_BCT), length_B))
            else:
                y_BCT = layer(y_BCT)
        return y_BCT

    def _whisper(self, x_BTF: Tensor, length_B: Tensor, num_frames: int) -> Tensor:
        limit = self.config.max_frames or 0
        check_length(int(x_BTF.shape[1]), limit)
        valid_BT1 = valid_frames(length_B, limit)[:, :, None]
        x_BTF = F.pad(x_BTF, (0, 0, 0, limit - x_BTF.shape[1]))
        # what silence is: 8 decades below the utterance's maximum, and the values are decades / 4
        floor_B11 = x_BTF.masked_fill(~valid_BT1, float("-inf")).amax(dim=(1, 2), keepdim=True) - 2.0
        top_BTD: Tensor = self.model(torch.where(valid_BT1, x_BTF, floor_B11).transpose(1, 2)).last_hidden_state
        return top_BTD


def _paired(y_BTD: Tensor, num_frames: int) -> Tensor:
    """Frames of 20 ms → num_frames encoder frames of 40 ms, each two of them side by side."""
    return y_BTD[:, : FRAMES * num_frames].reshape(y_BTD.shape[0], num_frames, -1)


def _group_norm(norm: nn.GroupNorm, y_BCT: Tensor, length_B: Tensor) -> Tensor:
    """torch's group norm with a group a channel, over the first length_B frames of each utterance."""
    valid_B1T = valid_frames(length_B, y_BCT.shape[2])[:, None, :].to(y_BCT.dtype)
    count_B11 = length_B[:, None, None]
    mean_BC1 = (y_BCT * valid_B1T).sum(2, keepdim=True) / count_B11
    variance_BC1 = ((y_BCT - mean_BC1).square() * valid_B1T).sum(2, keepdim=True) / count_B11
    y_BCT = (y_BCT - mean_BC1) * torch.rsqrt(variance_BC1 + norm.eps)
    return y_BCT * norm.weight[:, None] + norm.bias[:, None]


def load_pretrained(encoder: SpeechEncoder) -> None:
    """Put the named encoder's weights in. Raises UserError where it lacks some, HkdError where they cannot be read."""
    encoder.model.load_state_dict(load_encoder(encoder.config.name, encoder.model.config).state_dict())


def save_pretrained(encoder: SpeechEncoder, folder: Path) -> None:
    """Write the encoder for transformers alone: config.json, model.safetensors and preprocessor_config.json."""
    front_end = encoder.config.front_end
    with transformers_package() as transformers:
        encoder.model.save_pretrained(folder)
        if encoder.is_whisper:
            extractor: Any = transformers.WhisperFeatureExtractor(feature_size=front_end.num_bins)
        else:
            extractor = transformers.Wav2Vec2FeatureExtractor(
                do_normalize=front_end.normalise, return_attention_mask=True
            )
        extractor.save_pretrained(folder)
