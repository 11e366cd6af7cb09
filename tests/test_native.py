"""torchaudio with and without its native part, each in a process of its own (an import happens once)."""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = """
import torch
from hkd.audio import import_torchaudio
kaldi = import_torchaudio().compliance.kaldi
import torchaudio._extension
rows = kaldi.fbank(torch.randn(1, 1600), num_mel_bins=80, snip_edges=False)
print(tuple(rows.shape), torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE)
"""
BROKEN = """
import torch
def refuse(path):
    raise OSError(f"Could not load this library: {path}")
torch.ops.load_library = refuse
"""


def test_where_the_native_part_cannot_load_the_python_part_serves() -> None:
    assert run(BROKEN + USE) == "(10, 80) False"


LOADS = """
import torch
library = torch.library.Library("torchaudio", "DEF")
for name in ("_lfilter_core_loop", "_overdrive_core_loop"):
    library.define(name + "(Tensor a, Tensor b, Tensor c) -> ()")
loaded = []
torch.ops.load_library = loaded.append
class Native:
    def is_align_available(self):
        return False
    def cuda_version(self):
        return None
torch.ops._torchaudio = Native()
"""


def test_where_the_native_part_loads_it_is_left_alone() -> None:
    assert run(LOADS + USE + "assert loaded") == "(10, 80) True"
