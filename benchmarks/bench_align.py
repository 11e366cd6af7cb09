"""pocketsphinx's alignments: how many utterances are kept, how long it takes, how far its boundaries lie from another
aligner's.

    python benchmarks/bench_align.py [--corpus FOLDER] [--alignment FILE --manifest FILE] [--utterances 200] [--train
    800]

- The corpus: what `hkd prepare` takes, from --corpus or the variable HKD_CORPUS; else the demo's embedded one.
- kept: all utterances are aligned, in all cores' processes; those that are not are counted by reason. The alignment
  stays below --work, so that a second run goes on from it; --alignment takes one that is there.
- real-time factor: processor time a second of sound, on the utterances that are compared, in this process. Loading is
  not counted.
- boundaries: against monophone GMMs from a flat start on the same sound (`gmm_aligner.py`): same dictionary, and
  nothing else in common. Neither is the truth. Word boundaries are begins and ends; phone boundaries those of words
  that both say with the same phones. Neither has a model for false starts and repeated words, which are most of the
  largest differences in learners' speech.
"""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
from common import bar, machine, parser, save  # noqa: E402
from gmm_aligner import GmmAligner, Segment, cepstra, normalised_by_speaker  # noqa: E402

from hkd import corpora  # noqa: E402
from hkd.align.alignment import Alignment, UtteranceAlignment  # noqa: E402
from hkd.align.sphinx import SphinxAligner, SphinxConfig, align_manifest  # noqa: E402
from hkd.manifest import Manifest, Utterance, read  # noqa: E402
from hkd.timebase import FRAME_SHIFT_S  # noqa: E402
from hkd.units.inventory import MONOPHONE  # noqa: E402
from hkd.units.lexicon import Lexicon  # noqa: E402

CORPUS_VARIABLE, DEMO = "HKD_CORPUS", "asterisk"
BAR_KEPT, BAR_SPEED = 97.0, 0.1
WITHIN_MS = (10, 20, 30, 50, 100)


