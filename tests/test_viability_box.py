"""The viability critic of real-valued actions, against a double integrator whose viable set is known."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from persist_sb3.buffers import ExecutedActionReplayBuffer
from persist_sb3.callbacks import ViabilityCallback
from persist_sb3.models.base import rebuild
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import VecActionShield, VecInternalState
from tests.toys import Wall

LAYER: dict[str, Any] = {
    "dims": ["position", "velocity"],
    "sources": {"position": "obs[0]", "velocity": "obs[1]"},
    "constraints": ["position <= 1"],
    "mu": [0.0, 0.0],
}


def make_env(n: int = 8, shield: dict[str, Any] | None = None, **wall: Any) -> VecEnv:
    venv: VecEnv = VecInternalState(DummyVecEnv([lambda: Wall(**wall)] * n), **LAYER)
    return venv if shield is None else VecActionShield(venv, **shield)


def make_critic(**more: Any) -> ViabilityCritic:
    env = Wall()
    viability = ViabilitySet(LAYER["constraints"], LAYER["dims"], mu=LAYER["mu"])
    return ViabilityCritic(StateSpec(env.observation_space, env.action_space, viability), **more)


def states(position: NDArray[Any], velocity: NDArray[Any]) -> NDArray[np.float32]:
    x = np.stack([position, velocity], axis=1)
    return np.concatenate([x, x], axis=1, dtype=np.float32, casting="same_kind")


@pytest.fixture(scope="module")
def critic() -> ViabilityCritic:
    """Trained on a policy that never learns, and so acts at random."""
    model = PPO("MlpPolicy", make_env(anywhere=True), n_steps=64, n_epochs=1, learning_rate=0.0, seed=0)
    callback = ViabilityCallback(gamma=0.98, net_arch=[48, 48], train_freq=1, learning_starts=500, tau=0.02)
    model.learn(15_000, callback=callback)
    return callback.actor


@pytest.mark.slow
def test_the_critic_knows_which_states_can_be_kept(critic: ViabilityCritic) -> None:
    grid = np.meshgrid(np.linspace(-1.4, 0.98, 60), np.linspace(-1.4, 1.4, 60))
    s = states(*(axis.ravel() for axis in grid))
    reach = Wall.reach(s[:, :2])
    away = np.abs(reach - 1.0) > 0.1
    declared = critic.viability(s) >= 0.05
    assert np.mean(declared[away] == (reach <= 1.0)[away]) >= 0.95
    # Where it errs, it errs on the safe side.
    assert np.mean(declared[away & (reach > 1.0)]) <= 0.1


@pytest.mark.slow
def test_the_safe_actor_brakes_where_it_must(critic: ViabilityCritic) -> None:
    generator = np.random.default_rng(0)
    s = states(generator.uniform(0.0, 0.9, 500), generator.uniform(0.4, 1.2, 500))
    assert np.mean(critic.best_action(s)[:, 0] < -0.9) > 0.95


def push(venv: VecEnv, steps: int) -> int:
    """
    :return: how often the wall is hit by someone who always pushes toward it with all force
    """
    venv.seed(0)
    venv.reset()
    hits = 0
    for _ in range(steps):
        _, _, _, infos = venv.step(np.ones((venv.num_envs, 1), dtype=np.float32))
        hits += sum(info["internal"][0] > 1.0 for info in infos)
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"projection": "gradient"}, {"correction": "replace"}], ids=str)
def test_a_shield_stops_who_does_not_stop(critic: ViabilityCritic, more: dict[str, Any]) -> None:
    shielded = make_env(shield={"min_updates": 0, **more})
    assert isinstance(shielded, VecActionShield)
    shielded.layer.bind({"viability": critic}, training=False)
    hits = push(make_env(), 300)
    assert hits > 50
    assert push(shielded, 300) <= hits / 10


def learn(seed: int, steps: int = 400) -> tuple[SAC, ViabilityCallback]:
    env = make_env(2, shield={"min_updates": 20}, anywhere=True)
    model = SAC(
        "MlpPolicy",
        env,
        learning_starts=50,
        batch_size=16,
        train_freq=8,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=ExecutedActionReplayBuffer,
        seed=seed,
        device="cpu",
    )
    callback = ViabilityCallback(net_arch=[16], learning_starts=50, batch_size=32, train_freq=1)
    model.learn(steps, callback=callback)
    return model, callback


def test_the_same_seed_gives_the_same_shielded_run() -> None:
    (one, first), (two, second) = learn(0), learn(0)
    assert isinstance(one.replay_buffer, ExecutedActionReplayBuffer)
    assert isinstance(two.replay_buffer, ExecutedActionReplayBuffer)
    assert one.replay_buffer.interventions == two.replay_buffer.interventions > 0
    np.testing.assert_array_equal(one.replay_buffer.actions, two.replay_buffer.actions)
    for a, b in zip(first.actor.parameters(), second.actor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_safe_actor_climbs_and_the_critic_is_not_pulled_along() -> None:
    """A pull on the critic by the actor's loss would raise its values without bound; they are averages of margins."""
    _, callback = learn(1, 1200)
    seen = callback.store.sample(500, np.random.default_rng(0))
    state = callback.spec.encode(seen.observation, seen.internal)
    margins = callback.spec.viability.margins(seen.internal)
    assert callback.actor.viability(state).max() < margins.max() + 0.5
    others = np.random.default_rng(0).uniform(-1.0, 1.0, (500, 1)).astype(np.float32)
    assert callback.actor.viability(state).mean() > callback.actor.action_values(state, others)[:, 0].mean()


