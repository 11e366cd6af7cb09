"""train: stage two. Manifest, alignment, units and label stores → a run's folder with the exported student.

runs/NAME/   config.toml  coverage.json  cmvn.json  student.json  identity.json  metrics.jsonl  timing.jsonl
             checkpoints/  final.safetensors (heads too)  done.json  model/ (exported)
"""

import hashlib
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hkd.align.alignment import Alignment
from hkd.audio import newer_sound
from hkd.decode.ctc import greedy_ctc
from hkd.errors import Progress, UserError, no_progress, some
from hkd.features.cache import FeatureCache, FeatureSource, Wanted, mean_and_std
from hkd.features.fbank import NO_AUGMENTATION
from hkd.files import digest_of_json, to_toml, write_bytes, write_json
from hkd.loop import LoopConfig, fit, is_main_process
from hkd.loop.checkpoint import IDENTITY, begun_with, check_figure, claim, finished, load_final, steps_done
from hkd.loop.run import identity_of
from hkd.manifest import Utterance
from hkd.stream.join import require
from hkd.stream.loader import Batch, BatchMaker, BatchPlan, Shares, batches, runs_of
from hkd.stream.text import SpeechAndText, TextBatch
from hkd.student.config import PRESETS, config_from_json, config_to_json
from hkd.student.encoder import SpeechEncoder, load_pretrained, save_pretrained, subsampled
from hkd.student.export import CARD, ONNX, SENONE_FRAMES, load_student, placed, save_student, write_onnx
from hkd.student.model import StudentModel
from hkd.train.config import TrainConfig
from hkd.train.data import COVERAGE, PREFIX, TrainingData, TrainingText, coverage_of, open_data
from hkd.train.objectives import Term, describe_heads, objective_of
from hkd.units.inventory import SENONE
from hkd.units.tying import acoustic_files

logger = logging.getLogger(__name__)

ENCODER = "encoder"
CMVN_SECONDS = 10_800.0  # of sound that mean and deviation are taken of
CMVN = "cmvn.json"
CTC_HOURS = 10  # two hours do not do (docs/results.md); 100 do in the field


