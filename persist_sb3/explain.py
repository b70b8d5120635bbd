"""``python -m persist_sb3.explain``: what a trained agent's shield did, when, and why."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from persist_sb3 import plots
from persist_sb3.evaluation import Episode, declared_viability, evaluate
from persist_sb3.packages import import_packages
from persist_sb3.progress import bar
from persist_sb3.runs import Run, RunError
from persist_sb3.summary import without_nan
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers.action_shield import ActionShield, ActionShieldLayer, VecActionShield

EXAMPLES = """
examples:
  %(prog)s logs/ppo/GridLife-v0_1
  %(prog)s logs/ppo_mask/GridLife-v0_1 --episodes 50 --output interventions.jsonl

What it did not prevent is listed, too, with what the critic thought of the action that was executed.
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


@dataclass(frozen=True)
class Violation:
    """
    The first violation of an episode, which the shield did not prevent.

    :param episode: index of the episode
    :param step: of it, the first being 1
    :param constraint: the one that was violated
    :param why: why the shield let it happen: :data:`WAITING`, :data:`INFEASIBLE`, :data:`MISJUDGED` or
        :data:`UNGUARDED`
    :param value: what the critic gave the action that was executed, NaN while the shield waited
    """

    episode: int
    step: int
    constraint: str
    why: str
    value: float


#: Why a shield lets a violation happen.
WAITING = "the shield was waiting: its models are not trained enough"
INFEASIBLE = "no action passed, and the safest was not safe enough"
MISJUDGED = "the action passed: the critic valued it too highly"
UNGUARDED = "the shield does not guard this constraint"

#: What most interventions at which nothing could be done come to.
LOST = (
    "at {lost} of {all} interventions no action passed: the critic expects every one to end outside the limits. It "
    "sees the end of what runs out slowly too late to help; leave that to the policy (guards names what the shield "
    "keeps), lower the threshold, or train for longer"
)


@dataclass(frozen=True)
class Replay:
    """
    What a replay has shown.

    :param episodes: that were played
    :param interventions: of the shield
    :param violations: the first of each episode that has one
    :param viability: the constraints
    :param threshold: least value of an action that passes
    :param waited: the shield judged no action at all
    :param updates: gradient steps that the least trained of the shield's models has taken
    :param min_updates: gradient steps that it must have taken before the shield judges
    """

    episodes: list[Episode]
    interventions: list[Intervention]
    violations: list[Violation]
    viability: ViabilitySet
    threshold: float
    waited: bool
    updates: int
    min_updates: int


