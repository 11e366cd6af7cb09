"""Subwords and characters: SentencePiece models, trained deterministically, encoding word by word.

- Trained on normalised words (`hkd.units.text`), identity normalisation, one thread, no path inside: the same texts
  give the same bytes.
- The inventory is the model's pieces in order; id 0 is `<unk>`, there are no sentence marks. Characters have the word
  mark ▁ as a unit of its own.
"""

import io
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError
from hkd.files import write_bytes
from hkd.units.inventory import UnitInventory
from hkd.units.level import SUBWORD
from hkd.units.text import normalised_lines

MODEL_FILE = "subword.model"
INVENTORY_FILE = "subword.json"
Kind = Literal["unigram", "bpe", "char"]
_MAX_LINE_BYTES = 1 << 20
_WORD_MARK = "▁"
_ENGLISH = frozenset("abcdefghijklmnopqrstuvwxyz'")


def model_file(level: str) -> str:
    """What the model of a spelled level is called in a units folder."""
    return f"{level}.model"


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
    if kind not in get_args(Kind):
        raise UserError(f"kind must be unigram, bpe or char, but is '{kind}' instead.")
    import sentencepiece

    lines = sorted(normalised_lines(texts))
    if not lines:
        raise UserError("subword training needs text, but there is none. Give a manifest with transcripts.")
    spelled = {c for line in lines for c in line if c != " "} | set(letters)
    if spelled & _ENGLISH:
        spelled |= _ENGLISH  # so that every English word can be spelled, though a small text may lack a letter
    alphabet = len(spelled) + 2  # and the word mark and <unk>
    vocab_size = alphabet if kind == "char" else vocab_size
    if vocab_size < alphabet:
        raise UserError(
            f"vocab_size must be at least {alphabet} (the characters that occur), but is {vocab_size} instead."
        )
    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=vocab_size, hard_vocab_limit=False,
            num_threads=1, model_type=kind,
            max_sentence_length=_MAX_LINE_BYTES, unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
            character_coverage=1.0,
            normalization_rule_name="identity", required_chars="".join(sorted(spelled)),
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"vocab_size {vocab_size} cannot be trained on this text ({error}). Choose a smaller one."
        ) from None
    write_bytes(folder / model_file(level), file.getvalue())
    inventory = SubwordModel(folder / model_file(level), level=level).inventory
    inventory.save(folder / f"{level}.json")
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

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Normalised words → (unit_U, word_U): pieces, and the word of each."""
        pieces = [self._encode_word(word) for word in words]
        unit = [piece for word in pieces for piece in word]
        word_of = [number for number, word in enumerate(pieces) for _ in word]
        return np.array(unit, np.int32), np.array(word_of, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Piece ids, in any order and number that a recogniser may give → words with one space between."""
        text = "".join(self.inventory.symbols[number] for number in ids)
        return " ".join(text.replace(_WORD_MARK, " ").split())


_MARKS = re.compile(r"^(?:▁|##)+|(?:</w>|@@)$")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL = re.compile(r"<[^>]*>|\[[A-Z]+\d*\]")


@lru_cache(maxsize=16)
def letters_per_unit(symbols: tuple[str, ...]) -> NDArray[np.int64]:
    """letter_V: letters and digits of each symbol, marks left out. An inventory with pieces that begin in Ġ is read as
    byte-level."""
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
    """The printable character that byte-level tokenizers write for a byte → the byte: printable Latin-1 as it is, the
    rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
