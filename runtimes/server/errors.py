"""What goes wrong with a request, in the shape that clients of OpenAI's interface expect."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...targets.contract import AudioError, Cancelled, OssicleError, PromptError

LOG = logging.getLogger("ossicle.server")
GONE = 499  # the client went away: nobody reads this answer, the metrics count it
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass
class ApiError(Exception):
    """A request that is refused or fails; `param` is the field that is to blame, `code` a word for programs."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def document(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(reason: BaseException) -> ApiError:
    """The answer to whatever went wrong. What nobody foresaw is logged, and its text kept from the client."""
    if isinstance(reason, ApiError):
        return reason
    if isinstance(reason, AudioError):
        return ApiError(400, str(reason), "invalid_audio")
    if isinstance(reason, PromptError):
        return ApiError(400, str(reason), "invalid_request")
    if isinstance(reason, Cancelled):
        return ApiError(GONE, "the client went away.", "cancelled")
    if isinstance(reason, OssicleError):
        LOG.error("a request failed: %s", reason)
        return ApiError(500, str(reason), "engine_error")
    LOG.error("a request failed unforeseen", exc_info=reason)
    return ApiError(500, "the server failed at this request; its log says where.", "internal_error")
