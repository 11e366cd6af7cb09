"""From sound to text: an exported student, its features, and the search over its output.

- Needs the exported folder alone. A student's output does not depend on its batch, so batches are only about speed.
- Long recordings are cut at quiet places, since students are trained on short ones.

Shape letters: B utterances, S samples, T frames, F feature bins.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.audio import check_range, read_audio
from hkd.corpora.collect import UNREADABLE, Report, sort_files, walk
from hkd.decode.ctc import BLANK, Search, SearchConfig
from hkd.decode.graph import HybridSearch, log_priors
from hkd.errors import UserError
from hkd.features.cache import Features
from hkd.features.fbank import FrontEnd
from hkd.files import digest_of, digest_of_file
from hkd.manifest import Utterance
from hkd.pretrained import choose_device
from hkd.student.export import CARD, SENONE_FRAMES, load_student
from hkd.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ
from hkd.units.inventory import SENONE
from hkd.units.sequences import SubwordModel
from hkd.units.tying import load_lexicon, load_tying

Wave_S = NDArray[np.float32]
_SMOOTH_FRAMES = 20  # of 10 ms, over which the sound's energy is averaged before it is cut


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingTimes:
    """Where the time went: all threads' processor time on a CPU, which others hardly change; wall time on a GPU."""

    features: float = 0.0
    network: float = 0.0
    search: float = 0.0

    @property
    def total(self) -> float:
        return self.features + self.network + self.search

    def __add__(self, other: "DecodingTimes") -> "DecodingTimes":
        return DecodingTimes(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


class Recogniser:
    """An exported student that transcribes."""

    def __init__(
        self, folder: str | Path, *, device: str = "auto", search: SearchConfig | None = None, lm: str | None = None
    ) -> None:
        """folder: an exported student, or a run with one in `model/`. lm: see `hkd.decode.ctc.Search`; for a hybrid
        student a word n-gram. Raises UserError where the folder holds no exported student."""
        folder = Path(folder)
        if (folder / "model" / CARD).exists():  # a run, whose own student.json tells of the heads
            folder = folder / "model"
        self.device = str(choose_device(device))
        self.clock = time.process_time if self.device == "cpu" else time.perf_counter
        self.student, self.meta = load_student(folder, device=self.device)
        self._folder, self._config, self._lm = folder, search or SearchConfig(), lm

    @property
    def is_hybrid(self) -> bool:
        """Whether the main output is senones."""
        return self.meta.config.main == SENONE

    @cached_property
    def search(self) -> Search | HybridSearch:
        """The search over the main output, made when it is first needed. Raises UserError for a student without one."""
        if self.is_hybrid:
            if self._lm is None:
                what = "a hybrid student, whose senones become words by a word n-gram"
                raise UserError(f"{self._folder} holds {what}. Give one: --lm words.arpa.")
            known: dict[str, Any] = {"tying": load_tying(self._folder), "lexicon": load_lexicon(self._folder)}
            priors_V = log_priors(self.senone_frames())
            return HybridSearch(self._config.hybrid, self.meta.inventory, priors_V, Path(self._lm), **known)
        if self.meta.subword_model is None:
            rule = "must hold a subword model beside its CTC output"
            raise UserError(f"{self._folder} {rule}, but has none. Export the student again.")
        return Search(self._config, SubwordModel(self.meta.subword_model), lm=self._lm, device=self.device)

    def senone_frames(self) -> list[int]:
        """Frames of each senone in a hybrid student's training data. Raises UserError where the student is none."""
        frames_V = self.meta.extra.get(SENONE_FRAMES)
        if not self.is_hybrid or not isinstance(frames_V, list) or len(frames_V) != len(self.meta.inventory):
            rule = "must hold a hybrid student and say how many frames each senone had in training"
            raise UserError(f'{self._folder} {rule}, but does not. Train with main = "senone".')
        return frames_V

    @property
    def num_parameters(self) -> int:
        """Of all that runs at inference, a frozen upstream too."""
        return self.student.num_parameters() + self.front_end.num_parameters

    @property
    def front_end(self) -> FrontEnd:
        """What makes the student's features of sound."""
        return self.meta.config.encoder.front_end

    @torch.no_grad()
    def logits(
        self, waves: Sequence[Wave_S], features: Sequence[Features] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, DecodingTimes]:
        """logits_BTV of the main output, valid frames of each, and the time. Waves: mono, 16 kHz, at least one frame
        each. features: x_TF each, where they are computed already; their time is then not counted."""
        begin_s = self.clock()
        if features is None:
            features = [self.front_end(wave_S) for wave_S in waves]
        length_B = torch.tensor([len(x_TF) for x_TF in features])
        x_BTF = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(x_TF) for x_TF in features], batch_first=True)
        features_s = self.clock() - begin_s
        output = self.student(x_BTF.to(self.device), length_B.to(self.device))
        logits_BTV = output.logits_BTV.float().cpu()  # waits for the device, so the time is the network's
        network_s = self.clock() - begin_s - features_s
        return logits_BTV, output.length_B.cpu(), DecodingTimes(features=features_s, network=network_s)

    def warm_up(self) -> None:
        """Run once on silence, so that the first batch's time is not that of loading code."""
        self.recognise([np.zeros(SAMPLE_RATE_HZ, np.float32)])

    def recognise(self, waves: Sequence[Wave_S]) -> list[list[int]]:
        """The unit ids that are said in each wave of a batch; `search.text` makes text of them."""
        logits_BTV, length_B, _ = self.logits(waves)
        return self.search.best(logits_BTV, length_B)

    def transcribe(self, sound: str | Path | Wave_S) -> dict[str, Any]:
        """The transcript of a sound file, or of a wave (mono, 16 kHz): `text`, `seconds`, and `pieces` (start_s,
        stop_s, text, units). Raises UserError for what is no sound."""
        name = "" if isinstance(sound, np.ndarray) else str(sound)
        if not isinstance(sound, np.ndarray):
            wave_S = read_audio(Utterance(id=Path(name).name, text="", audio_filepath=name))
        elif sound.ndim == 1 and sound.size and np.issubdtype(sound.dtype, np.floating):
            wave_S = np.asarray(sound, np.float32)
            check_range(wave_S, "a wave")
        else:
            raise UserError(
                f"a wave must be one channel of floats between -1 and 1 (16 kHz), but has the shape {sound.shape} and "
                f"the type {sound.dtype}. Take the mean of channels; divide integers of 16 bits by 32768."
            )
        pieces: list[dict[str, Any]] = []
        start = 0
        for piece_S in cut_at_quiet(wave_S):
            [units], stop = self.recognise([piece_S]), start + len(piece_S)
            times = {"start_s": start / SAMPLE_RATE_HZ, "stop_s": stop / SAMPLE_RATE_HZ}
            said = {"text": self.search.text(units), "units": [self.search.symbols[unit] for unit in units]}
            pieces.append({**times, **said})
            start = stop
        text = " ".join(piece["text"] for piece in pieces if piece["text"])
        return {"file": name, "text": text, "seconds": len(wave_S) / SAMPLE_RATE_HZ, "pieces": pieces}


