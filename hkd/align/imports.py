"""Other tools' alignments → the artefact: what a source gives, in any order, is fitted, listed and written in the manifest's order.

A `Source` reads one tool's files. What it cannot give of an utterance is a reason, not an end; what belongs to no utterance is counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Tier, UtteranceAlignment, write_alignment
from hkd.align.foreign import SILENCE_PHONE, FailureError, Foreign, ImportConfig, Silence, SymbolTable, fit
from hkd.align.report import AlignReport, about, finished, warn
from hkd.align.sequences import aligned_to_units
from hkd.audio import probe
from hkd.errors import HkdError
from hkd.files import digest_of_json
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress
from hkd.timebase import FRAME_SHIFT_S, seconds_to_samples
from hkd.units.inventory import UnitInventory
from hkd.units.level import MONOPHONE, SENONE
from hkd.units.phones import is_silence_name, phone_inventory
from hkd.units.text import NORMALISATION

ALGORITHM = 1  # raised whenever the same files would give another alignment
Found = Foreign | FailureError


class Source(Protocol):
    """One tool's alignments."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on besides the manifest: the tool's name, digests of what is read, settings."""
        ...

    @property
    def phones(self) -> tuple[str, ...] | None:
        """All phones that the tool's model has, silence too, as `Foreign` has them; None where they are taken from what occurs."""
        ...

    @property
    def senones(self) -> tuple[UnitInventory, tuple[int, ...]] | None:
        """The tool's senones and those that are silence; None where it has none."""
        ...

    def read(self, manifest: Manifest, samples: "Samples") -> Iterator[tuple[str, Found]]:
        """Utterances by their ids, in any order; ids that the manifest does not have too, each once."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for people, once all is read."""
        ...


class Samples:
    """How long an utterance's sound is, in samples at 16 kHz: the manifest's word, else the file's header."""

    def __init__(self) -> None:
        self._found: dict[str, int] = {}

    def __call__(self, utterance: Utterance) -> int:
        """Raises FailureError where nobody says it."""
        if utterance.id not in self._found:
            self._found[utterance.id] = self._find(utterance)
        return self._found[utterance.id]

    def _find(self, utterance: Utterance) -> int:
        if utterance.duration is not None:
            return seconds_to_samples(utterance.duration)
        if utterance.audio_filepath is None:
            raise FailureError("the manifest has neither a duration nor audio")
        try:
            return seconds_to_samples(probe(utterance.audio_filepath).duration_s - utterance.offset)
        except HkdError as error:
            raise FailureError(str(error)) from None


