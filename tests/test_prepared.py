"""What small batches need is made once, and follows every change, wherever that comes from."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from persist_sb3.intrinsic import Empowerment
from persist_sb3.models.heads import as_slice
from persist_sb3.models.linear import LinearFit
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.prediction import LOG_VAR_HIGH, LOG_VAR_LOW
from persist_sb3.models.prepared import FEW, Prepared, Views
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.viability import ViabilitySet

BOX = spaces.Box(-np.inf, np.inf, (4,), dtype=np.float32)
SPEC = StateSpec(BOX, spaces.Discrete(3), ViabilitySet(["x >= 0.1"], ["x"]))


class Squares:
    """Squares of some numbers, and how often they were computed."""

    def __init__(self, *values: float) -> None:
        self.tensor = torch.tensor(values)
        self.calls = 0
        self.prepared = Prepared(self.square, self.tensor)

    def square(self, values: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.square(values)

    def __call__(self) -> Any:
        return self.prepared().tolist()


def test_it_is_made_once_until_a_tensor_changes() -> None:
    squares = Squares(2.0, 3.0)
    assert squares() == squares() == [4.0, 9.0]
    assert squares.calls == 1
    squares.tensor += 1.0
    assert squares() == [9.0, 16.0]
    # As another process does it, of which torch here knows nothing.
    squares.tensor.share_memory_()
    squares.tensor.numpy()[0] = -1.0
    assert squares() == [1.0, 16.0]


COPIES = pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])


@COPIES
def test_a_copy_follows_its_own_tensor(again: Any) -> None:
    squares = Squares(2.0)
    assert squares() == [4.0]
    other = again(squares)
    other.tensor.fill_(5.0)
    assert (squares(), other()) == ([4.0], [25.0])


@COPIES
def test_a_copied_model_learns_by_itself(again: Any) -> None:
    torch.manual_seed(0)
    model, state, action = WorldModel(SPEC, [8], 2), torch.randn(600, 5), torch.eye(3)[torch.arange(600) % 3]
    question = state[:4].numpy(), action[:4].numpy(), state[4:8, :4].numpy()
    before = model.surprise(*question)
    other = again(model)
    other.measure(state, action, 3.0 * state[:, :4])
    np.testing.assert_array_equal(model.surprise(*question), before)
    np.testing.assert_allclose(other.regress(*question[:2]), 3.0 * question[0][:, :4], atol=1e-3)
    assert not np.allclose(other.surprise(*question), before)


def test_views_follow_a_move() -> None:
    linear = LinearFit(2, 3, 1)
    views, x, group = Views(linear.weight), np.ones((2, 3), np.float32), np.array([0, 1])
    assert np.shares_memory(views()[0], linear.weight.numpy())
    linear.answer(x, group)
    linear.double().float()
    linear.weight.fill_(2.0)
    assert np.shares_memory(views()[0], linear.weight.numpy())
    np.testing.assert_allclose(linear.answer(x, group), 6.0)


@pytest.mark.parametrize("columns", [[], [3], [2, 3, 4], [0, 2], [3, 2]])
def test_slices_index_as_columns_do(columns: list[int]) -> None:
    rows, index = np.arange(10).reshape(2, 5), np.array(columns, dtype=np.intp)
    np.testing.assert_array_equal(rows[:, as_slice(index)], rows[:, index])
    assert isinstance(as_slice(index), slice) == (columns not in ([0, 2], [3, 2]))


def test_variances_are_those_of_the_two_softplus() -> None:
    model = WorldModel(SPEC, [8], 1)
    raw = torch.cat([torch.linspace(-20.0, 20.0, 4001), torch.tensor([-1e30, -200.0, 200.0, 1e30])])
    outputs = torch.zeros(len(raw), model.outputs)
    outputs[:, 4:8] = raw[:, None]
    expected = model._split(outputs.double()).log_var.exp()
    with np.errstate(over="raise"):
        var = model._distribution(outputs.numpy()).var
    np.testing.assert_allclose(var, expected, rtol=1e-5)
    np.testing.assert_allclose(var[[-3, -1], 0], np.exp([LOG_VAR_LOW, LOG_VAR_HIGH]), rtol=1e-4)


def test_a_loaded_model_is_surprised_as_the_saved_one() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def experienced(mean: float) -> tuple[WorldModel, np.ndarray]:
        # Nothing ever changes, so that the two have the same counts and regressions.
        state = np.tile(np.append(rng.normal(mean, 1.0, 4), 0.5), (20, 1)).astype(np.float32)
        model = WorldModel(SPEC, [8], 2)
        model.measure(*map(torch.as_tensor, (state, np.eye(3, dtype=np.float32)[np.arange(20) % 3], state[:, :4])))
        return model, state

    (saved, state), (other, _) = experienced(0.0), experienced(9.0)
    question: Any = state[:3], np.eye(3, dtype=np.float32), state[:3, :4] + 1.0
    expected = saved.surprise(*question)
    assert not np.allclose(other.surprise(*question), expected)
    other.load_state_dict(saved.state_dict())
    np.testing.assert_array_equal(other.surprise(*question), expected)


@pytest.mark.parametrize("rows", [1, 8, FEW, FEW + 1, 100])
def test_any_number_of_rows_has_the_same_answer(rows: int) -> None:
    torch.manual_seed(0)
    ensemble, standardizer = EnsembleMLP(3, [4, 8, 2]), Standardizer(4)
    fast, whiten = NumpyEnsemble(ensemble), standardizer.numpy()
    x = torch.randn(rows, 4) * 3.0 + 1.0

    def agree() -> None:
        with torch.no_grad():
            expected = ensemble(standardizer(x)).numpy()
        np.testing.assert_allclose(fast(whiten(x.numpy())), expected, rtol=1e-4, atol=1e-5)

    agree()
    standardizer.update(torch.randn(50, 4) + 2.0)
    with torch.no_grad():
        ensemble.biases[0][1] += 1.0
        ensemble.weights[1][2] *= 2.0
    agree()


def test_moments_are_those_of_all_batches_together() -> None:
    rows = torch.randn(700, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 30.0]) + 5.0
    standardizer = Standardizer(3)
    for batch in rows.split([1, 8, 300, 2, 389]):
        standardizer.update(batch)
    assert standardizer.count == 700
    np.testing.assert_allclose(standardizer.mean, rows.mean(dim=0), rtol=1e-5)
    np.testing.assert_allclose(standardizer.var, rows.var(dim=0, correction=0), rtol=1e-4)


def test_gradients_of_the_last_member_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    network, x, target = EnsembleMLP(3, [4, 8, 8, 2]), torch.randn(6, 4), torch.randn(6, 2)
    loss = (network(x)[-1] - target).square().mean()
    loss.backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    assert network.backpropagate(x, lambda outputs: outputs[-1] - target) == pytest.approx(loss.item())
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_empowerment_learns_what_it_is_told_in_nats() -> None:
    torch.manual_seed(0)
    model = Empowerment(SPEC, horizon=2, net_arch=[16])
    state, value = torch.randn(64, 5), torch.full((64,), 1.5)
    loss = model.backpropagate(state, value)
    assert loss == pytest.approx(((model(state) - value) / model.full).square().mean().item(), rel=1e-5)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.01)
    for _ in range(200):
        model.backpropagate(state, value)
        optimizer.step()
    model.updates += 1
    np.testing.assert_allclose(model.value(state.numpy()), 1.5, atol=0.3)
