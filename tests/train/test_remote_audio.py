"""Training on sound at a URL: the same run as on that of a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hkd.config import merge
from kit.runs import trained
from kit.s3 import S3Server


def test_sound_in_a_bucket_gives_the_run_of_the_folder(
    labelled: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("HKD_CACHE", str(tmp_path / "cache"))
    project = tmp_path / "project"
    shutil.copytree(labelled, project)
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("speech")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        rows = [json.loads(line) for line in (project / "manifest.jsonl").read_text().splitlines()]
        for row in rows:
            name = Path(row["audio_filepath"]).name
            system.put_file(str(project / row["audio_filepath"]), f"speech/{name}")
            row["audio_filepath"] = f"s3://speech/{name}"
        shutil.rmtree(project / "audio")
        (project / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = merge(tiny, {"loop": {"max_steps": 3}, "workers": 1, "features_cache": str(tmp_path / "features")})
        for name, folder in (("here", labelled), ("there", project)):
            trained(folder, tmp_path / name / "run", settings)
    for name in ("final.safetensors", "identity.json", "metrics.jsonl"):
        assert (tmp_path / "here" / "run" / name).read_bytes() == (tmp_path / "there" / "run" / name).read_bytes(), name
