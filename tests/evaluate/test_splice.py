"""The shuffle gap: the words of a split, cut out and joined again in their order and in another."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hkd.align.alignment import Alignment
from hkd.audio import read_audio
from hkd.cli.main import app
from hkd.errors import UserError
from hkd.evaluate.decoding import EDGE_S, PAUSE_S, splice
from hkd.manifest import Manifest, read
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.text import words


def test_both_orders_have_the_same_words_and_the_same_sound(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    part, alignment = read(project.manifest), Alignment(project.alignment)
    spliced, lost = splice(part, alignment, tmp_path / "spliced", shuffled=False)
    shuffled, lost_too = splice(part, alignment, tmp_path / "shuffled", shuffled=True)
    assert lost == lost_too == [u.id for u in part if u.id not in alignment or len(words(u.text)) < 2]
    assert [u.id for u in spliced] == [u.id for u in shuffled]
    for utterance, one, other in zip((u for u in part if u.id not in lost), spliced, shuffled, strict=True):
        assert words(one.text) == words(utterance.text)
        assert sorted(words(other.text)) == sorted(words(utterance.text))
        in_order, in_disorder = read_audio(one), read_audio(other)
        assert len(in_order) == len(in_disorder)
        np.testing.assert_allclose(np.sort(in_order), np.sort(in_disorder), atol=1e-6)  # the same samples elsewhere
        tier = alignment[utterance.id].word_tier
        spoken_s = np.diff(tier.start_U1)[tier.unit_U >= 0].sum() / 100
        pauses_s = 2 * EDGE_S + PAUSE_S * (len(words(one.text)) - 1)
        assert len(in_order) / SAMPLE_RATE_HZ == pytest.approx(spoken_s + pauses_s, abs=0.01)
        first = np.flatnonzero(tier.unit_U == 0)[0]
        begin, edge = tier.start_U1[first] * 160, round(EDGE_S * SAMPLE_RATE_HZ)
        np.testing.assert_allclose(
            in_order[edge + 200 : edge + 300], read_audio(utterance)[begin + 200 : begin + 300], atol=1e-4
        )
    assert any(words(one.text) != words(other.text) for one, other in zip(spliced, shuffled, strict=True))
    with pytest.raises(UserError, match="two words or more"):
        splice(Manifest([]), alignment, tmp_path, shuffled=True)


def test_the_command_prints_the_gap_and_leaves_the_usual_figures(
    project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(project.folder, tmp_path / "demo"))
    monkeypatch.chdir(folder)
    plain = CliRunner().invoke(app, ["evaluate", "none", "--json"])
    before = (folder / "runs" / "none" / "eval-test.json").read_bytes()
    done = CliRunner().invoke(app, ["evaluate", "none", "--shuffle-gap", "--json"])
    assert (plain.exit_code, done.exit_code) == (0, 0), done.output
    rates = json.loads(done.stdout)["none"]
    for order in ("spliced", "shuffled"):
        written = json.loads((folder / "runs" / "none" / f"eval-test-{order}.json").read_text())
        assert written["errors"]["wer"]["rate"] == pytest.approx(rates[order])
    assert (folder / "runs" / "none" / "eval-test.json").read_bytes() == before
    assert CliRunner().invoke(app, ["report", "none"]).exit_code == 0  # which shows the split as it was spoken
    shown = CliRunner().invoke(app, ["evaluate", "none", "--shuffle-gap"]).stdout
    assert f"{100 * (rates['shuffled'] - rates['spliced']):+.1f}" in shown
    (folder / "alignment.arrow").unlink()
    refused = CliRunner().invoke(app, ["evaluate", "none", "--shuffle-gap"])
    assert refused.exit_code == 2
    assert "hkd align" in refused.stderr
