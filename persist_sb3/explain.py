"""``python -m persist_sb3.explain``: what a trained agent's shield did, when, and why."""

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from persist_sb3 import plots
from persist_sb3.evaluation import Episode, declared_viability, evaluate
from persist_sb3.progress import bar
from persist_sb3.runs import Run, RunError
from persist_sb3.summary import without_nan
from persist_sb3.viability import ViabilitySet

EXAMPLES = """
examples:
  %(prog)s logs/ppo/GridLife-v0_1
  %(prog)s logs/ppo_mask/GridLife-v0_1 --episodes 50 --output interventions.jsonl

An agent that takes action masks proposes nothing that the shield refuses, so it is asked without them. What a run
folder names is imported and unpickled: open only runs that you trust.
"""

#: Environments that run side by side, for one batch of the policy.
MOST_ENVS = 100


@dataclass(frozen=True)
class Intervention:
    """
    A step at which the shield changed the action, let none pass, or failed.

    :param episode: index of the episode
    :param step: of it, the first being 1
    :param proposed: action, as the policy wanted it
    :param executed: action
    :param value: what the critic gave the proposed one, in scaled margins
    :param executed_value: and the executed one
    :param p_safe: estimated probability that the proposed one is safe, NaN if nobody estimated it
    :param executed_p_safe: and the executed one
    :param constraint: the one in danger
    :param margin: what it was foreseen to be left with, scaled
    :param foreseen: after how many steps it was foreseen broken, -1 if not or not known
    :param infeasible: no action passed
    :param failed: a model failed
    """

    episode: int
    step: int
    proposed: Any
    executed: Any
    value: float
    executed_value: float
    p_safe: float
    executed_p_safe: float
    constraint: str
    margin: float
    foreseen: int
    infeasible: bool
    failed: bool


class Listener(VecEnvWrapper):
    """
    Keeps what the shield says.

    :param venv: the environments, with their layers
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        #: Of each environment and each of its episodes, what was said at which step.
        self.said: list[list[list[tuple[int, Mapping[str, Any], Any]]]] = [[[]] for _ in range(venv.num_envs)]
        self._time = np.zeros(venv.num_envs, dtype=np.intp)
        self.shielded = False

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: Any) -> None:
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, done, infos = self.venv.step_wait()
        self._time += 1
        for slot, info in enumerate(infos):
            self.shielded |= "intervened" in info
            if "shield" in info:
                executed = info.get("executed_action", self._actions[slot])
                self.said[slot][-1].append((int(self._time[slot]), info["shield"], executed))
            if done[slot]:
                self.said[slot].append([])
                self._time[slot] = 0
        return observation, reward, done, infos


class Unmasked:
    """
    Any agent, asked without action masks.

    :param agent: with SB3's ``predict``
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        answer: tuple[Any, Any] = self._agent.predict(
            observation, state=state, episode_start=episode_start, deterministic=deterministic
        )
        return answer


