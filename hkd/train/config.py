"""What a training run is told. Paths are arguments of `train`, not settings; the loss is in `hkd.train.objectives`."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from hkd.errors import UserError, check_choice, check_setting, check_settings
from hkd.features.fbank import AugmentConfig
from hkd.loop import LoopConfig
from hkd.losses import TAILS
from hkd.stream.text import POSTERIORS
from hkd.student.config import EncoderConfig
from hkd.units.inventory import MONOPHONE, SENONE

USUAL_EPOCHS, LEAST_STEPS = 12, 800  # of a training that says neither how many epochs nor how many steps


def check_names(setting: str, given: Iterable[str], known: Container[str], what: str) -> None:
    """Raises UserError where a setting names anything that is not known. what: those that are, for the message."""
    for name in given:
        if name not in known:
            raise UserError(f"`{setting}` must name {what}, but '{name}' is none of them.")


@dataclass(frozen=True, kw_only=True, slots=True)
class KdConfig:
    """How a head learns from a teacher's top-k."""

    tail: str = "auto"  # ghost | renormalised | gold-residual | sampled | auto: what the store asks for, else ghost
    temperature: float = 1.0  # the teacher's; one that the store has been dumped with
    student_temperature: float = 0.0  # 0: the teacher's, and the loss times T² (Hinton); 1 with T = 3 is Futami 2020
    where: str = "frames"  # frames | segments (the head reads a segment's mean) | ctc (frames by CTC occupancy)

    def __post_init__(self) -> None:
        check_choice("`kd.tail`", self.tail, ("auto", *TAILS))
        check_choice("`kd.where`", self.where, ("frames", "segments", "ctc"))
        check_settings(self, "temperature", "be positive", lambda value: value > 0, "kd.")
        check_settings(self, "student_temperature", "not be negative", lambda value: value >= 0, "kd.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Text without sound beside the speech: sentences as they would be heard, at the lowest conditioned layer."""

    share: float = 0.0  # of a step's seconds, beside the same speech. 0: no text, and nothing else here is read
    path: str = "text.jsonl"  # a manifest of sentences
    labels: str = ""  # a folder of its label stores, named as those of speech; empty: no LM teaches on text
    bank: str = "bank"  # the folder that `hkd bank` wrote
    posteriors: str = "bank"  # bank | clean (each unit surely what it is, with a drawn segment's duration)
    masked: float = 0.1  # of the phones: a flat posterior in place of a segment
    masked_only: tuple[str, ...] = ("senone", "monophone")  # levels whose labels are learnt at masked phones alone
    repeats: float = 0.02  # of the words: said twice
    weight: float = 1.0  # of the text's terms, beside alpha and lam
    speech_last: int = 0  # epochs of speech at the end without text

    def __post_init__(self) -> None:
        check_choice("`text.posteriors`", self.posteriors, POSTERIORS)
        check_settings(self, "share masked repeats", "be at least 0 and below 1", lambda value: 0 <= value < 1, "text.")
        check_settings(self, "weight speech_last", "not be negative", lambda value: value >= 0, "text.")
        for level in self.masked_only:
            check_choice("`text.masked_only`", level, (SENONE, MONOPHONE))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainLoopConfig(LoopConfig):
    """The trainer's settings, with a student's defaults."""

    least_steps: ClassVar[int] = 0

    max_steps: int = 0  # updates of the weights; 0: 12 epochs, at least 800


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Objective, student, data, loop. Tables by level or store override the plain weight of that name."""

    objective: str = "hierarchical"  # none | hard-heads | interpolation | auxiliary | hierarchical, or one registered
    levels: tuple[str, ...] = ()  # of the heads; empty: all that are there
    stores: tuple[str, ...] = ()  # label stores by name; empty: all, where no two have one level
    hard_heads: bool | None = None  # beside LMs' labels; default: yes for hierarchical alone
    main: str = "ctc"  # ctc | senone (the hybrid model: frame cross-entropy over senones)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # a Conformer, or a pretrained speech encoder
    taps: dict[str, int] = field(default_factory=dict)  # level, or label store → layer, counted from 1
    slots: dict[str, int] = field(default_factory=dict)  # level → slots an encoder frame of 40 ms
    stride: dict[str, int] = field(default_factory=dict)  # level → n: train on every n-th labelled slot
    condition: tuple[str, ...] = ()  # heads whose posteriors the layers above read: kd-STORE, or a level: its hard head
    condition_alone: float = 0.0  # share of the utterances of an epoch whose conditioned layer loses its own output
    alpha: float = 0.3  # weight of the hard heads
    alphas: dict[str, float] = field(default_factory=dict)  # level → alpha
    lam: float = 0.3  # weight of the heads that LMs teach
    lams: dict[str, float] = field(default_factory=dict)  # store → lam
    kd: KdConfig = field(default_factory=KdConfig)  # how heads learn from label stores
    kds: dict[str, KdConfig] = field(default_factory=dict)  # store → what differs from kd
    interpolation_weight: float = 0.1  # share of the LM in the main targets, with interpolation
    label_smoothing: float = 0.0  # of hard heads
    heads_warmup_steps: int = 0  # α and λ rise linearly from 0
    lam_end: float = 1.0  # λ moves linearly to this share of itself at the last step
    train_split: str = "train"  # what is trained on
    dev_split: str = "dev"  # what is evaluated during training
    train_share: float = 1.0  # of the split's utterances, chosen by id: a smaller share is part of a larger one
    batch_seconds: float = 0.0  # of audio in the global batch of a step; 0: a 40th of the speech, 15 to 120
    max_utterance_seconds: float = 40.0  # longer ones are left out, and said
    epochs: int = 0  # passes over the speech, in place of loop.max_steps
    min_coverage: float = 1.0  # share of the utterances that every head must have labels for
    workers: int = 0  # processes that make batches; 0: this one
    features_mb: int = 2048  # features kept in memory, by a process and its workers together
    features_cache: str = ""  # a folder for features on disk, for all runs on the same utterances; empty: none
    shares_every: int = 500  # steps between measurements of each term's share of the gradient; 0: never
    text: TextConfig = field(default_factory=TextConfig)  # sentences without sound beside the speech
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # what is done to training utterances
    loop: TrainLoopConfig = field(default_factory=TrainLoopConfig)  # how long, how fast, how often

    def fitted(self, seconds: float) -> "TrainConfig":
        """With a batch size where none was given: what so much speech asks for."""
        return self if self.batch_seconds else replace(self, batch_seconds=float(min(max(seconds / 40, 15), 120)))

    def max_steps(self, batches_per_epoch: int) -> int:
        """Updates of the weights: so many epochs, or loop.max_steps, or what the amount of speech asks for."""
        usual = max(LEAST_STEPS, USUAL_EPOCHS * batches_per_epoch)
        return self.epochs * batches_per_epoch or self.loop.max_steps or usual

    @property
    def num_loaders(self) -> int:
        """Among how many a training process divides its caches of features and labels: itself and its workers."""
        return 1 + self.workers * self.loop.accumulate

    def __post_init__(self) -> None:
        check_choice("`main`", self.main, ("ctc", "senone"))
        negative = "alpha lam heads_warmup_steps lam_end batch_seconds epochs workers features_mb shares_every"
        shares = "interpolation_weight label_smoothing min_coverage train_share condition_alone"
        check_settings(self, negative, "not be negative", lambda value: value >= 0)
        check_settings(self, shares, "lie between 0 and 1", lambda value: 0 <= value <= 1)
        check_settings(self, "train_share", "be above 0", lambda value: value > 0)
        check_settings(self, "max_utterance_seconds", "be positive", lambda value: value > 0)
        for level, stride in self.stride.items():
            check_setting(f"`stride.{level}`", stride, "be at least 1", stride >= 1)
        for name, value in (("text.share", self.text.share), ("condition_alone", self.condition_alone)):
            if value and not self.condition:
                raise UserError(f"`condition` must name heads where `{name}` is given, but is empty.")
        if self.features_cache and self.augment.noise_probability > 0:
            rule = "be left out where `augment.noise_probability` is given: noise is new in every epoch"
            raise UserError(f"`features_cache` must {rule}.")
