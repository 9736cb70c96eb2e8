"""A server from its start to its end: the socket, the sessions, the signals."""

import asyncio
import socket
from collections.abc import Callable
from importlib.util import find_spec
from time import monotonic
from typing import Any

from ...targets.contract import ServerError
from ..session import Session
from .app import application
from .options import ServerOptions
from .service import Service, service

PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
TICK = 0.05  # seconds between looks at whether all is answered
SENDING = 5  # seconds that answers on their way are given once nothing is at work any more
LEAVING = 5  # seconds that engines are given to come to the end of a token that nobody waits for


def check_packages() -> None:
    """Refuse where the packages of a server are not installed.

    Raises:
        ServerError: naming those that are missing, with the pip command.
    """
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ServerError(f"serving needs {', '.join(missing)}. Install them with: pip install 'ossicle[server]'")


def listen(options: ServerOptions) -> socket.socket:
    """The socket of a server, bound and not yet listening: who asks too early is refused, and not kept waiting.

    Raises:
        ServerError: the address cannot be had.
    """
    where = f"{options.host}:{options.port}"
    try:
        ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
    except OSError as reason:
        raise _unusable(where, reason) from reason
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as reason:
        bound.close()
        raise _unusable(where, reason) from reason
    return bound


def _unusable(where: str, reason: OSError) -> ServerError:
    return ServerError(f"{where} cannot be used: {reason.strerror}. Choose another: --host, --port")


def serve(
    session: Session, options: ServerOptions, bound: socket.socket, name: str, ready: Callable[[str], None]
) -> None:
    """Answer requests until the process is asked to end by SIGTERM or SIGINT, and then finish what was accepted.

    `name` is one that clients may use for the model; `ready` is told the server's address. A second signal ends at once.
    """
    served = service(session, options, name)
    try:
        asyncio.run(_serve(served, bound, ready))
    finally:
        served.workers.close()


async def _serve(served: Service, bound: socket.socket, ready: Callable[[str], None]) -> None:
    import uvicorn

    config = uvicorn.Config(
        application(served),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SENDING,
    )
    server = _server(config, served)
    running = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started and not running.done():
        await asyncio.sleep(TICK)
    if server.started:
        ready(url(bound))
    await running
    served.places.give_up()  # those whom a second signal has left here
    await _empty(served, LEAVING)


def url(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(config: Any, served: Service) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """One that still answers, with 503, while it finishes what it has accepted."""

        def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002 - uvicorn's signature
            if served.places.draining:
                self.should_exit = self.force_exit = True
                return
            served.places.draining = True
            asyncio.get_running_loop().call_soon_threadsafe(self._begin_drain)

        def _begin_drain(self) -> None:
            self._draining = asyncio.create_task(_drain(served, self))

    return Server(config)


async def _drain(served: Service, server: Any) -> None:
    await _empty(served, served.options.grace, lambda: server.force_exit)
    served.places.give_up()
    server.should_exit = True


async def _empty(served: Service, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
    """Wait until every place is free, for so many seconds at most."""
    until = monotonic() + seconds
    while served.places.taken and monotonic() < until and not ended():
        await asyncio.sleep(TICK)
