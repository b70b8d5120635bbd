"""Multipliers: they come to the known one, damped; layers follow them; a resume goes on."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from rl_zoo3.utils import get_callback_list, get_wrapper_class
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3 import PersistConfig
from persist_sb3.callbacks import CurriculumCallback, LagrangeCallback
from persist_sb3.homeostat import PaidToDieWarning
from persist_sb3.lagrange import Multiplier, PIDMultiplier
from persist_sb3.state import PersistState, PersistStateError
from persist_sb3.wrappers import CostPenalty, HomeostatReward, InternalState, VecCostPenalty, VecInternalState
from persist_sb3.wrappers.cost_penalty import VectorCostPenalty
from tests.toys import Scripted, Walker

LIMITS: dict[str, Any] = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.5", "heat in [0.45, 0.55]"],
    "mu": [0.8, 0.5],
    "low": [-0.5, 0.0],
    "high": [1.0, 1.0],
}


# The controller alone.


@pytest.mark.parametrize(("a", "d"), [(1.0, 0.25), (3.0, 0.0), (0.5, -1.0)])
@pytest.mark.parametrize(("kp", "kd"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
def test_dual_ascent_comes_to_the_multiplier_in_closed_form(a: float, d: float, kp: float, kd: float) -> None:
    """
    ``max -(x - a)^2`` subject to ``x <= d``, with ``a > d``: the best answer to a multiplier is ``x = a - lambda / 2``,
    so the constraint is met with equality at ``lambda* = 2 (a - d)``.
    """
    multiplier = PIDMultiplier(d, ki=0.2, kp=kp, kd=kd, smoothing=0.0)
    for _ in range(400):
        multiplier.update(a - multiplier.value / 2)
    assert multiplier.value == pytest.approx(2 * (a - d), abs=1e-6)


def test_an_idle_constraint_costs_nothing() -> None:
    multiplier = PIDMultiplier(0.5, initial=3.0)
    for _ in range(200):
        multiplier.update(0.1)
    assert multiplier.value == 0.0


def test_pure_integral_is_dual_ascent() -> None:
    multiplier = PIDMultiplier(0.5, ki=0.2, kp=0.0, kd=0.0, maximum=0.4)
    costs = [1.0, 0.7, 0.0, 0.0, 0.0, 2.5, 9.0]
    by_hand = [0.1, 0.14, 0.04, 0.0, 0.0, 0.4, 0.4]
    assert [multiplier.update(cost) for cost in costs] == pytest.approx(by_hand)


def test_the_terms_are_those_of_the_paper() -> None:
    multiplier = PIDMultiplier(0.5, ki=0.1, kp=2.0, kd=3.0, smoothing=0.0)
    # Excess 0.5, no rise known; then excess 1, a rise of 0.5; then excess -0.25, and a fall counts for nothing.
    assert multiplier.update(1.0) == pytest.approx(2.0 * 0.5 + 0.1 * 0.5)
    assert multiplier.update(1.5) == pytest.approx(2.0 * 1.0 + 0.1 * 1.5 + 3.0 * 0.5)
    assert multiplier.update(0.25) == pytest.approx(max(0.0, 2.0 * -0.25 + 0.1 * 1.25))


def overshoot(**gains: float) -> float:
    """By how much the multiplier of an agent that learns slowly swings beyond the solution, 1.5."""
    multiplier, x, highest = PIDMultiplier(0.25, smoothing=0.0, **gains), 1.0, 0.0
    for _ in range(600):
        x += 0.05 * (1.0 - multiplier.value / 2 - x)
        highest = max(highest, multiplier.update(x))
    assert multiplier.value == pytest.approx(1.5, abs=0.02)
    return highest - 1.5


def test_proportional_control_damps_the_swing_of_a_slow_learner() -> None:
    assert overshoot(ki=0.1, kp=1.0) < 0.5 * overshoot(ki=0.1, kp=0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": -0.1}, "target=-0.1"),
        ({"target": np.nan}, "target=nan"),
        ({"target": 0.1, "per": "day"}, "per='day'"),
        ({"target": 0.1, "scales": "reward"}, "'homeostat'"),
        ({"target": 0.1, "ki": 0.0}, "ki=0.0"),
        ({"target": 0.1, "kp": -1.0}, "kp=-1.0"),
        ({"target": 0.1, "kd": np.inf}, "kd=inf"),
        ({"target": 0.1, "smoothing": 1.0}, "smoothing=1.0"),
        ({"target": 0.1, "initial": 3.0, "maximum": 2.0}, "initial=3.0"),
        ({"target": 0.1, "maximum": 0.0}, "maximum=0.0"),
        ({"target": 0.1, "update_freq": 0}, "update_freq=0"),
    ],
)
def test_refuses_at_construction(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LagrangeCallback(**given)


@pytest.mark.parametrize("weight", [-1.0, np.inf])
def test_a_price_is_a_number(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        CostPenalty(InternalState(Walker(), **LIMITS), weight=weight)


# Layers.


def test_the_penalty_is_the_price_of_violating_steps() -> None:
    rows = [[0.8, 0.5], [0.4, 0.5], [0.8, 0.5], [0.8, 0.7]]
    env = CostPenalty(InternalState(Scripted(rows, reward=1.0), **LIMITS), weight=2.0)
    env.reset()
    seen = [env.step(0) for _ in range(3)]
    assert [step[1] for step in seen] == [-1.0, 1.0, -1.0]
    assert [step[4]["reward_terms"] for step in seen] == [
        {"task": 1.0, "cost": -2.0},
        {"task": 1.0, "cost": 0.0},
        {"task": 1.0, "cost": -2.0},
    ]
    multiplier = Multiplier("cost")
    multiplier.value.fill_(5.0)
    env.bind({"lagrange": multiplier}, training=False)
    env.reset()
    assert env.step(0)[1] == -4.0


def test_the_three_forms_agree() -> None:
    def make() -> gym.Env[Any, Any]:
        return InternalState(Walker(), **LIMITS)

    single = CostPenalty(make(), weight=0.5)
    vec = VecCostPenalty(DummyVecEnv([make]), weight=0.5)
    vector = VectorCostPenalty(gym.vector.SyncVectorEnv([make]), weight=0.5)
    single.reset(seed=0)
    vec.seed(0)
    vec.reset()
    vector.reset(seed=0)
    for _ in range(5):
        reward = single.step(2)[1]
        assert vec.step(np.array([2]))[1][0] == np.float32(reward)
        assert vector.step(np.array([2]))[1][0] == reward


def test_the_homeostat_is_scaled_if_it_is_said() -> None:
    env = HomeostatReward(InternalState(Scripted([[0.8, 0.5], [0.7, 0.5]]), **LIMITS), alive_bonus="auto", weight=0.5)
    env.reset()
    half = env.step(0)[1]
    multiplier = Multiplier("homeostat")
    multiplier.value.fill_(2.0)
    env.bind({"lagrange": multiplier}, training=True)
    env.reset()
    assert env.step(0)[1] == pytest.approx(4.0 * half)
    env.bind({"lagrange": Multiplier("cost")}, training=True)
    env.reset()
    assert env.step(0)[1] == pytest.approx(half)

    with pytest.warns(PaidToDieWarning):
        poor = HomeostatReward(InternalState(Walker(), **LIMITS), alive_bonus=0.001, death_penalty=9.0)
    with pytest.raises(RuntimeError, match="paid to die"):
        poor.bind({"lagrange": multiplier}, training=True)


# In training.


class Careless(gym.Env[Any, Any]):
    """Each action earns 1 and violates with the probability that it names; nothing else happens."""

    observation_space = spaces.Box(0.0, 1.0, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, dtype=np.float32), {"internal": np.array([0.5])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        x = -0.5 if action == 1 else 0.5
        return np.zeros(1, dtype=np.float32), float(action), False, self.time == 10, {"internal": np.array([x])}


def careless(n: int = 4) -> VecEnv:
    venv = DummyVecEnv([lambda: Monitor(Careless())] * n)
    return VecCostPenalty(VecInternalState(venv, dims=["x"], constraints=["x >= 0"], mu=[0.5], low=[-1], high=[1]))


class Costs(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.costs: list[np.ndarray] = []
        self.dones: list[np.ndarray] = []
        self.paid: list[float] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.costs.append(np.array([info["cost"] for info in infos]))
        self.dones.append(self.locals["dones"].copy())
        self.paid.append(min(info["reward_terms"]["cost"] for info in infos))
        return True


def ppo(env: VecEnv, **kwargs: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=16, batch_size=32, policy_kwargs={"net_arch": [8]}, seed=0, **kwargs)


def walkers(n: int = 2) -> list[Any]:
    def make() -> gym.Env[Any, Any]:
        return CostPenalty(InternalState(Monitor(Walker()), **LIMITS))

    return [make] * n


@pytest.mark.parametrize(
    ("kind", "per"),
    [("dummy", "step"), ("dummy", "episode"), pytest.param("subproc", "episode", marks=pytest.mark.slow)],
)
def test_the_multiplier_is_what_the_costs_say(kind: str, per: Any) -> None:
    env: VecEnv = DummyVecEnv(walkers()) if kind == "dummy" else SubprocVecEnv(walkers())
    costs, callback = Costs(), LagrangeCallback(0.2, per=per, ki=0.5, kp=0.0, update_freq=32)
    ppo(env).learn(128, callback=[costs, callback])
    env.close()
    expected, running, by_hand = 0.0, np.zeros(2), []
    for rollout in range(4):
        rows = range(16 * rollout, 16 * rollout + 16)
        for row in rows:
            # What is subtracted in this rollout is the multiplier that the last one left.
            assert costs.paid[row] in (0.0, pytest.approx(-expected))
        sums = []
        for row in rows:
            running += costs.costs[row]
            sums += running[costs.dones[row]].tolist()
            running[costs.dones[row]] = 0.0
        measured = np.mean([costs.costs[row].mean() for row in rows]) if per == "step" else np.mean(sums)
        expected = max(0.0, expected + 0.5 * (float(measured) - 0.2))
        by_hand.append(expected)
    assert callback.controller.value == pytest.approx(by_hand[-1])
    assert by_hand[-1] > 0.0


@pytest.mark.slow
def test_a_policy_comes_to_the_rate_that_it_may_have() -> None:
    """
    Action 1 earns 1 and violates; action 0 earns nothing. With the entropy bonus ``c`` the best policy at the price
    ``lambda`` takes action 1 with the odds ``exp((1 - lambda) / c)``: those of the target at a known price.
    """
    costs, bonus, target = Costs(), 0.5, 0.3
    callback = LagrangeCallback(target, per="step", ki=0.2, kp=1.0, update_freq=128)
    model = PPO(
        "MlpPolicy",
        careless(8),
        n_steps=16,
        batch_size=128,
        n_epochs=4,
        learning_rate=0.03,
        gamma=0.0,
        ent_coef=bonus,
        normalize_advantage=False,
        policy_kwargs={"net_arch": []},
        seed=0,
    )
    model.learn(12_800, callback=[costs, callback])
    assert np.mean(costs.costs[:100]) > 0.4
    assert np.mean(costs.costs[-800:]) == pytest.approx(target, abs=0.03)
    price = 1.0 - bonus * np.log(target / (1.0 - target))
    assert callback.controller.value == pytest.approx(price, abs=0.15)


def test_off_policy_algorithms_wait_for_enough_steps() -> None:
    costs, callback = Costs(), LagrangeCallback(0.0, per="step", kp=0.0, update_freq=40)
    model = DQN("MlpPolicy", DummyVecEnv(walkers()), learning_starts=8, train_freq=4, buffer_size=200, batch_size=4)
    model.learn(80, callback=[costs, callback])
    changes = np.flatnonzero(np.diff([0.0, *costs.paid]) != 0.0)
    assert all(row >= 20 for row in changes)
    assert callback.controller.value == pytest.approx(0.1 * (np.mean(costs.costs[:20]) + np.mean(costs.costs[20:40])))


def test_a_resumed_run_goes_on_with_its_multiplier(tmp_path: Path) -> None:
    model, callback = ppo(DummyVecEnv(walkers())), LagrangeCallback(0.0, update_freq=32)
    model.learn(64, callback=callback)
    model.save(tmp_path / "model.zip")
    value = callback.controller.value
    assert value > 0.0
    assert PersistState.load(tmp_path / "model.zip").pending["lagrange_controller"]["value"] == value

    costs = Costs()
    resumed = PPO.load(tmp_path / "model.zip", env=DummyVecEnv(walkers()))
    resumed.learn(32, callback=[costs, LagrangeCallback(0.0, update_freq=32)])
    assert [cost for cost in set(costs.paid) if cost] == pytest.approx([-value], rel=1e-6)
    other = PPO.load(tmp_path / "model.zip", env=DummyVecEnv(walkers()))
    with pytest.raises(PersistStateError, match="scales"):
        other.learn(32, callback=LagrangeCallback(0.0, scales="homeostat"))


def test_a_missing_layer_is_told_at_the_first_step() -> None:
    bare = DummyVecEnv([lambda: InternalState(Monitor(Walker()), **LIMITS)])
    for scales, layer in (("cost", "CostPenalty"), ("homeostat", "HomeostatReward")):
        with pytest.raises(RuntimeError, match=layer):
            ppo(bare).learn(16, callback=LagrangeCallback(0.1, scales=scales))  # type: ignore[arg-type]


def test_the_homeostat_has_one_master() -> None:
    env = DummyVecEnv([lambda: HomeostatReward(InternalState(Monitor(Walker()), **LIMITS), alive_bonus="auto")])
    curriculum = CurriculumCallback([{"steps": 100, "homeo_factor": 0.5}])
    with pytest.raises(RuntimeError, match="homeo_factor"):
        ppo(env).learn(16, callback=[curriculum, LagrangeCallback(0.1, scales="homeostat")])


def test_two_lines_of_a_hyperparameter_file() -> None:
    entry = {
        "vec_env_wrapper": [{"persist_sb3.wrappers.VecInternalState": LIMITS}, "persist_sb3.wrappers.VecCostPenalty"],
        "callback": [{"persist_sb3.callbacks.LagrangeCallback": {"target": 0.1}}],
    }
    wrap: Any = get_wrapper_class(entry, "vec_env_wrapper")
    ppo(wrap(DummyVecEnv([lambda: Monitor(Walker())]))).learn(16, callback=get_callback_list(entry))


def test_a_configuration_has_a_target() -> None:
    config = PersistConfig.model_validate({"rewards": {"lambda_homeo": 0.0, "cost_target": 0.1}})
    assert [name for name, _ in config.layers()] == ["InternalState", "CostPenalty"]
    assert config.zoo_entry()["callback"][0] == {"persist_sb3.callbacks.LagrangeCallback": {"target": 0.1}}
    with pytest.raises(ValueError, match="cost_target"):
        PersistConfig.model_validate({"rewards": {"cost_target": -0.1}})
