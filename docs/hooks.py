"""Pages of the site that follow from other files: the commands and settings from the code, the pipelines' results,
README as the home page."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import hkd

ROOT = Path(__file__).parents[1]


def _printed(*command: str) -> str:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _undocumented() -> list[str]:
    """Public names of hkd that the page of the Python API lacks, and those without a docstring, methods included."""
    page, found = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8"), []
    for name in hkd.__all__:
        value = getattr(hkd, name)
        own = (
            {f"{name}.{part}": member for part, member in vars(value).items() if not part.startswith("_")}
            if inspect.isclass(value)
            else {}
        )
        silent = [
            part
            for part, member in own.items()
            if (callable(member) or isinstance(member, property)) and not member.__doc__
        ]
        found += (
            [f"{name} (not in reference/api.md)"] * (not re.search(rf"\b{name}\b", page))
            + silent
            + [name] * (not value.__doc__)
        )
    return found


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages. Raises PluginError where a public name is not documented."""
    if undocumented := _undocumented():
        raise PluginError(f"public names must be documented, but are not: {', '.join(undocumented)}")
    tables = [
        "prepare", "normalisation", "units", "align", "tie", "words", "sentences", "lm", "dump", "averages", "bank",
        "train", "evaluate", "report",
    ]  # fmt: skip
    settings = (
        "# Settings\n\nEvery setting with its default, as `hkd config show` prints "
        f"it.\n\n```toml\n{_printed('hkd', 'config', 'show', *tables)}```\n"
    )
    made = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "reference/commands.md": _printed(
            "typer", "hkd.cli.main", "utils", "docs", "--name", "hkd", "--title", "Commands"
        ),
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
    markdown = re.sub(r"\]\((?:\.\./)?((?:\.\./)*)pipelines/(\w+)/README\.md\)", r"](\1pipelines/\2.md)", markdown)
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    if page.file.src_uri.startswith("pipelines/"):
        markdown = re.sub(r"\]\(\.\./\.\./docs/", "](../", markdown)
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)#]+\.(?!md\b)\w+\)", r"`\1`", markdown)
