"""Who may come in: this machine's own browser, with the token of the address that was printed.

Another site that is open in the browser can send requests here. It does not know the token; its requests name its own
origin; and one whose name was made to point here names that as the host.
"""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MARK = "x-clipsieve-review"
"""Header of every change; a form of another site cannot send it."""
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Door:
    """Lets requests in, and gives every answer the headers that keep other sites from reading it.

    Args:
        app: behind it.
        port: where it listens.
        token: of the address.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._cookie = f"clipsieve-review-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    answer.setdefault(name, value)
                answer.setdefault("Cache-Control", "no-store")
                if scope["path"] == "/" and message["status"] == 200:
                    answer.append("Set-Cookie", f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        problem = self._problem(scope, headers)
        if problem is not None:
            status, detail = problem
            await JSONResponse({"detail": detail}, status)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _problem(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if host not in self._hosts:
            return 421, f"this page is at {sorted(self._hosts)[0]}, not at {host!r:.60}"
        if not self._may_enter(scope, headers):
            return 403, "open the address that `clipsieve review` printed: it has the token"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("origin", f"http://{host}") != f"http://{host}" or MARK not in headers:
            return 403, f"a change comes from the page itself, with the header {MARK}"
        return None

    def _may_enter(self, scope: Scope, headers: Headers) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer ")]
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            cookie = None
        given += [cookie.value] if cookie else []
        if scope["path"] == "/":
            given += parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return any(secrets.compare_digest(each.encode(), self._token.encode()) for each in given)


def new_token() -> str:
    return secrets.token_urlsafe(24)
