"""`roots serve`: a trained model over HTTP, and a page to try it on."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.options.ranks import refuse_ranks
from roots.cli.options.trained import Checkpoint, TokenizerFolder

if TYPE_CHECKING:
    from roots.serving.settings import Settings


def serve(
    given: typer.Context,
    checkpoint: Checkpoint,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of the key that every request must bear.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; default: as its run.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a prompt and its answer; default: as in training."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Texts written side by side.")] = 32,
    queue: Annotated[
        int, typer.Option(min=0, help="Texts that may wait besides; more are refused (429).")
    ] = 256,
    cache_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of all texts in the KV cache; default: 65,536 or less."),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 4_194_304,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that a request has.")] = 600.0,
    stop_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that requests have to end after SIGTERM.")
    ] = 30.0,
    tokenizer: TokenizerFolder = None,
) -> None:
    """Serve the decoder in CHECKPOINT by OpenAI's API, with a page at /, until SIGTERM or Ctrl-C.

    For trying, evaluating and comparing a model; production is an export to vLLM or llama.cpp.
    """
    _refuse_others()
    from roots.checkpoint import resolve_checkpoint
    from roots.serving.server import listen
    from roots.serving.settings import check_key

    key = None if api_key_file is None else _key_in(api_key_file)
    check_key(host, key)
    found = resolve_checkpoint(checkpoint)
    settings = _settings(found, given.params, key)
    # Before the weights, which may take long to read.
    with listen(host, port) as listening:
        _run(found, tokenizer, settings, listening)
    typer.echo("stopped")


def _settings(checkpoint: Path, given: dict[str, Any], key: str | None) -> Settings:
    """What the options, by their names, say. Raises RootsError for what cannot be served so."""
    from roots.checkpoint import read_config
    from roots.errors import RootsError, problem
    from roots.serving.settings import Settings, blocks_for, context_of

    config = read_config(checkpoint)
    if config.model.architecture != "decoder":
        rule, fix = "must be decoder, which alone continues text", "give another checkpoint"
        where = f"model.architecture of {checkpoint}"
        raise RootsError(problem(where, config.model.architecture, rule, fix))
    context = context_of(config.model, given["context"])
    return Settings(
        name=given["name"] or config.run.name,
        context=context,
        max_rows=given["rows"],
        max_waiting=given["queue"],
        max_blocks=blocks_for(context, given["rows"], given["cache_tokens"]),
        max_body_bytes=given["max_body"],
        request_seconds=given["time_limit"],
        stop_seconds=given["stop_seconds"],
        api_key=key,
        host=given["host"],
    )


def _run(
    checkpoint: Path, tokenizer: str | None, settings: Settings, listening: socket.socket
) -> None:
    """Load the model and serve it until a signal."""
    from roots.device import current_device
    from roots.generation.chat import find_template
    from roots.generation.load import load_model, tokenizer_of
    from roots.log import configure
    from roots.serving.app import Front
    from roots.serving.server import Server

    model = load_model(checkpoint, current_device())
    words = tokenizer_of(model, tokenizer)
    front = Front(model, words, find_template(model, tokenizer), settings)
    configure(logging.INFO)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listening.getsockname()[1]}"

    def told() -> None:
        typer.echo(f"serving {settings.name} on {address} (API: {address}/v1)")

    Server(front).run_until_stopped(listening, told)


def _refuse_others() -> None:
    """Raise RootsError where the packages of the extra are missing, and under several ranks."""
    from importlib.util import find_spec

    from roots.errors import RootsError, problem

    missing = [each for each in ("starlette", "uvicorn") if find_spec(each) is None]
    if missing:
        rule, fix = "is not installed", "pip install 'roots-pretrain[serve]'"
        raise RootsError(problem(" and ".join(missing), None, rule, fix))
    refuse_ranks("serves")


def _key_in(path: Path) -> str:
    from roots.errors import RootsError, problem

    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        rule, fix = f"cannot be read ({reason})", "name a file that holds the key"
        raise RootsError(problem("--api-key-file", str(path), rule, fix)) from None
