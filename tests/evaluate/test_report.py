"""The page: valid, self-contained, its numbers are those of the evaluations; and the utterances that it shows."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from hkd.align.alignment import Alignment
from hkd.audio import read_audio
from hkd.errors import UserError
from hkd.evaluate.charts import CHART_WIDTH
from hkd.evaluate.report import examples, figure, flac_address, marked, minutes, percent, training_facts, write_report
from hkd.evaluate.score import read_result
from hkd.labels.card import describe
from hkd.labels.store import open_stores
from hkd.manifest import read as read_manifest
from hkd.testing.store import random_rows, spec_for, write_store

HEADS = {
    "hard-senone": {"level": "senone", "kind": "hard", "store": None},
    "kd-a": {"level": "senone", "kind": "aux", "store": "a"},
    "kd-b": {"level": "subword", "kind": "aux", "store": "b"},
}


def test_times_add_up_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "wall_s": 6.0, "wait_s": 1.0, "audio_s": 300.0},
        {"step": 20, "wall_s": 4.0, "wait_s": 0.5, "audio_s": 420.0},
    ]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30, "wa')
    (tmp_path / "student.json").write_text(json.dumps({"heads": HEADS}))
    facts = training_facts(tmp_path, {"a": {"top1_hit_rate": 0.5, "perplexity": 4.0, "level": "senone"}})
    assert facts == {
        "steps": 20, "audio_hours": 0.2, "wall_hours": 10 / 3600, "rate": 72.0, "waiting": 0.15, "hard": ["senone"],
        "teachers": [
            {"store": "a", "top1_hit_rate": 0.5, "perplexity": 4.0},
            {"store": "b", "top1_hit_rate": None, "perplexity": None},
        ],
    }  # fmt: skip


def test_a_folder_without_timing_has_none(tmp_path: Path) -> None:
    assert training_facts(tmp_path, {}) is None


VOID = frozenset({"meta", "link", "br", "hr", "img", "input", "source", "area", "base", "col", "embed", "wbr"})
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOADS = frozenset({"script", "link", "iframe", "object", "embed", "base", "form"})


class Page(HTMLParser):
    """Checks nesting, and collects tags, addresses and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of {tag} stands twice"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                self.addresses.append((tag, value or ""))
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), f"{name} would run a script"
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data.strip()


@pytest.fixture(scope="module")
def page(evaluated) -> tuple[str, Page]:  # type: ignore[no-untyped-def]
    out = evaluated.folder / "report.html"
    write_report(
        evaluated.runs,
        out,
        manifest=evaluated.manifest,
        alignment=evaluated.alignment,
        labels=evaluated.labels,
        lm=evaluated.folder / "lm",
    )
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


