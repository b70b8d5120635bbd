"""Every shipped entry trains, and says what the others say about the same environment."""

import copy
import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from persist_sb3 import hyperparams, zoo
from persist_sb3.envs import NAVIGATION_IDS
from persist_sb3.viability import ViabilitySet
from tests.learners import set_up

GRADIENT_STEPS = "persist_sb3.callbacks.GradientStepsCallback"
BEST_OF = "persist_sb3.callbacks.BestOfCallback"
VIABILITY = "persist_sb3.callbacks.ViabilityCallback"
LAYERS = ("vec_env_wrapper", "callback")
MEMORY, HOMEOSTAT, SHIELD = (
    f"persist_sb3.wrappers.Vec{name}" for name in ("SpatialMemory", "HomeostatReward", "ActionShield")
)
PLAIN = {"GridLife-v0", "GridLifeFlat-v0", "GridLifeExplore-v0", "GridLifeContinuous-v0", "GridLifeContinuousFlat-v0"}
SHIELDED = {"GridLifeScent-v0", "GridLifeContinuousScent-v0"}
CONTINUOUS = {env_id for env_id in PLAIN | SHIELDED if "Continuous" in env_id}
DISCRETE = (PLAIN | SHIELDED) - CONTINUOUS
SHIPPED = {
    "a2c": DISCRETE | {"CartPole-v1"},
    "dqn": DISCRETE | {"CartPole-v1"},
    "ppo": DISCRETE | CONTINUOUS | {"CartPole-v1", "Pendulum-v1", "GridLifeHidden-v0"},
    "ppo_lstm": DISCRETE | {"CartPole-v1", "GridLifeHidden-v0"},
    "ppo_mask": DISCRETE,
    "qrdqn": DISCRETE | {"CartPole-v1"},
    "sac": CONTINUOUS | {"Pendulum-v1", *NAVIGATION_IDS},
    "td3": CONTINUOUS | {"Pendulum-v1"},
    "tqc": CONTINUOUS | {"Pendulum-v1"},
    "trpo": DISCRETE | {"CartPole-v1"},
}
#: Environments that have a second entry, with a shield.
ALSO_SHIELDED = {
    "ppo": {"CartPole-v1", "GridLifeContinuous-v0", "LunarLanderFuel-v0", "Obstacles-v0"},
    "sac": {"Pendulum-v1", *NAVIGATION_IDS, "Diabetes-v0", "Greenhouse-v0"},
}
#: Environments of examples/, which need packages of their own: see test_problems.py.
OF_EXAMPLES = {"ppo": {"LunarLanderFuel-v0", "Obstacles-v0"}, "sac": {"Diabetes-v0", "Greenhouse-v0"}}
ENTRIES = [(algo, env_id) for algo, env_ids in SHIPPED.items() for env_id in sorted(env_ids)]


def test_the_shipped_entries() -> None:
    for algo in hyperparams.algorithms():
        shielded = {env_id + hyperparams.SHIELDED for env_id in ALSO_SHIELDED.get(algo, ())}
        assert set(hyperparams.load(algo)) - {"default"} == SHIPPED[algo] | OF_EXAMPLES.get(algo, set()) | shielded
    assert set(hyperparams.algorithms()) == set(SHIPPED)


@pytest.mark.parametrize(("algo", "env_id"), [(a, e) for a, env_ids in ALSO_SHIELDED.items() for e in sorted(env_ids)])
def test_a_shielded_entry_differs_by_the_shield_alone(algo: str, env_id: str) -> None:
    shipped = hyperparams.load(algo)
    bare, shielded = shipped[env_id], shipped[env_id + hyperparams.SHIELDED]
    *layers, shield = shielded.pop("vec_env_wrapper")
    assert layers == bare.pop("vec_env_wrapper")
    assert list(shield) == ["persist_sb3.wrappers.VecActionShield"]
    metrics, viability = shielded.pop("callback")
    assert metrics == bare.pop("callback")
    assert "ViabilityCallback" in str(viability)
    assert ("ReplayBuffer" in shielded.pop("replay_buffer_class", "")) == ("buffer_size" in bare)
    assert shielded == bare


