"""The demo page, with its bundled gallery and models. Everything it does is in `alpro_hf.page`.

    python spaces_demo/app.py

The environment variables ALPRO_MODEL, ALPRO_QA_MODEL and ALPRO_PROMPTER replace the models, each with a folder or a
Hub id, and ALPRO_GALLERY the clips, with an index or a folder of videos.
"""

import sys

import alpro_hf_launch

alpro_hf_launch.registers_later = True  # the page registers the models when it loads them, and answers before that

try:
    from alpro_hf.page.server import main
except ImportError as error:
    if error.name != "gradio":
        raise
    sys.exit(str(error))  # the sentence that names what to install

if __name__ == "__main__":
    main()
