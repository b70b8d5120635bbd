"""
What a shield does for real-valued actions, and for environments nobody here wrote: violations while training and
after, task return, and how often the shield steps in. Three agents each: bare SB3, with the homeostatic reward, and
with the shield on top, all trained by ``train.py`` from the hyperparameters in ``persist_sb3/hyperparams``.

Agents that are there already are not trained again, so the benchmark can be interrupted. ``--only`` and
``--conditions`` leave the other results as they are::

    python -m benchmarks.continuous                               # 3 seeds of all
    python -m benchmarks.continuous --only GridLifeContinuousScent-v0
    python -m benchmarks.continuous --only GridLifeContinuousScent-v0 --conditions memory
    python -m benchmarks.continuous --only Pendulum-v1 --conditions demonstrations
    python -m benchmarks.continuous --seeds 1 --fraction 0.4      # a quick look
    python -m benchmarks.continuous --seeds 3 --first-seed 2      # one more agent than there are results of
"""

import argparse
import contextlib
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.agents import evaluate_run, figures
from benchmarks.kept import save, saved
from benchmarks.mover import Mover
from persist_sb3 import hyperparams, plots
from persist_sb3.demonstrate import layered
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import EpisodeRecord, read_episodes
from persist_sb3.recording import record
from persist_sb3.runs import Run
from persist_sb3.train import train

HOMEOSTAT = "persist_sb3.wrappers.VecHomeostatReward"
SHIELD = "persist_sb3.wrappers.VecActionShield"
METRICS = "persist_sb3.callbacks.MetricsCallback"
CRITIC = "persist_sb3.callbacks.ViabilityCallback"
MEMORY = "persist_sb3.wrappers.VecSpatialMemory"
GRADIENT_STEPS = "persist_sb3.callbacks.GradientStepsCallback"
BEST_OF = "persist_sb3.callbacks.BestOfCallback"
CLONING = "persist_sb3.callbacks.BehaviourCloningCallback"
CONDITIONS = ("bare SB3", "homeostat", "homeostat + shield")
#: Where the entry has a memory, which bare SB3 has not: what memory and equivariant networks do alone.
ALONE = "memory"
#: The shield, and episodes by the shielded agent of seed 0, which critic and policy begin with.
SHOWN = "demonstrations"
ALL = (*CONDITIONS, ALONE, SHOWN)
#: How many episodes.
EPISODES = 20
#: Share of a training in which the policy stays what it was shown, while its critics learn.
HELD = 0.15

Figures = dict[str, float]
#: Further figures of an agent: from its run, its training episodes and its test episodes.
Further = Callable[[Run, list[EpisodeRecord], list[EpisodeRecord]], Figures]


@dataclass(frozen=True)
class Task:
    """
    One environment and its algorithm.

    :param algo: a file in ``persist_sb3/hyperparams`` with an entry for the environment, and one with a shield
    :param timesteps: environment steps an agent, at full length
    :param package: a module that registers the environment
    :param deterministic: test the policy's best action, not a sample
    :param further: figures of this environment alone
    :param cloning: parameters of the callback that clones, in the place of its defaults, for ``SHOWN``
    :param shown: what else is changed in the entry for ``SHOWN``, as ``train.py`` takes it after ``-params``
    :param changed: parameters of the entry's layers and callbacks for ``SHOWN``, by class
    :param moves: environment with the same observations and Discrete moves, whose shielded PPO agent demonstrates.
        Default: the environment's own shielded agent does
    """

    algo: str
    timesteps: int
    package: str | None = None
    deterministic: bool = True
    further: Further | None = None
    cloning: Mapping[str, Any] = field(default_factory=dict)
    shown: Sequence[str] = ()
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    moves: str | None = None


def alive(run: Run, trained: list[EpisodeRecord], tests: list[EpisodeRecord]) -> Figures:
    """
    :param run: on GridLife, where a violation ends the episode
    :param trained: its training episodes
    :param tests: its test episodes
    :return: what else is told of agents on GridLife
    """
    everything = figures(tests, trained)
    found = {name: everything[name] for name in ("violations while training", "task return in 512 steps alive")}
    if any(episode.interventions is not None for episode in tests):
        off = evaluate_run(run.folder, len(tests), shield=False)
        found["episodes without a violation, shield off"] = float(np.mean([episode.survived for episode in off]))
    return found


