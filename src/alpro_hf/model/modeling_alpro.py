"""The ALPRO model: video tower, text and fusion encoder, and the heads for retrieval and question answering.

Source: "Align and Prompt: Video-and-Language Pre-training with Entity Prompts", arXiv 2112.09583, section 3. The file
follows transformers' convention: everything between the configuration and the task heads is in one place.

Shape suffixes, as in `patches_BTND`:
    B: rows of a batch (pairs, or clips or texts of one tower)
    T: frames of a clip
    N: patches of a frame; those that training keeps, with `patch_dropout`
    L: tokens of a text
    D: width of a tower
    P: width of the contrastive space
    V: distinct clips, where several texts share one

Inside the video tower a clip is (B, 1 + T * N, D): the CLS token, the patches of frame 0, of frame 1, and so on. With
`cls_per_frame` it is (B, T + T * N, D), where the first T tokens are the CLS tokens of the frames. The output of the
tower is (B, 1 + N, D), because it averages over time.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

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
from transformers.utils.generic import can_return_tuple, maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
from .image_text_alpro import config_from_blip, load_blip, model_state_from_blip
from .loss_alpro import (
    IGNORE_INDEX,
    classification_loss,
    hardest_negatives,
    pools_of,
    same_pair_mask,
    sample_hard_negatives,
    vtc_loss,
    vtm_labels,
)
from .matching_alpro import at_least_float32, vtc_scores
from .unimodal_alpro import text_state_from_bert, video_state_from_vit

# collects a tensor (B, ...) of every process into (G, ...), in the order of the ranks
Gather = Callable[[torch.Tensor], torch.Tensor]
# what layers compute in; quantised weights are stored in other types
_COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# what a training step on pairs of text and clip reads of a batch, see `AlproPreTrainedModel.training_inputs`
PAIR_INPUTS: tuple[str, ...] = ("input_ids", "attention_mask", "pixel_values_videos", "video_ids", "text_ids")
PAIR_INPUTS += ("negative_input_ids", "negative_attention_mask", "has_negative")


@dataclass
class AlproVideoModelOutput(BaseModelOutputWithPooling):
    """Output of the video tower.

    Args:
        last_hidden_state: (B, 1 + N, D): the CLS token, then the patch tokens averaged over time.
        pooler_output: (B, D), the CLS token. In the output of `get_video_features`: the unit vector (B, P).
        hidden_states: (B, 1 + T * N, D) before each layer and after the last one; (B, T + T * N, D) with
            `cls_per_frame`.
        attentions: Space attention of each layer, (B * T, heads, 1 + N, 1 + N).
        temporal_attentions: Time attention of each layer, (B * N, heads, T, T), with
            `output_temporal_attentions=True`.
        kept_patches: int64 (B, N), the patch positions that are there, ascending, row by row of the patch grid. Only
            in training with `patch_dropout`, where N in all shapes above is their number; None: all positions.
    """

    temporal_attentions: tuple[torch.Tensor, ...] | None = None
    kept_patches: torch.Tensor | None = None


@dataclass
class AlproOutput(ModelOutput):
    """Output of `AlproModel`.

    Args:
        loss: Scalar contrastive loss, if `return_loss=True`.
        logits_per_video: (videos, texts), cosine similarity divided by the temperature. In float32 also where the
            weights have half precision, because bfloat16 makes ties.
        logits_per_text: (texts, videos), the transpose of `logits_per_video`.
        text_embeds, video_embeds: Unit vectors (texts, P) and (videos, P), in float32 like the logits.
        text_model_output, video_model_output: Complete outputs of the towers.
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
    """Output of `AlproForVideoTextRetrieval`: the output of `AlproModel` and the matching scores.

    Args:
        loss: Scalar, `loss_vtc + loss_vtm`, if `return_loss=True`.
        loss_vtc, loss_vtm: Scalars, the contrastive and the matching loss, if `return_loss=True`.
        vtm_logits: If `return_loss=True`, (3B, 2): B true pairs, B texts with a wrong video, B videos with a wrong
            text; with false captions (4B, 2), where these come last. Otherwise (B, 2): row i scores text i with video
            i. Column 1 is "matched".
        vtm_labels: int64 (3B,) or (4B,): 1 for true pairs, 0 for wrong pairs, -100 for rows without a negative.
        fusion_model_output: Output of the fusion encoder for the rows of `vtm_logits`. Its `last_hidden_state` is the
            CLS token (rows, 1, D); if hidden states or attentions are requested, it holds all tokens
            (rows, L + 1 + N, D).
    """

    loss_vtc: torch.Tensor | None = None
    loss_vtm: torch.Tensor | None = None
    vtm_logits: torch.Tensor | None = None
    vtm_labels: torch.Tensor | None = None
    fusion_model_output: BaseModelOutput | None = None


