"""What the shield changed, and nothing else, is seen in the pictures of an environment that draws itself."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3 import video
from persist_sb3.envs import render
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVecEnv, GridLifeVectorEnv
from persist_sb3.wrappers import (
    ActionShield,
    InternalState,
    VecActionShield,
    VecInternalState,
    VectorActionShield,
    VectorInternalState,
)
from persist_sb3.wrappers.marking import find_mark
from tests.toys import Walker

LEFT = 3
#: Episodes of three steps, the last of which is changed in the first episode and not in the second, whether the reset
#: between them takes a step of its own or not.
SETTINGS: dict[str, Any] = {"horizon": 3}
#: What is drawn does not depend on who steps, and this one need not be compiled first.
BATCH: dict[str, Any] = SETTINGS | {"backend": "numpy"}
PROPOSED = np.array([[3, 0], [1, 3], [3, 3], [0, 3], [3, 0], [0, 0], [0, 2]])
N = PROPOSED.shape[1]


def left_kills(observation: Any, internal: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    """Dynamics that make the shield refuse to go left."""
    going = action[:, 1] < -0.5 if action.ndim > 1 else action == LEFT
    return observation, internal - 2.0 * going[:, None]


def stay(observation: Any, internal: NDArray[Any]) -> NDArray[Any]:
    return np.zeros(len(internal), dtype=np.int64)


KNOWN: dict[str, Any] = {"mode": "search", "dynamics": left_kills, "backup": stay, "horizon": 1, "rollouts": 1}


def make_bare(mode: str | None = "rgb_array", **settings: Any) -> gym.Env[Any, Any]:
    return GridLifeEnv(render_mode=mode, **SETTINGS, **settings)


def make_shielded(mode: str | None = "rgb_array") -> gym.Env[Any, Any]:
    return ActionShield(InternalState(make_bare(mode)), **KNOWN)


def around_vec(venv: VecEnv) -> VecEnv:
    return VecActionShield(VecInternalState(venv), **KNOWN)


def around_vector(env: Any) -> Any:
    return VectorActionShield(VectorInternalState(env), **KNOWN)


def shielding(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: around_vector(make())


class Seen(NamedTuple):
    """What ``T`` steps of ``n`` environments show."""

    pictures: NDArray[np.uint8]  # (T, n, height, width, 3)
    intervened: NDArray[np.bool_]  # (T, n)
    executed: NDArray[Any]  # (T, n)
    hidden: NDArray[np.bool_]  # (T, n), where an episode's last picture is not seen, but the next one's first


def play_gym(envs: list[gym.Env[Any, Any]], proposed: NDArray[Any]) -> Seen:
    steps = []
    for slot, env in enumerate(envs):
        env.reset(seed=slot)
        for action in proposed[:, slot]:
            *_, terminated, truncated, info = env.step(action)
            picture = env.render()
            steps.append((picture, info.get("intervened", False), info.get("executed_action", action), False))
            if terminated or truncated:
                env.reset()
    columns = (np.array(column) for column in zip(*steps, strict=True))
    return Seen(*(column.reshape(len(envs), -1, *column.shape[1:]).swapaxes(0, 1) for column in columns))


def play_vec(env: VecEnv, proposed: NDArray[Any]) -> Seen:
    env.seed(0)
    env.reset()
    steps = []
    for actions in proposed:
        *_, dones, infos = env.step(actions)
        told = [info.get("intervened", False) for info in infos]
        executed = [info.get("executed_action", own) for info, own in zip(infos, actions, strict=True)]
        steps.append((env.get_images(), told, executed, dones))
    return Seen(*(np.array(column) for column in zip(*steps, strict=True)))


def play_vector(env: Any, proposed: NDArray[Any]) -> Seen:
    same_step = env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    steps = []
    for actions in proposed:
        *_, terminated, truncated, infos = env.step(actions)
        ended = (terminated | truncated) & same_step
        told, executed = np.zeros(N, dtype=bool), actions.copy()
        for where, source in ((~ended, infos), (ended, infos.get("final_info", {}))):
            here = where & source.get("intervened", np.zeros(N, dtype=bool))
            told |= here
            if here.any():
                executed[here] = source["executed_action"][here]
        steps.append((env.render(), told, executed, ended))
    return Seen(*(np.array(column) for column in zip(*steps, strict=True)))


Play = Callable[[Any, NDArray[Any]], Seen]
NEXT_STEP, SAME_STEP = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP
FORMS: dict[str, tuple[Play, Callable[[], Any], Callable[[], Any]]] = {
    "gym": (play_gym, lambda: [make_bare() for _ in range(N)], lambda: [make_shielded() for _ in range(N)]),
    "DummyVecEnv": (
        play_vec,
        lambda: DummyVecEnv([make_bare] * N),
        lambda: around_vec(DummyVecEnv([lambda: Monitor(make_bare())] * N)),
    ),
    "inside DummyVecEnv": (
        play_vec,
        lambda: DummyVecEnv([make_bare] * N),
        lambda: DummyVecEnv([lambda: Monitor(make_shielded())] * N),
    ),
    "SubprocVecEnv": (
        play_vec,
        lambda: DummyVecEnv([make_bare] * N),
        lambda: around_vec(SubprocVecEnv([make_bare] * N, start_method="fork")),
    ),
    "GridLifeVecEnv": (
        play_vec,
        lambda: GridLifeVecEnv(N, render_mode="rgb_array", **BATCH),
        lambda: around_vec(GridLifeVecEnv(N, render_mode="rgb_array", **BATCH)),
    ),
}
for autoreset in (NEXT_STEP, SAME_STEP):
    make_sync = partial(SyncVectorEnv, [make_bare] * N, autoreset_mode=autoreset)
    make_grid = partial(GridLifeVectorEnv, N, render_mode="rgb_array", autoreset_mode=autoreset, **BATCH)
    for name, make in (("SyncVectorEnv", make_sync), ("GridLifeVectorEnv", make_grid)):
        FORMS[f"{name} {autoreset.name}"] = play_vector, make, shielding(make)


def sketch(snapshot: Any, viability: Any, hidden: Any, intervention: Any) -> NDArray[np.uint8]:
    """In the place of a picture, which takes long to draw: what would be drawn."""
    told = repr((snapshot.internal.tolist(), int(snapshot.cell), int(snapshot.step), intervention))
    return np.frombuffer(told.ljust(200).encode(), dtype=np.uint8).reshape(10, 20, 1)


@pytest.mark.parametrize("form", FORMS)
def test_pictures_differ_where_and_only_where_the_shield_intervened(form: str, monkeypatch: Any) -> None:
    """From those of the same episodes, in which the agent does by itself what the shield had it do."""
    if form != "gym":
        monkeypatch.setattr("persist_sb3.envs.controls.draw", sketch)
    play, make_plain, make_guarded = FORMS[form]
    guarded = make_guarded()
    seen = play(guarded, PROPOSED)
    bare = play(make_plain(), seen.executed)
    if isinstance(guarded, VecEnv):
        guarded.close()
    differ = (seen.pictures != bare.pictures).any(axis=(2, 3, 4))
    np.testing.assert_array_equal(differ, seen.intervened & ~seen.hidden)
    assert 2 <= differ.sum() < differ.size
    # It refuses to go left, and that is all.
    live = np.ones_like(differ)
    if "NEXT_STEP" in form:
        live[3] = False
    np.testing.assert_array_equal(seen.intervened, (PROPOSED == LEFT) & live)


def test_the_picture_says_what_was_done_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("persist_sb3.envs.controls.draw", lambda *world: told.append(world[3]))
    env = make_shielded()
    env.reset(seed=0)
    for action in (LEFT, 2):
        env.step(action)
        env.render()
    assert told == [("left", "stay"), None]


def test_what_was_restored_has_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("persist_sb3.envs.controls.draw", lambda *world: told.append(world[3]))
    one: Any = make_bare()
    one.reset(seed=0)
    many = GridLifeVecEnv(1, backend="numpy")
    many.reset()
    for env, step in ((one, lambda: one.step(0)), (many._slots[0], lambda: many.step(np.zeros(1, dtype=int)))):
        before = env.snapshot()
        env.mark_intervention(LEFT, 0)
        step()
        env.picture()
        env.restore(before)
        step()
        env.picture()
    assert told == [("left", "stay"), None] * 2


def test_real_numbers_are_shown_as_the_moves_that_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("persist_sb3.envs.controls.draw", lambda *world: told.append(world[3]))
    env = make_bare(continuous=True)
    env.reset(seed=0)
    # A policy may want what is not in the action space.
    for proposed in ([0.1, -3.0], [np.nan, 0.0], [1.0, 0.0]):
        env.unwrapped.mark_intervention(np.array(proposed, dtype=np.float32), np.array([0.9, 0.0], dtype=np.float32))  # type: ignore[attr-defined]
        env.step(np.array([0.9, 0.0], dtype=np.float32))
        env.render()
    assert told == [("left", "down"), ("stay", "down"), ("down", "down")]


def test_a_move_that_stays_the_same_is_not_said_to_be_instead_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(render.Canvas, "text", lambda self, x, y, text, *style, **more: said.append(text))
    env = make_bare(continuous=True)
    env.reset(seed=0)
    env.unwrapped.mark_intervention(np.array([1.0, 0.0]), np.array([0.9, 0.0]))  # type: ignore[attr-defined]
    env.step(np.array([0.9, 0.0]))
    env.render()
    assert "down, by other numbers" in said and not any("instead" in text for text in said)


class Silent(Walker):
    """Draws itself, and does not want to know."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"