TASKS = {
    "CartPole-v1": Task("ppo", 30_000),
    "Pendulum-v1": Task("sac", 20_100),
    # Its policy is sampled in training, and so it is in the test.
    "GridLifeContinuous-v0": Task("ppo", 100_000, deterministic=False),
    # Shipped with every layer there is.
    "GridLifeContinuousScent-v0": Task(
        "sac",
        300_000,
        deterministic=False,
        further=alive,
        # Without a weight, SAC forgets within 3,000 steps what it was shown.
        cloning={
            "value_steps": 4_000,
            "gradient_steps": 8_000,
            "learning_rate": "lin_0.003",
            "weight": 0.1,
            "weight_steps": 200_000,
        },
        shown=[
            "learning_starts:1000",
            # It ends there, and begins with 1, which would pay for nothing but randomness.
            "ent_coef:'auto_0.003'",
            # A direction for each of the moves that a demonstrator chooses from.
            "policy_kwargs:dict(net_arch=[128, 128], modes=1, best_of=8, "
            "symmetries=['GridLifeContinuousScentMemory-v0', 'GridLifeContinuousScent-v0'])",
        ],
        changed={
            # From the first step on, since its critic has been told of deaths by then.
            SHIELD: {"min_updates": 2_000},
            # A tenth of an item: five, as in the entry, bring no fewer violations.
            HOMEOSTAT: {"death_penalty": 5.0},
            # It knows something already, and so do its critics.
            GRADIENT_STEPS: {"gradient_steps": {0: 64, 25_000: 16}},
            BEST_OF: {"best_of": 8},
        },
        moves="GridLifeScent-v0",
    ),
}


def options(env_id: str, task: Task, condition: str, cloning: Mapping[str, Any] | None = None) -> list[str]:
    """
    :param env_id: environment
    :param task: its algorithm
    :param condition: one of ``ALL``
    :param cloning: parameters of the callback that clones demonstrations, for ``SHOWN``
    :return: what ``train.py`` is told
    """
    given = [] if task.package is None else ["--gym-packages", task.package]
    shipped = hyperparams.load(task.algo)
    entry, apart = shipped[env_id], env_id + hyperparams.SHIELDED in shipped
    if cloning is not None:
        shielded = shipped.get(env_id + hyperparams.SHIELDED, entry)
        changes = {CRITIC: {"demonstrations": cloning["demonstrations"]}, **task.changed}
        layers, callbacks = (
            [altered(part, changes.get(name_of(part), {})) for part in shielded[key]]
            for key in ("vec_env_wrapper", "callback")
        )
        changed = [f"callback:{[*callbacks, {CLONING: cloning}]}", *task.shown]
        if layers != shielded["vec_env_wrapper"]:
            changed.append(f"vec_env_wrapper:{layers}")
        return [*given, *(["--shield"] if apart else []), "-params", *changed]
    if condition == "homeostat + shield":
        return [*given, "--shield"] if apart else given
    if condition == "homeostat" and apart:
        return given
    layers, callbacks = entry["vec_env_wrapper"], entry["callback"]
    layers = [layer for layer in layers if name_of(layer) != SHIELD]
    if condition != "homeostat":
        layers = [unseen(layer) for layer in layers if name_of(layer) != HOMEOSTAT]
    if condition == "bare SB3":
        layers = [layer for layer in layers if name_of(layer) != MEMORY]
    changed = [f"vec_env_wrapper:{layers}"]
    if not apart:
        kept = [METRICS] if condition == "bare SB3" else [each for each in callbacks if name_of(each) != CRITIC]
        changed.append(f"callback:{kept}")
    # Other internal variables belong to the whole entry.
    buffer = entry.get("replay_buffer_class", "")
    if "Counterfactual" in buffer:
        changed.append(f"replay_buffer_class:{buffer.replace('Counterfactual', 'ExecutedAction')}")
    plain = hyperparams.without_symmetry(entry)
    if condition == "bare SB3" and plain != entry:
        changed += [f"policy:{plain['policy']!r}", f"policy_kwargs:{plain['policy_kwargs']}"]
    return [*given, "-params", *changed]


def altered(part: str | dict[str, Any], parameters: Mapping[str, Any]) -> str | dict[str, Any]:
    """
    :param part: an entry of ``vec_env_wrapper`` or ``callback``
    :param parameters: of its class
    :return: the same, with these parameters
    """
    if not parameters:
        return part
    given = {} if isinstance(part, str) else part[name_of(part)]
    return {name_of(part): {**given, **parameters}}


