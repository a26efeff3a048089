"""Make a miniature of the released files in their exact form, for the option --dry of the scripts in this folder.

Clips come from the sprite world, with names as in the data sets. Checkpoints have the original layout at tiny size,
with random weights; keys and shapes are those of the golden fixtures of the tests. A dry run takes all steps from the
files to the results, but its numbers mean nothing.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

from alpro_hf.sprites.render import write_split

GOLDEN = Path(__file__).parents[2] / "tests" / "fixtures" / "golden" / "tiny"
CLIPS = 6
TRAINING_CLIPS = 4  # the first of them
ANSWER_TYPES = ("what", "who", "how", "where", "when")
# released checkpoint -> the task whose keys it has
CHECKPOINTS = {
    **{"pretrained": "pretrain", "prompter": "prompter", "msrvtt_ret": "retrieval", "didemo_ret": "retrieval"},
    **{"msrvtt_qa": "qa", "msvd_qa": "qa"},
}
# data set -> (pattern of its clip names, extension of its files)
CLIP_NAMES = {
    "msrvtt_ret": ("video70{:02}", ".mp4"),
    "didemo_ret": ("54322086@N00_24085984{:02}_274c77d26a", ".mp4"),
    "msrvtt_qa": ("video80{:02}", ".mp4"),
    "msvd_qa": ("-4wsuPCjDBc_{}_15", ".avi"),
}
POSITIONS = 64  # of the text encoder; more than the longest text length of the scripts
NUM_ANSWERS, NUM_ENTITIES = 5, 7  # sizes of the classifiers and prompts in the tiny checkpoints


def architecture() -> list[str]:
    """Options of `alpro convert` for the sizes that the shapes of the tensors do not show."""
    text = _config()["text"]
    sizes = {"--num-attention-heads": text["num_attention_heads"], "--fusion-layer": text["fusion_layer"]}
    return [word for option, value in sizes.items() for word in (option, str(value))]


def _config() -> dict[str, Any]:
    return json.loads((GOLDEN / "info.json").read_text(encoding="utf-8"))["config"]


def make_released(folder: Path) -> Path:
    """Write the miniature to `folder`, unless it exists."""
    if (folder / "vocab.txt").is_file():  # the last file that is written
        return folder
    split = write_split(folder / "sprites", "test", CLIPS, size=64, num_frames=20, workers=1, progress=False)
    captions, questions = (_rows(split / name) for name in ("retrieval.jsonl", "qa.jsonl"))
    questions = [row for row in questions if row["answer_type"].split()[0] in ANSWER_TYPES]
    videos = sorted({row["video"] for row in captions})
    for name in ("msrvtt_ret", "didemo_ret"):
        _write_retrieval(folder / name, name, split, videos, captions)
    for name in ("msrvtt_qa", "msvd_qa"):
        _write_questions(folder / name, name, split, videos, questions)
    _write_pretraining(folder, split, captions)
    words = sorted({word for row in (*captions, *questions) for word in row.get("text", row.get("question")).split()})
    _write_checkpoints(folder, words)
    return folder


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_retrieval(folder: Path, name: str, split: Path, videos: list[str], captions: list[dict[str, Any]]) -> None:
    called = _copy_clips(folder, name, split, videos)
    rows = [{"caption": row["text"], "clip_name": called[row["video"]]} for row in captions]
    _write_lines(folder / "txt" / "train.jsonl", rows[:TRAINING_CLIPS])
    _write_lines(folder / "txt" / "test.jsonl", rows)


def _write_questions(folder: Path, name: str, split: Path, videos: list[str], questions: list[dict[str, Any]]) -> None:
    called = _copy_clips(folder, name, split, videos)
    rows = [
        {
            "question": row["question"],
            "answer": row["answer"],
            "video_id": called[row["video"]],
            "answer_type": row["answer_type"].split()[0],
        }
        for row in questions
        if row["video"] in called
    ]
    answers = Counter(row["answer"] for row in rows).most_common(NUM_ANSWERS)
    _write_lines(folder / "txt" / "train.jsonl", rows[: 2 * TRAINING_CLIPS])
    _write_lines(folder / "txt" / "test.jsonl", rows)
    numbers = {answer: number for number, (answer, _) in enumerate(answers)}
    (folder / "txt" / "train_ans2label.json").write_text(json.dumps(numbers))


def _copy_clips(folder: Path, name: str, split: Path, videos: list[str]) -> dict[str, str]:
    """Copy the clips under names of the data set. Returns clip of the sprite world -> name."""
    pattern, extension = CLIP_NAMES[name]
    called = {video: pattern.format(10 + number) for number, video in enumerate(videos)}
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for video, identity in called.items():
        target = folder / "videos" / f"{identity}{extension}"
        if extension == ".mp4":
            target.write_bytes((split / video).read_bytes())
        else:
            _write_avi(split / video, target)
    return called


def _write_avi(source: Path, target: Path) -> None:
    """Encode a clip again as AVI, the container of MSVD."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as output:
        first = clip.streams.video[0]
        stream = output.add_stream("mpeg4", rate=first.average_rate)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        for frame in clip.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())


