"""What every route of a server shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ...targets.manifest import Manifest
from ..session import Session
from .admission import Places
from .errors import ApiError
from .jobs import Workers
from .metrics import Metrics
from .options import ServerOptions


@dataclass(frozen=True)
class Model:
    """A model that clients may ask for: its name, and the adapters that come with it, None: as the bundle was loaded."""

    name: str
    parent: str | None = None  # the name of the same without the adapter
    adapters: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Service:
    """One bundle behind one server."""

    options: ServerOptions
    models: Mapping[str, Model] = field(repr=False)  # by name; the first is taken where a request names none
    manifest: Manifest
    session: Session  # asked for what is so of all; work is done through `workers`
    workers: Workers
    places: Places
    metrics: Metrics

    @property
    def main(self) -> Model:
        """The bundle under its own name."""
        return next(iter(self.models.values()))

    def model(self, name: str | None) -> Model:
        """The model that a request asks for.

        Raises:
            ApiError: 404 where there is none of this name.
        """
        if name is None:
            return self.main
        if name in self.models:
            return self.models[name]
        near = get_close_matches(name, self.models, n=3)
        said = f"near it: {', '.join(near)}; " if near else ""
        message = (
            f"model '{name}' is not served here ({said}it can be: {', '.join(self.models)}; --alias names others)."
        )
        raise ApiError(404, message, "model_not_found", "model")


def service(session: Session, options: ServerOptions, folder_name: str) -> Service:
    """A service over a session and as many that share its weights as there are more workers; it closes them all."""
    workers = Workers([session, *(session.share() for _ in range(options.workers - 1))])
    places = Places(options.places, options.timeout, workers)
    metrics = Metrics()
    metrics.watch(workers, lambda: places.taken)
    manifest = session.manifest
    names = tuple(dict.fromkeys((manifest.name, folder_name, *options.aliases)))
    models = _models(names, session.adapters)
    return Service(options, models, manifest, session, workers, places, metrics)


def chosen(model: Model) -> Any:
    """What a session is told of a model's adapters, as settings."""
    return {} if model.adapters is None else {"adapters": model.adapters}


def _models(names: Sequence[str], adapters: Sequence[str]) -> dict[str, Model]:
    """The bundle under each of its names, and behind them each adapter with it, as NAME:ADAPTER."""
    with_adapters = [Model(f"{name}:{one}", name, {one: 1.0}) for name in names for one in adapters]
    found = {name: Model(name) for name in names}
    for model in with_adapters:
        found.setdefault(model.name, model)  # a name that was given to the bundle is the bundle's
    return found