def demonstrated(env_id: str, task: Task, timesteps: int, folder: Path) -> dict[str, Any]:
    """
    :param env_id: environment
    :param task: its algorithm
    :param timesteps: of a training
    :param folder: where runs are kept
    :return: parameters of the callback that clones a shielded agent of seed 0. If the file of its episodes is there
        already, none is played again
    """
    path = folder / str(timesteps) / f"{env_id}-{EPISODES}.npz"
    if not path.is_file():
        model: Any
        if task.moves is None:
            run = Run(trained(env_id, task, "homeostat + shield", 0, timesteps, folder))
            venv = run.make_env(EPISODES, split="train")
            model = run.load_model(venv, seed=0)
        else:
            teacher = trained(task.moves, Task("ppo", timesteps), "homeostat + shield", 0, timesteps, folder)
            worlds = GridLifeVecEnv(EPISODES, split="train", **gym.spec(env_id).kwargs)
            venv, model = layered(worlds, task.algo, env_id), Mover(Run(teacher), seed=0)
        record(model, venv, EPISODES, deterministic=task.deterministic, seed=0, drop_unsafe=True).save(path)
        venv.close()
    return {"demonstrations": str(path.resolve()), "value_steps": round(HELD * timesteps), **task.cloning}


def trained(env_id: str, task: Task, condition: str, seed: int, timesteps: int, folder: Path) -> Path:
    """
    Train an agent in this process: imports would take longer than a short training.

    :param env_id: environment
    :param task: its algorithm
    :param condition: one of ``ALL``
    :param seed: of the run
    :param timesteps: of the run
    :param folder: where runs are kept; one that is there already is not trained again
    :return: the run's folder
    """
    logs = folder / str(timesteps) / condition.replace(" ", "-") / f"seed-{seed}"
    run = logs / task.algo / f"{env_id}_1"
    if not (run / f"{env_id}.zip").is_file():
        # What an interrupted training left would make rl-zoo3 choose another folder.
        shutil.rmtree(run, ignore_errors=True)
        arguments = ["--algo", task.algo, "--env", env_id, "--seed", str(seed), "-n", str(timesteps), "-f", str(logs)]
        cloning = demonstrated(env_id, task, timesteps, folder) if condition == SHOWN else None
        arguments += ["--eval-freq", "-1", "--device", "cpu", "--verbose", "0"]
        arguments += options(env_id, task, condition, cloning)
        with contextlib.redirect_stdout(io.StringIO()):
            train(arguments)
    return run


def name_of(layer: str | dict[str, Any]) -> str:
    """
    :param layer: an entry of ``vec_env_wrapper`` or ``callback``
    :return: its class
    """
    return layer if isinstance(layer, str) else next(iter(layer))


def unseen(layer: str | dict[str, Any]) -> str | dict[str, Any]:
    """
    :param layer: ``VecInternalState``, as it is shipped
    :return: the same, which leaves the agent's observation as it is
    """
    if isinstance(layer, str):
        return layer
    return {name: {key: value for key, value in given.items() if key != "append"} for name, given in layer.items()}


def measure(path: Path, task: Task, timesteps: int, episodes: int) -> Figures:
    """
    :param path: a run's folder
    :param task: what it was trained on
    :param timesteps: of its training
    :param episodes: to evaluate
    :return: what is shown of it
    """
    run = Run(path)
    venv = run.make_env(10, split="test")
    model = run.load_model(venv, seed=0)
    ended = evaluate(model, venv, episodes, deterministic=task.deterministic, seed=1_000_000)
    venv.close()
    tests, trained = [episode.record for episode in ended], read_episodes(path / "persist.jsonl")
    steps = sum(e.length for e in tests)
    found = {
        "violating steps in training, per 1000": 1000.0 * violations(trained) / timesteps,
        "violating steps after, per 1000": 1000.0 * violations(tests) / steps,
        "episodes without a violation": float(np.mean([e.violations == 0 for e in tests])),
        "task return": float(np.mean([e.task_return for e in tests])),
        "intervention rate": sum(e.interventions or 0 for e in tests) / steps,
    }
    return found if task.further is None else {**found, **task.further(run, trained, tests)}


def violations(records: Sequence[EpisodeRecord]) -> int:
    """
    :param records: of episodes
    :return: steps on which a constraint was violated
    """
    return sum(record.violations for record in records)


def summary(values: Sequence[float]) -> str:
    """
    :param values: one a seed
    :return: their mean and range
    """
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def draw(env_id: str, conditions: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """
    :param env_id: environment
    :param conditions: their figures, one a seed, by condition and name
    :param path: of the PNG
    """
    shown = ("violating steps in training, per 1000", "violating steps after, per 1000", "task return")
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 2.8))
    for axis, name in zip(axes, shown, strict=True):
        for place, figures_of in enumerate(conditions.values()):
            values = figures_of[name]
            axis.bar(place, np.mean(values), color=f"C{place}", alpha=0.6)
            axis.plot([place] * len(values), values, "k.", markersize=4)
        names = [condition.replace(" + ", "\n+ ") for condition in conditions]
        axis.set_xticks(range(len(names)), names, fontsize=7)
        axis.set_title(f"{env_id}: {name}", fontsize=8)
    figure.tight_layout()
    plots.save(figure, path)


