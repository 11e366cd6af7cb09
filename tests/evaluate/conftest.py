"""A project as `hkd train` leaves it: synthesised speech, its alignment, label stores, and runs with tiny students,
hardly trained."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkd.evaluate.decoding import EvaluateConfig
from hkd.evaluate.run import error_rate as error_rate_of
from hkd.evaluate.run import evaluate
from hkd.evaluate.score import Hypothesis, read_result, score_all, write_result
from hkd.files import write_bytes, write_json
from hkd.manifest import read as read_manifest
from hkd.student.config import EncoderConfig
from hkd.testing.teachers import prepare_folder, tiny_corpus
from hkd.train.config import TrainConfig, TrainLoopConfig
from hkd.train.run import train
from hkd.units.text import words
from kit.labelled import label_folder

OBJECTIVES = ("none", "hard-heads", "interpolation", "hierarchical")
LEVELS = ("senone", "monophone", "subword")
SMALL = EncoderConfig(d_model=32, num_layers=3, num_heads=2, ff_factor=2, conv_kernel=5, dropout=0.0)


@dataclass(frozen=True)
class Project:
    """Where the parts lie."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.jsonl"

    @property
    def alignment(self) -> Path:
        return self.folder / "alignment.arrow"

    @property
    def labels(self) -> Path:
        return self.folder / "shards"

    @property
    def units(self) -> Path:
        return self.folder / "units"

    @property
    def runs(self) -> list[Path]:
        return [self.folder / "runs" / name for name in OBJECTIVES]


def write_run(project: Project, objective: str, *, seed: int) -> None:
    """A run of a few steps of real training, and a metrics.jsonl as if it had been longer."""
    folder = project.folder / "runs" / objective
    config = TrainConfig(
        objective=objective,
        stores=("subword",) if objective == "interpolation" else (),
        encoder=SMALL,
        loop=TrainLoopConfig(max_steps=1, warmup_steps=0, seed=seed),
    )
    train(
        config,
        folder,
        manifest=project.manifest,
        units=project.units,
        alignment=project.alignment,
        labels=project.labels,
    )
    heads = json.loads((folder / "student.json").read_text())["heads"]
    rows = []
    for step in range(10, 401, 10):
        falling = {term: (4 + number) * math.exp(-step / 150) + 0.3 for number, term in enumerate(["ctc", *heads])}
        rows.append({"step": step, "loss": sum(falling.values()), **falling, "lr": 1e-3, "gradient": 1.0})
        if step % 100 == 0:
            rows.append({"step": step, "gradient_norm": {"ctc": 1.0}, "gradient_share": {"ctc": 1.0}})
            rows.append({"step": step, "dev_ctc": 3.0 - step / 400, "dev_wer": 100 - step / 9 - 2 * seed})
    write_bytes(folder / "metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def pretend(project: Project, objective: str, *, seed: int, error_rate: float, split: str = "test") -> None:
    """Write the evaluation of a student that errs now and then: words of the references changed at random, scored and
    written for real."""
    folder = project.folder / "runs" / objective
    random = np.random.default_rng(seed)
    rows = []
    for utterance in read_manifest(project.manifest).split(split):
        spoken = words(utterance.text)
        said = [
            str(random.choice(["", "house", "door", "a"])) if random.random() < error_rate else word for word in spoken
        ]
        text = " ".join(word for word in said if word)
        rows.append(
            Hypothesis(
                id=utterance.id,
                speaker=utterance.speaker,
                seconds=utterance.duration or 0.0,
                reference=" ".join(spoken),
                hypothesis=text,
            )
        )
    scores = score_all(rows)
    real = read_result(folder, split)
    errors = {name: error_rate_of(score, None, EvaluateConfig(num_draws=500)) for name, score in scores.items()}
    report = dataclasses.replace(real, errors=errors, hypotheses=tuple(rows))
    write_result(folder, report, scores, n_best=[], timing={"rtf": real.rtf})


@pytest.fixture(scope="session")
def evaluated(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project whose runs are evaluated, with error rates that fall from run to run."""
    copy = Project(tmp_path_factory.mktemp("evaluated") / "demo")
    shutil.copytree(project.folder, copy.folder)
    for number, run in enumerate(copy.runs):
        evaluate(run, manifest=copy.manifest, alignment=copy.alignment, labels=copy.labels, units=copy.units)
        pretend(copy, run.name, seed=number, error_rate=(0.5, 0.4, 0.4, 0.25)[number])
    return copy


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Twelve utterances of four voices, three stores, four runs; read-only for tests."""
    project = Project(tmp_path_factory.mktemp("project"))
    torch.set_num_threads(1)
    tiny_corpus(project.folder, num_utterances=12)
    prepare_folder(project.folder)
    teacher = {"kind": "cloze", "direction": "both", "digest": "0" * 64, "given": "outside-position"}
    for level in LEVELS:
        label_folder(project.folder, levels=[level], k=16, teacher={"name": level, **teacher})
    for seed, objective in enumerate(OBJECTIVES):
        write_run(project, objective, seed=seed)
    for level in LEVELS:
        figures = {
            kind: {"perplexity": ppl, "top1": 0.5} for kind, ppl in (("neural", 4.2), ("ngram", 6.1), ("unigram", 31.0))
        }
        report = {
            "unit": level,
            "direction": "cloze",
            "given": "outside-position",
            "teacher": "neural",
            "judged_on": "transcripts",
            "figures": {"transcripts": {**figures, "positions": 1234}},
        }
        write_json(project.folder / "lm" / level / "report.json", report)
    return project


@pytest.fixture(scope="session")
def train_hybrid(project: Project) -> Callable[..., Path]:
    """Trains a run of two steps whose main output is senones, in a folder."""

    def run(folder: Path, **settings: Any) -> Path:
        config = TrainConfig(
            main="senone", encoder=SMALL, loop=TrainLoopConfig(max_steps=2, warmup_steps=0), **settings
        )
        parts = {"units": project.units, "alignment": project.alignment, "labels": project.labels}
        train(config, folder, manifest=project.manifest, **parts)
        return folder

    return run


@pytest.fixture(scope="session")
def hybrid(train_hybrid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps whose main output is senones."""
    return train_hybrid(
        tmp_path_factory.mktemp("hybrid") / "run", objective="hierarchical", stores=("monophone", "subword")
    )


@pytest.fixture(scope="session")
def unigram(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word n-gram (ARPA) of the corpus' words."""
    said = sorted({word for utterance in read_manifest(project.manifest) for word in words(utterance.text)})
    lines = [f"-2\t{word}" for word in ("</s>", *said)]
    path = tmp_path_factory.mktemp("unigram") / "words.arpa"
    path.write_text(
        "\n".join(["\\data\\", f"ngram 1={len(lines) + 1}", "", "\\1-grams:", "-99\t<s>", *lines, "", "\\end\\", ""])
    )
    return path
