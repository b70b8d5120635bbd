"""SAC's critics that widen what actions are worth less than the actor's, against the closed form and step by step."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC

from persist_sb3.equivariant import EquivariantSACPolicy
from tests.test_equivariant import SMALL
from tests.test_equivariant_modes import MIRROR, Fork, pendulum


class Slope(Fork):
    """A single step, which pays less the further from 0.3 the action is."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), pay(float(action[0])), True, False, {}


def pay(action: Any) -> Any:
    return -0.5 * (action - 0.3) ** 2


@pytest.mark.parametrize("limit", [math.inf, 0.3])
def test_differences_are_so_many_times_as_large(limit: float) -> None:
    """``Q = r - alpha min(V - Q, limit)``, solved for ``V - Q`` with ``V = r(mu)``."""
    kwargs = {"symmetries": [], "action_gap": 4.0, "gap_limit": limit, "net_arch": [64, 64]}
    model: Any = SAC(
        EquivariantSACPolicy,
        Slope(),
        learning_rate=3e-3,
        learning_starts=400,
        tau=0.05,
        ent_coef=0.002,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
    )
    model.learn(400)
    model.train(1000, batch_size=128)
    model.policy.set_training_mode(False)
    actions = torch.linspace(-0.9, 0.9, 19)[:, None]
    seen = torch.zeros(19, 1)
    with torch.no_grad():
        learned = torch.cat(model.critic(seen, actions), dim=1).mean(dim=1).numpy()
        best = pay(float(model.actor(seen[:1], deterministic=True)))
    assert best == pytest.approx(0.0, abs=0.005)
    short = np.clip(best - pay(actions[:, 0].numpy()), 0.0, None)
    expected = best - np.where(4.0 * short <= limit, 4.0 * short, short + 0.75 * limit)
    np.testing.assert_allclose(learned, expected, atol=0.08)


@pytest.mark.parametrize("modes", [0, 2])
def test_it_is_as_if_so_much_less_had_been_paid(modes: int) -> None:
    """One gradient step each: with the gap, and without it from rewards that were lowered by hand."""
    kwargs = {"symmetries": [MIRROR], "modes": modes, **SMALL}
    twins: list[Any] = [
        SAC(EquivariantSACPolicy, "Pendulum-v1", learning_starts=80, policy_kwargs=each, seed=0, device="cpu")
        for each in ({**kwargs, "action_gap": 5.0, "gap_limit": 0.02}, kwargs)
    ]
    for twin in twins:
        twin.learn(80)
    plain = twins[1]
    draw = plain.replay_buffer.sample

    def lowered(batch_size: int, env: Any = None) -> Any:
        batch = draw(batch_size, env=env)
        with torch.no_grad():
            better = plain.actor(batch.observations, deterministic=True)
            value = torch.cat(plain.critic_target(batch.observations, better), dim=1).amin(dim=1)
            done = torch.cat(plain.critic_target(batch.observations, batch.actions), dim=1).amin(dim=1)
        short = (value - done).clamp(0.0, 0.02)
        assert 0.0 < float((short > 0.0).float().mean()) < 1.0
        return batch._replace(rewards=batch.rewards - 0.8 * short[:, None])

    plain.replay_buffer.sample = lowered
    for twin in twins:
        # The same batch, and the same samples.
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        twin.train(1, batch_size=64)
    for part in ("actor", "critic"):
        found, expected = (getattr(twin, part).state_dict() for twin in twins)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)


def test_values_are_themselves_where_nothing_is_learned() -> None:
    model: Any = pendulum(modes=0)
    kwargs = {"symmetries": [MIRROR], "modes": 0, "action_gap": 5.0, **SMALL}
    gapped: Any = SAC(EquivariantSACPolicy, "Pendulum-v1", policy_kwargs=kwargs, seed=0, device="cpu")
    gapped.policy.load_state_dict(model.policy.state_dict())
    generator = np.random.default_rng(0)
    seen = torch.as_tensor(generator.normal(size=(9, 3)).astype(np.float32))
    action = torch.as_tensor(generator.uniform(-1.0, 1.0, (9, 1)).astype(np.float32))
    gapped.policy.set_training_mode(False)
    expected = model.critic(seen, action)
    torch.testing.assert_close(gapped.critic(seen, action), expected)
    gapped.policy.set_training_mode(True)
    assert any((found > value).any() for found, value in zip(gapped.critic(seen, action), expected, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(gapped.critic(seen, action), expected)
    # As the actor asks.
    torch.testing.assert_close(gapped.critic(seen, action.requires_grad_()), expected)


def test_it_is_saved(tmp_path: Path) -> None:
    kwargs = {"symmetries": [MIRROR], "action_gap": 5.0, "gap_limit": 2.0, **SMALL}
    model = SAC(EquivariantSACPolicy, "Pendulum-v1", policy_kwargs=kwargs, seed=0, device="cpu")
    model.save(tmp_path / "agent.zip")
    gap: Any = SAC.load(tmp_path / "agent.zip").policy.gap
    assert (gap.factor, gap.limit) == (5.0, 2.0)


@pytest.mark.parametrize(
    ("name", "value"), [("action_gap", 0.5), ("action_gap", math.inf), ("gap_limit", 0.0), ("gap_limit", math.nan)]
)
def test_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        SAC(EquivariantSACPolicy, "Pendulum-v1", policy_kwargs={"symmetries": [MIRROR], name: value, **SMALL})
