"""
The learned viability critic against the exact kernel: on small GridLife worlds it can be computed from which states,
and by which actions, an agent can stay alive for ever.

A :class:`~persist_sb3.callbacks.ViabilityCallback` learns from what happens on training layouts, where half of the
worlds are played by random actions and half by the beam planner with a random action now and then. The critic is then
asked about states drawn uniformly within the limits, on layouts that it has not seen, and about every action in them.
States whose fate the lattice leaves open are left out. Reported are the area under the ROC curve and, at every
threshold, two rates: false safe (of the actions that lead out of the kernel, the share that passes) and false alarm (of
those that stay in it, the share that does not)::

    python -m benchmarks.kernel                                    # 3 seeds of all objectives
    python -m benchmarks.kernel --only reachability classifier     # some of them
    python -m benchmarks.kernel --seeds 1 --timesteps 10000        # a quick look

Critics that were measured already are not trained again, so the benchmark can be interrupted.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import rankdata
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from benchmarks.agents import intervals
from benchmarks.kept import folder_name, kept, save
from benchmarks.tables import written
from persist_sb3 import plots
from persist_sb3.buffers import Demonstrations
from persist_sb3.callbacks import ViabilityCallback
from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.dynamics import ACTIONS, GridLifeParams
from persist_sb3.envs.layout import SPLITS
from persist_sb3.envs.oracle import BeamPlanner, ExactViability, OraclePolicy
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.spec import Floats
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.recording import record
from persist_sb3.wrappers import VecInternalState

#: A world without chance, of which the agent sees every tile, so that its state decides what is viable.
WORLD: dict[str, Any] = {
    "size": 4, "radius": 3, "horizon": 200, "slip": 0.0, "hazards": 5, "food": 1, "ringed_food": 0, "items": 0,
    "food_regrowth": 1.0, "energy_decay": 0.06, "move_cost": 0.02, "hazard_damage": 0.2, "repair": 0.02,
    "temp_rate": 0.15, "hot_spots": 1, "cold_spots": 1, "spot_distance": 2.0, "start_spread": 1.0,
}  # fmt: skip
#: Of the lattice: changes of energy and integrity are multiples of its spacing.
LEVELS = 41, 80, 21
ENVS = 8
#: Share of the planner's actions that are replaced by random ones.
STRAY = 0.3
#: Of demonstrations that are tried; about half of them begin where nothing helps, and are left out.
EPISODES = 40
THRESHOLDS = np.linspace(-1.0, 1.0, 41)


@dataclass(frozen=True)
class Condition:
    """
    What a critic learns from, and how.

    :param callback: keywords of :class:`~persist_sb3.callbacks.ViabilityCallback`
    :param demonstrated: learn from demonstrations, and nothing else
    """

    callback: dict[str, Any]
    demonstrated: bool = False


CONDITIONS = {
    "reachability": Condition({}),
    "reachability, near boundary": Condition({"near_boundary": 0.25}),
    "reachability, counterfactuals": Condition({"counterfactual_share": 0.5}),
    "classifier": Condition({"objective": "classifier"}),
    "classifier, one step": Condition({"objective": "classifier", "gamma": 0.0}),
    "classifier, failures alone": Condition({"objective": "classifier", "objective_kwargs": {"labels": "failures"}}),
    "demonstrations alone": Condition({}, demonstrated=True),
    "demonstrations, counter-examples": Condition({"counter_examples": 0.25}, demonstrated=True),
    "demonstrations, counterfactuals": Condition({"counterfactual_share": 0.5}, demonstrated=True),
}


class Behaviour(VecEnvWrapper):
    """
    Plays the first half of the worlds by random actions and the others by the planner, which strays now and then,
    whatever the policy proposes.

    :param venv: the worlds, with ``InternalState`` around them
    :param worlds: the worlds themselves
    :param seed: of the random actions
    """

    def __init__(self, venv: VecInternalState, worlds: GridLifeVecEnv, seed: int) -> None:
        super().__init__(venv)
        self._worlds = worlds
        self._planner = BeamPlanner(worlds.params, width=8, depth=6)
        self._generator = np.random.default_rng(seed)

    def reset(self) -> VecEnvObs:
        observation = self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        n = self.num_envs
        executed = self._generator.integers(len(ACTIONS), size=n)
        planned = np.flatnonzero((np.arange(n) >= n // 2) & (self._generator.random(n) >= STRAY))
        if len(planned):
            executed[planned] = self._planner.plan(self._worlds.snapshot()[planned])
        self._executed = executed
        self.venv.step_async(executed)

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = self.venv.step_wait()
        self.reset_infos = self.venv.reset_infos
        for info, action in zip(infos, self._executed, strict=True):
            info["executed_action"] = action
        return observation, rewards, dones, infos


def train(condition: Condition, demonstrations: Demonstrations, seed: int, timesteps: int) -> ViabilityCritic:
    """
    :param condition: what it learns from, and how
    :param demonstrations: of the planner
    :param seed: of everything
    :param timesteps: of experience
    :return: the critic
    """
    worlds = GridLifeVecEnv(ENVS, flat=True, **WORLD)
    venv = VecMonitor(Behaviour(VecInternalState(worlds), worlds, seed))
    venv.seed(seed)
    model = PPO(
        "MlpPolicy", venv, n_steps=256, batch_size=2048, n_epochs=1, policy_kwargs={"net_arch": [8]}, seed=seed,
        device="cpu",
    )  # fmt: skip
    # With demonstrations alone, as many gradient steps as experience would have had.
    callback = ViabilityCallback(
        train_freq=1,
        augment=True,
        learning_starts=10**9 if condition.demonstrated else 1000,
        demonstrations=demonstrations if condition.demonstrated else None,
        pretrain_steps=timesteps // ENVS if condition.demonstrated else 0,
        **condition.callback,
    )
    model.learn(ENVS if condition.demonstrated else timesteps, callback=callback)
    return callback.actor


@dataclass(frozen=True)
class Truth:
    """What is known of ``n`` states."""

    state: Floats  # as a critic is given them, (n, D)
    viable: NDArray[np.bool_]  # whether they are in the kernel, (n,)
    certain: NDArray[np.bool_]  # whether the lattice can tell, (n,)
    keeps: NDArray[np.bool_]  # whether each action leads back into it, (n, 5)
    decided: NDArray[np.bool_]  # whether the lattice can tell, (n, 5)
    margin: NDArray[np.float64]  # least scaled margin at hand, (n,)
    next_margin: NDArray[np.float64]  # after each action, (n, 5)


def truth(layout_seed: int, states: int, seed: int) -> Truth:
    """
    :param layout_seed: of the layout
    :param states: how many
    :param seed: of the states
    :return: states drawn uniformly within the limits, and what the exact kernel says of them
    """
    params = GridLifeParams(**WORLD)
    exact = ExactViability(params, layout_seed, levels=LEVELS)
    generator = np.random.default_rng(seed)
    low, high = exact.viability.box()
    cell, x = generator.integers(params.size**2, size=states), generator.uniform(low, high, (states, len(low)))
    lower, upper = exact.kernel.at(cell, x)
    core = GridLifeCore(states, params, same_step=False)
    begun = exact.worlds(cell, x)
    core.restore(begun)
    state = np.concatenate([core.observations, x], axis=1, dtype=np.float32)
    keeps, decided = np.zeros((2, states, len(ACTIONS)), dtype=bool)
    margins = np.zeros((states, len(ACTIONS)))
    for action in range(len(ACTIONS)):
        core.restore(begun)
        _, _, terminated, _ = core.step(np.full(states, action))
        now = core.snapshot()
        certainly, possibly = exact.kernel.at(now.cell, now.internal, now.due[:, : params.food] == 0)
        keeps[:, action] = certainly & (terminated == 0)
        decided[:, action] = (certainly == possibly) | (terminated == 1)
        margins[:, action] = exact.viability.margins(now.internal).min(axis=1)
    margin = exact.viability.margins(x).min(axis=1)
    return Truth(state, lower, lower == upper, keeps, decided, margin, margins)


def test(name: str, seed: int, timesteps: int, worlds: list[Truth], demonstrations: Demonstrations) -> dict[str, Any]:
    """
    :param name: of the condition
    :param seed: of the critic
    :param timesteps: of experience
    :param worlds: what is true
    :param demonstrations: of the planner
    :return: what is shown of it
    """
    critic = train(CONDITIONS[name], demonstrations, seed, timesteps)
    return measure(worlds, [critic.values(world.state)[:, :, 0] for world in worlds])


def auroc(score: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """
    :param score: ``(n,)``
    :param positive: ``(n,)``
    :return: the probability that a positive has the greater score than a negative, ties counting half
    """
    ranks = rankdata(score)
    count = positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


def measure(worlds: list[Truth], values: list[Floats]) -> dict[str, Any]:
    """
    :param worlds: what is true
    :param values: of every action in each world's states, ``(n, 5)``
    :return: what is shown of them
    """
    certain = [w.certain for w in worlds]
    best = np.concatenate([v.max(axis=1)[c] for v, c in zip(values, certain, strict=True)])
    viable = np.concatenate([w.viable[c] for w, c in zip(worlds, certain, strict=True)])
    value = np.concatenate([v[w.decided] for v, w in zip(values, worlds, strict=True)])
    keeps = np.concatenate([w.keeps[w.decided] for w in worlds])
    passes = value[:, None] >= THRESHOLDS
    false_safe, false_alarm = passes[~keeps].mean(axis=0), 1.0 - passes[keeps].mean(axis=0)
    # Where something can still be decided: some action keeps the agent alive and another does not.
    chosen = [np.flatnonzero(w.decided.all(axis=1) & w.keeps.any(axis=1) & ~w.keeps.all(axis=1)) for w in worlds]
    right = [w.keeps[c, v[c].argmax(axis=1)] for w, v, c in zip(worlds, values, chosen, strict=True)]
    return {
        "AUROC of states": auroc(best, viable),
        "AUROC of actions": auroc(value, keeps),
        "best action is right": float(np.concatenate(right).mean()),
        "false alarm at 1 % false safe": float(false_alarm[np.flatnonzero(false_safe <= 0.01)].min(initial=1.0)),
        "false safe": false_safe.tolist(),
        "false alarm": false_alarm.tolist(),
    }


FIGURES = ("AUROC of states", "AUROC of actions", "best action is right", "false alarm at 1 % false safe")


def draw(results: dict[str, Any], path: Path) -> None:
    """
    :param results: by objective
    :param path: of the PNG
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for number, (name, seeds) in enumerate(results.items()):
        for axis, rate in zip(axes, ("false safe", "false alarm"), strict=True):
            curves = np.array([seed[rate] for seed in seeds])
            axis.plot(THRESHOLDS, curves.mean(axis=0), color=f"C{number}", label=name)
            axis.fill_between(THRESHOLDS, curves.min(axis=0), curves.max(axis=0), color=f"C{number}", alpha=0.15)
            axis.set_title(f"{rate}: mean and range over seeds", fontsize=9)
            axis.set_xlabel("threshold")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    plots.save(figure, path)


