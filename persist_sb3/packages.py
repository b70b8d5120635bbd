"""Modules that register a user's own environments, and what to say where an environment or its module is missing."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym


def import_packages(modules: Sequence[str]) -> None:
    """
    Import modules as a script in the current folder would: Python looks there first for ``python -m`` and for a script,
    but not for an installed command such as ``persist-sb3``.

    :param modules: names such as ``"rover"`` or ``"my_project.envs"``
    :raises ImportError: if one of them, or something that it imports, is not there
    """
    here = str(Path.cwd())
    if modules and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        if module.endswith(".py"):
            name = ".".join(Path(module).with_suffix("").parts)
            raise ImportError(f"--gym-packages takes the name of a module, not a file: {name} instead of {module}")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise ImportError(f"module {module!r} cannot be imported: {error}", name=error.name) from error
            raise ModuleNotFoundError(
                f"there is no module {module!r}, neither installed nor in {here}: run the command in the folder that "
                f"{module.partition('.')[0]} is in",
                name=error.name,
            ) from error


def told(error: Exception) -> str:
    """
    :param error: of gymnasium, or any other
    :return: its text; where no environment has the id that was asked for, with what to do about it
    """
    if isinstance(error, gym.error.UnregisteredEnv):
        return f"{error} If it is your own, name the module that registers it with --gym-packages"
    return str(error)
