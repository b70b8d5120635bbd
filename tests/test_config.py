"""PersistConfig: reads its file exactly, refuses what it does not know, and opens both doors."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from rl_zoo3.utils import get_wrapper_class
from sb3_contrib import QRDQN, TQC, MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.buffers import (
    ExecutedActionDictReplayBuffer,
    ExecutedActionRecomputedBonusDictReplayBuffer,
    RecomputedBonusDictReplayBuffer,
    RecomputedBonusReplayBuffer,
)
from persist_sb3.callbacks import SetpointCallback
from persist_sb3.config import PersistConfig
from persist_sb3.envs import ENV_IDS
from persist_sb3.equivariant import EquivariantMultiInputPolicy
from persist_sb3.risk import RiskQRDQNPolicy, RiskTQCMultiInputPolicy
from persist_sb3.train import _base_entry, _entry
from persist_sb3.wrappers import ActionShield, HomeostatReward, InternalState, VecActionShield, VecHomeostatReward
from persist_sb3.wrappers.reach_avoid_planner import ReachAvoidPlannerLayer

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
        ({"internal_state": {"belief": "gru"}}, "nothing to estimate: GridLife-v0 shows energy, temp, integrity"),
        ({"internal_state": {"belief": "ekf", "delay": {"energy": 2}}}, "Use belief='gru'"),
        ({"internal_state": {"belief": "gru"}, "env": {"name": "GridLive-v0"}}, "GridLive"),
        ({"internal_state": {"noise": {"enery": 0.1}}}, "noise: .*did you mean 'energy'"),
        ({"internal_state": {"noise": {"energy": -0.1}}}, "greater than 0"),
        ({"internal_state": {"delay": {"energy": 0.5}}}, "integer"),
        ({"internal_state": {"dropout": {"energy": 1.1}}}, "less than or equal to 1"),
        ({"internal_state": {"mu_ranges": {"enery": [0.5, 0.9]}}}, "mu_ranges: .*did you mean 'energy'"),
        ({"internal_state": {"mu_ranges": {"energy": [0.9, 0.5]}}}, "least, greatest"),
        ({"internal_state": {"mu_search": {}}}, "give mu_ranges"),
        ({"internal_state": {"mu_ranges": {"energy": [0.5, 0.9]}, "mu_search": {"startup": 50}}}, "below window=40"),
        ({"viability": {"constraints": ["enery >= 0.2"]}}, "energy"),
        ({"viability": {"constraints": ["energy => 0.2"]}}, r"\^"),
        ({"viability": {"shield": {"conf": 1.5}}}, "less than or equal to 1"),
        ({"viability": {"shield": {"conf": 1.0, "threshold": "calibrated"}}}, "certainty"),
        ({"viability": {"shield": {"conf": 1.0, "mode": "amortised"}}}, "certainty"),
        ({"viability": {"shield": {"criterion": "cvr"}}}, "'probability', 'worst_case' or 'cvar'"),
        ({"viability": {"shield": {"criterion": "cvar", "mode": "critic"}}}, "mode='verify' or 'search'"),
        ({"viability": {"shield": {"criterion": "cvar", "mode": "amortised"}}}, "mode='verify' or 'search'"),
        ({"viability": {"shield": {}, "planner": {}}}, "in the place of a shield"),
        ({"viability": {"planner": {"conf": 0.0}}}, "conf"),
        ({"viability": {"planner": {"horizn": 3}}}, "did you mean 'horizon'"),
        ({"viability": {"planner": {"target": ["enery >= 0.8"]}}}, "energy"),
        ({"rewards": {"intrinsic": "rnd", "lambda_intr": 1, "schedule": "cos_1"}}, "schedule 'cos_1'"),
        ({"rewards": {"schedule": "lin_1"}}, "a callback trains"),
        ({"rewards": {"intrinsic": "smirl", "lambda_intr": 1, "schedule": 0.5}}, "a callback trains"),
        ({"rewards": {"cost_scales": "homeostat"}}, "cost_target"),
        ({"rewards": {"cost_scales": "homeostat", "cost_target": 0.1, "lambda_homeo": 0}}, "lambda_homeo"),
        ({"rewards": {"cost_scales": "homeostat", "cost_target": 0.1, "lambda_homeo": 200}}, "maximum=100"),
        ({"rewards": {"cost_scales": "price", "cost_target": 0.1}}, "'cost' or 'homeostat'"),
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
        ({"train": {"algo": "SAC", "risk_alpha": 0.5}}, "use QRDQN or TQC"),
        ({"train": {"algo": "TQC", "risk_alpha": 0.0}}, "risk_alpha"),
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


@pytest.mark.parametrize("intrinsic", ["rnd", "surprise", "empowerment"])
def test_a_schedule_reaches_the_callback_that_knows_the_unit(intrinsic: str) -> None:
    rewards = {"intrinsic": intrinsic, "lambda_intr": 0.1, "schedule": "lin_0.8"}
    # A shield needs the world model, too, and leaves its schedule alone.
    config = PersistConfig.model_validate({"rewards": rewards, "viability": {"shield": {"horizon": 3}}})
    callbacks = {type(callback).__name__: callback for callback in config.callbacks()}
    assert list(callbacks).count("WorldModelCallback") == 1
    owner = {"rnd": "RNDCallback", "surprise": "WorldModelCallback", "empowerment": "EmpowermentCallback"}[intrinsic]
    for name, callback in callbacks.items():
        if hasattr(callback, "unit"):
            assert callback.unit.at(0.25) == pytest.approx(0.2 if name == owner else 1.0)


def test_empowerment_over_what_is_not_shown_learns_that_too() -> None:
    rewards = {"intrinsic": "empowerment", "lambda_intr": 0.1}
    for name, count in (("GridLife-v0", 0), ("GridLifeHidden-v0", 1)):
        config = PersistConfig.model_validate({"env": {"name": name}, "rewards": rewards})
        assert [type(callback).__name__ for callback in config.callbacks()].count("InternalModelCallback") == count


def test_smirl_pays_the_density_of_the_episode_and_trains_nothing() -> None:
    config = PersistConfig.model_validate({**CARTPOLE, "rewards": {"intrinsic": "smirl", "lambda_intr": 0.5}})
    assert [type(callback).__name__ for callback in config.callbacks()] == ["MetricsCallback"]
    env = config.make_env()
    assert env.observation_space.shape == (4 + 2 * 4 + 1,)
    first, _ = env.reset(seed=0)
    following, _, _, _, info = env.step(1)
    # One observation, and a prior of deviation 1 that is worth one.
    squares = (following[:4].astype(float) - first[:4].astype(float)) ** 2 / 0.5
    expected = -0.5 * (squares + np.log(2 * np.pi * 0.5)).mean()
    assert info["reward_terms"]["intrinsic"] == pytest.approx(0.5 * expected)


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


@pytest.mark.parametrize("algo", ["PPO", "SAC"])
def test_what_is_asked_of_box_actions_arrives(algo: str) -> None:
    (layer,) = [layer for layer in boxed(algo, projection="gradient", inset=0.25) if "ActionShield" in str(layer)]
    (given,) = layer.values()
    assert (given["projection"], given["inset"]) == ("gradient", 0.25)
    (layer,) = [layer for layer in boxed(algo) if "ActionShield" in str(layer)]
    assert not {"projection", "inset"} & set(*layer.values())


def boxed(algo: str, **shield: Any) -> Any:
    config = shielded(algo, "GridLifeContinuous-v0", **shield)
    return config.zoo_entry()["vec_env_wrapper"]


@pytest.mark.parametrize("asked", [{}, {"residual": True}, {"pieces": 8}], ids=str)
def test_a_critic_of_another_kind_is_asked_for_through_every_door(asked: dict[str, Any]) -> None:
    config = shielded(**asked, min_updates=50)
    critic: Any = config.callbacks()[0]
    assert {"residual": critic.residual, "pieces": critic.pieces} == {"residual": False, "pieces": 0, **asked}
    (entry,) = [entry for entry in config.zoo_entry()["callback"] if "ViabilityCallback" in str(entry)]
    assert all((key in str(entry)) is (key in asked) for key in ("residual", "pieces"))


@pytest.mark.parametrize(("env_id", "kind"), [("Pendulum-v1", ""), ("GridLifeContinuous-v0", "Dict")])
def test_other_internal_variables_are_asked_for_through_every_door(env_id: str, kind: str) -> None:
    own: dict[str, Any] = {"dims": ["upright"], "mu": [1.0], "source": {"upright": "obs[0]"}}
    sections: dict[str, Any] = {} if kind else {"internal_state": own}
    told: dict[str, Any] = {"counterfactual_share": 0.25} | ({} if kind else {"constraints": ["upright >= 0.5"]})
    config = PersistConfig(env={"name": env_id}, train={"algo": "SAC"}, viability=told, **sections)
    buffer = f"Counterfactual{kind}ReplayBuffer"
    kwargs, entry = config.algorithm_kwargs(), config.zoo_entry()
    assert kwargs["replay_buffer_class"].__name__ == buffer
    assert buffer in entry["replay_buffer_class"]
    assert kwargs["replay_buffer_kwargs"] == entry["replay_buffer_kwargs"] == {"counterfactual_share": 0.25}
    assert "ViabilityCallback" not in str(entry["callback"])
    shielded = PersistConfig(env={"name": env_id}, train={"algo": "SAC"}, viability={**told, "shield": {}}, **sections)
    assert shielded.algorithm_kwargs()["replay_buffer_class"].__name__ == buffer
    critic: Any = shielded.callbacks()[0]
    assert critic.counterfactual_share == 0.25
    told["shield"] = {"intervention_penalty": 0.5}
    penalised = PersistConfig(env={"name": env_id}, train={"algo": "SAC"}, viability=told, **sections)
    assert penalised.algorithm_kwargs()["replay_buffer_kwargs"] == {
        "counterfactual_share": 0.25,
        "learn_from": "both",
        "intervention_penalty": 0.5,
    }
    assert "'counterfactual_share': 0.25" in str(shielded.zoo_entry()["callback"])


@pytest.mark.parametrize(
    ("algo", "sections", "message"),
    [
        ("PPO", {}, "PPO without a shield has neither"),
        ("SAC", {"internal_state": {"hidden": ["temp"]}}, "does not show temp as they are"),
        ("SAC", {"rewards": {"intrinsic": "rnd", "lambda_intr": 0.1}}, r"rewards\.intrinsic changes that"),
        ("SAC", {"rewards": {"cost_target": 0.1}}, r"rewards\.cost_target changes that"),
        ("SAC", {"internal_state": {"mu_ranges": {"temp": [0.4, 0.6]}}}, "mu_ranges and w_ranges changes that"),
    ],
)
def test_other_internal_variables_that_would_be_told_wrongly(algo: str, sections: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"counterfactual_share=0.5 .*{message}"):
        PersistConfig(train={"algo": algo}, viability={"counterfactual_share": 0.5}, **sections)


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


@pytest.mark.parametrize(
    ("algo", "viability", "intrinsic", "buffer"),
    [
        ("SAC", {"shield": {}}, "empowerment", ExecutedActionRecomputedBonusDictReplayBuffer),
        ("SAC", {"planner": {}}, "rnd", ExecutedActionRecomputedBonusDictReplayBuffer),
        ("TD3", {}, "surprise", RecomputedBonusDictReplayBuffer),
        ("SAC", {"planner": {}}, "none", ExecutedActionDictReplayBuffer),
        ("DQN", {"shield": {}}, "smirl", ExecutedActionDictReplayBuffer),
        ("DQN", {}, "smirl", None),
        ("PPO", {"shield": {}}, "rnd", None),
    ],
)
def test_no_bonus_grows_stale_off_policy(algo: str, viability: Any, intrinsic: str, buffer: Any) -> None:
    rewards = {"intrinsic": intrinsic, "lambda_intr": 0.0 if intrinsic == "none" else 0.3}
    config = PersistConfig.model_validate({"train": {"algo": algo}, "viability": viability, "rewards": rewards})
    assert config.algorithm_kwargs().get("replay_buffer_class") is buffer
    named = config.zoo_entry().get("replay_buffer_class")
    assert named == (buffer and f"get_class_by_name('persist_sb3.buffers.{buffer.__name__}')")


@pytest.mark.parametrize(
    ("given", "recomputed"),
    [
        ({"rewards": {"cost_target": 0.1}}, True),
        ({"rewards": {"cost_target": 0.1, "cost_scales": "homeostat"}}, True),
        ({"rewards": {"cost_target": 0.1, "intrinsic": "smirl", "lambda_intr": 0.3}}, False),
        ({"curriculum": [{"steps": 100, "homeo_factor": 0.5}]}, True),
        ({"curriculum": [{"steps": 100, "tightness": 0.5}]}, False),
    ],
)
def test_no_weight_grows_stale_off_policy(given: dict[str, Any], recomputed: bool) -> None:
    config = PersistConfig.model_validate({**CARTPOLE, "train": {"algo": "DQN"}, **given})
    assert config.algorithm_kwargs().get("replay_buffer_class") is (RecomputedBonusReplayBuffer if recomputed else None)


def test_the_reference_file_recomputes_its_bonus(tmp_path: Path) -> None:
    path = tmp_path / "gridlife.yml"
    path.write_text(REFERENCE)
    kwargs = PersistConfig.from_yaml(path).algorithm_kwargs()
    assert kwargs == {
        "policy": "MultiInputPolicy",
        "batch_size": 1024,
        "gamma": 0.995,
        "train_freq": 64,
        "gradient_steps": 64,
        "replay_buffer_class": ExecutedActionRecomputedBonusDictReplayBuffer,
    }


def test_the_python_door_trains_on_bonuses_of_the_moment() -> None:
    rewards = {"intrinsic": "rnd", "lambda_intr": 0.3}
    config = PersistConfig.model_validate({**CARTPOLE, "rewards": rewards, "train": {"algo": "DQN", "batch_size": 8}})
    rnd, *others = config.callbacks()
    rnd.learning_starts = rnd.batch_size = 16  # type: ignore[attr-defined]
    model = DQN(env=config.make_env(), buffer_size=200, learning_starts=16, seed=0, **config.algorithm_kwargs())
    model.learn(96, callback=[rnd, *others])
    buffer: Any = model.replay_buffer
    assert type(buffer) is RecomputedBonusReplayBuffer
    network: Any = model.persist.parts["rnd"]  # type: ignore[attr-defined]
    now = 0.3 * float(network.unit) * network.error(buffer.next_observations[:96, 0])
    np.testing.assert_allclose(buffer.bonus(np.arange(96), np.zeros(96, dtype=int)), now, rtol=1e-5)
    assert (now > 0.0).all()


@pytest.mark.parametrize(("algo", "env"), [("QRDQN", "CartPole-v1"), ("TQC", "GridLife-v0")])
def test_risk_changes_the_policy_and_keeps_its_size(algo: str, env: str) -> None:
    data = CARTPOLE if env == "CartPole-v1" else {}
    config = PersistConfig.model_validate({**data, "train": {"algo": algo, "risk_alpha": 0.25}})
    policy = {"QRDQN": RiskQRDQNPolicy, "TQC": RiskTQCMultiInputPolicy}[algo]
    entry = _entry(config)
    assert entry["policy"] == f"persist_sb3.risk.{policy.__name__}"
    assert entry["policy_kwargs"] == {**_base_entry(config)["policy_kwargs"], "risk_alpha": 0.25}
    kwargs = config.algorithm_kwargs()
    assert kwargs["policy"] is policy
    model = {"QRDQN": QRDQN, "TQC": TQC}[algo](env=config.make_env(), buffer_size=10, device="cpu", **kwargs)
    assert model.policy.risk_alpha == 0.25
    neutral = PersistConfig.model_validate({**data, "train": {"algo": algo}}).zoo_entry()
    assert "policy" not in neutral and "policy_kwargs" not in neutral


def test_a_criterion_asks_for_a_look_ahead() -> None:
    for criterion in ("worst_case", "cvar"):
        layer = shielded(criterion=criterion, conf=1.0).wrap(gym.make("CartPole-v1")).layer
        assert (layer.mode, layer.lookahead.criterion, layer.lookahead.conf) == ("verify", criterion, 1.0)
    assert "criterion" not in dict(shielded(horizon=3).layers())["ActionShield"]


class Infos(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.seen += self.locals["infos"]
        return True


def test_a_planner_stands_in_the_place_of_the_policy() -> None:
    planner = {"horizon": 2, "conf": 1.0, "width": 4, "min_updates": 0, "target": ["x in [0.5, 1.0]"]}
    viability = {**CARTPOLE["viability"], "planner": planner}
    config = PersistConfig.model_validate({**CARTPOLE, "viability": viability, "train": {"model_rollouts": 3}})
    env = config.make_env()
    planning = env.layer.planning  # type: ignore[attr-defined]
    assert (planning.horizon, planning.conf, planning.width, planning.rollouts) == (2, 1.0, 4, 3)
    assert planning.samples == ReachAvoidPlannerLayer().planning.samples
    callbacks, infos = config.callbacks(), Infos()
    assert [type(callback).__name__ for callback in callbacks] == [
        "ViabilityCallback",
        "InternalModelCallback",
        "WorldModelCallback",
        "MetricsCallback",
    ]
    model = PPO(env=env, n_steps=8, n_epochs=1, device="cpu", **{**config.algorithm_kwargs(), "batch_size": 8})
    model.learn(8, callback=[*callbacks, infos])
    assert all({"feasible", "margin", "reached"} <= info["planner"].keys() for info in infos.seen)


@pytest.mark.parametrize("scales", ["cost", "homeostat"])
def test_a_cost_target_finds_the_weight_of_either_layer(scales: str) -> None:
    rewards = {"cost_target": 0.1, "cost_scales": scales, "lambda_homeo": 0.7}
    config = PersistConfig.model_validate({**CARTPOLE, "rewards": rewards})
    assert ("CostPenalty" in dict(config.layers())) == (scales == "cost")
    lagrange, *others = config.callbacks()
    model = PPO(env=config.make_env(), n_steps=8, n_epochs=1, device="cpu", **config.algorithm_kwargs())
    model.learn(8, callback=[lagrange, *others])
    multiplier: Any = model.persist.parts["lagrange"]  # type: ignore[attr-defined]
    # Before the first update; the homeostat begins with its declared weight.
    assert multiplier.scales == scales and float(multiplier.value) == (0.0 if scales == "cost" else 0.7)


def test_a_search_for_the_setpoint_comes_with_its_ranges() -> None:
    state = {"mu_ranges": {"energy": [0.5, 0.9]}, "mu_search": {"episodes": 5, "share": 0.25}}
    config = PersistConfig.model_validate({"internal_state": state})
    search = config.callbacks()[0]
    assert isinstance(search, SetpointCallback)
    assert (search.episodes, search.share, search.window, search.startup) == (5, 0.25, 40, 8)
    model = PPO(env=config.make_env(), n_steps=8, n_epochs=1, device="cpu", **config.algorithm_kwargs())
    model.learn(8, callback=config.callbacks())
    assert "setpoint_search" in model.persist.parts  # type: ignore[attr-defined]


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


def test_variables_are_seen_noisily_late_and_not_always() -> None:
    state = {"noise": {"energy": 0.05}, "delay": {"temp": 2}, "dropout": {"integrity": 0.5}}
    env = PersistConfig.model_validate({"internal_state": state}).make_env()
    seen, true = [], []
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        rows = [(observation["internal"], info["internal"])]
        for t in range(30):
            observation, _, terminated, _, info = env.step(t % 5)
            rows.append((observation["internal"], info["internal"]))
            if terminated:
                break
        shown, truth = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        np.testing.assert_allclose(shown[2:, 1], truth[:-2, 1], atol=1e-6)
        seen.append(shown)
        true.append(truth)
    shown, truth = np.concatenate(seen), np.concatenate(true)
    assert len(shown) > 150
    assert np.std(shown[:, 0] - truth[:, 0]) == pytest.approx(0.05, rel=0.25)
    missing = shown[:, 2] == 0.0
    assert missing.mean() == pytest.approx(0.5, abs=0.12)
    np.testing.assert_allclose(shown[~missing, 2], truth[~missing, 2], atol=1e-6)


def test_a_belief_may_be_about_what_the_environment_hides_itself() -> None:
    for data in (
        {"env": {"name": "GridLifeHidden-v0"}},
        {"env": {"name": "GridLifeDropout-v0"}},
        {"env": {"kwargs": {"hidden": ["energy"]}}},
    ):
        env = PersistConfig.model_validate({**data, "internal_state": {"belief": "gru"}}).make_env()
        assert "belief" in env.observation_space.spaces  # type: ignore[attr-defined]
    simulated = {"initial": 1.0, "drain": 0.01}
    state = {"dims": ["x", "fuel"], "mu": [0, 1], "source": {"x": "obs[0]", "fuel": simulated}, "belief": "gru"}
    unseen = {**CARTPOLE, "internal_state": state, "viability": {"constraints": ["abs(x) <= 2.0", "fuel >= 0.2"]}}
    unseen["rewards"] = {"lambda_homeo": 0}
    assert PersistConfig.model_validate(unseen).make_env().observation_space.shape == (6,)
    with pytest.raises(ValueError, match="nothing to estimate: CartPole-v1 shows x, fuel"):
        PersistConfig.model_validate({**unseen, "internal_state": {**state, "append": True}})


def test_the_filter_knows_the_noise() -> None:
    state = {"noise": {"energy": 0.05}, "belief": "ekf"}
    layers = dict(PersistConfig.model_validate({"internal_state": state}).layers())
    assert layers["PartialObservation"] == {"noise": {"energy": 0.05}}
    assert layers["BeliefState"]["measurement_noise"] == {"energy": 0.05}


@pytest.mark.parametrize("env_id", [env_id for env_id in ENV_IDS if "Continuous" not in env_id])
def test_every_gridlife_has_a_form_for_box_actions(env_id: str) -> None:
    config = PersistConfig.model_validate({"env": {"name": env_id}, "train": {"algo": "SAC"}})
    continuous, discrete = gym.make(config.env_id), gym.make(env_id)
    assert isinstance(continuous.action_space, gym.spaces.Box)
    assert continuous.observation_space == discrete.observation_space