@dataclass
class AlproQuestionAnsweringOutput(ModelOutput):
    """Output of `AlproForVideoQuestionAnswering`.

    Args:
        loss: Scalar cross entropy over the rows whose label is not -100, if labels were given.
        logits: (B, answers).
        text_model_output, video_model_output: Complete outputs of the towers.
        fusion_model_output: Complete output of the fusion encoder. Its `last_hidden_state` is the CLS token (B, 1, D);
            if hidden states or attentions are requested, it holds all tokens (B, L + 1 + N, D).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_model_output: BaseModelOutput | None = None
    video_model_output: AlproVideoModelOutput | None = None
    fusion_model_output: BaseModelOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class SharedTokens(NamedTuple):
    """The tokens that rows of a batch end with, stored once for all rows that share them.

    Attributes:
        tokens: (V, N, D).
        row: int64 (B,) in [0, V): row i of the batch ends with `tokens[row[i]]`.
    """

    tokens: torch.Tensor
    row: torch.Tensor


@dataclass(frozen=True)
class NegativeSampling:
    """How VTM draws its wrong videos and wrong texts; the defaults are the paper's.

    Args:
        where: The candidates of a row are the rows of its process (`local`, as in the released code) or of all
            processes (`global`; every process then needs equally many rows and equal L). Without effect with `pool`.
        pool: The candidates of a row are about this many neighbouring rows of the batch of all processes, see
            `pools_of`. They do not depend on the number of processes: the draw is that of a single process with the
            whole batch. A pool within one process needs no exchange of token states; a pool across processes needs
            equally many rows and equal L in each. None: all rows that `where` says.
        temperature: Divisor of the cosine similarities in the softmax of the draw. None: the learned temperature, as
            in the paper. A higher one draws more varied negatives.
        uniform_share: Share of the probability that is the same for all candidates, in [0, 1].

    Raises:
        ValueError: A value is out of its range.
    """

    where: Literal["local", "global"] = "local"
    pool: int | None = None
    temperature: float | None = None
    uniform_share: float = 0.0

    def __post_init__(self) -> None:
        if self.where not in ("local", "global"):
            raise ValueError(f"negatives={self.where!r} is unknown; use 'local' or 'global'.")
        if self.pool is not None and self.pool < 2:
            raise ValueError(f"pool={self.pool} has no room for a wrong pair; use at least 2, or None for all rows.")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0, or None for the learned one.")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share={self.uniform_share} must lie between 0 and 1.")


class EditedTexts(NamedTuple):
    """False captions of the B clips of a batch, made from the true ones; see `alpro edit-captions`.

    Attributes:
        text: float (B, L, D), token states; L is that of the true captions.
        mask: (B, L), 1 for tokens and 0 for padding. None: nothing is padded.
        embeds: float (B, P), unit vectors.
        exist: bool (B,), False where a clip has no false caption; its row is a filler.
    """

    text: torch.Tensor
    mask: torch.Tensor | None
    embeds: torch.Tensor
    exist: torch.Tensor


class MatchingRows(NamedTuple):
    """The 3B rows of the matching loss: B true pairs, B texts with a wrong video, B videos with a wrong text.

    With edited captions there are B more: the false captions, each with its own clip.

    Attributes:
        text: float (3B, L, D), token states of the texts.
        mask: (3B, L), 1 for tokens and 0 for padding. None: nothing is padded.
        videos: float (V, 1 + N, D), token states of the clips, those of the B true pairs first.
        video_index: int64 (3B,) in [0, V), the clip of each text; see `fuse`.
        labels: int64 (3B,), see `vtm_labels`.
    """

    text: torch.Tensor
    mask: torch.Tensor | None
    videos: torch.Tensor
    video_index: torch.Tensor
    labels: torch.Tensor

    def with_edited(self, edited: EditedTexts | None) -> "MatchingRows":
        """Append the false captions of the B clips; None: there are none."""
        if edited is None:
            return self
        batch = len(edited.text)
        mask = self.mask
        if mask is not None or edited.mask is not None:
            first = self.text.new_ones(self.text.shape[:2], dtype=torch.long) if mask is None else mask
            last = edited.text.new_ones(edited.text.shape[:2], dtype=first.dtype)
            mask = torch.cat([first, last if edited.mask is None else edited.mask])
        return MatchingRows(
            text=torch.cat([self.text, edited.text]),
            mask=mask,
            videos=self.videos,
            video_index=torch.cat([self.video_index, self.video_index[:batch]]),  # of the true pairs
            labels=torch.cat([self.labels, torch.where(edited.exist, 0, IGNORE_INDEX)]),
        )


def _input_dtype(layer: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Return the type that the input of a layer must have.

    A plain layer takes the type of its weight. A quantised layer stores integers or float8 and casts its input itself,
    so its weight says nothing about the type that the model computes in; some have no weight at all.

    Args:
        layer: Linear layer or convolution, or what stands in its place.
        otherwise: Result for a quantised layer.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dtype in _COMPUTE_DTYPES:
        return weight.dtype
    return otherwise


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
    """Compute attention by explicit matrix products; the only implementation that returns its weights.

    Args:
        module: Attention layer; its training mode switches the dropout.
        query: (B, heads, queries, head_dim).
        key, value: (B, heads, keys, head_dim).
        attention_mask: Added to the scores, broadcast to (B, heads, queries, keys): 0 or a large negative number.
        scaling: Factor of the scores, `head_dim ** -0.5`.
        dropout: Probability of dropping a weight.

    Returns:
        Output (B, queries, heads, head_dim) and weights (B, heads, queries, keys).
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # float32: half precision loses small weights in long sequences
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class AlproAttention(nn.Module):
    """Multi-head self-attention of both towers, on the library's attention interface.

    Query, key and value are one stacked projection, as in the released checkpoints.
    """

    def __init__(self, config: AlproTextConfig | AlproVideoConfig, bias: bool = True):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # sdpa would be causal whenever the mask is None
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        first_tokens: int | None = None,
        shared: SharedTokens | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let the first tokens of each row attend to all tokens of that row.

        Args:
            hidden_states: (B, L, D).
            attention_mask: Mask in the form of the chosen implementation. None: nothing is masked.
            first_tokens: Number of tokens per row that are queries. None: all.
            shared: The tokens at the end of each row, if several rows have the same ones. They are projected once.

        Returns:
            Output (B, first_tokens, D), and weights (B, heads, first_tokens, L) if the implementation returns them.
        """
        batch, length, width = hidden_states.shape
        # Always call `self.qkv` as a whole, even where only a part of its output is needed: an adapter or a quantised
        # layer may stand in its place, and slices of `self.qkv.weight` would bypass it.
        if shared is None:
            qkv = self.qkv(hidden_states)
        else:
            own_tokens = hidden_states[:, : -shared.tokens.shape[1]]
            qkv = torch.cat([self.qkv(own_tokens), self.qkv(shared.tokens)[shared.row]], dim=1)
        qkv = qkv.view(batch, length, 3, -1, self.head_dim)  # (B, L, 3, heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, head_dim)
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
        return self.proj(output.reshape(batch, -1, width)), weights  # (B, first_tokens, D)


class AlproMLP(nn.Module):
    """Two-layer feed-forward network of both towers: (..., D) -> (..., D)."""

    def __init__(self, config: AlproTextConfig | AlproVideoConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class AlproDropPath(nn.Module):
    """Stochastic depth: in training, zero whole rows of a residual branch and scale up the others.

    Args:
        rate: Probability of dropping a row, in [0, 1). 0 is the identity and draws no random number.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop rows of (R, ...); the mean over many draws is the input."""
        if self.rate == 0 or not self.training:
            return branch
        # drawn in float32: half precision rounds the probability
        kept = torch.empty(len(branch), dtype=torch.float32, device=branch.device).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate)).to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class AlproPatchProjection(nn.Conv2d):
    """A convolution of patches, computed as one matrix product, which is cheaper in bfloat16 on a CPU.

    `scripts/benchmarks/patches.py` compares the two.

    Args:
        channels: Channels of a frame.
        hidden_size: Channels of a token.
        patch_size: Height and width of a patch in pixels, and the stride.
    """

    def __init__(self, channels: int, hidden_size: int, patch_size: int):
        super().__init__(channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Project frames (B, C, H, W), which patches tile, to (B, D, H / patch, W / patch)."""
        patch = self.kernel_size[0]
        frames, channels, height, width = pixels.shape
        patches = pixels.reshape(frames, channels, height // patch, patch, width // patch, patch)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, H / patch, W / patch, C * patch * patch)
        return nn.functional.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class AlproVideoEmbeddings(nn.Module):
    """Turn frames into tokens: patch projection, CLS token, and additive space and time embeddings.

    Frames of any size and clips of any length work. Space embeddings are resized bicubically in two dimensions. Time
    embeddings are resized by nearest neighbour, as in the released code.
    """

    def __init__(self, config: AlproVideoConfig):
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.patch_embed: nn.Module = AlproPatchProjection(config.num_channels, config.hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + self.grid**2, config.hidden_size))
        self.time_embeddings = nn.Parameter(torch.empty(1, config.num_frames, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = (
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.norm_embeddings else nn.Identity()
        )

    def space_embeddings(self, height: int, width: int) -> torch.Tensor:
        """Return the space embeddings (1, height * width, D) of a grid of `height` x `width` patches."""
        patches = self.position_embeddings[:, 1:]
        # a size that an exported graph leaves free is not compared, or the graph would be for other sizes alone
        is_free = isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)
        if not is_free and (height, width) == (self.grid, self.grid):
            return patches
        square = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)  # (1, D, grid, grid)
        # in float32, because not every device interpolates half precision bicubically
        resized = nn.functional.interpolate(
            square.float(), size=(height, width), mode="bicubic", align_corners=False, antialias=False
        )
        return resized.to(patches.dtype).flatten(2).transpose(1, 2)

    def frame_embeddings(self, num_frames: int) -> torch.Tensor:
        """Return the time embeddings (1, num_frames, D)."""
        # an exported graph leaves the number free: comparing it would exclude the trained number from its range
        if not torch.compiler.is_exporting() and num_frames == self.time_embeddings.shape[1]:
            return self.time_embeddings
        # Parity: nearest neighbour. A checkpoint on 4 frames gives each embedding to two neighbouring frames of 8.
        resized = nn.functional.interpolate(self.time_embeddings.transpose(1, 2), size=num_frames, mode="nearest")
        return resized.transpose(1, 2)

    def forward(self, pixel_values_videos: torch.Tensor, kept_patches: torch.Tensor | None = None) -> torch.Tensor:
        """Embed clips.

        Args:
            pixel_values_videos: float (B, T, 3, H, W), normalised; H and W in pixels.
            kept_patches: int64 (B, N), positions on the patch grid to keep in every frame. None: all.

        Returns:
            (B, 1 + T * N, D): the CLS token, then the patches, frame by frame. With `cls_per_frame`, T CLS tokens,
            one per frame: (B, T + T * N, D).

        Raises:
            ValueError: Patches do not tile the frames.
        """
        batch, num_frames, _, height, width = pixel_values_videos.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values_videos has frames of {height} x {width} pixels, which patches of {patch} x {patch} "
                "do not tile. Resize the frames to a multiple of the patch size (AlproVideoProcessor does)."
            )
        # frames as a batch, in the type of the weights: processors return float32, models may be bfloat16
        dtype = _input_dtype(self.patch_embed, otherwise=self.cls_token.dtype)
        pixels = pixel_values_videos.flatten(0, 1).to(dtype)
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)  # (B * T, N, D)
        patches = patches + self.space_embeddings(height // patch, width // patch)
        patches_BTND = patches.view(batch, num_frames, -1, patches.shape[-1])
        if kept_patches is not None:  # here: each patch has the embedding of its place already
            clip = torch.arange(batch, device=kept_patches.device)[:, None]
            patches_BTND = patches_BTND.transpose(1, 2)[clip, kept_patches].transpose(1, 2)
        # Parity: as in TimeSformer, dropout follows the space embeddings and, once more, the time embeddings.
        patches_BTND = self.dropout(patches_BTND) + self.frame_embeddings(num_frames)[:, :, None]
        # the CLS token has a place in space and none in time
        cls = self.cls_token + self.position_embeddings[:, :1]
        if self.config.cls_per_frame:
            cls = cls.expand(-1, num_frames, -1)
        cls = self.dropout(cls).expand(batch, -1, -1)
        return self.norm(torch.cat([cls, self.dropout(patches_BTND).flatten(1, 2)], dim=1))


class AlproVideoLayer(GradientCheckpointingLayer):
    """Divided space-time attention: first over time at each patch, then over the patches of each frame.

    The CLS token takes no part in the time attention. A copy of it takes part in the space attention of every frame;
    the copies are averaged (TimeSformer, arXiv 2102.05095, as used in section 3.1 of the paper). With `cls_per_frame`
    every frame has a CLS token of its own, and none is averaged here.

    Args:
        config: Configuration of the tower.
        drop_path_rate: Probability of dropping a branch in this layer, see `AlproVideoConfig`.
    """

    def __init__(self, config: AlproVideoConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.cls_per_frame = config.cls_per_frame
        self.temporal_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attn = AlproAttention(config, bias=config.qkv_bias)
        self.temporal_fc = nn.Linear(config.hidden_size, config.hidden_size)
        self.spatial_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.spatial_attn = AlproAttention(config, bias=config.qkv_bias)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AlproMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = AlproDropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, num_frames: int, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Apply the layer.

        Args:
            hidden_states: (B, 1 + T * N, D), frame by frame; (B, T + T * N, D) with `cls_per_frame`.
            num_frames: T.

        Returns:
            The same shape.
        """
        num_cls = num_frames if self.cls_per_frame else 1
        cls, patches = hidden_states[:, :num_cls], hidden_states[:, num_cls:]
        batch, _, width = patches.shape
        patches_BTND = patches.reshape(batch, num_frames, -1, width)

        # time attention: one sequence of T tokens for each patch position
        along_time = self.temporal_norm(patches_BTND).transpose(1, 2).flatten(0, 1)  # (B * N, T, D)
        # of a single clip this is a view, for which torch would copy frozen weights once for each patch position
        along_time = along_time.contiguous()
        along_time, _ = self.temporal_attn(along_time, **kwargs)
        # TimeSformer's extra projection. Training from an image model starts it at zero, see `unimodal_alpro`.
        # Parity: branches are dropped by the rows of their attention, and before this projection, whose bias stays.
        along_time = self.temporal_fc(self.drop_path(self.dropout(along_time)))
        patches_BTND = patches_BTND + along_time.view(batch, -1, num_frames, width).transpose(1, 2)

        # space attention: one sequence of 1 + N tokens for each frame
        frame_cls = cls.expand(-1, num_frames, -1)[:, :, None]  # (B, T, 1, D)
        frames = torch.cat([frame_cls, patches_BTND], dim=2).flatten(0, 1)  # (B * T, 1 + N, D)
        in_frame, _ = self.spatial_attn(self.spatial_norm(frames), **kwargs)
        in_frame_BTND = self.drop_path(self.dropout(in_frame)).view(batch, num_frames, -1, width)
        in_frame_cls = in_frame_BTND[:, :, 0]
        if not self.cls_per_frame:
            # Parity: the residual of the CLS token is its own state plus the mean of its copies, one per frame.
            in_frame_cls = in_frame_cls.mean(dim=1, keepdim=True)
        cls = cls + in_frame_cls
        patches_BTND = patches_BTND + in_frame_BTND[:, :, 1:]

        hidden_states = torch.cat([cls, patches_BTND.flatten(1, 2)], dim=1)
        # pre-norm, as in ViT
        return hidden_states + self.drop_path(self.dropout(self.mlp(self.mlp_norm(hidden_states))))


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
        """Add position and type embeddings to word embeddings.

        Args:
            inputs_embeds: float (B, L, D), word embeddings.
            token_type_ids, position_ids: int64 (B, L). None: zeros, and 0 to L - 1.

        Returns:
            (B, L, D).

        Raises:
            ValueError: The text is longer than `max_position_embeddings`.
        """
        length, limit = inputs_embeds.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"The text has {length} tokens but the model reads at most {limit} "
                "(text_config.max_position_embeddings). Truncate it (AlproProcessor does)."
            )
        # Parity: positions count padding too, which is at the end; type 0 for every token, as ALPRO has one segment.
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.norm(embeddings))


class AlproTextLayer(GradientCheckpointingLayer):
    """One post-norm BERT layer. Text layers and fusion layers are built alike."""

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
        shared_tokens: torch.Tensor | None = None,
        shared_row: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Apply the layer.

        Tensors with gradients must be arguments of their own, passed by position: reentrant gradient checkpointing
        finds no others.

        Args:
            hidden_states, attention_mask, first_tokens: As in `AlproAttention`.
            shared_tokens, shared_row: The two parts of `SharedTokens`. None: rows share no tokens.

        Returns:
            (B, first_tokens, D), or (B, L, D) if that is None.
        """
        shared = None
        if shared_tokens is not None and shared_row is not None:
            shared = SharedTokens(shared_tokens, shared_row)
        attended, _ = self.attention(hidden_states, attention_mask, first_tokens, shared, **kwargs)
        hidden_states = self.attention_norm(hidden_states[:, :first_tokens] + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class AlproPreTrainedModel(PreTrainedModel):
    """Base class of the ALPRO models: configuration, weight initialisation, loading, saving, training interface.

    Class attributes:
        training_inputs: Arguments of `forward` that every training step passes, where the batch has them. Empty: the
            class cannot be trained by itself.
        training_losses: Names of the losses that `forward` computes. The value lists the inputs that switch the loss
            on; an empty tuple means that it is always computed. A model with a single loss returns it as `loss`, the
            others return each loss in the output field of that name.

    A trainer reads these attributes instead of the class: code that comes with a checkpoint (`trust_remote_code`)
    defines the same classes a second time, so `isinstance` would fail there.
    """

    config_class: type[PreTrainedConfig] = AlproConfig
    base_model_prefix = "alpro"
    training_inputs: ClassVar[tuple[str, ...]] = ()
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {}
    input_modalities: tuple[str, ...] = ("video", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # The checkpoint of one task starts the training of another, whose model has other heads.
    _keys_to_ignore_on_load_unexpected = [r"^(vtm|mlm|pem)_head\.", r"^classifier\.", r"_prompt_embeds$"]  # noqa: RUF012
    # Losses are means. By default the library takes `**kwargs` as a sign that it need not divide by the micro-steps.
    accepts_loss_kwargs = False
    _no_split_modules = [  # noqa: RUF012 (the library's way)
        "AlproVideoEmbeddings",
        "AlproVideoLayer",
        "AlproTextLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("use_safetensors", True)  # a pickle from an unknown source can run any code
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # `from_pretrained` leaves memory uninitialised, so each raw parameter that a checkpoint may lack is set here
        if isinstance(module, AlproVideoEmbeddings):
            init.zeros_(module.cls_token)
            for embeddings in (module.position_embeddings, module.time_embeddings):
                init.normal_(embeddings, std=module.config.position_initializer_range)
        elif isinstance(module, AlproModel):
            init.constant_(module.temperature, module.config.temperature_init)
        elif module is getattr(self, "vtm_head", None):
            # a copy, because the configuration may be that of another model, whose head is trained
            base: Any = self.base_model
            self.config = base.config = copy.copy(self.config)
            self.config.matching_trained = False


class AlproVideoModel(AlproPreTrainedModel):
    """TimeSformer-B/16 video tower (section 3.1) for any number of frames and any size that patches tile.

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
        depth = max(config.num_hidden_layers - 1, 1)  # 0 in the first layer, the whole rate in the last one
        self.layers = nn.ModuleList(
            [
                AlproVideoLayer(config, config.drop_path_rate * layer / depth)
                for layer in range(config.num_hidden_layers)
            ]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.patch_embed = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values_videos: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> AlproVideoModelOutput:
        """Encode clips.

        Args:
            pixel_values_videos: float (B, T, 3, H, W), normalised frames.

        Returns:
            `last_hidden_state` (B, 1 + N, D) and `pooler_output` (B, D), see `AlproVideoModelOutput`.

        Raises:
            ValueError: The tensor has another number of dimensions, or patches do not tile the frames.
        """
        if pixel_values_videos.ndim != 5:
            raise ValueError(
                "pixel_values_videos must have the shape (batch, frames, channels, height, width); received "
                f"{tuple(pixel_values_videos.shape)}."
            )
        num_frames = pixel_values_videos.shape[1]
        kept = self._draw_patches(pixel_values_videos)
        hidden_states = self.embeddings(pixel_values_videos, kept)
        for layer in self.layers:
            hidden_states = layer(hidden_states, num_frames, **kwargs)
        normed = self.norm(hidden_states)  # before the mean over time, as in the released code
        num_cls = num_frames if self.config.cls_per_frame else 1
        cls, patches = normed[:, :num_cls], normed[:, num_cls:]
        if self.config.cls_per_frame:
            cls = cls.mean(dim=1, keepdim=True)  # after the norm, as the mean of features of single images
        patches = patches.unflatten(1, (num_frames, -1)).mean(dim=1)  # (B, N, D), mean over time
        tokens = torch.cat([cls, patches], dim=1)
        return AlproVideoModelOutput(last_hidden_state=tokens, pooler_output=cls.squeeze(1), kept_patches=kept)

    def _draw_patches(self, pixel_values_videos: torch.Tensor) -> torch.Tensor | None:
        """Draw the patch positions (B, N) that a training step keeps of each clip; None: all.

        Outside of the layers, so that gradient checkpointing does not draw again.
        """
        if not self.training or self.config.patch_dropout == 0:
            return None
        height, width = pixel_values_videos.shape[-2:]
        patches = (height // self.config.patch_size) * (width // self.config.patch_size)
        kept = max(1, round(patches * (1 - self.config.patch_dropout)))
        noise = torch.rand(len(pixel_values_videos), patches, device=pixel_values_videos.device)
        return noise.topk(kept, dim=1).indices.sort(dim=1).values


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
            attention_mask: (B, L), 1 for tokens and 0 for padding. None: nothing is padded.
            token_type_ids, position_ids: int64 (B, L). None: zeros, and 0 to L - 1.
            inputs_embeds: float (B, L, D), word embeddings in place of `input_ids`.

        Returns:
            `last_hidden_state` (B, L, D) and `pooler_output` (B, D), its first token.

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds` are given, or the text is too long.
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
        """Run the fusion layers over the text tokens followed by the video tokens.

        Args:
            text_hidden_states: (B, L, D), `last_hidden_state` of `forward`.
            attention_mask: (B, L) of the text. None: nothing is padded.
            video_hidden_states: (B, 1 + N, D), `last_hidden_state` of the video tower; (V, 1 + N, D) with
                `video_index`.
            first_tokens: Number of tokens per row to return. The last layer computes no others, which does not change
                these; a head on the CLS token needs 1. None: all.
            video_index: int64 (B,) in [0, V), the video of each text. The first layer then projects the tokens of
                each video once, however many texts share it. None: row i of the texts goes with row i of the videos.

        Returns:
            `last_hidden_state` (B, L + 1 + N, D), text first, or (B, first_tokens, D).

        Raises:
            ValueError: The numbers or the widths of texts and videos differ.
        """
        text_width, video_width = text_hidden_states.shape[-1], video_hidden_states.shape[-1]
        if text_width != video_width:
            raise ValueError(
                f"fuse joins text and video tokens in one sequence, but texts have width {text_width} and videos "
                f"{video_width}. Models with towers of two widths have no fusion layers; use AlproModel, which "
                "compares vectors."
            )
        # the clips of the rows, each stored once; two tensors by position, see `AlproTextLayer.forward`
        shared: tuple[torch.Tensor, torch.Tensor] | tuple[()] = ()
        if video_index is not None:
            shared = (video_hidden_states, video_index)
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
            hidden_states = layer(hidden_states, mask, None, *shared, **kwargs)
            shared = ()  # from the second layer on, the tokens of a video depend on the text they are fused with
        if len(layers):
            hidden_states = self._last_fusion_layer(
                hidden_states, mask, attention_mask, first_tokens, *shared, **kwargs
            )
        return BaseModelOutput(last_hidden_state=hidden_states[:, :first_tokens])

    def _last_fusion_layer(
        self,
        hidden_states: torch.Tensor,
        mask: Any,
        attention_mask: torch.Tensor | None,
        first_tokens: int | None,
        *shared: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Run the last layer on the first tokens of each row; keys and values still come from all tokens.

        Args:
            hidden_states: (B, L + 1 + N, D).
            mask: Mask for all tokens as queries, in the form of the attention implementation. None: nothing is padded.
            attention_mask: (B, L + 1 + N), the mask in plain form.
            first_tokens, shared: As in `AlproTextLayer.forward`.

        Returns:
            (B, first_tokens, D), or all tokens.
        """
        last_layer = self.layers[-1]
        if first_tokens is None or mask is None:
            return last_layer(hidden_states, mask, first_tokens, *shared, **kwargs)
        is_flash_mask = isinstance(mask, torch.Tensor) and mask.ndim == 2
        if is_flash_mask and first_tokens != 1:
            # With padding, the library's flash attention (`_upad_input`) takes fewer queries than keys for the *last*
            # tokens of a row; a single query is an exception. So compute all tokens, and let the caller cut.
            return last_layer(hidden_states, mask, None, *shared, **kwargs)
        # The other implementations have one mask row per query, so fewer queries need another mask.
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states[:, :first_tokens],
            attention_mask=attention_mask,
            encoder_hidden_states=hidden_states,
        )
        return last_layer(hidden_states, mask, first_tokens, *shared, **kwargs)


class AlproScoringLinear(nn.Linear):
    """Linear layer whose output is compared and ranked: (..., in) -> (..., out), at least float32.

    Weights of half precision are cast, and autocast is off, because close scores become equal in bfloat16, and ties
    spoil ranking. The parameters are those of `nn.Linear`. The layer is small, so that its cost does not count.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with maybe_autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(dtype), self.weight.to(dtype), bias)


def _unit_vector(projection: nn.Module, cls: torch.Tensor) -> torch.Tensor:
    """Project the CLS token (B, D) to a unit vector (B, P), at least float32."""
    # an adapter or a quantised layer may stand in the place of the projection, and return half precision
    return nn.functional.normalize(at_least_float32(projection(cls)), dim=-1)


class AlproModel(AlproPreTrainedModel):
    """Both towers, their projections into the contrastive space, and the fusion encoder; no task head (section 3.1).

    Trained alone, the model learns from the contrastive loss VTC.

    Example:
        >>> import torch
        >>> from alpro_hf import AlproConfig, AlproModel
        >>> model = AlproModel(AlproConfig(text_config={"num_hidden_layers": 4, "fusion_layer": 2}))
        >>> out = model(input_ids=torch.tensor([[2, 7, 3]]), pixel_values_videos=torch.rand(1, 8, 3, 224, 224))
        >>> out.logits_per_text.shape
        torch.Size([1, 1])
    """

    config: AlproConfig
    training_inputs = (*PAIR_INPUTS, "video_hidden_states")
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {"loss_vtc": ()}

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.text_model = AlproTextModel._from_config(config.text_config)
        self.video_model = AlproVideoModel._from_config(config.video_config)
        self.text_projection = AlproScoringLinear(config.text_config.hidden_size, config.projection_dim)
        self.video_projection = AlproScoringLinear(config.video_config.hidden_size, config.projection_dim)
        # shape (1,), not (): fully sharded training (FSDP2) rejects parameters without a dimension
        self.temperature = nn.Parameter(torch.full((1,), float(config.temperature_init)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_temperature(self) -> torch.Tensor:
        """Return the temperature (1,), clamped to `[temperature_min, temperature_max]`.

        The gradient is that of the unclamped parameter: `clamp` alone has none outside the range, and a temperature
        that once left the range would never come back.
        """
        inside = self.temperature.clamp(self.config.temperature_min, self.config.temperature_max)
        return self.temperature + (inside - self.temperature).detach()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts (B, L).

        Returns:
            `last_hidden_state` (B, L, D), the tokens, and `pooler_output` (B, P), the unit vectors of VTC.
        """
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        outputs.pooler_output = _unit_vector(self.text_projection, outputs.last_hidden_state[:, 0])
        return outputs

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        video_hidden_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproVideoModelOutput:
        """Encode clips (B, T, 3, H, W), or go on from the tokens (B, 1 + N, D) of clips that were encoded before.

        Returns:
            `last_hidden_state` (B, 1 + N, D), the tokens, and `pooler_output` (B, P), the unit vectors of VTC.

        Raises:
            ValueError: Both or neither of the two are given.
        """
        outputs = self.video_tokens(pixel_values_videos, video_hidden_states, **kwargs)
        assert outputs.last_hidden_state is not None
        outputs.pooler_output = _unit_vector(self.video_projection, outputs.last_hidden_state[:, 0])
        return outputs

    def video_tokens(
        self,
        pixel_values_videos: torch.Tensor | None,
        video_hidden_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproVideoModelOutput:
        """Run the video tower on clips, or take the tokens of clips that it has encoded before.

        Args:
            pixel_values_videos: float (B, T, 3, H, W), normalised frames; or else
            video_hidden_states: (B, 1 + N, D), the tower's `last_hidden_state` of these clips.

        Raises:
            ValueError: Both or neither are given.
        """
        if (pixel_values_videos is None) == (video_hidden_states is None):
            raise ValueError("Pass exactly one of pixel_values_videos and video_hidden_states.")
        if video_hidden_states is None:
            outputs: Any = self.video_model(pixel_values_videos, return_dict=True, **kwargs)
            return outputs
        return AlproVideoModelOutput(last_hidden_state=video_hidden_states, pooler_output=video_hidden_states[:, 0])

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
        """Fuse text i with video i, or with video `video_index[i]`; arguments as in `AlproTextModel.fuse`."""
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
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        has_negative: torch.Tensor | None = None,
        video_hidden_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproOutput:
        """Compare every text with every clip.

        Args:
            input_ids, attention_mask: int64 (texts, L); mask 1 for tokens and 0 for padding.
            pixel_values_videos: float (videos, T, 3, H, W), normalised frames.
            return_loss: Whether to compute the contrastive loss. Text i then belongs to video i.
            video_ids, text_ids: int64 (B,). Rows with equal numbers share a video or a caption; they are not
                negatives of each other.
            gather: Function that collects a tensor (B, ...) from every process into (G, ...) in rank order, with
                gradients for floating point. None: a single process.
            rank: Index of this process.
            negative_input_ids, negative_attention_mask: int64 (B, L) like the texts: a false caption for each clip,
                one more negative of the loss. None: there are none.
            has_negative: bool (B,), False for a clip without a false caption. None: all have one.
            video_hidden_states: (videos, 1 + N, D), tokens that the video tower has made of the clips before, in
                place of `pixel_values_videos`. The tower then does not run; see `feature_cache` of the training.

        Raises:
            ValueError: There are no clips, or `return_loss=True` with different numbers of texts and clips.
        """
        if pixel_values_videos is None and video_hidden_states is None:
            raise ValueError("AlproModel needs pixel_values_videos; for texts alone call get_text_features.")
        # clips first: seeded dropout is reproducible only in a fixed order
        video_outputs = self.get_video_features(pixel_values_videos, video_hidden_states, return_dict=True, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        video_embeds, text_embeds = video_outputs.pooler_output, text_outputs.pooler_output
        logits_per_text = vtc_scores(text_embeds, video_embeds) / self.get_temperature()
        loss = None
        if return_loss:
            edited = self.edited_texts(input_ids, negative_input_ids, negative_attention_mask, has_negative, **kwargs)
            loss = self.contrastive_loss(video_embeds, text_embeds, video_ids, text_ids, gather, rank, edited)
        return AlproOutput(
            loss=loss,
            logits_per_video=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            text_model_output=text_outputs,
            video_model_output=video_outputs,
        )

    def edited_texts(
        self,
        input_ids: torch.Tensor | None,
        negative_input_ids: torch.Tensor | None,
        negative_attention_mask: torch.Tensor | None,
        has_negative: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EditedTexts | None:
        """Encode the false captions of a batch; None if there are none. Arguments as in `forward`.

        Raises:
            ValueError: They have another shape than the true captions.
        """
        if negative_input_ids is None:
            return None
        if input_ids is not None and negative_input_ids.shape != input_ids.shape:
            raise ValueError(
                f"negative_input_ids {tuple(negative_input_ids.shape)} must have the shape of input_ids "
                f"{tuple(input_ids.shape)}: one false caption for each text, padded to the same length (AlproCollator "
                "does so)."
            )
        outputs: Any = self.get_text_features(negative_input_ids, negative_attention_mask, return_dict=True, **kwargs)
        exist = torch.ones(len(negative_input_ids), dtype=torch.bool, device=negative_input_ids.device)
        return EditedTexts(
            outputs.last_hidden_state,
            negative_attention_mask,
            outputs.pooler_output,
            exist if has_negative is None else has_negative,
        )

    def contrastive_loss(
        self,
        video_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        video_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        edited: EditedTexts | None = None,
    ) -> torch.Tensor:
        """Compute VTC over the global batch (section 3.2).

        Args:
            video_embeds, text_embeds: (B, P), unit vectors of this process. Text i belongs to video i.
            video_ids, text_ids, gather, rank: As in `forward`.
            edited: False captions of the clips of this process. None: there are none.

        Returns:
            Scalar, the mean over the rows of this process.

        Raises:
            ValueError: The numbers of texts and videos differ.
        """
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
            edited_text_embeds=None if edited is None else edited.embeds,
            has_edited=None if edited is None else edited.exist,
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
        negatives: Literal["local", "global"] | NegativeSampling = "local",
    ) -> MatchingRows:
        """Choose hard negatives and lay out the rows that VTM fuses (section 3.2).

        In training they are drawn with the softmax of the similarities as probabilities. In evaluation mode they are
        the most similar ones, so that a batch always has the same loss, unless there is a generator to draw from.

        Args:
            outputs: Output of `forward` for B pairs.
            attention_mask: (B, L) of the texts.
            video_ids, text_ids, gather, rank: As in `forward`.
            generator: Source of randomness; negatives are then drawn in evaluation mode, too. With
                `negatives="global"` or a pool it must be in the same state on every process; the draw then equals
                that of a single process with the whole batch.
            negatives: How wrong videos and texts are drawn, see `NegativeSampling`; `local` and `global` stand for a
                sampling with that `where`.

        Returns:
            The 3B rows, see `MatchingRows`.

        Raises:
            ValueError: `negatives` is neither "local" nor "global" nor a sampling.
        """
        # not by the class, which code that comes with a checkpoint defines a second time
        sampling = NegativeSampling(negatives) if isinstance(negatives, str) else negatives
        text_output: Any = outputs.text_model_output
        video_output: Any = outputs.video_model_output
        assert outputs.logits_per_text is not None
        text_BLD, video_BND = text_output.last_hidden_state, video_output.last_hidden_state
        batch = len(text_BLD)
        # the pool of candidates: the rows of this process, or those of all processes
        pool_text, pool_video, pool_mask = text_BLD, video_BND, attention_mask
        logits_per_text, first = outputs.logits_per_text.detach(), 0
        everywhere = gather is not None and (sampling.where == "global" or sampling.pool is not None)
        if everywhere:
            assert gather is not None
            video_ids = None if video_ids is None else gather(video_ids)
            text_ids = None if text_ids is None else gather(text_ids)
            assert outputs.text_embeds is not None and outputs.video_embeds is not None
            with torch.no_grad():
                logits_per_text = vtc_scores(gather(outputs.text_embeds), gather(outputs.video_embeds))
                logits_per_text = logits_per_text / self.get_temperature()
            first = rank * batch  # of this process in the pool; needs equally many rows on every process
        if sampling.temperature is not None:
            logits_per_text = logits_per_text * (self.get_temperature().detach() / sampling.temperature)
        # the batch is square: row i of the texts belongs to row i of the videos
        size = (len(logits_per_text), len(logits_per_text))
        no_negative = same_pair_mask(video_ids, text_ids, size=size, device=text_BLD.device)
        stays_here = not everywhere
        if sampling.pool is not None:
            pools = pools_of(size[0], sampling.pool, text_BLD.device)
            no_negative = no_negative | (pools[:, None] != pools)
            # Whether a pool crosses the border of a process, which all processes compute alike.
            stays_here = stays_here or not bool((pools[batch::batch] == pools[batch - 1 : -1 : batch]).any())
        if self.training or generator is not None:
            share = sampling.uniform_share
            wrong_video, video_valid = sample_hard_negatives(logits_per_text, no_negative, generator, share)
            wrong_text, text_valid = sample_hard_negatives(logits_per_text.t(), no_negative, generator, share)
        else:
            wrong_video, video_valid = hardest_negatives(logits_per_text, no_negative)
            wrong_text, text_valid = hardest_negatives(logits_per_text.t(), no_negative)
        # All processes draw for the whole global batch, from equal generators, and each keeps its own rows.
        mine = slice(first, first + batch)
        wrong_video, wrong_text = wrong_video[mine], wrong_text[mine]
        if not stays_here:
            assert gather is not None
            pool_text, pool_video = gather(text_BLD), gather(video_BND)
            pool_mask = None if attention_mask is None else gather(attention_mask)
        elif everywhere:
            # a row without a negative has an index of anywhere, which is not used
            wrong_video, wrong_text = ((index - first).clamp(0, batch - 1) for index in (wrong_video, wrong_text))
        mask = None
        if attention_mask is not None and pool_mask is not None:
            mask = torch.cat([attention_mask, attention_mask, pool_mask[wrong_text]])
        own = torch.arange(batch, device=text_BLD.device)
        videos = video_BND
        if pool_video is not video_BND:
            # of a global pool only the drawn clips are kept, behind the own ones
            videos, wrong_video = torch.cat([video_BND, pool_video[wrong_video]]), batch + own
        return MatchingRows(
            text=torch.cat([text_BLD, text_BLD, pool_text[wrong_text]]),
            mask=mask,
            videos=videos,
            video_index=torch.cat([own, wrong_video, own]),
            labels=vtm_labels(video_valid[mine], text_valid[mine]),
        )

    @classmethod
    def from_unimodal_pretrained(cls, vision: str, text: str, **config_kwargs: Any) -> "AlproModel":
        """Build the model that training starts from in the paper: a ViT and a BERT, no video seen yet (section 4.1).

        Space attention and time attention both start as the attention of the ViT. The temporal projection of every
        layer but the first starts at zero, so that these layers at first equal those of the image model. Time
        embeddings start at zero. Layers [0, fusion_layer) of BERT encode text; the others start the fusion encoder.
        The projections into the contrastive space are new.

        Args:
            vision: Folder or Hub id of a `ViTModel` checkpoint.
            text: Folder or Hub id of a `BertModel` checkpoint.
            config_kwargs: Fields of `AlproConfig`. `text_config` and `video_config` may be dictionaries that replace
                single fields, for instance `video_config={"num_frames": 4}`.

        Returns:
            The model in evaluation mode, like `from_pretrained`.

        Raises:
            ValueError: A checkpoint is of another type, is incomplete, or its tensors do not have the configured
                sizes.
        """
        towers = []
        for name, source, expected in (("vision", vision, "vit"), ("text", text, "bert")):
            found = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
            if found != expected:
                raise ValueError(
                    f"{name}={source!r} holds a model of type {found!r}; from_unimodal_pretrained starts from type "
                    f"{expected!r}."
                )
            tower, report = AutoModel.from_pretrained(
                source, add_pooling_layer=False, output_loading_info=True, trust_remote_code=False
            )
            if report["missing_keys"]:
                raise ValueError(
                    f"{name}={source!r} lacks the weights {', '.join(sorted(report['missing_keys']))}, so it is not "
                    f"a complete model of type {expected!r}. Pass the folder that `save_pretrained` wrote."
                )
            towers.append(tower)
        vit, bert = towers
        depth = bert.config.num_hidden_layers
        shared = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
        shared += ["hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"]
        text_fields = [*shared, "vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id"]
        video_fields = [*shared, "image_size", "patch_size", "num_channels", "qkv_bias"]
        # As in the paper, the lower half of BERT encodes text and the upper half starts the fusion.
        text_config = {key: getattr(bert.config, key) for key in text_fields} | {"fusion_layer": depth // 2}
        video_config = {key: getattr(vit.config, key) for key in video_fields}
        config = AlproConfig(
            text_config=text_config | config_kwargs.pop("text_config", {}),
            video_config=video_config | config_kwargs.pop("video_config", {}),
            **config_kwargs,
        )
        # strict: `load_state_dict` names every tensor that the conversion did not provide
        model = cls(config)
        model.video_model.load_state_dict(video_state_from_vit(vit.state_dict(), model.video_model.state_dict()))
        model.text_model.load_state_dict(text_state_from_bert(bert.state_dict(), model.text_model.state_dict()))
        return model.eval()

    @classmethod
    def from_image_text_pretrained(cls, source: str, fusion_layers: int = 0, **config_kwargs: Any) -> "AlproModel":
        """Build a model from an aligned image-text model: BLIP for image-text retrieval (arXiv 2201.12086).

        The model compares texts and clips as BLIP compares texts and images: the vector of a clip is the mean of the
        vectors that BLIP gives its frames, before normalisation. No video has been seen yet. Space attention and time
        attention both start as BLIP's attention. Every temporal projection and the time embeddings start at zero, so
        time attention has no effect before fine-tuning. BLIP's cross-attention and matching head are left out. The
        temperature is new, because the checkpoint has none.

        `AlproProcessor.from_image_text_pretrained` makes the processor. `image_text_alpro` has the details.

        Args:
            source: Folder or Hub id of a `BlipForImageTextRetrieval` checkpoint, such as
                "Salesforce/blip-itm-base-coco"; or of a `ChineseCLIPModel`, whose vectors are kept likewise.
            fusion_layers: Number of fusion layers to append for fine-tuning. They start as copies of the last text
                layers and do not change the vectors. They need towers of one width.
            config_kwargs: Fields of `AlproConfig`, as in `from_unimodal_pretrained`. `cls_per_frame` is on unless
                `video_config` says otherwise.

        Returns:
            The model in float32 and in evaluation mode.

        Raises:
            ValueError: The checkpoint is of another type or incomplete, its tensors do not have the configured sizes,
                or `fusion_layers` does not fit it.
        """
        blip_config, blip_state = load_blip(source)
        fields = config_from_blip(blip_config, fusion_layers)
        for tower in ("text_config", "video_config"):
            fields[tower] |= config_kwargs.pop(tower, {})
        model = cls(AlproConfig(**(fields | config_kwargs)))
        model.load_state_dict(model_state_from_blip(blip_state, model.state_dict(), fusion_layers))
        return model.eval()


class AlproWithTowers(AlproPreTrainedModel):
    """Base class of the models around an `AlproModel`, which is their attribute `alpro`: features of either tower."""

    alpro: AlproModel

    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts, see `AlproModel.get_text_features`."""
        return self.alpro.get_text_features(input_ids, attention_mask, **kwargs)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> AlproVideoModelOutput:
        """Encode clips, see `AlproModel.get_video_features`."""
        return self.alpro.get_video_features(pixel_values_videos, **kwargs)

    def _tokens_to_fuse(self, needed: int, **kwargs: Unpack[TransformersKwargs]) -> int | None:
        """Return the number of tokens per row that `fuse` computes, `first_tokens`.

        A head reads the first `needed` ones. Requested hidden states or attentions are those of every token: None.
        """
        config = self.alpro.text_model.config
        wants_hidden_states = kwargs.get("output_hidden_states") or config.output_hidden_states
        wants_attentions = kwargs.get("output_attentions") or config.output_attentions
        return None if wants_hidden_states or wants_attentions else needed


class AlproWithMatching(AlproWithTowers):
    """Base class of the models with a matching head; evaluation and re-ranking treat them alike."""

    vtm_head: nn.Module

    def match(
        self,
        text_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        video_hidden_states: torch.Tensor,
        video_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Score how well text i matches video i.

        Args:
            text_hidden_states: (B, L, D) from `alpro.get_text_features`.
            attention_mask: (B, L) of the text. None: nothing is padded.
            video_hidden_states: (B, 1 + N, D) from `alpro.get_video_features`; (V, 1 + N, D) with `video_index`.
            video_index: int64 (B,) in [0, V), the video of each text.

        Returns:
            Logits (B, 2), at least float32; column 1 is "matched".
        """
        fused = self.alpro.fuse(
            text_hidden_states, attention_mask, video_hidden_states, 1, video_index, return_dict=True, **kwargs
        )
        return self._matching_logits(fused)

    def _matching_logits(self, fused: BaseModelOutput) -> torch.Tensor:
        """Classify the CLS token: (B, 2), at least float32."""
        assert fused.last_hidden_state is not None
        return at_least_float32(self.vtm_head(fused.last_hidden_state[:, 0]))


class AlproForVideoTextRetrieval(AlproWithMatching):
    """Text-video retrieval: contrastive similarity (VTC) and a matching classifier on the fused CLS token (VTM).

    Section 3.2 of the paper has the losses, section 4.3 the fine-tuning.
    """

    config: AlproConfig
    training_inputs = (*PAIR_INPUTS, "video_hidden_states")
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {"loss_vtc": (), "loss_vtm": ()}

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
        self.vtm_head = AlproScoringLinear(config.text_config.hidden_size, 2)  # 0: not matched, 1: matched
        self.post_init()

    @classmethod
    def from_image_text_pretrained(
        cls, source: str, fusion_layers: int = 6, **config_kwargs: Any
    ) -> "AlproForVideoTextRetrieval":
        """Build a model to fine-tune from BLIP for image-text retrieval, see `AlproModel.from_image_text_pretrained`.

        The matching head is new and random, so its scores mean nothing before fine-tuning; the vectors are those of
        BLIP. Six fusion layers are appended by default, as many as the paper has.

        Args:
            source, config_kwargs: As in `AlproModel.from_image_text_pretrained`.
            fusion_layers: Number of fusion layers, copies of the last text layers.

        Returns:
            The model in float32 and in evaluation mode.

        Raises:
            ValueError: As in `AlproModel.from_image_text_pretrained`.
        """
        start = AlproModel.from_image_text_pretrained(source, fusion_layers, **config_kwargs)
        model = cls(start.config)
        model.alpro.load_state_dict(start.state_dict())
        return model.eval()

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
        negatives: Literal["local", "global"] | NegativeSampling = "local",
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        has_negative: torch.Tensor | None = None,
        video_hidden_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproRetrievalOutput:
        """Score texts with clips, or compute the two losses of section 3.2.

        Args:
            input_ids, attention_mask, pixel_values_videos, video_ids, text_ids, gather, rank: As in `AlproModel`.
            return_loss: Whether to compute VTC and VTM. Text i then belongs to video i. Otherwise text i is scored
                with video i; a single text is scored with every video, and a single video with every text.
            generator, negatives: How hard negatives are drawn, see `AlproModel.matching_rows`.
            negative_input_ids, negative_attention_mask, has_negative: False captions, as in `AlproModel`. VTM, too,
                learns that they do not match their clips.
            video_hidden_states: Tokens in place of `pixel_values_videos`, as in `AlproModel`.

        Raises:
            ValueError: The numbers of texts and videos do not fit each other.
        """
        outputs = self.alpro(
            input_ids,
            attention_mask,
            pixel_values_videos,
            video_hidden_states=video_hidden_states,
            return_dict=True,
            **kwargs,
        )
        text_BLD = outputs.text_model_output.last_hidden_state
        video_BND = outputs.video_model_output.last_hidden_state
        if not return_loss:
            rows = max(len(text_BLD), len(video_BND))
            if not {len(text_BLD), len(video_BND)} <= {1, rows}:
                raise ValueError(
                    f"Matching scores text i with video i, but received {len(text_BLD)} texts and {len(video_BND)} "
                    "videos. Pass equal numbers, a single text or a single video; for all similarities use AlproModel."
                )
            if attention_mask is not None:
                attention_mask = attention_mask.expand(rows, -1)
            fused = self.alpro.fuse(
                text_BLD.expand(rows, -1, -1),
                attention_mask,
                video_BND.expand(rows, -1, -1),
                self._tokens_to_fuse(1, **kwargs),
                return_dict=True,
                **kwargs,
            )
            return AlproRetrievalOutput(**outputs, vtm_logits=self._matching_logits(fused), fusion_model_output=fused)

        edited = self.alpro.edited_texts(
            input_ids, negative_input_ids, negative_attention_mask, has_negative, **kwargs
        )
        loss_vtc = self.alpro.contrastive_loss(
            outputs.video_embeds, outputs.text_embeds, video_ids, text_ids, gather, rank, edited
        )
        matching = self.alpro.matching_rows(
            outputs, attention_mask, video_ids, text_ids, gather, rank, generator, negatives
        ).with_edited(edited)
        fused = self.alpro.fuse(
            matching.text,
            matching.mask,
            matching.videos,
            self._tokens_to_fuse(1, **kwargs),
            matching.video_index,
            return_dict=True,
            **kwargs,
        )
        logits = self._matching_logits(fused)
        loss_vtm = classification_loss(logits, matching.labels)
        outputs.loss = loss_vtc + loss_vtm
        return AlproRetrievalOutput(
            **outputs,
            loss_vtc=loss_vtc,
            loss_vtm=loss_vtm,
            vtm_logits=logits,
            vtm_labels=matching.labels,
            fusion_model_output=fused,
        )


class AlproForVideoQuestionAnswering(AlproWithTowers):
    """Video question answering as a choice among the answers in `config.id2label` (section 4.3).

    The classifier has two layers and reads the fused CLS token, as in the released code.
    """

    config: AlproConfig
    training_inputs = (
        "input_ids",
        "attention_mask",
        "pixel_values_videos",
        "video_hidden_states",
        "video_index",
        "answer_mask",
        "labels",
        "label_count",
    )
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {"loss": ()}

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
        # Answering does not use them. DDP waits for the gradient of every trainable parameter, and would wait forever.
        for unused in (self.alpro.text_projection, self.alpro.video_projection):
            unused.requires_grad_(False)
        self.alpro.temperature.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        # loading replaces every parameter by a new, trainable one
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair if output_loading_info=True
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
        video_hidden_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproQuestionAnsweringOutput:
        """Answer questions about clips. A clip is encoded once, however many questions refer to it.

        Args:
            input_ids, attention_mask: int64 (B, L), the questions.
            pixel_values_videos: float (V, T, 3, H, W), the clips, normalised.
            labels: int64 (B,), index of the answer; -100 for an answer outside the list, which carries no loss.
            video_index: int64 (B,) in [0, V), the clip of each question. None: question i is about clip i.
            answer_mask: bool (B, answers), True for the answers to choose from (multiple choice). The logits of the
                others are -inf. None: all answers.
            label_count: Divisor of the summed loss, see `classification_loss`.
            video_hidden_states: (V, 1 + N, D), tokens in place of `pixel_values_videos`, as in `AlproModel`.

        Raises:
            ValueError: `video_index` points outside the clips, or the numbers of questions and clips differ.
        """
        # the towers directly, not `self.alpro(...)`, which would compute similarities that answering does not use
        video_outputs: Any = self.alpro.video_tokens(pixel_values_videos, video_hidden_states, **kwargs)
        text_outputs = self.alpro.text_model(input_ids, attention_mask, return_dict=True, **kwargs)
        if video_index is not None:
            clips = len(video_outputs.last_hidden_state)
            # a negative index would silently take another clip; while compiling, the values are unknown
            if not torch.compiler.is_compiling() and not ((video_index >= 0) & (video_index < clips)).all():
                raise ValueError(
                    f"video_index must point at the {clips} clips in pixel_values_videos, with numbers from 0 to "
                    f"{clips - 1}; received {video_index.tolist()}. Take video_index and clips from the same, "
                    "undivided batch."
                )
        fused = self.alpro.fuse(
            text_outputs.last_hidden_state,
            attention_mask,
            video_outputs.last_hidden_state,
            first_tokens=self._tokens_to_fuse(1, **kwargs),
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
