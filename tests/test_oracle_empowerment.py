"""Exact empowerment: against capacities in closed form, the count of tiles within reach, and published figures."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import SETPOINT, GridLifeParams
from persist_sb3.envs.layout import generate
from persist_sb3.envs.oracle import blahut_arimoto, empowerment, sequence_capacity, viable_empowerment

NOTHING: dict[str, Any] = {
    "hazards": 0, "food": 0, "ringed_food": 0, "items": 0, "hot_spots": 0, "cold_spots": 0, "spot_distance": 1.0,
}  # fmt: skip

#: The maze of Klyubin, Polani & Nehaniv (2005): 10 x 10 tiles, and between them walls.
MAZE = [
    ". . . . . . . . . .",
    "      -            ",
    ". . . .|. . . . . .",
    "        -          ",
    ". . . . .|. . . . .",
    "        -          ",
    ". . . . .|. . . . .",
    "    - - -          ",
    ". . . . . . . . . .",
    "                   ",
    ". . . . . . . . . .",
    "            -      ",
    ". . . . . .|.|. . .",
    "                   ",
    ". . . . . .|.|. . .",
    "- - - - - -   - -  ",
    ". . . . . . . . . .",
    "                   ",
    ". . . . . . . . . .",
]


def entropy(*probabilities: float) -> float:
    return -sum(p * np.log2(p) for p in probabilities if p > 0.0)


@pytest.mark.parametrize("p", [0.01, 0.11, 0.4])
def test_channels_of_known_capacity(p: float) -> None:
    """Binary symmetric, binary erasure, and Z channels (Cover & Thomas, Elements of Information Theory, 7.1)."""
    symmetric = np.array([[1 - p, p], [p, 1 - p]])
    erasure = np.array([[1 - p, p, 0.0], [0.0, p, 1 - p]])
    z = np.array([[1.0, 0.0], [p, 1 - p]])
    assert blahut_arimoto(symmetric, 1e-9)[0] == pytest.approx(1 - entropy(p, 1 - p), abs=1e-8)
    assert blahut_arimoto(erasure, 1e-9)[0] == pytest.approx(1 - p, abs=1e-8)
    assert blahut_arimoto(z, 1e-9)[0] == pytest.approx(np.log2(1 + (1 - p) * p ** (p / (1 - p))), abs=1e-8)


def test_the_source_achieves_the_capacity() -> None:
    rng = np.random.default_rng(0)
    for inputs, outputs in [(2, 2), (5, 3), (3, 8), (40, 12)]:
        channel = rng.dirichlet(np.full(outputs, 0.3), inputs)
        capacity, source = blahut_arimoto(channel, 1e-7)
        joint = source[:, None] * channel
        information = entropy(*joint.sum(axis=0)) + entropy(*source) - entropy(*joint.ravel())
        assert source.sum() == pytest.approx(1.0)
        assert information == pytest.approx(capacity, abs=1e-6)
        # No other source does better.
        for other in rng.dirichlet(np.ones(inputs), 200):
            mixed = other[:, None] * channel
            assert entropy(*mixed.sum(axis=0)) + entropy(*other) - entropy(*mixed.ravel()) <= capacity + 1e-6


def test_a_capacity_that_is_not_found_in_time_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not known to 1e-09 bits after 3 iterations"):
        blahut_arimoto(np.array([[1.0, 0.0], [0.3, 0.7]]), 1e-9, max_iterations=3)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_without_slips_it_counts_the_tiles_within_reach(n: int) -> None:
    """A diamond of ``2 n^2 + 2 n + 1`` tiles in the middle, its quarter ``(n + 1)(n + 2) / 2`` in a corner."""
    bits = empowerment(GridLifeParams(size=11, slip=0.0), n).reshape(11, 11)
    assert bits[5, 5] == pytest.approx(np.log2(2 * n**2 + 2 * n + 1))
    assert bits[0, 0] == bits[0, 10] == bits[10, 0] == pytest.approx(np.log2((n + 1) * (n + 2) / 2))
    row, col = np.divmod(np.arange(121), 11)
    distance = np.abs(row[:, None] - row) + np.abs(col[:, None] - col)
    np.testing.assert_allclose(bits.ravel(), np.log2((distance <= n).sum(axis=1)))


def test_with_slips_one_step_is_a_symmetric_channel() -> None:
    """In the middle each action is carried out with ``1 - 4/5 slip`` and each other with ``slip / 5``."""
    slip = 0.1
    bits = empowerment(GridLifeParams(size=3, slip=slip, **NOTHING), 1)
    expected = np.log2(5) - entropy(1 - 0.8 * slip, *[slip / 5] * 4)
    assert bits[4] == pytest.approx(expected, abs=1e-5)


def test_with_slips_it_is_what_an_independent_program_found() -> None:
    """Blahut-Arimoto on the full table of ``5 ** n`` sequences, 11 x 11 tiles, slip 0.1: middle, edge, corner."""
    for n, middle, edge, corner in [
        (1, 1.7597, 1.5019, 1.1773),
        (2, 2.6807, 2.2880, 1.8380),
        (3, 3.2435, 2.8045, 2.3023),
    ]:
        bits = empowerment(GridLifeParams(size=11, slip=0.1), n).reshape(11, 11)
        assert [bits[5, 5], bits[0, 5], bits[0, 0]] == pytest.approx([middle, edge, corner], abs=6e-5)
        for image in (bits[::-1], bits[:, ::-1], bits.T):
            np.testing.assert_array_equal(bits, image)


def test_slips_take_influence_away() -> None:
    levels = [empowerment(GridLifeParams(size=5, slip=slip, **NOTHING), 2) for slip in (0.0, 0.05, 0.3, 1.0)]
    for more, less in itertools.pairwise(levels):
        assert (more > less).all()
    np.testing.assert_allclose(levels[-1], 0.0, atol=1e-5)


@pytest.mark.parametrize(("n", "least", "greatest"), [(1, 1.0, 2.32), (2, 1.58, 3.70), (5, 3.46, 5.52)])
def test_the_maze_of_klyubin_has_the_published_range(n: int, least: float, greatest: float) -> None:
    size = 10
    reached = np.arange(size**2)[:, None]
    for _ in range(n):
        reached = maze_targets(size)[reached].reshape(size**2, -1)
    bits = sequence_capacity(reached, slip=0.0)
    assert [bits.min(), bits.max()] == pytest.approx([least, greatest], abs=6e-3)


def maze_targets(size: int) -> NDArray[np.int64]:
    targets = np.tile(np.arange(size**2)[:, None], 5)
    for tile in range(size**2):
        row, col = divmod(tile, size)
        for action, (down, right) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)], start=1):
            inside = 0 <= row + down < size and 0 <= col + right < size
            if inside and MAZE[2 * row + down][2 * col + right] == " ":
                targets[tile, action] = tile + size * down + right
    return targets


def test_where_nothing_is_deadly_it_is_the_influence_on_the_place() -> None:
    for slip in (0.0, 0.1):
        params = GridLifeParams(size=4, slip=slip, **NOTHING)
        np.testing.assert_allclose(viable_empowerment(params, 0, SETPOINT, 2), empowerment(params, 2), atol=2e-5)


def test_death_is_one_outcome() -> None:
    """
    All tiles but one are deadly. There the agent chooses between staying and death, one bit; next to it, where all
    other actions end on hazards, the same; and elsewhere death is certain whatever it does.
    """
    deadly = {**NOTHING, "hazards": 15, "hazard_damage": 0.9}
    # What would mend at once if the dead could mend.
    params = GridLifeParams(size=4, slip=0.0, repair=0.9, **deadly)
    layout = generate(params, np.array([3], dtype=np.uint64))
    firm = int(np.flatnonzero(~layout.hazard[0])[0])
    row, col = np.divmod(np.arange(16), 4)
    distance = np.abs(row - firm // 4) + np.abs(col - firm % 4)
    for n in (1, 2, 3):
        bits = viable_empowerment(params, 3, (0.7, 0.5, 0.65), n)
        np.testing.assert_array_equal(bits, distance <= 1)
    harmless = GridLifeParams(size=4, slip=0.0, **{**deadly, "hazard_damage": 0.01})
    bits = viable_empowerment(harmless, 3, (0.7, 0.5, 0.65), 1)
    assert bits[firm] == np.log2(1 + (distance == 1).sum())


def test_death_with_slips_is_a_binary_channel() -> None:
    """In the middle, on the only tile not deadly: alive with ``1 - 4/5 slip`` if it stays, else ``slip / 5``."""
    slip = 0.3
    params = GridLifeParams(size=3, slip=slip, **{**NOTHING, "hazards": 8})
    hazard = generate(params, np.arange(100, dtype=np.uint64)).hazard
    seed = int(np.flatnonzero(~hazard[:, 4])[0])
    stay, move = 1 - 0.8 * slip, slip / 5
    information = [
        entropy(alive, 1 - alive) - p * entropy(stay, 1 - stay) - (1 - p) * entropy(move, 1 - move)
        for p in np.linspace(0.0, 1.0, 10_001)
        for alive in [p * stay + (1 - p) * move]
    ]
    assert viable_empowerment(params, seed, (0.7, 0.5, 0.65), 1)[4] == pytest.approx(max(information), abs=2e-5)


def test_the_internal_variables_can_be_part_of_the_outcome() -> None:
    """
    Where the heat is the same everywhere, they tell how often the agent moved: after two steps from the middle of the
    grid, it is back there with no move or with two.
    """
    params = GridLifeParams(size=5, slip=0.0, **NOTHING)
    place = viable_empowerment(params, 0, SETPOINT, 2)
    state = viable_empowerment(params, 0, SETPOINT, 2, internal=True)
    assert place[12] == pytest.approx(np.log2(13))
    assert state[12] == pytest.approx(np.log2(14))
    assert (state > place).all()


def test_it_depends_on_the_internal_variables_and_on_what_is_around() -> None:
    params = GridLifeParams(slip=0.0)
    well, hurt = (viable_empowerment(params, 1, (0.7, 0.5, integrity), 3) for integrity in (0.9, 0.62))
    anywhere = empowerment(params, 3)
    assert (well <= anywhere + 1e-12).all()
    assert (hurt <= well).all()
    assert (hurt < well).sum() > 10
    hazard = generate(params, np.array([1], dtype=np.uint64)).hazard[0]
    assert (anywhere - hurt)[hazard].mean() > (anywhere - hurt)[~hazard].mean()


def test_the_dead_have_none() -> None:
    bits = viable_empowerment(GridLifeParams(size=3, slip=0.1, **NOTHING), 0, (0.1, 0.5, 0.9), 2)
    np.testing.assert_allclose(bits, 0.0, atol=1e-9)


def test_a_wrong_internal_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x must hold energy, temp, integrity, but has the shape \(2,\)"):
        viable_empowerment(GridLifeParams(), 0, (0.7, 0.5), 2)
