"""Configurations of the ALPRO towers and of the composite model (arXiv 2112.09583, section 3.1)."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

# A config.json may come from a stranger. These are the largest sizes, far beyond all models of this kind, and the
# types of weights, attention and quantisation that run no code from elsewhere.
_LARGEST = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
    "image_size": 1 << 14,
    "patch_size": 1 << 14,
    "num_channels": 1 << 10,
    "num_frames": 1 << 16,
    "projection_dim": 1 << 16,
}
_LARGEST_LAYERS = 1 << 36  # weights of the layers of a tower
_MOST_LABELS = 1 << 20
_DTYPES = ("float32", "float64", "float16", "bfloat16", "auto")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_QUANTISATION = ("bitsandbytes", "torchao")
_OF_THE_CLASS = ("attribute_map", "base_config_key", "sub_configs", "sub_configs_defaults")


def _check_numbers(config: PreTrainedConfig, prefix: str) -> None:
    """Check the sizes, probabilities and scales among the fields of a configuration.

    Raises:
        ValueError: One of them is out of its range, or not finite.
    """
    for name, value in vars(config).items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        # of no layers is a tower that only embeds
        least = 0 if name == "num_hidden_layers" else 1
        if name in _LARGEST and not least <= value <= _LARGEST[name]:
            raise ValueError(f"{prefix}{name}={value} must lie between {least} and {_LARGEST[name]:,}.")
        if name.endswith("dropout_prob") and not 0 <= value <= 1:
            raise ValueError(f"{prefix}{name}={value} is not a probability; it must lie in [0, 1].")
        if name == "drop_path_rate" and not 0 <= value < 1:
            raise ValueError(f"{prefix}{name}={value} is the probability of dropping a branch; it must lie in [0, 1).")
        if name == "patch_dropout" and not 0 <= value < 1:
            raise ValueError(f"{prefix}{name}={value} is the share of patches to leave out; it must lie in [0, 1).")
        if name == "layer_norm_eps" and not 0 < value <= 1:
            raise ValueError(f"{prefix}{name}={value} must be greater than 0 and at most 1.")
        if (name.endswith("initializer_range") or name.startswith("temperature")) and not 0 <= value < 1e6:
            raise ValueError(f"{prefix}{name}={value} must be a finite number of at least 0.")


def _check_file(fields: Mapping[str, Any], kind: type[PreTrainedConfig], prefix: str = "") -> None:
    """Check the fields of a config.json that the library acts upon before it knows their types.

    Raises:
        ValueError: A field would fetch code from elsewhere, replace a part of the class, or names no type of weights.
    """
    for name, value in fields.items():
        if name in _OF_THE_CLASS or callable(getattr(kind, name, None)):
            raise ValueError(f"{prefix}{name} is a part of {kind.__name__} and no field of a file. Remove it.")
        if name.strip("_").startswith(("attn_implementation", "experts_implementation")):
            if value is not None and value not in _ATTENTION:
                raise ValueError(
                    f"{prefix}{name}={value!r:.80} may run code from elsewhere; a file may name "
                    f"{', '.join(_ATTENTION)}. To use it all the same, pass it to from_pretrained."
                )
        elif name in ("use_kernels", "kernel_config") and value:
            raise ValueError(f"{prefix}{name} may run code from elsewhere. Remove it, or pass it to from_pretrained.")
        elif name == "quantization_config" and value is not None:
            method = value.get("quant_method") if isinstance(value, dict) else value
            if method not in _QUANTISATION:
                raise ValueError(
                    f"{prefix}quantization_config is of the kind {method!r:.80}; known are {', '.join(_QUANTISATION)}."
                )
        elif name in ("dtype", "torch_dtype") and value is not None and value not in _DTYPES:
            raise ValueError(f"{prefix}{name}={value!r:.80} is unknown; it must be one of {', '.join(_DTYPES)}.")
        elif name == "num_labels" and not (type(value) is int and 0 <= value <= _MOST_LABELS):
            raise ValueError(f"{prefix}num_labels={value!r:.80} must be a whole number of at most {_MOST_LABELS:,}.")
    for name, tower in kind.sub_configs.items():
        if isinstance(fields.get(name), dict):
            _check_file(fields[name], tower, f"{name}.")


class AlproTowerConfig(PreTrainedConfig):
    """Fields that the text and the video tower share.

    Args:
        hidden_size: Width of every layer. It must be the same in both towers if there are fusion layers, because
            fusion concatenates their tokens.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Number of layers; in the text tower, text and fusion layers together.
        num_attention_heads: Heads of each attention; they divide `hidden_size`.
        hidden_act: Activation of the feed-forward layers, a key of `transformers.activations.ACT2FN`.
        initializer_range: Standard deviation of freshly drawn weights.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    initializer_range: float | int = 0.02

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a config.json, see the base class.

        Raises:
            ValueError: A field would run code from elsewhere, replace a part of the class, or has no known value.
        """
        fields, others = super().get_config_dict(*args, **kwargs)
        _check_file(fields, cls)
        return fields, others

    def validate_architecture(self) -> None:
        """Check the sizes, and that the heads divide the width; `@strict` on the subclasses calls this after
        initialisation.

        Raises:
            ValueError: A size is out of its range, the activation is unknown, or `hidden_size` is not a multiple of
                `num_attention_heads`.
        """
        from transformers.activations import ACT2FN  # here, because it takes torch

        _check_numbers(self, f"{self.base_config_key}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"{self.base_config_key}.hidden_act={self.hidden_act!r:.80} is no activation of the library, such as "
                "'gelu'."
            )
        layer = 4 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * self.intermediate_size
        if layer * self.num_hidden_layers > _LARGEST_LAYERS:
            raise ValueError(
                f"{self.base_config_key}: {self.num_hidden_layers} layers of hidden_size={self.hidden_size} and "
                f"intermediate_size={self.intermediate_size} have more than {_LARGEST_LAYERS:,} weights."
            )
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"{self.base_config_key}.hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )


@strict
class AlproTextConfig(AlproTowerConfig):
    """Configuration of the BERT-shaped text and fusion encoder (section 3.1).

    Layers `[0, fusion_layer)` read the text alone. Layers `[fusion_layer, num_hidden_layers)` read the text tokens
    followed by the video tokens; the paper calls them the multimodal encoder. The defaults are those of BERT-base with
    six layers of each kind, as in the paper.

    Args:
        vocab_size: Number of WordPiece tokens.
        fusion_layer: Index of the first fusion layer.
        max_position_embeddings: Longest text in tokens, `[CLS]` and `[SEP]` included.
        type_vocab_size: Number of token types. ALPRO uses type 0 only; the second keeps BERT checkpoints loadable.
        hidden_dropout_prob, attention_probs_dropout_prob: Dropout probabilities during training.
        layer_norm_eps: Epsilon of the layer norms; BERT's 1e-12, where the video tower has ViT's 1e-6.
        pad_token_id: Token whose word embedding is zero and gets no gradient.

    The other fields are those of `AlproTowerConfig`.
    """

    model_type = "alpro_text_model"
    base_config_key = "text_config"
    # what fully sharded training (FSDP2) shards as one unit; the rest belongs to the unit of the whole model
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embeddings.word_embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
    }

    vocab_size: int = 30522
    fusion_layer: int = 6
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    # `float | int`, because a config.json may have 0 for 0.0, and `@strict` does not convert types
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0

    def validate_architecture(self) -> None:
        """Check that the fusion starts inside the stack, or at its end, where nothing is fused.

        Raises:
            ValueError: `fusion_layer` is negative or greater than `num_hidden_layers`; `pad_token_id` is no token.
        """
        super().validate_architecture()
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"text_config.pad_token_id={self.pad_token_id} must lie between 0 and vocab_size={self.vocab_size}."
            )
        if not 0 <= self.fusion_layer <= self.num_hidden_layers:
            raise ValueError(
                f"text_config.fusion_layer={self.fusion_layer} must lie between 0 and "
                f"num_hidden_layers={self.num_hidden_layers}."
            )


@strict
class AlproVideoConfig(AlproTowerConfig):
    """Configuration of the TimeSformer video tower with divided space-time attention (section 3.1).

    The defaults are those of ViT-B/16 on 8 frames.

    Args:
        image_size: Height and width, in pixels, of the frames that the space embeddings are made for. Frames of other
            sizes work: the embeddings are resized at run time.
        patch_size: Side of a patch in pixels.
        num_channels: Channels of a frame.
        num_frames: Number of frames that the time embeddings are made for. Clips of other lengths work too.
        hidden_dropout_prob, attention_probs_dropout_prob: Dropout probabilities during training.
        layer_norm_eps: Epsilon of the layer norms.
        qkv_bias: Whether the projections to query, key and value have a bias.
        position_initializer_range: Standard deviation of freshly drawn space and time embeddings. The default suits a
            start from an image model. To train from scratch on small clips, use about 0.5: patch features have that
            scale, and next to them an embedding of 0.02 does not tell the model in which direction something moves.
        cls_per_frame: Whether each frame keeps a CLS token of its own through all layers. They are averaged after the
            last norm, so the output has the same shape. False, as in ALPRO and TimeSformer: one CLS token per clip,
            averaged over the frames in each layer. True for a start from an image-text model, which encodes frames
            one by one.
        norm_embeddings: Whether a layer norm follows the embeddings, before the first layer, as in CLIP.
        drop_path_rate: Stochastic depth (arXiv 1603.09382) in training: probability with which the last layer drops
            the output of a branch, and divides what it keeps by the probability of keeping it. It grows linearly with
            the layer, from 0 in the first. As in the released TimeSformer, time attention is dropped at single patch
            positions of a clip, space attention in single frames, and the feed-forward network for a whole clip. The
            paper's models were all trained with 0.1, which its recipes set.
        patch_dropout: Share of the patches that training leaves out, as in FLIP (arXiv 2212.00794), in [0, 1). Each
            clip keeps a random choice of patch positions, the same ones in all its frames, so that time attention
            sees whole columns; the CLS token always stays. Training computes and stores that much less. 0, as in
            the paper: all patches. Evaluation always sees all patches.

    The other fields are those of `AlproTowerConfig`.
    """

    model_type = "alpro_video_model"
    base_config_key = "video_config"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 8
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    position_initializer_range: float | int = 0.02
    cls_per_frame: bool = False
    norm_embeddings: bool = False
    drop_path_rate: float | int = 0.0
    patch_dropout: float | int = 0.0

    def validate_architecture(self) -> None:
        """Check that patches tile a frame.

        Raises:
            ValueError: `image_size` is not a multiple of `patch_size`.
        """
        super().validate_architecture()
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"video_config.image_size={self.image_size} is not a multiple of patch_size={self.patch_size}."
            )


@strict
class AlproConfig(PreTrainedConfig):
    """Configuration of the whole model: two towers, the contrastive space and the heads.

    Args:
        text_config, video_config: Configurations of the towers, or dictionaries of their fields.
        projection_dim: Size of the unit vectors that the contrastive loss compares (256 in the paper).
        temperature_init: Initial value of the learned temperature of the contrastive loss.
        temperature_min, temperature_max: Range to which the temperature is clamped.
        entities: Names of the entities that PEM predicts and a prompter scores. None: no PEM.
        pem_threshold: Smallest probability that the most probable entity of a crop needs for the crop to carry a PEM
            loss (section 3.3; 0.2 in the paper). 0 keeps all crops. The released code compared the index of
            the entity with the threshold instead of its probability.
        pem_temperature: Temperature of a prompter's pseudo-labels, above 0; `alpro pseudo-label --calibrate` fits it
            to crops. None: the learned one of VTC, which is that of whole clips (the paper).
        matching_trained: Whether the weights of the matching head were trained. True: by VTM. False: they are as they
            were drawn. None: not known, as in the files of earlier versions, whose matching heads count as trained.
            The model sets False where it draws the head, training and conversion set True. `matching_problem` reads it
            before anything is ranked by matching.
        initializer_range: Standard deviation of freshly drawn weights of the heads and projections.
        tie_word_embeddings: Whether the MLM head uses the word embeddings as its output matrix.
        training_domain: Name of the closed world that all training clips and texts came from; `sprite-world` for the
            bundled models. Commands and the demo page then name clips and words from outside. None: no such world.

    The answers of a question-answering model are the library's `id2label` and `label2id`.

    Raises:
        TypeError: A tower is neither a configuration nor a dictionary.
        ValueError: The sizes do not fit each other; the message names the fields.

    Example:
        >>> from alpro_hf import AlproConfig, AlproModel
        >>> config = AlproConfig(video_config={"num_frames": 4})
        >>> model = AlproModel(config)
    """

    model_type = "alpro"
    # a tower that is missing or a dictionary becomes a configuration
    sub_configs_defaults = {"text_config": AlproTextConfig, "video_config": AlproVideoConfig}  # type: ignore[dict-item]  # noqa: RUF012 (the library's way)
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {}  # the towers have their own

    # `Any`, because code from the Hub defines the classes a second time, and `@strict` checks the types of fields
    text_config: Any = None
    video_config: Any = None
    projection_dim: int = 256
    temperature_init: float | int = 0.07
    temperature_min: float | int = 0.001
    temperature_max: float | int = 0.5
    entities: list[str] | None = None
    pem_threshold: float | int = 0.2
    pem_temperature: float | int | None = None
    matching_trained: bool | None = None
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True
    training_domain: str | None = None

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a config.json, see the base class.

        Raises:
            ValueError: A field would run code from elsewhere, replace a part of the class, or has no known value.
        """
        fields, others = super().get_config_dict(*args, **kwargs)
        _check_file(fields, cls)
        return fields, others

    def __post_init__(self, **kwargs: Any) -> None:
        for name, tower in self.sub_configs.items():
            given = getattr(self, name)
            # the library's own error names neither the class nor the value
            if not (given is None or isinstance(given, dict | PreTrainedConfig)):
                raise TypeError(
                    f"{name} must be an {tower.__name__} or a dictionary of its fields; received {given!r}."
                )
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the fields that concern both towers or the heads; `@strict` calls this after initialisation.

        Raises:
            ValueError: A size is out of its range, the towers differ in width and there are fusion layers, an entity
                occurs twice, the threshold is not a probability, or the temperature of labels not above 0.
        """
        _check_numbers(self, "")
        text_width, video_width = self.text_config.hidden_size, self.video_config.hidden_size
        fuses = self.text_config.fusion_layer < self.text_config.num_hidden_layers
        if fuses and text_width != video_width:
            raise ValueError(
                f"text_config.hidden_size={text_width} and video_config.hidden_size={video_width} differ: the fusion "
                "layers read text and video tokens in one sequence, so both towers need the same width. Without "
                "fusion layers (text_config.fusion_layer equal to num_hidden_layers) the widths may differ."
            )
        if self.entities is not None and len(set(self.entities)) != len(self.entities):
            twice = sorted(name for name, count in Counter(self.entities).items() if count > 1)[:20]
            raise ValueError(f"entities lists these names more than once: {', '.join(twice)}. Remove the repetitions.")
        if not 0 <= self.pem_threshold <= 1:
            raise ValueError(f"pem_threshold={self.pem_threshold} is not a probability; it must lie in [0, 1].")
        if self.pem_temperature is not None and not 0 < self.pem_temperature < 1e6:
            raise ValueError(f"pem_temperature={self.pem_temperature} must be above 0, or None for that of VTC.")


__all__ = ["AlproConfig", "AlproTextConfig", "AlproVideoConfig"]