def earlier(
    result: Mapping[str, Any], conditions: Sequence[str], seeds: int, timesteps: int, episodes: int
) -> dict[str, dict[str, list[float]]]:
    """
    :param result: of an environment
    :param conditions: whose figures to take
    :param seeds: how many agents of each
    :param timesteps: that their training took
    :param episodes: that they were tested in
    :return: their figures, by condition and name
    :raises ValueError: if the result is of another size, or lacks some
    """
    if (result.get("timesteps"), result.get("episodes")) != (timesteps, episodes):
        raise ValueError(f"no figures of {timesteps} steps and {episodes} test episodes")
    found: dict[str, dict[str, list[float]]] = {}
    for condition in conditions:
        figures = result["conditions"].get(condition, {})
        if not figures or min(map(len, figures.values())) < seeds:
            raise ValueError(f"fewer than {seeds} agents of {condition!r}")
        found[condition] = {name: values[:seeds] for name, values in figures.items()}
    return found


def compare(tasks: Mapping[str, Task], description: str | None, output: str) -> None:
    """
    Train what is missing, evaluate, and write the tables and a plot of each environment.

    :param tasks: by environment
    :param description: of the command
    :param output: name of the files in ``benchmarks/results``
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="those before it are in the results")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the steps of each environment")
    parser.add_argument("--only", choices=tasks, action="append", help="environments. Default: all")
    parser.add_argument("--conditions", choices=ALL, nargs="+", default=CONDITIONS, metavar="NAME")
    parser.add_argument("--episodes", type=int, default=50, help="test episodes an agent")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/problems"), help="where the runs are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()

    env_ids = own.only or list(tasks)
    for env_id in env_ids if ALONE in own.conditions else ():
        if MEMORY not in map(name_of, hyperparams.load(tasks[env_id].algo)[env_id]["vec_env_wrapper"]):
            parser.error(f"--conditions {ALONE}: {env_id} has no {MEMORY}; name others with --only")
    work = [
        (e, condition, seed)
        for e in env_ids
        for seed in range(own.first_seed, own.seeds)
        for condition in own.conditions
    ]
    file = own.output / f"{output}.json"
    results = saved(file)
    found: dict[str, dict[str, dict[str, list[float]]]] = {e: {c: {} for c in own.conditions} for e in env_ids}
    if own.first_seed:
        sizes = {e: (round(own.fraction * tasks[e].timesteps), own.episodes) for e in env_ids}
        try:
            found = {e: earlier(results.get(e, {}), own.conditions, own.first_seed, *sizes[e]) for e in env_ids}
        except ValueError as error:
            parser.error(f"--first-seed {own.first_seed}: {file}: {error}")
    with Progress() as progress:
        bar = progress.add_task("training and evaluating", total=len(work))
        for env_id, condition, seed in work:
            task = tasks[env_id]
            steps = round(own.fraction * task.timesteps)
            path = trained(env_id, task, condition, seed, steps, own.folder)
            for name, value in measure(path, task, steps, own.episodes).items():
                found[env_id][condition].setdefault(name, []).append(value)
            progress.advance(bar)
    for env_id, conditions in found.items():
        task = tasks[env_id]
        steps = round(own.fraction * task.timesteps)
        title = f"{task.algo.upper()} on {env_id}, {steps:,} steps, {own.seeds} seeds: mean (range)"
        table = Table("", *conditions, title=title)
        for name in dict.fromkeys(name for values in conditions.values() for name in values):
            table.add_row(name, *(summary(values[name]) if name in values else "" for values in conditions.values()))
        Console(width=140).print(table)
        before = results.get(env_id, {})
        if (before.get("timesteps"), before.get("episodes")) == (steps, own.episodes):
            # Those that were left out this time.
            everything = {**before["conditions"], **conditions}
            conditions = {name: everything[name] for name in ALL if name in everything}
        results[env_id] = {"algo": task.algo, "timesteps": steps, "episodes": own.episodes, "conditions": conditions}
    save(results, file)
    for env_id in env_ids:
        draw(env_id, results[env_id]["conditions"], own.output / f"{output}-{env_id}.png")


if __name__ == "__main__":
    compare(TASKS, __doc__, "continuous")
