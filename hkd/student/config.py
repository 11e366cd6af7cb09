"""What a student is made of: encoder, main output, heads. Plain values, so that TOML and JSON carry them.

- Sizes left at 0 (dropout and kernel too, where negative or 0) come from the preset; a size that is given wins over it.
- Layers count from 1: a tap n reads the output of layer n.
- The encoder is hkd's own Conformer, or one of transformers that is named; that one brings its sizes along.
- A head with `slots` slots emits that many distributions for each encoder frame of 40 ms: 4 for senones (10 ms each).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hkd.errors import UserError, did_you_mean
from hkd.features.fbank import FrontEnd
from hkd.features.pretrained import WHISPER, Upstream
from hkd.timebase import HOP_SAMPLES, SUBSAMPLING
from hkd.units.level import MONOPHONE, SENONE, SUBWORD

NUM_BINS = 80
_SIZES = ("d_model", "num_layers", "num_heads", "ff_factor", "conv_kernel")
PRESETS: dict[str, dict[str, int]] = {
    "xs": {"d_model": 112, "num_layers": 6, "num_heads": 4, "ff_factor": 4, "conv_kernel": 15},
    "s": {"d_model": 192, "num_layers": 12, "num_heads": 4, "ff_factor": 4, "conv_kernel": 15},
    "m": {"d_model": 288, "num_layers": 15, "num_heads": 6, "ff_factor": 4, "conv_kernel": 15},
}
GONE = {"front": "conv1d", "front_channels": 32}  # settings of earlier versions of the encoder, and the values that are left
PRESETS["custom"] = PRESETS["xs"]  # what a custom encoder leaves open


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Conformer sizes, or the name of another encoder. `preset` xs (about 2 M parameters) | s (10 M) | m (30 M) | custom; a size of 0 is the preset's own."""

    name: str = ""  # a speech encoder of transformers: a hub name or a folder. All else but dropout is then its own
    preset: str = "custom"  # xs (2 M parameters) | s (10 M) | m (30 M) | custom; a size of 0 is the preset's own
    d_model: int = 0  # width
    num_layers: int = 0  # Conformer blocks
    num_heads: int = 0  # of attention
    ff_factor: int = 0  # inner width of the feed-forward halves, in d_model
    conv_kernel: int = 0  # encoder frames of 40 ms that the depthwise convolution sees; odd
    dropout: float = 0.1  # on the output of each half-step; attention weights are not dropped, so that fused kernels apply
    num_bins: int = NUM_BINS  # of features; an upstream's values, once it is opened
    upstream: str = ""  # a frozen speech encoder of transformers below the Conformer: a hub name or a folder
    upstream_folder: str = ""  # where it lies, where that is not under its name: in an export

    def __post_init__(self) -> None:
        if self.name and self.upstream:
            raise UserError(
                "encoder.upstream must be left out where encoder.name is given: that one learns from the sound itself."
            )
        if self.preset not in PRESETS:
            raise UserError(f"encoder.preset must be one of {', '.join(sorted(PRESETS))}, but is '{self.preset}' instead.")
        if self.name:
            given = [name for name in _SIZES if getattr(self, name)] + (["preset"] if self.preset != "custom" else [])
            if given:
                raise UserError(f"encoder.{given[0]} must be left out where encoder.name is given: '{self.name}' brings its own.")
        for name in () if self.name else _SIZES:
            if getattr(self, name) == 0:
                object.__setattr__(self, name, PRESETS[self.preset][name])
            if getattr(self, name) < 1:
                raise UserError(f"encoder.{name} must be at least 1, but is {getattr(self, name)} instead.")
        if not self.name and self.d_model % (2 * self.num_heads):
            raise UserError(
                f"encoder.d_model must be an even multiple of num_heads, but is {self.d_model} with {self.num_heads} heads instead."
            )
        if not self.name and self.conv_kernel % 2 == 0:
            raise UserError(f"encoder.conv_kernel must be odd, but is {self.conv_kernel} instead.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"encoder.dropout must be at least 0 and below 1, but is {self.dropout} instead.")
        if self.num_bins < 1:
            raise UserError(f"encoder.num_bins must be at least 1, but is {self.num_bins} instead.")

    @property
    def beside_preset(self) -> dict[str, int]:
        """Sizes that are given beside a named preset and win over it."""
        sizes = PRESETS[self.preset] if self.preset != "custom" else {}
        return {name: getattr(self, name) for name, size in sizes.items() if getattr(self, name) != size}

    @property
    def d_out(self) -> int:
        """The width of an encoder frame of 40 ms, which heads read."""
        return self.d_model

    @property
    def front_end(self) -> FrontEnd:
        """What it reads."""
        if self.upstream:
            upstream = Upstream(name=self.upstream_folder or self.upstream)
            return FrontEnd(kind="upstream", num_bins=self.num_bins, upstream=upstream)
        return FrontEnd(num_bins=self.num_bins)

    @property
    def max_frames(self) -> int | None:
        """The longest utterance that it can read, in 10 ms frames; None for any."""
        upstream = self.front_end.upstream
        return upstream.max_rows if upstream is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechEncoderConfig:
    """A speech encoder of transformers, opened. `settings`: its own configuration, from which it can be built where its folder is gone."""

    name: str
    settings: Mapping[str, Any]
    normalise: bool = True  # utterances to mean 0 and variance 1, where it reads samples

    @property
    def architecture(self) -> str:
        """transformers' model type: wav2vec2, hubert, wavlm, whisper ..."""
        return str(self.settings["model_type"])

    @property
    def d_model(self) -> int:
        """The width of its frames of 20 ms."""
        return int(self.settings["d_model" if self.architecture == WHISPER else "hidden_size"])

    @property
    def num_layers(self) -> int:
        """Layers to tap."""
        return int(self.settings["encoder_layers" if self.architecture == WHISPER else "num_hidden_layers"])

    @property
    def d_out(self) -> int:
        """The width of an encoder frame of 40 ms: two of its own, side by side."""
        return 2 * self.d_model

    @property
    def max_frames(self) -> int | None:
        """The longest utterance that it can read, in 10 ms frames; None for any."""
        return 2 * int(self.settings["max_source_positions"]) if self.architecture == WHISPER else None

    @property
    def front_end(self) -> FrontEnd:
        """What it reads."""
        if self.architecture == WHISPER:
            return FrontEnd(kind="whisper", num_bins=int(self.settings["num_mel_bins"]))
        return FrontEnd(kind="wave", num_bins=HOP_SAMPLES, normalise=self.normalise)

    @property
    def num_bins(self) -> int:
        """Values a frame of what it reads."""
        return self.front_end.num_bins


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """An output layer that is dropped at export, unless it conditions: kind `hard` (reference labels) or `aux` (a teacher's).

    condition: its posteriors are projected and added to its layer's output, which the layers above read (Nozaki & Komatsu 2021, arXiv 2104.02724).
    """

    name: str
    level: str
    kind: str = "aux"
    num_units: int
    tap: int  # reads the output of this layer, counted from 1
    slots: int = 1  # distributions an encoder frame
    d_head: int = 0  # width before the output matrix where slots > 1; 0 is the d_model of the encoder
    condition: bool = False

    def __post_init__(self) -> None:
        if not self.name or self.name == "main" or "." in self.name:
            raise UserError(f"a head's name must be non-empty, without dots, and not 'main', but is '{self.name}' instead.")
        if self.kind not in ("hard", "aux"):
            raise UserError(f"head '{self.name}': kind must be hard or aux, but is '{self.kind}' instead.")
        if self.num_units < 1 or self.d_head < 0:
            raise UserError(f"head '{self.name}': num_units must be at least 1, but is {self.num_units} instead.")
        check_slots(self.slots, f"head '{self.name}'")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """Encoder, main output and heads. `num_main_units` counts the CTC blank (id 0); a senone main output has no blank."""

    encoder: EncoderConfig | SpeechEncoderConfig = EncoderConfig()
    num_main_units: int = 0
    main: str = "ctc"  # ctc | senone (the hybrid alternative: frame posteriors, 4 slots a frame)
    heads: tuple[HeadConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.num_main_units < 2:
            raise UserError(f"num_main_units must be at least 2, but is {self.num_main_units} instead.")
        if self.main not in ("ctc", "senone"):
            raise UserError(f"main must be ctc or senone, but is '{self.main}' instead.")
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names):
            raise UserError(f"the heads' names must be distinct, but are {', '.join(names)} instead.")
        for head in self.heads:
            if not 1 <= head.tap <= self.encoder.num_layers:
                raise UserError(
                    f"head '{head.name}': tap must be a layer from 1 to {self.encoder.num_layers}, but is {head.tap} instead."
                )
            if head.condition and head.tap == self.encoder.num_layers:
                raise UserError(
                    f"head '{head.name}' must condition layers above its own, but reads the top one, {head.tap}. Take a lower layer: "
                    f"--set taps.{head.level}={max(1, head.tap - 1)}."
                )
            if head.condition and isinstance(self.encoder, SpeechEncoderConfig):
                raise UserError(
                    f"`condition` must be left out where encoder.name is given, but names head '{head.name}'. Take encoder.upstream instead."
                )

    @property
    def main_slots(self) -> int:
        """Distributions of the main output an encoder frame."""
        return SUBSAMPLING if self.main == "senone" else 1


def check_slots(slots: int, who: str) -> None:
    """Raises UserError where an encoder frame cannot be cut into so many slots of whole 10 ms frames."""
    if slots < 1 or SUBSAMPLING % slots:
        raise UserError(f"{who}: slots must divide {SUBSAMPLING}, but is {slots} instead.")


def default_slots(level: str) -> int:
    """Slots of 10 ms for senones, which last about 30 ms; one of 40 ms for all else."""
    return SUBSAMPLING if level == SENONE else 1


def default_tap(level: str, num_layers: int) -> int:
    """The layer that a level's head reads: senones at a third of the depth, monophones at two thirds, all else at the top."""
    third = {SENONE: 1, MONOPHONE: 2, SUBWORD: 3}.get(level, 3)
    return max(1, (2 * third * num_layers + 3) // 6)  # round half up


def config_to_json(config: StudentConfig) -> dict[str, Any]:
    """What `config_from_json` reads; where a folder lies is left out, and what is not used: names of an encoder of hkd's own, `condition`."""
    value = asdict(config)
    value["heads"] = [{k: v for k, v in head.items() if k != "condition" or v} for head in value["heads"]]
    value["encoder"].pop("upstream_folder", None)
    for name in ("name", "upstream"):
        if not value["encoder"].get(name, True):
            del value["encoder"][name]
    return value


def config_from_json(value: Mapping[str, Any]) -> StudentConfig:
    """The StudentConfig that `config_to_json` wrote. Raises UserError, naming the nearest key, for a key that is unknown."""

    def build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
        known = [f.name for f in fields(cls)]
        for key in table:
            if key not in known:
                raise UserError(f"{where} must have known keys, but has '{key}' instead.{did_you_mean(key, known)}")
        try:
            return cls(**table)
        except TypeError as error:
            raise UserError(f"{where} cannot be read ({error}).") from None

    table = dict(value)
    encoder = {name: part for name, part in table.get("encoder", {}).items() if name not in GONE}
    if table.get("encoder", {}).get("front", GONE["front"]) != GONE["front"]:
        raise UserError(
            "student.encoder.front must be conv1d, but is conv2d instead, which hkd no longer has. Use the hkd that wrote it."
        )
    table["encoder"] = build(SpeechEncoderConfig if "settings" in encoder else EncoderConfig, encoder, "student.encoder")
    table["heads"] = tuple(build(HeadConfig, head, f"student.heads[{n}]") for n, head in enumerate(table.get("heads", ())))
    config: StudentConfig = build(StudentConfig, table, "student")
    return config
