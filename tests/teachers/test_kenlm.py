"""KenLM's files against the same n-gram read from ARPA. The golden files: tiny.arpa by kaldingram from 80 random sentences, the binaries
from it by KenLM's `build_binary tiny.arpa probing.binary` and `build_binary trie tiny.arpa trie.binary`."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.teachers.base import Sentence
from hkd.teachers.kenlm import KenLm
from hkd.teachers.load import load_teacher
from hkd.teachers.ngram import load_ngram
from hkd.units.inventory import UnitInventory

GOLDEN = Path(__file__).parents[1] / "golden" / "kenlm"
INVENTORY = UnitInventory(level="monophone", symbols=("a", "b", "never", "c", "d"))


def sentences() -> list[Sentence]:
    rng = np.random.default_rng(0)
    units = [rng.integers(len(INVENTORY), size=n).astype(np.int32) for n in (0, 1, 2, 3, 9, 14)]
    return [Sentence(id=str(n), unit_U=unit_U, word_U=unit_U) for n, unit_U in enumerate(units)]


@pytest.mark.parametrize("given", ["left", "outside-position"])
@pytest.mark.parametrize("file", ["probing.binary", "trie.binary"])
def test_binaries_give_what_the_arpa_file_gives(file: str, given: str) -> None:
    arpa = load_ngram(GOLDEN / "tiny.arpa", level="monophone", inventory=INVENTORY, given=given)
    binary = load_ngram(GOLDEN / file, level="monophone", inventory=INVENTORY, given=given)
    assert binary.info.options["order"] == arpa.info.options["order"] == 3
    assert binary.info.digest != arpa.info.digest
    for want, got in zip(arpa.score(sentences(), k=5), binary.score(sentences(), k=5), strict=True):
        assert len(want) == len(got)
        np.testing.assert_array_equal(np.sort(want.ids_NK, 1), np.sort(got.ids_NK, 1))
        for ids, logp, other, other_logp in zip(want.ids_NK, want.logp_NK, got.ids_NK, got.logp_NK, strict=True):
            np.testing.assert_allclose(logp[np.argsort(ids)], other_logp[np.argsort(other)], atol=1e-4)


def test_a_teacher_by_its_files_name(tmp_path: Path) -> None:
    teacher = load_teacher(str(GOLDEN / "probing.binary"), unit="monophone", inventory=INVENTORY)
    assert teacher.info.kind == "ngram"
    with gzip.open(tmp_path / "tiny.arpa.gz", "wb") as file:
        file.write((GOLDEN / "tiny.arpa").read_bytes())
    packed = load_teacher(str(tmp_path / "tiny.arpa.gz"), unit="monophone", inventory=INVENTORY)
    for one, other in zip(teacher.score(sentences(), k=3), packed.score(sentences(), k=3), strict=True):
        np.testing.assert_allclose(one.gold_logp_N, other.gold_logp_N, atol=1e-4)


def test_what_is_no_file_of_kenlm_or_of_other_units_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.binary").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(UserError, match="file of KenLM"):
        KenLm(tmp_path / "x.binary", symbols=("a",))
    with pytest.raises(UserError, match="not there"):
        KenLm(tmp_path / "y.binary", symbols=("a",))
    with pytest.raises(UserError, match="knows none"):
        KenLm(GOLDEN / "trie.binary", symbols=("x", "y"))
