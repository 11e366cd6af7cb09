"""Tiny language models with random weights and a real tokenizer, saved as transformers folders (every architecture that
hkd is tested on), and a tiny corpus of synthesised English speech.

The corpus: 16 kHz, a few seconds in all, the same bytes every time. The voice is hibari-tts's (package extra `test`);
"speakers" differ in speed and pitch. For tests only: figures from it mean nothing.
"""

import importlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from hkd import manifest
from hkd.align.fit import AlignReport
from hkd.align.sphinx import SphinxConfig, align_manifest
from hkd.audio import import_torchaudio, write_wav
from hkd.errors import MissingPackageError
from hkd.files import write_bytes
from hkd.manifest import Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.sequences import train_units

SPEEDS = {"anna": 1.0, "ben": 1.15, "carla": 0.9, "dan": 1.05}  # by speaker; dev is carla, test is dan
SPLIT_OF = {"anna": "train", "ben": "train", "carla": "dev", "dan": "test"}
_TTS_RATE_HZ = 24_000
_SUBJECTS = ("the teacher", "my brother", "a small dog", "the old man", "our neighbour", "the red bird")
_VERBS = ("likes", "found", "will open", "carried", "is looking at", "painted")
_OBJECTS = ("the green door", "seven apples", "a letter", "this garden", "the other window", "our house")
_TIMES = ("today", "in the morning", "again", "before dinner", "on monday", "after the rain")


def tiny_sentences(num: int, *, seed: int = 0) -> list[str]:
    """`num` different short sentences of everyday words, the same for the same seed. At most 1,296."""
    sentences = list(itertools.product(_TIMES, _OBJECTS, _VERBS, _SUBJECTS))
    order = np.random.default_rng(seed).permutation(len(sentences))
    return [f"{' '.join(reversed(sentences[number])).capitalize()}." for number in order[:num]]


