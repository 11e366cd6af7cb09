"""GGUF files through transformers: a tiny one against the safetensors it was made from, and Gemma 3 270M against a
straight reference."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.errors import UserError
from hkd.teachers.base import Sentence
from hkd.teachers.load import load_teacher
from hkd.teachers.transformer import CausalTeacher

Folder = Callable[[str], Path]
BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """A tensor's name in GGUF."""
    path, _, kind = name.rpartition(".")
    if path in WHOLE:
        return f"{WHOLE[path]}.{kind}"
    number, _, part = path.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{BLOCK[part]}.{kind}"


def write_gguf(teacher: CausalTeacher, path: Path) -> None:
    """A Qwen2 as a GGUF file, in float32."""
    import json

    import gguf

    config, tokenizer = teacher.model.config, teacher._tokenizer
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = [tokenizer.convert_ids_to_tokens(v) for v in range(len(tokenizer))]
    tokens += [f"<unused {n}>" for n in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, value in teacher.model.state_dict().items():
        writer.add_tensor(gguf_name(name), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_what_its_safetensors_give(
    teacher_folder: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = load_teacher(str(teacher_folder("qwen2")), unit="subword", device="cpu")
    assert isinstance(plain, CausalTeacher)
    (tmp_path / "lm").mkdir()
    write_gguf(plain, tmp_path / "lm" / "tiny.gguf")
    capfd.readouterr()
    teacher = load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")
    assert "GGUF" not in capfd.readouterr().err  # no progress bar of transformers
    assert isinstance(teacher, CausalTeacher)
    unit_U, word_U = plain.encode(["the", "cat", "sat"])
    asked = [Sentence(id="a", unit_U=unit_U, word_U=word_U)]
    [one], [other] = plain.score(asked, k=8), teacher.score(asked, k=8)
    np.testing.assert_allclose(one.gold_logp_N, other.gold_logp_N, atol=1e-5)
    for ids, logp, ids_there, logp_there in zip(one.ids_NK, one.logp_NK, other.ids_NK, other.logp_NK, strict=True):
        shared, here, there = np.intersect1d(ids, ids_there, return_indices=True)
        assert len(shared) >= 6  # a GGUF file does not tell padding of the vocabulary from tokens
        np.testing.assert_allclose(logp[here], logp_there[there], atol=1e-5)
    (tmp_path / "lm" / "other.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="one GGUF file"):
        load_teacher(str(tmp_path / "lm"), unit="subword", device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(
    "HKD_GEMMA" not in os.environ, reason="HKD_GEMMA names no folder with Gemma 3 270M (a GGUF file or safetensors)"
)
def test_gemma_gives_what_one_prefix_at_a_time_gives_in_float64() -> None:
    teacher = load_teacher(os.environ["HKD_GEMMA"], unit="subword", device="cpu", precision="fp32")
    assert isinstance(teacher, CausalTeacher)
    texts = ["the cat sat on the mat", "it's raining again over there", "participants"]
    asked = [
        Sentence(id=text, unit_U=unit_U, word_U=word_U)
        for text in texts
        for unit_U, word_U in [teacher.encode(text.split())]
    ]
    scored = teacher.score(asked, k=16)
    teacher.model.double()
    special = set(teacher._tokenizer.all_special_ids)
    for s, rows in zip(asked, scored, strict=True):
        for n, unit in enumerate(s.unit_U.tolist()):
            with torch.no_grad():
                logits = teacher.model(input_ids=torch.tensor([[2, *s.unit_U[:n].tolist()]])).logits[0, -1]
            logp_V = torch.log_softmax(logits.double(), -1).numpy()
            np.testing.assert_allclose(rows.logp_NK[n], logp_V[rows.ids_NK[n]], atol=1e-4)
            np.testing.assert_allclose(rows.gold_logp_N[n], logp_V[unit], atol=1e-4)
            np.testing.assert_allclose(
                rows.tail_N[n], np.log(np.delete(np.exp(logp_V), rows.ids_NK[n]).sum()), atol=1e-4
            )
            best = [v for v in np.argsort(-logp_V)[:40].tolist() if v not in special][:15]
            np.testing.assert_allclose(rows.logp_NK[n][:15], logp_V[best], atol=1e-4)
