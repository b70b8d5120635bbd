"""CVaR of quantiles against closed forms, and agents whose choice it changes by construction."""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC

from persist_sb3.risk import (
    RiskQRDQNMultiInputPolicy,
    RiskQRDQNPolicy,
    RiskTQCMultiInputPolicy,
    RiskTQCPolicy,
    cvar_of_quantiles,
    cvar_weights,
)
from persist_sb3.shield.criteria import cvar
from tests.learners import train_entry


def gaussian_cvar(alpha: float) -> float:
    normal = NormalDist()
    return 0.0 if alpha == 1.0 else -normal.pdf(normal.inv_cdf(alpha)) / alpha


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.5, 1.0])
def test_cvar_of_a_gaussians_quantiles(alpha: float) -> None:
    count = 4000
    quantiles = torch.tensor([NormalDist(2.0, 3.0).inv_cdf((i + 0.5) / count) for i in range(count)])
    shuffled = quantiles[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    assert float(cvar_of_quantiles(shuffled, alpha)) == pytest.approx(2.0 + 3.0 * gaussian_cvar(alpha), abs=0.01)


@pytest.mark.parametrize("alpha", [0.1, 0.33, 0.9, 1.0])
def test_a_quantile_that_is_cut_counts_in_part(alpha: float) -> None:
    values = np.random.default_rng(0).normal(size=(30, 25)).astype(np.float32)
    by_torch = cvar_of_quantiles(torch.tensor(values), alpha)
    np.testing.assert_allclose(by_torch.numpy(), cvar(values, alpha), rtol=1e-5, atol=1e-6)
    weights = cvar_weights(25, alpha)
    assert float(weights.sum()) == pytest.approx(1.0) and (weights.diff() <= 1e-9).all()
    # Less than one quantile is the least of them.
    assert float(cvar_of_quantiles(torch.tensor([3.0, 1.0, 2.0]), 0.1)) == 1.0


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.01, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="risk_alpha"):
        cvar_weights(5, alpha)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        QRDQN(RiskQRDQNPolicy, Bandit("arms"), policy_kwargs={"risk_alpha": alpha}, device="cpu")
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        TQC(RiskTQCPolicy, Bandit("stake"), policy_kwargs={"risk_alpha": alpha}, device="cpu")


class Bandit(gym.Env[Any, Any]):
    """
    One state, one step. The first of two arms pays 0.5 for sure, the second 1.5, and -2.5 in a fifth of the cases: on
    average 0.7, and -1.7 in the worst quarter. As a stake ``a`` in ``[-1, 1]`` it pays ``a``, and in a fifth of the
    cases ``a - 4 max(a, 0)``: on average the greatest stake is best, and in the worst quarter none.
    """

    def __init__(self, actions: str, kind: str = "box") -> None:
        box = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
        self.observation_space = box if kind == "box" else spaces.Dict({"it": box})
        self.action_space = spaces.Discrete(2) if actions == "arms" else box
        self.kind = kind

    def _seen(self) -> Any:
        zero = np.zeros(1, dtype=np.float32)
        return zero if self.kind == "box" else {"it": zero}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        unlucky = self.np_random.uniform() < 0.2
        if isinstance(self.action_space, spaces.Discrete):
            reward = (-2.5 if unlucky else 1.5) if action == 1 else 0.5
        else:
            stake = float(action[0])
            reward = stake - 4.0 * max(stake, 0.0) * unlucky
        return self._seen(), reward, True, False, {}


def qrdqn(alpha: float | None, kind: str = "box", steps: int = 1500) -> QRDQN:
    policy: Any = "MlpPolicy" if alpha is None else RiskQRDQNPolicy if kind == "box" else RiskQRDQNMultiInputPolicy
    risk = {} if alpha is None else {"risk_alpha": alpha}
    model = QRDQN(
        policy,
        Bandit("arms", kind),
        learning_rate=5e-3,
        learning_starts=200,
        batch_size=128,
        train_freq=4,
        target_update_interval=100,
        exploration_fraction=0.5,
        policy_kwargs={"net_arch": [16], "n_quantiles": 20, **risk},
        seed=0,
        device="cpu",
    )
    return model.learn(steps)


@pytest.mark.parametrize(("alpha", "arm"), [(1.0, 1), (0.25, 0)])
def test_arms_of_a_bandit(alpha: float, arm: int, tmp_path: Path) -> None:
    model = qrdqn(alpha)
    observation = np.zeros(1, dtype=np.float32)
    assert model.predict(observation, deterministic=True)[0] == arm
    quantiles = model.quantile_net(torch.zeros(1, 1))
    for action, expected in ((0, 0.5), (1, 0.7 if alpha == 1.0 else -1.7)):
        assert float(cvar_of_quantiles(quantiles[0, :, action], alpha).detach()) == pytest.approx(expected, abs=0.4)
    model.save(tmp_path / "model")
    loaded = QRDQN.load(tmp_path / "model", device="cpu")
    assert loaded.policy.risk_alpha == alpha
    assert loaded.predict(observation, deterministic=True)[0] == arm
    policy = RiskQRDQNPolicy(**{**model.policy._get_constructor_parameters(), "lr_schedule": lambda _: 1e-3})
    assert policy.risk_alpha == alpha


