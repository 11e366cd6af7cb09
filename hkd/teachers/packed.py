"""The body of BERT and its kin on masked copies of texts, without what the copies need not compute.

- Rows stand one after the other, without padding: only attention knows where one ends, and rows of equal length attend
  together without a mask.
- In the first layer a masked copy differs from its text at the masked places alone: its queries, keys and values are
  those of the text, computed once for all copies, and those of the mask at each place, computed once for all texts.
- In the last layer only scored places are asked, so queries, output and feed-forward part are computed for them alone.

All three are exact: only float rounding differs from the model's own forward. Whether the model is built like that is
tried out on a few tokens; where it is not, there is no `PackedEncoder`.

Shape letters: R rows, W distinct texts, L tokens of a row, T tokens of all rows, M scored places, S scored places of a
row at most, H heads, D width, E width of a head.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

logger = logging.getLogger(__name__)

Places = NDArray[np.int64]
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of a hidden value, against the largest one


def on_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device; CUDA gets it from pinned memory, without waiting."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _rest_of_layer(layer: Any, attended_TD: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
    """All of a layer after its attention, by its own modules (T, D)."""
    done: torch.Tensor = layer.feed_forward_chunk(layer.attention.output(attended_TD, x_TD))
    return done


class PackedEncoder:
    """Hidden values (M, D) of scored places; the model's own modules do the work."""

    def __init__(self, body: Any, *, mask_id: int, length: int) -> None:
        """`length`: tokens of the longest row. Raises AttributeError and the like for a body unlike BERT's."""
        self._body, self._layers = body, list(body.encoder.layer)
        self._rest: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] = _rest_of_layer
        is_other = getattr(body.config, "is_decoder", False) or getattr(body.config, "chunk_size_feed_forward", 0)
        if len(self._layers) < 2 or is_other:
            raise AttributeError("not an encoder of several layers")
        own = [layer.attention.self for layer in self._layers]
        self._heads, self._width = own[0].num_attention_heads, own[0].query.weight.shape[0]
        self._weight = [torch.cat([a.query.weight, a.key.weight, a.value.weight]) for a in own]
        self._bias = [torch.cat([a.query.bias, a.key.bias, a.value.bias]) for a in own]
        for attention, weight in zip(own, self._weight, strict=True):  # the parts become views: no weight is held twice
            attention.query.weight.data, attention.key.weight.data, attention.value.weight.data = weight.chunk(3)
        self._device = self._weight[0].device
        self._mask_LD = self._embed(torch.full((1, length), mask_id, device=self._device))[0]
        self._mask_LQ = functional.linear(self._mask_LD, self._weight[0], self._bias[0])

    @classmethod
    @torch.no_grad()
    def of(cls, body: Any, *, mask_id: int, length: int) -> "PackedEncoder | None":
        """The encoder of a body, or None where a trial on a few tokens does not give what the body itself gives."""
        try:
            encoder = cls(body, mask_id=mask_id, length=length)
            token_L = np.resize(np.arange(7, dtype=np.int64) * 13 % body.config.vocab_size, min(9, length))
            rows = [token_L, token_L, token_L[:-3]]
            masked = [np.array([1]), np.array([2, 4]), np.array([3])]
            at = [np.array([1]), np.array([0, 2]), np.array([5])]
            got_MD = encoder(rows, masked, at)
            expected = []
            for row_L, masked_places, places in zip(rows, masked, at, strict=True):
                given = row_L.copy()
                given[masked_places] = mask_id
                expected.append(body(input_ids=on_device(given[None], encoder._device))[0][0, places])
        except (AttributeError, TypeError, IndexError, RuntimeError) as error:
            logger.debug("No packed encoder for %s: %s", type(body).__name__, error)
            return None
        wanted_MD = torch.cat(expected).float()
        gap = float((got_MD.float() - wanted_MD).abs().max() / wanted_MD.abs().max())
        return encoder if gap <= _TOLERANCE.get(got_MD.dtype, 0.0) else None

    def flops(self, tokens: Sequence[Places], at: Sequence[Places]) -> float:
        """Floating-point operations of the matrix products for some rows: 2 a weight and token, and attention's."""
        length_R, asked_R = (np.array([len(places) for places in column], np.float64) for column in (tokens, at))
        square = self._width**2
        linear = [module for module in self._layers[0].modules() if isinstance(module, torch.nn.Linear)]
        layer = sum(module.weight.numel() for module in linear)
        full = len(self._layers) - 1
        # without the three matrices of the first layer, with the two of the last
        all_tokens = float(length_R.sum()) * (full * layer - 3 * square + 2 * square)
        attended = full * float((length_R**2).sum()) + float((length_R * asked_R).sum())
        return float(2 * (all_tokens + float(asked_R.sum()) * (layer - 2 * square)) + 4 * self._width * attended)

    def compile(self) -> None:
        """Let torch.compile fuse what surrounds the matrix products."""
        self._rest = torch.compile(_rest_of_layer, dynamic=True)

    def _embed(self, token_WL: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._body.embeddings(input_ids=token_WL)
        project = getattr(self._body, "embeddings_project", None)  # ELECTRA
        return embedded if project is None else project(embedded)

    def __call__(self, tokens: Sequence[Places], masked: Sequence[Places], at: Sequence[Places]) -> torch.Tensor:
        """Tokens of each row, its masked and its scored places → hidden values of all scored places in order. Rows of
        equal length should follow each other; rows that are one object are one text."""
        length_R = np.array([len(token_L) for token_L in tokens])
        start_R = np.cumsum(length_R) - length_R
        groups = [(length, sum(1 for _ in same)) for length, same in itertools.groupby(length_R.tolist())]
        x_TD, qkv_TQ = self._first(tokens, masked, length_R, start_R)
        for number, layer in enumerate(self._layers[:-1]):
            if number:
                qkv_TQ = functional.linear(x_TD, self._weight[number], self._bias[number])
            x_TD = self._rest(layer, self._attend(qkv_TQ, groups), x_TD)
        return self._last(x_TD, at, start_R, groups)

    def _first(
        self, tokens: Sequence[Places], masked: Sequence[Places], length_R: Places, start_R: Places
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows' embeddings (T, D), and the first layer's queries, keys and values (T, 3D)."""
        number: dict[int, int] = {}
        text_R = np.array([number.setdefault(id(token_L), len(number)) for token_L in tokens])
        texts = [tokens[row] for row in np.unique(text_R, return_index=True)[1].tolist()]
        size_W = np.array([len(token_L) for token_L in texts])
        token_WL = np.zeros((len(texts), int(size_W.max())), np.int64)
        real_WL = np.arange(token_WL.shape[1]) < size_W[:, None]
        token_WL[real_WL] = np.concatenate(texts)
        embedded_WLD = self._embed(on_device(token_WL, self._device))
        text_TD = embedded_WLD[on_device(real_WL, self._device)]
        mask_LD, mask_LQ = self._mask_LD[: token_WL.shape[1]], self._mask_LQ[: token_WL.shape[1]]
        source_T = np.repeat((np.cumsum(size_W) - size_W)[text_R] - start_R, length_R) + np.arange(int(length_R.sum()))
        size_R = [len(places) for places in masked]
        place = np.concatenate(masked)
        source_T[np.repeat(start_R, size_R) + place] = len(text_TD) + place
        index_T = on_device(source_T, self._device)
        text_TQ = functional.linear(text_TD, self._weight[0], self._bias[0])
        return torch.cat([text_TD, mask_LD])[index_T], torch.cat([text_TQ, mask_LQ])[index_T]

    def _attend(self, qkv_TQ: torch.Tensor, groups: Sequence[tuple[int, int]]) -> torch.Tensor:
        out, start = [], 0
        for length, rows in groups:
            part = qkv_TQ[start : start + length * rows].view(rows, length, 3, self._heads, -1)
            q, k, v = (t.transpose(1, 2) for t in part.unbind(2))
            out.append(
                functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows * length, self._width)
            )
            start += length * rows
        return out[0] if len(out) == 1 else torch.cat(out)

    def _last(
        self, x_TD: torch.Tensor, at: Sequence[Places], start_R: Places, groups: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        layer, width = self._layers[-1], self._width
        weight, bias = self._weight[-1], self._bias[-1]
        size_R = np.array([len(places) for places in at])
        at_M = on_device(np.repeat(start_R, size_R) + np.concatenate(at), self._device)
        asked_MD = x_TD[at_M]
        q_MD = functional.linear(asked_MD, weight[:width], bias[:width])
        kv_TQ = functional.linear(x_TD, weight[width:], bias[width:])
        out, row, start, first = [], 0, 0, 0
        for length, rows in groups:
            count_R = size_R[row : row + rows]
            kv = kv_TQ[start : start + length * rows].view(rows, length, 2, self._heads, -1)
            k, v = (t.transpose(1, 2) for t in kv.unbind(2))
            real_RS = on_device(np.arange(int(count_R.max())) < count_R[:, None], self._device)
            q_RSD = q_MD.new_zeros((*real_RS.shape, width))
            q_RSD[real_RS] = q_MD[first : first + int(count_R.sum())]
            q = q_RSD.view(rows, -1, self._heads, width // self._heads).transpose(1, 2)
            out.append(
                functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*real_RS.shape, width)[real_RS]
            )
            row, start, first = row + rows, start + length * rows, first + int(count_R.sum())
        attended_MD = out[0] if len(out) == 1 else torch.cat(out)
        return self._rest(layer, attended_MD, asked_MD)
