"""Policies that commute with their environment's symmetries."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ContinuousCritic

import persist_sb3  # noqa: F401  registers GridLife
from persist_sb3.equivariant import (
    EquivariantMaskableMultiInputPolicy,
    EquivariantMultiInputPolicy,
    EquivariantPolicy,
    EquivariantSACMultiInputPolicy,
    EquivariantSACPolicy,
)
from persist_sb3.models.equivariant import ChoiceHead, Group, GroupConvolution, Lifting, _Spread
from persist_sb3.symmetry import Symmetry
from persist_sb3.wrappers import BeliefState, InternalState, RandomSetpoint

MIRROR = Symmetry(flip=[0, 1, 2, 3], action=[1, 0])
SMALL: dict[str, Any] = {"net_arch": [16, 24]}


def cart(**kwargs: Any) -> PPO:
    return PPO(EquivariantPolicy, "CartPole-v1", policy_kwargs={"symmetries": [MIRROR], **SMALL, **kwargs}, seed=0)


def declared(env_id: str) -> tuple[gym.Env[Any, Any], list[Symmetry]]:
    env = gym.make(env_id)
    return env, env.get_wrapper_attr("symmetries")


def image(symmetry: Symmetry, flat: NDArray[np.float32]) -> NDArray[np.float32]:
    turned = flat if symmetry.columns is None else flat[:, symmetry.columns]
    signs = np.ones(flat.shape[1], dtype=np.float32)
    signs[np.asarray(symmetry.flip, dtype=int)] = -1.0
    return turned * signs


def tensors(env: gym.Env[Any, Any], flat: NDArray[np.float32]) -> Any:
    space = env.observation_space
    if not isinstance(space, spaces.Dict):
        return torch.as_tensor(flat)
    rows: list[Any] = [spaces.unflatten(space, row) for row in flat]
    return {key: torch.as_tensor(np.stack([row[key] for row in rows])) for key in space}


@pytest.mark.parametrize(
    ("env_id", "policy", "algorithm"),
    [
        ("GridLife-v0", EquivariantMultiInputPolicy, PPO),
        ("GridLifeScent-v0", EquivariantMultiInputPolicy, A2C),
        ("GridLifeScent-v0", EquivariantMaskableMultiInputPolicy, MaskablePPO),
        ("GridLifeFlat-v0", EquivariantPolicy, PPO),
    ],
)
def test_logits_and_values_of_an_image(env_id: str, policy: Any, algorithm: Any) -> None:
    env, symmetries = declared(env_id)
    model = algorithm(policy, env, policy_kwargs={"symmetries": env_id, **SMALL}, seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_()
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    seen = tensors(env, flat)
    logits = model.policy.get_distribution(seen).distribution.logits.detach()
    assert logits.std() > 0.1
    for symmetry in symmetries:
        other = tensors(env, image(symmetry, flat))
        there = model.policy.get_distribution(other).distribution.logits.detach()
        np.testing.assert_allclose(there[:, symmetry.action], logits, rtol=1e-3, atol=1e-3)
        values = model.policy.predict_values(other).detach()
        np.testing.assert_allclose(values, model.policy.predict_values(seen).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("key", ["belief", "setpoint"])
def test_what_a_layer_tells_of_internal_variables_stays_as_it_is(key: str) -> None:
    env, symmetries = declared("GridLifeHidden-v0")
    inner = InternalState(env)
    told: Any = BeliefState(inner) if key == "belief" else RandomSetpoint(inner, ranges={"temp": (0.4, 0.6)})
    model: Any = PPO(EquivariantMultiInputPolicy, told, policy_kwargs={"symmetries": "GridLife-v0", **SMALL}, seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_()
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    more = torch.randn(5, *told.observation_space[key].shape, generator=torch.Generator().manual_seed(0))
    seen = {**tensors(env, flat), key: more}
    logits = model.policy.get_distribution(seen).distribution.logits.detach()
    changed = model.policy.get_distribution({**seen, key: -more}).distribution.logits.detach()
    assert (changed - logits).abs().max() > 0.1
    for symmetry in symmetries:
        other = {**tensors(env, image(symmetry, flat)), key: more}
        there = model.policy.get_distribution(other).distribution.logits.detach()
        np.testing.assert_allclose(there[:, symmetry.action], logits, rtol=1e-3, atol=1e-3)


def test_nobody_knows_what_a_symmetry_makes_of_other_entries() -> None:
    env = gym.make("GridLife-v0")
    longer = spaces.Dict({**env.observation_space.spaces, "clock": spaces.Box(0.0, 1.0, (1,))})  # type: ignore[attr-defined]
    clock: Any = TransformObservation(env, lambda observation: {**observation, "clock": np.zeros(1)}, longer)
    with pytest.raises(ValueError, match="a layer that adds to observations asks for a list of its own"):
        PPO(EquivariantMultiInputPolicy, clock, policy_kwargs={"symmetries": "GridLife-v0", **SMALL})


def test_box_actions_of_an_image() -> None:
    env, symmetries = declared("GridLifeContinuousScent-v0")
    kwargs = {"symmetries": "GridLifeContinuousScent-v0", **SMALL}
    model = PPO(EquivariantMultiInputPolicy, env, policy_kwargs=kwargs, seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_()
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    drawn: Any = model.policy.get_distribution(tensors(env, flat)).distribution
    for symmetry in symmetries:
        there: Any = model.policy.get_distribution(tensors(env, image(symmetry, flat))).distribution
        signs = np.ones(2)
        signs[np.asarray(symmetry.action_flip, dtype=int)] = -1.0
        expected = drawn.mean.detach().numpy()[:, symmetry.action] * signs
        np.testing.assert_allclose(there.mean.detach(), expected, rtol=1e-3, atol=1e-3)
        # Quarter turns exchange the two axes, which so have one deviation.
        np.testing.assert_allclose(there.stddev.detach(), drawn.stddev.detach())
    assert float(drawn.stddev[0, 0].detach()) == pytest.approx(float(drawn.stddev[0, 1].detach()))


def test_what_sac_does_and_values_in_an_image() -> None:
    env, symmetries = declared("GridLifeContinuousScent-v0")
    model = SAC(
        EquivariantSACMultiInputPolicy,
        env,
        buffer_size=100,
        policy_kwargs={"symmetries": "GridLifeContinuousScent-v0", **SMALL},
        seed=0,
    )
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    action = np.random.default_rng(1).uniform(-1.0, 1.0, size=(5, 2)).astype(np.float32)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(std=0.3)
        mean, log_std, _ = model.actor.get_action_dist_params(tensors(env, flat))
        values = model.critic(tensors(env, flat), torch.as_tensor(action))
        assert mean.std() > 0.1 and values[0].std() > 0.1
        for symmetry in symmetries:
            other = tensors(env, image(symmetry, flat))
            signs = np.ones(2, dtype=np.float32)
            signs[np.asarray(symmetry.action_flip, dtype=int)] = -1.0
            there = model.actor.get_action_dist_params(other)
            np.testing.assert_allclose(there[0], mean.numpy()[:, symmetry.action] * signs, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(there[1], log_std[:, symmetry.action], rtol=1e-3, atol=1e-3)
            for expected, value in zip(
                values, model.critic(other, torch.as_tensor(action[:, symmetry.action] * signs)), strict=True
            ):
                np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3)


def test_critics_learn_from_data_and_not_from_the_actor() -> None:
    mirror = Symmetry(flip=[1, 2], action_flip=[0])
    model = SAC(EquivariantSACPolicy, "Pendulum-v1", policy_kwargs={"symmetries": [mirror], **SMALL}, seed=0)
    seen, action = torch.randn(6, 3), torch.randn(6, 1)
    weights = list(model.critic.parameters())
    weights[0].requires_grad_(False)

    climbing = action.clone().requires_grad_()
    torch.cat(model.critic(seen, climbing)).sum().backward()
    assert all(weight.grad is None for weight in weights)
    assert [weight.requires_grad for weight in weights] == [False] + [True] * (len(weights) - 1)

    other = action.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(torch.cat(ContinuousCritic.forward(model.critic, seen, other)).sum(), other)
    assert climbing.grad is not None and torch.equal(climbing.grad, slopes)
    torch.cat(model.critic(seen, action)).sum().backward()
    assert all(weight.grad is not None for weight in weights[1:])


def test_sac_learns_with_it_and_saves_it(tmp_path: Path) -> None:
    mirror = Symmetry(flip=[1, 2], action_flip=[0])
    model = SAC(
        EquivariantSACPolicy, "Pendulum-v1", learning_starts=20, policy_kwargs={"symmetries": [mirror], **SMALL}, seed=0
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(60)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "agent.zip")
    seen = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    action, _ = model.predict(seen, deterministic=True)
    loaded = SAC.load(tmp_path / "agent.zip")
    np.testing.assert_allclose(loaded.predict(seen, deterministic=True)[0], action)
    np.testing.assert_allclose(loaded.predict(seen * [1.0, -1.0, -1.0], deterministic=True)[0], -action, atol=1e-5)
    with pytest.raises(ValueError, match="use_sde"):
        SAC(EquivariantSACPolicy, "Pendulum-v1", use_sde=True, policy_kwargs={"symmetries": [mirror]})


def test_it_stays_equivariant_as_it_learns_and_in_the_zip(tmp_path: Path) -> None:
    model = PPO(EquivariantPolicy, "CartPole-v1", n_steps=64, policy_kwargs={"symmetries": [MIRROR], **SMALL}, seed=0)
    model.learn(256)
    model.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip")
    flat = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    drawn: Any = model.policy.get_distribution(torch.as_tensor(flat)).distribution
    probabilities = drawn.probs.detach()
    assert (probabilities[:, 0] - probabilities[:, 1]).abs().max() > 1e-3
    for policy in (model.policy, loaded.policy):
        there: Any = policy.get_distribution(torch.as_tensor(-flat)).distribution
        np.testing.assert_allclose(there.probs.detach()[:, [1, 0]], probabilities, atol=1e-5)


@pytest.mark.parametrize("how", ["in place", "behind the version", "fused", "loaded"])
def test_weights_that_act_are_those_that_were_learned(how: str) -> None:
    policy = cart().policy
    seen = torch.ones(1, 4)
    with torch.no_grad():
        before = policy.predict_values(seen)
    parameters = list(policy.parameters())
    if how == "fused":
        optimizer = torch.optim.Adam(parameters, lr=0.1, fused=True)
        policy.predict_values(seen).sum().backward()
        optimizer.step()
    elif how == "loaded":
        policy.load_state_dict({key: 2.0 * value for key, value in policy.state_dict().items()})
    else:
        with torch.no_grad():
            for parameter in parameters:
                # SB3's target networks follow in this way.
                (parameter if how == "in place" else parameter.data).mul_(2.0)
    with torch.no_grad():
        after = policy.predict_values(seen)
    assert not torch.equal(before, after)
    np.testing.assert_allclose(after, policy.predict_values(seen).detach(), rtol=1e-6)


def test_spread_weights_have_the_gradient_of_indexing() -> None:
    columns = torch.as_tensor(np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0]]))
    back = columns.argsort(dim=1)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda w: _Spread.apply(w, columns, back), weight)
    assert torch.equal(_Spread.apply(weight, columns, back), weight[:, columns])


def test_layers_are_the_mean_over_the_group_of_any_linear_map() -> None:
    """Reynolds' operator: averaged over the group, a linear map becomes equivariant; an equivariant one stays."""
    group = Group([MIRROR], 4, 2, counted=True)
    flips = np.stack([np.diag(group.signs[g]) @ np.eye(4)[group.columns[g]] for g in range(2)])
    swaps = np.stack([np.eye(2)[group.choice_columns[g]] for g in range(2)])
    turn = np.stack([np.kron(np.eye(3), np.eye(2)[group.products[group.inverses[g]]]) for g in range(2)])
    for layer, here, there in (
        (Lifting(group, 3), flips, turn),
        (GroupConvolution(group, 3, 3), turn, turn),
        (ChoiceHead(group, 3, gain=1.0), turn, swaps),
    ):
        weight = layer.spread()[0].detach().numpy()
        averaged = np.mean([np.linalg.inv(there[g]) @ weight @ here[g] for g in range(2)], axis=0)
        np.testing.assert_allclose(averaged, weight, atol=1e-6)


