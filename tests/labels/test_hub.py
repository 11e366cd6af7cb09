"""The Hugging Face Hub, spoken by a server on loopback. In a process of its own: huggingface_hub reads HF_ENDPOINT when
it is imported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hkd.errors import UserError
from hkd.labels.store import LabelWriter, store_name
from hkd.remote import hub_parts
from hkd.testing.store import files_of, random_rows, spec_for, write_store
from kit.hub import HubServer

LENGTHS = [3, 0, 7, 12, 1]
DO = """
import json, sys
from hkd.errors import HkdError
from hkd.labels.share import pull, push
from hkd.labels.store import LabelReader
said = []
for action, *arguments in json.loads(sys.argv[1]):
    try:
        if action == "push":
            said.append(push(arguments[0], arguments[1], overwrite=len(arguments) > 2))
        elif action == "pull":
            said.append(pull(*arguments).digest)
        else:
            reader = LabelReader.open(arguments[0])
            said.append(int(reader.block(list(reader.ids)).topk.ids_NK.sum()))
    except HkdError as error:
        said.append(f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def do(hub: HubServer, tmp_path: Path, actions: list[tuple[str, ...]]) -> list[Any]:
    """What each action returned or raised. Xet is off, which is a protocol of its own; loopback speaks LFS."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": "hf_nobody",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    command = [sys.executable, "-c", DO, json.dumps([[str(item) for item in action] for action in actions])]
    ran = subprocess.run(command, capture_output=True, env={**os.environ, **settings}, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    assert b"%|" not in ran.stderr  # the library draws no bars
    return list(json.loads(ran.stdout))


def test_there_and_back_in_one_commit(tmp_path: Path, hub: HubServer) -> None:
    rows = random_rows(spec_for(), LENGTHS)
    here = write_store(tmp_path / "s", spec_for(), rows)
    write_store(tmp_path / "b", spec_for(k=3), random_rows(spec_for(k=3), LENGTHS))
    whole, deep = "hf://datasets/org/name", "hf://datasets/org/name/labels/subword"
    said = do(
        hub,
        tmp_path,
        [
            ("push", tmp_path / "s", whole),
            ("push", tmp_path / "s", whole),
            ("push", tmp_path / "b", whole),
            ("pull", whole, tmp_path / "back"),
            ("open", whole),
            ("push", tmp_path / "s", deep),
            ("pull", deep, tmp_path / "deep"),
            ("push", tmp_path / "b", whole, "overwrite"),
            ("pull", whole, tmp_path / "other"),
            ("push", tmp_path / "s", "hf://datasets/other/one"),
        ],
    )
    size = sum(len(data) for data in files_of(tmp_path / "s").values())
    assert said[:2] == [size, 0]
    assert said[2].startswith("UserError") and "holds another" in said[2]  # noqa: PT018
    assert said[3:7] == [here.spec.digest, int(here.block(list(here.ids)).topk.ids_NK.sum()), size, here.spec.digest]
    assert said[9].startswith("HkdError: hf://datasets/other/one")
    assert not any("\n" in str(line) for line in said)
    assert files_of(tmp_path / "back") == files_of(tmp_path / "deep") == files_of(tmp_path / "s")
    assert files_of(tmp_path / "other") == files_of(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir() if "pull" in path.name) == []
    assert hub.files["labels/subword/README.md"].startswith(b"---\ntags:\n- hkd\n")
    assert hub.commits <= 4  # one a push; huggingface_hub leaves one out that changes nothing


def test_a_pull_request_and_a_smaller_store_over_a_larger_one(tmp_path: Path, hub: HubServer) -> None:
    """hf://...@refs/pr/1/FOLDER is a revision and a folder; what the larger store had more is gone, what is somebody
    else's stays."""
    large, small = (spec_for(k=k, utterances_per_shard=1) for k in (5, 3))
    write_store(tmp_path / "large", large, random_rows(large, LENGTHS))
    write_store(tmp_path / "small", small, random_rows(small, LENGTHS[:2]))
    hub.files["labels/notes.txt"] = hub.files["data/00003.arrow"] = b"mine"
    url = "hf://datasets/org/name@refs/pr/1/labels"
    said = do(
        hub,
        tmp_path,
        [
            ("push", tmp_path / "large", url),
            ("push", tmp_path / "small", url, "overwrite"),
            ("pull", url, tmp_path / "back"),
            ("open", "hf://datasets/org/name@refs%2Fpr%2F1/labels"),
        ],
    )
    assert isinstance(said[3], int), said
    assert files_of(tmp_path / "back") == files_of(tmp_path / "small")
    lies = {name.removeprefix("labels/") for name in hub.files if name.startswith("labels/")}
    assert lies == {*files_of(tmp_path / "small"), "notes.txt"}
    assert hub.files["data/00003.arrow"] == b"mine"


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="then `hkd labels push` it"):
        LabelWriter.open("hf://datasets/org/name", spec_for(), ["a"])
    with pytest.raises(UserError, match="like hf://datasets/ORG/NAME"):
        hub_parts("hf://org/name")
    for url in ("hf://datasets/org", "hf://models/org/name", "hf://spaces/org/name/x", "hf://"):
        with pytest.raises(UserError, match="like hf://datasets/ORG/NAME"):
            hub_parts(url)
    assert hub_parts("hf://datasets/org/name@v1/a/b") == ("org/name", "v1", "a/b")
    for revision in ("refs/pr/1", "refs/convert/parquet", "refs%2Fpr%2F12", "feature%2Fx"):
        for folder in ("", "a", "a/b"):
            url = f"hf://datasets/org/name@{revision}/{folder}".rstrip("/")
            assert hub_parts(url) == ("org/name", revision.replace("%2F", "/"), folder)
            assert store_name(url) == (folder.rpartition("/")[2] or "name")
    assert store_name("s3://bucket/shards/subword") == "subword"
