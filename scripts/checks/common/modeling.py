"""Our models in the common tests of models. Runs inside of the folder that `common_tests.py` lays out."""

import unittest

import torch
from library_tests.test_configuration_common import ConfigTester
from library_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask
from transformers.testing_utils import torch_device

from alpro_hf import (
    AlproConfig,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextConfig,
    AlproTextModel,
    AlproVideoConfig,
    AlproVideoModel,
)

BATCH, WORDS, FRAMES, PIXELS, PATCH, WIDTH, HEADS, VOCABULARY = 5, 7, 2, 16, 8, 32, 4, 99
PATCHES = (PIXELS // PATCH) ** 2
SHARED = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 40}
TEXT = SHARED | {"vocab_size": VOCABULARY, "num_hidden_layers": 4, "fusion_layer": 2, "max_position_embeddings": 64}
TEXT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VIDEO = SHARED | {"image_size": PIXELS, "patch_size": PATCH, "num_frames": FRAMES, "num_hidden_layers": 2}


class Tester:
    """What the mixins ask about a model; each test class has one."""

    batch_size, seq_length, is_training = BATCH, WORDS, False
    hidden_size, num_attention_heads, vocab_size = WIDTH, HEADS, VOCABULARY
    num_hidden_layers = 2  # that `forward` runs: the fusion layers are run by `fuse`

    def texts(self):
        return {
            "input_ids": ids_tensor([BATCH, WORDS], VOCABULARY),
            "attention_mask": random_attention_mask([BATCH, WORDS]),
        }

    def videos(self):
        return {"pixel_values_videos": floats_tensor([BATCH, FRAMES, 3, PIXELS, PIXELS])}


class TextTester(Tester):
    def get_config(self):
        return AlproTextConfig(**TEXT)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.texts()


class VideoTester(Tester):
    seq_length = 1 + FRAMES * PATCHES
    key_length = encoder_seq_length = 1 + PATCHES  # of the attention within a frame

    def get_config(self):
        return AlproVideoConfig(**VIDEO)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.videos()


class PairTester(Tester):
    is_training = True

    def __init__(self):
        self.text_model_tester = TextTester()
        self.vision_model_tester = self.video_model_tester = VideoTester()

    def get_config(self):
        return AlproConfig(text_config=TEXT, video_config=VIDEO, projection_dim=16)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.texts() | self.videos()


class AlproTextModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AlproTextModel,)
    test_all_params_have_gradient = False  # `forward` does not run the fusion layers

    def setUp(self):
        self.model_tester = TextTester()
        self.config_tester = ConfigTester(
            self, config_class=AlproTextConfig, hidden_size=WIDTH, num_attention_heads=HEADS
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class AlproVideoModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AlproVideoModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = VideoTester()
        self.config_tester = ConfigTester(self, config_class=AlproVideoConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_hidden_states_output(self):
        self.model_tester.encoder_seq_length = 1 + FRAMES * PATCHES  # hidden states are those of all frames
        super().test_hidden_states_output()

    @unittest.skip("the input embeddings are a convolution, not words")
    def test_model_get_set_embeddings(self):
        pass


class AlproModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AlproModel, AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering)
    additional_model_inputs = ("pixel_values_videos",)
    _is_composite = True
    test_all_params_have_gradient = False  # some losses use no fusion layers, others no projections

    def setUp(self):
        self.model_tester = PairTester()
        self.config_tester = ConfigTester(
            self, config_class=AlproConfig, has_text_modality=False, common_properties=["projection_dim"]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is AlproForVideoQuestionAnswering:
            return inputs | {"labels": torch.zeros(BATCH, dtype=torch.long, device=torch_device)}
        return inputs | ({"return_loss": True} if return_labels else {})


# hidden states and attentions belong to the towers, which are tested above, as in CLIP
OF_THE_TOWERS = ("test_retain_grad_hidden_states_attentions", "test_hidden_states_output", "test_attention_outputs")
for name in dir(AlproModelTest):
    if name in OF_THE_TOWERS or name.startswith("test_eager_matches_sdpa_inference"):
        setattr(AlproModelTest, name, unittest.skip("tested on the towers")(lambda self: None))

del ModelTesterMixin  # pytest would collect it
