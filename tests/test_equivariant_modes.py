"""SAC's policies that see several good actions at once, against quadrature, counting and one value after the other."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from persist_sb3.equivariant import EquivariantSACMultiInputPolicy, EquivariantSACPolicy
from persist_sb3.equivariant.modes import SquashedMixture
from persist_sb3.pupils import SquashedPupil
from persist_sb3.symmetry import Symmetry
from tests.test_equivariant import SMALL, declared, image, tensors

MIRROR = Symmetry(flip=[1, 2], action_flip=[0])
LINE = torch.linspace(-0.9995, 0.9995, 1000)


def mixture(n: int = 3, k: int = 4, size: int = 1) -> SquashedMixture:
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(2, n, k, size, generator=generator)
    logits = torch.randn(n, k, generator=generator)
    return SquashedMixture().proba_distribution(mean, 0.3 * log_std - 1.0, logits)


def pendulum(modes: int = 2, **kwargs: Any) -> SAC:
    return SAC(
        EquivariantSACPolicy,
        "Pendulum-v1",
        learning_starts=20,
        policy_kwargs={"symmetries": [MIRROR], "modes": modes, **SMALL},
        seed=0,
        device="cpu",
        **kwargs,
    )


class Fork(gym.Env[Any, Any]):
    """Pays for going left or right by half, and its image is itself."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), float(abs(abs(action[0]) - 0.5) < 0.15), True, False, {}


def test_a_density() -> None:
    found = mixture()
    density = torch.stack([found.log_prob(each.expand(3, 1)).exp() for each in LINE])
    np.testing.assert_allclose(torch.trapezoid(density, LINE, dim=0), 1.0, atol=5e-3)


def test_samples_are_as_frequent_as_the_density_says() -> None:
    torch.manual_seed(1)
    found = mixture(n=1)
    many = SquashedMixture().proba_distribution(
        found.mean.expand(20_000, -1, -1), found.log_std.expand(20_000, -1, -1), found.log_weight.expand(20_000, -1)
    )
    density = torch.stack([found.log_prob(each.expand(1, 1)).exp() for each in LINE])[:, 0]
    edges = torch.linspace(-0.9, 0.9, 10)
    counted = torch.histogram(many.sample()[:, 0], edges).hist / 20_000
    for low, high, share in zip(edges, edges[1:], counted, strict=False):
        inside = (low <= LINE) & (high >= LINE)
        assert float(share) == pytest.approx(float(torch.trapezoid(density[inside], LINE[inside])), abs=0.015)


def test_one_mode_is_the_gaussian_of_sb3() -> None:
    mean, log_std = torch.randn(2, 6, 3)
    theirs = SquashedDiagGaussianDistribution(3).proba_distribution(mean, log_std)
    ours = SquashedMixture().proba_distribution(mean[:, None], log_std[:, None], torch.zeros(6, 1))
    action = torch.tanh(torch.randn(6, 3))
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mode(), theirs.mode())


