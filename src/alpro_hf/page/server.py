"""Start and stop the page.

The environment variables ALPRO_MODEL, ALPRO_QA_MODEL and ALPRO_PROMPTER replace the bundled models, each with a folder
or a Hub id.
"""

import os
import signal
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from .clips import MAX_MEGABYTES
from .guard import Guard, functions_of
from .layout import build
from .studio import from_environment
from .theme import THEME


def _stop(*_: Any) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Load the models and serve the page until the process is stopped."""
    signal.signal(signal.SIGTERM, _stop)  # a Space is stopped by it; without this, uploaded files would stay
    studio = from_environment()
    demo = build(studio)
    try:
        demo.launch(
            theme=THEME,
            css_paths=[Path(str(files("alpro_hf.page") / "static" / name)) for name in ("style.css", "duel.css")],
            max_file_size=f"{MAX_MEGABYTES}mb",
            allowed_paths=[],
            footer_links=["api"],
            ssr_mode=False,
            app_kwargs={
                "middleware": [
                    Middleware(
                        Guard,
                        folder=Path(get_upload_folder()),
                        functions=functions_of(demo.get_config_file(), demo.get_api_info()),
                    )
                ]
            },
        )
    except SystemExit:  # from `_stop`
        demo.close()
        studio.close()
        os._exit(0)  # a normal exit would wait for threads of gradio, and they for visitors who are still connected
    finally:
        demo.close()
        studio.close()
