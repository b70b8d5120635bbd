"""``python -m persist_sb3.enjoy``: rl-zoo3's ``enjoy`` with this package's environments, layers and algorithms."""

import argparse
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

EXAMPLES = """
examples:
  %(prog)s                                                      the newest run in logs/
  %(prog)s --algo ppo --env GridLife-v0 --exp-id 3 --load-best  the best model of one run
  %(prog)s --no-render -n 5000                                  only the figures
"""


def enjoy(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: of the command line. Default: the process's own
    """
    zoo.register_ppo_mask(_replay_with_masks())
    parser = _parser()
    own, others = parser.parse_known_args(arguments)
    if own.help:
        parser.print_help()
        print("\nEvery option of rl-zoo3's enjoy is taken too:\n")
        zoo.run(zoo_enjoy.enjoy, ["--help"])
    if own.algo is None or own.env is None:
        own.algo, own.env = _newest_run(parser, own.folder, own.algo or "*", own.env or "*")
    zoo.run(zoo_enjoy.enjoy, ["--algo", own.algo, "--env", own.env, "--folder", own.folder, *others])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Watch a trained agent with its layers around it, through rl-zoo3.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and rl-zoo3's own options")
    parser.add_argument("-f", "--folder", metavar="DIR", default="logs", help="where the runs are (default: logs)")
    parser.add_argument("--algo", metavar="ALGO", help="algorithm (default: that of the newest run)")
    parser.add_argument("--env", metavar="ID", help="environment id (default: that of the newest run)")
    return parser


def _newest_run(parser: argparse.ArgumentParser, folder: str, algo: str, env_id: str) -> tuple[str, str]:
    """
    :param parser: says so if there is no run
    :param folder: where the runs are, ``ALGO/ENV_NUMBER/ENV/args.yml``
    :param algo: algorithm, or ``"*"``
    :param env_id: environment id, or ``"*"``
    :return: algorithm and environment id of the run that began last
    """
    runs = list(Path(folder).glob(f"{algo}/*_[0-9]*/{env_id}/args.yml"))
    if not runs:
        parser.error(f"no run of algorithm {algo} on {env_id} in {folder}: train one first, or name its folder with -f")
    newest = max(runs, key=lambda path: path.stat().st_mtime)
    return newest.parts[-4], newest.parts[-2]


def _replay_with_masks() -> type[MaskablePPO]:
    """
    rl-zoo3's replay neither asks for action masks nor lets the model see the environment that has them.

    :return: MaskablePPO that asks the environment it is replayed in
    """
    create_test_env = zoo_enjoy.create_test_env
    environments: list[VecEnv] = []

    def remember(*args: Any, **kwargs: Any) -> VecEnv:
        environments.append(create_test_env(*args, **kwargs))
        return environments[-1]

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

    zoo_enjoy.create_test_env = remember
    return Replay
