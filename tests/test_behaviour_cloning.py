"""BehaviourCloningCallback: a policy begins like the demonstrations, and keeps to them until its values are learned."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import TQC, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from persist_sb3.buffers import Demonstrations, RecomputedBonusReplayBuffer
from persist_sb3.buffers.filled import fill
from persist_sb3.callbacks import BehaviourCloningCallback
from persist_sb3.equivariant import EquivariantSACPolicy
from persist_sb3.recording import record
from persist_sb3.wrappers import VecHomeostatReward, VecInternalState
from tests.toys import Walker


class LateWorker:
    """Rests for 8 steps, and works from then on: the observation's third entry is the time."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        return (observation[:, 2] >= 8.0).astype(np.int64), state


def make(n: int = 2) -> VecEnv:
    walkers = DummyVecEnv([partial(Walker, "box", "discrete", 12)] * n)
    constraints = ["battery >= 0.1", "heat in [0.0, 1.0]"]
    return VecInternalState(walkers, dims=["battery", "heat"], constraints=constraints, mu=[0.7, 0.5])


@pytest.fixture(scope="module")
def shown() -> Demonstrations:
    return record(LateWorker(), make(), 6, seed=0)


def make_model(venv: VecEnv, **kwargs: Any) -> PPO:
    return PPO("MlpPolicy", venv, n_steps=32, batch_size=64, seed=0, device="cpu", **kwargs)


def probabilities(model: PPO, shown: Demonstrations) -> torch.Tensor:
    observation = shown.transitions.observation
    if model.get_vec_normalize_env() is not None:
        observation = model.get_vec_normalize_env().normalize_obs(observation)  # type: ignore[union-attr]
    actions = torch.as_tensor(shown.transitions.action)
    with torch.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(torch.as_tensor(observation), actions)
    return log_prob.exp()


@pytest.mark.parametrize("normalized", [False, True])
def test_the_policy_does_what_was_shown(shown: Demonstrations, normalized: bool) -> None:
    venv = VecNormalize(make(), norm_reward=False) if normalized else make()
    model = make_model(venv)
    assert probabilities(model, shown).mean() < 0.5  # three actions, about equally likely
    model.learn(64, callback=BehaviourCloningCallback(shown, value_steps=10_000, gradient_steps=400))
    assert probabilities(model, shown).min() > 0.5
    assert probabilities(model, shown).mean() > 0.9


def test_only_the_value_function_learns_at_first(shown: Demonstrations) -> None:
    after = {}
    for steps in (64, 256):
        model = make_model(make())
        model.learn(steps, callback=BehaviourCloningCallback(shown, value_steps=10_000, gradient_steps=50))
        values = model.policy.predict_values(torch.as_tensor(shown.transitions.observation))
        after[steps] = probabilities(model, shown), values.detach()
        assert all(parameter.requires_grad for parameter in model.policy.parameters())
    assert torch.equal(after[64][0], after[256][0])
    assert not torch.allclose(after[64][1], after[256][1], atol=1e-3)


def test_then_the_policy_learns_too(shown: Demonstrations) -> None:
    model = make_model(make())
    model.learn(64, callback=BehaviourCloningCallback(shown, value_steps=64, gradient_steps=50))
    held = probabilities(model, shown)
    model = make_model(make())
    model.learn(256, callback=BehaviourCloningCallback(shown, value_steps=64, gradient_steps=50))
    assert not torch.allclose(held, probabilities(model, shown), atol=1e-4)


def test_a_run_that_is_resumed_is_left_as_it_is(
    shown: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make())
    model.learn(64, callback=BehaviourCloningCallback(shown, gradient_steps=50))
    model.save(tmp_path / "model")

    def refuse(_: BehaviourCloningCallback) -> None:
        raise AssertionError("cloned again")

    monkeypatch.setattr(BehaviourCloningCallback, "_clone", refuse)
    resumed = PPO.load(tmp_path / "model", env=make(), device="cpu")
    resumed.learn(64, callback=BehaviourCloningCallback(shown, gradient_steps=50))


