"""Reading sound: any file that libsndfile knows (WAV, FLAC, Opus, MP3 ...) → float32, mono, 16 kHz.

- An utterance's `channel` is read, from 0; where it has none, channels are mixed down to their mean. Other sample rates
  are resampled with soxr ("HQ").
- `offset` and `duration` become samples *of the file's own rate* by the one rule of `hkd.timebase`, before resampling.
- A file at a URL (s3://, https:// and whatever else fsspec knows) is read through a copy on this machine.
- Headers may lie about the length (streams, broken recorders). `probe` reads the header alone where that is sure to be
  right, looks at the last sample where a codec hides the length, and decodes the file where neither tells. Reading
  falls back to decoding from the start.
- Whatever a decoder raises becomes one sentence that names the file and a remedy.
- `import_torchaudio` is for machines on which torchaudio's native part cannot be loaded: its wheel is linked against
  CUDA, so that beside a CPU build of torch its import ends in OSError, and with it that of transformers. torchaudio
  itself knows a state without its extension, and is put into that state.

Shape letters: S samples, C channels.
"""

import importlib
import os
import re
import stat
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from hkd.errors import HkdError, Progress, UserError, no_progress
from hkd.files import digest_of, digest_of_file, write_bytes
from hkd.remote import local_copy, location
from hkd.timebase import SAMPLE_RATE_HZ, seconds_to_samples

if TYPE_CHECKING:
    from hkd.manifest import Utterance

GIT_LFS = b"version https://git-lfs"  # what a pointer file begins with
_MAX_PEAK = 32.0  # of floats; 30 dB above full scale nobody records
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below it, a whole utterance is said to be silent
DURATION_TOLERANCE_S = 0.05
# subtypes with so many bytes a sample: the file's size tells the length
_LINEAR = re.compile("PCM_|FLOAT|DOUBLE|ULAW|ALAW")
_COMPRESSED = ("FLAC", "OGG", "MP3")  # formats whose header, or last page, tells the length
_WARM_UP_S = 1.0  # what a lossy decoder needs of the sound before (MP3's bit reservoir, Opus' 80 ms of pre-roll)
# libsndfile 1.2 seeks to a wrong place within the last page of an Ogg stream, and a page may hold many seconds
_LAST_S = 60.0
_BLOCK = 1 << 20  # samples read at once
_BAD_SEEK = 39  # libsndfile's error where a place does not exist; soundfile seeks to where it stands after each read
_MAX_TAG_BYTES = 1 << 10  # of tags after the last sample
_MORE = "audio file {path} must be one stream, but goes on where it ends by its header. {remedy}"
_MAX_PAGE_BYTES = 1 << 16  # of an Ogg page
_UNKNOWN_BYTES = 0x7FFF0000  # sizes from here on stand for "not known" in the headers of streams


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInfo:
    """The sound of a file: `num_samples` are there, at its own rate; `missing_s` seconds more stand in its header."""

    sample_rate_hz: int
    num_samples: int
    channels: int
    missing_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate_hz


def local_file(path: str) -> Path:
    """An audio file on this machine: itself, or the copy of what lies at a URL. Raises UserError, HkdError."""
    place = location(path)
    return local_copy(place) if isinstance(place, str) else place


def probe(path: Path | str) -> AudioInfo:
    """Rate, true length and channels. Raises UserError for a file that is missing, empty, damaged, no audio, or NaN."""
    path = local_file(str(path))
    with _opened(path) as file:
        rate, channels, promised = file.samplerate, file.channels, file.frames
        kind, linear = file.format, _LINEAR.match(file.subtype) is not None
        missing_s = _cut_off_s(file, path) if linear else 0.0
        if file.subtype in ("FLOAT", "DOUBLE"):
            for block_SC in _blocks(file, promised):
                check_range(block_SC, f"audio file {path}")
    num_samples = promised
    if not linear or kind == "FLAC":
        ends_there = kind in _COMPRESSED and _ends_there(path)
        num_samples = promised if ends_there else sum(map(len, _decoded(path, sys.maxsize)))
        missing_s = max(0.0, (promised - num_samples) / rate) if promised < 1 << 36 else 0.0
        if kind == "MP3" and not ends_there and num_samples == promised:
            raise UserError(_MORE.format(path=path, remedy=_remedy(path)))
    if num_samples <= 0:
        raise UserError(f"audio file {path} must hold sound, but has no samples. {_remedy(path)}")
    return AudioInfo(sample_rate_hz=rate, num_samples=num_samples, channels=channels, missing_s=missing_s)


