"""The timeline: segments lie where they are in time, and nothing is drawn for silence."""

from xml.etree import ElementTree

import numpy as np

from hkd.evaluate.timeline import PIXELS_PER_S, TierView, envelope, timeline


def test_segments_are_as_wide_as_they_last() -> None:
    wave_S = np.sin(np.arange(16_000) / 20).astype(np.float32)
    tier = TierView(name="word", start=[0, 20, 70], stop=[20, 70, 100], labels=["", "hello", "a"], sure=[None, 0.5, 1.0])
    tree = ElementTree.fromstring(str(timeline(wave_S, [tier])))
    boxes = [r for r in tree.iter("rect") if r.attrib["class"].startswith("seg")]
    assert [float(b.attrib["width"]) for b in boxes] == [0.5 * PIXELS_PER_S, 0.3 * PIXELS_PER_S]
    bars = [r for r in tree.iter("rect") if r.attrib["class"] == "sure1"]
    heights = [float(b.attrib["height"]) for b in bars]
    assert heights[1] == 2 * heights[0]
    assert "hello: p = 0.50" in [t.text for t in tree.iter("title")]


def test_the_envelope_holds_every_sample() -> None:
    wave_S = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    pairs = envelope(wave_S, 64)
    assert pairs.shape == (64, 2)
    assert pairs[:, 0].min() == wave_S.min()
    assert pairs[:, 1].max() == wave_S.max()
