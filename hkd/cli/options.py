"""The types of options that several commands have."""

from pathlib import Path
from typing import Annotated

from typer import Option

Text = str | None  # of options that may be left out
Texts = list[str] | None
File = Path | None
Files = list[Path] | None
Json = Annotated[bool, Option("--json", help="The result as JSON on stdout.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace what is there and was made of something else.")]
Device = Annotated[str | None, Option(help="auto, cpu or cuda. [auto]")]
_SET_HELP = "Any other setting; `hkd config show COMMAND` explains them. May be repeated."
Set = Annotated[list[str] | None, Option("--set", metavar="A.B=C", help=_SET_HELP)]
