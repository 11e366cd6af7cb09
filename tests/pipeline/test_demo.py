"""The demo's pipeline: its TOML is sound; on synthesised speech it runs to its page; killed again and again it ends the
same."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hkd import manifest as manifests
from hkd.cli.run import heard
from hkd.config import parse_overrides, read_toml
from hkd.errors import UserError
from hkd.files import shipped, to_toml
from hkd.labels.folder import store_folder
from hkd.labels.store import LabelReader
from hkd.pipeline.recipe import load_recipe, stages_of
from hkd.units.tying import load_tying

# what others start from
PIPELINES = sorted(path for path in shipped("pipelines").glob("*/*.toml") if path.stem != "shared")
SMALL = [
    "units.vocab_size=60",
    "tie={num_senones = 140, min_frames = 5}",
    *(f"lm.{unit}.loop={{max_steps = 6, save_every = 3}}" for unit in ("senone", "monophone", "subword")),
    *(f"lm.{unit}.max_scored_positions=40" for unit in ("senone", "monophone", "subword")),
    "train.batch_seconds=8.0",
    "train.encoder={d_model = 16, num_layers = 3, num_heads = 2}",
    "train.loop={max_steps = 6, save_every = 2, log_every = 1}",
]


@pytest.mark.parametrize("file", PIPELINES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_pipeline_is_sound_and_has_a_readme(file: Path):
    recipe = load_recipe(file, {})
    stages = stages_of(recipe)
    assert {f"{recipe.report}.{kind}" for kind in ("html", "md", "txt")} == set(stages[recipe.report].outputs)
    assert (file.parent / "README.md").exists()


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path):
    for assignment, words in [
        ("lm.senone.lop.max_steps=3", "lm.senone"),
        ("train.objektive=3", "objective"),
        ("dump.senone.lm=lm/phone", "lm.phone"),
        ("shape.x=1", "shape"),
        ("prepare=3", r"\[prepare\] must be a table, but is 3"),
        ("runs.none=3", r"\[runs.none\] must be a table, but is 3"),
        ("jobs=two", "jobs must be a whole number of at least 1, but is 'two'"),
        ("jobs=0", "jobs must be a whole number of at least 1, but is 0"),
        ("dump.senone.unit=senones", "`unit` must be one of"),
        ("runs.none={objective = 'hard-heads', levels = ['phones']}", r"\[runs.none\]: `levels` must be one of"),
        ("runs.hierarchical.levels=['character']", r"\[runs.hierarchical\]: `levels` must have label stores"),
        ("report.baselines=['nothing']", r"\[report\].baselines must be one of none, "),
    ]:
        with pytest.raises(UserError, match=words):
            stages_of(load_recipe(shipped("pipelines") / "demo", parse_overrides([assignment])))


def test_a_base_comes_first_key_by_key(tmp_path: Path):
    (tmp_path / "base.toml").write_text("title = 'base'\njobs = 2\n[train]\nepochs = 3\nloop = {warmup_steps = 5}\n")
    over = tmp_path / "over.toml"
    over.write_text("title = 'over'\nbase = 'base.toml'\n[train]\nloop = {learning_rate = 0.1}\n")
    recipe = load_recipe(over, {"train": {"epochs": 4}})
    assert (recipe.title, recipe.jobs) == ("over", 2)
    assert recipe.table("train") == {"epochs": 4, "loop": {"warmup_steps": 5, "learning_rate": 0.1}}
    (tmp_path / "third.toml").write_text("base = 'over.toml'")
    with pytest.raises(UserError, match=r"third\.toml: its base must have no base itself, but has 'base\.toml'"):
        load_recipe(tmp_path / "third.toml", {})
    over.write_text("base = 'gone.toml'")
    with pytest.raises(UserError, match=r"gone\.toml: No such file"):
        load_recipe(over, {})


@pytest.fixture(scope="module")
def corpus(tiny_manifest: Path) -> Path:
    """The tiny corpus, with some text for the LMs in the manifest's own folder."""
    return tiny_manifest


def command(corpus: Path, work: Path, extra: list[str]) -> list[str]:
    words = [sys.executable, "-m", "hkd", "run", str(shipped("pipelines") / "demo"), "--work", str(work), "--json"]
    for assignment in [f'prepare.corpus="{corpus}"', *SMALL, *extra]:
        words += ["--set", assignment]
    return words


