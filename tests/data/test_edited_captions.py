"""False captions by small edits: what is exchanged, what stays, and rows that carry them."""

import json
import re

import pytest
import spacy
from spacy.tokens import Doc

from alpro_hf.cli.main import main
from alpro_hf.data.edited_captions import EditWordsError, edit_caption, read_edit_words, wording_of
from alpro_hf.data.load_rows import load_rows

ORDERS = [
    ("a fox spins before an owl sits", ["a fox spins after an owl sits", "an owl sits before a fox spins"]),
    ("a fox spins after an owl sits", ["a fox spins before an owl sits", "an owl sits after a fox spins"]),
    ("After a man sits, he eats.", ["Before a man sits, he eats.", "After he eats, a man sits."]),
    ("first a fox spins, then an owl sits", ["first an owl sits, then a fox spins"]),
    ("A dog runs, and then a cat sits.", ["A cat sits, and then a dog runs."]),
    ("in this video a fox spins and then an owl sits", ["in this video an owl sits and then a fox spins"]),
    ("a dog runs and then jumps", []),  # the second event has no subject
    ("a man washes before eating", ["a man washes after eating"]),
    ("a dog runs while a cat sits", []),
    ("a video of a dog running after a cat", []),  # one event
    ("a video where a dog runs before a cat sits",
     ["a video where a dog runs after a cat sits", "a video where a cat sits before a dog runs"]),
]  # fmt: skip
OPPOSITES = [
    ("a fox moves from left to right", ["a fox moves from right to left"]),
    ("Left of the house a man goes up", ["Right of the house a man goes up", "Left of the house a man goes down"]),
    ("a woman gets out of a car", ["a woman gets into a car"]),
    ("a bright upper leftover", []),
    ("a man picks up a box", ["a man puts down a box"]),
]


@pytest.mark.parametrize(("text", "expected"), ORDERS)
def test_events_change_their_order(text, expected):
    assert [edit.text for edit in edit_caption(text, ["order"])] == expected


@pytest.mark.parametrize(("text", "expected"), OPPOSITES)
def test_words_become_their_opposites(text, expected):
    assert [edit.text for edit in edit_caption(text, ["opposites"])] == expected


def parsed(words, heads, deps, pos):
    """A document of spaCy, as a parser makes it, of which the parts are written down here."""
    doc = Doc(spacy.blank("en").vocab, words=words, heads=heads, deps=deps, pos=pos)
    return lambda text: doc


@pytest.mark.parametrize(
    ("words", "heads", "deps", "pos", "expected"),
    [
        (
            ["A", "small", "dog", "chases", "the", "cat", "."],
            [2, 2, 3, 3, 5, 3, 3],
            ["det", "amod", "nsubj", "ROOT", "det", "dobj", "punct"],
            ["DET", "ADJ", "NOUN", "VERB", "DET", "NOUN", "PUNCT"],
            ["The cat chases a small dog ."],
        ),
        (
            ["a", "cat", "is", "chased", "by", "a", "dog"],
            [1, 3, 3, 3, 3, 6, 4],
            ["det", "nsubjpass", "auxpass", "ROOT", "agent", "det", "pobj"],
            ["DET", "NOUN", "AUX", "VERB", "ADP", "DET", "NOUN"],
            ["a dog is chased by a cat"],
        ),
        (
            ["a", "fox", "runs", "after", "an", "owl"],
            [1, 2, 2, 2, 5, 3],
            ["det", "nsubj", "ROOT", "prep", "det", "pobj"],
            ["DET", "NOUN", "VERB", "ADP", "DET", "NOUN"],
            ["an owl runs after a fox"],
        ),
        (
            ["he", "sees", "a", "dog"],
            [1, 1, 3, 1],
            ["nsubj", "ROOT", "det", "dobj"],
            ["PRON", "VERB", "DET", "NOUN"],
            [],  # "a dog sees he" is no caption
        ),
    ],
)
def test_subject_and_object_exchange_their_places(words, heads, deps, pos, expected):
    edits = edit_caption("any text", ["roles"], parse=parsed(words, heads, deps, pos))
    assert [edit.text.strip() for edit in edits] == expected


