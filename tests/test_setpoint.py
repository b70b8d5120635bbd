"""The search for a setpoint: it finds the known best one from survival alone, follows it, and survives a resume."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3 import state as persist_state
from persist_sb3.callbacks import SetpointCallback
from persist_sb3.setpoint import SetpointSearch
from persist_sb3.state import PersistState
from persist_sb3.wrappers import HomeostatReward, InternalState, RandomSetpoint
from tests.learners import Pages

# The search alone.


def noisy(setpoint: dict[str, float], best: float, generator: np.random.Generator) -> float:
    return -((setpoint["a"] - best) ** 2) - (setpoint["b"] - 0.2) ** 2 + generator.normal(0.0, 0.02)


def test_it_finds_the_best_under_noise_and_follows_it() -> None:
    generator = np.random.default_rng(0)
    search = SetpointSearch({"a": (0.0, 1.0), "b": (0.0, 1.0)}, window=30, seed=1)
    assert not search.best
    for best in (0.8, 0.3):
        for _ in range(45):
            setpoint = search.ask()
            assert all(0.0 <= value <= 1.0 for value in setpoint.values())
            search.tell(setpoint, noisy(setpoint, best, generator))
        assert search.best is not None
        assert (search.best["a"], search.best["b"]) == pytest.approx((best, 0.2), abs=0.12)


def test_it_goes_on_where_it_was() -> None:
    one, other = (SetpointSearch({"a": (0.0, 1.0)}, window=12, startup=3, seed=4) for _ in range(2))
    for value in range(14):
        one.tell(one.ask(), float(value % 5))
    other.load_state_dict(one.state_dict())
    assert other.ask() == one.ask() and other.best == one.best and other.count == 14
    with pytest.raises(ValueError, match="'a'"):
        SetpointSearch({"b": (0.0, 1.0)}).load_state_dict(one.state_dict())


def test_it_leaves_optuna_as_talkative_as_it_was() -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    SetpointSearch({"a": (0.0, 1.0)}).ask()
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


@pytest.mark.parametrize(
    ("given", "message"),
    [({"episodes": 0}, "episodes=0"), ({"share": 1.0}, "share=1.0"), ({"startup": 40}, "startup=40")],
)
def test_refuses_at_construction(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SetpointCallback(**given)


# In training.


class Winter(gym.Env[Any, Any]):
    """
    An agent whose store is at its setpoint when winter comes, whatever it does. Winter takes 0.05 a step. A store above
    0.6 may go bad and kill at once, the likelier the more there is. So too little and too much both shorten life.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)
    setpoint = 0.5

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        return np.array([self.store], dtype=np.float32), {"internal": np.array([self.store])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.store, self.time = 0.5, 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        if self.time == 1:
            bad = self.np_random.random() < 5.0 * max(self.setpoint - 0.6, 0.0)
            self.store = -0.1 if bad else self.setpoint
        else:
            self.store -= 0.05
        observation, info = self._seen()
        return observation, 0.0, self.store < 0.0, self.time == 25, info


class Obedient(gym.Wrapper[Any, Any, Any, Any]):
    """Tells the world below which setpoint the agent keeps: one that keeps it perfectly."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.env.unwrapped.setpoint = float(info["setpoint"][0])  # type: ignore[attr-defined]
        return observation, info


def make() -> gym.Env[Any, Any]:
    state = InternalState(
        Monitor(Winter()), dims=["store"], constraints=["store >= 0"], mu=[0.3], low=[-1.0], high=[1.0]
    )
    return Obedient(HomeostatReward(RandomSetpoint(state, ranges={"store": [0.1, 0.9]}), alive_bonus="auto"))


def make_model(n: int = 4) -> PPO:
    env = DummyVecEnv([make] * n)
    return PPO("MlpPolicy", env, n_steps=128, batch_size=512, n_epochs=1, policy_kwargs={"net_arch": [4]}, seed=0)


class Episodes(BaseCallback):
    """The setpoint of every episode, and when it began."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, int]] = []

    def _on_step(self) -> bool:
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done:
                self.ends.append((float(info["setpoint"][0]), info["episode"]["l"]))
        return True


@pytest.mark.slow
def test_survival_alone_finds_the_setpoint() -> None:
    """
    A store ``m`` lasts ``1 + m / 0.05`` steps into the winter, and goes bad with the chance ``5 (m - 0.6)``: life is
    longest near ``m = 0.6``.
    """
    callback, episodes = SetpointCallback(episodes=12, window=24, startup=6), Episodes()
    model = make_model()
    model.learn(16_000, callback=[callback, episodes])
    assert callback.search.count > 15
    assert callback.search.best is not None
    assert callback.search.best["store"] == pytest.approx(0.6, abs=0.1)
    # About half of the episodes try a candidate: the setpoints of the others are all different.
    drawn = [setpoint for setpoint, _ in episodes.ends]
    repeated = np.mean([drawn.count(setpoint) > 1 for setpoint in drawn])
    assert 0.4 < repeated < 0.6

    # Evaluation is at the best so far; so is a replay.
    env = make()
    env.get_wrapper_attr("bind")(model.persist.bundle(), training=False)  # type: ignore[attr-defined]
    assert env.reset(seed=0)[1]["setpoint"][0] == pytest.approx(callback.search.best["store"])


class Budget(gym.Env[Any, Any]):
    """
    A share ``f`` of an agent's effort, chosen at once for the whole life, goes to food, and the rest to warmth. Life
    ends at hunger or at cold, after ``f / 0.03`` or ``(1 - f) / 0.01`` steps: it is longest where both come together,
    at ``f = 0.75``.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)
    share = 0.5

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        x = np.array([self.share - 0.03 * self.time, 1.0 - self.share - 0.01 * self.time])
        return x[:1].astype(np.float32), {"internal": x}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        observation, info = self._seen()
        return observation, 0.0, bool(info["internal"].min() < 0.0), False, info


class Greedy(gym.Wrapper[Any, Any, Any, Any]):
    """
    An agent that chooses the share that its homeostat likes best. Both setpoints are 1, so the deviation is
    ``w (1 - f)^2 + f^2``, least at ``f = w / (w + 1)``.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        food, warmth = info["setpoint_weights"]
        self.env.unwrapped.share = food / (food + warmth)  # type: ignore[attr-defined]
        return observation, info


def make_budget() -> gym.Env[Any, Any]:
    limits: dict[str, Any] = {"constraints": ["food >= 0", "warmth >= 0"], "mu": [1.0, 1.0]}
    state = InternalState(Monitor(Budget()), dims=["food", "warmth"], low=[-1.0, -1.0], high=[1.0, 1.0], **limits)
    return Greedy(HomeostatReward(RandomSetpoint(state, ranges={}, w_ranges={"food": [0.5, 8.0]}), alive_bonus="auto"))


@pytest.mark.slow
def test_survival_alone_finds_the_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a weight ``w`` food has the share ``w / (w + 1)``, and life is longest at 0.75: with a weight of 3."""
    env = DummyVecEnv([make_budget] * 4)
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=512, n_epochs=1, policy_kwargs={"net_arch": [4]}, seed=0)
    pages = Pages()
    model.set_logger(Logger(None, [pages]))
    callback = SetpointCallback(episodes=6, window=30, startup=6)
    model.learn(14_000, callback=callback)
    best = callback.search.best
    assert callback.search.count > 20 and best is not None
    assert best == {"w/food": pytest.approx(3.0, abs=0.5)}
    assert pages.pages[-1]["persist/setpoint/w/food"] == best["w/food"]

    # Evaluation is by what was found, and so is a replay.
    evaluation = make_budget()
    evaluation.get_wrapper_attr("bind")(model.persist.bundle(), training=False)  # type: ignore[attr-defined]
    told = [evaluation.reset(seed=0)[1]]
    model.save(tmp_path / "model.zip")
    PPO.load(tmp_path / "model.zip")
    told.append(make_budget().reset(seed=0)[1])
    monkeypatch.setattr(persist_state, "_last_loaded", None)
    for info in told:
        assert info["setpoint_weights"].tolist() == [pytest.approx(best["w/food"]), 1.0]
        assert info["setpoint"].tolist() == [1.0, 1.0]


def test_setpoints_and_weights_are_looked_for_together() -> None:
    def both() -> gym.Env[Any, Any]:
        limits: dict[str, Any] = {"constraints": ["food >= 0", "warmth >= 0"], "mu": [0.5, 0.5]}
        state = InternalState(Monitor(Budget()), dims=["food", "warmth"], low=[-1.0, -1.0], high=[1.0, 1.0], **limits)
        drawn = RandomSetpoint(state, ranges={"warmth": [0.2, 0.8]}, w_ranges={"food": [0.5, 8.0]})
        return Greedy(HomeostatReward(drawn, alive_bonus="auto"))

    seen: list[dict[str, Any]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.extend(info for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True) if done)
            return True

    model = PPO(
        "MlpPolicy", DummyVecEnv([both] * 4), n_steps=64, batch_size=256, policy_kwargs={"net_arch": [4]}, seed=0
    )
    callback = SetpointCallback(episodes=4, startup=2)
    model.learn(768, callback=[callback, Look()])
    assert callback.search.ranges == {"warmth": (0.2, 0.8), "w/food": (0.5, 8.0)}
    assert callback.search.count >= 2
    # An episode tries both of a candidate, or neither.
    episodes = [(info["setpoint"][1], info["setpoint_weights"][0]) for info in seen]
    tried = [(tried["warmth"], tried["w/food"]) for tried, _ in callback.search.state_dict()["trials"]]
    for setpoint, weight in tried:
        assert episodes.count((setpoint, weight)) >= 4
        assert sum(episode[0] == setpoint for episode in episodes) == episodes.count((setpoint, weight))
        assert sum(episode[1] == weight for episode in episodes) == episodes.count((setpoint, weight))


def test_a_resumed_run_goes_on_searching_and_a_replay_uses_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    callback = SetpointCallback(episodes=4, startup=2)
    model.learn(3072, callback=callback)
    model.save(tmp_path / "model.zip")
    count, best = callback.search.count, callback.search.best
    assert count > 2 and best is not None

    monkeypatch.setattr(persist_state, "_last_loaded", None)
    assert make().reset(seed=0)[1]["setpoint"][0] != pytest.approx(best["store"])
    resumed = PPO.load(tmp_path / "model.zip", env=DummyVecEnv([make] * 4))
    assert make().reset(seed=0)[1]["setpoint"][0] == pytest.approx(best["store"])
    again = SetpointCallback(episodes=4, startup=2)
    resumed.learn(1536, callback=again)
    assert again.search.count > count
    PersistState.load(tmp_path / "model.zip")
    monkeypatch.setattr(persist_state, "_last_loaded", None)


def test_a_missing_layer_is_told_at_the_start() -> None:
    def bare() -> gym.Env[Any, Any]:
        return InternalState(Monitor(Winter()), dims=["store"], constraints=["store >= 0"], mu=[0.3])

    model = PPO("MlpPolicy", DummyVecEnv([bare]), n_steps=8, batch_size=8)
    with pytest.raises(RuntimeError, match="RandomSetpoint"):
        model.learn(8, callback=SetpointCallback())
