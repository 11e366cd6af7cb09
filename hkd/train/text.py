"""What a run with text reads: sentences, their label stores, and the posterior bank of the student's own low part."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from hkd import artefact
from hkd import manifest as manifests
from hkd.errors import UserError
from hkd.files import digest_of
from hkd.labels.store import CACHE_BYTES, LabelReader, digest_of_store, store_folders
from hkd.manifest import Manifest
from hkd.stream.join import Join
from hkd.stream.loader import BatchPlan, Shares, runs_of
from hkd.stream.text import Bank, TextMaker, TextShares, encode
from hkd.student.config import EncoderConfig, config_to_json
from hkd.train.config import TrainConfig
from hkd.train.objectives import StudentPlan, Term
from hkd.units.inventory import MONOPHONE, SENONE, SPELLED
from hkd.units.sequences import Units
from hkd.units.text import words

logger = logging.getLogger(__name__)
PREFIX = "text-"  # of the terms that are taught on text


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """Opened: what makes batches, the terms by name, and what the weights depend on."""

    maker: TextMaker
    terms: dict[str, Term]
    identity: dict[str, Any]

    def shares(self, config: TrainConfig, speech: Shares, max_steps: int) -> TextShares:
        """Speech as without text, and beside it so much text that it is `text.share` of the whole."""
        text = config.text
        plan = BatchPlan(
            self.maker.lengths(),
            batch_frames=config.batch_seconds * 100 * text.share / (1 - text.share),
            seed=config.loop.seed,
            runs=runs_of((s.reader for s in self.maker.join.stores.values()), [u.id for u in self.maker.utterances]),
        )
        last_step = max_steps - text.speech_last * speech.plan.batches_per_epoch
        return TextShares(speech=speech, text=Shares(maker=self.maker, plan=plan), last_step=last_step)


def text_readers(config: TrainConfig, stores: Mapping[str, LabelReader]) -> dict[str, LabelReader]:
    """The label store of the text for each of speech, by the same name; none without `text.labels`. Raises UserError
    where one is missing."""
    if not config.text.share or not config.text.labels:
        return {}
    known = store_folders(Path(config.text.labels))
    readers = {}
    for name, reader in stores.items():
        if name not in known:
            raise UserError(
                f"`text.labels` must have a label store '{name}', but {config.text.labels} has "
                f"{', '.join(known) or 'none'}. Run `hkd teacher-dump` on the text, or leave `text.labels` out."
            )
        readers[name] = LabelReader.open(known[name], cache_bytes=CACHE_BYTES // config.num_loaders)
        there, here = readers[name].spec.inventory.digest, reader.spec.inventory.digest
        if there != here:
            raise UserError(
                f"the text's label store '{name}' must have the units {here} of that of speech, but has {there} "
                f"instead."
            )
    return readers


def open_text(
    config: TrainConfig,
    plan: StudentPlan,
    join: Join,
    *,
    units: Path,
    readers: Mapping[str, LabelReader],
    heard: Mapping[str, Any],
) -> TrainingText:
    """Open the sentences and the bank, and check that they fit the run: UserError where they do not.

    readers: from `text_readers`; heard: `heard_by` of the run.
    """
    settings = config.text
    bank = Bank.load(Path(settings.bank))
    check_same(Path(settings.bank), bank, heard)
    low = low_part(plan)
    tap = low.student.encoder.num_layers
    terms = {PREFIX + plan.terms[0].name: plan.terms[0] if readers else plan.plain_main}
    for head, term in plan.taught:
        if head is not None and head.tap > tap and (term.store is None or term.store in readers):
            terms[PREFIX + term.name] = term
    above = {
        head.level
        for head, term in plan.taught
        if head is not None and PREFIX + term.name in terms and head.kind == "hard"
    }
    above |= {SENONE} if plan.student.main == SENONE else set()
    soft = {term.store: term.num_slots for term in terms.values() if term.store is not None}
    folder = Units(units)
    whole = _heard(manifests.read(Path(settings.path)), bank, folder, settings.path)
    said = Join(whole, subwords=join.subwords, alignment=join.alignment, units=units)
    said.stores = {name: replace(join.stores[name], reader=readers[name]) for name in soft}
    heads = {head.name: head.level for head in low.student.heads}
    if settings.posteriors == "clean" and any(head.kind == "aux" for head in low.student.heads):
        raise UserError(
            "`condition` must name levels where `text.posteriors` is clean, but names heads of label stores."
        )
    levels = {MONOPHONE, *above, *heads.values(), *(said.stores[name].level for name in soft)} - set(SPELLED)
    utterances = list(whole)
    spoken = [(u.id, said.words(u.id)) for u in utterances]
    sequences = {level: encode(folder, spoken, level) for level in sorted(levels)}
    said.check(
        utterances, sequences={level: [rows.row(n)[0] for n in range(len(spoken))] for level, rows in sequences.items()}
    )
    _require(said, config.min_coverage)
    maker = TextMaker(
        utterances=utterances, join=said, bank=bank, heads=heads, sequences=sequences,
        hard={level: slots for level, slots in plan.hard.items() if level in above}, soft=soft,
        posteriors=settings.posteriors,
        masked=settings.masked, masked_only=settings.masked_only, repeats=settings.repeats, seed=config.loop.seed,
    )  # fmt: skip
    identity = {
        "manifest": Manifest(utterances).digest,
        "units": {level: digest_of([rows.unit.astype("<i4").tobytes()]) for level, rows in sequences.items()},
        "stores": {name: digest_of_store(readers[name]) for name in soft},
        "bank": bank.facts["digest"],
    }
    return TrainingText(maker=maker, terms=terms, identity=identity)


def _heard(whole: Manifest, bank: Bank, units: Units, path: str) -> Manifest:
    """The sentences whose phones are all in the bank; the others are counted and named. Raises UserError where none is
    left."""

    @cache
    def lacking(word: str) -> str:
        phones = bank.lacking(units.encode([word], MONOPHONE)[0])
        return f"{' '.join(phones)} in {word}" if phones else ""

    lost = {u.id: why for u in whole if (why := next(filter(None, map(lacking, words(u.text))), ""))}
    if not lost:
        return whole
    named = ", ".join(f"'{name}' ({why})" for name, why in islice(lost.items(), 3))
    said = (
        f"{len(lost)} of {len(whole)} sentences of {path} have a phone that the speech lacks: "
        f"{named}{' ...' if len(lost) > 3 else ''}"
    )
    if len(lost) == len(whole):
        raise UserError(f"{said}. Add speech that has these phones, or other sentences.")
    logger.warning("%s. They are left out.", said)
    return whole.where(lambda u: u.id not in lost)


def _require(join: Join, min_coverage: float) -> None:
    for name, store in join.stores.items():
        missing = [u.id for u in join.manifest if not store.labels(u.id)]
        if len(missing) > (1 - min_coverage) * len(join.manifest):
            raise UserError(
                f"`min_coverage` must be reached by the text's label store '{name}', but {len(missing)} of "
                f"{len(join.manifest)} sentences have no "
                f"labels ({', '.join(missing[:3])}). Label them, or give --min-coverage."
            )


# The low part of a student: what hears.


def low_part(plan: StudentPlan) -> StudentPlan:
    """The layers up to the lowest one that is conditioned, with the main output and the heads that condition it on
    top."""
    chosen = [head for head in plan.student.heads if head.condition]
    encoder = plan.student.encoder
    if not chosen or not isinstance(encoder, EncoderConfig):
        raise UserError(
            "`condition` must name a head, whose posteriors text stands for, but is empty. Take --set "
            "condition='[\"senone\"]'."
        )
    tap = min(head.tap for head in chosen)
    heads = tuple(replace(head, condition=False) for head in chosen if head.tap == tap)
    names, levels = {head.name for head in heads}, {head.level for head in heads if head.kind == "hard"}
    taught = tuple((head, term) for head, term in plan.taught if head is not None and head.name in names)
    levels |= {SENONE} if plan.student.main == SENONE else set()
    return StudentPlan(
        student=replace(plan.student, encoder=replace(encoder, num_layers=tap), heads=heads),
        main=plan.plain_main,
        plain_main=plan.plain_main,
        taught=taught,
        hard={level: slots for level, slots in plan.hard.items() if level in levels},
    )


def heard_by(plan: StudentPlan, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a bank's posteriors depend on: the student's low part, and the speech. data: a run's identity of its
    data."""
    inputs = {name: value for name, value in data.items() if name not in ("dev", "spans", "stores")}
    return {"student": config_to_json(low_part(plan).student), "data": inputs}


def check_same(folder: Path, bank: Bank, asked: Mapping[str, Any]) -> None:
    """Raises UserError, naming what differs, where a bank was made from something else."""
    there = {name: bank.facts["made_from"].get(name) for name in asked}
    remedy = "Run `hkd bank` into another folder."
    artefact.check_same(f"the posterior bank in {folder} must be of this student and speech", there, asked, remedy)
