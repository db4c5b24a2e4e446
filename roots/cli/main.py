"""Entry point of `roots`: registers the commands and turns errors into lines and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

from roots import __version__
from roots.cli.audit.app import audit_app
from roots.cli.checkpoint import checkpoint_app
from roots.cli.config import config_app
from roots.cli.doctor import doctor
from roots.cli.export_import import export, import_model
from roots.cli.info import info
from roots.cli.launch import launch
from roots.cli.memory import memory_line
from roots.cli.options.stray import refuse_stray_options
from roots.cli.options.usage import run_by_words
from roots.cli.preprocess import preprocess
from roots.cli.report import report
from roots.cli.tokenizer import tokenizer_app
from roots.cli.train import train
from roots.cli.trained.chat import chat
from roots.cli.trained.evaluate import evaluate
from roots.cli.trained.generate import generate
from roots.cli.trained.inspect import inspect
from roots.cli.trained.serve import serve
from roots.cli.verify import verify
from roots.errors import ExitCode, RootsError, ran_out_of_memory
from roots.launching.environment import enter
from roots.log import let_go_of_output

app = typer.Typer(
    name="roots",
    help="Pretrain large language models with tensor, pipeline and data parallelism on DeepSpeed.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(launch)
app.command()(generate)
app.command()(chat)
app.command()(evaluate)
app.command()(inspect)
app.command()(serve)
app.command()(export)
app.command("import")(import_model)
app.command()(preprocess)
app.command()(report)
app.command()(info)
app.command()(doctor)
app.command()(verify)
app.add_typer(audit_app, name="audit")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(config_app, name="config")
app.add_typer(tokenizer_app, name="tokenizer")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"roots {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Pretrain large language models with tensor, pipeline and data parallelism on DeepSpeed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `roots` and exit with a roots.errors.ExitCode."""
    words, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        enter(Path())
        run_command(words)
    except RootsError as error:
        if debug:
            raise
        if error.speaks:
            _tell(error.lines)
        sys.exit(int(error.exit_code))
    except SystemExit as end:
        # Typer makes this of a KeyboardInterrupt, and says nothing.
        if end.code == ExitCode.ENDED_AT_ONCE:
            line = "interrupted by the keyboard, ended at once; what was not finished is not kept"
            print(f"roots: {line}", file=sys.stderr)
        raise
    except Exception as error:
        if debug or not ran_out_of_memory(error):
            raise
        _tell([memory_line(error, words)])
        sys.exit(int(ExitCode.BAD_INPUT))
    finally:
        let_go_of_output()


def _tell(lines: Sequence[str]) -> None:
    """The lines of an error; the exit code says it too, where stderr takes none."""
    with suppress(OSError):
        print("\n".join(f"roots: error: {line}" for line in lines), file=sys.stderr)


def run_command(words: list[str]) -> None:
    """Run the command that `words` name. Raises whatever it does, and SystemExit at its end."""
    command = typer.main.get_command(app)
    refuse_stray_options(command, words)
    sys.exit(run_by_words(command, words))


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug out, wherever it stands before a `--`: typer knows it before commands alone."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word != "--debug"]
    return [*options, *words[end:]], len(options) < end


if __name__ == "__main__":
    main()
