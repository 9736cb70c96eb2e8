"""What every route of a server shares."""

from dataclasses import dataclass

from ...targets.manifest import Manifest
from ..session import Session
from .admission import Places
from .errors import ApiError
from .jobs import Workers
from .metrics import Metrics
from .options import ServerOptions


@dataclass(frozen=True)
class Service:
    """One bundle behind one server."""

    options: ServerOptions
    names: tuple[str, ...]  # of the model; the first is the one that answers carry
    manifest: Manifest
    session: Session  # asked for what is so of all; work is done through `workers`
    workers: Workers
    places: Places
    metrics: Metrics

    def check_model(self, name: str | None) -> str:
        """The name that an answer carries.

        Raises:
            ApiError: 404 where it is neither the model's nor an alias.
        """
        if name is None or name in self.names:
            return name or self.names[0]
        message = f"model '{name}' is not served here (it can be: {', '.join(self.names)}; --alias names others)."
        raise ApiError(404, message, "model_not_found", "model")


def service(session: Session, options: ServerOptions, folder_name: str) -> Service:
    """A service over a session and as many that share its weights as there are more workers; it closes them all."""
    workers = Workers([session, *(session.share() for _ in range(options.workers - 1))])
    places = Places(options.places, options.timeout, workers)
    metrics = Metrics()
    metrics.watch(workers, lambda: places.taken)
    manifest = session.manifest
    names = tuple(dict.fromkeys((manifest.name, folder_name, *options.aliases)))
    return Service(options, names, manifest, session, workers, places, metrics)
