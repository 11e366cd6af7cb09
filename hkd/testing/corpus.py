"""A tiny corpus of synthesised English speech: 16 kHz, a few seconds in all, the same bytes every time.

The voice is hibari-tts's (package extra `test`); "speakers" differ in speed and pitch. For tests only: figures from it
mean nothing.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soxr
from numpy.typing import NDArray

from hkd import manifest
from hkd.align.fit import AlignReport
from hkd.align.sphinx import SphinxConfig, align_manifest
from hkd.audio import write_wav
from hkd.errors import MissingPackageError
from hkd.files import write_bytes
from hkd.manifest import Utterance
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.sequences import train_units

SPEEDS = {"anna": 1.0, "ben": 1.15, "carla": 0.9, "dan": 1.05}  # by speaker; dev is carla, test is dan
SPLIT_OF = {"anna": "train", "ben": "train", "carla": "dev", "dan": "test"}
_TTS_RATE_HZ = 24_000
_SUBJECTS = ("the teacher", "my brother", "a small dog", "the old man", "our neighbour", "the red bird")
_VERBS = ("likes", "found", "will open", "carried", "is looking at", "painted")
_OBJECTS = ("the green door", "seven apples", "a letter", "this garden", "the other window", "our house")
_TIMES = ("today", "in the morning", "again", "before dinner", "on monday", "after the rain")


def tiny_sentences(num: int, *, seed: int = 0) -> list[str]:
    """`num` different short sentences of everyday words, the same for the same seed. At most 1,296."""
    sentences = list(itertools.product(_TIMES, _OBJECTS, _VERBS, _SUBJECTS))
    order = np.random.default_rng(seed).permutation(len(sentences))
    return [f"{' '.join(reversed(sentences[number])).capitalize()}." for number in order[:num]]


def synthesise(sentences: Sequence[str], *, speeds: Sequence[float] | None = None) -> list[NDArray[np.float32]]:
    """Speech of each sentence, wave_S at 16 kHz; deterministic."""
    try:
        from hibari import Hibari
    except ImportError:
        raise MissingPackageError("hibari-tts", "test", "Synthesising test speech") from None
    voice = Hibari(threads=1)
    waves = []
    for sentence, speed in zip(sentences, speeds or [1.0] * len(sentences), strict=True):
        wave_S = np.asarray(voice(sentence, seed=0, speed=speed), np.float32)
        pause_S = np.zeros(_TTS_RATE_HZ // 10, np.float32)  # a tenth of a second of silence on both sides
        wave_S = soxr.resample(np.concatenate([pause_S, wave_S, pause_S]), _TTS_RATE_HZ, SAMPLE_RATE_HZ)
        waves.append((0.5 * wave_S / max(1e-6, float(np.abs(wave_S).max()))).astype(np.float32))
    return waves


def tiny_corpus(folder: Path, *, num_utterances: int = 12, seed: int = 0) -> Path:
    """Write audio/ and manifest.jsonl (field `split` by speaker: half train, a quarter dev, a quarter test); the
    manifest's path."""
    sentences = tiny_sentences(num_utterances, seed=seed)
    speakers = [list(SPEEDS)[number % len(SPEEDS)] for number in range(num_utterances)]
    waves = synthesise(sentences, speeds=[SPEEDS[speaker] for speaker in speakers])
    utterances = []
    for number, (sentence, speaker, wave_S) in enumerate(zip(sentences, speakers, waves, strict=True)):
        path = folder.absolute() / "audio" / f"utt{number:03d}.wav"
        write_wav(path, wave_S)
        seconds, extra = len(wave_S) / SAMPLE_RATE_HZ, MappingProxyType({"split": SPLIT_OF[speaker]})
        utterances.append(
            Utterance(
                id=path.stem, text=sentence, audio_filepath=str(path), duration=seconds, speaker=speaker, extra=extra
            )
        )
    manifest.write(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def prepare_folder(folder: Path, *, vocab_size: int = 60, jobs: int = 1) -> AlignReport:
    """Make a whole project of a folder with a manifest.jsonl: hkd.toml, units/ (trained on the train split),
    alignment.arrow."""
    whole = manifest.read(folder / "manifest.jsonl")
    write_bytes(folder / "hkd.toml", b'[prepare]\ncorpus = "tiny"\n')
    train_units([u.text for u in whole.split("train")], folder / "units", vocab_size=vocab_size)
    return align_manifest(whole, folder / "alignment.arrow", config=SphinxConfig(jobs=jobs))