class Listener(VecEnvWrapper):
    """
    Keeps what the shield says.

    :param venv: the environments, with their layers
    :raises RuntimeError: if there is no shield among them
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        #: The shield of all environments, or one an environment.
        self.layers = _shields(venv)
        #: Of each environment and each of its episodes, what was said at which step.
        self.said: list[list[list[tuple[int, Mapping[str, Any], Any]]]] = [[[]] for _ in range(venv.num_envs)]
        #: Likewise, of each step the executed action's value (NaN while the shield waits), and whether none passed.
        self.judged: list[list[list[tuple[float, bool]]]] = [[[]] for _ in range(venv.num_envs)]
        self._time = np.zeros(venv.num_envs, dtype=np.intp)

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: Any) -> None:
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, done, infos = self.venv.step_wait()
        self._time += 1
        for slot, info in enumerate(infos):
            self.judged[slot][-1].append(self._judgement(slot))
            if "shield" in info:
                executed = info.get("executed_action", self._actions[slot])
                self.said[slot][-1].append((int(self._time[slot]), info["shield"], executed))
            if done[slot]:
                self.said[slot].append([])
                self.judged[slot].append([])
                self._time[slot] = 0
        return observation, reward, done, infos

    def _judgement(self, slot: int) -> tuple[float, bool]:
        row = slot if len(self.layers) == 1 else 0
        decision = self.layers[slot - row].decision
        if decision is None:
            return np.nan, False
        return float(decision.executed.score[row]), bool(decision.infeasible[row])


def _shields(venv: VecEnv) -> list[ActionShieldLayer]:
    """
    :param venv: the environments, with their layers
    :return: the shield around all of them, or that of each
    :raises RuntimeError: if there is none
    """
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VecActionShield):
            return [venv.layer]
        venv = venv.venv
    found = []
    for env in getattr(venv, "envs", ()):
        while isinstance(env, gym.Wrapper):
            if isinstance(env, ActionShield):
                found.append(env.layer)
            env = env.env
    if not found:
        raise RuntimeError("no ActionShield")
    return found


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
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
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
        import_packages(own.gym_packages)
        run = Run(own.run)
        with bar() as progress:
            task = progress.add_task("replaying", total=own.episodes)
            seen = replay(
                run,
                own.episodes,
                own.seed,
                own.env,
                not own.stochastic,
                progress=lambda done: progress.update(task, completed=done),
            )
    except (ImportError, RuntimeError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    episodes, interventions = seen.episodes, seen.interventions
    if interventions:
        console.print(_listed(interventions, own.most))
    steps = sum(episode.record.length for episode in episodes)
    console.print(
        f"{len(interventions)} interventions in {steps} steps of {len(episodes)} episodes; "
        f"{sum(episode.record.survived for episode in episodes)} episodes survived",
        highlight=False,
    )
    if interventions:
        console.print(_counted("by constraint in danger", interventions, _constraint))
        # Real numbers are hardly ever the same twice.
        if np.asarray(interventions[0].proposed).dtype.kind != "f":
            console.print(_counted("by proposed and executed action", interventions, _change))
        lost = sum(each.infeasible for each in interventions)
        if 2 * lost > len(interventions):
            console.print(LOST.format(lost=lost, all=len(interventions)), style="yellow", highlight=False)
    if seen.waited:
        console.print(_waiting(seen), style="yellow", highlight=False)
    if seen.violations:
        console.print(_not_prevented(seen, own.most))
    counts = Counter(intervention.episode for intervention in interventions)
    drawn = counts.most_common(1)[0][0] if counts else 0
    picture = Path(own.picture or run.folder / "interventions.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    chosen = [intervention for intervention in interventions if intervention.episode == drawn]
    files = [plots.save(timeline(episodes[drawn], chosen, seen.viability, drawn), picture)]
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
) -> Replay:
    """
    :param run: with a trained agent and a shield
    :param episodes: how many to play
    :param seed: of environments and policy
    :param env_id: another environment with the same spaces and constraints. Default: the run's own
    :param deterministic: take the policy's best action instead of a sample
    :param progress: called at each step with the number of episodes that are done
    :return: the episodes, what the shield did in them, and what it let happen
    :raises RunError: if the run cannot be replayed, or has no shield
    """
    if env_id is not None:
        run.env_id = env_id
    venv = run.make_env(min(episodes, MOST_ENVS))
    try:
        agent = run.load_model(venv, seed)
        try:
            listener = Listener(venv)
        except RuntimeError as error:
            raise RunError(
                f"{run.folder}: its environment has no ActionShield, so there is nothing to explain. Train one with "
                "--shield, or with viability.shield in the file of --persist. Who stays alive without one, and what "
                f"kills: persist-sb3 report {run.folder}"
            ) from error
        viability = declared_viability(venv)
        played = evaluate(
            Unmasked(agent), listener, episodes, deterministic=deterministic, seed=seed, progress=progress
        )
    finally:
        venv.close()
    layer = listener.layers[0]
    index: Counter[int] = Counter()
    interventions, violations = [], []
    for number, episode in enumerate(played):
        slot = episode.record.env
        for step, told, executed in listener.said[slot][index[slot]]:
            interventions.append(_read(number, step, told, executed, viability))
        step_of_death = episode.record.violated_at
        if step_of_death is not None:
            value, infeasible = listener.judged[slot][index[slot]][step_of_death - 1]
            constraint = str(episode.record.violated)
            if constraint not in layer.guarded.names:
                why = UNGUARDED
            else:
                why = WAITING if np.isnan(value) else INFEASIBLE if infeasible else MISJUDGED
            violations.append(Violation(number, step_of_death, constraint, why, value))
        index[slot] += 1
    waited = all(np.isnan(value) for slot in listener.judged for one in slot for value, _ in one)
    return Replay(
        played, interventions, violations, viability, layer.threshold, waited, layer.updates, layer.min_updates
    )


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
    shown = interventions[:most]
    table = Table(title=f"the first {len(shown)} of {len(interventions)} interventions")
    columns = {
        "episode": [str(each.episode) for each in shown],
        "step": [str(each.step) for each in shown],
        "action": [_change(each) for each in shown],
        "value": [f"{each.value:.2f} → {each.executed_value:.2f}" for each in shown],
        "p_safe": [
            "" if np.isnan(each.p_safe) else f"{each.p_safe:.2f} → {each.executed_p_safe:.2f}" for each in shown
        ],
        "in danger": [escape(each.constraint + _note(each)) for each in shown],
        "margin": [f"{each.margin:.2f}" for each in shown],
        "foreseen": ["" if each.foreseen < 0 else f"in {each.foreseen} steps" for each in shown],
    }
    if not any(columns["foreseen"]):
        table.caption = "the margin is the least that is feared at any time ahead: when, nobody has foreseen"
    # What nobody knows has no column.
    columns = {name: column for name, column in columns.items() if any(column)}
    for name in columns:
        table.add_column(name, justify="left" if name == "in danger" else "right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _note(intervention: Intervention) -> str:
    return " (failed)" if intervention.failed else " (none passes)" if intervention.infeasible else ""


def _waiting(seen: Replay) -> str:
    if not seen.updates:
        return (
            "the shield never judged: the agent's file holds no trained model for it. Was it trained with "
            "persist_sb3.callbacks.ViabilityCallback, for longer than the callback's learning_starts?"
        )
    return (
        f"the shield never judged: the least trained of its models has taken {seen.updates} gradient steps of the "
        f"{seen.min_updates} that min_updates asks for. Train longer, give its callback a lower learning_starts or "
        "more gradient_steps, or lower min_updates"
    )


def _not_prevented(seen: Replay, most: int) -> Table:
    table = Table(
        title=f"not prevented: the first {min(most, len(seen.violations))} of {len(seen.violations)} episodes with a "
        "violation",
        caption=f"an action passes from a value of {seen.threshold:g} on",
    )
    for name in ("episode", "step", "violated", "value", "why"):
        table.add_column(name, justify="left" if name in ("violated", "why") else "right")
    for each in seen.violations[:most]:
        value = "" if np.isnan(each.value) else f"{each.value:.2f}"
        table.add_row(str(each.episode), str(each.step), escape(each.constraint), value, each.why)
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
