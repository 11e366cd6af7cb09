"""Kaldi's alignments: `ali.*.gz` (or an ark, binary or text) with `final.mdl`, `tree` and `phones.txt`.

- Senones are pdf-ids, a position is a state's visit; phones are folded to what stands before `_B`, `_I`, `_E`, `_S`.
- Words come from those places; phones without them need a CTM of words, or the lexicon that the alignment was made
  with.
- Frames may be subsampled (chain models): the model's folder says so, or an option does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.align.files import Ctm, lasting, read_ctm, words_at
from hkd.align.fit import NO_UTTERANCE, AlignmentLoader, FailureError, ImportConfig, Source, ToolAlignment, samples_of
from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.manifest import Manifest, Utterance
from hkd.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ, foreign_boundaries
from hkd.units.inventory import SENONE
from hkd.units.kaldi import TransitionModel, read_integer_vectors, read_symbols, read_transitions, read_tree
from hkd.units.lexicon import Lexicon, is_silent_word, split_position
from hkd.units.text import words
from hkd.units.tying import TreeTying

WINDOW_SAMPLES = 400  # Kaldi's windows of 25 ms
_SUBSAMPLING_FILE = "frame_subsampling_factor"
_TOLERANCE_S = 0.1


def read_model(
    folder: Path, *, lang: Path | None = None, config: ImportConfig | None = None
) -> tuple[TransitionModel, TreeTying]:
    """Read final.mdl, tree and phones.txt (or `lang`'s). Raises UserError where one is missing, broken or foreign."""
    config = config or ImportConfig()
    found = next(filter(Path.exists, [place / "phones.txt" for place in (folder, lang) if place]), None)
    if found is None:
        remedy = "Give the lang folder that the model was made with: --set lang=FOLDER."
        raise UserError(f"{folder} must hold phones.txt, but does not. {remedy}")
    for name in ("final.mdl", "tree"):
        if not (folder / name).exists():
            remedy = "Give the folder of the alignment's model: --set model=FOLDER."
            raise UserError(f"{folder} must hold {name}, but does not. {remedy}")
    transitions, tree = read_transitions(folder / "final.mdl"), read_tree(folder / "tree")
    symbols = read_symbols(found)
    phones = {phone: number for phone, number in symbols.items() if number > 0 and not phone.startswith("#")}
    if foreign := sorted(set(transitions.topology) - set(phones.values())):
        remedy = "Give that of the same model."
        raise UserError(f"{found} must have the model's phones, but lacks number {foreign[0]}. {remedy}")
    phones = {phone: number for phone, number in phones.items() if number in transitions.topology}
    tying = TreeTying(
        phones=phones, tree=tree, places={number: tuple(transitions.places(number)) for number in phones.values()},
        owner=transitions.owner, silence_phones=tuple(config.silence_phones), stress=config.stress, name="kaldi",
    )  # fmt: skip
    return transitions, tying


class KaldiSource(Source):
    """A folder of alignments, or one archive."""

    def __init__(
        self,
        path: Path,
        *,
        model: Path | None = None,
        lang: Path | None = None,
        word_ctm: Path | None = None,
        lexicon: Lexicon | None = None,
        subsampling: int | None = None,
        config: ImportConfig | None = None,
    ) -> None:
        """model: where final.mdl and tree lie, if not here; word_ctm, lexicon: for phones without places in words."""
        folder = path if path.is_dir() else path.parent
        found = sorted(p for pattern in ("ali.*.gz", "ali.*.ark", "ali.ark", "ali.gz") for p in path.glob(pattern))
        self._paths = list(dict.fromkeys(found)) if path.is_dir() else [path]
        if not self._paths or not path.exists():
            remedy = "Give the folder of Kaldi's align_si.sh, say."
            raise UserError(f"{path} must hold alignments (ali.1.gz, ...), but holds none. {remedy}")
        self._transitions, self.tying = read_model(model or folder, lang=lang, config=config)
        self._word_ctm, self._lexicon = word_ctm, lexicon
        self._subsampling = subsampling or _subsampling(model or folder)
        tying = self.tying
        self.phones, self.senones = tying.monophone_inventory.symbols, (tying.senone_inventory, tying.silences[SENONE])
        self._says_places = any(split_position(phone)[1] for phone in tying.phones)
        if not self._says_places and word_ctm is None and lexicon is None:
            raise UserError(
                "the phones must say their place in the word (AH_B), but do not. Give the words' times (--set "
                "words=CTM) or the lexicon (--lexicon)."
            )
        self._symbol_of = {number: phone for phone, number in tying.phones.items()}

    @property
    def identity(self) -> dict[str, Any]:
        files = digest_of(part for path in self._paths for part in (path.name, digest_of_file(path)))
        lexicon = None if self._lexicon is None else self._lexicon.path
        more = [digest_of_file(path) for path in (self._word_ctm, lexicon) if path is not None]
        model = digest_of([self.tying.senone_inventory.digest, self.tying.tree.to_text(), *(self.phones or ())])
        return {"name": "kaldi", "files": files, "model": model, "words_by": more, "subsampling": self._subsampling}

    def read(self, manifest: Manifest) -> Iterator[tuple[str, AlignmentLoader]]:
        """In the archives' order. Raises UserError where an archive is broken or an id stands twice."""
        spoken = read_ctm(self._word_ctm) if self._word_ctm is not None else Ctm()
        by_id = {utterance.id: utterance for utterance in manifest}
        seen: dict[str, Path] = {}
        for path in self._paths:
            for name, id_T in read_integer_vectors(path):
                if name in seen:
                    raise UserError(f"an utterance must be aligned once, but '{name}' is in {seen[name]} and {path}.")
                seen[name] = path
                yield name, partial(self._utterance, id_T, by_id[name], spoken) if name in by_id else NO_UTTERANCE

    def _utterance(self, id_T: NDArray[np.int32], utterance: Utterance, spoken: Ctm) -> ToolAlignment:
        num_samples, name = samples_of(utterance), utterance.id
        model, shift = self._transitions, self._subsampling * HOP_SAMPLES
        try:
            start_P, begins_P = model.pieces(id_T)
        except ValueError as error:
            raise FailureError(f"it is no alignment by this model: {error}") from None
        if abs(len(id_T) * shift - num_samples) > _TOLERANCE_S * SAMPLE_RATE_HZ + shift:
            raise FailureError(
                f"it has {len(id_T)} frames of {shift / 16:g} ms, but the sound {num_samples / SAMPLE_RATE_HZ:.2f} s: "
                "is the frames' subsampling another (--set subsampling=3)?"
            )
        bound_T1 = foreign_boundaries(len(id_T), num_samples, shift_samples=shift, window_samples=WINDOW_SAMPLES)
        symbols = [self._symbol_of[int(phone)] for phone in model.phone_I[id_T[start_P]]]
        foreign = ToolAlignment(
            tokens=(), start_P=bound_T1[start_P], stop_P=bound_T1[np.append(start_P[1:], len(id_T))],
            word_P=np.full(len(start_P), -1, np.int64), phone_P=tuple(split_position(symbol)[0] for symbol in symbols),
            begins_P=begins_P, senone_P=model.senone_I[id_T[start_P]].astype(np.int64),
        )  # fmt: skip
        phone_of_P = np.cumsum(begins_P) - 1
        phones = [symbol for symbol, begins in zip(symbols, begins_P, strict=True) if begins]
        every = [token if words(token) else "" for token in utterance.text.split()]  # "" is a tag, <noise> say
        tokens = [token for token in every if token]
        if name in spoken:
            rows = spoken.rows(name, utterance.channel)
            said = [row for row in lasting(rows, "word") if not is_silent_word(row.label)]
            middle_P = (foreign.start_P + foreign.stop_P) / 2 / SAMPLE_RATE_HZ
            # that of a phone's first piece
            tokens, word_Q = [row.label for row in said], words_at(said, middle_P)[begins_P]
        elif self._says_places:
            word_Q = _by_place(phones)
            num_words = int(word_Q.max(initial=-1)) + 1
            if num_words == len(every):  # tags were aligned too
                tokens = every
            elif num_words != len(tokens):
                raise FailureError(f"the alignment has {num_words} words, the transcript {len(tokens)}")
        elif self._lexicon is not None:
            folded = [self.tying.symbol_of[number] for number in model.phone_I[id_T[start_P[begins_P]]].tolist()]
            silent = {self.tying.monophone_inventory.symbols[number] for number in self.tying.quiet_phones}
            word_Q = _by_lexicon(folded, tokens, self._lexicon, silent)
        else:
            raise FailureError("the CTM has no words of it")
        return replace(foreign, tokens=tuple(tokens), word_P=word_Q[phone_of_P])


def _subsampling(folder: Path) -> int:
    """Frames of 10 ms that a frame of the model stands for, as the model's folder says; 1 where it does not."""
    path = folder / _SUBSAMPLING_FILE
    if not path.exists():
        return 1
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text not in ("1", "2", "3", "4"):
        raise UserError(f"{path} must hold a number from 1 to 4, but holds '{text[:20]}'.")
    return int(text)


def _by_place(phones: Sequence[str]) -> NDArray[np.int64]:
    """The word of each phone, by the places that they say. Raises FailureError where these make no words."""
    word, inside, word_Q = -1, False, []
    for phone in phones:
        place = split_position(phone)[1]
        word += place in ("B", "S")
        if (place in ("I", "E")) != inside:
            raise FailureError(f"the phones' places in words do not follow each other at '{phone}'")
        inside = place in ("B", "I")
        word_Q.append(word if place else -1)
    return np.array(word_Q, np.int64)


def _by_lexicon(phones: Sequence[str], tokens: Sequence[str], lexicon: Lexicon, silent: set[str]) -> NDArray[np.int64]:
    """The word of each phone: the tokens' pronunciations, silence between them. Raises FailureError where none fits."""
    # by words so far: phones used → (phones before, where the word begins)
    reached: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for token in tokens:
        written = (token, token.lower(), " ".join(words(token)))
        variants = next(filter(None, map(lexicon.variants, written)), [])
        here: dict[int, tuple[int, int]] = {}
        for before in reached[-1]:
            begin = before
            while True:
                for variant in variants:
                    if tuple(phones[begin : begin + len(variant)]) == variant:
                        here.setdefault(begin + len(variant), (before, begin))
                if begin >= len(phones) or phones[begin] not in silent:
                    break
                begin += 1
        if not here:
            raise FailureError(f"no pronunciation of '{token}' is what was aligned")
        reached.append(here)
    ends = [end for end in reached[-1] if silent.issuperset(phones[end:])]
    if not ends:
        raise FailureError("the alignment has phones after the transcript's last word")
    word_Q = np.full(len(phones), -1, np.int64)
    end = ends[0]
    for word in range(len(tokens), 0, -1):
        before, begin = reached[word][end]
        word_Q[begin:end] = word - 1
        end = before
    return word_Q
