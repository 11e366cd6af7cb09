"""One architecture of each kind: what a teacher says is what the model itself says, alone and beside others, or it is
refused at loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hkd.errors import UserError
from hkd.teachers.base import Sentence
from hkd.teachers.forward import ForwardMode
from hkd.teachers.load import load_teacher
from hkd.teachers.transformer import TransformerTeacher
from hkd.testing.teachers import WORDS, byte_bpe

TEXTS = [WORDS[:40], "over there", WORDS[50:75]]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
LLAMA = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 96}
DECODER = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
}

CAUSAL: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mixture of experts": lambda v: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**v, **LLAMA, num_local_experts=4, num_experts_per_tok=2)
    ),
    "experts that share": lambda v: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(**v, **LLAMA, num_experts=4, moe_intermediate_size=32,
            shared_expert_intermediate_size=32)
    ),
    "state space": lambda v: transformers.MambaForCausalLM(transformers.MambaConfig(**v, hidden_size=32,
        num_hidden_layers=2)),
    "recurrent": lambda v: transformers.RwkvForCausalLM(transformers.RwkvConfig(**v, hidden_size=32,
        num_hidden_layers=2)),
    "decoder of an encoder-decoder": lambda v: transformers.BartForCausalLM(transformers.BartConfig(**v, **DECODER)),
    "a decoder inside": lambda v: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **v, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
            max_position_embeddings=96,
        )
    ),
    "an encoder that decodes": lambda v: transformers.BertLMHeadModel(transformers.BertConfig(**v, **SIZE,
        is_decoder=True)),
    "either direction, causal": lambda v: transformers.XLMWithLMHeadModel(
        transformers.XLMConfig(**v, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=96, causal=True)
    ),
}  # fmt: skip
MASKED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "windows": lambda v: transformers.LongformerForMaskedLM(transformers.LongformerConfig(**v, **SIZE,
        attention_window=8)),
    "mixes over padding": lambda v: transformers.FNetForMaskedLM(
        transformers.FNetConfig(**v, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            max_position_embeddings=96)
    ),
    "convolves over padding": lambda v: transformers.ConvBertForMaskedLM(
        transformers.ConvBertConfig(**v, **SIZE, embedding_size=32, head_ratio=1)
    ),
    "encoder-decoder": lambda v: transformers.BartForConditionalGeneration(
        transformers.BartConfig(**v, **DECODER, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48)
    ),
    "a head larger than the body": lambda v: transformers.RemBertForMaskedLM(
        transformers.RemBertConfig(**v, **SIZE, input_embedding_size=16, output_embedding_size=64)
    ),
    "own head": lambda v: transformers.DebertaV2ForMaskedLM(transformers.DebertaV2Config(**v, **SIZE, legacy=False)),
    "either direction, masked": lambda v: transformers.XLMWithLMHeadModel(
        transformers.XLMConfig(**v, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=96)
    ),
}  # fmt: skip


def saved(folder: Path, make: Callable[[dict[str, Any]], Any]) -> tuple[Any, Any]:
    tokenizer = byte_bpe([WORDS], masked=True)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    model = make({"vocab_size": len(tokenizer), **ids}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(0.0, 0.2, generator=generator)  # the padding token's embedding is no zero vector
            else:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, unit_U: np.ndarray, *, causal: bool) -> np.ndarray:
    """log p (U, V), a position at a time, alone."""
    rows = []
    for n in range(len(unit_U)):
        token_L = (
            [tokenizer.bos_token_id, *unit_U[:n].tolist()] if causal else [0, *unit_U.tolist(), tokenizer.sep_token_id]
        )
        if not causal:
            token_L[n + 1] = tokenizer.mask_token_id
        logits = model(input_ids=torch.tensor([token_L])).logits[0, -1 if causal else n + 1]
        rows.append(torch.log_softmax(logits.double(), -1).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_a_teacher_says_what_the_model_itself_says(kind: str, tmp_path: Path) -> None:
    causal = kind in CAUSAL
    model, tokenizer = saved(tmp_path / "lm", (CAUSAL if causal else MASKED)[kind])
    teacher = load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")
    assert teacher.info.direction == ("left" if causal else "both")
    sentences = []
    for text in TEXTS:
        unit_U, word_U = teacher.encode(text.split())
        sentences.append(Sentence(id=text, unit_U=unit_U, word_U=word_U))
    for sentence, rows in zip(sentences, teacher.score(sentences, k=len(teacher.inventory)), strict=True):
        own_UV = by_hand(model, tokenizer, sentence.unit_U, causal=causal)
        np.testing.assert_allclose(np.take_along_axis(own_UV, rows.ids_NK.astype(np.int64), 1), rows.logp_NK, atol=1e-4)


def test_texts_beyond_the_table_of_positions_are_read_in_windows(tmp_path: Path) -> None:
    small = {**DECODER, "max_target_positions": 24}  # Whisper's config has no max_position_embeddings
    del small["max_position_embeddings"]
    make = lambda v: transformers.WhisperForCausalLM(transformers.WhisperConfig(**v, **small))  # noqa: E731
    model, tokenizer = saved(tmp_path / "lm", make)
    teacher = load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")
    unit_U, word_U = teacher.encode((WORDS + " ").split() * 4)
    assert len(unit_U) > 48
    [rows] = teacher.score([Sentence(id="long", unit_U=unit_U, word_U=word_U)], k=len(teacher.inventory))
    own_UV = by_hand(model, tokenizer, unit_U[:12], causal=True)
    first = np.take_along_axis(own_UV, rows.ids_NK[:12].astype(np.int64), 1)
    np.testing.assert_allclose(first, rows.logp_NK[:12], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "rows"), [("mixes over padding", "equal"), ("convolves over padding", "equal"), ("windows", "padded")]
)
def test_bodies_that_read_padding_are_found(kind: str, rows: str, tmp_path: Path) -> None:
    saved(tmp_path / "lm", MASKED[kind])
    teacher: Any = load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")
    assert teacher._scorer.way == ForwardMode(rows=rows)


BOTH_WAYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "BertLMHeadModel": lambda v: transformers.BertLMHeadModel(transformers.BertConfig(**v, **SIZE)),
    "XLNetLMHeadModel": lambda v: transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(**v, d_model=32, n_layer=2, n_head=4, d_inner=48)
    ),
    "RobertaForCausalLM": lambda v: transformers.RobertaForCausalLM(transformers.RobertaConfig(**v, **SIZE)),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_model_that_reads_later_tokens_is_no_causal_teacher(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "lm", BOTH_WAYS[name])
    with pytest.raises(UserError, match=f"must read from left to right, but {name} reads later tokens"):
        load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def broken(v: dict[str, Any]) -> Any:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**v, **SIZE))
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.bias[0] = float("nan")
        return model

    saved(tmp_path / "lm", broken)
    with pytest.raises(UserError, match="must give numbers as logits, but BertForMaskedLM gives none"):
        load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")


def test_a_masked_model_that_reads_from_left_to_right_is_refused(tmp_path: Path) -> None:
    saved(
        tmp_path / "lm", lambda v: transformers.BertForMaskedLM(transformers.BertConfig(**v, **SIZE, is_decoder=True))
    )
    with pytest.raises(
        UserError, match="must read both sides of a word, but BertForMaskedLM reads from left to right alone"
    ):
        load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")


@pytest.mark.parametrize(
    "given", [{"architectures": ["BidirectionalLlamaForCausalLM"]}, {"auto_map": {"AutoModelForCausalLM": "x.BiLlama"}}]
)
def test_weights_of_another_class_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    import json

    saved(tmp_path / "lm", lambda v: transformers.LlamaForCausalLM(transformers.LlamaConfig(**v, **LLAMA)))
    path = tmp_path / "lm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given))
    with pytest.raises(UserError, match=r"is of Bi\w*Llama\w*, and LlamaForCausalLM would read its weights otherwise"):
        load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")


def test_native_classes_named_by_auto_map_are_read(tmp_path: Path) -> None:
    import json

    saved(tmp_path / "lm", lambda v: transformers.LlamaForCausalLM(transformers.LlamaConfig(**v, **LLAMA)))
    path = tmp_path / "lm" / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}}
    path.write_text(json.dumps(config))
    assert isinstance(load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu"), TransformerTeacher)


def test_windows_are_no_longer_than_what_bigbird_attends_to_in_full(tmp_path: Path) -> None:
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 2}
    make = lambda v: transformers.BigBirdForMaskedLM(transformers.BigBirdConfig(**v, **SIZE, **sparse))  # noqa: E731
    saved(tmp_path / "lm", make)
    teacher = load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")
    assert isinstance(teacher, TransformerTeacher)
    assert teacher.room == (5 + 2 * 2) * 4 - 2, "a short text turns sparse attention off for good"
