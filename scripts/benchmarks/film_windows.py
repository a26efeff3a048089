"""Windows of films, encoded once for all settings that are compared. See films.py.

A film is decoded once. Each setting cuts the same frames, and a window that several settings give is encoded once.
What is encoded is kept in a file a film, so that an interrupted run goes on, and another setting costs only its own
windows.
"""

import hashlib
import inspect
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from alpro_hf.data import cuts
from alpro_hf.data.windows import WindowCutter, WindowSettings, frames_of_window, model_windows, stream_windows
from alpro_hf.files import model_fingerprint, write_whole
from alpro_hf.loading import load_model
from alpro_hf.model.decoding import decode_stream
from alpro_hf.model.decoding_types import Frames, VideoInfo, middles_of
from alpro_hf.model.matching_alpro import encode_clips

BATCH = 32
Span = tuple[float, float]
TRUTH = "true scenes"  # no setting can know them: what is left to win by cutting better
Cut = WindowSettings | Literal["true scenes"]


@dataclass(frozen=True)
class FilmJob:
    """Encode the windows of a film.

    Args:
        film: The file.
        output: Where its windows are kept.
        settings: How it is cut.
        model: Folder, Hub id or `bundled`.
        scenes: Where its scenes start and end, for `TRUTH`.
    """

    film: Path
    output: Path
    settings: tuple[Cut, ...]
    model: str
    scenes: tuple[Span, ...] = ()


class FilmWindows:
    """The encoded windows of a film, in a file.

    Args:
        path: The file that `encode_film` wrote.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")  # a map of the file: tokens are read when they are asked for
        facts = self._file.metadata()
        self.embeds: torch.Tensor = self._file.get_tensor("embeds")
        self.made_of: str = facts["made of"]
        self.spans: list[Span] = [(start, end) for start, end in json.loads(facts["spans"])]
        self.of_settings: dict[str, list[int]] = json.loads(facts["settings"])

    def tokens(self, place: int) -> torch.Tensor:
        """What the fusion layers read of a window: (1, 1 + N, D)."""
        tokens: torch.Tensor = self._file.get_slice("tokens")[place : place + 1]
        return tokens

    def all_tokens(self) -> torch.Tensor:
        """Of all windows: (windows, 1 + N, D)."""
        tokens: torch.Tensor = self._file.get_tensor("tokens")
        return tokens


def key_of(settings: Cut) -> str:
    """The name of settings in such a file; with the code that finds cuts, which may change."""
    if settings == TRUTH:
        return TRUTH
    code = inspect.getsource(cuts) if settings.cuts else ""
    return json.dumps(asdict(settings) | {"code": hashlib.sha256(code.encode()).hexdigest()}, sort_keys=True)


def encode_film(job: FilmJob) -> None:
    """Encode the windows of a film that are not kept yet, and keep them."""
    torch.set_num_threads(1)  # films are encoded in several processes
    model, processor, made_of = _model(job.model)
    stat = job.film.stat()
    made_of += f" {job.film.name} {stat.st_size} {stat.st_mtime_ns}"
    known = FilmWindows(job.output) if job.output.exists() else None
    if known is not None and known.made_of != made_of:
        known = None
    of_settings = {} if known is None else dict(known.of_settings)
    # the truth comes last, because it shows the frames that were decoded for settings
    wanted = sorted((cut for cut in job.settings if key_of(cut) not in of_settings), key=lambda cut: cut == TRUTH)
    if not wanted:
        return
    spans = [] if known is None else list(known.spans)
    places = {span: place for place, span in enumerate(spans)}
    embeds, tokens = ([], []) if known is None else ([known.embeds], [known.all_tokens()])
    stream = _replay(job.film)

    def new_windows() -> Iterator[torch.Tensor]:
        for settings in wanted:
            of_settings[key_of(settings)] = own = []
            windows: Iterable[tuple[Span, torch.Tensor]]
            if isinstance(settings, str):
                windows = _windows_of(job.scenes, job.film, processor, stream)
            else:
                cut = model_windows(job.film, processor, settings, stream=stream)
                windows = (((window.start, window.end), pixels) for window, pixels in cut)
            for span, pixels in windows:
                if span not in places:
                    places[span] = len(spans)
                    spans.append(span)
                    yield pixels
                own.append(places[span])

    found = new_windows()
    with torch.inference_mode():
        while batch := list(islice(found, BATCH)):
            encoded = encode_clips(model, torch.stack(batch))
            embeds.append(torch.stack([clip.embed for clip in encoded]))
            tokens.append(torch.stack([clip.tokens for clip in encoded]))
    facts = {"made of": made_of, "spans": json.dumps(spans), "settings": json.dumps(of_settings)}
    tensors = {"embeds": torch.cat(embeds), "tokens": torch.cat(tokens)}
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(job.output, lambda partial: save_file(tensors, partial, metadata=facts))


def _windows_of(
    scenes: Sequence[Span], film: Path, processor: Any, stream: Callable[..., Iterator[Frames]]
) -> Iterator[tuple[Span, torch.Tensor]]:
    """Windows that start and end as told, of the frames that the default settings decode; as `model_windows`."""
    video, settings = processor.video_processor, WindowSettings()
    count = frames_of_window(processor, settings)
    height, width = video.decoded_size()

    parts = list(
        stream(film, lambda info: settings.fed(info, count), allow_truncated=True, height=height, width=width)
    )
    times = [time for part in parts for time in part.timestamps]
    pixels = torch.cat([part.pixels for part in parts])
    for start, end in scenes:
        shown = [max(0, bisect_right(times, middle) - 1) for middle in middles_of(start, end, count)]
        seen = video([pixels[shown]], do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
        yield (start, end), seen["pixel_values_videos"][0]


@lru_cache(1)
def _model(name: str) -> tuple[Any, Any, str]:
    """Model, processor, and what the windows depend on besides the film."""
    model, processor = load_model("retrieval", name, device="cpu")
    code = hashlib.sha256()
    for part in (WindowCutter, stream_windows, model_windows):
        code.update(inspect.getsource(part).encode())
    settings = processor.video_processor.to_json_string()
    facts = f"{model_fingerprint(model)} {hashlib.sha256(settings.encode()).hexdigest()} {code.hexdigest()}"
    return model, processor, facts


def _replay(film: Path) -> Callable[..., Iterator[Frames]]:
    """Decode a film once, and hand out the frames as `decode_stream` does to each that asks for the same ones."""
    chosen: list[int] = []
    decoded: list[Frames] = []

    def stream(source: Any, choose: Callable[[VideoInfo], list[int]], **options: Any) -> Iterator[Frames]:
        def choose_and_note(info: VideoInfo) -> list[int]:
            chosen[:] = choose(info)
            return chosen

        if not decoded:
            decoded.extend(decode_stream(source, choose_and_note, **options))
        elif choose(decoded[0].info) != chosen:
            raise ValueError(f"The settings need different frames of {film}; give them the same `shortest`.")
        yield from decoded

    return stream


__all__ = ["TRUTH", "Cut", "FilmJob", "FilmWindows", "Span", "encode_film", "key_of"]
