"""Start and stop the page.

The server answers at once: until the models are loaded, it shows what is being done. So nothing that takes long is
imported here.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from ..loading import CommandError
from ..trust import printable
from .front import HEADLINE, BrowserHeaders, Front

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .studio import Studio

LOCAL = ("127.0.0.1", "localhost", "::1")
PORT, TRIED = 7860, 100  # the first port, and how many after it are tried
HOSTS = ("127.0.0.1", "localhost")  # names of this machine for itself
_LONGEST_END = 10.0  # seconds
Say = Callable[[str], None]


def serve(
    open_studio: Callable[[Say], "Studio"],
    *,
    host: str | None = None,
    port: int | None = None,
    opened: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until the process is stopped.

    Args:
        open_studio: Loads the models; it is called in a thread, with a function to say what it does.
        host: Address to listen at. None: `GRADIO_SERVER_NAME`, or this machine alone.
        port: None: `GRADIO_SERVER_PORT`, or the first free one from 7860 on.
        opened: Called with the address of the page when it answers.

    Raises:
        CommandError: Nobody can listen there.
        What `open_studio` raises.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or LOCAL[0]
    listening = _listen(host, port or _port_of_environment())
    front = Front()

    def say(text: str) -> None:
        front.steps.append(text)
        print(f"{printable(text)} ...", file=sys.stderr, flush=True)

    shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
    address = f"http://{shown}:{listening.getsockname()[1]}"
    server = _Server(front, listening)
    server.start()
    print(f"{HEADLINE}\nIt opens at {address} when it is ready.", file=sys.stderr, flush=True)
    demo: Any = None
    studio: Studio | None = None
    try:
        say("importing the libraries for models and pages")
        from .. import registration as registration
        from .application import application
        from .layout import build

        studio = open_studio(say)
        say("building the page")
        demo = build(studio)
        server.show(application(demo, studio, hosts=HOSTS if host in HOSTS else None))
        print(f"Ready: {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        opened(address)
        server.ended.wait()
    finally:
        server.stop()
        if demo is not None:
            demo.close(verbose=False)
        if studio is not None:
            studio.close()
        listening.close()


def _port_of_environment() -> int | None:
    given = os.environ.get("GRADIO_SERVER_PORT", "")
    if given and not given.isdecimal():
        raise CommandError(f"GRADIO_SERVER_PORT={given!r} is not the number of a port.")
    return int(given) if given else None


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Raises:
        CommandError: The port is in use, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in [port] if port else range(PORT, PORT + TRIED):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, tried))
            listening.listen()
            return listening
        except OSError as error:
            listening.close()
            problem = error.strerror or str(error)
            if port or error.errno != errno.EADDRINUSE:
                raise CommandError(f"The page cannot listen at {host}, port {tried}: {problem}.") from error
        except OverflowError as error:
            listening.close()
            raise CommandError(f"{tried} is not the number of a port; they end at 65535.") from error
    raise CommandError(f"The ports {PORT} to {PORT + TRIED - 1} are all in use. Name another one.")


class _Server(threading.Thread):
    """Answers requests in a thread, while the models are loaded in the main one, where signals arrive.

    Args:
        front: What it serves.
        listening: Where.
    """

    def __init__(self, front: Front, listening: socket.socket) -> None:
        super().__init__(name="server", daemon=True)
        self.front, self.listening = front, listening
        self.server = uvicorn.Server(
            uvicorn.Config(BrowserHeaders(front), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        )
        # `ended` and not `join`: Python 3.11 takes a thread for ended if a signal interrupts who waits in `join`
        self.begun, self.shown, self.ended = (threading.Event() for _ in range(3))

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            asyncio.run(self._serve())
        finally:
            self.ended.set()

    async def _serve(self) -> None:
        self.loop, self.stopping = asyncio.get_running_loop(), asyncio.Event()
        self.begun.set()
        await self.server.serve([self.listening])
        self.stopping.set()

    def show(self, app: "FastAPI") -> None:
        """Serve an application from now on."""
        self.begun.wait()
        holding = asyncio.run_coroutine_threadsafe(self._hold(app), self.loop)
        while not self.shown.wait(0.05):
            if holding.done():
                holding.result()  # raises what went wrong

    async def _hold(self, app: "FastAPI") -> None:
        async with app.router.lifespan_context(app):
            self.front.app = app
            self.shown.set()
            await self.stopping.wait()

    def stop(self) -> None:
        """End the connections, and the thread."""
        # uvicorn takes it for an error that pages which are still open are cut off, and prints where
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.server.should_exit = True
        self.ended.wait(_LONGEST_END)


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that whoever starts the page can cause, by naming models and videos that cannot be used."""
    from ..hub.card import ModelCardError
    from ..inference.index_shards import VideoIndexError
    from ..model.decoding_types import VideoDecodeError

    return CommandError, OSError, VideoIndexError, VideoDecodeError, ModelCardError


def _stop(*_: Any) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Serve the page of the Space: what the environment variables name, or the bundled models and clips."""

    def open_studio(say: Say) -> "Studio":
        from .studio import from_environment

        return from_environment(say)

    signal.signal(signal.SIGTERM, _stop)  # a Space is stopped by it; without this, uploaded files would stay
    code = 0
    try:
        serve(open_studio)
    except expected_errors() as error:
        print(f"The page cannot start: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except SystemExit:  # from `_stop`
        pass
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait for threads of gradio, and they for visitors who are still connected
