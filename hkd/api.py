"""The Python API: labels for other people's trainers. `import hkd` offers these names, which a test freezes.

- `open_labels` reads a store. `Project` says which label lies on which frame of *your* encoder. `write_labels` makes a
  store from your own teacher's logits. `Student` transcribes.
- Paths are strings or `Path`s. Nothing needs a project folder. All objects pickle, so they work in DataLoader workers,
  spawned ones too.
- Transcripts and unit sequences are checked against the store when an utterance is first used: a mismatch raises
  `UserError`.

Shape letters: B utterances, U positions of an utterance, M labelled frames, K kept ids, V units.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkd import __version__
from hkd import manifest as manifests
from hkd.align.alignment import Alignment, aligned_to_units, sequence_digest
from hkd.audio import read_audio as read_audio
from hkd.config import ProjectSettings as Settings
from hkd.errors import UserError, check_setting
from hkd.labels.format import LabelBlock, StoreSpec, UtteranceLabels
from hkd.labels.store import CACHE_BYTES, LabelReader, LabelWriter, store_folders
from hkd.manifest import Manifest
from hkd.stream.join import Join, JoinedStore, covering
from hkd.timebase import FRAME_SHIFT_S, retime
from hkd.units.inventory import SPELLED
from hkd.units.sequences import SubwordModel
from hkd.units.text import normalisation, text_digest, words

if TYPE_CHECKING:
    import torch

    from hkd.decode.recogniser import Recogniser

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
# Frames of an encoder against the sound: how much longer they may be (padding of convolutions), and the share of it
# below which they are taken for frames of another shift.
_LONGER, _MORE_FRAMES, _SHORTER = 0.02, 3, 0.7


def open_labels(path: StrPath, *, cache_bytes: int | None = None) -> LabelReader:
    """Open a label store: a folder, or a URL (`s3://...`). `reader.block(ids)` gives the labels of a batch.

    cache_bytes: how much memory decoded blocks may take (default 256 MiB). Raises UserError where there is no store.
    """
    return LabelReader.open(os.fspath(path), cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes)


def open_project(folder: StrPath) -> "Project":
    """The project in a folder that `hkd prepare` made: its manifest, alignment, subwords, and all its label stores."""
    here = Settings.load(Path(folder))
    alignment, units, labels = here.path("alignment"), here.path("units"), here.path("labels")
    subwords = units / "subword.model"
    return Project(
        manifest=here.path("manifest"),
        alignment=alignment if alignment.exists() else None,
        stores=store_folders(labels) if labels.exists() else {},
        subwords=subwords if subwords.exists() else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedUnits:
    """The units of an utterance and when each is spoken, in seconds from the utterance's start."""

    unit_U: NDArray[np.int32]
    start_s_U: NDArray[np.float64]
    stop_s_U: NDArray[np.float64]
    symbols: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameLabels:
    """A teacher's labels on the frames of a batch: row m belongs to frame `frame_M[m]` of utterance `batch_M[m]`.

    `teacher`: what `hkd.losses.sparse_kl` takes beside the logits. `gold_M`: each row's reference unit, −1 for none.
    """

    batch_M: "torch.Tensor"
    frame_M: "torch.Tensor"
    gold_M: "torch.Tensor"
    teacher: dict[str, "torch.Tensor"]

    def to(self, device: Any) -> "FrameLabels":
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def pin_memory(self) -> "FrameLabels":
        """The same in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: "Callable[[torch.Tensor], torch.Tensor]") -> "FrameLabels":
        batch_M, frame_M, gold_M = map(change, (self.batch_M, self.frame_M, self.gold_M))
        teacher = {name: change(tensor) for name, tensor in self.teacher.items()}
        return FrameLabels(batch_M=batch_M, frame_M=frame_M, gold_M=gold_M, teacher=teacher)


class Project:
    """A manifest with its alignment and label stores: which label lies where. Each process opens the files itself."""

    def __init__(
        self,
        *,
        manifest: StrPath | Manifest,
        alignment: StrPath | None = None,
        stores: Mapping[str, StrPath] | Iterable[StrPath] | StrPath = (),
        subwords: StrPath | None = None,
    ) -> None:
        """stores: by name, or paths (each is then named after its folder). subwords: your own SentencePiece model.

        Raises UserError where a store does not fit the alignment's or the subword model's inventory.
        """
        given = [stores] if isinstance(stores, str | os.PathLike) else stores
        if isinstance(given, Mapping):
            named = list(given.items())
        else:
            named = [(os.fspath(path).rstrip("/").rpartition("/")[2], path) for path in given]
        paths, names = dict(named), ", ".join(name for name, _ in named)
        if len(paths) < len(named):
            remedy = "Give names: {'NAME': PATH, ...}."
            raise UserError(f"stores must have names of their own, but two of {names} are one. {remedy}")
        self.manifest = manifest if isinstance(manifest, Manifest) else manifests.read(Path(manifest))
        self._arguments: dict[str, Any] = {
            "manifest": self.manifest,
            "alignment": alignment,
            "stores": {name: os.fspath(path) for name, path in paths.items()},
            "subwords": subwords,
        }
        self.stores = {name: open_labels(path) for name, path in paths.items()}
        self._join = Join(
            self.manifest,
            subwords=None if subwords is None else SubwordModel(Path(subwords)),
            alignment=None if alignment is None else Alignment(Path(alignment)),
            stores=self.stores,
            trim=False,
        )
        self._checked: set[str] = set()
        self._warned = False

    def __reduce__(self) -> Any:
        return partial(Project, **self._arguments), ()

    def _check(self, utterance_id: str) -> None:
        if utterance_id not in self._checked:
            self._join.check([self.manifest.by_id(utterance_id)])
            self._checked.add(utterance_id)

    def has_labels(self, store: str, utterance_id: str) -> bool:
        """Whether the store labels the utterance, and its labels can be placed on frames."""
        return self._store(store).labels(utterance_id) and self._join.aligned(utterance_id)

    def _store(self, name: str) -> JoinedStore:
        stores = self._join.stores
        if name not in stores:
            raise UserError(f"store must be one of {', '.join(stores) or '(none)'}, but is '{name}' instead.")
        return stores[name]

    def positions(self, utterance_id: str, name: str) -> TimedUnits:
        """The units that a store labels, with their times; or, for a level (`monophone`), the alignment's own units.

        Raises UserError for an utterance without an alignment, and for a name that is neither.
        """
        self._check(utterance_id)
        inventory = self._join.inventory(name)
        if name in self._join.stores:
            found, inventory = self._join.positions(utterance_id, name), self.stores[name].spec.inventory
        elif inventory is not None and name in SPELLED:
            found = self._join.segments(utterance_id, name)
        elif inventory is not None and self._join.alignment is not None:
            found = self._join.alignment.positions(utterance_id, name)
        else:
            raise UserError(f"name must be a store or an aligned level, but is '{name}' instead.")
        symbols = tuple(inventory.symbols[unit] for unit in found.unit_U)
        start_s_U, stop_s_U = (np.asarray(at_U, np.float64) * FRAME_SHIFT_S for at_U in (found.start_U, found.stop_U))
        return TimedUnits(unit_U=found.unit_U, start_s_U=start_s_U, stop_s_U=stop_s_U, symbols=symbols)

    def frame_labels(
        self,
        store: str,
        ids: Sequence[str],
        *,
        num_frames: Sequence[int] | Any,
        frame_shift_ms: float = 40.0,
        first_frame_ms: float | None = None,
        speed: float | Sequence[float] = 1.0,
        temperature: float = 1.0,
    ) -> FrameLabels:
        """Which label lies on which frame of your encoder.

        num_frames: valid output frames of each utterance, B numbers. Frame t is centred at first_frame_ms + t ·
        frame_shift_ms (default: half a shift, as frames without padding), and takes the label of the position that is
        spoken there. speed: how many times as fast each utterance is played. temperature: the teacher's; one that the
        store holds.

        Utterances without labels give no rows (see `has_labels`), so a batch may have none: divide a sum of losses by
        max(1, rows). Raises UserError for ids that are not in the manifest, where transcript or units are not those of
        the store, and for frames that go on after the sound (padding, or another shift).
        """
        import torch

        self._store(store)
        for name in ids:
            self.manifest.by_id(name)
        one: Any = speed  # or a number for each, also in an array or a tensor
        speeds = [float(one)] * len(ids) if np.ndim(one) == 0 else [float(value) for value in one]
        frames_B = [int(count) for count in num_frames]
        for what, given in (("num_frames", frames_B), ("speed", speeds)):
            if len(given) != len(ids):
                raise UserError(f"{what} must have a number for each of the {len(ids)} ids, but has {len(given)}.")
        check_setting("frame_shift_ms", frame_shift_ms, "be above 0", frame_shift_ms > 0)
        check_setting("speed", min(speeds, default=1.0), "be above 0", min(speeds, default=1.0) > 0)
        first_ms = frame_shift_ms / 2 if first_frame_ms is None else first_frame_ms
        labelled = [b for b, name in enumerate(ids) if self.has_labels(store, name)]
        block = self.labels(store, [ids[b] for b in labelled])
        batches, frames, rows = [], [], []
        for place, b in enumerate(labelled):
            found = self._join.positions(ids[b], store)
            assert self._join.alignment is not None
            last = int(retime(np.array(self._join.alignment[ids[b]].num_frames), speeds[b])) - 1
            self._check_frames(ids[b], frames_B[b], frame_shift_ms, (last + 1) * FRAME_SHIFT_S)
            middle_ms_T = first_ms + np.arange(frames_B[b]) * frame_shift_ms
            middle_T = np.minimum(middle_ms_T // (1000 * FRAME_SHIFT_S), last).astype(np.int64)
            frame_M, position_M = covering(found, middle_T, speed=speeds[b])
            batches.append(np.full(len(frame_M), b))
            frames.append(frame_M)
            rows.append(position_M + block.offset_B1[place])
        none = [np.zeros(0, np.int64)]
        row_M = np.concatenate(rows or none).astype(np.int64)
        return FrameLabels(
            batch_M=torch.from_numpy(np.concatenate(batches or none)),
            frame_M=torch.from_numpy(np.concatenate(frames or none)),
            gold_M=torch.from_numpy(block.topk.gold_N[row_M].astype(np.int64)),
            teacher=_teacher(block, row_M, self.stores[store], temperature),
        )

    def _check_frames(self, name: str, frames: int, shift_ms: float, seconds: float) -> None:
        """Raises UserError for frames that go on after the sound; warns, once, where they end well before it."""
        ends_ms, sound_ms = frames * shift_ms, 1000 * seconds
        too_long = ends_ms > sound_ms * (1 + _LONGER) + _MORE_FRAMES * shift_ms
        if not too_long and (ends_ms >= sound_ms * _SHORTER or self._warned):
            return
        said = f"{frames} frames of {shift_ms:g} ms, but the sound of '{name}' is {seconds:.2f} s long."
        if too_long:
            question = f"Is {shift_ms:g} ms your encoder's shift, and is padding left out of num_frames?"
            raise UserError(f"frames must end with the sound: {said} {question}")
        self._warned = True
        logger.warning("Frames end before the sound: %s Is that your encoder's shift?", said)

    def labels(self, store: str, ids: Sequence[str]) -> LabelBlock:
        """A batch's labels by position, checked against the transcripts. Raises UserError where there are none."""
        self._store(store)
        for name in ids:
            self._check(name)
        return self.stores[store].block(ids)


