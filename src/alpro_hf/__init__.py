"""ALPRO for the Hugging Face stack: search and ask videos in plain language (arXiv 2112.09583)."""

from .configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
from .modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextModel,
    AlproVideoModel,
)
