"""Search several indexes of one model as if they were one.

    >>> holiday, films = (VideoIndex.load(folder, model, processor) for folder in ("holiday-index", "films-index"))
    >>> for result in search_indexes([holiday, films], "a dog runs into the sea"):
    ...     print(result.index, result.path)

A file that is in two of them counts once. Results name their index.
"""

from collections.abc import Sequence

from ..data.isolated_decoder import IsolatedDecoder
from .index_results import SearchResult
from .index_search import DEFAULT_RERANK, Stages, search_terms, search_texts
from .index_shards import IndexMismatchError, VideoIndexError
from .opened_index import VideoPath
from .queries import Term
from .video_index import VideoIndex


def search_indexes(
    indexes: Sequence[VideoIndex],
    query: str,
    *,
    top_k: int = 10,
    rerank: int | None = None,
    rerank_margin: float | None = None,
    per_video: int = 1,
    join: bool = False,
    trim: bool = False,
) -> list[SearchResult]:
    """Find the videos or moments that a text describes in several indexes, best first.

    Args:
        indexes: One or more, of the same model.
        query, top_k, rerank, rerank_margin, per_video, join, trim: As in `VideoIndex.search`, for all indexes
            together.

    Raises:
        IndexMismatchError: They were made by different models, so their scores cannot be compared.
        VideoIndexError: There is no index, or as in `VideoIndex.search`.
    """
    check_same_model(indexes)
    if rerank is None:
        rerank = DEFAULT_RERANK if indexes[0].can_match else 0
    [results] = search_texts(indexes, [query], Stages(top_k, rerank, per_video, join, trim, rerank_margin))
    return results


def search_indexes_like(
    indexes: Sequence[VideoIndex],
    *terms: Term | VideoPath,
    top_k: int = 10,
    per_video: int = 1,
    join: bool = False,
    trim: bool = False,
    decoder: IsolatedDecoder | None = None,
) -> list[SearchResult]:
    """Find what is like examples, or like a sum of texts and examples, in several indexes.

    Args:
        indexes: One or more, of the same model.
        terms, top_k, per_video, join, trim, decoder: As in `VideoIndex.search_like`.

    Raises:
        IndexMismatchError, VideoIndexError: As in `search_indexes`.
        QueryError, SpanError, VideoDecodeError: As in `VideoIndex.search_like`.
    """
    check_same_model(indexes)
    return search_terms(indexes, terms, Stages(top_k, 0, per_video, join, trim), None, decoder)


def check_same_model(indexes: Sequence[VideoIndex]) -> None:
    """Check that scores of indexes can be compared.

    Raises:
        IndexMismatchError: They were made by different models.
        VideoIndexError: There is no index.
    """
    if not indexes:
        raise VideoIndexError("There is no index to search. Name one or more.")
    first = indexes[0]
    for other in indexes[1:]:
        if other.model_facts["fingerprint"] != first.model_facts["fingerprint"]:
            made = " and ".join(
                f"{one.folder or 'the one in memory'} by {one.model_facts['name']!r} in {one.model_facts['dtype']}"
                for one in (first, other)
            )
            raise IndexMismatchError(
                f"Two indexes were made by different models, so their scores cannot be compared: {made}. Search each "
                "for itself, or index one of them again with the model of the other."
            )


__all__ = ["check_same_model", "search_indexes", "search_indexes_like"]
