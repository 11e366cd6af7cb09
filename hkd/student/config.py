"""What a student is made of: encoder, main output, heads. Plain values, so that TOML and JSON carry them.

- Sizes left at 0 come from the preset; a size that is given wins over it.
- Layers count from 1: a tap n reads the output of layer n.
- The encoder is hkd's own Conformer, or a named one of transformers, which brings its sizes.
- A head with `slots` slots emits that many distributions for each encoder frame of 40 ms: 4 for senones (10 ms each).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hkd.errors import UserError, check_choice, check_setting, did_you_mean
from hkd.features.fbank import NUM_BINS, FrontEnd
from hkd.features.pretrained import WHISPER, Upstream
from hkd.timebase import HOP_SAMPLES, SUBSAMPLING
from hkd.units.inventory import MONOPHONE, SENONE

_SIZES = ("d_model", "num_layers", "num_heads", "ff_factor", "conv_kernel")
PRESETS: dict[str, dict[str, int]] = {
    "xs": {"d_model": 112, "num_layers": 6, "num_heads": 4, "ff_factor": 4, "conv_kernel": 15},
    "s": {"d_model": 192, "num_layers": 12, "num_heads": 4, "ff_factor": 4, "conv_kernel": 15},
    "m": {"d_model": 288, "num_layers": 15, "num_heads": 6, "ff_factor": 4, "conv_kernel": 15},
}
PRESETS["custom"] = PRESETS["xs"]  # what a custom encoder leaves open
GONE = {"front": "conv1d", "front_channels": 32}  # settings of earlier versions, and the values that are left


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Conformer sizes, or the name of another encoder."""

    name: str = ""  # a speech encoder of transformers: a hub name or a folder. All else but dropout is then its own
    preset: str = "custom"  # xs (2 M parameters) | s (10 M) | m (30 M) | custom; a size of 0 is the preset's own
    d_model: int = 0  # width
    num_layers: int = 0  # Conformer blocks
    num_heads: int = 0  # of attention
    ff_factor: int = 0  # inner width of the feed-forward halves, in d_model
    conv_kernel: int = 0  # encoder frames of 40 ms that the depthwise convolution sees; odd
    dropout: float = 0.1  # on the output of each half-step; attention weights are not dropped (fused kernels)
    num_bins: int = NUM_BINS  # of features; an upstream's values, once it is opened
    upstream: str = ""  # a frozen speech encoder of transformers below the Conformer: a hub name or a folder
    upstream_folder: str = ""  # where it lies, where that is not under its name: in an export

    def __post_init__(self) -> None:
        given = [name for name in _SIZES if getattr(self, name)] + (["preset"] if self.preset != "custom" else [])
        check_choice("encoder.preset", self.preset, sorted(PRESETS))
        rule = "must be left out where encoder.name is given"
        if self.name and self.upstream:
            raise UserError(f"encoder.upstream {rule}: that one learns from the sound itself.")
        if self.name and given:
            raise UserError(f"encoder.{given[0]} {rule}: '{self.name}' brings its own.")
        if not self.name:
            for name in _SIZES:
                object.__setattr__(self, name, getattr(self, name) or PRESETS[self.preset][name])
                check_setting(f"encoder.{name}", getattr(self, name), "be at least 1", getattr(self, name) >= 1)
            width, is_even = f"{self.d_model} with {self.num_heads} heads", self.d_model % (2 * self.num_heads) == 0
            check_setting("encoder.d_model", width, "be an even multiple of num_heads", is_even)
            check_setting("encoder.conv_kernel", self.conv_kernel, "be odd", self.conv_kernel % 2 == 1)
        check_setting("encoder.dropout", self.dropout, "be at least 0 and below 1", 0 <= self.dropout < 1)
        check_setting("encoder.num_bins", self.num_bins, "be at least 1", self.num_bins >= 1)

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
    """A speech encoder of transformers, opened. `settings`: its own configuration, enough to build it."""

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
    """An output layer, dropped at export unless it conditions: kind `hard` (reference labels) or `aux` (a teacher's).
    condition: its posteriors go into its layer's output (see `hkd.student.model`)."""

    name: str
    level: str
    kind: str = "aux"
    num_units: int
    tap: int  # reads the output of this layer, counted from 1
    slots: int = 1  # distributions an encoder frame
    d_head: int = 0  # width before the output matrix where slots > 1; 0 is the d_model of the encoder
    condition: bool = False

    def __post_init__(self) -> None:
        is_name = bool(self.name) and self.name != "main" and "." not in self.name
        check_setting("a head's name", f"'{self.name}'", "be non-empty, without dots, and not 'main'", is_name)
        me = f"head '{self.name}'"
        check_choice(f"{me}: kind", self.kind, ("hard", "aux"))
        check_setting(f"{me}: num_units", self.num_units, "be at least 1", self.num_units >= 1 and self.d_head >= 0)
        is_whole = self.slots >= 1 and SUBSAMPLING % self.slots == 0  # 10 ms frames
        check_setting(f"{me}: slots", self.slots, f"divide {SUBSAMPLING}", is_whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """Encoder, main output and heads. `num_main_units` counts the blank (id 0), which a senone output lacks."""

    encoder: EncoderConfig | SpeechEncoderConfig = EncoderConfig()
    num_main_units: int = 0
    main: str = "ctc"  # ctc | senone (the hybrid alternative: frame posteriors, 4 slots a frame)
    heads: tuple[HeadConfig, ...] = ()

    def __post_init__(self) -> None:
        check_setting("num_main_units", self.num_main_units, "be at least 2", self.num_main_units >= 2)
        check_choice("main", self.main, ("ctc", "senone"))
        names, top = [head.name for head in self.heads], self.encoder.num_layers
        check_setting("the heads' names", ", ".join(names), "be distinct", len(set(names)) == len(names))
        for head in self.heads:
            check_setting(f"head '{head.name}': tap", head.tap, f"be a layer from 1 to {top}", 1 <= head.tap <= top)
            if head.condition and head.tap == top:
                fault = f"must condition layers above its own, but reads the top one, {top}"
                remedy = f"Take a lower layer: --set taps.{head.level}={max(1, top - 1)}."
                raise UserError(f"head '{head.name}' {fault}. {remedy}")
            if head.condition and isinstance(self.encoder, SpeechEncoderConfig):
                fault = f"must be left out where encoder.name is given, but names head '{head.name}'"
                raise UserError(f"`condition` {fault}. Take encoder.upstream instead.")

    @property
    def main_slots(self) -> int:
        """Distributions of the main output an encoder frame."""
        return SUBSAMPLING if self.main == "senone" else 1


def default_slots(level: str) -> int:
    """Slots of 10 ms for senones, which last about 30 ms; one of 40 ms for all else."""
    return SUBSAMPLING if level == SENONE else 1


def default_tap(level: str, num_layers: int) -> int:
    """The layer that a level's head reads: senones at a third of the depth, monophones at two thirds, else the top."""
    third = {SENONE: 1, MONOPHONE: 2}.get(level, 3)
    return max(1, (2 * third * num_layers + 3) // 6)  # round half up


def config_to_json(config: StudentConfig) -> dict[str, Any]:
    """What `config_from_json` reads, without where a folder lies, and without names and `condition` where unused."""
    value = asdict(config)
    value["heads"] = [{k: v for k, v in head.items() if k != "condition" or v} for head in value["heads"]]
    value["encoder"].pop("upstream_folder", None)
    for name in ("name", "upstream"):
        if not value["encoder"].get(name, True):
            del value["encoder"][name]
    return value


def config_from_json(value: Mapping[str, Any]) -> StudentConfig:
    """The StudentConfig that `config_to_json` wrote. Raises UserError, naming the nearest key, for an unknown one."""

    def build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
        known = [f.name for f in fields(cls)]
        for key in table:
            if key not in known:
                raise UserError(f"{where} must have known keys, but has '{key}' instead.{did_you_mean(key, known)}")
        try:
            return cls(**table)
        except TypeError as error:
            raise UserError(f"{where} cannot be read ({error}).") from None

    table, encoder = dict(value), dict(value.get("encoder", {}))
    if encoder.get("front", GONE["front"]) != GONE["front"]:
        fault = "must be conv1d, but is conv2d instead, which hkd no longer has"
        raise UserError(f"student.encoder.front {fault}. Use the hkd that wrote it.")
    encoder = {name: part for name, part in encoder.items() if name not in GONE}
    kind = SpeechEncoderConfig if "settings" in encoder else EncoderConfig
    table["encoder"] = build(kind, encoder, "student.encoder")
    heads = enumerate(table.get("heads", ()))
    table["heads"] = tuple(build(HeadConfig, head, f"student.heads[{n}]") for n, head in heads)
    config: StudentConfig = build(StudentConfig, table, "student")
    return config
