"""Grapheme to phoneme for words that no dictionary holds: the encoder-decoder network of the package g2p-en.

The package itself is never imported: it looks for NLTK data on the network as soon as it is. Its weights, one NumPy file, are all
that prediction needs. The network is a GRU over letters and a greedy GRU over phones (Cho et al. 2014, arXiv 1406.1078, eq. 5-8).
"""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.errors import MissingPackageError

Array = NDArray[np.float32]

_LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 3)}  # 0 pad, 1 unknown, 2 end
_END_OF_WORD = 2
_CONSONANTS = (
    "B",
    "CH",
    "D",
    "DH",
    "F",
    "G",
    "HH",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
)
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
ARPABET = frozenset((*_CONSONANTS, *_VOWELS))
_START, _STOP, _FIRST_PHONE = 2, 3, 4
_MAX_PHONES = 20
# the network's outputs: all phones in alphabetical order, vowels once a stress mark, and UW once without
_OUTPUTS = sorted([*_CONSONANTS, *(vowel + mark for vowel in _VOWELS for mark in "012"), "UW"])


@cache
def _weights() -> dict[str, Array]:
    spec = importlib.util.find_spec("g2p_en")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise MissingPackageError("g2p-en", "test", "Pronouncing words that are not in the dictionary")
    with np.load(Path(folders[0]) / "checkpoint20.npz", allow_pickle=False) as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def _gru(x_D: Array, h_D: Array, weights: dict[str, Array], side: str) -> Array:
    """One step of a GRU: reset and update gates, candidate, mixture."""
    given_3D = weights[f"{side}_w_ih"] @ x_D + weights[f"{side}_b_ih"]
    kept_3D = weights[f"{side}_w_hh"] @ h_D + weights[f"{side}_b_hh"]
    reset_in, update_in, new_in = np.split(given_3D, 3)
    reset_h, update_h, new_h = np.split(kept_3D, 3)
    reset = 1 / (1 + np.exp(-(reset_in + reset_h)))
    update = 1 / (1 + np.exp(-(update_in + update_h)))
    new = np.tanh(new_in + reset * new_h)
    mixed: Array = (1 - update) * new + update * h_D
    return mixed


@cache
def predict_phones(letters: str, *, stress: bool = False) -> tuple[str, ...]:
    """Phones of one word of letters a-z, stress marks folded away unless `stress`; () where the network gives none."""
    weights = _weights()
    h_D = np.zeros(weights["enc_w_hh"].shape[1], np.float32)
    for symbol in [*(_LETTERS[letter] for letter in letters), _END_OF_WORD]:
        h_D = _gru(weights["enc_emb"][symbol], h_D, weights, "enc")
    phones: list[str] = []
    symbol = _START
    for _ in range(_MAX_PHONES):
        h_D = _gru(weights["dec_emb"][symbol], h_D, weights, "dec")
        symbol = int((weights["fc_w"] @ h_D + weights["fc_b"]).argmax())
        if symbol == _STOP:
            break
        if symbol >= _FIRST_PHONE:
            phone = _OUTPUTS[symbol - _FIRST_PHONE]
            phones.append(phone if stress else phone.rstrip("012"))
    return tuple(phones)
