"""Corpora → manifest, and manifest → other tools. `prepare(name_or_path, folder)` is the way in,
`export(whole, to, folder)` the way out.

`register(card)` makes one more corpus known by name.
"""

from hkd.corpora import named  # noqa: F401  (it registers hkd's own corpora)
from hkd.corpora.cards import Card, known_corpora, register
from hkd.corpora.collect import Options, Report
from hkd.corpora.importers import COLUMNS, KINDS
from hkd.corpora.prepare import (
    FORMATS,
    GROUPS,
    export,
    kind_of,
    prepare,
    prepare_text,
    read_corpus,
    split,
    text_corpora,
)

__all__ = [
    "COLUMNS", "FORMATS", "GROUPS", "KINDS", "Card", "Options", "Report", "export", "kind_of", "known_corpora",
    "prepare", "prepare_text",
    "read_corpus", "register", "split", "text_corpora",
]  # fmt: skip
