"""Rows through a model: real want of memory, and what is counted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hkd.teachers.base import Sentence
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.teachers.transformer import TransformerTeacher
from hkd.testing.teachers import WORDS

Folder = Callable[[str], Path]

SHORT_OF_MEMORY = """
import json, logging, resource, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
logging.basicConfig(stream=sys.stderr, format="%(message)s")
from hkd.teachers.base import Sentence
from hkd.teachers.load import load_teacher
from hkd.teachers.load import TeacherOptions

teacher = load_teacher(sys.argv[1], unit="subword", device="cpu", options=TeacherOptions(token_budget=2_000_000))
unit_U = np.resize(teacher.encode(sys.argv[2].split())[0], 60)
asked = [Sentence(id=str(n), unit_U=np.roll(unit_U, n), word_U=unit_U) for n in range(60)]
before = teacher.score(asked[:1], k=4)  # what is loaded once is loaded
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
print(json.dumps([rows.gold_logp_N.astype(float).tolist() for rows in teacher.score(asked, k=4)]))
"""


def test_real_want_of_memory_halves_the_budget_and_goes_on(teacher_folder: Folder) -> None:
    folder = teacher_folder("bert")
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(folder), WORDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the token budget is now" in done.stderr
    teacher = load_teacher(str(folder), unit="subword", device="cpu")
    unit_U = np.resize(teacher.encode(WORDS.split())[0], 60)
    asked = [Sentence(id=str(n), unit_U=np.roll(unit_U, n), word_U=unit_U) for n in range(60)]
    for got, rows in zip(json.loads(done.stdout.splitlines()[-1]), teacher.score(asked, k=4), strict=True):
        np.testing.assert_allclose(got, rows.gold_logp_N, atol=1e-4)


@pytest.mark.parametrize(("kind", "every"), [("bert", 0), ("bert", 3), ("distilbert", 0), ("gpt2", 0)])
def test_counted_operations_are_those_that_torch_sees(teacher_folder: Folder, kind: str, every: int) -> None:
    options = TeacherOptions(mask_every=every)
    teacher = load_teacher(str(teacher_folder(kind)), unit="subword", device="cpu", options=options)
    assert isinstance(teacher, TransformerTeacher)
    unit_U = np.resize(teacher.encode(WORDS.split())[0], 40)
    [text] = teacher._texts([Sentence(id="a", unit_U=unit_U, word_U=unit_U)])
    rows = list(teacher._rows(*text))
    choose = teacher._selection([], "topk", 4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        teacher._scorer._score_unit(rows, choose)
    seen = counter.get_total_flops()
    if kind == "gpt2":  # whose masked half is multiplied here, too
        seen -= 4 * 16 * 2 * 40**2 // 2
    np.testing.assert_allclose(teacher._scorer._flops(rows), seen, rtol=0.1)