@pytest.mark.parametrize("modes", [1, 3])
def test_what_is_likely_in_an_image(modes: int) -> None:
    env, symmetries = declared("GridLifeContinuousScent-v0")
    kwargs = {"symmetries": "GridLifeContinuousScent-v0", "modes": modes, **SMALL}
    model = SAC(EquivariantSACMultiInputPolicy, env, buffer_size=100, policy_kwargs=kwargs, seed=0, device="cpu")
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    action = generator.uniform(-1.0, 1.0, size=(5, 2)).astype(np.float32)

    def density(flat: Any, action: Any) -> Any:
        mean, log_std, more = model.actor.get_action_dist_params(tensors(env, flat))
        assert mean.shape == (5, modes * (1 + len(symmetries)), 2)
        return model.actor.action_dist.proba_distribution(mean, log_std, **more).log_prob(torch.as_tensor(action))

    with torch.no_grad():
        for parameter in model.actor.parameters():
            parameter.normal_(std=0.3)
        expected = density(flat, action)
        assert expected.std() > 0.1
        for symmetry in symmetries:
            signs = np.ones(2, dtype=np.float32)
            signs[np.asarray(symmetry.action_flip, dtype=int)] = -1.0
            found = density(image(symmetry, flat), action[:, symmetry.action] * signs)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_actor_climbs_what_all_of_its_modes_are_worth() -> None:
    model = pendulum()
    seen = torch.randn(6, 3)
    torch.manual_seed(3)
    choices, log_prob = model.actor.action_log_prob(seen)
    values = model.critic(seen, choices)
    parts = choices.view(6, 4, 2)
    with torch.no_grad():
        one_by_one = torch.stack([torch.cat(model.critic(seen, parts[:, i, :1]), dim=1).amin(dim=1) for i in range(4)])
    expected = (parts[..., 1] * one_by_one.T).sum(dim=1)
    for value in values:
        torch.testing.assert_close(value[:, 0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[..., 1].sum(dim=1), torch.ones(6))

    mean, log_std, more = model.actor.get_action_dist_params(seen)
    dist = model.actor.action_dist.proba_distribution(mean, log_std, **more)
    logs = torch.stack([dist.log_prob(parts[:, i, :1]) for i in range(4)], dim=1)
    torch.testing.assert_close(log_prob, (parts[..., 1] * logs).sum(dim=1), rtol=1e-3, atol=1e-3)

    values[0].sum().backward()
    assert all(weight.grad is None for weight in model.critic.parameters())
    assert all(weight.requires_grad for weight in model.critic.parameters())
    actor: Any = model.actor
    assert actor.logits.weight.grad.abs().max() > 0.0


def test_left_or_right() -> None:
    """A Gaussian that knows the symmetry can mean nothing but the middle: at best, 0.35 of its samples are paid."""
    fork = Symmetry(flip=[0], action_flip=[0])
    paid = {}
    for modes in (0, 1):
        kwargs = {"symmetries": [fork], "modes": modes, "net_arch": [32, 32]}
        model = SAC(
            EquivariantSACPolicy,
            Fork(),
            policy_kwargs=kwargs,
            learning_rate=3e-3,
            learning_starts=200,
            ent_coef=0.05,
            batch_size=64,
            seed=0,
            device="cpu",
        )
        model.learn(1500)
        actions, _ = model.predict(np.zeros((1000, 1), np.float32))
        paid[modes] = float((np.abs(np.abs(actions) - 0.5) < 0.15).mean())
        assert 0.4 < float((actions > 0).mean()) < 0.6
    assert paid[0] <= 0.4
    assert paid[1] >= 0.75


def test_it_is_shown_to_go_left_or_right() -> None:
    model = pendulum(modes=1)
    generator = np.random.default_rng(0)
    # As random as points with a deviation of 0.05.
    pupil = SquashedPupil(model.policy, target_entropy=np.log(2.0 * 0.05 * np.sqrt(2.0 * np.pi * np.e)))
    optimizer = torch.optim.Adam(pupil.groups(1e-3))
    for _ in range(600):
        seen = torch.as_tensor(generator.normal(size=(64, 3)), dtype=torch.float32) * torch.tensor([1.0, 0.0, 0.0])
        shown = generator.choice([-0.5, 0.5], (64, 1)) + generator.normal(0.0, 0.05, (64, 1))
        loss, _ = pupil.loss(seen, torch.as_tensor(shown, dtype=torch.float32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    actions, _ = model.predict(generator.normal(size=(500, 3)) * [1.0, 0.0, 0.0])
    # A pendulum's limits are -2 and 2.
    assert (np.abs(np.abs(actions) / 2.0 - 0.5) < 0.2).mean() > 0.8
    assert 0.4 < (actions > 0).mean() < 0.6


def test_critics_learn_while_the_actor_is_held() -> None:
    model = pendulum()
    for parameter in model.actor.parameters():
        parameter.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.critic.parameters()]
    model.learn(40)
    assert all(not torch.equal(old, new) for old, new in zip(before, model.critic.parameters(), strict=True))


def test_without_symmetries_it_is_a_plain_mixture() -> None:
    kwargs = {"symmetries": [], "modes": 4, **SMALL}
    model = SAC(EquivariantSACPolicy, "Pendulum-v1", learning_starts=20, policy_kwargs=kwargs, seed=0, device="cpu")
    mean, _, _ = model.learn(40).actor.get_action_dist_params(torch.zeros(1, 3))
    assert mean.shape == (1, 4, 1)
    assert len(np.unique(mean.detach())) == 4


def test_it_learns_and_is_saved(tmp_path: Path) -> None:
    model = pendulum()
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(60)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "agent.zip")
    loaded = SAC.load(tmp_path / "agent.zip")
    seen = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    action, _ = model.predict(seen, deterministic=True)
    np.testing.assert_allclose(loaded.predict(seen, deterministic=True)[0], action)
    np.testing.assert_allclose(loaded.predict(seen * [1.0, -1.0, -1.0], deterministic=True)[0], -action, atol=1e-5)


def test_bad_modes() -> None:
    with pytest.raises(ValueError, match="modes=-1 must be at least 0"):
        pendulum(modes=-1)
    with pytest.raises(ValueError, match="use_sde"):
        pendulum(modes=1, use_sde=True)
