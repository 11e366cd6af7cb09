"""The manifest: round trip, errors with file and line, digests, splits."""

import copy
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkd import manifest
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance

plain = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
seconds = st.floats(0, 1e6, allow_nan=False)
rows = st.builds(
    Utterance,
    id=plain,
    text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    audio_filepath=st.none() | st.sampled_from(["/a/b.wav", "s3://bucket/x.wav"]),
    offset=seconds,
    duration=st.none() | seconds,
    speaker=st.none() | plain,
    channel=st.none() | st.integers(0, 7),
    extra=st.dictionaries(plain.filter(lambda k: k not in manifest.KNOWN_FIELDS), st.integers() | plain, max_size=2),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(rows, max_size=5, unique_by=lambda u: u.id))
def test_what_is_written_is_read_back(tmp_path: Path, utterances: list[Utterance]) -> None:
    manifest.write(tmp_path / "m.jsonl", utterances)
    assert [replace(u, extra=dict(u.extra)) for u in manifest.read(tmp_path / "m.jsonl")] == utterances


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    inside, outside = str(tmp_path / "a" / "wav" / "x.wav"), str(tmp_path / "elsewhere.wav")
    manifest.write(
        tmp_path / "a" / "m.jsonl",
        [Utterance(id=str(n), text="", audio_filepath=p) for n, p in enumerate((inside, outside))],
    )
    written = [json.loads(line)["audio_filepath"] for line in (tmp_path / "a" / "m.jsonl").read_text().splitlines()]
    assert written == ["wav/x.wav", outside]
    (tmp_path / "a").rename(tmp_path / "b")
    assert [u.audio_filepath for u in manifest.read(tmp_path / "b" / "m.jsonl")] == [
        str(tmp_path / "b" / "wav" / "x.wav"),
        outside,
    ]


GOOD = '{"id": "a", "text": "x"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "no JSON"),
        ("[]", "is a list"),
        ('{"text": "x"}', "'id' must be there"),
        ('{"id": "b"}', "'text' must be there"),
        ('{"id": "", "text": "x"}', "non-empty"),
        ('{"id": 5, "text": "x"}', "'id' must be a string"),
        ('{"id": "b", "text": null}', "'text' must be there"),
        ('{"id": "b", "text": "x", "duration": NaN}', "finite"),
        ('{"id": "b", "text": "x", "duration": -1}', "not negative"),
        ('{"id": "b", "text": "x", "offset": Infinity}', "finite"),
        ('{"id": "b", "text": "x", "offset": true}', "must be a number"),
        ('{"id": "b", "text": "x", "duration": "3"}', "must be a number"),
        ('{"id": "b", "text": "x", "audio_filepath": 3}', "must be a string"),
        (GOOD, "stands twice"),
        ('{"id": "b", "text": "x", "channel": "A"}', "'channel' must be a whole number"),
        ('{"id": "b", "text": "x", "channel": 1.0}', "'channel' must be a whole number"),
        ('{"id": "b", "text": "x", "channel": -1}', "channel of utterance 'b' must be 0 or above"),
        ('{"id": "b", "text": "x"', "no JSON"),
        ("[" * 100_000, "no JSON"),
        (
            '{"id": "b", "text": "x", "duration": ' + "9" * 400 + "}",
            "field 'duration' must be finite, but has 400 digits",
        ),
        ('{"id": "b", "text": "x", "duration": ' + "9" * 5000 + "}", "no JSON"),
        ('{"id": "b", "text": "\\ud800"}', "surrogate"),
        ('{"id": "b", "text": "x", "more": [NaN]}', "finite"),
    ],
)
def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "m.jsonl").write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(UserError) as caught:
        manifest.read(tmp_path / "m.jsonl")
    assert str(caught.value).startswith(f"{tmp_path / 'm.jsonl'}:3: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_odd_encodings(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    assert [u.id for u in manifest.read(path)] == ["a"]
    path.write_bytes(GOOD.encode() + b"\n" + '{"id": "é", "text": ""}'.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match="UTF-8"):
        manifest.read(path)
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(UserError, match=r"m\.jsonl:1: .*UTF-8"):
        manifest.read(path)


def test_missing_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="hkd prepare"):
            manifest.read(path)