@pytest.mark.parametrize("algo", SHIPPED)
def test_a_module_beside_each_file_has_the_same(algo: str) -> None:
    assert importlib.import_module(f"persist_sb3.hyperparams.{algo}").hyperparams == hyperparams.load(algo)


@pytest.mark.parametrize("algo", SHIPPED)
def test_default_has_no_layers(algo: str) -> None:
    assert not {"vec_env_wrapper", "env_wrapper", "callback"} & set(hyperparams.load(algo)["default"])


@pytest.mark.parametrize(
    "env_ids",
    [PLAIN, SHIELDED, {"CartPole-v1"}, {"Pendulum-v1"}],
    ids=["GridLife", "GridLife shielded", "CartPole", "Pendulum"],
)
def test_the_layers_of_an_environment_are_the_same_for_every_algorithm(env_ids: set[str]) -> None:
    """
    But where an agent remembers: there the shield leaves energy to the policy, judges early by what its critic learned
    of differences from the margins at hand, and is less strict. The critic learns most often in the beginning.
    On-policy, death costs more then, and under a shield homeostasis counts more; in SAC homeostasis counts less and
    death more, its critic is made of pieces and told of other internal variables, and it learns most in the beginning,
    while the shield only watches. SAC's critics choose among proposals, but not in the training.
    """
    entries = [(algo, hyperparams.load(algo)[env_id]) for algo, env_id in ENTRIES if env_id in env_ids]
    plain = next(entry for _, entry in entries if MEMORY not in entry["vec_env_wrapper"])
    tuned = copy.deepcopy(plain)
    for layer in tuned["vec_env_wrapper"]:
        if SHIELD in layer:
            layer[SHIELD] |= {"threshold": 0.05, "min_updates": 50, "guards": ["temp", "integrity"]}
    tuned["vec_env_wrapper"].insert(0, MEMORY)
    for callback in tuned["callback"] if SHIELD in str(tuned) else ():
        if VIABILITY in callback:
            callback[VIABILITY] |= {"residual": True, "learning_starts": 64, "train_freq": {0: 1, 25_000: 4}}
    for algo, entry in entries:
        remembers = MEMORY in entry["vec_env_wrapper"]
        expected = copy.deepcopy(tuned if remembers else plain)
        for layer in expected["vec_env_wrapper"]:
            if HOMEOSTAT in layer and remembers:
                on_policy = {"death_penalty": 160.0, "weight": 2.0 if SHIELD in str(tuned) else 0.5}
                layer[HOMEOSTAT] |= {"death_penalty": 250.0, "weight": 0.02} if algo == "sac" else on_policy
            if SHIELD in layer and remembers and algo == "sac":
                layer[SHIELD] |= {"inset": 0.5, "min_updates": 3_000}
        if remembers and algo == "sac":
            expected["callback"][-1][VIABILITY] |= {"pieces": 32, "counterfactual_share": 0.5}
            expected["callback"].insert(1, {BEST_OF: {"best_of": 1}})
            expected["callback"].insert(2, {GRADIENT_STEPS: {"gradient_steps": {0: 256, 5_000: 64, 25_000: 16}}})
        assert {key: entry[key] for key in LAYERS} == {key: expected[key] for key in LAYERS}


def test_the_shield_that_watches_at_first_sets_in_at_step_24_000() -> None:
    entry = hyperparams.load("sac")["GridLifeContinuousScent-v0"]
    shield, critic = entry["vec_env_wrapper"][-1][SHIELD], entry["callback"][-1][VIABILITY]
    # Until 25,000 every step of the environments is a gradient step.
    assert critic["train_freq"] == {0: 1, 25_000: 4}
    steps = critic["learning_starts"] + shield["min_updates"] * entry["n_envs"]
    assert steps == pytest.approx(24_000, abs=100)


