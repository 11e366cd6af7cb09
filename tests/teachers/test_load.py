"""Teachers by name: what is refused, and how soon."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.errors import HkdError, UserError
from hkd.labelling.dump import DumpJob, execute
from hkd.labels.store import LabelReader
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, TeacherInfo
from hkd.teachers.load import (
    ALIASES,
    KINDS,
    TeacherKind,
    TeacherOptions,
    TeacherRequest,
    check_source,
    kind_of,
    load_teacher,
    resolve,
)
from hkd.teachers.transformer import CausalTeacher, MaskedTeacher
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory

Folder = Callable[[str], Path]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_network")
def test_without_network_and_copy_it_ends_at_once_and_says_how_to_go_on() -> None:
    started = time.monotonic()
    with pytest.raises(HkdError, match=r"google-bert/bert-large-uncased .*--lm FOLDER") as caught:
        load_teacher("bert-large", unit="subword")
    assert caught.value.exit_code == 1
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("no_network")
def test_an_alias_whose_hub_name_lies_here_as_a_folder(
    teacher_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher_folder("bert"), tmp_path / "google-bert" / "bert-large-uncased")
    monkeypatch.chdir(tmp_path)
    assert load_teacher("bert-large", unit="subword").info.name == "google-bert/bert-large-uncased"


def test_kind_is_that_of_the_architecture(teacher_folder: Folder) -> None:
    assert isinstance(load_teacher(str(teacher_folder("bert")), unit="subword"), MaskedTeacher)
    assert isinstance(load_teacher(str(teacher_folder("gpt2")), unit="subword"), CausalTeacher)


def test_a_level_that_the_lm_does_not_know_is_refused(teacher_folder: Folder) -> None:
    with pytest.raises(UserError, match="unit must be subword"):
        load_teacher(str(teacher_folder("bert")), unit="senone")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_missing_folders_are_no_hub_names(name: str) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        load_teacher(name, unit="subword")


def test_pickled_weights_are_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(teacher_folder("bert"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(HkdError, match="safetensors"):
        load_teacher(str(folder), unit="subword")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_lies_beside_a_model_is_never_run(teacher_folder: Folder, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "code"
    shutil.copytree(teacher_folder("bert"), folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: ...\n")
    value = json.loads((folder / file).read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    value |= (
        {"auto_map": auto, "model_type": "evil"}
        if file == "config.json"
        else {"auto_map": auto, "tokenizer_class": "Evil"}
    )
    (folder / file).write_text(json.dumps(value))
    refused = (
        pytest.raises((HkdError, UserError)) if file == "config.json" else nullcontext()
    )  # the tokenizer itself is all there
    with refused:
        load_teacher(str(folder), unit="subword")
    assert not (tmp_path / "ran").exists()


def test_a_model_without_its_head_is_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    import safetensors.torch

    folder = tmp_path / "headless"
    shutil.copytree(teacher_folder("bert"), folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("cls.predictions.transform")}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HkdError, match=r"lacks cls\.predictions"):
        load_teacher(str(folder), unit="subword")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", {}),
        ("model.layers.0.self_attn.q_proj.bias", {}),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", {}),
        ("model.layers.0.self_attn.q_norm.weight", {}),
        ("lm_head.bias", {}),
        ("model.layers.1.mlp.up_proj.weight", {"num_hidden_layers": 1}),
    ],
)
def test_weights_of_the_model_that_would_be_left_out_are_refused(
    name: str, config: dict[str, int], teacher_folder: Folder, tmp_path: Path
) -> None:
    folder = with_weights(teacher_folder("llama"), tmp_path / "lm", {name: torch.ones(1)})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    with pytest.raises(HkdError, match=rf"would leave out .*{name.split('.')[-1]}"):
        load_teacher(str(folder), unit="subword")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "bert.pooler.dense.weight"),
        ("bert", "cls.seq_relationship.weight"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("llama", "score.weight"),
    ],
)
def test_other_heads_and_old_buffers_do_no_harm(kind: str, name: str, teacher_folder: Folder, tmp_path: Path) -> None:
    folder = with_weights(teacher_folder(kind), tmp_path / "lm", {name: torch.ones(1)})
    whole = load_teacher(str(teacher_folder(kind)), unit="subword")
    assert load_teacher(str(folder), unit="subword").info.digest == whole.info.digest


def with_weights(source: Path, folder: Path, further: dict[str, torch.Tensor]) -> Path:
    """A copy of a model's folder that holds further weights."""
    import safetensors.torch

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    safetensors.torch.save_file(further | safetensors.torch.load_file(path), path, metadata={"format": "pt"})
    return folder