@contextmanager
def _opened(path: Path, *, piped: bool = False) -> Iterator[soundfile.SoundFile]:
    """A file's decoder. Whatever goes wrong, here or in decoding, becomes a UserError. piped: as a stream, whose
    header's length is ignored."""
    what = f"audio file {path}"
    try:
        name = str(path)
        if "\0" in name or name != name.encode(errors="replace").decode():
            raise UserError(f"audio file {name!r} must have a name in UTF-8 without null bytes. Rename it.")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
            raise UserError(f"{what} must be a regular file, but is a {kind}. Write the sound to a file first.")
        if status.st_size == 0:
            raise UserError(f"{what} must hold sound, but is empty.")
        with soundfile.SoundFile(_pipe(path)) if piped else _unsized(path, soundfile.SoundFile(path)) as file:
            yield file
    except HkdError:
        raise
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}.") from None
    except Exception as error:  # decoders fail in ways of their own
        why = f"cannot be read ({str(getattr(error, 'error_string', '') or error).strip().rstrip('.')})"
        raise UserError(f"{what} must be WAV, FLAC, Opus, MP3 or the like, but {why}. {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(64).lstrip()
    if begin.startswith(GIT_LFS):
        return "It is a pointer of Git LFS: run git lfs pull."
    if begin.startswith(b"<"):
        return "It is a web page: fetch the sound again."
    is_sphere = begin.startswith(b"NIST_1A")
    command = f"sph2pipe -f wav {path.name}" if is_sphere else f"ffmpeg -i {path.name} -ar 16000"
    out = f"{path.stem}{'-16k' if path.suffix == '.wav' else ''}.wav"
    return f"Copy it again if it is cut off, or convert it: {command} {out}"


def _pipe(path: Path) -> int:
    """The reading end of a pipe with the file's bytes."""
    reading, writing = os.pipe()

    def feed() -> None:
        with suppress(OSError), os.fdopen(writing, "wb") as pipe:  # OSError: the decoder has closed its end
            pipe.write(path.read_bytes())

    threading.Thread(target=feed, daemon=True).start()
    return reading


def _unsized(path: Path, file: soundfile.SoundFile) -> soundfile.SoundFile:
    """The file; a WAV whose data chunk says 0 bytes, as killed recorders leave it, with all that follows as sound."""
    if file.frames or file.format not in ("WAV", "WAVEX") or not _LINEAR.match(file.subtype):
        return file
    data, at = path.read_bytes(), 12
    while data[at : at + 4] not in (b"data", b""):
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + data[at + 4] % 2
    file.close()
    kind = {"samplerate": file.samplerate, "channels": file.channels, "subtype": file.subtype, "endian": "LITTLE"}
    return soundfile.SoundFile(BytesIO(data[at + 8 :]), format="RAW", **kind)


def _cut_off_s(file: soundfile.SoundFile, path: Path) -> float:
    """Seconds that a file of fixed sample size should have and has not, as libsndfile's log tells:
    `data : 64000 (should be 29957)`."""
    sizes = [(int(said), int(found)) for said, found in re.findall(r"(\d+) \(should be (\d+)\)", file.extra_info)]
    absent = max((said - found for said, found in sizes if said < _UNKNOWN_BYTES), default=0)
    return max(0.0, float(absent * file.frames / path.stat().st_size / file.samplerate))


def _ends_there(path: Path) -> bool:
    """Whether the last sample by the header can be read, and lies at the file's end. Raises UserError for more."""
    number = os.open(path, os.O_RDONLY)
    try:
        with soundfile.SoundFile(number, closefd=False) as file:
            kind = file.format
            file.seek(file.frames - 1)
            if not len(file.read(1)):
                return False
        size = os.fstat(number).st_size
        left = size - os.lseek(number, 0, os.SEEK_CUR)
        first, last = os.pread(number, 18, 0), os.pread(number, _MAX_PAGE_BYTES, max(0, size - _MAX_PAGE_BYTES))
    except RuntimeError:  # soundfile.LibsndfileError
        return False
    finally:
        os.close(number)
    if kind == "MP3":
        return left <= _MAX_TAG_BYTES or b"APETAGEX" in last
    page = last[last.rfind(b"OggS") :]  # bytes 6 to 14: the samples so far, -1 for unknown; 14 to 18: the stream
    if left > _MAX_TAG_BYTES or (kind == "OGG" and (page[14:18] != first[14:] or page[6:14] == b"\xff" * 8)):
        raise UserError(_MORE.format(path=path, remedy=_remedy(path)))
    return True


def _blocks(file: soundfile.SoundFile, wanted: int) -> Iterator[NDArray[np.float32]]:
    """The next `wanted` samples as waves_SC, fewer at the end."""
    while wanted > 0:
        block_SC = np.full((min(_BLOCK, wanted, max(1, file.frames)), file.channels), np.nan, np.float32)
        try:
            count = len(file.read(out=block_SC))
        except soundfile.LibsndfileError as error:
            count = int(np.isfinite(block_SC[:, 0]).sum())
            if error.code != _BAD_SEEK or len(block_SC) == count < wanted:
                raise
            wanted = count  # the sound ends before the header says: what was decoded stands
        if not count:
            return
        yield block_SC[:count]
        wanted -= count


def _decoded(path: Path, stop: int) -> list[NDArray[np.float32]]:
    """Samples from the start to `stop` or the end, in blocks, whatever length the header gives."""
    with _opened(path) as file:
        found = list(_blocks(file, stop))
        is_mp3 = file.format == "MP3"
    # the length is guessed where there is no Xing tag
    if is_mp3 and sum(map(len, found)) < stop and not _ends_there(path):
        with suppress(UserError), _opened(path, piped=True) as file:
            return max(found, list(_blocks(file, stop)), key=lambda blocks: sum(map(len, blocks)))
    return found


def _cut(path: Path, start: int, wanted: int) -> NDArray[np.float32]:
    """wave_SC of the samples from `start` on, fewer than `wanted` where the file ends before."""
    with _opened(path) as file:
        rate, channels = file.samplerate, file.channels
        begin = start
        if not _LINEAR.match(file.subtype):
            begin = max(0, min(start - int(_WARM_UP_S * rate), file.frames - int(_LAST_S * rate)))
        begin = begin if file.seekable() else 0
        try:
            if begin:
                file.seek(begin)
            found = list(_blocks(file, start + wanted - begin))
        except soundfile.LibsndfileError:
            if not begin:
                raise
            found = []
    if sum(map(len, found)) < start + wanted - begin:
        begin, found = 0, _decoded(path, start + wanted)
    return np.concatenate([np.zeros((0, channels), np.float32), *found])[start - begin :]


def check_range(wave_SC: NDArray[np.float32], what: str) -> None:
    """Raises UserError for samples that are NaN or infinite, or lie far from −1 to 1."""
    if not np.isfinite(wave_SC).all():
        raise UserError(f"{what} must hold finite samples, but some are NaN or infinite. Make it again.")
    peak = float(np.abs(wave_SC).max(initial=0.0))
    if peak > _MAX_PEAK:
        remedy = "Write it again, divided by 32768 if these are integers of 16 bits."
        raise UserError(f"{what} must hold samples between -1 and 1, but one is {peak:g}. {remedy}")


def stamp(path: str) -> list[Any]:
    """What changes when the file does: path, size, time of change in ns; of a URL that alone. Raises UserError."""
    if isinstance(location(path), str):
        return [path]
    try:
        status = local_file(path).stat()
    except OSError as error:
        raise UserError(f"audio file {path}: {error.strerror}.") from None
    return [path, status.st_size, status.st_mtime_ns]


def digest_of_sound(utterances: "Iterable[Utterance]") -> str | None:
    """Of the bytes of their files; of a URL, whose file never changes, the URL. None where a file cannot be read."""
    places = map(location, dict.fromkeys(str(u.audio_filepath) for u in utterances))
    try:
        with ThreadPoolExecutor(8) as pool:
            return digest_of(pool.map(lambda place: place if isinstance(place, str) else digest_of_file(place), places))
    except OSError:
        return None


def newer_sound(utterances: "Iterable[Utterance]", made: Path) -> list[str]:
    """Their files on this machine that were changed after the file `made` was, sorted."""
    places = map(location, {u.audio_filepath for u in utterances if u.audio_filepath})
    limit_ns, newer = made.stat().st_mtime_ns, []
    for place in places:
        with suppress(OSError):  # where it is gone, reading says so
            if isinstance(place, Path) and place.stat().st_mtime_ns > limit_ns:
                newer.append(str(place))
    return sorted(newer)


def read_audio(utterance: "Utterance", *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> NDArray[np.float32]:
    """The sound of an utterance, wave_S in [-1, 1], mono at `sample_rate_hz`.

    Raises UserError where there is no audio file, it cannot be read, or it ends before the utterance does.
    """
    if utterance.audio_filepath is None:
        raise UserError(f"utterance '{utterance.id}' has no audio. Give its manifest line an audio_filepath.")
    path = local_file(utterance.audio_filepath)
    what, length_s = f"audio file {path}", utterance.duration
    with _opened(path) as file:
        rate = file.samplerate
    start = seconds_to_samples(utterance.offset, rate)
    wanted = probe(path).num_samples - start if length_s is None else seconds_to_samples(length_s, rate)
    wave_SC = _cut(path, start, wanted) if start >= 0 and wanted > 0 else np.zeros((0, 1), np.float32)
    if not len(wave_SC):
        end_s = probe(path).duration_s
        raise UserError(f"{what} must reach beyond {utterance.offset:g} s, but ends at {end_s:.3f} s.")
    if len(wave_SC) < wanted - seconds_to_samples(DURATION_TOLERANCE_S, rate):
        wanted_s, end_s = (start + wanted) / rate, (start + len(wave_SC)) / rate
        raise UserError(f"{what} must reach to {wanted_s:.3f} s, but ends at {end_s:.3f} s: is it truncated?")
    check_range(wave_SC, what)
    wave_S = _one_channel(wave_SC, utterance.channel, path)
    if rate != sample_rate_hz:
        wave_S = soxr.resample(wave_S, rate, sample_rate_hz, quality="HQ")
    return np.ascontiguousarray(wave_S, np.float32)


def _one_channel(wave_SC: NDArray[np.float32], channel: int | None, path: Path) -> NDArray[np.float32]:
    """The channel that is asked for; the mean of all where none is. Raises UserError for one that the file has not."""
    num_channels = wave_SC.shape[1]
    if channel is not None:
        if channel >= num_channels:
            wanted = f"a channel {channel} (the first is 0)"
            raise UserError(f"audio file {path} must have {wanted}, but has {num_channels}.")
        return wave_SC[:, channel]
    return wave_SC.mean(axis=1, dtype=np.float32) if num_channels > 1 else wave_SC[:, 0]


def to_int16(wave_S: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1] → 16-bit integers, rounded and clipped."""
    scaled_S: NDArray[np.int16] = np.clip(np.rint(wave_S * 32768.0), -32768, 32767).astype(np.int16)
    return scaled_S


def check_utterance(utterance: "Utterance") -> str | None:
    """What is wrong with an utterance's audio, in one sentence; None where all is well. Raises nothing."""
    what = f"audio file {utterance.audio_filepath}"
    try:
        wave_S = read_audio(utterance)
    except HkdError as error:
        return str(error)
    except Exception as error:  # a decoder may fail in ways of its own; the run goes on and names the line
        return f"{what} cannot be read ({type(error).__name__}: {error})."
    peak = float(np.abs(wave_S).max())
    if peak < SILENCE_PEAK:
        return f"{what} must not be silent, but its highest sample is {peak:.2g} of full scale."
    seconds = len(wave_S) / SAMPLE_RATE_HZ
    if utterance.duration is not None and abs(seconds - utterance.duration) > DURATION_TOLERANCE_S:
        return f"duration must be that of the audio, {seconds:.3f} s, but the manifest says {utterance.duration:.3f} s."
    return None


def check_audio(utterances: Sequence["Utterance"], *, progress: Progress = no_progress) -> dict[int, str]:
    """Read every utterance's audio: place from 0 → what is missing, empty, truncated, silent or of another duration."""
    problems: dict[int, str] = {}
    for place, utterance in enumerate(utterances):
        if (reason := check_utterance(utterance)) is not None:
            problems[place] = reason
        progress(place + 1, len(utterances), problems=len(problems))
    return problems


def write_wav(path: Path, wave_S: NDArray[np.float32], *, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write 16-bit mono sound atomically; WAV or FLAC by the path's ending."""
    data = BytesIO()
    soundfile.write(data, to_int16(wave_S), sample_rate_hz, format=path.suffix[1:].upper(), subtype="PCM_16")
    write_bytes(path, data.getvalue())


def import_torchaudio() -> ModuleType | None:
    """torchaudio, with its native part where that loads; None if not installed. Call it before transformers."""
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError:
        return None
    except OSError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _absent_extension()
        return importlib.import_module("torchaudio")


def _absent_extension() -> ModuleType:
    def no_native_part(function: Any) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{function.__name__} needs torchaudio's native part, which cannot be loaded here.")

        return fail

    module: Any = ModuleType("torchaudio._extension")
    module.__path__ = []
    module._IS_TORCHAUDIO_EXT_AVAILABLE = module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = no_native_part
    return module  # type: ignore[no-any-return]
