"""Kaldi's alignments: files that Kaldi's own code wrote (tests/golden/make_kaldi.py), against what that code says of
every frame."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hkd import manifest
from hkd.align.alignment import Alignment, aligned_to_units
from hkd.align.fit import ImportConfig, import_alignment
from hkd.align.kaldi import KaldiSource, read_model
from hkd.errors import HkdError, UserError
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.kaldi import read_integer_vectors
from hkd.units.lexicon import Lexicon, split_position

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "kaldi", tmp_path / "exp")
    return tmp_path / "exp"


def expected() -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = json.loads(
        (GOLDEN / "kaldi" / "expected.json").read_text(encoding="utf-8")
    )
    return found


def test_every_frame_is_what_kaldi_says(tmp_path: Path) -> None:
    source = KaldiSource(GOLDEN / "kaldi")
    whole = manifest.read(GOLDEN / "kaldi" / "manifest.jsonl")
    report = import_alignment(whole, tmp_path / "a.arrow", source)
    assert (report.kept, report.failed, report.unused) == (12, {}, ())
    found, table = Alignment(tmp_path / "a.arrow"), source.tying.symbol_of
    for name, theirs in expected().items():
        row = found[name]
        senone_T = np.repeat(row.tiers[SENONE].unit_U, np.diff(row.tiers[SENONE].start_U1))
        phone_T = np.repeat(row.tiers[MONOPHONE].unit_U, np.diff(row.tiers[MONOPHONE].start_U1))
        frames = len(theirs["pdf"])
        assert row.num_frames - frames in (1, 2)  # Kaldi's windows of 25 ms leave out 12.5 ms at both ends
        assert senone_T[1 : frames + 1].tolist() == theirs["pdf"]
        assert [senone_T[0], senone_T[-1]] == [theirs["pdf"][0], theirs["pdf"][-1]]
        symbols = found.inventories[MONOPHONE].symbols
        assert [symbols[unit] for unit in phone_T[1 : frames + 1]] == [table[phone] for phone in theirs["phone"]]
        # one position a visit of a state: as many as there are arcs that are no self-loops
        assert len(row.tiers[SENONE].unit_U) == theirs["stays"].count(0)


def test_text_forms_say_the_same(tmp_path: Path) -> None:
    (transitions, tying), (of_text, other) = read_model(GOLDEN / "kaldi"), read_model(GOLDEN / "kaldi-text")
    assert tying.tree == other.tree
    assert tying.to_json() == other.to_json()
    for name in ("phone_I", "state_I", "senone_I", "stays_I", "ends_I"):
        assert np.array_equal(getattr(transitions, name), getattr(of_text, name))
    text = dict(read_integer_vectors(GOLDEN / "kaldi-text" / "ali.1.ark"))
    binary = dict(read_integer_vectors(GOLDEN / "kaldi" / "ali.1.gz"))
    assert len(text) == 2
    assert all(np.array_equal(text[name], binary[name]) for name in text)


def test_senones_of_text_equal_the_aligned_ones_where_nothing_was_chosen(tmp_path: Path) -> None:
    source, lexicon = KaldiSource(GOLDEN / "kaldi"), Lexicon(GOLDEN / "kaldi" / "lexicon.txt")
    import_alignment(manifest.read(GOLDEN / "kaldi" / "manifest.jsonl"), tmp_path / "a.arrow", source)
    found, tying, compared = Alignment(tmp_path / "a.arrow"), source.tying, 0
    assert found.inventories == {SENONE: tying.senone_inventory, MONOPHONE: tying.monophone_inventory}
    assert found.silences == tying.silences
    for name in found:
        row = found[name]
        phones = [lexicon.pronounce(word) for word in row.words]
        aligned = aligned_to_units(row, MONOPHONE, found.silences[MONOPHONE])
        if -1 in row.word_tier.unit_U[1:-1] or not np.array_equal(aligned[0], tying.monophones(phones)[0]):
            continue
        compared += 1
        for level, ours in ((MONOPHONE, tying.monophones(phones)), (SENONE, tying.senones(phones))):
            for mine, theirs in zip(ours, aligned_to_units(row, level, found.silences[level]), strict=True):
                assert np.array_equal(mine, theirs)
    assert compared >= 3


def test_the_chain_topology_has_two_senones_a_state() -> None:
    transitions, _ = read_model(GOLDEN / "kaldi-chain")
    table = json.loads((GOLDEN / "kaldi-chain" / "expected.json").read_text(encoding="utf-8"))
    assert transitions.senone_I[1:].tolist() == table["pdf"]
    assert transitions.phone_I[1:].tolist() == table["phone"]
    assert transitions.stays_I[1:].astype(int).tolist() == table["stays"]
    assert transitions.ends_I[1:].astype(int).tolist() == table["ends"]
    assert transitions.places(2) == [0, 1]
    enter = [number for number in range(1, 7) if not table["stays"][number - 1]]
    stay = [number for number in range(1, 7) if table["stays"][number - 1]]
    ids_T = np.array([enter[0], stay[0], stay[0], enter[1], enter[1], stay[1]], np.int32)  # SIL, A, A
    start_P, begins_P = transitions.pieces(ids_T)
    assert start_P.tolist() == [0, 1, 3, 4, 5]
    assert begins_P.tolist() == [True, False, True, True, False]
    assert transitions.senone_I[ids_T[start_P]].tolist() == [0, 1, 2, 2, 3]
    backwards = transitions.pieces(ids_T[[1, 2, 0, 3, 5, 4]])  # the same path, not reordered
    assert backwards[1].tolist() == [True, False, True, True, False]


def test_subsampled_frames_stand_for_several(folder: Path, tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    shutil.copytree(GOLDEN / "kaldi-chain", chain)
    (chain / "frame_subsampling_factor").write_text("3\n")
    (chain / "ali.1.ark").write_text(
        "u 1 2 2 3 4 4 5 6 6 1 2 2\n".replace("1 2 2", "2 1 1").replace("3 4 4", "4 3 3").replace("5 6 6", "6 5 5")
    )
    rows = manifest.Manifest([manifest.Utterance(id="u", text="a b", duration=0.36)])
    import_alignment(rows, tmp_path / "a.arrow", KaldiSource(chain))
    row = Alignment(tmp_path / "a.arrow")["u"]
    assert row.word_tier.start_U1.tolist() == [0, 10, 19, 28, 36]  # the sound lies around the middle of Kaldi's windows
    assert row.tiers[SENONE].start_U1.tolist() == [0, 4, 10, 13, 19, 22, 28, 31, 36]
    with pytest.raises(HkdError, match="subsampling"):
        import_alignment(rows, tmp_path / "b.arrow", KaldiSource(chain, subsampling=1))


def test_phones_without_places_take_their_words_from_a_lexicon_or_a_ctm(folder: Path, tmp_path: Path) -> None:
    whole = manifest.read(folder / "manifest.jsonl")
    import_alignment(whole, tmp_path / "a.arrow", KaldiSource(folder))
    reference = Alignment(tmp_path / "a.arrow")
    plain = [line.replace("_", "+") for line in (folder / "phones.txt").read_text().splitlines()]
    (folder / "phones.txt").write_text("\n".join(plain) + "\n")
    with pytest.raises(UserError, match="--lexicon"):
        import_alignment(whole, tmp_path / "b.arrow", KaldiSource(folder))
    entries = []
    for line in (folder / "lexicon.txt").read_text().splitlines():
        word, *phones = line.split()
        places = "S" if len(phones) == 1 else "B" + "I" * (len(phones) - 2) + "E"
        entries.append(" ".join([word, *(f"{phone}+{place}" for phone, place in zip(phones, places, strict=True))]))
    (folder / "words.dict").write_text("\n".join(entries) + "\n")
    import_alignment(whole, tmp_path / "b.arrow", KaldiSource(folder, lexicon=Lexicon(folder / "words.dict")))
    lines = []
    for name in reference:
        tier = reference[name].word_tier
        for unit, start, stop in zip(tier.unit_U, tier.start_U1[:-1], tier.start_U1[1:], strict=True):
            if unit >= 0:
                lines.append(f"{name} 1 {start / 100:.2f} {(stop - start) / 100:.2f} {reference[name].words[unit]}")
    (folder / "words.ctm").write_text("\n".join(lines) + "\n")
    import_alignment(whole, tmp_path / "c.arrow", KaldiSource(folder, word_ctm=folder / "words.ctm"))
    for other in (Alignment(tmp_path / "b.arrow"), Alignment(tmp_path / "c.arrow")):
        for name in reference:
            assert np.array_equal(other[name].word_tier.start_U1, reference[name].word_tier.start_U1)
            assert np.array_equal(other[name].word_tier.unit_U, reference[name].word_tier.unit_U)
    first = next(iter(reference))
    (folder / "words.ctm").write_text("\n".join([*lines, f"{first} 2 0.00 0.10 stranger"]) + "\n")
    source = KaldiSource(folder, word_ctm=folder / "words.ctm")
    report = import_alignment(whole, tmp_path / "d.arrow", source)
    assert report.failed[first].startswith(
        f"{folder / 'words.ctm'} has the sides 1, 2 of '{first}', but the manifest names no channel"
    )
    sided = manifest.Manifest([dataclasses.replace(u, channel=0) for u in whole])
    import_alignment(sided, tmp_path / "e.arrow", source)
    assert np.array_equal(
        Alignment(tmp_path / "e.arrow")[first].word_tier.start_U1, reference[first].word_tier.start_U1
    )


def test_stress_and_named_silence_are_folded_where_asked(folder: Path, tmp_path: Path) -> None:
    table = (folder / "phones.txt").read_text().replace("AH_", "AH1_").replace("SIL", "QUIET")
    (folder / "phones.txt").write_text(table)
    config = ImportConfig(stress=False, silence_phones=("QUIET",))
    import_alignment(
        manifest.read(folder / "manifest.jsonl"),
        tmp_path / "a.arrow",
        KaldiSource(folder, config=config),
        config=config,
    )
    found = Alignment(tmp_path / "a.arrow")
    assert {"AH", "QUIET"} <= set(found.inventories[MONOPHONE].symbols)
    assert found.inventories[MONOPHONE].symbols[found.silences[MONOPHONE][0]] == "QUIET"
    assert all(split_position(symbol)[1] == "" for symbol in found.inventories[MONOPHONE].symbols)


def test_silence_that_may_go_back_and_skip_has_all_its_senones(folder: Path) -> None:
    """The topology of Kaldi's utils/gen_topo.pl, whose middle states lead to each other."""
    text = (GOLDEN / "kaldi-text" / "final.mdl").read_text()
    for state, leads_to in enumerate([(0, 1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)]):
        old = f"<PdfClass> {state} <Transition> {state} 0.5 <Transition> {state + 1} 0.5 </State> \n"
        head, _, tail = text.rpartition(old)
        arcs = " ".join(f"<Transition> {to} 0.25" for to in leads_to)
        text = f"{head}<PdfClass> {state} {arcs} </State> \n{tail}"
    (folder / "final.mdl").write_text(text)
    transitions, tying = read_model(folder)
    assert transitions.places(1) == [0, 1, 2, 3, 4]
    assert len(tying.states((0, tying.silence, 0))) == 5


