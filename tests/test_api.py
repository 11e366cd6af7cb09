"""The Python API: names, labels on frames of any encoder, stores of one's own teacher, spawned workers, lhotse."""

import importlib.metadata
import multiprocessing
import operator
import pickle
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import hkd
from hkd.cli.labels import app
from hkd.errors import UserError
from hkd.lhotse import speed_of, with_labels
from hkd.losses import sparse_kl
from hkd.torch import Collator
from hkd.units.text import normalisation
from kit.labelled import label_folder

NAMES = [
    "FrameLabels", "HkdError", "Project", "Student", "TimedUnits", "UserError", "losses", "open_labels", "open_project",
    "read_audio", "write_labels",
]  # fmt: skip


@pytest.fixture(scope="module")
def labelled(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("api") / "project")
    label_folder(folder)
    return folder


@pytest.fixture(scope="module")
def project(labelled: Path) -> hkd.Project:
    return hkd.open_project(str(labelled))


def aligned_ids(project: hkd.Project) -> list[str]:
    return [u.id for u in project.manifest if project.has_labels("monophone", u.id)]


def test_the_public_names_are_these():
    assert sorted(hkd.__all__) == NAMES
    for name in NAMES:
        assert getattr(hkd, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hkd.nothing


def test_importing_loads_no_torch():
    code = "import hkd, sys; assert not {'torch', 'pyarrow', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_paths_are_strings_or_paths_and_a_project_needs_no_folder(labelled: Path, project: hkd.Project):
    name = aligned_ids(project)[0]
    for kind in (str, Path):
        loose = hkd.Project(
            manifest=kind(labelled / "manifest.jsonl"),
            alignment=kind(labelled / "alignment.arrow"),
            stores=kind(labelled / "shards" / "monophone"),
        )
        np.testing.assert_array_equal(
            loose.positions(name, "monophone").unit_U, project.positions(name, "monophone").unit_U
        )
    assert set(hkd.open_labels(str(labelled / "shards" / "senone")).ids) == set(project.stores["senone"].ids)


@pytest.mark.parametrize(("shift_ms", "speed"), [(10.0, 1.0), (20.0, 1.0), (40.0, 0.9), (80.0, 1.1), (12.5, 1.0)])
@pytest.mark.parametrize("store", ["senone", "monophone", "subword"])
def test_a_frame_has_the_label_that_is_spoken_in_its_middle(
    project: hkd.Project, store: str, shift_ms: float, speed: float
):
    ids = aligned_ids(project)[:3]
    seconds = [project.manifest.by_id(name).duration / speed for name in ids]
    labels = project.frame_labels(
        store, ids, num_frames=[int(s * 1000 / shift_ms) for s in seconds], frame_shift_ms=shift_ms, speed=speed
    )
    frames, speeds = torch.tensor([int(s * 1000 / shift_ms) for s in seconds]), torch.full((3,), speed).double()
    again = project.frame_labels(store, ids, num_frames=frames, frame_shift_ms=shift_ms, speed=speeds)
    assert torch.equal(again.gold_M, labels.gold_M)
    assert len(labels.frame_M) > 5
    for b, name in enumerate(ids):
        timed = project.positions(name, store)
        mine = labels.batch_M == b
        for frame, gold in zip(labels.frame_M[mine].tolist(), labels.gold_M[mine].tolist(), strict=True):
            middle_s = (frame + 0.5) * shift_ms / 1000 * speed
            near = (timed.start_s_U - 0.011 <= middle_s) & (middle_s <= timed.stop_s_U + 0.011)
            assert gold in timed.unit_U[near]
        spoken = set(timed.unit_U.tolist())
        assert shift_ms > 10 or set(labels.gold_M[mine].tolist()) == spoken


@pytest.mark.parametrize(("slots", "speed"), [(1, 1.0), (2, 0.9), (4, 1.1)])
def test_the_labels_lie_where_the_trainer_has_them(labelled: Path, project: hkd.Project, slots: int, speed: float):
    from hkd.stream.join import place
    from hkd.timebase import num_encoder_frames, retime

    name = aligned_ids(project)[1]
    found = project._join.positions(name, "monophone")
    num_frames = int(retime(np.array(project._join.alignment[name].num_frames), speed))
    slot_M, position_M = place(found, num_frames=num_frames, slots=slots, speed=speed)
    frames = num_encoder_frames(num_frames) * slots
    labels = project.frame_labels("monophone", [name], num_frames=[frames], frame_shift_ms=40 / slots, speed=speed)
    # the last slots may lie wholly past the end, where the trainer has none
    there = labels.frame_M < -(-num_frames // (4 // slots))
    np.testing.assert_array_equal(labels.frame_M[there], slot_M)
    np.testing.assert_array_equal(labels.gold_M[there], found.unit_U[position_M])


def test_the_teacher_is_what_sparse_kl_takes(project: hkd.Project):
    ids = aligned_ids(project)[:2]
    labels = project.frame_labels("monophone", ids, num_frames=[20, 20], frame_shift_ms=20)
    size = len(project.stores["monophone"].spec.inventory)
    logits_BTV = torch.randn(2, 20, size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss_M = sparse_kl(logits_BTV[labels.batch_M, labels.frame_M], **labels.teacher)
    loss_M.mean().backward()
    ids_MK, p_MK = labels.teacher["ids_MK"], labels.teacher["logp_MK"].exp()
    logq = torch.log_softmax(logits_BTV[labels.batch_M, labels.frame_M].detach().double(), 1)
    rest = -torch.expm1(torch.logsumexp(logq.gather(1, ids_MK), 1))
    p_tail = labels.teacher["tail_M"].double().exp()
    dense = (p_MK * (p_MK.log() - logq.gather(1, ids_MK))).sum(1) + torch.where(
        p_tail > 0, p_tail * (p_tail / rest).log(), 0.0
    )
    torch.testing.assert_close(loss_M.double(), dense, atol=1e-4, rtol=1e-4)
    assert logits_BTV.grad.abs().sum() > 0


def test_the_block_of_a_batch_gives_the_same_arguments(labelled: Path, project: hkd.Project):
    ids = aligned_ids(project)[:2]
    block = hkd.open_labels(labelled / "shards" / "monophone").block(ids)
    found = block.topk.to_torch()
    assert sorted(found) == ["ids_MK", "logp_MK", "tail_M"]
    assert sparse_kl(torch.zeros(len(block.topk), 42), **found).shape == (len(block.topk),)


def test_a_changed_transcript_is_refused_on_first_use(labelled: Path, tmp_path: Path):
    folder = shutil.copytree(labelled, tmp_path / "project")
    path = folder / "manifest.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = lines[0].replace('"text": "', '"text": "surely ')
    path.write_text("\n".join([changed, *lines[1:]]) + "\n", encoding="utf-8")
    edited = hkd.open_project(folder)
    names = [u.id for u in edited.manifest]
    with pytest.raises(UserError, match=f"utterance '{names[0]}': the transcript must be the one that was aligned"):
        edited.frame_labels("monophone", names[:1], num_frames=[10])
    assert len(edited.frame_labels("monophone", names[1:2], num_frames=[50]).frame_M)


def test_what_is_not_there_is_named(project: hkd.Project):
    with pytest.raises(UserError, match="store must be one of"):
        project.frame_labels("letters", ["x"], num_frames=[1])
    with pytest.raises(UserError, match="is not in the manifest"):
        project.positions("nobody", "monophone")
    with pytest.raises(UserError, match="utterance 'nobody' is not in the manifest"):
        project.frame_labels("monophone", ["nobody"], num_frames=[9])
    with pytest.raises(UserError, match="temperature must be one that the store holds"):
        project.frame_labels("senone", aligned_ids(project)[:1], num_frames=[9], temperature=3.0)


def test_frames_of_another_shift_are_not_taken_for_the_encoders(labelled: Path, caplog: pytest.LogCaptureFixture):
    project = hkd.open_project(labelled)
    ids = aligned_ids(project)[:2]
    frames = [int(project.manifest.by_id(name).duration * 50) for name in ids]  # 20 ms
    project.frame_labels("monophone", ids, num_frames=[n + 2 for n in frames], frame_shift_ms=20)
    for given, shift_ms in ((frames, 40.0), ([1500, 1500], 20.0)):  # the default's shift; padding to 30 s
        with pytest.raises(UserError, match=rf"frames must end with the sound: {given[0]} frames of {shift_ms:g} ms"):
            project.frame_labels("monophone", ids, num_frames=given, frame_shift_ms=shift_ms)
    assert not caplog.records
    for _ in range(2):
        project.frame_labels("monophone", ids, num_frames=frames, frame_shift_ms=10)
    assert [record.getMessage()[:28] for record in caplog.records] == ["Frames end before the sound:"]
    with pytest.raises(UserError, match="num_frames must have a number for each of the 2 ids, but has 1"):
        project.frame_labels("monophone", ids, num_frames=frames[:1], frame_shift_ms=20)
    with pytest.raises(UserError, match="speed must have a number for each of the 2 ids, but has 3"):
        project.frame_labels("monophone", ids, num_frames=frames, frame_shift_ms=20, speed=[1, 1, 1])
    for wrong in ({"frame_shift_ms": 0.0}, {"frame_shift_ms": float("nan")}, {"speed": 0.0}):
        with pytest.raises(UserError, match="must be above 0"):
            project.frame_labels("monophone", ids, num_frames=frames, **wrong)


def test_two_stores_of_one_name_are_refused(labelled: Path, tmp_path: Path):
    other = shutil.copytree(labelled / "shards" / "monophone", tmp_path / "monophone")
    with pytest.raises(UserError, match="stores must have names of their own, but two of monophone, monophone are one"):
        hkd.Project(
            manifest=labelled / "manifest.jsonl",
            alignment=labelled / "alignment.arrow",
            stores=[labelled / "shards" / "monophone", other],
        )


def test_foreign_pieces_need_no_model(labelled: Path, tmp_path: Path):
    from hkd.units.inventory import UnitInventory

    folder = shutil.copytree(labelled, tmp_path / "project")
    pieces = UnitInventory(level="subword", symbols=tuple(f"\u2581piece{n}" for n in range(50)))
    label_folder(folder, levels=["subword"], shards="foreign", inventory=pieces)
    loose = hkd.Project(
        manifest=folder / "manifest.jsonl",
        alignment=folder / "alignment.arrow",
        stores={"bert": folder / "foreign" / "subword"},
    )
    name = next(u.id for u in loose.manifest if loose.has_labels("bert", u.id))
    timed = loose.positions(name, "bert")
    assert timed.symbols[0].startswith("\u2581piece")
    assert (timed.stop_s_U > timed.start_s_U).all()
    assert (timed.start_s_U[1:] >= timed.stop_s_U[:-1] - 1e-9).all()


def test_labels_come_through_spawned_workers(project: hkd.Project):
    examples = [{"id": name, "num_frames": 30 + n, "speed": 1.1} for n, name in enumerate(aligned_ids(project)[:4])]
    collate = Collator(
        project,
        ["monophone", "subword"],
        num_frames=operator.itemgetter("num_frames"),
        frame_shift_ms=20,
        speed_key="speed",
    )
    here = collate(examples)
    loader = DataLoader(
        examples,
        batch_size=4,
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )
    [there] = list(loader)
    for name in ("monophone", "subword"):
        torch.testing.assert_close(there["hkd"][name].frame_M, here["hkd"][name].frame_M)
        torch.testing.assert_close(there["hkd"][name].teacher, here["hkd"][name].teacher)
    with pytest.raises(UserError, match="every example must have the key 'id'"):
        collate([{"num_frames": 3}])
    assert pickle.loads(pickle.dumps(project)).positions(examples[0]["id"], "monophone").unit_U.size


@pytest.mark.parametrize("level", ["monophone", "subword"])
def test_a_store_of_your_own_teacher(labelled: Path, tmp_path: Path, level: str):
    project = hkd.open_project(labelled)
    size = len(project.stores[level].spec.inventory)
    asked = []

    def score(utterance_id: str, unit_U: np.ndarray) -> torch.Tensor:
        asked.append(utterance_id)
        return torch.randn(len(unit_U), size, generator=torch.Generator().manual_seed(len(unit_U)))

    ids = aligned_ids(project)
    reader = hkd.write_labels(str(tmp_path / "mine"), project, level, score, teacher="mine", ids=ids, k=5)
    assert sorted(asked) == sorted(ids)
    assert reader.spec.normalisation == normalisation()
    for name in ids[:3]:
        unit_U = project.stores[level].block([name]).topk.gold_N
        logp_UV = torch.log_softmax(score(name, unit_U).double(), 1).numpy()
        topk = reader.block([name]).topk
        np.testing.assert_array_equal(topk.gold_N, unit_U)
        np.testing.assert_allclose(topk.logp_NK, np.take_along_axis(logp_UV, topk.ids_NK.astype(int), 1), atol=1 / 64)
    mine = hkd.Project(
        manifest=labelled / "manifest.jsonl",
        alignment=labelled / "alignment.arrow",
        stores=[tmp_path / "mine"],
        subwords=labelled / "units" / "subword.model",
    )
    assert len(mine.frame_labels("mine", ids[:1], num_frames=[60], frame_shift_ms=20).frame_M)
    with pytest.raises(UserError, match="must have the shape"):
        hkd.write_labels(
            tmp_path / "wrong", project, level, lambda _, unit_U: np.zeros((len(unit_U), 3)), teacher="wrong", ids=ids
        )

    def with_one(value: float, name: str, unit_U: np.ndarray) -> torch.Tensor:
        return score(name, unit_U).index_fill(1, torch.tensor([0]), value)

    for broken in (torch.nan, torch.inf):
        with pytest.raises(UserError, match=f"logits of utterance '{min(ids)}' must be numbers"):
            hkd.write_labels(tmp_path / "b", project, level, partial(with_one, broken), teacher="broken", ids=ids)
    hkd.write_labels(tmp_path / "f", project, level, partial(with_one, -torch.inf), teacher="fine", ids=ids[:2])


@pytest.mark.parametrize(
    ("cut_id", "found"),
    [
        ("a-1", ("a-1", 1.0)),
        ("a_sp0.9", ("a", 0.9)),
        ("a_tp1.1", ("a", 1.1)),
        ("a_sp1.1_vp0.5_rvb", ("a", 1.1)),
        ("a_sp2.0_tp0.5", ("a", 1.0)),
        ("a_nb_mulaw_ln-20.0", ("a", 1.0)),
        ("a_sp0.9_b", ("a_sp0.9_b", 1.0)),
        ("x_sp_y", ("x_sp_y", 1.0)),
    ],
)
def test_ids_of_perturbed_cuts(cut_id: str, found: tuple[str, float]):
    assert speed_of(cut_id) == found


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # lhotse 1.33 beside NumPy 2
def test_labels_in_a_dataset_of_lhotse(project: hkd.Project):
    from lhotse import CutSet, Fbank, MonoCut, Recording, SupervisionSegment
    from lhotse.dataset import K2SpeechRecognitionDataset, OnTheFlyFeatures
    from lhotse.utils import fastcopy

    cuts = []
    for name in aligned_ids(project)[:3]:
        u = project.manifest.by_id(name)
        recording = Recording.from_file(u.audio_filepath, recording_id=name)
        supervision = SupervisionSegment(id=name, recording_id=name, start=0, duration=recording.duration, text=u.text)
        cuts.append(
            MonoCut(
                id=name,
                start=0,
                duration=recording.duration,
                channel=0,
                recording=recording,
                supervisions=[supervision],
            )
        )
    fast = CutSet.from_cuts([cuts[0], cuts[1].perturb_speed(1.1), cuts[2].perturb_speed(0.9)])
    plain = K2SpeechRecognitionDataset(return_cuts=True, input_strategy=OnTheFlyFeatures(Fbank()))

    def frames(batch: dict) -> list[int]:
        return (batch["supervisions"]["num_frames"] // 4).tolist()

    batch = with_labels(plain, project, ["monophone"], num_frames=frames)[fast]
    labels, there = batch["hkd"]["monophone"], batch["supervisions"]["cut"]
    for b, cut in enumerate(there):
        name, speed = speed_of(cut.id)
        alone = project.frame_labels("monophone", [name], num_frames=[frames(batch)[b]], speed=speed)
        torch.testing.assert_close(labels.frame_M[labels.batch_M == b], alone.frame_M)
        assert len(alone.frame_M) > 5
    stranger = fastcopy(cuts[0], id="stranger", supervisions=[fastcopy(cuts[0].supervisions[0], id="nobody")])
    late = fastcopy(cuts[1], supervisions=[fastcopy(cuts[1].supervisions[0], start=0.5, duration=0.5)])
    for cut, why in ((stranger, "must be an utterance of the manifest"), (late, "one utterance from its beginning on")):
        with pytest.raises(UserError, match=why):
            with_labels(plain, project, ["monophone"], num_frames=frames)[CutSet.from_cuts([cut])]
    bare = K2SpeechRecognitionDataset(input_strategy=OnTheFlyFeatures(Fbank()))
    with pytest.raises(UserError, match="return_cuts=True"):
        with_labels(bare, project, ["monophone"], num_frames=frames)[fast]


@pytest.mark.parametrize("store", ["senone", "subword"])
def test_a_table_of_a_projects_labels_has_their_times(
    labelled: Path, project: hkd.Project, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(labelled)
    CliRunner().invoke(
        app, ["export", f"shards/{store}", "--parquet", str(tmp_path / "t.parquet")], catch_exceptions=False
    )
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert len(table) == len(project.stores[store])
    for row in table:
        found = project.positions(row["id"], store)
        assert row["unit"] == found.unit_U.tolist()
        assert row["start_s"] == found.start_s_U.tolist()
        assert row["stop_s"] == found.stop_s_U.tolist()


LEAN = ("numpy", "numba", "pyarrow", "torch", "zstandard", "regex", "filelock", "soundfile", "soxr", "sentencepiece")
LABELS_ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Only(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[4].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Only())
import hkd, torch
project = hkd.open_project(sys.argv[1])
labels = project.frame_labels(sys.argv[2], [sys.argv[3]], num_frames=[50], frame_shift_ms=20.0)
num_units = len(project.stores[sys.argv[2]].spec.inventory)
logits = torch.zeros(1, 50, num_units, requires_grad=True)
hkd.losses.sparse_kl(logits[labels.batch_M, labels.frame_M], **labels.teacher).mean().backward()
"""


def test_labels_and_losses_need_few_packages(labelled: Path, project: hkd.Project):
    """What docs/reference/api.md installs is enough: all other packages of this environment are out of reach."""
    name = aligned_ids(project)[0]
    kept, waiting = {"hkd"}, list(LEAN)
    while waiting:
        package = waiting.pop()
        if package not in kept:
            kept.add(package)
            needed = [text for text in importlib.metadata.requires(package) or [] if "extra ==" not in text]
            waiting += [re.split(r"[^\w.-]", text)[0] for text in needed]
    kept = {package.lower().replace("_", "-") for package in kept}
    owners = importlib.metadata.packages_distributions()
    barred = [m for m, packages in owners.items() if not kept & {p.lower().replace("_", "-") for p in packages}]
    assert {"transformers", "torchaudio", "typer", "zarr"} <= set(barred)
    for level in ("senone", "subword"):
        command = [sys.executable, "-c", LABELS_ALONE, str(labelled), level, name, ",".join(barred)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert f"pip install {' '.join(LEAN)}" in (Path(__file__).parents[1] / "docs/reference/api.md").read_text()
