"""An exported CTC student's probabilities over its pieces, for forced alignment (`hkd.align.ctc.CtcModel`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.decode.ctc import BLANK
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.files import digest_of, digest_of_file
from hkd.student.export import CARD
from hkd.units.subword import SubwordModel


def is_student(folder: Path) -> bool:
    """Whether `hkd train` or `hkd export` made the folder."""
    return (folder / CARD).is_file()


class StudentCtc:
    """A student of the folder that `hkd train` exports."""

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        """Raises UserError where the folder holds no CTC student."""
        self._recogniser = Recogniser(folder, device=device)
        model = self._recogniser.meta.subword_model
        if self._recogniser.is_hybrid or model is None:
            raise UserError(
                f"{folder} must hold a student with CTC output to align by, but holds another. Give one trained with main = ctc."
            )
        self._subwords = SubwordModel(model)
        self.blank = BLANK
        self.left_out: dict[str, str] = {}  # the subword model falls back to its unknown piece
        files = [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"]
        self.identity: dict[str, Any] = {"name": folder.name, "weights": digest_of(digest_of_file(path) for path in files)}

    def log_probs(self, wave_S: NDArray[np.float32]) -> NDArray[np.float32]:
        """logp_TV over blank and pieces, a frame every 40 ms."""
        logits_BTV, length_B, _ = self._recogniser.logits([wave_S])
        logp_TV: NDArray[np.float32] = logits_BTV[0, : int(length_B[0])].log_softmax(-1).numpy()
        return logp_TV

    def encode(self, spoken: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Pieces as classes (piece u is class u + 1), and the word of each."""
        unit_U, word_U = self._subwords.encode(spoken)
        return unit_U + BLANK + 1, word_U
