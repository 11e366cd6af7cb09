"""Transcript → words, by the rule `hkd-words-4`. Its name is part of every artefact that depends on it.

- Form: Unicode NFKC, lower case. All that is written for an apostrophe or an ʻokina becomes the straight one, and in
  Hebrew a geresh. A word is a run of letters, digits and the marks that combine with them, of any script. Apostrophes
  stay inside words, as do the Catalan middle dot, gershayim and geresh. Every other character separates words.
  Characters that nobody sees (soft hyphen, joiners, byte order and direction marks) are removed, and so is what stands
  inside words and spells nothing: the Armenian signs of question, exclamation and stress, and what makes words longer
  (tatweel). The dotted capital İ becomes i. Thai and Lao am, which NFKC takes apart, is one letter. What older texts
  write with a joiner (Malayalam's chillus, Bengali's khanda ta, Marathi's eyelash ra) is as Unicode writes it now.
- Signs of compatibility never join a word: ™ is dropped, ½ ² ³ 10⁻⁶ °C ℉ № are spoken, others (㎏, ①) are tokens of
  their own.
- Numbers as whole tokens are spelled out in English (12, 2nd, 3.5, 1.000,50), `&` and `%` are spoken, but not in a text
  that is mostly of another script than Latin. Digits of other scripts stay. Other forms (€5, 3/4, 5–10, 007, XIV) are
  not read as they are spoken; `text_notes` counts them.
- Markup is no speech: `<tag>`, `[noise]`, `{breath}`, `((` `))`, `++um++`, names of noises in other marks
  (`(laughter)`, `*cough*`, `!SIL`, `%hesitation`). What was said stays: `[laughter-yeah]` is yeah, `[isn't/isnit]`
  isn't, `for(2)` and `for_1` for, `%um` um, `it 's` it's.
- Chinese and Japanese characters are a word each. In other scripts without spaces (Thai, Lao, Khmer, Myanmar) a word
  ends at a space or at U+200B, so transcripts should be segmented.

The table [normalisation] of hkd.toml changes this for other corpora (`WordsConfig`); a digest of it is then part of the
rule's name.
"""

import hashlib
import html
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import regex

from hkd.errors import UserError
from hkd.files import digest_of_json

NORMALISATION = "hkd-words-4"
_PASSED_ON = "HKD_NORMALISATION"  # the environment of this process's own children: the table [normalisation], as JSON

APOSTROPHES = str.maketrans(
    {**dict.fromkeys("’‘‛ʻʼʽꞌꞋ՚＇′`´", "'"), **dict(zip("＜＞［］｛｝（）％＊＋", "<>[]{}()%*+", strict=True))}
)
_NUMBER = re.compile(  # commas are read between thousands (or lakhs), not in 1,2,3
    r"(?<![\w.,])(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+)(?:\.[0-9]+)?(?:st|nd|rd|th)?(?![\w]|[.,][0-9])"
)
_FRACTION = re.compile(r"(?<!\d)(\d{1,4})⁄(\d{1,4})(?!\d)")
_WHOLE = re.compile(r"(?<![\d⁄.,])\d+\s*\Z")
_DIGIT = re.compile(r"\d")
_SPOKEN = {"&": " and ", "%": " percent "}
_SIGNS = {"™": " ", "℠": " ", "№": " number ", "²": " squared ", "³": " cubed "}
_DEGREES = re.compile(r"(?:(?<=\d) ?°|°(?= ?[cf]\b))(?: ?([cf])\b)?")
_SCALES = {"": " degrees ", "c": " degrees celsius ", "f": " degrees fahrenheit "}
_POWER = re.compile("(\\d?)([⁺⁻]?)([⁰¹²³⁴-⁹]+)([⁺⁻]?)")
_THIN = "\u00a0\u2009\u202f"  # spaces within a number
_GROUPED = re.compile(  # 1.000,50 and 1.000.000
    rf"(?<![\w.,])[0-9]{{1,3}}(?:(?:[{_THIN}][0-9]{{3}})+|(?:\.[0-9]{{3}})+(?=,[0-9])|(?:\.[0-9]{{3}}){{2}})(?:,[0-9]+)?(?![\w.,]?[0-9])"
)
_UNREAD = re.compile(  # numbers that are not read as they are spoken
    r"[$€£¥₹¢#§±×÷=^+~−]\s?\d|\d\s?[$€£¥₹¢±×÷=^+‰]"  # €5, 5 €, #1, 2×2
    r"|\d\s?[/–—−-]\s?\d|(?<!\w)-\d|\d:0"  # 3/4, 5–10, -5, 10:05
    r"|\d[,'’]\d+(?![,\d])(?<!,\d{3})|\.\d+\.\d"  # 1,50 (but 1,000 is read), 1'000, 10.1.2
    r"|(?<![\d.,])0\d|(?<!\S)\.\d"  # 007, .5
    r"|[Ⅰ-ⅿ]|\b(?=[XVI]{2})X{0,3}(?:I[XV]|V?I{0,3})\b"  # Ⅳ, XIV
)
_LARGEST_DIGITS = 15  # longer digit strings are no numbers that anybody speaks