@pytest.mark.parametrize("pieces", [0, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_slopes_are_those_of_the_values(residual: bool, pieces: int) -> None:
    critic = make_critic(net_arch=[16], residual=residual, pieces=pieces)
    plain = make_critic(net_arch=[16], pieces=pieces)
    for own, other in zip(critic.parameters(), plain.parameters(), strict=True):
        own.data.copy_(other)
    generator = np.random.default_rng(0)
    s = generator.normal(size=(200, 4)).astype(np.float32)
    action = generator.uniform(-1.0, 1.0, (200, 1)).astype(np.float32)
    values, slopes = critic.action_slopes(s, action)
    np.testing.assert_allclose(values, critic.action_values(s, action)[:, 0], atol=1e-6)
    step = np.float32(2e-3)
    rise = critic.action_values(s, action + step)[:, 0] - critic.action_values(s, action - step)[:, 0]
    # A kink within the step changes the slope there; there are few.
    assert np.mean(np.abs(rise / (2.0 * step) - slopes[:, 0]) < 1e-3) > 0.9


@pytest.mark.parametrize("pieces", [0, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_several_actions_of_a_state_are_worth_what_each_is(residual: bool, pieces: int) -> None:
    critic = make_critic(net_arch=[16], residual=residual, pieces=pieces)
    torch.nn.init.normal_(critic.critics.weights[-1])
    generator = np.random.default_rng(0)
    s = generator.normal(size=(20, 4)).astype(np.float32)
    actions = generator.uniform(-1.0, 1.0, (20, 7, 1)).astype(np.float32)
    values = critic.action_values(s, actions)
    assert values.shape == (20, 7, critic.heads)
    for number in range(7):
        np.testing.assert_allclose(values[:, number], critic.action_values(s, actions[:, number]), atol=1e-6)


def test_a_residual_critic_adds_the_margins_at_hand() -> None:
    critic, plain = make_critic(net_arch=[16], residual=True), make_critic(net_arch=[16])
    generator = np.random.default_rng(0)
    s = generator.normal(size=(50, 4)).astype(np.float32)
    action = generator.uniform(-1.0, 1.0, (50, 1)).astype(np.float32)
    # The wall is 1 away from the setpoint; the position comes right behind the observation.
    margin = 1.0 - s[:, 2]
    # It begins with the margins themselves.
    np.testing.assert_allclose(critic.action_values(s, action), np.stack([margin, margin], axis=1), atol=1e-6)
    for own, other in zip(critic.parameters(), plain.parameters(), strict=True):
        own.data.copy_(other)
    added = critic.action_values(s, action) - plain.action_values(s, action)
    np.testing.assert_allclose(added, np.stack([margin, margin], axis=1), atol=1e-5)
    with torch.no_grad():
        values = critic(torch.as_tensor(s), torch.as_tensor(action)).amin(dim=0)[:, 0].numpy()
    np.testing.assert_allclose(values, critic.action_values(s, action), atol=1e-5)


def test_numpy_and_torch_agree_on_the_safest_action() -> None:
    critic = make_critic(net_arch=[16])
    s = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = critic.safe_action(torch.as_tensor(s)).detach().numpy()
    np.testing.assert_allclose(critic.best_action(s), expected, atol=1e-6)
    np.testing.assert_array_equal(critic.viability(s), critic.action_values(s, critic.best_action(s))[:, 0])


@pytest.mark.parametrize("residual", [False, True])
def test_a_critic_of_pieces_mixes_the_values_of_its_pieces(residual: bool) -> None:
    critic = make_critic(net_arch=[16], residual=residual, pieces=5)
    assert critic.pieces is not None
    torch.nn.init.normal_(critic.critics.weights[-1])
    generator = np.random.default_rng(0)
    s = generator.normal(size=(50, 4)).astype(np.float32)
    action = generator.uniform(-1.0, 1.0, (50, 1)).astype(np.float32)
    centres, sharpness = critic.pieces.centres.detach().numpy(), float(critic.pieces.log_sharpness.detach().exp())

    def mixed(action: NDArray[np.float32]) -> NDArray[np.float32]:
        bumps = np.exp(-sharpness * np.square(action - centres[:, 0]))
        with torch.no_grad():
            own = critic.critics(critic.standardizer(torch.as_tensor(s))).reshape(2, 50, 5, 2).numpy()
        values = np.einsum("nk,enkh->enh", bumps / bumps.sum(axis=1, keepdims=True), own).min(axis=0)
        return values + (1.0 - s[:, 2:3] if residual else 0.0)

    np.testing.assert_allclose(critic.action_values(s, action), mixed(action), atol=1e-5)
    at_centres = np.stack([mixed(np.full((50, 1), centre)) for centre in centres[:, 0]], axis=1)
    np.testing.assert_allclose(critic.values(s), at_centres, atol=1e-5)
    best = at_centres[:, :, 0].argmax(axis=1)
    np.testing.assert_array_equal(critic.best_action(s), centres[best])
    np.testing.assert_allclose(critic.viability(s), at_centres[:, :, 0].max(axis=1), atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(critic(torch.as_tensor(s)).amin(dim=0), at_centres, atol=1e-5)


@pytest.mark.parametrize("pieces", [0, 4])
def test_a_saved_critic_keeps_its_safest_action(pieces: int) -> None:
    critic = make_critic(net_arch=[16], pieces=pieces)
    torch.nn.init.normal_(critic.critics.weights[-1])
    again = rebuild(critic.state_dict(), critic.spec, ViabilityCritic)
    s = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(again.best_action(s), critic.best_action(s))


def test_a_single_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="pieces=1 must be 0, or at least 2"):
        ViabilityCallback(pieces=1)


def test_a_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target_noise=-0\.1 must be at least 0"):
        ViabilityCallback(target_noise=-0.1)
