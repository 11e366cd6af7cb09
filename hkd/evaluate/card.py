"""The model card of a run's exported student: its facts, its error rates, what it learnt from, and how to use it.

Markdown with the front matter that the Hugging Face Hub reads. A function of the run's folder, so its bytes are the
same wherever it is made.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hkd.artefact import flatten
from hkd.decode.ctc import SearchConfig
from hkd.errors import UserError
from hkd.evaluate.result import METRICS, EvaluationReport, read_json, read_result
from hkd.evaluate.table import MIN_SPEAKERS
from hkd.files import write_bytes
from hkd.student.config import SpeechEncoderConfig
from hkd.student.export import StudentMeta, load_student
from hkd.student.model import StudentModel
from hkd.units.inventory import SENONE

SPLITS = ("dev", "test")


def model_card(run_folder: Path, *, needs_figures: bool = True) -> str:
    """The card's text. Raises UserError where the run has no exported student, or is evaluated on neither split and
    `needs_figures`."""
    student, meta = load_student(run_folder / "model")
    reports = [read_result(run_folder, split) for split in SPLITS if (run_folder / f"eval-{split}.json").exists()]
    if not reports and needs_figures:
        raise UserError(
            f"a model card needs figures, but {run_folder} is not evaluated. Run `hkd evaluate {run_folder.name}` "
            f"first."
        )
    identity, coverage = (read_json(run_folder / f"{name}.json") for name in ("identity", "coverage"))
    is_hybrid = meta.config.main == SENONE
    given, lm, digest, searched = "words.arpa" if is_hybrid else None, None, None, list[str]()
    if reports:
        lm, digest = reports[-1].decoder.get("lm"), reports[-1].inputs["lm"]
        searched = _search_settings(reports[-1], is_hybrid=is_hybrid)
    if lm:
        given = digest if Path(str(digest)).name == lm else lm  # a hub's name is its own
    lm_option = [f"--lm {shlex.quote(given)}"] if given else []
    units = f"{len(meta.inventory)} {meta.inventory.level} units (inventory {meta.inventory.digest[:12]})"
    facts = {
        "objective": (
            f"{meta.extra.get('objective', run_folder.name)}: "
            f"{meta.extra.get('objective_help', 'a run of its own kind')}"
        ),
        "encoder": _encoder(meta),
        "main output": f"{units}, searched in a graph with a lexicon" if is_hybrid else f"CTC over {units}",
        **({"language model beside it": f"{lm} (`{digest}`)"} if lm else {}),
        "parameters": _parameters(student),
        "features": f"{_features(meta.features)}{meta.features['sample_rate_hz']} Hz",
        "steps": str(identity.get("loop", {}).get("max_steps") or "not recorded"),
        "seed": str(meta.extra.get("seed")),
    }
    return _TEXT.format(
        name=run_folder.name,
        facts=_table(("", ""), facts.items()),
        learnt=_learnt(identity.get("data", {}), coverage),
        figures=_figures(reports)
        if reports
        else f"Not evaluated yet: `hkd evaluate {run_folder.name}`, then export again.",
        needs=_HYBRID_NEEDS if is_hybrid else _CTC_NEEDS + (_LM_BESIDE if lm else ""),
        shell=" ".join(
            ["hkd transcribe FILE.wav --model FOLDER", *lm_option, *(f"--set search.{s}" for s in searched)]
        ),
        python=_python(given, searched),
        text="Only words of the n-gram come out" if is_hybrid else "Text comes out in lower case",
        limits=f", and the smallest of them has {min(int(r.data['words']) for r in reports):,} words"
        if reports
        else "",
    )


def write_card(run_folder: Path, out: Path, *, needs_figures: bool = True) -> None:
    """Write the card atomically."""
    write_bytes(out, model_card(run_folder, needs_figures=needs_figures).encode())


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _encoder(meta: StudentMeta) -> str:
    encoder = meta.config.encoder
    layers = f"{encoder.num_layers} layers, width {encoder.d_model}"
    if isinstance(encoder, SpeechEncoderConfig):
        return f"{encoder.name} ({encoder.architecture}), {layers}"
    below = f", on {encoder.upstream} (frozen)" if encoder.upstream else ""
    return f"Conformer, {layers}, {encoder.num_heads} attention heads{below}"


def _parameters(student: StudentModel) -> str:
    trained, frozen = student.num_parameters(), student.config.encoder.front_end.num_parameters
    below = f", {frozen:,} of them frozen" if frozen else ""
    return f"{trained + frozen:,}{below}; the layers that only taught it are left out"


def _features(features: Mapping[str, Any]) -> str:
    kinds = {"wave": "", "upstream": f"{2 * features['num_bins']} values every 20 ms, "}
    return kinds.get(features["kind"], f"{features['num_bins']} log-mel bins, ")


def _search_settings(report: EvaluationReport, *, is_hybrid: bool) -> list[str]:
    """The settings of the evaluation's search that are not the default and count for this student:
    `hybrid.acoustic_scale=0.15`."""
    if not is_hybrid and report.decoder["name"] == "greedy":
        return []
    usual = flatten(asdict(SearchConfig()))
    return [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in flatten(report.inputs["settings"]["search"]).items()
        if usual.get(name, value) != value and name.startswith("hybrid.") == is_hybrid
    ]


def _python(lm: str | None, settings: Sequence[str]) -> str:
    imports = ["from hkd.decode.recogniser import Recogniser"]
    lines, arguments = [], '"FOLDER"' + (f", lm={json.dumps(lm)}" if lm else "")
    if settings:
        imports += ["from hkd.config import build, parse_overrides", "from hkd.decode.ctc import SearchConfig"]
        lines = [f'search = build(SearchConfig, parse_overrides({json.dumps(settings)}), where="search")']
        arguments += ", search=search"
    lines.append(f'print(Recogniser({arguments}).transcribe("FILE.wav")["text"])')
    return "\n".join([*sorted(imports), "", *lines])


def _decoding(reports: Sequence[EvaluationReport]) -> str:
    """The decoder's settings; split by split where they differ."""
    said: dict[str, str] = {}
    for report in reports:
        facts = ", ".join(f"{name} {value}" for name, value in report.decoder.items() if name != "name")
        said[report.split] = report.decoder["name"] + (f" ({facts})" if facts else "")
    one, *others = dict.fromkeys(said.values())
    return "; ".join(f"{split}: {text}" for split, text in said.items()) if others else one


