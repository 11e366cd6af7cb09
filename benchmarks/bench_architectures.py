"""What a teacher says against the model asked by hand, for every masked and causal architecture of transformers that
can be built small.

    python benchmarks/bench_architectures.py [--only mixtral,bert] [--kind masked]

Each architecture is built small with random weights and saved; `load_teacher` loads it as it loads any folder, and
scores texts of unequal length in one call. By hand the model answers in float64 (where its own code can), one text at a
time and one position at a time: a causal model reads the tokens before, a masked one the text with a mask in that
place. A row is "agrees" (the largest difference of a log-probability is below 1e-4), "refused" (one line at loading),
or "wrong". Architectures that take no texts alone, or that have parts of fixed size above `MOST_PARAMETERS`, are listed
with the reason why they were not built.
"""

import inspect
import json
import logging
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from common import RESULTS, bar, machine, parser, save

from hkd.errors import HkdError
from hkd.teachers.base import Sentence
from hkd.teachers.load import load_teacher
from hkd.testing.teachers import byte_bpe, transformers

OUT = RESULTS / "architectures.json"
BOUND = 1e-4
BARS = {"causal": (98, 103), "masked": (36, 38)}  # at least so many agree; of how many it was measured first
MOST_PARAMETERS = 20_000_000
TIME_LIMIT_S = 400
TEXTS = ("the cat sat on the mat and the dog saw a bird", "over there", "i'm reading a long letter from my brother")
WIDTH = 32
DEFAULT = "default"
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner", "d_inner", "ffn_hidden_size"), 48
    ),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "moe_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_key_value_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 80),
}
# What an architecture needs besides, or instead; the rest gets by with a key-value head a head, or with its own width
# of heads.
OTHERS: dict[str, dict[str, Any]] = {
    "funnel": {"num_hidden_layers": DEFAULT, "block_sizes": [2, 2]},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 32},
    "mra": {"max_position_embeddings": 128},
    "neomme": {"head_dim": 16},
    "perceiver": {
        **dict.fromkeys(("d_latents", "qk_channels", "v_channels"), WIDTH), "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
    },
    "reformer": {
        "axial_pos_embds": False, "attn_layers": ["local", "local"], "num_hidden_layers": DEFAULT,
        "attention_head_size": 8, "num_buckets": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "prophetnet": {"num_hidden_layers": DEFAULT, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "xlnet": {"max_position_embeddings": DEFAULT},
    "xlstm": {"v_head_dim": DEFAULT},
    "falcon": {"head_dim": DEFAULT},
    "falcon_h1": {"mamba_chunk_size": 8, "num_hidden_layers": 2},
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
}  # fmt: skip
ONLY_FLOAT32 = ("inkling2_text", "mra", "xglm")  # whose own code does not run in float64
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 4, "head_dim": DEFAULT},
    {"head_dim": DEFAULT},
    {"layer_types": ["full_attention"] * 4},
)


class _TimeError(Exception):
    """An architecture took too long."""


def small_config(model_type: str, kind: str, tokenizer: Any, variant: dict[str, Any]) -> Any:
    """The architecture's own config, small; a reason as ValueError or the like where it cannot be."""
    cls = transformers.CONFIG_MAPPING[model_type]
    default = cls()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    given = {}
    for name, value in sizes.items():
        try:
            known = getattr(default, name)
        except (AttributeError, NotImplementedError):
            continue
        if known is None or (isinstance(known, int) and not isinstance(known, bool)):
            given[name] = value
    for name in ("is_decoder", "causal"):
        if kind == "causal" and hasattr(default, name):
            given[name] = True
    given |= variant | OTHERS.get(model_type, {})
    return cls(**{name: value for name, value in given.items() if value != DEFAULT})


