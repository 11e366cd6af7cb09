"""Tiny speech encoders with random weights, saved as transformers folders: every architecture that hkd trains students
on."""

import importlib
from pathlib import Path
from typing import Any

import torch

from hkd.audio import import_torchaudio

CONVOLUTIONAL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_source_positions": 300,  # 6 s
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def tiny_encoder(folder: Path, architecture: str, *, seed: int = 0, **settings: Any) -> Path:
    """Save a model of that type (wav2vec2, hubert, wavlm, whisper ...) with random weights; gives the folder."""
    import_torchaudio()
    transformers: Any = importlib.import_module("transformers")
    given = {**(WHISPER if architecture == "whisper" else CONVOLUTIONAL), **settings}
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(architecture, **given))
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        transformers.utils.logging.enable_progress_bar()
    return folder
