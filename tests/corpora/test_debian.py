"""Corpora from Debian packages: the Asterisk prompts and fortunes."""

import gzip
from pathlib import Path

import pytest

from hkd import corpora
from hkd.audio import check_audio
from hkd.corpora.named import decode_g722, fortune_paragraphs, read_prompts, sentences
from hkd.errors import HkdError


def test_the_list_of_prompts(tmp_path: Path) -> None:
    text = (
        "; Core Asterisk Sounds in English\n\nactivated: Activated.\nbeep: [this is a simple beep tone]\nletters/at: at [@]\n"  # noqa: E501
        "confbridge-join: <beep ascending>\nsilence/1: (1 second of silence)\ndict: press * or  # now\nvm: Bye.  (simple tone)\n"  # noqa: E501
        'q: "x: y"\n'
    )
    with gzip.open(tmp_path / "p.gz", "wt") as file:
        file.write(text)
    assert read_prompts(tmp_path / "p.gz") == {
        "activated": "Activated.", "letters/at": "at", "dict": "press star or pound now", "vm": "Bye.", "q": '"x: y"',
    }  # fmt: skip


def test_g722_comes_back_as_it_was_spoken(tmp_path: Path) -> None:
    """Encoded by the same library: half a kilobyte a hundredth of a second, and the tone is there."""
    av = pytest.importorskip("av")
    import numpy as np

    tone = (8000 * np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000)).astype(np.int16)
    with av.open(str(tmp_path / "x.g722"), "w", format="g722") as out:
        stream = out.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    wave_S = decode_g722(tmp_path / "x.g722")
    assert abs(len(wave_S) - 16_000) <= 640
    assert abs(np.abs(np.fft.rfft(wave_S[:8000])).argmax() * 2 - 500) <= 4
    assert 0.15 < np.abs(wave_S).max() < 0.4


def test_what_is_no_g722_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(HkdError, match=r"G\.722"):
        decode_g722(tmp_path / "none.g722")


def test_the_corpus_itself(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("asterisk")
    try:
        whole = corpora.prepare("asterisk", folder, corpora.Options(cache=folder / "cache"))
    except HkdError as error:
        if "could not be had" in str(error) or "need apt" in str(error):
            pytest.skip(str(error))
        raise
    assert len(whole) == 551
    assert sum(u.duration or 0 for u in whole) == pytest.approx(24.26 * 60, abs=1)
    texts = {name: {u.text.lower().strip(".") for u in whole.split(name)} for name in ("train", "dev", "test")}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert check_audio(list(whole)[:40]) == {}


FORTUNES = """It is a fact.  Nobody knows "why."  Dr No did it!
\t\t-- Someone, "A Book"
%
A poem goes on
over two lines.

Second paragraph here.
%
1 + 1 = 3
"""


def test_cookies_become_sentences() -> None:
    paragraphs = list(fortune_paragraphs(FORTUNES))
    assert paragraphs[1:] == ["A poem goes on over two lines.", "Second paragraph here.", "1 + 1 = 3"]
    found = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    assert found == [
        "It is a fact.", 'Nobody knows "why.', "Dr No did it!", "A poem goes on over two lines.",
        "Second paragraph here.",
    ]  # fmt: skip


def test_what_is_mostly_no_letters_is_left_out() -> None:
    assert list(sentences("+--+--+ | a | b |. Ok then. Hm.")) == ["Ok then."]
