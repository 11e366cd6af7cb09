"""`hkd`: the commands put together, and the one place where exceptions become lines and exit codes.

Exit codes: 0 done; 1 the world's fault (network, disk, memory), a part of the work failed, or a fault of hkd itself; 2
what the user gave; 130 Ctrl-C; 143 SIGTERM. No exception ends in a stack trace: `--verbose` shows the trace of those
that hkd did not expect.
"""

import inspect
import locale
import logging
import os
import signal
import sys
import textwrap
import threading
import traceback
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

from hkd import __version__
from hkd.cli import corpora, evaluate, labels, run, teacher, train
from hkd.cli.common import say
from hkd.errors import InternalError, UserError, explained

GONE = {  # options of earlier versions, by command → what says it now
    "prepare": {"--cache": "HKD_CACHE=FOLDER in the environment", "--base-url": "--set base_url=URL",
        "--max-words": "--set sentences.max_words=40"},
    "align": {
        "--model": "--set model=FOLDER", "--lang": "--set lang=FOLDER", "--words": "--set words=FILE",
        "--phones": "--set phones=FILE",
        "--silence": "--set silence=lau", "--subsampling": "--set subsampling=3",
    },
    "units tie": {"--min-frames": "--set min_frames=100", "--hours": "--set hours=20"},
    "lm train": {"--direction": "--set direction=causal", "--given": "--set given=outside-position",
        "--folds": "--set folds=4"},
    "lm words": {
        "--transcripts": "--set transcripts=true", "--no-transcripts": "--set transcripts=false",
        "--prune": "--set prune=1e-7",
    },
    "teacher-dump": {
        "--temperatures": "--set temperatures=[2,3]", "--select": "--set selection=sample",
        "--mask-every": "--set teacher.mask_every=7",
        "--context": "--set teacher.context=256", "--final-mark": "--set teacher.final_mark=.",
        "--project": "--set teacher.project=units/subword.json", "--look-ahead": "--set teacher.look_ahead=4",
        "--backend": "--set backend=zarr", "--precision": "--set precision=fp32",
        "--compile": "--set teacher.compile=true",
        "--token-budget": "--set teacher.token_budget=8192", "--ray-address": "--set ray_address=auto",
        "--keep-going": "--set keep_going=true",
    },
    "evaluate": {
        "--lm-weight": "--set search.lm_weight=0.6", "--word-bonus": "--set search.word_bonus=0",
        "--n-best": "--set n_best=10",
    },
}  # fmt: skip


def _gone(error: BaseException) -> UserError | None:
    """The refusal of an option of an earlier version; None for any other error."""
    path, option = getattr(getattr(error, "ctx", None), "command_path", ""), getattr(error, "option_name", "")
    for command, gone in GONE.items():
        if path.endswith(f" {command}") and option in gone:
            now = f"Give {gone[option]}; `hkd config show` explains all settings."
            return UserError(f"{option} is no option any more. {now}")
    return None


class _Commands(TyperGroup):
    """Runs a command; what goes wrong becomes one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            value = super().invoke(ctx)
            if sys.stdout is not None:
                # here, not when Python ends: a reader that has gone, or a full disk, is an error like others
                sys.stdout.flush()
            return value
        except (KeyboardInterrupt, Exception) as error:
            gone = _gone(error)
            if gone is None and type(error).__module__.split(".")[0] in ("click", "typer"):  # usage, --help, exit codes
                raise
            code = _explain(gone or error)
        raise typer.Exit(code)


def _explain(error: BaseException) -> int:
    """Say in one line what went wrong; the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone: `hkd labels show ... | head`
        _discard_output()
        return 0
    if isinstance(error, KeyboardInterrupt):
        say("Stopped. Run the same command again: it goes on where it was.")
        return 130
    if isinstance(error, OSError) and error.filename is None:  # perhaps our own output, on a full disk
        _discard_output()
    known = explained(error)
    say(f"hkd: {known}")
    if logging.getLogger().isEnabledFor(logging.INFO):  # --verbose
        say((known.trace if isinstance(known, InternalError) else "".join(traceback.format_exception(error))).rstrip())
    return known.exit_code


