"""The ALPRO model: video tower, text and fusion encoder, and the heads for retrieval and question answering.

Source: "Align and Prompt: Video-and-Language Pre-training with Entity Prompts", arXiv 2112.09583, section 3.

Shape letters: B batch, T frames, N patches of a frame, D width, L text tokens, P projection width.
A clip is held in the tower as (B, 1 + T * N, D): the CLS token, then the patches of frame 0, of frame 1, and so on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
from .loss_alpro import classification_loss, same_pair_mask, sample_hard_negatives, vtc_loss, vtm_labels
from .unimodal_alpro import text_state_from_bert, video_state_from_vit

Gather = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class AlproVideoModelOutput(BaseModelOutputWithPooling):
    """Output of the video tower.

    Args:
        last_hidden_state: (B, 1 + N, D): the CLS token, then the patch tokens averaged over time.
        pooler_output: (B, D), the CLS token; the unit vector (B, P) when it comes from `get_video_features`.
        hidden_states: One (B, 1 + T * N, D) before each layer and after the last.
        attentions: Space attention of each layer, (B * T, heads, 1 + N, 1 + N).
        temporal_attentions: Time attention of each layer, (B * N, heads, T, T), with
            `output_temporal_attentions=True`.
    """

    temporal_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AlproOutput(ModelOutput):
    """Output of `AlproModel`.

    Args:
        loss: Scalar contrastive loss, with `return_loss=True`.
        logits_per_video: (videos, texts), cosine similarity divided by the temperature.
        logits_per_text: (texts, videos), its transpose.
        text_embeds, video_embeds: Unit vectors (texts, P) and (videos, P).
        text_model_output, video_model_output: Everything the towers returned.
    """

    loss: torch.Tensor | None = None
    logits_per_video: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    video_model_output: AlproVideoModelOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


@dataclass
class AlproRetrievalOutput(AlproOutput):
    """Output of `AlproForVideoTextRetrieval`: that of `AlproModel` and the matching scores.

    Args:
        loss: Scalar, `loss_vtc + loss_vtm`, with `return_loss=True`.
        vtm_logits: With `return_loss=True` (3B, 2): B true pairs, B texts with a wrong video, B videos with a wrong
            text. Without: (B, 2), row i scores text i with video i. Column 1 = matched.
        vtm_labels: int64 (3B,): 1, 0, 0, and -100 where no negative exists.
    """

    loss_vtc: torch.Tensor | None = None
    loss_vtm: torch.Tensor | None = None
    vtm_logits: torch.Tensor | None = None
    vtm_labels: torch.Tensor | None = None


@dataclass
class AlproQuestionAnsweringOutput(ModelOutput):
    """Output of `AlproForVideoQuestionAnswering`.

    Args:
        loss: Scalar cross entropy over the rows whose label is not -100, where labels were given.
        logits: (B, answers).
        text_model_output, video_model_output, fusion_model_output: Everything the encoders returned; of the fusion
            `last_hidden_state` is the CLS token (B, 1, D) unless hidden states or attentions are asked for, then all.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_model_output: BaseModelOutput | None = None
    video_model_output: AlproVideoModelOutput | None = None
    fusion_model_output: BaseModelOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by explicit matrix products: the one implementation that returns its weights."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class AlproAttention(nn.Module):
    """Multi-head self-attention of both towers, on the library's attention interface."""

    def __init__(self, config: AlproTextConfig | AlproVideoConfig, bias: bool = True):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # sdpa would be causal wherever the mask is None
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        first_tokens: int | None = None,
        shared: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the first `first_tokens` tokens see (None: all of them) when they look at all.

        `shared`: tokens (V, N, D) and the row int64 (B,) that ends each of `hidden_states`: projected once for all.
        """
        batch, length, width = hidden_states.shape
        # called whole whatever is asked for: it may carry an adapter or be quantised, which slices of it would pass by
        if shared is None:
            qkv = self.qkv(hidden_states)
        else:
            ends, row = shared
            qkv = torch.cat([self.qkv(hidden_states[:, : -ends.shape[1]]), self.qkv(ends)[row]], dim=1)
        qkv = qkv.view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, length, head_dim)
        query = query[:, :, :first_tokens]
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.proj(output.reshape(batch, -1, width)), weights


class AlproMLP(nn.Module):
    """The two-layer feed-forward network of both towers."""

    def __init__(self, config: AlproTextConfig | AlproVideoConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class AlproVideoEmbeddings(nn.Module):
    """Frames to tokens: patch projection, CLS, and additive space and time embeddings.

    Other sizes and frame counts than the configured ones work: space embeddings are resized bicubically in two
    dimensions, time embeddings by nearest neighbour, as the reference does for time.
    """

    def __init__(self, config: AlproVideoConfig):
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.patch_embed = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + self.grid**2, config.hidden_size))
        self.time_embeddings = nn.Parameter(torch.empty(1, config.num_frames, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def space_embeddings(self, height: int, width: int) -> torch.Tensor:
        """Embeddings (1, height * width, D) of a grid of `height` x `width` patches."""
        patches = self.position_embeddings[:, 1:]
        if (height, width) == (self.grid, self.grid):
            return patches
        square = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(
            square.float(), size=(height, width), mode="bicubic", align_corners=False, antialias=False
        )
        return resized.to(patches.dtype).flatten(2).transpose(1, 2)

    def frame_embeddings(self, num_frames: int) -> torch.Tensor:
        """Embeddings (1, num_frames, D)."""
        if num_frames == self.time_embeddings.shape[1]:
            return self.time_embeddings
        resized = nn.functional.interpolate(self.time_embeddings.transpose(1, 2), size=num_frames, mode="nearest")
        return resized.transpose(1, 2)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """(B, T, 3, H, W) float -> (B, 1 + T * N, D)."""
        batch, num_frames, _, height, width = pixel_values_videos.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values_videos has frames of {height} x {width} pixels, which patches of {patch} x {patch} do "
                "not tile. Resize the frames to a multiple of the patch size (AlproVideoProcessor does)."
            )
        pixels = pixel_values_videos.flatten(0, 1).to(self.patch_embed.weight.dtype)
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)  # (B * T, N, D)
        patches = patches + self.space_embeddings(height // patch, width // patch)
        patches = patches.view(batch, num_frames, -1, patches.shape[-1])
        patches = self.dropout(patches) + self.frame_embeddings(num_frames)[:, :, None]
        cls = self.dropout(self.cls_token + self.position_embeddings[:, :1]).expand(batch, -1, -1)
        return torch.cat([cls, self.dropout(patches).flatten(1, 2)], dim=1)


class AlproVideoLayer(GradientCheckpointingLayer):
    """Divided space-time attention: each patch looks along time, then each frame looks at itself.

    The CLS token takes part in the space attention of every frame; its copies are averaged (TimeSformer, as used in
    section 3.1 of the paper).
    """

    def __init__(self, config: AlproVideoConfig):
        super().__init__()
        self.temporal_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attn = AlproAttention(config, bias=config.qkv_bias)
        self.temporal_fc = nn.Linear(config.hidden_size, config.hidden_size)
        self.spatial_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.spatial_attn = AlproAttention(config, bias=config.qkv_bias)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AlproMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, num_frames: int, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, 1 + T * N, D) -> the same shape."""
        cls, patches = hidden_states[:, :1], hidden_states[:, 1:]
        batch, _, width = patches.shape
        patches_BTND = patches.reshape(batch, num_frames, -1, width)

        along_time = self.temporal_norm(patches_BTND).transpose(1, 2).flatten(0, 1)  # (B * N, T, D)
        along_time, _ = self.temporal_attn(along_time, **kwargs)
        along_time = self.temporal_fc(self.dropout(along_time))
        patches_BTND = patches_BTND + along_time.view(batch, -1, num_frames, width).transpose(1, 2)

        frame_cls = cls[:, None].expand(-1, num_frames, -1, -1)
        frames = torch.cat([frame_cls, patches_BTND], dim=2).flatten(0, 1)  # (B * T, 1 + N, D)
        in_frame, _ = self.spatial_attn(self.spatial_norm(frames), **kwargs)
        in_frame_BTND = self.dropout(in_frame).view(batch, num_frames, -1, width)
        cls = cls + in_frame_BTND[:, :, 0].mean(dim=1, keepdim=True)
        patches_BTND = patches_BTND + in_frame_BTND[:, :, 1:]

        hidden_states = torch.cat([cls, patches_BTND.flatten(1, 2)], dim=1)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class AlproTextEmbeddings(nn.Module):
    """Word, position and token-type embeddings of BERT."""

    def __init__(self, config: AlproTextConfig):
        super().__init__()
        self.config = config
        self.word_embeddings: nn.Module = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Word embeddings (B, L, D) -> (B, L, D)."""
        length, limit = inputs_embeds.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"The text has {length} tokens but the model reads at most {limit} "
                "(text_config.max_position_embeddings). Truncate it (AlproProcessor does)."
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.norm(embeddings))


class AlproTextLayer(GradientCheckpointingLayer):
    """One post-norm BERT layer; text and fusion layers are the same thing."""

    def __init__(self, config: AlproTextConfig):
        super().__init__()
        self.attention = AlproAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AlproMLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        first_tokens: int | None = None,
        shared: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, L, D) -> the same shape, or (B, first_tokens, D); `shared` as in `AlproAttention`."""
        attended, _ = self.attention(hidden_states, attention_mask, first_tokens, shared, **kwargs)
        hidden_states = self.attention_norm(hidden_states[:, :first_tokens] + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class AlproPreTrainedModel(PreTrainedModel):
    """What every ALPRO model shares: configuration, weight initialisation, loading and saving."""

    config_class: type[PreTrainedConfig] = AlproConfig
    base_model_prefix = "alpro"
    input_modalities: tuple[str, ...] = ("video", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # heads of other tasks: pre-training is where fine-tuning starts
    _keys_to_ignore_on_load_unexpected = [r"^(vtm|mlm|pem)_head\.", r"^classifier\.", r"_prompt_embeds$"]  # noqa: RUF012
    accepts_loss_kwargs = False  # losses are means: gradient accumulation must not rescale them
    _no_split_modules = [  # noqa: RUF012 (the library's way)
        "AlproVideoEmbeddings",
        "AlproVideoLayer",
        "AlproTextLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("use_safetensors", True)  # checkpoints come from strangers, and a pickle is a program
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlproVideoEmbeddings):
            init.zeros_(module.cls_token)
            for embeddings in (module.position_embeddings, module.time_embeddings):
                init.normal_(embeddings, std=module.config.position_initializer_range)
        elif isinstance(module, AlproModel):
            init.constant_(module.temperature, module.config.temperature_init)


class AlproVideoModel(AlproPreTrainedModel):
    """TimeSformer-B/16 video tower (section 3.1): any number of frames, any size that patches tile.

    Example:
        >>> import torch
        >>> from alpro_hf import AlproVideoConfig, AlproVideoModel
        >>> model = AlproVideoModel(AlproVideoConfig(num_hidden_layers=2))
        >>> model(torch.rand(1, 8, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 197, 768])
    """

    config_class = AlproVideoConfig
    config: AlproVideoConfig
    base_model_prefix = "video_model"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _can_record_outputs = {  # noqa: RUF012 (the library's way)
        "hidden_states": AlproVideoLayer,
        "attentions": OutputRecorder(AlproAttention, index=1, layer_name="spatial_attn"),
        "temporal_attentions": OutputRecorder(AlproAttention, index=1, layer_name="temporal_attn"),
    }

    def __init__(self, config: AlproVideoConfig):
        super().__init__(config)
        self.embeddings = AlproVideoEmbeddings(config)
        self.layers = nn.ModuleList([AlproVideoLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embed

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values_videos: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> AlproVideoModelOutput:
        """Encode clips.

        Args:
            pixel_values_videos: (B, T, 3, H, W), normalised frames.
        """
        if pixel_values_videos.ndim != 5:
            raise ValueError(
                "pixel_values_videos must have the shape (batch, frames, channels, height, width); received "
                f"{tuple(pixel_values_videos.shape)}."
            )
        num_frames = pixel_values_videos.shape[1]
        hidden_states = self.embeddings(pixel_values_videos)
        for layer in self.layers:
            hidden_states = layer(hidden_states, num_frames, **kwargs)
        normed = self.norm(hidden_states)
        cls, patches = normed[:, :1], normed[:, 1:]
        patches = patches.unflatten(1, (num_frames, -1)).mean(dim=1)
        return AlproVideoModelOutput(last_hidden_state=torch.cat([cls, patches], dim=1), pooler_output=cls.squeeze(1))


class AlproTextModel(AlproPreTrainedModel):
    """BERT whose lower layers encode text and whose upper layers fuse it with video tokens (section 3.1)."""

    config_class = AlproTextConfig
    config: AlproTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _can_record_outputs = {  # noqa: RUF012 (the library's way)
        "hidden_states": AlproTextLayer,
        "attentions": OutputRecorder(AlproAttention, index=1, layer_name="attention"),
    }

    def __init__(self, config: AlproTextConfig):
        super().__init__(config)
        self.embeddings = AlproTextEmbeddings(config)
        self.layers = nn.ModuleList([AlproTextLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc, unused-ignore]  # TransformersKwargs lists position_ids too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode text with the layers below `fusion_layer`.

        Args:
            input_ids: int64 (B, L).
            attention_mask: (B, L), 1 for tokens and 0 for padding; None: nothing is padded.
            token_type_ids, position_ids: int64 (B, L); None: zeros and 0..L-1.
            inputs_embeds: (B, L, D) word embeddings instead of `input_ids`.

        Returns:
            `last_hidden_state` (B, L, D) and `pooler_output` (B, D), its first token.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        hidden_states = self.embeddings(inputs_embeds, token_type_ids, position_ids)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers[: self.config.fusion_layer]:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])

    @merge_with_config_defaults
    @capture_outputs
    def fuse(
        self,
        text_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        video_hidden_states: torch.Tensor,
        first_tokens: int | None = None,
        video_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Run the layers from `fusion_layer` on over text tokens followed by video tokens.

        Args:
            text_hidden_states: (B, L, D), `last_hidden_state` of `forward`.
            attention_mask: (B, L) of the text; None: nothing is padded.
            video_hidden_states: (B, 1 + N, D), `last_hidden_state` of the video tower.
            first_tokens: How many tokens are wanted: the last layer computes no others, which changes nothing in
                these (a head on the CLS token wants 1). None: all.
            video_index: int64 (B,), the video of each text, where `video_hidden_states` is (V, 1 + N, D) with each
                video once: what the first layer makes of its tokens alone is then computed once. None: row by row.

        Returns:
            `last_hidden_state` (B, L + 1 + N, D), text first, or (B, first_tokens, D).
        """
        shared = {}
        if video_index is not None:
            shared = {"shared": (video_hidden_states, video_index)}
            video_hidden_states = video_hidden_states[video_index]
        if text_hidden_states.shape[0] != video_hidden_states.shape[0]:
            raise ValueError(
                f"fuse joins row i of the texts with row i of the videos, but received {text_hidden_states.shape[0]} "
                f"texts and {video_hidden_states.shape[0]} videos. Pass video_index, or repeat or expand one of them."
            )
        hidden_states = torch.cat([text_hidden_states, video_hidden_states], dim=1)
        if attention_mask is not None:
            video_mask = attention_mask.new_ones(video_hidden_states.shape[:2])
            attention_mask = torch.cat([attention_mask, video_mask], dim=1)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        layers = self.layers[self.config.fusion_layer :]
        for layer in layers[:-1]:
            hidden_states = layer(hidden_states, mask, **shared, **kwargs)
            shared = {}  # from here on a video's tokens have seen their text
        wanted = first_tokens
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and first_tokens != 1:
            # flash attention takes queries that are fewer than the keys for the last ones; see its _upad_input
            wanted = None
        elif first_tokens is not None and mask is not None:
            mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states[:, :first_tokens],
                attention_mask=attention_mask,
                encoder_hidden_states=hidden_states,
            )
        for layer in layers[-1:]:
            hidden_states = layer(hidden_states, mask, wanted, **shared, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states[:, :first_tokens])


def _unit_vector(projection: nn.Linear, cls: torch.Tensor) -> torch.Tensor:
    """(B, D) -> (B, P), in the precision of the weights: in bfloat16 close similarities would tie under autocast."""
    with torch.autocast(cls.device.type, enabled=False):
        return nn.functional.normalize(projection(cls.to(projection.weight.dtype)), dim=-1)


class AlproModel(AlproPreTrainedModel):
    """Both towers, their projections into one space and the fusion encoder, without a task head.

    Example:
        >>> import torch
        >>> from alpro_hf import AlproConfig, AlproModel
        >>> model = AlproModel(AlproConfig(text_config={"num_hidden_layers": 4, "fusion_layer": 2}))
        >>> out = model(input_ids=torch.tensor([[2, 7, 3]]), pixel_values_videos=torch.rand(1, 8, 3, 224, 224))
        >>> out.logits_per_text.shape
        torch.Size([1, 1])
    """

    config: AlproConfig

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.text_model = AlproTextModel._from_config(config.text_config)
        self.video_model = AlproVideoModel._from_config(config.video_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.video_projection = nn.Linear(config.video_config.hidden_size, config.projection_dim)
        # one element rather than none: fully sharded training rejects parameters without a dimension
        self.temperature = nn.Parameter(torch.full((1,), float(config.temperature_init)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_temperature(self) -> torch.Tensor:
        """The temperature (1,), held in the configured range. Its gradient passes the limits, so it never sticks."""
        inside = self.temperature.clamp(self.config.temperature_min, self.config.temperature_max)
        return self.temperature + (inside - self.temperature).detach()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts (B, L): tokens (B, L, D) in `last_hidden_state`, unit vector (B, P) in `pooler_output`."""
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        outputs.pooler_output = _unit_vector(self.text_projection, outputs.last_hidden_state[:, 0])
        return outputs

    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> AlproVideoModelOutput:
        """Encode clips (B, T, 3, H, W): tokens (B, 1 + N, D) and the unit vector (B, P) in `pooler_output`."""
        outputs = self.video_model(pixel_values_videos=pixel_values_videos, return_dict=True, **kwargs)
        outputs.pooler_output = _unit_vector(self.video_projection, outputs.last_hidden_state[:, 0])
        return outputs

    @can_return_tuple
    def fuse(
        self,
        text_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        video_hidden_states: torch.Tensor,
        first_tokens: int | None = None,
        video_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Fuse row i of the texts with row i of the videos, or `video_index[i]`; see `AlproTextModel.fuse`."""
        return self.text_model.fuse(
            text_hidden_states,
            attention_mask,
            video_hidden_states,
            first_tokens,
            video_index,
            return_dict=True,
            **kwargs,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        return_loss: bool | None = None,
        video_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproOutput:
        """Compare every text with every clip.

        Args:
            input_ids, attention_mask: (texts, L).
            pixel_values_videos: (videos, T, 3, H, W).
            return_loss: Whether to compute the contrastive loss; then text i belongs to video i.
            video_ids, text_ids: int64 (B,); rows with equal numbers share a video or a caption and are no negatives.
            gather: Collects a tensor (B, ...) from every process into (G, ...) in rank order, with gradients for
                floating point; None: a single process.
            rank: Index of this process.
        """
        if pixel_values_videos is None:
            raise ValueError("AlproModel needs pixel_values_videos; for texts alone call get_text_features.")
        video_outputs = self.get_video_features(pixel_values_videos, return_dict=True, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        video_embeds, text_embeds = video_outputs.pooler_output, text_outputs.pooler_output
        with torch.autocast(text_embeds.device.type, enabled=False):  # as in vtc_loss: bfloat16 would make ties
            logits_per_text = text_embeds @ video_embeds.t() / self.get_temperature()
        loss = None
        if return_loss:
            loss = self.contrastive_loss(video_embeds, text_embeds, video_ids, text_ids, gather, rank)
        return AlproOutput(
            loss=loss,
            logits_per_video=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            text_model_output=text_outputs,
            video_model_output=video_outputs,
        )

    def contrastive_loss(
        self,
        video_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        video_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        gather: Gather | None = None,
        rank: int = 0,
    ) -> torch.Tensor:
        """VTC over the global batch; arguments as in `forward`. Text i belongs to video i."""
        if video_embeds.shape[0] != text_embeds.shape[0]:
            raise ValueError(
                f"The contrastive loss pairs text i with video i, but received {text_embeds.shape[0]} texts and "
                f"{video_embeds.shape[0]} videos."
            )

        def no_gather(tensor: torch.Tensor) -> torch.Tensor:
            return tensor

        collect = gather or no_gather
        all_video_embeds, all_text_embeds = collect(video_embeds), collect(text_embeds)
        same_pair = same_pair_mask(
            video_ids,
            text_ids,
            None if video_ids is None else collect(video_ids),
            None if text_ids is None else collect(text_ids),
            size=(len(video_embeds), len(all_video_embeds)),
            rank=rank,
            device=video_embeds.device,
        )
        return vtc_loss(
            video_embeds,
            text_embeds,
            self.get_temperature(),
            all_video_embeds=all_video_embeds,
            all_text_embeds=all_text_embeds,
            same_pair=same_pair,
            rank=rank,
        )

    def matching_rows(
        self,
        outputs: AlproOutput,
        attention_mask: torch.Tensor | None,
        video_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        generator: torch.Generator | None = None,
        negatives: Literal["local", "global"] = "local",
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What VTM fuses: B true pairs, B texts with a wrong video and B videos with a wrong text (section 3.2).

        Args:
            outputs: Of `forward` for B pairs.
            attention_mask: (B, L) of the texts.
            video_ids, text_ids, gather, rank: As in `forward`.
            generator: Randomness of the draw. With `negatives="global"` it must be in the same state on every
                process; then the draw is that of a single process with the whole batch.
            negatives: Where wrong videos and texts come from: this process (`local`, as the original code does), or
                all of them (`global`, for which every process needs texts of equal length L and as many rows).

        Returns:
            Text states (3B, L, D), their mask (3B, L) or None, video states (V, 1 + N, D) that begin with those of the
            B videos, which of them each text meets (`video_index` of `fuse`, int64 (3B,)), labels int64 (3B,).
        """
        if negatives not in ("local", "global"):
            raise ValueError(f"negatives={negatives!r} is unknown; use 'local' or 'global'.")
        text_output: Any = outputs.text_model_output
        video_output: Any = outputs.video_model_output
        assert outputs.logits_per_text is not None
        text_BLD, video_BND = text_output.last_hidden_state, video_output.last_hidden_state
        batch = len(text_BLD)
        pool_text, pool_video, pool_mask = text_BLD, video_BND, attention_mask
        logits_per_text, first = outputs.logits_per_text.detach(), 0
        if negatives == "global" and gather is not None:
            pool_text, pool_video = gather(text_BLD), gather(video_BND)
            pool_mask = None if attention_mask is None else gather(attention_mask)
            video_ids = None if video_ids is None else gather(video_ids)
            text_ids = None if text_ids is None else gather(text_ids)
            assert outputs.text_embeds is not None and outputs.video_embeds is not None
            with torch.no_grad(), torch.autocast(text_BLD.device.type, enabled=False):  # exact, as in `forward`
                logits_per_text = gather(outputs.text_embeds) @ gather(outputs.video_embeds).t()
                logits_per_text = logits_per_text / self.get_temperature()
            first = rank * batch
        size = (len(pool_text), len(pool_text))
        same_pair = same_pair_mask(video_ids, text_ids, size=size, device=text_BLD.device)
        wrong_video, video_valid = sample_hard_negatives(logits_per_text, same_pair, generator)
        wrong_text, text_valid = sample_hard_negatives(logits_per_text.t(), same_pair, generator)
        mine = slice(first, first + batch)
        mask = None
        if attention_mask is not None and pool_mask is not None:
            mask = torch.cat([attention_mask, attention_mask, pool_mask[wrong_text[mine]]])
        own = torch.arange(batch, device=text_BLD.device)
        videos, wrong = video_BND, wrong_video
        if pool_video is not video_BND:
            videos, wrong = torch.cat([video_BND, pool_video[wrong_video[mine]]]), batch + own
        return (
            torch.cat([text_BLD, text_BLD, pool_text[wrong_text[mine]]]),
            mask,
            videos,
            torch.cat([own, wrong, own]),
            vtm_labels(video_valid[mine], text_valid[mine]),
        )

    @classmethod
    def from_unimodal_pretrained(cls, vision: str, text: str, **config_kwargs: Any) -> "AlproModel":
        """Start as the paper does (section 4.1): from a ViT and a BERT checkpoint, no video seen yet.

        Space and time attention both start as the ViT's attention; the temporal projection of every layer but the
        first starts at zero, so that at first those layers are the image model's; time embeddings start at zero.
        Layers [0, fusion_layer) of BERT encode text and the rest start the fusion. Projections are new.

        Args:
            vision: Folder or Hub id of a `ViTModel` checkpoint.
            text: Folder or Hub id of a `BertModel` checkpoint.
            config_kwargs: Fields of `AlproConfig`; `text_config` and `video_config` may be dictionaries that replace
                single fields, for instance `video_config={"num_frames": 4}`.

        Returns:
            The model in evaluation mode, as `from_pretrained` does.

        Raises:
            ValueError: A checkpoint is of another type, or its tensors are not those of the configured sizes.
        """
        towers = []
        for name, source, expected in (("vision", vision, "vit"), ("text", text, "bert")):
            found = AutoConfig.from_pretrained(source).model_type
            if found != expected:
                raise ValueError(
                    f"{name}={source!r} holds a model of type {found!r}; from_unimodal_pretrained starts from type "
                    f"{expected!r}."
                )
            tower, report = AutoModel.from_pretrained(source, add_pooling_layer=False, output_loading_info=True)
            if report["missing_keys"]:
                raise ValueError(
                    f"{name}={source!r} lacks the weights {', '.join(sorted(report['missing_keys']))}: it does not "
                    f"hold a whole model of type {expected!r}."
                )
            towers.append(tower)
        vit, bert = towers
        depth = bert.config.num_hidden_layers
        shared = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
        shared += ["hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"]
        text_fields = [*shared, "vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id"]
        video_fields = [*shared, "image_size", "patch_size", "num_channels", "qkv_bias"]
        text_config = {key: getattr(bert.config, key) for key in text_fields} | {"fusion_layer": depth // 2}
        video_config = {key: getattr(vit.config, key) for key in video_fields}
        config = AlproConfig(
            text_config=text_config | config_kwargs.pop("text_config", {}),
            video_config=video_config | config_kwargs.pop("video_config", {}),
            **config_kwargs,
        )
        model = cls(config)
        model.video_model.load_state_dict(video_state_from_vit(vit.state_dict(), model.video_model.state_dict()))
        model.text_model.load_state_dict(text_state_from_bert(bert.state_dict(), model.text_model.state_dict()))
        return model.eval()


class AlproForVideoTextRetrieval(AlproPreTrainedModel):
    """Text-video retrieval: contrastive similarity (VTC) and a matching classifier on the fused CLS token (VTM)."""

    config: AlproConfig

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
        self.vtm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.post_init()

    def match(
        self,
        text_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        video_hidden_states: torch.Tensor,
        video_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Score row i of the texts with row i of the videos: logits (B, 2), column 1 = matched.

        Args:
            text_hidden_states: (B, L, D) from `alpro.get_text_features`.
            attention_mask: (B, L) of the text; None: nothing is padded.
            video_hidden_states: (B, 1 + N, D) from `alpro.get_video_features`.
            video_index: int64 (B,), the video of each text, if `video_hidden_states` (V, 1 + N, D) has each once.
        """
        fused = self.alpro.fuse(
            text_hidden_states, attention_mask, video_hidden_states, 1, video_index, return_dict=True, **kwargs
        )
        return self.vtm_head(fused.last_hidden_state[:, 0])

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        return_loss: bool | None = None,
        video_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        generator: torch.Generator | None = None,
        negatives: Literal["local", "global"] = "local",
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproRetrievalOutput:
        """Score texts with clips, or compute the two losses of section 3.2.

        Args:
            input_ids, attention_mask, pixel_values_videos, video_ids, text_ids, gather, rank: As in `AlproModel`.
            return_loss: Whether to compute VTC and VTM; then text i belongs to video i. Otherwise row i of the texts
                is matched with row i of the videos; a single text or a single video is matched with all of the other.
            generator, negatives: Of the hard negatives, see `AlproModel.matching_rows`.
        """
        outputs = self.alpro(input_ids, attention_mask, pixel_values_videos, return_dict=True, **kwargs)
        text_BLD = outputs.text_model_output.last_hidden_state
        video_BND = outputs.video_model_output.last_hidden_state
        if not return_loss:
            rows = max(len(text_BLD), len(video_BND))
            if not {len(text_BLD), len(video_BND)} <= {1, rows}:
                raise ValueError(
                    f"Matching scores text i with video i, but received {len(text_BLD)} texts and {len(video_BND)} "
                    "videos. Pass as many of each, or one of one kind; for all similarities use AlproModel."
                )
            if attention_mask is not None:
                attention_mask = attention_mask.expand(rows, -1)
            logits = self.match(text_BLD.expand(rows, -1, -1), attention_mask, video_BND.expand(rows, -1, -1))
            return AlproRetrievalOutput(**outputs, vtm_logits=logits)

        loss_vtc = self.alpro.contrastive_loss(
            outputs.video_embeds, outputs.text_embeds, video_ids, text_ids, gather, rank
        )
        text, mask, videos, video_index, labels = self.alpro.matching_rows(
            outputs, attention_mask, video_ids, text_ids, gather, rank, generator, negatives
        )
        logits = self.match(text, mask, videos, video_index)
        loss_vtm = classification_loss(logits, labels)
        outputs.loss = loss_vtc + loss_vtm
        return AlproRetrievalOutput(
            **outputs, loss_vtc=loss_vtc, loss_vtm=loss_vtm, vtm_logits=logits, vtm_labels=labels
        )


class AlproForVideoQuestionAnswering(AlproPreTrainedModel):
    """Video question answering as a choice among the answers in `config.id2label` (section 4.3)."""

    config: AlproConfig

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.alpro = AlproModel(config)
        self.classifier = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, config.num_labels or 0)
        )
        self._freeze_contrastive_parts()
        self.post_init()

    def _freeze_contrastive_parts(self) -> None:
        # they have no role in answering, and a parameter without gradient stalls distributed training
        for unused in (self.alpro.text_projection, self.alpro.video_projection):
            unused.requires_grad_(False)
        self.alpro.temperature.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        # loading makes every parameter anew, and trainable
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info=True
        model._freeze_contrastive_parts()
        return loaded

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        video_index: torch.Tensor | None = None,
        answer_mask: torch.Tensor | None = None,
        label_count: torch.Tensor | float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproQuestionAnsweringOutput:
        """Answer questions about clips; a clip is encoded once however many questions it gets.

        Args:
            input_ids, attention_mask: (B, L), the questions.
            pixel_values_videos: (V, T, 3, H, W), the clips.
            labels: int64 (B,), index of the answer; -100 for an answer outside the list, which carries no loss.
            video_index: int64 (B,) in [0, V): the clip of each question; None: question i is about clip i.
            answer_mask: bool (B, answers), True where an answer may be given (multiple choice); the logits of the
                others are -inf. None: all may.
            label_count: What the summed loss is divided by, see `classification_loss`.
        """
        video_outputs = self.alpro.video_model(pixel_values_videos, return_dict=True, **kwargs)
        text_outputs = self.alpro.text_model(input_ids, attention_mask, return_dict=True, **kwargs)
        if video_index is not None:
            clips = len(video_outputs.last_hidden_state)
            # a negative number would take another clip without a word; a compiler does not know the numbers
            if not torch.compiler.is_compiling() and not ((video_index >= 0) & (video_index < clips)).all():
                raise ValueError(
                    f"video_index must point at the {clips} clips in pixel_values_videos, with numbers from 0 to "
                    f"{clips - 1}; received {video_index.tolist()}. Index and clips must come from the same batch, "
                    "undivided."
                )
        # the classifier reads the CLS token; who looks inside wants every token
        config = self.alpro.text_model.config
        inside = kwargs.get("output_hidden_states") or config.output_hidden_states
        inside = inside or kwargs.get("output_attentions") or config.output_attentions
        fused = self.alpro.fuse(
            text_outputs.last_hidden_state,
            attention_mask,
            video_outputs.last_hidden_state,
            first_tokens=None if inside else 1,
            video_index=video_index,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(fused.last_hidden_state[:, 0])
        if answer_mask is not None:
            logits = logits.masked_fill(~answer_mask.bool(), float("-inf"))
        return AlproQuestionAnsweringOutput(
            loss=None if labels is None else classification_loss(logits, labels, label_count),
            logits=logits,
            text_model_output=text_outputs,
            video_model_output=video_outputs,
            fusion_model_output=fused,
        )
