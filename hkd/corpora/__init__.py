"""Corpora → manifest, and manifest → other tools. `prepare(name_or_path, folder)` is the way in, `export(whole, to, folder)` the way out."""

from hkd.corpora.cards import known_corpora
from hkd.corpora.collect import Report
from hkd.corpora.export import FORMATS, export
from hkd.corpora.importers import COLUMNS, KINDS
from hkd.corpora.prepare import GROUPS, TEXT, kind_of, prepare, prepare_text, read_corpus, split

__all__ = [
    "COLUMNS", "FORMATS", "GROUPS", "KINDS", "TEXT", "Report", "export", "kind_of", "known_corpora", "prepare", "prepare_text", "read_corpus",
    "split",
]  # fmt: skip
