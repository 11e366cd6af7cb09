"""Sentences spoken by synthetic voices, put beside the training speech of a manifest.

    hkd prepare --text tatoeba-en.txt --out runs/said.jsonl --set total_words=27000
    python pipelines/speech/synthesise.py runs/said.jsonl runs/fresh.jsonl runs/spoken

Voices: hibari-tts (40 % of the sentences), four of flite (40 %) and two of espeak-ng (20 %), the programs `flite` and
`espeak-ng` of Debian's packages. A sentence's voice, rate (0.75 to 1.1) and noise (white, 20 to 35 dB below the speech)
are a function of its id, so the same sentences give the same sound. OUT/audio/ gets the sound, OUT/manifest.jsonl all
rows of the old manifest and the new ones (split train, a speaker a voice). What is there already is not made again.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hkd.audio import probe, read_audio, write_wav
from hkd.errors import UserError
from hkd.features.fbank import generator
from hkd.manifest import Manifest, Utterance, read, write
from hkd.testing.teachers import synthesise

VOICES = ("hibari", "hibari", "hibari", "hibari", "flite rms", "flite awb", "flite slt", "flite kal16",
    "espeak-ng en-us", "espeak-ng en-gb")  # fmt: skip
RATES, NOISE_DB = (0.75, 1.1), (20.0, 35.0)
ESPEAK_WPM = 175  # at rate 1


def spoken(voice: str, text: str, rate: float) -> NDArray[np.float32]:
    """The sentence in a voice, 16 kHz."""
    if voice == "hibari":
        return synthesise([text], speeds=[rate])[0]
    program, name = voice.split()
    options = {
        "flite": ["-voice", name, "--setf", f"duration_stretch={1 / rate:.3f}", "-t", text, "-o"],
        "espeak-ng": ["-v", name, "-s", str(round(ESPEAK_WPM * rate)), text, "-w"],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        subprocess.run([program, *options[program], str(path)], check=True, capture_output=True)
        return read_audio(Utterance(id=voice, text=text, audio_filepath=str(path)))


def utterance(sentence: Utterance, folder: Path) -> Utterance:
    """The sentence as an utterance, its sound made where it is not there."""
    random = generator(0, 0, sentence.id)
    voice = VOICES[int(random.integers(len(VOICES)))]
    rate, noise_db = random.uniform(*RATES), random.uniform(*NOISE_DB)
    path = folder.absolute() / f"{sentence.id}.wav"
    if not path.exists():
        wave_S = spoken(voice, sentence.text, rate)
        noise_S = random.standard_normal(len(wave_S)) * np.sqrt(np.mean(wave_S**2)) * 10 ** (-noise_db / 20)
        write_wav(path, (wave_S + noise_S).astype(np.float32))
    return Utterance(
        id=sentence.id, text=sentence.text, audio_filepath=str(path), duration=probe(path).duration_s, speaker=voice,
        extra=MappingProxyType({"split": "train"}),
    )  # fmt: skip


def beside(sentences: Manifest, speech: Manifest, out: Path) -> Iterator[Utterance]:
    """The speech, then the sentences as they are spoken."""
    missing = {voice.split()[0] for voice in VOICES[4:]} - {
        name for name in ("flite", "espeak-ng") if shutil.which(name)
    }
    if missing:
        raise UserError(
            f"{' and '.join(sorted(missing))} must be installed, but is not. Run: apt-get install flite espeak-ng"
        )
    (out / "audio").mkdir(parents=True, exist_ok=True)
    yield from speech
    yield from (utterance(sentence, out / "audio") for sentence in sentences)


if __name__ == "__main__":
    said, old, folder = map(Path, sys.argv[1:4])
    write(folder / "manifest.jsonl", beside(read(said), read(old), folder))
