"""``python -m persist_sb3.demonstrate``: record episodes in which an agent stays alive, for models to learn from."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from persist_sb3 import hyperparams
from persist_sb3.buffers.demonstrations import Demonstrations
from persist_sb3.buffers.minari import write_minari
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.oracle import BeamPlanner, OraclePolicy
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.packages import import_packages, told
from persist_sb3.progress import bar
from persist_sb3.recording import record
from persist_sb3.runs import Run

EXAMPLES = """
examples:
  %(prog)s --env GridLife-v0 --episodes 20 --output demos.npz     by a planner that knows GridLife's dynamics
  %(prog)s --env GridLifeContinuous-v0 --task-weight 3            the same for Box actions, collecting many items
  %(prog)s --env GridLifeScent-v0 --algo ppo_mask                 as agents of that entry see it, and are paid
  %(prog)s --agent logs/ppo/GridLife-v0_1 --drop-unsafe           a trained agent's, those in which it stays alive
  %(prog)s --minari gridlife/oracle-v0                            a dataset of Minari as well

GridLife is played on layouts for training, so those for validation and test stay unseen. A trained agent plays with its
layers around it, the planner with those of --algo, and demonstrations are for trainings with the same layers. Open only
runs that you trust.
"""

ORACLE = "oracle"
#: Environments that run side by side, for one batch of the agent.
MOST_ENVS = 64
#: What GridLife's moves are in its continuous form: stay, up, down, left, right.
UNIT_MOVES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], dtype=np.float32)


class ContinuousOracle(OraclePolicy):
    """
    The planner in GridLife's continuous form: each move is the unit vector in its direction.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[Any], Any]:
        moves, state = super().predict(observation, state, episode_start, deterministic)
        return UNIT_MOVES[moves], state


