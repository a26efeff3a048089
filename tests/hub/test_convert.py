import argparse
import json
import logging
import pickle
import re

import numpy as np
import pytest
import torch
from fixtures.golden import cases
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from alpro_hf.cli.main import main
from alpro_hf.data.label_lists import read_answers
from alpro_hf.hub.convert import convert, convert_original_checkpoint, load_original_checkpoint
from alpro_hf.model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
from alpro_hf.model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel
from alpro_hf.model.unimodal_alpro import CheckpointError

ARCHITECTURE = cases.architecture("tiny")
TASKS = ["pretrain", "prompter", "retrieval", "qa"]
ENTITIES = ["person", "dog", "car", "traffic light", "tree", "house", "water"]
ANSWERS = {"cat": 1, "dog": 0, "fish": 4, "bird": 2, "cow": 3}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "runs", "##s", "to", "the", "left"]


def tiny(task="retrieval"):
    return dict(cases.state_dict("tiny", task))


@pytest.fixture
def files(tmp_path):
    """A checkpoint of each task, a vocabulary, an answer file and an entity list."""
    for task in TASKS:
        torch.save(tiny(task), tmp_path / f"{task}.pt")
    words = WORDS + [f"word{number}" for number in range(128 - len(WORDS))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    (tmp_path / "entities.txt").write_text("".join(f"{name} {90 - i}\n" for i, name in enumerate(ENTITIES)))
    return tmp_path


# --- what is read off the tensors -----------------------------------------------------------------------------------


def test_sizes_are_read_off_the_tensors():
    config = convert_original_checkpoint(tiny(), "retrieval", **ARCHITECTURE).config
    expected = cases.info("tiny")["config"]
    text = {**expected["text"]}
    del text["encoder_width"]
    assert {name: getattr(config.text_config, name) for name in text} == text
    video = {**expected["video"]}
    assert config.video_config.intermediate_size == video["hidden_size"] * video.pop("mlp_ratio")
    assert {name: getattr(config.video_config, name) for name in video} == video
    assert config.projection_dim == expected["projection_dim"]


def test_the_number_of_frames_is_that_of_the_time_embeddings():
    state = tiny()
    state["visual_encoder.model.time_embed"] = torch.randn(1, 9, 64)
    model = convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)
    assert model.config.video_config.num_frames == 9
    found = model.alpro.video_model.embeddings.time_embeddings
    assert torch.equal(found, state["visual_encoder.model.time_embed"])


def test_attention_projections_without_bias():
    state = {name: tensor for name, tensor in tiny().items() if not name.endswith(".qkv.bias")}
    model = convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)
    assert not model.config.video_config.qkv_bias


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_both_names_of_the_text_encoder_give_the_same_model(task):
    state = tiny(task)
    if task == "retrieval":
        other = {
            name.replace("text_encoder.bert.", "text_encoder."): tensor
            for name, tensor in state.items()
            if not name.startswith("text_encoder.cls.")
        }
    else:
        other = {name.replace("text_encoder.", "text_encoder.bert."): tensor for name, tensor in state.items()}
    assert set(other) != set(state)
    one = convert_original_checkpoint(state, task, **ARCHITECTURE).state_dict()
    two = convert_original_checkpoint(other, task, **ARCHITECTURE).state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_the_result_is_an_ordinary_model():
    state = tiny()
    source = {tensor.data_ptr() for tensor in state.values()}
    state["itm_head.weight"] = state["itm_head.weight"].half()
    model = convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert source.isdisjoint(p.data_ptr() for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_pretraining_checkpoint_is_refused_with_the_names_of_its_other_parts():
    state = tiny("pretrain")
    with pytest.raises(CheckpointError) as caught:
        convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)
    assert caught.value.unexpected == sorted(name for name in state if name.startswith(("mpm_head.", "prompter.")))


# --- every tensor is accounted for ----------------------------------------------------------------------------------


