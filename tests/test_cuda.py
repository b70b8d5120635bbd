"""On a GPU: what learns there learns as elsewhere, and what was saved there is read anywhere."""

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3.batch import tree_map
from persist_sb3.buffers import ExecutedActionRecomputedBonusReplayBuffer, RecomputedBonusDictReplayBuffer
from persist_sb3.callbacks import (
    BehaviourCloningCallback,
    InternalModelCallback,
    MetricsCallback,
    RNDCallback,
    ViabilityCallback,
    WorldModelCallback,
)
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.devices import find_device
from persist_sb3.equivariant import (
    EquivariantMaskableMultiInputPolicy,
    EquivariantMultiInputPolicy,
    EquivariantPolicy,
    EquivariantSACMultiInputPolicy,
)
from persist_sb3.evaluation import evaluate
from persist_sb3.models.base import rebuild
from persist_sb3.models.imagination import LearnedDynamics
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.models.world import WorldModel
from persist_sb3.planning import Planning
from persist_sb3.recording import record
from persist_sb3.risk import RiskQRDQNPolicy, RiskTQCPolicy
from persist_sb3.runs import Run
from persist_sb3.state import PersistState
from persist_sb3.streams import Streams
from persist_sb3.train import train
from persist_sb3.wrappers import InternalState, RNDBonus, VecActionShield, VecInternalState, VecRNDBonus
from tests import masked_toy  # noqa: F401  registers OneAllowed-v0
from tests.test_behaviour_cloning import LateWorker, Steady, make_box
from tests.test_equivariant import declared, image, tensors
from tests.test_model_callbacks import learn
from tests.toys import Walker
from tests.trainings import CRITIC, ENSEMBLE, LIMITS, TRAININGS, play

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parent.parent
NOVEL: dict[str, Any] = {"net_arch": [16], "features": 8, "learning_starts": 20, "batch_size": 16, "device": "cuda"}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """cuDNN's recurrent networks round to 10 bits (TF32) unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def make_model(env: VecEnv, algorithm: Any = PPO, policy: Any = None, device: str = "cuda", **more: Any) -> Any:
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": device}
    if algorithm in (PPO, MaskablePPO, RecurrentPPO):
        kwargs |= {"n_steps": 16, "batch_size": 64, "n_epochs": 1}
    elif algorithm in (A2C, TRPO):
        kwargs |= {"n_steps": 16}
    else:
        kwargs |= {"learning_starts": 40, "buffer_size": 300, "batch_size": 8, "train_freq": 4, "gradient_steps": 1}
    nested = isinstance(env.observation_space, spaces.Dict)
    return algorithm(policy or ("MultiInputPolicy" if nested else "MlpPolicy"), env, **kwargs | more)


def trained(name: str, device: str = "cuda", steps: int = 384) -> tuple[Any, list[Any]]:
    """
    :return: PPO, and the callbacks that have trained on the GPU
    """
    model = make_model(TRAININGS[name].env(), device=device)
    callbacks, learners = TRAININGS[name].learners("cuda")
    model.learn(steps, callback=callbacks)
    return model, learners


def places(values: Any) -> set[str]:
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state_dict()["state"].values() for value in state.values()]


@pytest.mark.parametrize("policy", ["cpu", "cuda"])
@pytest.mark.parametrize("name", TRAININGS)
def test_models_learn_on_the_gpu_and_layers_follow(name: str, policy: str) -> None:
    model = make_model(TRAININGS[name].env(), device=policy)
    callbacks, learners = TRAININGS[name].learners("cuda")
    rows = learn(model, callbacks, 384)
    assert model.device.type == policy
    for learner in learners:
        assert learner.updates > 4
        assert places([*learner.learner.parameters(), *learner.learner.buffers()]) == {"cuda"}
        assert places([*learner.actor.parameters(), *learner.actor.buffers()]) == {"cpu"}
        assert places(moments(learner.optimizer)) == {"cuda"}
        published = learner.actor.state_dict()
        for key, value in learner.learner.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.cpu(), published[key]), key
        assert np.isfinite(rows[-1][f"persist/{learner.name}/loss"])
    # No place is named in what is saved.
    document = torch.load(io.BytesIO(model.persist.to_bytes()), weights_only=True)
    states = document["parts"].values()
    assert places(value for state in states if isinstance(state, dict) for value in state.values()) <= {"cpu"}
    assert places(
        value
        for state in states
        if "optimizer" in state
        for one in state["optimizer"]["state"].values()
        for value in one.values()
    ) == {"cpu"}


@pytest.mark.parametrize("policy", ["cpu", "cuda"])
@pytest.mark.parametrize("name", [name for name, training in TRAININGS.items() if training.watches])
def test_a_policy_learns_as_if_nobody_watched(name: str, policy: str) -> None:
    def weights(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(7)
        model = make_model(TRAININGS[name].env(), device=policy)
        model.learn(256, callback=TRAININGS[name].learners("cuda")[0] if watched else None)
        return [*model.policy.parameters(), torch.get_rng_state(), torch.cuda.get_rng_state()]

    assert all(torch.equal(*pair) for pair in zip(weights(False), weights(True), strict=True))


@pytest.mark.parametrize("name", [name for name, training in TRAININGS.items() if training.watches])
def test_losses_are_those_of_the_cpu(name: str) -> None:
    def losses(device: str) -> list[float]:
        callbacks, learners = TRAININGS[name].learners(device)
        rows = learn(make_model(TRAININGS[name].env(), device="cpu"), callbacks, 256)
        keys = [f"persist/{learner.name}/loss" for learner in learners]
        return [row[key] for row in rows for key in keys if key in row]

    there, here = losses("cuda"), losses("cpu")
    assert len(there) == len(here) > 1
    np.testing.assert_allclose(there, here, rtol=2e-2, atol=1e-3)


def states(callback: Any) -> tuple[np.ndarray, np.ndarray]:
    """States that the agent was in, and what it did, both encoded."""
    seen = callback.store.sample(64, np.random.default_rng(0))
    return callback.spec.encode(seen.observation, seen.internal), callback.spec.encode_action(seen.executed_action)


def of_dynamics(callback: Any) -> tuple[Any, Any]:
    state, action = states(callback)
    there = callback.learner.predict(callback.tensor(state), callback.tensor(action))
    return there, callback.actor.moments(state, action)


def of_latent(callback: Any) -> tuple[Any, Any]:
    state, action = states(callback)
    following = callback.learner.predict(callback.tensor(state), callback.tensor(action))
    return following, callback.actor.predict(torch.as_tensor(state), torch.as_tensor(action))


def of_critic(callback: Any) -> tuple[Any, Any]:
    state, action = states(callback)
    if callback.spec.continuous:
        values = callback.learner(callback.tensor(state), callback.tensor(action))[:, :, 0]
        best = callback.learner.safe_action(callback.tensor(state))
        here = callback.actor.action_values(state, action), callback.actor.best_action(state)
        return (values.min(dim=0).values, best), here
    values = callback.learner(callback.tensor(state)).min(dim=0).values
    best = values[:, :, 0].argmax(dim=1)
    return (values, best), (callback.actor.values(state), callback.actor.best_action(state))


def of_safety(callback: Any) -> tuple[Any, Any]:
    size = len(callback.actor.standardizer.mean)
    inputs = np.random.default_rng(0).normal(size=(64, size)).astype(np.float32)
    return [callback.learner(callback.tensor(inputs)).sigmoid()], [callback.actor.p_safe(inputs)]


def of_rnd(callback: Any) -> tuple[Any, Any]:
    encoded = np.random.default_rng(0).normal(size=(64, callback.spec.observation_dim)).astype(np.float32)
    return [callback.learner(callback.tensor(encoded))], [callback.actor.error(encoded)]


def of_empowerment(callback: Any) -> tuple[Any, Any]:
    state, _ = states(callback)
    value = callback.learner(callback.tensor(state)).clamp(0.0, callback.actor.bound)
    return [value], [callback.actor.value(state)]


def of_belief(callback: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    shape = callback.actor.spec.observation_dim, callback.actor.spec.action_dim, callback.actor.memory
    seen, done, memory = (rng.uniform(-1.0, 1.0, (16, size)).astype(np.float32) for size in shape)
    mean, _ = callback.learner(callback.tensor(seen[:, None]), callback.tensor(done[:, None]), callback.tensor(memory))
    target = callback.learner.target
    mean = target.mean + (target.var + 1e-8).sqrt() * mean[:, 0]
    return [mean], [callback.actor.advance(seen, done, memory)[1]]


COMPUTED: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "internal_model": of_dynamics,
    "world_model": of_dynamics,
    "latent": of_latent,
    "viability": of_critic,
    "safety": of_safety,
    "rnd": of_rnd,
    "empowerment": of_empowerment,
    "belief": of_belief,
}


@pytest.mark.parametrize("name", TRAININGS)
def test_layers_compute_what_was_learned_on_the_gpu(name: str) -> None:
    _, learners = trained(name)
    for learner in learners:
        with torch.no_grad():
            there, here = COMPUTED["latent" if name == "latent" else learner.name](learner)
        for one, other in zip(there, here, strict=True):
            np.testing.assert_allclose(one.cpu(), np.asarray(other), rtol=1e-4, atol=1e-4)


class AtStart(BaseCallback):
    """
    Looks at what other callbacks begin with.

    :param learners: whom to look at
    """

    def __init__(self, learners: list[LearningCallback]) -> None:
        super().__init__()
        self.learners = learners

    def _on_training_start(self) -> None:
        self.moments = [[value.cpu().clone() for value in moments(learner.optimizer)] for learner in self.learners]
        self.weights = [copy.deepcopy(learner.learner).cpu().state_dict() for learner in self.learners]
        self.generators = [learner.generator.bit_generator.state for learner in self.learners]

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", TRAININGS)
def test_a_zip_resumes_with_the_same_optimiser(name: str, device: str, tmp_path: Path) -> None:
    model, before = trained(name)
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=TRAININGS[name].env(), device=device)
    for key, value in model.policy.state_dict().items():
        assert torch.equal(value.cpu(), again.policy.state_dict()[key].cpu())
    callbacks, after = TRAININGS[name].learners(device)
    look = AtStart(after)
    again.learn(256, callback=[*callbacks, look], reset_num_timesteps=False)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert new.updates > old.updates
        assert next(new.learner.parameters()).device.type == device
        assert places(moments(new.optimizer)) == {device}
        expected = moments(old.optimizer)
        assert len(expected) == len(look.moments[index]) > 0
        assert all(torch.equal(a.cpu(), b) for a, b in zip(expected, look.moments[index], strict=True))
        weights = look.weights[index]
        assert all(torch.equal(v, weights[k]) for k, v in old.actor.state_dict().items() if torch.is_tensor(v))
        assert look.generators[index] == old.generator.bit_generator.state
    policy_moments = [value for value in moments(again.policy.optimizer) if value.dim()]
    assert places(policy_moments) == {device}


@pytest.mark.parametrize("name", ["calibration", "viability, box", "safety", "belief", "dynamics"])
def test_a_machine_without_a_gpu_does_the_same(name: str, tmp_path: Path) -> None:
    model, _ = trained(name, steps=768)
    model.save(tmp_path / "model.zip")
    script = (
        "import sys, torch, numpy as np; from tests.trainings import play\n"
        "assert not torch.cuda.is_available()\n"
        "seen, done = play(sys.argv[1], sys.argv[2], 'auto')\n"
        "np.savez(sys.argv[3], seen=seen, done=done)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.zip"), name, str(tmp_path / "played.npz")],
        check=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        timeout=200,
    )
    seen, done = play(tmp_path / "model.zip", name, "cuda")
    with np.load(tmp_path / "played.npz") as played:
        np.testing.assert_allclose(played["seen"], seen, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(played["done"], done, rtol=1e-4, atol=1e-4)


def novel(action: str, observation: str = "box") -> VecEnv:
    env = VecInternalState(DummyVecEnv([partial(Walker, observation, action)] * 2), **LIMITS)
    return VecRNDBonus(VecActionShield(env, min_updates=4), weight=0.5)


@pytest.mark.parametrize(
    ("algorithm", "policy", "action", "observation", "more"),
    [
        (SAC, None, "box", "box", {"replay_buffer_class": ExecutedActionRecomputedBonusReplayBuffer}),
        (TD3, None, "box", "dict", {}),
        (DQN, None, "discrete", "dict", {"replay_buffer_class": RecomputedBonusDictReplayBuffer}),
        (QRDQN, RiskQRDQNPolicy, "discrete", "box", {}),
        (TQC, RiskTQCPolicy, "box", "box", {}),
        (A2C, None, "discrete", "dict", {}),
        (TRPO, None, "discrete", "box", {}),
        (PPO, None, "box", "dict", {}),
        (RecurrentPPO, "MlpLstmPolicy", "discrete", "box", {}),
        (MaskablePPO, None, "discrete", "box", {}),
    ],
)
def test_every_algorithm(
    algorithm: Any, policy: Any, action: str, observation: str, more: dict[str, Any], tmp_path: Path
) -> None:
    if algorithm is SAC:
        more = more | {"replay_buffer_kwargs": {"learn_from": "both", "intervention_penalty": 0.5}}
    model = make_model(novel(action, observation), algorithm, policy, **more)
    callbacks = [MetricsCallback(), RNDCallback(**NOVEL), ViabilityCallback(**CRITIC, device="cuda")]
    arguments = {"use_masking": False} if algorithm is MaskablePPO else {}
    model.learn(256, callback=callbacks, **arguments)
    assert model.device.type == "cuda" and places(model.policy.parameters()) == {"cuda"}
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    model.save(tmp_path / "model.zip")
    again = algorithm.load(tmp_path / "model.zip", env=novel(action, observation), device="cpu")
    rows = model.get_env().reset()
    there, here = (agent.predict(rows, deterministic=True)[0] for agent in (model, again))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def test_masks_reach_a_policy_on_the_gpu() -> None:
    model = make_model(make_vec_env("OneAllowed-v0", n_envs=2), MaskablePPO)
    model.learn(128)
    assert places(model.policy.parameters()) == {"cuda"}


EQUIVARIANT: list[tuple[str, Any, Any]] = [
    ("GridLifeFlat-v0", EquivariantPolicy, PPO),
    ("GridLifeScent-v0", EquivariantMultiInputPolicy, PPO),
    ("GridLifeScent-v0", EquivariantMaskableMultiInputPolicy, MaskablePPO),
    ("GridLifeContinuousScent-v0", EquivariantMultiInputPolicy, PPO),
    ("GridLifeContinuousScent-v0", EquivariantSACMultiInputPolicy, SAC),
]


def equivariant(env_id: str, policy: Any, algorithm: Any, device: str) -> Any:
    kwargs = {"symmetries": env_id, "net_arch": [16, 24]}
    return make_model(make_vec_env(env_id, n_envs=2, seed=0), algorithm, policy, device, policy_kwargs=kwargs)


def outputs(model: Any, seen: Any) -> list[torch.Tensor]:
    """What the policy says: logits or means and deviations, and values where they need no action."""
    seen = tree_map(lambda leaf: leaf.to(model.device), seen)
    with torch.no_grad():
        if isinstance(model, SAC):
            mean, log_std, _ = model.actor.get_action_dist_params(seen)
            return [mean, log_std]
        drawn = model.policy.get_distribution(seen).distribution
        said = [drawn.logits] if hasattr(drawn, "logits") else [drawn.mean, drawn.stddev]
        return [*said, model.policy.predict_values(seen)]


def test_a_mixture_learns() -> None:
    env_id = "GridLifeContinuousScent-v0"
    kwargs = {"symmetries": env_id, "modes": 1, "net_arch": [16, 24]}
    here, there = (
        make_model(make_vec_env(env_id, n_envs=2), SAC, EquivariantSACMultiInputPolicy, device, policy_kwargs=kwargs)
        for device in ("cpu", "cuda")
    )
    there.policy.load_state_dict(here.policy.state_dict())
    env, _ = declared(env_id)
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    for one, other in zip(outputs(there, tensors(env, flat)), outputs(here, tensors(env, flat)), strict=True):
        np.testing.assert_allclose(one.cpu(), other, rtol=1e-3, atol=1e-3)
    there.learn(120)
    assert places([*there.policy.parameters(), *there.policy.buffers()]) == {"cuda"}
    assert any(
        not torch.equal(learned.cpu(), begun)
        for learned, begun in zip(there.actor.parameters(), here.actor.parameters(), strict=True)
    )


@pytest.mark.parametrize(("env_id", "policy", "algorithm"), EQUIVARIANT)
def test_equivariant_policies(env_id: str, policy: Any, algorithm: Any) -> None:
    here, there = (equivariant(env_id, policy, algorithm, device) for device in ("cpu", "cuda"))
    env, symmetries = declared(env_id)
    with torch.no_grad():
        for parameter in here.policy.parameters():
            parameter.normal_(std=0.3)
    there.policy.load_state_dict(here.policy.state_dict())
    assert places([*there.policy.parameters(), *there.policy.buffers()]) == {"cuda"}
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    # Twice: the second time with the weights that were kept.
    for _ in range(2):
        for one, other in zip(outputs(there, tensors(env, flat)), outputs(here, tensors(env, flat)), strict=True):
            np.testing.assert_allclose(one.cpu(), other, rtol=1e-3, atol=1e-3)
    first = outputs(there, tensors(env, flat))[0].cpu()
    assert first.std() > 1e-3
    for symmetry in symmetries:
        image_of_first = outputs(there, tensors(env, image(symmetry, flat)))[0].cpu()
        if isinstance(env.action_space, spaces.Discrete):
            np.testing.assert_allclose(image_of_first[:, symmetry.action], first, rtol=1e-3, atol=1e-3)
        else:
            signs = np.ones(first.shape[1], dtype=np.float32)
            signs[np.asarray(symmetry.action_flip, dtype=int)] = -1.0
            expected = first.numpy()[:, symmetry.action] * signs
            np.testing.assert_allclose(image_of_first, expected, rtol=1e-3, atol=1e-3)
    # What has acted on the CPU can move.
    moved = copy.deepcopy(here.policy)
    with torch.no_grad():
        for place in ("cpu", "cuda", "cpu"):
            moved.to(place)
            rows = tree_map(lambda leaf, place=place: leaf.to(place), tensors(env, flat))
            assert torch.isfinite(moved._predict(rows, deterministic=True).float()).all()
    there.learn(128)
    assert all(torch.isfinite(parameter).all() for parameter in there.policy.parameters())


def test_auto_is_the_gpu() -> None:
    assert find_device("auto").type == find_device("cuda:0").type == "cuda"
    with pytest.raises(RuntimeError, match="device='cuda:99', and the last one here is 'cuda:"):
        find_device("cuda:99")
    model = make_model(TRAININGS["viability"].env())
    callbacks, (learner,) = TRAININGS["viability"].learners("auto")
    model.learn(64, callback=callbacks)
    assert next(learner.learner.parameters()).device.type == "cuda"


def test_plans_and_gradients_of_models_that_learned_on_the_gpu(tmp_path: Path) -> None:
    env = TRAININGS["dynamics"].env()
    model = make_model(env)
    callbacks: list[Any] = [
        ViabilityCallback(**CRITIC, device="cuda"),
        InternalModelCallback(**ENSEMBLE, device="cuda"),
        WorldModelCallback(**ENSEMBLE, device="cuda"),
    ]
    model.learn(768, callback=callbacks)
    critic, internal, world = callbacks
    state, action = states(world)
    model.persist.save(tmp_path / "state")
    saved = PersistState.load(tmp_path / "state").pending
    kinds: dict[str, Any] = {"viability": ViabilityCritic, "internal_model": InternalModel, "world_model": WorldModel}
    read = {name: rebuild(saved[name], world.spec, kind) for name, kind in kinds.items()}
    live = {"viability": critic.actor, "internal_model": internal.actor, "world_model": world.actor}
    slots = np.arange(len(state))
    plans = [
        Planning(horizon=3, rollouts=2).planner(world.spec, models, Streams(len(state))).plan(state, slots)
        for models in (live, read)
    ]
    np.testing.assert_array_equal(plans[0].action, plans[1].action)
    np.testing.assert_array_equal(plans[0].score, plans[1].score)
    # Three steps ahead, in torch: here, and there.
    results = []
    for pair, place in (((world.actor, internal.actor), "cpu"), ((world.learner, internal.learner), "cuda")):
        dynamics = LearnedDynamics(*pair)
        now, done = (torch.as_tensor(rows, device=place) for rows in (state, action))
        done.requires_grad_()
        for _ in range(3):
            now, var = dynamics.predict(now, done)
        (slope,) = torch.autograd.grad(now.sum(), done)
        results.append([value.detach().cpu() for value in (now, var, slope)])
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)


def test_a_latent_model_imagines_there_what_it_imagines_here() -> None:
    _, (callback,) = trained("latent")
    state, action = states(callback)
    results = []
    for model, place in ((callback.actor, "cpu"), (callback.learner, "cuda")):
        now, done = (torch.as_tensor(rows, device=place) for rows in (state, action))
        belief = callback.actor.initial(state)
        with torch.no_grad():
            for told in (belief, None, None):
                now = model.predict(now, done, told)[0][0]
        results.append(now.cpu())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["viability", "rnd", "latent", "safety", "likelihood"])
def test_a_learner_that_comes_back_is_fast_again(name: str) -> None:
    _, learners = trained(name)
    for learner in learners:
        back: Any = copy.deepcopy(learner.learner).cpu()
        there = COMPUTED["latent" if name == "latent" else learner.name]
        returned = copy.copy(learner)
        returned.actor = back
        with torch.no_grad():
            for one, other in zip(*there(returned), strict=True):
                np.testing.assert_allclose(one.cpu(), np.asarray(other), rtol=1e-4, atol=1e-4)


def layered() -> gym.Env[Any, Any]:
    return RNDBonus(InternalState(Walker("box"), **LIMITS), weight=0.5)


def test_workers_see_what_is_learned_on_the_gpu() -> None:
    torch.zeros(1, device="cuda")
    env = SubprocVecEnv([layered] * 2)
    try:
        model = make_model(env)
        callback = RNDCallback(**NOVEL)
        bonuses: list[float] = []

        class Look(BaseCallback):
            def _on_step(self) -> bool:
                bonuses.extend(info["reward_terms"]["intrinsic"] for info in self.locals["infos"])
                return True

        model.learn(256, callback=[callback, Look()])
        assert callback.updates > 4 and max(bonuses) > 0.0
    finally:
        env.close()


def test_demonstrations_are_cloned_on_the_gpu() -> None:
    def make() -> VecEnv:
        return VecInternalState(DummyVecEnv([partial(Walker, "box", "discrete", 12)] * 2), **LIMITS)

    shown = record(LateWorker(), make(), 6, seed=0)
    model = make_model(make())
    rows, actions = (
        torch.as_tensor(part, device="cuda") for part in (shown.transitions.observation, shown.transitions.action)
    )

    def likelihood() -> float:
        with torch.no_grad():
            return float(model.policy.evaluate_actions(rows, actions)[1].mean())

    before = likelihood()
    model.learn(64, callback=BehaviourCloningCallback(shown, gradient_steps=200))
    assert likelihood() > before + 0.1


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_demonstrations_are_cloned_off_policy(algorithm: Any) -> None:
    shown = record(Steady(), make_box(), 6, seed=0)
    model = make_model(make_box(), algorithm, policy_kwargs={"net_arch": [32, 32]})
    seen, wanted = shown.transitions.observation, shown.transitions.executed_action
    before = np.abs(model.predict(seen, deterministic=True)[0] - wanted).max()
    callback = BehaviourCloningCallback(shown, value_steps=32, gradient_steps=1000, weight=10.0)
    model.learn(128, callback=callback)
    assert np.abs(model.predict(seen, deterministic=True)[0] - wanted).max() < 0.1 < before
    assert model._n_updates > 0 and all(parameter.requires_grad for parameter in model.actor.parameters())


def test_the_command_trains_resumes_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    small = ["--eval-freq", "-1", "--device", "cuda", "--seed", "1"]
    more = ["-params", "n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:1"]
    train(["--algo", "ppo", "--env", "GridLifeScent-v0", "-n", "256", *small, *more])
    folder = tmp_path / "logs" / "ppo" / "GridLifeScent-v0_1"
    assert next(PPO.load(folder / "GridLifeScent-v0.zip", device="auto").policy.parameters()).device.type == "cuda"
    train(["-n", "256", "-i", str(folder / "GridLifeScent-v0.zip"), *small, *more])
    run = Run(tmp_path / "logs" / "ppo" / "GridLifeScent-v0_2")
    venv = run.make_env(2)
    agent: BaseAlgorithm = run.load_model(venv, 0)
    assert len(evaluate(agent, venv, episodes=2)) == 2
