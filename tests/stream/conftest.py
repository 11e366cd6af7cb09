"""A prepared folder with label stores at all three levels."""

import shutil
from pathlib import Path

import pytest

from kit.labelled import label_folder


@pytest.fixture(scope="session")
def labelled(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of the tiny corpus with shards/{senone,monophone,subword}. Read-only: copy it before you write into
    it."""
    folder = tmp_path_factory.mktemp("labelled") / "project"
    shutil.copytree(prepared, folder)
    label_folder(folder)
    return folder
