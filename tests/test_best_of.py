"""SAC's policies whose critics choose among what the actor proposes, against order statistics and one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

from persist_sb3.callbacks import BestOfCallback
from persist_sb3.equivariant import EquivariantSACMultiInputPolicy, EquivariantSACPolicy
from tests.test_equivariant import SMALL, declared, tensors
from tests.test_equivariant_modes import MIRROR, pendulum

MANY = 4000


def seen(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)


def gaussian(model: SAC, observation: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean, log_std, _ = model.actor.get_action_dist_params(torch.as_tensor(observation))
    return mean.detach(), log_std.exp().detach()


@pytest.mark.parametrize("modes", [0, 2])
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_best_of_one_is_what_sac_does(modes: int, deterministic: bool) -> None:
    model: Any = pendulum(modes=modes)
    torch.manual_seed(1)
    found, _ = model.predict(seen(6), deterministic=deterministic)
    torch.manual_seed(1)
    expected = model.policy.unscale_action(model.actor(torch.as_tensor(seen(6)), deterministic).detach().numpy())
    np.testing.assert_array_equal(found, expected)


def test_the_greatest_of_several_samples_is_distributed_as_order_statistics_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``P(max <= x) = F(x)^k`` of ``k`` samples of a Gaussian."""
    model: Any = pendulum(modes=0)
    count = 5
    model.policy.best_of = count
    monkeypatch.setattr(model.critic, "least", lambda obs, actions: actions[..., 0])
    one = seen(1)
    mean, std = gaussian(model, one)
    torch.manual_seed(0)
    actions, _ = model.predict(one.repeat(MANY, axis=0))
    scaled = torch.as_tensor(model.policy.scale_action(actions))
    below = torch.distributions.Normal(mean, std).cdf(torch.atanh(scaled.clamp(-1 + 1e-6, 1 - 1e-6)))
    for share in (0.3, 0.6, 0.8, 0.95):
        assert float((below <= share).float().mean()) == pytest.approx(share**count, abs=0.03)


@pytest.mark.parametrize("modes", [0, 2])
def test_the_critics_choose(modes: int) -> None:
    model: Any = pendulum(modes=modes).learn(60)
    observation = torch.as_tensor(seen(7))
    model.policy.best_of = 9
    torch.manual_seed(2)
    proposed = model.actor.proposals(observation, 9, deterministic=False)
    one_by_one = torch.stack(
        [torch.cat(model.critic(observation, proposed[:, i]), dim=1).amin(dim=1) for i in range(9)], dim=1
    )
    torch.testing.assert_close(model.critic.least(observation, proposed), one_by_one, rtol=1e-4, atol=1e-5)
    torch.manual_seed(2)
    found, _ = model.predict(seen(7))
    expected = proposed[torch.arange(7), one_by_one.argmax(dim=1)]
    np.testing.assert_allclose(model.policy.scale_action(found), expected.detach(), atol=1e-5)


