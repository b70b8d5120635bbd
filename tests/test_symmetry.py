"""Symmetries: GridLife's images are what a turned world would have shown, and models learn from them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import BehaviourCloningCallback, ViabilityCallback
from persist_sb3.envs.dynamics import ACTIONS
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.symmetry import SymmetryGroup
from persist_sb3.recording import record
from persist_sb3.symmetry import Symmetry
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import InternalState, VecInternalState

STAY, UP, DOWN, LEFT, RIGHT = range(len(ACTIONS))


def spec_of(env: Any) -> StateSpec:
    return StateSpec(env.observation_space, env.action_space, env.viability)


def turned(grid: np.ndarray, which: int) -> np.ndarray:
    """
    :param grid: ``(..., side, side)``
    :param which: 0 to 7
    :return: the same after ``which // 2`` quarter turns, and mirrored if ``which`` is odd, by the definition
    """
    for _ in range(which // 2):
        # A quarter turn takes what was at (row, column) to (side - 1 - column, row).
        side = grid.shape[-1]
        image = np.empty_like(grid)
        for row in range(side):
            for column in range(side):
                image[..., side - 1 - column, row] = grid[..., row, column]
        grid = image
    return grid[..., ::-1] if which % 2 else grid


def moved(action: int, which: int) -> int:
    """
    :param action: a move
    :param which: 0 to 7
    :return: its image, found by turning a picture of it
    """
    picture = np.zeros((3, 3))
    centre = {STAY: (1, 1), UP: (0, 1), DOWN: (2, 1), LEFT: (1, 0), RIGHT: (1, 2)}
    picture[centre[action]] = 1.0
    place = np.unravel_index(turned(picture, which).argmax(), (3, 3))
    return {place: action for action, place in centre.items()}[(int(place[0]), int(place[1]))]


@pytest.mark.parametrize("flat", [False, True])
def test_gridlife_turned_by_hand(flat: bool) -> None:
    env = GridLifeEnv(flat=flat, scent=True)
    env.reset(seed=3)
    spec = spec_of(env)
    group = SymmetryGroup(spec, env.symmetries)
    assert len(group) == 8
    rng = np.random.default_rng(0)
    for _ in range(20):
        observation, *_, info = env.step(int(rng.integers(5)))
        parts = (
            dict(zip(("window", "internal", "scent"), np.split(observation, [125, 128]), strict=True))
            if flat
            else observation
        )
        state = spec.encode(
            {k: v[None] for k, v in observation.items()} if not flat else observation[None], info["internal"][None]
        )
        for which in range(8):
            image = group.state(np.array([which]), state)[0]
            window = turned(parts["window"].reshape(5, 5, 5), which).reshape(-1)
            arrow = {name: abs(value) for name, value in zip("rc", parts["scent"], strict=True)}
            down = moved(DOWN if parts["scent"][0] >= 0 else UP, which), arrow["r"]
            right = moved(RIGHT if parts["scent"][1] >= 0 else LEFT, which), arrow["c"]
            scent = np.zeros(2)
            for direction, size in (down, right):
                scent += size * np.array({UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}[direction])
            order = ("window", "internal", "scent") if flat else ("internal", "scent", "window")
            expected = {"window": window, "internal": parts["internal"], "scent": scent}
            np.testing.assert_allclose(image[:130], np.concatenate([expected[name] for name in order]), atol=1e-6)
            np.testing.assert_allclose(image[130:], info["internal"], atol=1e-6)


def test_gridlife_moves_turned_by_hand() -> None:
    env = GridLifeEnv()
    group = SymmetryGroup(spec_of(env), env.symmetries)
    for which in range(8):
        image = group.action(np.full(5, which), np.arange(5))
        assert image.tolist() == [moved(action, which) for action in range(5)]


def test_gridlife_continuous_moves_are_those_of_the_discrete_form() -> None:
    env, discrete = GridLifeEnv(continuous=True), GridLifeEnv()
    group = SymmetryGroup(spec_of(env), env.symmetries)
    counted = SymmetryGroup(spec_of(discrete), discrete.symmetries)
    action = np.random.default_rng(0).uniform(-1.0, 1.0, (200, 2)).astype(np.float32)
    which = np.arange(200) % 8
    interface = env._interface
    np.testing.assert_array_equal(
        interface.moves(group.action(which, action)), counted.action(which, interface.moves(action))
    )


def test_a_mirrored_pole_falls_to_the_other_side() -> None:
    mirror = Symmetry(flip=[0, 1, 2, 3], internal_flip=[0, 1], action=[1, 0])
    env = gym.make("CartPole-v1").unwrapped
    viability = ViabilitySet(["abs(x) <= 2.0", "abs(theta) <= 0.18"], ["x", "theta"], mu=[0.0, 0.0])
    spec = StateSpec(env.observation_space, env.action_space, viability)
    group = SymmetryGroup(spec, [mirror])
    rng = np.random.default_rng(0)
    ones = np.array([1])
    for _ in range(50):
        start = rng.uniform(-0.1, 0.1, 4).astype(np.float32)
        action = rng.integers(2, size=1)
        ends = []
        for state, move in (
            (start, action),
            (group.state(ones, spec.encode(start[None], start[None, [0, 2]]))[0], group.action(ones, action)),
        ):
            env.reset()
            env.state = state[:4]  # type: ignore[attr-defined]
            end = env.step(int(move[0]))[0]
            ends.append(spec.encode(end[None], end[None, [0, 2]]))
        np.testing.assert_allclose(group.state(ones, ends[0]), ends[1], atol=1e-6)


def test_appended_variables_are_mirrored_too() -> None:
    env = InternalState(
        gym.make("CartPole-v1"),
        dims=["x", "theta"],
        sources={"x": "obs[0]", "theta": "obs[2]"},
        constraints=["abs(x) <= 2.0", "abs(theta) <= 0.18"],
        mu=[0.0, 0.0],
        append=True,
        symmetries=[{"flip": [0, 1, 2, 3], "internal_flip": [0, 1], "action": [1, 0]}],
    )
    observation, info = env.reset(seed=0)
    spec = spec_of(env)
    group = SymmetryGroup(spec, env.symmetries or [])
    state = spec.encode(observation[None], info["internal"][None])
    np.testing.assert_array_equal(group.state(np.array([1]), state), -state)


def test_appended_to_a_dict_they_lie_where_flatten_puts_them() -> None:
    inner = Symmetry(columns=[1, 0, 2], flip=[2], internal_columns=[1, 0])
    shown = inner.showing(3, 2, at=1)
    # Entries a | i0 i1 | b c: a and b change places, c is negated, and so do i0 and i1.
    space = spaces.Box(-1.0, 1.0, (5,))
    viability = ViabilitySet(["i >= 0", "j >= 0"], ["i", "j"], mu=[0.5, 0.5])
    group = SymmetryGroup(StateSpec(space, spaces.Discrete(2), viability), [shown])
    state = np.array([[1, 2, 3, 4, 5, 2, 3]], dtype=np.float32)
    assert group.state(np.array([1]), state).tolist() == [[4, 3, 2, 1, -5, 3, 2]]


class OneCorner:
    """Goes up and left only, so what it shows is all in one corner."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        return np.full(len(observation["window"]), UP), state


