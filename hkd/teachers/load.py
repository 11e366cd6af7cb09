"""A teacher by name: which kinds there are, where one is to be had, and how it is loaded.

- `KINDS` is the registry: a kind knows its names, says at once where none can be had, and loads. The last one that
  knows a name has it.
- Models of transformers come from safetensors (or one GGUF file), without remote code. What lies in the cache is taken
  without the network; with neither cache nor network the answer comes within seconds.
- Importing this module imports neither torch nor transformers.
"""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkd.arpa import is_arpa
from hkd.errors import HkdError, MissingPackageError, UserError, check_choice, check_setting
from hkd.pretrained import check_folder, choose_device, load_config, load_model, load_tokenizer, local_folder
from hkd.units.inventory import UnitInventory

if TYPE_CHECKING:
    import torch

    from hkd.teachers.base import Teacher

CASES = ("auto", "lower", "sentence", "upper")
PRECISIONS = ("auto", "fp32", "bf16")
PHONE_TRIGRAM = "phone-trigram"
HUB_TIMEOUT_S = 5.0
_OTHERS = ("project", "look_ahead", "token_budget", "compile")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """How a downloaded language model is asked. Raises UserError for values out of range."""

    mask_every: int = 0  # 0: one masked copy a position (exact); m: positions n ≡ r (mod m) are masked together
    context: int = 0  # tokens of the window that neighbouring utterances fill; 0: the utterance alone
    case: str = "auto"  # lower | sentence ("I think I'm …") | upper; auto: lower for uncased tokenizers, else sentence
    final_mark: str = ""  # written after the last word as context (never a position), "." say
    project: str = ""  # the student's subword.json (or .model): its pieces are labelled instead of the teacher's own
    look_ahead: int = 4  # projected: further rows a position, for likely tokens that leave the piece open
    token_budget: int = 0  # tokens of a batch, padding included; 0: by device
    compile: bool = False  # torch.compile of the model's body

    def __post_init__(self) -> None:
        for name in ("mask_every", "context", "look_ahead", "token_budget"):
            check_setting(name, getattr(self, name), "not be negative", getattr(self, name) >= 0)
        is_context = self.context == 0 or self.context >= 8
        check_setting("context", self.context, "be 0 (the utterance alone) or at least 8 tokens", is_context)
        check_choice("case", self.case, CASES)

    def within(self, folder: Path) -> "TeacherOptions":
        """With paths that are relative to a folder."""
        return replace(self, project=str(folder / self.project)) if self.project else self

    def that_change_labels(self) -> dict[str, Any]:
        """The options that belong to the digest of a teacher over its own pieces."""
        return {name: value for name, value in asdict(self).items() if name not in _OTHERS}


# The registry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRequest:
    """What a kind is asked to load."""

    name: str
    device: str = "auto"
    precision: str = "auto"
    options: TeacherOptions = TeacherOptions()
    inventory: UnitInventory | None = None  # the project's units at the level that is wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherKind:
    """A kind of teacher. A new one: `KINDS["name"] = TeacherKind(...)`."""

    help: str  # what `--lm` may be
    knows: Callable[[str], bool]  # whether a name is one of this kind
    load: Callable[[TeacherRequest], "Teacher"]
    check: Callable[[str], object] = lambda _: None  # raises UserError or HkdError at once where the name cannot be had
    takes_options: bool = False  # whether TeacherOptions mean something to it


KINDS: dict[str, TeacherKind] = {}


def kind_of(name: str) -> TeacherKind:
    """The kind that a name is of."""
    return next(kind for kind in reversed(KINDS.values()) if kind.knows(name))


def check_source(name: str) -> None:
    """Raises UserError or HkdError at once where no teacher of that name can be had."""
    kind_of(name).check(name)


def load_teacher(
    name: str,
    *,
    unit: str,
    device: str = "auto",
    precision: str = "auto",
    options: TeacherOptions | None = None,
    inventory: UnitInventory | None = None,
) -> "Teacher":
    """The teacher called `name` for the level `unit`; `inventory`: the units of an n-gram file. Raises UserError where
    it cannot teach that level, HkdError where it cannot be had."""
    kind, plain = kind_of(name), TeacherOptions()
    options = options or plain
    kind.check(name)
    for option in () if kind.takes_options else ("project", *options.that_change_labels()):
        if (value := getattr(options, option)) != getattr(plain, option):
            rule = f"{option} must be left out for {name}, which is no masked or causal LM of transformers"
            raise UserError(f"{rule}, but is {value}.")
    asked = TeacherRequest(name=name, device=device, precision=precision, options=options, inventory=inventory)
    teacher = kind.load(asked)
    rule = f"be {teacher.level}, which is what the LM {name} knows"
    check_setting("unit", unit, rule, teacher.level == unit)
    return teacher


def _phone_trigram(_: TeacherRequest) -> "Teacher":
    from hkd.teachers.ngram import phone_trigram

    return phone_trigram()


def _check_arpa(name: str) -> None:
    if not Path(name).expanduser().is_file():
        raise UserError(f"lm must be a file that exists, but {name} is not there.")


def _load_arpa(asked: TeacherRequest) -> "Teacher":
    from hkd.teachers.ngram import load_ngram

    if asked.inventory is None:
        need = f"lm {asked.name} needs the inventory of its units, but there is none"
        raise UserError(f"{need}. Run `hkd units train` first.")
    return load_ngram(Path(asked.name).expanduser(), inventory=asked.inventory)