@pytest.mark.parametrize("algorithm", [A2C, TRPO])
def test_every_optimiser_reminds(shown: Demonstrations, algorithm: Any) -> None:
    likely = {}
    for weight in (0.0, 10.0):
        model = algorithm("MlpPolicy", make(), n_steps=8, learning_rate=0.01, seed=0, device="cpu")
        model.learn(1024, callback=BehaviourCloningCallback(shown, 0, 1, weight=weight, weight_steps=10_000))
        likely[weight] = probabilities(model, shown).mean()
    assert likely[10.0] > 0.8 > 0.6 > likely[0.0]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_reminded_policy_keeps_to_what_was_shown(shown: Demonstrations, resumed: bool, tmp_path: Path) -> None:
    likely = {}
    for weight in (0.0, 10.0):
        callback = BehaviourCloningCallback(shown, 0, 30, weight=weight, weight_steps=10_000)
        model = make_model(make(), learning_rate=0.01)
        model.learn(64, callback=callback)
        if resumed:
            model.save(tmp_path / "model")
            model = PPO.load(tmp_path / "model", env=make(), device="cpu")
        model.learn(1024, callback=callback, reset_num_timesteps=False)
        likely[weight] = probabilities(model, shown).mean()
    assert likely[10.0] > 0.9 > 0.5 > likely[0.0]


def test_an_interrupted_training_leaves_no_second_reminder(shown: Demonstrations) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            raise KeyboardInterrupt

    callback = BehaviourCloningCallback(shown, 0, 1, weight=1.0)
    model = make_model(make())
    hooks = model.policy.optimizer._optimizer_step_pre_hooks
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, callback=[callback, Interrupt()])
    during: list[int] = []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            during.append(len(hooks))
            return True

    model.learn(64, callback=[callback, Count()], reset_num_timesteps=False)
    assert set(during) == {1} and not hooks


def test_the_reminder_ends(shown: Demonstrations) -> None:
    weights = []
    for weight in (0.0, 10.0):
        model = make_model(make())
        # PPO learns for the first time when the weight is spent.
        model.learn(256, callback=BehaviourCloningCallback(shown, 16, 50, weight=weight, weight_steps=16))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    assert torch.equal(weights[0], weights[1])


# --- off-policy


