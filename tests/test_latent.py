"""The latent model: its parts against closed forms, and that it remembers what cannot be seen."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import InternalModelCallback, WorldModelCallback
from persist_sb3.callbacks.latent import LatentWorldModelCallback
from persist_sb3.draws import Draws
from persist_sb3.models.base import rebuild
from persist_sb3.models.categorical import balanced_kl, kl, log_unimix, straight_through
from persist_sb3.models.forecast import forecast
from persist_sb3.models.imagination import LatentDynamics, LearnedDynamics, begin, learned, rollout
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.latent import Belief, LatentFilter, LatentModel
from persist_sb3.models.networks import Block, fast_gru, symexp, symlog
from persist_sb3.models.observation import ObservationModel
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.state import last_loaded
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import VecActionShield, VecInternalState
from tests.test_model_callbacks import learn, make_model, part
from tests.toys import Walker

MIXED = spaces.Dict(
    {
        "free": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "kind": spaces.Discrete(3),
        "lamps": spaces.MultiBinary(2),
        "unit": spaces.Box(0.0, 1.0, (2,), np.float32),
    }
)
SMALL: dict[str, Any] = {"gru_size": 12, "units": 10, "groups": 3, "classes": 4}
QUICK: dict[str, Any] = {"learning_starts": 64, "batch_size": 4, "train_freq": 4, "sequence_length": 6, **SMALL}


def make_spec(observation: spaces.Space[Any] = MIXED, action: spaces.Space[Any] | None = None) -> StateSpec:
    viability = ViabilitySet(["a >= 0.2"], ["a", "b"], low=[0.0, -1.0], high=[1.0, 1.0])
    return StateSpec(observation, action or spaces.Discrete(3), viability)


def untrained(n: int = 5, **kwargs: Any) -> tuple[LatentModel, Any, Any, Any]:
    """A model that has seen random states, and some of them, with actions and successors."""
    spec = make_spec()
    torch.manual_seed(0)
    model = LatentModel(spec, **SMALL | kwargs)
    last: Any = model.decoder[1]
    torch.nn.init.normal_(last.weight[-1])  # gates that are half open
    spec.observation_space.seed(0)
    rng = np.random.default_rng(0)

    def draw(count: int) -> Any:
        seen = [spec.observation_space.sample() for _ in range(count)]
        batch = {key: np.stack([each[key] for each in seen]) for key in MIXED.spaces}
        batch["free"] = (10.0 * rng.standard_normal((count, 3))).astype(np.float32)
        return spec.encode(batch, rng.uniform(0.0, 1.0, (count, 2)))

    state, action = draw(200), spec.encode_action(rng.integers(3, size=200))
    successor = draw(200)
    model.measure(*map(torch.as_tensor, (state, action, successor)))
    return model, state[:n], action[:n], successor[:n]


# --- parts


@given(st.floats(-1e6, 1e6))
def test_symexp_reverses_symlog(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    assert float(symexp(symlog(value))) == pytest.approx(x, rel=1e-9, abs=1e-9)
    assert float(symlog(value)) == pytest.approx(np.sign(x) * np.log(1.0 + abs(x)))


def test_unimix_is_a_mixture() -> None:
    logits = torch.tensor([[[50.0, 0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(log_unimix(logits, 0.04).exp(), [[[0.97, 0.01, 0.01, 0.01]]], rtol=1e-5)
    assert torch.equal(log_unimix(logits, 0.0), logits.log_softmax(dim=-1))


def test_divergence_and_free_nats_in_closed_form() -> None:
    # One binary variable: KL(p || q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)).
    p, q = torch.tensor(0.9, requires_grad=True), torch.tensor(0.2, requires_grad=True)

    def logs(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, 1.0 - x]).log()[None]

    expected = 0.9 * np.log(0.9 / 0.2) + 0.1 * np.log(0.1 / 0.8)
    assert kl(logs(p), logs(q)).item() == pytest.approx(expected, rel=1e-6)
    both = torch.cat([logs(p), logs(p)]), torch.cat([logs(q), logs(q)])
    assert kl(*both).item() == pytest.approx(2 * expected, rel=1e-6)  # summed over variables

    loss = balanced_kl(logs(p), logs(q), 0.0, 1.0, 0.1)
    assert loss.item() == pytest.approx(1.1 * expected, rel=1e-6)
    to_p, to_q = torch.autograd.grad(loss, [p, q])
    # d/dp = log(p (1 - q) / (q (1 - p))) with the weight 0.1; d/dq = (q - p) / (q (1 - q)) with the weight 1.
    assert to_p.item() == pytest.approx(0.1 * np.log(0.9 * 0.8 / (0.2 * 0.1)), rel=1e-5)
    assert to_q.item() == pytest.approx((0.2 - 0.9) / (0.2 * 0.8), rel=1e-5)

    free = balanced_kl(logs(p), logs(q), 5.0, 1.0, 0.1)
    assert free.item() == pytest.approx(5.5)
    assert all(gradient.item() == 0.0 for gradient in torch.autograd.grad(free, [p, q]))


def test_samples_are_codes_with_the_gradient_of_probabilities() -> None:
    logits = torch.randn(2000, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:1]
    logits = logits.expand(2000, 3, 4).clone().requires_grad_()
    gumbel = torch.as_tensor(np.random.default_rng(0).gumbel(size=(2000, 3, 4)))
    code = straight_through(logits.log_softmax(dim=-1), gumbel)
    assert torch.all((code.detach().round() - code.detach()).abs() < 1e-12)
    assert torch.all(code.detach().round().sum(dim=-1) == 1.0)
    np.testing.assert_allclose(code.detach().mean(dim=0), logits[0].detach().softmax(dim=-1), atol=0.04)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (through,) = torch.autograd.grad((code * weight).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(dim=-1) * weight).sum(), logits)
    np.testing.assert_allclose(through, soft, atol=1e-12)


def test_layers_without_torch_are_the_same() -> None:
    torch.manual_seed(0)
    x, h = torch.randn(7, 5), torch.randn(7, 6)
    block, cell = Block(5, 8), torch.nn.GRUCell(5, 6)
    with torch.no_grad():
        np.testing.assert_allclose(block.fast(x.numpy()), block(x), atol=1e-6)
        np.testing.assert_allclose(fast_gru(cell, x.numpy(), h.numpy()), cell(x, h), atol=1e-6)


# --- the model


def test_numpy_and_torch_agree() -> None:
    # Of a single class there is nothing to sample, so both give the same.
    model, state, action, successor = untrained(classes=1, samples=1)
    belief = model.follow(model.initial(state), state, action, successor)
    for known in (None, belief):
        with torch.no_grad():
            mean, var = model.predict(torch.as_tensor(state), torch.as_tensor(action), known)
        fast_mean, fast_var = model.moments(state, action, known)
        np.testing.assert_allclose(fast_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fast_var, var, rtol=1e-4, atol=1e-5)

    # The loss of a stretch of two steps is the likelihood of both, as the filter tells them.
    states = torch.as_tensor(np.stack([state, successor, state[::-1].copy()], axis=1))
    actions = torch.as_tensor(np.stack([action, action], axis=1))
    true, false = torch.ones(5, 2, dtype=torch.bool), torch.zeros(5, 2, dtype=torch.bool)
    nothing = torch.zeros(5, 3, 3, 1)
    losses = model.loss(states, actions, true, false, nothing, 0.0)
    first = model.nll(state, action, successor)
    second = model.nll(successor, action, state[::-1], belief)
    # The loss leaves out constants of the numbers, and counts one free nat with both weights.
    numbers = len(model.heads.numeric)
    constant = numbers * 0.5 * np.log(2 * np.pi) + 0.5 * np.log(model.linear.residual.numpy() + 1e-8).sum()
    expected = ((first + second).mean() / 2 - constant + 1.1) / model.heads.entries
    assert losses.total.item() == pytest.approx(expected, rel=1e-3)
    assert losses.divergence.item() == pytest.approx(0.0, abs=1e-6)

    # A step whose past is forgotten counts as one of which nothing is known; one that is not valid counts nothing.
    forget = false.clone()
    forget[:, 1] = True
    alone = model.nll(successor, action, state[::-1])
    expected = ((first + alone).mean() / 2 - constant + 1.1) / model.heads.entries
    assert model.loss(states, actions, true, forget, nothing, 0.0).total.item() == pytest.approx(expected, rel=1e-3)
    valid = true.clone()
    valid[:, 1] = False
    expected = (first.mean() - constant + 1.1) / model.heads.entries
    assert model.loss(states, actions, valid, false, nothing, 0.0).total.item() == pytest.approx(expected, rel=1e-3)


def test_likelihood_is_that_of_the_mixture_of_samples() -> None:
    model, state, action, _ = untrained(samples=4000)
    members = np.zeros(len(state), dtype=np.intp)
    rows = np.repeat(np.arange(len(state)), 3000)
    noise = Draws.split(np.arange(len(state), dtype=np.uint64), 3000)
    drawn = model.sample(state[rows], action[rows], members[rows], noise).reshape(len(state), 3000, -1)
    mean, var = model.moments(state, action)
    free = model.heads.numeric[~np.isfinite(model.heads.high)]  # the others are clipped
    columns = np.concatenate([free, model.heads.one_hot, model.heads.binary])
    error = (drawn.mean(axis=1) - mean[0])[:, columns] / np.sqrt(var[0, :, columns].T / 3000)
    assert np.abs(error).max() < 4.5
    # Whoever asks for the observation alone gets the margin of the whole.
    one = model.nll(state, action, drawn[:, 0])
    seen = model.nll(state, action, drawn[:, 0, : model.spec.observation_dim])
    assert np.isfinite(one).all() and not np.allclose(one, seen)
    # The likelihood of the Discrete entry alone sums to one.
    total = np.zeros(len(state))
    for kind in range(3):
        successor = drawn[:, 0].copy()
        successor[:, 3:6] = np.eye(3)[kind]
        out = model._mixture(state, action, None)
        base = model._log_likelihood(  # of what is not the Discrete entry
            out._replace(one_hot=np.zeros((4000, len(state), 3), np.float32)),
            successor,
            *model._fast_behind(out.gate, state, action),
        )
        total = total + np.exp(-model.nll(state, action, successor))
    rest = np.exp(np.logaddexp.reduce(base, axis=0) - np.log(4000) + np.log(3.0))
    np.testing.assert_allclose(total, rest, rtol=1e-4)


def test_rows_do_not_depend_on_each_other() -> None:
    model, state, action, successor = untrained(n=6)
    assert np.array_equal(model.nll(state, action, successor), model.nll(state, action, successor))
    one = model.nll(state[2:3], action[2:3], successor[2:3])
    np.testing.assert_allclose(model.nll(state, action, successor)[2:3], one, rtol=1e-5)
    futures = forecast(LatentDynamics(model), state, action[None].repeat(3, axis=0))
    alone = forecast(LatentDynamics(model), state[2:3], action[None, 2:3].repeat(3, axis=0))
    np.testing.assert_allclose(futures[:, 2:3], alone, rtol=1e-4, atol=1e-4)


def test_samples_are_of_the_space() -> None:
    model, state, action, _ = untrained(shown=[[8, 0]])
    members = np.zeros(len(state), dtype=np.intp)
    drawn = model.sample(state, action, members, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[:, 3:6].sum(axis=1), 1.0)
    assert set(drawn[:, 3:8].reshape(-1).tolist()) <= {0.0, 1.0}
    assert (drawn[:, 8:10] >= 0.0).all() and (drawn[:, 8:10] <= 1.0).all()
    np.testing.assert_array_equal(drawn[:, 8], drawn[:, 10])  # shows the variable
    model.compare(torch.as_tensor(drawn[:, :10] + 1.0), torch.as_tensor(drawn[:, 10:]))
    again = model.sample(state, action, members, np.random.default_rng(0))
    assert not np.array_equal(again[:, 8], again[:, 10])  # no longer, once it was found not to


def test_imagination_remembers_what_it_imagined() -> None:
    model, state, action, successor = untrained()
    members = np.zeros(len(state), dtype=np.intp)
    dynamics = LatentDynamics(model)
    actions = np.stack([action, action[::-1], action])
    path = rollout(dynamics, state, actions, 3, members, None)
    now, belief = state, model.initial(state)
    for each, reached in zip(actions, path, strict=True):
        now, belief = model.imagine(belief, now, each, None)
        np.testing.assert_array_equal(reached, now)
    # By itself, a step knows the state alone; told a belief, it knows more.
    np.testing.assert_array_equal(dynamics.step(state, action, members, None), path[0])
    known = model.follow(model.initial(successor), successor, action, state)
    told = dynamics.begin(state, known).step(state, action, members, None)
    np.testing.assert_array_equal(told, model.imagine(known, state, action, None)[0])
    assert not np.allclose(told, path[0])
    with pytest.raises(ValueError, match="began with 5 rows goes on with 2"):
        begin(dynamics, state).step(state[:2], action[:2], members[:2], None)


def test_filter_begins_episodes_where_they_begin() -> None:
    model, state, action, successor = untrained()
    keeper = LatentFilter(model, 5)
    keeper.begin(np.arange(5), state)
    keeper.follow(state, action, successor)
    before = Belief(*(part.copy() for part in keeper.belief))
    keeper.begin(np.array([1, 3]), state[[1, 3]])
    fresh = model.initial(state)
    for mine, old, new in zip(keeper.belief, before, fresh, strict=True):
        np.testing.assert_array_equal(mine[[0, 2, 4]], old[[0, 2, 4]])
        np.testing.assert_allclose(mine[[1, 3]], new[[1, 3]], atol=1e-6)


def test_either_model_is_imagined_with() -> None:
    latent, world, internal = untrained()[0], WorldModel(make_spec()), InternalModel(make_spec())
    assert isinstance(learned(latent, None), LatentDynamics)
    assert isinstance(learned(world, internal), LearnedDynamics)
    with pytest.raises(ValueError, match="give the InternalModel as well"):
        learned(world, None)


def test_gradient_in_the_action_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    spec = make_spec(spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32))
    model = LatentModel(spec, **SMALL).double()
    state, action = torch.rand(1, 5, dtype=torch.float64), torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    belief = Belief(*(np.random.default_rng(0).random((1, size)) for size in (12, 12)))  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda a: model.predict(state, a, belief)[0], (action,))


# --- learning


class Hidden(gym.Env[Any, Any]):
    """A point mass whose velocity, drawn anew in each episode and changed by pushes, is not seen."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def _see(self) -> tuple[Any, dict[str, Any]]:
        return np.array([self.position], dtype=np.float32), {"internal": np.array([0.5])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.normal(0.0, (1.0, 0.3))
        self.time = 0
        return self._see()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.velocity += 0.1 * (2.0 * float(action) - 1.0)
        self.position += self.velocity
        self.time += 1
        observation, info = self._see()
        return observation, 0.0, False, self.time == 20, info


def hidden(seed: int = 0, **kwargs: Any) -> tuple[BaseAlgorithm, WorldModelCallback]:
    env: Any = DummyVecEnv([Hidden] * 4)
    env = VecInternalState(env, dims=["x"], constraints=["x >= 0.1"])
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=64,
        n_epochs=1,
        seed=seed,
        device="cpu",
        policy_kwargs={"net_arch": [4]},
    )
    return model, WorldModelCallback(**kwargs)