# Words. The first pattern serves ASCII and plain Latin, Greek and Cyrillic text, at the speed of `re`.
PLAIN_WORD = re.compile(r"[^\W_](?:[^\W_]|[\u0300-\u036f]|'(?=[^\W_]))*")
_PLAIN = re.compile(
    "[\x00-\x7f\xa1\xab\xbb\xbf-\u013e\u0141-\u0148\u014a-\u024f\u0388-\u03ff\u0400-\u0482\u2010-\u2026\u2030\u20ac]*+"
)
_LETTER = r"[\p{L}\p{N}\u104c-\u104f]"
_CHARACTER = rf"(?={_LETTER})[\p{{scx=Han}}\p{{scx=Hiragana}}\p{{scx=Katakana}}\p{{scx=Bopomofo}}]"
_UNSPACED = r"\p{lb=SA}"  # Thai, Lao, Khmer, Myanmar and their neighbours
_JOINED = (  # a letter with its marks, or a sign between two letters
    rf"{_LETTER}[\p{{M}}\u05f3]*+|(?<={_LETTER}[\p{{M}}\u05f3]*)'(?={_LETTER})"
    r"|(?<=\p{Latin}\p{M}*)·(?=\p{Latin})|(?<=[א-ײ]\p{M}*)״(?=[א-ײ])"
)
_STRETCHES = regex.compile(rf"(?:{_JOINED})++")
# an apostrophe beside such a character joins nothing
_APART = rf"(?=')(?:(?<={_CHARACTER}\p{{M}}*)|.(?={_CHARACTER}))"
_WORDS = regex.compile(rf"{_CHARACTER}\p{{M}}*+|(?:(?!{_CHARACTER})(?!{_APART})(?:{_JOINED}))++")
_CLUSTERS = regex.compile(rf"(?={_UNSPACED})\X|(?:(?!{_UNSPACED}).)++")
_ANY_CHARACTER, _ANY_UNSPACED = regex.compile(_CHARACTER), regex.compile(_UNSPACED)
# of no sound: invisible, Armenian intonation, tatweel and its like in N'Ko and Mongolian
_INVISIBLE = regex.compile(
    r"[\p{Cf}\p{Default_Ignorable_Code_Point}\u20dd-\u20e4\u2027\u055b\u055c\u055e\u055f\u0640\u07fa\u180a]"
)
_AM = re.compile("\u0e4d([\u0e48-\u0e4b]?)(\u0e32)|\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")
_DOTLESS = re.compile("[ıİ]")
_DOTTED_I = re.compile("i\u0307+")  # what Python makes of İ in lower case
_SEPARATED = regex.compile(rf"(?<={_UNSPACED})\u200b(?={_UNSPACED})")
_JOINER = {f"{old}\u200d": new for old, new in map(str.split, ("ണ് ൺ", "ന് ൻ", "ര് ർ", "ല് ൽ", "ള് ൾ", "ക് ൿ", "ত্ ৎ", "र् ऱ्"))}
_WITH_JOINER = re.compile("|".join(_JOINER))
_SIGN = regex.compile(r"[\p{S}\p{No}]")
_QUOTED = regex.compile(r"""(?<=[\p{Hebrew}--[׳״]]\p{M}*)(?:(["”“]|'')(?=\p{Hebrew})|'(?=([\p{L}\p{N}])?))""", regex.V1)
_OPENED = regex.compile(r"(?<![\p{L}\p{M}])'(?=\p{Hebrew})")  # ' may close quotes where it opens them, too
_MIXED = regex.compile(r"\p{Latin}\p{M}*[\p{Cyrillic}\p{Greek}]|[\p{Cyrillic}\p{Greek}--[μ]]\p{M}*\p{Latin}", regex.V1)
_BESIDE = regex.compile(r"(?<=[\p{L}\p{M}\p{N}])'|'(?=[\p{L}\p{N}])")
_EDGE = re.compile("\\b[ʻʼʽꞌꞋ]|[ʻʼʽꞌꞋ]\\b")
_LATIN, _OTHER = regex.compile(r"\p{Latin}"), regex.compile(r"(?!\p{Latin})\p{L}")

