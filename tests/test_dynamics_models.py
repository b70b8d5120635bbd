"""The internal and the world model: what they learn, what they say, and that both ways to it agree."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from persist_sb3.batch import flatten, stack, unflatten
from persist_sb3.models.base import rebuild
from persist_sb3.models.dynamics import DynamicsModel
from persist_sb3.models.heads import Heads
from persist_sb3.models.imagination import KnownDynamics, LearnedDynamics, rollout
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.linear import LinearFit
from persist_sb3.models.prediction import LOG_VAR_HIGH, LOG_VAR_LOW, Clip, beta_nll
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.state import PersistState
from persist_sb3.viability import ViabilitySet

VIABILITY = ViabilitySet(["a >= 0.1"], ["a", "b"], low=[0.0, -math.inf], high=[1.0, math.inf])
STEER = spaces.Box(-2.0, 2.0, (1,), dtype=np.float32)
MIXED = spaces.Dict(
    {
        "flags": spaces.MultiBinary(2),
        "kind": spaces.Discrete(3, start=1),
        "many": spaces.MultiDiscrete([2, 3]),
        "seen": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    }
)


def make_spec(observation: spaces.Space[Any] = MIXED, action: spaces.Space[Any] = STEER) -> StateSpec:
    return StateSpec(observation, action, VIABILITY)


def untrained(kind: Any = WorldModel, **kwargs: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """A model with random weights that has measured random data; states, actions, and states after them."""
    torch.manual_seed(0)
    spec = make_spec()
    model = kind(spec, net_arch=[16], members=3, **kwargs)
    spec.observation_space.seed(0)
    generator = np.random.default_rng(0)

    def draw() -> np.ndarray:
        rows = [spec.observation_space.sample() for _ in range(40)]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return spec.encode(batch, generator.random((40, 2)))

    state, following = draw(), draw()
    action = generator.uniform(-1.0, 1.0, (40, 1)).astype(np.float32)
    model.measure(*map(torch.as_tensor, (state, action, following[:, model.part])))
    return model, state, action, following[:, model.part]


def fit(model: DynamicsModel, state: np.ndarray, action: np.ndarray, target: np.ndarray, steps: int = 400) -> None:
    data = [torch.as_tensor(rows, dtype=torch.float32) for rows in (state, action, target)]
    model.measure(*data)
    optimizer = torch.optim.Adam(model.ensemble.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(state), (256,), generator=generator)
        optimizer.zero_grad()
        now, move, after = (column[rows] for column in data)
        model.loss(now, move, after, torch.ones(model.members, 256), beta=0.5).backward()
        optimizer.step()


# Parts


def test_beta_nll_by_hand() -> None:
    mean, log_var, target = torch.tensor([1.0]), torch.tensor([math.log(4.0)]), torch.tensor([4.0])
    for beta, weight in ((0.0, 1.0), (0.5, 2.0), (1.0, 4.0)):
        expected = weight * 0.5 * (math.log(4.0) + 9.0 / 4.0)
        assert float(beta_nll(mean, log_var, target, beta)) == pytest.approx(expected, rel=1e-6)


def test_beta_one_learns_the_mean_as_the_squared_error_does() -> None:
    mean = torch.tensor([1.0, -2.0], requires_grad=True)
    log_var = torch.tensor([3.0, -3.0], requires_grad=True)
    target = torch.tensor([4.0, 1.0])
    beta_nll(mean, log_var, target, beta=1.0).sum().backward()
    torch.testing.assert_close(mean.grad, (mean - target).detach())
    # The weight is no part of the loss: the variance moves as under the likelihood, times the weight.
    expected = 0.5 * (log_var.exp() - (mean - target).square()).detach()
    torch.testing.assert_close(log_var.grad, expected)


def test_linear_fit_equals_least_squares_whatever_the_batches() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(3.0, [1.0, 10.0, 0.1, 1.0], (500, 4)) @ generator.normal(size=(4, 4))
    group = np.arange(500) % 2
    slopes = generator.normal(size=(2, 4, 2))
    y = np.einsum("np,npg->ng", x, slopes[group]) + generator.normal(0.0, [0.5, 2.0], (500, 2)) + 7.0
    design = np.column_stack([x, np.ones(500)])
    for groups in (1, 2):
        linear = LinearFit(groups, 4, 2)
        for part in np.split(np.arange(500), [3, 10, 499]):
            linear.update(*map(torch.as_tensor, (x[part], y[part], group[part])))
        linear._solve()
        expected, squares = np.empty_like(y), 0.0
        for index in range(groups):
            rows = group == index if groups > 1 else group >= 0
            solution, residual, *_ = np.linalg.lstsq(design[rows], y[rows], rcond=None)
            expected[rows], squares = design[rows] @ solution, squares + residual
        slow = linear(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(group))
        np.testing.assert_allclose(slow, expected, atol=0.01)
        for rows in (slice(None), slice(9)):
            answer = linear.answer(x[rows].astype(np.float32), group[rows])
            np.testing.assert_allclose(answer, slow[rows], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(linear.residual, squares / 500, rtol=1e-3)


def test_linear_fit_of_few_rows_does_not_follow_their_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = LinearFit(2, 4, 1)
    x, y = torch.randn(60, 4, generator=generator), torch.randn(60, 1, generator=generator)
    linear.update(x[:30], y[:30], torch.zeros(30))
    torch.testing.assert_close(linear(x, torch.zeros(60)), y[:30].mean().expand(60, 1))
    # One group has enough, the other one answers as both together.
    linear.update(x[30:], x[30:, :1], (torch.arange(30) > 25).float())
    assert not torch.equal(linear.weight[0], linear.weight[1])
    linear.update(torch.randn(40, 4, generator=generator), torch.zeros(40, 1), torch.ones(40))
    assert linear.count.tolist() == [100.0, 56.0, 44.0]
    assert linear.weight[1].abs().max() < 0.5 * linear.weight[0].abs().max()


def test_linear_fit_of_one_hot_codes_is_finite() -> None:
    codes = torch.eye(3)[torch.arange(60) % 3]
    linear = LinearFit(1, 3, 1)
    linear.update(codes, codes @ torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(60))
    np.testing.assert_allclose(linear(torch.eye(3), torch.zeros(3))[:, 0], [1.0, 2.0, 3.0], atol=1e-3)


def test_heads_follow_the_flattened_observation() -> None:
    heads = Heads.of_space(MIXED)
    assert heads.binary.tolist() == [0, 1]
    assert heads.one_hot.tolist() == list(range(2, 10)) and heads.sizes == (3, 2, 3)
    assert heads.numeric.tolist() == [10, 11]
    assert heads.width == spaces.flatdim(MIXED) and heads.outputs == 14 and heads.entries == 7


@pytest.mark.parametrize(
    "space",
    [
        MIXED,
        spaces.Tuple((spaces.Discrete(4, start=2), spaces.Box(-1, 1, (2, 2)))),
        spaces.Box(0, 9, (3,), dtype=np.int64),
    ],
)
def test_unflatten_reverses_flatten(space: spaces.Space[Any]) -> None:
    space.seed(0)
    batch = stack([space.sample() for _ in range(5)]) if not isinstance(space, spaces.Tuple) else None
    if batch is None:
        batch = tuple(np.stack(parts) for parts in zip(*(space.sample() for _ in range(5)), strict=True))
    again = unflatten(space, flatten(space, batch))
    np.testing.assert_array_equal(flatten(space, again), flatten(space, batch))


# Both ways


@pytest.mark.parametrize("kind", [InternalModel, WorldModel])
def test_numpy_and_torch_agree(kind: Any) -> None:
    model, state, action, target = untrained(kind)
    torch.nn.init.normal_(model.ensemble.weights[-1][..., -1])  # gates that are half open
    inputs = torch.as_tensor(state), torch.as_tensor(action)
    for fast, slow in zip(model.moments(state, action), model.predict(*inputs), strict=True):
        np.testing.assert_allclose(fast, slow.detach(), rtol=1e-4, atol=1e-5)
    # The likelihood, from torch's own distributions.
    out, heads = model(*inputs), model.heads
    expected, scale = model._behind(model(*inputs).gate.clamp(0.0, 1.0), *inputs)
    numeric = torch.as_tensor(target[:, heads.numeric])
    total = torch.distributions.Normal(expected + scale * out.mean, scale * (0.5 * out.log_var).exp())
    likelihood = total.log_prob(numeric).sum(dim=2)
    start = 0
    for size in heads.sizes:
        columns = slice(start, start + size)
        code = torch.as_tensor(target[:, heads.one_hot[columns]]).argmax(dim=1)
        likelihood = likelihood + torch.distributions.Categorical(logits=out.one_hot[..., columns]).log_prob(code)
        start += size
    binary = torch.distributions.Bernoulli(logits=out.binary)
    likelihood = likelihood + binary.log_prob(torch.as_tensor(target[:, heads.binary])).sum(dim=2)
    mixture = likelihood.logsumexp(dim=0) - math.log(3)
    np.testing.assert_allclose(model.nll(state, action, target), -mixture.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [InternalModel, WorldModel])
def test_samples_have_the_predicted_moments(kind: Any) -> None:
    model, state, action, _ = untrained(kind)
    model.heads.low[:], model.heads.high[:] = -np.inf, np.inf
    count, member = 4000, 1
    rows = np.zeros(count, dtype=np.intp)
    sample = model.sample(state[rows], action[rows], np.full(count, member), np.random.default_rng(0))
    mean, var = (moment[member, 0] for moment in model.moments(state[:1], action[:1]))
    np.testing.assert_allclose(sample.mean(axis=0), mean, atol=5 * np.sqrt(var.max() / count))
    np.testing.assert_allclose(sample.var(axis=0), var, rtol=0.15, atol=1e-3)


@pytest.mark.parametrize("drawn", [True, False], ids=["one each", "the same"])
def test_each_row_is_imagined_by_its_own_member(drawn: bool) -> None:
    model, state, action, _ = untrained(InternalModel)
    model.heads.low[:], model.heads.high[:] = -np.inf, np.inf
    members = np.random.default_rng(1).integers(3, size=len(state)) if drawn else np.full(len(state), 2)
    mean, _ = model.moments(state, action)
    expected = mean[members, np.arange(len(state))]
    np.testing.assert_allclose(model.sample(state, action, members, None), expected, rtol=1e-4, atol=1e-5)


def test_samples_are_seeded_clipped_and_of_the_space() -> None:
    model, state, action, _ = untrained()
    state[:, 10:12] = 1.0
    members = np.arange(len(state)) % 3
    one, same, other = (model.sample(state, action, members, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    batch = unflatten(MIXED, one)
    assert all(MIXED.contains({key: leaf[i] for key, leaf in batch.items()}) for i in range(len(one)))
    assert (one[:, 10:] == 1.0).any()
    internal, state, action, _ = untrained(InternalModel)
    for bias, bound in ((50.0, 1.0), (-50.0, 0.0)):
        internal.linear.bias.fill_(bias)
        sample = internal.sample(state, action, members, np.random.default_rng(0))
        assert (sample[:, 0] == bound).all() and (np.abs(sample[:, 1] - bias) < 20.0).all()


def test_log_variance_is_bounded() -> None:
    model, state, action, _ = untrained(InternalModel)
    scale = np.sqrt(model.linear.residual.numpy())
    for bias, bound in ((1e3, LOG_VAR_HIGH), (-1e3, LOG_VAR_LOW)):
        with torch.no_grad():
            model.ensemble.biases[-1].fill_(bias)
        log_var = np.log(model.moments(state, action)[1] / np.square(scale))
        np.testing.assert_allclose(log_var, bound, atol=0.01)


@pytest.mark.parametrize("kind", [InternalModel, WorldModel])
def test_gradient_in_the_action_is_that_of_finite_differences(kind: Any) -> None:
    model, state, action, _ = untrained(kind)
    torch.nn.init.normal_(model.ensemble.weights[-1][..., -1])  # gates that are half open
    model = model.double()
    inputs = torch.as_tensor(state[:3]).double(), torch.as_tensor(action[:3]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: model.predict(inputs[0], a), inputs[1:], eps=1e-6, atol=1e-4)


# What is learned


def test_a_linear_gaussian_system_is_learned() -> None:
    spec = make_spec(spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32))
    generator = np.random.default_rng(0)
    n = 6000
    state = generator.normal(size=(n, 4)).astype(np.float32)
    action = generator.uniform(-1.0, 1.0, (n, 1)).astype(np.float32)
    matrix = np.array([[0.0, 0.1, 0.9, 0.0], [0.3, 0.0, 0.2, 0.8]])
    steer, deviation = np.array([0.5, -0.2]), np.array([0.1, 0.4])
    truth = state @ matrix.T + action * steer
    target = (truth + generator.normal(size=(n, 2)) * deviation).astype(np.float32)
    torch.manual_seed(0)
    model = InternalModel(spec, net_arch=[32], members=2)
    fit(model, state, action, target)
    mean, var = model.moments(state[:500], action[:500])
    assert np.sqrt(np.square(mean - truth[:500]).mean(axis=(0, 1))) == pytest.approx([0.0, 0.0], abs=0.06)
    np.testing.assert_allclose(var.mean(axis=(0, 1)), deviation**2, rtol=0.15)
    entropy = 0.5 * np.log(2 * math.pi * math.e * deviation**2).sum()
    assert model.nll(state, action, target).mean() == pytest.approx(entropy, abs=0.1)


def test_noise_that_depends_on_the_state_is_learned() -> None:
    spec = make_spec(spaces.Discrete(2))
    generator = np.random.default_rng(0)
    n = 6000
    loud = np.arange(n) % 2
    state = np.column_stack([np.eye(2)[loud], np.full((n, 2), 0.5)]).astype(np.float32)
    target = state[:, 2:] + generator.normal(size=(n, 2)) * np.where(loud, 0.2, 0.02)[:, None]
    torch.manual_seed(0)
    model = InternalModel(spec, net_arch=[32], members=2)
    fit(model, state, np.zeros((n, 1), dtype=np.float32), target.astype(np.float32))
    _, var = model.moments(state[:2], np.zeros((2, 1), dtype=np.float32))
    np.testing.assert_allclose(np.sqrt(var.mean(axis=(0, 2))), [0.02, 0.2], rtol=0.2)


def test_the_gate_learns_where_nothing_moves() -> None:
    """A ring of numbers turns by one, unless a flag says that it is blocked: the regression has to compromise."""
    spec = make_spec(spaces.Box(-np.inf, np.inf, (13,), dtype=np.float32))
    generator = np.random.default_rng(0)
    n = 4000
    ring, blocked = generator.normal(size=(n, 12)), np.arange(n) % 10 == 0
    turned = np.where(blocked[:, None], ring, np.roll(ring, 1, axis=1))
    state = np.column_stack([blocked, ring, np.full((n, 2), 0.5)]).astype(np.float32)
    target = np.column_stack([blocked, turned]).astype(np.float32)
    action = np.zeros((n, 1), dtype=np.float32)
    torch.manual_seed(0)
    model = WorldModel(spec, net_arch=[64], members=2)
    fit(model, state[500:], action[500:], target[500:], steps=300)
    mean, _ = model.moments(state[:500], action[:500])
    expected = model.regress(state[:500], action[:500])
    rows = blocked[:500]
    wrong = [np.square(guess - target[:500])[rows].mean() for guess in (mean.mean(axis=0), expected)]
    assert wrong[1] > 1.0 and wrong[0] < 0.02 * wrong[1]


def test_the_clip_lets_gradients_back_inside_and_not_further_off() -> None:
    gate = torch.tensor([-1.0, -1.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    clipped: torch.Tensor = Clip.apply(gate)
    (clipped * torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])).sum().backward()  # descent goes up, down, up ...
    assert clipped.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert gate.grad is not None and gate.grad.tolist() == [-1.0, 0.0, -1.0, 1.0, 0.0, 1.0]


def test_probabilities_of_a_markov_chain_are_learned() -> None:
    chain = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.3, 0.3, 0.4]])
    spec = make_spec(spaces.Discrete(3), spaces.Discrete(2))
    generator = np.random.default_rng(0)
    n = 6000
    now, action = generator.integers(3, size=n), generator.integers(2, size=n)
    # Action 1 turns the chain around.
    rows = np.where(action[:, None], chain[now][:, ::-1], chain[now])
    after = (generator.random((n, 1)) > rows.cumsum(axis=1)).sum(axis=1)
    state = spec.encode(now, np.zeros((n, 2)))
    torch.manual_seed(0)
    model = WorldModel(spec, net_arch=[32], members=2)
    fit(model, state, np.eye(2, dtype=np.float32)[action], np.eye(3, dtype=np.float32)[after])
    everything = spec.encode(np.repeat(np.arange(3), 2), np.zeros((6, 2)))
    mean, _ = model.moments(everything, np.tile(np.eye(2, dtype=np.float32), (3, 1)))
    np.testing.assert_allclose(mean[:, 0::2].mean(axis=0), chain, atol=0.05)
    np.testing.assert_allclose(mean[:, 1::2].mean(axis=0), chain[:, ::-1], atol=0.05)


def test_members_disagree_where_there_was_no_data() -> None:
    spec = make_spec(spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32))
    generator = np.random.default_rng(0)
    state = np.column_stack([generator.uniform(-1, 1, 4000), np.zeros((4000, 2))]).astype(np.float32)
    action = np.zeros((4000, 1), dtype=np.float32)
    target = np.sin(4 * state[:, :1]) + np.zeros((1, 2), dtype=np.float32)
    torch.manual_seed(0)
    model = InternalModel(spec, net_arch=[32], members=4)
    fit(model, state, action, target.astype(np.float32))
    far = state[:100].copy()
    far[:, 0] += 3.0
    assert model.disagreement(far, action[:100]).mean() > 5 * model.disagreement(state[:100], action[:100]).mean()


# Imagination


def test_internal_model_counts_where_the_observation_shows_the_variable() -> None:
    world, state, action, _ = untrained(shown=[[11, 0]])
    internal, *_ = untrained(InternalModel)
    dynamics = LearnedDynamics(world, internal)
    members = np.zeros(len(state), dtype=np.intp)
    following = dynamics.step(state, action, members, np.random.default_rng(0))
    assert following.shape == state.shape
    np.testing.assert_array_equal(following[:, 11], following[:, 12])
    assert (following[:, 10] != following[:, 13]).all()
    # A column that is found to be noisy is left to the world model.
    world.compare(torch.as_tensor(state[:, :12]), torch.as_tensor(state[:, 12:]))
    following = dynamics.step(state, action, members, np.random.default_rng(0))
    assert (following[:, 11] != following[:, 12]).any()


def test_rollout_repeats_steps_with_a_plan_or_a_policy() -> None:
    world, state, action, _ = untrained()
    internal, *_ = untrained(InternalModel)
    dynamics = LearnedDynamics(world, internal)
    members = np.arange(len(state)) % 3
    plan = np.stack([action, -action, 0 * action])
    noise = np.random.default_rng(5)
    step = state
    expected = [step := dynamics.step(step, move, members, noise) for move in plan]
    for actions in (plan, lambda t, s: plan[t]):
        np.testing.assert_array_equal(
            rollout(dynamics, state, actions, 3, members, np.random.default_rng(5)), np.stack(expected)
        )


@pytest.mark.parametrize("action", [spaces.Discrete(3, start=1), STEER])
def test_known_dynamics_speak_the_environment_language(action: spaces.Space[Any]) -> None:
    spec = make_spec(MIXED, action)
    _, state, _, _ = untrained()
    given: dict[str, Any] = {}

    def function(observation: Any, internal: Any, action: Any) -> Any:
        given.update(observation=observation, internal=internal, action=action)
        return {**observation, "kind": 4 - observation["kind"]}, internal + action.reshape(-1, 1)

    action.seed(0)
    executed = np.stack([action.sample() for _ in range(len(state))])
    dynamics = KnownDynamics(spec, function)
    following = dynamics.step(state, spec.encode_action(executed), np.zeros(len(state), dtype=np.intp), None)
    np.testing.assert_allclose(given["action"], executed, atol=1e-6)
    np.testing.assert_array_equal(following[:, 2:5], state[:, 2:5][:, ::-1])
    np.testing.assert_allclose(following[:, 12:], state[:, 12:] + executed.reshape(-1, 1), rtol=1e-5)
    wrong = KnownDynamics(spec, lambda observation, internal, action: (observation, internal[:, :1]))
    with pytest.raises(TypeError, match="known dynamics"):
        wrong.step(state, spec.encode_action(executed), np.zeros(len(state), dtype=np.intp), None)


# Saving and wrong use


@pytest.mark.parametrize("kind", [InternalModel, WorldModel])
def test_is_rebuilt_from_what_was_saved(kind: Any, tmp_path: Any) -> None:
    model, state, action, _ = untrained(kind, **({"shown": [[11, 0]]} if kind is WorldModel else {}))
    persist = PersistState()
    persist.register("model", model)
    persist.save(tmp_path / "state.zip")
    saved = PersistState.load(tmp_path / "state.zip").pending["model"]
    again = rebuild(saved, make_spec(), kind)
    for one, other in zip(model.moments(state, action), again.moments(state, action), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="observation"):
        rebuild(saved, make_spec(spaces.Discrete(3)), kind)


def test_wrong_models_are_refused() -> None:
    image = spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8)
    with pytest.raises(TypeError, match="image"):
        WorldModel(make_spec(image))
    with pytest.raises(TypeError, match="fixed size"):
        WorldModel(make_spec(spaces.Sequence(spaces.Discrete(2))))
    with pytest.raises(ValueError, match="members=0"):
        InternalModel(make_spec(), members=0)
    with pytest.raises(ValueError, match="no observation column 12"):
        WorldModel(make_spec(), shown=[[12, 0]])
    with pytest.raises(ValueError, match="observation"):
        LearnedDynamics(WorldModel(make_spec()), InternalModel(make_spec(spaces.Discrete(2))))
