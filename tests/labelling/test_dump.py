"""The dump: what it stores is what the teacher says, and neither interruptions nor the number of processes change a
byte."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkd import manifest as manifests
from hkd.align.alignment import Alignment, sequence_digest
from hkd.errors import HkdError, UserError
from hkd.labelling import dump as module
from hkd.labelling.dump import DumpConfig, dump
from hkd.labels.store import LabelReader, LabelWriter
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, Teacher
from hkd.teachers.load import TeacherOptions, load_teacher
from hkd.units.text import text_digest, words

CONFIG = DumpConfig(k=5, temperatures=(2.0,), codec="f16", utterances_per_shard=16)


@pytest.fixture(scope="module")
def teacher(bert: Path) -> Teacher:
    return load_teacher(str(bert), unit="subword", device="cpu")


@pytest.fixture(scope="module")
def store(texts: Path, teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "subword"
    dump(texts, out, teacher, config=CONFIG)
    return out


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(store)): p.read_bytes()
        for p in sorted(store.rglob("*"))
        if p.is_file() and p.parent.name != ".locks"
    }


def test_rows_are_what_the_teacher_says(texts: Path, teacher: Teacher, store: Path) -> None:
    reader = LabelReader.open(store)
    manifest = manifests.read(texts)
    assert list(reader.ids) == sorted(u.id for u in manifest)
    assert reader.spec.manifest_digest == manifest.digest
    assert reader.spec.teacher["digest"] == teacher.info.digest
    block = reader.block(list(reader.ids))
    for b, name in enumerate(reader.ids):
        spoken = words(manifest.by_id(name).text)
        unit_U, word_U = teacher.encode(spoken)
        expected = teacher.score([Sentence(id=name, unit_U=unit_U, word_U=word_U)], k=5, temperatures=(2.0,))[0]
        rows = block.utterance(b)
        assert len(rows) == len(unit_U)
        np.testing.assert_array_equal(block.word_N[block.offset_B1[b] : block.offset_B1[b + 1]], word_U)
        np.testing.assert_allclose(rows.logp_NK, expected.logp_NK, atol=0.01)
        np.testing.assert_allclose(rows.lse_NJ, expected.lse_NJ, atol=0.01)
        assert block.unit_digest_B[b] == sequence_digest(unit_U)
        assert block.text_digest_B[b] == text_digest(spoken)


def test_a_complete_store_is_left(texts: Path, teacher: Teacher, store: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in store.rglob("data/*")}
    report = dump(texts, store, teacher, config=CONFIG)
    assert report.shards_done == report.positions == 0
    assert report.shards == 7
    assert report.quality is not None
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("data/*")}


def test_another_teacher_or_k_is_refused(texts: Path, bert: Path, teacher: Teacher, store: Path) -> None:
    with pytest.raises(UserError, match="--overwrite"):
        dump(texts, store, teacher, config=DumpConfig(k=6, temperatures=(2.0,), codec="f16", utterances_per_shard=16))
    other = load_teacher(str(bert), unit="subword", device="cpu", options=TeacherOptions(mask_every=2))
    with pytest.raises(UserError, match="teacher"):
        dump(texts, store, other, config=CONFIG)


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, 6])
def test_stopped_and_started_again_it_gives_the_same_bytes(
    texts: Path, teacher: Teacher, store: Path, tmp_path: Path, after: int
) -> None:
    def stop(done: float, total: float, **facts: float | str) -> None:
        if done > after:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        dump(texts, tmp_path / "subword", teacher, config=CONFIG, progress=stop)
    report = dump(texts, tmp_path / "subword", teacher, config=CONFIG)
    assert report.shards_done >= 7 - after - 1
    assert contents(tmp_path / "subword") == contents(store)


def test_ranks_share_the_work_and_give_the_same_bytes(
    texts: Path, teacher: Teacher, store: Path, tmp_path: Path
) -> None:
    reports = [dump(texts, tmp_path / "subword", teacher, config=CONFIG, rank=rank, world_size=3) for rank in (2, 0, 1)]
    assert [r.shards_done for r in reports] == [2, 3, 2]
    assert [r.shards_missing for r in reports] == [5, 2, 0]
    assert [r.quality is None for r in reports] == [True, True, False]
    assert contents(tmp_path / "subword") == contents(store)


def test_transcripts_that_repeat_are_scored_once(texts: Path, teacher: Teacher, tmp_path: Path) -> None:
    asked: list[int] = []

    class Counting:
        level, inventory, info, figures = teacher.level, teacher.inventory, teacher.info, teacher.figures
        encode = staticmethod(teacher.encode)

        def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
            asked.append(len(sentences))
            assert len({s.unit_U.tobytes() for s in sentences}) == len(sentences)
            return teacher.score(sentences, k=k, temperatures=temperatures)

    report = dump(texts, tmp_path / "a", Counting(), config=CONFIG)
    assert sum(asked) < 100
    assert report.scored_positions < report.positions


def test_a_dying_writer_stops_the_dump_with_its_error(
    texts: Path, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, shard: int, *args: Any, **options: Any) -> None:
        raise HkdError("the disk is full")

    monkeypatch.setattr(LabelWriter, "write_shard", full)
    with pytest.raises(HkdError, match="the disk is full"):
        dump(texts, tmp_path / "a", teacher, config=CONFIG)


def test_one_split_and_a_split_that_is_not_there(texts: Path, teacher: Teacher, tmp_path: Path) -> None:
    config = DumpConfig(k=2, utterances_per_shard=16, split="dev")
    assert dump(texts, tmp_path / "dev", teacher, config=config).utterances == 10
    with pytest.raises(UserError, match="split must be one of dev, train"):
        dump(texts, tmp_path / "test", teacher, config=DumpConfig(split="test"))


def test_a_teacher_worse_than_unigrams_is_named_loudly(
    texts: Path, teacher: Teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        report = dump(texts, tmp_path / "a", teacher, config=CONFIG)
    assert report.quality is not None
    assert report.quality["perplexity"] > report.quality["unigram_perplexity"]
    assert "WORSE THAN UNIGRAMS" in caplog.text


def test_causal_teachers_and_contexts_go_through(texts: Path, gpt2: Path, bert: Path, tmp_path: Path) -> None:
    for folder in (gpt2, bert):
        alone = load_teacher(str(folder), unit="subword", device="cpu")
        wide = load_teacher(str(folder), unit="subword", device="cpu", options=TeacherOptions(context=48))
        for name, one in (("alone", alone), ("wide", wide)):
            dump(texts, tmp_path / folder.name / name, one, config=CONFIG)
        a, w = (LabelReader.open(tmp_path / folder.name / name) for name in ("alone", "wide"))
        same = [a.unit_digest(name) for name in a.ids] == [w.unit_digest(name) for name in w.ids]
        assert same == (folder == bert)  # GPT-2's tokens have the space between utterances
        x_N, y_N = (reader.block(list(a.ids)).topk.gold_logp_N for reader in (a, w))
        assert len(x_N) != len(y_N) or not np.allclose(x_N, y_N, atol=0.1)
        assert w.spec.context == "window of 48 tokens"


def test_aligned_levels(prepared: Path, tmp_path: Path) -> None:
    teacher = load_teacher("phone-trigram", unit="monophone")
    alignment = Alignment(prepared / "alignment.arrow")
    report = dump(
        prepared / "manifest.jsonl", tmp_path / "monophone", teacher, config=DumpConfig(k=8), alignment=alignment
    )
    assert report.quality is not None
    assert report.quality["perplexity"] < report.quality["unigram_perplexity"]
    reader = LabelReader.open(tmp_path / "monophone")
    assert reader.spec.alignment_digest == alignment.digest
    for b, name in enumerate(reader.ids):
        position = alignment.positions(name, "monophone")
        block = reader.block([name])
        np.testing.assert_array_equal(block.topk.gold_N, position.unit_U)
        assert reader.unit_digest(name) == sequence_digest(position.unit_U)
        assert block.word_N.max() == len(alignment[name].words) - 1
        assert b < len(reader)
    with pytest.raises(UserError, match="need an alignment"):
        dump(prepared / "manifest.jsonl", tmp_path / "x", teacher, config=DumpConfig(k=8))


def test_changed_transcripts_are_refused_or_left_out(prepared: Path, tmp_path: Path) -> None:
    teacher = load_teacher("phone-trigram", unit="monophone")
    changed = tmp_path / "manifest.jsonl"
    utterances = list(manifests.read(prepared / "manifest.jsonl"))
    first = utterances[0]
    other = manifests.Utterance(
        id=first.id, text=first.text + " indeed", audio_filepath=first.audio_filepath, extra=first.extra
    )
    manifests.write(changed, [other, *utterances[1:]])
    alignment = Alignment(prepared / "alignment.arrow")
    with pytest.raises(UserError, match=f"'{first.id}' cannot be labelled: .*hkd align"):
        dump(changed, tmp_path / "a", teacher, config=DumpConfig(k=8), alignment=alignment)
    report = dump(changed, tmp_path / "b", teacher, config=DumpConfig(k=8, keep_going=True), alignment=alignment)
    assert list(report.left_out) == [first.id]
    assert len(LabelReader.open(tmp_path / "b").block([first.id]).topk) == 0


class _Odd:
    """A teacher that chokes on some words, as it encodes or as it scores."""

    def __init__(self, teacher: Teacher, *, encoding: str = "", scoring: int = -1, shards_at_once: int = 1) -> None:
        self._teacher, self._encoding, self._scoring, self.shards_at_once = teacher, encoding, scoring, shards_at_once
        self.level, self.inventory, self.info, self.figures = (
            teacher.level,
            teacher.inventory,
            teacher.info,
            teacher.figures,
        )
        self.asked = 0

    def encode(self, words: Sequence[str]) -> Any:
        if self._encoding and self._encoding in words:
            raise TypeError("what a text")
        return self._teacher.encode(words)

    def score(self, sentences: Sequence[Sentence], **asked: Any) -> list[TopK]:
        self.asked += len(sentences)
        if any(self._scoring in s.unit_U for s in sentences):
            raise ValueError("what a unit")
        return self._teacher.score(sentences, **asked)


@pytest.mark.parametrize("how", ["encoding", "scoring"])
def test_texts_that_a_teacher_chokes_on_are_named_or_left_out(
    texts: Path, teacher: Teacher, tmp_path: Path, how: str
) -> None:
    unit = int(teacher.encode(["brother"])[0][0])
    odd = _Odd(teacher, encoding="brother") if how == "encoding" else _Odd(teacher, scoring=unit)
    bad = {u.id for u in manifests.read(texts) if "brother" in words(u.text)}
    assert 1 < len(bad) < 20
    with pytest.raises(
        HkdError, match=r"utterance 'u\d+' cannot be labelled: (Type|Value)Error: what a .*keep_going=true"
    ):
        dump(texts, tmp_path / "a", odd, config=CONFIG)
    odd.asked = 0
    report = dump(texts, tmp_path / "b", odd, config=replace(CONFIG, keep_going=True))
    assert set(report.left_out) == bad
    assert odd.asked < 400
    reader, plain = LabelReader.open(tmp_path / "b"), teacher.score
    for name in reader.ids:
        rows = reader.block([name]).topk
        unit_U, word_U = teacher.encode(words(manifests.read(texts).by_id(name).text))
        expected = plain([Sentence(id=name, unit_U=unit_U, word_U=word_U)], k=5, temperatures=(2.0,))[0]
        assert len(rows) == (0 if name in bad else len(expected))
        if name not in bad:
            np.testing.assert_allclose(rows.logp_NK, expected.logp_NK, atol=0.01)


def test_an_utterance_without_numbers_is_named_or_left_out(texts: Path, teacher: Teacher, tmp_path: Path) -> None:
    class Overflows(_Odd):
        def score(self, sentences: Sequence[Sentence], **asked: Any) -> list[TopK]:
            found = self._teacher.score(sentences, **asked)
            for sentence, rows in zip(sentences, found, strict=True):
                if unit in sentence.unit_U:
                    rows.logp_NK[-1] = np.nan
            return found

    unit = int(teacher.encode(["brother"])[0][0])
    with pytest.raises(HkdError, match=r"utterance 'u\d+' cannot be labelled: the teacher gives no numbers \(NaN\)"):
        dump(texts, tmp_path / "a", Overflows(teacher), config=CONFIG)
    report = dump(texts, tmp_path / "b", Overflows(teacher), config=replace(CONFIG, keep_going=True))
    assert set(report.left_out) == {u.id for u in manifests.read(texts) if "brother" in words(u.text)}


def test_an_error_of_every_utterance_is_none_of_theirs(texts: Path, teacher: Teacher, tmp_path: Path) -> None:
    class Broken(_Odd):
        def score(self, sentences: Sequence[Sentence], **asked: Any) -> list[TopK]:
            raise HkdError("the device is lost")

    with pytest.raises(HkdError, match=r"^the device is lost$"):
        dump(texts, tmp_path / "a", Broken(teacher), config=replace(CONFIG, keep_going=True))


def test_a_shard_that_cannot_be_written_ends_the_dump_at_once(
    texts: Path, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    class Counted(_Odd):
        def score(self, sentences: Sequence[Sentence], **asked: Any) -> list[TopK]:
            scored.append(len(sentences))
            return super().score(sentences, **asked)

    def full(self: LabelWriter, shard: int, *_: Any, **__: Any) -> None:
        raise HkdError("No space left on device")

    monkeypatch.setattr(LabelWriter, "write_shard", full)
    with pytest.raises(HkdError, match="No space left on device"):
        dump(texts, tmp_path / "a", Counted(teacher), config=replace(CONFIG, utterances_per_shard=1))
    assert len(scored) <= 4


def test_several_shards_at_once_give_the_same_bytes(texts: Path, teacher: Teacher, store: Path, tmp_path: Path) -> None:
    report = dump(texts, tmp_path / "subword", _Odd(teacher, shards_at_once=3), config=CONFIG)
    assert report.shards_done == 7
    assert contents(tmp_path / "subword") == contents(store)


def test_the_model_counts_its_operations_and_the_report_says_how_to_go_on(
    texts: Path, teacher: Teacher, tmp_path: Path
) -> None:
    before = teacher.flops
    report = dump(texts, tmp_path / "a", teacher, config=CONFIG)
    spoken = [teacher.encode(words(u.text))[0] for u in manifests.read(texts)]
    distinct = {unit_U.tobytes(): unit_U for unit_U in spoken}.values()
    # both layers, without attention
    most = sum(len(u) * (len(u) + 2) for u in distinct) * 2 * 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert most / 3 < teacher.flops - before < 3 * most
    assert {"positions_per_s", "seconds", "go_on"} <= set(report.to_json())
    assert report.go_on == f"hkd train --labels {tmp_path}/"
    assert replace(report, store=Path("here")).go_on == "hkd train --labels ./"


def test_overwrite_replaces_a_store_and_nothing_else(
    texts: Path, teacher: Teacher, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    config = DumpConfig(k=3, utterances_per_shard=50)
    assert dump(texts, tmp_path / "s", teacher, config=config, overwrite=True).shards_done == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        dump(texts, tmp_path / "mine", teacher, config=config, overwrite=True)


def test_draws_are_stored_with_their_counts(texts: Path, teacher: Teacher, tmp_path: Path) -> None:
    config = DumpConfig(k=12, selection="sample", utterances_per_shard=40, codec="f16")
    dump(texts, tmp_path / "a", teacher, config=config)
    dump(texts, tmp_path / "b", teacher, config=config)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    reader = LabelReader.open(tmp_path / "a")
    count_NK = reader.block(list(reader.ids)).topk.count_NK
    assert count_NK is not None
    assert (count_NK.sum(1) == 12).all()
    with pytest.raises(UserError, match="selection must be topk"):
        dump(texts, tmp_path / "c", load_teacher("phone-trigram", unit="monophone"), config=config)


def test_the_cost_of_masking_together_is_stored(texts: Path, bert: Path, tmp_path: Path) -> None:
    teacher = load_teacher(str(bert), unit="subword", device="cpu", options=TeacherOptions(mask_every=3))
    report = dump(texts, tmp_path / "a", teacher, config=CONFIG)
    assert report.quality is not None
    assert report.quality["mask_every_kl_nats"] > 0.001
    assert (
        json.loads((tmp_path / "a/report.json").read_bytes())["mask_every_kl_nats"]
        == report.quality["mask_every_kl_nats"]
    )