@pytest.mark.parametrize("modes", [0, 2])
def test_targets_are_of_what_the_agent_does(modes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greatest of ``k`` samples again, with its density; and with gradients, as the actor learns, a plain one."""
    model: Any = pendulum(modes=modes)
    model.policy.best_of, count = 3, 3
    monkeypatch.setattr(model.critic, "least", lambda obs, actions: actions[..., 0])
    observation = torch.as_tensor(seen(1)).expand(MANY, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        action, log_prob = model.actor.action_log_prob(observation)
        mean, log_std, more = model.actor.get_action_dist_params(observation)
        dist = model.actor.action_dist.proba_distribution(mean, log_std, **more)
        torch.testing.assert_close(log_prob, dist.log_prob(action), rtol=1e-3, atol=1e-3)
        plain = model.actor.action_dist.proba_distribution(mean, log_std, **more).sample()
    for share in (0.3, 0.6, 0.9):
        edge = torch.quantile(plain, share)
        assert float((action <= edge).float().mean()) == pytest.approx(share**count, abs=0.04)
    with torch.enable_grad():
        learned, _ = model.actor.action_log_prob(observation)
    assert learned.requires_grad and (modes or float((learned <= edge).float().mean()) == pytest.approx(0.9, abs=0.03))


def test_the_critics_are_no_part_of_the_actor() -> None:
    model: Any = pendulum(modes=0)
    theirs = {id(parameter) for parameter in model.critic.parameters()}
    assert not theirs & {id(parameter) for parameter in model.actor.parameters()}
    assert set(model.actor.state_dict()) == {key for key in model.actor.state_dict() if "critic" not in key}


def test_proposals_are_of_modes_as_likely_as_their_weights() -> None:
    model: Any = pendulum(modes=2)
    observation = torch.as_tensor(seen(1))
    with torch.no_grad():
        for parameter in model.actor.parameters():
            parameter.normal_(std=0.5)
        model.actor.log_std.bias.fill_(-6.0)
        mean, _, more = model.actor.get_action_dist_params(observation)
        weight = torch.softmax(more["logits"], dim=1)[0]
        proposed = model.actor.proposals(observation, MANY, deterministic=False)[0]
    nearest = (proposed - torch.tanh(mean[0]).T).abs().argmin(dim=1)
    counted = torch.bincount(nearest, minlength=len(weight)) / MANY
    assert weight.max() - weight.min() > 0.05
    torch.testing.assert_close(counted, weight, rtol=0.0, atol=0.03)


@pytest.mark.parametrize("modes", [0, 2])
def test_deterministic_proposals(modes: int) -> None:
    model: Any = pendulum(modes=modes)
    observation = torch.as_tensor(seen(4))
    proposed = model.actor.proposals(observation, 8, deterministic=True)
    torch.manual_seed(5)
    torch.testing.assert_close(model.actor.proposals(observation, 8, deterministic=True), proposed)
    # Whoever else is in the batch.
    torch.testing.assert_close(model.actor.proposals(observation[2:3], 8, deterministic=True)[0], proposed[2])
    torch.testing.assert_close(proposed[:, 0], model.actor(observation, deterministic=True))
    assert len(torch.unique(proposed[0])) == 8


def test_dict_observations() -> None:
    env, _ = declared("GridLifeContinuousScent-v0")
    kwargs = {"symmetries": "GridLifeContinuousScent-v0", "best_of": 3, **SMALL}
    model: Any = SAC(EquivariantSACMultiInputPolicy, env, buffer_size=100, policy_kwargs=kwargs, seed=0, device="cpu")
    flat = np.random.default_rng(0).normal(size=(5, spaces.flatdim(env.observation_space))).astype(np.float32)
    observation = tensors(env, flat)
    proposed = model.actor.proposals(observation, 3, deterministic=True)
    values = [torch.cat(model.critic(observation, proposed[:, i]), dim=1).amin(dim=1) for i in range(3)]
    torch.testing.assert_close(
        model.critic.least(observation, proposed), torch.stack(values, dim=1), rtol=1e-4, atol=1e-5
    )
    env.close()


def test_it_chooses_in_training_too_and_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = SAC(
        EquivariantSACPolicy,
        "Pendulum-v1",
        learning_starts=20,
        policy_kwargs={"symmetries": [MIRROR], "best_of": 4, **SMALL},
        seed=0,
        device="cpu",
    )
    asked = []
    least = model.critic.least

    def watched(obs: Any, actions: torch.Tensor) -> Any:
        asked.append(tuple(actions.shape))
        return least(obs, actions)

    monkeypatch.setattr(model.critic, "least", watched)
    model.learn(60)
    # In the first 20 steps actions are drawn from the box. The others take a decision each, and a batch of targets.
    assert asked.count((1, 4, 1)) == 40
    assert asked.count((model.batch_size, 4, 1)) == model._n_updates == len(asked) - 40
    monkeypatch.undo()
    model.save(tmp_path / "agent.zip")
    loaded = SAC.load(tmp_path / "agent.zip")
    assert loaded.policy.best_of == 4
    action, _ = model.predict(seen(6), deterministic=True)
    np.testing.assert_allclose(loaded.predict(seen(6), deterministic=True)[0], action, atol=1e-6)


def test_in_a_training_it_can_begin_later(tmp_path: Path) -> None:
    kwargs = {"symmetries": [MIRROR], "best_of": 4, **SMALL}
    model: Any = SAC(EquivariantSACPolicy, "Pendulum-v1", learning_starts=5, policy_kwargs=kwargs, seed=0, device="cpu")
    in_force = {}

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            in_force[self.num_timesteps] = self.model.policy.best_of
            if self.num_timesteps == 10:
                self.model.save(tmp_path / "checkpoint.zip")
            return True

    later = BestOfCallback({0: 1, 20: 3})
    model.learn(30, callback=[later, Watch()])
    # The rollout that follows step 20 makes step 21.
    assert in_force == {step: 1 if step <= 20 else 3 for step in range(1, 31)}
    assert model.policy.best_of == 4
    assert SAC.load(tmp_path / "checkpoint.zip").policy.best_of == 4
    in_force.clear()
    model.learn(10, callback=[BestOfCallback({0: 1, 20: 3}), Watch()], reset_num_timesteps=False)
    assert set(in_force.values()) == {3}


def test_policies_without_it_are_refused() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(TypeError, match=r"which ActorCriticPolicy does not have: .* EquivariantSACPolicy"):
        model.learn(8, callback=BestOfCallback(16))


def test_best_of_none() -> None:
    with pytest.raises(ValueError, match="best_of=0 must be at least 1"):
        SAC(EquivariantSACPolicy, "Pendulum-v1", policy_kwargs={"symmetries": [MIRROR], "best_of": 0})
    with pytest.raises(ValueError, match="best_of=0 must be at least 1"):
        pendulum(modes=0).policy.best_of = 0  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"best_of=\{5: 1\} must be at least 1"):
        BestOfCallback({5: 1})
