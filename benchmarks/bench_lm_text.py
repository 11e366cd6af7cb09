"""`hkd lm train --text`: most memory and processor time by the length of the text, at every level → a table, bars,
results/lm_text.json

    python benchmarks/bench_lm_text.py [--words 200000] [--levels senone monophone character subword]

Generated text of N words and of 4 N: words of the dictionary by Zipf's law, one word in fifty made up, so that
pronunciations are predicted too. Each is read, encoded, counted and trained on for two steps in a process of its own.
The n-gram, whose part of a text is bounded (`NGRAM_UNITS`), gets 20,000 units here. The time is that of text alone:
reading, normalising, encoding, writing the cache.
"""

import argparse
import gzip
import json
import os
import random
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from common import bar, in_process, machine, parser, peak_mb, save

TIMES = 4
LIBRISPEECH_WORDS = 803_000_000  # of its LM corpus
BAR_GROWTH = 1.05


def write_text(path: Path, num_words: int) -> None:
    """Sentences of 20 words, gzipped."""
    from hkd.units.lexicon import Lexicon

    rng = random.Random(0)
    known = sorted(word for word in Lexicon().entries(within=Lexicon().phones) if word.isalpha())
    rng.shuffle(known)
    weight = list(accumulate(1 / (rank + 1) for rank in range(len(known))))
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for _ in range(num_words // 20):
            chosen = rng.choices(known, cum_weights=weight, k=20)
            if rng.random() < 0.4:
                chosen[rng.randrange(20)] = "".join(rng.choices(("ba", "ko", "mi", "ste", "lar", "un"), k=5))
            file.write(" ".join(chosen) + "\n")


def one(level: str, text: Path, folder: Path) -> dict[str, float]:
    """Train on a text; what that took of this process."""
    import torch

    from hkd.labelling import lm
    from hkd.units.sequences import Units, train_units

    torch.set_num_threads(1)
    lm.NGRAM_UNITS = 20_000
    with gzip.open(text, "rt", encoding="utf-8") as file:
        train_units([next(file) for _ in range(300)], folder / "units", vocab_size=200)
    seconds = 0.0
    cache_text = lm.cache_text

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        started = time.process_time()
        found = cache_text(*arguments, **options)
        seconds += time.process_time() - started
        return found

    lm.cache_text = timed
    loop = lm.LmLoopConfig(max_steps=2, warmup_steps=1, save_every=2)
    config = lm.LmConfig(unit=level, sizes=lm.UnitLmSizes(width=8), loop=loop, max_scored_positions=500, ngram_order=2)
    report = lm.train_lm(config, texts=[text], units=Units(folder / "units"), folder=folder / "lm", device="cpu")
    return {"peak_mb": round(peak_mb(), 1), "text_cpu_s": round(seconds, 2), "units": report.units[0]}


def main() -> None:
    """Measure, print, write results/lm_text.json."""
    known = parser(__doc__, out="lm_text")
    known.add_argument("--words", type=int, default=200_000)
    known.add_argument("--levels", nargs="+", default=["senone", "monophone", "character", "subword"])
    known.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = known.parse_args()
    if arguments.one:
        level, text, folder = arguments.one
        print(json.dumps(one(level, Path(text), Path(folder))))
        return
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # of the processes
    results: dict[str, Any] = {"machine": machine(), "rows": [], "bars": []}
    print(f"{'level':12s}{'words':>12s}{'units':>12s}{'peak MB':>10s}{'words/s':>12s}{'h for LibriSpeech':>19s}")
    with tempfile.TemporaryDirectory() as name:
        sizes = (arguments.words, TIMES * arguments.words)
        for size in sizes:
            write_text(Path(name) / f"{size}.txt.gz", size)
        for level in arguments.levels:
            pair = []
            for size in sizes:
                with tempfile.TemporaryDirectory() as folder:
                    found = in_process(__file__, "--one", level, f"{name}/{size}.txt.gz", folder)
                row = {"level": level, "words": size, **found}
                row["words_per_cpu_s"] = round(size / row["text_cpu_s"])
                row["librispeech_cpu_hours"] = round(LIBRISPEECH_WORDS / row["words_per_cpu_s"] / 3600, 2)
                pair.append(row)
                figures = f"{row['peak_mb']:10.0f}{row['words_per_cpu_s']:12,}{row['librispeech_cpu_hours']:19.1f}"
                print(f"{level:12s}{size:12,}{row['units']:12,}{figures}", flush=True)
            results["rows"] += pair
            growth = pair[1]["peak_mb"] / pair[0]["peak_mb"]
            results["bars"].append(bar(f"{level}: memory at {TIMES} times the text", growth, BAR_GROWTH, "times"))
            save(arguments.out, results)


if __name__ == "__main__":
    main()
