"""A map of what was seen: against a record by absolute tiles, in all three APIs, and in mirror images."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import persist_sb3  # noqa: F401
from persist_sb3.batch import flatten
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVecEnv, GridLifeVectorEnv
from persist_sb3.infos import MissingInfoError
from persist_sb3.symmetry import Symmetry
from persist_sb3.wrappers import SpatialMemory, VecSpatialMemory, VectorSpatialMemory


class Field(gym.Env[Any, Any]):
    """
    An endless plane of numbers, and an agent who is somewhere else at each step.

    :param journey: where it is, ``(T + 1, 2)``
    :param shape: of the window, with channels or without
    :param flat: whether the window is flattened
    """

    action_space = spaces.Discrete(2)

    def __init__(self, journey: Any, shape: tuple[int, ...] = (3, 3), flat: bool = False) -> None:
        self.journey = np.asarray(journey)
        self.window_shape = shape
        size = (int(np.prod(shape)),) if flat else shape
        window = spaces.Box(0.0, 9.0, size, np.float32)
        self.observation_space = spaces.Dict({"alpha": spaces.Box(0.0, 1.0, (1,), np.float32), "window": window})

    def tile(self, time: int, row: int, column: int) -> Any:
        """What is there, other at every step: ``(C,)``."""
        channels = self.window_shape[0] if len(self.window_shape) == 3 else 1
        return np.random.default_rng([time, row + 1000, column + 1000]).uniform(0.5, 9.0, channels)

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        row, column = self.journey[self.time]
        radius = self.window_shape[-1] // 2
        reach = range(-radius, radius + 1)
        window = np.array([[self.tile(self.time, row + i, column + j) for j in reach] for i in reach], np.float32)
        shape = self.observation_space["window"].shape  # type: ignore[index]
        shown = {"alpha": np.zeros(1, np.float32), "window": window.transpose(2, 0, 1).reshape(shape)}
        return shown, {"position": np.array([row, column])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        shown, info = self._observe()
        return shown, 0.0, False, self.time == len(self.journey) - 1, info


def expected(env: Field, time: int, radius: int, fade: float) -> Any:
    """The map by what is known of absolute tiles: what came into sight, unless the map has moved away from it since."""
    sight = env.window_shape[-1] // 2
    known: dict[tuple[int, int], Any] = {}
    for t in range(time + 1):
        at = env.journey[t]
        known = {tile: seen for tile, seen in known.items() if max(abs(np.array(tile) - at)) <= radius}
        for i in range(-sight, sight + 1):
            for j in range(-sight, sight + 1):
                tile = (int(at[0]) + i, int(at[1]) + j)
                known[tile] = (t, env.tile(t, *tile))
    channels = len(env.tile(0, 0, 0))
    shown = np.zeros((channels + 1, 2 * radius + 1, 2 * radius + 1))
    for tile, (seen, values) in known.items():
        row, column = np.array(tile) - env.journey[time] + radius
        shown[:, row, column] = [*values, fade ** (time - seen)]
    return shown


@settings(max_examples=25, deadline=None)
@given(
    journey=st.lists(st.tuples(st.integers(-12, 12), st.integers(-12, 12)), min_size=2, max_size=12),
    strides=st.booleans(),
    shape=st.sampled_from([(3, 3), (1, 3, 3), (2, 5, 5)]),
    flat=st.booleans(),
    radius=st.integers(3, 5),
    fade=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
def test_the_map_shows_what_was_in_sight_and_has_not_left_it(
    journey: list[tuple[int, int]], strides: bool, shape: tuple[int, ...], flat: bool, radius: int, fade: float
) -> None:
    # Leaps, or strides of at most a few tiles, after which much is still on the map.
    path = np.array(journey) if strides else np.cumsum(np.array(journey) % 5 - 2, axis=0)
    field = Field(path, shape, flat)
    env = SpatialMemory(field, radius=radius, fade=fade)
    for _ in range(2):
        shown, _ = env.reset()
        for time in range(len(path)):
            wanted = expected(field, time, radius, fade)
            np.testing.assert_allclose(shown["window"], wanted.reshape(shown["window"].shape), rtol=1e-5)
            assert env.observation_space.contains(shown)
            if time < len(path) - 1:
                shown, *_ = env.step(0)


def test_all_apis_show_the_same() -> None:
    def make() -> gym.Env[Any, Any]:
        return GridLifeEnv(scent=True, horizon=40)

    single = [SpatialMemory(make()) for _ in range(3)]
    batches = [
        VecSpatialMemory(DummyVecEnv([make] * 3)),
        VecSpatialMemory(SubprocVecEnv([make] * 3)),
        VecSpatialMemory(GridLifeVecEnv(3, scent=True, horizon=40)),
    ]
    vectors = [
        VectorSpatialMemory(vector)
        for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
        for vector in (
            SyncVectorEnv([make] * 3, autoreset_mode=mode),
            GridLifeVectorEnv(3, scent=True, horizon=40, autoreset_mode=mode),
        )
    ]
    rows = [env.reset(seed=7 + i)[0] for i, env in enumerate(single)]
    for batch in batches:
        batch.seed(7)
    shown: list[Any] = [batch.reset() for batch in batches] + [vector.reset(seed=7)[0] for vector in vectors]
    generator = np.random.default_rng(0)
    lasts: dict[int, Any] = {}
    while not lasts:
        for view in shown:
            for i, row in enumerate(rows):
                np.testing.assert_array_equal(view["window"][i], row["window"])
        actions = generator.integers(0, 5, 3)
        for i, env in enumerate(single):
            rows[i], _, terminated, truncated, _ = env.step(actions[i])
            if terminated or truncated:
                lasts[i] = rows[i]
                rows[i], _ = env.reset()
        for k, batch in enumerate(batches):
            shown[k], _, _, infos = batch.step(actions)
            for i, last in lasts.items():
                np.testing.assert_array_equal(infos[i]["terminal_observation"]["window"], last["window"])
        for k, vector in enumerate(vectors[:2], start=3):
            shown[k], *_, reported = vector.step(actions)
            for i, last in lasts.items():
                np.testing.assert_array_equal(reported["final_obs"][i]["window"], last["window"])
        for k, vector in enumerate(vectors[2:], start=5):
            shown[k], *_ = vector.step(actions)
            for i, last in lasts.items():
                np.testing.assert_array_equal(shown[k]["window"][i], last["window"])
    batches[1].close()


def test_in_autoreset_at_the_next_step_a_new_episode_knows_nothing_of_the_last() -> None:
    env = VectorSpatialMemory(SyncVectorEnv([lambda: Field([[0, 0], [0, 1], [1, 1]])], autoreset_mode="NextStep"))
    first, _ = env.reset()
    fresh = first["window"].copy()
    for _ in range(2):
        seen, *_ = env.step([0])
    assert (seen["window"][0, -1] > 0).sum() > (fresh[0, -1] > 0).sum()
    begun, *_ = env.step([0])
    np.testing.assert_array_equal(begun["window"], fresh)


def test_the_checker_of_stable_baselines_is_content() -> None:
    check_env(SpatialMemory(gym.make("GridLife-v0")))


def test_symmetries_of_the_world_are_those_of_the_map() -> None:
    """The image of a journey leaves the image of the map, by the symmetry that the layer declares."""
    plain = gym.make("GridLifeScent-v0")
    env = SpatialMemory(gym.make("GridLifeScent-v0"), radius=3)
    for inner, outer in zip(plain.get_wrapper_attr("symmetries"), env.symmetries or [], strict=True):
        assert inner.action is not None and outer.action is not None and list(inner.action) == list(outer.action)
        moves = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
        walk, images = np.random.default_rng(1).integers(0, 5, 12), []
        for image in (False, True):
            generator = np.random.default_rng(2)
            layer = SpatialMemory(gym.make("GridLifeScent-v0"), radius=3).layer
            slot = np.zeros(1, dtype=np.intp)
            for action in [0, *walk]:
                flat = generator.uniform(size=spaces.flatdim(plain.observation_space)).astype(np.float32)
                if image:
                    flat = flat[np.asarray(inner.columns)]
                    flat[np.asarray(inner.flip, dtype=np.intp)] *= -1
                    action = inner.action[action]
                layer._moved = moves[[action]]
                seen = spaces.unflatten(plain.observation_space, flat)
                shown = layer.view(slot, {key: part[None] for key, part in seen.items()})
            images.append(flatten(env.observation_space, shown)[0])
        turned = images[0][np.asarray(outer.columns)]
        turned[np.asarray(outer.flip, dtype=np.intp)] *= -1
        np.testing.assert_array_equal(turned, images[1])
    assert len(env.symmetries or []) == 7


def test_a_symmetry_that_exchanges_channels_exchanges_those_of_the_map() -> None:
    field = Field([[0, 0], [0, 1]], (2, 3, 3))
    columns = [0, *(1 + np.arange(18).reshape(2, 3, 3)[::-1, ::-1].reshape(-1))]
    field.symmetries = [Symmetry(columns=columns, flip=range(1, 10))]  # type: ignore[attr-defined]
    (symmetry,) = SpatialMemory(field, radius=2).symmetries or []
    wanted = np.arange(75).reshape(3, 5, 5)[[1, 0, 2], ::-1].reshape(-1)
    np.testing.assert_array_equal(symmetry.columns, [0, *(1 + wanted)])
    np.testing.assert_array_equal(np.sort(symmetry.flip), 1 + np.arange(25))


def test_a_symmetry_that_scrambles_the_window_is_refused() -> None:
    field = Field([[0, 0], [0, 1]])
    field.symmetries = [Symmetry(columns=[0, 2, 1, *range(3, 10)])]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"neither turns nor mirrors.*InternalState"):
        SpatialMemory(field)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fade": 1.5}, r"fade=1.5 must be in \[0, 1\]"),
        ({"fade": float("nan")}, "fade=nan"),
        ({"radius": 2}, "radius=2: the window has 2 already"),
        ({"position": "obs.position"}, "position='obs.position' must be an entry of the info"),
        ({"window": "view"}, r"window='view' must be the key of a Box in a Dict.*'internal', 'window'"),
        ({"window": "internal"}, r"window='internal' has shape \(3,\)"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialMemory(gym.make("GridLife-v0"), **parameters)


def test_a_flat_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="must be the key of a Box in a Dict observation, and this one is Box"):
        SpatialMemory(gym.make("GridLifeFlat-v0"))


def test_an_environment_that_does_not_say_where_its_agent_is_is_named() -> None:
    with pytest.raises(ValueError, match=r"info\['internal'\] must be row and column, and is \[0\.\d+, "):
        SpatialMemory(gym.make("GridLife-v0"), position="info.internal").reset(seed=0)
    env = SpatialMemory(gym.make("GridLife-v0"), position="info.place")
    with pytest.raises(MissingInfoError, match=r"info\['place'\] is missing in environment 0.*'position'"):
        env.reset(seed=0)
