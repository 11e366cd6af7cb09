"""What people read of a store: quality figures, the card (README.md, also the Hub's), one utterance's labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkd.align.alignment import Alignment, Positions, sequence_digest, word_positions
from hkd.labels.folder import store_folder
from hkd.labels.format import LabelBlock, StoreSpec
from hkd.sparse import TopK
from hkd.timebase import FRAME_SHIFT_S
from hkd.units.sequences import letters_per_unit

if TYPE_CHECKING:
    from hkd.labels.store import LabelReader

PIECE = 512
CALIBRATION_BINS = 10
NOTHING = -1e4  # a log-probability whose exponential is 0


def quality_of(topk: TopK) -> dict[str, float]:
    """Sums over the positions that have a gold unit; over all positions for tail mass and entropy (in nats).

    The entropy is a lower bound: the mass outside the kept ids counts as one more unit. A gold unit in a row's last
    place may have been put there, so it is no top-k hit (except where K = V).
    """
    has_N = topk.gold_N >= 0
    hit_NK = topk.ids_NK == topk.gold_N[:, None]  # never where there is no gold unit: it is −1 there
    dense = topk.count_NK is None and bool(np.isneginf(topk.tail_N).all())
    tail_N = topk.tail_N.astype(np.float64)
    return {
        "positions": len(topk),
        "gold_positions": int(has_N.sum()),
        "gold_logp_sum": float(topk.gold_logp_N[has_N].astype(np.float64).sum()),
        "top1_hits": int(np.count_nonzero(hit_NK[:, :1])),
        "topk_hits": int(np.count_nonzero(hit_NK) - (0 if dense else np.count_nonzero(hit_NK[:, -1:]))),
        "top1_mass_sum": float(np.exp(topk.logp_NK[:, :1].astype(np.float64)).sum()),
        "tail_mass_sum": float(np.exp(tail_N).sum()),
        "entropy_sum": _entropy(topk.logp_NK) + _entropy(tail_N[:, None]),
    }


def _entropy(logp_NK: NDArray[np.floating[Any]]) -> float:
    """−Σ p log p over all, in the rows' own precision, in pieces that stay in the processor's cache; 0 where p is 0."""
    total = 0.0
    for start in range(0, len(logp_NK), PIECE):
        piece_NK = np.maximum(logp_NK[start : start + PIECE], NOTHING)
        total -= float((np.exp(piece_NK) * piece_NK).sum(axis=1).sum(dtype=np.float64))
    return total


def calibration_bins(confidence_N: NDArray[np.floating[Any]], correct_N: NDArray[np.bool_]) -> dict[str, float]:
    """The sums that `calibration_error` needs: by row the probability of its likeliest unit, and whether that is the
    right one. Of n bins, bin i holds [i / n, (i + 1) / n); 1 belongs to the last."""
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    sums: dict[str, float] = {}
    for number in range(CALIBRATION_BINS):
        mine_N = bin_N == number
        sums[f"bin{number}_positions"] = int(mine_N.sum())
        sums[f"bin{number}_mass_sum"] = float(confidence_N[mine_N].sum())
        sums[f"bin{number}_hits"] = int(correct_N[mine_N].sum())
    return sums


def quality_sums(topk: TopK) -> dict[str, float]:
    """`quality_of` and `calibration_bins` of some rows, for a shard's mark; those of several shards add up."""
    has_N = topk.gold_N >= 0
    sure_N, hit_N = np.exp(topk.logp_NK[:, 0].astype(np.float64)), topk.ids_NK[:, 0] == topk.gold_N
    return quality_of(topk) | calibration_bins(sure_N[has_N], hit_N[has_N])


def calibration_error(sums: Mapping[str, float | None]) -> float | None:
    """Σ_bins (rows in bin / N) · |accuracy − mean confidence| (Guo et al. 2017, equation 3); None for no rows."""
    bins = range(CALIBRATION_BINS)
    count = sum(sums.get(f"bin{n}_positions") or 0 for n in bins)
    gap = sum(abs((sums.get(f"bin{n}_mass_sum") or 0.0) - (sums.get(f"bin{n}_hits") or 0)) for n in bins)
    return gap / count if count else None


