"""A student's encoder: hkd's own Conformer (Gulati et al. 2020, arXiv 2005.08100), or a speech encoder of transformers.

The Conformer, with what a masked batch needs:

- An utterance's output depends on nothing but its own frames: LayerNorm everywhere (the paper has BatchNorm), frames
  past the end are zeroed before every convolution over time and hidden as keys in attention.
- Positions are rotary (Su et al. 2021, arXiv 2104.09864): relative like the paper's, but without table or parameters,
  and within torch's fused attention.
- Depthwise convolution runs as a two-dimensional one over a channels-last view of x_BTD: without copies, and on a CPU
  four times as fast as `conv1d` over a transposed tensor.
- Dropout: each utterance's generator is seeded by the caller, so that neither padding nor the batch changes its masks.

wav2vec 2.0, HuBERT, WavLM and their kin, and Whisper's encoder:

- What stands in front of the layers (convolutions, positions) is frozen; no layer is dropped, no latent frame masked.
- Two of their frames of 20 ms, side by side, are one encoder frame of 40 ms: slots, labels and lengths are as ever.
- An utterance's output depends on nothing but its own sound. Convolutions over samples read its 40 ms frames padded
  with zeros. A group norm over time after them (wav2vec2-base, hubert-base) takes mean and variance of the utterance's
  own frames, where transformers takes the padding too. Whisper always reads its full 30 s, silence after the end.
- Taps are the layers' outputs, before a final norm where there is one.

Shape letters: B utterances, S samples, T frames, F bins or values a frame, D model width, H attention heads, E = D / H,
C channels, N calls of dropout.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
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
from hkd.timebase import HOP_SAMPLES, SUBSAMPLING

BLOCK = 64
_LANES = 1 << 16
ROTARY_BASE = 10_000.0
DROPS = 4  # calls of dropout in a layer
Rotary = tuple[Tensor, Tensor]  # cos_TE, sin_TE
Drop = Callable[[Tensor], Tensor]
Condition = Callable[[Tensor], Tensor]  # a layer's output x_BTD → what the layers above it read


def utterance_dropout(
    p: float, seed_B: Sequence[int], *, calls: int, num_frames: int, width: int, device: torch.device
) -> Drop:
    """Dropout for one forward pass, called at most `calls` times, each with an x_BTD of the given T and D: elements are
    set to 0 with probability p, the others scaled so that the mean stays."""
    dropped = round(_LANES * p)
    scale = _LANES / (_LANES - dropped)
    keep_NBTD = torch.empty((calls, len(seed_B), num_frames, width), dtype=torch.bool, device=device)
    size = calls * BLOCK * width
    for b, seed in enumerate(seed_B):
        random = torch.Generator(device).manual_seed(seed)
        for start in range(0, num_frames, BLOCK):
            draw = torch.empty(-(-size // 4), dtype=torch.int64, device=device)
            draw.random_(-(2**63), None, generator=random)
            block_NTD = draw.view(torch.int16)[:size].view(calls, BLOCK, width)[:, : num_frames - start]
            keep_NBTD[:, b, start : start + BLOCK] = block_NTD >= dropped - _LANES // 2
    masks = iter(keep_NBTD)
    return lambda x_BTD: x_BTD * (next(masks).to(x_BTD.dtype) * scale)


def subsampled(length_B: Tensor, times: int = SUBSAMPLING) -> Tensor:
    """Lengths after subsampling: ceil(length / times), as timebase.num_encoder_frames."""
    return (length_B + times - 1) // times


def valid_frames(length_B: Tensor, num_frames: int) -> Tensor:
    """valid_BT: true where a frame lies inside its utterance."""
    return torch.arange(num_frames, device=length_B.device) < length_B[:, None]


class FrontEndLayers(nn.Module):
    """Two convolutions of stride 2 over time with the bins as channels: (B, T, F) → (B, ceil(T/4), D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_bins, config.d_model, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTF: Tensor, length_B: Tensor) -> Tensor:
        """x_BTF must be zero past the end."""
        y_BDT = F.silu(self.conv1(x_BTF.transpose(1, 2)))
        y_BDT = y_BDT * valid_frames(subsampled(length_B, 2), y_BDT.shape[2])[:, None, :].to(y_BDT.dtype)
        y_BTD: Tensor = F.silu(self.conv2(y_BDT)).transpose(1, 2)
        return torch.as_tensor(self.out(y_BTD))


