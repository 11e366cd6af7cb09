"""Pocketsphinx's model definition, the binary file `mdef`: phones, phones in context, and the tied states of each.

The layout (all little-endian here, the magic tells the byte order): "BMDF", version, length of a format description and that text;
ten 32-bit counts; the phones' names, NUL-terminated, padded to four bytes; a tree of contexts (8 bytes a node); the phones
(12 bytes each: state sequence, transition matrix, word position and contexts); the state sequences, 16 bits a state.
The file is small (about 2 MB for 137,000 phones in context) and read whole.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.errors import UserError

WORD_INTERNAL, WORD_BEGIN, WORD_END, WORD_SINGLE = range(4)
NUM_WORD_POSITIONS = 4
_COUNTS = 10
_PHONE = np.dtype([("ssid", "<i4"), ("tmat", "<i4"), ("wpos", "u1"), ("ctx", "u1", (3,))])


@dataclass(frozen=True, kw_only=True)
class ModelDefinition:
    """Phones in context and their tied states. Context-independent phones come first; their id is their place in `phones`."""

    phones: tuple[str, ...]
    silence: int
    filler: tuple[bool, ...]
    num_senones: int
    num_ci_senones: int
    senones_PS: NDArray[np.int32]  # for each phone (in context or not) the senones of its S emitting states
    triphones: dict[tuple[int, int, int, int], int]  # (base, left, right, word position) → row of senones_PS

    def exact(self, base: int, left: int, right: int, position: int) -> int | None:
        """The row of a phone in context, fillers as neighbours counting as silence; None where the model has none."""
        left = self.silence if self.filler[left] else left
        right = self.silence if self.filler[right] else right
        return self.triphones.get((base, left, right, position))

    def nearest(self, base: int, left: int, right: int, position: int) -> int:
        """As pocketsphinx backs off: other word positions (lowest first); silence beyond a word's edge; the phone without context."""
        edges_left = (WORD_BEGIN, WORD_SINGLE)
        edges_right = (WORD_END, WORD_SINGLE)
        contexts = [(left, right)]
        silent = (
            self.silence if self.filler[left] or position in edges_left else left,
            self.silence if self.filler[right] or position in edges_right else right,
        )
        if silent != contexts[0]:
            contexts.append(silent)
        order = [position, *(p for p in range(NUM_WORD_POSITIONS) if p != position)]
        for context_left, context_right in contexts:
            for tried in order:
                row = self.exact(base, context_left, context_right, tried)
                if row is not None:
                    return row
        return base


def read_mdef(path: Path) -> ModelDefinition:
    """Read a binary model definition. Raises UserError where the file is none, truncated, or of another layout."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"model definition {path}: {error.strerror}.") from None
    try:
        return _parse(data)
    except (struct.error, ValueError, IndexError) as error:
        raise UserError(f"{path} must be a binary pocketsphinx model definition (mdef), but is not ({error}).") from None


def _parse(data: bytes) -> ModelDefinition:
    if data[:4] != b"BMDF":
        raise ValueError("it does not begin with BMDF in little-endian order")
    _version, text_length = struct.unpack_from("<ii", data, 4)
    at = 12 + text_length
    counts = struct.unpack_from(f"<{_COUNTS}i", data, at)
    num_ci, num_phones, num_states, num_ci_senones, num_senones, _tmat, num_sequences, num_context, num_nodes, silence = counts
    if min(counts) < 0 or num_context != 3 or not 1 <= num_states <= 16 or not num_ci <= num_phones:
        raise ValueError(f"its counts {counts} make no sense")
    at += 4 * _COUNTS
    first = at
    names = []
    for _ in range(num_ci):
        end = data.index(b"\0", at)
        names.append(data[at:end].decode("ascii"))
        at = end + 1
    at = first + (at - first + 3) // 4 * 4
    at += 8 * num_nodes
    phone_P = np.frombuffer(data, _PHONE, num_phones, at)
    at += _PHONE.itemsize * num_phones
    (size,) = struct.unpack_from("<i", data, at)
    if size != num_sequences * num_states:
        raise ValueError(f"it has {size} states in its sequences instead of {num_sequences * num_states}")
    sequence_QS = np.frombuffer(data, "<u2", size, at + 4).reshape(num_sequences, num_states)
    ci = slice(0, num_ci)
    context = phone_P["ctx"].tolist()
    wpos = phone_P["wpos"].tolist()
    triphones = {(*context[row], wpos[row]): row for row in range(num_ci, num_phones)}
    return ModelDefinition(
        phones=tuple(names),
        silence=silence,
        filler=tuple(bool(value) for value in phone_P["wpos"][ci]),  # the same byte says "filler" for phones without context
        num_senones=num_senones,
        num_ci_senones=num_ci_senones,
        senones_PS=sequence_QS[phone_P["ssid"]].astype(np.int32),
        triphones=triphones,
    )
