"""Transcript → words: the rule hkd-words-4, pinned."""

import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hkd.config import ProjectSettings, build
from hkd.errors import UserError
from hkd.units.text import NORMALISATION, WordsConfig, normalisation, normalised_lines, text_notes, use, words


@pytest.fixture(autouse=True)
def default_rule() -> Iterator[None]:
    yield
    use(WordsConfig())


def spoken(text: str) -> str:
    return " ".join(words(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Call-Forward on No Answer.", "call forward on no answer"),
        ("It’s the dogs' o'clock, 'tis", "it's the dogs o'clock tis"),
        ("Press 1 or 12, the 2nd key", "press one or twelve the second key"),
        ("1,234 & 50% of 3.5", "one thousand two hundred thirty four and fifty percent of three point five"),
        ("mp3 and 192.168.0.1", "mp3 and one hundred ninety two one hundred sixty eight zero one"),
        ("ﬁne ＡＢＣ e\u0301t\u00e9", "fine abc \u00e9t\u00e9"),
        (
            "press 1,2 or 3,5; 1,00,000 in 2019,2020",
            "press one two or three five one hundred thousand in two thousand nineteen two thousand twenty",
        ),
        ("İyi I\u0307yi iyi i\u0307yi", "iyi iyi iyi iyi"),
        ("snake_case\ttab\nnew", "snake case tab new"),
        ("-- ... !?", ""),
        ("1" * 40, "1" * 40),
    ],
)
def test_the_rule(text: str, expected: str) -> None:
    assert spoken(text) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "मेरी किताब मेज़ पर है",
        "എന്റെ വീട് ചെറുതാണ്",
        "என் வீடு சிறியது",
        "మా ఇల్లు చిన్నది",
        "ಮನೆ ಚಿಕ್ಕದು",
        "আমার বাড়ি ছোট",
        "ਮੇਰਾ ਘਰ ਛੋਟਾ ਹੈ",
        "મારું ઘર નાનું છે",
        "මගේ ගෙදර කුඩයි",
        "ذَهَبَ الوَلَدُ إِلَى المَدْرَسَةِ",
        "שָׁלוֹם עוֹלָם",
        "ܫܠܳܡܳܐ",
        "ދިވެހި ބަސް",
        "ฉันชอบกินข้าว ที่บ้าน",
        "ຂ້ອຍ ມັກ ກິນ",
        "ខ្ញុំ ចូលចិត្ត",
        "မြန်မာ စကား",
        "col·lecció paral·lel",
        "צה״ל ד״ר ג׳ירפה",
        "한국어 말하기",
        "chào các bạn",
        "үйдө ұлттық",
    ],
)
def test_words_of_every_script_keep_their_marks(sentence: str) -> None:
    assert words(sentence) == unicodedata.normalize("NFKC", sentence).split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pre\u00adrequi\u00adsites", "prerequisites"),
        ("begin\u200bning", "beginning"),
        ("\ufeffhello\ufeff again", "hello again"),
        ("hid\u2060den gar\u200eden \u202athe\u202c \u2066x\u2069", "hidden garden the x"),
        ("syl\u2027la\u2027ble co\u034fmb va\ufe0fr", "syllable comb var"),
        ("می\u200cخواهم", "میخواهم"),
        ("e\u200d\u0301te", "\u00e9te"),
        ("അവന്\u200d", "അവൻ"),
        ("ភាសា\u200bខ្មែរ ภาษา\u200bไทย", "ភាសា ខ្មែរ ภาษา ไทย"),
        ("I ❤\ufe0f you 1\ufe0f\u20e3", "i you one"),
        ("\u200b \ufeff", ""),
        ("Ի՞նչ հա՛ այո՜ ինչ", "ինչ հա այո ինչ"),
        ("العـــربية العربية", "العربية العربية"),
        ("น\u0e49\u0e4d\u0e32 น\u0e4d\u0e49\u0e32 ນ\u0ec9\u0ecd\u0eb2", "น้ำ น้ำ ນ້ຳ"),
    ],
)
def test_what_nobody_sees_never_separates(text: str, expected: str) -> None:
    assert spoken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WELL <COMMA> I THINK SO <PERIOD>", "well i think so"),
        ("<NOISE>", ""),
        ("[noise] yes [laughter] [ noise ] [door slam]", "yes"),
        ("OKAY <UNK> THEN <sil>so</s>what <v-noise> <|en|>", "okay then so what"),
        ('a <event desc="door" type="noise"/> b <overlap>c</overlap> <door slam> d', "a b c d"),
        ("land for(2) trails and(3) {SMACK} {lg} [[distortion]]", "land for trails and"),
        ("it 's not what i 'm used to , they 'll say i 'd 've", "it's not what i'm used to they'll say i'd've"),
        ("don 't i do n't ca n't", "don't i don't can't"),
        ("%um she said %hesitation %NOISE", "um she said"),
        (
            "[laughter-yeah] [noise-so] [vocalized-noise] tho[ught]- -[th]at [isn't/isnit] them_1",
            "yeah so tho at isn't them",
        ),
        ("(( i think )) so (( )) (really)", "i think so really"),
        ("(laughter) (Applause) (soft music) (inaudible) (clears throat)", ""),
        ("++um++ ++GARBAGE++ *laughs* *word* +noise+ !SIL @reject@ #noise#", "word"),
        ("{F uh, } i [ I, + I ] mean", "uh i i i mean"),
        ("ignore_time_segment_in_scoring inter_segment_gap", ""),
        ("it&#39;s R&amp;D &lt;noise&gt;", "it's r and d"),
        ("［noise］ ＜unk＞ 你好 （laughter）", "你 好"),
        ("5 < 6 and 7 > 3", "five six and seven three"),
        ("an [unclosed bracket and <another", "an unclosed bracket and another"),
        ("wow! !important 100% sure 50 % off", "wow important one hundred percent sure fifty percent off"),
    ],
)
def test_markup_of_the_field_is_no_speech(text: str, expected: str) -> None:
    assert spoken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x™ brand℠ ™", "x brand"),
        (
            "1½ cups, ½ cup, ⅔ ¾ 2 ⅜",
            "one and one half cups one half cup two thirds three quarters two and three eighths",
        ),
        ("x² m³ CO₂ word¹", "x squared m cubed co two word one"),
        ("20℃ 5㎏ №5 a①", "twenty degrees celsius five kg number five a one"),
        ("naïve🄰 ©x ®y", "naïve a x y"),
        ("20℃ मेरी", "20 c मेरी"),
        ("5 °C, -5°F and 90° N°5", "five degrees celsius five degrees fahrenheit and ninety degrees n five"),
        (
            "10⁻³ m, 6×10²³, m⁻², 2⁵ word¹²",
            "ten to the minus three m six ten to the twenty three m to the minus two two to the five word twelve",
        ),
        ("Ca²⁺ Cl⁻", "ca two plus cl"),
        (
            "1.000,50 12.345,6 2.000.000",
            "one thousand point five zero twelve thousand three hundred forty five point six two million",
        ),
        (
            "1\u00a0000 1\u202f000\u202f007,5 1.000",
            "one thousand one million seven point five one point zero zero zero",
        ),
        ("ﷺ", "صلى الله عليه وسلم"),
    ],
)
def test_signs_of_compatibility_join_no_word(text: str, expected: str) -> None:
    assert spoken(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "$5", "5 €", "3/4", "24/7", "5–10", "1-2", "at −5", "-5 or so",
        "007", "1 000 000", ".5", "1,50", "1'000", "10:05", "#1", "2+2", "5‰",
        "Louis XIV", "Chapter Ⅳ", "1.2.3",
    ],
)  # fmt: skip
def test_numbers_that_are_not_read_as_they_are_spoken_are_counted(text: str) -> None:
    notes = text_notes(["it's 5 o'clock", text])
    assert any(note.startswith("1 transcripts have numbers that are not read") and repr(text) in note for note in notes)