# Markup.
_NOISES = (
    "laugh(?:s|ter|ing)?|noises?|music|applause|applauding|clapping|cheering|cough(?:s|ing)?|breath(?:s|es|ing)?|breathe|(?:in|ex)hal(?:e|es|ing)|"
    "sigh(?:s|ing)?|sniff(?:s|ing)?|sneez(?:e|es|ing)|(?:lip|tongue)?[ "
    "_-]?(?:smack|click)(?:s|ing)?|pause|silence|hesitation|inaudible|"
    "unintelligible|unclear|indistinct|unknown|cross-?talk|garbage|sil|spn|nsn|unk|beep(?:s|ing)?|chuckl(?:e|es|ing)|giggl(?:e|es|ing)|"
    "clears?[ _-]throat|throat[ _-]clearing|mumbl(?:e|es|ing)|gasp(?:s|ing)?|reject"
)
_AROUND = r"background|audience|soft|loud|long|short|spoken|vocalized|vocal|playing|speaker|and"
_NOISE = rf"(?:(?:{_AROUND})[ _-])*(?:{_NOISES})(?:[ _-](?:{_AROUND}|{_NOISES}))*"
_SUSPECT = re.compile(r"[<\[{(*+~@#=%_]|!(?=\w)| '| n'")  # what all markup has one of
_RARE = re.compile(f"{_SUSPECT.pattern}|[0-9`&]")  # a text of ASCII without these is its own normal form
_MARKUP = re.compile(
    rf"""
      \[(?:laugh(?:ter|s|ing)?|noise|smil(?:e|ing))[-_:](?!noise|laughter)(?P<laughed>[^\[\]\s]{{1,60}})\]
    | \[(?P<meant>[^\W\d_][\w'-]{{0,60}})/[\w'-]{{1,60}}\]
    | (?P<tag><{{1,3}}[^<>\s]{{1,80}}>{{1,3}} | (?<!\w)<{{1,3}}[^\W\d_][^<>]{{1,200}}>{{1,3}})
    | (?P<bracket>\[{{1,3}}(?![\s\[])[^\[\]]{{1,200}}\]{{1,3}} | \[\s*{_NOISE}\s*\])
    | (?P<fluency>\{{(?-i:[A-Z])(?=\s[^{{}}]{{0,200}}\}}))
    | (?P<brace>\{{(?![\s])[^{{}}]{{1,200}}\}} | \{{\s*{_NOISE}\s*\}})
    | (?<=[^\W\d_])(?P<variant>\(\d{{1,2}}\))
    | (?<=[^\W\d_])(?P<anchor>_\d)(?![^\W_])
    | (?P<round>\(\s*{_NOISE}\s*\))
    | (?P<plus>\+\+[^\s+]{{1,60}}\+\+)
    | (?<![^\W_])(?P<marked>(?:[*+~@\#=]\s?{_NOISE}\s?[*+~@\#=]|%(?:{_NOISES})|!(?:sil|null|enter|exit))(?!\w))
    | (?<!\S)(?P<segment>ignore_time_segment_in_scoring|inter_segment_gap)(?!\S)
    | (?<!\S)(?P<filler>%)(?=[^\W\d_])
    | (?<=[^\W\d_])\x20(?P<clitic>'(?:s|m|re|ve|ll|d|t)(?![\w']))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KINDS = {
    "variant": "word(2)", "anchor": "word_1", "filler": "%word", "laughed": "[laughter-word]",
    "meant": "[word/pronounced]",
    "fluency": "{F word}",
}  # fmt: skip
_KINDS_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class WordsConfig:
    """The table [normalisation] of hkd.toml: what other corpora write. Patterns are Python's regular expressions."""

    markup: tuple[str, ...] = ()  # what is no speech besides what the rule knows, in upper or lower case
    speech: tuple[str, ...] = ()  # what the rule takes for markup, but was said: a whole `[Tag]`, its brackets included
    numbers: Literal["english", "kept"] = "english"  # spelled out in English as are & % ½ ², or left as digits
    unspaced: Literal["mixed", "characters", "stretches"] = "mixed"  # mixed: Han and kana by character
    apostrophes: Literal["letters"] | None = None  # letters: also where a word begins or ends (ʻokina, togʻ, kʼicheʼ)
    case: Literal["turkic"] | None = None  # turkic: the small letter of I is ı, as in Turkish and Azerbaijani

    def __post_init__(self) -> None:
        for name, pattern in [(table, own) for table in ("markup", "speech") for own in getattr(self, table)]:
            try:
                empty = re.compile(pattern).match("")
            except re.error as error:
                why = f"'{pattern}' is none ({error}). Write \\[ for a bracket."
                raise UserError(f"normalisation.{name} must hold regular expressions, but {why}") from None
            if empty:
                rule = f"normalisation.{name} must hold patterns of at least one character"
                raise UserError(f"{rule}, but '{pattern}' matches nothing too.")


def _passed_on() -> WordsConfig:
    given: dict[str, Any] = json.loads(os.environ.get(_PASSED_ON) or "{}")
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return WordsConfig(**given)


_config = _passed_on()


def use(config: WordsConfig) -> None:
    """Take this rule for all words from now on, here and in the processes that this one starts."""
    global _config
    _config = config
    if config == WordsConfig():
        os.environ.pop(_PASSED_ON, None)
    else:
        os.environ[_PASSED_ON] = json.dumps(asdict(config))


def normalisation() -> str:
    """The name of the rule in use: `hkd-words-4`, with a digest of the table [normalisation] where that changes it."""
    if _config == WordsConfig():
        return NORMALISATION
    given = {name: value for name, value in asdict(_config).items() if value is not None}
    return f"{NORMALISATION}+{digest_of_json(given)[:8]}"


@cache
def _inflect() -> Any:
    import inflect  # heavy, and needed only where digits occur

    return inflect.engine()


@lru_cache(maxsize=1 << 16)
def _spell(number: str) -> str:
    """A number, as digits with an optional fraction or ordinal ending → its words; unchanged where it is too long."""
    if sum(c.isdigit() for c in number) > _LARGEST_DIGITS:
        return number
    return str(_inflect().number_to_words(number.replace(",", ""), andword="")).replace(",", " ").replace("-", " ")


def _spell_fraction(match: re.Match[str]) -> str:
    """1⁄2 → one half; after a number: and one half."""
    above, below = int(match[1]), int(match[2])
    part = {2: "half", 4: "quarter"}.get(below) or _spell(_inflect().ordinal(below))
    many = "halves" if below == 2 else f"{part}s"
    joined = " and " if _WHOLE.search(match.string[max(0, match.start() - 20) : match.start()]) else " "
    return f"{joined}{_spell(str(above))} {part if above == 1 else many} "


@lru_cache(maxsize=64)
def _patterns(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE) if patterns else None


def _without_markup(text: str, left_out: Counter[str] | None) -> str:
    """The text without what is no speech, which is counted by kind."""
    other, speech = _patterns(_config.markup), _patterns(_config.speech)

    def note(kind: str) -> None:
        if left_out is not None:
            left_out[kind] += 1

    def replace(match: re.Match[str]) -> str:
        if speech is not None and speech.fullmatch(match[0].strip()):
            return match[0]
        kind = str(match.lastgroup)
        if kind == "clitic":
            return match[kind]
        note(_KINDS.get(kind) or " ".join(match[0].lower().split()))
        return f" {match[kind]} " if kind in ("laughed", "meant") else " "

    def remove(match: re.Match[str]) -> str:
        note(" ".join(match[0].lower().split()))
        return " "

    if other is not None:
        text = other.sub(remove, text)
    return _MARKUP.sub(replace, text) if _SUSPECT.search(text) else text


def _read_sign(match: Any, english: bool) -> str:
    """A sign that NFKC would turn into letters or digits → these as a token of its own, or what is spoken for it."""
    sign = match[0]
    plain = unicodedata.normalize("NFKC", sign)
    if plain == sign or not any(c.isalnum() for c in plain):
        return str(sign)
    spoken = _SIGNS.get(sign) if english or sign in "™℠" else None
    return spoken or f" {plain} "


def _read_power(match: re.Match[str]) -> str:
    """10⁻⁶ → 10 to the minus 6. What stands behind no digit counts notes (word¹²); ² and ³ alone are signs."""
    before, sign, power, charge = match.groups()
    if power in _SIGNS and not sign + charge:
        return match[0]
    before += " to the" * bool(before + sign) * (not charge)  # but Ca²⁺ is two plus
    signs = {"": "", "⁻": " minus", "⁺": " plus"}
    return f"{before}{signs[sign]} {unicodedata.normalize('NFKC', power)}{signs[charge]} "


def _visible(text: str) -> str:
    """The text without characters that nobody sees; U+200B between letters of Thai, Khmer ... becomes a space."""
    if _INVISIBLE.search(text):
        text = _SEPARATED.sub(" ", _WITH_JOINER.sub(lambda match: _JOINER[match[0]], text))
        text = _INVISIBLE.sub("", text)
    return text


def words(text: str, left_out: Counter[str] | None = None) -> list[str]:
    """The words of a text by the rule in use (see the module). left_out: counts what is left out as markup, by kind."""
    if text.isascii() and not (_RARE.search(text) or _config.markup or _config.case or _config.apostrophes):
        return PLAIN_WORD.findall(text.lower())
    if "&" in text and ";" in text:
        text = html.unescape(text)
    text = text.translate(APOSTROPHES) if not text.isascii() else text.replace("`", "'")
    ascii_ = text.isascii()
    plain = ascii_ or bool(_PLAIN.fullmatch(text))
    if not plain:
        text = _visible(text)
    if _config.markup or _SUSPECT.search(text):
        text = _without_markup(text, left_out)
    english = _config.numbers == "english"
    if not ascii_ and english and _OTHER.search(text):
        english = len(_OTHER.findall(text)) <= len(_LATIN.findall(text))
    if english and _DIGIT.search(text):
        text = _GROUPED.sub(lambda match: re.sub(rf"[.{_THIN}]", "", match[0]).replace(",", "."), text)
    if not ascii_:
        if not plain:
            if english:
                text = _POWER.sub(_read_power, text)
            text = _SIGN.sub(lambda match: _read_sign(match, english), text)
            opened = _OPENED.search(text)
            text = _QUOTED.sub(lambda m: "״" if m[1] else "׳" if m[2] or not opened else "'", text)
        text = _visible(unicodedata.normalize("NFKC", text).translate(APOSTROPHES))
    if _config.case:
        text = text.replace("I", "ı")
    text = text.lower()
    if not ascii_:
        text = unicodedata.normalize("NFKC", _DOTTED_I.sub("i", text))
        text = _AM.sub(lambda match: f"{match[1]}\u0e33" if match[2] else f"{match[3]}\u0eb3", text)
    if english:
        for symbol, spoken in _SPOKEN.items():
            text = text.replace(symbol, spoken)
        if "°" in text:
            text = _DEGREES.sub(lambda match: _SCALES[match[1] or ""], text)
        if _DIGIT.search(text):
            if "⁄" in text:
                text = _FRACTION.sub(_spell_fraction, text)
            text = _NUMBER.sub(lambda match: f" {_spell(match.group())} ", text)
            tokens = _tokens(text, plain)  # what is left of 192.168.0.1 is numbers again
            if plain:
                return [
                    word
                    for token in tokens
                    for word in (_spell(token).split() if _NUMBER.fullmatch(token) else [token])
                ]
            # 1 with a mark, too
            again = (_NUMBER.sub(lambda match: f" {_spell(match.group())} ", token) for token in tokens)
            return [word for token in again for word in _tokens(token, plain)]
    return _tokens(text, plain)


def _tokens(text: str, plain: bool) -> list[str]:
    """The words of a text in its normal form."""
    if _config.apostrophes:
        text = _BESIDE.sub("ʼ", text)  # a letter to all patterns
    if plain:
        tokens = PLAIN_WORD.findall(text)
    else:
        tokens = (_STRETCHES if _config.unspaced == "stretches" else _WORDS).findall(text)
        if _config.unspaced == "characters" and _ANY_UNSPACED.search(text):
            tokens = [
                part for token in tokens for cluster in _CLUSTERS.findall(token) for part in _STRETCHES.findall(cluster)
            ]
    if _config.apostrophes:
        return [token.replace("ʼ", "'") for token in tokens]
    if "n't" in tokens:  # do n't
        for at in range(len(tokens) - 1, 0, -1):
            if tokens[at] == "n't":
                tokens[at - 1 : at + 1] = [tokens[at - 1] + "n't"]
    return tokens


def words_of_line(line: str) -> list[str]:
    """The words of a line of text; none of a line without a letter or digit (`%` alone is no percent)."""
    return words(line) if any(c.isalnum() for c in line) else []


def normalised_lines(texts: Iterable[str]) -> Iterator[str]:
    """Texts as lines of words with one space between; empty ones are left out. Streams."""
    for text in texts:
        if line := " ".join(words(text)):
            yield line


def is_spaced(left: str, right: str) -> bool:
    """Whether a space stands between two words in writing: not between Chinese or Japanese characters."""
    return right[:1] < "\u2e80" or not (_ANY_CHARACTER.match(left[-1:]) and _ANY_CHARACTER.match(right))


def text_digest(spoken: Iterable[str]) -> bytes:
    """The first 8 bytes of the SHA-256 of an utterance's words: what a label store in any pieces is held against."""
    return hashlib.sha256(b"".join(map(_framed, spoken))).digest()[:8]


@lru_cache(maxsize=1 << 17)
def _framed(word: str) -> bytes:
    """A word after its length, as `hkd.files.digest_of` takes its parts in."""
    data = word.encode()
    return len(data).to_bytes(8, "little") + data


def _is_misread(text: str) -> bool:
    """Whether a text is UTF-8 that a program took for Windows-1252 or Latin-1 (cafÃ©, donâ€™t), or has lost letters."""
    try:
        return (
            "\ufffd" in text or bytes(ord(c) if ord(c) < 256 else c.encode("cp1252")[0] for c in text).decode() != text
        )
    except UnicodeError:
        return False


def text_notes(texts: Iterable[str]) -> list[str]:
    """What the rule does to transcripts that a person should know (markup, numbers, scripts ...), a sentence each."""
    left_out, found, first = Counter[str](), Counter[str](), dict[str, str]()

    def note(kind: str, example: str) -> None:
        found[kind] += 1
        first.setdefault(kind, repr(example[:60]))

    for text in texts:
        spoken = words(text, left_out)
        line = " ".join(spoken)
        if not spoken and text.strip():
            note("silent", text)
        if _DIGIT.search(line):
            note("kept", next(filter(_DIGIT.search, spoken)))
        else:
            found["spelled"] += any(c.isdigit() for c in text)
            if unread := _UNREAD.search(text):
                note("unread", text[max(0, unread.start() - 10) : unread.end() + 10])
        if not text.isascii():
            found["pieces"] += "▁" in text
            if _is_misread(text):
                note("misread", text)
            if mixed := _MIXED.search(line):
                note("mixed", next(word for word in spoken if mixed[0] in word))
            found["edge"] += bool(_EDGE.search(text))
            found["dotless"] += bool(_DOTLESS.search(text))
            found["characters"] += sum(bool(_ANY_CHARACTER.match(word)) for word in spoken)
            found["stretches"] += sum(bool(_ANY_UNSPACED.match(word)) for word in spoken)
    notes = []
    if left_out:
        kinds = [f"{kind} ({count})" for kind, count in left_out.most_common(_KINDS_SHOWN)]
        more = f" and {len(left_out) - len(kinds)} more kinds" if len(left_out) > len(kinds) else ""
        notes.append(
            f"{left_out.total()} tokens of markup were left out of the transcripts' words: {', '.join(kinds)}{more}. "
            "The table [normalisation] of hkd.toml says what else is markup, or was said."
        )
    if found["silent"]:
        notes.append(f"{found['silent']} transcripts have no words, the first is {first['silent']}.")
    if found["pieces"]:
        notes.append(
            f"{found['pieces']} transcripts are of SentencePiece's pieces (▁), each of which is a word here. "
            "Put them together: spm_decode."
        )
    if found["misread"]:
        broken = (
            f"{found['misread']} transcripts have characters that a program broke, the first is {first['misread']}."
        )
        notes.append(f"{broken} Write them again as UTF-8.")
    if found["mixed"]:
        notes.append(
            f"{found['mixed']} transcripts have words of two alphabets (Latin, Cyrillic, Greek) with letters that look "
            f"alike, the first is {first['mixed']}. Write each in one alphabet."
        )
    if found["edge"] and not _config.apostrophes:
        notes.append(
            f"{found['edge']} transcripts have words that begin or end in ʻ or ʼ, which is left out there. "
            'Where it is a letter, say [normalisation] apostrophes = "letters".'
        )
    if found["dotless"] and not _config.case:
        notes.append(
            f"{found['dotless']} transcripts have ı or İ, and I becomes i. "
            'Where I is the capital of ı, as in Turkish, say [normalisation] case = "turkic".'
        )
    if found["spelled"] and _config.numbers == "english":
        spelled = f"Numbers of {found['spelled']} transcripts are spelled out in English"
        notes.append(f'{spelled}; [normalisation] numbers = "kept" leaves them.')
    if found["unread"]:
        what = "have numbers that are not read as they are spoken (€5, 3/4, 5–10, 1,50, 007, XIV)"
        notes.append(f"{found['unread']} transcripts {what}, the first is {first['unread']}. Write them as spoken.")
    if found["kept"]:
        digits = f"{found['kept']} transcripts keep digits in their words, the first is {first['kept']}."
        notes.append(f"{digits} Write numbers as they were spoken.")
    if found["characters"] and _config.unspaced != "stretches":
        characters = f"{found['characters']} words are Chinese or Japanese characters"
        notes.append(f"{characters}: each is a word, so the word error rate is a character error rate.")
    if found["stretches"] and _config.unspaced != "characters":
        stretches = (
            f"{found['stretches']} words are of a script that is written without spaces (Thai, Lao, Khmer, Myanmar)"
        )
        remedy = 'Put spaces or U+200B between words, or set [normalisation] unspaced = "characters".'
        notes.append(f"{stretches}: what stands between two spaces is one word. {remedy}")
    return notes
