"""An aligner that has nothing in common with pocketsphinx but the dictionary: monophone GMMs from a flat start on the
corpus itself.

- The recipe is Kaldi's `train_mono.sh`: 13 cepstra with first and second differences, mean and variance of each speaker
  removed; three states a phone; equal segments first, then Viterbi and maximum likelihood in turns while the number of
  Gaussians grows. Statistics, updates and splits are Kaldi's own code (package kaldi-hmm-gmm). No boundary and no other
  aligner's model goes in.
- Monophones on purpose: models in context drift from the phones' boundaries, since a context always brings the same
  neighbour (Toledano et al. 2003, Automatic phonetic segmentation, section IV).
- Silence may stand between words, and every pronunciation of the dictionary is tried.

Not for use in one process with kaldifst: two packages of Kaldi's code hang beside each other.

Shape letters: T frames, F coefficients, S states of an utterance's graph, P ways into a state.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.audio import import_torchaudio, read_audio
from hkd.manifest import Utterance
from hkd.timebase import SAMPLE_RATE_HZ, samples_to_frames
from hkd.units.lexicon import Lexicon
from hkd.units.text import words

SILENCE = "SIL"
STATES = 3
REALIGNED = (*range(1, 11), *range(12, 40, 2))  # of the rounds: Kaldi's
ROUNDS, LAST_SPLIT = 40, 30
FRAMES_OF_WINDOW = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """What may be said: states, the ways into each (itself first; −1: none), where it begins and ends, and whose each
    state is."""

    pdf_S: NDArray[np.int64]
    from_SP: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    word_S: NDArray[np.int64]  # −1: silence
    phone_S: NDArray[np.int64]  # number of the phone in its word's variant
    variant_S: NDArray[np.int64]
    said: tuple[tuple[tuple[str, ...], ...], ...]  # pronunciations of each word


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A phone, or silence (word −1), of [start, stop) frames of 10 ms."""

    word: int
    phone: str
    start: int
    stop: int


