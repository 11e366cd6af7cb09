"""Who does the shards of a dump: this process (`local`) or the workers of a Ray cluster (`ray`). The bytes are the same.

A job names its parts by path, so that any process on any machine with these paths can do any shard of it.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hkd.align.alignment import Alignment
from hkd.errors import UserError
from hkd.labelling.dump import DumpConfig, DumpInputs, dump
from hkd.labelling.dump_report import DumpReport
from hkd.progress import Progress, no_progress
from hkd.teachers.base import Teacher
from hkd.teachers.load import load_teacher
from hkd.teachers.options import TeacherOptions
from hkd.units.inventory import UnitInventory
from hkd.units.subword import SubwordModel

EXECUTORS = ("local", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpJob:
    """A dump in words: which teacher labels which manifest into which store. Relative paths start at `folder`, the working one."""

    manifest: Path
    out: Path | str  # a folder or a URL
    lm: str
    unit: str
    device: str = "auto"
    precision: str = "auto"
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    store: DumpConfig = field(default_factory=DumpConfig)
    inventory: Path | None = None  # the level's units, for n-gram files
    alignment: Path | None = None  # for aligned levels
    subwords: Path | None = None  # the level's model, for LMs of a spelled level without pieces of their own
    command: str = ""  # for the store's card
    folder: Path = field(default_factory=Path.cwd)

    def load_teacher(self) -> Teacher:
        """The teacher, on the device of this machine."""
        units = UnitInventory.load(self.inventory) if self.inventory else None
        return load_teacher(
            self.lm, unit=self.unit, device=self.device, precision=self.precision, options=self.teacher, inventory=units
        )

    def parts(self) -> DumpInputs:
        """What `dump` and `open_dump` take beside manifest, store and teacher."""
        return {
            "config": self.store,
            "alignment": Alignment(self.alignment) if self.alignment else None,
            "subwords": SubwordModel(self.subwords, level=self.unit) if self.subwords else None,
            "command": self.command,
        }


def check_executor(executor: str, *, ray_address: str = "", workers: int = 0) -> None:
    """Raises UserError for an unknown executor, and for Ray's settings without Ray."""
    if executor not in EXECUTORS:
        raise UserError(f"executor must be one of {', '.join(EXECUTORS)}, but is '{executor}' instead.")
    if executor == "local" and (ray_address or workers):
        raise UserError("ray_address and workers must be left out with the executor local. Add --executor ray.")


def execute(
    job: DumpJob,
    *,
    executor: str = "local",
    ray_address: str = "",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> DumpReport:
    """Do a dump: here, every `world_size`-th pending shard; or on a Ray cluster, all of them.

    `ray_address`, `workers`: see `hkd.labelling.ray_executor.ray_dump`. Raises UserError and HkdError as `hkd.labelling.dump.dump`.
    """
    check_executor(executor, ray_address=ray_address, workers=workers)
    if executor == "ray":
        if world_size != 1 or rank:
            raise UserError("rank and world_size must be left out with the executor ray, which hands out the shards itself.")
        from hkd.labelling.ray_executor import ray_dump

        return ray_dump(job, address=ray_address, workers=workers, overwrite=overwrite, progress=progress)
    return dump(
        job.manifest, job.out, job.load_teacher, **job.parts(),
        overwrite=overwrite, rank=rank, world_size=world_size, progress=progress,
    )  # fmt: skip