@pytest.mark.parametrize(
    "text",
    [
        "1,234.5",
        "1,00,000",
        "10:30",
        "3rd",
        "0.5",
        "1½",
        "10⁻³",
        "5 °C",
        "20%",
        "No. 5, 6, 7",
        "COVID-19 B-52",
        "X I",
        "100,000, say",
        "2019.",
    ],
)
def test_numbers_that_are_read_are_not_counted(text: str) -> None:
    assert not [note for note in text_notes([text]) if "not read as" in note]


@pytest.mark.parametrize(
    ("spellings", "word"),
    [
        ("oʻzbek o‘zbek o’zbek o'zbek o`zbek oʼzbek oʽzbek o‛zbek", "o'zbek"),
        ("Hawaiʻi Hawai‘i Hawai'i hawai`i", "hawai'i"),
        ("п'ять пʼять п’ять п′ять п＇ять пꞌять", "п'ять"),
        ("l’eau l'eau lʼeau l´eau", "l'eau"),
        ("մ՚ուր մ'ուր մ’ուր", "մ'ուր"),
        ("ג'ירפה ג׳ירפה ג’ירפה", "ג׳ירפה"),
        ("רח' רח׳ רח’", "רח׳"),
        ("צה\"ל צה״ל צה”ל צה“ל צה''ל", "צה״ל"),
        ("दर्\u200dया दऱ्या दर\u093c्या", "दऱ्या"),
        ("উত্\u200dসব উৎসব", "উৎসব"),
    ],
)
def test_a_word_has_one_spelling(spellings: str, word: str) -> None:
    assert {*words(spellings)} == {word}
    assert spoken("'שלום' 'שלום לך'") == "שלום שלום לך", "quotes of Hebrew are no geresh"


