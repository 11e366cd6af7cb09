"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100), with what a masked batch needs.

- An utterance's output depends on nothing but its own frames: LayerNorm everywhere (the paper has BatchNorm), frames
  past the end are zeroed before every convolution over time and hidden as keys in attention.
- Positions are rotary (Su et al. 2021, arXiv 2104.09864): relative like the paper's, but with no table, no parameters,
  and within torch's fused attention.
- Depthwise convolution runs as a two-dimensional one over a channels-last view of x_BTD: no transposed copies, and on
  CPU four times as fast as `conv1d` over a transposed tensor.
- Dropout: each utterance has a generator of its own, seeded by the caller, so that neither padding nor the rest of the
  batch changes its masks.

Shape letters: B utterances, T frames, F bins, D model width, H attention heads, E = D / H, C channels, N calls of
dropout.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hkd.student.config import EncoderConfig
from hkd.timebase import SUBSAMPLING

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
    """Dropout for one forward pass, to be called at most `calls` times, each time with an x_BTD of the given T and D:
    elements are set to 0 with probability p, the others scaled so that the mean stays."""
    dropped = round(_LANES * p)
    scale = _LANES / (_LANES - dropped)
    keep_NBTD = torch.empty((calls, len(seed_B), num_frames, width), dtype=torch.bool, device=device)
    size = calls * BLOCK * width
    for b, seed in enumerate(seed_B):
        random = torch.Generator(device).manual_seed(seed)
        for start in range(0, num_frames, BLOCK):
            draw = torch.empty(-(-size // 4), dtype=torch.int64, device=device).random_(
                -(2**63), None, generator=random
            )
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
    """x_BTD → its update: the Conformer's convolution, gated, depthwise over time, normalised per frame; zeros past the
    end."""

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
        y_BD1T = F.conv2d(
            y_BD1T, weight_D11K, self.depthwise.bias, padding=(0, self.kernel // 2), groups=y_BD1T.shape[1]
        )
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
        """x_BTF (normalised), length_B in 10 ms frames, taps as layers counted from 1, seed_B of each utterance's
        dropout in training (default: drawn from torch's generator), condition by layer. Gives the top layer's x_BTD,
        the lengths in encoder frames, and tap → the layer's own x_BTD. Values past an utterance's end are finite and
        mean nothing."""
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
        """The layers above `tap`, which read x_BTD: the top layer's x_BTD, and tap → x_BTD. length_B in encoder
        frames."""
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
