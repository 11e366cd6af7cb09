"""Stage one: a teacher's distributions over all transcripts of a manifest, into a label store.

- The shard is the unit of work: batching and de-duplication stay inside it, so that its bytes do not depend on who computes it.
- The teacher runs here; compressing and writing happen in one thread behind a queue of two shards. If that thread dies, the dump
  stops with its error. A GPU gets the next shard while the last one is still read back and put in order.
- Run again, the dump does the shards that have no mark yet. What is complete and matches is left.
- A job names its parts by path, so that any process on any machine with these paths can do any shard of it: this process (`local`), or
  the workers of a Ray cluster (`ray`). The bytes are the same.
"""

import logging
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Required, TypedDict, Unpack, runtime_checkable

from hkd import __version__
from hkd.align.alignment import Alignment
from hkd.errors import UserError
from hkd.labelling.context import Transcripts, UnitSource, unit_source
from hkd.labelling.shard import Labelled, ShardLabeller, WriterThread, summary, unigram_perplexity
from hkd.labels.card import calibration_error
from hkd.labels.format import StoreSpec
from hkd.labels.store import LabelReader
from hkd.labels.writer import LabelWriter
from hkd.progress import Progress, no_progress
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.unit_lm import text_read
from hkd.units.inventory import UnitInventory
from hkd.units.sequences import Units
from hkd.units.subword import SubwordModel
from hkd.units.text import normalisation


def no_seconds() -> dict[str, float]:
    """No time by phase."""
    return dict.fromkeys(("read", "score", "wait", "write", "total"), 0.0)


