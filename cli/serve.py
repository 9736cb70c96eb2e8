"""The command `ossicle serve`."""

from math import isfinite
from typing import Annotated

import typer

from ..targets.contract import ServerError
from .common import Bundle, app, complain, guarded
from .run import Cache, Compute, Engine, Flash, Provider, Scales, Threads, opened


@app.command(epilog="Example: ossicle serve voxtral-int4 --port 8000")
@guarded
def serve(
    bundle: Bundle,
    host: Annotated[
        str, typer.Option("--host", help="Where it listens; by default for this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str, typer.Option("--api-key", envvar="OSSICLE_API_KEY", help="Asked of every client.", show_default=False)
    ] = "",
    queue: Annotated[int, typer.Option("--queue", help="Requests that wait; more are refused with 429.")] = 32,
    workers: Annotated[int, typer.Option("--workers", help="Requests at work at a time, over one set of weights.")] = 1,
    max_upload: Annotated[float, typer.Option("--max-upload", metavar="MB", help="The largest request.")] = 25,
    max_seconds: Annotated[float, typer.Option("--max-seconds", metavar="S", help="The longest recording.")] = 3600,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", help="The longest wait for an answer.")] = 600,
    grace: Annotated[float, typer.Option("--grace", metavar="S", help="For accepted requests, at the end.")] = 30,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="A web page that may ask; may be repeated."),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", metavar="NAME", help="Another name of the model; may be repeated.")
    ] = None,
    engine: Engine = "auto",
    threads: Threads = 0,
    provider: Provider = "cpu",
    kv_cache: Cache = "",
    flash_attention: Flash = None,
    compute: Compute = "",
    adapter: Scales = None,
) -> None:
    """Answer OpenAI's audio and chat requests over HTTP, and show a page at / to try it."""
    from ..runtimes.server import running
    from ..runtimes.server.options import ServerOptions

    running.check_packages()
    options = ServerOptions(
        host=host,
        port=port,
        api_key=api_key,
        queue=queue,
        workers=workers,
        max_upload=_bytes(max_upload),
        max_seconds=max_seconds,
        timeout=timeout,
        grace=grace,
        origins=tuple(allow_origin or ()),
        aliases=tuple(alias or ()),
    )
    bound = running.listen(options)
    session = opened(bundle, engine, threads, provider, kv_cache, flash_attention, adapter, compute)
    if not options.is_local and not api_key:
        complain(f"no key is asked for, and whoever reaches {host} may use it; --api-key or OSSICLE_API_KEY sets one")

    def ready(address: str) -> None:
        typer.echo(f"ossicle: {session.manifest.name} on {session.engine} at {address}")

    running.serve(session, options, bound, bundle.resolve().name, ready)


def _bytes(megabytes: float) -> int:
    if not isfinite(megabytes):
        raise ServerError(f"--max-upload {megabytes:g} is not possible (it can be: a number of megabytes, such as 25).")
    return int(megabytes * (1 << 20))