def test_cloning_images_makes_an_equivariant_policy() -> None:
    venv = VecInternalState(GridLifeVecEnv(4, horizon=6))
    shown = record(OneCorner(), venv, 16, seed=0)
    likely = {}
    for augment in (False, True):
        model = PPO("MultiInputPolicy", venv, n_steps=16, batch_size=64, seed=0, device="cpu")
        model.learn(1, callback=BehaviourCloningCallback(shown, gradient_steps=150, augment=augment))
        observation, _ = model.policy.obs_to_tensor(shown.transitions.observation)
        with torch.no_grad():
            distribution: Any = model.policy.get_distribution(observation).distribution
        likely[augment] = distribution.probs.mean(dim=0).numpy()
    assert likely[False][UP] > 0.9
    # Each direction is the image of UP under two of eight symmetries, wherever the views do not tell them apart.
    assert likely[True][STAY] < 0.1
    assert likely[True][[DOWN, LEFT, RIGHT]].min() > 0.05


def test_the_critic_of_images_values_turned_states_alike() -> None:
    venv = VecInternalState(GridLifeVecEnv(8))
    gap = {}
    for augment in (False, True):
        model = PPO("MultiInputPolicy", venv, n_steps=64, batch_size=256, n_epochs=1, seed=0, device="cpu")
        callback = ViabilityCallback(
            augment=augment, net_arch=[64], train_freq=1, gradient_steps=2, learning_starts=200
        )
        model.learn(2048, callback=callback)
        batch = callback.store.sample(500, np.random.default_rng(0))
        state = callback.spec.encode(batch.observation, batch.internal)
        group = callback.symmetry_group(callback.spec)
        which = np.random.default_rng(1).integers(1, 8, size=500)
        values = callback.actor.values(state)[:, :, 0]
        images = callback.actor.values(group.state(which, state))[:, :, 0]
        order = np.stack([group.action(which, np.full(500, a)) for a in range(5)], axis=1)
        gap[augment] = np.abs(np.take_along_axis(images, order, axis=1) - values).mean() / values.std()
    assert gap[True] < 0.75 * gap[False]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"columns": [0, 0, 1, 2]}, r"columns=\[0, 0, 1, 2\] must be an order of 0 \.\.\. 3"),
        ({"flip": [4]}, r"flip=\[4\] must be among 0 \.\.\. 3"),
        ({"action": [1]}, r"action=\[1\] must be an order of 0 \.\.\. 1"),
        ({"action_flip": [0]}, "action_flip negates entries of Box actions"),
    ],
)
def test_what_is_no_symmetry_is_refused_when_training_starts(wrong: dict[str, Any], message: str) -> None:
    venv = VecInternalState(
        DummyVecEnv([lambda: gym.make("CartPole-v1")]),
        dims=["x"],
        sources={"x": "obs[0]"},
        constraints=["abs(x) <= 2.0"],
        mu=[0.0],
        symmetries=[wrong],
    )
    model = PPO("MlpPolicy", venv, n_steps=64, device="cpu")
    with pytest.raises(RuntimeError, match=message):
        model.learn(64, callback=ViabilityCallback(augment=True))


def test_no_symmetries_to_learn_from() -> None:
    venv = VecInternalState(
        DummyVecEnv([lambda: gym.make("CartPole-v1")]),
        dims=["x"],
        sources={"x": "obs[0]"},
        constraints=["abs(x) <= 2.0"],
        mu=[0.0],
    )
    model = PPO("MlpPolicy", venv, n_steps=64, device="cpu")
    with pytest.raises(RuntimeError, match=r"nothing says how this environment may be mirrored"):
        model.learn(64, callback=ViabilityCallback(augment=True))
