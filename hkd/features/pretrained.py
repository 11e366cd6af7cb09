"""Pretrained speech encoders of transformers: where they lie, and how the package is loaded. Safetensors only, no code comes with them."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hkd.errors import HkdError, UserError
from hkd.pretrained import check_folder, load_config, load_model

WHISPER = "whisper"
ARCHITECTURES = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", WHISPER)
SHIFT_SAMPLES, WINDOW_SAMPLES = 320, 400  # of the frames of 20 ms that all of them have
PREPROCESSOR = "preprocessor_config.json"
NOT_SETTINGS = ("transformers_version", "architectures", "dtype", "_name_or_path", "torch_dtype")
FILES = ["config.json", PREPROCESSOR, "model*.safetensors", "model.safetensors.index.json"]


def local_encoder(name: str, setting: str = "encoder.name") -> Path:
    """The folder of an encoder: itself, or the hub's files in its own cache, fetched where they are not there. `setting` is who asks.

    Raises UserError where it holds no safetensors, HkdError where the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise UserError(f"{setting} must be a folder or a hub name, but there is no folder {name}.")
        folder = _from_hub(name, setting)
    check_folder(folder, what=setting)
    return folder


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
            f"the encoder {name} is not in the local cache and cannot be had from the hub ({type(error).__name__}). Give a local copy: "
            f"{setting} = FOLDER, a folder with config.json and model.safetensors."
        ) from None


def normalises(folder: Path) -> bool:
    """Whether the encoder was trained on normalised utterances: its preprocessor says, and yes where there is none (transformers' default)."""
    path = folder / PREPROCESSOR
    try:
        return not path.is_file() or bool(json.loads(path.read_text(encoding="utf-8")).get("do_normalize", True))
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} must be a preprocessor's JSON, but cannot be read as one ({error}). Have the files anew."
        ) from None


def stamps(folder: Path, *patterns: str) -> tuple[tuple[Path, int, int], ...]:
    """Files of a folder with size and time of change: what is kept under them is never stale."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def open_config(name: str, setting: str = "encoder.name") -> Any:
    """transformers' configuration of an encoder, not to be written to.

    Raises UserError where it is none of ARCHITECTURES, or has frames of another length.
    """
    folder = local_encoder(name, setting)
    return _read_config(name, folder, setting, stamps(folder, "config.json"))


@lru_cache(maxsize=16)
def _read_config(name: str, folder: Path, setting: str, _stamps: object) -> Any:
    config = load_config(folder, what=setting, local_files_only=True)
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"{setting} must be a speech encoder ({', '.join(ARCHITECTURES)}), but {name} is {config.model_type} instead."
        )
    if config.model_type != WHISPER:
        window, shift = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            window, shift = window + (kernel - 1) * shift, shift * stride
        if (shift, window) != (SHIFT_SAMPLES, WINDOW_SAMPLES):
            raise UserError(
                f"{setting} must have frames of {SHIFT_SAMPLES} samples that see {WINDOW_SAMPLES}, but {name} has {shift} and {window}."
            )
        if getattr(config, "add_adapter", False):
            raise UserError(f"{setting} must have no adapter, but {name} has one: its frames are longer.")
    return config


def settings_of(config: Any) -> dict[str, Any]:
    """What a configuration says of the model itself, as plain values."""
    settings: dict[str, Any] = json.loads(json.dumps({k: v for k, v in config.to_dict().items() if k not in NOT_SETTINGS}))
    return settings


def check_length(num_rows: int, limit: int | None) -> None:
    """Raises UserError for an utterance of more rows of 10 ms than an encoder can read."""
    if limit is not None and num_rows > limit:
        raise UserError(
            f"an utterance must be at most {limit / 100:g} s long for this encoder, but one is {num_rows / 100:g} s. Cut it, or leave it out "
            "(in training: max_utterance_seconds)."
        )


def load_encoder(name: str, config: Any, setting: str = "encoder.name") -> nn.Module:
    """The encoder with its weights in float32, of Whisper without its decoder, built by `config`.

    Raises UserError where it lacks some, HkdError where they cannot be read.
    """
    folder = local_encoder(name, setting)
    kind: Any = "AutoModel"
    part = ""
    if config.model_type == WHISPER:
        alone = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") == ["WhisperEncoder"]
        if alone:
            from transformers.models.whisper.modeling_whisper import WhisperEncoder

            kind = WhisperEncoder
        else:
            part = "encoder."
    model = load_model(
        folder, kind, what=setting, part=part, remedy="Take a checkpoint of the whole encoder.", config=config, dtype=torch.float32,
        local_files_only=True,
    )  # fmt: skip
    whole: nn.Module = model.encoder if part else model
    return whole
