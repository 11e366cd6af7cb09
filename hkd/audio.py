"""Reading sound: any file that libsndfile knows (WAV, FLAC, Opus, MP3 ...) → float32, mono, 16 kHz.

- An utterance's `channel` is read, from 0; where it has none, channels are mixed down to their mean. Other sample rates are resampled with soxr ("HQ").
- An utterance's `offset` and `duration` become samples *of the file's own rate* by the one rule of `hkd.timebase`; what is cut is resampled.
- A file at a URL (s3://, https:// and whatever else fsspec knows) is read through a copy on this machine.
- `check_audio` looks at every utterance and lists what is wrong with which; it never stops half-way.

Shape letters: S samples, C channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from hkd.errors import HkdError, UserError
from hkd.progress import Progress, no_progress
from hkd.remote import local_copy, location
from hkd.timebase import SAMPLE_RATE_HZ, seconds_to_samples

SILENCE_PEAK = 1e-4  # -80 dB of full scale: below it, a whole utterance is said to be silent
DURATION_TOLERANCE_S = 0.05


class Span(Protocol):
    """What reading needs to know of an utterance (`hkd.manifest.Utterance` has it)."""

    @property
    def id(self) -> str: ...
    @property
    def audio_filepath(self) -> str | None: ...
    @property
    def offset(self) -> float: ...
    @property
    def duration(self) -> float | None: ...
    @property
    def channel(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate_hz: int
    num_samples: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate_hz


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioProblem:
    """What is wrong with an utterance's audio. `line` is its line in the manifest, from 1."""

    line: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: utterance '{self.id}': {self.reason}"


def local_file(path: str) -> Path:
    """An audio file on this machine: itself, or the copy of what lies at a URL. Raises UserError, HkdError where that cannot be had."""
    place = location(path)
    return local_copy(place) if isinstance(place, str) else place


def probe(path: Path | str) -> AudioInfo:
    """What the header says. Raises UserError where the file is missing, empty or no audio."""
    path = local_file(str(path))
    try:
        if path.stat().st_size == 0:
            raise UserError(f"audio file {path} must hold sound, but is empty.")
        info = soundfile.info(str(path))
    except OSError as error:
        raise UserError(f"audio file {path}: {error.strerror}.") from None
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"audio file {path} must be WAV, FLAC, Opus, MP3 or the like, but cannot be read ({_why(error)})."
        ) from None
    return AudioInfo(sample_rate_hz=info.samplerate, num_samples=info.frames, channels=info.channels)


def stamp(path: str) -> list[Any]:
    """What changes when the file does: path, size, time of change in ns; the URL alone. Raises UserError where it is missing."""
    if isinstance(location(path), str):
        return [path]
    try:
        status = local_file(path).stat()
    except OSError as error:
        raise UserError(f"audio file {path}: {error.strerror}.") from None
    return [path, status.st_size, status.st_mtime_ns]


def read_audio(utterance: Span, *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> NDArray[np.float32]:
    """The sound of an utterance, wave_S in [-1, 1], mono at `sample_rate_hz`.

    Raises UserError where there is no audio file, it cannot be read, or it ends before the utterance does.
    """
    if utterance.audio_filepath is None:
        raise UserError(f"utterance '{utterance.id}' has no audio. Give its manifest line an audio_filepath.")
    path = local_file(utterance.audio_filepath)
    info = probe(path)
    start = seconds_to_samples(utterance.offset, info.sample_rate_hz)
    wanted = info.num_samples - start
    if utterance.duration is not None:
        wanted = seconds_to_samples(utterance.duration, info.sample_rate_hz)
    if start < 0 or start >= info.num_samples:
        raise UserError(f"audio file {path} must reach beyond {utterance.offset:g} s, but ends at {info.duration_s:.3f} s.")
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            wave_SC = file.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"audio file {path} cannot be read ({_why(error)}).") from None
    tolerated = seconds_to_samples(DURATION_TOLERANCE_S, info.sample_rate_hz)
    if len(wave_SC) < wanted - tolerated or len(wave_SC) == 0:
        got = (start + len(wave_SC)) / info.sample_rate_hz
        raise UserError(
            f"audio file {path} must reach to {(start + wanted) / info.sample_rate_hz:.3f} s, but ends at {got:.3f} s: is it truncated?"
        )
    wave_S = _one_channel(wave_SC, utterance.channel, path)
    if info.sample_rate_hz != sample_rate_hz:
        wave_S = soxr.resample(wave_S, info.sample_rate_hz, sample_rate_hz, quality="HQ")
    return np.ascontiguousarray(wave_S, np.float32)


