"""Queries of several terms, texts and examples: `"a dog runs" + clip.mp4 - "snow"`.

Texts, clips and pictures have vectors in one space, so they can be added. The vector of a query is the sum of those of
its terms, each times its weight. It is compared by cosine similarity (VTC). The matching head reads one text, so such
a query is not re-ranked.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.decode_span import span_decoder
from ..data.images import ImageDecodeError, read_image
from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span, split_span
from ..model.decoding import decode
from ..model.decoding_formats import has_image_extension, has_video_extension, is_video_file
from ..model.decoding_types import EmptyVideoError, NotAVideoError, NoVideoStreamError
from ..model.matching_alpro import encode_clips

SIGNS = ("+", "-")
_WEIGHTED = re.compile(r"(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6}):(.+)", re.ASCII | re.DOTALL)
_EXAMPLE = '"a dog runs" + clip.mp4 - 0.5:"snow"'
_SMALLEST = 1e-4  # length of a sum of unit vectors below which its direction is that of rounding errors


class QueryError(ValueError):
    """A query is not written as one, or names a file that cannot be an example."""


@dataclass(frozen=True)
class Term:
    """A part of a query: a text or an example.

    Args:
        text: What to look for; "" for an example.
        file: A video or a picture; None for a text.
        span: The moment of the video; None: the whole.
        weight: Factor of its vector; below 0, what is like the term comes last.
    """

    text: str = ""
    file: Path | None = None
    span: Span | None = None
    weight: float = 1.0


def example(name: str, weight: float = 1.0) -> Term:
    """The term of a file: `clip.mp4`, `clip.mp4@00:12-00:20` or `photo.jpg`.

    Raises:
        QueryError: There is no such file, or it is a folder.
        SpanError: What follows `@` is not a span.
    """
    file, span = split_span(name)
    if os.path.isdir(file):
        raise QueryError(f"{file} is a folder. Name a video or a picture as an example.")
    if not os.path.isfile(file):
        raise QueryError(f"There is no file {file!r} to take as an example.")
    return Term(file=Path(file), span=span, weight=weight)


def parse_terms(words: Sequence[str], like: Sequence[str] = ()) -> list[Term]:
    """Read the words of a query: terms with `+` or `-` between them, each a word of its own.

    A term is a text, or the name of a file with or without a span behind it. A number and a colon in front are its
    weight, as in `0.5:snow`. The first term may have a sign, too.

    Args:
        words: For instance `["a dog runs", "+", "clip.mp4", "-", "0.5:snow"]`.
        like: Files that are added to them.

    Raises:
        QueryError: A sign or a term is missing, a weight is 0, or a file is not there.
        SpanError: What follows `@` is not a span.
    """
    terms = [example(name) for name in like]
    sign: str | None = ""  # the first term needs none; None: a sign must come next
    for word in words:
        if word in SIGNS:
            if sign in SIGNS:
                raise QueryError(f"{word!r} follows another sign. Write a query such as {_EXAMPLE}.")
            sign = word
        elif sign is None:
            raise QueryError(
                f"There is no + or - before {word!r}. Put a text of several words in quotes; a query of several terms "
                f"is written {_EXAMPLE}."
            )
        else:
            terms.append(_term(word, -1.0 if sign == "-" else 1.0))
            sign = None
    if sign in SIGNS or not terms:
        raise QueryError(f"The last term of the query is missing. Write a query such as {_EXAMPLE}.")
    return terms


def _term(word: str, factor: float) -> Term:
    weighted = None if os.path.isfile(word) else _WEIGHTED.fullmatch(word)
    number, content = weighted.groups() if weighted else ("1", word)
    if float(number) == 0:
        raise QueryError(f"The weight of {word!r} is 0. Leave the term out, or give it a weight above 0.")
    if not content.strip():
        raise QueryError(f"A term of the query is blank. Write a query such as {_EXAMPLE}.")
    weight = factor * float(number)
    # an existing file is an example; what is named like one must not become a text because of a typing error
    names = [content, content.rpartition("@")[0]]
    if any(os.path.isfile(name) or has_video_extension(name) or has_image_extension(name) for name in names):
        return example(content, weight)
    return Term(text=content, weight=weight)


def read_query(line: str) -> str | list[Term]:
    """Read a query from a line of text, where a sign between blanks makes a query of several terms.

    Args:
        line: `a dog runs`, or `a dog runs + clip.mp4 - 0.5:snow`; a name with blanks is put in double quotes.

    Returns:
        The whole line as one text, or terms.

    Raises:
        QueryError, SpanError: As `parse_terms`; or a quote is not closed.
    """
    if not any(word in SIGNS for word in line.split()):
        text = line.strip()
        return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
    try:
        words = list(lexer)
    except ValueError:
        raise QueryError(f"A quote is not closed in {line.strip()!r}.") from None
    joined: list[str] = []
    for word in words:  # between two signs, a line needs no quotes
        if word not in SIGNS and joined and joined[-1] not in SIGNS:
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return parse_terms(joined)


def query_vector(
    model: Any, processor: Any, terms: Sequence[Term], decoder: IsolatedDecoder | None = None
) -> torch.Tensor:
    """The unit vector of a query: the weighted sum of the vectors of its terms, scaled to length 1.

    Args:
        model: In evaluation mode, on its device.
        processor: Its `AlproProcessor`.
        terms: One or more.
        decoder: Decodes examples in a process of its own.

    Returns:
        float32 (P,), on the CPU.

    Raises:
        QueryError: A file is neither a video nor a picture, or the terms cancel each other out.
        SpanError: A span does not lie in its video.
        VideoDecodeError: A video is damaged.
    """
    if not terms:
        raise QueryError(f"The query has no term. Write a query such as {_EXAMPLE}.")
    vectors = [
        term.weight
        * (
            text_vector(model, processor, term.text)
            if term.file is None
            else _example(model, processor, term, decoder)
        )
        for term in terms
    ]
    total = torch.stack(vectors).sum(dim=0)
    length = total.norm()
    if length < _SMALLEST:
        raise QueryError("The terms of the query cancel each other out. Leave one out, or change a weight.")
    return total / length


@torch.inference_mode()
def text_vector(model: Any, processor: Any, text: str) -> torch.Tensor:
    """The unit vector of a text, float32 (P,), on the CPU."""
    inputs = processor(text=[text], return_tensors="pt").to(model.device)
    return model.base_model.get_text_features(inputs["input_ids"]).pooler_output[0].float().cpu()


def _example(model: Any, processor: Any, term: Term, decoder: IsolatedDecoder | None) -> torch.Tensor:
    assert term.file is not None
    frames_of = decode if decoder is None else decoder.decode
    try:
        if is_video_file(term.file):
            if term.span is not None:
                frames_of = span_decoder(processor, term.span, frames_of)
            seen = processor.video_processor(term.file, return_tensors="pt", decoder=frames_of)
        elif term.span is not None:
            raise QueryError(f"{term.file} is not a video, so it has no moment {term.span.start:g}-{term.span.end:g}.")
        else:  # a picture is a clip in which nothing moves
            seen = processor.video_processor([read_image(term.file)], return_tensors="pt")
    except (NotAVideoError, NoVideoStreamError, EmptyVideoError, ImageDecodeError) as error:
        raise QueryError(
            f"{term.file} is neither a video nor a picture that can be read ({error.problem}). Name another example."
        ) from error
    [clip] = encode_clips(model, seen["pixel_values_videos"])
    return clip.embed.cpu()


__all__ = ["QueryError", "Term", "example", "parse_terms", "query_vector", "read_query", "text_vector"]