def import_alignment(
    manifest: Manifest,
    out: Path,
    source: Source,
    *,
    config: ImportConfig | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> AlignReport:
    """Write `out` (an `Alignment`) from what a source has of the manifest's utterances; the rest stands in it and in the report with reasons.

    Raises UserError where `out` is of something else, unless `overwrite`, or the source cannot be read, and HkdError where nothing fits.
    """
    config = config or ImportConfig()
    aligner = {
        **source.identity,
        "algorithm": ALGORITHM,
        "words": NORMALISATION,
        "spans": _spans(manifest),
        "config": {**asdict(config), "silence_phones": sorted(config.silence_phones)},
    }
    if (done := finished(out, manifest, aligner, overwrite=overwrite)) is not None:
        return done
    rows, failed, unused, table = _collect(manifest, source, config, progress)
    if not rows:
        example = next(iter(failed.items()), ("none", "the manifest is empty"))
        raise HkdError(f"none of {len(manifest)} utterances could be aligned, '{example[0]}' for one: {example[1]}.")
    inventories, silences, phone_id_V = _inventories(source, table, config)
    report = AlignReport(
        kept=len(rows), failed=failed, unused=tuple(unused),
        notes=source.notes + _unheard(rows.values(), [table[phone] for phone in table if phone in _silence(source, config)]),
        seconds_of_audio=sum(row.num_frames for row in rows.values()) * FRAME_SHIFT_S,
    )  # fmt: skip
    ordered = (rows[utterance.id] for utterance in manifest if utterance.id in rows)
    write_alignment(
        out,
        (_renumbered(row, phone_id_V) for row in ordered),
        manifest_digest=manifest.digest,
        inventories=inventories,
        silences=silences,
        aligner=aligner | about(report),
        failed=failed,
    )
    warn(report)
    return report


def _unheard(rows: Iterable[UtteranceAlignment], silent_ids: Sequence[int]) -> tuple[str, ...]:
    """A note on words that have no phone of their own, since the tool knew them as `<unk>` or noise: they are frames of silence at that level."""
    words: Counter[str] = Counter()
    utterances = 0
    for row in rows:
        if MONOPHONE in row.tiers:
            heard = set(aligned_to_units(row, MONOPHONE, silent_ids)[1].tolist())
            without = [word for number, word in enumerate(row.words) if number not in heard]
            words.update(without)
            utterances += bool(without)
    if not words:
        return ()
    some = ", ".join(f"'{word}'" for word, _ in words.most_common(10))
    return (
        f"{words.total()} words ({len(words)} different) of {utterances} utterances have no phones, since the tool knew them as unknown or "
        f"noise: {some}{' ...' if len(words) > 10 else ''}",
    )


def _spans(manifest: Manifest) -> str:
    """Digest of what of each utterance, besides its text, decides how a recording's alignment is cut."""
    return digest_of_json(
        [[u.id, u.speaker, u.offset, u.duration, *([] if u.channel is None else [u.channel])] for u in manifest]
    )


def _collect(
    manifest: Manifest, source: Source, config: ImportConfig, progress: Progress
) -> tuple[dict[str, UtteranceAlignment], dict[str, str], list[str], SymbolTable]:
    """Rows with phones numbered as they occur, reasons, ids that the manifest lacks, and the phones."""
    samples, table, known = Samples(), SymbolTable(), {u.id for u in manifest}
    silence = _silence(source, config)
    rows: dict[str, UtteranceAlignment] = {}
    reasons: dict[str, str] = {}
    unused: list[str] = []
    for number, (name, found) in enumerate(source.read(manifest, samples), 1):
        progress(min(number, len(manifest)), len(manifest), failed=len(reasons))
        if name not in known:
            unused.append(name)
            continue
        utterance = manifest.by_id(name)
        try:
            if isinstance(found, FailureError):
                raise found
            rows[name] = fit(
                found, id=name, text=utterance.text, num_samples=samples(utterance), silence=silence, config=config, id_of=table
            )
        except FailureError as error:
            reasons[name] = str(error)
    failed = {u.id: reasons.get(u.id, "it is not among what was aligned") for u in manifest if u.id not in rows}
    return rows, failed, sorted(unused), table


def _silence(source: Source, config: ImportConfig) -> "SilenceByName":
    names = frozenset(config.silence_phones)
    quiet = [phone for phone in source.phones or () if is_silence_name(phone) or phone in names]
    phone = next((phone for phone in quiet if phone.lower().startswith("sil")), quiet[0] if quiet else SILENCE_PHONE)
    senone = 0 if source.senones is None else source.senones[0].silence or 0
    return SilenceByName(names=names, phone=phone, senone=senone)


class SilenceByName(Silence):
    """Silence by the names that tools use, and by those that are given."""

    def __contains__(self, phone: object) -> bool:
        return phone in self.names or is_silence_name(str(phone))


def _inventories(
    source: Source, table: SymbolTable, config: ImportConfig
) -> tuple[dict[str, UnitInventory], dict[str, tuple[int, ...]], NDArray[np.int32]]:
    """Inventories, silences, and the phones' ids as they occurred → as they are in the inventory."""
    inventories: dict[str, UnitInventory] = {}
    silences: dict[str, tuple[int, ...]] = {}
    if source.senones is not None:
        inventories[SENONE], silences[SENONE] = source.senones
    own = next((phone for phone in table if phone != SILENCE_PHONE and phone.lower() == SILENCE_PHONE), SILENCE_PHONE)
    symbol_V = [own if phone == SILENCE_PHONE else phone for phone in table]  # what was put into gaps is the tool's own silence
    known = sorted(set(symbol_V)) if source.phones is None else dict.fromkeys(map(config.fold, source.phones))
    symbols = tuple(dict.fromkeys((*known, *symbol_V)))
    if not symbols:
        return inventories, silences, np.zeros(0, np.int32)
    phones, quiet = phone_inventory(symbols, config.silence_phones)
    inventories[MONOPHONE], silences[MONOPHONE] = phones, quiet
    return inventories, silences, np.array([phones.id_of[symbol] for symbol in symbol_V], np.int32)


def _renumbered(row: UtteranceAlignment, phone_id_V: NDArray[np.int32]) -> UtteranceAlignment:
    if MONOPHONE not in row.tiers:
        return row
    tier = row.tiers[MONOPHONE]
    return replace(row, tiers={**row.tiers, MONOPHONE: Tier(unit_U=phone_id_V[tier.unit_U], start_U1=tier.start_U1)})
