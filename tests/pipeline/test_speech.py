"""pipelines/speech: a sentence's voice, rate and noise are a function of its id; what is there is not made again."""

import importlib.util
from pathlib import Path

from hkd.files import shipped
from hkd.manifest import Utterance


def test_a_sentence_sounds_the_same_whenever_it_is_made(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("synthesise", shipped("pipelines") / "speech" / "synthesise.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VOICES = ("hibari",)  # flite and espeak-ng are not everywhere
    sentence = Utterance(id="text-1", text="Please close the door.")
    first = module.utterance(sentence, tmp_path / "a")
    again = module.utterance(sentence, tmp_path / "b")
    assert (first.speaker, first.split, first.text) == ("hibari", "train", sentence.text)
    assert first.duration == again.duration
    assert 0.5 < (first.duration or 0.0) < 5.0
    path = tmp_path / "a" / "text-1.wav"
    assert path.read_bytes() == (tmp_path / "b" / "text-1.wav").read_bytes()
    made = path.stat().st_mtime_ns
    module.utterance(sentence, tmp_path / "a")
    assert path.stat().st_mtime_ns == made
    other = module.utterance(Utterance(id="text-2", text=sentence.text), tmp_path / "a")
    assert other.duration != first.duration  # another rate
