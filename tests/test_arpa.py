"""The reader of ARPA files: every way of writing one gives the same n-grams; what is broken is refused in one line."""

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hkd.arpa import ZERO, Arpa, is_arpa, read_arpa, write_arpa
from hkd.decode.lm import ArpaLm
from hkd.errors import UserError

LINES = [
    "made by a program",
    "\\data\\",
    "ngram 1=5",
    "ngram 2=4",
    "",
    "\\1-grams:",
    "-99\t<s>\t-0.5",
    "-0.6\t</s>",
    "-0.7\ta\t-0.25",
    "-0.9\tżółw\t-0.125",
    "-1.5\t<unk>",
    "",
    "\\2-grams:",
    "-0.2\t<s> a",
    "-0.4\ta żółw",
    "-0.1\tżółw </s>",
    "-0.3\ta a",
    "",
    "\\end\\",
]
TEXT = "\n".join(LINES) + "\n"


def grams_of(arpa: Arpa) -> dict[tuple[str, ...], tuple[float, float]]:
    """Symbols → log-probability and back-off weight."""
    return {
        tuple(arpa.symbols[i] for i in ids): (logp, bow)
        for order in arpa.orders
        for ids, logp, bow in zip(order.ids_Mn.tolist(), order.logp_M.tolist(), order.bow_M.tolist(), strict=True)
    }


WHOLE = {
    ("<s>",): (-99.0, -0.5),
    ("</s>",): (-0.6, 0.0),
    ("a",): (-0.7, -0.25),
    ("żółw",): (-0.9, -0.125),
    ("<unk>",): (-1.5, 0.0),
    ("<s>", "a"): (-0.2, 0.0),
    ("a", "żółw"): (-0.4, 0.0),
    ("żółw", "</s>"): (-0.1, 0.0),
    ("a", "a"): (-0.3, 0.0),
}
WRITTEN: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "gzip": lambda text: gzip.compress(text.encode()),
    "two gzip members": lambda text: gzip.compress(text[:80].encode()) + gzip.compress(text[80:].encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "byte order mark": lambda text: text[text.index("\\") :].encode("utf-8-sig"),
    "blanks at the ends": lambda text: text.replace("\n", " \t\n").encode(),
    "indented": lambda text: text.replace("\n", "\n  ").encode(),
    "a blank for each tab": lambda text: text.replace("\t", " ").encode(),
    "many blanks": lambda text: text.replace("\t", " \t  ").replace(" a", " \t a").encode(),
    "no last newline": lambda text: text.rstrip("\n").encode(),
    "upper-case marks": lambda text: (
        text.replace("<s>", "<S>").replace("</s>", "</S>").replace("<unk>", "<UNK>").encode()
    ),
    "upper-case head": lambda text: text.replace("\\end", "\\END").replace("-grams:", "-Grams:").encode(),
    "-inf": lambda text: text.replace("-99", "-inf").encode(),
    "-Infinity": lambda text: text.replace("-99", "-Infinity").encode(),
    "below -99": lambda text: text.replace("-99", "-1e10").encode(),
    "back-offs of the last order": lambda text: (
        text.replace("<s> a", "<s> a\t0.0").replace("a a", "a a\t-0.7").encode()
    ),
    "a line twice": lambda text: (
        text.replace("-0.7\ta", "-0.7\ta\t-0.25\n-0.8\ta").replace("ngram 1=5", "ngram 1=6").encode()
    ),
    "no header": lambda text: text[text.index("\\1-") :].encode(),
    "an empty last order": lambda text: text.replace("\\end\\", "\\3-grams:\n\n\\end\\").encode(),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_however_it_is_written_it_holds_the_same(tmp_path: Path, written: str) -> None:
    path = tmp_path / "any name"
    path.write_bytes(WRITTEN[written](TEXT))
    found = grams_of(read_arpa(path))
    if written == "back-offs of the last order":
        assert found.pop(("a", "a")) == (-0.3, -0.7)
        assert found == {gram: value for gram, value in WHOLE.items() if gram != ("a", "a")}
    else:
        assert found == WHOLE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("-0.9", "nan"), r":10: a logarithm in an ARPA file must be a number, but is nan"),
        (("-0.125", "NaN"), r":10: a logarithm in an ARPA file must be a number, but is NaN"),
        (("-0.7", "0.7"), r":9: the logarithm of a probability must be 0 or less, but is 0\.7"),
        (("-0.4\t", "1e-3\t"), r":15: the logarithm .* but is 1e-3"),
        (("-0.4\t", "inf\t"), r":15: the logarithm .* but is inf"),
        (("-0.25", "inf"), r":9: a back-off weight must be finite"),
        (("-0.7", "-0,7"), r":9: a logarithm in an ARPA file must be a number, but is -0,7"),
        (("-0.7", "-0_7"), r":9: a logarithm in an ARPA file must be a number"),
        (("a żółw", "a b żółw c"), r":15: a line of the 2-grams must have 3 or 4 columns, but has 5"),
        (("-0.3\ta a", "-0.3\ta"), r":17: a line of the 2-grams must have 3 or 4 columns, but has 2"),
        (("-0.3\ta a", "-0.3\ta zebra"), r":17: the symbols of an n-gram must be among the 1-grams, but zebra is not"),
        (("\\2-grams:", "\\3-grams:"), r":13: the section after the 1-grams must be \\2-grams:"),
        (("\\2-grams:", "\\1-grams:"), r":13: the section after the 1-grams must be \\2-grams:"),
        (("\\end\\", ""), r"ends after line 19 without \\end\\\. It is cut off: fetch it again"),
        (("ngram 2=4", "ngram 2=4\nngram 3=7"), r"must have the 7 3-grams of its header"),
        ((TEXT[TEXT.index("-99") : TEXT.index("\\end")], ""), r"\\1-grams: section is empty"),
        ((TEXT, ""), r"no \\1-grams: section"),
        ((TEXT, "a model\n" * 9), r"no \\1-grams: section"),
        (
            (TEXT, "mmap lm http://kheafield.com/code format version 5\n\0"),
            "is a binary file of KenLM. Give the ARPA file",
        ),
        ((TEXT, "iARPA\n\n" + TEXT), "compile-lm --text=yes"),
        ((TEXT, "PK\x03\x04 and more"), "is a zip archive"),
        ((TEXT, "\0\1\2\3" * 100), "is a binary file"),
    ],
)
def test_what_is_broken_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "x.arpa"
    assert change[0] in TEXT
    path.write_text(TEXT.replace(*change))
    with pytest.raises(UserError, match=rf"x\.arpa.*{said}") as caught:
        read_arpa(path)
    assert "\n" not in str(caught.value)