def main() -> None:
    """Compute the kernels, train, measure, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="critics an objective")
    parser.add_argument("--timesteps", type=int, default=40_000, help="of experience")
    parser.add_argument("--layouts", type=int, default=6, help="test layouts")
    parser.add_argument("--states", type=int, default=2000, help="a layout")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"objectives, of {list(CONDITIONS)}. Default: all")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/kernel"), help="where figures are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    if own.only and (unknown := set(own.only) - set(CONDITIONS)):
        parser.error(f"unknown objectives {sorted(unknown)}; there are {list(CONDITIONS)}")

    first, _ = SPLITS["test"]
    with Progress() as progress:
        bar = progress.add_task("exact kernels", total=own.layouts)
        worlds = []
        for layout in range(own.layouts):
            worlds.append(truth(first + layout, own.states, layout))
            progress.advance(bar)
        shown = GridLifeVecEnv(4, flat=True, **WORLD)
        demonstrations = record(
            OraclePolicy(BeamPlanner(shown.params), shown.snapshot), shown, EPISODES, seed=0, drop_unsafe=True
        )
        names = own.only or list(CONDITIONS)
        bar = progress.add_task("training", total=len(names) * own.seeds)
        folder = own.folder / f"{own.timesteps}-{own.layouts}-{own.states}"
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for name in names:
            for seed in range(own.seeds):
                call = partial(test, name, seed, own.timesteps, worlds, demonstrations)
                found[name].append(kept(folder / folder_name(name) / f"seed-{seed}.json", call))
                progress.advance(bar)
    # What needs no learning: the margin at hand, and, by the true dynamics, after each action.
    at_hand = measure(worlds, [np.repeat(w.margin[:, None], len(ACTIONS), axis=1).astype(np.float32) for w in worlds])
    one_step = measure(worlds, [w.next_margin.astype(np.float32) for w in worlds])

    parameters = {key: getattr(own, key) for key in ("seeds", "timesteps", "layouts", "states")}
    title = f"{own.layouts} unseen layouts, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table = Table("", *FIGURES, title=title)
    for name, figures in (("margin at hand", at_hand), ("margin after the action, true dynamics", one_step)):
        table.add_row(name, *(f"{figures[figure]:.3f}" for figure in FIGURES))
    estimates = {f: intervals({n: np.array([s[f] for s in seeds]) for n, seeds in found.items()}) for f in FIGURES}
    for name in names:
        table.add_row(name, *(written(estimates[figure][name], ".3f") for figure in FIGURES))
    Console(width=160).print(table)
    results = {
        "parameters": parameters,
        "viable": float(np.mean([w.viable[w.certain].mean() for w in worlds])),
        "undecided": float(np.mean([~w.certain for w in worlds])),
        "thresholds": THRESHOLDS.tolist(),
        "margin at hand": at_hand,
        "margin after the action, true dynamics": one_step,
        "objectives": found,
    }
    save(results, own.output / "kernel.json")
    draw(found, own.output / "kernel.png")


if __name__ == "__main__":
    main()
