"""Libraries that look for weights on the Hugging Face hub, kept from trying for minutes where nobody is reached."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from huggingface_hub import constants

from common.download import unreachable


@contextlib.contextmanager
def offline_if_unreachable(url: str | None, on_hub: bool) -> Iterator[None]:
    """Let a library look for weights only in its caches where it could try for minutes to reach nobody.

    Args:
        url: of the weights, for those that are not on the hub.
        on_hub: they come from the Hugging Face hub.
    """
    address = constants.ENDPOINT if on_hub else url
    if address is None or constants.HF_HUB_OFFLINE or unreachable(address) is None:
        yield
        return
    timeout = socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(1.0)  # for libraries that set none
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        socket.setdefaulttimeout(timeout)


def first_line(error: Exception) -> str:
    """The kind of a library's error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