def test_cartpole_limits_lie_inside_those_that_end_its_episode() -> None:
    internal, _ = hyperparams.load("ppo")["CartPole-v1"]["vec_env_wrapper"]
    layer = internal["persist_sb3.wrappers.VecInternalState"]
    low, high = ViabilitySet(layer["constraints"], layer["dims"], mu=layer["mu"]).box()
    env = gym.make("CartPole-v1").unwrapped
    assert isinstance(env, CartPoleEnv)
    assert high[0] < env.x_threshold
    assert high[1] < env.theta_threshold_radians
    assert (low == -high).all()


SMALL: dict[str, dict[str, Any]] = {
    "on-policy": {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "n_critic_updates": 1},
    "off-policy": {"n_envs": 2, "learning_starts": 16, "train_freq": 4, "gradient_steps": 1, "batch_size": 16},
}


@pytest.mark.filterwarnings("error::persist_sb3.homeostat.PaidToDieWarning")
@pytest.mark.parametrize(("algo", "env_id"), ENTRIES)
def test_every_entry_trains(algo: str, env_id: str, tmp_path: Path) -> None:
    zoo.register_ppo_mask()
    entry = hyperparams.load(algo)[env_id]
    family = SMALL["off-policy" if "learning_starts" in entry else "on-policy"]
    small = {key: value for key, value in family.items() if key in entry}
    manager, model = set_up(algo, env_id, hyperparams.FOLDER / f"{algo}.yml", tmp_path, hyperparams=small)
    manager.learn(model)
    manager.save_trained_model(model)
    assert model.num_timesteps >= 64


@pytest.mark.parametrize(
    ("algo", "env_id", "seen", "fits"),
    [
        ("ppo", "GridLife-v0", "GridLifeMemory-v0", True),
        ("ppo", "GridLife-v0", "GridLife-v0", True),
        ("ppo", "GridLife-v0", "GridLifeScent-v0", False),
        ("sac", "GridLifeContinuous-v0", "GridLifeContinuous-v0", True),
        ("sac", "GridLifeContinuous-v0", "GridLife-v0", False),
        ("ppo", "GridLifeFlat-v0", "GridLife-v0", True),
    ],
)
def test_an_entry_fits_what_its_policy_sees(algo: str, env_id: str, seen: str, fits: bool) -> None:
    shipped = hyperparams.load(algo)[env_id]
    env = gym.make(seen)
    fitting = hyperparams.fit_symmetry(shipped, env.observation_space, env.action_space)
    if fits:
        assert fitting == shipped
        return
    assert fitting["policy"] in ("MultiInputPolicy", "MlpPolicy")
    assert "net_arch" in str(fitting["policy_kwargs"])
    assert "symmetries" not in str(fitting["policy_kwargs"])
    assert {key: value for key, value in fitting.items() if not key.startswith("policy")} == {
        key: value for key, value in shipped.items() if not key.startswith("policy")
    }


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (
            "dict(net_arch=[8], symmetries=['GridLife-v0', 'Other-v0'], modes=1, best_of=4, action_gap=2.5, "
            "gap_limit=1, activation_fn=nn.ReLU)",
            "dict(net_arch=[8], activation_fn=nn.ReLU)",
        ),
        ({"net_arch": [8], "symmetries": "GridLife-v0", "modes": 2, "best_of": 4, "action_gap": 5}, {"net_arch": [8]}),
    ],
)
def test_plain_networks_know_nothing_of_symmetries(kwargs: Any, expected: Any) -> None:
    entry = {"policy": "persist_sb3.equivariant.EquivariantSACMultiInputPolicy", "policy_kwargs": kwargs}
    plain = hyperparams.without_symmetry(entry)
    assert plain == {"policy": "MultiInputPolicy", "policy_kwargs": expected}


def test_plain_networks_do_without_the_callback_that_is_about_others() -> None:
    entry = hyperparams.load("sac")["GridLifeContinuousScent-v0"]
    plain = hyperparams.without_symmetry(entry)
    assert plain["callback"] == [callback for callback in entry["callback"] if BEST_OF not in callback]
    assert len(plain["callback"]) == len(entry["callback"]) - 1
