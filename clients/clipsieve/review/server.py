"""Serves the page on loopback until a signal."""

from __future__ import annotations

import contextlib
import socket
import sys
import webbrowser

from clipsieve.exceptions import InputRefused, MissingExtra
from clipsieve.review.session import Review

HOST = "127.0.0.1"


def serve(review: Review, port: int, open_browser: bool, quiet: bool = False) -> None:
    """Print the address, and answer until Ctrl-C. What is trained or scored in the background ends with it.

    Raises:
        MissingExtra: Starlette or uvicorn is not installed.
        InputRefused: the port is taken.
    """
    try:
        import uvicorn

        from clipsieve.review.access import new_token
        from clipsieve.review.app import create_app
        from clipsieve.review.images import ImageCache
    except ImportError as error:
        raise MissingExtra("the page needs Starlette and uvicorn: pip install 'clipsieve[review]'") from error
    token, images = new_token(), ImageCache()
    with contextlib.closing(_listening(port)) as listening:
        port = listening.getsockname()[1]
        app = create_app(review, images, port, token)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_level="error",
                timeout_graceful_shutdown=2,
            )
        )
        address = f"http://{HOST}:{port}/?token={token}"
        print(address, flush=True)
        if not quiet:
            print(f"answers go to {review.answers.folder}; Ctrl-C ends the page", file=sys.stderr, flush=True)
        if open_browser:
            webbrowser.open(address)
        try:
            server.run([listening])
        except KeyboardInterrupt:  # which uvicorn raises again once it has ended
            pass
        finally:
            review.close()
            images.close()


def _listening(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((HOST, port))
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise InputRefused(f"cannot listen at {HOST}:{port}: {error.strerror}; choose another --port") from error
    return opened
