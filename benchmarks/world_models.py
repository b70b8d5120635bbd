"""
What the world models predict, with and without a memory, and what they cost.

*Prediction*: an untrained policy acts in CartPole, Pendulum and GridLife, as they are and with less to see: the
velocities hidden, or a view of 3x3 tiles instead of 5x5. ``InternalModelCallback`` and both kinds of
``WorldModelCallback`` learn from the same steps, with about the same CPU time for each kind. On other episodes of the
same policy: the negative log-likelihood of the next observation, in nats an entry, and the error of what is expected
after 1, 4 and 8 steps whose actions are told: the root of the squared error over the variance, averaged over the
columns of the state that vary (0: exact; about 1: no better than the overall mean). Baselines are "nothing changes",
and the linear regression (of each Discrete action by itself) of the same steps, which both models contain.

A window that moves shows tiles that nobody has seen before, which no model can foresee and all are equally wrong about.
So in GridLife the error is also given apart: of the tiles that were in view where the prediction begins and still are
(``in view``), and of the internal variables (``internal``).

*Cost*: CPU time per 1000 environment steps with each callback's defaults, in one thread, beside that of PPO with its
own defaults in the same run. Seeds whose results are there already are not learned again::

    python -m benchmarks.world_models                          # 2 seeds, about 10 minutes of CPU time
    python -m benchmarks.world_models --seeds 1 --only cost
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import persist_sb3  # noqa: F401  registers GridLife
from benchmarks.agents import intervals
from benchmarks.exploration import Stopwatch
from benchmarks.kept import save, saved
from benchmarks.tables import written
from persist_sb3.buffers import Transitions
from persist_sb3.callbacks import InternalModelCallback, PersistCallback, WorldModelCallback
from persist_sb3.envs.dynamics import CHANNELS, MOVES, SEES_HAZARD
from persist_sb3.models.forecast import LinearDynamics, forecast
from persist_sb3.models.imagination import LatentDynamics, LearnedDynamics
from persist_sb3.models.latent import Belief, LatentFilter, LatentModel
from persist_sb3.models.prediction import FLOOR
from persist_sb3.models.spec import Floats
from persist_sb3.wrappers import VecInternalState

ENVS = 8
AHEAD = (1, 4, 8)
#: Steps of an episode before the first prediction that is tested, and how many predictions are.
PAST, TESTS = 4, 600
#: Steps of the environments from one gradient step to the next, so that both kinds take about the same CPU time.
GAUSSIAN, LATENT = 2, 6
PREDICTORS = ("latent", "latent, no history", "gaussian", "linear", "nothing changes")


class Case(NamedTuple):
    """
    :param env_id: environment
    :param seen: columns of its observation that are seen; None for all
    :param kwargs: of the environment
    :param internal: of ``VecInternalState``
    :param timesteps: to learn from
    :param radius: of the window that the observation begins with, in tiles; 0 where there is none
    """

    env_id: str
    seen: tuple[int, ...] | None = None
    kwargs: Mapping[str, Any] = MappingProxyType({})
    internal: Mapping[str, Any] = MappingProxyType({})
    timesteps: int = 12_000
    radius: int = 0


def cart(x: int, theta: int) -> dict[str, Any]:
    """
    :param x: column of the cart's position
    :param theta: of the pole's angle
    :return: parameters of ``VecInternalState``
    """
    sources = {"x": f"obs[{x}]", "theta": f"obs[{theta}]"}
    return {"dims": ["x", "theta"], "sources": sources, "constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.2"]}


UPRIGHT = {"dims": ["height"], "sources": {"height": "obs[0]"}, "constraints": ["height >= -0.9"]}
CASES = {
    "CartPole": Case("CartPole-v1", internal=cart(0, 2)),
    "CartPole, no velocities": Case("CartPole-v1", (0, 2), internal=cart(0, 1)),
    "Pendulum": Case("Pendulum-v1", internal=UPRIGHT),
    "Pendulum, no velocity": Case("Pendulum-v1", (0, 1), internal=UPRIGHT),
    "GridLife": Case("GridLifeFlat-v0", timesteps=24_000, radius=2),
    "GridLife, view of 3x3": Case("GridLifeFlat-v0", kwargs={"radius": 1}, timesteps=24_000, radius=1),
}


class Columns(gym.ObservationWrapper[Any, Any, Any]):
    """
    Shows some columns of a vector.

    :param env: the environment
    :param columns: which
    """

    def __init__(self, env: gym.Env[Any, Any], columns: tuple[int, ...]) -> None:
        super().__init__(env)
        box = env.observation_space
        assert isinstance(box, spaces.Box)
        self._columns = list(columns)
        self.observation_space = spaces.Box(box.low[self._columns], box.high[self._columns], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[self._columns]


def make(case: Case, seed: int) -> VecInternalState:
    """
    :param case: what to make
    :param seed: of the environments
    :return: eight of them
    """
    wrapper = None if case.seen is None else partial(Columns, columns=case.seen)
    env = make_vec_env(case.env_id, n_envs=ENVS, seed=seed, env_kwargs=dict(case.kwargs), wrapper_class=wrapper)
    return VecInternalState(env, **case.internal)


def untrained(env: VecInternalState, seed: int) -> PPO:
    """
    :param env: where it acts
    :param seed: of its weights and actions
    :return: an agent that does not learn
    """
    return PPO("MlpPolicy", env, n_steps=256, batch_size=2048, n_epochs=1, learning_rate=0.0, seed=seed, device="cpu")


class Recorder(PersistCallback):
    """Keeps every step."""

    def _on_training_start(self) -> None:
        self.steps: list[Transitions] = []
        super()._on_training_start()

    def _on_step(self) -> bool:
        self.steps.append(self.store.read(self.locals))
        return super()._on_step()


class Tests(NamedTuple):
    """
    Where predictions begin, ``n`` of them, and what came of it.

    :param state: ``(n, D)``
    :param belief: of the latent model, about their episodes
    :param actions: encoded, ``(h, n, A)``
    :param truth: ``(h, n, D)``
    """

    state: Floats
    belief: Belief
    actions: Floats
    truth: Floats


def make_tests(steps: list[Transitions], model: LatentModel, rng: np.random.Generator) -> Tests:
    """
    :param steps: of eight environments
    :param model: follows the episodes
    :param rng: decides which of the predictions that are possible are tested
    :return: the tests
    """
    spec, horizon = model.spec, AHEAD[-1]
    states = np.stack([spec.encode(step.observation, step.internal) for step in steps])
    successors = np.stack([spec.encode(step.next_observation, step.next_internal) for step in steps])
    actions = np.stack([spec.encode_action(step.executed_action) for step in steps])
    done = np.stack([step.done for step in steps])
    followed = LatentFilter(model, ENVS)
    beliefs, age = [], np.zeros(ENVS, dtype=np.intp)
    possible = np.zeros(done.shape, dtype=np.bool_)
    for time in range(len(steps)):
        followed.begin(np.flatnonzero(age == 0), states[time, age == 0])
        beliefs.append(followed.belief)
        if time + horizon <= len(steps):
            possible[time] = (age >= PAST) & ~done[time : time + horizon - 1].any(axis=0)
        followed.follow(states[time], actions[time], successors[time])
        age = np.where(done[time], 0, age + 1)
    times, slots = np.nonzero(possible)
    chosen = rng.choice(len(times), min(TESTS, len(times)), replace=False)
    times, slots = times[chosen], slots[chosen]
    belief = Belief(*(np.stack(parts)[times, slots] for parts in zip(*beliefs, strict=True)))
    along = times + np.arange(horizon)[:, None]
    return Tests(states[times, slots], belief, actions[along, slots], successors[along, slots])


def in_view(before: Floats, truth: Floats, radius: int) -> NDArray[np.bool_]:
    """
    Which entries show a tile that was in view at first. How far the agent has come is told by what does not change:
    heat, hazards, and the grid's edge.

    :param before: where predictions begin, ``(n, D)``
    :param truth: what came of it, ``(h, n, D)``
    :param radius: of the window
    :return: ``(h, n, D)``
    """
    width, n = 2 * radius + 1, len(before)

    def windows(state: NDArray[Any]) -> NDArray[Any]:
        return state[:, : len(CHANNELS) * width**2].reshape(n, len(CHANNELS), width, width)

    mask = np.zeros(truth.shape, dtype=np.bool_)
    moved, now = np.zeros((n, 2), dtype=np.intp), windows(before)
    for shown, after in zip(mask, map(windows, truth), strict=True):
        # The first of the moves that explains what is seen: where two do, the tiles are alike.
        step, explained = np.zeros((n, 2), dtype=np.intp), np.zeros(n, dtype=np.bool_)
        for move in MOVES:
            (old_rows, new_rows), (old_cols, new_cols) = (_overlap(by, width) for by in move)
            same = now[:, SEES_HAZARD:, old_rows, old_cols] == after[:, SEES_HAZARD:, new_rows, new_cols]
            fits = same.all(axis=(1, 2, 3)) & ~explained
            step[fits], explained = move, explained | fits
        assert explained.all(), "the window moves by at most one tile a step"
        moved, now = moved + step, after
        for row in range(n):
            (_, rows), (_, cols) = (_overlap(int(by), width) for by in moved[row])
            windows(shown)[row, :, rows, cols] = True
    return mask


def _overlap(by: int, width: int) -> tuple[slice, slice]:
    """
    :param by: how far a window has moved
    :param width: of the window
    :return: where what is seen both before and after is in the window before, and in the window after
    """
    kept = max(width - abs(by), 0)
    old, new = (slice(at, at + kept) for at in (max(by, 0), max(-by, 0)))
    return old, new


def error(squares: Floats, var: Floats, counted: NDArray[np.bool_]) -> float:
    """
    :param squares: errors, ``(n, D)``
    :param var: of each column, ``(D,)``
    :param counted: which entries, ``(n, D)``
    :return: root of the mean squared error over the variance, averaged over the columns that vary and count
    """
    columns = (var > FLOOR) & counted.any(axis=0)
    mean = np.where(counted, squares, 0.0).sum(axis=0)[columns] / counted.sum(axis=0)[columns]
    return float(np.sqrt(mean / var[columns]).mean())


def gaussian_nll(error: Floats, var: Floats) -> NDArray[np.float64]:
    """
    :param error: ``(n, m)``
    :param var: ``(m,)``
    :return: negative log-likelihood, summed over columns, ``(n,)``
    """
    nll: NDArray[np.float64] = (0.5 * (np.log(2 * np.pi * var) + np.square(error, dtype=np.float64) / var)).sum(axis=1)
    return nll


def predict(name: str, seed: int, timesteps: int) -> dict[str, dict[str, float]]:
    """
    :param name: of the case
    :param seed: of everything
    :param timesteps: to learn from
    :return: by predictor, what was measured
    """
    case = CASES[name]
    agent = untrained(make(case, seed), seed)
    latent = WorldModelCallback(kind="latent", train_freq=LATENT)
    recorder, world, internal = (
        Recorder(),
        WorldModelCallback(train_freq=GAUSSIAN),
        InternalModelCallback(train_freq=GAUSSIAN),
    )
    agent.learn(timesteps, callback=[recorder, world, internal])
    changes = np.concatenate([step.next_observation - step.observation for step in recorder.steps])
    agent = untrained(make(case, seed), seed)
    agent.learn(timesteps, callback=latent)
    other = untrained(make(case, seed + 1000), seed + 1000)
    other.learn(6144, callback=recorder)
    tests = make_tests(recorder.steps, latent.actor, np.random.default_rng(seed))

    state, action, truth = tests.state, tests.actions[0], tests.truth
    seen = slice(0, latent.spec.observation_dim)
    linear = LinearDynamics(latent.actor)
    regressed = linear.step(state, action, np.zeros(len(state), dtype=np.intp), None)[:, seen]
    residual = latent.actor.linear.residual.numpy()[seen] + FLOOR
    target = truth[0][:, seen]
    nll = {
        "latent": latent.actor.nll(state, action, target, tests.belief),
        "latent, no history": latent.actor.nll(state, action, target),
        "gaussian": world.actor.nll(state, action, target),
        "linear": gaussian_nll(target - regressed, residual),
        "nothing changes": gaussian_nll(target - state[:, seen], np.square(changes).mean(axis=0) + FLOOR),
    }
    dynamics = LatentDynamics(latent.actor)
    futures = {
        "latent": forecast(dynamics, state, tests.actions, tests.belief),
        "latent, no history": forecast(dynamics, state, tests.actions),
        "gaussian": forecast(LearnedDynamics(world.actor, internal.actor), state, tests.actions),
        "linear": forecast(linear, state, tests.actions),
        "nothing changes": np.broadcast_to(state, truth.shape),
    }
    kinds = {"error": np.ones(truth.shape, dtype=np.bool_)}
    if case.radius:
        kinds["in view"] = in_view(state, truth, case.radius)
        kinds["internal"] = np.broadcast_to(np.arange(truth.shape[2]) >= latent.spec.observation_dim, truth.shape)
    measured: dict[str, dict[str, float]] = {}
    for predictor in PREDICTORS:
        row = measured[predictor] = {"nll": float(nll[predictor].mean()) / target.shape[1]}
        for kind, counted in kinds.items():
            for ahead in AHEAD:
                squares = np.square(futures[predictor][ahead - 1] - truth[ahead - 1])
                row[f"{kind} {ahead}"] = error(squares, truth[ahead - 1].var(axis=0), counted[ahead - 1])
    return measured


def cost(kind: str, timesteps: int) -> dict[str, float]:
    """
    :param kind: of world model
    :param timesteps: environment steps, of GridLife
    :return: milliseconds of CPU time per 1000 of them: of gradient steps, of the rest of the callback, and of PPO
        (policy and training); and of one gradient step
    """
    env = make(CASES["GridLife"], 0)
    model = PPO("MlpPolicy", env, n_steps=256, seed=0, device="cpu")
    callback = WorldModelCallback(kind=kind)  # type: ignore[arg-type]
    watches = {"update": Stopwatch(callback._update), "callback": Stopwatch(callback._on_step)}
    callback._update = watches["update"]  # type: ignore[method-assign]
    callback._on_step = watches["callback"]  # type: ignore[method-assign]
    watches["steps"] = Stopwatch(env.step)
    env.step = watches["steps"]  # type: ignore[method-assign]
    total = Stopwatch(model.learn)
    total(timesteps, callback=callback)
    seconds = {name: watch.seconds for name, watch in watches.items()}
    per_update = 1e3 * seconds["update"] / callback.updates
    rest = seconds["callback"] - seconds["update"]
    ppo = total.seconds - seconds["steps"] - seconds["callback"]
    parts = {"updates": seconds["update"], "rest": rest, "PPO": ppo}
    return {name: 1e6 * value / timesteps for name, value in parts.items()} | {"one update": per_update}


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="of each case")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the environment steps to learn from")
    parser.add_argument("--only", choices=["prediction", "cost"], help="leave the other out")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="leave the others out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "world_models.json"
    results = saved(path)

    if arguments.only != "cost":
        for name in track(arguments.cases, "learning"):
            timesteps = round(arguments.fraction * CASES[name].timesteps)
            before = results.get(name, {})
            seeds = before["by seed"] if before.get("timesteps") == timesteps else []
            for seed in range(len(seeds), arguments.seeds):
                seeds.append(predict(name, seed, timesteps))
                results[name] = {"timesteps": timesteps, "by seed": seeds}
                save(results, path)
            table = Table(title=f"{name}: mean over {len(seeds)} seeds [95 % interval]")
            columns = list(seeds[0][PREDICTORS[0]])
            for column in ("", *columns):
                table.add_column(column, justify="right")
            limits = {
                column: intervals({p: np.array([seed[p][column] for seed in seeds]) for p in PREDICTORS})
                for column in columns
            }
            for predictor in PREDICTORS:
                cells = [limits[column][predictor] for column in columns]
                table.add_row(predictor, *(written(cell, ".3f") for cell in cells))
            results[name]["intervals"] = limits
            Console(width=120).print(table)

    if arguments.only != "prediction":
        table = Table(title="CPU time per 1000 environment steps of GridLife, 8 environments, ms")
        for column in ("kind", "PPO itself", "gradient steps", "rest of the callback", "one gradient step"):
            table.add_column(column, justify="right")
        results["cost"] = {}
        for kind in ("gaussian", "latent"):
            ms = results["cost"][kind] = cost(kind, 10_240)
            table.add_row(kind, *(f"{ms[key]:.1f}" for key in ("PPO", "updates", "rest", "one update")))
        Console().print(table)

    save(results, path)


if __name__ == "__main__":
    main()