@dataclass
class StudentTask:
    """What `hkd.loop.fit` asks for."""

    config: TrainConfig
    student: StudentModel
    terms: Sequence[Term]
    base_weights: Mapping[str, float]  # α, λ or 1
    maker: BatchMaker
    plan: BatchPlan
    dev: BatchMaker | None
    max_steps: int
    text: TrainingText | None = None

    @property
    def model(self) -> torch.nn.Module:
        return self.student

    def batches(self, start_step: int, rank: int, world_size: int) -> Iterator[Batch | SpeechAndText | None]:
        speech = Shares(maker=self.maker, plan=self.plan)
        shares = speech if self.text is None else self.text.shares(self.config, speech, self.max_steps)
        more: dict[str, Any] = {"workers": self.config.workers, "pin": torch.cuda.is_available()}
        return batches(shares, start_step=start_step, rank=rank, world_size=world_size, **more)

    def _parts(self, batch: Batch | SpeechAndText) -> Iterator[tuple[Batch, Mapping[str, Term]]]:
        """The speech of the batch and its text, where it has them, each with its terms by name."""
        speech, text = (batch.speech, batch.text) if isinstance(batch, SpeechAndText) else (batch, None)
        if speech is not None:
            yield speech, {term.name: term for term in self.terms}
        if text is not None and self.text is not None:
            yield text, self.text.terms

    def counts(self, batch: Batch | SpeechAndText) -> dict[str, float]:
        return {name: term.count(part) for part, terms in self._parts(batch) for name, term in terms.items()}

    def losses(self, batch: Batch | SpeechAndText, step: int) -> dict[str, Tensor]:
        """Sums. Dropout is seeded by (seed, step, utterance), so that no cut of the batch into shares changes it."""
        found: dict[str, Tensor] = {}
        for part, terms in self._parts(batch):
            slots = _slots(terms.values(), part)
            seed_B = [dropout_seed(self.config.loop.seed, step, name) for name in part.ids]
            if isinstance(part, TextBatch):
                output = self.student.read(part.posteriors, subsampled(part.length_B), slots=slots, seed_B=seed_B)
            else:
                output = self.student(part.x_BTF, part.length_B, slots=slots, seed_B=seed_B, alone_B=part.alone_B)
            found |= {name: term.loss(part, output) for name, term in terms.items()}
        return found

    def weights(self, step: int) -> dict[str, float]:
        """1 for the main term; α and λ rise over heads_warmup_steps, then λ moves to lam_end of itself at the end."""
        config = self.config
        rise = min(1.0, (step + 1) / config.heads_warmup_steps) if config.heads_warmup_steps else 1.0
        span = max(1, self.max_steps - config.heads_warmup_steps)
        move = 1 + (config.lam_end - 1) * max(0.0, (step - config.heads_warmup_steps) / span)
        factor = {"hard": rise, "kd": rise * move}
        kinds = {name: name.removeprefix(PREFIX).partition("-")[0] for name in self.base_weights}
        return {name: weight * factor.get(kinds[name], 1.0) for name, weight in self.base_weights.items()}

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of what `evaluate` can give."""
        names = (*(term.name for term in self.terms), *(["wer"] if self.config.main == "ctc" else []))
        return tuple(f"dev_{name}" for name in names) if self.dev else ()

    def evaluate(self, rank: int, world_size: int) -> dict[str, tuple[float, float]]:
        """Losses and, for a CTC output, the word error rate (greedy, in %) on this share of the dev split's batches."""
        if self.dev is None:
            return {}
        totals = {name: np.zeros(2) for name in self.figures}
        for batch in in_order(self.dev, self.config.batch_seconds, rank, world_size):
            moved = batch.to(self.student.mean_F.device)
            output = self.student(moved.x_BTF, moved.length_B, slots=_slots(self.terms, moved))
            for term in self.terms:
                if count := term.count(moved):
                    totals[f"dev_{term.name}"] += float(term.loss(moved, output)), count
            if self.config.main == "ctc":
                join = self.dev.join
                said = [" ".join(join.words(name)) for name in batch.ids]
                understood = [join.subwords.decode(ids) for ids in greedy_ctc(output.logits_BTV, output.length_B)]
                totals["dev_wer"] += word_errors(said, understood)
        return {name: (float(value), float(count)) for name, (value, count) in totals.items()}


def _slots(terms: Iterable[Term], batch: Batch) -> dict[str, Tensor]:
    return {head: slot_M for term in terms for head, slot_M in term.slots(batch).items()}