def refusal(state, task):
    """The error of a conversion, None where it succeeds."""
    try:
        convert_original_checkpoint(state, task, **ARCHITECTURE)
    except CheckpointError as error:
        return error
    return None


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_tensor_is_needed_or_known_to_be_unused(task):
    """Take the tensors away one at a time: either the conversion names the missing one or it can do without."""
    state = tiny(task)
    unused = set()
    for name in state:
        if name.startswith("prompter.") and name.endswith(".bias"):
            continue  # as its weight
        if ".blocks.1." in name or ".blocks.2." in name or re.search(r"\.layer\.[123]\.", name):
            continue  # as the first layer; this test is long enough
        rest = {other: tensor for other, tensor in state.items() if other != name}
        error = refusal(rest, task)
        if error is None:
            unused.add(name)
        elif name.endswith("visual_encoder.model.blocks.0.attn.qkv.bias"):
            # a model without these biases is possible: then those that are left are the ones that do not fit
            assert name.replace(".0.", ".1.") in error.unexpected
        else:
            assert error.missing == [name]
    heads = {"visual_encoder.model.head.weight", "visual_encoder.model.head.bias"}
    if task == "retrieval":
        language_model = {name for name in state if name.startswith("text_encoder.cls.")}
        assert unused == heads | language_model | {"text_encoder.bert.embeddings.position_ids"}
        assert len(language_model) == 7
    elif task == "prompter":
        language_model = {name for name in state if name.startswith("text_encoder.cls.")}
        other = {"text_encoder.bert.embeddings.position_ids", "itm_head.weight", "itm_head.bias"}
        assert unused == heads | language_model | other
    elif task == "pretrain":
        tied = {f"text_encoder.cls.predictions.decoder.{kind}" for kind in ("weight", "bias")}
        positions = "text_encoder.bert.embeddings.position_ids"
        of_prompter = {
            f"prompter.{name}" for name in (positions, "itm_head.weight", "visual_encoder.model.head.weight")
        }
        of_prompter |= {
            name for name in state if name.startswith("prompter.text_encoder.cls.") and not name.endswith(".bias")
        }
        assert unused == heads | tied | {positions} | of_prompter
    else:
        assert unused == heads | {"itm_head.weight", "itm_head.bias", "text_encoder.embeddings.position_ids"}


def test_missing_unexpected_and_misshaped_tensors_are_listed_together():
    state = tiny()
    del state["visual_encoder.model.blocks.1.temporal_fc.bias"]
    del state["text_encoder.bert.encoder.layer.3.attention.self.value.weight"]
    state["visual_encoder.model.blocks.0.ls1.gamma"] = torch.zeros(64)
    state["vision_proj.weight"] = torch.zeros(24, 63)
    state["text_encoder.bert.encoder.layer.0.attention.self.key.bias"] = torch.zeros(60)
    with pytest.raises(CheckpointError) as caught:
        convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.missing == [
        "text_encoder.bert.encoder.layer.3.attention.self.value.weight",
        "visual_encoder.model.blocks.1.temporal_fc.bias",
    ]
    assert error.unexpected == ["visual_encoder.model.blocks.0.ls1.gamma"]
    assert error.misshaped == [
        "text_encoder.bert.encoder.layer.0.attention.self.key.bias: (60,), (64,) needed",
        "vision_proj.weight: (24, 63), (24, 64) needed",
    ]
    for name in (*error.missing, *error.unexpected, *error.misshaped):
        assert name in str(error)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("visual_encoder.model.pos_embed", (1, 16, 64)),
        ("visual_encoder.model.patch_embed.proj.weight", (64, 3, 4, 8, 8)),
        ("text_encoder.bert.embeddings.word_embeddings.weight", (128,)),
    ],
)
def test_a_tensor_that_tells_a_size_must_have_a_sensible_shape(name, shape):
    with pytest.raises(CheckpointError) as caught:
        convert_original_checkpoint(tiny() | {name: torch.zeros(shape)}, "retrieval", **ARCHITECTURE)
    assert name in caught.value.misshaped[0]


def test_a_checkpoint_of_something_else_is_refused():
    with pytest.raises(CheckpointError, match=r"text_encoder\.embeddings\.word_embeddings\.weight"):
        convert_original_checkpoint({"layer1.weight": torch.zeros(3)}, "retrieval")


