"""pocketsphinx on synthesised speech: tiers, failures, resuming; and text's senones against those that it aligned."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from hkd import manifest
from hkd.align.alignment import Alignment, aligned_to_units
from hkd.align.sphinx import SphinxAligner, SphinxConfig, align_manifest, model_parts
from hkd.audio import probe, read_audio, to_int16, write_wav
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.testing.teachers import synthesise
from hkd.timebase import samples_to_frames
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.lexicon import Lexicon, model_folder
from hkd.units.sequences import Units
from hkd.units.text import words
from hkd.units.tying import WORD_INTERNAL, StateTying, adopt


@pytest.fixture(scope="module")
def tying() -> StateTying:
    return StateTying()


def test_tiers_cover_all_frames_and_fit_into_each_other(prepared: Path, tying: StateTying) -> None:
    alignment = Alignment(prepared / "alignment.arrow")
    for utterance in manifest.read(prepared / "manifest.jsonl"):
        found = alignment[utterance.id]
        frames = samples_to_frames(probe(utterance.audio_filepath or "").num_samples)
        senone, phone, word = found.tiers[SENONE], found.tiers[MONOPHONE], found.word_tier
        assert senone.num_frames == phone.num_frames == word.num_frames == frames
        assert set(word.start_U1) <= set(phone.start_U1) <= set(senone.start_U1)
        assert list(found.words) == words(utterance.text)
        assert word.unit_U[word.unit_U >= 0].tolist() == list(range(len(found.words)))
        # the senone tier folded to phones is the phone tier: three states each
        assert np.array_equal(tying.phone_of_senone_V[senone.unit_U], np.repeat(phone.unit_U, 3))
        assert np.array_equal(tying.state_of_senone_V[senone.unit_U], np.tile([0, 1, 2], len(phone.unit_U)))
        assert np.array_equal(senone.start_U1[::3], phone.start_U1)
        # silence is where no word is
        silent = np.isin(phone.unit_U, tying.silences[MONOPHONE])
        _, word_U = aligned_to_units(found, MONOPHONE, ())
        assert np.array_equal(silent, word_U < 0)


def test_the_artefact_says_what_it_hangs_on(prepared: Path, tying: StateTying) -> None:
    alignment = Alignment(prepared / "alignment.arrow")
    assert alignment.manifest_digest == manifest.read(prepared / "manifest.jsonl").digest
    assert alignment.inventories[SENONE].digest == tying.senone_inventory.digest
    assert alignment.silences == tying.silences
    assert alignment.failed == {}


def test_senones_of_text_equal_the_aligned_ones_where_nothing_was_chosen(prepared: Path, tying: StateTying) -> None:
    """No silence inside and the first pronunciation everywhere: then the tying must give exactly what was aligned."""
    alignment, lexicon = Alignment(prepared / "alignment.arrow"), Lexicon()
    compared = 0
    for name in alignment:
        found = alignment[name]
        phones = [lexicon.pronounce(word) for word in found.words]
        unit_U, word_U = aligned_to_units(found, MONOPHONE, alignment.silences[MONOPHONE])
        inside = found.word_tier.unit_U.tolist()
        if -1 in inside[1:-1] or not np.array_equal(unit_U, tying.monophones(phones)[0]):
            continue
        compared += 1
        assert np.array_equal(word_U, tying.monophones(phones)[1])
        aligned = aligned_to_units(found, SENONE, alignment.silences[SENONE])
        for ours, theirs in zip(tying.senones(phones), aligned, strict=True):
            assert np.array_equal(ours, theirs)
    assert compared >= 3


def test_the_tying_backs_off_as_the_decoder_does(tiny_manifest: Path, tying: StateTying) -> None:
    """Nonsense words with triphones that the model never saw: the decoder's own states, with its silences in their
    places."""
    rng = np.random.default_rng(5)
    phones = [
        phone for phone, filler in zip(tying.definition.phones, tying.definition.filler, strict=True) if not filler
    ]
    aligner = SphinxAligner(SphinxConfig(beam=1e-250, pbeam=1e-250, wbeam=1e-250))
    spoken = {
        f"w{number}": tuple(rng.choice(phones, size=size).tolist())
        for number, size in enumerate((1, 2, 3, 1, 2, 4, 1, 3, 3))
    }
    for name, pronunciation in spoken.items():
        aligner.decoder.add_word(name, " ".join(pronunciation), True)
    compared = backed_off = 0
    for utterance in list(manifest.read(tiny_manifest))[:4]:
        names = rng.choice(list(spoken), size=5).tolist()
        wave_S = to_int16(read_audio(utterance))
        aligner.decoder.set_align_text(" ".join(names))
        aligner._decode(wave_S.tobytes())
        if aligner.decoder.hyp() is None:
            continue
        aligner.decoder.set_alignment()
        aligner._decode(wave_S.tobytes())
        tiers, _ = aligner._walk(len(names), len(wave_S) // 160)
        pronunciations = [("SIL",) if unit < 0 else spoken[names[unit]] for unit in tiers["word"][0]]
        ours, theirs = tying.senones(pronunciations)[0], np.array(tiers[SENONE][0])
        speech = ~np.isin(theirs, tying.silences[SENONE])
        assert np.array_equal(ours[speech], theirs[speech])
        compared += 1
        inner = [(p[1], p[0], p[2]) for p in pronunciations if len(p) == 3]
        backed_off += sum(tying.definition.exact(*(tying.phone_id[x] for x in p), WORD_INTERNAL) is None for p in inner)
    assert compared >= 2
    assert backed_off >= 1  # the case that the test is for


def _broken_corpus(folder: Path, good: Path) -> Manifest:
    """Two good utterances and one of each kind that cannot be aligned."""
    keep = list(manifest.read(good))[:2]
    wave_S = read_audio(keep[0])
    write_wav(folder / "silent.wav", np.zeros(16_000, np.float32))
    write_wav(folder / "short.wav", wave_S[:1600])
    (folder / "empty.wav").touch()
    rows = {
        "silent": ("hello there", str(folder / "silent.wav")),
        "too-short": (keep[0].text, str(folder / "short.wav")),
        "empty": ("hello", str(folder / "empty.wav")),
        "gone": ("hello", str(folder / "gone.wav")),
        "no-words": ("...", keep[0].audio_filepath),
        "digits": ("the mp3 file", keep[0].audio_filepath),
        "wrong": ("quickly zebras jump beyond purple shadows", keep[0].audio_filepath),
    }
    broken = [Utterance(id=name, text=text, audio_filepath=path) for name, (text, path) in rows.items()]
    return Manifest([keep[0], *broken, keep[1]])


def test_what_cannot_be_aligned_is_listed_with_its_reason_and_the_rest_is_kept(
    tmp_path: Path, tiny_manifest: Path
) -> None:
    whole = _broken_corpus(tmp_path, tiny_manifest)
    report = align_manifest(whole, tmp_path / "a.arrow", config=SphinxConfig(jobs=1))
    assert report.kept == 2
    assert set(report.failed) == {"silent", "too-short", "empty", "gone", "no-words", "digits", "wrong"}
    reasons = report.failed
    assert "silent" in reasons["silent"]
    assert "mp3" in reasons["digits"]
    assert "score" in reasons["wrong"] or "no path" in reasons["wrong"]
    assert Alignment(tmp_path / "a.arrow").failed == reasons
    with pytest.raises(UserError, match=r"gone\.wav"):
        Alignment(tmp_path / "a.arrow")["gone"]


def test_bytes_do_not_depend_on_processes_or_order_of_work(tmp_path: Path, tiny_manifest: Path) -> None:
    whole = Manifest(list(manifest.read(tiny_manifest))[:5])
    for name, config in {
        "a": SphinxConfig(jobs=1, chunk_utterances=2),
        "b": SphinxConfig(jobs=2, chunk_utterances=2),
    }.items():
        align_manifest(whole, tmp_path / f"{name}.arrow", config=config)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    backwards = Manifest(reversed(list(whole)))
    align_manifest(backwards, tmp_path / "c.arrow", config=SphinxConfig(jobs=1))
    one, other = Alignment(tmp_path / "a.arrow"), Alignment(tmp_path / "c.arrow")
    assert one.digest == other.digest
    for name in one:
        assert np.array_equal(one[name].tiers[SENONE].start_U1, other[name].tiers[SENONE].start_U1)
    assert not list(tmp_path.glob(".*.work"))


def test_a_finished_alignment_is_left_and_a_foreign_one_refused(tmp_path: Path, prepared: Path) -> None:
    whole = manifest.read(prepared / "manifest.jsonl")
    out = prepared / "alignment.arrow"
    before = out.stat().st_mtime_ns
    report = align_manifest(whole, out, config=SphinxConfig(jobs=1))
    assert (report.kept, report.real_time_factor) == (len(whole), 0)
    assert report.seconds_of_audio == pytest.approx(sum(u.duration or 0 for u in whole), abs=0.01)
    edited = Manifest([Utterance(id=u.id, text=u.text + " again", extra=MappingProxyType({})) for u in whole])
    for arguments in ({"config": SphinxConfig(min_score=-30)}, {}):
        subject = whole if arguments else edited
        with pytest.raises(UserError, match="--overwrite"):
            align_manifest(subject, out, **arguments)
    assert out.stat().st_mtime_ns == before


def test_unknown_words_get_a_pronunciation_and_are_named(tmp_path: Path) -> None:
    text = "the zorblat likes a fizzgig"
    write_wav(tmp_path / "x.wav", synthesise([text])[0])
    report = align_manifest(
        Manifest([Utterance(id="x", text=text, audio_filepath=str(tmp_path / "x.wav"))]),
        tmp_path / "a.arrow",
        config=SphinxConfig(jobs=1),
    )
    assert report.failed == {}
    assert set(report.predicted_words) == {"zorblat", "fizzgig"}
    assert report.predicted_words["zorblat"].split() == list(Lexicon().pronounce("zorblat"))


def test_nothing_aligned_is_an_error_and_leaves_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(HkdError, match="none of 1 utterances"):
        align_manifest(Manifest([Utterance(id="x", text="hi")]), tmp_path / "a.arrow", config=SphinxConfig(jobs=1))
    assert not (tmp_path / "a.arrow").exists()


@pytest.mark.parametrize(
    "wrong", [{"beam": 0.0}, {"wbeam": 2.0}, {"jobs": -1}, {"chunk_utterances": 0}, {"min_score": float("nan")}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        SphinxConfig(**wrong)


def test_another_model_is_a_folder_with_its_dictionary_and_a_projects_units_follow(
    tmp_path: Path, prepared: Path
) -> None:
    two = Manifest(list(manifest.read(prepared / "manifest.jsonl"))[-2:])
    shipped = model_folder() / "en-us"  # the English model as somebody's own: the dictionary lies beside it
    align_manifest(two, tmp_path / "a.arrow", config=SphinxConfig(jobs=1, model=str(shipped)))
    found, wanted = Alignment(tmp_path / "a.arrow"), Alignment(prepared / "alignment.arrow")
    for name in found:
        assert np.array_equal(found[name].tiers[SENONE].start_U1, wanted[name].tiers[SENONE].start_U1)
    with pytest.raises(UserError, match="has not mdef"):
        align_manifest(two, tmp_path / "b.arrow", config=SphinxConfig(jobs=1, model=str(tmp_path)))
    lexicon, tying = model_parts(str(shipped))
    adopt(tmp_path / "units", tying, {"hello": lexicon.variants("hello")})
    units = Units(tmp_path / "units")
    assert np.array_equal(units.encode(["hello"], SENONE)[0], tying.senones([lexicon.pronounce("hello")])[0])


def test_words_lie_around_their_sound(prepared: Path) -> None:
    """Silence's model is narrow: a word begins before its sound and ends after it, by as much. Frames of another grid
    would tilt that."""
    alignment = Alignment(prepared / "alignment.arrow")
    early_s, late_s = [], []
    for utterance in manifest.read(prepared / "manifest.jsonl"):
        wave_S, row = read_audio(utterance), alignment[utterance.id].word_tier
        quiet = row.unit_U < 0
        power_S = np.convolve(wave_S**2, np.ones(80) / 80, "same")  # 5 ms around each sample
        loud = np.flatnonzero(power_S > 1e-4 * power_S.max()) / 16_000
        spoken = row.start_U1[np.flatnonzero(~quiet)[[0, -1]] + [0, 1]] / 100
        if quiet[0] and quiet[-1]:
            early_s.append(loud[0] - spoken[0])
            late_s.append(spoken[1] - loud[-1])
    assert len(early_s) >= 6
    assert abs(float(np.median(late_s) - np.median(early_s))) / 2 < 0.006
    assert float(np.median(early_s)) > 0 < float(np.median(late_s))


def test_an_utterance_does_not_depend_on_the_one_before(prepared: Path, tmp_path: Path) -> None:
    first, second = list(manifest.read(prepared / "manifest.jsonl"))[-2:]
    wave_S = read_audio(first)
    noise_S = np.random.default_rng(0).normal(0, 0.3, len(wave_S)).astype(np.float32)
    write_wav(tmp_path / "noisy.wav", wave_S + noise_S)
    noisy = Utterance(id="noisy", text=first.text, audio_filepath=str(tmp_path / "noisy.wav"))
    config = SphinxConfig(min_score=-1000)
    alone, aligner = SphinxAligner(config).align(second), SphinxAligner(config)
    aligner.align(noisy)
    found = aligner.align(second)
    assert {key: found[key] for key in ("word", SENONE, "score")} == {
        key: alone[key] for key in ("word", SENONE, "score")
    }
