"""`hkd`: the commands put together, and the one place where exceptions become lines and exit codes.

Exit codes: 0 done; 1 the world's fault (network, disk, memory) or a part of the work failed; 2 what the user gave;
130 Ctrl-C; 143 SIGTERM.
"""

import logging
import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hkd import __version__
from hkd.cli import align, corpora, data, evaluate, labels, lm, run, teacher, train
from hkd.cli.common import say
from hkd.errors import HkdError


class _Commands(TyperGroup):
    """Runs a command; what goes wrong becomes one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Stopped. Run the same command again: it goes on where it was.")
            code = 130
        except HkdError as error:
            say(f"hkd: {error}")
            code = error.exit_code
        except MemoryError:
            say(
                "hkd: the memory ran out. Lower batch_seconds (training) or the token budget (labelling), or close other programs."
            )
            code = 1
        except OSError as error:
            code = 1
            if isinstance(error, BrokenPipeError):  # the reader of our output has gone: `hkd labels show ... | head`
                code = 0
            else:
                say(f"hkd: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        raise typer.Exit(code)


app = typer.Typer(
    name="hkd",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

START, ONE, TWO, LOOK = "Start here", "Stage one: teacher labels", "Stage two: the student", "Look and share"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hkd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the library does, on stderr.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Distil language models into acoustic models, hierarchically: senones, monophones, subwords.

    Stage one writes what teacher LMs predict over your transcripts to label stores, once. Stage two streams them beside the
    audio into a small student. Inference costs what it cost before.

    Examples:

        hkd demo                                    everything on real speech → runs/demo/report.html

        hkd prepare FOLDER && hkd units train && hkd align

        hkd teacher-dump --lm bert-large --unit subword

        hkd train --labels shards/
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


app.command("demo", rich_help_panel=START)(run.demo)
app.command("run", rich_help_panel=START)(run.run)
app.command("prepare", rich_help_panel=START)(corpora.prepare)
app.command("align", rich_help_panel=START)(align.align)
app.add_typer(data.units_app, name="units", rich_help_panel=START)
app.add_typer(corpora.manifest_app, name="manifest", rich_help_panel=START)
app.add_typer(lm.app, name="lm", rich_help_panel=ONE)
app.command("teacher-dump", rich_help_panel=ONE)(teacher.teacher_dump)
app.add_typer(labels.app, name="labels", rich_help_panel=ONE)
app.command("train", rich_help_panel=TWO)(train.train)
app.command("export", rich_help_panel=TWO)(train.export)
app.command("evaluate", rich_help_panel=LOOK)(evaluate.evaluate)
app.command("likelihoods", rich_help_panel=LOOK)(evaluate.likelihoods)
app.command("transcribe", rich_help_panel=LOOK)(evaluate.transcribe)
app.command("report", rich_help_panel=LOOK)(evaluate.report)
app.add_typer(run.config_app, name="config", rich_help_panel=LOOK)


def _terminated(_number: int, _frame: object) -> None:
    raise SystemExit(143)


def main() -> None:
    """The entry point of the command `hkd`."""
    signal.signal(signal.SIGTERM, _terminated)
    app()


if __name__ == "__main__":
    main()
