"""Grapheme to phoneme: against what g2p-en itself documents and against the dictionary."""

import subprocess
import sys

from hkd.units.g2p import predict_phones
from hkd.units.lexicon import Lexicon


def test_a_known_prediction_of_the_package() -> None:
    # from the package's README: "activationist", with the stress marks folded away
    assert predict_phones("activationist") == ("AE", "K", "T", "IH", "V", "EY", "SH", "AH", "N", "IH", "S", "T")


def test_it_has_learnt_english() -> None:
    lexicon = Lexicon()
    sample = ["computer", "garden", "morning", "letter", "window", "brother", "seven", "planet", "doctor", "yellow"]
    right = sum(predict_phones(word) in lexicon.variants(word) for word in sample)
    assert right >= 8


def test_neither_the_package_nor_nltk_is_imported() -> None:
    code = "import sys; from hkd.units.g2p import predict_phones; predict_phones('cat'); print([m for m in ('nltk', 'g2p_en', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