def synthesise(sentences: Sequence[str], *, speeds: Sequence[float] | None = None) -> list[NDArray[np.float32]]:
    """Speech of each sentence, wave_S at 16 kHz; deterministic."""
    voice = _hibari()
    waves = []
    for sentence, speed in zip(sentences, speeds or [1.0] * len(sentences), strict=True):
        wave_S = np.asarray(voice(sentence, seed=0, speed=speed), np.float32)
        pause_S = np.zeros(_TTS_RATE_HZ // 10, np.float32)  # a tenth of a second of silence on both sides
        wave_S = soxr.resample(np.concatenate([pause_S, wave_S, pause_S]), _TTS_RATE_HZ, SAMPLE_RATE_HZ)
        waves.append((0.5 * wave_S / max(1e-6, float(np.abs(wave_S).max()))).astype(np.float32))
    return waves


@cache
def _hibari() -> Any:
    try:
        from hibari import Hibari
    except ImportError:
        raise MissingPackageError("hibari-tts", "test", "Synthesising test speech") from None
    return Hibari(threads=1)


def tiny_corpus(folder: Path, *, num_utterances: int = 12, seed: int = 0) -> Path:
    """Write audio/ and manifest.jsonl (`split` by speaker: half train, a quarter dev, a quarter test); its path."""
    sentences = tiny_sentences(num_utterances, seed=seed)
    speakers = [list(SPEEDS)[number % len(SPEEDS)] for number in range(num_utterances)]
    waves = synthesise(sentences, speeds=[SPEEDS[speaker] for speaker in speakers])
    utterances = []
    for number, (sentence, speaker, wave_S) in enumerate(zip(sentences, speakers, waves, strict=True)):
        path = folder.absolute() / "audio" / f"utt{number:03d}.wav"
        write_wav(path, wave_S)
        seconds, extra = len(wave_S) / SAMPLE_RATE_HZ, MappingProxyType({"split": SPLIT_OF[speaker]})
        own: dict[str, Any] = {"id": path.stem, "text": sentence, "audio_filepath": str(path), "speaker": speaker}
        utterances.append(Utterance(**own, duration=seconds, extra=extra))
    manifest.write(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def prepare_folder(folder: Path, *, vocab_size: int = 60, jobs: int = 1) -> AlignReport:
    """Make a project of a folder with a manifest.jsonl: hkd.toml, units/ (of the train split), alignment.arrow."""
    whole = manifest.read(folder / "manifest.jsonl")
    write_bytes(folder / "hkd.toml", b'[prepare]\ncorpus = "tiny"\n')
    train_units([u.text for u in whole.split("train")], folder / "units", vocab_size=vocab_size)
    return align_manifest(whole, folder / "alignment.arrow", config=SphinxConfig(jobs=jobs))


import_torchaudio()
transformers: Any = importlib.import_module("transformers")  # after torchaudio
library: Any = importlib.import_module("tokenizers")

WORDS = (
    "the cat sat on the mat and the dog saw a bird that sang in an old tree near the river while i'm reading a long "
    "letter from my brother who says it's raining again over there but we will go out anyway"
)
VOCABULARY = 160
MASKED = ("bert", "roberta", "deberta-v2", "electra", "modernbert", "xlm-roberta", "distilbert")
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral")


def wordpiece(texts: Iterable[str], *, size: int = VOCABULARY) -> Any:
    """An uncased WordPiece tokenizer as BERT's: letters and frequent words (the library's trainer ties by chance)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for text in texts for word in text.lower().replace("'", " ' ").split()]
    letters = sorted({letter for word in words for letter in word})
    frequent = sorted(set(words) - set(letters), key=lambda word: (-words.count(word), word))
    symbols = [*special, *letters, *(f"##{letter}" for letter in letters), *frequent][:size]
    return transformers.BertTokenizer({symbol: number for number, symbol in enumerate(symbols)})


def byte_bpe(texts: Iterable[str], *, size: int = VOCABULARY + 256, masked: bool, start: bool = True) -> Any:
    """A cased byte-level BPE tokenizer: RoBERTa's (masked), GPT-2's, or Qwen's, which has no token to start with."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if masked else ["<|endoftext|>"]
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    own = {"vocab_size": size, "special_tokens": special, "initial_alphabet": alphabet}
    trainer = library.trainers.BpeTrainer(**own, show_progress=False)
    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocabulary, merges = trained["vocab"], [tuple(pair) for pair in trained["merges"]]
    if masked:
        return transformers.RobertaTokenizer(vocabulary, merges)
    if start:
        return transformers.GPT2Tokenizer(vocabulary, merges, unk_token=None)
    return transformers.Qwen2Tokenizer(vocabulary, merges)


def tiny_config(
    kind: str, tokenizer: Any, *, positions: int = 64, width: int = 16, layers: int = 2, heads: int = 2
) -> Any:
    """The architecture's own config, tiny; its vocabulary is padded: 3 larger than the tokenizer's."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    given = {"vocab_size": len(tokenizer) + 3} | {name: value for name, value in ids.items() if value is not None}
    if kind == "gpt2":
        given |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": positions}
    elif kind == "distilbert":
        given |= {"dim": width, "hidden_dim": 2 * width, "n_layers": layers, "n_heads": heads}
        given["max_position_embeddings"] = positions
    else:
        room = positions + 2 if kind in ("roberta", "xlm-roberta") else positions
        given |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        given |= {"intermediate_size": 2 * width, "max_position_embeddings": room}
    if kind in CAUSAL and kind != "gpt2":
        given |= {"num_key_value_heads": 1, "head_dim": width // heads}
    own: dict[str, dict[str, Any]] = {
        "deberta-v2": {
            "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True, "position_biased_input": False,
        },
        "electra": {"embedding_size": 12},
        "modernbert": {
            "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id, "local_attention": 8,
            "global_attn_every_n_layers": 2,
        },
        "gemma3": {"sliding_window": 8},
        "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": width // heads},
    }  # fmt: skip
    return transformers.AutoConfig.for_model({"gemma3": "gemma3_text"}.get(kind, kind), **given, **own.get(kind, {}))


def make_teacher_folder(
    folder: Path, kind: str, *, seed: int = 0, texts: Iterable[str] | None = None, **shape: int
) -> Path:
    """Save a tiny random model of a `kind` in MASKED or CAUSAL and its tokenizer; large weights: clear preferences."""
    texts = [WORDS, WORDS.capitalize(), " ".join(WORDS.split()[::-1])] if texts is None else list(texts)
    if kind in ("bert", "electra", "distilbert"):
        tokenizer = wordpiece(texts)
    else:
        tokenizer = byte_bpe(texts, masked=kind in MASKED, start=kind != "qwen2")
    config = tiny_config(kind, tokenizer, **shape)
    auto = transformers.AutoModelForMaskedLM if kind in MASKED else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
