"""Words → unit sequences at any level, by a project's folder `units/`; the same from an alignment; subwords.

- `Units` is that folder: an inventory a level (senone.json ...), subword.model, character.model.
- Subwords and characters are SentencePiece models, which encode word by word. They are trained on normalised words
  (`hkd.units.text`), with identity normalisation, one thread and no path inside: the same texts give the same bytes.
- Their inventory is the model's pieces in order; id 0 is `<unk>`, there are no sentence marks. Characters have the
  word mark ▁ as a unit of its own.

Shape letters: U positions of an utterance.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError, check_choice, check_setting
from hkd.files import MAX_LINE_BYTES, check_same, digest_of, write_bytes, write_json
from hkd.units.inventory import CHARACTER, SENONE, SPELLED, SUBWORD, UNIT_LEVELS, UnitInventory
from hkd.units.lexicon import Lexicon
from hkd.units.text import normalisation, normalised_lines
from hkd.units.tying import MADE_FROM_FILE, Sequences, Tying, acoustic_digest, by_word, load_lexicon, load_tying

MODEL_FILE = "subword.model"
INVENTORY_FILE = "subword.json"
Kind = Literal["unigram", "bpe", "char"]
WORD_MARK = "▁"
_ENGLISH = frozenset("abcdefghijklmnopqrstuvwxyz'")


def model_file(level: str) -> str:
    """What the model of a spelled level is called in a units folder."""
    return f"{level}.model"


def inventory_path(folder: Path, level: str) -> Path:
    """Where a level's inventory lies in a units folder."""
    return folder / f"{level}.json"


def train_subwords(
    texts: Iterable[str],
    *,
    vocab_size: int = 500,
    kind: Kind = "unigram",
    letters: str = "",
    folder: Path,
    level: str = SUBWORD,
) -> UnitInventory:
    """Train on texts (normalised here) and write LEVEL.model and LEVEL.json; a corpus too small for `vocab_size` gives
    fewer.

    letters: units besides those of the texts. kind: char gives the alphabet, whatever `vocab_size`. Raises UserError
    where there is no text, or `vocab_size` is smaller than the alphabet.
    """
    check_setting("kind", f"'{kind}'", "be unigram, bpe or char", kind in get_args(Kind))
    import sentencepiece

    lines = sorted(normalised_lines(texts))
    if not lines:
        raise UserError("subword training needs text, but there is none. Give a manifest with transcripts.")
    spelled = {c for line in lines for c in line if c != " "} | set(letters)
    if spelled & _ENGLISH:
        spelled |= _ENGLISH  # so that every English word can be spelled, though a small text may lack a letter
    alphabet = len(spelled) + 2  # and the word mark and <unk>
    vocab_size = alphabet if kind == "char" else vocab_size
    rule = f"be at least {alphabet} (the characters that occur)"
    check_setting("vocab_size", vocab_size, rule, vocab_size >= alphabet)
    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=vocab_size, hard_vocab_limit=False,
            num_threads=1, model_type=kind,
            max_sentence_length=MAX_LINE_BYTES, unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
            character_coverage=1.0,
            normalization_rule_name="identity", required_chars="".join(sorted(spelled)),
        )  # fmt: skip
    except RuntimeError as error:
        why = f"cannot be trained on this text ({error})"
        raise UserError(f"vocab_size {vocab_size} {why}. Choose a smaller one.") from None
    write_bytes(folder / model_file(level), file.getvalue())
    inventory = SubwordModel(folder / model_file(level), level=level).inventory
    inventory.save(inventory_path(folder, level))
    return inventory


class SubwordModel:
    """A trained model: words → pieces and back. `level`: of its inventory, subword or character."""

    def __init__(self, path: Path, *, level: str = SUBWORD) -> None:
        import sentencepiece

        self.path, self.level = path, level
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{level} model {path}: {error.strerror}. Run `hkd units train` first.") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError:
            raise UserError(f"{path} must be a SentencePiece model, but cannot be read as one.") from None
        self.unknown: int = self._model.unk_id()
        self._encode_word = lru_cache(maxsize=1 << 17)(self._encode)
        pieces = tuple(self._model.id_to_piece(number) for number in range(self._model.get_piece_size()))
        self.inventory = UnitInventory(level=level, symbols=pieces)

    @property
    def is_unigram(self) -> bool:
        """Whether its pieces are the best path of a unigram model (not merges, as BPE's)."""
        import importlib

        messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
        spec = messages.ModelProto.FromString(self._model.serialized_model_proto()).trainer_spec
        return bool(spec.model_type == spec.UNIGRAM)

    def _encode(self, word: str) -> tuple[int, ...]:
        return tuple(self._model.encode(word, out_type=int))

    def encode(self, words: Sequence[str]) -> Sequences:
        """Normalised words → (unit_U, word_U): pieces, and the word of each."""
        return by_word([self._encode_word(word) for word in words])

    def decode(self, ids: Iterable[int]) -> str:
        """Piece ids, in any order and number that a recogniser may give → words with one space between."""
        text = "".join(self.inventory.symbols[number] for number in ids)
        return " ".join(text.replace(WORD_MARK, " ").split())


_MARKS = re.compile(r"^(?:▁|##)+|(?:</w>|@@)$")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL = re.compile(r"<[^>]*>|\[[A-Z]+\d*\]")


@lru_cache(maxsize=16)
def letters_per_unit(symbols: tuple[str, ...]) -> NDArray[np.int64]:
    """letter_V: letters and digits of each symbol, marks left out. With pieces that begin in Ġ it is read as bytes."""
    byte_of = _byte_of() if any(symbol.startswith("Ġ") for symbol in symbols) else None
    return np.array([_letters(symbol, byte_of) for symbol in symbols], np.int64)


