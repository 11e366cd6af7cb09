"""Helpers that several tests share; pytest puts tests/ on the path (pyproject.toml), and processes that tests spawn
inherit it."""
