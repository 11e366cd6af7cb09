"""A manifest of short texts with recordings, and tiny teachers for it."""

import json
import random
from pathlib import Path

import pytest
import torch

from hkd.testing.teachers import WORDS, make_teacher_folder

torch.set_num_threads(1)


def write_manifest(path: Path, count: int, *, seed: int = 0) -> Path:
    """Utterances of 0 to 9 words in recordings of ten; every seventh says the same; ids are not in the order of
    time."""
    rng = random.Random(seed)
    words = WORDS.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = "the cat sat" if number % 7 == 0 else " ".join(rng.choices(words, k=rng.randint(0, 9)))
            row = {
                "id": f"u{number * 37 % count:04d}",
                "text": text,
                "recording": f"r{number // 10}",
                "offset": float(number),
            }
            file.write(json.dumps({**row, "split": "dev" if number % 10 == 9 else "train"}) + "\n")
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 100 utterances."""
    return write_manifest(tmp_path_factory.mktemp("texts") / "manifest.jsonl", 100)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return make_teacher_folder(tmp_path_factory.mktemp("lm") / "bert", "bert")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2."""
    return make_teacher_folder(tmp_path_factory.mktemp("lm") / "gpt2", "gpt2")
