"""Random alignments for tests that need no speech: contiguous tiers, silence between words, three senones a phone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Tier, UtteranceAlignment, write_alignment
from hkd.manifest import Manifest
from hkd.units.inventory import MONOPHONE, SENONE, UnitInventory
from hkd.units.text import words

NUM_STATES = 3
NUM_PHONES = 10  # of the made-up inventories; phone 0 is silence


def toy_inventories() -> dict[str, UnitInventory]:
    """Ten phones (0 is SIL) and two tied senones a state: senone ids 6·phone + 2·state + {0, 1}."""
    phones = ("SIL", *(f"P{number}" for number in range(1, NUM_PHONES)))
    senones = tuple(f"{phones[n // 6]}-{n % 6 // 2}-{n}" for n in range(NUM_PHONES * NUM_STATES * 2))
    return {
        SENONE: UnitInventory(level=SENONE, symbols=senones, silence=0),
        MONOPHONE: UnitInventory(level=MONOPHONE, symbols=phones, silence=0),
    }


TOY_SILENCES = {SENONE: tuple(range(NUM_STATES * 2)), MONOPHONE: (0,)}


def random_alignment(
    rng: np.random.Generator, *, id: str = "utt", spoken: Sequence[str] = ("a", "b", "c"), silence: float = 0.5
) -> UtteranceAlignment:
    """One utterance over `toy_inventories`: each word 1-4 phones, each state 1-4 frames, silence at edges and now and
    then between."""
    word_unit: list[int] = []
    word_len: list[int] = []
    phone_unit: list[int] = []
    senone_unit: list[int] = []
    state_len: list[int] = []

    def say(word: int, phones: Sequence[int]) -> None:
        lengths = rng.integers(1, 5, NUM_STATES * len(phones)).tolist()
        word_unit.append(word)
        word_len.append(sum(lengths))
        phone_unit.extend(phones)
        senone_unit.extend(6 * p + 2 * s + int(rng.integers(2)) for p in phones for s in range(NUM_STATES))
        state_len.extend(lengths)

    for number in range(len(spoken)):
        if rng.random() < silence:
            say(-1, [0])
        say(number, rng.integers(1, NUM_PHONES, rng.integers(1, 5)).tolist())
    if not spoken or rng.random() < silence:
        say(-1, [0])
    ends_S1 = _bounds(state_len)
    return UtteranceAlignment(
        id=id,
        words=tuple(spoken),
        word_tier=Tier(unit_U=np.array(word_unit, np.int32), start_U1=_bounds(word_len)),
        tiers={
            SENONE: Tier(unit_U=np.array(senone_unit, np.int32), start_U1=ends_S1),
            MONOPHONE: Tier(unit_U=np.array(phone_unit, np.int32), start_U1=ends_S1[::NUM_STATES]),
        },
    )


def write_random_alignment(manifest: Manifest, path: Path, *, seed: int = 0) -> Alignment:
    """A random alignment of every utterance of a manifest, as a file, opened."""
    rng = np.random.default_rng(seed)
    rows = [random_alignment(rng, id=u.id, spoken=words(u.text)) for u in manifest]
    write_alignment(
        path, rows, manifest_digest=manifest.digest, inventories=toy_inventories(), silences=TOY_SILENCES,
        aligner={"name": "random", "seed": seed}, failed={},
    )  # fmt: skip
    return Alignment(path)


def _bounds(lengths: Sequence[int]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