def _teacher(
    block: LabelBlock, row_M: NDArray[np.int64], reader: LabelReader, temperature: float
) -> dict[str, "torch.Tensor"]:
    spec = reader.spec
    if temperature != 1 and spec.width < len(spec.inventory) and temperature not in spec.temperatures:
        known = ", ".join(f"{t:g}" for t in (1.0, *spec.temperatures))
        raise UserError(f"temperature must be one that the store holds ({known}), but is {temperature:g} instead.")
    column = spec.temperatures.index(temperature) if temperature in spec.temperatures else None
    return block.topk[row_M].to_torch(column=column)


def write_labels(
    path: StrPath,
    project: Project,
    level: str,
    score: Callable[[str, NDArray[np.int32]], Any],
    *,
    teacher: str,
    ids: Sequence[str] | None = None,
    k: int = 16,
    temperatures: Sequence[float] = (),
    overwrite: bool = False,
) -> LabelReader:
    """Write a label store from your own teacher, shard by shard; called again after an interruption, it goes on.

    level: senone, monophone (the alignment's units) or subword, character (your pieces). score(id, unit_U) → logits_UV,
    unnormalised, a row for each position; a tensor or an array (−inf: impossible). teacher: its name, by which an
    interrupted store is gone on with: give other weights another name. ids: by default all utterances of the manifest
    that have units at the level. Raises UserError for logits of another shape or that are no numbers, or where another
    store lies at `path`.
    """
    import torch

    from hkd.topk import select_topk

    join = project._join
    inventory = join.inventory(level)
    if inventory is None:
        raise UserError(f"level must be an aligned level, or subword with a model of yours, but is '{level}' instead.")
    labelled_ids = (u.id for u in project.manifest if level in SPELLED or join.aligned(u.id))
    chosen = list(labelled_ids if ids is None else ids)
    spec = StoreSpec(
        name=Path(os.fspath(path)).name,
        level=level,
        inventory=inventory,
        teacher={"name": teacher, "kind": "logits", "direction": "unknown"},
        manifest_digest=project.manifest.digest,
        alignment_digest=None if level in SPELLED or join.alignment is None else join.alignment.digest,
        k=k,
        temperatures=tuple(map(float, temperatures)),
        normalisation=normalisation(),
        hkd_version=__version__,
    )
    writer = LabelWriter.open(os.fspath(path), spec, chosen, overwrite=overwrite)

    def labelled(utterance_id: str) -> UtteranceLabels:
        project._check(utterance_id)
        said = words(project.manifest.by_id(utterance_id).text)
        if level in SPELLED:
            unit_U, word_U = join.spelling(level).encode(said)
        else:
            assert join.alignment is not None
            unit_U, word_U = aligned_to_units(join.alignment[utterance_id], level, join.alignment.silences[level])
        logits_UV, what = torch.as_tensor(score(utterance_id, unit_U)), f"the logits of utterance '{utterance_id}' must"
        wanted, found = (len(unit_U), len(inventory)), tuple(logits_UV.shape)
        if found != wanted:
            raise UserError(f"{what} have the shape {wanted}, but have {found} instead.")
        if not bool((logits_UV < float("inf")).all() and logits_UV.isfinite().any(-1).all()):
            raise UserError(f"{what} be numbers, of which each row has a finite one, but some are NaN or +inf.")
        gold_U = torch.from_numpy(unit_U.astype(np.int64))
        topk = select_topk(logits_UV.float(), gold_U, k=k, temperatures=spec.temperatures)
        unit, text = sequence_digest(unit_U), text_digest(said)
        return UtteranceLabels(id=utterance_id, topk=topk, word_U=word_U, unit_digest=unit, text_digest=text)

    for shard in writer.pending():
        writer.write_shard(shard, [labelled(name) for name in writer.shard_ids(shard)])
    writer.finish()
    return open_labels(path)


class Student:
    """An exported student that writes what it hears."""

    def __init__(self, recogniser: "Recogniser") -> None:
        self._recogniser = recogniser

    @classmethod
    def from_pretrained(cls, folder: StrPath, *, device: str = "auto", lm: StrPath | None = None) -> "Student":
        """Load the folder that `hkd export` wrote. lm: a word n-gram (ARPA), which a student of senones needs.

        Raises UserError where the folder holds no student.
        """
        from hkd.decode.recogniser import Recogniser

        return cls(Recogniser(Path(folder), device=device, lm=None if lm is None else os.fspath(lm)))

    def transcribe(self, sound: "StrPath | NDArray[np.float32] | torch.Tensor") -> str:
        """The text of a file, or of a wave: mono, 16 kHz, float32. Long sound is cut at quiet places."""
        given = os.fspath(sound) if isinstance(sound, str | os.PathLike) else np.asarray(sound)
        return str(self._recogniser.transcribe(given)["text"])
