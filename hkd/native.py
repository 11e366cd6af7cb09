"""torchaudio whose native part cannot be loaded: its Python part still can.

The wheel of torchaudio is linked against CUDA, so that beside a CPU build of torch its import ends in OSError, and with
it that of transformers. torchaudio itself knows a state without its extension; `import_torchaudio` puts it into that
state.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


def import_torchaudio() -> ModuleType | None:
    """torchaudio, with its native part where that loads; None where the package is not installed. Call it before
    transformers."""
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError:
        return None
    except OSError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _absent_extension()
        return importlib.import_module("torchaudio")


def _absent_extension() -> ModuleType:
    def no_native_part(function: Any) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{function.__name__} needs torchaudio's native part, which cannot be loaded here.")

        return fail

    module: Any = ModuleType("torchaudio._extension")
    module.__path__ = []
    module._IS_TORCHAUDIO_EXT_AVAILABLE = module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = no_native_part
    return module  # type: ignore[no-any-return]
