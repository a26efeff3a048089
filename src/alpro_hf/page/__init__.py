"""The page in a browser: search clips by what happens in them, ask questions about them, and look inside the model.

One code serves the Space (`spaces_demo/app.py`) and one's own index (`alpro ui`). It needs the extra `demo`.
"""

import os
from importlib.util import find_spec

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported
if find_spec("gradio") is None:
    raise ImportError('The page needs gradio, which is not installed: pip install "alpro-hf[demo]"', name="gradio")
