"""Configurations of the ALPRO towers and of the composite model (arXiv 2112.09583, section 3.1)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class AlproTextConfig(PreTrainedConfig):
    """The BERT-shaped text and fusion encoder.

    Layers `[0, fusion_layer)` read the text alone; layers `[fusion_layer, num_hidden_layers)` read the text tokens
    followed by the video tokens (multimodal encoder of section 3.1). Defaults are those of BERT-base with six layers
    each, as in the paper.

    Args:
        vocab_size: Number of WordPiece tokens.
        hidden_size: Width of every layer; must equal the video tower's, because fusion concatenates the two.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Text and fusion layers together.
        fusion_layer: Index of the first fusion layer.
        max_position_embeddings: Longest text in tokens, `[CLS]` and `[SEP]` included.
        hidden_dropout_prob, attention_probs_dropout_prob: Dropout in training.
    """

    model_type = "alpro_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    fusion_layer: int = 6
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float | int = 0.02
    pad_token_id: int | None = 0

    def validate_architecture(self) -> None:
        """Part of the `@strict` validation: the sizes must fit each other."""
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"text_config.hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if not 0 <= self.fusion_layer <= self.num_hidden_layers:
            raise ValueError(
                f"text_config.fusion_layer={self.fusion_layer} must lie between 0 and "
                f"num_hidden_layers={self.num_hidden_layers}."
            )


@strict
class AlproVideoConfig(PreTrainedConfig):
    """The TimeSformer video tower with divided space-time attention (section 3.1). Defaults: ViT-B/16, 8 frames.

    Args:
        image_size: Height and width in pixels the space embeddings are made for; other sizes are resized at run time.
        patch_size: Side of a patch in pixels.
        num_frames: Frames the time embeddings are made for; other counts are resized at run time.
        hidden_size: Width of every layer; must equal the text tower's.
        intermediate_size: Width of the feed-forward layers.
        qkv_bias: Whether the attention projections have a bias.
        position_initializer_range: Standard deviation of freshly drawn space and time embeddings. The default suits a
            start from an image model. Training from scratch on small clips wants about 0.5: patch features have that
            scale, and an embedding of 0.02 beneath them leaves the direction of a motion invisible.
    """

    model_type = "alpro_video_model"
    base_config_key = "video_config"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 8
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    initializer_range: float | int = 0.02
    position_initializer_range: float | int = 0.02

    def validate_architecture(self) -> None:
        """Part of the `@strict` validation: the sizes must fit each other."""
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"video_config.hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"video_config.image_size={self.image_size} is not a multiple of patch_size={self.patch_size}."
            )


@strict
class AlproConfig(PreTrainedConfig):
    """Text tower, video tower and the heads that join them.

    Args:
        text_config, video_config: Sub-configurations, or dictionaries of their fields.
        projection_dim: Size of the unit vectors compared by the contrastive loss (256 in the paper).
        temperature_init: Start of the learned temperature of the contrastive loss.
        temperature_min, temperature_max: Range in which the temperature acts.
        entities: Names of the entities that PEM predicts and a prompter scores; None: no PEM.
        pem_threshold: A crop whose most probable entity has less than this probability carries no PEM loss (section
            3.3; 0.2 in the paper). 0 keeps all.

    The answers of a question-answering model are the library's `id2label` and `label2id`.

    Example:
        >>> from alpro_hf import AlproConfig, AlproModel
        >>> config = AlproConfig(video_config={"num_frames": 4})
        >>> model = AlproModel(config)
    """

    model_type = "alpro"
    sub_configs = {"text_config": AlproTextConfig, "video_config": AlproVideoConfig}  # noqa: RUF012 (the library's way)

    text_config: Any = None
    video_config: Any = None
    projection_dim: int = 256
    temperature_init: float | int = 0.07
    temperature_min: float | int = 0.001
    temperature_max: float | int = 0.5
    entities: list[str] | None = None
    pem_threshold: float | int = 0.2
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for name, tower in self.sub_configs.items():
            given = getattr(self, name)
            if given is None or isinstance(given, dict):
                setattr(self, name, tower(**(given or {})))
            elif not isinstance(given, PreTrainedConfig):
                raise TypeError(
                    f"{name} must be an {tower.__name__} or a dictionary of its fields; received {given!r}."
                )
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Part of the `@strict` validation: both towers share one width, entities differ, shares are shares."""
        text_width, video_width = self.text_config.hidden_size, self.video_config.hidden_size
        if text_width != video_width:
            raise ValueError(
                f"text_config.hidden_size={text_width} and video_config.hidden_size={video_width} differ: the fusion "
                "layers read text and video tokens in one sequence, so both towers need the same width."
            )
        if self.entities is not None and len(set(self.entities)) != len(self.entities):
            twice = sorted({name for name in self.entities if self.entities.count(name) > 1})
            raise ValueError(f"entities names these more than once: {', '.join(twice)}.")
        if not 0 <= self.pem_threshold <= 1:
            raise ValueError(f"pem_threshold={self.pem_threshold} is no probability; it must be in [0, 1].")


__all__ = ["AlproConfig", "AlproTextConfig", "AlproVideoConfig"]
