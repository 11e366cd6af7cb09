"""Fixtures that all tests share: the tiny corpus, and a whole project made from it, each once a session. Treat both as
read-only."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hkd.testing.teachers import prepare_folder, tiny_corpus

torch.set_num_threads(1)  # tensors of tests are tiny: a second thread only waits


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Commands set levels of loggers, for a process that ends with them: each test begins with the library's."""
    loggers = [logging.getLogger(name) for name in ("hkd", "hkd.align.fit")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """manifest.jsonl of twelve synthesised utterances: six train (two speakers), three dev, three test."""
    return tiny_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hkd.toml, manifest.jsonl, audio/, units/ and alignment.arrow of the tiny corpus. Copy it before you
    write into it."""
    folder = tmp_path_factory.mktemp("project")
    tiny_corpus(folder)
    report = prepare_folder(folder)
    assert not report.failed
    return folder
