"""Asterisk's English prompts: 24 minutes of one speaker from two Debian packages.

The sound is G.722 without a header; it becomes FLAC at 16 kHz in the cache. Text in [], () or <> is about the sound and is not spoken;
the keys * and # are read as star and pound.
"""

import gzip
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.audio import probe, write_wav
from hkd.corpora.card import load_card
from hkd.corpora.fetch import debian_packages
from hkd.corpora.place import Place
from hkd.errors import HkdError, MissingPackageError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

SPEAKER = "allison"
_NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
_TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"


def read_prompts(path: Path) -> dict[str, str]:
    """Prompt name → what is said, from core-sounds-en.txt.gz; prompts without speech are left out."""
    prompts: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            name, colon, said = line.partition(":")
            said = " ".join(_NOTES.sub(" ", said).replace("*", " star ").replace("#", " pound ").split())
            if colon and not name.startswith(";") and any(c.isalnum() for c in said):
                prompts[name.strip()] = said
    return prompts


def decode_g722(path: Path) -> NDArray[np.float32]:
    """Raw G.722 → wave_S at 16 kHz."""
    try:
        import av
    except ImportError:
        raise MissingPackageError("av", "demo", "Decoding the Asterisk prompts (G.722)") from None
    try:
        with av.open(str(path), format="g722") as file:
            blocks = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    except (av.error.FFmpegError, OSError) as error:
        raise HkdError(f"{path} cannot be decoded as G.722 ({error}).") from None
    wave_S: NDArray[np.float32] = np.concatenate(blocks).astype(np.float32) / np.float32(32768)
    return wave_S


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """All prompts with speech, without splits; audio in the cache's `asterisk`. Of `place` only the cache is used: apt knows its servers."""
    card = load_card("asterisk")
    files = debian_packages(card.packages, card.archives, place.cache)
    prompts = {name: said for name, said in read_prompts(files / _TEXTS).items() if (files / _VOICE / f"{name}.g722").exists()}
    utterances = []
    for number, (name, said) in enumerate(sorted(prompts.items()), 1):
        path = place.cache.absolute() / "asterisk" / f"{name}.flac"
        if not path.exists():
            write_wav(path, decode_g722(files / _VOICE / f"{name}.g722"))
        utterances.append(
            Utterance(id=name, text=said, audio_filepath=str(path), duration=probe(path).duration_s, speaker=SPEAKER)
        )
        progress(number, len(prompts))
    return Manifest(utterances)
