"""A frozen speech encoder of transformers as a front end: what SUPERB (Yang et al. 2021, arXiv 2105.01051) calls an upstream.

A student on an upstream is small and learns fast: the upstream never learns, so that its features are made once (`features_cache`) and only what
stands on them is trained. An export carries the upstream's weights and needs nothing else.

- A frame of the encoder lasts 20 ms; it is laid over the two rows of 10 ms that it covers, half of its values in each, so that rows,
  lengths and labels are those of any front end.
- A student's normalisation is by value of a row, so values d and d + D/2 of a frame share one mean and deviation.
- It runs on the CPU, where features are made, on machines with a GPU too; the last bits may hang on the number of threads.
- An utterance goes through alone: no padding, no batch-mates. Whisper reads the utterance itself, not 30 s of which most would be silence,
  which costs ten times as much for a short one. So its values are near, not equal, to those of transformers, which always pads.

Shape letters: S samples, T rows of 10 ms, F values a row, D width of the encoder.
"""

import copy
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.features.pretrained import (
    PREPROCESSOR,
    SHIFT_SAMPLES,
    WHISPER,
    WINDOW_SAMPLES,
    check_length,
    load_encoder,
    local_encoder,
    normalises,
    open_config,
    settings_of,
    stamps,
)
from hkd.files import digest_of_json, write_bytes
from hkd.pretrained import transformers_package
from hkd.timebase import HOP_SAMPLES, covering_samples

SETTING = "encoder.upstream"
ROWS = SHIFT_SAMPLES // HOP_SAMPLES  # of 10 ms, a frame of the encoder
UPSTREAM_FILES = ("config.json", "model.safetensors", PREPROCESSOR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """A speech encoder: hub name or folder. Raises UserError where it is none, HkdError where the hub cannot be reached."""

    name: str

    def __post_init__(self) -> None:
        config = open_config(self.name, SETTING)
        if _width(config) % ROWS:
            raise UserError(f"{SETTING} must have an even width, but {self.name} has {_width(config)}.")
        _ = self.normalise  # its preprocessor can be read

    @property
    def architecture(self) -> str:
        """transformers' model type."""
        return str(open_config(self.name, SETTING).model_type)

    @property
    def num_values(self) -> int:
        """F: values a row of 10 ms."""
        return _width(open_config(self.name, SETTING)) // ROWS

    @property
    def num_mel_bins(self) -> int:
        """Of what Whisper reads."""
        return int(open_config(self.name, SETTING).num_mel_bins)

    @property
    def normalise(self) -> bool:
        """Whether an encoder of samples reads them at mean 0 and variance 1."""
        return normalises(local_encoder(self.name, SETTING))

    @property
    def max_rows(self) -> int | None:
        """Rows of the longest utterance that it can read; None for any."""
        config = open_config(self.name, SETTING)
        return ROWS * int(config.max_source_positions) if config.model_type == WHISPER else None

    @property
    def digest(self) -> str:
        """Of its weights, its settings and its front end's: all that its values hang on, besides the sound. The same wherever it is saved."""
        return _digest(self.name, _files(self.name))

    @property
    def num_parameters(self) -> int:
        """Of the encoder."""
        return sum(p.numel() for p in _load(self.name, _files(self.name)).parameters())

    @torch.no_grad()
    def __call__(self, read_TF: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the encoder's own front end gives for an utterance (Whisper's log-mel, or rows of samples), T rows → its values, T rows.

        Raises UserError for an utterance longer than the encoder can read.
        """
        model: Any = _load(self.name, _files(self.name))
        num_rows = len(read_TF)
        check_length(num_rows, self.max_rows)
        num_frames = -(-num_rows // ROWS)
        if self.architecture == WHISPER:
            y_TD = _whisper(model, torch.from_numpy(np.pad(read_TF, ((0, ROWS * num_frames - num_rows), (0, 0)), mode="edge")))
        else:
            wave_S = torch.from_numpy(np.ascontiguousarray(read_TF)).flatten()
            needed = covering_samples(num_frames, shift_samples=SHIFT_SAMPLES, window_samples=WINDOW_SAMPLES)
            y_TD = model(F.pad(wave_S, (0, needed - len(wave_S)))[None]).last_hidden_state[0]
        return np.ascontiguousarray(y_TD.reshape(ROWS * num_frames, -1)[:num_rows].numpy())

    def save(self, folder: Path) -> None:
        """Write the encoder; `Upstream(name=str(folder))` gives the same values."""
        model: Any = _load(self.name, _files(self.name))
        folder.mkdir(parents=True, exist_ok=True)
        with transformers_package():
            model.save_pretrained(folder)
        own = local_encoder(self.name, SETTING) / PREPROCESSOR
        write_bytes(folder / PREPROCESSOR, own.read_bytes() if own.is_file() else b"{}\n")


def _width(config: Any) -> int:
    return int(config.d_model if config.model_type == WHISPER else config.hidden_size)


Stamps = tuple[tuple[Path, int, int], ...]


def _files(name: str) -> Stamps:
    return stamps(local_encoder(name, SETTING), "model*.safetensors", "config.json", PREPROCESSOR)


@lru_cache(maxsize=8)
def _digest(name: str, files: Stamps) -> str:
    model: Any = _load(name, files)
    tensors = {key: [list(value.shape), sha256(value.numpy().tobytes()).hexdigest()] for key, value in model.state_dict().items()}
    normalise = model.config.model_type != WHISPER and normalises(local_encoder(name, SETTING))
    return digest_of_json([tensors, settings_of(model.config), normalise])


@lru_cache(maxsize=2)
def _load(name: str, _files: Stamps) -> nn.Module:
    """Frozen, in eval mode; one copy a process."""
    config = copy.deepcopy(open_config(name, SETTING))
    if config.model_type != WHISPER:
        config.mask_time_prob = config.mask_feature_prob = (
            0.0  # latent frames are never masked, and not all checkpoints have a vector for it
        )
    return load_encoder(name, config, SETTING).requires_grad_(False).eval()


def _whisper(model: Any, mel_TF: Tensor) -> Tensor:
    """WhisperEncoder's forward for an utterance of any length up to its positions: 2 T rows → T frames."""
    y_DT = F.gelu(model.conv2(F.gelu(model.conv1(mel_TF.T[None]))))
    y_TD = y_DT.transpose(1, 2) + model.embed_positions.weight[: y_DT.shape[2]]
    for layer in model.layers:
        y_TD = layer(y_TD, attention_mask=None)
        y_TD = y_TD[0] if isinstance(y_TD, tuple) else y_TD
    return torch.as_tensor(model.layer_norm(y_TD))[0]