def test_alpha_1_is_qrdqn() -> None:
    plain, risk = qrdqn(None, steps=400), qrdqn(1.0, steps=400)
    for name, tensor in plain.policy.quantile_net.state_dict().items():
        torch.testing.assert_close(risk.policy.quantile_net.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_bellman_target_is_of_the_action_that_is_taken() -> None:
    model = qrdqn(0.25, "dict", steps=210)
    observation = {"it": torch.linspace(-1.0, 1.0, 9)[:, None]}
    with torch.no_grad():
        shown = model.quantile_net_target(observation)
        model.quantile_net.load_state_dict(model.quantile_net_target.state_dict())
        quantiles = model.quantile_net(observation)
        taken = model.quantile_net._predict(observation)
    # What sb3_contrib's QRDQN.train does with the target network's answer.
    greedy = shown.mean(dim=1, keepdim=True).argmax(dim=2, keepdim=True)
    assert torch.equal(greedy.flatten(), taken)
    index = greedy.expand(len(greedy), shown.shape[1], 1)
    assert torch.equal(shown.gather(2, index), quantiles.gather(2, index))


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [pytest.param(1.0, 0.5, 1.0, marks=pytest.mark.slow), (0.25, -0.35, 0.35)]
)
def test_stakes_of_a_bandit(alpha: float, low: float, high: float) -> None:
    model = TQC(
        RiskTQCPolicy,
        Bandit("stake"),
        learning_rate=3e-3,
        learning_starts=300,
        batch_size=128,
        train_freq=2,
        gradient_steps=1,
        ent_coef=0.01,
        top_quantiles_to_drop_per_net=0,
        policy_kwargs={"net_arch": [32], "n_quantiles": 20, "risk_alpha": alpha},
        seed=0,
        device="cpu",
    )
    model.learn(1000)
    stake = float(model.predict(np.zeros(1, dtype=np.float32), deterministic=True)[0][0])
    assert low <= stake <= high


def test_the_actor_climbs_cvar_and_the_critic_learns_all_quantiles() -> None:
    arguments = {"n_quantiles": 7, "n_critics": 3, "net_arch": [16]}
    model = TQC(
        RiskTQCMultiInputPolicy, Bandit("stake", "dict"), policy_kwargs={**arguments, "risk_alpha": 0.3}, device="cpu"
    )
    observation, action = {"it": torch.zeros(5, 1)}, torch.linspace(-1.0, 1.0, 5)[:, None]
    plain = model.critic(observation, action)
    climbed = model.critic(observation, action.requires_grad_()).mean(dim=2).mean(dim=1)
    torch.testing.assert_close(climbed, cvar_of_quantiles(plain.flatten(1), 0.3))
    assert not torch.allclose(climbed, plain.mean(dim=(1, 2)))


ENTRY = """
  n_envs: 2
  n_timesteps: 128
  policy: persist_sb3.risk.{policy}
  policy_kwargs: {{net_arch: [8], n_quantiles: 5, risk_alpha: 0.4}}
  buffer_size: 200
  learning_starts: 32
  train_freq: 4
  gradient_steps: 1
  batch_size: 16
  vec_env_wrapper: persist_sb3.wrappers.VecInternalState
"""


@pytest.mark.parametrize(
    ("algo", "policy", "env_id"),
    [
        ("qrdqn", "RiskQRDQNPolicy", "GridLifeFlat-v0"),
        ("qrdqn", "RiskQRDQNMultiInputPolicy", "GridLife-v0"),
        ("tqc", "RiskTQCPolicy", "GridLifeContinuousFlat-v0"),
        ("tqc", "RiskTQCMultiInputPolicy", "GridLifeContinuous-v0"),
    ],
)
def test_hyperparameter_files_train_them(algo: str, policy: str, env_id: str, tmp_path: Path) -> None:
    model = train_entry(algo, env_id, ENTRY.format(policy=policy), tmp_path)
    assert type(model.policy).__name__ == policy
    assert model.num_timesteps == 128 and model._n_updates >= 10
    saved = type(model).load(next(tmp_path.rglob(f"{env_id}.zip")), device="cpu")
    assert type(saved.policy).__name__ == policy and saved.policy.risk_alpha == 0.4
    observation = model.get_env().reset()
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, saved)))
