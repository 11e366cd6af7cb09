"""Pretrained models of transformers, all loaded in one way: teachers, LMs beside a search, encoders, CTC aligners.

- Weights come from safetensors (or one GGUF file); pickles are never read, and a model's own code is never run.
- A folder is checked before transformers reads it, and what transformers says afterwards is held against the model: a
  model with a weight that the files lack has a random one there, and is refused.
- Whatever goes wrong is one line with the remedy.
"""

import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkd.audio import GIT_LFS, import_torchaudio
from hkd.errors import HkdError, UserError, check_choice, first_line, some
from hkd.errors import one_line as said_in_one_line

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "mps")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "tf_model.h5", "flax_model.msgpack")


@contextmanager
def transformers_package() -> Iterator[Any]:
    """The package, without its progress bars and load reports."""
    import_torchaudio()
    transformers: Any = importlib.import_module("transformers")

    theirs = logging.getLogger("transformers")
    before, bars = theirs.level, transformers.utils.logging.is_progress_bar_enabled()
    theirs.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        theirs.setLevel(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def choose_device(device: str) -> "torch.device":
    """auto: the GPU where there is one. Raises UserError for a device that is not there."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    check_choice("device", device.split(":")[0], DEVICES)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device must be there, but torch sees no CUDA GPU. Use --device cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device must be there, but torch sees no MPS device. Use --device cpu.")
    return torch.device(device)


def local_folder(name: str, *, what: str, known: str = "a folder or a hub name") -> Path | None:
    """The folder that a name is; None for a name of the hub. Raises UserError for a path where no folder is."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{what} must be {known}, but there is no folder {name}.")
    return None


def _check_file(path: Path) -> None:
    """Raises HkdError for a pointer of git-lfs in place of a file, and for an empty file."""
    with path.open("rb") as file:
        start = file.read(len(GIT_LFS))
    if not start:
        raise HkdError(f"{path} must hold a model's files, but is empty. Fetch it again.")
    if start == GIT_LFS:
        raise HkdError(f"{path} is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its folder.")


def _check_weights(path: Path) -> None:
    """Raises HkdError for a safetensors file that is a pointer of git-lfs, or not whole."""
    _check_file(path)
    size, rule = path.stat().st_size, f"{path} must be a whole safetensors file"
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(header if header < size else 0))
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, AttributeError, LookupError, TypeError):
        raise HkdError(f"{rule}, but has {size} bytes that are not one. Fetch it again.") from None
    whole = 8 + header + max(ends, default=0)
    if size != whole:
        raise HkdError(f"{rule}, but has {size} of {whole} bytes. Fetch it again.")


def check_folder(folder: Path, *, what: str) -> None:
    """Raises UserError or HkdError for a folder that transformers cannot load whole, and from safetensors alone.

    `what` says whose model it is: "LM", "encoder.name" ...
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{what} must be a whole model, but {folder} is an adapter (PEFT). Load it with peft, then save "
            "model.merge_and_unload() and the tokenizer with save_pretrained(FOLDER), and name that folder."
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{what} must be a folder with config.json and model.safetensors, but {folder} has no config.json. Save "
            "the model with save_pretrained(FOLDER), and name that folder."
        )
    for path in sorted(folder.glob("*.json")):
        _check_file(path)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
        has = f"{pickled[0]}, a pickle, which hkd never reads" if pickled else "no weights"
        kind = (_read_json(folder / "config.json").get("architectures") or ["AutoModel"])[0]
        code = f"transformers.{kind}.from_pretrained('{folder}').save_pretrained('{folder.name}-safetensors')"
        raise UserError(
            f"{what} must have its weights as safetensors, but {folder} has {has}. If you trust them, convert them: "
            f"python -c \"import transformers; {code}\", and copy the tokenizer's and preprocessor's files there."
        )
    for path in weights:
        _check_weights(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        named = set(_read_json(index).get("weight_map", {}).values())
        lost = sorted(name for name in named if not (folder / str(name)).is_file())
        if lost:
            wanted = f"all {len(named)} files of its weights"
            raise HkdError(f"{folder} must hold {wanted}, but lacks {some(lost)}. Fetch it again.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise HkdError(f"{path} must be a JSON object, but cannot be read as one. Fetch it again.")
    return value


@contextmanager
def one_line(name: str, *, what: str) -> Iterator[None]:
    """Turn whatever transformers raises while it loads into one line. Raises HkdError."""
    try:
        yield
    except HkdError:
        raise
    except ImportError as error:
        raise HkdError(f"{what} {name} needs a package that is not installed: {first_line(error)}.") from None
    except Exception as error:
        model = f"{what} {name}"
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            remedy = "Take a smaller one, or another machine."
            raise HkdError(f"{model} must fit into memory, but does not. {remedy}") from None
        said = said_in_one_line(error, 300).rstrip(".")
        if "untagged enum" in said or "did not match any variant" in said:
            raise HkdError(
                f"the tokenizer of {name} must be readable by this version of the package tokenizers, but is not: a "
                f"newer one wrote it ({said[:100]}). Run: pip install --upgrade tokenizers transformers"
            ) from None
        rule = "must be loadable by transformers from safetensors"
        raise HkdError(f"{model} {rule}, but is not: {said}. Fetch its files again.") from None


def load_config(source: str | Path, *, what: str, **given: Any) -> Any:
    """transformers' configuration of a model: a folder, or a hub name. Raises UserError or HkdError for no such."""
    if Path(source).is_dir() and "gguf_file" not in given:
        check_folder(Path(source), what=what)
    with transformers_package() as transformers, one_line(str(source), what=what):
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **given)