def test_a_class_that_changes_what_tokenizer_json_says_is_named(
    teacher_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_teacher(str(teacher_folder("bert")), unit="subword")
    assert not caplog.records
    shutil.copytree(teacher_folder("bert"), tmp_path / "lm")
    said = json.loads((tmp_path / "lm" / "tokenizer.json").read_text())
    said["normalizer"]["lowercase"] = False
    said["model"]["vocab"] |= {"The": len(said["model"]["vocab"])}
    (tmp_path / "lm" / "tokenizer.json").write_text(json.dumps(said))
    load_teacher(str(tmp_path / "lm"), unit="subword")
    assert "BertTokenizer reads words otherwise than its tokenizer.json says (the" in caplog.text
    path = tmp_path / "lm" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    caplog.clear()
    teacher = load_teacher(str(tmp_path / "lm"), unit="subword")
    assert "tokenizer.json" not in caplog.text
    assert teacher.inventory.symbols[teacher.encode(["The"])[0][0]] == "The"


def test_other_architectures_are_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(teacher_folder("electra"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ElectraForPreTraining"]}))
    with pytest.raises(UserError, match="discriminator"):
        load_teacher(str(folder), unit="subword")


def test_the_digest_is_of_the_weights_not_of_the_place(teacher_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(teacher_folder("bert"), tmp_path / "bert")
    here, there = (load_teacher(str(p), unit="subword").info for p in (teacher_folder("bert"), tmp_path / "bert"))
    assert here.digest == there.digest
    import safetensors.torch

    weights = safetensors.torch.load_file(tmp_path / "bert" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1.0
    safetensors.torch.save_file(weights, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    assert load_teacher(str(tmp_path / "bert"), unit="subword").info.digest != here.digest


def test_aliases_name_the_hub() -> None:
    assert resolve("bert-large") == "google-bert/bert-large-uncased"
    assert resolve("my/own") == "my/own"
    assert all(name.count("/") == 1 for name in ALIASES.values())


def test_devices_and_precisions_are_checked(teacher_folder: Folder) -> None:
    for wrong in ({"device": "tpu"}, {"precision": "fp8"}):
        with pytest.raises(UserError, match="must be one of"):
            load_teacher(str(teacher_folder("bert")), unit="subword", **wrong)


class Echo:
    """A teacher of one's own: it is sure of whatever was said."""

    level, figures = "character", {}
    inventory = UnitInventory(level="character", symbols=("▁", "a", "b"))
    info = TeacherInfo(name="echo", kind="echo", direction="both", digest="0")

    def encode(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [
            (self.inventory.symbols.index(letter), place) for place, word in enumerate(words) for letter in f"▁{word}"
        ]
        return np.array([unit for unit, _ in pairs], np.int32), np.array([place for _, place in pairs], np.int32)

    def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
        gold = [torch.from_numpy(s.unit_U.astype(np.int64)) for s in sentences]
        return [select_topk(torch.eye(3)[gold_U] * 9, gold_U, k=k, temperatures=temperatures) for gold_U in gold]


def test_a_kind_of_ones_own_labels_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[TeacherRequest] = []

    def load(what: TeacherRequest) -> Echo:
        asked.append(what)
        return Echo()

    def check(name: str) -> None:
        if name == "echo:nowhere":
            raise UserError("there is no such echo.")

    kind = TeacherKind(help="echo:NAME", knows=lambda name: name.startswith("echo:"), check=check, load=load)
    monkeypatch.setitem(KINDS, "echo", kind)
    assert kind_of("bert-large") is KINDS["transformers"]
    with pytest.raises(UserError, match="no such echo"):
        check_source("echo:nowhere")
    with pytest.raises(UserError, match="mask_every must be left out"):
        load_teacher("echo:a", unit="character", options=TeacherOptions(mask_every=2))
    (tmp_path / "manifest.jsonl").write_text('{"id": "u1", "text": "ab a"}\n{"id": "u2", "text": "ba"}\n')
    job = DumpJob(manifest=tmp_path / "manifest.jsonl", out=tmp_path / "s", lm="echo:a", unit="character")
    assert execute(job).positions == 8
    assert [one.name for one in asked] == ["echo:a"]
    block = LabelReader.open(tmp_path / "s").block(["u1", "u2"])
    assert block.topk.ids_NK[:, 0].tolist() == block.topk.gold_N.tolist() == [0, 1, 2, 0, 1, 0, 2, 1]
    help_of_lm = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    assert "echo:NAME" in help_of_lm.replace("\n", "")


HELP = """
from hkd.teachers.load import KINDS, TeacherKind
KINDS["echo"] = TeacherKind(help="echo:NAME", knows=lambda name: False, load=None)
from typer.testing import CliRunner
from hkd.cli.main import app
print(CliRunner().invoke(app, ["teacher-dump", "--help"]).output)
"""
