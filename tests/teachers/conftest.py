"""Tiny language-model folders of every architecture, made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hkd.testing.teachers import make_teacher_folder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind → its folder."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_teacher_folder(tmp_path_factory.mktemp("lm") / kind, kind)
        return made[kind]

    return folder
