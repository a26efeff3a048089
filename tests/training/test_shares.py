"""Equal shares: what two processes train on, here as two objects that exchange their sizes in turn."""

import threading

import torch

from alpro_hf.training.shares import EqualShares, size_of


def batch(first: int, rows: int, length: int = 3) -> dict:
    ids = torch.arange(first, first + rows)
    words = torch.full((rows, length), 7)
    return {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "pixel_values_videos": ids[:, None, None, None, None].float().expand(rows, 1, 3, 2, 2),
        "row_ids": ids,
    }


def together(given: list[list], limit: int = 4, rows_move: bool = True) -> tuple[list[EqualShares], list[list]]:
    """What each of several processes makes of its batches; each runs in a thread and they meet at every exchange."""
    barrier = threading.Barrier(len(given))
    sizes = [0] * len(given)
    results: list[list] = [[] for _ in given]

    def exchange(rank: int, size: int) -> int:
        sizes[rank] = size
        barrier.wait(10)
        smallest = min(sizes)
        barrier.wait(10)
        return smallest

    shares = [
        EqualShares(limit, rows_move, lambda size, rank=rank: exchange(rank, size)) for rank in range(len(given))
    ]

    def work(rank: int) -> None:
        results[rank] = [shares[rank].equal(one) for one in given[rank]]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return shares, results


def rows_of(batches: list) -> list[list[int]]:
    return [one["row_ids"].tolist() if one else [] for one in batches]


def test_rows_that_are_over_come_first_in_the_next_batch() -> None:
    """Process 1 lost a row in its first batch, process 0 in its second: no healthy row is lost."""
    shares, (first, second) = together(
        [[batch(0, 4), batch(10, 3, length=5)], [batch(20, 3), batch(30, 4)]],
    )
    assert rows_of(first) == [[0, 1, 2], [3, 10, 11, 12]]
    assert rows_of(second) == [[20, 21, 22], [30, 31, 32, 33]]
    assert [one.waiting for one in shares] == [0, 0] and [one.left_out for one in shares] == [0, 0]
    assert first[1]["input_ids"].tolist() == [[7, 7, 7, 0, 0]] + [[7] * 5] * 3  # padded to the longest
    assert first[1]["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]
    assert first[1]["pixel_values_videos"][:, 0, 0, 0, 0].tolist() == [3, 10, 11, 12]


def test_a_process_without_any_row_makes_all_wait_and_the_end_is_common() -> None:
    shares, (first, second) = together([[batch(0, 4), batch(4, 4), None], [{}, batch(20, 4), batch(30, 4)]])
    assert rows_of(first) == [[], [0, 1, 2, 3], []] and first[2] is None
    assert rows_of(second) == [[], [20, 21, 22, 23], []] and second[2] is None
    assert [one.waiting for one in shares] == [4, 4]


def test_no_more_than_a_batch_waits_and_the_rest_is_counted() -> None:
    shares, _ = together([[batch(0, 4), batch(4, 4), batch(8, 4)], [{}, {}, {}]])
    assert shares[0].waiting == 4
    assert shares[0].left_out == 8
    assert shares[1].left_out == 0


def test_questions_share_clips_and_wait_as_a_whole() -> None:
    shares, (first, second) = together([[batch(0, 4), batch(4, 3)], [{}, batch(20, 2)]], rows_move=False)
    assert rows_of(first) == [[], [0, 1, 2, 3]]
    assert rows_of(second) == [[], [20, 21]]
    assert [one.waiting for one in shares] == [3, 0]


def test_clips_and_images_wait_apart_and_a_checkpoint_keeps_both(tmp_path) -> None:
    kinds = [[{**batch(0, 4), "kind": "video"}, {**batch(10, 4), "kind": "image"}]]
    kinds.append([{**batch(20, 3), "kind": "video"}, {**batch(30, 2), "kind": "image"}])
    shares, (first, _) = together(kinds)
    assert rows_of(first) == [[0, 1, 2], [10, 11]]
    torch.save(shares[0].state(), tmp_path / "state.pt")
    again = EqualShares(4, True, lambda size: size)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True), torch.device("cpu"))
    assert again.waiting == 3
    assert rows_of([again.equal({**batch(40, 1), "kind": "image"})]) == [[12, 13, 40]]
    assert rows_of([again.equal({**batch(50, 1), "kind": "video"})]) == [[3, 50]]


def test_the_rows_of_a_batch_are_its_texts_or_without_texts_its_labels() -> None:
    assert size_of(batch(0, 3)) == 3
    assert size_of({**batch(0, 4), "pixel_values_videos": torch.zeros(1, 1, 3, 2, 2)}) == 4  # questions about one clip
    assert size_of({"pixel_values_videos": torch.zeros(5, 1, 3, 2, 2), "labels": torch.zeros(5, 3)}) == 5
    assert size_of({}) == 0
