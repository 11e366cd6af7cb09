"""One utterance's labels as people read them: time, unit, the gold unit's probability, the likeliest candidates."""

from typing import Any

import numpy as np

from hkd.align.alignment import Alignment, Positions, sequence_digest, word_positions
from hkd.labels.reader import LabelReader
from hkd.labels.rows import LabelBlock
from hkd.timebase import FRAME_SHIFT_S
from hkd.units.letters import letters_per_unit


def times(block: LabelBlock, reader: LabelReader, alignment: Alignment | None, utterance_id: str) -> Positions | None:
    """The frames of every position, where the alignment knows them and has the same unit sequence; else None."""
    if alignment is None or utterance_id not in alignment:
        return None
    level = reader.spec.level
    if level not in alignment.inventories:
        letters_V = letters_per_unit(reader.spec.inventory.symbols)
        return word_positions(alignment[utterance_id], block.word_N, block.topk.gold_N, letters_V=letters_V)
    found = alignment.positions(utterance_id, level)
    return found if sequence_digest(found.unit_U) == block.unit_digest_B[0] else None


def show(reader: LabelReader, utterance_id: str, *, top: int = 5, alignment: Alignment | None = None) -> list[dict[str, Any]]:
    """A dictionary a position: start_s and end_s (None: not known), word, unit, p (of the unit), candidates, tail (the mass outside).

    Raises UserError where the utterance is not in the store.
    """
    block = reader.block([utterance_id])
    topk, symbols = block.topk, reader.spec.inventory.symbols
    frames = times(block, reader, alignment, utterance_id)
    result: list[dict[str, Any]] = []
    for n in range(len(topk)):
        gold = int(topk.gold_N[n])
        order = np.argsort(-topk.logp_NK[n], kind="stable")[:top]
        timed = frames is not None and frames.stop_U[n] > frames.start_U[n]
        result.append(
            {
                "start_s": round(float(frames.start_U[n]) * FRAME_SHIFT_S, 3) if timed and frames is not None else None,
                "end_s": round(float(frames.stop_U[n]) * FRAME_SHIFT_S, 3) if timed and frames is not None else None,
                "word": int(block.word_N[n]),
                "unit": symbols[gold] if gold >= 0 else None,
                "p": float(np.exp(topk.gold_logp_N[n])) if gold >= 0 else None,
                "candidates": [{"unit": symbols[topk.ids_NK[n, r]], "p": float(np.exp(topk.logp_NK[n, r]))} for r in order],
                "tail": float(np.exp(topk.tail_N[n])),
            }
        )
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
        shown = "  ".join(f"{c['unit']} {bar(c['p'])} {c['p']:.2f}" for c in row["candidates"])
        lines.append(f"{when} {row['unit'] or '–':<{width}} {gold}   {shown}  (rest {row['tail']:.2f})")
    return "\n".join(lines)
