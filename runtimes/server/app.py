"""The ASGI application of a server: its routes, behind its guard."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ... import __version__
from . import chat, page, status, transcriptions
from .errors import ApiError, api_error
from .fields import Field, schema
from .guard import App, Guard
from .service import Service

Handler = Callable[[Service, Any], Awaitable[Any]]


def application(service: Service) -> App:
    """The routes of a service, for any ASGI server."""
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException

    app = FastAPI(
        title="ossicle", version=__version__, docs_url=None, redoc_url=None
    )  # their pages load from elsewhere
    app.add_exception_handler(HTTPException, _unknown_route)
    for path, (handler, fields) in _POSTS.items():
        body = _json_body(fields) if handler is chat.completions else _form_body(fields)
        app.add_api_route(path, _endpoint(service, handler), methods=["POST"], openapi_extra={"requestBody": body})
    for path, handler in _GETS.items():
        app.add_api_route(path, _endpoint(service, handler), methods=["GET"])
    return Guard(app, service.options, service.places, service.metrics)


_GETS: dict[str, Handler] = {
    "/v1/models": status.models,
    "/v1/models/{name:path}": status.model,
    "/health": status.health,
    "/metrics": status.metrics,
    "/": page.page,
}
_POSTS: dict[str, tuple[Handler, Sequence[Field]]] = {
    "/v1/audio/transcriptions": (transcriptions.transcriptions, transcriptions.TRANSCRIPTION),
    "/v1/audio/translations": (transcriptions.translations, transcriptions.TRANSLATION),
    "/v1/chat/completions": (chat.completions, chat.COMPLETION),
}


def _endpoint(service: Service, handler: Handler) -> Callable[..., Awaitable[Any]]:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    async def answered(request: Request) -> Response:
        try:
            response: Response = await handler(service, request)
        except Exception as reason:
            error = api_error(reason)
            return JSONResponse(error.document, error.status, headers=dict(error.headers))
        return response

    answered.__name__, answered.__doc__ = handler.__name__, handler.__doc__
    return answered


async def _unknown_route(request: Any, reason: Any) -> Any:
    from starlette.responses import JSONResponse

    code = "unknown_route" if reason.status_code == 404 else "wrong_method"
    message = f"{request.method} {request.url.path} is not possible: {reason.detail}. The routes: /openapi.json"
    return JSONResponse(
        ApiError(reason.status_code, message, code).document, reason.status_code, headers=reason.headers
    )


def _json_body(fields: Sequence[Field]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema(fields)}}}


def _form_body(fields: Sequence[Field]) -> dict[str, Any]:
    form = schema(fields)
    file = {"type": "string", "format": "binary", "description": "the recording: WAV, FLAC, MP3, OGG"}
    form |= {"properties": {"file": file, **form["properties"]}, "required": ["file", *form["required"]]}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}
