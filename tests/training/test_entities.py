"""Nouns found by a real (small) tagger, lists of entities, prompts and the prompter made of them."""

import argparse
import random
import sys
from collections import Counter

import numpy as np
import pytest
import spacy
import torch
from fixtures import tiny
from fixtures.gallery import load, write_model
from fixtures.tagger import NOUNS, PLACES, sentence, train_pipeline
from spacy.language import Language

from alpro_hf.cli.entities import add_arguments, run
from alpro_hf.data.label_lists import EntityListError, read_entities, write_entities
from alpro_hf.model.modeling_alpro import AlproModel
from alpro_hf.model.pretraining_alpro import AlproPrompterModel
from alpro_hf.training import entities as module
from alpro_hf.training.entities import NounCounts, TaggerError, count_nouns, load_tagger
from alpro_hf.training.prompter import IMAGE_TEMPLATES, VIDEO_TEMPLATES, build_prompter, prompts

ENTITIES = ["dog", "fox", "pizza", "cat", "clip"]


@pytest.fixture(scope="module")
def nlp() -> Language:
    return train_pipeline()


@pytest.fixture(scope="module")
def pipeline_folder(nlp, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pipeline") / "captions"
    nlp.to_disk(folder)
    return str(folder)


def captions(count: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(word for word, _ in sentence(rng)) for _ in range(count)]


def count(texts, nlp, **options) -> NounCounts:
    return count_nouns(texts, nlp, progress=False, **options)


# --- counting nouns -------------------------------------------------------------------------------------------------


def test_nouns_are_lemmas_in_lower_case_and_verbs_are_none(nlp):
    texts = ["The small dogs sit near London.", "Two Women play on the beach.", "The woman runs near a play."]
    found = count(texts, nlp)
    assert found.counts == {"dog": 1, "woman": 2, "beach": 1, "play": 1}
    assert (found.captions, found.empty, found.undercount) == (3, 0, 0)


def test_what_the_tagger_finds_in_new_sentences_is_what_they_were_made_of(nlp):
    rng = random.Random(7)
    made = [sentence(rng) for _ in range(300)]
    singular = {plural: noun for noun, plural in NOUNS.items()}
    expected = Counter(singular.get(word, word) for words in made for word, pos in words if pos == "NOUN")
    found = count([" ".join(word for word, _ in words) for words in made], nlp).counts
    wrong = sum(abs(found.get(noun, 0) - expected[noun]) for noun in {*found, *expected})
    assert wrong <= 0.02 * expected.total()


def test_proper_nouns_on_demand(nlp):
    found = count(captions(100), nlp, pos=("NOUN", "PROPN")).counts
    assert {place.lower() for place in PLACES} <= set(found)
    assert not {place.lower() for place in PLACES} & set(count(captions(100), nlp).counts)


def test_empty_captions_are_counted_and_passed_over(nlp):
    found = count([None, "", " \t", "The dog runs on a table.", None], nlp)
    assert (found.captions, found.empty, found.counts) == (5, 4, {"dog": 1, "table": 1})
    assert count([], nlp) == NounCounts()


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"processes": 2}])
def test_batches_chunks_and_processes_change_nothing(nlp, monkeypatch, options):
    texts = captions(100)
    one_by_one = Counter(token.lemma_.lower() for text in texts for token in nlp(text) if token.pos_ == "NOUN")
    monkeypatch.setattr(module, "_CHUNK", 30)
    assert count(texts, nlp, **options).counts == one_by_one


def test_components_that_find_no_nouns_are_not_run_and_not_taken_away(pipeline_folder):
    @Language.component("alpro_never_run", assigns=["doc.ents"])
    def never_run(doc):
        raise AssertionError("this component has nothing to do with nouns")

    nlp = spacy.load(pipeline_folder)
    nlp.add_pipe("alpro_never_run", first=True)
    names = nlp.pipe_names
    assert count(["The dog runs."], nlp).counts == {"dog": 1}
    assert nlp.pipe_names == names


def test_lemmas_without_a_letter_or_with_a_space_are_no_nouns():
    assert module._noun("Dog") == "dog"
    assert module._noun("t-shirt") == "t-shirt"
    assert [module._noun(lemma) for lemma in ("42", "-", "", "traffic light", " ", "\n")] == [None] * 6


