"""`hkd labels`."""

import json
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hkd.cli.labels import app
from hkd.errors import UserError
from hkd.testing.store import random_rows, spec_for, write_store


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small stores in ./shards of the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("senone", "subword"):
        spec = spec_for(20, k=20 if name == "senone" else 5, name=name, level=name)
        write_store(tmp_path / "shards" / name, spec, random_rows(spec, [3, 0, 7, 12, 1, 30]))
    return tmp_path / "shards"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_info(shards: Path) -> None:
    text = run("info")
    for word in (
        "senone",
        "subword",
        "tiny",
        "k = 5",
        "53 positions",
        "top-1 hit rate",
        "perplexity",
        "entropy",
        "tail mass",
    ):
        assert word in text
    facts = json.loads(run("info", "--json"))
    assert facts["subword"]["positions"] == 53
    assert facts["senone"]["topk_hit_rate"] == 1.0
    with pytest.raises(UserError, match="teacher-dump"):
        run("info", "nowhere")


def test_show(shards: Path) -> None:
    text = run("show", "utt-0002", "--top", "3")
    assert len(text.splitlines()) == 2 * 7 + 2 + 1
    rows = json.loads(run("show", "utt-0002", "--labels", str(shards / "senone"), "--json"))["senone"]
    assert len(rows) == 7
    for row in rows:
        p = [candidate["p"] for candidate in row["candidates"]]
        assert p == sorted(p, reverse=True)
        assert row["tail"] == 0
    with pytest.raises(UserError, match="'nobody' is in none"):
        run("show", "nobody")


def test_verify_and_repair(shards: Path) -> None:
    assert "all is well" in run("verify")
    path = shards / "senone/data/00001.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "flipped" in run("verify", code=1)
    assert "would remove" in run("verify", "--repair", "--dry-run", code=1)
    assert path.exists()
    assert "dump again: shards 1" in run("verify", "--repair", code=1)
    assert not path.exists()
    (shards / "subword/index.arrow").unlink()
    assert "wrote index.arrow" in run("verify", "shards/subword", "--repair")
    assert json.loads(run("verify", "shards/subword", "--json")) == {"subword": {"problems": []}}


def test_convert_split_merge_compare_export(shards: Path) -> None:
    run("convert", "shards/subword", "zarr/subword", "--backend", "zarr")
    assert "KL(A‖B)" in run("compare", "shards/subword", "zarr/subword")
    found = json.loads(run("compare", "shards/subword", "zarr/subword", "--json"))
    assert (found["positions"], found["top1_agreement"]) == (53, 1.0)
    Path("ids").write_text("utt-0002\nutt-0004\n")
    run("split", "shards/subword", "a", "--ids", "ids")
    assert json.loads(run("info", "a", "--json"))["a"]["utterances"] == 2
    # of other systems
    for number, data in enumerate((b"\xef\xbb\xbfutt-0002\r\nutt-0004\r\n", b"utt-0002 \n\nutt-0004")):
        Path("ids").write_bytes(data)
        run("split", "shards/subword", f"a{number}", "--ids", "ids")
        assert json.loads(run("info", f"a{number}", "--json"))[f"a{number}"]["utterances"] == 2
    for data in ("utt-0002\nutt-0004\n".encode("utf-16"), "utt-0002\n".encode("utf-16-be"), b"utt-\xff\n"):
        Path("ids").write_bytes(data)
        with pytest.raises(UserError, match=r"ids:1: a list of ids must be (text in )?UTF-8"):
            run("split", "shards/subword", "refused", "--ids", "ids")
    lines = [{"id": name, "text": "x", "split": "dev"} for name in ("utt-0001", "utt-0003", "other")]
    Path("manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = CliRunner().invoke(app, ["split", "shards/subword", "b", "--split", "dev"])
    assert (done.exit_code, "1 of 3 utterances of dev are not in shards/subword." in done.stderr) == (0, True)
    Path("ids").write_text("\n")
    with pytest.raises(UserError, match="none of those asked for is in it"):
        run("split", "shards/subword", "empty", "--ids", "ids")
    run("merge", "a", "b", "--out", "c")
    assert json.loads(run("info", "c", "--json"))["c"]["utterances"] == 4
    run("export", "c", "--parquet", "c.parquet")
    assert "start_s" not in pq.read_schema("c.parquet").names  # no alignment here
    run("average", "c", "mean", "--split", "dev", "--k", "20", "--overwrite")
    averages = json.loads(run("info", "mean", "--json"))["mean"]
    assert (averages["utterances"], averages["k"], averages["teacher"]["given"]) == (4, 20, "unit")
    with pytest.raises(UserError, match="--ids or --split"):
        run("split", "shards/subword", "d")
    with pytest.raises(UserError, match="another folder"):
        run("convert", "shards/subword", "shards/subword")


def test_every_command_has_help_with_examples() -> None:
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
    assert {
        "average",
        "info",
        "show",
        "verify",
        "convert",
        "compare",
        "merge",
        "split",
        "export",
        "push",
        "pull",
    } <= set(commands)
    for command in app.registered_commands:
        assert command.callback is not None
        assert "Examples:" in (command.callback.__doc__ or "")
        assert command.callback.__name__ in run(command.callback.__name__, "--help")


def test_stores_at_a_url(shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    try:
        for name in ("senone", "subword"):
            run("push", str(shards / name), f"memory://far/{name}")
        assert run("info", "memory://far") == run("info")
        assert run("show", "utt-0002", "--labels", "memory://far") == run("show", "utt-0002")
        assert run("verify", "memory://far") == run("verify")
        assert run("compare", "memory://far/subword", "shards/subword", "--json") == run(
            "compare", "shards/subword", "shards/subword", "--json"
        )
        run("convert", "memory://far/subword", "memory://far/zarr", "--backend", "zarr")
        run("export", "memory://far/zarr", "--parquet", "table.parquet")
        run("pull", "memory://far/zarr", "pulled")
        assert "zarr" in run("info", "pulled")
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
