"""Speech encoders of transformers as a student's encoder: wav2vec 2.0, HuBERT, WavLM and their kin, and Whisper's.

- Weights are safetensors, no code comes with them. What stands in front of the layers (convolutions, positions) is frozen; the layers learn.
- Their frames are 20 ms. Two of them side by side are one encoder frame of 40 ms, so that slots, labels and lengths are those of any student.
- An utterance's output depends on nothing but its own sound. Convolutions over samples read its 40 ms frames padded with zeros (by
  `timebase.covering_samples`); where they are followed by a group norm over time (wav2vec2-base, hubert-base), which transformers computes
  over the padding too, its mean and variance are those of the utterance's own frames: what transformers gives for it alone.
  Whisper always reads its full 30 s, silence after the end, and knows no padding.
- Taps are the layers' outputs, before a final norm where there is one. Layers are not dropped, nor latent frames masked: SpecAugment comes from hkd.

Shape letters: B utterances, S samples, C channels, T frames, F values a frame, D model width.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from hkd.errors import HkdError, UserError
from hkd.native import import_torchaudio
from hkd.student.config import WHISPER, EncoderConfig, SpeechEncoderConfig
from hkd.student.encoder import subsampled, valid_frames
from hkd.timebase import HOP_SAMPLES, SUBSAMPLING, covering_samples

SHIFT_SAMPLES, WINDOW_SAMPLES = 320, 400  # of the convolutions that all of them have
FRAMES = SUBSAMPLING * HOP_SAMPLES // SHIFT_SAMPLES  # of theirs in an encoder frame
ARCHITECTURES = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", WHISPER)
FILES = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
OFF = ("layerdrop", "encoder_layerdrop", "mask_time_prob", "mask_feature_prob")
DROPOUTS = ("dropout", "hidden_dropout", "attention_dropout")  # set to encoder.dropout
OTHER_DROPOUTS = ("activation_dropout", "feat_proj_dropout")
NOT_SETTINGS = ("transformers_version", "architectures", "dtype", "_name_or_path", "torch_dtype")


@contextmanager
def _transformers() -> Iterator[Any]:
    """The package, without its progress bars and load reports."""
    import_torchaudio()
    transformers: Any = importlib.import_module("transformers")

    logger = logging.getLogger("transformers")
    before, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logger.setLevel(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def local_encoder(name: str) -> Path:
    """The folder of an encoder: itself, or the hub's files in its own cache, fetched where they are not there.

    Raises UserError where it holds no safetensors, HkdError where the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise UserError(f"encoder.name must be a folder or a hub name, but there is no folder {name}.")
        folder = _from_hub(name)
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"encoder.name must be a model with config.json and model.safetensors, but {name} has not both. Save it anew with "
            "save_pretrained(FOLDER), which writes safetensors, and name that folder."
        )
    return folder


def _from_hub(name: str) -> Path:
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
        raise UserError(f"encoder.name must be a folder or a hub name, but the hub has no {name}.") from None
    except Exception as error:  # gated, offline, a full disk: each has its own class
        raise HkdError(
            f"the encoder {name} is not in the local cache and cannot be had from the hub ({type(error).__name__}). Give a local copy: "
            "encoder.name = FOLDER, a folder with config.json and model.safetensors."
        ) from None


def open_speech_encoder(encoder: EncoderConfig) -> SpeechEncoderConfig:
    """What the named encoder is. Raises UserError for an architecture that is none of those known, or another frame rate."""
    folder = local_encoder(encoder.name)
    with _transformers() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, OSError) as error:
            raise UserError(
                f"encoder.name must be a model that transformers knows, but {encoder.name} is not ({str(error).splitlines()[0]})."
            ) from None
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"encoder.name must be a speech encoder ({', '.join(ARCHITECTURES)}), but {encoder.name} is {config.model_type} instead."
        )
    settings = {key: value for key, value in config.to_dict().items() if key not in NOT_SETTINGS}
    for key in settings:
        settings[key] = 0.0 if key in OFF + OTHER_DROPOUTS else encoder.dropout if key in DROPOUTS else settings[key]
    settings = json.loads(json.dumps({**settings, "apply_spec_augment": False}))
    if config.model_type != WHISPER:
        window, shift = 1, 1
        for kernel, stride in zip(settings["conv_kernel"], settings["conv_stride"], strict=True):
            window, shift = window + (kernel - 1) * shift, shift * stride
        if (shift, window) != (SHIFT_SAMPLES, WINDOW_SAMPLES):
            raise UserError(
                f"encoder.name must have frames of {SHIFT_SAMPLES} samples that see {WINDOW_SAMPLES}, but {encoder.name} has {shift} and {window}."
            )
        if settings.get("conv_pos_batch_norm") or settings.get("add_adapter"):
            raise UserError(
                f"encoder.name must have no batch norm and no adapter, but {encoder.name} has one: outputs would hang on the batch."
            )
    return SpeechEncoderConfig(name=encoder.name, settings=settings, normalise=_normalises(folder))


def _normalises(folder: Path) -> bool:
    """Whether the encoder was trained on normalised utterances: its preprocessor says, and yes where there is none (transformers' default)."""
    path = folder / "preprocessor_config.json"
    return not path.is_file() or bool(json.loads(path.read_text(encoding="utf-8")).get("do_normalize", True))


def _build(config: SpeechEncoderConfig) -> nn.Module:
    with _transformers() as transformers:
        settings = transformers.AutoConfig.for_model(config.architecture, **_without(config.settings, "model_type"))
        if config.architecture == WHISPER:
            from transformers.models.whisper.modeling_whisper import WhisperEncoder

            return WhisperEncoder(settings)
        model: nn.Module = transformers.AutoModel.from_config(settings, dtype=torch.float32)
        return model


