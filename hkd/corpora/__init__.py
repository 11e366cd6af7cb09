"""Corpora → manifest. `prepare(name_or_path, folder)` is the way in."""

from hkd.corpora.registry import GROUPS, known_corpora, prepare, prepare_text, read_corpus, split

__all__ = ["GROUPS", "known_corpora", "prepare", "prepare_text", "read_corpus", "split"]
