"""Words → phones."""

import subprocess
import sys
from pathlib import Path

import pytest

from hkd.errors import UserError
from hkd.units.lexicon import Lexicon, coverage, is_silence_name, lexicon_report, predict_phones
from hkd.units.tying import StateTying


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon()


def test_listed_words_and_their_variants(lexicon: Lexicon) -> None:
    assert lexicon.pronounce("hello") == ("HH", "AH", "L", "OW")
    assert lexicon.variants("the")[0] == lexicon.pronounce("the")
    assert len(lexicon.variants("the")) > 1
    assert "hello" in lexicon
    assert "zorblat" not in lexicon


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("waldo's", "W AA L D OW Z"),  # voiced
        ("zorblat's", "Z AO R B L AH T S"),
        ("café", "K AH F EY"),
        ("pbx", "P IY B IY EH K S"),  # no vowel: read letter by letter
        ("mp3", ""),
        ("ł", ""),
        ("", ""),
    ],
)
def test_endings_accents_acronyms_and_what_is_no_word(lexicon: Lexicon, word: str, phones: str) -> None:
    if word == "zorblat's":
        assert lexicon.pronounce(word) == (*lexicon.pronounce("zorblat"), "S")
    else:
        assert lexicon.pronounce(word) == tuple(phones.split())


def test_sibilants_take_a_vowel_before_s(lexicon: Lexicon) -> None:
    stem = lexicon.pronounce("zorbladge")
    assert lexicon.pronounce("zorbladge's") == ((*stem, "IH", "Z") if stem[-1] in {"JH", "Z", "S"} else (*stem, "Z"))


def test_only_phones_of_the_acoustic_model(lexicon: Lexicon) -> None:
    phones = set(StateTying().definition.phones)
    assert {phone for word in list(lexicon._variants)[::50] for phone in lexicon.pronounce(word)} <= phones
    assert set(lexicon.pronounce("blorgify")) <= phones


def test_unknown_words_are_listed_once_in_order(lexicon: Lexicon) -> None:
    assert lexicon.unknown(["mp3", "hello", "h4x", "mp3"]) == ["mp3", "h4x"]


def test_a_missing_dictionary_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Lexicon(tmp_path / "none.dict").pronounce("a")


MFA = """the\t0.9\t0.05\t1.2\t0.8\tð ə
the\t0.99\t0.05\t1.2\t0.8\tð iː
cat\t1.0\t0.1\t1.0\t1.0\tkʰ æ t
cats\tkʰ æ t s
<unk>\tspn
"""


def test_mfa_dictionaries_have_probabilities_and_no_english_guesses(tmp_path: Path) -> None:
    (tmp_path / "ipa.dict").write_text(MFA, encoding="utf-8")
    found = Lexicon(tmp_path / "ipa.dict")
    assert found.variants("the") == [("ð", "iː"), ("ð", "ə")]  # the likelier first
    assert found.pronounce("cats") == ("kʰ", "æ", "t", "s")
    assert found.unknown(["cat", "dog", "cat's"]) == ["dog", "cat's"]
    assert set(found.phones) == {"ð", "ə", "iː", "kʰ", "æ", "t", "s", "spn"}


def test_accents_are_letters_where_the_phones_are_not_english(tmp_path: Path) -> None:
    (tmp_path / "vi.dict").write_text("ma m a˧\nकलम k ə l ə m\n", encoding="utf-8")
    found = Lexicon(tmp_path / "vi.dict")
    assert found.pronounce("ma") == ("m", "a˧")
    assert found.unknown(["má", "क़लम"]) == ["má", "क़लम"], "another word's phones are no pronunciation"


def test_stress_is_kept_or_folded_and_predicted_where_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.dict").write_text("hello HH AH0 L OW1\nhello(2) HH EH0 L OW1\n;;; a comment\n", encoding="utf-8")
    kept, folded = Lexicon(tmp_path / "a.dict"), Lexicon(tmp_path / "a.dict", stress=False)
    assert kept.variants("hello") == [("HH", "AH0", "L", "OW1"), ("HH", "EH0", "L", "OW1")]
    assert folded.pronounce("hello") == ("HH", "AH", "L", "OW")
    assert any(phone[-1].isdigit() for phone in kept.pronounce("blorgify"))
    # what the dictionary lacks, the CMU one may have
    assert folded.pronounce("window") == Lexicon().pronounce("window")
    assert Lexicon(tmp_path / "a.dict", within=("HH", "AH0", "L", "OW1")).pronounce("window") == ()


