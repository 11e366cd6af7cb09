"""Text → token cache: what is kept, held out, left out, cut; folds."""

import gzip
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from hkd.errors import UserError
from hkd.labelling import lm_data
from hkd.labelling.lm_data import ConcatSentences, TokenCache, cache_text, cut, folds_of, is_held_out, read_lines
from hkd.manifest import Manifest, Utterance
from hkd.teachers import unit_lm
from hkd.testing.teachers import tiny_sentences
from hkd.units.text import text_digest, words

LINES = tiny_sentences(300)


def lengths(sentence):
    """A stand-in for units: the words' lengths."""
    return [np.array([len(word) for word in sentence], np.int32)]


def cached(folder, paths, **options):
    return cache_text(paths, folder, **{"encode": lengths, "held_out": 0.2, "transcripts": frozenset(), **options})


def test_every_sentence_is_trained_on_or_held_out_and_equal_ones_on_one_side(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES[:200]))
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("\n".join(line.upper() for line in LINES[100:]))
    train, held = cached(tmp_path / "cache", [tmp_path / "a.txt", tmp_path / "b.txt.gz"])
    want = {True: [], False: []}
    for line in [*LINES[:200], *LINES[100:]]:
        want[is_held_out(" ".join(words(line)), 0.2)].append(lengths(words(line))[0].tolist())
    assert [u.tolist() for u in train] == want[False]
    assert [u.tolist() for u in held] == want[True]
    assert 0.1 < len(held) / 400 < 0.3
    assert train.num_units == sum(map(len, want[False]))


def test_transcripts_and_lines_without_words_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("One two.\n%\n\n--\nThree, four!\nONE TWO\npercent\n")
    train, held = cached(tmp_path / "cache", [tmp_path / "a.txt"], transcripts=frozenset({"one two"}))
    assert train.facts == {"lines": 4, "left_out": 2, "unpronounceable": 0}
    assert sorted(u.tolist() for u in [*train, *held]) == [[5, 4], [7]]


def test_a_cache_that_is_there_is_taken_and_half_a_one_is_made_anew(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES))

    def stop(sentence):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cache", [tmp_path / "a.txt"], encode=stop)
    first = [u.tolist() for u in cached(tmp_path / "cache", [tmp_path / "a.txt"])[0]]
    assert [u.tolist() for u in cached(tmp_path / "cache", [tmp_path / "a.txt"], encode=stop)[0]] == first
    assert len(first) > 100


def test_an_empty_cache_reads(tmp_path):
    train, held = cached(tmp_path / "cache", [])
    assert len(train) == len(held) == len(ConcatSentences([train, held])) == 0
    assert list(TokenCache(tmp_path / "cache" / "text-train")) == []


def test_a_cut_keeps_all_units_and_begins_where_it_may():
    rng = np.random.default_rng(0)
    for _ in range(200):
        unit_U = np.arange(rng.integers(1, 60), dtype=np.int32)
        may_U = rng.random(len(unit_U)) < 0.3
        pieces = list(cut(unit_U, may_U, 10))
        np.testing.assert_array_equal(np.concatenate(pieces), unit_U)
        for before, piece in pairwise(pieces):
            assert len(before) <= 10
            assert may_U[piece[0]] or not may_U[before[0] + 1 : before[0] + 11].any()


def test_folds_keep_equal_texts_together_and_are_of_like_size():
    manifest = Manifest(
        Utterance(id=f"{n}", text=LINES[n % 50].upper() if n % 2 else LINES[n % 50]) for n in range(120)
    )
    fold_of = folds_of(manifest, 4)
    assert set(fold_of) == {text_digest(words(line)) for line in LINES[:50]}
    assert max(np.bincount(list(fold_of.values()))) <= 13
    assert folds_of(Manifest(list(manifest)[::-1]), 4) == fold_of
    with pytest.raises(UserError, match="folds"):
        folds_of(manifest, 51)


def test_a_corpus_is_its_parts_in_order():
    parts = [[np.array([i], np.int32) for i in range(n)] for n in (3, 0, 2)]
    corpus = ConcatSentences(parts)
    assert [int(u[0]) for u in corpus] == [int(corpus[i][0]) for i in range(5)] == [0, 1, 2, 0, 1]
    assert corpus.num_units == len(corpus) == 5