def _learnt(data: Mapping[str, Any], coverage: Mapping[str, Any]) -> str:
    """Digests of what it was trained on, and the label stores that taught it."""
    rows = [("utterances", f"{coverage['utterances']:,}")] if isinstance(coverage.get("utterances"), int) else []
    rows += [(name, f"`{value}`") for name, value in data.items() if isinstance(value, str)]
    rows += [(f"label store {name}", f"`{value}`") for name, value in data.get("stores", {}).items()]
    return _table(("", "digest (SHA-256)"), rows) if rows else "Not recorded."


def _figures(reports: Sequence[EvaluationReport]) -> str:
    rows, levels = [], set()
    for report in reports:
        rates = []
        for metric in METRICS:
            rate = report.errors[metric]
            few = rate.by_speaker is None or rate.by_speaker.blocks < MIN_SPEAKERS
            interval = rate.by_utterance if few else rate.by_speaker
            said = "–" if math.isnan(rate.rate) else f"{100 * rate.rate:.2f}"
            if interval:
                said += f" ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
                levels.add(f"{100 * interval.level:g} %")
            rates.append(said)
        data = report.data
        rows.append(
            (report.split, f"{data['utterances']:.0f}", f"{data['words']:.0f}", f"{data['speakers']:.0f}", *rates)
        )
    of_level = f" ({', '.join(sorted(levels))})" if levels else ""
    table = _table(
        ("split", "utterances", "words", "speakers", *(f"{metric.upper()} %{of_level}" for metric in METRICS)), rows
    )
    how = _HOW.format(
        decoder=_decoding(reports), min_speakers=MIN_SPEAKERS, normalisation=reports[0].inputs["normalisation"]
    )
    return f"{table}\n\n{how}"


_CTC_NEEDS = "No language model is needed to run it"
_LM_BESIDE = "; the figures below are with one beside the search"
_HYBRID_NEEDS = "It runs beside a word n-gram (ARPA), which its senones need to become words"
_HOW = """Decoding: {decoder}. Words normalised by {normalisation}; phones by the lexicon, English ones folded to 39; intervals by bootstrap \
over speakers, or over utterances where there are fewer than {min_speakers} speakers."""  # noqa: E501

_TEXT = """---
library_name: hkd
pipeline_tag: automatic-speech-recognition
tags:
- automatic-speech-recognition
- knowledge-distillation
- hkd
---
# {name}

A small speech recogniser, trained with hkd (hierarchical knowledge distillation of language models into acoustic models). {needs}.

{facts}

## Use

```
{shell}
```

```python
{python}
```

Any sound file that libsndfile reads; stereo is mixed down, other sample rates are resampled to 16 kHz.

## How well it recognises

{figures}

## Limits

The figures hold for speech like that of the splits above{limits}: other speakers, rooms and words will be recognised less well. {text},
without punctuation, in the language of the training transcripts, and for noise or another language, too.

## Learnt from

{learnt}
"""  # noqa: E501
