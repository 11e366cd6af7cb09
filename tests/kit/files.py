"""Files for tests of what reads files: sounds of any format, archives, folders."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile


def sound(
    seconds: float = 0.2, *, format: str = "WAV", rate_hz: int = 16_000, channels: int = 1, loudness: float = 0.1
) -> bytes:
    """An encoded tone; with several channels each has another loudness."""
    wave_S = loudness * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)
    wave_SC = np.stack([wave_S * (1 + channel) for channel in range(channels)], axis=1)
    out = io.BytesIO()
    soundfile.write(
        out, wave_SC, rate_hz, format=format, subtype={"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(format, "PCM_16")
    )
    return out.getvalue()


def tar_of(files: Mapping[str, bytes], *, packed: str = "gz") -> bytes:
    """A tar archive of files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{packed}") as tar:  # type: ignore[call-overload]
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
