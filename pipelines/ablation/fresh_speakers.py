"""Other splits of the same corpus, for a confirmation on speakers who were in neither dev nor test before.

25 of the training speakers become test, the old test's speakers train, dev stays.

    python pipelines/ablation/fresh_speakers.py runs/ablation/manifest.jsonl runs/fresh.jsonl
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hkd.files import digest_of
from hkd.manifest import Utterance, read, write

NUM_TEST_SPEAKERS = 25


def main(old: Path, new: Path) -> None:
    """Test: the first of the training speakers in the order of the SHA-256 of their names, by which the corpus was
    split."""
    manifest = read(old)
    training = sorted({u.speaker or "" for u in manifest if u.split == "train"}, key=lambda name: digest_of([name]))
    tested = frozenset(training[:NUM_TEST_SPEAKERS])

    def moved(u: Utterance) -> Utterance:
        split = "test" if u.speaker in tested else "train" if u.split == "test" else u.split
        return replace(u, extra=MappingProxyType({**u.extra, "split": split}))

    write(new, map(moved, manifest))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
