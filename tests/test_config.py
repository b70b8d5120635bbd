"""PersistConfig: reads its file exactly, refuses what it does not know, and opens both doors."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from rl_zoo3.utils import get_wrapper_class
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.config import PersistConfig
from persist_sb3.equivariant import EquivariantMultiInputPolicy
from persist_sb3.train import _base_entry
from persist_sb3.wrappers import ActionShield, HomeostatReward, InternalState, VecActionShield, VecHomeostatReward

REFERENCE = """
env: {name: "GridLife-v0", horizon: 512}
internal_state: {dims: ["energy","temp","integrity"], mu: [0.7, 0.5, 0.9], w: [1.0, 0.5, 1.5]}
viability:
  constraints: ["energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6"]
  shield: {conf: 0.97, horizon: 8}
rewards: {lambda_homeo: 0.7, lambda_intr: 0.3, intrinsic: "empowerment"}
train: {algo: "SAC", batch_size: 1024, gamma: 0.995, update_every: 64, model_rollouts: 5}
"""
CARTPOLE: dict[str, Any] = {
    "env": {"name": "CartPole-v1"},
    "internal_state": {"dims": ["x", "theta"], "mu": [0, 0], "source": {"x": "obs[0]", "theta": "obs[2]"}},
    "viability": {"constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.15"]},
}


def test_reads_the_reference_file(tmp_path: Path) -> None:
    path = tmp_path / "gridlife.yml"
    path.write_text(REFERENCE)
    config = PersistConfig.from_yaml(path)
    assert config.internal_state.w == (1.0, 0.5, 1.5)
    assert config.viability.shield is not None and config.viability.shield.conf == 0.97
    assert config.rewards.intrinsic == "empowerment"
    assert config.env_id == "GridLifeContinuous-v0"
    assert config.env_kwargs == {"horizon": 512}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"reward": {}}, "unknown key 'reward', did you mean 'rewards'"),
        ({"rewards": {"lambda_home": 1}}, "did you mean 'lambda_homeo'"),
        ({"rewards": {"lambda_homeo": -1}}, "greater than or equal to 0"),
        ({"rewards": {"lambda_homeo": float("nan")}}, "finite"),
        ({"rewards": {"intrinsic": "rnd"}}, "contradict"),
        ({"rewards": {"intrinsic": "curiosity", "lambda_intr": 1}}, "empowerment"),
        ({"internal_state": {"mu": [0.7, 0.5]}}, "mu has 2 entries for 3 variables"),
        ({"internal_state": {"mu": [0.1, 0.5, 0.9]}}, "energy >= 0.2"),
        ({"internal_state": {"hidden": ["enery"]}}, "hidden: .*did you mean 'energy'"),
        ({"internal_state": {"belief": "ukf"}}, "'gru' or 'ekf'"),
        ({"viability": {"constraints": ["enery >= 0.2"]}}, "energy"),
        ({"viability": {"constraints": ["energy => 0.2"]}}, r"\^"),
        ({"viability": {"shield": {"conf": 1.0}}}, "less than 1"),
        ({"viability": {"shield": {"horizn": 3}}}, "did you mean 'horizon'"),
        ({"viability": {"shield": {"mode": "critic", "conf": 0.9}}}, "mode='verify'"),
        ({"viability": {"shield": {"mode": "critic", "horizon": 3}}}, "mode='verify'"),
        ({"viability": {"shield": {"threshold": "safe"}}}, "calibrated"),
        ({"viability": {"shield": {"infeasible": "pray"}}}, "'safest' or 'planner'"),
        ({"viability": {"shield": {"caution": -1}}}, "caution"),
        ({"viability": {"shield": {}}, "train": {"model_rollouts": 5}}, "looks ahead"),
        ({"train": {"model_rollouts": 5}}, "looks ahead"),
        ({"train": {"algo": "SACK"}}, "did you mean 'sac'"),
        ({"train": {"gamma": 1.5}}, "gamma"),
        ({"internal_state": {"source": {"energy": {"initial": 1.0, "leak": 0.1}}}}, "leak"),
    ],
)
def test_refuses_what_it_does_not_know(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PersistConfig.model_validate(data)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "sections env"), ("", "sections env")]
)
def test_refuses_other_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        PersistConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("intrinsic", "layer", "callbacks"),
    [
        ("rnd", "RNDBonus", ["RNDCallback"]),
        ("surprise", "SurpriseBonus", ["WorldModelCallback"]),
        ("empowerment", "EmpowermentBonus", ["WorldModelCallback", "EmpowermentCallback"]),
    ],
)
def test_every_intrinsic_reward_has_its_layer_and_callbacks(intrinsic: str, layer: str, callbacks: list[str]) -> None:
    config = PersistConfig.model_validate({"rewards": {"intrinsic": intrinsic, "lambda_intr": 0.1}})
    assert config.layers()[-1] == (layer, {"weight": 0.1})
    assert [type(callback).__name__ for callback in config.callbacks()] == [*callbacks, "MetricsCallback"]


def test_both_doors_give_the_same_rewards() -> None:
    config = PersistConfig.model_validate(CARTPOLE)
    single = config.wrap(gym.make("CartPole-v1"))
    assert isinstance(single, HomeostatReward) and isinstance(single.env, InternalState)
    vec = config.wrap_vec(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    wrapper: Any = get_wrapper_class(config.zoo_entry(), "vec_env_wrapper")
    zoo = wrapper(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    assert isinstance(zoo, VecHomeostatReward)
    single.reset(seed=0)
    for venv in (vec, zoo):
        venv.seed(0)
        venv.reset()
    for t in range(8):
        reward = np.float32(single.step(t % 2)[1])
        assert reward == vec.step(np.array([t % 2]))[1][0] == zoo.step(np.array([t % 2]))[1][0]


def shielded(algo: str = "PPO", env: str = "CartPole-v1", train: dict[str, Any] | None = None, **shield: Any) -> Any:
    data = CARTPOLE if env == "CartPole-v1" else {}
    viability = {**data.get("viability", {}), "shield": shield}
    train = {"algo": algo, **(train or {})}
    return PersistConfig.model_validate({**data, "env": {"name": env}, "viability": viability, "train": train})


def test_the_shield_is_the_outermost_layer_through_every_door() -> None:
    config = shielded(threshold=0.15, correction="replace", intervention_penalty=0.5, fallback=1)
    single = config.wrap(gym.make("CartPole-v1"))
    vec = config.wrap_vec(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    wrapper: Any = get_wrapper_class(config.zoo_entry(), "vec_env_wrapper")
    zoo = wrapper(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    assert isinstance(single, ActionShield)
    assert isinstance(vec, VecActionShield) and isinstance(zoo, VecActionShield)
    for layer in (single.layer, vec.layer, zoo.layer):
        assert (layer.threshold, layer.correction, layer.intervention_penalty) == (0.15, "replace", 0.5)
        assert layer.mode == "critic" and layer.fallback == 1
    assert [type(callback).__name__ for callback in config.callbacks()] == ["ViabilityCallback", "MetricsCallback"]


@pytest.mark.parametrize("fallback", [1, [0, 1], [0.5], [[0.25, 1.0], [0.0, 0.5]]])
def test_safe_actions_are_handed_on_as_they_are(fallback: Any) -> None:
    ((_, layer),) = [layer for layer in shielded(fallback=fallback).layers() if layer[0] == "ActionShield"]
    assert layer["fallback"] == fallback and repr(layer["fallback"]) == repr(fallback)
    assert yaml.safe_load(yaml.safe_dump(shielded(fallback=fallback).zoo_entry()))


def test_one_of_several_safe_actions_is_meant_by_a_list() -> None:
    assert shielded(fallback=[0, 1]).wrap(gym.make("CartPole-v1")).layer.fallback.tolist() == [0, 1]
    with pytest.raises(RuntimeError, match=r"fallback=\[0, 2\] is not in the action space"):
        shielded(fallback=[0, 2]).wrap(gym.make("CartPole-v1"))


def test_confidence_and_horizon_ask_for_a_look_ahead() -> None:
    config = shielded(conf=0.97, horizon=8, train={"model_rollouts": 5})
    layer = config.wrap(gym.make("CartPole-v1")).layer
    assert (layer.mode, layer.lookahead.conf, layer.lookahead.horizon, layer.lookahead.rollouts) == (
        "verify",
        0.97,
        8,
        5,
    )
    names = [type(callback).__name__ for callback in config.callbacks()]
    assert names == ["ViabilityCallback", "InternalModelCallback", "WorldModelCallback", "MetricsCallback"]
    assert "SafetyNetworkCallback" in [type(c).__name__ for c in shielded(mode="amortised").callbacks()]


def test_the_planner_and_caution_bring_along_what_they_need() -> None:
    def names(**shield: Any) -> list[str]:
        config = shielded(**shield)
        layer = config.wrap(gym.make("CartPole-v1")).layer
        assert layer.mode == "critic"
        assert (layer.infeasible, layer.caution) == (shield.get("infeasible", "safest"), shield.get("caution", 0.0))
        return [type(callback).__name__ for callback in config.callbacks()]

    assert names() == ["ViabilityCallback", "MetricsCallback"]
    assert names(caution=0.1) == ["ViabilityCallback", "InternalModelCallback", "MetricsCallback"]
    imagines = ["ViabilityCallback", "InternalModelCallback", "WorldModelCallback", "MetricsCallback"]
    assert names(infeasible="planner") == imagines
    # The planner looks ahead, whoever judges.
    config = shielded(mode="critic", infeasible="planner", horizon=6, conf=0.8, train={"model_rollouts": 3})
    search = config.wrap(gym.make("CartPole-v1")).layer.lookahead
    assert (search.horizon, search.conf, search.rollouts) == (6, 0.8, 3)


def test_masks_for_the_algorithm_that_takes_them() -> None:
    assert dict(shielded("PPO_MASK").layers())["ActionShield"]["correction"] == "mask"
    assert dict(shielded("PPO").layers())["ActionShield"]["correction"] == "project"


@pytest.mark.parametrize(
    ("algo", "env", "kind"),
    [("DQN", "CartPole-v1", ""), ("DQN", "GridLife-v0", "Dict"), ("SAC", "GridLifeFlat-v0", "")],
)
def test_off_policy_algorithms_learn_what_was_executed(algo: str, env: str, kind: str) -> None:
    entry = shielded(algo, env).zoo_entry()
    assert entry["replay_buffer_class"] == f"get_class_by_name('persist_sb3.buffers.ExecutedAction{kind}ReplayBuffer')"
    assert "replay_buffer_kwargs" not in entry
    config = shielded(algo, env, intervention_penalty=0.5)
    assert config.zoo_entry()["replay_buffer_kwargs"] == {"learn_from": "both", "intervention_penalty": 0.5}
    # Paid twice it would punish the executed action.
    assert "intervention_penalty" not in dict(config.layers())["ActionShield"]
    assert "replay_buffer_class" not in shielded("PPO", "CartPole-v1").zoo_entry()


@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO])
def test_the_python_door_trains_with_a_shield(algorithm: Any) -> None:
    config = shielded("PPO_MASK" if algorithm is MaskablePPO else "PPO", min_updates=10)
    model = algorithm("MlpPolicy", config.wrap(gym.make("CartPole-v1")), n_steps=1200, batch_size=400, n_epochs=1)
    model.learn(1200, callback=config.callbacks())
    assert int(model.persist.parts["viability"].updates) >= 10


def test_memory_is_the_innermost_layer_and_keeps_the_symmetries() -> None:
    config = PersistConfig.model_validate({"env": {"memory": {"radius": 4, "fade": 0.9}}})
    name, parameters = config.layers()[0]
    assert name == "SpatialMemory"
    assert parameters == {"window": "window", "radius": 4, "position": "info.position", "fade": 0.9}
    env = config.make_env()
    assert env.observation_space["window"].shape == (6 * 9 * 9,)  # type: ignore[index]
    assert len(env.get_wrapper_attr("symmetries")) == 7
    with pytest.raises(ValueError, match=r"env.memory.fade"):
        PersistConfig.model_validate({"env": {"memory": {"fade": 2.0}}})


@pytest.mark.parametrize(("memory", "knows"), [({}, True), (None, True), ({"radius": 5}, False)])
def test_the_policy_knows_the_symmetries_of_what_it_sees(memory: Any, knows: bool) -> None:
    config = PersistConfig.model_validate({"env": {"memory": memory}})
    entry = _base_entry(config)
    assert entry["policy"].startswith("persist_sb3.equivariant") == knows
    if knows:
        kwargs = {"symmetries": re.findall(r"'(\w+-v0)'", entry["policy_kwargs"])}
        PPO(EquivariantMultiInputPolicy, config.make_env(), policy_kwargs=kwargs, device="cpu")


def test_no_homeostat_without_weight() -> None:
    config = PersistConfig.model_validate({**CARTPOLE, "rewards": {"lambda_homeo": 0}})
    assert [name for name, _ in config.layers()] == ["InternalState"]


@pytest.mark.parametrize(
    ("algo", "expected"),
    [
        ("PPO", {"n_steps": 64, "gamma": 0.9, "batch_size": 32}),
        ("SAC", {"train_freq": 64, "gradient_steps": 64, "gamma": 0.9, "batch_size": 32}),
    ],
)
def test_training_terms_are_translated(algo: str, expected: dict[str, Any]) -> None:
    train = {"algo": algo, "gamma": 0.9, "batch_size": 32, "update_every": 64}
    entry = PersistConfig.model_validate({"train": train}).zoo_entry()
    assert {key: entry[key] for key in expected} == expected


def test_the_python_door_trains() -> None:
    persist = PersistConfig.model_validate(CARTPOLE)
    model = PPO("MlpPolicy", persist.wrap(gym.make("CartPole-v1")), n_steps=64, batch_size=32, n_epochs=1)
    model.learn(128, callback=persist.callbacks())
    assert model.num_timesteps == 128


def test_horizon_truncates() -> None:
    env = PersistConfig.model_validate({**CARTPOLE, "env": {"name": "CartPole-v1", "horizon": 3}}).make_env()
    env.reset(seed=0)
    assert [env.step(t % 2)[3] for t in range(3)] == [False, False, True]


@pytest.mark.parametrize(("belief", "callback"), [("gru", "BeliefCallback"), ("ekf", "InternalModelCallback")])
def test_a_hidden_variable_gets_a_belief(belief: str, callback: str) -> None:
    config = PersistConfig.model_validate(
        {"internal_state": {"hidden": ["energy"], "belief": belief}, "viability": {"shield": {"horizon": 3}}}
    )
    env = config.make_env()
    observation, info = env.reset(seed=0)
    assert observation["internal"][0] == 0.0 and info["internal"][0] > 0.5
    assert observation["belief"].shape == (2,)
    names = [type(made).__name__ for made in config.callbacks()]
    assert names.count(callback) == 1
    layers = [next(iter(layer)) for layer in config.zoo_entry()["vec_env_wrapper"]]
    assert [name.rpartition(".Vec")[2] for name in layers] == [
        "InternalState",
        "HomeostatReward",
        "PartialObservation",
        "BeliefState",
        "ActionShield",
    ]