def demonstrate(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line. Default: the process's own
    :return: the exit status: 1 if something could not be done, and a message says what
    """
    parser = _parser()
    own = parser.parse_args(arguments)
    _check(parser, own)
    console = Console()
    try:
        import_packages(own.gym_packages)
        agent, venv = _oracle(own) if own.agent == ORACLE else _trained(own)
    except (ImportError, RuntimeError, ValueError, gym.error.Error) as error:
        parser.error(told(error))
    try:
        with bar() as progress:
            task = progress.add_task("recording", total=own.episodes)
            demonstrations = record(
                agent,
                venv,
                own.episodes,
                seed=own.seed,
                drop_unsafe=own.drop_unsafe,
                progress=lambda done: progress.update(task, completed=done),
            )
        console.print(_table(demonstrations))
        console.print(demonstrations.save(own.output), markup=False, highlight=False, soft_wrap=True)
        if own.minari is not None:
            seen = venv.venv if isinstance(venv, VecNormalize) else venv
            write_minari(demonstrations, own.minari, seen.observation_space, seen.action_space)
            console.print(f"Minari dataset {own.minari}", markup=False, highlight=False)
    except (OSError, RuntimeError, ValueError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    finally:
        venv.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Record episodes in which an agent stays alive, for models to learn from.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--env", metavar="ID", help="a form of GridLife, for the oracle (default: GridLife-v0)")
    parser.add_argument("--episodes", metavar="N", type=int, default=20, help="to record (default: %(default)s)")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, default=Path("demos.npz"), help="what to write (default: %(default)s)"
    )
    parser.add_argument(
        "--agent",
        metavar="oracle|RUN_DIR",
        default=ORACLE,
        help="who plays: GridLife's planner, or the agent of a run folder of rl-zoo3 (default: %(default)s)",
    )
    parser.add_argument(
        "--task-weight",
        metavar="W",
        type=float,
        default=0.0,
        help="what an item is worth to the oracle: 0 merely survives, 3 collects most (default: %(default)g)",
    )
    parser.add_argument(
        "--algo",
        choices=hyperparams.algorithms(),
        metavar="ALGO",
        help="show the oracle's episodes as agents of this algorithm's shipped entry see them and are paid for them: "
        "with its layers, but for the shield (default: without layers)",
    )
    parser.add_argument(
        "--drop-unsafe", action="store_true", help="leave episodes out that violate a constraint, instead of stopping"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default: %(default)s)")
    parser.add_argument("--minari", metavar="NAME", help="write a dataset of Minari too, such as gridlife/oracle-v0")
    parser.add_argument(
        "--gym-packages", metavar="MODULE", nargs="+", default=[], help="modules that register your own environments"
    )
    return parser


def _check(parser: argparse.ArgumentParser, own: argparse.Namespace) -> None:
    if own.episodes < 1:
        parser.error(f"--episodes {own.episodes}: at least one is needed")
    if not own.output.parent.is_dir():
        parser.error(f"--output {own.output}: there is no folder {own.output.parent}")
    if own.agent != ORACLE:
        for option, value in (("--env", own.env), ("--task-weight", own.task_weight), ("--algo", own.algo)):
            if value:
                parser.error(f"{option} {value} is about the oracle: the run {own.agent} says what it plays")


def _oracle(own: argparse.Namespace) -> tuple[PolicyPredictor, VecEnv]:
    """
    :param own: the command line
    :return: the oracle, and the environments that it plays
    :raises ValueError: if it cannot play that
    """
    spec = gym.spec(own.env or "GridLife-v0")
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if not (isinstance(creator, type) and issubclass(creator, GridLifeEnv)):
        raise ValueError(f"the oracle plays GridLife only, not {spec.id}: name a trained agent's run with --agent")
    worlds = GridLifeVecEnv(min(own.episodes, MOST_ENVS), split="train", **spec.kwargs)
    planner = BeamPlanner(worlds.params, task_weight=own.task_weight)
    oracle = ContinuousOracle if isinstance(worlds.action_space, spaces.Box) else OraclePolicy
    return oracle(planner, worlds.snapshot), worlds if own.algo is None else layered(worlds, own.algo, spec.id)


def layered(worlds: VecEnv, algo: str, env_id: str) -> VecEnv:
    """
    :param worlds: without layers
    :param algo: rl-zoo3's name of an algorithm
    :param env_id: of the worlds
    :return: with the layers of the shipped entry, but for the shield, which has not learned anything yet
    :raises ValueError: if there is no entry
    """
    entries = hyperparams.load(algo)
    if env_id not in entries:
        known = ", ".join(name for name in entries if name.startswith("GridLife"))
        raise ValueError(f"--algo {algo}: there is no entry for {env_id}, but for {known}")
    layers = [each for each in entries[env_id].get("vec_env_wrapper", ()) if not hyperparams.is_shield(each)]
    wrap: Any = get_wrapper_class({"vec_env_wrapper": layers or None}, "vec_env_wrapper")
    return worlds if wrap is None else wrap(worlds)


def _trained(own: argparse.Namespace) -> tuple[PolicyPredictor, VecEnv]:
    """
    :param own: the command line
    :return: the agent of a run, and the environments with its layers
    :raises RuntimeError: if the run is damaged or has no agent yet
    """
    run = Run(own.agent)
    venv = run.make_env(min(own.episodes, MOST_ENVS), split="train")
    return run.load_model(venv, own.seed), venv


def _table(demonstrations: Demonstrations) -> Table:
    """
    :param demonstrations: what was recorded
    :return: its figures
    """
    transitions, viability = demonstrations.transitions, demonstrations.viability
    margins = viability.margins(transitions.next_internal)
    lengths, returns = demonstrations.lengths, demonstrations.returns
    table = Table("demonstrations", "", show_header=False)
    table.add_row("episodes", f"{demonstrations.episodes:,}")
    if demonstrations.dropped:
        table.add_row("episodes left out", f"{demonstrations.dropped:,}")
    table.add_row("steps", f"{len(demonstrations):,}")
    table.add_row("steps an episode", f"{lengths.min()} to {lengths.max()}")
    table.add_row("violations", f"{np.count_nonzero(~viability.contains(transitions.next_internal))}")
    for name, margin in zip(viability.names, margins.min(axis=0), strict=True):
        table.add_row(f"smallest margin: {name}", f"{margin:.2f}")
    table.add_row("return", f"{returns.mean():.2f} ± {returns.std():.2f}")
    return table


if __name__ == "__main__":
    sys.exit(demonstrate())
