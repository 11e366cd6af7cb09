"""The card of a store (README.md): for people, and as a data-set card for the Hugging Face Hub. And `describe`, its facts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hkd.labels import folder as files
from hkd.labels.quality import figures, merge
from hkd.labels.schema import StoreSpec


def describe(folder: Path, spec: StoreSpec) -> dict[str, Any]:
    """The facts of a store: what `hkd labels info` prints. Reads the marks and report.json, no shard."""
    marks = (files.load_mark(folder, spec, shard) for shard in range(spec.plan.num_shards))
    report = folder / files.REPORT
    return facts(spec, [mark for mark in marks if mark], parse_report(report.read_bytes() if report.is_file() else None))


def parse_report(data: bytes | None) -> dict[str, Any]:
    """The free figures in a report.json; empty where there is none."""
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def facts(spec: StoreSpec, done: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a store with these marks and free figures."""
    positions = sum(mark["positions"] for mark in done)
    num_bytes = sum(mark["bytes"] for mark in done)
    return {
        "name": spec.name,
        "level": spec.level,
        "teacher": dict(spec.teacher),
        "units": len(spec.inventory),
        "k": spec.width,
        "selection": spec.selection,
        "codec": spec.codec,
        "backend": spec.backend,
        "shards": spec.plan.num_shards,
        "shards_missing": spec.plan.num_shards - len(done),
        "utterances": spec.num_utterances,
        "positions": positions,
        "bytes": num_bytes,
        "bytes_per_position": num_bytes / positions if positions else None,
        **figures(merge(mark["quality"] for mark in done)),
        "report": dict(report),
    }


def number(value: Any, form: str = ".3f", scale: float = 1.0, unit: str = "") -> str:
    """A figure for people; a dash where there is none."""
    return "–" if value is None else f"{value * scale:{form}}{unit}"


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as lines for people. The perplexity is two-sided (pseudo-perplexity) where the teacher reads both directions."""
    teacher = facts["teacher"]
    both = teacher.get("direction") == "both"
    name = "pseudo-perplexity" if both else "perplexity"
    lines = [
        ("level", f"{facts['level']} ({facts['units']} units)"),
        ("teacher", f"{teacher.get('name', '?')} ({teacher.get('kind', '?')}, given {teacher.get('given', '?')})"),
        ("labels", f"k = {facts['k']}, {facts['selection']}, codec {facts['codec']}, {facts['backend']}"),
        ("size", f"{facts['utterances']:,} utterances, {facts['positions']:,} positions, {facts['bytes']:,} bytes "
                 f"({number(facts['bytes_per_position'], '.1f')} a position) in {facts['shards']} shards"),
        ("top-1 hit rate", number(facts["top1_hit_rate"], ".1f", 100, " %")),
        (f"top-{facts['k']} hit rate", number(facts["topk_hit_rate"], ".1f", 100, " %")),
        (name, number(facts["perplexity"], ".2f")),
        ("entropy", number(facts["entropy"], ".3f", 1, " nat")),
        ("tail mass", number(facts["tail_mass"], ".4f")),
    ]  # fmt: skip
    for key, value in facts["report"].items():
        text = number(value, ".4g") if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        lines.append((key.replace("_", " "), text))
    if facts["shards_missing"]:
        lines.append(("missing", f"{facts['shards_missing']} shards: run the command that writes it again"))
    return lines


def card(spec: StoreSpec, facts: dict[str, Any]) -> str:
    """The text of README.md. A function of the store's content, so that its bytes are the same wherever it is made."""
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows(facts))
    config = ""
    if spec.backend == "arrow":
        config = "configs:\n- config_name: default\n  data_files: data/*.arrow\n"
    teacher = "\n".join(f"| {key} | {_cell(value)} |" for key, value in spec.teacher.items())
    return f"""---
tags:
- hkd
- knowledge-distillation
- automatic-speech-recognition
{config}---
# Label store `{_cell(spec.name)}`

Top-k distributions of a language model over {spec.level} units, one row a position of a transcript, for training acoustic models with hkd.

| | |
|---|---|
{table}

## Teacher

| | |
|---|---|
{teacher}

## Made from

| | digest |
|---|---|
| transcripts (manifest) | {spec.manifest_digest} |
| alignment | {spec.alignment_digest or "none"} |
| unit inventory | {spec.inventory.digest} |
| this store's settings | {spec.digest} |

## Read it

```python
from hkd.labels.store import LabelReader

store = LabelReader.open("FOLDER")
block = store.block(store.ids[:8])  # block.topk.ids_NK, block.topk.logp_NK, block.offset_B1 ...
```
{_DATASETS if spec.backend == "arrow" else ""}
The format is hkd's label store format {spec.format} (docs/label-store.md in hkd). The licence is that of the transcripts and the teacher.
"""


_DATASETS = """
The shards are Arrow IPC files, so `datasets` opens them too (a row a block of utterances; the binary columns are the codec's planes):

```python
from datasets import load_dataset

blocks = load_dataset("arrow", data_files="FOLDER/data/*.arrow", split="train")
```
"""


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
