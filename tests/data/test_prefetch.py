"""Items come in order and early, but not too early; errors and an early end go where they belong."""

import threading

import pytest
import torch

from alpro_hf.data.prefetch import prefetched


def test_items_are_taken_ahead_in_order_and_only_so_many() -> None:
    taken, changed = [], threading.Condition()

    def source():
        for number in range(20):
            with changed:
                taken.append(number)
                changed.notify_all()
            yield number

    seen = []
    for number in prefetched(source(), ahead=3):
        seen.append(number)
        with changed:  # without any call of ours, the next three are taken
            assert changed.wait_for(lambda: len(taken) >= min(20, len(seen) + 3), timeout=30)
        assert len(taken) <= len(seen) + 3
    assert seen == taken == list(range(20))


def test_an_error_comes_after_the_items_before_it() -> None:
    def source():
        yield from range(3)
        raise ZeroDivisionError

    found = prefetched(source(), ahead=5)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_an_early_end_closes_the_source() -> None:
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    found = prefetched(source())
    next(found)
    found.close()
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("alpro-prefetch")]
    assert list(prefetched([])) == []


@pytest.mark.parametrize("mode", [True, False])
def test_the_thread_works_in_the_mode_of_the_caller(mode) -> None:
    with torch.inference_mode(mode):
        counter = torch.zeros(())
        assert [one.is_inference() for one in prefetched(counter.add_(1) for _ in range(3))] == [mode] * 3
    assert counter == 3
