"""BeliefState: what it shows, in every form, and what the shield makes of it."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.batch import flatten
from persist_sb3.draws import Draws
from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.belief import BeliefColumns, GRUBelief, prior
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.rollouts import PolicyBackup, RolloutVerifier
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    BeliefError,
    BeliefState,
    InternalState,
    PartialObservation,
    ReachAvoidPlanner,
    VecActionShield,
    VecBeliefState,
    VecInternalState,
    VecPartialObservation,
    VecReachAvoidPlanner,
    VectorBeliefState,
    VectorInternalState,
    VectorPartialObservation,
)
from tests.test_adapters import NUM_ENVS, Trajectory, run_sb3, run_vector
from tests.toys import Walker
from tests.trainings import LIMITS as INTERNAL

SPARSE: dict[str, Any] = {"noise": {"battery": 0.05}, "dropout": {"battery": 0.5}}


def drained(observation: Any, internal: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
    """The Walker's own rule."""
    effort = np.abs(action.reshape(len(internal), -1)).sum(axis=1)
    return internal - np.stack([0.03 + 0.02 * effort, np.zeros(len(internal))], axis=1)


EKF: dict[str, Any] = {
    "estimator": "ekf",
    "dynamics": drained,
    "process_noise": {"battery": 0.001, "heat": 0.02},
    "measurement_noise": {"battery": 0.05, "heat": 0.001},
    "initial_std": {"battery": 0.06, "heat": 0.06},
}


def make(observation: str = "discrete", action: str = "discrete", **belief: Any) -> BeliefState:
    return BeliefState(PartialObservation(InternalState(Walker(observation, action), **INTERNAL), **SPARSE), **belief)


def make_model(env: BeliefState) -> GRUBelief:
    """A belief with weights and statistics, as after a training."""
    torch.manual_seed(0)
    model = GRUBelief(env.layer.spec, ["battery"], memory=7, net_arch=[5])
    space = env.layer.spec.observation_space
    space.seed(0)
    seen = flatten(space, np.stack([space.sample() for _ in range(50)])) if not isinstance(space, spaces.Dict) else None
    rows = torch.randn(50, env.layer.spec.observation_dim) if seen is None else torch.as_tensor(seen).float()
    model.measure(rows, torch.rand(50, 1))
    model.updates.fill_(1)
    return model


def forms(observation: str, action: str, bundle: dict[str, Any], **belief: Any) -> dict[str, list[Trajectory]]:
    def vec(env: Any) -> Any:
        return VecBeliefState(VecPartialObservation(VecInternalState(env, **INTERNAL), **SPARSE), **belief)

    def vector(mode: AutoresetMode) -> Any:
        env: Any = SyncVectorEnv([lambda: Walker(observation, action)] * NUM_ENVS, autoreset_mode=mode)
        return VectorBeliefState(VectorPartialObservation(VectorInternalState(env, **INTERNAL), **SPARSE), **belief)

    single: Any = DummyVecEnv([lambda: make(observation, action, **belief)] * NUM_ENVS)
    single.env_method("bind", bundle, training=False)
    batched = vec(DummyVecEnv([lambda: Walker(observation, action)] * NUM_ENVS))
    vectors = {mode.name: vector(mode) for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)}
    for env in (batched, *vectors.values()):
        env.bind(bundle, training=False)
    found = {name: run_vector(env) for name, env in vectors.items()}
    return {"gymnasium": run_sb3(single), "VecEnv": run_sb3(batched), **found}


def flat(observation: Any) -> Any:
    if not isinstance(observation, dict):
        return observation
    return np.concatenate([np.ravel(observation[key]) for key in sorted(observation)])


