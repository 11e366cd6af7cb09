"""What a run of an aligner tells: how much was kept, what was left out and why; and whether a finished artefact is the one asked for."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hkd.align.alignment import Alignment
from hkd.errors import UserError
from hkd.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignReport:
    """What came out: `failed` is id → reason; `seconds_of_audio` counts the kept utterances; `real_time_factor` is processor time a second
    of audio, the model's loading left out (0 where nothing had to be done)."""

    kept: int
    failed: dict[str, str] = field(default_factory=dict)
    seconds_of_audio: float = 0.0
    real_time_factor: float = 0.0
    predicted_words: dict[str, str] = field(
        default_factory=dict
    )  # words that no dictionary holds → the phones that they were given
    unused: tuple[str, ...] = ()  # what another tool aligned and the manifest does not have
    notes: tuple[str, ...] = ()  # sentences for people: what was coarse, what was moved


ABOUT = ("seconds_of_audio", "predicted_words", "unused", "notes")


def about(report: AlignReport) -> dict[str, Any]:
    """The part of a report that is kept in the artefact."""
    fields = asdict(report)
    return {name: fields[name] for name in ABOUT}


def finished(out: Path, manifest: Manifest, aligner: Mapping[str, Any], *, overwrite: bool) -> AlignReport | None:
    """The report of a finished alignment that is what is asked for; None where it may be (re)placed. Raises UserError where it may not."""
    if not out.exists():
        return None
    there = Alignment(out)
    wanted = {"manifest": manifest.digest, **aligner}
    found = {"manifest": there.manifest_digest, **{key: there.aligner.get(key) for key in aligner}}
    if wanted == found:
        kept = {name: there.aligner[name] for name in ABOUT if name in there.aligner}
        kept |= {name: tuple(kept[name]) for name in ("unused", "notes") if name in kept}
        return AlignReport(kept=len(there), failed=there.failed, **kept)
    if overwrite:
        return None
    name = next(key for key in wanted if wanted[key] != found[key])
    raise UserError(
        f"{out} must not be replaced, but is of another {name} ({found[name]} instead of {wanted[name]}). Use --overwrite to align anew."
    )


def warn(report: AlignReport) -> None:
    """Log what was left out, a line an utterance."""
    for utterance_id, reason in report.failed.items():
        logger.warning("utterance '%s' could not be aligned: %s", utterance_id, reason)
