"""Labels in lhotse's datasets, as icefall uses them."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hkd.api import Project
from hkd.errors import UserError

_SPEED = re.compile(r"_[st]p([0-9]+(?:\.[0-9]+)?)")  # speed and tempo: both change times
_CHANGES = re.compile(r"(?:_(?:[stv]p|rs|ln|cl)-?[0-9]+(?:\.[0-9]+)?|_nb_[a-z0-9]+|_rvb|_wpe)+$")
_LATE_S = 0.005  # half a frame


def speed_of(cut_id: str) -> tuple[str, float]:
    """A cut's id → the id before lhotse's perturbation, and the speed (also of tempo): `a_sp0.9` → (`a`, 0.9)."""
    changes = _CHANGES.search(cut_id)
    if changes is None:
        return cut_id, 1.0
    return cut_id[: changes.start()], math.prod(map(float, _SPEED.findall(changes[0])))


class WithLabels(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset of lhotse whose batches get `batch["hkd"][store]`; made by `with_labels`."""

    def __init__(
        self, dataset: Any, project: Project, stores: Sequence[str], num_frames: Any, options: dict[str, Any]
    ) -> None:
        self._dataset, self._project, self._stores = dataset, project, tuple(stores)
        self._num_frames, self._options = num_frames, options

    def __getitem__(self, cuts: Any) -> dict[str, Any]:
        """A CutSet → the dataset's batch, with labels in the order of its cuts."""
        batch: dict[str, Any] = self._dataset[cuts]
        if "cut" not in batch["supervisions"]:
            raise UserError("the dataset must say in which order its cuts are. Make it with return_cuts=True.")
        names, speeds = zip(*map(self._utterance, batch["supervisions"]["cut"]), strict=True)
        frames = self._num_frames(batch)
        batch["hkd"] = {
            store: self._project.frame_labels(store, names, num_frames=frames, speed=speeds, **self._options)
            for store in self._stores
        }
        return batch

    def _utterance(self, cut: Any) -> tuple[str, float]:
        """(id in the manifest, speed) of a cut. Raises UserError for one that is no single, whole, known utterance."""
        if len(cut.supervisions) != 1 or abs(cut.supervisions[0].start) > _LATE_S:
            raise UserError(
                f"cut '{cut.id}' must hold one utterance from its beginning on, but has {len(cut.supervisions)} "
                f"supervisions, the first from {cut.supervisions[0].start if cut.supervisions else 0:g} s on. Take "
                "cuts.trim_to_supervisions()."
            )
        ids: Any = self._project.manifest
        names = (cut.supervisions[0].id, cut.id)
        for name in (*((name, 1.0) for name in names), *map(speed_of, names)):
            if name[0] in ids:
                return name
        raise UserError(f"cut '{cut.id}' (supervision '{names[0]}') must be an utterance of the manifest, but is none.")


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

    num_frames(batch) → valid output frames of your encoder, one number a cut in the order of the batch. Speed-perturbed
    ids (`_sp0.9`, `_tp1.1`) are understood: labels are re-timed. Cuts must hold one utterance each, from its beginning
    on: others, and those that the manifest lacks, raise UserError.
    """
    options = {"frame_shift_ms": frame_shift_ms, "first_frame_ms": first_frame_ms, "temperature": temperature}
    return WithLabels(dataset, project, stores, num_frames, options)