def test_what_is_dropped_for_memory_bounds_the_error(nlp):
    rng = np.random.default_rng(0)
    syllables = ["ka", "lo", "mi", "ru", "te", "sha", "bo"]
    words = ["".join(syllables[int(digit)] for digit in np.base_repr(i + 400, 7)) for i in range(2000)]
    numbers = np.minimum(rng.zipf(1.2, 5000) - 1, len(words) - 1)  # many rare words, some frequent ones
    texts = [f"The {words[i]} sits near the {words[j]}." for i, j in numbers.reshape(-1, 2)]
    exact = count(texts, nlp)
    assert len(exact.counts) > 500
    assert exact.undercount == 0
    for limit in (40, 150):
        found = count(texts, nlp, max_nouns=limit)
        assert len(found.counts) <= limit
        assert 0 < found.undercount < sum(exact.counts.values()) / limit
        for noun, true in exact.counts.items():
            assert true - found.undercount <= found.counts.get(noun, 0) <= true
        top = sorted(exact.counts, key=exact.counts.__getitem__)[-5:]
        assert {noun: found.counts[noun] for noun in top} == {noun: exact.counts[noun] for noun in top}
    assert count(texts, nlp, max_nouns=len(exact.counts)) == exact


def test_new_words_are_forgotten(nlp):
    count(captions(50), nlp)
    known = len(nlp.vocab.strings), sum(1 for _ in nlp.vocab)
    found = count([f"The zork{'abcdefghij'[i % 10] * (i // 10 + 1)} runs." for i in range(300)], nlp)
    assert len(found.counts) > 200
    assert (len(nlp.vocab.strings), sum(1 for _ in nlp.vocab)) == known
    assert not nlp.get_pipe("lemmatizer").cache


@pytest.mark.parametrize("option", ["batch_size", "processes", "max_nouns"])
def test_arguments_out_of_range(nlp, option):
    with pytest.raises(ValueError, match=f"{option}=0 must be at least"):
        count(["a dog"], nlp, **{option: 0})


def test_progress_goes_to_stderr(nlp, capsys):
    count_nouns(captions(3), nlp)
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting nouns" in err
    assert "3 captions" in err


# --- pipelines ------------------------------------------------------------------------------------------------------


def test_a_pipeline_by_its_folder(pipeline_folder):
    assert count(["Two foxes rest near a tree."], pipeline_folder).counts == {"fox": 1, "tree": 1}


def test_without_spacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(
        TaggerError, match=r'pip install "alpro-hf\[entities\]", then python -m spacy download en_core'
    ):
        count(["a dog"], "en_core_web_sm")


def test_a_pipeline_that_is_not_there(tmp_path):
    with pytest.raises(TaggerError, match=r"no spaCy pipeline 'xx_nothing' \(installed: .*python -m spacy download"):
        load_tagger("xx_nothing")
    with pytest.raises(TaggerError, match="cannot be loaded"):
        load_tagger(str(tmp_path))


@pytest.mark.parametrize(
    ("components", "lacking", "has"),
    [
        ([], "parts of speech .* and lemmas", "it has no components"),
        (["tagger", "lemmatizer"], r"parts of speech \(a morphologizer, or", "it has tagger, lemmatizer"),
        (["tagger", "attribute_ruler", "parser"], "what finds lemmas", "it has tagger, attribute_ruler, parser"),
        (["ner", "trainable_lemmatizer"], "parts of speech", "it has ner, trainable_lemmatizer"),
    ],
)
def test_pipelines_that_cannot_tell_nouns(components, lacking, has):
    nlp = spacy.blank("en")
    for component in components:
        nlp.add_pipe(component)
    with pytest.raises(TaggerError, match=rf"The spaCy pipeline en_pipeline lacks .*{lacking}.*; {has}\. Use one"):
        count(["a dog"], nlp)


def test_a_disabled_component_does_not_count(pipeline_folder):
    nlp = spacy.load(pipeline_folder, disable=["lemmatizer"])
    with pytest.raises(TaggerError, match="lacks what finds lemmas"):
        count(["a dog"], nlp)