def make(model_type: str, kind: str, tokenizer: Any, folder: Path, variant: dict[str, Any]) -> None:
    """Save the architecture with random weights that have opinions, and the tokenizer."""
    config = small_config(model_type, kind, tokenizer, variant)
    auto = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForMaskedLM
    with torch.device("meta"):
        parameters = sum(value.numel() for value in auto.from_config(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"parts of fixed size: {parameters / 1e6:.0f} M parameters")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(0.0, 0.15, generator=generator)
            elif value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def by_hand(folder: Path, kind: str, tokenizer: Any, unit_U: np.ndarray) -> tuple[np.ndarray, str]:
    """log p (U, V) of the model itself in float64, one position at a time; the class's name."""
    auto = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForMaskedLM
    model = auto.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()
    model = model if model.config.model_type in ONLY_FLOAT32 else model.double()
    no_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    rows = []
    for n in range(len(unit_U)):
        if kind == "causal":
            token_L, at = [tokenizer.bos_token_id, *unit_U[:n].tolist()], -1
            given = no_cache
        else:
            token_L, at = [tokenizer.cls_token_id, *unit_U.tolist(), tokenizer.sep_token_id], n + 1
            token_L[at] = tokenizer.mask_token_id
            given = {"attention_mask": torch.ones((1, len(token_L)), dtype=torch.long)}
        logits = model(input_ids=torch.tensor([token_L]), **given).logits
        rows.append(torch.log_softmax(logits[0, at].double(), -1).numpy())
    return np.stack(rows), type(model).__name__


def examine(model_type: str, kind: str, tokenizer: Any, work: Path) -> dict[str, Any]:
    """One row of the table."""
    folder = work / f"{kind}-{model_type}"
    row: dict[str, Any] = {"kind": kind, "model_type": model_type}
    reasons = []
    for number, variant in enumerate(VARIANTS):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            make(model_type, kind, tokenizer, folder, variant)
            row["architecture"] = by_hand(folder, kind, tokenizer, np.arange(10, 13))[1]
            break
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
            if number + 1 == len(VARIANTS) or "parts of fixed size" in reasons[0]:
                return {**row, "result": "not built", "why": reasons[0]}
    try:
        teacher: Any = load_teacher(str(folder), unit="subword", device="cpu")
    except HkdError as error:
        return {**row, "result": "refused", "why": str(error)}
    except Exception as error:
        return {**row, "result": "trace", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    row["way"] = str(teacher._scorer.way)
    try:
        sentences = []
        for number, text in enumerate(TEXTS):
            unit_U, word_U = teacher.encode(text.split())
            sentences.append(Sentence(id=str(number), unit_U=unit_U, word_U=word_U))
        gap = 0.0
        for sentence, rows in zip(sentences, teacher.score(sentences, k=len(teacher.inventory)), strict=True):
            logp_UV, _ = by_hand(folder, kind, tokenizer, sentence.unit_U)
            own = np.take_along_axis(logp_UV, rows.ids_NK.astype(np.int64), 1)
            gap = max(gap, float(np.abs(own - rows.logp_NK).max()))
    except Exception as error:
        return {**row, "result": "trace", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    return {**row, "result": "agrees" if gap <= BOUND else "wrong", "gap": float(f"{gap:.2g}")}


def _stop(_: int, __: FrameType | None) -> None:
    raise _TimeError(f"more than {TIME_LIMIT_S} s")


def main() -> None:
    """The table, and the bars."""
    known = parser(__doc__)
    known.add_argument("--only", default="", help="model types, separated by commas")
    known.add_argument("--kind", choices=("causal", "masked"))
    given = known.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    only = set(filter(None, given.only.split(",")))
    signal.signal(signal.SIGALRM, _stop)
    rows = []
    auto = transformers.models.auto.modeling_auto
    mappings = {"causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    for kind, mapping in mappings.items():
        tokenizer = byte_bpe(TEXTS, masked=True)
        for model_type in mapping:
            if (only and model_type not in only) or given.kind not in (None, kind):
                continue
            with tempfile.TemporaryDirectory() as work:
                signal.alarm(TIME_LIMIT_S)
                try:
                    row = examine(model_type, kind, tokenizer, Path(work))
                except _TimeError as error:
                    row = {"kind": kind, "model_type": model_type, "result": "not built", "why": str(error)}
                finally:
                    signal.alarm(0)
                shutil.rmtree(work, ignore_errors=True)
            rows.append(row)
            said = row.get("gap", row.get("why", ""))
            name = f"{kind:7} {model_type:26} {row.get('architecture', ''):34}"
            print(f"{name} {row['result']:10} {said} {row.get('way', '')}", flush=True)
    if only or given.kind:  # those rows again, the others as they were
        before = json.loads(OUT.read_text(encoding="utf-8"))["rows"] if OUT.is_file() else []
        now = {(row["kind"], row["model_type"]): row for row in rows}
        rows = [now.pop((row["kind"], row["model_type"]), row) for row in before] + list(now.values())
    count = Counter((row["kind"], row["result"]) for row in rows)
    bars = []
    for kind, (least, _) in BARS.items():
        agree, built = (
            count[kind, "agrees"],
            sum(count[kind, result] for result in ("agrees", "refused", "wrong", "trace")),
        )
        print(
            f"{kind}: {agree} of {built} agree, {count[kind, 'refused']} refused, {count[kind, 'not built']} not built"
        )
        bars.append(bar(f"{kind} architectures that agree, of {built}", agree, least, least=True))
    faults = sum(count[kind, result] for kind in BARS for result in ("wrong", "trace"))
    bars.append(bar("architectures wrong, or a trace", faults, 0))
    save(OUT, {"machine": machine(), "rows": rows, "bars": bars})


if __name__ == "__main__":
    main()
