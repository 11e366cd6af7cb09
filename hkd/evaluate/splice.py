"""The shuffle gap: how much worse a student reads the same words in an order that says nothing.

The words of each utterance are cut out at its alignment and joined again, in their own order (`spliced`) or in another
(`shuffled`). A word begins and ends with a ramp, a pause stands between two, in both alike. So the sound of the words
and of the joins is the same; what differs is what a neighbour says about a word. The gap, WER(shuffled) − WER(spliced),
grows with what the student has learnt about sentences.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, UtteranceAlignment
from hkd.audio import read_audio, write_wav
from hkd.errors import UserError
from hkd.features.augment import generator
from hkd.manifest import Manifest, Utterance
from hkd.timebase import FRAME_SHIFT_S, SAMPLE_RATE_HZ

SPLICED, SHUFFLED = "spliced", "shuffled"
RAMP_S, PAUSE_S, EDGE_S = 0.01, 0.1, 0.2  # of a word's ends; between two words; before the first and after the last


def splice(part: Manifest, alignment: Alignment, folder: Path, *, shuffled: bool) -> tuple[Manifest, list[str]]:
    """Write folder/NUMBER.wav for each utterance that is aligned and has two words or more; (their manifest, ids of the
    others).

    Both orders leave out the same utterances. Raises UserError where none is left, or sound cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made, left_out = [], []
    for number, utterance in enumerate(part):
        aligned = alignment[utterance.id] if utterance.id in alignment else None  # noqa: SIM401 (no dict)
        order = np.arange(0) if aligned is None else _order(utterance, aligned, shuffled=shuffled)
        if aligned is None or len(order) < 2:
            left_out.append(utterance.id)
            continue
        wave_S = _joined(read_audio(utterance), aligned, order)
        write_wav(path := folder / f"{number}.wav", wave_S)
        text, duration = " ".join(aligned.words[word] for word in order), len(wave_S) / SAMPLE_RATE_HZ
        made.append(
            replace(utterance, text=text, audio_filepath=str(path), offset=0.0, duration=duration, channel=None)
        )
    if not made:
        raise UserError(
            "the split must have utterances of two words or more that are aligned, but has none. Run `hkd align`."
        )
    return Manifest(made), left_out


def _order(utterance: Utterance, aligned: UtteranceAlignment, *, shuffled: bool) -> NDArray[np.int64]:
    """The numbers of the words as they are to be said: a function of the utterance's id, never their own order where
    they are shuffled."""
    own = np.arange(len(aligned.words))
    order, random = own, generator(0, 0, f"splice {utterance.id}")
    while shuffled and len(own) > 1 and bool((order == own).all()):
        order = random.permutation(own)
    return order


def _joined(wave_S: NDArray[np.float32], aligned: UtteranceAlignment, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """The words one after the other, with ramps and pauses."""
    tier, per_frame = aligned.word_tier, round(FRAME_SHIFT_S * SAMPLE_RATE_HZ)
    pause_S, edge_S = (np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32) for seconds in (PAUSE_S, EDGE_S))
    parts = [edge_S]
    for word in order:
        [place] = np.flatnonzero(tier.unit_U == word)
        said_S = wave_S[tier.start_U1[place] * per_frame : tier.start_U1[place + 1] * per_frame].copy()
        ramp_R = np.linspace(0, 1, min(round(RAMP_S * SAMPLE_RATE_HZ), len(said_S) // 2), dtype=np.float32)
        said_S[: len(ramp_R)] *= ramp_R
        said_S[len(said_S) - len(ramp_R) :] *= ramp_R[::-1]
        parts += [said_S, pause_S]
    return np.concatenate([*parts[:-1], edge_S])