@dataclass(kw_only=True, slots=True)
class Work:
    """What labelling some shards came to; the parts of several workers add up."""

    shards: int = 0
    positions: int = 0
    scored_positions: int = 0  # fewer, where transcripts repeat
    seconds: dict[str, float] = field(default_factory=no_seconds)
    left_out: dict[str, str] = field(default_factory=dict)  # id → why

    def __add__(self, other: "Work") -> "Work":
        return Work(
            shards=self.shards + other.shards,
            positions=self.positions + other.positions,
            scored_positions=self.scored_positions + other.scored_positions,
            seconds={phase: value + other.seconds[phase] for phase, value in self.seconds.items()},
            left_out={**self.left_out, **other.left_out},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpReport:
    """What a dump did. Times are of this run; the quality is that of the whole store, None while shards are missing."""

    store: Path | str
    teacher: str
    level: str
    utterances: int
    without_units: int  # utterances of the manifest that the alignment lacks
    shards: int
    shards_done: int  # by this run
    shards_missing: int  # of other ranks
    positions: int  # by this run
    scored_positions: int  # fewer, where transcripts repeat
    seconds: dict[str, float]  # by phase, summed over the workers: read, score, wait, write; and total, by the clock
    quality: dict[str, Any] | None
    left_out: dict[str, str] = field(default_factory=dict)  # id → why
    workers: int = 1
    workers_lost: int = 0  # each with the shard that it was at, which another worker then did
    is_text: bool = False  # without sound

    @property
    def positions_per_s(self) -> float:
        """Positions a second of this run, all phases included."""
        return self.positions / self.seconds["total"] if self.seconds["total"] else 0.0

    @property
    def go_on(self) -> str:
        """The command that comes next; empty while shards are missing, and for text."""
        return (
            ""
            if self.shards_missing or self.is_text
            else f"hkd train --labels {shlex.quote(str(self.store).rpartition('/')[0] + '/')}"
        )

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        figures = {"positions_per_s": self.positions_per_s, "go_on": self.go_on}
        return {**asdict(self), "store": str(self.store), **figures}


log = logging.getLogger(__name__)

UNIGRAM_UTTERANCES = 10_000
SAMPLE_UTTERANCES = 16
LEARNT_SAMPLE, MAX_LEARNT = 20_000, 0.05  # utterances that are looked at, and the share of sentences that text may have in common


@runtime_checkable
class MeasuresMasking(Protocol):
    """A masked teacher, which can say what masking positions together costs."""

    def kl_to_exact(self, sentences: Sequence[Sentence]) -> float:
        """Mean KL to the exact rule, nats a position."""


@runtime_checkable
class MeasuresProjection(Protocol):
    """A projected teacher, which can say how much probability it could not place on the student's pieces."""

    def unplaced_mass(self, sentences: Sequence[Sentence]) -> float:
        """Mean over the positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpConfig:
    """What a label store holds and how it is laid out. Raises UserError for values out of range."""

    k: int = 16  # ids that are kept of each distribution
    temperatures: tuple[float, ...] = ()  # besides 1, for which the exact normaliser is stored too
    selection: str = "topk"  # topk | sample: k draws from the teacher (its units with counts); random-sampling distillation
    codec: str = "grid"  # how log-probabilities are written; see the label store's format
    backend: str = "arrow"  # arrow | zarr
    utterances_per_shard: int = 512  # a shard is the unit of work that is resumed and shared
    split: str = ""  # one split of the manifest; empty: all
    name: str = ""  # of the store; empty: the level
    keep_going: bool = False  # leave utterances out that cannot be labelled, and list them

    def __post_init__(self) -> None:
        for name in ("k", "utterances_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, but is {getattr(self, name)} instead.")
        if any(not t > 0 or t == 1.0 for t in self.temperatures):
            raise UserError(
                f"temperatures must be positive and other than 1, which is always there, but are {self.temperatures}."
            )


class DumpInputs(TypedDict, total=False):
    """What `dump` and `open_dump` take by name beside manifest, store and teacher."""

    config: Required[DumpConfig]
    alignment: Alignment | None  # for levels that are aligned
    subwords: SubwordModel | None  # the level's model, for LMs of a spelled level without pieces of their own
    units: Units | None  # of a manifest of text without sound: the project's units, in place of an alignment
    command: str  # for the store's card


def dump(
    manifest: Path,
    out: Path | str,
    teacher: Teacher | Callable[[], Teacher],
    *,
    overwrite: bool = False,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress = no_progress,
    **inputs: Unpack[DumpInputs],
) -> DumpReport:
    """Label a manifest's transcripts into the store at `out`; this process does every `world_size`-th pending shard.

    Raises UserError where inputs do not fit together or the store there is another one, HkdError where the work cannot be done.
    """
    if not 0 <= rank < world_size:
        raise UserError(f"rank must be at least 0 and below world_size, but is {rank} of {world_size} instead.")
    if overwrite and world_size > 1:
        raise UserError(
            "--overwrite must be left out in a job array, where each process would remove what the others wrote. Remove the store first."
        )
    run = open_dump(manifest, out, teacher, overwrite=overwrite, **inputs)
    return run.report(run.shards([shard for shard in run.pending() if shard % world_size == rank], progress))


def open_dump(
    manifest: Path,
    out: Path | str,
    teacher: Teacher | Callable[[], Teacher],
    *,
    overwrite: bool = False,
    **inputs: Unpack[DumpInputs],
) -> "DumpRun":
    """Read the manifest, load the teacher, begin the store or go on with it: what `dump` does before the first shard."""
    config, alignment = inputs["config"], inputs.get("alignment")
    transcripts = Transcripts(manifest, split=config.split or None)
    teacher = teacher() if callable(teacher) else teacher
    if config.selection == "sample" and teacher.info.kind not in ("masked", "causal"):
        raise UserError(
            f"selection must be topk for a teacher of kind {teacher.info.kind}; only masked and causal LMs can be sampled."
        )
    units = inputs.get("units")
    if units is not None and transcripts.has_sound:
        raise UserError(
            f"{manifest} must be text without sound (`hkd prepare --text`), but has utterances with audio. Leave out --text."
        )
    source = unit_source(teacher, alignment=alignment, subwords=inputs.get("subwords"), units=units)
    ids = transcripts.ids
    labelled = source.labelled(ids)
    if not labelled:
        raise UserError("the alignment must hold utterances of the manifest, but holds none of them. Run `hkd align` again.")
    if len(labelled) < len(ids):
        log.warning("%d of %d utterances have no alignment and get no labels.", len(ids) - len(labelled), len(ids))
    _refuse_learnt(teacher, transcripts, labelled, is_text=units is not None)
    command = inputs.get("command", "")
    spec = store_spec(teacher, config, transcripts.digest, alignment, name=config.name or teacher.level, command=command)
    writer = LabelWriter.open(out, spec, labelled, overwrite=overwrite)
    return DumpRun(
        teacher=teacher, source=source, transcripts=transcripts, config=config, writer=writer, is_text=units is not None
    )  # fmt: skip


def _refuse_learnt(teacher: Teacher, transcripts: Transcripts, ids: Sequence[str], *, is_text: bool) -> None:
    """An LM that has learnt from what it labels repeats it. Raises UserError where that is text without sound; of speech it is said."""
    if (read := text_read(teacher)) is None:
        return
    sample = ids[:: -(-len(ids) // LEARNT_SAMPLE) or 1]
    share = read.share(transcripts.words([transcripts.row(name) for name in sample]))
    if share > MAX_LEARNT and is_text:
        raise UserError(
            f"an LM must not label what it has learnt from, but {teacher.info.name} has learnt from {share:.0%} of these sentences. "
            "Train it on folds of them: `hkd lm train --manifest TEXT.jsonl --transcripts cross-fit`, without --text."
        )
    if share:
        log.warning(
            "%s has learnt from %.1f %% of what it labels: there it repeats the words, and teaches little.",
            teacher.info.name,
            100 * share,
        )


def store_spec(
    teacher: Teacher, config: DumpConfig, manifest_digest: str, alignment: Alignment | None, *, name: str, command: str
) -> StoreSpec:
    """What `store.json` says."""
    aligned = alignment is not None and teacher.level in alignment.inventories
    context = int(teacher.info.options.get("context", 0) or 0)
    return StoreSpec(
        name=name,
        level=teacher.level,
        inventory=teacher.inventory,
        teacher=asdict(teacher.info),
        manifest_digest=manifest_digest,
        alignment_digest=alignment.digest if aligned and alignment is not None else None,
        k=min(config.k, getattr(teacher, "num_candidates", config.k)),
        selection=config.selection,
        temperatures=config.temperatures,
        codec=config.codec,
        backend=config.backend,
        normalisation=normalisation(),
        context=f"window of {context} tokens" if context else "utterance",
        utterances_per_shard=config.utterances_per_shard,
        hkd_version=__version__,
        command=command,
    )


def finish(writer: LabelWriter, figures_of_lm: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Close a complete store: index, card, and the quality, with a loud warning for a teacher that is worse than unigrams."""
    stored = writer.report()
    if "unigram_perplexity" not in stored:
        writer.finish(report=stored)  # the index, so that the store can be read
        reader = LabelReader.open(writer.path)
        sample = list(reader.ids)[:: -(-len(reader) // UNIGRAM_UTTERANCES)]
        gold = (reader.block(sample[a : a + 512]).topk.gold_N for a in range(0, len(sample), 512))
        unigram = unigram_perplexity(gold, len(writer.spec.inventory))
        stored |= {
            **figures_of_lm(),
            "unigram_perplexity": unigram,
            "calibration_error": calibration_error(writer.quality_sums()),
        }
        writer.finish(report=stored)
    figures = {**summary(writer.quality_sums(), unigram=None), **stored}
    mine, unigram = figures["perplexity"], figures["unigram_perplexity"]
    if mine is not None and unigram is not None and mine > unigram:
        log.warning(
            "TEACHER WORSE THAN UNIGRAMS: %s has perplexity %.1f on these transcripts, their unigram LM %.1f. Its labels teach nothing.",
            writer.spec.teacher["name"], mine, unigram,
        )  # fmt: skip
    return figures


class DumpRun:
    """The shards that one process does, and the figures of all."""

    def __init__(
        self,
        *,
        teacher: Teacher,
        source: UnitSource,
        transcripts: Transcripts,
        config: DumpConfig,
        writer: LabelWriter,
        is_text: bool = False,
    ) -> None:
        """is_text: the manifest was asked for as text without sound."""
        self._is_text = is_text
        self._teacher, self._source, self._transcripts, self._config, self._writer = teacher, source, transcripts, config, writer
        asked: dict[str, Any] = {"k": writer.spec.k, "temperatures": config.temperatures}
        if config.selection == "sample":
            asked["selection"] = "sample"
        self._labeller = ShardLabeller(
            teacher=teacher, source=source, transcripts=transcripts, asked=asked, keep_going=config.keep_going
        )

    def pending(self) -> list[int]:
        """The shards that nobody has written yet."""
        return self._writer.pending()

    def report(self, work: Work, *, workers: int = 1, workers_lost: int = 0) -> DumpReport:
        """The figures of all that this run did, `work`; a store that is complete is closed first."""
        missing = len(self.pending())
        spec = self._writer.spec
        return DumpReport(
            store=self._writer.path,
            teacher=self._teacher.info.name,
            level=self._teacher.level,
            utterances=spec.num_utterances,
            without_units=len(self._transcripts.ids) - spec.num_utterances,
            shards=spec.plan.num_shards,
            shards_done=work.shards,
            shards_missing=missing,
            positions=work.positions,
            scored_positions=work.scored_positions,
            seconds=work.seconds,
            quality=None if missing else finish(self._writer, self.figures),
            left_out=work.left_out,
            workers=workers,
            workers_lost=workers_lost,
            is_text=self._is_text,
        )

    def shards(self, shards: Sequence[int], progress: Progress = no_progress) -> Work:
        """Label the shards in order."""
        work = Work()
        started = time.monotonic()
        with WriterThread(self._writer) as thread:
            for shard, done in self._labelled(shards):
                waited = time.monotonic()
                thread.put(shard, done.rows)
                work.seconds["wait"] += time.monotonic() - waited
                work.shards += 1
                work.positions += sum(len(row.topk) for row in done.rows)
                work.scored_positions += done.scored_positions
                work.left_out |= done.left_out
                for phase, seconds in done.seconds.items():
                    work.seconds[phase] += seconds
                rate = work.positions / (time.monotonic() - started)
                progress(work.shards, len(shards), positions_per_s=rate)
            waited = time.monotonic()
            thread.close()
            work.seconds["wait"] += time.monotonic() - waited
        work.seconds["write"] = thread.seconds
        work.seconds["total"] = time.monotonic() - started
        if said := getattr(self._teacher, "words_unknown", str)():
            log.warning(said)
        return work

    def _labelled(self, shards: Sequence[int]) -> Iterator[tuple[int, Labelled]]:
        """The shards in order, one after the other, or as many at once as the teacher's device has use for."""
        at_once = int(getattr(self._teacher, "shards_at_once", 1))
        if at_once == 1:
            yield from ((shard, self._labeller.label(self._writer.shard_ids(shard))) for shard in shards)
            return
        with ThreadPoolExecutor(at_once) as pool:
            waiting: deque[tuple[int, Future[Labelled]]] = deque()
            try:
                for shard in shards:
                    waiting.append((shard, pool.submit(self._labeller.label, self._writer.shard_ids(shard))))
                    if len(waiting) > at_once:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def figures(self) -> dict[str, Any]:
        """The teacher's own figures, and on a sample: the mean KL of the exact rule to masking together, the mass that is unplaced."""
        figures = dict(self._teacher.figures)
        if isinstance(self._teacher, MeasuresMasking) and self._teacher.info.options.get("mask_every"):
            figures["mask_every_kl_nats"] = float(f"{self._teacher.kl_to_exact(self._sample()):.4g}")
        if isinstance(self._teacher, MeasuresProjection):
            figures["unplaced_mass"] = float(f"{self._teacher.unplaced_mass(self._sample()):.4g}")
        return figures

    def _sample(self) -> list[Sentence]:
        """A few utterances from all over the store."""
        ids = [name for shard in range(self._writer.spec.plan.num_shards) for name in self._writer.shard_ids(shard)]
        sample = ids[:: -(-len(ids) // SAMPLE_UTTERANCES)]
        return self._labeller.sample(sample)


EXECUTORS = ("local", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpJob:
    """A dump in words: which teacher labels which manifest into which store. Relative paths start at `folder`, the working one."""

    manifest: Path
    out: Path | str  # a folder or a URL
    lm: str
    unit: str
    device: str = "auto"
    precision: str = "auto"
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    store: DumpConfig = field(default_factory=DumpConfig)
    inventory: Path | None = None  # the level's units, for n-gram files
    alignment: Path | None = None  # for aligned levels
    subwords: Path | None = None  # the level's model, for LMs of a spelled level without pieces of their own
    units: Path | None = None  # the project's units, for a manifest of text without sound
    command: str = ""  # for the store's card
    folder: Path = field(default_factory=Path.cwd)

    def load_teacher(self) -> Teacher:
        """The teacher, on the device of this machine."""
        units = UnitInventory.load(self.inventory) if self.inventory else None
        return load_teacher(
            self.lm, unit=self.unit, device=self.device, precision=self.precision, options=self.teacher, inventory=units
        )

    def parts(self) -> DumpInputs:
        """What `dump` and `open_dump` take beside manifest, store and teacher."""
        return {
            "config": self.store,
            "alignment": Alignment(self.alignment) if self.alignment else None,
            "subwords": SubwordModel(self.subwords, level=self.unit) if self.subwords else None,
            "units": Units(self.units) if self.units else None,
            "command": self.command,
        }


def check_executor(executor: str, *, ray_address: str = "", workers: int = 0) -> None:
    """Raises UserError for an unknown executor, and for Ray's settings without Ray."""
    if executor not in EXECUTORS:
        raise UserError(f"executor must be one of {', '.join(EXECUTORS)}, but is '{executor}' instead.")
    if executor == "local" and (ray_address or workers):
        raise UserError("ray_address and workers must be left out with the executor local. Add --executor ray.")


def execute(
    job: DumpJob,
    *,
    executor: str = "local",
    ray_address: str = "",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> DumpReport:
    """Do a dump: here, every `world_size`-th pending shard; or on a Ray cluster, all of them.

    `ray_address`, `workers`: see `hkd.labelling.ray.ray_dump`. Raises UserError and HkdError as `hkd.labelling.dump.dump`.
    """
    check_executor(executor, ray_address=ray_address, workers=workers)
    if executor == "ray":
        if world_size != 1 or rank:
            raise UserError("rank and world_size must be left out with the executor ray, which hands out the shards itself.")
        from hkd.labelling.ray import ray_dump

        return ray_dump(job, address=ray_address, workers=workers, overwrite=overwrite, progress=progress)
    return dump(
        job.manifest, job.out, job.load_teacher, **job.parts(),
        overwrite=overwrite, rank=rank, world_size=world_size, progress=progress,
    )  # fmt: skip