def test_apostrophes_that_are_letters() -> None:
    assert spoken("ʻOkina 'okina togʻ tog' o‘g‘il") == "okina okina tog tog o'g'il"
    (note,) = text_notes(["bogʻ", "tog'", "don't", "sanʼat"])
    assert note == (
        "1 transcripts have words that begin or end in ʻ or ʼ, which is left out there. "
        'Where it is a letter, say [normalisation] apostrophes = "letters".'
    )
    use(WordsConfig(apostrophes="letters"))
    assert spoken("ʻOkina 'okina ‘okina, togʻ tog' TOG’ ' -'- o‘g‘il") == "'okina 'okina 'okina tog' tog' tog' o'g'il"
    assert words("tog' o'g'il") == ["tog'", "o'g'il"]
    assert text_notes(["bogʻ"]) == []
    assert normalisation() != NORMALISATION


def test_words_of_two_alphabets_are_said() -> None:
    (note,) = text_notes(["hello", "h\u0435llo", "µm Ω κόσμε привет", "A\u0301\u0430"])
    assert note.startswith("2 transcripts have words of two alphabets (Latin, Cyrillic, Greek)")
    assert "'h\u0435llo'" in note


@pytest.mark.parametrize("text", ["मेरे पास 12 किताबें", "मेरे पास १२ किताबें", "у меня 12 книг", "لدي ١٢ كتابا", "我有12本书"])
def test_numbers_are_not_spelled_in_english_in_other_scripts(text: str) -> None:
    assert not re.search("[a-z]", spoken(text))
    assert any(c.isdigit() for c in spoken(text))


def test_chinese_and_japanese_by_character() -> None:
    assert words("今天 很好 OK") == ["今", "天", "很", "好", "ok"]
    assert words("カターが列夫·托") == ["カ", "タ", "ー", "が", "列", "夫", "托"]


def rule_1(text: str) -> list[str]:
    """The rule hkd-words-1 for ASCII, as it was."""
    from hkd.units.text import _NUMBER, _spell

    text = text.replace("`", "'").lower().replace("&", " and ").replace("%", " percent ")
    text = _NUMBER.sub(lambda match: f" {_spell(match.group())} ", text)
    tokens = re.findall(r"[^\W_](?:[^\W_]|'(?=[^\W_]))*", text)
    return [word for token in tokens for word in (_spell(token).split() if _NUMBER.fullmatch(token) else [token])]


_PLAIN_WORDS = st.from_regex(
    r"[A-Za-z0-9]{1,6}('[a-z]{1,2}|-[a-z]+|%| &|\.5|,000|th|[.,!?;:/$\"^|]){0,2}", fullmatch=True
)


@given(st.lists(_PLAIN_WORDS).map(" ".join))
def test_plain_english_is_what_it_was(text: str) -> None:
    assert words(text) == rule_1(text)


@given(st.text())
def test_words_are_clean_and_the_rule_changes_nothing_twice(text: str) -> None:
    once = words(text)
    assert all(word and not set(word) & set(' \t\n.,!?-_"<>[]{}') for word in once)
    assert not any(word.startswith("'") or word.endswith("'") for word in once)
    assert words(" ".join(once)) == once


