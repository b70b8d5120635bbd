"""``python -m persist_sb3.enjoy``: rl-zoo3's ``enjoy`` with this package's environments, layers and algorithms."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.enjoy as zoo_enjoy
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import VecEnv

from persist_sb3 import zoo
from persist_sb3.packages import import_packages
from persist_sb3.progress import watched
from persist_sb3.runs import Run, RunError
from persist_sb3.witness import Witness

EXAMPLES = """
examples:
  %(prog)s                                                      the newest run in logs/
  %(prog)s logs/ppo/GridLife-v0_3                               this run
  %(prog)s --algo ppo --env GridLife-v0 --exp-id 3 --load-best  the best model of one run
  %(prog)s --no-render -n 5000                                  only the figures

Where there is no screen nothing is drawn, which is said. A video: persist-sb3 report RUN_DIR
"""


def enjoy(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: of the command line. Default: the process's own
    """
    environments = _keep_environments()
    zoo.register_ppo_mask(_replay_with_masks(environments))
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Not the parser's business: what follows an option that only rl-zoo3 knows would look like a folder, too.
    folder = given.pop(0) if given and not given[0].startswith("-") else None
    own, others = parser.parse_known_args(given)
    if watched() and not own.no_progress:
        others = ["--progress", *others]
    if own.help:
        parser.print_help()
        print("\nEvery option of rl-zoo3's enjoy is taken too:\n")
        zoo.run(zoo_enjoy.enjoy, ["--help"])
    try:
        run = _newest_run(parser, own) if folder is None else Run(folder)
        import_packages([*own.gym_packages, *(run.arguments.get("gym_packages") or [])])
    except (ImportError, RunError) as error:
        parser.error(str(error))
    if "--no-render" not in others and not _has_screen():
        print(f"no screen: nothing is drawn. For a video: persist-sb3 report {run.folder} --episodes 1")
        others = ["--no-render", *others]
    if not any(option.startswith("--load-") for option in others):
        others = [*_which_model(run), *others]
    where = ["--algo", run.algo, "--env", run.env_id, "--folder", own.folder]
    if folder is not None:
        others = ["--exp-id", _number(parser, run), *others]
        where[-1] = str(run.folder.resolve().parents[1])
    try:
        with zoo.show_progress():
            zoo.run(zoo_enjoy.enjoy, [*where, *others])
    except ValueError as error:
        if not str(error).startswith(("No model found", "No checkpoint found")):
            raise
        there = ", ".join(sorted(file.name for file in run.folder.glob("*.zip"))) or "none yet"
        parser.error(f"{error} (in {run.folder} there are: {there})")
    for venv in environments:
        if isinstance(venv, Witness):
            print(venv.summary())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [RUN_DIR] [-h] [-f DIR] [--algo ALGO] [--env ID] [--gym-packages MODULE [MODULE ...]] "
        "[--no-progress]",
        description="Watch a trained agent with its layers around it, through rl-zoo3.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and rl-zoo3's own options")
    parser.add_argument(
        "--gym-packages",
        metavar="MODULE",
        nargs="+",
        default=[],
        help="modules that register your own environments (default: those of the run)",
    )
    parser.add_argument("-f", "--folder", metavar="DIR", default="logs", help="where the runs are (default: logs)")
    parser.add_argument("--algo", metavar="ALGO", help="algorithm (default: that of the newest run)")
    parser.add_argument("--env", metavar="ID", help="environment id (default: that of the newest run)")
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bar (default: there is one if stderr is a terminal)"
    )
    return parser


def _has_screen() -> bool:
    """
    :return: whether a window can be opened. Without one, what draws in the pace of its environment draws into nothing
    """
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")))


def _which_model(run: Run) -> list[str]:
    """
    :param run: that is to be replayed
    :return: the option of rl-zoo3 that loads what there is, where a training has not come to its end
    """
    path = run.model_path
    if path is None or path.stem == run.parameters.name:
        return []
    return ["--load-best" if path.stem == "best_model" else "--load-last-checkpoint"]


def _newest_run(parser: argparse.ArgumentParser, own: argparse.Namespace) -> Run:
    """
    :param parser: says so if there is no run
    :param own: the command line: which algorithm and environment, and in which folder
    :return: the run that began last
    """
    algo, env_id = own.algo or "*", (own.env or "*").replace("/", "-")
    runs = list(Path(own.folder).glob(f"{algo}/*_[0-9]*/{env_id}/args.yml"))
    if not runs:
        there = sorted({f"{path.parts[-4]} on {path.parts[-2]}" for path in Path(own.folder).glob("*/*/*/args.yml")})
        what = f"of {own.algo or 'any algorithm'} on {own.env or 'any environment'}"
        remedy = f"there are: {', '.join(there)}" if there else "train one first, or name its folder with -f"
        parser.error(f"no run {what} in {own.folder} ({remedy})")
    return Run(max(runs, key=lambda path: path.stat().st_mtime).parents[1])


def _number(parser: argparse.ArgumentParser, run: Run) -> str:
    """
    :param parser: says so if there is none
    :param run: that is to be replayed
    :return: the number by which rl-zoo3 finds it
    """
    folder = run.folder.resolve()
    name, _, number = folder.name.rpartition("_")
    if name != run.env_id.replace("/", "-") or not number.isdecimal() or folder.parent.name != run.algo:
        expected = f"{run.algo}/{run.env_id.replace('/', '-')}_1"
        parser.error(f"rl-zoo3 finds a run by the name of its folder: put {run.folder} at FOLDER/{expected}")
    return number


def _keep_environments() -> list[VecEnv]:
    """
    :return: filled with the environments that rl-zoo3 makes for its replay, which is told to keep count of survival
    """
    create_test_env = zoo_enjoy.create_test_env
    environments: list[VecEnv] = []

    def remember(*args: Any, **kwargs: Any) -> VecEnv:
        environments.append(Witness.around(create_test_env(*args, **kwargs)))
        return environments[-1]

    zoo_enjoy.create_test_env = remember
    return environments


def _replay_with_masks(environments: Sequence[VecEnv]) -> type[MaskablePPO]:
    """
    rl-zoo3's replay neither asks for action masks nor lets the model see the environment that has them.

    :param environments: the last of them is the one it is replayed in
    :return: MaskablePPO that asks it
    """

    class Replay(MaskablePPO):
        def predict(
            self,
            observation: NDArray[Any] | dict[str, NDArray[Any]],
            state: tuple[NDArray[Any], ...] | None = None,
            episode_start: NDArray[np.bool_] | None = None,
            deterministic: bool = False,
            action_masks: NDArray[np.bool_] | None = None,
        ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
            if action_masks is None:
                action_masks = get_action_masks(environments[-1])
            return super().predict(observation, state, episode_start, deterministic, action_masks)

    return Replay