def test_silence_may_have_places_in_the_word_alone(folder: Path) -> None:
    table = (folder / "phones.txt").read_text().replace("SIL 1\n", "SIL_S 1\n")
    (folder / "phones.txt").write_text(table)
    assert read_model(folder)[1].silence == 1


def test_tags_of_the_transcript_that_were_aligned_are_no_words(folder: Path, tmp_path: Path) -> None:
    whole = manifest.read(folder / "manifest.jsonl")
    import_alignment(whole, tmp_path / "a.arrow", KaldiSource(folder))
    reference = Alignment(tmp_path / "a.arrow")
    rows = [dataclasses.replace(u, text=u.text.replace("The", "<noise>", 1)) for u in whole]
    import_alignment(manifest.Manifest(rows), tmp_path / "b.arrow", KaldiSource(folder))
    found = Alignment(tmp_path / "b.arrow")
    first = found["utt000"]
    assert first.words == reference["utt000"].words[1:]
    assert set(first.word_tier.unit_U.tolist()) == {-1, *range(len(first.words))}
    assert first.word_tier.start_U1[-1] == reference["utt000"].word_tier.start_U1[-1]


def test_a_lexicon_finds_words_between_silences_of_any_name_with_stress_folded(folder: Path, tmp_path: Path) -> None:
    phones = (folder / "phones.txt").read_text().replace("SIL", "QUIET")
    for number, place in enumerate("BIES"):
        phones = phones.replace(f"AH_{place}", f"AH{number}" if number < 3 else "AHx").replace(f"_{place}", f"+{place}")
    (folder / "phones.txt").write_text(phones)
    entries = []
    for line in (folder / "lexicon.txt").read_text().splitlines():
        word, *rest = line.split()
        places = "S" if len(rest) == 1 else "B" + "I" * (len(rest) - 2) + "E"
        spelled = [f"{phone}+{place}" for phone, place in zip(rest, places, strict=True)]
        entries.append(" ".join([word, *spelled]))
    text = "\n".join(entries) + "\n"
    for number, place in enumerate("BIE"):
        text = text.replace(f"AH+{place}", f"AH{number}")
    (folder / "words.dict").write_text(text.replace("AH+S", "AHx"))
    config = ImportConfig(stress=False, silence_phones=("QUIET",))
    source = KaldiSource(folder, lexicon=Lexicon(folder / "words.dict", stress=False), config=config)
    report = import_alignment(manifest.read(folder / "manifest.jsonl"), tmp_path / "a.arrow", source, config=config)
    assert (report.kept, report.failed) == (12, {})


