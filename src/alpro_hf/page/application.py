"""The page as an ASGI application: gradio's, behind the guard, with the files of the clips."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount

from .clips import MAX_MEGABYTES
from .front import COVER, DESCRIPTION, HEADLINE, SharedAddress
from .guard import Guard, functions_of
from .layout import SESSIONS
from .media import MediaRoute
from .studio import Studio, cover
from .theme import THEME

STYLES = ("style.css", "results.css", "duel.css")


def application(demo: gr.Blocks, studio: Studio, *, hosts: Sequence[str] | None = None) -> FastAPI:
    """What the server serves.

    Args:
        demo: The page.
        studio: What it shows.
        hosts: Names that a browser may know the machine by. None: any. A page of the web whose name leads to this
            machine could otherwise read what is served here.
    """
    # as `launch` does; without it, gradio takes any path in a request for a file that it may read
    demo.has_launched = True
    demo.state_session_capacity = SESSIONS  # each takes about 0.2 MB, and is remembered for an hour
    picture = studio.media.add_made(lambda: cover(studio), Path(COVER).suffix)
    functions = functions_of(demo.get_config_file(), demo.get_api_info())
    middleware = [
        Middleware(Guard, folder=Path(get_upload_folder()), functions=functions),
        Middleware(MediaRoute, media=studio.media),
        Middleware(SharedAddress, title=HEADLINE, description=DESCRIPTION, picture=picture),
    ]
    if hosts is not None:
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False))
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        demo,
        path="/",
        theme=THEME,
        css_paths=[Path(str(files("alpro_hf.page") / "static" / name)) for name in STYLES],
        max_file_size=f"{MAX_MEGABYTES}mb",
        allowed_paths=[],
        footer_links=["api"],
        ssr_mode=False,
        run_history=False,
        app_kwargs={"middleware": middleware},
    )
    # a mount takes no path with a line break in it; such a request would be answered without the guard
    [page] = [route.app for route in app.routes if isinstance(route, Mount)]
    app.router.default = page
    return app
