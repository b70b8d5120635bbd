"""Pictures of GridLife show what they should."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from persist_sb3.envs import render
from persist_sb3.envs.gridlife import GridLifeEnv


def has(picture: np.ndarray, colour: render.Colour) -> bool:
    return bool((picture == np.array(colour)).all(axis=2).any())


def environment(**settings: object) -> GridLifeEnv:
    env = GridLifeEnv(render_mode="rgb_array", **settings)
    env.reset(seed=0)
    return env


def test_a_picture_is_an_rgb_array() -> None:
    picture = environment().render()
    assert picture.shape == (512, 768, 3)
    assert picture.dtype == np.uint8
    assert has(picture, render.FOOD)
    assert has(picture, render.HAZARD_SIGN)
    assert has(picture, render.AGENT)


@pytest.mark.parametrize("size", [3, 25])
def test_other_sizes_fit_too(size: int) -> None:
    env = environment(size=size, hazards=2, food=1, ringed_food=1, items=1)
    assert env.render().shape == (512, 768, 3)


def test_what_is_there_is_shown_and_what_is_taken_is_not() -> None:
    board = (slice(None), slice(0, 500))
    assert not has(environment(food=0, ringed_food=0).render()[board], render.FOOD)
    assert has(environment(items=5).render()[board], render.ITEM)
    assert not has(environment(items=0).render()[board], render.ITEM)
    assert not has(environment(hazards=0).render()[board], render.HAZARD_SIGN)


def test_a_death_and_its_cause_are_shown() -> None:
    env = environment()
    dead = False
    assert not has(env.render(), render.BAD)
    while not dead:
        dead = env.step(0)[2]
    assert has(env.render(), render.BAD)


def test_gauges_follow_the_variables() -> None:
    env = environment(slip=0.0)
    before = env.render()[:, 512:]
    for _ in range(10):
        env.step(0)
    after = env.render()[:, 512:]
    energy = slice(145, 170)
    assert (before[energy] != after[energy]).any()
    env.set_hidden(["temp"])
    assert (env.render()[205:225, 512:] != after[205:225]).any()


def test_a_window_needs_pygame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = GridLifeEnv(render_mode="human")
    with pytest.raises(DependencyNotInstalled, match="pip install pygame-ce, or use render_mode='rgb_array'"):
        env.reset(seed=0)


def test_a_window_shows_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setitem(GridLifeEnv.metadata, "render_fps", 1000)
    env = GridLifeEnv(render_mode="human")
    env.reset(seed=0)
    env.step(0)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    np.testing.assert_array_equal(shown, env.picture())
    env.close()
    env.close()


def test_rendering_without_a_mode_warns() -> None:
    env = GridLifeEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="does nothing without a render_mode"):
        assert env.render() is None
    assert gym.make("GridLife-v0", render_mode="rgb_array").render_mode == "rgb_array"
