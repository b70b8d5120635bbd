"""A soft partition of a box of actions, against what it is by definition and in its limits."""

import numpy as np
import pytest
import torch

from persist_sb3.models.pieces import Pieces


def make(centres: list[list[float]], sharpness: float) -> Pieces:
    pieces = Pieces(len(centres), len(centres[0]))
    pieces.centres.data.copy_(torch.tensor(centres))
    pieces.log_sharpness.data.fill_(np.log(sharpness))
    return pieces


def test_weights_are_normalised_gaussians() -> None:
    centres, sharpness = [[0.0, 0.0], [1.0, 0.0], [0.3, -0.9]], 2.5
    pieces = make(centres, sharpness)
    action = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2)).astype(np.float32)
    bumps = np.exp(-sharpness * np.square(action[:, None] - np.array(centres)).sum(axis=2))
    expected = bumps / bumps.sum(axis=1, keepdims=True)
    with torch.no_grad():
        np.testing.assert_allclose(pieces(torch.as_tensor(action)), expected, atol=1e-6)
    np.testing.assert_allclose(pieces.weights(action), expected, atol=1e-6)


def test_gridlifes_moves_are_five_pieces() -> None:
    """Nearest to one of these centres is where GridLife stays, or moves in one direction: its dead zone ends at 0.5."""
    pieces = make([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]], 200.0)
    action = np.random.default_rng(1).uniform(-1.0, 1.0, (2000, 2)).astype(np.float32)
    down, right = action.T
    vertical = np.abs(down) >= np.abs(right)
    move = np.where(vertical, np.where(down > 0, 2, 1), np.where(right > 0, 4, 3))
    larger = np.abs(action).max(axis=1)
    move = np.where(larger > 0.5, move, 0)
    clear = (np.abs(np.abs(down) - np.abs(right)) > 0.05) & (np.abs(larger - 0.5) > 0.05)
    weights = pieces.weights(action)[clear]
    np.testing.assert_array_equal(weights.argmax(axis=1), move[clear])
    assert weights.max(axis=1).min() > 0.95


def test_centres_begin_spread_over_the_box_and_are_looked_up_within_it() -> None:
    pieces = Pieces(16, 2)
    centres = pieces.centres.detach().numpy()
    # Four in each quadrant.
    quadrant = (centres >= 0.0) @ [1, 2]
    np.testing.assert_array_equal(np.bincount(quadrant, minlength=4), 4)
    pieces.centres.data[3] = torch.tensor([1.5, -0.25])
    actions, weights = pieces.centred()
    np.testing.assert_allclose(actions[3], [1.0, -0.25])
    np.testing.assert_allclose(weights, pieces.weights(actions), atol=1e-6)
    np.testing.assert_allclose(actions, pieces.actions.detach().numpy())


@pytest.mark.parametrize("count", [2, 9])
def test_it_trains(count: int) -> None:
    """It finds where a step function jumps."""
    torch.manual_seed(0)
    pieces, heights = Pieces(count, 1), torch.nn.Parameter(torch.zeros(count))
    optimizer = torch.optim.Adam([*pieces.parameters(), heights], lr=0.02)
    for _ in range(1500):
        action = 2.0 * torch.rand(256, 1) - 1.0
        loss = (pieces(action) @ heights - (action[:, 0] > 0.37).float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tried = torch.tensor([[-0.9], [0.0], [0.3], [0.44], [0.7], [0.95]])
    with torch.no_grad():
        np.testing.assert_allclose(pieces(tried) @ heights, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], atol=0.1)
