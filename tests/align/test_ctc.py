"""CTC forced alignment: the path against an exhaustive search, words against where they were put, and a tiny wav2vec
2.0."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd import manifest
from hkd.align.alignment import Alignment, pronunciations
from hkd.align.ctc import CtcSource, TransformersCtc, best_path, word_times
from hkd.align.files import pronounce_by
from hkd.align.fit import FailureError, import_alignment
from hkd.audio import import_torchaudio, write_wav
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.units.inventory import MONOPHONE
from hkd.units.lexicon import Lexicon

import_torchaudio()


def collapsed(classes: tuple[int, ...]) -> list[int]:
    return [unit for unit, _ in itertools.groupby(classes) if unit != 0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.lists(st.integers(1, 2), min_size=1, max_size=3))
def test_the_path_is_the_best_of_all_that_spell_the_units(seed: int, frames: int, units: list[int]) -> None:
    logits = np.random.default_rng(seed).normal(size=(frames, 3)).astype(np.float32)
    logp_TV = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    paths = [path for path in itertools.product(range(3), repeat=frames) if collapsed(path) == units]
    unit_U = np.array(units, np.int32)
    if not paths:
        with pytest.raises(FailureError, match="units"):
            best_path(logp_TV, unit_U, blank=0)
        return
    found = best_path(logp_TV, unit_U, blank=0)
    state_V = np.zeros(2 * len(units) + 1, np.int64)
    state_V[1::2] = units
    assert collapsed(tuple(state_V[found].tolist())) == units
    score = float(logp_TV[np.arange(frames), state_V[found]].sum())
    assert score == pytest.approx(
        max(sum(float(logp_TV[t, c]) for t, c in enumerate(path)) for path in paths), abs=1e-4
    )


def test_words_take_half_of_the_blanks_beside_them_and_a_tenth_of_a_second_at_most() -> None:
    path_T = np.array([0, 0, 1, 2, 3, 4, 4, 5, 6, 6] + [6] * 30)  # units in frames 2, 4, 7
    times = word_times(path_T, np.array([0, 0, 1], np.int32), frame_s=0.02)
    assert times == [pytest.approx((0.0, 0.12)), pytest.approx((0.12, 0.26))]


class Peaks:
    """A made-up model that hears letter n in frame 5 n + 2 and blank elsewhere: 20 ms a frame."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.blank, self.identity, self.left_out, self._texts = 0, {"name": "peaks"}, {}, texts

    def log_probs(self, wave_S: np.ndarray) -> np.ndarray:
        letters = [ord(c) - 96 for c in self._texts[len(wave_S)] if c != " "]
        p_TV = np.full((len(wave_S) // 320, 27), 1e-3, np.float32)
        p_TV[:, 0] = 0.9
        for number, letter in enumerate(letters):
            p_TV[5 * number + 2, :] = 1e-3
            p_TV[5 * number + 2, letter] = 0.9
        return np.log(p_TV / p_TV.sum(1, keepdims=True))

    def encode(self, spoken):
        unit = [ord(c) - 96 for word in spoken for c in word]
        return np.array(unit, np.int32), np.repeat(np.arange(len(spoken)), [len(word) for word in spoken]).astype(
            np.int32
        )


def peaks(folder: Path, text: str = "a red bird") -> tuple[Manifest, Peaks]:
    samples = 16_000
    write_wav(folder / "a.wav", np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1)
    return Manifest([Utterance(id="a", text=text, audio_filepath=str(folder / "a.wav"))]), Peaks(
        {samples: "a red bird"}
    )


def test_words_lie_where_the_model_hears_them_and_phones_share_them(tmp_path: Path) -> None:
    whole, model = peaks(tmp_path)
    report = import_alignment(whole, tmp_path / "a.arrow", CtcSource(model, pronounce=pronounce_by(Lexicon())))
    found = Alignment(tmp_path / "a.arrow")
    assert (report.kept, len(report.notes)) == (1, 2)
    assert found["a"].word_tier.unit_U.tolist() == [0, 1, 2, -1]
    assert found["a"].word_tier.start_U1.tolist() == [0, 10, 40, 86, 100]
    assert pronunciations(found) == {"a": [("AH",)], "red": [("R", "EH", "D")], "bird": [("B", "ER", "D")]}
    import_alignment(whole, tmp_path / "b.arrow", CtcSource(model))
    assert Alignment(tmp_path / "b.arrow").inventories == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("zyx zyx zyx", "not what was spoken"), ("...", "no words"), ("a" * 60, "119 units"), ("", "no words")],
)
def test_what_cannot_have_been_spoken_is_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    whole, model = peaks(tmp_path, text)
    with pytest.raises(HkdError, match=reason):
        import_alignment(whole, tmp_path / "a.arrow", CtcSource(model, min_score=-0.5))


def tiny_wav2vec(folder: Path, apostrophe: str = "'") -> Path:
    """A wav2vec 2.0 with random weights, saved as transformers saves one."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(10, 32), conv_kernel=(20, 40), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", apostrophe, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_a_checkpoint_of_transformers_aligns(tmp_path: Path, tiny_manifest: Path) -> None:
    model, other = (TransformersCtc(str(tiny_wav2vec(tmp_path / name, mark))) for name, mark in ("a'", "bʻ"))
    unit_U, word_U = model.encode(["it's", "a", "łe"])
    assert other.encode(["it's"])[0].tolist() == unit_U[:4].tolist(), "one apostrophe is as good as another"
    assert unit_U.tolist() == [14, 25, 5, 24, 4, 6, 4, 10]
    assert word_U.tolist() == [0, 0, 0, 0, -1, 1, -1, 2]
    with pytest.raises(FailureError, match="'łł'"):
        model.encode(["łł"])
    with pytest.raises(FailureError, match=r"cannot read 0\.001 s of sound"):
        model.log_probs(np.zeros(16, np.float32))
    whole = Manifest(list(manifest.read(tiny_manifest))[:2])
    report = import_alignment(whole, tmp_path / "a.arrow", CtcSource(model, pronounce=pronounce_by(Lexicon())))
    found = Alignment(tmp_path / "a.arrow")
    assert report.kept == 2
    assert "no unit for 2 letters" in report.notes[-1]
    assert "'Ł' ('łe'), 'ł' ('łł')" in report.notes[-1]
    for utterance in whole:
        row = found[utterance.id]
        assert row.word_tier.unit_U[row.word_tier.unit_U >= 0].tolist() == list(range(len(row.words)))
        assert set(row.word_tier.start_U1) <= set(row.tiers[MONOPHONE].start_U1)
    with pytest.raises(UserError, match="the CTC model must be a folder with"):
        TransformersCtc(str(tmp_path))
