"""What a unit LM hangs on, and whether a folder already holds it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hkd.align.alignment import Alignment
from hkd.errors import UserError
from hkd.files import digest_of_file, digest_of_json
from hkd.labelling.lm_report import LmReport
from hkd.manifest import Manifest
from hkd.teachers.unit_lm import CONFIG, REPORT, read_json
from hkd.units.level import SPELLED
from hkd.units.sequences import Units
from hkd.units.text import normalisation


def identity_of(
    config: Any, *, texts: Sequence[Path], units: Units, manifest: Manifest | None, alignment: Alignment | None
) -> dict[str, Any]:
    """All that the result hangs on; `config` is the LmConfig. Raises UserError where there is nothing to train on."""
    if not texts and config.transcripts == "none":
        raise UserError("an LM needs something to train on, but there is none. Give --text FILE, or --transcripts cross-fit.")
    if config.transcripts == "cross-fit" and manifest is None:
        raise UserError("cross-fitting needs the manifest, but there is none. Run `hkd prepare` first.")
    for path in texts:
        if not path.is_file():
            raise UserError(f"text must be a file, but {path} is none. Give a text file, one sentence a line.")
    return {
        "config": asdict(config),
        "texts": [digest_of_file(path) for path in texts],
        "inventory": units.inventory(config.unit).digest,
        "manifest": None if manifest is None else manifest.digest,
        "alignment": None if alignment is None or config.unit in SPELLED else alignment.digest,
        "normalisation": normalisation(),
    }


def finished(folder: Path, identity: Mapping[str, Any], *, overwrite: bool) -> LmReport | None:
    """The report of a finished LM of this identity. Refuses, or with overwrite removes, an LM of another one."""
    if not folder.exists() or all(path.name.endswith(".tmp") for path in folder.iterdir()):  # killed before its first file
        return None
    ours = (folder / CONFIG).exists()
    old = read_json(folder / CONFIG) if ours else {}
    if not ours or "hkd_lm" not in old:
        raise UserError(f"{folder} must be free or hold a unit LM, but holds something else. Give another --name.")
    if overwrite and old["identity_digest"] != digest_of_json(identity):
        shutil.rmtree(folder)
        return None
    if old["identity_digest"] != digest_of_json(identity):
        before, now = _flat(old["identity"]), _flat(identity)
        what = next((name for name in {**before, **now} if before.get(name) != now.get(name)), "format")
        raise UserError(
            f"{folder} must be of the same settings and data, but `{what}` is {before.get(what)!r} there and {now.get(what)!r} now. "
            "Give another --name, or --overwrite."
        )
    if not (folder / REPORT).exists():
        return None
    shutil.rmtree(folder / "work", ignore_errors=True)
    return LmReport.load(folder / REPORT)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else key).items()}