def is_unit_lm(name: str) -> bool:
    """Whether `hkd lm train` made the folder."""
    try:
        return "hkd_lm" in json.loads((Path(name).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _load_unit_lm(asked: TeacherRequest) -> "Teacher":
    from hkd.teachers.unit_lm import load_unit_lm

    return load_unit_lm(Path(asked.name).expanduser(), device=str(choose_device(asked.device)))


# Models of transformers -----------------------------------------------------------------------------------------------


def resolve(name: str) -> str:
    """The hub name that an alias stands for; any other name as it is."""
    return ALIASES.get(name.lower(), name)


def _located(name: str) -> tuple[str, dict[str, Any]]:
    """What transformers loads, and how: a folder, or the hub's files in the cache or from the network. Raises UserError
    or HkdError at once where none can be had."""
    source = resolve(name)
    folder = local_folder(name, what="lm", known="a folder, a hub name or an alias") or local_folder(source, what="lm")
    if folder is None:
        if _in_cache(source):
            return source, {"local_files_only": True}
        _probe_hub(source)
        return source, {}
    gguf = sorted(p.name for p in folder.glob("*.gguf"))
    if not gguf or any(folder.glob("*.safetensors")):
        check_folder(folder, what="LM")
        return str(folder), {"local_files_only": True}
    if len(gguf) > 1:
        held = f"{folder} holds {', '.join(gguf)}"
        raise UserError(f"lm must be a folder with one GGUF file, but {held}. Keep one of them there.")
    return str(folder), {"local_files_only": True, "gguf_file": gguf[0]}


def _in_cache(source: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    def is_there(file: str) -> bool:
        return isinstance(try_to_load_from_cache(source, file), str)

    return is_there("config.json") and (is_there("model.safetensors") or is_there("model.safetensors.index.json"))


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
        known = f"an alias ({aliases}, ...), a hub name or a folder"
        raise UserError(f"lm must be {known}, but the hub has no {source}.") from None
    except Exception as error:
        raise HkdError(
            f"LM {source} is not in the local cache and the hub cannot be reached ({type(error).__name__}). "
            f"Give a local copy: --lm FOLDER, a folder with config.json, model.safetensors and tokenizer.json."
        ) from None


def choose_precision(precision: str, device: "torch.device") -> "torch.dtype":
    """auto: bf16 on GPUs that have it, else fp32, the reference."""
    import torch

    check_choice("precision", precision, PRECISIONS)
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _load_transformer(asked: TeacherRequest) -> "Teacher":
    """A masked or causal LM of transformers, told apart by its config; its direction is then proven by a trial."""
    where = choose_device(asked.device)
    dtype = choose_precision(asked.precision, where)
    source, given = _located(asked.name)
    path, options = Path(asked.name).expanduser(), asked.options
    name = path.name if path.is_dir() else source
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from hkd.teachers.transformer import CausalTeacher, MaskedTeacher

    if "gguf_file" in given:
        _prepare_gguf()
    config = load_config(source, what="LM", **given)
    kind = _kind(config, name)
    remedy = "Take a checkpoint with its LM head."
    if config.model_type in ("deberta", "deberta-v2"):
        remedy = (
            'Its own head is read where its config.json says "legacy": false and the checkpoint has '
            "lm_predictions.lm_head.*."
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
    """Raises HkdError where the package gguf is missing, with which transformers reads, behind a progress bar."""
    try:
        importlib.import_module("gguf")
    except ImportError:
        raise MissingPackageError("gguf", "gguf", "reading GGUF files") from None
    reading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    reading.tqdm = partial(reading.tqdm, disable=True)


def _kind(config: Any, name: str) -> str:
    """masked or causal, by the architecture that the config names, else its model type. Raises UserError for others."""
    from transformers.models.auto import modeling_auto

    named = list(config.architectures or ())
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(config.model_type)
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if "ElectraForPreTraining" in named:
        raise UserError(f"lm must be a language model, but {name} is ELECTRA's discriminator. Take its generator.")
    if masked == causal and masked is not None:  # XLM, FlauBERT: one class for both
        left = bool(getattr(config, "causal", False) or getattr(config, "is_decoder", False))
        return "causal" if left else "masked"
    if masked in named or (masked is not None and (not named or named[0].endswith("ForPreTraining"))):
        return "masked"
    if causal is not None:
        return "causal"
    found = ", ".join(named) or config.model_type
    raise UserError(f"lm must be a masked or causal language model, but {name} is {found}.")


def _check_class(config: Any, loaded: str, name: str) -> None:
    """Raises UserError where the class that the weights were saved from is not the class that reads them."""
    auto_map, keys = getattr(config, "auto_map", None) or {}, ("AutoModelForCausalLM", "AutoModelForMaskedLM")
    own = [str(auto_map[key]).rpartition(".")[2] for key in keys if key in auto_map]
    for class_name in [*(config.architectures or ())[:1], *own]:
        pretraining = class_name.endswith("ForPreTraining") and loaded.endswith("ForMaskedLM")
        if class_name.lower() != loaded.lower() and not pretraining:
            raise UserError(
                f"lm must be of a class of transformers, but {name} is of {class_name}, and {loaded} would read its "
                "weights otherwise. hkd runs no code that comes with a model. If the two are the same, say so by "
                "architectures in its config.json."
            )


KINDS |= {  # in the order of `--help`; asked from the last one on
    "transformers": TeacherKind(
        help="Alias (bert-large, gpt2 ...), hub name, folder",
        knows=lambda _: True,
        check=_located,
        load=_load_transformer,
        takes_options=True,
    ),
    "unit-lm": TeacherKind(help="NAME below lm/", knows=is_unit_lm, load=_load_unit_lm),
    "arpa": TeacherKind(help="ARPA file", knows=is_arpa, check=_check_arpa, load=_load_arpa),
    PHONE_TRIGRAM: TeacherKind(help=PHONE_TRIGRAM, knows=PHONE_TRIGRAM.__eq__, load=_phone_trigram),
}
