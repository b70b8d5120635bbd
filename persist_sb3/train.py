"""``python -m persist_sb3.train``: rl-zoo3's ``train`` with this package's environments, layers and hyperparameters."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import spaces
from rl_zoo3.train import train as zoo_train
from rl_zoo3.utils import ALGOS

from persist_sb3 import grouping, hyperparams, zoo
from persist_sb3.config import PersistConfig
from persist_sb3.diagnosis import environment
from persist_sb3.packages import import_packages, told
from persist_sb3.progress import watched
from persist_sb3.runs import Run, RunError

EXAMPLES = """
examples:
  %(prog)s --algo ppo --env GridLife-v0
  %(prog)s --algo sac --env GridLifeContinuous-v0 -n 100000
  %(prog)s --algo sac --env Navigation1-v0 --shield
  %(prog)s --persist gridlife.yml --track
  %(prog)s --algo ppo --env GridLife-v0 -params "vec_env_wrapper:[]"     the same agent without the layers
  %(prog)s --algo ppo --env GridLife-v0 -i logs/ppo/GridLife-v0_1/GridLife-v0.zip     go on with a trained agent
"""


def train(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: of the command line. Default: the process's own
    """
    zoo.register_ppo_mask()
    parser = _parser()
    own, others = parser.parse_known_args(arguments)
    if watched() and not own.no_progress:
        others = ["--progress", *others]
    before: Run | None = None
    if own.trained_agent is not None:
        path, before = _agent(parser, own)
        others = ["-i", path, *others]
    try:
        import_packages(own.gym_packages)
    except ImportError as error:
        parser.error(str(error))
    if own.help:
        parser.print_help()
        print("\nEvery option of rl-zoo3's train is taken too:\n")
        zoo.run(zoo_train, ["--help"])
    if own.gym_packages:
        # rl-zoo3 writes them into the run's folder, from which the environment can then be made again.
        others = ["--gym-packages", *own.gym_packages, *others]
    if own.persist is None:
        algo, env_id = own.algo or "ppo", own.env or "GridLife-v0"
        try:
            gym.spec(env_id)
        except gym.error.Error as error:
            parser.error(f"--env {env_id}: {told(error)}")
        if own.shield:
            _train_entry(algo, env_id, _shielded_entry(parser, algo, env_id, own.conf_file), "shield", others)
            return
        if own.conf_file is None and before is not None and (algo, env_id) == (before.algo, before.env_id):
            others = [*_env_options(before.arguments.get("env_kwargs") or {}), *others]
            _train_entry(algo, env_id, before.entry, "config", others)
            return
        config = own.conf_file or _shipped_file(parser, algo, env_id)
        _train(algo, env_id, config, others)
        return
    for option, value in (("--algo", own.algo), ("--env", own.env), ("-conf", own.conf_file), ("--shield", own.shield)):
        if value:
            parser.error(
                f"{option} {value}: {own.persist} says this already, so change it there or leave --persist out"
            )
    try:
        persist = PersistConfig.from_yaml(own.persist)
    except (OSError, ValueError) as error:
        parser.error(f"--persist: {error}")
    try:
        entry = _entry(persist)
    except (ValueError, gym.error.Error) as error:
        parser.error(f"--persist: {own.persist}: {told(error)}")
    others = [*_env_options(entry.pop("env_kwargs", {})), *others]
    _train_entry(persist.algo, persist.env_id, entry, Path(own.persist).stem, others)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train an agent that stays alive, through rl-zoo3.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and rl-zoo3's own options")
    parser.add_argument(
        "--algo", choices=sorted(ALGOS), metavar="ALGO", help=f"{', '.join(sorted(ALGOS))} (default: ppo)"
    )
    parser.add_argument("--env", metavar="ID", help="environment id (default: GridLife-v0)")
    parser.add_argument(
        "-conf",
        "--conf-file",
        metavar="FILE",
        help="hyperparameters, a .yml file or a Python module (default: persist_sb3/hyperparams/ALGO.yml)",
    )
    parser.add_argument(
        "--persist",
        metavar="FILE",
        help="a persistent agent's description (see PersistConfig): environment, algorithm, internal variables, "
        "constraints and rewards; it goes over the shipped hyperparameters of its algorithm",
    )
    parser.add_argument(
        "--shield", action="store_true", help="take the shipped entry of the environment that has a shield"
    )
    parser.add_argument(
        "-i",
        "--trained-agent",
        metavar="ZIP",
        help="go on with this agent (default of --algo, --env, --gym-packages and hyperparameters: those of its run)",
    )
    parser.add_argument(
        "--gym-packages", metavar="MODULE", nargs="+", default=[], help="modules that register your own environments"
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bar (default: there is one if stderr is a terminal)"
    )
    return parser


def _train(algo: str, env_id: str, config: str, others: Sequence[str]) -> None:
    """
    :param algo: rl-zoo3's name of the algorithm
    :param env_id: environment
    :param config: hyperparameters, as rl-zoo3's ``-conf`` takes them
    :param others: further options of rl-zoo3
    """
    arguments = [
        "--algo",
        algo,
        "--env",
        env_id,
        "-conf",
        config,
        *grouping.options(algo, env_id, config, others),
        *others,
    ]
    with zoo.show_runs(), zoo.show_progress(), zoo.evaluate_with_masks() if algo == zoo.MASKED else nullcontext():
        zoo.run(zoo_train, arguments)