@pytest.mark.parametrize(
    ("estimator", "observation", "action"),
    [
        ("gru", "box", "discrete"),
        ("gru", "dict", "box"),
        ("gru", "tuple", "discrete"),
        ("gru", "discrete", "multidiscrete"),
        ("ekf", "dict", "discrete"),
        ("ekf", "tuple", "box"),
    ],
)
def test_all_forms_show_the_same(observation: str, action: str, estimator: str) -> None:
    belief = EKF if estimator == "ekf" else {}
    bundle = {} if estimator == "ekf" else {"belief": make_model(make(observation, action))}
    first, *others = forms(observation, action, bundle, **belief).values()
    for other in others:
        for one, two in zip(first, other, strict=True):
            for left, right in zip(one, two, strict=True):
                for part in (0, 3):  # the observation and its successor
                    np.testing.assert_allclose(flat(left[part]), flat(right[part]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("observation", "action"), [("box", "discrete"), ("dict", "multidiscrete"), ("discrete", "box")]
)
def test_the_belief_is_what_torch_makes_of_each_episode(observation: str, action: str) -> None:
    env = make(observation, action)
    model, spec = make_model(env), env.layer.spec
    trajectories = forms(observation, action, {"belief": model})["VecEnv"]
    k = 0
    for trajectory in trajectories:
        episodes: list[Trajectory] = [[]]
        for row in trajectory:
            episodes[-1].append(row)
            if row[-1]:
                episodes.append([])
        for episode in filter(None, episodes):
            k += 1
            shown = [episode[0][0], *(row[3] for row in episode)]
            if isinstance(spec.observation_space, spaces.Dict):
                keys = spec.observation_space.spaces
                inputs = np.concatenate(
                    [flatten(spec.observation_space, {key: np.asarray(o[key])[None] for key in keys}) for o in shown]
                )
                beliefs = np.array([o["belief"] for o in shown])
            else:
                inputs, beliefs = np.split(np.array(shown), [spec.observation_dim], axis=1)
            actions = spec.encode_action(np.array([row[1] for row in episode]))
            actions = np.concatenate([np.zeros((1, spec.action_dim)), actions])
            with torch.no_grad():
                mean, log_var = model(
                    torch.as_tensor(inputs).float()[None], torch.as_tensor(actions).float()[None], torch.zeros(1, 7)
                )
            scale = (model.target.var + 1e-8).sqrt()
            expected = (model.target.mean + scale * mean[0]).clamp(0.0, 1.0)
            np.testing.assert_allclose(beliefs[:, :1], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(beliefs[:, 1:], scale**2 * log_var[0].exp(), rtol=1e-3, atol=1e-6)
    assert k > NUM_ENVS


def test_the_kalman_filter_is_the_closed_form_of_its_variable() -> None:
    """With known drain and Gaussian sightings, the battery's posterior is that of a normal mean, shifted along."""
    for trajectory in forms("discrete", "discrete", {}, **EKF)["VecEnv"]:
        for before, action, _, after, _ in trajectory:
            (mean, variance), (battery, _, following, spread) = before[-2:], after[-4:]
            mean, variance = mean - 0.03 - 0.02 * action, variance + 0.001**2
            if battery != 0.0:
                precision = 1.0 / variance + 1.0 / 0.05**2
                mean, variance = (mean / variance + battery / 0.05**2) / precision, 1.0 / precision
            assert following == pytest.approx(np.clip(mean, 0.0, 1.0), abs=1e-5)
            assert spread == pytest.approx(variance, rel=1e-4)


def test_an_episode_begins_anew() -> None:
    env = make(**EKF)
    for _ in range(2):
        observation, _ = env.reset(seed=3)
        for _ in range(5):
            env.step(0)
        again, _ = env.reset(seed=3)
        np.testing.assert_array_equal(observation, again)


def test_before_anything_is_learned_it_shows_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests in this process may have loaded a policy with a belief.
    monkeypatch.setattr("persist_sb3.wrappers.belief_state.last_loaded", lambda: None)
    env = make()
    observation, _ = env.reset(seed=0)
    with pytest.warns(UserWarning, match="BeliefState has no model"):
        following = env.step(0)[0]
    for shown in (observation, following):
        np.testing.assert_allclose(shown[-2:], [0.8, 1.0 / 12.0], rtol=1e-6)
        assert shown in env.observation_space
    untrained = GRUBelief(env.layer.spec, ["battery"])
    env.bind({"belief": untrained}, training=True)
    np.testing.assert_allclose(env.step(0)[0][-2:], [0.8, 1.0 / 12.0], rtol=1e-6)


def test_the_prior_where_little_is_declared() -> None:
    mean, variance = prior(
        ViabilitySet(["a >= 1", "b >= 0.1"], ["a", "b"], low=[0.0, 0.0], high=[np.inf, 1.0], scale=[1.0, 1.0])
    )
    np.testing.assert_allclose(mean, [0.0, 0.5])
    np.testing.assert_allclose(variance, [1.0, 1.0 / 12.0])


def test_a_model_that_is_bound_late_sees_the_first_observation() -> None:
    env = make()
    model = make_model(env)
    early, late = make(), make()
    early.bind({"belief": model}, training=False)
    seen = [early.reset(seed=1)[0]]
    late.reset(seed=1)
    late.bind({"belief": model}, training=False)
    for _ in range(4):
        seen.append(early.step(1)[0])
        np.testing.assert_array_equal(seen[-1], late.step(1)[0])


def test_evaluation_changes_nothing() -> None:
    env = make()
    model = make_model(env)
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    env.bind({"belief": model}, training=False)
    env.reset(seed=0)
    for _ in range(8):
        env.step(0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_gridlife_hides_energy_in_all_forms() -> None:
    env = gym.make("GridLifeHidden-v0")
    observation, info = env.reset(seed=0)
    assert observation["internal"][0] == 0.0 and info["internal"][0] > 0.5
    assert set(env.get_wrapper_attr("internal_entries")) == {"temp", "integrity"}
    envs: Any = gym.make_vec("GridLifeHidden-v0", num_envs=2)
    batch, _ = envs.reset(seed=0)
    for key, value in observation.items():
        np.testing.assert_array_equal(batch[key][0], value)
    belief = VectorBeliefState(VectorInternalState(envs))
    assert belief.layer.variables == ("energy",)
    assert belief.reset(seed=0)[0]["belief"].shape == (2, 2)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"variables": ["heat"]}, RuntimeError, "'heat' is not hidden.*Hidden are: battery"),
        ({"variables": ["batery"]}, RuntimeError, "did you mean 'battery'"),
        ({"variables": []}, ValueError, "variables="),
        ({"variables": "battery"}, ValueError, "list of names"),
        ({"estimator": "ukf"}, ValueError, "estimator='ukf'"),
        ({"estimator": "ekf"}, ValueError, "needs dynamics"),
        ({"estimator": "ekf", "dynamics": "model"}, ValueError, "needs dynamics.*'model'"),
        ({"dynamics": drained}, ValueError, "no use for dynamics"),
        ({**EKF, "process_noise": -1.0}, ValueError, "process_noise=-1.0"),
        ({**EKF, "initial_std": {"battery": np.nan}}, ValueError, "initial_std=nan"),
        ({**EKF, "measurement_noise": {"fuel": 1.0}}, RuntimeError, "measurement_noise: unknown .*'fuel'"),
    ],
)
def test_wrong_parameters_are_refused_at_construction(kwargs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_wrong_wiring_is_refused() -> None:
    shown = InternalState(Walker(), **INTERNAL)
    with pytest.raises(RuntimeError, match="nothing to estimate"):
        BeliefState(shown)
    with pytest.raises(RuntimeError, match="use one BeliefState"):
        BeliefState(make("dict"))
    env = make()
    with pytest.raises(BeliefError, match="cannot use the part 'belief'"):
        env.bind({"belief": make_model(make("box"))}, training=True)
    with pytest.raises(BeliefError, match="estimates battery, and the model heat"):
        env.bind({"belief": GRUBelief(env.layer.spec, ["heat"])}, training=True)
    env = make()
    env.reset(seed=0)
    env.bind({}, training=True)
    with pytest.raises(BeliefError, match="BeliefCallback"):
        env.step(0)


def test_dynamics_of_the_wrong_shape_are_refused() -> None:
    env = make(estimator="ekf", dynamics=lambda o, x, a: x[:, :1])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="f has the shape"):
        env.step(0)