def test_tasks_of_one_kind_do_not_pass_for_the_other():
    with pytest.raises(CheckpointError, match=r"classifier\.2\.weight"):
        convert_original_checkpoint(tiny("retrieval"), "qa", **ARCHITECTURE)
    with pytest.raises(CheckpointError, match=r"unexpected \(4\): classifier\.0\.bias"):
        convert_original_checkpoint(tiny("qa"), "retrieval", **ARCHITECTURE)
    with pytest.raises(CheckpointError, match="video_prompt_feat"):
        convert_original_checkpoint(tiny("retrieval"), "prompter", **ARCHITECTURE)
    with pytest.raises(CheckpointError, match=r"unexpected \(\d+\): mpm_head\.0\.bias"):
        convert_original_checkpoint(tiny("pretrain") | tiny("prompter"), "prompter", **ARCHITECTURE)
    with pytest.raises(CheckpointError, match=r"mpm_head\.2\.weight"):
        convert_original_checkpoint(tiny("prompter"), "pretrain", **ARCHITECTURE)
    with pytest.raises(ValueError, match=r"task='captioning'.*pretrain, prompter, retrieval, qa"):
        convert_original_checkpoint(tiny(), "captioning")


@pytest.mark.slow
def test_a_pretraining_checkpoint_without_its_prompter_is_converted_alone(files, caplog):
    state = tiny("pretrain")
    expected, _ = convert_original_checkpoint(state, "pretrain", **ARCHITECTURE)
    alone = {name: tensor for name, tensor in state.items() if not name.startswith("prompter.")}
    torch.save(alone, files / "pretrain.pt")
    with caplog.at_level(logging.WARNING):
        student = convert(**options(files, "pretrain", vocab=files / "vocab.txt"))
    assert "holds no teacher" in caplog.text
    assert type(student) is AlproForPreTraining
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in student.state_dict().items())
    assert (files / "out" / "model.safetensors").exists() and not (files / "out" / "prompter").exists()


def test_errors_in_the_prompter_bear_the_names_of_the_file():
    state = tiny("pretrain")
    del state["prompter.visual_encoder.model.blocks.1.temporal_fc.bias"]
    state["prompter.extra.weight"] = torch.zeros(3)
    state["prompter.image_prompt_feat"] = torch.zeros(8, 24)
    with pytest.raises(CheckpointError, match=r"The prompter \(prompter\.\*\) of the checkpoint") as caught:
        convert_original_checkpoint(state, "pretrain", **ARCHITECTURE)
    assert caught.value.missing == ["prompter.visual_encoder.model.blocks.1.temporal_fc.bias"]
    assert caught.value.unexpected == ["prompter.extra.weight"]
    assert caught.value.misshaped == ["prompter.image_prompt_feat: (8, 24), (7, 24) needed"]


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        ("text_encoder.cls.predictions.decoder.weight", "text_encoder.bert.embeddings.word_embeddings.weight"),
        ("text_encoder.cls.predictions.decoder.bias", "text_encoder.cls.predictions.bias"),
    ],
)
def test_tied_tensors_must_be_equal(copy, original):
    state = tiny("pretrain")
    assert torch.equal(state[copy], state[original])
    for wrong in (state[copy] + 0.01, state[copy][:-1]):
        with pytest.raises(CheckpointError, match=rf"{copy} differs from {original}"):
            convert_original_checkpoint(state | {copy: wrong}, "pretrain", **ARCHITECTURE)
    model, _ = convert_original_checkpoint(
        {name: tensor for name, tensor in state.items() if name != copy}, "pretrain", **ARCHITECTURE
    )
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight


