"""Pretrained speech encoders of transformers: where they lie, and one as a front end.

`Upstream` is a frozen one: what SUPERB (Yang et al. 2021, arXiv 2105.01051) calls an upstream. It never learns, so its
features are made once (`features_cache`). An export carries its weights.

- A frame of the encoder lasts 20 ms; it is laid over the two rows of 10 ms that it covers, half of its values in each,
  so that rows, lengths and labels are those of any front end.
- A student's normalisation is by value of a row, so values d and d + D/2 of a frame share one mean and deviation.
- It runs on the CPU, where features are made; the last bits depend on the number of threads.
- An utterance goes through alone. Whisper reads the utterance itself, not 30 s of mostly silence, which cost ten times
  as much for a short one. So its values are near, not equal, to those of transformers, which always pads.

Shape letters: S samples, T rows of 10 ms, F values a row, D width of the encoder.
"""

import copy
import json
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

from hkd.errors import HkdError, UserError
from hkd.files import digest_of_json, write_bytes
from hkd.pretrained import load_config, load_model, local_folder, transformers_package
from hkd.timebase import HOP_SAMPLES, covering_samples

WHISPER = "whisper"
ARCHITECTURES = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", WHISPER)
SHIFT_SAMPLES, WINDOW_SAMPLES = 320, 400  # of the frames of 20 ms that all of them have
PREPROCESSOR = "preprocessor_config.json"
NOT_SETTINGS = ("transformers_version", "architectures", "dtype", "_name_or_path", "torch_dtype")
Stamps = tuple[tuple[Path, int, int], ...]
FILES = ["config.json", PREPROCESSOR, "model*.safetensors", "model.safetensors.index.json"]


def local_encoder(name: str, setting: str = "encoder.name") -> Path:
    """The folder of an encoder, or of the hub's files in its cache, fetched where they are missing. `setting` is its
    name in errors. Raises UserError where there is none, HkdError where the hub cannot be reached."""
    return local_folder(name, what=setting) or _from_hub(name, setting)