def _letters(symbol: str, byte_of: dict[str, int] | None) -> int:
    if match := _BYTE.fullmatch(symbol):
        return _begins_letter(int(match.group(1), 16))
    if _SPECIAL.fullmatch(symbol):
        return 1  # an unknown word's piece stands for something
    if byte_of is not None and all(c in byte_of for c in symbol):
        data = bytes(byte_of[c] for c in symbol)
        try:
            return sum(c.isalnum() for c in data.decode())
        except UnicodeDecodeError:
            return sum(map(_begins_letter, data))
    return sum(c.isalnum() for c in _MARKS.sub("", symbol))


def _begins_letter(byte: int) -> int:
    """1 where a byte of UTF-8 begins a character that is not ASCII, or is an ASCII letter or digit."""
    return int(byte >= 0xC0 or (byte < 0x80 and chr(byte).isalnum()))


def _byte_of() -> dict[str, int]:
    """The character that byte-level tokenizers write for a byte → the byte: Latin-1 as it is, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitsConfig:
    """The table [units] of hkd.toml."""

    vocab_size: int = 500  # of the subwords
    kind: Kind = "unigram"  # unigram | bpe | char; char: the student's own subwords are characters

    def __post_init__(self) -> None:
        check_setting("vocab_size", self.vocab_size, "be 2 or more", self.vocab_size >= 2, "Try 500.")


class Units:
    """The units of a project: inventories, and what turns words into them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str, SubwordModel] = {}  # by spelled level

    @cached_property
    def lexicon(self) -> Lexicon:
        """Words → phones."""
        return load_lexicon(self.folder)

    @cached_property
    def tying(self) -> Tying:
        """Phones → senones, by the project's acoustic model; refuses inventories of another one."""
        tying = load_tying(self.folder)
        for inventory in tying.inventories.values():
            path = inventory_path(self.folder, inventory.level)
            if path.exists() and UnitInventory.load(path).digest != inventory.digest:
                rule = f"{path} must be the project's acoustic model's inventory"
                raise UserError(f"{rule}, but its digest differs. Make it again.")
        return tying

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that there are inventories of, from fine to coarse."""
        return tuple(level for level in UNIT_LEVELS if inventory_path(self.folder, level).exists())

    def spelling(self, level: str) -> SubwordModel:
        """The SentencePiece model of a spelled level. Raises UserError where it is missing or broken."""
        if level not in self._models:
            self._models[level] = SubwordModel(self.folder / model_file(level), level=level)
        return self._models[level]

    def inventory(self, level: str) -> UnitInventory:
        """The inventory of a level. Raises UserError where it is missing or broken."""
        return UnitInventory.load(inventory_path(self.folder, level))

    def encode(self, words: Sequence[str], level: str) -> Sequences:
        """Normalised words → (unit_U, word_U). Raises UserError for unknown levels, and for words without phones."""
        if level in SPELLED:
            return self.spelling(level).encode(words)
        check_choice("level", level, UNIT_LEVELS)
        phones = [self.lexicon.pronounce(word) for word in words]
        if not all(phones):
            raise UserError(f"every word must have a pronunciation, but {self.lexicon.unknown(words)} have none.")
        return self.tying.senones(phones) if level == SENONE else self.tying.monophones(phones)


def train_units(
    texts: Iterable[str],
    folder: Path,
    *,
    vocab_size: int = 500,
    kind: Kind = "unigram",
    other_splits: Iterable[str] = (),
    overwrite: bool = False,
) -> dict[str, UnitInventory]:
    """Write a units folder: subwords and characters of `texts`, senones and monophones of the project's acoustic model.

    Letters and marks (not of ASCII) that only `other_splits` have are units too, so that every transcript can be
    spelled. A folder of the same texts and settings is left; of others it raises UserError, unless `overwrite`.
    """
    lines = sorted(normalised_lines(texts))
    seen = set().union(*lines)
    letters = "".join(sorted({c for line in normalised_lines(other_splits) for c in line if not c.isascii()} - seen))
    tying = load_tying(folder)
    inventories = tying.inventories
    made_from = {
        "normalisation": normalisation(), "vocab_size": vocab_size, "kind": kind, "texts": digest_of(lines),
        "acoustic_model": acoustic_digest(tying),
    }  # fmt: skip
    if letters:
        made_from["letters"] = letters
    marker = folder / MADE_FROM_FILE
    if marker.exists():
        was = json.loads(marker.read_text(encoding="utf-8"))
        if was == made_from:
            if not inventory_path(folder, CHARACTER).exists():  # of a folder that is older than this level
                train_subwords(lines, kind="char", letters=letters, folder=folder, level=CHARACTER)
            return {level: UnitInventory.load(inventory_path(folder, level)) for level in (*inventories, *SPELLED)}
        if not overwrite:
            remedy = "Use --overwrite: alignments stay valid, subword labels and models do not."
            check_same(f"{folder} must be of the same settings and texts", was, made_from, remedy)
    for level, inventory in inventories.items():
        inventory.save(inventory_path(folder, level))
    characters = train_subwords(lines, kind="char", letters=letters, folder=folder, level=CHARACTER)
    subwords = train_subwords(lines, vocab_size=vocab_size, kind=kind, letters=letters, folder=folder)
    write_json(marker, made_from)  # last: it says that the folder is complete
    return {**inventories, CHARACTER: characters, SUBWORD: subwords}