def test_kaldis_lexicons_fold_places_in_the_word(tmp_path: Path) -> None:
    (tmp_path / "lexiconp.txt").write_text("a 0.5 AH_S\na 1.0 EY_S\ntea 1.0 T_B IY_E\n", encoding="utf-8")
    found = Lexicon(tmp_path / "lexiconp.txt")
    assert found.variants("a") == [("EY",), ("AH",)]
    assert found.pronounce("tea") == ("T", "IY")


def test_lines_without_phones_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.dict").write_text("hello HH AH L OW\nworld 0.5\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.dict:2: .*has no phones"):
        Lexicon(tmp_path / "a.dict").pronounce("hello")


def test_logarithms_are_no_phones(tmp_path: Path) -> None:
    (tmp_path / "a.dict").write_text("hello HH AH L OW\nworld -0.5 W ER L D\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.dict:2: .* is the number -0\.5 instead\. Write probabilities from 0 to 1"):
        Lexicon(tmp_path / "a.dict").pronounce("hello")


def test_the_report_says_what_is_listed_predicted_and_unknown(lexicon: Lexicon) -> None:
    report = lexicon_report(lexicon, ["Hello, zorblat!", "hello mp3 mp3", "the the"])
    assert (report.words, report.running_words, report.listed, report.unknown_texts) == (4, 7, 2, 1)
    assert report.unknown == {"mp3": 2}
    assert set(report.predicted) == {"zorblat"}


CMUDICT = """;;; old comments
# new ones
gdp G IY1 D IY1 P IY1 # abbrev
of AH1 V
of(2) AH0 V # weak
spain S P EY1 N # place, spanish
'em AH0 M
em EH1 M
a.m. EY1 EH1 M
"""


def test_comments_of_cmudict_are_no_phones(tmp_path: Path) -> None:
    (tmp_path / "cmudict.dict").write_text(CMUDICT, encoding="utf-8")
    found = Lexicon(tmp_path / "cmudict.dict")
    assert found.phones == ("AH0", "AH1", "D", "EH1", "EY1", "G", "IY1", "M", "N", "P", "S", "V")
    assert found.variants("of") == [("AH1", "V"), ("AH0", "V")]
    assert found.variants("em") == [("EH1", "M"), ("AH0", "M")]  # what is written as transcripts are comes first
    assert found.no_words == ["a.m."]


def test_words_are_normalised_as_transcripts_are(tmp_path: Path) -> None:
    text = (
        "\ufeffHELLO\tHH AH0 L OW1\r\nHELLO(2)\tHH EH0 L OW1\r\nDON\u2019T\tD OW1 N T\r\nCAFE\u0301 K AE0 F EY1\r\nNew "
        "York\tN UW1 Y AO1 R K\r\n"
    )
    (tmp_path / "a.dict").write_bytes((text + "<UNK>\tSPN\r\n!SIL SIL\r\nhello\tHH AH0 L OW1\r\n२१ IY1\r\n").encode())
    found = Lexicon(tmp_path / "a.dict")
    assert found.variants("hello") == [("HH", "AH0", "L", "OW1"), ("HH", "EH0", "L", "OW1")]
    assert (found.pronounce("don't"), found.pronounce("café")) == (("D", "OW1", "N", "T"), ("K", "AE0", "F", "EY1"))
    assert found.variants("२१") == [("IY1",)]
    assert found.no_words == ["New York", "<UNK>", "!SIL"]
    assert {"SPN", "SIL"} <= set(found.phones)


