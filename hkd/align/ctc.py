"""Forced alignment by a CTC model's best path: words, and pieces in them (Graves et al. 2006, sec. 3, but Viterbi).

- Any model that gives p(unit or blank | frame) over the sound: a checkpoint of transformers (wav2vec 2.0, HuBERT, WavLM
  ...), an exported student.
- CTC says when a unit was decided, not how long it lasted: a word runs from its first unit to its last, and takes half
  of the blanks to its neighbour, 100 ms at most. So boundaries are coarse (tens of milliseconds), and phones, shared
  out evenly or by the lexicon, more so.

Shape letters: T frames, V units and blank, U units of the transcript, S samples.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkd.align.files import Interval, Pronounce, words_alone
from hkd.align.fit import AlignmentLoader, FailureError, Source, ToolAlignment
from hkd.audio import read_audio
from hkd.errors import first_line, some
from hkd.files import digest_of, digest_of_file
from hkd.manifest import Manifest, Utterance
from hkd.pretrained import choose_device, load_config, load_model, load_tokenizer, one_line, transformers_package
from hkd.timebase import SAMPLE_RATE_HZ
from hkd.units.text import APOSTROPHES, words

Floats = NDArray[np.float32]
_REACH_S = 0.1  # of blanks that a word takes on either side
_IMPOSSIBLE = np.float32(-1e30)
MIN_SCORE = -5.0  # least mean log-probability a frame of the best path; below it the transcript is wrong


class CtcModel(Protocol):
    """A model to align by."""

    blank: int
    identity: dict[str, Any]
    left_out: dict[str, str]  # letters that the model has no unit for, each with a word that has it

    def log_probs(self, wave_S: NDArray[np.float32]) -> Floats:
        """logp_TV of a wave at 16 kHz. Raises FailureError for one that the model cannot read."""
        ...

    def encode(self, spoken: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Normalised words → (unit_U, word_U), −1 for a delimiter. Raises FailureError for words without units."""
        ...


def _classes(unit_U: NDArray[np.int32], blank: int) -> NDArray[np.int64]:
    """The class of each state: blank, u_1, blank, …, u_U, blank."""
    state_V = np.full(2 * len(unit_U) + 1, blank, np.int64)
    state_V[1::2] = unit_U
    return state_V


def best_path(logp_TV: Floats, unit_U: NDArray[np.int32], *, blank: int) -> NDArray[np.int64]:
    """The likeliest path through blank, u_1, blank, …, u_U, blank: per frame the state, 2u + 1 for unit u. Ties stay in
    the earlier state. O(T · U) time, T · U bytes. Raises FailureError where none fits."""
    state_V = _classes(unit_U, blank)
    frames, states = len(logp_TV), len(state_V)
    repeated = int((unit_U[1:] == unit_U[:-1]).sum())
    if frames < len(unit_U) + repeated:
        raise FailureError(f"the model gives {frames} frames, but the transcript has {len(unit_U) + repeated} units")
    may_skip = np.zeros(states, np.bool_)
    may_skip[3::2] = state_V[3::2] != state_V[1:-2:2]
    best = np.full(states, _IMPOSSIBLE, np.float32)
    best[:2] = logp_TV[0, state_V[:2]]
    back = np.zeros((frames, states), np.int8)
    for t in range(1, frames):
        step = np.concatenate([[_IMPOSSIBLE], best[:-1]])
        skip = np.where(may_skip, np.concatenate([[_IMPOSSIBLE, _IMPOSSIBLE], best[:-2]]), _IMPOSSIBLE)
        moved = np.stack([best, step, skip])
        back[t] = moved.argmax(0)
        best = moved.max(0) + logp_TV[t, state_V]
    at = states - 1 if states == 1 or best[-1] >= best[-2] else states - 2
    path = [at]
    for t in range(frames - 1, 0, -1):
        at -= int(back[t, at])
        path.append(at)
    return np.array(path[::-1], np.int64)


