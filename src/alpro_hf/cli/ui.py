"""`alpro ui`: search and question one's own videos on a page in the browser."""

import argparse
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading import CommandError
from .options import nonblank, whole_number

if TYPE_CHECKING:
    from ..page.server import Say
    from ..page.studio import Studio

EPILOG = """\
The page shows the videos of an index, searches them, and plays each result from its start to its end. The model is the
one that made the index. With --qa-model there is a tab for questions about a clip or a moment. Models that know words
and patches of each other (a trained matching head) add a column "match" and a look inside.

Nothing leaves this machine, and nobody else can open the page, unless --host says so. Only files of the index are
served, and uploads in the page are deleted when it is closed.

An index that somebody else has made, or that you made on another computer, cannot choose the folder of its videos.
Name it with --videos, or pass --allow-outside if you trust the index.

A folder of videos works, too: what is encoded of it is kept in the cache, as by alpro search.

The page needs gradio: pip install "alpro-hf[demo]"

examples:
  alpro index holiday --output holiday-index
  alpro ui holiday-index                                 opens the page in the browser
  alpro ui holiday-index --qa-model my-qa --port 8000
  alpro ui holiday-index --no-browser --host 0.0.0.0     for others in the same network, who then see the videos
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro ui` to a parser."""
    parser.epilog = EPILOG
    # the page answers before the models are imported
    parser.set_defaults(expected_errors=expected_errors, registers_later=True)
    parser.add_argument("where", type=Path, metavar="INDEX-or-DIR", help="an index, or a folder of videos")
    parser.add_argument(
        "--qa-model",
        type=nonblank,
        metavar="M",
        help="model that answers questions: folder, Hub id or 'bundled' (default: no questions)",
    )
    parser.add_argument(
        "--model", type=nonblank, metavar="M", help="folder, Hub id or 'bundled' (default: the index's own)"
    )
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="folder of the videos, for an index that somebody else has made (default: as noted when you made it)",
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="use videos outside of the folder that links, or the paths in an index, lead to (default: refuse)",
    )
    parser.add_argument(
        "--host", type=nonblank, metavar="H", help="address to listen at (default: this machine alone)"
    )
    parser.add_argument(
        "--port", type=whole_number(1), metavar="P", help="port to listen at (default: the first free one from 7860)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that whoever starts the page can cause; see `cli/main.py`."""
    from ..page.server import expected_errors

    return expected_errors()


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro ui`, until it is interrupted."""
    try:
        from ..page.server import LOCAL, serve
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise CommandError(str(error)) from error
    if not args.where.exists():
        raise CommandError(f"There is no index and no folder {args.where}. Make an index with alpro index.")

    def open_studio(say: "Say") -> "Studio":
        from ..page.gallery import Collection
        from ..page.studio import Studio

        videos = Collection(args.where, args.videos, args.allow_outside)
        questions = args.qa_model is not None
        return Studio(args.model, args.qa_model, gallery=videos, questions=questions, say=say)

    if args.host is not None and args.host not in LOCAL:
        print(f"Note: whoever reaches {args.host} from the network can see these videos.", file=sys.stderr)

    # a person opens it; nothing is printed to stdout, where results of commands go
    def show(address: str) -> None:
        if not args.no_browser:
            webbrowser.open(address)

    serve(open_studio, host=args.host, port=args.port, opened=show)
    return 0
