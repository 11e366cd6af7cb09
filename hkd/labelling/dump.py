"""Stage one: a teacher's distributions over all transcripts of a manifest, into a label store.

- The shard is the unit of work: batching and de-duplication stay inside it, so its bytes are the same on every worker.
- The teacher runs here; one thread compresses and writes, up to two shards behind. A GPU gets the next shard while the
  rows of the last one are still copied back.
- Run again, the dump does the shards that have no mark yet.
- A job names its parts by path, so any process can do any shard: this one, or the workers of a Ray cluster.
"""

import logging
import math
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from hkd import __version__
from hkd.align.alignment import Alignment, sequence_digest
from hkd.errors import HkdError, Progress, UserError, check_choice, check_setting, first_line, no_progress
from hkd.labelling.context import ContextRule, Transcripts, UnitSource, unit_source
from hkd.labels.card import calibration_error, figures, quality_sums
from hkd.labels.format import LEFT_OUT, StoreSpec, UtteranceLabels
from hkd.labels.store import LabelReader, LabelWriter
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.units.inventory import SPELLED, UnitInventory
from hkd.units.sequences import SubwordModel, Units
from hkd.units.text import normalisation, text_digest

logger = logging.getLogger(__name__)

PHASES = ("read", "score", "wait", "write", "total")


@dataclass(frozen=True, kw_only=True)
class WorkDone:
    """What labelling some shards came to; the parts of several workers add up."""

    shards_done: int = 0
    positions: int = 0
    scored_positions: int = 0  # fewer, where transcripts repeat
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))  # total: by the clock
    left_out: dict[str, str] = field(default_factory=dict)  # id → why

    def __add__(self, other: "WorkDone") -> "WorkDone":
        return WorkDone(
            shards_done=self.shards_done + other.shards_done,
            positions=self.positions + other.positions,
            scored_positions=self.scored_positions + other.scored_positions,
            seconds={phase: value + other.seconds.get(phase, 0.0) for phase, value in self.seconds.items()},
            left_out={**self.left_out, **other.left_out},
        )


@dataclass(frozen=True, kw_only=True)
class DumpReport(WorkDone):
    """What a dump did: the work of this run, the quality of the whole store (None while shards are missing)."""

    store: Path | str
    teacher: str
    level: str
    utterances: int
    without_units: int  # utterances of the manifest that the alignment lacks
    shards: int
    shards_missing: int  # of other ranks
    quality: dict[str, Any] | None
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
        if self.shards_missing or self.is_text:
            return ""
        return f"hkd train --labels {shlex.quote((str(self.store).rpartition('/')[0] or '.') + '/')}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "store": str(self.store), "positions_per_s": self.positions_per_s, "go_on": self.go_on}


UNIGRAM_UTTERANCES = 10_000
SAMPLE_UTTERANCES = 16
WAITING_SHARDS = 2  # to be written
# utterances that are looked at, and the share of sentences that text may have in common
LEARNT_SAMPLE, MAX_LEARNT = 20_000, 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpConfig:
    """What a label store holds and how it is laid out. Raises UserError for values out of range."""

    k: int = 16  # ids that are kept of each distribution
    temperatures: tuple[float, ...] = ()  # besides 1, for which the exact normaliser is stored too
    selection: str = "topk"  # topk | sample: k draws from the teacher, stored as units with counts
    codec: str = "grid"  # how log-probabilities are written; see the label store's format
    backend: str = "arrow"  # arrow | zarr
    utterances_per_shard: int = 512  # a shard is the unit of work that is resumed and shared
    split: str = ""  # one split of the manifest; empty: all
    name: str = ""  # of the store; empty: the level
    keep_going: bool = False  # leave utterances out that cannot be labelled, and list them

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("utterances_per_shard", self.utterances_per_shard)):
            check_setting(name, value, "be at least 1", value >= 1)
        if any(not t > 0 or t == 1.0 for t in self.temperatures):
            rule = "temperatures must be positive and other than 1, which is always there"
            raise UserError(f"{rule}, but are {self.temperatures}.")