def test_it_is_valid_and_needs_nothing_from_anywhere(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert text.startswith("<!DOCTYPE html>")
    assert not LOADS & set(parsed.tags)
    assert len(parsed.ids) == len(set(parsed.ids))
    for tag, address in parsed.addresses:
        assert address.startswith("data:") or tag == "a", f"{tag} loads {address[:60]}"
    assert not re.search(r"https?://|url\(|@import|//cdn", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_every_section_is_there(page: tuple[str, Page]) -> None:
    assert page[1].ids == ["table", "pairs", "errors", "heads", "curves", "cost", "labels", "lms", "examples", "made"]
    assert "{{" not in page[0]
    assert "None" not in page[1].cells


def test_the_numbers_are_those_of_the_evaluations_and_stores(evaluated, page: tuple[str, Page]) -> None:  # type: ignore[no-untyped-def]
    _, parsed = page
    for run in evaluated.runs:
        report = read_result(run, "test")
        at = parsed.cells.index(run.name)
        assert parsed.cells[at + 1] == f"{100 * report.errors['wer'].rate:.2f}"
        assert parsed.cells[at + 4] == f"{100 * report.errors['cer'].rate:.2f}"
        assert parsed.cells[at + 6] == f"{100 * report.errors['per'].rate:.2f}"
    for name, store in open_stores(evaluated.labels).items():
        facts = describe(store.path)
        last = len(parsed.cells) - 1 - parsed.cells[::-1].index(name)  # the table of costs may name it, too
        row = parsed.cells[last:][:13]
        assert row[5:10] == [
            percent(facts["top1_hit_rate"]), percent(facts["topk_hit_rate"]), figure(facts["perplexity"]), "6.10", "–",
        ]  # fmt: skip
        assert row[10] == figure(facts["entropy"])


def test_the_cost_table_names_the_store_of_interpolation(page: tuple[str, Page]) -> None:
    cost = page[0].split('<section id="cost">')[1].split("</section>")[0]
    row = next(row for row in cost.split("<tr>") if "</span>interpolation</th>" in row)
    assert '<td class="name">subword</td>' in row


def test_how_little_data_stands_behind_it_is_said_at_the_top(page: tuple[str, Page]) -> None:
    lead = " ".join(page[0].split('class="lead"')[1].split("</p>")[0].split())
    assert "6 utterances, 2 speakers" in lead
    assert "3 utterances, 27 words, 1 speaker." in lead
    assert "That is little" in lead


def test_drawings_are_no_wider_than_a_phone_or_scroll(page: tuple[str, Page]) -> None:
    text, _ = page
    for head in re.findall(r"<svg [^>]*>", text):
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', head)[1])  # type: ignore[index]
        assert width <= CHART_WIDTH or 'width="100%"' not in head


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(page: tuple[str, Page], tmp_path: Path, width: int) -> None:
    """In a frame as wide as a phone: a window of a browser without a screen has a least width."""
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"<iframe style='border: 0; width: {width}px; height: 900px' srcdoc='{html.escape(page[0])}'></iframe>"
        "<script>onload = () => { const page = document.querySelector('iframe').contentDocument;"
        " document.title = [page.documentElement.scrollWidth, page.documentElement.clientWidth, "
        "page.querySelectorAll('svg').length]; }</script>"
    )
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1300,1000",
    ]
    shown = subprocess.run(
        [*map(str, command), "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(\d+),(\d+),(\d+)</title>", shown.stdout)
    assert title is not None
    whole, seen, drawings = map(int, title.groups())
    assert width - 20 <= seen <= width  # a bar to scroll by may take some
    assert whole <= seen
    assert drawings == page[0].count("<svg ")


def test_the_same_bytes_again_and_hostile_text_is_escaped(evaluated, page: tuple[str, Page], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = {"manifest": evaluated.manifest, "alignment": evaluated.alignment, "labels": evaluated.labels}
    out = tmp_path / "report.html"
    write_report(evaluated.runs, out, lm=evaluated.folder / "lm", title="demo", **arguments)
    assert out.read_text() == page[0]
    write_report(evaluated.runs, out, title="<script>alert(1)</script>", **arguments)
    assert "<script>" not in out.read_text()
    Page(out.read_text())


def test_without_the_optional_parts_their_sections_are_left_out(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "report.html"
    table = write_report(evaluated.runs[:1], out)
    parsed = Page(out.read_text())
    assert parsed.ids == ["table", "errors", "heads", "curves", "cost", "made"]
    assert [row.name for row in table.rows] == ["none"]
    with pytest.raises(UserError, match="Run `hkd evaluate none --split dev` first"):
        write_report(evaluated.runs[:1], out, split="dev")


def test_a_store_of_anybodys_teacher_is_shown_and_one_that_is_cut_short_is_named(
    evaluated,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,  # type: ignore[no-untyped-def]
) -> None:
    spec = spec_for(teacher={"name": "mine"})  # docs/label-store.md demands no key of a teacher
    for name in ("mine", "cut"):
        write_store(tmp_path / "shards" / name, spec, random_rows(spec, [3, 2]))
    [shard] = (tmp_path / "shards" / "cut" / "data").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-1])
    write_report(evaluated.runs, tmp_path / "report.html", manifest=evaluated.manifest, labels=tmp_path / "shards")
    assert "mine <small>?, given ?</small>" in (tmp_path / "report.html").read_text()
    [said] = [record.message for record in caplog.records]
    assert said.startswith("label store cut is left out of the page: ")
    assert "shard 0 of 1 is missing or damaged" in said


def test_figures_for_people() -> None:
    assert (percent(0.1234), percent(None), figure(1234.5), figure(None)) == ("12.3", "–", "1,234.50", "–")
    assert (minutes(0.5), minutes(3)) == ("30.0 minutes", "3.0 hours")


WORDS = st.lists(st.sampled_from(["a", "b<", "c&d"]), max_size=6).map(" ".join)


@given(WORDS, WORDS)
def test_marks_count_the_errors_and_escape(reference: str, hypothesis: str) -> None:
    markup, wrong = marked(reference, hypothesis)
    assert (wrong == 0) == (reference == hypothesis)
    assert "<" not in str(markup).replace("<mark", "").replace("</mark", "").replace("<ins", "").replace(
        "</ins", ""
    ).replace("<del", "").replace("</del", "")
    if wrong == 0:
        assert markup.unescape() == hypothesis


def test_sound_survives_as_a_data_address() -> None:
    wave_S = np.round(np.sin(np.arange(1600) / 9) * 32767).astype(np.float32) / 32768
    head, _, body = flac_address(wave_S).partition(",")
    assert head == "data:audio/flac;base64"
    back, rate = soundfile.read(io.BytesIO(base64.b64decode(body)), dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(back, wave_S)


def test_candidates_are_the_stores(evaluated) -> None:  # type: ignore[no-untyped-def]
    reports, stores = [read_result(evaluated.runs[0], "test")], open_stores(evaluated.labels)
    arguments = {"reports": reports, "alignment": Alignment(evaluated.alignment), "stores": stores}
    [example] = examples(read_manifest(evaluated.manifest), number=1, **arguments)
    assert [labels["store"] for labels in example["labels"]] == list(stores)
    for labels in example["labels"]:
        store = stores[labels["store"]]
        topk, symbols = store.block([example["id"]]).topk, store.spec.inventory.symbols
        assert len(labels["positions"]) == len(topk)
        for n, row in enumerate(labels["positions"]):
            assert row["unit"] == symbols[topk.gold_N[n]]
            assert row["start_s"] is not None
            assert [c["unit"] for c in row["candidates"]] == [symbols[i] for i in topk.ids_NK[n, :5]]
            assert row["p"] == pytest.approx(np.exp(topk.gold_logp_N[n]))
            assert sum(c["p"] for c in row["candidates"]) <= 1.02
            assert f"{row['unit']} · {row['candidates'][0]['unit']}" in example["drawing"].unescape()


def test_examples_show_where_the_runs_differ(evaluated) -> None:  # type: ignore[no-untyped-def]
    manifest, reports = read_manifest(evaluated.manifest), [read_result(run, "test") for run in evaluated.runs]
    stores = open_stores(evaluated.labels)
    found = examples(manifest, reports=reports, alignment=Alignment(evaluated.alignment), stores=stores, number=2)
    assert len(found) == 2
    spreads = []
    for example in found:
        assert example["split"] == "test"
        assert example["seconds"] == pytest.approx(len(read_audio(manifest.by_id(example["id"]))) / 16_000)
        assert [run for run, _, _ in example["hypotheses"]] == [report.run for report in reports]
        assert {o["store"] for o in example["labels"]} == set(stores)
        assert example["drawing"] is not None
        wrong = [errors for _, _, errors in example["hypotheses"]]
        spreads.append(max(wrong) - min(wrong))
    assert spreads == sorted(spreads, reverse=True)


def test_without_alignment_or_stores_there_is_still_sound_and_text(evaluated) -> None:  # type: ignore[no-untyped-def]
    reports = [read_result(evaluated.runs[0], "test")]
    (example,) = examples(read_manifest(evaluated.manifest), reports=reports, alignment=None, stores={}, number=1)
    assert example["drawing"] is None
    assert example["labels"] == []
    assert example["audio"] is not None
