"""Better ends for a moment: neighbours of a window are joined to it, and ends where the similarity falls are cut off.

Windows are made before anybody knows what will be asked, so a moment may be longer or shorter than the window that
shows it best. Both stages look at the similarities of the windows around, which an index has; they decode nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

JOINED_DROP = 0.1  # share of the best similarity by which that of a joined window may be lower
TRIMMED_DROP = 0.3  # share of the highest level by which that of the ends may be lower
LONGEST_JOINED = 2  # times the longest window, that joined windows may have together
_TOUCHING = 1e-3  # seconds between two windows that follow each other


@dataclass(frozen=True)
class Near:
    """Windows of one video around one of them.

    Args:
        places: Their numbers, as the caller counts windows.
        spans: Start and end of each in seconds.
        similarity: Their cosine similarities to the query.
    """

    places: Sequence[int]
    spans: Sequence[tuple[float, float]]
    similarity: Sequence[float]


@dataclass(frozen=True)
class Proposal:
    """A moment made of one or more windows of a video.

    Args:
        start, end: Seconds.
        members: Places of its windows.
    """

    start: float
    end: float
    members: tuple[int, ...]


def join_windows(
    spans: Sequence[tuple[float, float]], similarity: Sequence[float], best: int, *, longest: float
) -> Proposal:
    """Join a window with its neighbours that are about as similar to the query, the most similar ones first.

    A neighbour overlaps with what is joined so far, or touches it, and its similarity is at most `JOINED_DROP` of that
    of the best window below it. A window longer than the best one is no neighbour: it shows the moment among other
    things, and lost against the best one for that.

    Args:
        spans: Start and end of windows of one video.
        similarity: Their cosine similarities to the query.
        best: Place of the window to begin with.
        longest: Seconds that a proposal of several windows may have.
    """
    start, end = spans[best]
    length, least = end - start, similarity[best] * (1 - JOINED_DROP)
    members = [best]
    if similarity[best] <= 0:
        return Proposal(start, end, (best,))
    order = sorted(range(len(spans)), key=lambda place: -similarity[place])
    waiting = [
        place
        for place in order
        if place != best and similarity[place] >= least and spans[place][1] - spans[place][0] <= length + _TOUCHING
    ]
    while True:
        for place in waiting:
            first, last = spans[place]
            joined = max(end, last) - min(start, first)
            if first <= end + _TOUCHING and last >= start - _TOUCHING and joined <= longest + _TOUCHING:
                start, end = min(start, first), max(end, last)
                members.append(place)
                waiting.remove(place)
                break
        else:
            return Proposal(start, end, tuple(members))


def proposals(
    order: Iterable[int], around: Callable[[int], Near], longest: float
) -> Iterator[tuple[int, float, float]]:
    """Join windows, the best first. One that was joined with a better one makes no proposal of its own.

    Args:
        order: Windows, most similar first.
        around: The windows of the same video around one of them, itself included.
        longest: As in `join_windows`.

    Yields:
        The best window, start and end of each proposal.
    """
    taken: set[int] = set()
    for place in order:
        if place not in taken:
            near = around(place)
            made = join_windows(near.spans, near.similarity, near.places.index(place), longest=longest)
            taken.update(near.places[member] for member in made.members)
            yield place, made.start, made.end


def trim_ends(
    spans: Sequence[tuple[float, float]], similarity: Sequence[float], start: float, end: float
) -> tuple[float, float]:
    """Cut off the ends of a moment where the windows are less similar to the query.

    The level at a time is the mean similarity of all windows that show it. What is cut off has a level that is lower
    than the highest one of the moment by more than `TRIMMED_DROP` of it. Ends move to where a window starts or ends.

    Args:
        spans: Start and end of windows of one video.
        similarity: Their cosine similarities to the query.
        start, end: Seconds of the moment.

    Returns:
        Start and end; as they were if no window starts or ends in between.
    """
    times = sorted({time for span in spans for time in span if start < time < end} | {start, end})
    levels = []
    for first, last in pairwise(times):
        middle = (first + last) / 2
        shown = [value for (a, b), value in zip(spans, similarity, strict=True) if a <= middle < b]
        levels.append(sum(shown) / len(shown) if shown else 0.0)
    highest = max(levels)
    if highest <= 0:
        return start, end
    kept = [place for place, level in enumerate(levels) if level >= highest * (1 - TRIMMED_DROP)]
    return times[kept[0]], times[kept[-1] + 1]


__all__ = ["LONGEST_JOINED", "Near", "Proposal", "join_windows", "proposals", "trim_ends"]
