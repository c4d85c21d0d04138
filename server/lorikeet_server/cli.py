"""`python -m lorikeet_server serve|prepare|doctor`: parses flags, builds the config, calls one function."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lorikeet_server import __version__
from lorikeet_server.config import (
    EXIT_CONFIG,
    LOG_LEVEL,
    MAX_LORA_RANK,
    Device,
    Dtype,
    GroupConfig,
    ServeConfig,
    environment,
    hush_torch,
    prepare_threads,
)
from lorikeet_server.errors import LorikeetError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def main() -> None:
    """Entry point of `python -m lorikeet_server`."""
    app(prog_name="python -m lorikeet_server")


# Imports of torch wait inside the commands: OpenMP reads the environment as torch is loaded, and `--help`
# stays quick.


@app.command()
def serve(
    model_path: Annotated[
        Path, typer.Option(help="Directory with safetensors and config.json, or a .gguf file")
    ],
    model_id: Annotated[str, typer.Option(help="Name under which the model is served")],
    uds_path: Annotated[Path, typer.Option(help="Unix socket to create, in a directory of mode 0700")],
    store_dir: Annotated[Path, typer.Option(help="Directory of the adapter store")],
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(help="Directory below which adapters may be fetched; may be repeated"),
    ] = None,
    disk_bytes: Annotated[int, typer.Option(min=0, help="Bound of the adapter store; 0: none")] = 0,
    max_lora_rank: Annotated[
        int, typer.Option(min=1, max=MAX_LORA_RANK, help="Largest rank of an adapter that is accepted")
    ] = MAX_LORA_RANK,
    dtype: Annotated[
        Dtype, typer.Option(help="How weights are stored; auto: as in the checkpoint")
    ] = Dtype.AUTO,
    device: Annotated[Device, typer.Option(help="Where the model runs")] = Device.AUTO,
    threads: Annotated[
        int, typer.Option(min=0, help="Kernel threads; 0: OMP_NUM_THREADS, else one per physical core")
    ] = 0,
    json_output: Annotated[bool, typer.Option("--json-output", help="Log one JSON object per line")] = False,
) -> None:
    """Serve one rank of a model until SIGTERM."""
    from lorikeet_server.logging import configure

    try:
        group = GroupConfig.from_environment(environment())
        if group.world_size > 1:
            hush_torch()
        verbose = environment().get(LOG_LEVEL, "") in ("debug", "trace")
        configure(as_json=json_output, rank=group.rank, verbose=verbose)
        config = ServeConfig(
            model_path=model_path,
            model_id=model_id,
            uds_path=uds_path,
            dtype=dtype,
            device=device,
            adapter_roots=tuple(adapter_root or ()),
            store_dir=store_dir,
            disk_bytes=disk_bytes,
            max_lora_rank=max_lora_rank,
            threads=prepare_threads(threads),
            group=group,
        )
        from lorikeet_server.service.server import serve as run

        code = asyncio.run(run(config))
    except LorikeetError as error:
        _fail(str(error))
    # A step under way, or a rank that waits for a lost peer, must not hold up the exit.
    sys.stderr.flush()
    os._exit(code)


@app.command()
def prepare(
    model_id: Annotated[str, typer.Option(help="A directory, a .gguf file, `smollm2`, or a hub id")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where fetched and generated files are kept")] = None,
) -> None:
    """Resolve a model to files on this machine and print one JSON line that names them."""
    from lorikeet_server.weights.prepare import prepare as resolve

    try:
        typer.echo(resolve(model_id, revision, cache_dir).to_json())
    except LorikeetError as error:
        _fail(str(error))


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Report what this machine has, what would be used, and how to mend what is missing."""
    from lorikeet_server.doctor import examine, to_json, to_text

    prepare_threads(0)
    findings = examine()
    typer.echo(to_json(findings) if json_output else to_text(findings))
    if any(finding.remedy for finding in findings):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(EXIT_CONFIG)
