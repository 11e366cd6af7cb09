"""Labels in lhotse's datasets, as icefall uses them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hkd.api import Project
from hkd.errors import UserError

_SPEED = re.compile(r"_sp([0-9.]+)")
_CHANGES = re.compile(r"(?:_(?:sp|vp|wp)[0-9.]+|_rvb|_aug)+$")


def speed_of(cut_id: str) -> tuple[str, float]:
    """A cut's id → the id before lhotse's perturbation, and the speed: `a_sp0.9` → (`a`, 0.9). Volume and reverberation change no times."""
    speed = 1.0
    for factor in _SPEED.findall(cut_id):
        speed *= float(factor.rstrip("."))
    return _CHANGES.sub("", cut_id), speed


class WithLabels(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset of lhotse whose batches get `batch["hkd"][store]`; made by `with_labels`."""

    def __init__(self, dataset: Any, project: Project, stores: Sequence[str], num_frames: Any, options: dict[str, Any]) -> None:
        self._dataset, self._project, self._stores = dataset, project, tuple(stores)
        self._num_frames, self._options = num_frames, options

    def __getitem__(self, cuts: Any) -> dict[str, Any]:
        """A CutSet → the dataset's batch, with labels in the order of its cuts."""
        batch: dict[str, Any] = self._dataset[cuts]
        if "cut" not in batch["supervisions"]:
            raise UserError("the dataset must say in which order its cuts are. Make it with return_cuts=True.")
        names, speeds = zip(*(speed_of(self._id_of(cut)) for cut in batch["supervisions"]["cut"]), strict=True)
        frames = self._num_frames(batch)
        batch["hkd"] = {
            store: self._project.frame_labels(store, names, num_frames=frames, speed=speeds, **self._options)
            for store in self._stores
        }
        return batch

    def _id_of(self, cut: Any) -> str:
        """The id that the manifest has: the supervision's or the cut's, without perturbation."""
        candidates: list[str] = [*(supervision.id for supervision in cut.supervisions), cut.id]
        ids: Any = self._project.manifest
        return next((name for name in candidates if speed_of(name)[0] in ids), candidates[-1])


def with_labels(
    dataset: Any,
    project: Project,
    stores: Sequence[str],
    *,
    num_frames: Callable[[dict[str, Any]], Sequence[int]],
    frame_shift_ms: float = 40.0,
    first_frame_ms: float | None = None,
    temperature: float = 1.0,
) -> WithLabels:
    """A lhotse dataset (K2SpeechRecognitionDataset with `return_cuts=True`) → the same with teacher labels.

    num_frames(batch) → valid output frames of your encoder, one number a cut in the order of the batch. Speed-perturbed ids
    (`_sp0.9`) are understood: labels are re-timed. Cuts must hold one utterance each, from its beginning to its end.
    """
    options = {"frame_shift_ms": frame_shift_ms, "first_frame_ms": first_frame_ms, "temperature": temperature}
    return WithLabels(dataset, project, stores, num_frames, options)
