"""Words → phones: a dictionary (by default CMU's, which pocketsphinx carries), rules for endings, grapheme to phoneme.

- Rules and prediction are English: a dictionary in other phones than ARPAbet's has what it lists.
- Prediction is the encoder-decoder network of the package g2p-en: a GRU over letters and a greedy GRU over phones (Cho
  et al. 2014, arXiv 1406.1078, eq. 5-8). Its weights are read alone: imported, the package looks for data on the net.
- Other tools' names of phones: which are silence or noise, what marks the place in the word, what marks stress.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.metadata import distribution, version
from itertools import takewhile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError, some
from hkd.files import digest_of, digest_of_file, numbered_lines
from hkd.units.inventory import MONOPHONE, UnitInventory
from hkd.units.text import words

# of any case; h# and pau are TIMIT's and Festival's, _ is MBROLA's, # Praat's and SPPAS', iver and vocnoise Buckeye's
_NO_SPEECH = "sil silb sile sp spn nsn lau laugh noise vocnoise oov gbg gar bth brth unk eps pau pause h# # _ iver"
_SILENCES = frozenset(("", *_NO_SPEECH.split()))
_NOISE = re.compile(r"<.+>|\[.+\]|\{.+\}|\(.+\)|\+.+\+|\.{2,}|…|!(?i:sil|null|enter|exit)")  # ! and { alone are phones
_SILENT_WORDS = frozenset(("", "<eps>", "<sil>", "<s>", "</s>", "!sil", "sil", "sp", "h#"))
_POSITION = re.compile(r"^(.+)_([BIES])$")
_STRESSED = re.compile(r"^([A-Z]{2})[012]$")  # ARPAbet's vowels


def is_silence_name(phone: str) -> bool:
    """Whether a phone is silence or noise by its name (SIL, sp, spn, +NSN+, <p:>, [noise], the empty string ...)."""
    return phone.lower() in _SILENCES or bool(_NOISE.fullmatch(phone))


def is_silent_word(word: str) -> bool:
    """Whether what a tool wrote for a word says that there is none."""
    return word.lower() in _SILENT_WORDS


def split_position(phone: str) -> tuple[str, str]:
    """`AH1_B` → ("AH1", "B"); a phone without such a suffix → (phone, "")."""
    match = _POSITION.match(phone)
    return (match[1], match[2]) if match else (phone, "")


def without_stress(phone: str) -> str:
    """`AH1` → `AH`; what is no vowel of ARPAbet stays."""
    return _STRESSED.sub(r"\1", phone)


@cache
def folded(phone: str, *, stress: bool) -> str:
    """A phone in Unicode NFC without its place in the word, and unless `stress` without its stress mark."""
    base = split_position(unicodedata.normalize("NFC", phone))[0]
    return base if stress else without_stress(base)


def phone_inventory(symbols: Iterable[str], silences: Iterable[str] = ()) -> tuple[UnitInventory, tuple[int, ...]]:
    """Phones in order, and the ids of silence and noise (by name, or given). Its silence is SIL where there is one."""
    phones, given = tuple(symbols), set(silences)
    quiet = tuple(number for number, phone in enumerate(phones) if is_silence_name(phone) or phone in given)
    main = next((number for number in quiet if phones[number].lower().startswith("sil")), quiet[0] if quiet else None)
    return UnitInventory(level=MONOPHONE, symbols=phones, silence=main), quiet


Array = NDArray[np.float32]

_LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 3)}  # 0 pad, 1 unknown, 2 end
_END_OF_WORD = 2
_PHONES = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH | AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS, _VOWELS = (names.split() for names in _PHONES.split("|"))
ARPABET = frozenset((*_CONSONANTS, *_VOWELS))
_START, _STOP, _FIRST_PHONE = 2, 3, 4
_MAX_PHONES = 20
# the network's outputs: all phones in alphabetical order, vowels once a stress mark, and UW once without
_OUTPUTS = sorted([*_CONSONANTS, *(vowel + mark for vowel in _VOWELS for mark in "012"), "UW"])


@cache
def _weights() -> dict[str, Array]:
    with np.load(str(distribution("g2p_en").locate_file("g2p_en/checkpoint20.npz")), allow_pickle=False) as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def _gru(x_D: Array, h_D: Array, weights: dict[str, Array], side: str) -> Array:
    """One step of a GRU: reset and update gates, candidate, mixture."""
    given_3D = weights[f"{side}_w_ih"] @ x_D + weights[f"{side}_b_ih"]
    kept_3D = weights[f"{side}_w_hh"] @ h_D + weights[f"{side}_b_hh"]
    (reset_in, update_in, new_in), (reset_h, update_h, new_h) = np.split(given_3D, 3), np.split(kept_3D, 3)
    reset, update = (1 / (1 + np.exp(-gate)) for gate in (reset_in + reset_h, update_in + update_h))
    new = np.tanh(new_in + reset * new_h)
    mixed: Array = (1 - update) * new + update * h_D
    return mixed


@cache
def predict_phones(letters: str, *, stress: bool = False) -> tuple[str, ...]:
    """Phones of one word of letters a-z, stress marks folded away unless `stress`; () where the network gives none."""
    weights = _weights()
    h_D = np.zeros(weights["enc_w_hh"].shape[1], np.float32)
    for symbol in [*(_LETTERS[letter] for letter in letters), _END_OF_WORD]:
        h_D = _gru(weights["enc_emb"][symbol], h_D, weights, "enc")
    phones: list[str] = []
    symbol = _START
    for _ in range(_MAX_PHONES):
        h_D = _gru(weights["dec_emb"][symbol], h_D, weights, "dec")
        symbol = int((weights["fc_w"] @ h_D + weights["fc_b"]).argmax())
        if symbol == _STOP:
            break
        if symbol >= _FIRST_PHONE:
            phone = _OUTPUTS[symbol - _FIRST_PHONE]
            phones.append(phone if stress else phone.rstrip("012"))
    return tuple(phones)


_SIBILANTS = {"S", "Z", "SH", "ZH", "CH", "JH"}
_VOWEL_LETTERS = frozenset("aeiouy")
FILLERS = frozenset(("SIL", "SPN", "NSN", "+NSN+", "+SPN+"))
_DECIMAL = re.compile(r"(?:\d*\.\d+|\d+\.)(?:[eE][-+]?\d+)?|\d+[eE]-\d+")
# of lines with probabilities: elsewhere 0 and 1 may be phones of X-SAMPA
_NUMBER = re.compile(rf"[01]|{_DECIMAL.pattern}")
_NEGATIVE = re.compile(rf"-(?:\d+|{_DECIMAL.pattern})")  # a logarithm
_VARIANT = re.compile(r"(?<=.)\([^()\s]*\)$")  # WORD(2)
_MFA_NUMBERS = 4  # pronunciation, silence after, correction for silence before, and for none
_NAMED = 5
_LONG, _FEW = 3, 20  # words of more letters have several phones; so many that have not are no chance
_READING = ("2", "3")  # of the default dictionary, of others; raised whenever the same file would be read otherwise
_VOICELESS = {"P", "T", "K", "F", "TH"}


def model_folder() -> Path:
    """Where pocketsphinx keeps its English model."""
    import pocketsphinx

    return Path(pocketsphinx.get_model_path()) / "en-us"


def _columns(line: str) -> tuple[str, list[str]]:
    """A line → the word as written, without the number of its variant, and what follows; ("", []) for a comment."""
    if line.startswith((";;;", "#")):
        return "", []
    name, *rest = line.strip().split("\t", 1) if "\t" in line.strip() else line.split(maxsplit=1) or [""]
    before, _, last = name.rpartition(" ")
    if before and _DECIMAL.fullmatch(last):  # `word 1.0<tab>phones`, as Kaldi's prepare_lang.sh writes lexiconp.txt
        name, rest = before, [last, *rest]
    columns = " ".join(rest).split()
    end = next((at for at, column in enumerate(columns) if column[0] == "#" or column == ";;;"), len(columns))
    kept = [
        column  # without HTK's output symbol, which may stand after a probability
        for at, column in enumerate(columns[:end])
        if not (at + 1 < end and column[0] == "[" and column[-1] == "]" and all(map(_NUMBER.fullmatch, columns[:at])))
    ]
    return _VARIANT.sub("", name.strip()), kept


def _word_of(name: str) -> str:
    """The one word of a transcript that a dictionary's entry is; "" where it is none or several."""
    spoken = words(name)
    return spoken[0] if len(spoken) == 1 else ""


