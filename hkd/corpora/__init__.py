"""Corpora → manifest, and manifest → other tools. `prepare(name_or_path, folder)` is the way in, `export(whole, to, folder)` the way out."""

from hkd.corpora.export import FORMATS, export
from hkd.corpora.imports import KINDS
from hkd.corpora.registry import GROUPS, kind_of, known_corpora, prepare, prepare_text, read_corpus, split

__all__ = ["FORMATS", "GROUPS", "KINDS", "export", "kind_of", "known_corpora", "prepare", "prepare_text", "read_corpus", "split"]