def test_group_of_gridlife_is_that_of_the_square() -> None:
    env, symmetries = declared("GridLife-v0")
    group = Group(symmetries, spaces.flatdim(env.observation_space), 5, counted=True)
    assert len(group) == 8
    # Each row and column of a group's table has each element once; the square's has five of order 2.
    assert (np.sort(group.products, axis=1) == np.arange(8)).all()
    assert (np.sort(group.products, axis=0) == np.arange(8)[:, None]).all()
    assert (np.diag(group.products) == 0).sum() == 6
    assert not np.array_equal(group.products, group.products.T)


def test_what_makes_no_group() -> None:
    quarter = Symmetry(columns=[1, 0], flip=[0], action=[0, 1])
    with pytest.raises(ValueError, match="declare their products"):
        Group([quarter], 2, 2, counted=True)
    with pytest.raises(ValueError, match="name each once"):
        Group([MIRROR, MIRROR], 4, 2, counted=True)
    with pytest.raises(ValueError, match="these actions are counted"):
        Group([Symmetry(action_flip=[0])], 4, 2, counted=True)


def test_bad_policies() -> None:
    with pytest.raises(ValueError, match=r"net_arch=\[15\].*multiple of 2"):
        cart(net_arch=[15])
    with pytest.raises(ValueError, match="at least one layer"):
        cart(net_arch=[])
    with pytest.raises(ValueError, match="declares no symmetries"):
        cart(symmetries="CartPole-v1")
    with pytest.raises(ValueError, match="adds to observations"):
        cart(symmetries="GridLife-v0")
    with pytest.raises(ValueError, match=r"GridLife-v0 shows.*GridLifeFlat-v0 shows"):
        cart(symmetries=["GridLife-v0", "GridLifeFlat-v0"])
    with pytest.raises(ValueError, match="must be an order of"):
        cart(symmetries=[Symmetry(columns=[0, 1])])
    with pytest.raises(ValueError, match="Discrete and Box"):
        PPO(
            EquivariantPolicy,
            make_vec_env(lambda: gym.wrappers.TransformAction(gym.make("CartPole-v1"), _first, spaces.MultiBinary(1))),
            policy_kwargs={"symmetries": [MIRROR]},
        )
    with pytest.raises(ValueError, match="use_sde"):
        PPO(EquivariantPolicy, "Pendulum-v1", use_sde=True, policy_kwargs={"symmetries": [Symmetry(flip=[1, 2])]})


def _first(action: NDArray[np.int8]) -> int:
    return int(action[0])


def test_a_mirrored_pendulum() -> None:
    mirror = Symmetry(flip=[1, 2], action_flip=[0])
    model = PPO(EquivariantPolicy, "Pendulum-v1", policy_kwargs={"symmetries": [mirror]}, seed=0)
    up = np.array([[1.0, 0.0, 0.0]], dtype=np.float32)
    action, _ = model.predict(up, deterministic=True)
    assert action == pytest.approx(0.0, abs=1e-7)


def test_of_several_ids_the_first_that_fits_counts() -> None:
    ids = ["GridLifeMemory-v0", "GridLife-v0"]
    for env_id in ids:
        model = PPO(EquivariantMultiInputPolicy, env_id, policy_kwargs={"symmetries": ids}, device="cpu")
        wanted = PPO(EquivariantMultiInputPolicy, env_id, policy_kwargs={"symmetries": env_id}, device="cpu", seed=0)
        assert model.policy._group.columns.shape == wanted.policy._group.columns.shape  # type: ignore[union-attr]
