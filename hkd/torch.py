"""Labels in a plain PyTorch data loader.

Import this module before transformers: beside a CPU build of torch, torchaudio's wheel cannot load its native part, and
with it the import of many classes of transformers ends in an error. This module puts torchaudio into the state that it
has without its native part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import default_collate

from hkd.api import Project
from hkd.audio import import_torchaudio
from hkd.errors import UserError

import_torchaudio()


class Collator:
    """A `collate_fn` that adds `batch["hkd"][store]`, the frame labels of the batch, to what another one makes."""

    def __init__(
        self,
        project: Project,
        stores: Sequence[str],
        *,
        num_frames: Callable[[Any], Sequence[int]],
        collate: Callable[[list[Any]], dict[str, Any]] = default_collate,
        frame_shift_ms: float = 40.0,
        first_frame_ms: float | None = None,
        temperature: float = 1.0,
        id_key: str = "id",
        speed_key: str | None = None,
    ) -> None:
        """num_frames(batch) → valid output frames of your encoder, B numbers. id_key: where an example has its id;
        speed_key: its speed. frame_shift_ms, first_frame_ms, temperature: as in `Project.frame_labels`."""
        self._project, self._stores, self._num_frames, self._collate = project, tuple(stores), num_frames, collate
        times = {"frame_shift_ms": frame_shift_ms, "first_frame_ms": first_frame_ms}
        self._options: dict[str, Any] = {**times, "temperature": temperature}
        self._id_key, self._speed_key = id_key, speed_key

    def __call__(self, examples: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Examples → batch. Raises UserError for an example without an id."""
        if missing := [number for number, example in enumerate(examples) if self._id_key not in example]:
            rule = f"every example must have the key '{self._id_key}'"
            raise UserError(f"{rule}, but number {missing[0]} of the batch has none.")
        batch = self._collate(list(examples))
        ids = [str(example[self._id_key]) for example in examples]
        speed = 1.0 if self._speed_key is None else [float(example[self._speed_key]) for example in examples]
        frames = self._num_frames(batch)
        labels = {
            store: self._project.frame_labels(store, ids, num_frames=frames, speed=speed, **self._options)
            for store in self._stores
        }
        return {**batch, "hkd": labels}