def explain(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line. Default: the process's own
    :return: the exit status: 1 if the run cannot be replayed, or has no shield
    """
    parser = _parser()
    own = parser.parse_args(arguments)
    if own.episodes < 1:
        parser.error(f"--episodes {own.episodes}: at least one is needed")
    console = Console()
    try:
        for module in own.gym_packages:
            importlib.import_module(module)
        run = Run(own.run)
        with bar(console) as progress:
            task = progress.add_task("replaying", total=own.episodes)
            episodes, interventions, viability = replay(
                run,
                own.episodes,
                own.seed,
                own.env,
                not own.stochastic,
                progress=lambda done: progress.update(task, completed=done),
            )
    except (ImportError, RuntimeError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    console.print(_listed(interventions, own.most))
    steps = sum(episode.record.length for episode in episodes)
    console.print(
        f"{len(interventions)} interventions in {steps} steps of {len(episodes)} episodes; "
        f"{sum(episode.record.survived for episode in episodes)} episodes survived",
        highlight=False,
    )
    for title, what in (("by constraint in danger", _constraint), ("by proposed and executed action", _change)):
        console.print(_counted(title, interventions, what))
    counts = Counter(intervention.episode for intervention in interventions)
    drawn = counts.most_common(1)[0][0] if counts else 0
    picture = Path(own.picture or run.folder / "interventions.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    chosen = [intervention for intervention in interventions if intervention.episode == drawn]
    files = [plots.save(timeline(episodes[drawn], chosen, viability, drawn), picture)]
    if own.output is not None:
        lines = [json.dumps(without_nan(asdict(each)), allow_nan=False) for each in interventions]
        Path(own.output).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files.append(Path(own.output))
    console.print(*files, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 0


def replay(
    run: Run,
    episodes: int,
    seed: int,
    env_id: str | None = None,
    deterministic: bool = True,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[Episode], list[Intervention], ViabilitySet]:
    """
    :param run: with a trained agent and a shield
    :param episodes: how many to play
    :param seed: of environments and policy
    :param env_id: another environment with the same spaces and constraints. Default: the run's own
    :param deterministic: take the policy's best action instead of a sample
    :param progress: called at each step with the number of episodes that are done
    :return: the episodes, what the shield did in them, and the constraints
    :raises RunError: if the run cannot be replayed, or has no shield
    """
    if env_id is not None:
        run.env_id = env_id
    venv = run.make_env(min(episodes, MOST_ENVS))
    try:
        agent = run.load_model(venv, seed)
        listener = Listener(venv)
        viability = declared_viability(venv)
        played = evaluate(
            Unmasked(agent), listener, episodes, deterministic=deterministic, seed=seed, progress=progress
        )
    finally:
        venv.close()
    if not listener.shielded:
        raise RunError(f"{run.folder}: its environment has no ActionShield, so there is nothing to explain")
    index: Counter[int] = Counter()
    interventions = []
    for number, episode in enumerate(played):
        slot = episode.record.env
        for step, told, executed in listener.said[slot][index[slot]]:
            interventions.append(_read(number, step, told, executed, viability))
        index[slot] += 1
    return played, interventions, viability


def _read(episode: int, step: int, told: Mapping[str, Any], executed: Any, viability: ViabilitySet) -> Intervention:
    return Intervention(
        episode=episode,
        step=step,
        proposed=np.asarray(told["proposed"]).tolist(),
        executed=np.asarray(executed).tolist(),
        value=float(told["value"]),
        executed_value=float(told["executed_value"]),
        p_safe=float(told["p_safe"]),
        executed_p_safe=float(told["executed_p_safe"]),
        constraint=viability.names[int(told["constraint"])],
        margin=float(told["margin"]),
        foreseen=int(told["step"]),
        infeasible=bool(told["infeasible"]),
        failed=bool(told["failed"]),
    )


def timeline(episode: Episode, interventions: Sequence[Intervention], viability: ViabilitySet, number: int) -> Figure:
    """
    :param episode: an episode
    :param interventions: those in it
    :param viability: the constraints
    :param number: which episode it is
    :return: its internal variables over time, with their viable bands and a line where the shield intervened
    """
    figure = plots.internal({f"episode {number}": [episode]}, {f"episode {number}": viability})
    figure.set_size_inches(10.0, figure.get_size_inches()[1])
    for axes in figure.axes:
        for intervention in interventions:
            colour = plots.DEATH if intervention.infeasible or intervention.failed else plots.PALETTE[4]
            axes.axvline(intervention.step, color=colour, linewidth=0.8, alpha=0.6, zorder=0)
    figure.axes[0].set_title(f"episode {number}: {len(interventions)} interventions (red: no action passed)")
    return figure


def _constraint(intervention: Intervention) -> str:
    return intervention.constraint


def _change(intervention: Intervention) -> str:
    return f"{_action(intervention.proposed)} → {_action(intervention.executed)}"


def _action(action: Any) -> str:
    if isinstance(action, list):
        return "(" + ", ".join(map(_action, action)) + ")"
    return f"{action:.2f}" if isinstance(action, float) else str(action)


def _listed(interventions: Sequence[Intervention], most: int) -> Table:
    table = Table(title=f"the first {min(most, len(interventions))} of {len(interventions)} interventions")
    for name in ("episode", "step", "action", "value", "p_safe", "in danger", "margin", "foreseen"):
        table.add_column(name, justify="left" if name == "in danger" else "right")
    for each in interventions[:most]:
        note = " (failed)" if each.failed else " (none passes)" if each.infeasible else ""
        table.add_row(
            str(each.episode),
            str(each.step),
            _change(each),
            f"{each.value:.2f} → {each.executed_value:.2f}",
            "" if np.isnan(each.p_safe) else f"{each.p_safe:.2f} → {each.executed_p_safe:.2f}",
            escape(each.constraint + note),
            f"{each.margin:.2f}",
            "" if each.foreseen < 0 else f"in {each.foreseen} steps",
        )
    return table


def _counted(title: str, interventions: Sequence[Intervention], what: Callable[[Intervention], str]) -> Table:
    table = Table(title=title)
    table.add_column("")
    table.add_column("interventions", justify="right")
    for name, count in Counter(map(what, interventions)).most_common():
        table.add_row(escape(name), str(count))
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="What the shield of a trained agent did: each intervention, what it prevented, how sure it was.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_DIR", help="run folder of rl-zoo3, ALGO/ENV_NUMBER")
    parser.add_argument("--episodes", metavar="N", type=int, default=10, help="to replay (default: %(default)s)")
    parser.add_argument("--env", metavar="ID", help="replay in this environment instead of the run's own")
    parser.add_argument("--seed", type=int, default=0, help="of the replay (default: %(default)s)")
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the best ones")
    parser.add_argument("--most", metavar="N", type=int, default=40, help="interventions listed (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="where all interventions go, as lines of JSON")
    parser.add_argument(
        "--picture", metavar="FILE", help="timeline of the episode with most (default: RUN_DIR/interventions.png)"
    )
    parser.add_argument(
        "--gym-packages", metavar="MODULE", nargs="+", default=[], help="modules that register your own environments"
    )
    return parser


if __name__ == "__main__":
    sys.exit(explain())