def test_wordings():
    texts = ["a dog runs, then a cat sits", "a dog runs before a cat sits", "After a dog runs, a cat sits", "a dog"]
    assert [wording_of(text) for text in texts] == ["then", "before", "after", None]


def test_kinds_are_checked():
    with pytest.raises(ValueError, match="'roles' needs parse"):
        edit_caption("a dog", ["roles"])
    with pytest.raises(ValueError, match="choose from order, opposites, roles"):
        edit_caption("a dog", ["colours"])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"opposites": [["up"]], "clause_starts": []}, "opposites"),
        ({"opposites": []}, "clause_starts"),
        ([], "opposites"),
    ],
)
def test_a_wrong_file_of_words_names_the_field(tmp_path, content, named):
    (tmp_path / "words.json").write_text(json.dumps(content))
    with pytest.raises(EditWordsError, match=f'words.json: "{named}"'):
        read_edit_words(tmp_path / "words.json")


ROWS = [
    {"video": "a.mp4", "text": "a dog runs up, then a cat sits"},
    {"video": "b.mp4", "text": "after a dog runs, a cat sits"},
    {"video": "c.mp4", "text": "a dog sleeps"},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("extension", [".jsonl", ".parquet"])
def test_the_command_adds_negatives_to_rows(data, tmp_path, capsys, extension):
    output = tmp_path / f"edited{extension}"
    assert main(["edit-captions", str(data), "--output", str(output), "--repeat-reversing", "2"]) == 0
    printed = capsys.readouterr().out
    assert "4 rows, 3 of them with false captions (order 3, opposites 1)" in printed
    rows = load_rows(str(output), "retrieval").to_list()
    assert [row["video"] for row in rows] == ["a.mp4", "b.mp4", "b.mp4", "c.mp4"]
    assert [row["wording"] for row in rows] == ["then", "after", "after", None]
    assert rows[0]["negatives"] == ["a cat sits, then a dog runs up", "a dog runs down, then a cat sits"]
    assert rows[3]["negatives"] == []


def test_the_command_keeps_the_wordings_asked_for(data, tmp_path):
    output, words = tmp_path / "then.jsonl", tmp_path / "words.json"
    words.write_text(json.dumps({"opposites": [["dog", "wolf"]], "clause_starts": []}))
    command = ["edit-captions", str(data), "--output", str(output), "--wordings", "then", "--words", str(words)]
    assert main([*command, "--kinds", "opposites"]) == 0
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert row["negatives"] == ["a wolf runs up, then a cat sits"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "x.txt"], "must end with .jsonl or .parquet"),
        (["--output", "x.jsonl", "--wordings", "before"], "None of 3 captions orders two events by before"),
        (["--output", "x.jsonl", "--kinds", "roles", "--pipeline", "nowhere"], "no spaCy pipeline 'nowhere'"),
    ],
)
def test_the_command_says_what_is_wrong(data, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["edit-captions", str(data), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "is empty"),
        ('{"text": "a before b"}\n{"text": null}\n', r"Row 1 \(counted from 0\), field 'text': None is no text"),
        ('{"text": 7}\n', r"Row 0 .*: 7 is no text"),
        ('{"text": ["a"]}\n', r"is no text"),
        ('{"text": ' + "[" * 100_000, r"rows\.jsonl cannot be read as rows, or has none"),
        ('{"text": "\\ud800 before b"}\n', r"rows\.jsonl cannot be read as rows"),
    ],
)
def test_rows_of_no_text_are_one_sentence(tmp_path, capsys, rows, said):
    (tmp_path / "rows.jsonl").write_text(rows)
    assert main(["edit-captions", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 1
    assert re.search(said, capsys.readouterr().err) and not (tmp_path / "out.jsonl").exists()


def test_words_beyond_their_bounds_and_too_many_rows(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"text": "after a dog runs, a cat jumps"}\n')
    (tmp_path / "words.json").write_text("[" * 100_000)
    command = ["edit-captions", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--words", str(tmp_path / "words.json")]) == 1
    assert re.search(r"words\.json cannot be used as words of edits: it is nested deeper", capsys.readouterr().err)
    assert main([*command, "--repeat-reversing", "1000000000"]) == 1
    assert "must be at least 1 and at most 100" in capsys.readouterr().err
