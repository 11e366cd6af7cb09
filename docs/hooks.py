"""Pages of the site that follow from other files: the commands and settings from the code, the pipelines' results, README as the home page."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def _printed(*command: str) -> str:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    tables = [
        "prepare", "normalisation", "units", "align", "tie", "words", "sentences", "lm", "dump", "averages", "bank", "train", "evaluate", "report",
    ]  # fmt: skip
    settings = f"# Settings\n\nEvery setting with its default, as `hkd config show` prints it.\n\n```toml\n{_printed('hkd', 'config', 'show', *tables)}```\n"
    made = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "reference/commands.md": _printed("typer", "hkd.cli.main", "utils", "docs", "--name", "hkd", "--title", "Commands"),
        "reference/settings.md": settings,
        **{
            f"pipelines/{name}.md": (ROOT / "pipelines" / name / "README.md").read_text(encoding="utf-8")
            for name in ("ablation", "demo", "hybrid", "text")
        },
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links between folders of the repository → links between pages; files that are no pages are named, not linked."""
    markdown = re.sub(r"\]\((?:\.\./)?pipelines/(\w+)/README\.md\)", r"](pipelines/\1.md)", markdown)
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    if page.file.src_uri.startswith("pipelines/"):
        markdown = re.sub(r"\]\(\.\./\.\./docs/", "](../", markdown)
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)#]+\.(?!md\b)\w+\)", r"`\1`", markdown)
