"""
What a belief is worth on GridLife (with scent) where energy is hidden: never seen ("hidden"), or seen in 30 % of the
steps with a noise of standard deviation 0.1 ("sparse").

*Estimates*: root mean squared error, coverage of the 90 % interval and NEES of the GRU that ``BeliefCallback`` trained
beside PPO, of an extended Kalman filter that knows how energy follows from food and moves (but not when the agent
slips), of dead reckoning by the same dynamics from the last value seen (from the setpoint, until one is), and of the
last value seen. All run along the same episodes of the trained agent, on layouts that it has not seen.

*Survival*: of PPO that sees everything; with energy hidden or sparse: of PPO with the belief, of PPO without, and of
recurrent PPO; on those layouts.

*Shield* (``--shield``): survival of PPO that sees everything, and of PPO with energy hidden and a belief, without a
shield and under one in two modes: ``critic`` judges by the mean of the belief, ``verify`` imagines futures from samples
of it. Callbacks train the models on the agent's transitions; no shield acts in training, so all share one policy.

*Cost*: CPU time of a step of the layer with either estimator, beside that of the environments with the layers below it.

Agents that are there already are not trained again, so the benchmark can be interrupted::

    python -m benchmarks.belief                                # 3 seeds, 150k steps, 200 test episodes an agent
    python -m benchmarks.belief --seeds 2 --timesteps 50000    # a quick look
    python -m benchmarks.belief --only "recurrent, hidden"     # measure one condition anew
    python -m benchmarks.belief --shield --seeds 2 --timesteps 60000 --episodes 100    # the shield alone
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from benchmarks.agents import intervals
from benchmarks.kept import folder_name, kept, save, saved
from benchmarks.tables import written
from persist_sb3.callbacks import BeliefCallback, InternalModelCallback, ViabilityCallback, WorldModelCallback
from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import survival_curve
from persist_sb3.models.belief import GRUBelief
from persist_sb3.models.kalman import Array, ExtendedKalmanFilter, nees
from persist_sb3.paths import locate, parse_path
from persist_sb3.wrappers import (
    VecActionShield,
    VecBeliefState,
    VecHomeostatReward,
    VecInternalState,
    VecPartialObservation,
)
from persist_sb3.wrappers.belief_state import KalmanEstimator

SPARSE = {"noise": {"energy": 0.1}, "dropout": {"energy": 0.7}}
#: Algorithm, what is seen of energy, and whether there is a belief.
CONDITIONS: dict[str, tuple[type[BaseAlgorithm], str, bool]] = {
    "all seen": (PPO, "all", False),
    "belief, hidden": (PPO, "hidden", True),
    "PPO, hidden": (PPO, "hidden", False),
    "recurrent, hidden": (RecurrentPPO, "hidden", False),
    "belief, sparse": (PPO, "sparse", True),
    "PPO, sparse": (PPO, "sparse", False),
}
#: Conditions that are shielded, and the shields.
SHIELDED = ("all seen", "belief, hidden")
SHIELDS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "critic": {"threshold": 0.05},
    "verify": {"threshold": 0.05, "mode": "verify"},
}
PARAMS = GridLifeParams()
SIDE = 2 * PARAMS.radius + 1
MOVES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
Z90 = 1.6448536


def make_env(seen: str, belief: bool, num_envs: int, split: str, seed: int) -> VecEnv:
    """
    :param seen: of energy: "all", "hidden" or "sparse"
    :param belief: whether the agent is shown one
    :param num_envs: how many
    :param split: of the layouts
    :param seed: of the environments
    :return: the environments, with their layers
    """
    venv: VecEnv = GridLifeVecEnv(num_envs, scent=True, split=split)
    venv.seed(seed)
    venv = VecInternalState(venv)
    venv = VecHomeostatReward(venv, w=[1.0, 0.5, 1.5], weight=0.5, alive_bonus="auto", death_penalty=20.0)
    if seen != "all":
        degraded: dict[str, Any] = {"hide": ["energy"]} if seen == "hidden" else SPARSE
        venv = VecPartialObservation(venv, **degraded)
    return VecBeliefState(venv) if belief else venv


def train(condition: str, seed: int, timesteps: int, folder: Path, models: bool = False) -> Path:
    """
    :param condition: a key of :data:`CONDITIONS`
    :param seed: of the run
    :param timesteps: of the run
    :param folder: where agents are kept
    :param models: whether those that a shield takes are trained, too
    :return: the agent's file; what training cost lies beside it
    """
    path = folder / str(timesteps) / f"{folder_name(condition)}-{seed}.zip"
    if path.is_file():
        return path
    kind, seen, belief = CONDITIONS[condition]
    env = make_env(seen, belief, 32, "train", 1000 * seed)
    common: dict[str, Any] = {
        "n_steps": 128,
        "batch_size": 512,
        "learning_rate": 7e-4,
        "gamma": 0.98,
        "gae_lambda": 0.9,
    }
    common |= {"seed": seed, "device": "cpu"}
    start = time.process_time()
    if kind is RecurrentPPO:
        kwargs: dict[str, Any] = {"lstm_hidden_size": 64, "net_arch": [64], "activation_fn": nn.ReLU}
        model: BaseAlgorithm = RecurrentPPO("MultiInputLstmPolicy", env, n_epochs=4, policy_kwargs=kwargs, **common)
    else:
        kwargs = {"net_arch": [128, 128], "activation_fn": nn.ReLU}
        model = PPO("MultiInputPolicy", env, n_epochs=6, policy_kwargs=kwargs, **common)
    callbacks: list[BaseCallback] = [BeliefCallback(train_freq=4)] if belief else []
    if models:
        small: dict[str, Any] = {"net_arch": [64, 64], "members": 3, "train_freq": 2}
        callbacks += [ViabilityCallback(train_freq=2), InternalModelCallback(**small), WorldModelCallback(**small)]
    model.learn(timesteps, callback=callbacks)
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = time.process_time() - start
    path.with_suffix(".json").write_text(json.dumps({"cpu_seconds": seconds}) + "\n")
    model.save(path)
    return path


def load(condition: str, path: Path, num_envs: int) -> tuple[BaseAlgorithm, VecEnv]:
    """
    :param condition: a key of :data:`CONDITIONS`
    :param path: the agent's file
    :param num_envs: environments to test it in
    :return: the agent, and environments on test layouts that show it its belief
    """
    kind, seen, belief = CONDITIONS[condition]
    env = make_env(seen, belief, num_envs, "test", 1_000_000)
    return kind.load(path, device="cpu"), env


def shielded(seeds: int, timesteps: int, episodes: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """
    :param seeds: agents a condition
    :param timesteps: of the runs
    :param episodes: of each test
    :param folder: where agents and figures are kept
    :return: share of the episodes that are survived, and mean steps survived, a number a seed, by condition and shield
    """
    found: dict[str, dict[str, list[float]]] = {}
    for seed, name in track([(seed, name) for seed in range(seeds) for name in SHIELDED], "agents"):
        path = train(name, seed, timesteps, folder / "shield", models=True)

        def test(name: str, path: Path, shield: dict[str, Any] | None) -> tuple[float, float]:
            model, env = load(name, path, 20)
            if shield is not None:
                env = VecActionShield(env, **shield)
            records = [e.record for e in evaluate(model, env, episodes, deterministic=False, seed=1_000_000)]
            env.close()
            share = float(np.mean([record.survived for record in records]))
            return share, float(survival_curve(records).restricted_mean(PARAMS.horizon))

        for mode, shield in SHIELDS.items():
            file = path.with_name(f"{path.stem}-{mode}-{episodes}.json")
            share, life = kept(file, partial(test, name, path, shield))
            figures = found.setdefault(f"{name}, shield {mode}", {"survival": [], "steps survived": []})
            figures["survival"].append(share)
            figures["steps survived"].append(life)
    return found


def energy_dynamics(observation: Any, internal: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
    """
    GridLife's rules for energy, as far as the window shows what they are about: the agent does not slip, and nothing
    regrows under it. The other variables, which are seen, stay.

    :param observation: ``(n, ...)``
    :param internal: ``(n, 3)``
    :param action: ``(n,)``
    :return: the next internal variables, ``(n, 3)``
    """
    window = observation["window"].reshape(len(internal), -1, SIDE, SIDE)
    rows = np.arange(len(internal))
    row, column = (PARAMS.radius + MOVES[action]).T
    moved = (action != 0) & (window[rows, 4, row, column] == 0.0)
    row, column = np.where(moved, row, PARAMS.radius), np.where(moved, column, PARAMS.radius)
    ate = window[rows, 0, row, column] > 0.0
    following = internal.astype(np.float64)
    following[:, 0] += PARAMS.food_energy * ate - PARAMS.energy_decay - PARAMS.move_cost * moved
    following[:, 0] = following[:, 0].clip(0.0, 1.0)
    return following


class LastSeen:
    """
    The last value seen, perhaps carried on by known dynamics. It knows no variance.

    :param num_envs: ``n``
    :param reckon: carry it on
    """

    def __init__(self, num_envs: int, reckon: bool) -> None:
        self.mean = np.full((num_envs, 1), 0.7)
        self.reckon = reckon

    def begin(self, slots: NDArray[np.intp], observation: Any) -> None:
        """An episode begins."""
        self.mean[slots, 0] = 0.7
        self._look(slots, observation)

    def step(self, before: Any, action: NDArray[Any], observation: Any) -> None:
        """A step goes by."""
        if self.reckon:
            internal = np.repeat(self.mean, 3, axis=1)
            self.mean[:, 0] = energy_dynamics(before, internal, action)[:, 0]
        self._look(np.arange(len(self.mean)), observation)

    def _look(self, slots: NDArray[np.intp], observation: Any) -> None:
        energy = observation["internal"][:, 0]
        seen = energy != 0.0
        self.mean[slots[seen], 0] = energy[seen]


def estimate(condition: str, path: Path, steps: int) -> dict[str, dict[str, float]]:
    """
    :param condition: a key of :data:`CONDITIONS` with a belief
    :param path: the agent's file
    :param steps: of 20 environments
    :return: by estimator: root mean squared error, coverage of the 90 % interval and mean NEES
    """
    n = 20
    model, env = load(condition, path, n)
    kalman = ExtendedKalmanFilter(
        lambda x, observation, action: energy_dynamics(observation, x, action),
        # The mean square of what slipping changes is about 0.003 ** 2; food that regrows under the agent adds to it.
        np.array([0.01, 0.05, 0.05]) ** 2,
        np.array([0.1, 0.001, 0.001]) ** 2,
    )
    entries = {i: locate(parse_path(f"obs.internal[{i}]")[1], env.observation_space) for i in range(3)}
    mean, start = np.array([0.7, 0.5, 0.9]), np.array([0.03, 0.03, 0.03]) ** 2
    others: dict[str, Any] = {
        "EKF": KalmanEstimator(kalman, None, entries, np.array([0]), 0.0, n, mean, start),
        "dead reckoning": LastSeen(n, True),
        "last seen": LastSeen(n, False),
    }
    observation: Any = env.reset()
    everyone = np.arange(n)
    for other in others.values():
        other.begin(everyone, observation)
    rows: dict[str, list[Array]] = {name: [] for name in ("GRU", *others)}
    for _ in range(steps):
        action, _ = model.predict(observation)
        following: Any
        following, _, dones, infos = env.step(action)
        last: Any = {key: value.copy() for key, value in following.items()}
        for slot in np.flatnonzero(dones):
            for key, value in infos[slot]["terminal_observation"].items():
                last[key][slot] = value
        truth = np.array([info["internal"][0] for info in infos])
        rows["GRU"].append(np.stack([truth, *last["belief"].T]))
        for name, other in others.items():
            other.step(observation, action, last)
            variance = other.variance[:, 0] if name == "EKF" else np.full(n, np.nan)
            rows[name].append(np.stack([truth, other.mean[:, 0], variance]))
            ended = np.flatnonzero(dones)
            if len(ended):
                other.begin(ended, {key: value[ended] for key, value in following.items()})
        observation = following
    env.close()
    return {name: _figures(np.concatenate(parts, axis=1)) for name, parts in rows.items()}


def cost(num_envs: int, steps: int = 400) -> dict[str, float]:
    """
    :param num_envs: how many
    :param steps: how many are timed
    :return: microseconds of CPU time that a step of all environments takes: without a belief, and what each estimator
        adds
    """
    known = {
        "estimator": "ekf",
        "dynamics": energy_dynamics,
        "process_noise": {"energy": 0.01, "temp": 0.05, "integrity": 0.05},
        "measurement_noise": {"energy": 0.1, "temp": 0.001, "integrity": 0.001},
        "initial_std": 0.03,
    }
    spent: dict[str, list[float]] = {name: [] for name in ("no belief", "GRU", "EKF")}
    envs = {name: make_env("sparse", False, num_envs, "train", 0) for name in spent}
    envs["GRU"] = gru = VecBeliefState(envs["GRU"])
    envs["EKF"] = VecBeliefState(envs["EKF"], **known)
    model = GRUBelief(gru.layer.spec, ["energy"])
    model.updates.fill_(1)
    gru.bind({"belief": model}, training=False)
    actions = np.random.default_rng(0).integers(5, size=(steps, num_envs))
    for env in envs.values():
        env.reset()
    for _ in range(5):
        for name, env in envs.items():
            start = time.process_time()
            for action in actions:
                env.step(action)
            spent[name].append(time.process_time() - start)
    least = {name: 1e6 * min(values) / steps for name, values in spent.items()}
    return {name: value - (least["no belief"] if name != "no belief" else 0.0) for name, value in least.items()}


def _figures(rows: Array) -> dict[str, float]:
    truth, mean, variance = rows
    error = truth - mean
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "coverage": float(np.mean(np.abs(error) <= Z90 * np.sqrt(variance))) if np.isfinite(variance[0]) else np.nan,
        "nees": float(nees(mean[:, None], variance[:, None], truth[:, None]).mean()),
    }


def report_shield(arguments: argparse.Namespace, file: Path) -> None:
    """
    :param arguments: of the command line
    :param file: what was measured before, to which this is added
    """
    found = shielded(arguments.seeds, arguments.timesteps, arguments.episodes, arguments.folder)
    table = Table(title=f"{arguments.timesteps:,} steps, {arguments.seeds} seeds, mean [95 % interval]")
    for column in ("", "survival share", "mean steps survived"):
        table.add_column(column, justify="right")
    estimates = {
        figure: intervals({name: np.array(figures[figure]) for name, figures in found.items()})
        for figure in ("survival", "steps survived")
    }
    for name in found:
        (share, low, high), (life, least, most) = (estimates[figure][name] for figure in estimates)
        table.add_row(name, f"{share:.3f} [{low:.3f}, {high:.3f}]", f"{life:.0f} [{least:.0f}, {most:.0f}]")
    Console(width=110).print(table)
    results = saved(file)
    results["shield"] = {"timesteps": arguments.timesteps, "episodes": arguments.episodes, **found}
    save(results, file)


def main() -> None:
    """Train what is missing, evaluate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=150_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent")
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), help="leave the others as they were measured")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/belief"), help="where agents are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    parser.add_argument("--shield", action="store_true", help="measure the shield alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = arguments.output / "belief.json"
    if arguments.shield:
        report_shield(arguments, file)
        return

    seeds = range(arguments.seeds)
    names = arguments.only or list(CONDITIONS)
    survival: dict[str, list[float]] = {name: [] for name in names}
    lifetime: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    estimates: dict[str, list[dict[str, dict[str, float]]]] = {}
    for seed, name in track([(seed, name) for seed in seeds for name in names], "agents"):
        path = train(name, seed, arguments.timesteps, arguments.folder)
        seconds[name].append(json.loads(path.with_suffix(".json").read_text())["cpu_seconds"])
        model, env = load(name, path, 20)
        records = [e.record for e in evaluate(model, env, arguments.episodes, deterministic=False, seed=1_000_000)]
        env.close()
        survival[name].append(float(np.mean([record.survived for record in records])))
        lifetime[name].append(float(survival_curve(records).restricted_mean(PARAMS.horizon)))
        if CONDITIONS[name][2]:
            estimates.setdefault(CONDITIONS[name][1], []).append(estimate(name, path, 1000))

    console = Console(width=110)
    results = saved(file) if arguments.only else {}
    results |= {"timesteps": arguments.timesteps, "episodes": arguments.episodes}
    for seen, by_seed in estimates.items():
        table = Table(title=f"estimates of energy, {seen}; mean over {arguments.seeds} seeds \\[least, greatest]")
        for column in ("", "RMSE", "coverage of 90 %", "NEES (1 is right)"):
            table.add_column(column, justify="right")
        results[f"estimates, {seen}"] = by_seed
        for estimator in by_seed[0]:
            cells = []
            for key in ("rmse", "coverage", "nees"):
                values = np.array([figures[estimator][key] for figures in by_seed])
                cells.append(
                    f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]" if np.isfinite(values).all() else ""
                )
            table.add_row(estimator, *cells)
        console.print(table)

    table = Table(title=f"{arguments.timesteps:,} steps, {arguments.seeds} seeds, mean [95 % interval]")
    for column in ("", "survival share", "mean steps survived", "CPU s of training"):
        table.add_column(column, justify="right")
    shares, lives = (
        intervals({name: np.array(values) for name, values in scores.items()}) for scores in (survival, lifetime)
    )
    for name in names:
        table.add_row(name, written(shares[name], ".3f"), written(lives[name], ".0f"), f"{np.mean(seconds[name]):.0f}")
        results[name] = {"survival": survival[name], "steps survived": lifetime[name], "cpu_seconds": seconds[name]}
        results[name] |= {"survival interval": shares[name], "steps interval": lives[name]}
    console.print(table)
    table = Table(title="CPU time of a step of all environments, µs")
    for column in ("environments", "with the layers below", "GRU", "EKF"):
        table.add_column(column, justify="right")
    for num_envs in (8, 64):
        spent = results[f"cost, {num_envs} envs"] = cost(num_envs)
        table.add_row(str(num_envs), *(f"{value:.0f}" for value in spent.values()))
    console.print(table)
    save(results, file)


if __name__ == "__main__":
    main()