def _discard_output() -> None:
    """What is not written yet goes nowhere, so that Python does not complain about it when it ends."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)


app = typer.Typer(
    name="hkd", cls=_Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

START, ONE, TWO, LOOK = "Start here", "Stage one: teacher labels", "Stage two: the student", "Look and share"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hkd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, Option("--verbose", "-v", help="Log what the library does, on stderr.")] = False,
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Distil language models into acoustic models, hierarchically: senones, monophones, subwords.

    Stage one writes what teacher LMs predict over your transcripts to label stores, once. Stage two streams them beside
    the audio into a small student. Inference costs what it cost before.

    Examples:

        hkd demo                                    everything on real speech → runs/demo/report.html
        hkd prepare FOLDER && hkd units train && hkd align
        hkd teacher-dump --lm bert-large --unit subword
        hkd train --labels shards/
    """
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format=f"%(levelname)s{' %(name)s' if verbose else ''}: %(message)s")


app.command("demo", rich_help_panel=START)(run.demo)
app.command("run", rich_help_panel=START)(run.run)
app.command("prepare", rich_help_panel=START)(corpora.prepare)
app.command("align", rich_help_panel=START)(teacher.align)
app.add_typer(corpora.units_app, name="units", rich_help_panel=START)
app.add_typer(corpora.manifest_app, name="manifest", rich_help_panel=START)
app.add_typer(teacher.lm_app, name="lm", rich_help_panel=ONE)
app.command("teacher-dump", rich_help_panel=ONE)(teacher.teacher_dump)
app.add_typer(labels.app, name="labels", rich_help_panel=ONE)
app.command("bank", rich_help_panel=TWO)(train.bank)
app.command("train", rich_help_panel=TWO)(train.train)
app.command("export", rich_help_panel=TWO)(train.export)
app.command("evaluate", rich_help_panel=LOOK)(evaluate.evaluate)
app.command("likelihoods", rich_help_panel=LOOK)(evaluate.likelihoods)
app.command("transcribe", rich_help_panel=LOOK)(evaluate.transcribe)
app.command("report", rich_help_panel=LOOK)(evaluate.report)
app.add_typer(run.config_app, name="config", rich_help_panel=LOOK)


def _keep_lines(part: typer.Typer) -> None:
    """Fence the examples of each command's help: rich takes an indented block after one paragraph for prose."""
    for command in part.registered_commands:
        prose, title, examples = (inspect.getdoc(command.callback) or "").partition("Examples:\n\n")
        command.help = f"{prose}{title}```console\n{textwrap.dedent(examples).rstrip()}\n```" if title else prose
    for group in part.registered_groups:
        if group.typer_instance is not None:
            _keep_lines(group.typer_instance)


_keep_lines(app)


def _terminated(_number: int, _frame: object) -> None:
    raise SystemExit(143)


def _thread_failed(args: Any) -> None:
    """As `threading.excepthook`: a thread's exception in one line. What the thread worked for fails on its own."""
    if args.exc_type is not SystemExit:
        _explain(args.exc_value)


def _prepare_streams() -> None:
    """Characters that the terminal does not know are replaced, never an error; closed streams swallow all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        else:
            stream.reconfigure(errors="replace")


def _use_utf8_files() -> None:
    """Start again in UTF-8 mode where files would be read in the locale's encoding; the terminal keeps its own."""
    if sys.flags.utf8_mode or locale.getencoding().lower().replace("-", "") == "utf8" or sys.stdout is None:
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:replace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """The entry point of the command `hkd`."""
    _use_utf8_files()
    _prepare_streams()
    if "OMP_WAIT_POLICY" not in os.environ:
        # before torch: its threads wait for a moment, then give their core to others (300,000 turns by default)
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    signal.signal(signal.SIGTERM, _terminated)
    threading.excepthook = _thread_failed
    try:
        app()
    except (KeyboardInterrupt, Exception) as error:  # before or after a command's own work
        sys.exit(_explain(error))


if __name__ == "__main__":
    main()
