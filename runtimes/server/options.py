"""What a server is told: where it listens, who may ask, and how much it takes on."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from math import isfinite
from urllib.parse import urlsplit

from ...targets.contract import ServerError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerOptions:
    """How a server is to behave. Sizes in bytes, times in seconds.

    Raises:
        ServerError: listing everything that is not possible.
    """

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    api_key: str = field(default="", repr=False)  # "": everybody who reaches it may ask
    queue: int = 32  # requests that wait, beside those at work
    workers: int = 1
    max_upload: int = 25 << 20  # of one request's body
    max_seconds: float = 3600.0  # of one request's recordings together
    timeout: float = 600.0  # of one request, from its arrival to the end of its answer
    grace: float = 30.0  # that accepted requests are given when the server is asked to end
    origins: tuple[str, ...] = ()  # of web pages that may ask, beside the server's own
    aliases: tuple[str, ...] = ()  # names of the model that clients may use, beside its own

    def __post_init__(self) -> None:
        if faults := self._faults():
            raise ServerError(f"a server cannot have {'; '.join(faults)}. See: ossicle serve --help")

    @property
    def places(self) -> int:
        """Requests that are taken at a time, at work or waiting."""
        return self.workers + self.queue

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_local(self.host)

    def _faults(self) -> list[str]:
        faults = [] if 0 <= self.port < 1 << 16 else [f"port {self.port} (it can be: 0 for any, to 65535)"]
        counts = {"queue": (self.queue, 0), "workers": (self.workers, 1), "max_upload": (self.max_upload, 1)}
        faults += [f"{name} {n} (it can be: {least} or more)" for name, (n, least) in counts.items() if n < least]
        times = {"max_seconds": self.max_seconds, "timeout": self.timeout}
        faults += [f"{name} {s:g} (it can be: above 0)" for name, s in times.items() if not s > 0 or not isfinite(s)]
        if not (self.grace >= 0 and isfinite(self.grace)):
            faults.append(f"grace {self.grace:g} (it can be: 0 or more)")
        if not self.api_key.isprintable() or not self.api_key.isascii() or " " in self.api_key:
            faults.append("a key with blanks or characters beyond ASCII")
        if "" in self.aliases:
            faults.append("an alias without a letter")
        return faults + [
            f"origin '{one}' (such as: https://example.org)" for one in self.origins if not _is_origin(one)
        ]


def is_local(host: str) -> bool:
    """Whether a host's name or address is this machine alone."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text == f"{parts.scheme}://{parts.netloc}"
