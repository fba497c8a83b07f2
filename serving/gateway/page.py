"""The pages of the gateway: each one file, without anything from elsewhere, and forbidden to fetch any."""

from __future__ import annotations

from dataclasses import dataclass

from clipsieve.pages import assembled_page, element_hashes


@dataclass(frozen=True)
class Page:
    """A page and the headers it is sent with."""

    content: bytes
    headers: dict[str, str]


def load_page(name: str) -> Page:
    """Read a page; its policy lets only its own script and style run."""
    text = assembled_page("serving.gateway", name)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {element_hashes(text, 'script')}",
            f"style-src {element_hashes(text, 'style')}",
            "img-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return Page(text.encode(), headers)
