"""Where models are trained: what is refused, and that nothing but the time depends on it. On a GPU: test_cuda.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from torch import nn

from persist_sb3.callbacks import ViabilityCallback, learning
from persist_sb3.callbacks.learning import LearningCallback, seeded
from persist_sb3.devices import find_device
from persist_sb3.equivariant import EquivariantSACPolicy
from persist_sb3.intrinsic.empowerment import Empowerment
from persist_sb3.intrinsic.rnd import RND
from persist_sb3.models.base import Model
from persist_sb3.models.belief import GRUBelief
from persist_sb3.models.equivariant import ChoiceHead, Group, GroupConvolution, Lifting
from persist_sb3.models.imagination import LearnedDynamics
from persist_sb3.models.latent import LatentModel
from persist_sb3.models.networks import Standardizer
from persist_sb3.models.objectives import make_objective
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.models.world import WorldModel
from persist_sb3.symmetry import Symmetry
from persist_sb3.viability import ViabilitySet
from tests.toys import ACTIONS, OBSERVATIONS
from tests.trainings import LIMITS, TRAININGS, Training


def make_model(training: Training, observation: str = "box", **more: Any) -> PPO:
    env = training.env(observation)
    policy = "MultiInputPolicy" if observation == "dict" else "MlpPolicy"
    kwargs: dict[str, Any] = {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    return PPO(policy, env, seed=0, device="cpu", **kwargs | more)


def every_callback(device: str) -> list[LearningCallback]:
    return [learner for training in TRAININGS.values() for learner in training.learners(device)[1]]


@pytest.mark.parametrize("device", ["gpu", "cuda:one", "", "meta", 0.5])
def test_what_is_no_device_is_refused_at_once(device: Any) -> None:
    with pytest.raises(ValueError, match=rf"device='?{device}'? must be 'cpu', 'cuda'"):
        ViabilityCallback(device=device)


def test_every_callback_takes_a_device() -> None:
    for device in ("cpu", "cuda", "cuda:1", "auto"):
        assert {callback.device for callback in every_callback(device)} == {device}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_gpu_that_is_not_there_is_refused_when_training_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    callbacks, learners = TRAININGS[name].learners("cuda")
    model = make_model(TRAININGS[name])
    refused = "|".join(type(learner).__name__ for learner in learners)
    with pytest.raises(RuntimeError, match=rf"({refused}): device='cuda', and there is no CUDA here.* or 'auto'"):
        model.learn(64, callback=callbacks)


def test_devices_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(RuntimeError, match=r"device='cuda:2', and the last one here is 'cuda:1'"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_learner_that_is_a_copy_learns_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> tuple[list[LearningCallback], list[torch.Tensor]]:
        torch.manual_seed(7)
        model = make_model(TRAININGS[name])
        callbacks, learners = TRAININGS[name].learners("cpu")
        model.learn(192, callback=callbacks)
        states = [tensor for learner in learners for tensor in [*learner.actor.parameters(), *learner.actor.buffers()]]
        return learners, [*states, *model.policy.parameters(), torch.get_rng_state()]

    together, expected = train()
    assert all(learner.updates > 4 and learner.learner is learner.actor for learner in together)
    # The same place by another name.
    monkeypatch.setattr(learning, "find_device", lambda device: torch.device(device, 0))
    apart, found = train()
    assert all(learner.learner is not learner.actor for learner in apart)
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_initial_weights_touch_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*args: Any) -> None:
        raise AssertionError("CUDA was started")

    for name in ("get_rng_state", "manual_seed", "manual_seed_all", "_lazy_init", "_lazy_call"):
        monkeypatch.setattr(torch.cuda, name, touched)
    before = torch.get_rng_state()
    with seeded(3):
        first = nn.Linear(2, 2).weight
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3):
        assert torch.equal(nn.Linear(2, 2).weight, first)


# PyTorch's device "meta" has shapes and no numbers, and, as a GPU does, refuses what lies elsewhere.

SPECS = {
    kind: StateSpec(OBSERVATIONS[observation], ACTIONS[action], ViabilitySet(LIMITS["constraints"], LIMITS["dims"]))
    for kind, observation, action in (("counted", "dict", "multidiscrete"), ("box", "box", "box"))
}


def elsewhere(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device="meta")


def moved(model: nn.Module) -> Any:
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(parameter.to("meta"))
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to("meta")
    return model


def gaussian(spec: StateSpec) -> list[torch.Tensor]:
    model = moved(WorldModel(spec, (8,), 2))
    state, action = elsewhere(4, spec.state_dim), elsewhere(4, spec.action_dim)
    model.loss(state, action, elsewhere(4, spec.observation_dim), elsewhere(2, 4), 0.5).backward()
    shown = [[0, 0], [1, 1]]
    dynamics = LearnedDynamics(moved(WorldModel(spec, (8,), 2, shown)))
    return [*model.predict(state, action), *dynamics.predict(state, action)]


def latent(spec: StateSpec) -> list[torch.Tensor]:
    model = moved(LatentModel(spec, 8, 8, 2, 2))
    flags = elsewhere(4, 5, dtype=torch.bool), elsewhere(4, 5, dtype=torch.bool)
    states, actions = elsewhere(4, 6, spec.state_dim), elsewhere(4, 5, spec.action_dim)
    losses = model.loss(states, actions, *flags, elsewhere(4, 6, 2, 2), 0.5)
    losses.total.backward()
    return [*losses, *model.predict(states[:, 0], actions[:, 0])]


def critic(spec: StateSpec) -> list[torch.Tensor]:
    model = moved(ViabilityCritic(spec, (8,)))
    state = elsewhere(4, spec.state_dim)
    action = model.safe_action(state) if spec.continuous else None
    values = model(state, action)[:, :, 0]
    if action is not None:
        pieces = moved(ViabilityCritic(spec, (8,), pieces=3))
        values = values + pieces(state, action)[:, :, 0] + pieces(state)[:, :, 0]
    losses = [
        make_objective(name, None)(values, elsewhere(4, 2), elsewhere(4, 2), elsewhere(4, 1, dtype=torch.bool), 0.9)
        for name in ("reachability", "classifier")
    ]
    (losses[0] + losses[1]).backward()
    return losses


def safety(spec: StateSpec) -> list[torch.Tensor]:
    network = moved(SafetyNetwork(spec, (8,), valued=True))
    return [network(elsewhere(4, len(network.standardizer.mean)))]


def belief(spec: StateSpec) -> list[torch.Tensor]:
    model = moved(GRUBelief(spec, ["battery"], 8, (8,)))
    model.measure(elsewhere(4, spec.observation_dim), elsewhere(4, 1))
    seen, done = elsewhere(2, 5, spec.observation_dim), elsewhere(2, 5, spec.action_dim)
    loss = model.loss(seen, done, elsewhere(2, 8), elsewhere(2, 5, 1), elsewhere(2, 5), 0.5)
    loss.backward()
    return [loss]


def novelty(spec: StateSpec) -> list[torch.Tensor]:
    model = moved(RND(spec, (8,), 8))
    model.standardizer.update(elsewhere(4, spec.observation_dim))
    return [model(elsewhere(4, spec.observation_dim))]


def empowerment(spec: StateSpec) -> list[torch.Tensor]:
    model = moved(Empowerment(spec, "infonce", 1, 6))
    state, outcome = elsewhere(4, spec.state_dim), elsewhere(4, len(model.columns))
    model.critic.measure(state, outcome)
    sequences = elsewhere(4, 1, spec.action_dim), elsewhere(5, 1, spec.action_dim)
    return [model(state), model.critic.information(state, sequences[0], outcome, sequences[1])]


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("compute", [gaussian, latent, critic, safety, belief, novelty, empowerment])
def test_models_compute_where_they_are(kind: str, compute: Callable[[StateSpec], list[torch.Tensor]]) -> None:
    assert {tensor.device.type for tensor in compute(SPECS[kind])} == {"meta"}


def test_equivariant_layers_compute_where_they_are() -> None:
    group = Group([Symmetry(flip=[0, 1], action=[1, 0])], size=2, choices=2, counted=True)
    network = nn.Sequential(Lifting(group, 2), GroupConvolution(group, 2, 3), ChoiceHead(group, 3, gain=1.0))
    out = moved(network)(elsewhere(4, 2))
    out.sum().backward()
    assert out.device.type == "meta"
    # A change of type is a move, too, and can be computed with.
    network = nn.Sequential(Lifting(group, 2), ChoiceHead(group, 2, gain=1.0))
    x = torch.randn(4, 2)
    with torch.no_grad():
        before = network(x)
        after = network.double()(x.double())
    torch.testing.assert_close(after, before.double())


def test_a_mixture_computes_where_it_is() -> None:
    kwargs = {"symmetries": [Symmetry(flip=[1, 2], action_flip=[0])], "modes": 2, "net_arch": [8]}
    model = SAC(EquivariantSACPolicy, "Pendulum-v1", buffer_size=10, policy_kwargs=kwargs, device="cpu")
    seen = elsewhere(5, 3)
    actor, critic = moved(model.actor), moved(model.critic)
    choices, log_prob = actor.action_log_prob(seen)
    values = torch.cat(critic(seen, choices), dim=1)
    (values.sum() - log_prob.sum()).backward()
    mean, log_std, more = actor.get_action_dist_params(seen)
    mixture = actor.action_dist.proba_distribution(mean, log_std, **more)
    likely = mixture.log_prob(elsewhere(5, 1))
    with torch.no_grad():
        drawn = [mixture.mode(), *mixture.log_prob_from_params(mean, log_std, **more)]
    assert {tensor.device.type for tensor in (choices, log_prob, values, likely, *drawn)} == {"meta"}


def test_views_of_moments_outlive_a_move() -> None:
    standardizer = Standardizer(3)
    fast, x = standardizer.numpy(), np.ones((2, 3), dtype=np.float32)
    for _ in range(2):
        standardizer.double().float()
        standardizer.update(torch.randn(50, 3) * 2.0 + 4.0)
        np.testing.assert_allclose(fast(x), standardizer(torch.as_tensor(x)), rtol=1e-5)


def test_a_latent_model_infers_in_torch_what_it_infers_in_numpy() -> None:
    spec = SPECS["box"]
    model: Model = LatentModel(spec, 8, 8, 2, 4)
    assert isinstance(model, LatentModel)
    rng = np.random.default_rng(0)
    state = rng.normal(size=(6, spec.state_dim)).astype(np.float32)
    action = rng.uniform(-1.0, 1.0, (6, spec.action_dim)).astype(np.float32)
    tensors = torch.as_tensor(state), torch.as_tensor(action)
    for told, expected in zip(model.predict(*tensors), model.predict(*tensors, model.initial(state)), strict=True):
        torch.testing.assert_close(told, expected)
