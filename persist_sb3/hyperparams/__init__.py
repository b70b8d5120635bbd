"""
rl-zoo3's hyperparameters with the layers written out: one ``.yml`` an algorithm, and a module beside it so that
``-conf persist_sb3.hyperparams.ppo`` finds it where the package is installed.
"""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import spaces

from persist_sb3._doors import refuse_root_import

refuse_root_import(__name__)

FOLDER = Path(__file__).parent

#: What follows an environment's id where its entry has a shield, beside the one that has none. rl-zoo3 looks for the id
#: alone; ``train.py --shield`` takes the other.
SHIELDED = "+shield"

#: What only equivariant policies take.
OF_SYMMETRY = ("symmetries", "modes", "best_of", "action_gap", "gap_limit")

_OF_SYMMETRY = re.compile(rf",\s*({'|'.join(OF_SYMMETRY)})=(\[[^]]*\]|'[^']*'|[\d.]+)")
_IDS = re.compile(r"'(\w+-v\d+)'")


def algorithms() -> list[str]:
    """
    :return: rl-zoo3's names of the algorithms that have a file here
    """
    return sorted(path.stem for path in FOLDER.glob("*.yml"))


def load(algo: str) -> dict[str, dict[str, Any]]:
    """
    :param algo: rl-zoo3's name of an algorithm, one of :func:`algorithms`
    :return: its hyperparameters by environment id, and those with a shield by the id and :data:`SHIELDED`; those under
        ``"default"``, for any other environment, have no layers
    """
    return yaml.safe_load((FOLDER / f"{algo}.yml").read_text(encoding="utf-8"))


def is_shield(layer: str | dict[str, Any]) -> bool:
    """
    :param layer: an entry of ``env_wrapper`` or ``vec_env_wrapper``
    :return: whether it is a shield
    """
    return "ActionShield" in str(layer)


def fit_symmetry(
    entry: dict[str, Any], observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> dict[str, Any]:
    """
    :param entry: hyperparameters of an environment
    :param observation_space: what the policy is going to see
    :param action_space: of its actions
    :return: the same; with SB3's own networks if its policy is equivariant to symmetries of no such observations and
        actions
    """
    plain = without_symmetry(entry)
    if plain == entry:
        return entry
    for env_id in _IDS.findall(str(entry.get("policy_kwargs", {}))):
        with gym.make(env_id) as env:
            if env.observation_space == observation_space and env.action_space == action_space:
                return entry
    return plain


def without_symmetry(entry: dict[str, Any]) -> dict[str, Any]:
    """
    :param entry: hyperparameters of an environment
    :return: the same, with SB3's own networks in the place of equivariant ones
    """
    policy, kwargs = entry.get("policy", ""), entry.get("policy_kwargs", {})
    if not policy.startswith("persist_sb3.equivariant."):
        return entry
    if isinstance(kwargs, dict):
        kwargs = {key: value for key, value in kwargs.items() if key not in OF_SYMMETRY}
    else:
        kwargs = _OF_SYMMETRY.sub("", kwargs)
    plain = {"policy": "MultiInputPolicy" if "MultiInput" in policy else "MlpPolicy", "policy_kwargs": kwargs}
    if isinstance(entry.get("callback"), list):
        plain["callback"] = [callback for callback in entry["callback"] if "BestOfCallback" not in str(callback)]
    return {**entry, **plain}