def test_what_is_not_run_of_a_full_pipeline():
    nlp = spacy.blank("en")
    needed = ["tok2vec", "tagger", "attribute_ruler", "morphologizer", "lemmatizer"]
    for component in [*needed, "parser", "ner", "senter", "textcat", "entity_ruler", "spancat", "sentencizer"]:
        nlp.add_pipe(component)
    assert [name for name in nlp.pipe_names if name not in module._unneeded_components(nlp)] == needed


# --- lists of entities ----------------------------------------------------------------------------------------------


def test_the_most_frequent_first_and_equals_by_the_alphabet(tmp_path):
    path = tmp_path / "entities.txt"
    counts = {"zebra": 3, "dog": 7, "cat": 3, "ant": 1, "café": 3}
    assert write_entities(path, counts, 4) == ["dog", "café", "cat", "zebra"]
    assert path.read_bytes().decode() == "dog 7\ncafé 3\ncat 3\nzebra 3\n"
    assert read_entities(path) == ["dog", "café", "cat", "zebra"]
    assert len(write_entities(path, counts)) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["entities.txt"]


def test_nothing_to_write_leaves_the_old_list(tmp_path):
    path = tmp_path / "entities.txt"
    path.write_text("dog 1\n")
    with pytest.raises(EntityListError, match="there are no nouns"):
        write_entities(path, {})
    with pytest.raises(ValueError, match="n=0"):
        write_entities(path, {"dog": 1}, 0)
    assert path.read_text() == "dog 1\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("man 3912\nwoman 3000\n", ["man", "woman"]),
        ("dog\ntraffic light\nt-shirt", ["dog", "traffic light", "t-shirt"]),
        ("boeing 747 12\r\ntraffic\tlight 3\r\n", ["boeing 747", "traffic light"]),
        ("\ufeffdog 1\n", ["dog"]),
        ("1984\n42\n", ["1984", "42"]),
    ],
)
def test_lists_with_and_without_counts(tmp_path, text, names):
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert read_entities(tmp_path / "list.txt") == names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", " is empty"),
        (" \n\n", " is empty"),
        ("dog 3\ncat 2\ndog 1\n", ", line 3: 'dog' is in line 1 already"),
        ("dog 3\n\ncat 2\n", ", line 2: blank"),
        ("dog 3\ncat\n", ", line 2: 'cat' has no number at its end"),
        ("dog\nboeing 747\n", ", line 2: 'boeing 747' has a number at its end"),
        (b"dog 3\ncaf\xe9 2\n", ", line 2: not UTF-8"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, problem):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EntityListError) as caught:
        read_entities(path)
    assert str(caught.value).startswith(f"{path}{problem}")


# --- prompts --------------------------------------------------------------------------------------------------------


def test_the_templates_of_the_paper():
    assert len(set(VIDEO_TEMPLATES)) == len(set(IMAGE_TEMPLATES)) == 12
    assert VIDEO_TEMPLATES[:4] == (
        "A footage of a {entity}.",
        "A footage of the {entity}.",
        "A footage of one {entity}.",
        "A video of a {entity}.",
    )
    assert VIDEO_TEMPLATES[-1] == "A video footage of one {entity}."
    assert IMAGE_TEMPLATES[0] == "A photo of a {entity}."
    assert {"A picture of the {entity}.", "A good photo of one {entity}."} < set(IMAGE_TEMPLATES)
    assert IMAGE_TEMPLATES[-1] == "A good picture of one {entity}."


def test_prompts_are_template_major():
    assert prompts(["dog", "{x}"], ["a {entity}", "{entity} {entity} {}"]) == [
        "a dog",
        "a {x}",
        "dog dog {}",
        "{x} {x} {}",
    ]
    assert len(prompts(ENTITIES)) == 60


def test_templates_that_are_refused():
    with pytest.raises(ValueError, match=r"template 'A video of a dog\.' has no place"):
        prompts(["dog"], ["{entity}", "A video of a dog."])
    with pytest.raises(ValueError, match="received 0 and 1"):
        prompts(["dog"], [])
    with pytest.raises(ValueError, match="received 1 and 0"):
        prompts([], ["{entity}"])