def _without(settings: Any, key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


class SpeechEncoder(nn.Module):
    """An encoder of transformers with the interface of `ConformerEncoder`. Weights are random until `load_pretrained`."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _build(config)
        frozen: list[Any] = [self.model.feature_extractor] if config.architecture != WHISPER else _whisper_front(self.model)
        for module in frozen:
            module.requires_grad_(False)

    @property
    def layers(self) -> nn.ModuleList:
        """What taps count."""
        inner: Any = self.model if self.config.architecture == WHISPER else self.model.encoder
        layers: nn.ModuleList = inner.layers
        return layers

    def forward(self, x_BTF: Tensor, length_B: Tensor, taps: Collection[int]) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """x_BTF as the config's front end gives it, length_B in 10 ms frames, taps as layers counted from 1.

        Gives the top's x_BTD (D is `d_out`), the lengths in encoder frames of 40 ms, and tap → x_BTD. What stands past an utterance's end is
        finite and means nothing. Raises UserError for an utterance longer than the encoder can read.
        """
        seen: dict[int, Tensor] = {}
        num_frames = -(-x_BTF.shape[1] // SUBSAMPLING)
        x_BTF = x_BTF.masked_fill(~valid_frames(length_B, x_BTF.shape[1])[:, :, None], 0.0)

        def note(number: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                seen[number] = _paired(output[0] if isinstance(output, tuple) else output, num_frames)

            return hook

        with ExitStack() as hooks:
            for number in taps:
                handle = self.layers[number - 1].register_forward_hook(note(number))
                hooks.callback(handle.remove)
            run = self._whisper if self.config.architecture == WHISPER else self._convolutional
            top_BTD = run(x_BTF, length_B, num_frames)
        return _paired(top_BTD, num_frames), subsampled(length_B), seen

    def _convolutional(self, x_BTF: Tensor, length_B: Tensor, num_frames: int) -> Tensor:
        model: Any = self.model
        wave_BS = x_BTF.flatten(1)
        needed = covering_samples(FRAMES * num_frames, shift_samples=SHIFT_SAMPLES, window_samples=WINDOW_SAMPLES)
        frames_B = FRAMES * subsampled(length_B)
        with torch.no_grad():
            y_BCT = self._samples_to_frames(F.pad(wave_BS, (0, needed - wave_BS.shape[1])), frames_B)
        y_BTD = model.feature_projection(y_BCT.transpose(1, 2))
        y_BTD = y_BTD[0] if isinstance(y_BTD, tuple) else y_BTD
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # WavLM's own attention
            output = model.encoder(y_BTD, attention_mask=valid_frames(frames_B, y_BTD.shape[1]))
        top_BTD: Tensor = output.last_hidden_state
        return top_BTD

    def _samples_to_frames(self, wave_BS: Tensor, frames_B: Tensor) -> Tensor:
        """The convolutions, a group norm over each utterance's own frames."""
        model: Any = self.model
        y_BCT = wave_BS[:, None]
        length_B = (frames_B - 1) * SHIFT_SAMPLES + WINDOW_SAMPLES
        for layer in model.feature_extractor.conv_layers:
            length_B = (length_B - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                y_BCT = layer.activation(_group_norm(norm, layer.conv(y_BCT), length_B))
            else:
                y_BCT = layer(y_BCT)
        return y_BCT

    def _whisper(self, x_BTF: Tensor, length_B: Tensor, num_frames: int) -> Tensor:
        limit = self.config.max_frames or 0
        if int(x_BTF.shape[1]) > limit:
            raise UserError(
                f"an utterance must be at most {limit / 100:g} s long for this encoder, but one is {x_BTF.shape[1] / 100:g} s. Cut it, or leave it "
                "out: max_utterance_seconds."
            )
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


def _whisper_front(model: Any) -> list[nn.Module]:
    return [model.conv1, model.conv2, model.embed_positions]


def load_pretrained(encoder: SpeechEncoder) -> None:
    """Put the named encoder's weights in. Raises UserError where it lacks some, HkdError where they cannot be read."""
    folder, config = local_encoder(encoder.config.name), encoder.config
    with _transformers() as transformers:
        settings: Any = getattr(encoder.model, "config")  # noqa: B009 (nn.Module types attributes as tensors)
        kind: Any = transformers.AutoModel
        if config.architecture == WHISPER and json.loads((folder / "config.json").read_text()).get("architectures") == [
            "WhisperEncoder"
        ]:
            kind = type(encoder.model)
        try:
            model, found = kind.from_pretrained(
                folder, config=settings, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise HkdError(f"the weights of {config.name} cannot be read ({reason}). Have the files anew.") from None
    ours = model.encoder if config.architecture == WHISPER and kind is transformers.AutoModel else model
    prefix = "encoder." if ours is not model else ""
    lost = sorted(name for name in found["missing_keys"] if name.startswith(prefix)) + sorted(found["mismatched_keys"])
    if lost:
        raise UserError(
            f"encoder.name must hold the weights of a {config.architecture} encoder, but {config.name} lacks {len(lost)} of them "
            f"({', '.join(map(str, lost[:3]))} ...)."
        )
    encoder.model.load_state_dict(ours.state_dict())


def save_pretrained(encoder: SpeechEncoder, folder: Path) -> None:
    """Write the encoder for transformers alone: config.json, model.safetensors and preprocessor_config.json."""
    model: Any = encoder.model
    front_end = encoder.config.front_end
    with _transformers() as transformers:
        model.save_pretrained(folder)
        if encoder.config.architecture == WHISPER:
            extractor: Any = transformers.WhisperFeatureExtractor(feature_size=front_end.num_bins)
        else:
            extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=front_end.normalise, return_attention_mask=True)
        extractor.save_pretrained(folder)