# The shield


class Watched:
    """Dynamics in which nothing changes, that note what they are asked."""

    members = 1

    def __init__(self) -> None:
        self.states: list[NDArray[Any]] = []

    def step(self, state: Any, action: Any, members: Any, noise: Any) -> Any:
        self.states.append(state)
        return state


def shield(build: Callable[..., Any] = ActionShield, **kwargs: Any) -> tuple[Any, Watched]:
    dynamics = Watched()
    kwargs = {"mode": "search", "dynamics": dynamics, "backup": lambda o, x: np.zeros(len(x), int), **kwargs}
    return build(make(**EKF), **kwargs), dynamics


def test_the_shield_imagines_from_samples_of_the_belief() -> None:
    env, dynamics = shield(rollouts=2000, horizon=1, min_updates=0)
    observation, info = env.reset(seed=0)
    env.step(0)
    start = dynamics.states[0]
    battery, heat = start[:, -2], start[:, -1]
    mean, variance = observation[-2:]
    assert battery.mean() == pytest.approx(float(mean), abs=4.0 * float(variance / 2000.0) ** 0.5)
    assert battery.std() == pytest.approx(float(variance) ** 0.5, rel=0.08)
    np.testing.assert_array_equal(heat, np.float32(info["internal"][1]))
    # The observation itself is certain.
    assert (start[:, :-2] == start[0, :-2]).all()