# --- the prompter ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A retrieval model and its processor."""
    return load(write_model(tmp_path_factory.mktemp("model"), "retrieval"), "retrieval")


def build(trained, entities=ENTITIES, **options) -> AlproPrompterModel:
    return build_prompter(*trained, entities, **({"progress": False} | options))


def test_an_embedding_is_the_mean_over_the_templates(trained):
    prompter = build(trained)
    assert prompter.config.entities == ENTITIES
    assert not prompter.training
    assert not any(parameter.requires_grad for parameter in prompter.parameters())
    for kind, templates in (("video", VIDEO_TEMPLATES), ("image", IMAGE_TEMPLATES)):
        embeds = getattr(prompter, f"{kind}_prompt_embeds")
        assert embeds.shape == (len(ENTITIES), 12)
        for entity, embed in zip(ENTITIES, embeds, strict=True):
            features = []
            for template in templates:  # one by one
                inputs = trained[1].tokenizer(template.replace("{entity}", entity), return_tensors="pt")
                with torch.no_grad():
                    output = trained[0].alpro.get_text_features(inputs["input_ids"], inputs["attention_mask"])
                features.append(output.pooler_output[0])
            torch.testing.assert_close(embed, torch.stack(features).mean(dim=0), atol=1e-6, rtol=1e-5)
    assert (prompter.video_prompt_embeds - prompter.image_prompt_embeds).abs().max() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_change_nothing(trained, batch_size):
    for name, expected in build(trained).named_buffers():
        found = build(trained, batch_size=batch_size).get_buffer(name)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_saved_and_loaded_it_says_the_same(trained, tmp_path):
    prompter = build(trained)
    prompter.save_pretrained(tmp_path)
    loaded = AlproPrompterModel.from_pretrained(tmp_path)
    assert loaded.config.entities == ENTITIES
    for name, tensor in prompter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    pixels = tiny.inputs()["pixel_values_videos"]
    for kind in ("video", "image"):
        assert torch.equal(loaded.pseudo_labels(pixels, kind), prompter.pseudo_labels(pixels, kind))


def test_the_order_of_the_entities_is_kept(trained):
    forward, backward = build(trained), build(trained, ENTITIES[::-1])
    torch.testing.assert_close(forward.video_prompt_embeds, backward.video_prompt_embeds.flip(0))
    assert (forward.video_prompt_embeds[0] - forward.video_prompt_embeds[1]).abs().max() > 1e-3