@pytest.mark.parametrize(
    ("lines", "word", "phones"),
    [
        ("cat 0.5 k æ t\n", "cat", "k æ t"),
        ("cat\t0.99\t0.2\tk æ t\n", "cat", "k æ t"),
        ("cat 0.99 0.2 1 k æ t\ndog 1 0 1.0 0 d ɒ ɡ\n", "cat", "k æ t"),
        ("cat 0.99 0.2 1 k æ t\ndog 1 0 1.0 0 d ɒ ɡ\n", "dog", "d ɒ ɡ"),
        ("cat 1e-05 k æ t\n", "cat", "k æ t"),
        ("cat 1.0 0.00 0.00 0.00 1 t\n", "cat", "1 t"),  # never more than four
        ("öl 1 l\nrest 0 r E s t\n", "öl", "1 l"),  # X-SAMPA, without probabilities
        ("HELLO [HELLO] hh ah l ow\n", "hello", "hh ah l ow"),  # HTK
        ("HELLO 0.5 [HELLO] hh ah l ow\n", "hello", "hh ah l ow"),
        ("cat 1.0\tk æ t\n", "cat", "k æ t"),  # as Kaldi's prepare_lang.sh makes lexiconp.txt of a lexicon with blanks
        ("cat 1 k æ t\nöl 1 1 l\n", "öl", "1 l"),  # all pronunciations as likely: Kaldi's lexiconp.txt
        ("<sil> [sil]\ncat k æ t #1\n", "cat", "k æ t"),  # Kaldi's disambiguation
        ("SENT-END [] sil\nCAT k ae t sp\n", "cat", "k ae t"),  # HTK's pauses
        ("na n a\u0303\n", "na", "n \u00e3"),
    ],
)
def test_columns_between_word_and_phones(tmp_path: Path, lines: str, word: str, phones: str) -> None:
    (tmp_path / "a.dict").write_text(lines, encoding="utf-8")
    assert Lexicon(tmp_path / "a.dict").variants(word) == [tuple(phones.split())]


@pytest.mark.parametrize("phones", ["/kæt{}/", "kæt{}", "word{} K AE T"])  # ipa-dict, align_lexicon.txt
def test_a_whole_word_is_no_phone(tmp_path: Path, phones: str) -> None:
    lines = [f"word{letter}\t{phones.replace('{}', letter)}\n" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "a.dict").write_text("".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"with a blank after each phone, but has 26 lines like 'worda .*Put"):
        Lexicon(tmp_path / "a.dict").variants("worda")


@pytest.mark.parametrize("phone", ["...", "(...)", "(pause)", "[noise]", "<p:>", "h#", "+NSN+", "{SL}", "!SIL", ""])
def test_pauses_and_noise_have_many_names(phone: str) -> None:
    assert is_silence_name(phone)


@pytest.mark.parametrize("phone", ["!", "!x", "{", "{:", "<", "+", "q", "N", "@", "ʔ"])
def test_signs_that_are_phones_in_xsampa_and_ipa_are_no_silence(phone: str) -> None:
    assert not is_silence_name(phone)


def test_coverage_counts_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.dict").write_text("HELLO HH AH0 L OW1\nlow-cost L OW1\n", encoding="utf-8")
    assert coverage(Lexicon(tmp_path / "a.dict"), ["Hello, hello you", "<noise> you you be"]) == (
        "a.dict lists 1 of the 3 different words of the transcripts (33.3% of the running text); not: you, be. "
        "1 of its entries are no single word and are not used: low-cost."
    )


def test_a_known_prediction_of_the_package() -> None:
    # from the package's README: "activationist", with the stress marks folded away
    assert predict_phones("activationist") == ("AE", "K", "T", "IH", "V", "EY", "SH", "AH", "N", "IH", "S", "T")


def test_it_has_learnt_english() -> None:
    lexicon = Lexicon()
    sample = ["computer", "garden", "morning", "letter", "window", "brother", "seven", "planet", "doctor", "yellow"]
    right = sum(predict_phones(word) in lexicon.variants(word) for word in sample)
    assert right >= 8


def test_neither_the_package_nor_nltk_is_imported() -> None:
    code = (
        "import sys; from hkd.units.lexicon import predict_phones; predict_phones('cat'); print([m for m in ('nltk', "
        "'g2p_en', 'torch') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
