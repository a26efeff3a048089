"""TODO docstring."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2


_PAPER, _CARD, _EDGE, _INK, _MUTED, _ACCENT = "#f3f1ec", "#ffffff", "#dedad0", "#22252b", "#767b86", "#1f8f5f"


_WIDTH, _HEIGHT = 960, 340


def draw_model(config: dict[str, Any]) -> Image.Image:
    """The parts of a model and their sizes: RGB, 1920 x 680 pixels.

    Args:
        config: Content of its `config.json`.
    """
    text, video, head = config["text_config"], config["video_config"], config["architectures"][0]
    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _PAPER)
    draw = ImageDraw.Draw(image)
    fused = text["num_hidden_layers"] - text["fusion_layer"]
    heads = {
        "AlproModel": "",
        "AlproPrompterModel": "",
        "AlproForVideoTextRetrieval": "match or not",
        "AlproForVideoQuestionAnswering": f"{len(config.get('id2label', {}))} answers",
        "AlproForPreTraining": "match, words, entities",
    }
    frames = f"{video['num_frames']} frames, {video['image_size']} px"
    _box(draw, (30, 40, 190, 110), "Video", frames, plain=True)
    _box(draw, (30, 230, 190, 300), "Text", f"{text['vocab_size']:,} word pieces", plain=True)
    _box(draw, (250, 30, 470, 120), "Video tower", f"{video['num_hidden_layers']} layers x {video['hidden_size']}")
    _box(draw, (250, 220, 470, 310), "Text tower", f"{text['fusion_layer']} layers x {text['hidden_size']}")
    vectors = f"VTC: vectors of {config['projection_dim']}"
    if head == "AlproPrompterModel":
        vectors = f"near which of {len(config.get('entities') or [])} entities"
    _box(draw, (240, 145, 480, 195), "", vectors, plain=True)
    _box(draw, (540, 125, 720, 215), "Fusion", f"{fused} layers x {text['hidden_size']}")
    for start, end in (
        ((190, 75), (250, 75)),
        ((190, 265), (250, 265)),
        ((360, 120), (360, 145)),
        ((360, 220), (360, 195)),
    ):
        _arrow(draw, start, end)
    _arrow(draw, (470, 75), (540, 150))
    _arrow(draw, (470, 265), (540, 190))
    if heads[head]:
        _box(draw, (770, 135, 935, 205), "", heads[head], plain=True)
        _arrow(draw, (720, 170), (770, 170))
    return image


def _box(
    draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], title: str, line: str, plain: bool = False
) -> None:
    left, top, right, bottom = (_SCALE * value for value in corners)
    outline = _EDGE if plain else _ACCENT
    draw.rounded_rectangle((left, top, right, bottom), radius=16, fill=_CARD, outline=outline, width=3)
    middle, centre = (left + right) // 2, (top + bottom) // 2
    shift = 22 if title and line else 0
    if title:
        draw.text((middle, centre - shift), title, _INK, ImageFont.load_default(36), anchor="mm")
    draw.text((middle, centre + shift), line, _MUTED, ImageFont.load_default(26), anchor="mm")


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int]) -> None:
    (x0, y0), (x1, y1) = ((_SCALE * x, _SCALE * y) for x, y in (start, end))
    draw.line((x0, y0, x1, y1), fill=_MUTED, width=4)
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    along = ((x1 - x0) / length, (y1 - y0) / length)
    back = (x1 - 16 * along[0], y1 - 16 * along[1])
    side = (-9 * along[1], 9 * along[0])
    draw.polygon(
        [(x1, y1), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])], fill=_MUTED
    )