def merge(parts: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Sums of sums; a figure that is not finite in one part is None in all."""
    total: dict[str, float | None] = {}
    for part in parts:
        for key, value in part.items():
            so_far = total.get(key, 0.0)
            total[key] = None if value is None or so_far is None else so_far + value
    return total


def figures(sums: Mapping[str, float | None]) -> dict[str, float | None]:
    """What people read: perplexity, hit rates of top 1 and top k, mean tail mass, mean entropy. None: not known."""

    def mean(key: str, over: str) -> float | None:
        value, count = sums.get(key), sums.get(over)
        return value / count if value is not None and count else None

    gold = "gold_positions" if "gold_positions" in sums else "positions"
    logp = mean("gold_logp_sum", gold)
    return {
        "perplexity": math.exp(min(-logp, 700.0)) if logp is not None else None,
        "top1_hit_rate": mean("top1_hits", gold),
        "topk_hit_rate": mean("topk_hits", gold),
        "tail_mass": mean("tail_mass_sum", "positions"),
        "entropy": mean("entropy_sum", "positions"),
    }


# The card -------------------------------------------------------------------------------------------------------------


def describe(place: Path | str) -> dict[str, Any]:
    """The facts of a store: what `hkd labels info` prints. Reads store.json, the marks and report.json, no shard."""
    folder = store_folder(place)
    spec = folder.load_spec()
    return facts(spec, list(folder.done(spec).values()), folder.report())


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
        "shards": spec.num_shards,
        "shards_missing": spec.num_shards - len(done),
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
    """The facts as lines for people; a pseudo-perplexity, two-sided, where the teacher reads both directions."""
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
    config = "configs:\n- config_name: default\n  data_files: data/*.arrow\n" if spec.backend == "arrow" else ""
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
"""  # noqa: E501


_DATASETS = """
The shards are Arrow IPC files, so `datasets` opens them too (a row a block of utterances; the binary columns are the codec's planes):

```python
from datasets import load_dataset

blocks = load_dataset("arrow", data_files="FOLDER/data/*.arrow", split="train")
```
"""  # noqa: E501


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


# One utterance --------------------------------------------------------------------------------------------------------


def times(block: LabelBlock, reader: "LabelReader", alignment: Alignment | None, utterance_id: str) -> Positions | None:
    """The frames of every position, where the alignment knows them and has the same unit sequence; else None."""
    if alignment is None or utterance_id not in alignment:
        return None
    level = reader.spec.level
    if level not in alignment.inventories:
        letters_V = letters_per_unit(reader.spec.inventory.symbols)
        return word_positions(alignment[utterance_id], block.word_N, block.topk.gold_N, letters_V=letters_V)
    found = alignment.positions(utterance_id, level)
    return found if sequence_digest(found.unit_U) == block.unit_digest_B[0] else None


def show(
    reader: "LabelReader", utterance_id: str, *, top: int = 5, alignment: Alignment | None = None
) -> list[dict[str, Any]]:
    """A dictionary a position: start_s and end_s (None: not known), word, unit, p (of the unit), candidates, tail (the
    mass outside). Raises UserError where the utterance is not in the store."""
    block = reader.block([utterance_id])
    topk, symbols = block.topk, reader.spec.inventory.symbols
    frames = times(block, reader, alignment, utterance_id)
    result = []
    for n in range(len(topk)):
        gold = int(topk.gold_N[n])
        order = np.argsort(-topk.logp_NK[n], kind="stable")[:top]
        span = (None, None) if frames is None else (float(frames.start_U[n]), float(frames.stop_U[n]))
        start_s, end_s = (
            None if span[0] == span[1] or frame is None else round(frame * FRAME_SHIFT_S, 3) for frame in span
        )
        row: dict[str, Any] = {"start_s": start_s, "end_s": end_s, "word": int(block.word_N[n])}
        row["unit"] = symbols[gold] if gold >= 0 else None
        row["p"] = float(np.exp(topk.gold_logp_N[n])) if gold >= 0 else None
        kept = [(symbols[topk.ids_NK[n, r]], float(np.exp(topk.logp_NK[n, r]))) for r in order]
        row["candidates"] = [{"unit": unit, "p": p} for unit, p in kept]
        row["tail"] = float(np.exp(topk.tail_N[n]))
        result.append(row)
    return result


BAR = "▏▎▍▌▋▊▉█"


def bar(share: float, width: int = 8) -> str:
    """A share of one as a bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (BAR[rest - 1] if rest else "")


def text(rows: list[dict[str, Any]]) -> str:
    """The rows of `show` as lines for people."""
    width = max([len(str(row["unit"] or "–")) for row in rows], default=1)
    lines = []
    for row in rows:
        when = f"{row['start_s']:7.2f}–{row['end_s']:<7.2f}" if row["start_s"] is not None else " " * 15
        gold = f"{row['p']:6.1%}" if row["p"] is not None else "     –"
        shown = "  ".join(f"{c['unit']} {bar(c['p'])} {c['p']:.0%}" for c in row["candidates"])
        others = max(0.0, 1 - sum(c["p"] for c in row["candidates"]))
        lines.append(f"{when} {row['unit'] or '–':<{width}} {gold}   {shown}  (all others {others:.0%})")
    return "\n".join(lines)
