"""What measuring is made of; as a whole it is tested with the command."""

import numpy as np
import pytest
import torch

from alpro_hf.evaluation.measure import PairScores, clip_name


def test_pairs_are_scored_once():
    asked = []
    table = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))

    def score(pairs):
        asked.extend(map(tuple, pairs.tolist()))
        return table[pairs[:, 0], pairs[:, 1]]

    matching = PairScores(score, (4, 3))
    some = torch.tensor([[0, 1], [2, 2], [3, 0]])
    assert torch.equal(matching(some), table[some[:, 0], some[:, 1]])
    everything = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    assert torch.equal(matching(everything).view(4, 3, 2), table)
    assert torch.equal(matching(some[1:]), table[some[1:, 0], some[1:, 1]])
    assert sorted(asked) == [tuple(pair) for pair in everything.tolist()]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"video": "/data/clips/a.mp4"}, "a.mp4"),
        ({"video": "/data/clips/a.mp4", "video_id": 7}, "7"),
        ({"video": {"path": "x/b.avi", "bytes": b""}}, "b.avi"),
        ({"video": {"path": None, "bytes": b"..."}}, "row 5"),
        ({"video": np.zeros((1, 2, 2, 3), np.uint8), "video_id": None}, "row 5"),
    ],
)
def test_clips_have_the_name_that_is_at_hand(row, name):
    assert clip_name(row, 5) == name
