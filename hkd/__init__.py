"""hkd: hierarchical knowledge distillation of language models into acoustic models (Lee & Chang, arXiv 2110.10429).

Stage one (`hkd.labelling`) writes what language models predict over transcripts to label stores (`hkd.labels`), one a
unit level. Stage two (`hkd.train`) streams them beside the audio features into a hierarchical student (`hkd.student`).
"""

from typing import TYPE_CHECKING, Any

from hkd.errors import HkdError, UserError

if TYPE_CHECKING:
    from hkd.api import FrameLabels, Project, Student, TimedUnits, open_labels, open_project, read_audio, write_labels

__version__ = "0.1.0"
__all__ = [
    "FrameLabels", "HkdError", "Project", "Student", "TimedUnits", "UserError", "losses", "open_labels", "open_project",
    "read_audio", "write_labels",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import hkd` is quick and needs no torch."""
    import importlib

    if name in ("losses", "torch", "lhotse"):
        return importlib.import_module(f"hkd.{name}")
    if name in __all__:
        return getattr(importlib.import_module("hkd.api"), name)
    raise AttributeError(f"module 'hkd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