@pytest.mark.parametrize("name", ["ali.1", "ali.1.ark"])
def test_what_is_packed_is_told_by_its_first_bytes(folder: Path, name: str) -> None:
    packed = dict(read_integer_vectors(folder / "ali.1.gz"))
    (folder / name).write_bytes((folder / "ali.1.gz").read_bytes())
    (folder / "ali.1.gz").write_bytes(gzip.decompress((folder / "ali.1.gz").read_bytes()))
    for path in (folder / name, folder / "ali.1.gz"):
        assert {key: ids.tolist() for key, ids in read_integer_vectors(path)} == {
            key: ids.tolist() for key, ids in packed.items()
        }


def _cut(name: str, keep: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(keep((folder / name).read_bytes()))

    return change


def _text(name: str, old: str, new: str) -> Callable[[Path], None]:
    return _cut(name, lambda data: data.replace(old.encode(), new.encode()))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no alignments": (lambda f: [p.unlink() for p in f.glob("ali*")] and None, "holds none"),
    "no model": (lambda f: (f / "final.mdl").unlink(), "must hold final.mdl"),
    "no tree": (lambda f: (f / "tree").unlink(), "must hold tree"),
    "no phones": (lambda f: (f / "phones.txt").unlink(), "lang=FOLDER"),
    "gz cut": (_cut("ali.1.gz", lambda d: d[:-200]), "cannot be unpacked"),
    "gz of nothing": (_cut("ali.1.gz", lambda d: b"hello"), "no key"),
    "archive cut": (_cut("ali.1.gz", lambda d: gzip.compress(gzip.decompress(d)[:-3])), "ends within 'utt005'"),
    "archive of matrices": (_cut("ali.1.gz", lambda d: gzip.compress(b"utt000 \0BFM \4\1\0\0\0")), "something else"),
    "archive of words": (_cut("ali.1.gz", lambda d: gzip.compress(b"utt000 hello there\n")), "something else"),
    "archive of noise": (_cut("ali.1.gz", lambda d: gzip.compress(bytes(range(256)))), "no key"),
    "id twice": (lambda f: shutil.copy(f / "ali.1.gz", f / "ali.3.gz") and None, "is in"),
    "empty model": (_cut("final.mdl", lambda d: b""), "acoustic model of Kaldi"),
    "model cut": (_cut("final.mdl", lambda d: d[:900]), "acoustic model of Kaldi"),
    "model of text": (_cut("final.mdl", lambda d: b"hello"), "'hello' where <TransitionModel>"),
    "tree for model": (_cut("final.mdl", lambda d: (GOLDEN / "kaldi" / "tree").read_bytes()),
        "acoustic model of Kaldi"),
    "model for tree": (_cut("tree", lambda d: (GOLDEN / "kaldi" / "final.mdl").read_bytes()),
        "must be a tree of Kaldi"),
    "tree cut": (_cut("tree", lambda d: d[:5000]), "must be a tree of Kaldi"),
    "tree of another model": (_cut("final.mdl", lambda d: (GOLDEN / "kaldi-chain" / "final.mdl").read_bytes()),
        "belong together"),
    "tree nested for ever": (_cut("tree", lambda d: b"ContextDependency 1 0 ToPdf " + b"TE 0 1 ( " * 50_000),
        "nested too deep"),
    "tree that asks wrongly": (_cut("tree", lambda d: b"ContextDependency 1 0 ToPdf TE 5 1 ( CE 0 ) EndContextDependency "), "place 5"),  # noqa: E501
    "phones of another model": (_text("phones.txt", "SIL 1\n", ""), "lacks number 1"),
    "phones with three columns": (_text("phones.txt", "SIL 1", "SIL 1 x"), "phones.txt:2"),
    "phones numbered by words": (_text("phones.txt", "SIL 1", "SIL one"), "phones.txt:2"),
    "subsampling of a word": (lambda f: (f / "frame_subsampling_factor").write_text("many") and None,
        "number from 1 to 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused_in_a_line(folder: Path, tmp_path: Path, name: str) -> None:
    change, reason = BROKEN[name]
    change(folder)
    with pytest.raises(UserError) as caught:
        import_alignment(manifest.read(folder / "manifest.jsonl"), tmp_path / "a.arrow", KaldiSource(folder))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.arrow").exists()


def test_what_does_not_fit_an_utterance_is_its_reason(folder: Path, tmp_path: Path) -> None:
    ids = dict(read_integer_vectors(GOLDEN / "kaldi" / "ali.1.gz"))
    names = sorted(ids)
    changed = {
        names[0]: ids[names[0]][:-20],
        names[1]: np.append(ids[names[1]], 99999),
        names[2]: ids[names[2]][::-1],
        names[3]: np.zeros(0, np.int32),
        names[4]: np.concatenate([ids[names[4]], ids[names[4]]]),
        "stranger": ids[names[5]],
    }
    (folder / "ali.1.gz").unlink()
    lines = [f"{name} {' '.join(map(str, value))}\n" for name, value in changed.items()]
    (folder / "ali.1.ark").write_text("".join(lines))
    rows = [manifest.Utterance(id=u.id, text=u.text.replace("the", "", 1) if u.id == "utt011" else u.text,
        duration=u.duration)
            for u in manifest.read(folder / "manifest.jsonl")]  # fmt: skip
    report = import_alignment(manifest.Manifest(rows), tmp_path / "a.arrow", KaldiSource(folder))
    reasons = [report.failed[name] for name in names[:5]]
    for reason, wanted in zip(
        reasons, ["ends within a phone", "id 99999", "no alignment by this model", "empty", "subsampling"], strict=True
    ):
        assert wanted in reason
    assert report.failed[names[5]] == "it is not among what was aligned"
    assert report.unused == ("stranger",)
    assert report.kept + len(report.failed) == 12