class Steady:
    """Does half of what brings the battery to 0.9, and heats by as much."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        return 1.2 * (0.9 - observation[:, :1]) * np.ones((1, 2)) - 0.1, state


def make_box(n: int = 2, **reward: Any) -> VecEnv:
    walkers = DummyVecEnv([partial(Walker, "box", "box", 12)] * n)
    constraints = ["battery >= 0.1", "heat in [0.0, 1.0]"]
    venv = VecInternalState(walkers, dims=["battery", "heat"], constraints=constraints, mu=[0.7, 0.5])
    return VecHomeostatReward(venv, **reward) if reward else venv


def shown_to(venv: VecEnv, episodes: int = 6) -> Demonstrations:
    return record(Steady(), venv, episodes, seed=0)


def off_policy(algorithm: Any, venv: VecEnv, **kwargs: Any) -> Any:
    parameters = {"policy_kwargs": {"net_arch": [32, 32]}, "train_freq": 4, "learning_starts": 500, **kwargs}
    return algorithm("MlpPolicy", venv, seed=0, device="cpu", **parameters)


@pytest.mark.parametrize("algorithm", [SAC, TQC, TD3, DDPG])
def test_an_off_policy_actor_does_what_was_shown(algorithm: Any) -> None:
    shown = shown_to(make_box())
    model = off_policy(algorithm, make_box())
    seen, wanted = shown.transitions.observation, shown.transitions.executed_action
    before = np.abs(model.predict(seen, deterministic=True)[0] - wanted).max()
    model.learn(64, callback=BehaviourCloningCallback(shown, value_steps=10_000, gradient_steps=1000))
    after = np.abs(model.predict(seen, deterministic=True)[0] - wanted).max()
    assert after < 0.1 < before
    assert all(parameter.requires_grad for parameter in model.actor.parameters())
    assert model.learning_starts == 0 and model._n_updates > 0


def test_the_learning_rate_follows_its_schedule() -> None:
    """At a rate of 0 nothing is learned: as if the cloning had ended there."""
    shown = shown_to(make_box())
    weights = []
    for gradient_steps, rate in ((20, 1e-3), (40, lambda remaining: 1e-3 * (remaining > 0.5)), (40, "lin_0.001")):
        model = off_policy(SAC, make_box())
        model.learn(2, callback=BehaviourCloningCallback(shown, 100, gradient_steps, learning_rate=rate))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.actor.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=1e-6)


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_it_is_as_random_as_the_algorithm_is_going_to_ask_for(algorithm: Any) -> None:
    shown = shown_to(make_box())
    seen = torch.as_tensor(shown.transitions.observation)
    entropy = {}
    for target in (-10.0, 0.5):
        model = off_policy(algorithm, make_box(), target_entropy=target)
        model.learn(2, callback=BehaviourCloningCallback(shown, value_steps=10_000, gradient_steps=1000))
        with torch.no_grad():
            log_prob = torch.cat([model.actor.action_log_prob(seen)[1] for _ in range(50)])
        entropy[target] = -float(log_prob.mean())
    assert entropy[0.5] == pytest.approx(0.5, abs=0.2)
    assert entropy[-10.0] < 0.0


@pytest.mark.parametrize("num_envs", [1, 5])
def test_the_replay_buffer_begins_with_what_was_shown(num_envs: int) -> None:
    shown = shown_to(make_box(), episodes=6).transitions
    model = off_policy(SAC, make_box(num_envs))
    fill(model, shown)
    buffer, length = model.replay_buffer, len(shown) // num_envs
    assert buffer.pos == length
    rows = np.arange(num_envs * length).reshape(num_envs, length).T
    np.testing.assert_allclose(buffer.observations[:length], shown.observation[rows])
    np.testing.assert_allclose(buffer.next_observations[:length], shown.next_observation[rows])
    np.testing.assert_allclose(buffer.actions[:length], shown.executed_action[rows], atol=1e-6)
    np.testing.assert_allclose(buffer.rewards[:length], shown.reward[rows], rtol=1e-6)
    # Values go on behind the last step of an episode that was cut off, and of a stretch.
    ended = buffer.dones[:length] * (1.0 - buffer.timeouts[:length])
    np.testing.assert_array_equal(ended, shown.terminated[rows])
    assert buffer.dones[length - 1].all()


def test_only_the_critics_learn_at_first_and_the_coefficient_stays() -> None:
    shown = shown_to(make_box())
    after = {}
    for steps in (16, 400, 1200):
        model = off_policy(SAC, make_box(), ent_coef="auto_0.05", learning_rate=3e-3)
        model.learn(steps, callback=BehaviourCloningCallback(shown, value_steps=600, gradient_steps=50))
        weights = torch.cat([parameter.detach().flatten() for parameter in model.actor.parameters()])
        values = torch.cat([parameter.detach().flatten() for parameter in model.critic.parameters()])
        after[steps] = weights, values, float(model.log_ent_coef.detach().exp())
    assert torch.equal(after[16][0], after[400][0]) and not torch.equal(after[16][1], after[400][1])
    # What the training after the last rollout made of it has not been taken back.
    assert after[400][2] == pytest.approx(0.05, rel=0.01)
    assert not torch.equal(after[400][0], after[1200][0]) and after[1200][2] != pytest.approx(0.05, rel=0.05)


def test_critics_that_know_nothing_yet_do_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_to(make_box())
    kwargs = {"symmetries": [], "best_of": 3, "net_arch": [16]}
    model: Any = SAC(EquivariantSACPolicy, make_box(), policy_kwargs=kwargs, seed=0, device="cpu")
    at = []
    least = model.critic.least

    def watched(obs: Any, actions: torch.Tensor) -> Any:
        if len(actions) == model.n_envs:
            at.append(model.num_timesteps)
        return least(obs, actions)

    monkeypatch.setattr(model.critic, "least", watched)
    model.learn(100, callback=BehaviourCloningCallback(shown, value_steps=60, gradient_steps=50))
    # The callback knows of a step when it was made.
    assert at == list(range(60, 100, 2))


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_a_reminded_actor_keeps_to_what_was_shown(algorithm: Any) -> None:
    shown = shown_to(make_box())
    seen, wanted = shown.transitions.observation, shown.transitions.executed_action
    far = {}
    for weight in (0.0, 10.0):
        model = off_policy(algorithm, make_box(), learning_rate=3e-3)
        model.learn(600, callback=BehaviourCloningCallback(shown, 100, weight=weight, weight_steps=10_000))
        far[weight] = np.abs(model.predict(seen, deterministic=True)[0] - wanted).max()
    # Whoever makes an effort is paid, and what was shown makes little.
    assert far[10.0] < 0.15 < 0.5 < far[0.0]


def test_rewards_of_other_layers_are_refused() -> None:
    model = off_policy(SAC, make_box(weight=0.5))
    with pytest.raises(RuntimeError, match=r"consist of \['task'\], and .* of \['homeo', 'task'\]: record"):
        model.learn(64, callback=BehaviourCloningCallback(shown_to(make_box()), gradient_steps=10))


def test_buffers_that_cannot_hold_what_was_shown() -> None:
    shown = shown_to(make_box())
    with pytest.raises(RuntimeError, match=r"buffer_size=60 holds no more than the 72 demonstrated transitions of 2"):
        fill(off_policy(SAC, make_box(), buffer_size=60), shown.transitions)
    with pytest.raises(RuntimeError, match="72 demonstrated transitions are not one for each of 80 environments"):
        fill(off_policy(SAC, make_box(80)), shown.transitions)
    model = off_policy(SAC, make_box(), replay_buffer_class=RecomputedBonusReplayBuffer)
    with pytest.raises(RuntimeError, match="a RecomputedBonusReplayBuffer cannot begin with demonstrations"):
        fill(model, shown.transitions)


@pytest.mark.parametrize("algorithm", [DQN, RecurrentPPO, "gSDE"])
def test_other_policies_are_refused(shown: Demonstrations, algorithm: Any) -> None:
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    if algorithm == "gSDE":
        model = off_policy(SAC, make_box(), use_sde=True)
    else:
        model = algorithm(policy, make(), device="cpu")
    with pytest.raises(RuntimeError, match=rf"cannot clone into a {type(model.policy).__name__}: it is for PPO"):
        model.learn(64, callback=BehaviourCloningCallback(shown))


def test_a_file_will_do(shown: Demonstrations, tmp_path: Path) -> None:
    path = shown.save(tmp_path / "demonstrations.npz")
    models = [make_model(make()), make_model(make())]
    sources: list[Any] = [shown, path]
    for model, demonstrations in zip(models, sources, strict=True):
        model.learn(64, callback=BehaviourCloningCallback(demonstrations, gradient_steps=20))
    assert torch.equal(*(probabilities(model, shown) for model in models))


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("gradient_steps", 0),
        ("batch_size", 0),
        ("value_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", "lin_0"),
        ("weight_decay", -1.0),
        ("weight", -1.0),
        ("weight", float("inf")),
        ("weight_steps", 0),
    ],
)
def test_out_of_range(shown: Demonstrations, parameter: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{parameter}={value}"):
        BehaviourCloningCallback(shown, **{parameter: value})
