"""Registers our classes with the Auto classes and pipelines of transformers when this module is imported.

Python imports a module once, so nothing is registered twice.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig
from .model.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextModel,
    AlproVideoModel,
)
from .model.pipeline_alpro import TextVideoRetrievalPipeline, VideoQuestionAnsweringPipeline
from .model.pretraining_alpro import AlproForPreTraining
from .model.processing_alpro import AlproProcessor
from .model.video_processing_alpro import AlproVideoProcessor

for _config, _model in (
    (AlproConfig, AlproModel),
    (AlproTextConfig, AlproTextModel),
    (AlproVideoConfig, AlproVideoModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoModelForPreTraining.register(AlproConfig, AlproForPreTraining)
# transformers has no Auto class for matching. Next sentence prediction answers the same question: do two inputs belong
# together?
AutoModelForNextSentencePrediction.register(AlproConfig, AlproForVideoTextRetrieval)
AutoModelForVisualQuestionAnswering.register(AlproConfig, AlproForVideoQuestionAnswering)
AutoVideoProcessor.register(AlproConfig, AlproVideoProcessor)
AutoProcessor.register(AlproConfig, AlproProcessor)
AutoTokenizer.register(AlproConfig, BertTokenizer)
for _task, _pipeline, _auto_model in (
    ("video-question-answering", VideoQuestionAnsweringPipeline, AutoModelForVisualQuestionAnswering),
    ("text-video-retrieval", TextVideoRetrievalPipeline, AutoModelForNextSentencePrediction),
):
    PIPELINE_REGISTRY.register_pipeline(_task, pipeline_class=_pipeline, pt_model=_auto_model, type="multimodal")
