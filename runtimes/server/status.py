"""/v1/models, /health and /metrics."""

from typing import Any

from .metrics import TYPE
from .service import Model, Service


async def models(service: Service, _: Any) -> Any:
    """The model that is served, under each of its names, and with each of its adapters."""
    from starlette.responses import JSONResponse

    entries = [_entry(model) for model in service.models.values()]
    return JSONResponse({"object": "list", "data": entries})


async def model(service: Service, request: Any) -> Any:
    """One name of the model that is served."""
    from starlette.responses import JSONResponse

    return JSONResponse(_entry(service.model(request.path_params["name"])))


def _entry(model: Model) -> dict[str, Any]:
    of = {"parent": model.parent} if model.parent else {}
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "ossicle", **of}


async def health(service: Service, _: Any) -> Any:
    """Whether it answers, what runs each stage, and how busy it is; 503 once it is ending."""
    from starlette.responses import JSONResponse

    places, workers = service.places, service.workers
    document = {
        "status": "ending" if places.draining else "ready",
        "model": service.main.name,
        "adapters": service.session.adapters,
        "recipe": service.manifest.recipe.get("name"),
        "engine": service.session.engine,
        "stages": service.session.stages,
        "queue": {"running": workers.running, "waiting": workers.waiting, "taken": places.taken, "places": places.most},
        "limits": {"max_upload": service.options.max_upload, "max_seconds": service.options.max_seconds},
        "needs_key": bool(service.options.api_key),
    }
    return JSONResponse(document, 503 if places.draining else 200, headers={"Cache-Control": "no-store"})


async def metrics(service: Service, _: Any) -> Any:
    """Figures, as Prometheus reads them."""
    from starlette.responses import Response

    return Response(service.metrics.text(), media_type=TYPE)