def test_all_actions_are_judged_from_the_same_samples() -> None:
    env = make(**EKF)
    spec = StateSpec(env.observation_space, env.action_space, env.layer.viability)
    dynamics = Watched()
    columns = BeliefColumns.find(spec, env.belief_entries)
    backup = PolicyBackup(spec, lambda o, x: np.zeros(len(x), int))
    search = RolloutVerifier(spec, dynamics, backup, rollouts=16, horizon=1, belief=columns)
    observation, info = env.reset(seed=0)
    state = spec.encode(observation[None], info["internal"][None])
    search(np.repeat(state, 3, axis=0), spec.encode_action(spec.actions))
    samples = dynamics.states[0][:, -2].reshape(3, 16)
    assert (samples == samples[0]).all() and len(set(samples[0].tolist())) > 10


def test_samples_keep_to_the_physical_range() -> None:
    spec = StateSpec(make(**EKF).observation_space, spaces.Discrete(3), make(**EKF).layer.viability)
    columns = BeliefColumns.find(spec, make(**EKF).belief_entries)
    state = np.zeros((500, spec.state_dim), dtype=np.float32)
    state[:, columns.variance] = 4.0
    drawn = columns.sample(state, Draws(np.arange(500, dtype=np.uint64)))[:, -2]
    assert drawn.min() == 0.0 and drawn.max() == 1.0


def test_doubt_makes_the_shield_careful() -> None:
    """The mean is safe either way; with the wider belief, part of the futures break at once."""

    def p_safe(std: float) -> float:
        env = BeliefState(
            PartialObservation(InternalState(Walker("discrete"), **INTERNAL), hide=["battery"]),
            **{**EKF, "initial_std": {"battery": std, "heat": 0.06}},
        )
        judged = ActionShield(
            env, mode="search", dynamics=Watched(), backup=lambda o, x: np.zeros(len(x), int), rollouts=400, horizon=1
        )
        judged.reset(seed=0)
        judge = judged.layer._judge()
        assert judge is not None
        return float(judge.decide(judged.layer._encoded(), np.array([0])).proposed.p_safe[0])

    assert p_safe(0.01) == 1.0
    # Below 0.2, from 0.8 with a deviation of 0.5: the normal distribution's 11.5 %.
    assert p_safe(0.5) == pytest.approx(0.885, abs=0.05)


def test_the_critic_sees_the_mean() -> None:
    inner = VecPartialObservation(VecInternalState(DummyVecEnv([lambda: Walker("discrete")] * 3), **INTERNAL), **SPARSE)
    env = VecActionShield(VecBeliefState(inner, **EKF))
    env.seed(0)
    observation: Any = env.reset()
    for _ in range(15):
        state = env.layer._encoded()
        np.testing.assert_array_equal(state[:, -2], observation[:, -2])
        np.testing.assert_allclose(state[:, -1], [row[1] for row in env.layer._x], rtol=1e-6)
        assert (np.abs(state[:, -2] - env.layer._x[:, 0]) > 1e-4).any()
        with pytest.warns(UserWarning, match="no models") if not env.layer._warned else np.errstate():
            observation, *_ = env.step(np.zeros(3, int))


