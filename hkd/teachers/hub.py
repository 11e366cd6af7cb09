"""Where a teacher is to be had: a folder, the local cache, or the hub, found out in seconds and without torch or transformers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from hkd.arpa import is_arpa
from hkd.errors import HkdError, UserError
from hkd.pretrained import check_folder

PHONE_TRIGRAM = "phone-trigram"
HUB_TIMEOUT_S = 5.0
ALIASES = {
    "bert-base": "google-bert/bert-base-uncased",
    "bert-large": "google-bert/bert-large-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-large-cased": "google-bert/bert-large-cased",
    "bert-large-wwm": "google-bert/bert-large-uncased-whole-word-masking",
    "mbert": "google-bert/bert-base-multilingual-cased",
    "distilbert": "distilbert/distilbert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "xlm-r-base": "FacebookAI/xlm-roberta-base",
    "xlm-r-large": "FacebookAI/xlm-roberta-large",
    "electra-base": "google/electra-base-generator",
    "electra-large": "google/electra-large-generator",
    "modernbert-base": "answerdotai/ModernBERT-base",
    "modernbert-large": "answerdotai/ModernBERT-large",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "gemma-3-270m": "google/gemma-3-270m",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
}


def resolve(name: str) -> str:
    """The hub name that an alias stands for; any other name as it is."""
    return ALIASES.get(name.lower(), name)


def check_source(name: str) -> None:
    """Raises UserError or HkdError at once where no teacher of that name can be had."""
    path = Path(name).expanduser()
    if name == PHONE_TRIGRAM or path.is_dir():
        if path.is_dir() and not is_unit_lm(path):
            source_options(str(path))
        return
    if is_arpa(name):
        if not path.is_file():
            raise UserError(f"lm must be a file that exists, but {name} is not there.")
        return
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"lm must be a folder, a hub name or an alias, but there is no folder {name}.")
    source_options(resolve(name))


def is_unit_lm(folder: Path) -> bool:
    """Whether `hkd lm train` made the folder."""
    try:
        return "hkd_lm" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def source_options(source: str) -> dict[str, Any]:
    """How to load from a folder, from the cache, or from the hub. Raises HkdError at once where none can be had."""
    given: dict[str, Any] = {}
    folder = Path(source)
    if folder.is_dir():
        gguf = sorted(p.name for p in folder.glob("*.gguf"))
        if gguf and not any(folder.glob("*.safetensors")):
            if len(gguf) > 1:
                raise UserError(
                    f"lm must be a folder with one GGUF file, but {source} holds {', '.join(gguf)}. Keep one of them there."
                )
            given["gguf_file"] = gguf[0]
        else:
            check_folder(folder, what="LM")
        return {**given, "local_files_only": True}
    if _in_cache(source):
        return {**given, "local_files_only": True}
    _probe_hub(source)
    return given


def _in_cache(source: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    found = [
        try_to_load_from_cache(source, file) for file in ("config.json", "model.safetensors", "model.safetensors.index.json")
    ]
    return isinstance(found[0], str) and any(isinstance(path, str) for path in found[1:])


@cache
def _probe_hub(source: str) -> None:
    """One request with a short time limit: transformers itself would retry for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    aliases = ", ".join(list(ALIASES)[:4])
    try:
        HfApi().model_info(source, timeout=HUB_TIMEOUT_S)
    except GatedRepoError:
        raise HkdError(
            f"LM {source} needs its licence accepted on the hub and `hf auth login`; or give a folder: --lm FOLDER."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"lm must be an alias ({aliases}, ...), a hub name or a folder, but the hub has no {source}.") from None
    except Exception as error:
        raise HkdError(
            f"LM {source} is not in the local cache and the hub cannot be reached ({type(error).__name__}). "
            f"Give a local copy: --lm FOLDER, a folder with config.json, model.safetensors and tokenizer.json."
        ) from None
