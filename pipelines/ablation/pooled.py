"""The chosen hierarchy against each other run over all speakers who were tested: test and fresh speakers together,
seeds pooled, paired bootstrap by speaker.

python pipelines/ablation/pooled.py runs/ablation/manifest.jsonl
"""

import json
import sys
from pathlib import Path

import numpy as np

from hkd.evaluate.score import paired_bootstrap, score_words
from hkd.manifest import read
from hkd.units.text import words

RESULTS = Path(__file__).parent / "results"
CHOSEN = "soft-senone-subword"
OTHERS = ("none", "hard-heads", "interpolation-heavy", "auxiliary-subword")
SEEDS = (0, 1, 2)


def main(manifest: Path) -> None:
    """Print a line a run: WER of both, difference, interval, p."""
    utterances = {u.id: u for u in read(manifest)}
    errors: dict[str, list[float]] = {name: [] for name in (CHOSEN, *OTHERS)}
    tokens, speakers = [], []
    for file in ("test-hypotheses.jsonl", "fresh-hypotheses.jsonl"):
        rows = map(json.loads, (RESULTS / file).read_text(encoding="utf-8").splitlines())
        said = {row["run"]: row["hypotheses"] for row in rows}
        ids = sorted(said[f"{CHOSEN}-seed0"])
        references = [" ".join(words(utterances[name].text)) for name in ids]
        for name, sums in errors.items():
            scored = [score_words(references, [said[f"{name}-seed{seed}"][u] for u in ids]) for seed in SEEDS]
            sums += np.sum([scores.errors_N for scores in scored], axis=0).tolist()
        tokens += [len(SEEDS) * len(reference.split()) for reference in references]
        speakers += [str(utterances[name].speaker) for name in ids]
    for name in OTHERS:
        found = paired_bootstrap(errors[CHOSEN], errors[name], tokens, group_N=speakers)
        rates = " against ".join(f"{run} {100 * sum(errors[run]) / sum(tokens):.1f}" for run in (CHOSEN, name))
        if found is not None and found.low is not None and found.high is not None:
            print(
                f"{rates}: {100 * found.difference:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f}), p "
                f"{found.p:.3f}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