def test_look_up(tmp_path: Path) -> None:
    whole = Manifest(
        Utterance(id=name, text=name, extra=MappingProxyType({"split": split}))
        for name, split in (("a", "train"), ("b", "dev"))
    )
    assert whole.by_id("b").text == "b"
    assert "a" in whole
    assert [u.id for u in whole.split("dev")] == ["b"]
    assert whole.split(None) is whole
    with pytest.raises(UserError, match="dev, train"):
        whole.split("test")
    long = Manifest([Utterance(id="speaker0001/000010011", text="x"), Utterance(id="speaker0002/000010012", text="y")])
    for typed, meant in (("000010011", "speaker0001/000010011"), ("speaker0002/00001012", "speaker0002/000010012")):
        with pytest.raises(UserError, match=f"not in the manifest. Did you mean '{meant}'?"):
            long.by_id(typed)
    with pytest.raises(UserError, match="not in the manifest"):
        whole.by_id("c")
    with pytest.raises(UserError, match="stands twice"):
        Manifest([*whole, whole[0]])


def test_the_digest_covers_ids_and_texts_alone() -> None:
    base = [Utterance(id="a", text="x"), Utterance(id="b", text="y")]
    digest = Manifest(base).digest
    assert Manifest(reversed(base)).digest == digest
    assert (
        Manifest(
            [replace(base[0], audio_filepath="/moved", speaker="s", extra=MappingProxyType({"split": "dev"})), base[1]]
        ).digest
        == digest
    )
    assert Manifest([replace(base[0], text="z"), base[1]]).digest != digest
    assert Manifest(base[:1]).digest != digest
    assert Manifest([replace(base[0], id="ax", text=""), base[1]]).digest != digest


def test_utterances_go_to_processes_that_are_spawned(tmp_path: Path) -> None:
    """Spawned processes get their work by pickle."""
    sent = [
        Utterance(id="a", text="x", channel=1, extra={"split": "dev", "more": [1]}),
        *Manifest([Utterance(id="b", text="y", duration=2.0)]),
    ]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(copy.copy, sent)) == sent
    assert pickle.loads(pickle.dumps(Manifest(sent))).by_id("a").split == "dev"


def test_extra_fields_cannot_be_changed() -> None:
    given = {"split": "dev"}
    u = Utterance(id="a", text="x", extra=given)
    given["split"] = "test"
    assert u.split == "dev"
    with pytest.raises(TypeError):
        u.extra["split"] = "test"  # type: ignore[index]


names = st.lists(plain, min_size=3, max_size=40, unique=True)


@given(names, st.randoms())
def test_splitting_keeps_groups_together_and_hangs_on_names_alone(speakers: list[str], random) -> None:
    utterances = [Utterance(id=f"{n}-{s}", text="", speaker=s) for s in speakers for n in range(2)]
    shares = {"train": 0.8, "dev": 0.1, "test": 0.1}
    once = manifest.assign_splits(Manifest(utterances), shares, by=lambda u: u.speaker or "")
    of = {u.speaker: u.split for u in once}
    assert all(of[u.speaker] == u.split for u in once)
    assert set(of.values()) == set(shares)
    for name, share in shares.items():
        assert abs(sum(v == name for v in of.values()) - share * len(speakers)) <= 2
    random.shuffle(utterances)
    again = manifest.assign_splits(Manifest(utterances), shares, by=lambda u: u.speaker or "")
    assert {u.speaker: u.split for u in again} == of


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2 groups"):
        manifest.assign_splits(Manifest([Utterance(id="a", text="")]), {"train": 1, "dev": 1}, by=lambda u: "one")