def run(corpus: Path, work: Path, *extra: str) -> dict:
    """The demo's pipeline on the tiny corpus, LMs trained on its transcripts by cross-fitting: no text is to be had
    everywhere."""
    done = subprocess.run(command(corpus, work, list(extra)), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


NO_TEXT = ["prepare.text=''", *(f"lm.{unit}.transcripts=cross-fit" for unit in ("senone", "monophone", "subword"))]


def digests(work: Path) -> dict[str, str]:
    """SHA-256 of all that must not depend on how often a run was killed."""
    wanted = [
        work / "alignment.arrow",
        *work.glob("units/*"),
        *work.glob("lm/*/*"),
        *work.glob("shards/*/*"),
        *work.glob("shards/*/data/*"),
    ]
    wanted += [
        *work.glob("runs/*/model/*"),
        *work.glob("runs/*/final.safetensors"),
        *work.glob("runs/*/metrics.jsonl"),
        *work.glob("runs/*/eval-test.json"),
    ]
    files = sorted(path for path in wanted if path.is_file())
    return {str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.timeout(900)
def test_the_demo_runs_to_its_page_and_a_second_time_does_nothing(corpus: Path, tmp_path: Path):
    first = run(corpus, tmp_path / "a", *NO_TEXT)
    assert set(first["ran"]) == set(stages_of(load_recipe(shipped("pipelines") / "demo", {})))
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    names = read_toml(shipped("pipelines") / "demo" / "pipeline.toml")["runs"]
    assert all(name in page for name in names)
    again = run(corpus, tmp_path / "a", *NO_TEXT)
    assert again["ran"] == []
    lines = heard(tmp_path / "a")
    assert lines[0].startswith("What ")
    assert lines[0].endswith(" writes, of two prompts that it has not heard:")
    assert [line.split()[0] for line in lines[1:5]] == ["said:", "heard:", "said:", "heard:"]


HYBRID = """
title = "a hybrid student"
seeds = [3]
[tie]
num_senones = 140
min_frames = 5
[words]
transcripts = true
[ngrams.unigram]
order = 1
[dump.monophone]
lm = "phone-trigram"
unit = "monophone"
[averages.monophone-average]
of = "monophone"
k = 20
[train]
main = "senone"
batch_seconds = 8.0
encoder = {d_model = 16, num_layers = 3, num_heads = 2}
loop = {max_steps = 2, save_every = 2, log_every = 1}
[evaluate]
lm = "lm/words.arpa"
[searches.narrow]
runs = ["auxiliary"]
lm = "lm/unigram.arpa"
search = {hybrid = {beam = 8.0}}
[runs.auxiliary]
objective = "auxiliary"
stores = ["monophone-average"]
[report]
baselines = ["auxiliary"]
"""


def result_digest(model: Path) -> str:
    return json.loads((model / "student.json").read_text())["inventory"]["digest"]


def test_seeds_and_searches_name_their_stages_and_nonsense_is_refused(tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(HYBRID)
    stages = stages_of(
        load_recipe(tmp_path, parse_overrides(["seeds=[0, 1]", "runs.none={objective = 'none', seeds = [5]}"]))
    )
    assert {"train-auxiliary-seed0", "evaluate-auxiliary-seed1@narrow", "evaluate-none-seed5"} <= set(stages)
    assert "evaluate-none-seed5@narrow" not in stages
    assert set(stages["evaluate-auxiliary-seed0@narrow"].needs) == {"prepare", "train-auxiliary-seed0", "ngram-unigram"}
    labelled = ["seeds=[0]", "dump.subword={lm = 'gpt2', unit = 'subword'}"]
    of_senones = stages_of(load_recipe(tmp_path, parse_overrides(labelled)))
    assert "dump-subword" not in of_senones["evaluate-auxiliary-seed0"].needs
    ctc = [*labelled, "runs.auxiliary.main=ctc", "evaluate.search.decoder=beam"]
    of_ctc = stages_of(load_recipe(tmp_path, parse_overrides(ctc)))
    assert "dump-subword" in of_ctc["evaluate-auxiliary-seed0"].needs  # what any CTC main output is held against
    assert "dump-subword" not in (
        *of_ctc["evaluate-auxiliary-seed0@narrow"].needs,
        *of_ctc["train-auxiliary-seed0"].needs,
    )
    fused = parse_overrides(["lm.left={unit = 'subword', direction = 'causal'}", "searches.narrow.lm=lm/left"])
    assert "lm-left" in stages_of(load_recipe(tmp_path, fused))["evaluate-auxiliary-seed3@narrow"].needs
    assert stages["ngram-unigram"].settings == {"path": "lm/unigram.arpa", "transcripts": True, "order": 1}
    assert stages["train-auxiliary-seed1"].settings["loop"]["seed"] == 1
    assert "report" in stages
    labels_alone = {
        name: table for name, table in read_toml(tmp_path / "pipeline.toml").items() if name not in ("runs", "searches")
    }
    (tmp_path / "labels.toml").write_text(to_toml(labels_alone))
    assert not [name for name in stages_of(load_recipe(tmp_path / "labels.toml", {})) if name.startswith("report")]
    on_dev = load_recipe(tmp_path, parse_overrides(["report.split=dev"]))
    assert on_dev.report == "report-dev"
    assert "report" not in stages_of(on_dev)
    assert "align" in stages["units"].needs
    for assignment, words in [
        ("seeds=[1, 1]", "different whole numbers"),
        ("seeds=3", "different whole numbers"),
        ("runs.auxiliary.loop.seed=1", "has both"),
        ("searches.narrow.runs=['nobody']", "nobody"),
        ("searches.narrow.beam=3", "beam"),
        ("runs.auxiliary.main=ctc", 'search.decoder must be "beam" where auxiliary'),
        ("evaluate.lm=''", "lm must be given, as the senones of auxiliary"),
        ("ngrams.words.order=2", "Take another name"),
        ("ngrams.other.orders=2", "orders"),
        ("averages.mean.k=2", "of must be given"),
        ("averages.mean.of='nothing'", r"\[dump.nothing\]"),
        ("averages.monophone.of='monophone'", r"no \[dump.monophone\]"),
        ("averages.mean={of = 'monophone', k = -1}", "at least 1"),
        ("runs.auxiliary.stores=['nothing']", "nothing is none"),
    ]:
        with pytest.raises(UserError, match=words):
            stages_of(load_recipe(tmp_path, parse_overrides([assignment])))


def test_a_store_of_averages_is_made_of_a_dump_and_read_by_the_runs_that_name_it(tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(HYBRID)
    wanted = [
        "averages.mean={of = 'monophone', k = 9}",
        "runs.mean={objective = 'auxiliary', stores = ['mean']}",
        "runs.auxiliary.stores=[]",
    ]
    stages = stages_of(load_recipe(tmp_path, parse_overrides(wanted)))
    assert stages["average-mean"].needs == ("prepare", "dump-monophone")
    assert stages["average-mean"].outputs == ("shards/mean",)
    assert "average-mean" in stages["train-mean-seed3"].needs
    assert "average-mean" not in stages["train-auxiliary-seed3"].needs  # all stores are all dumps


def test_a_further_label_store_leaves_the_runs_without_it_as_they_are(tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(HYBRID)
    runs = ["runs.auxiliary.stores=['monophone']"]
    more = [
        "dump.another={lm = 'phone-trigram', unit = 'monophone'}",
        "runs.other={objective = 'auxiliary', stores = ['another']}",
    ]
    before, after = (stages_of(load_recipe(tmp_path, parse_overrides(wanted))) for wanted in (runs, [*runs, *more]))
    assert {name for name in before if before[name] != after[name]} == {"report"}
    assert "dump-another" in after["report"].needs


TEXT = """
[prepare]
corpus = "asterisk"
[sentences.real]
[sentences.shuffled]
shuffle = true
[lm.text]
unit = "subword"
transcripts = "cross-fit"
sentences = "real"
loop = {max_steps = 2}
max_scored_positions = 20
[dump.text]
lm = "lm/text"
unit = "subword"
k = 8
sentences = "real"
[bank]
folds = 2
train = {epochs = 1}
[train]
condition = ["monophone"]
taps = {monophone = 1}
epochs = 1
encoder = {d_model = 16, num_layers = 2, num_heads = 2, conv_kernel = 5}
[runs.plain]
objective = "none"
[runs.text]
objective = "auxiliary"
text = {share = 0.4, path = "sentences/real.jsonl", labels = "text-shards"}
[runs.shuffled]
objective = "none"
text = {share = 0.4, path = "sentences/shuffled.jsonl"}
"""


def test_runs_with_text_wait_for_sentences_their_labels_and_the_bank(tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(TEXT)
    stages = stages_of(load_recipe(tmp_path, {}))
    data = {"prepare", "align", "units"}
    assert set(stages["train-plain"].needs) == data
    assert set(stages["train-shuffled"].needs) == data | {"bank", "sentences-shuffled"}
    assert set(stages["train-text"].needs) == data | {"bank", "sentences-real", "dump-text", "dump-text-text"}
    assert set(stages["lm-text"].needs) == data | {"sentences-real"}
    assert set(stages["dump-text-text"].needs) == {"units", "sentences-real", "lm-text"}
    assert set(stages["report"].needs) > {"dump-text", "evaluate-text"}
    assert "train.epochs" not in stages["bank"].settings
    assert stages["bank"].settings["train"]["epochs"] == 1
    for assignment, words in [
        ("runs.text.text.path=sentences/nothing.jsonl", r"table \[sentences.nothing\]"),
        ("lm.text.sentences=nothing", r"\[lm.text\]: sentences must name a table \[sentences.nothing\]"),
        ("dump.text.sentences=nothing", r"\[dump.text\]: sentences must name a table"),
        ("sentences.real.order=3", "'order' is no setting"),
    ]:
        with pytest.raises(UserError, match=words):
            stages_of(load_recipe(tmp_path, parse_overrides([assignment])))


def run_pipeline(folder: Path, work: Path, corpus: Path, text: Path) -> None:
    """`hkd run`, as a person runs it, on a small vocabulary."""
    settings = ["units.vocab_size=60", f'prepare.corpus="{corpus}"', f'prepare.text="{text}"']
    command = [sys.executable, "-m", "hkd", "run", str(folder), "--work", str(work)]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pipeline_trains_on_text_beside_speech(corpus: Path, tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(TEXT)
    text = tmp_path / "said.txt"
    text.write_text("the number is\nenter the number\nplease enter the channel\nthe channel is\n" * 4)
    work = tmp_path / "work"
    run_pipeline(tmp_path, work, corpus, text)
    real, shuffled = (manifests.read(work / "sentences" / f"{name}.jsonl") for name in ("real", "shuffled"))
    assert sorted(" ".join(u.text for u in real).split()) == sorted(" ".join(u.text for u in shuffled).split())
    assert [len(u.text.split()) for u in real] == [len(u.text.split()) for u in shuffled]
    assert set(LabelReader.open(work / "text-shards" / "text").ids) == {u.id for u in real}
    rows = [json.loads(line) for line in (work / "runs" / "text" / "metrics.jsonl").read_text().splitlines()]
    assert any("text-kd-text" in row for row in rows)
    assert json.loads((work / "runs" / "shuffled" / "eval-test.json").read_text())["split"] == "test"


def test_a_hybrid_student_is_searched_with_the_pipelines_own_words(corpus: Path, tmp_path: Path):
    (tmp_path / "pipeline.toml").write_text(HYBRID)
    work = tmp_path / "work"
    text = tmp_path / "said.txt"
    text.write_text("the number is\nplease enter\n")
    run_pipeline(tmp_path, work, corpus, text)
    assert (work / "text" / "said.txt").read_text() == text.read_text()
    run = work / "runs" / "auxiliary-seed3"
    result = json.loads((run / "eval-test.json").read_text())
    assert result["decoder"] | {"name": "graph", "lm": "words.arpa"} == result["decoder"]
    assert result["seed"] == 3
    assert json.loads((run / "eval-test@narrow.json").read_text())["decoder"]["lm"] == "unigram.arpa"
    assert len(json.loads((run / "model" / "student.json").read_text())["inventory"]["symbols"]) == 140
    average = store_folder(work / "shards" / "monophone-average").load_spec()
    assert (average.teacher["given"], average.k) == ("unit", 20)
    assert average.extra["averaged_from"] == store_folder(work / "shards" / "monophone").load_spec().digest
    assert "auxiliary@narrow" in (work / "report.md").read_text()
    alone = tmp_path / "elsewhere"  # the exported student carries its acoustic model
    shutil.copytree(run / "model", alone)
    assert load_tying(alone).inventories["senone"].digest == result_digest(alone)
    (tmp_path / "pipeline.toml").write_text(HYBRID.replace("[words]\ntranscripts = true\n", ""))
    with pytest.raises(UserError, match="table \\[words\\]"):
        stages_of(load_recipe(tmp_path, {}))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_at_random_moments_it_ends_the_same(corpus: Path, tmp_path: Path):
    """HKD_KILLS: how many (default 10). Moments are drawn over the time that the undisturbed run took."""
    began = time.monotonic()
    run(corpus, tmp_path / "undisturbed", *NO_TEXT)
    seconds = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(int(os.environ.get("HKD_KILLS", "10"))):
        process = subprocess.Popen(
            command(corpus, tmp_path / "killed", NO_TEXT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(3.0, max(6.0, seconds / 4)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(corpus, tmp_path / "killed", *NO_TEXT)
    assert digests(tmp_path / "killed") == digests(tmp_path / "undisturbed")