class DumpInputs(TypedDict, total=False):
    """What `dump` and `DumpRun` take by name beside manifest, store and teacher."""

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
    Raises UserError where inputs do not fit together or another store is there, HkdError where work fails."""
    check_setting("rank", f"{rank} of {world_size}", "be at least 0 and below world_size", 0 <= rank < world_size)
    if overwrite and world_size > 1:
        why = "each process would remove what the others wrote. Remove the store first."
        raise UserError(f"--overwrite must be left out in a job array, where {why}")
    run = DumpRun(manifest, out, teacher, overwrite=overwrite, **inputs)
    return run.report(run.shards([shard for shard in run.pending() if shard % world_size == rank], progress))


class ShardLabeller:
    """Labels shards, several at once if several threads ask. `asked`: what `Teacher.score` takes beside sentences."""

    def __init__(
        self, *, teacher: Teacher, source: UnitSource, transcripts: Transcripts, asked: dict[str, Any], keep_going: bool
    ) -> None:
        self._teacher, self._transcripts, self._asked, self._keep_going = teacher, transcripts, asked, keep_going
        self._rule = ContextRule(transcripts, source, teacher)
        # which of its LMs has not seen an utterance
        self._by_text = teacher.info.trained_on_transcripts == "cross-fitted"
        self._reading = threading.Lock()

    def label(self, ids: Sequence[str]) -> tuple[list[UtteranceLabels], WorkDone]:
        """The labels of some utterances, and the work that it was; what repeats (in the same context) is scored once.
        Raises UserError or HkdError for an utterance that cannot be labelled, unless `keep_going` leaves it out."""
        left_out: dict[str, str] = {}
        begun = time.monotonic()
        with self._reading:
            spoken, sentences = self._read(ids, left_out)
        read = time.monotonic()
        keys = [(s.unit_U.tobytes(), s.before, s.after, s.text if self._by_text else b"") for s in sentences]
        unique: dict[Any, Sentence] = {}
        for key, sentence in zip(keys, sentences, strict=True):
            unique.setdefault(key, sentence)
        answers = dict(zip(unique, self._scored([*unique.values()]), strict=True))
        problems = [answer for answer in answers.values() if isinstance(answer, Exception)]
        if len(problems) == len(answers) > 1:  # then it is not the sentences'
            raise problems[0]
        rows = []
        for name, words, sentence, key in zip(ids, spoken, sentences, keys, strict=True):
            topk = answers[key]
            if isinstance(topk, Exception):
                self._leave_out(name, topk, left_out)
                sentence = _empty(name)
                [topk] = self._teacher.score([sentence], **self._asked)
            digest = LEFT_OUT if name in left_out else sequence_digest(sentence.unit_U)
            text, word_U = text_digest(words), sentence.word_U
            rows.append(UtteranceLabels(id=name, topk=topk, word_U=word_U, unit_digest=digest, text_digest=text))
        work = WorkDone(
            shards_done=1,
            positions=sum(len(row.topk) for row in rows),
            scored_positions=sum(len(topk) for topk in answers.values() if isinstance(topk, TopK)),
            seconds={"read": read - begun, "score": time.monotonic() - read},
            left_out=left_out,
        )
        return rows, work

    def sample(self, ids: Sequence[str]) -> list[Sentence]:
        """The sentences of some utterances, without those that cannot be labelled."""
        left_out: dict[str, str] = {}
        return [sentence for sentence in self._read(ids, left_out)[1] if sentence.id not in left_out]

    def _read(self, ids: Sequence[str], left_out: dict[str, str]) -> tuple[list[list[str]], list[Sentence]]:
        spoken, sentences = self._transcripts.words(ids), []
        for name, words in zip(ids, spoken, strict=True):
            try:
                sentences.append(self._rule.sentence(name, words))
            except Exception as error:  # whatever a tokenizer makes of an odd text
                self._leave_out(name, error, left_out)
                sentences.append(_empty(name))
        return spoken, sentences

    def _scored(self, sentences: Sequence[Sentence]) -> list[TopK | Exception]:
        """Each sentence's rows, or why there are none: what fails together is halved, so that few are scored again."""
        try:
            return [_numbers(rows) for rows in self._teacher.score(sentences, **self._asked)]
        except Exception as error:  # whatever a model makes of an odd text
            if len(sentences) == 1:
                return [error]
            half = len(sentences) // 2
            return [*self._scored(sentences[:half]), *self._scored(sentences[half:])]

    def _leave_out(self, name: str, problem: Exception, left_out: dict[str, str]) -> None:
        why = str(problem) if isinstance(problem, HkdError) else f"{type(problem).__name__}: {first_line(problem)}."
        if self._keep_going:
            left_out[name] = why
            return
        kind, remedy = UserError if isinstance(problem, UserError) else HkdError, "--set keep_going=true"
        raise kind(f"utterance '{name}' cannot be labelled: {why} Or leave such utterances out: {remedy}.") from problem


