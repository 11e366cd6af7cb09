"""Pretrained models of strangers: what is not whole, not safetensors, or not a model is one line with the remedy,
whoever loads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hkd.align.ctc import TransformersCtc
from hkd.errors import HkdError, UserError
from hkd.features.pretrained import load_encoder, open_config
from hkd.teachers.load import load_teacher
from hkd.testing.teachers import make_teacher_folder
from kit.encoders import tiny_encoder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 440449768\n"


def teacher(folder: Path) -> None:
    load_teacher(str(folder), unit="subword", device="cpu")


def encoder(folder: Path) -> None:
    load_encoder(str(folder), open_config(str(folder)))


def ctc(folder: Path) -> None:
    TransformersCtc(str(folder))


LOADERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "teacher": (teacher, "bert"), "encoder": (encoder, "hubert"), "ctc": (ctc, "hubert")
}  # fmt: skip


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[Path], None], Path]:
    load, kind = LOADERS[request.param]
    folder = tmp_path / "model"
    if request.param == "teacher":
        make_teacher_folder(folder, kind)
    else:
        tiny_encoder(folder, kind)
    return load, folder


def pointer(path: Path) -> None:
    path.write_bytes(POINTER)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def page(path: Path) -> None:
    path.write_bytes(b"<!doctype html><html>404: Not Found</html>")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pointer, r"is a pointer of git-lfs.*git lfs pull"),
        (half, r"has \d+ of \d+ bytes\. Fetch it again"),
        (without_last_byte, r"has \d+ of \d+ bytes\. Fetch it again"),
        (empty, "is empty. Fetch it again"),
        (page, "bytes that are not one. Fetch it again"),
    ],
)
def test_weights_that_are_not_whole(
    loader: tuple[Callable[[Path], None], Path], spoil: Callable[[Path], None], said: str
) -> None:
    load, folder = loader
    spoil(folder / "model.safetensors")
    with pytest.raises(HkdError, match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_pickles_are_refused_with_the_way_to_convert_them(loader: tuple[Callable[[Path], None], Path]) -> None:
    load, folder = loader
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle, which hkd never reads.*save_pretrained"):
        load(folder)


def test_adapters_are_refused(loader: tuple[Callable[[Path], None], Path]) -> None:
    load, folder = loader
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match=r"is an adapter \(PEFT\).*merge_and_unload"):
        load(folder)


def test_a_shard_of_the_weights_that_is_missing_is_named(loader: tuple[Callable[[Path], None], Path]) -> None:
    load, folder = loader
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({name: weights[name].clone() for name in names[:2]}, folder / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(names[:2], "model-00001-of-00002.safetensors") | dict.fromkeys(
        names[2:], "model-00002-of-00002.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    with pytest.raises(HkdError, match=r"all 2 files of its weights, but lacks model-00002-of-00002\.safetensors"):
        load(folder)


@pytest.mark.parametrize("spoil", [pointer, empty, page])
def test_configurations_that_are_none(
    loader: tuple[Callable[[Path], None], Path], spoil: Callable[[Path], None]
) -> None:
    load, folder = loader
    spoil(folder / "config.json")
    with pytest.raises(HkdError, match=r"config\.json") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_encoder_without_a_ctc_head_aligns_nothing(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "bare", "hubert")
    with pytest.raises(
        HkdError, match=r"lacks lm_head\.bias, lm_head\.weight: they would be random\..*fine-tuned with CTC"
    ):
        ctc(folder)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    folder = make_teacher_folder(tmp_path / "lm", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 50}))
    with pytest.raises(HkdError, match=r"must have weights of the shapes that its config\.json says") as caught:
        teacher(folder)
    assert "\n" not in str(caught.value)


def test_tokens_without_an_embedding(tmp_path: Path) -> None:
    folder, other = (
        make_teacher_folder(tmp_path / "lm", "gpt2"),
        make_teacher_folder(tmp_path / "other", "gpt2", texts=["the cat"]),
    )
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, other)
    with pytest.raises(HkdError, match="must have an embedding for each token of its tokenizer"):
        teacher(other)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_a_checkpoint_without_its_tokenizer(kind: str, tmp_path: Path) -> None:
    folder = make_teacher_folder(tmp_path / "lm", kind)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(HkdError, match="must have its tokenizer beside it"):
        teacher(folder)


def test_a_tokenizer_of_a_newer_version(tmp_path: Path) -> None:
    folder = make_teacher_folder(tmp_path / "lm", "gpt2")
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["pre_tokenizer"] = {"type": "InventedLater"}
    path.write_text(json.dumps(value))
    with pytest.raises(
        HkdError, match=r"must be readable by this version of the package tokenizers.*pip install --upgrade tokenizers"
    ):
        teacher(folder)