def test_prompts_that_nobody_embedded_are_left_out(caplog):
    """Random numbers in [0, 1) are what the original code saves for them: far longer than means of unit vectors."""
    state = tiny("prompter")
    state["video_prompt_feat"] = torch.rand(7, 24, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        model = convert_original_checkpoint(state, "prompter", entities=ENTITIES, **ARCHITECTURE)
    assert "video prompt features" in caplog.text
    assert "image prompt features" not in caplog.text
    clips = cases.tensors("tiny", "prompter")["in.visual_inputs"]
    with pytest.raises(ValueError, match="no video prompts yet"):
        model.pseudo_labels(clips)
    assert model.pseudo_labels(clips, "image").shape == (2, 7)


def test_heads_and_fusion_layer_must_fit():
    with pytest.raises(StrictDataclassError, match="num_attention_heads=7"):
        convert_original_checkpoint(tiny(), "retrieval", num_attention_heads=7, fusion_layer=2)
    with pytest.raises(StrictDataclassError, match="fusion_layer=6"):
        convert_original_checkpoint(tiny(), "retrieval", num_attention_heads=4)


# --- answers --------------------------------------------------------------------------------------------------------


def test_answers_name_the_classes():
    config = convert_original_checkpoint(tiny("qa"), "qa", answers=ANSWERS, **ARCHITECTURE).config
    assert config.id2label == {0: "dog", 1: "cat", 2: "bird", 3: "cow", 4: "fish"}
    assert config.label2id == {answer: index for index, answer in config.id2label.items()}


def test_without_answers_the_classes_are_numbered_and_a_warning_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        config = convert_original_checkpoint(tiny("qa"), "qa", **ARCHITECTURE).config
    assert config.id2label == {index: f"LABEL_{index}" for index in range(5)}
    assert "--answers" in caplog.text


@pytest.mark.parametrize(
    "answers",
    [
        {"cat": 0, "dog": 1},
        ANSWERS | {"horse": 5},
        ANSWERS | {"fish": 3},
        {},
    ],
    ids=["few", "many", "twice", "none"],
)
def test_answers_that_do_not_fit_the_classifier_are_refused(answers):
    with pytest.raises(ValueError, match=rf"classifies 5 answers.*received {len(answers)} answers"):
        convert_original_checkpoint(tiny("qa"), "qa", answers=answers, **ARCHITECTURE)


def test_answers_belong_to_question_answering():
    with pytest.raises(ValueError, match="task='qa'"):
        convert_original_checkpoint(tiny(), "retrieval", answers=ANSWERS, **ARCHITECTURE)


@pytest.mark.parametrize("content", ['["cat", "dog"]', '{"cat": "0"}', '{"cat": true}', "cat"])
def test_an_answer_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(ValueError, match=r"answers\.json"):
        read_answers(tmp_path / "answers.json")


# --- entities -------------------------------------------------------------------------------------------------------


def test_entities_name_what_student_and_prompter_know(caplog):
    with caplog.at_level(logging.WARNING):
        models = convert_original_checkpoint(tiny("pretrain"), "pretrain", entities=ENTITIES, **ARCHITECTURE)
        alone = convert_original_checkpoint(tiny("prompter"), "prompter", entities=tuple(ENTITIES), **ARCHITECTURE)
    assert [type(model) for model in models] == [AlproForPreTraining, AlproPrompterModel]
    assert all(model.config.entities == ENTITIES for model in (*models, alone))
    assert not caplog.text


@pytest.mark.parametrize("task", ["pretrain", "prompter"])
def test_without_entities_they_are_numbered_and_a_warning_says_so(task, caplog):
    with caplog.at_level(logging.WARNING):
        models = convert_original_checkpoint(tiny(task), task, **ARCHITECTURE)
    for model in models if task == "pretrain" else [models]:
        assert model.config.entities == [f"ENTITY_{index}" for index in range(7)]
    assert caplog.text.count("--entities") == 1


@pytest.mark.parametrize("task", ["pretrain", "prompter"])
@pytest.mark.parametrize("entities", [ENTITIES[:6], [*ENTITIES, "sky"], []], ids=["few", "many", "none"])
def test_entities_that_do_not_fit_are_refused(task, entities):
    with pytest.raises(ValueError, match=rf"knows 7 entities.*received {len(entities)} entities"):
        convert_original_checkpoint(tiny(task), task, entities=entities, **ARCHITECTURE)


def test_an_entity_named_twice_is_refused():
    with pytest.raises(StrictDataclassError, match="more than once: dog"):
        convert_original_checkpoint(tiny("pretrain"), "pretrain", entities=["dog", "dog", *"abcde"], **ARCHITECTURE)


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_entities_belong_to_pretraining(task):
    with pytest.raises(ValueError, match=f"task='pretrain' and 'prompter'; received 7 entities with task='{task}'"):
        convert_original_checkpoint(tiny(task), task, entities=ENTITIES, **ARCHITECTURE)


# --- reading files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_state_dict_alone_or_in_a_wrapper(tmp_path, wrapper):
    state = tiny()
    content = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(content, tmp_path / "file.pt")
    loaded = load_original_checkpoint(tmp_path / "file.pt")
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_the_file_format_of_old_torch_versions(tmp_path):
    state = {"temp": torch.tensor(0.07)}
    torch.save(state, tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    assert load_original_checkpoint(tmp_path / "file.pt") == state


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path):
    trace = tmp_path / "code-has-run"
    torch.save({"model": tiny(), "extra": Payload(trace)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"file\.pt was refused.*open.*run code"):
        load_original_checkpoint(tmp_path / "file.pt")
    assert not trace.exists()


@pytest.mark.slow
def test_a_file_with_other_objects_is_refused_with_their_type(tmp_path):
    torch.save({"model": tiny(), "args": argparse.Namespace(lr=1)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        load_original_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"file\.pt is not a file written by torch\.save"),
        (b"<html>not found</html>", r"file\.pt is a web page and not a file of weights"),
        (b"GIF89a", r"file\.pt is not a file written by torch\.save"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, said):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_original_checkpoint(tmp_path / "file.pt")


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "file.pt").write_bytes(pickle.dumps({"weight": np.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"file\.pt was refused.*run code"):
        load_original_checkpoint(tmp_path / "file.pt")


def test_a_garbled_file_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "file.pt")
    content = bytearray((tmp_path / "file.pt").read_bytes())
    content[200:260] = b"\xff" * 60
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pt is damaged"):
        load_original_checkpoint(tmp_path / "file.pt")


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_half_a_file_is_refused(tmp_path, zipped, kept):
    torch.save(tiny(), tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        load_original_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"weight": torch.zeros(2), "epoch": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"state dict"):
        load_original_checkpoint(tmp_path / "file.pt")


# --- writing folders ------------------------------------------------------------------------------------------------


def options(files, task, **more):
    return {"checkpoint": files / f"{task}.pt", "task": task, "output": files / "out", **ARCHITECTURE, **more}


@pytest.mark.slow
@torch.no_grad()
def test_the_folder_loads_at_once_and_returns_the_golden_numbers(files):
    convert(**options(files, "retrieval", vocab=files / "vocab.txt"))
    assert {path.name for path in (files / "out").iterdir()} >= {"config.json", "model.safetensors"}
    model = AlproForVideoTextRetrieval.from_pretrained(files / "out")
    assert model.config.matching_trained is True
    golden = cases.tensors("tiny", "retrieval")
    out = model(golden["in.caption_ids"], golden["in.caption_mask"], golden["in.visual_inputs"][:1])
    torch.testing.assert_close(out.vtm_logits, golden["out.inference_itm_logits"], atol=2e-5, rtol=0)

    processor = AutoProcessor.from_pretrained(files / "out")
    assert type(processor).__name__ == "AlproProcessor"
    video = np.random.default_rng(0).integers(0, 256, (12, 40, 48, 3), dtype=np.uint8)
    batch = processor(text=["A fox runs to the left", "the " * 90], videos=[video])
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert batch["input_ids"].shape == (2, 40)  # truncated to what the model reads
    assert batch["input_ids"][0, :8].tolist() == [2, 5, 6, 7, 9, 10, 11, 3]
    assert torch.isfinite(model(**batch).vtm_logits).all()
    assert processor.video_processor.frame_sampling == "uniform"


@pytest.mark.slow
@torch.no_grad()
def test_a_question_answering_folder_answers_in_words(files):
    convert(**options(files, "qa", vocab=files / "vocab.txt", answers=files / "answers.json"))
    model = AutoModelForVisualQuestionAnswering.from_pretrained(files / "out")
    assert model.config.matching_trained is False
    golden = cases.tensors("tiny", "qa")
    logits = model(golden["in.text_input_ids"], golden["in.text_input_mask"], golden["in.visual_inputs"]).logits
    torch.testing.assert_close(logits, golden["out.logits"], atol=2e-5, rtol=0)
    assert [model.config.id2label[index] for index in logits.argmax(dim=-1).tolist()] == ["bird", "bird"]
    assert AutoConfig.from_pretrained(files / "out").label2id == ANSWERS


@pytest.fixture
def pretrained(files):
    """The folder of a converted pre-training checkpoint."""
    convert(**options(files, "pretrain", vocab=files / "vocab.txt", entities=files / "entities.txt"))
    return files / "out"


def load(model_class, folder, **fields):
    """A model and what of it was not in the folder; everything in the folder must be known."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **fields)
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model, set(report["missing_keys"])


@pytest.mark.slow
@torch.no_grad()
def test_a_pretraining_folder_holds_student_and_prompter_with_their_processors(pretrained):
    golden = cases.tensors("tiny", "pretrain")
    student, missing = load(AlproForPreTraining, pretrained)
    prompter, missing_of_prompter = load(AlproPrompterModel, pretrained / "prompter")
    assert missing == missing_of_prompter == set()
    assert type(AutoModelForPreTraining.from_pretrained(pretrained)) is AlproForPreTraining
    assert student.config.entities == prompter.config.entities == ENTITIES
    out = student(
        golden["in.text_input_ids"],
        golden["in.text_input_mask"],
        golden["in.visual_inputs"],
        golden["in.mlm_text_input_ids"],
        golden["in.mlm_labels"],
        1 - golden["in.mpm_mask"],
        prompter.pseudo_labels(golden["in.crop_visual_inputs"]),
        return_loss=True,
    )
    for ours, theirs in {"vtc": "itc", "vtm": "itm", "mlm": "mlm", "pem": "mpm"}.items():
        torch.testing.assert_close(out[f"loss_{ours}"], golden[f"out.{theirs}_loss"], atol=2e-5, rtol=0)
    for folder in (pretrained, pretrained / "prompter"):
        processor = AutoProcessor.from_pretrained(folder)
        assert processor(text=["a fox runs"])["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
        assert processor.video_processor.num_frames == 4


@pytest.mark.slow
@torch.no_grad()
def test_fine_tuning_starts_from_a_pretraining_folder(pretrained):
    golden = cases.tensors("tiny", "pretrain")
    inputs = [golden[f"in.{name}"] for name in ("text_input_ids", "text_input_mask", "visual_inputs")]
    expected = AlproForPreTraining.from_pretrained(pretrained)(*inputs)

    retrieval, missing = load(AlproForVideoTextRetrieval, pretrained)
    assert missing == set()  # so it retrieves at once, without fine-tuning
    found = retrieval(*inputs)
    for name in ("logits_per_text", "text_embeds", "video_embeds"):
        assert torch.equal(found[name], expected[name])
    # pre-training fuses whole sequences, retrieval ends at the CLS token: the same sums in another order
    torch.testing.assert_close(found["vtm_logits"], expected["vtm_logits"], atol=1e-6, rtol=1e-5)

    answering, missing = load(AlproForVideoQuestionAnswering, pretrained, num_labels=11)
    assert missing == {name for name in answering.state_dict() if name.startswith("classifier.")}
    assert len(missing) == 4
    base, missing = load(AlproModel, pretrained)
    assert missing == set()
    teacher, missing = load(AlproPrompterModel, pretrained)  # a new prompter, which has no prompts yet
    assert missing == {"video_prompt_embeds", "image_prompt_embeds"}
    for alpro in (answering.alpro, base, teacher.alpro):
        out = alpro(*inputs)
        assert torch.equal(out.text_embeds, expected.text_embeds)
        assert torch.equal(out.video_embeds, expected.video_embeds)

    prompter = AlproPrompterModel.from_pretrained(pretrained / "prompter")
    base, missing = load(AlproModel, pretrained / "prompter")
    assert missing == set()
    assert torch.equal(base(*inputs).text_embeds, prompter(*inputs).text_embeds)
    assert not torch.equal(base(*inputs).text_embeds, expected.text_embeds)


@pytest.mark.slow
@torch.no_grad()
def test_a_prompter_folder_returns_the_golden_numbers(files):
    convert(**options(files, "prompter", vocab=files / "vocab.txt", entities=files / "entities.txt"))
    golden = cases.tensors("tiny", "prompter")
    prompter, missing = load(AlproPrompterModel, files / "out")
    assert missing == set()
    labels = prompter.pseudo_labels(golden["in.crop_visual_inputs"])
    torch.testing.assert_close(labels, golden["out.pseudo_labels_video"], atol=2e-5, rtol=0)
    assert not (files / "out" / "prompter").exists()


@pytest.mark.slow
def test_without_a_vocabulary_that_fits_nothing_is_written(files):
    with pytest.raises(ValueError, match=r"embeds 128 words, .* name its vocab\.txt with --vocab"):
        convert(**options(files, "retrieval"))
    assert not (files / "out").exists()


@pytest.mark.slow
def test_a_vocabulary_with_a_word_twice_is_refused(files):
    words = (files / "vocab.txt").read_text()
    (files / "vocab.txt").write_text(words.replace("fox", "runs"))
    with pytest.raises(ValueError, match=r"'runs' is in it twice"):
        convert(**options(files, "retrieval", vocab=files / "vocab.txt"))


@pytest.mark.slow
def test_a_vocabulary_that_does_not_fit_is_refused_and_nothing_is_written(files):
    (files / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(ValueError, match=r"vocab\.txt has 12 entries.*128 words"):
        convert(**options(files, "retrieval", vocab=files / "vocab.txt"))
    (files / "vocab.txt").write_text("\n".join(f"word{number}" for number in range(128)))
    with pytest.raises(ValueError, match=r"vocab\.txt.*\[CLS\]"):
        convert(**options(files, "retrieval", vocab=files / "vocab.txt"))
    assert not (files / "out").exists()


def command(*arguments):
    return main(["convert", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_writes_the_folder_and_says_what(files, capsys):
    code = command(
        *("--checkpoint", files / "qa.pt", "--task", "qa", "--output", files / "out"),
        *("--num-attention-heads", 4, "--fusion-layer", 2),
        *("--answers", files / "answers.json", "--vocab", files / "vocab.txt"),
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "AlproForVideoQuestionAnswering" in out
    assert "4 frames of 32 pixels" in out
    assert str(files / "out") in out
    assert (files / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_command_writes_student_and_prompter(files, capsys):
    code = command(
        *("--checkpoint", files / "pretrain.pt", "--task", "pretrain", "--output", files / "out"),
        *("--num-attention-heads", 4, "--fusion-layer", 2),
        *("--entities", files / "entities.txt", "--vocab", files / "vocab.txt"),
    )
    out = capsys.readouterr().out
    assert code == 0
    assert out.index("AlproForPreTraining") < out.index("AlproPrompterModel")
    assert f"written to {files / 'out'}\n" in out
    assert f"written to {files / 'out' / 'prompter'}\n" in out
    assert AutoConfig.from_pretrained(files / "out" / "prompter").entities == ENTITIES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--checkpoint": "absent.pt"}, "absent.pt"),
        ({"--entities": "entities.txt"}, "task='pretrain' and 'prompter'"),
        ({"--checkpoint": "pretrain.pt", "--task": "pretrain", "--entities": "absent.txt"}, "absent.txt"),
        ({"--checkpoint": "pretrain.pt", "--task": "pretrain", "--entities": "vocab.txt"}, "received 128 entities"),
        ({"--num-attention-heads": 7}, "num_attention_heads=7"),
        ({"--task": "qa"}, "classifier.2.weight"),
        ({"--vocab": "retrieval.pt"}, "utf-8"),
        ({"--output": "vocab.txt"}, "vocab.txt is a file"),
    ],
)
def test_the_command_reports_errors_on_stderr(files, capsys, monkeypatch, change, words):
    monkeypatch.chdir(files)
    arguments = {"--checkpoint": "retrieval.pt", "--task": "retrieval", "--output": "out"}
    arguments |= {"--num-attention-heads": 4, "--fusion-layer": 2} | change
    code = command(*[part for pair in arguments.items() for part in pair])
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert captured.err.startswith("alpro convert: ")
    assert words in captured.err
    assert not (files / "out").exists()


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = capsys.readouterr().out
    for words in (
        "read as data only",
        "ans2label.json",
        "bert-base-uncased",
        "from_pretrained",
        "ENTITY_0",
        "{pretrain,prompter,retrieval,qa}",
    ):
        assert words in text