def test_broken_text_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"a\.txt:2"):
        list(read_lines([tmp_path / "a.txt"]))
    whole = gzip.compress(b"some words\n" * 1000)
    (tmp_path / "b.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.gz"):
        list(read_lines([tmp_path / "b.gz"]))


def test_texts_of_other_systems_are_read_right_or_refused(tmp_path):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_lines([tmp_path / "bom.txt"])) == ["one", "two"]
    damaged = bytearray(gzip.compress(b"some words\n" * 1000))
    damaged[20] ^= 0xFF
    for name, data in {
        "16.txt": "one\n".encode("utf-16"),
        "nul.txt": b"one\0\n",
        "no.gz": b"plain",
        "damaged.gz": bytes(damaged),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}:1: text must be"):
            list(read_lines([tmp_path / name]))


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (['{"text": "the cat sat"}', '{"text": "a dog"}'], "JSON"),
        (["{", '  "text": "the cat sat"', "}"], "JSON"),
        (["1", "00:00:01,000 --> 00:00:02,000", "the cat sat"], "subtitles"),
        (["1\tThe cat sat.", "2\tA dog."], "a table"),
        (["text,lang", '"The cat, a dog",en'], "the columns text, lang"),
        (["1034-121119-0000 THE CAT SAT", "", "1034-121119-0001 A DOG"], "an id before each .1034-121119-0000"),
        (["BAC009S0002W0122 而 对", "BAC009S0002W0123 也 成为"], "an id before each"),
        (["the cat sat (spk1-utt1)", "a dog (spk1-utt2)"], "an id behind each"),
        (["the cat sat\ra dog\r"], "CR alone"),
    ],
)
def test_what_is_more_than_sentences_is_refused(tmp_path, lines, what):
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"a\.txt must be text, one sentence a line .* looks like .*{what}"):
        list(read_lines([tmp_path / "a.txt"]))


def test_sentences_with_numbers_names_and_tabs_are_text(tmp_path):
    lines = ["2 cats sat", "text, he said", "", "3 dogs\tran", "B-52s at 10:30 in COVID-19", "", "1,000 birds {sic}"]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    assert list(read_lines([tmp_path / "a.txt"])) == lines
    for lines in (["Text, he said", "a dog"], ["born in 1995.", "it ended in 2001."]):
        (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
        assert list(read_lines([tmp_path / "a.txt"])) == lines
    (tmp_path / "b.txt").write_text("\n")
    assert list(read_lines([tmp_path / "b.txt"])) == [""]


def test_four_times_the_text_takes_no_more_memory(tmp_path, monkeypatch):
    """Streamed into the cache, read in order and at random, and drawn from: what is kept does not grow with the
    text."""

    letters = str.maketrans("01234567", "abcdefgh")
    monkeypatch.setattr(lm_data, "_READ_AT_ONCE", 64)  # so that both texts fill more than one block
    monkeypatch.setattr(unit_lm, "MAX_KEPT", 400)

    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.txt.gz"
        with gzip.open(path, "wt", compresslevel=1) as file:
            file.writelines(f"{LINES[n % 300]} {format(n, 'o').translate(letters)}\n" for n in range(lines))
        tracemalloc.start()
        train, held = cached(tmp_path / str(lines), [path])
        corpus = ConcatSentences([train, held])
        order = np.random.default_rng(0).permutation(len(corpus)).astype(np.int32)
        assert corpus.counts(200).sum() == corpus.num_units
        assert all(
            len(corpus[number]) for start in range(0, lines, 500) for number in order[start : start + 5].tolist()
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(500)  # whatever is made once
    small, large = peak(1500), peak(6000)
    assert large < small + 50_000


def test_a_line_without_end_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"word " * 300_000)
    with pytest.raises(UserError, match=r"a\.txt:1: text must have lines shorter than 1048576 bytes"):
        list(read_lines([tmp_path / "a.txt"]))


def test_an_n_gram_gets_an_even_part_of_a_large_corpus():
    corpus = ConcatSentences([[np.full(10, number, np.int32) for number in range(100)]])
    assert list(corpus.part(1000)) == list(corpus)
    assert [int(unit_U[0]) for unit_U in corpus.part(300)] == list(range(0, 100, 4))