class _Builder:
    """A graph, state by state."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int]] = []
        self.ways: list[list[int]] = []

    def chain(self, pdfs: Sequence[int], word: int, variant: int, *, after: Sequence[int]) -> int:
        """States in a row, three a phone; the last one's number."""
        for number, pdf in enumerate(pdfs):
            state = len(self.rows)
            self.rows.append((pdf, word, number // STATES, variant))
            self.ways.append([state, *(after if number == 0 else [state - 1])])
        return len(self.rows) - 1


class GmmAligner:
    """Monophone GMMs; `train`, then `align`."""

    def __init__(self, lexicon: Lexicon, phones: Iterable[str]) -> None:
        import _kaldi_hmm_gmm as khg  # the extension alone: kaldi_hmm_gmm would want graphviz

        self._khg: Any = khg
        self._lexicon = lexicon
        names = [SILENCE, *sorted(set(phones) - {SILENCE})]
        self._first_pdf = {phone: STATES * number for number, phone in enumerate(names)}
        self._model: Any = khg.AmDiagGmm()

    def graph(self, text: str) -> Graph:
        """The graph of a transcript. Raises ValueError where a word has no pronunciation."""
        build, said = _Builder(), []
        silence = self._pdfs((SILENCE,))
        starts = [0]
        ends = [build.chain(silence, -1, 0, after=())]
        for number, word in enumerate(words(text)):
            variants = tuple(dict.fromkeys(self._lexicon.variants(word))) or (self._lexicon.pronounce(word),)
            if not all(variants):
                raise ValueError(f"no pronunciation for '{word}'")
            said.append(variants)
            after, ends = ends, []
            for which, variant in enumerate(variants):
                if number == 0:
                    starts.append(len(build.rows))
                ends.append(build.chain(self._pdfs(variant), number, which, after=after))
            ends.append(build.chain(silence, -1, 0, after=ends[:]))
        pdf_S, word_S, phone_S, variant_S = (np.array(column, np.int64) for column in zip(*build.rows, strict=True))
        widest = max(map(len, build.ways))
        from_SP = np.array([way + [len(build.rows)] * (widest - len(way)) for way in build.ways], np.int64)
        return Graph(
            pdf_S=pdf_S, from_SP=from_SP, starts=np.array(starts), ends=np.array(ends), word_S=word_S, phone_S=phone_S,
            variant_S=variant_S, said=tuple(said),
        )  # fmt: skip

    def _pdfs(self, phones: Sequence[str]) -> list[int]:
        return [self._first_pdf[phone] + state for phone in phones for state in range(STATES)]

    def train(
        self,
        data: Sequence[tuple[NDArray[np.float32], Graph]],
        *,
        gaussians: int = 2000,
        rounds: int = ROUNDS,
        progress: Callable[[int, float], None] = lambda done, likelihood: None,
    ) -> None:
        """Features and graphs of utterances → GMMs, from equal segments."""
        khg = self._khg
        every_F = np.concatenate([feat_TF for feat_TF, _ in data])
        proto = khg.DiagGmm(1, every_F.shape[1])
        proto.set_weights(np.ones(1, np.float32))
        mean_F, var_F = every_F.mean(0), every_F.var(0)
        proto.set_invvars_and_means((1 / var_F)[None].astype(np.float32), mean_F[None].astype(np.float32))
        proto.compute_gconsts()
        self._model.init(proto, STATES * len(self._first_pdf))
        pdf_T = [equal_segments(graph, len(feat_TF)) for feat_TF, graph in data]
        flags, options, target = khg.str_to_gmm_flags("mvw"), khg.MleDiagGmmOptions(), self._model.num_gauss
        for number in range(rounds):
            if number in REALIGNED:
                pdf_T = [graph.pdf_S[self.path(feat_TF, graph)] for feat_TF, graph in data]
            sums = khg.AccumAmDiagGmm()
            sums.init(self._model, flags)
            for (feat_TF, _), pdfs in zip(data, pdf_T, strict=True):
                for feat_F, pdf in zip(feat_TF, pdfs.tolist(), strict=True):
                    sums.accumulate_for_gmm(self._model, feat_F, pdf, 1.0)
            khg.mle_am_diag_gmm_update(options, sums, flags, self._model)
            progress(number + 1, sums.tot_log_like / sums.tot_count)
            if number <= min(LAST_SPLIT, rounds - 2):
                target += max(0, gaussians - self._model.num_pdfs) // LAST_SPLIT
                occupancy = np.bincount(np.concatenate(pdf_T), minlength=self._model.num_pdfs).astype(np.float32)
                self._model.split_by_count(occupancy, target, 0.01, 0.25, 20.0)

    def path(self, feat_TF: NDArray[np.float32], graph: Graph) -> NDArray[np.int64]:
        """The best state of each frame. Raises ValueError where there are fewer frames than a path has states."""
        used, place_S = np.unique(graph.pdf_S, return_inverse=True)
        score_TU = np.stack([self._log_likelihood(int(pdf), feat_TF) for pdf in used], 1)
        return viterbi(score_TU[:, place_S], graph)

    def _log_likelihood(self, pdf: int, feat_TF: NDArray[np.float32]) -> NDArray[np.float64]:
        each_TG = np.asarray(self._model.get_pdf(pdf).log_likelihoods_matrix(feat_TF), np.float64)
        best_T = each_TG.max(1)
        total_T: NDArray[np.float64] = best_T + np.log(np.exp(each_TG - best_T[:, None]).sum(1))
        return total_T

    def align(self, feat_TF: NDArray[np.float32], graph: Graph) -> list[Segment]:
        """Phones and silences in order."""
        state_T = self.path(feat_TF, graph)
        key_T = np.stack([graph.word_S[state_T], graph.phone_S[state_T], graph.variant_S[state_T]], 1)
        starts = [0, *(np.flatnonzero((key_T[1:] != key_T[:-1]).any(1)) + 1).tolist()]
        found = []
        for start, stop in zip(starts, [*starts[1:], len(key_T)], strict=True):
            word, phone, variant = key_T[start].tolist()
            symbol = SILENCE if word < 0 else graph.said[word][variant][phone]
            found.append(Segment(word=word, phone=symbol, start=start, stop=stop))
        return found


def viterbi(score_TS: NDArray[np.float64], graph: Graph) -> NDArray[np.int64]:
    """The path of the greatest sum. Transitions cost nothing. Raises ValueError where no path is short enough."""
    frames, states = score_TS.shape
    best = np.full(states + 1, -np.inf)  # the last one: from nowhere
    best[graph.starts] = score_TS[0, graph.starts]
    back_TS = np.zeros((frames, states), np.int64)
    row_S = np.arange(states)
    for t in range(1, frames):
        way_SP = best[graph.from_SP]
        which_S = way_SP.argmax(1)
        back_TS[t] = graph.from_SP[row_S, which_S]
        best[:-1] = way_SP[row_S, which_S] + score_TS[t]
    state = int(graph.ends[best[graph.ends].argmax()])
    if not np.isfinite(best[state]):
        raise ValueError(f"{frames} frames are fewer than the transcript has states")
    path = np.empty(frames, np.int64)
    for t in range(frames - 1, -1, -1):
        path[t] = state
        state = int(back_TS[t, state])
    return path


def equal_segments(graph: Graph, frames: int) -> NDArray[np.int64]:
    """The first pronunciation of each word, silence at both ends, every state as long as the others: the pdf of each
    frame."""
    inner_S = (graph.variant_S == 0) & (graph.word_S >= 0)
    pdfs = np.concatenate([graph.pdf_S[:STATES], graph.pdf_S[inner_S], graph.pdf_S[:STATES]])
    whole: NDArray[np.int64] = pdfs[np.arange(frames) * len(pdfs) // frames]
    return whole


def cepstra(utterance: Utterance) -> NDArray[np.float32]:
    """x_TF, 39 coefficients in frames of 10 ms that lie around their windows' middle; mean and variance still in."""
    wave_S = torch.from_numpy(read_audio(utterance))
    frames = samples_to_frames(wave_S.numel())
    torchaudio = import_torchaudio()
    wave_S = torch.nn.functional.pad(wave_S, (0, max(0, FRAMES_OF_WINDOW - wave_S.numel())))
    rate_hz = float(SAMPLE_RATE_HZ)
    mfcc = torchaudio.compliance.kaldi.mfcc
    c_TF = mfcc(wave_S[None] * 32768, sample_frequency=rate_hz, dither=0.0, use_energy=False, snip_edges=False)
    c_FT = c_TF[:frames].T.contiguous()
    slopes_FT = torchaudio.functional.compute_deltas(c_FT)  # over five frames, as Kaldi's `add-deltas`
    changes_FT = torchaudio.functional.compute_deltas(slopes_FT)
    return torch.cat([c_FT, slopes_FT, changes_FT]).T.numpy().astype(np.float32)


def normalised_by_speaker(
    feats: dict[str, NDArray[np.float32]], speaker_of: dict[str, str]
) -> dict[str, NDArray[np.float32]]:
    """Mean 0 and variance 1 for each speaker."""
    by_speaker: dict[str, list[NDArray[np.float32]]] = {}
    for name, feat_TF in feats.items():
        by_speaker.setdefault(speaker_of[name], []).append(feat_TF)
    stats = {name: np.concatenate(rows) for name, rows in by_speaker.items()}
    scale = {name: (every.mean(0), np.maximum(every.std(0), 1e-5)) for name, every in stats.items()}
    return {
        name: ((feat_TF - scale[speaker_of[name]][0]) / scale[speaker_of[name]][1]).astype(np.float32)
        for name, feat_TF in feats.items()
    }
