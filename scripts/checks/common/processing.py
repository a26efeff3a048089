"""Our processors in the common tests of processors. Runs inside of the folder that `common_tests.py` lays out."""

import unittest

import pytest
from library_tests.test_processing_common import ProcessorTesterMixin
from library_tests.test_video_processing_common import VideoProcessingTestMixin, prepare_video_inputs
from transformers import BertTokenizer

from alpro_hf import AlproProcessor, AlproVideoProcessor
from alpro_hf.assets import bundled_vocabulary

SIZE = {"height": 18, "width": 18}


class AlproProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = AlproProcessor
    videos_input_name = "pixel_values_videos"
    model_id = tiny_model_id = None

    @classmethod
    def _setup_tokenizer(cls):
        return BertTokenizer(vocab=str(bundled_vocabulary()), model_max_length=64)

    @classmethod
    def _setup_video_processor(cls):
        return AlproVideoProcessor(num_frames=2, size=SIZE)


class VideoTester:
    batch_size, num_frames, num_channels, min_resolution, max_resolution = 3, 8, 3, 30, 80

    def expected_output_video_shape(self, videos):
        return (self.num_frames, self.num_channels, *SIZE.values())

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class AlproVideoProcessorTest(VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = AlproVideoProcessor
    input_name = "pixel_values_videos"

    def setUp(self):
        super().setUp()
        self.video_processor_tester = VideoTester()

    @property
    def video_processor_dict(self):
        return {
            "size": SIZE,
            "num_frames": 2,
            "do_sample_frames": False,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }

    def test_video_processor_from_dict_with_kwargs(self):
        processor = AlproVideoProcessor.from_dict(self.video_processor_dict, size={"height": 42, "width": 42})
        assert processor.size == {"height": 42, "width": 42}

    def test_call_sample_frames(self):
        # The test ends with a demand that our processor leaves: an error where a clip has fewer frames than asked for.
        # As in the original ALPRO such a clip repeats frames. All that comes before has to pass.
        with pytest.raises(AssertionError, match="ValueError not raised"):
            super().test_call_sample_frames()
        [video] = prepare_video_inputs(1, 8, 3, 30, 80, equal_resolution=True, return_tensors="torch")
        processor = AlproVideoProcessor(**self.video_processor_dict | {"do_sample_frames": True})
        found = processor(video, num_frames=10, return_metadata=True)
        assert found.pixel_values_videos.shape[1] == 10
        assert found.video_metadata[0].frames_repeated


del ProcessorTesterMixin, VideoProcessingTestMixin  # pytest would collect them