def cut_at_quiet(wave_S: Wave_S, *, max_piece_s: float = 20.0) -> list[Wave_S]:
    """The wave in pieces of at most `max_piece_s` seconds, cut where the second half of that is quietest."""
    most = int(max_piece_s * SAMPLE_RATE_HZ)
    pieces: list[Wave_S] = []
    while len(wave_S) > most:
        half = wave_S[most // 2 : most].astype(np.float64)
        frames = half[: len(half) // HOP_SAMPLES * HOP_SAMPLES].reshape(-1, HOP_SAMPLES)
        energy = np.convolve((frames**2).mean(1), np.full(_SMOOTH_FRAMES, 1 / _SMOOTH_FRAMES), mode="same")
        cut = most // 2 + int(energy.argmin()) * HOP_SAMPLES + HOP_SAMPLES // 2
        pieces.append(wave_S[:cut])
        wave_S = wave_S[cut:]
    return [*pieces, wave_S]


def sound_files(paths: Sequence[Path], report: Report) -> list[Path]:
    """The files, and of folders all sound below; the rest is left out in `report`. Raises UserError for one without."""
    sounds: list[Path] = []
    for path in paths:
        found, other = sort_files(walk(path, report)) if path.is_dir() else ([path], [])
        report.leave_out(UNREADABLE, map(str, other))
        if not found:
            rule = "must hold sound (WAV, FLAC, Opus, MP3 ...)"
            raise UserError(f"folder {path} {rule}, but holds none. Give files or another folder.")
        sounds += found
    return sounds


def is_student(folder: Path) -> bool:
    """Whether `hkd train` or `hkd export` made the folder."""
    return (folder / CARD).is_file()


class StudentCtc:
    """An exported CTC student's probabilities over its pieces, for forced alignment (`hkd.align.ctc.CtcModel`)."""

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        """Raises UserError where the folder holds no CTC student."""
        self._recogniser = Recogniser(folder, device=device)
        model = self._recogniser.meta.subword_model
        if self._recogniser.is_hybrid or model is None:
            rule = "must hold a student with CTC output to align by"
            raise UserError(f"{folder} {rule}, but holds another. Give one trained with main = ctc.")
        self._subwords = SubwordModel(model)
        self.blank = BLANK
        self.left_out: dict[str, str] = {}  # the subword model falls back to its unknown piece
        weights = digest_of(map(digest_of_file, sorted(folder.glob("*.safetensors"))))
        self.identity: dict[str, Any] = {"name": folder.name, "weights": weights}

    def log_probs(self, wave_S: NDArray[np.float32]) -> NDArray[np.float32]:
        """logp_TV over blank and pieces, a frame every 40 ms."""
        logits_BTV, length_B, _ = self._recogniser.logits([wave_S])
        logp_TV: NDArray[np.float32] = logits_BTV[0, : int(length_B[0])].log_softmax(-1).numpy()
        return logp_TV

    def encode(self, spoken: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Pieces as classes (piece u is class u + 1), and the word of each."""
        unit_U, word_U = self._subwords.encode(spoken)
        return unit_U + BLANK + 1, word_U