def _numbers(rows: TopK) -> TopK | Exception:
    """A sentence's rows, or the error of rows with NaN."""
    if not np.isnan(rows.logp_NK).any() and not np.isnan(rows.tail_N).any():
        return rows
    return HkdError("the teacher gives no numbers (NaN) for it. In bf16 numbers can overflow: --set precision=fp32.")


def _empty(name: str) -> Sentence:
    nothing = np.zeros(0, np.int32)
    return Sentence(id=name, unit_U=nothing, word_U=nothing)


def unigram_perplexity(units: Iterable[NDArray[np.int32]], size: int) -> float | None:
    """Perplexity of the add-one unigram LM of some sequences over `size` units, which any teacher must beat. Leaving
    one out, a position is predicted from all others: p = (c_u − 1 + 1) / (N − 1 + V). None below two positions."""
    count_V = sum((np.bincount(unit_U[unit_U >= 0], minlength=size) for unit_U in units), np.zeros(size))
    if (total := count_V.sum()) < 2:
        return None
    seen = count_V[count_V > 0]
    return math.exp(-float((seen * np.log(seen / (total - 1 + size))).sum()) / total)


class DumpRun:
    """The shards that one process does, and the figures of all."""

    def __init__(
        self,
        manifest: Path,
        out: Path | str,
        teacher: Teacher | Callable[[], Teacher],
        *,
        overwrite: bool = False,
        **inputs: Unpack[DumpInputs],
    ) -> None:
        """Read the manifest, load the teacher, begin the store or go on with it: all before the first shard."""
        config, alignment, units = inputs["config"], inputs.get("alignment"), inputs.get("units")
        self._transcripts = transcripts = Transcripts(manifest, split=config.split or None)
        self._teacher = teacher = teacher() if callable(teacher) else teacher
        if config.selection == "sample" and teacher.info.kind not in ("masked", "causal"):
            rule = f"selection must be topk for a teacher of kind {teacher.info.kind}"
            raise UserError(f"{rule}; only masked and causal LMs can be sampled.")
        self._is_text = units is not None
        if self._is_text and transcripts.has_sound:
            rule = "must be text without sound (`hkd prepare --text`), but has utterances with audio"
            raise UserError(f"{manifest} {rule}. Leave out --text.")
        source = unit_source(teacher, alignment=alignment, subwords=inputs.get("subwords"), units=units)
        ids = transcripts.ids
        spoken = alignment if units is None and teacher.level not in SPELLED else None
        labelled = [name for name in ids if spoken is None or name in spoken]
        if not labelled:
            rule = "the alignment must hold utterances of the manifest, but holds none of them"
            raise UserError(f"{rule}. Run `hkd align` again.")
        if lacking := len(ids) - len(labelled):
            logger.warning("%d of %d utterances have no alignment and get no labels.", lacking, len(ids))
        _refuse_learnt(teacher, transcripts, labelled, is_text=self._is_text)
        spec = store_spec(teacher, config, transcripts.digest, alignment, command=inputs.get("command", ""))
        self._writer = LabelWriter.open(out, spec, labelled, overwrite=overwrite)
        sampled = {"selection": "sample"} if config.selection == "sample" else {}
        asked: dict[str, Any] = {"k": spec.k, "temperatures": config.temperatures, **sampled}
        self._labeller = ShardLabeller(
            teacher=teacher, source=source, transcripts=transcripts, asked=asked, keep_going=config.keep_going
        )

    def pending(self) -> list[int]:
        """The shards that nobody has written yet."""
        return self._writer.pending()

    def report(self, work: WorkDone, *, workers: int = 1, workers_lost: int = 0) -> DumpReport:
        """The figures of all that this run did, `work`; a store that is complete is closed first."""
        missing, spec = len(self.pending()), self._writer.spec
        return DumpReport(
            **vars(work),
            store=self._writer.folder.path,
            teacher=self._teacher.info.name,
            level=self._teacher.level,
            utterances=spec.num_utterances,
            without_units=len(self._transcripts.ids) - spec.num_utterances,
            shards=spec.num_shards,
            shards_missing=missing,
            quality=None if missing else self._finish(),
            workers=workers,
            workers_lost=workers_lost,
            is_text=self._is_text,
        )

    def _finish(self) -> dict[str, Any]:
        """Close a complete store: index, card, and the quality; with a warning for a teacher worse than unigrams."""
        writer, teacher = self._writer, self._teacher
        stored, sums = writer.folder.report(), writer.quality_sums()
        if "unigram_perplexity" not in stored:
            writer.finish(report=stored)  # the index, so that the store can be read
            reader = LabelReader.open(writer.folder.path)
            ids = list(reader.ids)
            sample = ids[:: -(-len(ids) // UNIGRAM_UTTERANCES)]
            gold = (reader.block(sample[a : a + 512]).topk.gold_N for a in range(0, len(sample), 512))
            stored |= teacher.figures
            if (measured := getattr(teacher, "measured", None)) is not None:
                found = measured(self._labeller.sample(ids[:: -(-len(ids) // SAMPLE_UTTERANCES)]))
                stored |= {name: float(f"{value:.4g}") for name, value in found.items()}
            stored |= {
                "unigram_perplexity": unigram_perplexity(gold, len(writer.spec.inventory)),
                "calibration_error": calibration_error(sums),
            }
            writer.finish(report=stored)
        quality = {**figures(sums), **stored}
        mine, unigram = quality["perplexity"], quality["unigram_perplexity"]
        if mine is not None and unigram is not None and mine > unigram:
            said = "%s has perplexity %.1f on these transcripts, their unigram LM %.1f. Its labels teach nothing."
            logger.warning(f"TEACHER WORSE THAN UNIGRAMS: {said}", teacher.info.name, mine, unigram)
        return quality

    def shards(self, shards: Sequence[int], progress: Progress = no_progress) -> WorkDone:
        """Label the shards in order."""
        work = WorkDone()
        started = time.monotonic()
        # leaving it, whatever happened, waits until all that was handed over is written
        with ThreadPoolExecutor(1) as thread:
            writing: deque[Future[float]] = deque()

            def catch_up(most: int) -> None:
                """Wait until at most so many shards are still to be written. Raises the thread's error."""
                waited = time.monotonic()
                while writing and (len(writing) > most or writing[0].done()):
                    work.seconds["write"] += writing.popleft().result()
                work.seconds["wait"] += time.monotonic() - waited

            for shard, (rows, done) in self._labelled(shards):
                writing.append(thread.submit(self._write, shard, rows))
                catch_up(WAITING_SHARDS)
                work += done
                progress(work.shards_done, len(shards), positions_per_s=work.positions / (time.monotonic() - started))
            catch_up(0)
        work.seconds["total"] = time.monotonic() - started
        if said := getattr(self._teacher, "words_unknown", str)():
            logger.warning(said)
        return work

    def _write(self, shard: int, rows: list[UtteranceLabels]) -> float:
        """Compress and write a shard → the seconds that it took."""
        started = time.monotonic()
        sums = quality_sums(TopK.concatenate([row.topk for row in rows]))
        self._writer.write_shard(shard, rows, quality={key: float(np.float64(value)) for key, value in sums.items()})
        return time.monotonic() - started

    def _labelled(self, shards: Sequence[int]) -> Iterator[tuple[int, tuple[list[UtteranceLabels], WorkDone]]]:
        """The shards in order, one after the other, or as many at once as the teacher's device has use for."""
        at_once = int(getattr(self._teacher, "shards_at_once", 1))
        if at_once == 1:
            yield from ((shard, self._labeller.label(self._writer.shard_ids(shard))) for shard in shards)
            return
        with ThreadPoolExecutor(at_once) as pool:
            waiting: deque[tuple[int, Future[tuple[list[UtteranceLabels], WorkDone]]]] = deque()
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


def _refuse_learnt(teacher: Teacher, transcripts: Transcripts, ids: Sequence[str], *, is_text: bool) -> None:
    """Raises UserError where an LM is to label text that it has learnt from, and would repeat; warns for speech."""
    if (has_read := getattr(teacher, "has_read", None)) is None:
        return
    sample, name = ids[:: -(-len(ids) // LEARNT_SAMPLE) or 1], teacher.info.name
    share = has_read(transcripts.words(sample))
    if share > MAX_LEARNT and is_text:
        raise UserError(
            f"an LM must not label what it has learnt from, but {name} has learnt from {share:.0%} of these sentences. "
            "Train it on folds of them: `hkd lm train --manifest TEXT.jsonl --transcripts cross-fit`, without --text."
        )
    if share:
        said = "%s has learnt from %.1f %% of what it labels: there it repeats the words, and teaches little."
        logger.warning(said, name, 100 * share)


def store_spec(
    teacher: Teacher, config: DumpConfig, manifest_digest: str, alignment: Alignment | None, *, command: str
) -> StoreSpec:
    """What `store.json` says."""
    own = ("selection", "temperatures", "codec", "backend", "utterances_per_shard")
    context = int(teacher.info.options.get("context", 0) or 0)
    return StoreSpec(
        name=config.name or teacher.level,
        level=teacher.level,
        inventory=teacher.inventory,
        teacher=asdict(teacher.info),
        manifest_digest=manifest_digest,
        alignment_digest=alignment.digest if alignment is not None and teacher.level in alignment.inventories else None,
        k=min(config.k, getattr(teacher, "num_candidates", config.k)),
        normalisation=normalisation(),
        context=f"window of {context} tokens" if context else "utterance",
        hkd_version=__version__,
        command=command,
        **{name: getattr(config, name) for name in own},
    )


EXECUTORS = ("local", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpJob:
    """A dump in words: which teacher labels which manifest into which store. Relative paths start at `folder`."""

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
        units = UnitInventory.load(self.inventory) if self.inventory else None
        return load_teacher(
            self.lm, unit=self.unit, device=self.device, precision=self.precision, options=self.teacher, inventory=units
        )

    def parts(self) -> DumpInputs:
        """What `dump` and `DumpRun` take beside manifest, store and teacher."""
        return {
            "config": self.store,
            "alignment": Alignment(self.alignment) if self.alignment else None,
            "subwords": SubwordModel(self.subwords, level=self.unit) if self.subwords else None,
            "units": Units(self.units) if self.units else None,
            "command": self.command,
        }


def check_executor(executor: str, *, ray_address: str = "", workers: int = 0) -> None:
    """Raises UserError for an unknown executor, and for Ray's settings without Ray."""
    check_choice("executor", executor, EXECUTORS)
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
    """Do a dump: here, every `world_size`-th pending shard; or on a Ray cluster, all of them. `ray_address`, `workers`:
    see `hkd.labelling.ray.ray_dump`. Raises UserError and HkdError as `hkd.labelling.dump.dump`."""
    check_executor(executor, ray_address=ray_address, workers=workers)
    if executor == "ray":
        if world_size != 1 or rank:
            rule = "rank and world_size must be left out with the executor ray"
            raise UserError(f"{rule}, which hands out the shards itself.")
        from hkd.labelling.ray import ray_dump

        return ray_dump(job, address=ray_address, workers=workers, overwrite=overwrite, progress=progress)
    return dump(
        job.manifest, job.out, job.load_teacher, **job.parts(),
        overwrite=overwrite, rank=rank, world_size=world_size, progress=progress,
    )  # fmt: skip