def _one_channel(wave_SC: NDArray[np.float32], channel: int | None, path: Path) -> NDArray[np.float32]:
    """The channel that is asked for; the mean of all where none is. Raises UserError where the file has no such channel."""
    num_channels = wave_SC.shape[1]
    if channel is not None:
        if channel >= num_channels:
            raise UserError(f"audio file {path} must have a channel {channel} (the first is 0), but has {num_channels}.")
        return wave_SC[:, channel]
    return wave_SC.mean(axis=1, dtype=np.float32) if num_channels > 1 else wave_SC[:, 0]


def to_int16(wave_S: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1] → 16-bit integers, rounded and clipped."""
    scaled_S: NDArray[np.int16] = np.clip(np.rint(wave_S * 32768.0), -32768, 32767).astype(np.int16)
    return scaled_S


def check_utterance(utterance: Span) -> str | None:
    """What is wrong with an utterance's audio, in one sentence; None where all is well. Raises nothing."""
    try:
        wave_S = read_audio(utterance)
    except HkdError as error:
        return str(error)
    except Exception as error:  # a decoder may fail in ways of its own; the run goes on and names the line
        return f"audio file {utterance.audio_filepath} cannot be read ({type(error).__name__}: {error})."
    if not np.isfinite(wave_S).all():
        return f"audio file {utterance.audio_filepath} must hold finite samples, but some are NaN or infinite."
    peak = float(np.abs(wave_S).max())
    if peak < SILENCE_PEAK:
        return f"audio file {utterance.audio_filepath} must not be silent, but its highest sample is {peak:.2g} of full scale."
    seconds = len(wave_S) / SAMPLE_RATE_HZ
    if utterance.duration is not None and abs(seconds - utterance.duration) > DURATION_TOLERANCE_S:
        return f"duration must be that of the audio, {seconds:.3f} s, but the manifest says {utterance.duration:.3f} s."
    return None


def check_audio(
    utterances: Iterable[Span], *, lines: Iterable[int] | None = None, progress: Progress = no_progress
) -> list[AudioProblem]:
    """Read every utterance's audio; what is missing, empty, truncated, silent or of another duration than declared.

    `lines`: the utterances' lines in the manifest, where they are not 1, 2, 3 ...
    """
    spans = list(utterances)
    numbers = list(range(1, len(spans) + 1)) if lines is None else list(lines)
    problems: list[AudioProblem] = []
    for done, (line, span) in enumerate(zip(numbers, spans, strict=True), 1):
        reason = check_utterance(span)
        if reason is not None:
            problems.append(AudioProblem(line=line, id=span.id, reason=reason))
        progress(done, len(spans), problems=len(problems))
    return problems


def write_wav(path: Path, wave_S: NDArray[np.float32], *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write 16-bit mono sound atomically; WAV or FLAC by the path's ending."""
    import io

    from hkd.files import write_bytes

    data = io.BytesIO()
    soundfile.write(data, to_int16(wave_S), sample_rate_hz, format=path.suffix[1:].upper(), subtype="PCM_16")
    write_bytes(path, data.getvalue())


def _why(error: Exception) -> str:
    return str(getattr(error, "error_string", "") or error).strip().rstrip(".")