def test_other_templates(trained):
    options = {"video_templates": ["{entity}"], "image_templates": ["the {entity}", "{entity} here"]}
    prompter = build(trained, **options)
    inputs = trained[1].tokenizer(ENTITIES, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = trained[0].alpro.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(prompter.video_prompt_embeds, features)
    with pytest.raises(ValueError, match="no place for the entity"):
        build(trained, image_templates=["a dog"])


def test_from_the_bare_model_from_a_prompter_and_with_the_tokenizer_alone(trained):
    model, processor = trained
    expected = build(trained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert isinstance(model.alpro, AlproModel)
    other = build((expected, processor), ["cat", "dog"])
    for found in (build((model.alpro, processor.tokenizer)), build((other, processor))):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    torch.testing.assert_close(other.video_prompt_embeds[1], expected.video_prompt_embeds[0])
    assert expected.config.entities == ENTITIES
    assert model.config.entities is None
    other.alpro.temperature.fill_(0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_prompts_that_are_too_long_are_named(trained, caplog):
    entities = ["dog", "fox " * 8 + "left"]
    prompter = build(trained, entities)
    assert "Prompts of 1 entities are longer than max_length=15 tokens and lose their end: fox fox" in caplog.text
    caplog.clear()
    whole = build(trained, entities, max_length=20)
    assert not caplog.records
    assert torch.allclose(prompter.video_prompt_embeds[0], whole.video_prompt_embeds[0], atol=1e-6)
    assert not torch.allclose(prompter.video_prompt_embeds[1], whole.video_prompt_embeds[1], atol=1e-3)


def test_what_makes_no_prompter(trained):
    with pytest.raises(TypeError, match=r"received AlproTextModel"):
        build((trained[0].alpro.text_model, trained[1]))
    with pytest.raises(ValueError, match="max_length=33 must lie between 3 and the 32 tokens"):
        build(trained, max_length=33)
    with pytest.raises(ValueError, match=r"blank or more than once: \[' ', 'dog'\]"):
        build(trained, ["dog", " ", "cat", "dog"])
    with pytest.raises(ValueError, match="received 12 and 0"):
        build(trained, [])


def test_the_bar_counts_prompts(trained, capsys):
    build(trained, progress=True, batch_size=16)
    out, err = capsys.readouterr()
    assert out == ""
    assert "120/120" in err


# --- alpro entities -------------------------------------------------------------------------------------------------


def entities(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_from_captions_to_the_list(tmp_path, pipeline_folder, nlp, capsys):
    texts = captions(200)
    (tmp_path / "a.txt").write_text("\n".join(texts[:120]) + "\n\n")
    (tmp_path / "b.csv").write_text("caption\n" + "\n".join(texts[120:]) + "\n")
    output = tmp_path / "entities.txt"
    options = ("--output", output, "--pipeline", pipeline_folder, "--top", 5, "--batch-size", 50)
    assert entities(tmp_path / "a.txt", tmp_path / "b.csv", *options) == 0
    exact = count(texts, nlp).counts
    expected = sorted(exact, key=lambda noun: (-exact[noun], noun))[:5]
    assert output.read_text() == "".join(f"{noun} {exact[noun]}\n" for noun in expected)
    out, err = capsys.readouterr()
    assert f"201 captions (1 empty), {len(exact)} different nouns" in out
    assert f"5 entities: {', '.join(expected)}" in out
    assert "dropped" not in out
    assert "counting nouns" in err


def test_the_command_says_what_it_dropped_and_counts_names_on_demand(tmp_path, pipeline_folder, capsys):
    (tmp_path / "a.txt").write_text("\n".join(captions(200)))
    options = ("--output", tmp_path / "e.txt", "--pipeline", pipeline_folder)
    assert entities(tmp_path / "a.txt", *options, "--max-nouns", 8, "--proper-nouns") == 0
    assert "a count may be up to" in capsys.readouterr().out
    assert entities(tmp_path / "a.txt", *options, "--proper-nouns") == 0
    assert {place.lower() for place in PLACES} <= set(read_entities(tmp_path / "e.txt"))


def test_the_command_finds_the_wrong_column_of_the_last_file_first(tmp_path, pipeline_folder, capsys):
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(captions(3)))
    (tmp_path / "b.csv").write_text("name,id\na dog,1\n")
    options = ("--output", tmp_path / "e.txt", "--pipeline", pipeline_folder)
    assert entities(tmp_path / "a.csv", tmp_path / "b.csv", *options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"alpro entities: {tmp_path / 'b.csv'}, line 1: no column of captions is known")
    assert "counting" not in err
    assert not (tmp_path / "e.txt").exists()


def test_the_command_without_nouns_pipeline_or_place_to_write(tmp_path, pipeline_folder, capsys):
    (tmp_path / "a.txt").write_text("\n\n")
    file, output = tmp_path / "a.txt", tmp_path / "e.txt"
    assert entities(file, "--output", output, "--pipeline", pipeline_folder) == 1
    assert "there are no nouns" in capsys.readouterr().err
    assert entities(file, "--output", output, "--pipeline", "xx_nothing") == 1
    assert "python -m spacy download" in capsys.readouterr().err
    assert entities(file, "--output", tmp_path / "no" / "e.txt", "--pipeline", pipeline_folder) == 1
    assert "must name a file in a folder that exists" in capsys.readouterr().err
    assert entities(tmp_path / "b.txt", "--output", output, "--pipeline", pipeline_folder) == 1
    assert "There is no file" in capsys.readouterr().err
    for wrong in (("--top", "0"), ("--processes", "x")):
        with pytest.raises(SystemExit) as caught:
            entities(file, "--output", output, *wrong)
        assert caught.value.code == 2
