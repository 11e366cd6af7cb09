"""Text without sound, for language models: one sentence a line.

`fortunes`: Debian's fortune cookies, 0.4 million words; attributions, tables and ASCII art are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from hkd.corpora.card import load_card
from hkd.corpora.fetch import debian_packages
from hkd.files import atomic_write
from hkd.progress import Progress, no_progress

_FORTUNES = "usr/share/games/fortunes"
_LEFT_OUT = frozenset({"ascii-art", "translate-me"})
_ATTRIBUTION = re.compile(r"^\s*--")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
_MIN_LETTER_SHARE = 0.7
_MIN_WORDS = 2


def sentences(paragraph: str) -> Iterator[str]:
    """Sentences of a paragraph; what is not mostly letters is left out."""
    for sentence in _END.split(" ".join(paragraph.split())):
        letters = sum(c.isalpha() or c == " " for c in sentence)
        if len(sentence.split()) >= _MIN_WORDS and letters >= _MIN_LETTER_SHARE * len(sentence):
            yield sentence


def fortune_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a fortune file: cookies stand between lines of `%`, attributions end them."""
    lines: list[str] = []
    for line in [*text.splitlines(), "%"]:
        if line.strip() in ("%", "") or _ATTRIBUTION.match(line):
            if lines:
                yield " ".join(lines)
            lines = []
        else:
            lines.append(line.replace("_\b", "").strip())


def prepare(cache: Path, out: Path, *, progress: Progress = no_progress) -> int:
    """Write the sentences of all fortune files, each once, to `out`; their number."""
    card = load_card("fortunes")
    folder = debian_packages(card.packages, card.archives, cache) / _FORTUNES
    files = sorted(path for path in folder.iterdir() if not path.suffix and path.name not in _LEFT_OUT and path.is_file())
    seen: set[str] = set()
    with atomic_write(out) as file:
        for number, path in enumerate(files, 1):
            for paragraph in fortune_paragraphs(path.read_text(encoding="utf-8", errors="replace")):
                for sentence in sentences(paragraph):
                    if sentence not in seen:
                        seen.add(sentence)
                        file.write((sentence + "\n").encode())
            progress(number, len(files))
    return len(seen)