@example("_1\u0301")
@given(st.text("ab [](){}<>%+*'_12!n\u00b7\u05d0\u05f4\u0301\u200d½™", max_size=20))
def test_markup_and_signs_in_any_order_change_nothing_twice(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once


@pytest.mark.parametrize("unspaced", ["mixed", "characters", "stretches"])
@given(text=st.text("ab'’ ·一⼀かガกษี'1\u0301\u3099\u055aաא״", max_size=16))
@example(text="a'一")
@example(text="一'a")
@example(text="a'ก")
@example(text="א״״")
def test_scripts_without_spaces_beside_apostrophes_change_nothing_twice(unspaced: str, text: str) -> None:
    use(WordsConfig(unspaced=unspaced))
    try:
        once = words(text)
        assert words(" ".join(once)) == once
        assert not any(word.startswith("'") or word.endswith("'") for word in once)
    finally:
        use(WordsConfig())


@given(st.text("<[{(+*%!ab ", max_size=2000))
def test_unclosed_markup_takes_no_time(text: str) -> None:
    words(text * 20)


def test_lines_without_words_are_left_out() -> None:
    assert list(normalised_lines(["Hello, you!", "...", "<NOISE>", "Bye"])) == ["hello you", "bye"]


def test_a_table_of_hkd_toml_changes_the_rule_and_its_name(tmp_path) -> None:
    (tmp_path / "hkd.toml").write_text(
        """[normalisation]\nmarkup = ['\\$\\w+', '=[^=]*=']\nspeech = ['\\[M.*\\]']\nnumbers = "kept"\nunspaced = "characters"\n""",  # noqa: E501
        encoding="utf-8",
    )
    assert (spoken("$um 12 [Mary]"), normalisation()) == ("um twelve", NORMALISATION)
    ProjectSettings.load(tmp_path)
    assert spoken("a $um b =cough here= 12 & [Mary] [noise] ข้าว 好") == "a b 12 mary ข้ า ว 好"
    assert re.fullmatch(rf"{NORMALISATION}\+[0-9a-f]{{8}}", normalisation())
    code = "from hkd.units.text import *; print(words('a $um b'), normalisation())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert child.stdout.split() == ["['a',", "'b']", normalisation()]
    ProjectSettings.load(tmp_path / "other")
    assert normalisation() == NORMALISATION


def test_turkic_capitals() -> None:
    before = WordsConfig(numbers="kept")
    use(before)
    name = normalisation()
    assert spoken("ISPARTA İstanbul IĞDIR") == "isparta istanbul iğdir"
    use(WordsConfig(case="turkic", numbers="kept"))
    assert spoken("ISPARTA İstanbul IĞDIR") == "ısparta istanbul ığdır"
    assert spoken("IRAK") == "ırak"
    assert normalisation() != name
    assert name == f"{NORMALISATION}+5f99a1cb", "what was made before there was this setting stays usable"
    assert not text_notes(["ısı"])
    with pytest.raises(UserError, match=r"normalisation\.case must be one of turkic, but is 'x' instead"):
        build(WordsConfig, {"case": "x"}, where="normalisation")
    use(WordsConfig())
    assert text_notes(["ısı", "İyi"])[0].startswith("2 transcripts have ı or İ, and I becomes i. ")


def test_pieces_in_place_of_words_are_said() -> None:
    assert text_notes(["hello you", "▁hel lo ▁you"])[0].startswith("1 transcripts are of SentencePiece's pieces")


@pytest.mark.parametrize("text", ["cafÃ©", "donâ€™t", "â€œyesâ€\x9d", "caf\ufffd"])
def test_letters_that_a_program_broke_are_said(text: str) -> None:
    assert text_notes(["fine", text])[0].startswith("1 transcripts have characters that a program broke, the first is")
    assert text_notes(["Grüße", "IRMÃ e mãe", "“café” – naïve"]) == []


@pytest.mark.parametrize(("name", "pattern"), [("markup", "["), ("speech", "("), ("markup", "a*")])
def test_patterns_that_cannot_be_right_are_refused(name: str, pattern: str) -> None:
    with pytest.raises(UserError, match=rf"^normalisation\.{name} must hold"):
        WordsConfig(**{name: (pattern,)})


def test_notes_count_and_name_what_was_left_out() -> None:
    notes = text_notes(["a <COMMA> b <COMMA>", "<noise>", "12 for(2)", "मेरे 12", "今天", "ข้าว", "plain"])
    assert notes[0].startswith(
        "4 tokens of markup were left out of the transcripts' words: <comma> (2), <noise> (1), word(2) (1). "
    )
    assert notes[1] == "1 transcripts have no words, the first is '<noise>'."
    assert [note.partition(" ")[0] for note in notes[2:]] == ["Numbers", "1", "2", "1"]
    assert text_notes(["plain words", "it's"]) == []