def load_model(
    source: str | Path, kind: Any, *, what: str, part: str = "", remedy: str = "Take a checkpoint that has them.",
    **given: Any,
) -> Any:  # fmt: skip
    """A model with all of its weights, in evaluation mode. `kind` is a class of transformers, or a name of one.

    `part`: the beginning of the names of the weights that must be there; by default all. Raises UserError or HkdError.
    """
    if Path(source).is_dir() and "gguf_file" not in given:
        check_folder(Path(source), what=what)
    extra = {} if "gguf_file" in given else {"use_safetensors": True}
    with transformers_package() as transformers, one_line(str(source), what=what):
        kind = getattr(transformers, kind) if isinstance(kind, str) else kind
        model, found = kind.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **extra, **given
        )
    lost = [str(key) for key in sorted(found["missing_keys"]) if str(key).startswith(part)]
    name, again = f"{what} {source}", "Fetch config.json and the weights again, from one place"
    for key, saved, wanted in sorted(found["mismatched_keys"]):
        shapes = f"{key} is {tuple(saved)} and not {tuple(wanted)}"
        raise HkdError(f"{name} must have weights of the shapes that its config.json says, but {shapes}. {again}.")
    if lost:
        whole, lacking = type(model).__name__, some(lost)
        raise HkdError(f"{name} must hold all weights of {whole}, but lacks {lacking}: they would be random. {remedy}")
    modules = dict(model.named_modules())
    left = [key for key in sorted(map(str, found["unexpected_keys"])) if _changes_model(key, modules)]
    if left:
        raise HkdError(
            f"{name} must hold the weights that its config.json says, but {type(model).__name__} would leave out "
            f"{some(left)}. {again}; save a quantised or adapted model as a plain one first."
        )
    return model.eval()


def _changes_model(key: str, modules: dict[str, Any]) -> bool:
    """Whether a weight that a model has no place for is of a part that it has: one more layer, a scale, a bias, an
    adapter. Those of other heads, poolers and old buffers are not."""
    names = key.split(".")
    for end in range(len(names) - 1, 0, -1):
        module = modules.get(".".join(names[:end]))
        if module is not None:
            is_list, has_weights = type(module).__name__ == "ModuleList", any(True for _ in module.parameters(False))
            in_layer = any(name.isdigit() for name in names[:end])
            return is_list or has_weights or (in_layer and names[-1] == "weight")
    return False


def load_tokenizer(source: str | Path, *, what: str, **given: Any) -> Any:
    """The tokenizer of a model. Raises HkdError for none, or an empty one, as transformers makes silently."""
    with transformers_package() as transformers, one_line(str(source), what=what):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **given)
        special = set(tokenizer.all_special_tokens)
        if all(token in special for token in tokenizer.get_vocab()):
            raise HkdError(
                f"{what} {source} must have its tokenizer beside it, but has none. Save it there, "
                "with AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained(FOLDER)."
            )
        quiet = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
        own = transformers.utils.cached_file(source, "tokenizer.json", **quiet)
        if own and getattr(tokenizer, "is_fast", False):
            _compare_reading(tokenizer, own, f"{what} {source}")
    return tokenizer


def _compare_reading(tokenizer: Any, own: str, name: str) -> None:
    """Warn where a tokenizer's class, with rules of its own, reads words otherwise than its tokenizer.json says."""
    raw: Any = importlib.import_module("tokenizers").Tokenizer.from_file(own)
    ordinary = sorted({*raw.get_vocab().values()} - {i for i, t in raw.get_added_tokens_decoder().items() if t.special})
    texts = raw.decode_batch([[i] for i in ordinary[:: max(1, len(ordinary) // 500)]])
    text = " ".join(word for text in texts if "\ufffd" not in text for word in text.split())
    said, read = (coder.encode(text, add_special_tokens=False) for coder in (raw, tokenizer.backend_tokenizer))
    if said.ids != read.ids:
        at = next((n for n, (a, b) in enumerate(zip(said.ids, read.ids, strict=False)) if a != b), 0)
        logger.warning(
            "%s: transformers' %s reads words otherwise than its tokenizer.json says (%s, not %s). If tokenizer.json "
            'is right, write "tokenizer_class": "PreTrainedTokenizerFast" into its tokenizer_config.json.',
            name, type(tokenizer).__name__, " ".join(read.tokens[at : at + 4]), " ".join(said.tokens[at : at + 4]),
        )  # fmt: skip