def test_nothing_is_told_where_nothing_is_drawn_or_nobody_listens() -> None:
    blind = partial(make_bare, mode=None)
    for env in (
        blind(),
        DummyVecEnv([blind]),
        GridLifeVecEnv(1, backend="numpy"),
        SyncVectorEnv([blind]),
        GridLifeVectorEnv(1, backend="numpy"),
        Silent(),
        DummyVecEnv([Silent]),
        SyncVectorEnv([Silent]),
    ):
        assert find_mark(env) is None
    limits: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
    shielded = ActionShield(InternalState(Silent(), **limits), **KNOWN)
    shielded.reset(seed=0)
    assert shielded.step(LEFT - 1)[4]["intervened"] is False
    many = AsyncVectorEnv([make_bare])
    try:
        assert find_mark(many) is None
    finally:
        many.close()


class Asked(GridLifeEnv):
    """Counts what it is told."""

    told = 0

    def mark_intervention(self, proposed: Any, executed: Any) -> None:
        Asked.told += 1
        super().mark_intervention(proposed, executed)


def test_it_is_told_only_what_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asked, "told", 0)
    env = around_vec(DummyVecEnv([lambda: Asked(render_mode="rgb_array")] * N))
    env.reset()
    for actions in PROPOSED:
        env.step(actions)
    assert Asked.told == (PROPOSED == LEFT).sum()


def test_a_film_shows_it() -> None:
    class Agent:
        def predict(self, observation: Any, state: Any = None, **_: Any) -> tuple[NDArray[Any], Any]:
            self.step = getattr(self, "step", -1) + 1
            return PROPOSED[self.step, :1], state

    film = video.film(Agent(), around_vec(DummyVecEnv([lambda: video.FrameRecorder(make_bare())])), seed=0)  # type: ignore[arg-type]
    purple = [bool((np.asarray(film[step]) == render.SHIELD).all(axis=2).any()) for step in range(len(film))]
    assert purple == [True, False, True]