def dropout_seed(seed: int, step: int, utterance_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {utterance_id}".encode()).digest()[:7], "little")


def word_errors(said: Sequence[str], understood: Sequence[str]) -> tuple[float, float]:
    """(100 · errors, words) of utterances, those without words left out."""
    import jiwer

    pairs = [(a, b) for a, b in zip(said, understood, strict=True) if a]
    if not pairs:
        return 0.0, 0.0
    found = jiwer.process_words([a for a, _ in pairs], [b for _, b in pairs])
    errors = found.substitutions + found.deletions + found.insertions
    return 100.0 * errors, found.hits + found.substitutions + found.deletions


def in_order(maker: BatchMaker, batch_seconds: float, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """All utterances once, in order, in batches of about batch_seconds: every world_size-th batch, from `rank` on."""
    groups: list[list[int]] = []
    seconds = batch_seconds
    for row, utterance in enumerate(maker.utterances):
        if seconds >= batch_seconds:
            groups.append([])
            seconds = 0.0
        groups[-1].append(row)
        seconds += utterance.duration or 5.0
    for rows in groups[rank::world_size]:
        batch = maker(rows)
        assert batch is not None
        yield batch


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What `train` did. `metrics`: the last losses and the dev figures."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    parameters: int  # exported
    coverage: dict[str, Any]
    was_done: bool

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def train(
    config: TrainConfig,
    folder: Path,
    *,
    manifest: Path,
    units: Path,
    alignment: Path | None = None,
    labels: Path | str | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress = no_progress,
) -> TrainReport:
    """Train, go on with an interrupted run, or return at once where it is done; leaves the exported student in
    folder/model. alignment, labels: where the objective needs them. Raises UserError for inputs that do not fit
    together or another run's folder, Terminated on SIGTERM (state saved), HkdError where the loss is not finite."""
    data = open_data(config, manifest=manifest, alignment=alignment, units=units, labels=labels, run=folder)
    config = data.config
    runs = runs_of((store.reader for store in data.join.stores.values()), [u.id for u in data.train])
    frames = [data.frames[u.id] for u in data.train]
    plan = BatchPlan(frames, batch_frames=config.batch_seconds * 100, seed=config.loop.seed, runs=runs)
    max_steps = config.max_steps(plan.batches_per_epoch)
    has_terms = len(data.plan.terms) > 1 or data.text is not None
    loop = replace(config.loop, max_steps=max_steps, shares_every=config.shares_every if has_terms else 0)
    whole = identity_of(loop, data.identity)
    done = finished(folder, whole)
    _note_newer_sound(data, folder / IDENTITY)
    was_done = done is not None and (folder / "model" / "student.json").exists()
    if done is None or not was_done:
        done = _train(data, plan, loop, folder, whole, device=device, tensorboard=tensorboard, progress=progress)
    return TrainReport(
        folder=folder, steps=steps_done(folder), metrics=done, was_done=was_done, coverage=_read(folder / COVERAGE),
        parameters=_read(folder / "student.json")["parameters"],
    )  # fmt: skip


def _note_newer_sound(data: TrainingData, begun: Path) -> None:
    """Say that sound was changed since the run began, or since it was aligned: by its content alone it is not known."""
    made = begun if begun.exists() else None if data.join.alignment is None else data.join.alignment.path
    if made is not None and is_main_process() and (newer := newer_sound((*data.train, *data.dev), made)):
        logger.warning(
            "%d sound files are newer than %s (%s). Where they were copied, all is well. Where they hold other "
            "speech now, run `hkd align` again and train with --overwrite.", len(newer), made, some(newer),
        )  # fmt: skip


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _train(
    data: TrainingData,
    plan: BatchPlan,
    loop: LoopConfig,
    folder: Path,
    whole: Mapping[str, Any],
    *,
    progress: Progress,
    **more: Any,
) -> dict[str, float]:
    """Train and export; the last losses and the dev figures. more: of `fit`."""
    if begun_with(folder):
        claim(folder, whole)
    if data.needed is None:
        coverage = _read(folder / COVERAGE)
    else:
        found = coverage_of(data)
        require(found, data.config.min_coverage)
        for line in (*found.text().splitlines(), *data.plan.legend(_weights(data))):
            logger.info("%s", line)
        coverage = found.to_json()
    hours = sum(data.frames[utterance.id] for utterance in data.train) / 360_000
    for line in [*contradictions(data.config, loop.max_steps), *too_little(data.config, hours)]:
        logger.warning("%s", line)
    if not data.dev:
        logger.warning("no sound is in the split '%s': nothing is evaluated during training.", data.config.dev_split)
    if data.left_out:
        long = "longer than max_utterance_seconds, or than the encoder can read, and left out"
        logger.warning("%d utterances are %s (%s)", len(data.left_out), long, some(data.left_out))
    task = make_task(data, plan, max_steps=loop.max_steps, run=folder, progress=progress)
    if loop.best_by:
        check_figure(loop.best_by, task.figures)
    if is_main_process():
        claim(folder, whole)
        _write_settings(folder, data, task.student, coverage)
    metrics = fit(task, loop, folder, identity=data.identity, progress=progress, **more)
    if is_main_process():
        export(folder, data, task.student, digest_of_json(whole))
    return metrics


def contradictions(config: TrainConfig, max_steps: int) -> list[str]:
    """Settings of which one wins over the other, a sentence each."""
    preset, warmup = config.encoder.preset, config.heads_warmup_steps
    over = [
        f"`encoder.{name}` is {value} and wins over `encoder.preset` {preset}, which has {PRESETS[preset][name]}"
        for name, value in config.encoder.beside_preset.items()
    ]
    if config.epochs and config.loop.max_steps:
        over.append(f"`epochs` is {config.epochs} and wins over `loop.max_steps`, {config.loop.max_steps}")
    lines = [f"{line}. Take one of them out." for line in over]
    if warmup > max_steps:
        why = f"there are {max_steps} steps: alpha and lam never reach their values"
        lines.append(f"`heads_warmup_steps` is {warmup}, but {why}.")
    return lines


def too_little(config: TrainConfig, hours: float) -> list[str]:
    """A sentence where a CTC student from scratch cannot be expected to learn from so many hours of speech."""
    if config.main != "ctc" or config.encoder.name or config.encoder.upstream or hours >= CTC_HOURS:
        return []
    said = f"{hours:.2g} hours of speech are too little for a CTC student from scratch, which may write nothing"
    remedy = "--set main=senone, or a frozen encoder, --set encoder.upstream=openai/whisper-base"
    return [f"{said}. Less than {CTC_HOURS} hours: take {remedy}."]


def make_task(
    data: TrainingData, plan: BatchPlan, *, max_steps: int, run: Path | None = None, progress: Progress = no_progress
) -> StudentTask:
    """The student with its features' mean and deviation, and what feeds it. Weights are a function of the seed alone.
    run: the folder that mean and deviation are kept in, and taken from where the run goes on."""
    config, front_end = data.config, data.plan.student.encoder.front_end
    features = _features(data, progress)
    augment, mean_F = config.augment, torch.zeros(front_end.num_bins)
    if front_end.kind in ("wave", "upstream"):
        augment = replace(augment, freq_masks=0)  # a row's values are no bins
    if front_end.kind != "wave":
        mean_F, std_F = _mean_and_std(data, features, None if run is None else run / CMVN)
    torch.manual_seed(config.loop.seed)
    student = StudentModel(data.plan.student)
    if isinstance(student.encoder, SpeechEncoder):
        load_pretrained(student.encoder)
    else:
        student.set_cmvn(mean_F, std_F)
    shared: dict[str, Any] = {"join": data.join, "features": features, "hard": data.plan.hard, "soft": data.plan.soft}
    maker = BatchMaker(
        utterances=data.train, augment=augment, fill_F=mean_F.numpy(), stride=config.stride,
        alone=config.condition_alone, seed=config.loop.seed, **shared,
    )  # fmt: skip
    dev = BatchMaker(utterances=data.dev, augment=NO_AUGMENTATION, **shared) if data.dev else None
    weights = _weights(data)
    for name in data.text.terms if data.text is not None else ():
        weights[name] = config.text.weight * _weight(config, data, name.removeprefix(PREFIX))
    return StudentTask(
        config=config, student=student, terms=data.plan.terms, base_weights=weights, maker=maker, plan=plan, dev=dev,
        max_steps=max_steps, text=data.text,
    )  # fmt: skip


def _mean_and_std(data: TrainingData, features: FeatureSource, kept: Path | None) -> tuple[Tensor, Tensor]:
    """(mean_F, std_F) of a sample of the training features, in which every speaker has a part. Kept with the run."""
    if kept is not None and data.needed is None and kept.exists():
        return tuple(torch.tensor(values) for values in json.loads(kept.read_text()))  # type: ignore[return-value]
    return mean_and_std([features(utterance) for utterance in sample_of_speakers(data.train, data.frames)])


def sample_of_speakers(utterances: Sequence[Utterance], frames: Mapping[str, int]) -> list[Utterance]:
    """All utterances where they last CMVN_SECONDS at most; else so many, an utterance of each speaker in turn."""
    left = CMVN_SECONDS * 100
    if sum(frames[u.id] for u in utterances) <= left:
        return list(utterances)
    by_speaker: dict[str | None, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    sample = []
    for utterance in filter(None, chain.from_iterable(zip_longest(*by_speaker.values()))):
        if left <= 0:
            break
        sample.append(utterance)
        left -= frames[utterance.id]
    return sample


def _features(data: TrainingData, progress: Progress) -> FeatureSource:
    """From memory, and from disk where that is asked for; the disk is filled first, by all processes of the run."""
    config, front_end = data.config, data.plan.student.encoder.front_end
    max_bytes = (config.features_mb << 20) // config.num_loaders
    if not config.features_cache:
        return FeatureSource(front_end=front_end, max_bytes=max_bytes)
    speeds = tuple(dict.fromkeys(config.augment.speeds or (1.0,)))
    wanted: list[Wanted] = [[(u, speeds) for u in data.train], [(u, (1.0,)) for u in data.dev]]
    cache = FeatureCache(Path(config.features_cache), front_end=front_end, wanted=wanted)
    cache.fill(FeatureSource(front_end=front_end, max_bytes=0).compute, workers=config.workers, progress=progress)
    return FeatureSource(front_end=front_end, max_bytes=max_bytes, cache=cache)


def _weights(data: TrainingData) -> dict[str, float]:
    return {term.name: _weight(data.config, data, term.name) for term in data.plan.terms}


def _weight(config: TrainConfig, data: TrainingData, term: str) -> float:
    if term.startswith("hard-"):
        return config.alphas.get(term.removeprefix("hard-"), config.alpha)
    if term.startswith("kd-"):
        name = term.removeprefix("kd-")
        return config.lams.get(name, config.lams.get(data.join.stores[name].level, config.lam))
    return 1.0


def _write_settings(folder: Path, data: TrainingData, student: StudentModel, coverage: dict[str, Any]) -> None:
    write_bytes(folder / "config.toml", to_toml(asdict(data.config)).encode())
    if not isinstance(student.encoder, SpeechEncoder):
        write_json(folder / CMVN, [student.mean_F.tolist(), student.std_F.tolist()])
    write_json(folder / COVERAGE, coverage)
    config = data.plan.student
    parameters = student.num_exported() + config.encoder.front_end.num_parameters
    described = {"config": config_to_json(config), "heads": describe_heads(data.join, config), "parameters": parameters}
    write_json(folder / "student.json", described)


def export(folder: Path, data: TrainingData, student: StudentModel, digest: str) -> None:
    """Write folder/model: the student without heads, its subword model, and where it is from."""
    config, subwords = data.config, data.join.subwords
    extra: dict[str, Any] = {"objective": config.objective, "objective_help": objective_of(config).help}
    extra |= {"seed": config.loop.seed, "run": folder.name, "identity": digest}
    beside: dict[str, Any] = {"inventory": subwords.inventory}
    if config.main == "ctc":
        beside["subword_model"] = subwords.path.read_bytes()
    elif data.join.alignment is not None:
        beside = {"inventory": data.join.alignment.inventories[SENONE]}
        beside["acoustic"] = acoustic_files(subwords.path.parent)
        extra[SENONE_FRAMES] = _frames_of_senones(data.join.alignment, data.train)
    save_student(folder / "model", student.cpu(), extra=extra, **beside)


def _frames_of_senones(alignment: Alignment, utterances: Sequence[Utterance]) -> list[int]:
    """10 ms frames of each senone over the utterances that are aligned."""
    frames_V = np.zeros(len(alignment.inventories[SENONE]), np.int64)
    for utterance in utterances:
        if utterance.id in alignment:
            tier = alignment[utterance.id].tiers[SENONE]
            np.add.at(frames_V, tier.unit_U, np.diff(tier.start_U1))
    return [int(frames) for frames in frames_V]


def load_run(folder: Path) -> StudentModel:
    """The student of a finished run with all its heads, in eval mode. Raises UserError where the run is not done."""
    path = folder / "student.json"
    if not path.exists():
        raise UserError(f"a run must be done, but {folder} has no {path.name}. Run `hkd train` first.")
    student = StudentModel(placed(config_from_json(_read(path)["config"]), folder / "model"))
    load_final(student, folder)
    return student.eval()


def export_run(folder: Path, out: Path, *, heads: bool = False, onnx: bool = False) -> None:
    """Write a finished run's student to `out`; an encoder of transformers into `out`/encoder too, for transformers."""
    _, meta = load_student(folder / "model")
    student = load_run(folder)
    if (out / CARD).exists():  # what an earlier export wrote beside another student
        (out / ONNX).unlink(missing_ok=True)
        shutil.rmtree(out / ENCODER, ignore_errors=True)
    save_student(
        out, student, inventory=meta.inventory, acoustic=acoustic_files(folder / "model"), extra=meta.extra,
        heads=heads,
        subword_model=None if meta.subword_model is None else meta.subword_model.read_bytes(),
    )  # fmt: skip
    if isinstance(student.encoder, SpeechEncoder):
        save_pretrained(student.encoder, out / ENCODER)
    if onnx:
        write_onnx(student, out / ONNX)
