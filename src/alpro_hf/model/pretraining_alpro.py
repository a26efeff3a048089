"""Pre-training as in the paper: the student with its four losses, and the prompter that teaches it entities.

Source: "Align and Prompt: Video-and-Language Pre-training with Entity Prompts", arXiv 2112.09583, sections 3.2, 3.3.

The teacher is not part of the student. Its pseudo-labels are an input of the student, so that they can be computed
during training or precomputed.

Shape suffixes are those of `modeling_alpro`: B pairs, T frames, N patches of a frame, L text tokens, D width, P width
of the contrastive space; R stands for the rows of the fusion encoder.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_alpro import AlproConfig, AlproTextConfig
from .loss_alpro import classification_loss, crop_to_patches, pem_kept, pem_loss
from .matching_alpro import at_least_float32, vtc_scores
from .modeling_alpro import (
    PAIR_INPUTS,
    AlproModel,
    AlproOutput,
    AlproRetrievalOutput,
    AlproScoringLinear,
    AlproWithMatching,
    AlproWithTowers,
    Gather,
    NegativeSampling,
)

PromptKind = Literal["video", "image"]


@dataclass
class AlproPreTrainingOutput(AlproRetrievalOutput):
    """Output of `AlproForPreTraining`: the output of the retrieval model, and the losses MLM and PEM.

    Args:
        loss: Scalar, the plain sum of all losses that were computed (the paper weights them equally).
        loss_mlm, loss_pem: Scalars, if the inputs of MLM and of PEM were given.
        mlm_logits: (B, L, vocabulary), of the masked texts if `return_loss=True`, otherwise of `input_ids`.
        pem_logits: (B, entities), if `crop_mask` was given.
        fusion_model_output: As in the retrieval model, but without `return_loss` only.
        pem_kept: bool (B,), True where a pseudo-label is certain enough to carry a loss, see `pem_kept`.
    """

    loss_mlm: torch.Tensor | None = None
    loss_pem: torch.Tensor | None = None
    mlm_logits: torch.Tensor | None = None
    pem_logits: torch.Tensor | None = None
    pem_kept: torch.Tensor | None = None


class _FusionRows(NamedTuple):
    """Rows for the fusion encoder; row i joins text i with the clip `videos[video_index[i]]`.

    Attributes:
        text: float (R, L, D), token states of the texts.
        mask: (R, L), 1 for tokens and 0 for padding. None: nothing is padded.
        videos: float (V, 1 + N, D), token states of the clips.
        video_index: int64 (R,) in [0, V).
    """

    text: torch.Tensor
    mask: torch.Tensor | None
    videos: torch.Tensor
    video_index: torch.Tensor

    def split(self, count: int) -> "tuple[_FusionRows, _FusionRows]":
        """Return the first `count` rows and the others; both keep all clips."""
        first, others = slice(None, count), slice(count, None)
        return self._select(first), self._select(others)

    def _select(self, rows: slice) -> "_FusionRows":
        mask = None if self.mask is None else self.mask[rows]
        return _FusionRows(self.text[rows], mask, self.videos, self.video_index[rows])


class AlproMLMHead(nn.Module):
    """Predict words from fused text tokens, as BERT does: (..., D) -> (..., vocabulary).

    The output matrix is tied to the word embeddings.
    """

    def __init__(self, config: AlproTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class AlproForPreTraining(AlproWithMatching):
    """The student of pre-training: VTC, VTM and MLM, and PEM if the configuration names entities (sections 3.2, 3.3).

    Example:
        >>> from alpro_hf import AlproConfig, AlproForPreTraining
        >>> model = AlproForPreTraining(AlproConfig(entities=["dog", "car"]))
    """

    config: AlproConfig
    training_inputs = PAIR_INPUTS
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {
        "loss_vtc": (),
        "loss_vtm": (),
        "loss_mlm": ("mlm_input_ids", "mlm_labels", "mlm_count"),
        "loss_pem": ("crop_mask", "pem_targets", "pem_count"),
    }
    _tied_weights_keys = {"mlm_head.decoder.weight": "alpro.text_model.embeddings.word_embeddings.weight"}  # noqa: RUF012 (the library's way)

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.alpro = AlproModel(config)
        self.vtm_head = AlproScoringLinear(width, 2)
        self.mlm_head = AlproMLMHead(config.text_config)
        # parity: the released code has this MLP, D -> 2D -> entities
        self.pem_head: nn.Module | None = None
        if config.entities:
            self.pem_head = nn.Sequential(
                nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, len(config.entities))
            )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.mlm_head.decoder = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        crop_mask: torch.Tensor | None = None,
        pem_targets: torch.Tensor | None = None,
        return_loss: bool | None = None,
        video_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        generator: torch.Generator | None = None,
        negatives: Literal["local", "global"] | NegativeSampling = "local",
        mlm_count: torch.Tensor | float | None = None,
        pem_count: torch.Tensor | float | None = None,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        has_negative: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproPreTrainingOutput:
        """Score B pairs of text and clip, or compute the losses of pre-training. Text i belongs to clip i.

        Each tower runs once, because true pairs, wrong pairs and masked texts share the states of its output.

        Args:
            input_ids, attention_mask: int64 (B, L); mask 1 for tokens and 0 for padding.
            pixel_values_videos: float (B, T, 3, H, W), normalised frames.
            mlm_input_ids: int64 (B, L), the same texts with words masked and the same attention mask. None: no MLM.
            mlm_labels: int64 (B, L), the word at each masked position, -100 elsewhere.
            crop_mask: (B, h, w) on the patch grid, 1 inside the crop whose entity is to be predicted. With
                `patch_dropout`, the patches of the crop that are kept stand for it; a row without any carries no PEM
                loss in that step.
            pem_targets: float (B, entities), probabilities from the prompter for that crop. None: no PEM loss.
            return_loss: Whether to compute VTC and VTM, and MLM and PEM if their inputs are given.
            video_ids, text_ids, gather, rank: As in `AlproModel`.
            generator, negatives: How VTM draws hard negatives, see `AlproModel.matching_rows`.
            mlm_count, pem_count: Divisors of the summed losses, see `classification_loss`.
            negative_input_ids, negative_attention_mask, has_negative: False captions for VTC and VTM, as in
                `AlproModel`.

        Raises:
            ValueError: An input is missing, or the inputs do not fit each other in shape.
        """
        if input_ids is None or pixel_values_videos is None:
            raise ValueError("AlproForPreTraining needs input_ids and pixel_values_videos.")
        if len(input_ids) != len(pixel_values_videos):
            raise ValueError(
                f"Text i belongs to video i; received {len(input_ids)} texts and {len(pixel_values_videos)} videos."
            )
        self._check(input_ids, pixel_values_videos, mlm_input_ids, mlm_labels, crop_mask, pem_targets)
        batch, length = input_ids.shape
        outputs: Any
        if not return_loss:
            outputs = self.alpro(input_ids, attention_mask, pixel_values_videos, return_dict=True, **kwargs)
            reads_patches = crop_mask is not None and self.pem_head is not None
            fused = self.alpro.fuse(
                outputs.text_model_output.last_hidden_state,
                attention_mask,
                outputs.video_model_output.last_hidden_state,
                None if reads_patches else self._tokens_to_fuse(length, **kwargs),
                return_dict=True,
                **kwargs,
            )
            tokens = fused.last_hidden_state
            return AlproPreTrainingOutput(
                **outputs,
                vtm_logits=self._matching_logits(fused),
                fusion_model_output=fused,
                mlm_logits=self.mlm_head(tokens[:, :length]),
                pem_logits=self._entity_logits(
                    tokens[:, length + 1 :] if reads_patches else None, crop_mask, _kept_patches(outputs)
                ),
            )

        outputs, masked_text = self._encode(input_ids, attention_mask, mlm_input_ids, pixel_values_videos, **kwargs)
        matching = self.alpro.matching_rows(
            outputs, attention_mask, video_ids, text_ids, gather, rank, generator, negatives
        )
        edited = self.alpro.edited_texts(
            input_ids, negative_input_ids, negative_attention_mask, has_negative, **kwargs
        )
        matching = matching.with_edited(edited)
        count = len(matching.labels)
        rows = _FusionRows(matching.text, matching.mask, matching.videos, matching.video_index)
        if masked_text is not None:
            rows = _FusionRows(
                torch.cat([rows.text, masked_text]),
                None if rows.mask is None or attention_mask is None else torch.cat([rows.mask, attention_mask]),
                rows.videos,
                torch.cat([rows.video_index, rows.video_index[:batch]]),  # of the true pairs: each text's own clip
            )
        first_tokens = 1 if masked_text is None else length  # VTM reads the CLS token, MLM every word
        # One fusion batch of 3B (with false captions 4B) matching rows and, with MLM, B masked texts, each with the
        # clip of its true pair.
        words, patches = self._fuse(rows, batch, first_tokens, crop_mask, **kwargs)
        # words is (count + B, L, D) with MLM and (count, 1, D) without
        matching_words, masked_words = words[:count], words[count:]

        vtm_logits = at_least_float32(self.vtm_head(matching_words[:, 0]))
        loss_vtm = classification_loss(vtm_logits, matching.labels)
        loss_vtc = self.alpro.contrastive_loss(
            outputs.video_embeds, outputs.text_embeds, video_ids, text_ids, gather, rank, edited
        )
        outputs.loss = loss_vtc + loss_vtm  # a plain sum, as in the paper; a trainer weights the parts itself
        mlm_logits = loss_mlm = None
        if mlm_labels is not None:
            mlm_logits = self.mlm_head(masked_words)
            loss_mlm = classification_loss(mlm_logits.flatten(0, 1), mlm_labels.flatten(), mlm_count)
            outputs.loss = outputs.loss + loss_mlm
        seen = _kept_patches(outputs)
        pem_logits, kept, loss_pem = self._entity_logits(patches, crop_mask, seen), None, None
        if pem_targets is not None:
            assert pem_logits is not None and crop_mask is not None  # see `_check`
            kept = pem_kept(pem_targets, self.config.pem_threshold)
            if seen is not None:
                kept = kept & crop_to_patches(crop_mask, seen).bool().any(dim=1)
            loss_pem = pem_loss(pem_logits, pem_targets, kept, pem_count)
            outputs.loss = outputs.loss + loss_pem
        return AlproPreTrainingOutput(
            **outputs,
            loss_vtc=loss_vtc,
            loss_vtm=loss_vtm,
            loss_mlm=loss_mlm,
            loss_pem=loss_pem,
            vtm_logits=vtm_logits,
            vtm_labels=matching.labels,
            mlm_logits=mlm_logits,
            pem_logits=pem_logits,
            pem_kept=kept,
        )

    def _encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mlm_input_ids: torch.Tensor | None,
        pixel_values_videos: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[AlproOutput, torch.Tensor | None]:
        """Run both towers once, with texts and masked texts in one batch.

        Returns:
            Output for the B pairs, and the token states (B, L, D) of the masked texts, if there are any.
        """
        if mlm_input_ids is None:
            return self.alpro(input_ids, attention_mask, pixel_values_videos, return_dict=True, **kwargs), None
        texts = torch.cat([input_ids, mlm_input_ids])
        mask = None if attention_mask is None else torch.cat([attention_mask, attention_mask])
        outputs = self.alpro(texts, mask, pixel_values_videos, return_dict=True, **kwargs)
        masked_text = outputs.text_model_output.last_hidden_state[len(input_ids) :]
        return _first_texts(outputs, len(input_ids)), masked_text

    def _fuse(
        self,
        rows: _FusionRows,
        pairs: int,
        first_tokens: int,
        crop_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the fusion encoder for the tokens that the heads read.

        PEM reads the patches of the true pairs. These then are a batch of their own, so that the last layer computes
        the patches of no other row.

        Args:
            rows: R rows that start with the true pairs.
            pairs: Number of true pairs.
            first_tokens: Number of tokens that VTM and MLM read of each row.
            crop_mask: Crops of PEM. None: no head reads patches.

        Returns:
            First tokens (R, first_tokens, D), and the patches (pairs, N, D) of the true pairs if PEM reads them.
        """
        if crop_mask is None or self.pem_head is None:
            return self._fused_states(rows, first_tokens, **kwargs), None
        true_pairs, others = rows.split(pairs)
        whole = self._fused_states(true_pairs, None, **kwargs)
        words = whole[:, :first_tokens]
        patches = whole[:, rows.text.shape[1] + 1 :]  # behind the words and the CLS token of the clip
        if len(others.text):
            words = torch.cat([words, self._fused_states(others, first_tokens, **kwargs)])
        return words, patches

    def _fused_states(
        self, rows: _FusionRows, first_tokens: int | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Return the states (R, first_tokens, D) of fused rows; all L + 1 + N tokens if that is None."""
        return self.alpro.fuse(
            rows.text, rows.mask, rows.videos, first_tokens, rows.video_index, return_dict=True, **kwargs
        ).last_hidden_state

    def _entity_logits(
        self, patches: torch.Tensor | None, crop_mask: torch.Tensor | None, kept_patches: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Predict the entity of each crop from the mean of its fused patches: (B, N, D) -> (B, entities)."""
        if patches is None or crop_mask is None or self.pem_head is None:
            return None
        weights = crop_to_patches(crop_mask, kept_patches).to(patches.dtype)
        return self.pem_head(torch.einsum("bn,bnd->bd", weights, patches))

    def _check(
        self,
        input_ids: torch.Tensor,
        pixel_values_videos: torch.Tensor,
        mlm_input_ids: torch.Tensor | None,
        mlm_labels: torch.Tensor | None,
        crop_mask: torch.Tensor | None,
        pem_targets: torch.Tensor | None,
    ) -> None:
        if (mlm_input_ids is None) != (mlm_labels is None):
            raise ValueError("mlm_input_ids and mlm_labels belong together, but only one of them was given.")
        if mlm_input_ids is not None and mlm_input_ids.shape != input_ids.shape:
            raise ValueError(
                f"mlm_input_ids {tuple(mlm_input_ids.shape)} must have the shape of input_ids "
                f"{tuple(input_ids.shape)}: they are the same texts with words masked."
            )
        # the grid follows the frames, not `image_size`: the tower takes frames of any size
        patch = self.config.video_config.patch_size
        grid = (len(input_ids), *(pixels // patch for pixels in pixel_values_videos.shape[-2:]))
        if crop_mask is not None and crop_mask.shape != grid:
            raise ValueError(
                f"crop_mask must have the shape {grid}: a box on the patch grid of each clip; received "
                f"{tuple(crop_mask.shape)}."
            )
        if pem_targets is None:
            return
        if crop_mask is None:
            raise ValueError("pem_targets need the crop_mask that marks the part of each clip they describe.")
        entities = len(self.config.entities or ())
        if pem_targets.shape != (len(input_ids), entities):
            raise ValueError(
                f"pem_targets must have the shape ({len(input_ids)}, {entities}): one probability for each of "
                f"config.entities; received {tuple(pem_targets.shape)}."
            )


def _kept_patches(outputs: Any) -> torch.Tensor | None:
    """The patch positions (B, N) that the video tower has kept of each clip; None: all."""
    kept: torch.Tensor | None = outputs.video_model_output.kept_patches
    return kept


def _first_texts(outputs: AlproOutput, count: int) -> AlproOutput:
    """Cut `outputs` to the first texts. The masked texts behind them are for MLM and have no similarities."""
    assert outputs.text_model_output is not None
    text: Any = outputs.text_model_output
    text.last_hidden_state, text.pooler_output = text.last_hidden_state[:count], text.pooler_output[:count]
    for name in ("hidden_states", "attentions"):  # present only if they were requested
        if name in text:
            text[name] = tuple(tensor[:count] for tensor in text[name])
    assert outputs.logits_per_text is not None and outputs.text_embeds is not None
    outputs.logits_per_text = outputs.logits_per_text[:count]
    outputs.logits_per_video = outputs.logits_per_text.t()
    outputs.text_embeds = outputs.text_embeds[:count]
    return outputs


class AlproPrompterModel(AlproWithTowers):
    """The teacher of PEM: towers trained with VTC alone, and prompt embeddings of each entity (section 3.3).

    `config.entities` names the entities, and `set_prompts` fills the embeddings. The function
    `alpro_hf.build_prompter` does both from a list of names.

    Buffers:
        video_prompt_embeds, image_prompt_embeds: float (entities, P). Each row is the mean over prompts of different
            wording ("A video of a dog.", "A footage of the dog."). As in the released code it is not normalised again.
    """

    config: AlproConfig
    training_inputs = PAIR_INPUTS
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {"loss_vtc": ()}

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
        # Buffers, not parameters: the prompts are frozen, but saved and moved with the model.
        shape = (len(config.entities or ()), config.projection_dim)
        self.video_prompt_embeds: torch.Tensor
        self.image_prompt_embeds: torch.Tensor
        self.register_buffer("video_prompt_embeds", torch.zeros(shape))
        self.register_buffer("image_prompt_embeds", torch.zeros(shape))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlproPrompterModel):
            # zero means "not set": `pseudo_labels` refuses it
            init.zeros_(module.video_prompt_embeds)
            init.zeros_(module.image_prompt_embeds)

    @torch.no_grad()
    def set_prompts(
        self,
        kind: PromptKind,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        batch_size: int = 256,
    ) -> None:
        """Embed the prompts of all entities and keep their means (section 3.3, prompt ensembling).

        Args:
            kind: Whether the prompts describe videos or images.
            input_ids, attention_mask: int64 (templates * entities, L): all entities in the first template, then all
                entities in the second template, and so on.
            batch_size: Number of prompts to encode at a time.

        Raises:
            ValueError: The kind is unknown, or the number of prompts is not a multiple of the number of entities.
        """
        embeds = self._prompts(kind)
        if not len(embeds) or not len(input_ids) or len(input_ids) % len(embeds):
            raise ValueError(
                f"set_prompts received {len(input_ids)} prompts for {len(embeds)} entities (config.entities); it "
                "needs the same number for each entity."
            )
        was_training = self.training  # dropout would make the prompts random
        self.eval()
        rows = []
        for start in range(0, len(input_ids), batch_size):
            chunk = slice(start, start + batch_size)
            mask = None if attention_mask is None else attention_mask[chunk].to(self.device)
            rows.append(self.alpro.get_text_features(input_ids[chunk].to(self.device), mask).pooler_output)
        self.train(was_training)
        # (templates * entities, P) -> (templates, entities, P) -> mean over the templates
        embeds.copy_(torch.cat(rows).unflatten(0, (-1, len(embeds))).float().mean(dim=0))

    @torch.no_grad()
    def pseudo_labels(self, pixel_values_videos: torch.Tensor, kind: PromptKind = "video") -> torch.Tensor:
        """Compute the probability of each entity in each clip (section 3.3, equation 6).

        Args:
            pixel_values_videos: float (B, T, 3, H, W), normalised. For PEM: crops on black, see `crop_on_black`.
            kind: Which prompts to compare the clips with.

        Returns:
            float32 (B, entities), each row sums to 1.

        Raises:
            ValueError: The kind is unknown, or `set_prompts` was not called for it.
        """
        embeds = self._prompts(kind)
        if not embeds.any():
            raise ValueError(f"The prompter has no {kind} prompts yet; call set_prompts({kind!r}, ...) first.")
        video = self.alpro.get_video_features(pixel_values_videos).pooler_output
        # float32 throughout: the temperature multiplies rounding errors
        similarity = vtc_scores(video, embeds).float() / self.label_temperature()
        return similarity.softmax(dim=1)

    def label_temperature(self) -> torch.Tensor:
        """The temperature of the pseudo-labels, float32 (1,): `config.pem_temperature`, or the learned one of VTC."""
        learned = self.alpro.get_temperature().float()
        fixed = self.config.pem_temperature
        return learned if fixed is None else torch.full_like(learned, fixed)

    def _prompts(self, kind: str) -> torch.Tensor:
        if kind not in ("video", "image"):
            raise ValueError(f"kind={kind!r} is unknown; use 'video' or 'image'.")
        return self.video_prompt_embeds if kind == "video" else self.image_prompt_embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> AlproOutput:
        """Compare texts with clips. Arguments, output and loss (VTC) are those of `AlproModel`."""
        return self.alpro(input_ids, attention_mask, pixel_values_videos, return_dict=True, **kwargs)


__all__ = ["AlproForPreTraining", "AlproPreTrainingOutput", "AlproPrompterModel"]