def rotary_tables(num_frames: int, width: int, *, device: torch.device) -> Rotary:
    """cos_TE, sin_TE (E = width / 2) of RoFormer, equation 15: angle t · base^(−2i / width)."""
    power_E = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    angle_TE = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None] * ROTARY_BASE**-power_E
    return angle_TE.cos(), angle_TE.sin()


class RotaryAttention(nn.Module):
    """x_BTD → its update: multi-headed self-attention with rotary positions; keys past the end are hidden."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, rotary: Rotary, key_mask_B11T: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        qkv_BT3HE = self.qkv(self.norm(x_BTD)).view(b, t, 3, self.num_heads, d // self.num_heads)
        cos, sin = (table_TE[:, None, None, :].to(qkv_BT3HE.dtype) for table_TE in rotary)
        first, second = qkv_BT3HE[:, :, :2].chunk(2, dim=-1)
        qk_BT2HE = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        q_BHTE, k_BHTE = qk_BT2HE.permute(2, 0, 3, 1, 4)
        v_BHTE = qkv_BT3HE[:, :, 2].transpose(1, 2)
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=key_mask_B11T)
        return torch.as_tensor(self.out(y_BHTE.transpose(1, 2).reshape(b, t, d)))


class ConvModule(nn.Module):
    """x_BTD → its update: the convolution, gated, depthwise over time, normalised per frame; zeros past the end."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.d_model
        self.kernel = config.conv_kernel
        self.norm = nn.LayerNorm(d)
        self.gate = nn.Linear(d, 2 * d)
        self.depthwise = nn.Conv1d(d, d, self.kernel, groups=d, padding=self.kernel // 2)
        self.inner_norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, d)

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor) -> Tensor:
        y_BTD = F.glu(self.gate(self.norm(x_BTD)), dim=-1) * valid_BT1
        y_BD1T = y_BTD.transpose(1, 2)[:, :, None, :]  # channels-last in memory: no copy
        weight_D11K = self.depthwise.weight[:, :, None, :]
        padding, groups = (0, self.kernel // 2), y_BD1T.shape[1]
        y_BD1T = F.conv2d(y_BD1T, weight_D11K, self.depthwise.bias, padding=padding, groups=groups)
        return torch.as_tensor(self.out(F.silu(self.inner_norm(y_BD1T[:, :, 0, :].transpose(1, 2)))))


class FeedForward(nn.Module):
    """x_BTD → its update: LayerNorm, widen, SiLU, narrow."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.wide = nn.Linear(config.d_model, config.ff_factor * config.d_model)
        self.narrow = nn.Linear(config.ff_factor * config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.as_tensor(self.narrow(F.silu(self.wide(self.norm(x_BTD)))))


class ConformerLayer(nn.Module):
    """Half a feed-forward step, attention, convolution, the other half, LayerNorm (Gulati et al. 2020, equation 1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.before = FeedForward(config)
        self.attention = RotaryAttention(config)
        self.conv = ConvModule(config)
        self.after = FeedForward(config)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, x_BTD: Tensor, rotary: Rotary, valid_BT1: Tensor, key_mask_B11T: Tensor, drop: Drop) -> Tensor:
        """x_BTD → the layer's output of the same shape; `drop` is called DROPS times."""
        x_BTD = torch.add(x_BTD, drop(self.before(x_BTD)), alpha=0.5)
        x_BTD = x_BTD + drop(self.attention(x_BTD, rotary, key_mask_B11T))
        x_BTD = x_BTD + drop(self.conv(x_BTD, valid_BT1))
        return torch.as_tensor(self.norm(torch.add(x_BTD, drop(self.after(x_BTD)), alpha=0.5)))


class ConformerEncoder(nn.Module):
    """Features of 10 ms → model frames of 40 ms, and what the taps saw."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dropout, self.head_width = config.dropout, config.d_model // config.num_heads
        self.front = FrontEndLayers(config)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))

    def forward(
        self,
        x_BTF: Tensor,
        length_B: Tensor,
        taps: Collection[int],
        seed_B: Sequence[int] | None = None,
        condition: Mapping[int, Condition] | None = None,
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """x_BTF (normalised), length_B in 10 ms frames, taps as layers counted from 1, seed_B of utterances' dropout in
        training (default: of torch's generator), condition by layer → the top layer's x_BTD, lengths in encoder frames,
        tap → the layer's own x_BTD. Values past an utterance's end are finite and mean nothing."""
        valid_BT = valid_frames(length_B, x_BTF.shape[1])
        x_BTD = self.front(x_BTF.masked_fill(~valid_BT[:, :, None], 0.0), length_B)
        drop = self.drops(x_BTD, seed_B)
        length_B = subsampled(length_B)
        x_BTD, seen = self.above(drop(x_BTD), length_B, taps, drop, condition or {})
        return x_BTD, length_B, seen

    def above(
        self,
        x_BTD: Tensor,
        length_B: Tensor,
        taps: Collection[int],
        drop: Drop,
        condition: Mapping[int, Condition],
        *,
        tap: int = 0,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The layers above `tap`, which read x_BTD: the top one's x_BTD, and tap → x_BTD. length_B: encoder frames."""
        valid_BT = valid_frames(length_B, x_BTD.shape[1])
        valid_BT1, key_mask_B11T = valid_BT[:, :, None].to(x_BTD.dtype), valid_BT[:, None, None, :]
        rotary = rotary_tables(x_BTD.shape[1], self.head_width, device=x_BTD.device)
        seen: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers[tap:], start=tap + 1):
            x_BTD = layer(x_BTD, rotary, valid_BT1, key_mask_B11T, drop)
            if number in taps:
                seen[number] = x_BTD
            if number in condition:
                x_BTD = condition[number](x_BTD)
        return x_BTD, seen

    def drops(self, x_BTD: Tensor, seed_B: Sequence[int] | None) -> Drop:
        """Dropout for one pass of an x_BTD of this shape; none outside training."""
        if not self.training or self.dropout == 0:
            return lambda y_BTD: y_BTD
        b, t, d = x_BTD.shape
        if seed_B is None:
            seed_B = torch.randint(2**62, (b,)).tolist()
        calls = 1 + DROPS * len(self.layers)
        return utterance_dropout(self.dropout, seed_B, calls=calls, num_frames=t, width=d, device=x_BTD.device)


FRAMES = SUBSAMPLING * HOP_SAMPLES // SHIFT_SAMPLES  # of theirs in an encoder frame
OFF = ("layerdrop", "encoder_layerdrop", "mask_time_prob", "mask_feature_prob")
DROPOUTS = ("dropout", "hidden_dropout", "attention_dropout")  # set to encoder.dropout
OTHER_DROPOUTS = ("activation_dropout", "feat_proj_dropout")


def open_speech_encoder(encoder: EncoderConfig) -> SpeechEncoderConfig:
    """What the named encoder is. Raises UserError for an unknown architecture, or another frame rate."""
    config = open_config(encoder.name)
    settings = settings_of(config)
    for key in settings:
        settings[key] = 0.0 if key in OFF + OTHER_DROPOUTS else encoder.dropout if key in DROPOUTS else settings[key]
    settings["apply_spec_augment"] = False
    if settings.get("conv_pos_batch_norm"):
        why = "outputs would depend on the batch"
        raise UserError(f"encoder.name must have no batch norm, but {encoder.name} has one: {why}.")
    return SpeechEncoderConfig(name=encoder.name, settings=settings, normalise=normalises(encoder.name))


class SpeechEncoder(nn.Module):
    """An encoder of transformers, used as `ConformerEncoder`. Weights are random until `load_pretrained`."""

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
        """As `ConformerEncoder.forward`; D is `d_out`. seed_B is not read: dropout within transformers draws from
        torch's generator. Raises UserError for an utterance longer than the encoder can read."""
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
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # WavLM's attention
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
            own = {"do_normalize": front_end.normalise, "return_attention_mask": True}
            extractor = transformers.Wav2Vec2FeatureExtractor(**own)
        extractor.save_pretrained(folder)
