"""Sound that no path names: inside other files (lhotse's Shar, parquet, Arrow), or one channel of several. It is written out, file by file."""

import hashlib
import io
import re
from pathlib import Path

import soundfile

from hkd.audio import write_wav
from hkd.errors import UserError
from hkd.files import write_bytes

_ENDINGS = {
    "WAV": ".wav",
    "WAVEX": ".wav",
    "FLAC": ".flac",
    "OGG": ".ogg",
    "MP3": ".mp3",
    "MPEG": ".mp3",
    "NIST": ".sph",
    "AIFF": ".aiff",
    "W64": ".w64",
}
_PLAIN = re.compile(r"\w[\w.-]{0,99}", re.ASCII)


def _path(name: str, ending: str, folder: Path) -> Path:
    """The file's path: called like the utterance where that is a plain name, else by the name's digest. No name leads out of the folder."""
    stem = name if _PLAIN.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:32]
    return folder.absolute() / f"{stem}{ending}"


def write_out(data: bytes, name: str, folder: Path, place: str) -> Path:
    """Write encoded sound below `folder` as it is; nothing where it lies there already. Raises UserError where it is no sound."""
    try:
        ending = _ENDINGS.get(soundfile.info(io.BytesIO(data)).format, ".audio")
    except (soundfile.LibsndfileError, TypeError):
        raise UserError(
            f"{place}: utterance '{name}' must have sound (WAV, FLAC, MP3 or the like), but its bytes are none."
        ) from None
    path = _path(name, ending, folder)
    if not (path.exists() and path.stat().st_size == len(data) and path.read_bytes() == data):
        write_bytes(path, data)
    return path


def write_channel(source: Path, channel: int, name: str, folder: Path, place: str) -> Path:
    """Write one channel of a file below `folder` as FLAC; nothing where there is a file of that name. Raises UserError."""
    path = _path(name, ".flac", folder)
    if not path.exists():
        try:
            wave_SC, rate_hz = soundfile.read(source, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise UserError(f"{place}: audio file {source} cannot be read ({error}).") from None
        if channel >= wave_SC.shape[1]:
            raise UserError(f"{place}: audio file {source} must have channel {channel}, but has {wave_SC.shape[1]} channels.")
        write_wav(path, wave_SC[:, channel], sample_rate_hz=rate_hz)
    return path
