"""The one place that imports torchaudio, with or without its native extension.

torchaudio's wheel carries a native part built against CUDA; beside a CPU-only torch that part cannot load and `import torchaudio` ends
in OSError. hkd needs the Python part alone, and torchaudio itself knows the state "built without extension" (`_load_lib` says False
where there is no library file). So where, and only where, the native part cannot load, it is made to count as absent.
"""

import importlib
import logging
import sys
from types import ModuleType

from hkd.errors import HkdError

log = logging.getLogger(__name__)


def load(name: str) -> ModuleType:
    """A submodule of torchaudio by its full name ("torchaudio.compliance.kaldi"). Raises HkdError where torchaudio cannot be used."""
    try:
        return importlib.import_module(name)
    except OSError as error:
        reason = str(error)
    utils = sys.modules.get("torchaudio._extension.utils")
    if utils is None or not hasattr(utils, "_load_lib"):
        raise HkdError(f"torchaudio cannot be imported ({reason}). Install the torchaudio that goes with this torch.")
    log.info("torchaudio's native part cannot load (%s): its Python part is used", reason)
    vars(utils)["_load_lib"] = lambda _library: False
    return importlib.import_module(name)


def has_native_part() -> bool:
    """Whether torchaudio runs with its native extension."""
    return bool(vars(load("torchaudio._extension"))["_IS_TORCHAUDIO_EXT_AVAILABLE"])