# The planner


def starts(env: Any, dynamics: Watched, rollouts: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """
    :param env: plans one step ahead with the dynamics
    :param dynamics: note where futures begin
    :param rollouts: futures of each course
    :return: the observation, the internal variables, and where each future of each course began, ``(c, p, D)``
    """
    observation, info = env.reset(seed=0)
    env.step(env.action_space.sample())
    return observation, info["internal"], np.concatenate(dynamics.states).reshape(-1, rollouts, len(observation) + 2)


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_every_course_begins_with_the_same_samples_of_the_belief(action: str) -> None:
    dynamics, rollouts = Watched(), 2000
    search: dict[str, Any] = {"horizon": 1, "samples": 3, "rounds": 2}
    env = ReachAvoidPlanner(make("box", action, **EKF), dynamics=dynamics, rollouts=rollouts, **search)
    observation, x, start = starts(env, dynamics, rollouts)
    # Every action, or in each round the samples and the best so far.
    assert len(start) == (3 if action == "discrete" else 2 * (3 + 1))
    assert (start == start[0]).all()
    battery, (mean, variance) = start[0, :, -2], observation[-2:]
    assert battery.mean() == pytest.approx(float(mean), abs=4.0 * float(variance / rollouts) ** 0.5)
    assert battery.std() == pytest.approx(float(variance) ** 0.5, rel=0.08)
    # The rest is certain.
    np.testing.assert_array_equal(start[0, :, -1], np.float32(x[1]))
    np.testing.assert_array_equal(start[0, :, :-2], np.broadcast_to(observation, (rollouts, len(observation))))


@pytest.mark.parametrize("search", [{"rollouts": 1}, {"rollouts": 4, "chance": False}])
def test_one_future_or_none_by_chance_begins_with_the_mean(search: dict[str, Any]) -> None:
    dynamics = Watched()
    env = ReachAvoidPlanner(make(**EKF), dynamics=dynamics, horizon=1, **search)
    observation, x, start = starts(env, dynamics, search["rollouts"])
    assert observation[-1] > 0.0 and abs(observation[-2] - x[0]) > 1e-4
    assert (start[..., -2] == observation[-2]).all()


def test_the_plan_of_the_shield_begins_with_samples_of_the_belief() -> None:
    dynamics, rollouts = Watched(), 2000
    env = ActionShield(
        make(**EKF), infeasible="planner", dynamics=dynamics, horizon=1, rollouts=rollouts, min_updates=0
    )
    nothing_passes = ViabilityCritic(env.layer.spec, net_arch=[], members=2)
    with torch.no_grad():
        nothing_passes.critics.weights[0].zero_()
        nothing_passes.critics.biases[0].fill_(-1.0)
    env.bind({"viability": nothing_passes}, training=False)
    observation, _, start = starts(env, dynamics, rollouts)
    assert len(start) == 3 and (start == start[0]).all()
    assert start[0, :, -2].mean() == pytest.approx(float(observation[-2]), abs=0.01)
    assert start[0, :, -2].std() == pytest.approx(float(observation[-1]) ** 0.5, rel=0.08)


class Told:
    """An estimator that believes what it is told."""

    def __init__(self, *battery: float) -> None:
        self.mean = np.array(battery)[:, None]
        self.variance = np.full((len(battery), 1), 1e-6)

    def begin(self, slots: Any, observation: Any) -> None:
        """It keeps nothing."""

    def step(self, before: Any, action: Any, observation: Any) -> None:
        """It keeps nothing."""


def test_a_planner_goes_by_what_is_believed_and_not_by_what_is_true() -> None:
    """To the middle of the limits: the belief says where that lies, and the truth is full in every environment."""

    def charge(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        return observation, x + np.array([-0.1, 0.0, 0.1])[action][:, None] * [1.0, 0.0]

    internal = {**INTERNAL, "constraints": ["battery in [0.2, 1.0]"], "mu": [0.6, 0.5]}
    hidden = VecPartialObservation(
        VecInternalState(DummyVecEnv([lambda: Walker("discrete")] * 3), **internal), hide=["battery"]
    )

    def executed(env: Any) -> list[int]:
        planner = VecReachAvoidPlanner(env, dynamics=charge, horizon=2, rollouts=2)
        planner.seed(0)
        planner.reset()
        return [int(info.get("executed_action", 1)) for info in planner.step(np.ones(3, dtype=np.int64))[3]]

    assert executed(hidden) == [0, 0, 0]
    believing = VecBeliefState(hidden, **EKF)
    believing.layer._estimator = Told(0.3, 0.6, 0.9)
    assert executed(believing) == [2, 1, 0]


# On GridLife, whose energy is hidden

PARAMS = GridLifeParams()
SIDE = 2 * PARAMS.radius + 1


def gridlife(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    """What the window tells of the next internal variables: nobody slips, and the window does not move along."""
    window = observation["window"].reshape(len(x), -1, SIDE, SIDE)
    rows, there = np.arange(len(x)), np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])[action] + PARAMS.radius
    food, _, hazard, heat, outside = window[rows, :, there[:, 0], there[:, 1]].T
    moved = (action != 0) & (outside == 0.0)
    energy = x[:, 0] - PARAMS.energy_decay - PARAMS.move_cost * moved + PARAMS.food_energy * food
    temp = x[:, 1] + PARAMS.temp_rate * (heat - x[:, 1])
    integrity = x[:, 2] + np.where(hazard > 0.0, -PARAMS.hazard_damage, PARAMS.repair)
    return observation, np.stack([energy, temp, integrity], axis=1).clip(0.0, 1.0)


class Known:
    """An estimator that is told the truth, and doubts it or does not."""

    def __init__(self, world: GridLifeVecEnv, variance: float) -> None:
        self.world = world
        self.variance = np.full((world.num_envs, 1), variance)

    @property
    def mean(self) -> NDArray[Any]:
        return self.world.get_internal()[:, :1]

    def begin(self, slots: Any, observation: Any) -> None:
        """It keeps nothing."""

    def step(self, before: Any, action: Any, observation: Any) -> None:
        """It keeps nothing."""


def shielded(env: Any) -> Any:
    """Every action is looked into."""
    return VecActionShield(
        env, mode="search", dynamics=gridlife, backup=lambda o, x: np.zeros(len(x), int), horizon=3, rollouts=64
    )


def planned(env: Any) -> Any:
    """Every course is looked into."""
    return VecReachAvoidPlanner(env, dynamics=gridlife, horizon=2, rollouts=8)


def filtered(build: Callable[[Any], Any], variance: float | None, steps: int = 150, n: int = 8) -> list[NDArray[Any]]:
    """
    :param build: puts what intervenes around the environments
    :param variance: of the belief about the hidden energy; None: it is not hidden
    :return: proposed and executed actions, and the internal variables
    """
    hidden = [] if variance is None else ["energy"]
    world = GridLifeVecEnv(n, hidden=hidden, split="test", slip=0.0, food_regrowth=0.2)
    env: Any = VecInternalState(world)
    if variance is not None:
        env = VecBeliefState(env, estimator="ekf", dynamics=lambda o, x, a: x)
        env.layer._estimator = Known(world, variance)
    env = build(env)
    env.seed(0)
    env.reset()
    rng = np.random.default_rng(0)
    rows: list[NDArray[Any]] = []
    for _ in range(steps):
        proposed = rng.integers(0, 5, n)
        *_, infos = env.step(proposed)
        executed = [info.get("executed_action", a) for info, a in zip(infos, proposed, strict=True)]
        rows.append(np.array([proposed, executed, *np.array([info["internal"] for info in infos]).T]))
    return rows


@pytest.mark.parametrize(("build", "size"), [(shielded, (150, 8)), (planned, (40, 4))])
def test_a_belief_without_doubt_is_as_good_as_seeing(build: Callable[[Any], Any], size: tuple[int, int]) -> None:
    seen, certain, doubtful = (np.array(filtered(build, variance, *size)) for variance in (None, 0.0, 0.2**2))
    assert (seen[:, 0] != seen[:, 1]).sum() > 20
    np.testing.assert_array_equal(certain, seen)
    assert not np.array_equal(doubtful[:, 1], seen[:, 1])
