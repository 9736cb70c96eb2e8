"""The page at /: one file, with a policy that lets it run what is in it and nothing else."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from .service import Service

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


async def page(_: Service, __: Any) -> Any:
    """A page to record or drop audio and watch the text come."""
    from starlette.responses import Response

    content, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cache-Control": "no-cache",
    }
    return Response(content, media_type="text/html", headers=headers)


@cache
def _page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: inline parts are named by their hashes, the network is this server."""
    content = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(content):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "connect-src 'self'; media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content.encode(), policy