def word_times(path_T: NDArray[np.int64], word_U: NDArray[np.int32], *, frame_s: float) -> list[tuple[float, float]]:
    """(begin, end) in seconds of each word: from its first unit to its last, and half of the blanks on either side."""
    frame_T = np.flatnonzero(path_T % 2)
    word_T = word_U[path_T[frame_T] // 2]
    num = int(word_U.max()) + 1
    begin = [float(frame_T[word_T == word][0]) * frame_s for word in range(num)]
    end = [float(frame_T[word_T == word][-1] + 1) * frame_s for word in range(num)]
    total = len(path_T) * frame_s
    reach = [min(_REACH_S, gap / 2) for gap in np.subtract([*begin[1:], total + (total - end[-1])], end)]
    before = [min(_REACH_S, begin[0]), *reach[:-1]]
    return [(b - x, e + y) for b, e, x, y in zip(begin, end, before, reach, strict=True)]


class CtcSource(Source):
    """The manifest's sound and transcripts, aligned by a model."""

    def __init__(self, model: CtcModel, *, pronounce: Pronounce | None = None, min_score: float | None = None) -> None:
        """pronounce: a word's phones, which share its time evenly; None: words alone. min_score: None: MIN_SCORE."""
        self._model, self._pronounce = model, pronounce
        self._min_score = MIN_SCORE if min_score is None else min_score
        self.notes = ("words are placed by a CTC model: boundaries are coarse",)
        if pronounce is not None:
            self.notes += ("phones share a word's sound evenly: coarse",)

    @property
    def identity(self) -> dict[str, Any]:
        phones = None if self._pronounce is None else "lexicon"
        return {"name": "ctc", "model": self._model.identity, "phones": phones, "min_score": self._min_score}

    def read(self, manifest: Manifest) -> Iterator[tuple[str, AlignmentLoader]]:
        yield from ((utterance.id, partial(self._utterance, utterance)) for utterance in manifest)
        if left_out := self._model.left_out:
            letters = some((f"'{letter}' ('{word}')" for letter, word in sorted(left_out.items())), 10)
            lacking = f"the model has no unit for {len(left_out)} letters, which words are aligned without"
            self.notes += (f"{lacking}: {letters}",)

    def _utterance(self, utterance: Utterance) -> ToolAlignment:
        spoken = words(utterance.text)
        if not spoken:
            raise FailureError("the transcript has no words")
        unit_U, word_U = self._model.encode(spoken)
        wave_S = read_audio(utterance)
        logp_TV = self._model.log_probs(wave_S)
        path_T = best_path(logp_TV, unit_U, blank=self._model.blank)
        score = float(logp_TV[np.arange(len(path_T)), _classes(unit_U, self._model.blank)[path_T]].mean())
        if score < self._min_score:
            raise FailureError(
                f"its transcript is probably not what was spoken: the mean log-probability a frame is {score:.1f}, "
                f"below {self._min_score:g} (min_score)"
            )
        frame_s = len(wave_S) / SAMPLE_RATE_HZ / len(path_T)
        times = word_times(path_T, word_U, frame_s=frame_s)
        rows = [Interval(begin, end, word) for (begin, end), word in zip(times, spoken, strict=True)]
        return words_alone(rows, self._pronounce)


class TransformersCtc:
    """A CTC checkpoint of transformers that takes waves: its safetensors and its tokenizer's letters, no code."""

    def __init__(self, source: str, *, device: str = "cpu") -> None:
        """source: a folder or a name on the hub. Raises UserError where it is no such checkpoint."""
        import torch

        what = "the CTC model"
        config = load_config(source, what=what)
        remedy = "Take a checkpoint that was fine-tuned with CTC: a random head aligns nothing."
        model = load_model(source, "AutoModelForCTC", what=what, remedy=remedy, config=config)
        self._model, self._tokenizer = model.to(choose_device(device)), load_tokenizer(source, what=what)
        with transformers_package() as transformers, one_line(source, what=what):
            self._features = transformers.AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
        self._torch = torch
        self.blank = int(config.pad_token_id or 0)
        own: dict[str, int] = self._tokenizer.get_vocab()
        self._vocabulary = {letter.translate(APOSTROPHES): number for letter, number in own.items()} | own
        self.left_out: dict[str, str] = {}
        weights = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
        self.identity = {
            "name": Path(source).name,
            "revision": getattr(config, "_commit_hash", None),
            "weights": digest_of(digest_of_file(path) for path in weights),
            "letters": digest_of(sorted(self._vocabulary)),
        }

    def log_probs(self, wave_S: NDArray[np.float32]) -> Floats:
        """logp_TV. Raises FailureError, for a wave that is shorter than the model's first window, say."""
        try:
            given = self._features(wave_S, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
            with self._torch.no_grad():
                logits_BTV = self._model(**{name: value.to(self._model.device) for name, value in given.items()}).logits
        except (RuntimeError, ValueError) as error:
            seconds = len(wave_S) / SAMPLE_RATE_HZ
            raise FailureError(f"the model cannot read {seconds:.3f} s of sound: {first_line(error)}") from None
        logp_TV: Floats = logits_BTV[0].float().log_softmax(-1).cpu().numpy()
        return logp_TV

    def encode(self, spoken: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Letters (or the tokenizer's pieces), with the delimiter between words where the tokenizer has one."""
        delimiter = self._vocabulary.get(getattr(self._tokenizer, "word_delimiter_token", None) or "")
        unit: list[int] = []
        word_of: list[int] = []
        for number, word in enumerate(spoken):
            pieces = self._pieces(word)
            if not pieces:
                raise FailureError(f"the model has no units for '{word}'")
            if number and delimiter is not None:
                unit.append(delimiter)
                word_of.append(-1)
            unit += pieces
            word_of += [number] * len(pieces)
        return np.array(unit, np.int32), np.array(word_of, np.int32)

    def _pieces(self, word: str) -> list[int]:
        if getattr(self._tokenizer, "word_delimiter_token", None) is None:
            unknown = self._tokenizer.unk_token_id
            found = self._tokenizer(word, add_special_tokens=False)["input_ids"]
            if unknown in found:
                self.left_out.update({word: word})
            return [int(number) for number in found if number != unknown]
        spelled = max((word, word.upper()), key=lambda spelled: sum(c in self._vocabulary for c in spelled))
        self.left_out.update({c: word for c in spelled if c not in self._vocabulary})
        return [self._vocabulary[c] for c in spelled if c in self._vocabulary]
