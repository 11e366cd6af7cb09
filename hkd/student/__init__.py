"""The acoustic model that learns: encoder, heads, checkpoint and export format."""

from hkd.student.config import EncoderConfig, HeadConfig, StudentConfig, default_slots, default_tap
from hkd.student.export import StudentMeta, load_student, save_student
from hkd.student.model import Student, StudentOutput, describe, export_student

__all__ = [
    "EncoderConfig",
    "HeadConfig",
    "Student",
    "StudentConfig",
    "StudentMeta",
    "StudentOutput",
    "default_slots",
    "default_tap",
    "describe",
    "export_student",
    "load_student",
    "save_student",
]