def test_kenlms_own_binary_is_refused() -> None:
    with pytest.raises(UserError, match="Give the ARPA file that it was made from"):
        read_arpa(Path(__file__).parent / "golden" / "kenlm" / "probing.binary")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x").write_bytes(TEXT.replace("żółw", "t\N{LATIN SMALL LETTER U WITH DIAERESIS}").encode(encoding))
    with pytest.raises(UserError, match=r"must be UTF-8.*iconv"):
        read_arpa(tmp_path / "x")


@pytest.mark.parametrize("written", ["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("damage", ["half", "last byte", "middle", "from the start", "checksum"])
def test_a_damaged_archive_is_refused_in_one_line(tmp_path: Path, written: str, damage: str) -> None:
    draw = random.Random(0)
    lines = [f"-{draw.random():.7f}\tw{n}" for n in range(4000)]
    data = bytearray(WRITTEN[written](TEXT.replace("\n\\2-", "\n".join(["", *lines, "", "\\2-"]))))
    half = len(data) // 2
    if damage == "half":
        del data[half:]
    elif damage == "last byte":
        del data[-1:]
    elif damage == "middle":
        data[half : half + 40] = b"\xff" * 40
    elif damage == "from the start":
        data[12:] = b"\xff" * (len(data) - 12)
    elif written == "gzip":
        data[-6] ^= 1
    else:
        pytest.skip("the checksum stands elsewhere")
    path = tmp_path / "big.arpa.gz"
    path.write_bytes(data)
    for read in (read_arpa, ArpaLm):
        with pytest.raises(UserError, match=r"big\.arpa\.gz.*[Ff]etch it again") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_damage_that_unpacks_to_broken_lines_is_damage(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(TEXT.replace("-0.9", "zero").encode()))
    (tmp_path / "x.gz").write_bytes(data)
    with pytest.raises(UserError, match=r":10: a logarithm"):
        read_arpa(tmp_path / "x.gz")
    data[-5] ^= 1
    (tmp_path / "x.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.gz must be a whole gzip file.*Fetch it again"):
        read_arpa(tmp_path / "x.gz")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_arpa(tmp_path / "none.arpa")
    with pytest.raises(UserError, match="Is a directory"):
        read_arpa(tmp_path)


def test_counts_that_are_off_and_lines_twice_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = TEXT.replace("ngram 1=5", "ngram 1 = 7").replace("-0.6\t</s>", "-inf\t</s>\n-0.6\t</s>\n-inf\t</S>")
    (tmp_path / "x.arpa").write_text(text)
    assert grams_of(read_arpa(tmp_path / "x.arpa")) == WHOLE
    assert [message.partition("x.arpa")[2] for message in caplog.messages] == [
        ": 2 n-grams are written more than once; the likeliest line of each is used."
    ]
    caplog.clear()
    (tmp_path / "y.arpa").write_text(TEXT.replace("ngram 2=4", "ngram 2=5"))
    read_arpa(tmp_path / "y.arpa")
    assert "the header says 5 2-grams, but there are 4" in caplog.text


def test_a_mark_that_no_unigram_has_is_impossible_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(TEXT.replace("-99\t<s>\t-0.5\n", ""))
    found = grams_of(read_arpa(tmp_path / "x"))
    assert found == {**WHOLE, ("<s>",): (ZERO, 0.0)}


def test_only_some_words_are_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(TEXT)
    write_arpa(tmp_path / "y", read_arpa(tmp_path / "x"), only=["a"])
    assert grams_of(read_arpa(tmp_path / "y")) == {
        gram: value for gram, value in WHOLE.items() if not {"żółw", "<unk>"} & {*gram}
    }


def test_words_are_what_stands_between_sentence_marks(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(TEXT.replace("żółw", "a\N{NO-BREAK SPACE}b"))  # a blank that separates no columns
    arpa = read_arpa(tmp_path / "x")
    assert arpa.words == ["a", "a\N{NO-BREAK SPACE}b"]
    np.testing.assert_array_equal(arpa.orders[0].ids_Mn[:, 0], range(5))


def test_a_name_is_that_of_a_file_or_ends_like_one(tmp_path: Path) -> None:
    (tmp_path / "model").write_text(TEXT)
    (tmp_path / "folder.arpa").mkdir()
    assert is_arpa(str(tmp_path / "model"))
    assert all(map(is_arpa, ["x.arpa", "x.ARPA.GZ", "x.lm.bz2", "x.klm"]))
    assert not any(map(is_arpa, ["gpt2", "org/name", str(tmp_path), str(tmp_path / "folder.arpa")]))


@pytest.mark.parametrize(("magic", "by"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4")])
def test_archives_that_are_not_read_are_named(tmp_path: Path, magic: bytes, by: str) -> None:
    (tmp_path / "x.arpa").write_bytes(magic + bytes(range(60)) * 9)
    with pytest.raises(UserError, match=f"is packed by {by}. Give the ARPA file"):
        read_arpa(tmp_path / "x.arpa")


def test_natural_logarithms_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{np.log(p):.4f}\t{word}\n" for p, word in ((0.5, "a"), (0.3, "b"), (0.2, "</s>")))
    (tmp_path / "x.arpa").write_text(f"\\data\\\nngram 1=4\n\n\\1-grams:\n-99\t<s>\n{rows}\n\\end\\\n")
    with pytest.raises(UserError, match=r"logarithms to base 10, but .* up to 0\.29 so, and to 1 with natural ones"):
        read_arpa(tmp_path / "x.arpa")
