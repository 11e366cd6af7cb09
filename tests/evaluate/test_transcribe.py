"""One file → text; any format; the same as evaluating it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hkd.api import Student
from hkd.audio import read_audio
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.manifest import read as read_manifest


@pytest.fixture(scope="module")
def recogniser(project) -> Recogniser:  # type: ignore[no-untyped-def]
    return Recogniser(project.runs[1] / "model", device="cpu")


def test_a_file_gives_what_its_sound_gives(project, recogniser: Recogniser) -> None:  # type: ignore[no-untyped-def]
    utterance = read_manifest(project.manifest)[0]
    wave_S = read_audio(utterance)
    result = recogniser.transcribe(Path(utterance.audio_filepath))
    [units] = recogniser.recognise([wave_S])
    assert result["seconds"] == pytest.approx(len(wave_S) / 16_000)
    assert recogniser.search.text(units) == result["text"]
    assert result["pieces"][0]["units"] == [recogniser.meta.inventory.symbols[u] for u in units]
    assert recogniser.transcribe(wave_S) == {**result, "file": ""}


def test_a_batch_gives_what_each_gives_alone(project, recogniser: Recogniser) -> None:  # type: ignore[no-untyped-def]
    waves = [read_audio(u) for u in read_manifest(project.manifest)[:4]]
    assert recogniser.recognise(waves) == [recogniser.recognise([wave_S])[0] for wave_S in waves]


@pytest.mark.parametrize(("ending", "subtype"), [("flac", "PCM_16"), ("ogg", "OPUS"), ("mp3", None)])
def test_any_format_and_rate(recogniser: Recogniser, tmp_path: Path, ending: str, subtype: str | None) -> None:
    path = tmp_path / f"sound.{ending}"
    wave_SC = 0.1 * np.random.default_rng(0).normal(size=(48_000, 2))
    soundfile.write(path, wave_SC, 48_000, subtype=subtype)
    assert recogniser.transcribe(path)["seconds"] == pytest.approx(1.0, abs=0.06)


def test_long_sound_is_cut_into_pieces_that_follow_each_other(recogniser: Recogniser, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=16_000 * 45), 16_000)
    pieces = recogniser.transcribe(path)["pieces"]
    assert len(pieces) >= 3
    assert pieces[0]["start_s"] == 0
    assert pieces[-1]["stop_s"] == 45
    assert all(a["stop_s"] == b["start_s"] for a, b in pairwise(pieces))


def test_a_tensor_is_a_wave(recogniser: Recogniser) -> None:
    wave_S = 0.1 * np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    assert Student(recogniser).transcribe(torch.from_numpy(wave_S)) == Student(recogniser).transcribe(wave_S)


def test_what_is_no_sound_is_refused(recogniser: Recogniser, tmp_path: Path) -> None:
    path = tmp_path / "text.wav"
    path.write_text("no sound")
    with pytest.raises(UserError, match="cannot be read"):
        recogniser.transcribe(path)
    with pytest.raises(UserError, match="No such file"):
        recogniser.transcribe(tmp_path / "missing.wav")
    wave_S = 0.1 * np.random.default_rng(0).normal(size=16_000)
    for wave in (np.stack([wave_S, wave_S]), (wave_S * 32768).astype(np.int16), wave_S[:0]):
        with pytest.raises(UserError, match="a wave must be one channel of floats between -1 and 1"):
            recogniser.transcribe(wave)
    with pytest.raises(UserError, match="a wave must hold samples between -1 and 1, but one is"):
        recogniser.transcribe(wave_S * 32768)
    with pytest.raises(UserError, match="a wave must hold finite samples"):
        recogniser.transcribe(np.where(wave_S > 0.2, np.nan, wave_S))