def evenly(names: Sequence[str], count: int) -> list[str]:
    """`count` of them, evenly spread."""
    count = min(count, len(names))
    return [names[number * len(names) // count] for number in range(count)]


def reasons(failed: dict[str, str]) -> dict[str, int]:
    """How often each reason is given; figures and words in it are left out."""
    return dict(
        Counter(re.sub(r"-?\d+(\.\d+)?", "N", why.partition(" for ")[0]) for why in failed.values()).most_common()
    )


def speed(utterances: Sequence[Utterance]) -> dict[str, float]:
    """Processor time a second of sound."""
    aligner = SphinxAligner(SphinxConfig())
    aligner.align(utterances[0])
    started = time.process_time()
    sound_s = sum(float(aligner.align(utterance).get("seconds", 0.0)) for utterance in utterances)
    cpu_s = time.process_time() - started
    return {"sound_s": round(sound_s, 1), "cpu_s": round(cpu_s, 2), "real_time_factor": round(cpu_s / sound_s, 4)}


def differences(row: UtteranceAlignment, found: Sequence[Segment], symbols: Sequence[str]) -> dict[str, list[int]]:
    """Frames from the GMMs' boundaries to pocketsphinx's, by kind; `skipped` counts words that were said with other
    phones."""
    said: dict[str, list[int]] = {"word begin": [], "word end": [], "phone": [], "skipped": []}
    phones = row.tiers[MONOPHONE]
    bounds = phones.start_U1.tolist()
    for segment, word in enumerate(row.word_tier.unit_U.tolist()):
        if word < 0:
            continue
        start, stop = row.word_tier.start_U1[segment : segment + 2].tolist()
        theirs = [piece for piece in found if piece.word == word]
        said["word begin"].append(start - theirs[0].start)
        said["word end"].append(stop - theirs[-1].stop)
        mine = range(bounds.index(start), bounds.index(stop))
        if [symbols[phones.unit_U[at]] for at in mine] != [piece.phone for piece in theirs]:
            said["skipped"].append(word)
            continue
        said["phone"] += [bounds[at] - piece.start for at, piece in zip(mine, theirs, strict=True)]
        said["phone"].append(stop - theirs[-1].stop)
    return said


def figures(frames: Sequence[int]) -> dict[str, Any]:
    """Of differences in frames: number, median and 90th percentile of their sizes, median and mean with sign (ms),
    shares within ms."""
    signed_ms = 1000 * FRAME_SHIFT_S * np.asarray(frames, np.float64)
    size_ms = np.abs(signed_ms)
    near_ms = signed_ms[size_ms <= WITHIN_MS[-2]]
    return {
        "boundaries": len(frames),
        "median_ms": float(np.median(size_ms)),
        "p90_ms": round(float(np.percentile(size_ms, 90)), 1),
        "later_ms": round(float(near_ms.mean()), 1),  # pocketsphinx's lie later by so much, of those within 50 ms
        "within": {str(ms): round(float((size_ms <= ms).mean()), 3) for ms in WITHIN_MS},
    }


def table(said: dict[str, list[int]]) -> dict[str, Any]:
    """Figures by kind of boundary."""
    rows = {"word": said["word begin"] + said["word end"], "phone": said["phone"]}
    return {
        **{kind: figures(frames) for kind, frames in rows.items()},
        "words_said_with_other_phones": len(said["skipped"]),
    }


def compare(
    alignment: Alignment, whole: Manifest, names: Sequence[str], compared: Sequence[str], gaussians: int
) -> dict[str, Any]:
    """Train the GMMs on `names`, hold both aligners' boundaries of `compared` against each other."""
    utterances = {name: whole.by_id(name) for name in dict.fromkeys((*names, *compared))}
    started = time.process_time()
    speaker_of = {name: utterance.speaker or name for name, utterance in utterances.items()}
    feats = normalised_by_speaker({name: cepstra(u) for name, u in utterances.items()}, speaker_of)
    lexicon = Lexicon()
    aligner = GmmAligner(lexicon, lexicon.phones)
    graphs = {name: aligner.graph(u.text) for name, u in utterances.items()}

    def show(done: int, likelihood: float) -> None:
        print(f"  GMMs: round {done}, log-likelihood a frame {likelihood:.2f}", flush=True)

    aligner.train([(feats[name], graphs[name]) for name in utterances], gaussians=gaussians, progress=show)
    symbols = alignment.inventories[MONOPHONE].symbols
    said: dict[str, list[int]] = {}
    for name in compared:
        for kind, frames in differences(alignment[name], aligner.align(feats[name], graphs[name]), symbols).items():
            said.setdefault(kind, []).extend(frames)
    return {
        "trained_on": {
            "utterances": len(utterances),
            "gaussians": gaussians,
            "cpu_s": round(time.process_time() - started, 1),
        },
        **table(said),
    }


def main() -> None:
    """Measure, print, write results/align.json; rows of other corpora stay in it."""
    known, corpus = parser(__doc__, out="align"), os.environ.get(CORPUS_VARIABLE) or DEMO
    known.add_argument("--corpus", default=corpus, help="a folder or a name, as `hkd prepare` takes")
    known.add_argument("--name", default="", help="of the corpus in the results; by default the folder's")
    known.add_argument("--alignment", type=Path, help="an alignment that is there, with --manifest")
    known.add_argument("--manifest", type=Path)
    known.add_argument("--utterances", type=int, default=200, help="that are compared")
    known.add_argument("--train", type=int, default=800, help="utterances that the GMMs are trained on")
    known.add_argument("--gaussians", type=int, default=2000)
    known.add_argument("--work", type=Path, default=Path("runs") / "bench-align")
    arguments = known.parse_args()
    logging.basicConfig(level=logging.ERROR)
    name = arguments.name or Path(arguments.corpus).name
    results: dict[str, Any] = {"machine": machine(), "corpora": {}}
    if arguments.out.exists():
        results["corpora"] = json.loads(arguments.out.read_text(encoding="utf-8"))["corpora"]
    row: dict[str, Any] = {}
    results["corpora"][name] = row

    if arguments.alignment is not None:
        whole, path = read(arguments.manifest), arguments.alignment
    else:
        folder = arguments.work / name
        whole = corpora.prepare(arguments.corpus, folder, overwrite=True)
        path = folder / "alignment.arrow"
        align_manifest(whole, path, overwrite=True)
    alignment = Alignment(path)
    row |= {"utterances": len(whole), "kept": len(alignment), "reasons": reasons(alignment.failed)}
    row["kept_percent"] = round(100 * len(alignment) / len(whole), 2)
    print(f"{name}: {len(alignment)} of {len(whole)} utterances kept")
    for why, count in row["reasons"].items():
        print(f"  {count:4d} not: {why}")
    save(arguments.out, results)

    names = sorted(alignment)
    compared = evenly(names, arguments.utterances)
    row["speed"] = speed([whole.by_id(chosen) for chosen in compared])
    print(f"{name}: {row['speed']}", flush=True)
    save(arguments.out, results)

    row["boundaries"] = compare(alignment, whole, evenly(names, arguments.train), compared, arguments.gaussians)
    limits = " ".join(f"{ms:4d}" for ms in WITHIN_MS)
    print(f"{name:34s} {'boundaries':>10s} {'median ms':>9s} {'p90 ms':>7s} {'later ms':>8s}   within {limits}")
    for kind in ("word", "phone"):
        f = row["boundaries"][kind]
        shares = " ".join(f"{share:4.0%}" for share in f["within"].values())
        print(
            f"{kind:34s} {f['boundaries']:10,} {f['median_ms']:9.0f} {f['p90_ms']:7.0f} {f['later_ms']:8.1f}          "
            f"{shares}"
        )
    row["bars"] = [
        bar(f"{name}: utterances kept", row["kept_percent"], BAR_KEPT, "%", least=True),
        bar(f"{name}: real-time factor of a core", row["speed"]["real_time_factor"], BAR_SPEED),
    ]
    save(arguments.out, results)


if __name__ == "__main__":
    main()
