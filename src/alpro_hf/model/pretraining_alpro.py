"""Pre-training as in the paper: the student with its four losses, and the prompter that teaches it entities.

Source: "Align and Prompt: Video-and-Language Pre-training with Entity Prompts", arXiv 2112.09583, sections 3.2, 3.3.

The teacher is not part of the student: its pseudo-labels come in as a tensor, so they can be computed on the way or
once and for all. Shape letters: B batch, T frames, N patches of a frame, L text tokens, D width, P projection width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_alpro import AlproConfig, AlproTextConfig
from .loss_alpro import classification_loss, crop_to_patches, pem_kept, pem_loss
from .modeling_alpro import (
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproOutput,
    AlproPreTrainedModel,
    AlproRetrievalOutput,
    Gather,
)

PromptKind = Literal["video", "image"]


@dataclass
class AlproPreTrainingOutput(AlproRetrievalOutput):
    """Output of `AlproForPreTraining`: that of the retrieval model and the losses MLM and PEM.

    Args:
        loss: Scalar, the plain sum of all losses that were computed.
        mlm_logits: (B, L, vocabulary), of the masked text with `return_loss=True`, of `input_ids` otherwise.
        pem_logits: (B, entities), where a `crop_mask` was given.
        pem_kept: bool (B,), which pseudo-labels were sure enough to learn from.
    """

    loss_mlm: torch.Tensor | None = None
    loss_pem: torch.Tensor | None = None
    mlm_logits: torch.Tensor | None = None
    pem_logits: torch.Tensor | None = None
    pem_kept: torch.Tensor | None = None


class AlproMLMHead(nn.Module):
    """From fused text tokens to words, as in BERT; the last matrix is that of the word embeddings."""

    def __init__(self, config: AlproTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class AlproForPreTraining(AlproPreTrainedModel):
    """The student: VTC, VTM, MLM and, where the configuration names entities, PEM.

    Example:
        >>> from alpro_hf import AlproConfig, AlproForPreTraining
        >>> model = AlproForPreTraining(AlproConfig(entities=["dog", "car"]))
    """

    config: AlproConfig
    _tied_weights_keys = {"mlm_head.decoder.weight": "alpro.text_model.embeddings.word_embeddings.weight"}  # noqa: RUF012 (the library's way)

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.alpro = AlproModel(config)
        self.vtm_head = nn.Linear(width, 2)
        self.mlm_head = AlproMLMHead(config.text_config)
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

    match = AlproForVideoTextRetrieval.match

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
        negatives: Literal["local", "global"] = "local",
        mlm_count: torch.Tensor | float | None = None,
        pem_count: torch.Tensor | float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlproPreTrainingOutput:
        """Score B pairs of text and clip, or compute the losses of pre-training; text i belongs to clip i.

        Each encoder runs once. True pairs, both kinds of wrong pairs and masked texts are rows of one batch for the
        fusion encoder; only where PEM reads the clips of the true pairs are these a batch of their own, because its
        last layer need not compute the clips of the others.

        Args:
            input_ids, attention_mask: (B, L).
            pixel_values_videos: (B, T, 3, H, W).
            mlm_input_ids: int64 (B, L), the texts with some words masked (same attention mask); None: no MLM.
            mlm_labels: int64 (B, L), the word where one was masked, -100 elsewhere.
            crop_mask: (B, h, w) on the patch grid, 1 inside the crop whose entity is to be predicted.
            pem_targets: (B, entities), the prompter's probabilities for that crop; None: no PEM.
            return_loss: Whether to compute VTC and VTM, and MLM and PEM where their inputs are given.
            video_ids, text_ids, gather, rank: As in `AlproModel`.
            generator, negatives: Of VTM's hard negatives, see `AlproModel.matching_rows`.
            mlm_count, pem_count: What the summed losses are divided by, see `classification_loss`.
        """
        if input_ids is None or pixel_values_videos is None:
            raise ValueError("AlproForPreTraining needs input_ids and pixel_values_videos.")
        if len(input_ids) != len(pixel_values_videos):
            raise ValueError(
                f"Text i belongs to video i; received {len(input_ids)} texts and {len(pixel_values_videos)} videos."
            )
        self._check(input_ids, pixel_values_videos, mlm_input_ids, mlm_labels, crop_mask, pem_targets)
        batch, length = input_ids.shape
        masked = return_loss and mlm_input_ids is not None
        texts, mask = input_ids, attention_mask
        if return_loss and mlm_input_ids is not None:
            texts = torch.cat([input_ids, mlm_input_ids])
            mask = None if attention_mask is None else torch.cat([attention_mask, attention_mask])
        outputs = self.alpro(texts, mask, pixel_values_videos, return_dict=True, **kwargs)
        mlm_states = outputs.text_model_output.last_hidden_state[batch:]
        if masked:
            outputs = _first_texts(outputs, batch)
        video_BND = outputs.video_model_output.last_hidden_state

        if return_loss:
            text, mask, videos, video_index, labels = self.alpro.matching_rows(
                outputs, attention_mask, video_ids, text_ids, gather, rank, generator, negatives
            )
            if masked:
                text, video_index = torch.cat([text, mlm_states]), torch.cat([video_index, video_index[:batch]])
                mask = None if mask is None or attention_mask is None else torch.cat([mask, attention_mask])
        else:
            text, mask, videos = outputs.text_model_output.last_hidden_state, attention_mask, video_BND
            video_index = torch.arange(batch, device=text.device)
        words = length if masked or not return_loss else 1  # tokens of a row that a head reads, beside those of PEM
        own = batch if crop_mask is not None and self.pem_head is not None else 0  # rows whose clip's tokens PEM reads
        parts = []
        for rows, first_tokens in ((slice(0, own), None), (slice(own, None), words)):
            if len(text[rows]):
                part_mask = None if mask is None else mask[rows]
                part = self.alpro.fuse(
                    text[rows], part_mask, videos, first_tokens, video_index[rows], return_dict=True, **kwargs
                )
                parts.append(part.last_hidden_state)
        fused = torch.cat([part[:, :words] for part in parts])
        vtm_logits = self.vtm_head(fused[: 3 * batch if return_loss else batch, 0])
        result = AlproPreTrainingOutput(**outputs, vtm_logits=vtm_logits)
        if masked or not return_loss:
            result.mlm_logits = self.mlm_head(fused[-batch:])
        if crop_mask is not None and self.pem_head is not None:
            patches = parts[0][:, length + 1 :]  # the clip's tokens among the true text's, without its CLS
            weights = crop_to_patches(crop_mask).to(patches.dtype)
            result.pem_logits = self.pem_head(torch.einsum("bn,bnd->bd", weights, patches))
        if not return_loss:
            return result

        result.vtm_labels = labels
        result.loss_vtm = classification_loss(vtm_logits, labels)
        result.loss_vtc = self.alpro.contrastive_loss(
            outputs.video_embeds, outputs.text_embeds, video_ids, text_ids, gather, rank
        )
        result.loss = result.loss_vtc + result.loss_vtm
        if masked:
            assert result.mlm_logits is not None and mlm_labels is not None
            result.loss_mlm = classification_loss(result.mlm_logits.flatten(0, 1), mlm_labels.flatten(), mlm_count)
            result.loss = result.loss + result.loss_mlm
        if pem_targets is not None:
            assert result.pem_logits is not None
            result.pem_kept = pem_kept(pem_targets, self.config.pem_threshold)
            result.loss_pem = pem_loss(result.pem_logits, pem_targets, result.pem_kept, pem_count)
            result.loss = result.loss + result.loss_pem
        return result

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
            raise ValueError("mlm_input_ids and mlm_labels belong together; only one of them was given.")
        if mlm_input_ids is not None and mlm_input_ids.shape != input_ids.shape:
            raise ValueError(
                f"mlm_input_ids {tuple(mlm_input_ids.shape)} must have the shape of input_ids "
                f"{tuple(input_ids.shape)}: they are the same texts with words masked."
            )
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
            raise ValueError("pem_targets need the crop_mask that says which part of the clip they describe.")
        entities = len(self.config.entities or ())
        if pem_targets.shape != (len(input_ids), entities):
            raise ValueError(
                f"pem_targets must have the shape ({len(input_ids)}, {entities}): one probability for each of "
                f"config.entities; received {tuple(pem_targets.shape)}."
            )


def _first_texts(outputs: AlproOutput, count: int) -> AlproOutput:
    """`outputs` without the masked texts, which only MLM reads."""
    assert outputs.text_model_output is not None
    text: Any = outputs.text_model_output
    text.last_hidden_state, text.pooler_output = text.last_hidden_state[:count], text.pooler_output[:count]
    for name in ("hidden_states", "attentions"):
        if name in text:
            text[name] = tuple(tensor[:count] for tensor in text[name])
    assert outputs.logits_per_text is not None and outputs.text_embeds is not None
    outputs.logits_per_text = outputs.logits_per_text[:count]
    outputs.logits_per_video = outputs.logits_per_text.t()
    outputs.text_embeds = outputs.text_embeds[:count]
    return outputs


class AlproPrompterModel(AlproPreTrainedModel):
    """The teacher of PEM: towers trained with VTC alone, and the embeddings of a prompt for each entity.

    `config.entities` names the entities. `set_prompts` fills the embeddings; `alpro_hf.entities.build_prompter` does
    both from a list of names.

    Buffers:
        video_prompt_embeds, image_prompt_embeds: float (entities, P), means over prompts that say the same in other
            words ("A video of a dog.", "A footage of the dog."), not normalised again.
    """

    config: AlproConfig

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
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
            kind: Whether the prompts speak of videos or of images.
            input_ids, attention_mask: (templates * entities, L): all entities in the first wording, then all in the
                second, and so on.
            batch_size: Prompts encoded at a time.
        """
        embeds = self._prompts(kind)
        if not len(embeds) or not len(input_ids) or len(input_ids) % len(embeds):
            raise ValueError(
                f"set_prompts received {len(input_ids)} prompts for {len(embeds)} entities (config.entities); it "
                "needs as many for each of them."
            )
        was_training = self.training
        self.eval()
        rows = []
        for start in range(0, len(input_ids), batch_size):
            chunk = slice(start, start + batch_size)
            mask = None if attention_mask is None else attention_mask[chunk].to(self.device)
            rows.append(self.alpro.get_text_features(input_ids[chunk].to(self.device), mask).pooler_output)
        self.train(was_training)
        embeds.copy_(torch.cat(rows).unflatten(0, (-1, len(embeds))).float().mean(dim=0))

    @torch.no_grad()
    def pseudo_labels(self, pixel_values_videos: torch.Tensor, kind: PromptKind = "video") -> torch.Tensor:
        """How probable each entity is in each clip (section 3.3, equation 6): float32 (B, entities), rows sum to 1.

        Args:
            pixel_values_videos: (B, T, 3, H, W), for PEM a crop at its place on black, see `crop_on_black`.
            kind: Which prompts to compare with.

        Raises:
            ValueError: No prompts have been set.
        """
        embeds = self._prompts(kind)
        if not embeds.any():
            raise ValueError(f"The prompter has no {kind} prompts yet; call set_prompts({kind!r}, ...) first.")
        video = self.alpro.get_video_features(pixel_values_videos).pooler_output
        with torch.autocast(video.device.type, enabled=False):
            similarity = video.float() @ embeds.float().t() / self.alpro.get_temperature().float()
        return similarity.softmax(dim=1)

    def _prompts(self, kind: str) -> torch.Tensor:
        if kind not in ("video", "image"):
            raise ValueError(f"kind={kind!r} is unknown; prompts are of the kind 'video' or 'image'.")
        return self.video_prompt_embeds if kind == "video" else self.image_prompt_embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> AlproOutput:
        """Compare texts with clips; arguments, output and loss (VTC) are those of `AlproModel`."""
        return self.alpro(input_ids, attention_mask, pixel_values_videos, return_dict=True, **kwargs)


__all__ = ["AlproForPreTraining", "AlproPreTrainingOutput", "AlproPrompterModel"]