def _from_hub(name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        if any(cached.glob("model*.safetensors")):
            return cached
    except (HFValidationError, LocalEntryNotFoundError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{setting} must be a folder or a hub name, but the hub has no {name}.") from None
    except Exception as error:  # gated, offline, a full disk: each has its own class
        raise HkdError(
            f"the encoder {name} is not in the local cache and cannot be had from the hub ({type(error).__name__}). "
            f"Give a local copy: {setting} = FOLDER, a folder with config.json and model.safetensors."
        ) from None


def normalises(name: str, setting: str = "encoder.name") -> bool:
    """Whether the encoder learnt from normalised utterances, as its preprocessor says; without one, yes."""
    path = local_encoder(name, setting) / PREPROCESSOR
    try:
        return not path.is_file() or bool(json.loads(path.read_text(encoding="utf-8")).get("do_normalize", True))
    except (ValueError, AttributeError) as error:
        what = f"{path} must be a preprocessor's JSON, but cannot be read as one ({error})"
        raise UserError(f"{what}. Fetch the files again.") from None


def _stamps(folder: Path, *patterns: str) -> Stamps:
    """Files of a folder with size and time of change: what is kept under them is never stale."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def open_config(name: str, setting: str = "encoder.name") -> Any:
    """transformers' configuration of an encoder, not to be written to. Raises UserError for one that does not fit."""
    folder = local_encoder(name, setting)
    return _read_config(name, folder, setting, _stamps(folder, "config.json"))


@lru_cache(maxsize=16)
def _read_config(name: str, folder: Path, setting: str, _stamps: object) -> Any:
    config = load_config(folder, what=setting, local_files_only=True)
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{setting} must be a speech encoder ({known}), but {name} is {config.model_type} instead.")
    if config.model_type != WHISPER:
        window, shift = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            window, shift = window + (kernel - 1) * shift, shift * stride
        if (shift, window) != (SHIFT_SAMPLES, WINDOW_SAMPLES):
            rule = f"must have frames of {SHIFT_SAMPLES} samples that see {WINDOW_SAMPLES}"
            raise UserError(f"{setting} {rule}, but {name} has {shift} and {window}.")
        if getattr(config, "add_adapter", False):
            raise UserError(f"{setting} must have no adapter, but {name} has one: its frames are longer.")
    return config


def settings_of(config: Any) -> dict[str, Any]:
    """What a configuration says of the model itself, as plain values."""
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_SETTINGS}
    return dict(json.loads(json.dumps(settings)))


def check_length(num_rows: int, limit: int | None) -> None:
    """Raises UserError for an utterance of more rows of 10 ms than an encoder can read."""
    if limit is not None and num_rows > limit:
        raise UserError(
            f"an utterance must be at most {limit / 100:g} s long for this encoder, but one is {num_rows / 100:g} s. "
            "Cut it, or leave it out (in training: max_utterance_seconds)."
        )


def load_encoder(name: str, config: Any, setting: str = "encoder.name") -> nn.Module:
    """The encoder with its weights in float32 (Whisper's alone), built by `config`. Raises HkdError for a gap."""
    folder, part = local_encoder(name, setting), ""
    kind: Any = "AutoModel"
    if config.model_type == WHISPER:
        if open_config(name, setting).architectures == ["WhisperEncoder"]:
            from transformers.models.whisper.modeling_whisper import WhisperEncoder

            kind = WhisperEncoder
        else:
            part = "encoder."
    model = load_model(
        folder, kind, what=setting, part=part, remedy="Take a checkpoint of the whole encoder.", config=config,
        dtype=torch.float32,
        local_files_only=True,
    )  # fmt: skip
    whole: nn.Module = model.encoder if part else model
    return whole


def padded(wave_BS: Tensor, num_frames: int) -> Tensor:
    """Samples with zeros after them, or without their last, so that convolutions give so many frames of 20 ms."""
    needed = covering_samples(num_frames, shift_samples=SHIFT_SAMPLES, window_samples=WINDOW_SAMPLES)
    return F.pad(wave_BS, (0, needed - wave_BS.shape[1]))


SETTING = "encoder.upstream"
ROWS = SHIFT_SAMPLES // HOP_SAMPLES  # of 10 ms, a frame of the encoder
UPSTREAM_FILES = ("config.json", "model.safetensors", PREPROCESSOR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upstream:
    """A speech encoder: hub name or folder. Raises UserError where it is none, HkdError for a hub out of reach."""

    name: str

    def __post_init__(self) -> None:
        if self.width % ROWS:
            raise UserError(f"{SETTING} must have an even width, but {self.name} has {self.width}.")
        _ = self.normalise  # its preprocessor can be read

    @property
    def config(self) -> Any:
        """transformers' configuration, not to be written to."""
        return open_config(self.name, SETTING)

    @property
    def width(self) -> int:
        """Values a frame of 20 ms; half of them are F, the values of a row of 10 ms."""
        return int(self.config.d_model if self.config.model_type == WHISPER else self.config.hidden_size)

    @property
    def normalise(self) -> bool:
        """Whether an encoder of samples reads them at mean 0 and variance 1."""
        return normalises(self.name, SETTING)

    @property
    def max_rows(self) -> int | None:
        """Rows of the longest utterance that it can read; None for any."""
        return ROWS * int(self.config.max_source_positions) if self.config.model_type == WHISPER else None

    @property
    def digest(self) -> str:
        """Of all that its values depend on, besides the sound. The same wherever it is saved."""
        return _digest(self.name, _files(self.name))

    @property
    def model(self) -> Any:
        """Frozen, in eval mode; one copy a process."""
        return _load(self.name, _files(self.name))

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def __call__(self, read_TF: NDArray[np.float32]) -> NDArray[np.float32]:
        """T rows of the encoder's own front end (log-mel or samples) → its values, T rows. Raises UserError if long."""
        num_rows = len(read_TF)
        check_length(num_rows, self.max_rows)
        num_frames = -(-num_rows // ROWS)
        if self.config.model_type == WHISPER:
            whole_TF = np.pad(read_TF, ((0, ROWS * num_frames - num_rows), (0, 0)), mode="edge")
            y_TD = _whisper(self.model, torch.from_numpy(whole_TF))
        else:
            wave_BS = torch.from_numpy(np.ascontiguousarray(read_TF)).flatten()[None]
            y_TD = self.model(padded(wave_BS, num_frames)).last_hidden_state[0]
        return np.ascontiguousarray(y_TD.reshape(ROWS * num_frames, -1)[:num_rows].numpy())

    def save(self, folder: Path) -> None:
        """Write the encoder; `Upstream(name=str(folder))` gives the same values."""
        folder.mkdir(parents=True, exist_ok=True)
        with transformers_package():
            self.model.save_pretrained(folder)
        own = local_encoder(self.name, SETTING) / PREPROCESSOR
        write_bytes(folder / PREPROCESSOR, own.read_bytes() if own.is_file() else b"{}\n")


def _files(name: str) -> Stamps:
    return _stamps(local_encoder(name, SETTING), "model*.safetensors", "config.json", PREPROCESSOR)


@lru_cache(maxsize=8)
def _digest(name: str, files: Stamps) -> str:
    model: Any = _load(name, files)
    state = model.state_dict().items()
    tensors = {key: [list(value.shape), sha256(value.numpy().tobytes()).hexdigest()] for key, value in state}
    normalise = model.config.model_type != WHISPER and normalises(name, SETTING)
    return digest_of_json([tensors, settings_of(model.config), normalise])


@lru_cache(maxsize=2)
def _load(name: str, _files: Stamps) -> nn.Module:
    config = copy.deepcopy(open_config(name, SETTING))
    if config.model_type != WHISPER:  # latent frames are never masked, and not all checkpoints have a vector for it
        config.mask_time_prob = config.mask_feature_prob = 0.0
    return load_encoder(name, config, SETTING).requires_grad_(False).eval()


def _whisper(model: Any, mel_TF: Tensor) -> Tensor:
    """WhisperEncoder's forward for an utterance of any length up to its positions: 2 T rows → T frames."""
    y_DT = F.gelu(model.conv2(F.gelu(model.conv1(mel_TF.T[None]))))
    y_TD = y_DT.transpose(1, 2) + model.embed_positions.weight[: y_DT.shape[2]]
    for layer in model.layers:
        y_TD = layer(y_TD, attention_mask=None)
        y_TD = y_TD[0] if isinstance(y_TD, tuple) else y_TD
    return torch.as_tensor(model.layer_norm(y_TD))[0]