class Lexicon:
    """Pronunciations, by default of the dictionary that pocketsphinx carries (39 phones of ARPAbet, without stress)."""

    def __init__(self, path: Path | None = None, *, stress: bool = True, within: Collection[str] | None = None) -> None:
        """path: `word phones`, a line each. Words are normalised as transcripts are. Comments (`;;;`, `#`), columns of
        probabilities (MFA, Kaldi's `lexiconp.txt`), HTK's output symbols and its pauses at words' ends are known.
        stress: keep AH0, AH1; within: words that would need other phones than these have no pronunciation."""
        self.path = path or model_folder() / "cmudict-en-us.dict"
        self._stress, self._within = stress, None if within is None else frozenset(within)
        self._is_own = path is not None
        self._guessed = lru_cache(maxsize=1 << 17)(self._checked_guess)  # a large text has a million unknown words

    @cached_property
    def digest(self) -> str:
        """Of all that its pronunciations depend on, predicted ones included."""
        reading = _READING[self._is_own]
        parts = [reading, digest_of_file(self.path), str(self._stress), str(self._is_own), version("g2p_en")]
        return digest_of([*parts, str(self._within is None), *sorted(self._within or ())])

    @cached_property
    def _rows(self) -> list[tuple[str, tuple[str, ...], float | None]]:
        """(word as it is written, phones, probability) of each line."""
        lines = [(number, *_columns(line)) for number, line in numbered_lines(self.path, "a dictionary")]
        first = [columns[0] for _, name, columns in lines if name and columns]
        most = _MFA_NUMBERS if any(map(_DECIMAL.fullmatch, first)) else int(set(first) == {"1"})
        rows = []
        for number, name, columns in lines:
            if not name:
                continue
            numbers = len(list(takewhile(_NUMBER.fullmatch, columns[:most])))
            if numbers == len(columns):
                rule = "a line of a dictionary must be `word phones`, but this one has no phones."
                raise UserError(f"{self.path}:{number}: {rule}")
            phones = tuple(folded(phone, stress=self._stress) for phone in columns[numbers:])
            if negative := next((phone for phone in phones if _NEGATIVE.fullmatch(phone)), None):
                rule = f"a phone of a dictionary must be a symbol, but is the number {negative} instead."
                raise UserError(f"{self.path}:{number}: {rule} Write probabilities from 0 to 1, or none.")
            while len(phones) > 1 and is_silence_name(phones[-1]):  # HTK's dictionaries end words in sp or sil
                phones = phones[:-1]
            rows.append((name, phones, float(columns[0]) if numbers else None))
        long = [(name, phones) for name, phones, _ in rows if len(name) > _LONG and not is_silence_name(phones[0])]
        odd = [" ".join((name, *phones)) for name, phones in long if len(phones) == 1 or phones[0] == name]
        if len(odd) >= _FEW and 2 * len(odd) > len(long):
            rule = f"must be `word phones` with a blank after each phone, but has {len(odd)} lines like '{odd[0][:60]}'"
            raise UserError(
                f"dictionary {self.path} {rule}. Put the blanks in (as in `f oʊ n`), or give lexicon.txt in place of "
                f"Kaldi's align_lexicon.txt."
            )
        return rows

    @cached_property
    def _variants(self) -> dict[str, list[tuple[str, ...]]]:
        """Words as transcripts have them come before what only becomes one; of one with probabilities the likeliest."""
        word_of = {name: _word_of(name) if self._is_own else name for name, _, _ in self._rows}
        found: dict[str, list[tuple[str, ...]]] = {}
        weight: dict[tuple[str, tuple[str, ...]], float] = {}
        for name, phones, probability in sorted(self._rows, key=lambda row: row[0] != word_of[row[0]]):
            if word := word_of[name]:
                variants = found.setdefault(word, [])
                if phones not in variants:
                    variants.append(phones)
                if probability is not None:
                    weight[word, phones] = max(probability, weight.get((word, phones), 0.0))
        for word in {word for word, _ in weight}:
            found[word].sort(key=lambda phones: -weight.get((word, phones), 1.0))
        return found

    @cached_property
    def no_words(self) -> list[str]:
        """Entries that are no single word of a transcript: fillers (`<unk>`, `!SIL`), several (`new york`, `a.m.`)."""
        names = dict.fromkeys(name for name, _, _ in self._rows) if self._is_own else ()
        return [name for name in names if not _word_of(name)]

    @cached_property
    def phones(self) -> tuple[str, ...]:
        """All phones that occur, sorted."""
        return tuple(sorted({phone for _, phones, _ in self._rows for phone in phones}))

    @cached_property
    def _predicts(self) -> Literal["plain", "stressed", "nothing"]:
        """What a prediction must look like to be of these phones: English ones can be predicted, others not."""
        if not self._is_own or set(map(str.upper, self.phones)) <= ARPABET | FILLERS:
            return "plain"
        speech = {phone for phone in self.phones if not is_silence_name(phone)}
        return "stressed" if {without_stress(phone) for phone in speech} <= ARPABET else "nothing"

    @property
    def is_english(self) -> bool:
        """Whether its phones are ARPAbet's, with stress or without."""
        return self._predicts != "nothing"

    @cached_property
    def _english(self) -> "Lexicon":
        return Lexicon()

    def __contains__(self, word: object) -> bool:
        return word in self._variants

    def variants(self, word: str) -> list[tuple[str, ...]]:
        """All pronunciations that the dictionary lists, the usual one first; [] for unknown words."""
        return self._variants.get(word, [])

    def entries(self, *, within: Collection[str]) -> dict[str, list[tuple[str, ...]]]:
        """All that is listed and has no other phones than these."""
        known = set(within)
        kept = {word: [phones for phones in rows if known.issuperset(phones)] for word, rows in self._variants.items()}
        return {word: rows for word, rows in kept.items() if rows}

    def pronounce(self, word: str) -> tuple[str, ...]:
        """The first listed pronunciation, else a predicted one; () for what is no word of letters (`mp3`, `ł`)."""
        return self._variants[word][0] if word in self._variants else self._guessed(word)

    def _checked_guess(self, word: str) -> tuple[str, ...]:
        guess = self._guess(word)
        return guess if self._within is None or self._within.issuperset(guess) else ()

    def _guess(self, word: str) -> tuple[str, ...]:
        if self._predicts == "nothing":  # not by another word either: má is not ma
            return ()
        plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
        if plain != word and plain in self._variants:
            return self._variants[plain][0]
        stem, apostrophe, ending = plain.rpartition("'")
        if apostrophe and ending in ("s", ""):
            phones = self.pronounce(stem)
            if not phones or not ending:
                return phones
            if phones[-1] in _SIBILANTS:
                return (*phones, "IH0" if self._predicts == "stressed" else "IH", "Z")
            return (*phones, "S" if phones[-1] in _VOICELESS else "Z")
        if self._is_own and self._predicts == "plain" and word in self._english:
            return self._english.pronounce(word)
        letters = plain.replace("'", "")
        if len(letters) < 2 or not all("a" <= c <= "z" for c in letters):
            return ()
        if not _VOWEL_LETTERS.intersection(letters):  # pbx, mgcp: read letter by letter
            return tuple(phone for letter in letters for phone in self.pronounce(letter))
        return predict_phones(letters, stress=self._predicts == "stressed")

    def unknown(self, spoken: Iterable[str]) -> list[str]:
        """The words that neither the dictionary nor the rules can pronounce, each once, in order."""
        return [word for word in dict.fromkeys(spoken) if not self.pronounce(word)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LexiconReport:
    """How the words of texts are pronounced. `predicted` (word → phones) and `unknown` by falling frequency."""

    words: int  # different ones
    running_words: int
    listed: int  # different words that the dictionary has
    predicted: dict[str, str]
    unknown: dict[str, int]  # word → how often
    unknown_texts: int  # texts that have one: they are left out of phone and senone LMs


def lexicon_report(lexicon: Lexicon, texts: Iterable[str]) -> LexiconReport:
    """Look every word of texts up. Memory: one entry a different word."""
    counts: Counter[str] = Counter()
    unknown_texts = 0
    for text in texts:
        spoken = words(text)
        counts.update(spoken)
        unknown_texts += bool(lexicon.unknown(spoken))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    other = [word for word in ordered if word not in lexicon]
    return LexiconReport(
        words=len(counts), running_words=counts.total(), listed=len(counts) - len(other),
        predicted={word: " ".join(lexicon.pronounce(word)) for word in other if lexicon.pronounce(word)},
        unknown={word: counts[word] for word in other if not lexicon.pronounce(word)}, unknown_texts=unknown_texts,
    )  # fmt: skip


def coverage(lexicon: Lexicon, texts: Iterable[str]) -> str:
    """How many of the texts' words the lexicon lists, in a sentence that names frequent others, and what is no word."""
    counts = Counter(word for text in texts for word in words(text))
    other = [word for word, _ in counts.most_common() if word not in lexicon]
    running = counts.total() - sum(counts[word] for word in other)
    share = f"{running / counts.total():.1%} of the running text" if counts else "of no text"
    listed = f"{len(counts) - len(other)} of the {len(counts)} different words of the transcripts ({share})"
    said = f"{lexicon.path.name} lists {listed}"
    said += f"; not: {some(other, _NAMED)}." if other else "."
    if lexicon.no_words:
        left_out = some(lexicon.no_words, _NAMED)
        said += f" {len(lexicon.no_words)} of its entries are no single word and are not used: {left_out}."
    return said