def _train_entry(algo: str, env_id: str, entry: dict[str, Any], name: str, others: Sequence[str]) -> None:
    """
    :param algo: rl-zoo3's name of the algorithm
    :param env_id: environment
    :param entry: its hyperparameters
    :param name: of the file that rl-zoo3 is given them in
    :param others: further options of rl-zoo3
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name).with_suffix(".yml")
        file.write_text(yaml.safe_dump({env_id: entry}), encoding="utf-8")
        _train(algo, env_id, str(file), others)


def _env_options(env_kwargs: Mapping[str, Any]) -> list[str]:
    """
    :param env_kwargs: arguments of the environment
    :return: them on the command line, where they reach evaluation environments; rl-zoo3 forgets those of a file there
    """
    given = [f"{key}:{value!r}" for key, value in env_kwargs.items()]
    return ["--env-kwargs", *given] if given else []


def _agent(parser: argparse.ArgumentParser, own: argparse.Namespace) -> tuple[str, Run | None]:
    """
    :param parser: says so if there is none
    :param own: the command line, which is told what the agent's run says and it does not
    :return: the file of the trained agent, and its run
    """
    path: str = own.trained_agent
    if not (path.endswith(".zip") and Path(path).is_file()):
        there = sorted(map(str, (Path(path) if Path(path).is_dir() else Path(path).parent).glob("*.zip")))
        remedy = f"did you mean {' or '.join(there)}?" if there else "name the .zip in the folder of a run"
        parser.error(f"-i {path} is not the file of an agent: {remedy}")
    try:
        run = Run(Path(path).parent)
    except RunError:  # An agent from elsewhere has no run around it.
        return path, None
    if own.persist is None:
        own.algo, own.env = own.algo or run.algo, own.env or run.env_id
    own.gym_packages = own.gym_packages or run.arguments.get("gym_packages") or []
    return path, run


def _shielded_entry(parser: argparse.ArgumentParser, algo: str, env_id: str, conf_file: str | None) -> dict[str, Any]:
    if conf_file is not None:
        parser.error(f"--shield takes a shipped entry, and -conf {conf_file} says to take none")
    shipped = hyperparams.load(algo) if algo in hyperparams.algorithms() else {}
    key = env_id + hyperparams.SHIELDED
    entry = shipped.get(key, shipped.get(env_id, {}))
    if not _is_shielded(entry):
        known = ", ".join(_shielded_ids(shipped)) or "none"
        elsewhere = [
            other.upper() for other in hyperparams.algorithms() if env_id in _shielded_ids(hyperparams.load(other))
        ]
        hint = f"{' and '.join(elsewhere)} on {env_id} would have some; " if elsewhere else ""
        parser.error(
            f"no shipped hyperparameters with a shield for {algo} on {env_id} (there are: {known}): {hint}for any "
            "other environment and algorithm, describe it in a file with viability.shield and give --persist"
        )
    return entry


def _is_shielded(entry: dict[str, Any]) -> bool:
    """
    :param entry: hyperparameters
    :return: whether a shield is among the layers
    """
    return any(map(hyperparams.is_shield, entry.get("vec_env_wrapper") or []))


def _shielded_ids(shipped: dict[str, Any]) -> list[str]:
    """
    :param shipped: entries of an algorithm
    :return: environments of which one has a shield
    """
    return sorted({key.removesuffix(hyperparams.SHIELDED) for key, entry in shipped.items() if _is_shielded(entry)})


def _shipped_file(parser: argparse.ArgumentParser, algo: str, env_id: str) -> str:
    if algo not in hyperparams.algorithms():
        parser.error(
            f"no shipped hyperparameters for {algo} (there are: {', '.join(hyperparams.algorithms())}): name -conf"
        )
    shipped = hyperparams.load(algo)
    if env_id not in shipped:
        known = ", ".join(sorted(k for k in shipped if k != "default" and not k.endswith(hyperparams.SHIELDED)))
        parser.error(
            f"no shipped hyperparameters for {algo} on {env_id} (there are: {known}): describe its internal "
            "variables in a file and give --persist, or give hyperparameters of your own with -conf"
        )
    return str(hyperparams.FOLDER / f"{algo}.yml")


def _entry(persist: PersistConfig) -> dict[str, Any]:
    """
    :param persist: the agent
    :return: its hyperparameters: what it says, over the shipped ones
    :raises ValueError: as :func:`_base_entry`
    """
    shipped, own = _base_entry(persist), persist.zoo_entry()
    if "policy_kwargs" in own:
        # Another policy: of the same size, and without what only the shipped one takes.
        kept = {k: value for k, value in shipped.get("policy_kwargs", {}).items() if k not in hyperparams.OF_SYMMETRY}
        own["policy_kwargs"] = kept | own["policy_kwargs"]
    return shipped | own


def _base_entry(persist: PersistConfig) -> dict[str, Any]:
    """
    :param persist: the agent
    :return: the shipped entry of its algorithm and environment, or one without layers for any environment
    :raises ValueError: if there is none for its algorithm, or SB3 cannot learn in its environment
    """
    if persist.algo not in hyperparams.algorithms():
        raise ValueError(
            f"train.algo={persist.algo!r} has no shipped hyperparameters, only {hyperparams.algorithms()} have"
        )
    shipped = hyperparams.load(persist.algo)
    if persist.env_id in shipped:
        with persist.make_env() as env:
            return hyperparams.fit_symmetry(shipped[persist.env_id], env.observation_space, env.action_space)
    entry = shipped["default"]
    with gym.make(persist.env_id, **persist.env_kwargs) as env:
        findings = environment.check_spaces(env, persist.algo, append=persist.internal_state.append)
        if problems := [f"{each.text}: {each.remedy}" for each in findings if each.level == "problem"]:
            raise ValueError(". ".join(problems))
        if isinstance(env.observation_space, spaces.Dict):
            entry["policy"] = entry["policy"].replace("Mlp", "MultiInput")
    return entry


if __name__ == "__main__":
    train()
