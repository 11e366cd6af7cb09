"""TextGrids: every text layout that Praat has, as MFA 3 writes them; praatio as the independent writer and reader."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from praatio import textgrid as praat
from praatio.utilities.constants import Interval as PraatInterval

from hkd.align.alignment import Alignment
from hkd.align.files import MfaSource, read_textgrid
from hkd.align.fit import ImportConfig, import_alignment
from hkd.errors import HkdError, UserError
from hkd.manifest import Manifest, Utterance
from hkd.units.inventory import MONOPHONE
from hkd.units.lexicon import Lexicon

WORDS = [(0.0, 0.11, ""), (0.11, 0.43, "the"), (0.43, 0.95, "<unk>"), (0.95, 1.02, ""), (1.02, 1.5, "cat's")]
PHONES = [
    (0.0, 0.11, ""),
    (0.11, 0.2, "DH"),
    (0.2, 0.43, "AH0"),
    (0.43, 0.95, "spn"),
    (0.95, 1.02, "sil"),
    (1.02, 1.2, "K"),
]
PHONES += [(1.2, 1.4, "AE1"), (1.4, 1.45, "T"), (1.45, 1.5, "S")]
END_S = 2.0


def mfa_long(tiers: dict[str, list[tuple[float, float, str]]], end_s: float = END_S) -> str:
    """The long format, letter by letter as MFA 3 writes it: tiers filled with empty intervals to the end of the
    sound."""
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0 ",
        f"xmax = {end_s} ",
        "tiers? <exists> ",
    ]
    lines += [f"size = {len(tiers)} ", "item []: "]
    for number, (name, rows) in enumerate(tiers.items(), 1):
        rows = rows if rows[-1][1] == end_s else [*rows, (rows[-1][1], end_s, "")]
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += ["        xmin = 0 ", f"        xmax = {end_s} ", f"        intervals: size = {len(rows)} "]
        for place, (start, stop, label) in enumerate(rows, 1):
            quoted = label.replace('"', '""')
            lines += [f"        intervals [{place}]:", f"            xmin = {start} ", f"            xmax = {stop} "]
            lines += [f'            text = "{quoted}" ']
    return "\n".join(lines) + "\n"


def corpus(text: str = "The quick cat's", **fields) -> Manifest:
    return Manifest([Utterance(id="utt-1", text=text, audio_filepath="/data/anna/rec1.wav", duration=END_S, **fields)])


def aligned(folder: Path, manifest: Manifest, **options) -> Alignment:
    import_alignment(manifest, folder / "out.arrow", MfaSource(folder / "tg"), overwrite=True, **options)
    return Alignment(folder / "out.arrow")


def put(folder: Path, data: str | bytes, name: str = "anna/rec1.TextGrid") -> Path:
    path = folder / "tg" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def check(alignment: Alignment) -> None:
    row = alignment["utt-1"]
    assert row.words == ("the", "quick", "cat's")
    assert row.word_tier.unit_U.tolist() == [-1, 0, 1, -1, 2, -1]
    assert row.word_tier.start_U1.tolist() == [0, 11, 43, 95, 102, 150, 200]
    symbols = alignment.inventories[MONOPHONE].symbols
    phones = [symbols[unit] for unit in row.tiers[MONOPHONE].unit_U]
    assert phones == ["sil", "DH", "AH0", "spn", "sil", "K", "AE1", "T", "S", "sil"]
    assert row.tiers[MONOPHONE].start_U1.tolist() == [0, 11, 20, 43, 95, 102, 120, 140, 145, 150, 200]
    kept = alignment.positions("utt-1", MONOPHONE)
    assert [symbols[unit] for unit in kept.unit_U] == ["DH", "AH0", "K", "AE1", "T", "S"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_the_long_format_in_all_encodings(tmp_path: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    put(tmp_path, mark + mfa_long({"words": WORDS, "phones": PHONES}).encode(encoding))
    check(aligned(tmp_path, corpus()))


@pytest.mark.parametrize("layout", ["short_textgrid", "long_textgrid"])
@pytest.mark.parametrize("blanks", [True, False])
def test_what_praatio_writes(tmp_path: Path, layout: str, blanks: bool) -> None:
    grid = praat.Textgrid()
    for name, rows in {"words": WORDS, "phones": PHONES}.items():
        grid.addTier(praat.IntervalTier(name, [PraatInterval(*row) for row in rows if row[2]], 0, END_S))
    path = put(tmp_path, b"")
    grid.save(str(path), format=layout, includeBlankSpaces=blanks)
    check(aligned(tmp_path, corpus()))


labels = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 500), labels), min_size=1, max_size=12),
    st.sampled_from(["short_textgrid", "long_textgrid"]),
)
def test_any_tier_survives_the_way_through_praatio(tmp_path_factory: pytest.TempPathFactory, rows, layout: str) -> None:
    edges = np.cumsum([0, *(length for length, _ in rows)]) / 1000
    intervals = [
        PraatInterval(float(a), float(b), label) for a, b, (_, label) in zip(edges[:-1], edges[1:], rows, strict=True)
    ]
    path = tmp_path_factory.mktemp("tg") / "x.TextGrid"
    grid = praat.Textgrid()
    grid.addTier(praat.IntervalTier("a tier", intervals, 0, float(edges[-1])))
    grid.save(str(path), format=layout, includeBlankSpaces=True)
    found = read_textgrid(path)["a tier"]
    assert [(row.start, row.stop, row.label) for row in found] == [tuple(row) for row in intervals]


def test_several_speakers_have_tiers_of_their_own(tmp_path: Path) -> None:
    other = [(0.0, 2.0, "")]
    tiers = {"ben - words": other, "ben - phones": other, "anna - words": WORDS, "anna - phones": PHONES}
    put(tmp_path, mfa_long(tiers))
    check(aligned(tmp_path, corpus(speaker="anna")))
    with pytest.raises(HkdError, match="speakers ben, anna, but not 'carla'"):
        aligned(tmp_path, corpus(speaker="carla"))


@pytest.mark.parametrize("names", [("ORT-MAU", "MAU"), ("TokensAlign", "PhonAlign"), ("Word", "Phone")])
def test_tiers_may_have_the_names_of_other_tools_and_stand_in_any_order(tmp_path: Path, names: tuple[str, str]) -> None:
    put(tmp_path, mfa_long({names[1]: PHONES, "KAN-MAU": WORDS, names[0]: WORDS}))
    check(aligned(tmp_path, corpus()))


@pytest.mark.parametrize("name", ["<p:>", "<nib>", "[noise]", "{BR}", "+BREATH+", "!SIL", "#", "_", "h#", "sp", "NSN"])
@pytest.mark.parametrize("is_said", [True, False])
def test_what_is_silence_by_its_name_is_no_position(tmp_path: Path, name: str, is_said: bool) -> None:
    """Tools write it in the tier of words too, or leave that empty."""
    word = name if is_said and name != "NSN" else ""
    words = [(a, b, label or word) for a, b, label in WORDS]
    phones = [(a, b, name if label in ("", "sil") else label) for a, b, label in PHONES]
    put(tmp_path, mfa_long({"words": words, "phones": phones}))
    found = aligned(tmp_path, corpus())
    symbols = found.inventories[MONOPHONE].symbols
    assert found["utt-1"].word_tier.unit_U.tolist() == [-1, 0, 1, -1, 2, -1]
    assert name in [symbols[unit] for unit in found.silences[MONOPHONE]]
    assert [symbols[unit] for unit in found.positions("utt-1", MONOPHONE).unit_U] == ["DH", "AH0", "K", "AE1", "T", "S"]


@pytest.mark.parametrize("name", ["noise", "spn", "<eps>", "pause", "[noise]"])
def test_a_mark_of_silence_among_the_words_is_no_word(tmp_path: Path, name: str) -> None:
    spoken = [(start, stop, word or name) for start, stop, word in WORDS]
    put(tmp_path, mfa_long({"words": spoken, "phones": PHONES}))
    check(aligned(tmp_path, corpus()))


def test_a_pause_of_another_name_is_named_with_what_to_do(tmp_path: Path) -> None:
    put(tmp_path, LONG.replace('"sil"', '"xx"'))
    with pytest.raises(HkdError, match=r"phone 'xx' at 0\.95 s lies in no word: .* \(--set silence=xx\)\.$"):
        aligned(tmp_path, corpus())
    assert len(aligned(tmp_path, corpus(), config=ImportConfig(silence_phones=("xx",)))) == 1


def test_files_are_found_by_id_then_by_the_sound_files_name_and_folder(tmp_path: Path) -> None:
    text = mfa_long({"words": WORDS, "phones": PHONES})
    put(tmp_path, text.replace("<unk>", "slow"), "ben/rec1.TextGrid")
    put(tmp_path, text, "anna/rec1.TextGrid")
    check(aligned(tmp_path, corpus()))
    put(tmp_path, text, "carla/utt-1.TextGrid")
    check(aligned(tmp_path, corpus()))


@pytest.mark.parametrize("name", ["mu\u0308ller/re\u0301c1.TextGrid", "Müller/RÉC1.TextGrid"])
def test_names_with_other_accents_or_case_are_found_and_noted(tmp_path: Path, name: str) -> None:
    put(tmp_path, LONG, name)
    put(tmp_path, LONG.replace("the", "a"), "carla/réc2.TextGrid")
    put(tmp_path, LONG.replace("the", "a"), f"carla/{Path(name).name}")
    (one,) = corpus()
    many = Manifest([dataclasses.replace(one, audio_filepath="/data/m\u00fcller/r\u00e9c1.wav")])
    check(aligned(tmp_path, many))
    notes = import_alignment(many, tmp_path / "b.arrow", MfaSource(tmp_path / "tg")).notes
    assert notes[0] == f"1 TextGrids have names that are written otherwise (accents, case), the first is {name}"
    put(tmp_path, LONG, "m\u00fcller/r\u00e9c1.TextGrid")  # as it is written comes first
    assert "written otherwise" not in str(
        import_alignment(many, tmp_path / "c.arrow", MfaSource(tmp_path / "tg")).notes
    )


def test_phones_are_one_whatever_form_their_accents_have(tmp_path: Path) -> None:
    put(tmp_path, LONG.replace('"AE1"', '"a\u0303"'))
    (tmp_path / "a.dict").write_text("the DH AH0\ncat's K \u00e3 T S\n", encoding="utf-8")
    source = MfaSource(tmp_path / "tg", dictionary=("sil", "spn", *Lexicon(tmp_path / "a.dict").phones))
    import_alignment(corpus(), tmp_path / "a.arrow", source)
    assert Alignment(tmp_path / "a.arrow").inventories[MONOPHONE].symbols == source.phones


def test_a_recording_is_cut_by_the_manifests_times(tmp_path: Path) -> None:
    put(tmp_path, mfa_long({"words": WORDS, "phones": PHONES}))
    audio = "/data/anna/rec1.wav"
    whole = Manifest(
        [
            Utterance(id="a", text="the quick", audio_filepath=audio, offset=0.0, duration=0.99),
            Utterance(id="b", text="cat's", audio_filepath=audio, offset=0.99, duration=1.01),
        ]
    )
    found = aligned(tmp_path, whole)
    assert found["a"].word_tier.start_U1.tolist() == [0, 11, 43, 95, 99]
    assert found["b"].word_tier.start_U1.tolist() == [0, 51, 101]


def test_ipa_with_or_without_a_dictionary_and_stress_folded(tmp_path: Path) -> None:
    ipa = {"DH": "ð", "AH0": "ə", "K": "kʰ", "AE1": "æ", "T": "t", "S": "s"}
    put(tmp_path, mfa_long({"words": WORDS, "phones": [(a, b, ipa.get(p, p)) for a, b, p in PHONES]}))
    assert aligned(tmp_path, corpus()).inventories[MONOPHONE].symbols == ("kʰ", "s", "sil", "spn", "t", "æ", "ð", "ə")
    source = MfaSource(tmp_path / "tg", dictionary=["sil", "spn", "ə", "æ", "ɒ", "ð", "kʰ", "s", "t"])
    import_alignment(corpus(), tmp_path / "b.arrow", source)
    assert Alignment(tmp_path / "b.arrow").inventories[MONOPHONE].symbols == source.phones
    put(tmp_path, mfa_long({"words": WORDS, "phones": PHONES}))
    import_alignment(corpus(), tmp_path / "c.arrow", MfaSource(tmp_path / "tg"), config=ImportConfig(stress=False))
    assert "AH" in Alignment(tmp_path / "c.arrow").inventories[MONOPHONE].symbols


LONG = mfa_long({"words": WORDS, "phones": PHONES})
SILENT = [(0.0, 2.0, "")]
BROKEN = {
    "empty": (b"", "truncated"),
    "no TextGrid": ("hello", "must be a TextGrid"),
    "binary": (b"ooBinaryFile\x08TextGrid\x00", "binary format"),
    "not UTF-8": (LONG.replace("cat's", "caté").encode("latin-1"), "Save it again as UTF-8"),
    "truncated UTF-16": (LONG.encode("utf-16")[:901], "must be a TextGrid"),
    "truncated in a tier": (LONG[: len(LONG) // 2], "truncated"),
    "truncated in a label": (LONG[: LONG.index('"cat') + 3], "truncated"),
    "a collection": (LONG.replace('"TextGrid"', '"Collection"'), "Collection"),
    "no tiers at all": (LONG.replace("<exists>", "<absent>"), "no tiers"),
    "times are words": (LONG.replace("xmin = 0.43", 'xmin = "x"', 1), "must be a TextGrid"),
    "NaN": (LONG.replace("xmin = 0.43", "xmin = nan", 1), "nan"),
    "infinite": (LONG.replace("xmax = 0.43", "xmax = inf", 1), "inf"),
    "a billion intervals": (LONG.replace("size = 6", "size = 9999999999", 1), "size is 1e"),
    "half an interval": (LONG.replace("size = 6", "size = 5.5", 1), "size is 5.5"),
    "a tier twice": (
        mfa_long({"words": WORDS}).replace("size = 1", "size = 2") + LONG.partition("item []:")[2],
        "stands twice",
    ),
    "only words": (mfa_long({"words": WORDS}), "no tiers `words` and `phones`, but words"),
    "other tiers": (mfa_long({"Mary": WORDS, "John": WORDS}), "but Mary, John"),
    "overlap": (LONG.replace("xmin = 1.2 ", "xmin = 1.1 "), "overlap at 1.10"),
    "backwards": (
        LONG.replace("xmax = 1.2 ", "xmax = 0.9 "),
        "the phone 'K' ends at 0.9 s, before it begins at 1.02 s",
    ),
    "no words spoken": (mfa_long({"words": SILENT, "phones": SILENT}), "before the transcript's word 'the'"),
    "another word": (LONG.replace("cat's", "dog"), "'dog' where the transcript has 'cat's'"),
    "a word too few": (LONG.replace("cat's", ""), "'K' at 1.02 s lies in no word"),
    "a phone outside words": (LONG.replace('"sil"', '"AA1"'), "lies in no word"),
    "too few intervals": (LONG[: LONG.index("        intervals [5]:")], "should have 6 intervals to 2 s, but has 4"),
    "a phone of no duration": (
        LONG.replace("xmin = 1.4 ", "xmin = 1.45 "),
        "TextGrid:74: the phone 'T' at 1.45 s has no duration",
    ),
    "a word of no duration": (
        LONG.replace("xmin = 1.02 ", "xmin = 1.5 ", 1),
        "TextGrid:32: the word 'cat's' at 1.5 s has no duration",
    ),
    "a tier too few": (mfa_long({"words": WORDS}).replace("size = 1", "size = 2"), "where a tier's class should stand"),
    "a word without phones": (LONG.replace('"spn"', '""'), "'quick' has no sound"),
    "longer than the sound": (LONG.replace("2.0", "2.4"), "the sound from 0 to 2.00 s"),
}


HARMLESS = {
    "a silence of no length": LONG.replace(
        "xmin = 1.5 \n            xmax = 2.0 ", "xmin = 2.0 \n            xmax = 2.0 "
    ),
    "a pause of no length": mfa_long({"words": WORDS, "phones": [*PHONES[:3], (0.43, 0.43, "sp"), *PHONES[3:]]}),
    "a noise of no length": mfa_long({"words": [*WORDS[:3], (0.95, 0.95, "[noise]"), *WORDS[3:]], "phones": PHONES}),
    "noise of floats": LONG.replace("xmax = 0.2 ", "xmax = 0.20000000000000004 ").replace(
        "xmax = 1.4 ", "xmax = 1.3999999999999997 "
    ),
    "a count that is too small": LONG.replace("size = 10 ", "size = 3 "),
    "a count of none": LONG.replace("size = 10 ", "size = 0 "),
    "a count that is too large": LONG.replace("size = 10 ", "size = 99 "),
    "tiers that are not counted": LONG.replace("size = 2 ", "size = 1 "),
    "another tier twice": mfa_long({"notes": WORDS, "words": WORDS, "phones": PHONES, "NOTES": WORDS}).replace(
        "NOTES", "notes"
    ),
    "CRLF": LONG.replace("\n", "\r\n"),
    "tabs, no blanks at equals signs": LONG.replace("    ", "\t").replace(" = ", "="),
    "exponents": LONG.replace("xmin = 0.11 ", "xmin = 1.1e-1 "),
    "a comment": "! by hand\n" + LONG,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_tools_write_beside_the_rules_is_read_all_the_same(tmp_path: Path, name: str) -> None:
    text = HARMLESS[name]
    assert text != LONG
    put(tmp_path, text)
    check(aligned(tmp_path, corpus()))


@pytest.mark.parametrize("name", ["anna/rec1.textgrid", "anna/rec1.TEXTGRID", "anna/rec1.Textgrid"])
def test_endings_are_read_in_any_case_and_linked_folders_are_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "tg").mkdir()
    (tmp_path / "tg/anna").symlink_to(tmp_path / "far")
    put(tmp_path, LONG, name)
    check(aligned(tmp_path, corpus()))


def test_words_that_the_tool_did_not_know_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path, LONG)
    report = import_alignment(corpus(), tmp_path / "a.arrow", MfaSource(tmp_path / "tg"))
    assert len(report.notes) == 1
    assert "1 words (1 different) of 1 utterances have no phones" in report.notes[0]
    assert report.notes[0].endswith("'quick'")
    put(tmp_path, LONG.replace("<unk>", "quick").replace('"spn"', '"K"'))
    assert import_alignment(corpus(), tmp_path / "b.arrow", MfaSource(tmp_path / "tg")).notes == ()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_reasons_in_a_line(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    put(tmp_path, data)
    with pytest.raises(HkdError) as caught:
        aligned(tmp_path, corpus())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1  # not one utterance could be aligned


def test_the_rest_is_kept_and_what_was_dropped_is_listed(tmp_path: Path) -> None:
    put(tmp_path, LONG)
    put(tmp_path, "hello", "anna/rec2.TextGrid")
    put(tmp_path, LONG, "stranger.TextGrid")
    two = Manifest(
        [*corpus(), *(Utterance(id=f"utt-{n}", text="x", audio_filepath=f"rec{n}.wav", duration=1.0) for n in (2, 3))]
    )
    report = import_alignment(two, tmp_path / "a.arrow", MfaSource(tmp_path / "tg"))
    assert (report.kept, report.unused, set(report.failed)) == (1, ("stranger.TextGrid",), {"utt-2", "utt-3"})
    assert "not among" in report.failed["utt-3"]
    again = import_alignment(two, tmp_path / "a.arrow", MfaSource(tmp_path / "tg"))
    assert again == report
    with pytest.raises(UserError, match="--overwrite"):
        import_alignment(two, tmp_path / "a.arrow", MfaSource(tmp_path / "tg"), config=ImportConfig(stress=False))
    with pytest.raises(UserError, match="is not there"):
        MfaSource(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds none"):
        MfaSource(tmp_path / "bare")
