"""What else a viability critic can learn: classification, from few labels, and from counter-examples."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.buffers import CounterExamples, Demonstrations, Transitions
from persist_sb3.callbacks import ViabilityCallback
from persist_sb3.models.objectives import UNIT, Classifier, ObjectiveName, Reachability, make_objective
from persist_sb3.models.spec import StateSpec
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import VecInternalState
from tests.test_viability_callback import CONSTRAINTS, LEVEL, NEXT, Tables


def doomed() -> NDArray[np.bool_]:
    """Which actions of the states alive end in death whatever follows, by taking states away, ``(7, 3)``."""
    alive = LEVEL >= 0.0
    for _ in range(len(LEVEL)):
        alive = alive & alive[NEXT].any(axis=1)
    dead: NDArray[np.bool_] = ~alive[NEXT[:7]]
    return dead


def learned(objective: ObjectiveName) -> NDArray[np.float32]:
    """Values of every action of the states alive, ``(7, 3)``."""
    venv = VecInternalState(
        DummyVecEnv([Tables] * 4), dims=["level"], constraints=CONSTRAINTS, mu=[1.0], low=[-1.0], high=[1.0]
    )
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=256, n_epochs=1, seed=0, device="cpu", learning_rate=1e-9)
    callback = ViabilityCallback(
        objective, gamma=0.8, tau=0.05, net_arch=[64], batch_size=128, train_freq=1, gradient_steps=3
    )
    model.learn(3072, callback=callback)
    states = np.arange(7)
    values: NDArray[np.float32] = callback.actor.values(callback.spec.encode(states, LEVEL[states, None]))
    return values[:, :, 0]


def test_the_classifier_finds_what_is_doomed() -> None:
    values = learned("classifier")
    np.testing.assert_array_equal(values < 0.0, doomed())


def test_without_discount_it_judges_single_steps() -> None:
    single = Classifier(focus=0.0)
    margin, following = torch.tensor([[0.3], [-0.1]]), torch.tensor([[-5.0], [5.0]])
    terminal = torch.tensor([[False], [False]])
    logits = torch.tensor([[[0.1], [0.1]]])
    p = torch.sigmoid(logits / UNIT)[0, :, 0]
    expected = -(torch.log(p[0]) + torch.log(1.0 - p[1])) / 2.0
    assert torch.allclose(single(logits, margin, following, terminal, 0.0), expected)


def test_failures_alone_leave_the_middle_out() -> None:
    margin = torch.tensor([[-0.2], [0.1], [0.4], [0.6]])
    predicted = torch.zeros(2, 4, 1, requires_grad=True)
    nothing, no = torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.bool)
    loss = Classifier(labels="failures", far=0.5)(predicted, margin, nothing, no, 0.9)
    loss.backward()
    assert predicted.grad is not None
    slope = predicted.grad[0, :, 0]
    assert slope[0] > 0.0 and slope[3] < 0.0  # down where it broke, up where it is far inside
    assert slope[1] == slope[2] == 0.0
    # Two that count: each is -log(1/2) times (1/2) ** 2.
    assert float(loss.detach()) == pytest.approx(np.log(2.0) / 4.0)


def test_focal_loss_by_hand() -> None:
    v = torch.tensor([[[0.2]]], dtype=torch.float64)
    margin, no = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[False]])
    following = torch.tensor([[-0.2]], dtype=torch.float64)
    p, later = 1.0 / (1.0 + np.exp(-0.2 / UNIT)), 1.0 / (1.0 + np.exp(0.2 / UNIT))
    y = 0.25 + 0.75 * later
    expected = abs(y - p) ** 3 * -(y * np.log(p) + (1.0 - y) * np.log(1.0 - p))
    assert float(Classifier(focus=3.0)(v, margin, following, no, 0.75)) == pytest.approx(expected)
    # Where nothing follows, what is inside stays inside.
    ended = Classifier(focus=3.0)(v, margin, following, ~no, 0.75)
    assert float(ended) == pytest.approx((1.0 - p) ** 3 * -np.log(p))


@pytest.mark.parametrize("expectile", [0.5, 0.2, 0.05])
def test_the_value_is_an_expectile_of_what_chance_brings(expectile: float) -> None:
    """A step that is fatal once in 20 times: by definition ``tau E[(g - v)+] = (1 - tau) E[(v - g)+]``."""
    margin = torch.tensor([[0.3]] * 19 + [[-0.5]], dtype=torch.float64)
    expected = (19 * expectile * 0.3 - (1.0 - expectile) * 0.5) / (19 * expectile + (1.0 - expectile))
    value = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    descent, over = torch.optim.LBFGS([value], max_iter=100), torch.ones(20, 1, dtype=torch.bool)

    def loss() -> Any:
        descent.zero_grad()
        error = Reachability(expectile)(value.expand(2, 20, 1), margin, margin, over, 0.9)
        error.backward()
        return error

    for _ in range(5):
        descent.step(loss)
    assert float(value.detach()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "kwargs", "error", "match"),
    [
        ("barrier", None, ValueError, "objective='barrier'"),
        ("classifier", {"labels": "guess"}, ValueError, "labels='guess'"),
        ("classifier", {"focus": -1.0}, ValueError, "focus=-1"),
        ("classifier", {"far": 0.0}, ValueError, "far=0"),
        ("reachability", {"far": 1.0}, TypeError, "objective='reachability'"),
        ("reachability", {"expectile": 0.0}, ValueError, "expectile=0"),
    ],
)
def test_wrong_objectives(objective: str, kwargs: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make_objective(objective, kwargs)


def test_reachability_is_the_default() -> None:
    assert isinstance(ViabilityCallback().objective, Reachability)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("counter_examples", 1.0), ("near_boundary", 1.5), ("near_boundary_eps", 0.0), ("disagreement_quantile", 1.0)],
)
def test_out_of_range(parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{parameter}={value}"):
        ViabilityCallback(**{parameter: value})  # type: ignore[arg-type]


SPACE = spaces.Dict(
    {"sight": spaces.Box(-1, 1, (2,), dtype=np.float32), "internal": spaces.Box(0, 1, (2,), dtype=np.float32)}
)
SET = ViabilitySet(["a >= 0.2", "a + b <= 1.5"], ["a", "b"], mu=[0.6, 0.5], low=[0.0, 0.0], high=[1.0, np.inf])
ENTRIES = {"a": "obs.internal[0]", "b": "obs.internal[1]"}


def inside(n: int, seed: int) -> Transitions:
    generator = np.random.default_rng(seed)
    x = generator.uniform([0.3, 0.1], [0.8, 0.6], (n, 2))
    sight = generator.normal(size=(n, 2)).astype(np.float32)
    observation = {"sight": sight, "internal": x.astype(np.float32)}
    no = np.zeros(n, dtype=bool)
    action = generator.integers(3, size=n)
    zero = np.zeros(n)
    return Transitions(observation, observation, action, action, zero, {}, x, x, zero, no, no, no)


def test_counter_examples_are_outside_and_look_like_it() -> None:
    spec = StateSpec(SPACE, spaces.Discrete(3), SET)
    given = inside(500, 0)
    outside = CounterExamples(spec, ENTRIES).draw(given, np.random.default_rng(1))
    assert len(outside) > 450
    assert not SET.contains(outside.next_internal).any()
    assert outside.terminated.all() and (outside.cost == 1.0).all()
    np.testing.assert_array_equal(outside.observation["internal"], outside.internal.astype(np.float32))
    # One variable of a state that was given is changed, and nothing else; both are, in some.
    seen = {row.tobytes(): x for row, x in zip(given.observation["sight"], given.next_internal, strict=True)}
    changed = np.array(
        [seen[row.tobytes()] != x for row, x in zip(outside.observation["sight"], outside.internal, strict=True)]
    )
    assert (changed.sum(axis=1) == 1).all() and changed.any(axis=0).all()
    assert (outside.internal[:, 0] >= 0.0).all()
    assert set(outside.executed_action.tolist()) == {0, 1, 2}


def test_a_share_of_the_batch_gives_way() -> None:
    spec = StateSpec(SPACE, spaces.Discrete(3), SET)
    mixed = CounterExamples(spec, ENTRIES).mixed(inside(400, 0), 0.25, np.random.default_rng(1))
    assert SET.contains(mixed.next_internal).sum() == 300
    assert 90 < (~SET.contains(mixed.next_internal)).sum() <= 100


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_demonstrations_alone_do_not_show_where_harm_begins(share: float) -> None:
    """Pre-trained on what stays alive, only a critic that saw counter-examples knows how far outside the outside is."""
    path = np.resize([0, 1, 2, 3, 2, 1], 101)
    states, follow = path[:-1], path[1:]
    action = (NEXT[states] == follow[:, None]).argmax(axis=1)
    done = np.arange(100) == 99
    no = np.zeros(100, dtype=bool)
    zero = np.zeros(100)
    episode = Transitions(
        states, follow, action, action, zero, {}, LEVEL[states, None], LEVEL[follow, None], zero, no, done, done
    )
    venv = VecInternalState(
        DummyVecEnv([Tables] * 2), dims=["level"], constraints=CONSTRAINTS, mu=[1.0], low=[-1.0], high=[1.0]
    )
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    viability = ViabilitySet(CONSTRAINTS, ["level"], mu=[1.0], low=[-1.0], high=[1.0])
    callback = ViabilityCallback(
        net_arch=[32], demonstrations=Demonstrations(episode, viability), pretrain_steps=600, counter_examples=share
    )
    model.learn(16, callback=callback)
    beyond = np.linspace(-0.9, -0.3, 7)
    values = callback.actor.values(callback.spec.encode(np.full(7, 2), beyond[:, None]))[:, :, 0]
    error = np.abs(values - beyond[:, None]).max()
    assert error < 0.25 if share else error > 0.4


def test_the_near_boundary_share_and_disagreement_are_asked() -> None:
    drawn: list[Transitions] = []

    class Watch(ViabilityCallback):
        def _update(self, batch: Transitions) -> Any:
            drawn.append(batch)
            return super()._update(batch)

    def learn(**kwargs: Any) -> float:
        drawn.clear()
        venv = VecInternalState(
            DummyVecEnv([Tables] * 4), dims=["level"], constraints=CONSTRAINTS, mu=[1.0], low=[-1.0], high=[1.0]
        )
        model = PPO("MlpPolicy", venv, n_steps=64, batch_size=256, n_epochs=1, seed=0, device="cpu")
        callback = Watch(net_arch=[8], learning_starts=100, **kwargs)
        model.learn(1024, callback=callback)
        near = [((b.internal >= 0.0) & (b.internal < 0.15)).any() for b in drawn]
        assert any(near)
        every = np.concatenate([np.minimum(np.abs(b.internal), np.abs(b.next_internal))[:, 0] for b in drawn])
        return float((every < 0.15).mean())

    plain = learn()
    # Only state 6 (level 0.1) is that near.
    near = learn(near_boundary=0.5, near_boundary_eps=0.15, disagreement_quantile=None)
    assert near > plain + 0.25
    asked = learn(near_boundary=0.5, near_boundary_eps=0.15, disagreement_quantile=0.5)
    assert plain < asked < near  # what is disputed is elsewhere, too
