"""A teacher by name: an alias, a hub name, a folder of transformers or of `hkd lm train`, an ARPA file, or "phone-trigram".

Safetensors (or one GGUF file) only, no remote code. What lies in the cache is taken without the network; with neither cache nor
network the answer comes within seconds.
"""

import importlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hkd.arpa import is_arpa
from hkd.errors import HkdError, UserError
from hkd.native import import_torchaudio
from hkd.pretrained import choose_device, load_config, load_model, load_tokenizer
from hkd.teachers.base import Teacher
from hkd.teachers.hub import PHONE_TRIGRAM, check_source, is_unit_lm, resolve, source_options
from hkd.teachers.options import PRECISIONS, TeacherOptions
from hkd.units.inventory import UnitInventory


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on GPUs that have it, else fp32, the reference."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, but is '{precision}' instead.")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_teacher(
    name: str,
    *,
    unit: str,
    device: str = "auto",
    precision: str = "auto",
    options: TeacherOptions | None = None,
    inventory: UnitInventory | None = None,
) -> Teacher:
    """The teacher called `name` for the level `unit`; `inventory`: the units of an n-gram file.

    Raises UserError where it cannot teach that level, HkdError where it cannot be had."""
    teacher = _load(name, device, precision, options or TeacherOptions(), inventory)
    if teacher.level != unit:
        raise UserError(f"unit must be {teacher.level}, which is what the LM {name} knows, but is {unit} instead.")
    return teacher


def _load(name: str, device: str, precision: str, options: TeacherOptions, inventory: UnitInventory | None) -> Teacher:
    check_source(name)
    path = Path(name).expanduser()
    if name == PHONE_TRIGRAM or is_arpa(name) or is_unit_lm(path):
        _no_options(name, options)
    if name == PHONE_TRIGRAM:
        from hkd.teachers.ngram import phone_trigram

        return phone_trigram()
    if is_arpa(name):
        from hkd.teachers.ngram import load_ngram

        if inventory is None:
            raise UserError(f"lm {name} needs the inventory of its units, but there is none. Run `hkd units train` first.")
        return load_ngram(path, level=inventory.level, inventory=inventory)
    if path.is_dir():
        if is_unit_lm(path):
            from hkd.teachers.unit_lm import load_unit_lm

            teacher: Teacher = load_unit_lm(path, device=str(choose_device(device)))
            return teacher
        return load_transformer(str(path), name=path.name, device=device, precision=precision, options=options)
    return load_transformer(resolve(name), name=resolve(name), device=device, precision=precision, options=options)


def _no_options(name: str, options: TeacherOptions) -> None:
    """Raises UserError for options that n-grams and unit LMs would not heed."""
    plain = TeacherOptions()
    for option in ("project", *options.that_change_labels()):
        value = getattr(options, option)
        if value != getattr(plain, option):
            raise UserError(
                f"{option} must be left out for {name}, which is no masked or causal LM of transformers, but is {value}."
            )


def load_transformer(source: str, *, name: str, device: str, precision: str, options: TeacherOptions) -> Teacher:
    """A masked or causal LM of transformers, told apart by its config; its direction is then proven by a trial."""
    where = choose_device(device)
    dtype = choose_precision(precision, where)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import_torchaudio()
    from hkd.teachers.transformer import CausalTeacher, MaskedTeacher

    given = source_options(source)
    if "gguf_file" in given:
        _prepare_gguf()
    config = load_config(source, what="LM", **given)
    kind = _kind(config, name)
    remedy = "Take a checkpoint with its LM head."
    if config.model_type in ("deberta", "deberta-v2"):
        remedy = (
            'Its own head is read where its config.json says "legacy": false and the checkpoint has lm_predictions.lm_head.*.'
        )
    auto = "AutoModelForMaskedLM" if kind == "masked" else "AutoModelForCausalLM"
    model = load_model(source, auto, what="LM", remedy=remedy, config=config, dtype="auto", **given)
    _check_class(config, type(model).__name__, name)
    tokenizer = load_tokenizer(source, what="LM", **given)
    teacher = MaskedTeacher if kind == "masked" else CausalTeacher
    inner = teacher(model, tokenizer, name=name, options=options, device=where, dtype=dtype)
    if not options.project:
        return inner
    from hkd.teachers.projected import ProjectedTeacher, student_subwords

    return ProjectedTeacher(inner, student_subwords(Path(options.project)), look_ahead=options.look_ahead)


def _prepare_gguf() -> None:
    """Raises HkdError where the package gguf is missing; transformers reads GGUF files with it, behind a progress bar of its own."""
    try:
        importlib.import_module("gguf")
    except ImportError:
        raise HkdError(
            "reading GGUF files needs the package gguf, which is not installed. Run: pip install 'hkd[gguf]'"
        ) from None
    reading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    reading.tqdm = partial(reading.tqdm, disable=True)


def _kind(config: Any, name: str) -> str:
    """masked or causal, by the architecture that the config names, else by its model type.

    Raises UserError for what is neither."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    named = list(config.architectures or ())
    masked, causal = (
        mapping.get(config.model_type) for mapping in (MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    )
    if "ElectraForPreTraining" in named:
        raise UserError(f"lm must be a language model, but {name} is ELECTRA's discriminator. Take its generator.")
    if masked == causal and masked is not None:  # XLM, FlauBERT: one class for both
        left = bool(getattr(config, "causal", False) or getattr(config, "is_decoder", False))
        return "causal" if left else "masked"
    if masked in named or (masked is not None and (not named or named[0].endswith("ForPreTraining"))):
        return "masked"
    if causal is not None:
        return "causal"
    raise UserError(f"lm must be a masked or causal language model, but {name} is {', '.join(named) or config.model_type}.")


def _check_class(config: Any, loaded: str, name: str) -> None:
    """Raises UserError where the class that the weights were saved from is another one than the class that reads them."""
    auto_map = getattr(config, "auto_map", None) or {}
    own = [
        str(value).rpartition(".")[2]
        for key, value in auto_map.items()
        if key in ("AutoModelForCausalLM", "AutoModelForMaskedLM")
    ]
    for class_name in [*(config.architectures or ())[:1], *own]:
        pretraining = class_name.endswith("ForPreTraining") and loaded.endswith("ForMaskedLM")
        if class_name.lower() != loaded.lower() and not pretraining:
            raise UserError(
                f"lm must be of a class of transformers, but {name} is of {class_name}, and {loaded} would read its weights otherwise. "
                "hkd runs no code that comes with a model. If the two are the same, say so by architectures in its config.json."
            )