def test_a_hidden_velocity_is_inferred_and_remembered() -> None:
    sizes = {"gru_size": 32, "units": 32, "groups": 4, "classes": 4}
    more = {"learning_starts": 256, "batch_size": 32, "train_freq": 3, "sequence_length": 12, "learning_rate": 3e-3}
    model, callback = hidden(kind="latent", **sizes, **more)  # type: ignore[arg-type]
    row = learn(model, callback, 2048)[-1]
    errors = {key.split("/")[-1]: value for key, value in row.items() if key.startswith("persist/world_model/")}
    # Without a memory there is little better than the regression: position and velocity are nearly jointly Gaussian.
    assert errors["error_ratio"] < 0.7 * errors["linear_1"]
    assert errors["forecast_4"] < 0.7 * errors["linear_4"]
    assert errors["forecast_8"] < 0.8 * errors["linear_8"]
    assert row["persist/world_model/divergence"] >= 0.0
    assert "persist/world_model/disagreement" not in row


def test_training_is_seeded() -> None:
    def weights(seed: int) -> torch.Tensor:
        model, callback = hidden(kind="latent", seed=0, **QUICK)
        callback.seed = seed
        model.learn(512, callback=callback)
        return torch.cat([p.detach().flatten() for p in part(model, "world_model").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("observation", ["box", "dict", "tuple", "discrete"])
def test_every_space_is_learned_and_the_policy_left_alone(observation: str) -> None:
    if observation == "tuple":
        spec = make_spec(spaces.Tuple((spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3))))
        assert LatentModel(spec, **SMALL).heads.width == 7  # SB3 has no Tuple observations
        return
    kind: dict[str, Any] = {"kind": "latent", **QUICK}
    plain = make_model(observation, "box", n_steps=80)
    plain.learn(640)
    model = make_model(observation, "box", n_steps=80)
    row = learn(model, WorldModelCallback(**kind), 640)[-1]
    assert all(np.isfinite(row[f"persist/world_model/{key}"]) for key in ("loss", "nll", "error_ratio", "forecast_8"))
    for one, other in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_both_kinds_log_forecasts() -> None:
    gaussian = WorldModelCallback(net_arch=[16], members=2, learning_starts=64, batch_size=32)
    internal = InternalModelCallback(net_arch=[16], members=2, learning_starts=64, batch_size=32)
    keys = {f"persist/world_model/{name}_{k}" for name in ("forecast", "linear") for k in (1, 4, 8)}
    assert keys <= learn(make_model(n_steps=160), [internal, gaussian], 640)[-1].keys()
    gaussian = WorldModelCallback(net_arch=[16], members=2, learning_starts=64, batch_size=32)
    assert not keys & learn(make_model(n_steps=160), gaussian, 640)[-1].keys()


def test_rides_in_the_zip_and_resumes(tmp_path: Any) -> None:
    model, callback = hidden(kind="latent", **QUICK)
    model.learn(512, callback=callback)
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=model.get_env())
    loaded = last_loaded()
    assert loaded is not None
    trained = part(model, "world_model")
    state, action = np.ones((3, 2), np.float32), np.eye(2, dtype=np.float32)[[0, 1, 0]]
    rebuilt = rebuild(loaded.pending["world_model"], trained.spec, ObservationModel)
    assert isinstance(rebuilt, LatentModel)
    np.testing.assert_array_equal(rebuilt.nll(state, action, state), trained.nll(state, action, state))
    resumed = WorldModelCallback(kind="latent", **QUICK)
    again.learn(256, callback=resumed, reset_num_timesteps=False)
    assert resumed.updates > callback.updates
    with pytest.raises(Exception, match="saved by a LatentModel"):
        again.learn(64, callback=WorldModelCallback())