def _write_pretraining(folder: Path, split: Path, captions: list[dict[str, Any]]) -> None:
    """Write a WebVid table with clips, a CC3M list with images, and an entity list."""
    (folder / "webvid" / "videos").mkdir(parents=True, exist_ok=True)
    (folder / "cc3m" / "images").mkdir(parents=True, exist_ok=True)
    table, images = ["video_id,text"], []
    for number, row in enumerate(captions):
        (folder / "webvid" / "videos" / f"{number}.mp4").write_bytes((split / row["video"]).read_bytes())
        table.append(f'{number},"{row["text"]}"')
        image = folder / "cc3m" / "images" / f"{number}.jpg"
        Image.new("RGB", (40, 30), (40 * number, 90, 200)).save(image)
        images.append({"image": image.name, "caption": row["text"]})
    (folder / "webvid" / "train.csv").write_text("\n".join(table) + "\n")
    (folder / "cc3m" / "train.json").write_text(json.dumps(images))
    names = ["fox", "bell", "door", "tiger", "lemon", "boat", "tree"]
    (folder / "entities.txt").write_text("".join(f"{name} {90 - i}\n" for i, name in enumerate(names)))


def _weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Random tensors under the keys of an original checkpoint; the same on each call."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        if key.endswith("position_ids"):
            weights[key] = torch.arange(shape[-1]).reshape(shape)
        elif key.endswith("temp"):
            weights[key] = torch.tensor(0.07)
        elif key.endswith("weight") and "norm" in key.split(".")[-2].lower():
            weights[key] = torch.ones(shape)
        else:
            weights[key] = 0.1 * torch.randn(shape, generator=generator)
    # the original ties the decoder of masked words to the word embeddings, and its files hold both
    for tied, source in (
        ("text_encoder.cls.predictions.decoder.weight", "text_encoder.bert.embeddings.word_embeddings.weight"),
        ("text_encoder.cls.predictions.decoder.bias", "text_encoder.cls.predictions.bias"),
    ):
        if tied in weights:
            weights[tied] = weights[source]
    return weights


def _write_checkpoints(folder: Path, words: list[str]) -> None:
    """Write the checkpoints, a ViT, a BERT with its tokenizer, and the vocabulary."""
    sizes = _config()
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text(encoding="utf-8"))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words][: sizes["text"]["vocab_size"]]
    vocabulary += [f"[unused{number}]" for number in range(sizes["text"]["vocab_size"] - len(vocabulary))]
    (folder / "checkpoints").mkdir(exist_ok=True)
    for name, task in CHECKPOINTS.items():
        keys = dict(shapes[f"{task}_keys"])
        for key, shape in keys.items():
            if key.endswith("position_ids"):
                keys[key] = [1, POSITIONS]
            elif key.endswith("position_embeddings.weight"):
                keys[key] = [POSITIONS, shape[1]]
        torch.save(_weights(keys), folder / "checkpoints" / f"{name}.pt")
    torch.manual_seed(0)
    width = {name: sizes["text"][name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    ViTModel(ViTConfig(**width, num_hidden_layers=2, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    BertModel(
        BertConfig(**width, num_hidden_layers=2, vocab_size=len(vocabulary), max_position_embeddings=POSITIONS)
    ).save_pretrained(folder / "bert")
    tokens = {word: number for number, word in enumerate(vocabulary)}
    BertTokenizer(vocab=tokens, model_max_length=POSITIONS).save_pretrained(folder / "bert")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


__all__ = ["architecture", "make_released"]