def test_a_shield_looks_ahead_with_it() -> None:
    from persist_sb3.callbacks import ViabilityCallback

    env: Any = DummyVecEnv([partial(Walker, "box", "discrete")] * 2)
    env = VecInternalState(env, dims=["battery", "heat"], constraints=["battery >= 0.2"])
    env = VecActionShield(env, mode="search", min_updates=2, horizon=3, rollouts=4)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    quick: dict[str, Any] = {"learning_starts": 32, "batch_size": 16, "train_freq": 2}
    latent = WorldModelCallback(kind="latent", **QUICK | {"learning_starts": 32})
    model.learn(256, callback=[ViabilityCallback(**quick), latent])
    shield = env.layer._shield
    assert isinstance(shield._verifier._dynamics, LatentDynamics)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='dreamer' must be 'gaussian' or 'latent'"):
        WorldModelCallback(kind="dreamer")  # type: ignore[arg-type]
    assert isinstance(WorldModelCallback(kind="latent"), LatentWorldModelCallback)
    with pytest.raises(TypeError, match="members"):
        WorldModelCallback(kind="latent", members=3)
    wrong: dict[str, Any]
    for key, value in {"sequence_length": 0, "gru_size": 0, "forgetting": 1.0, "batch_size": 0, "beta": 2.0}.items():
        wrong = {"kind": "latent", key: value}
        with pytest.raises(ValueError, match=f"{key}={value}"):
            WorldModelCallback(**wrong)
    with pytest.raises(ValueError, match="unimix=2"):
        LatentModel(make_spec(), unimix=2.0)
    with pytest.raises(TypeError, match="image"):
        LatentModel(make_spec(spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="no observation column 12"):
        LatentModel(make_spec(), shown=[[12, 0]])

    limited = DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=10)])
    upright: dict[str, Any] = {"dims": ["u"], "sources": {"u": "obs[0]"}, "constraints": ["u >= -0.9"]}
    model = PPO("MlpPolicy", VecInternalState(limited, **upright), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(RuntimeError, match=r"sequence_length=32 is longer than any episode: .* is 10"):
        model.learn(8, callback=WorldModelCallback(kind="latent"))
    short, callback = hidden(kind="latent", buffer_size=100)
    with pytest.raises(RuntimeError, match="sequence_length=32 is longer than what is kept"):
        short.learn(64, callback=callback)
