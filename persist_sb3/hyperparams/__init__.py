"""
rl-zoo3's hyperparameters with the layers written out: one ``.yml`` an algorithm, and a module beside it so that
``-conf persist_sb3.hyperparams.ppo`` finds it where the package is installed.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from persist_sb3._doors import refuse_root_import

refuse_root_import(__name__)

FOLDER = Path(__file__).parent

#: What follows an environment's id where its entry has a shield, beside the one that has none. rl-zoo3 looks for the id
#: alone; ``train.py --shield`` takes the other.
SHIELDED = "+shield"


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


def without_symmetry(entry: dict[str, Any]) -> dict[str, Any]:
    """
    :param entry: hyperparameters of an environment
    :return: the same with SB3's own networks, if its policy is equivariant: for observations or actions that are not
        those of the environment as it is registered
    """
    policy, kwargs = entry.get("policy", ""), entry.get("policy_kwargs")
    if not policy.startswith("persist_sb3.equivariant."):
        return entry
    plain = re.sub(r",\s*symmetries='[^']*'", "", kwargs) if isinstance(kwargs, str) else {**(kwargs or {})}
    if isinstance(plain, dict):
        plain.pop("symmetries", None)
    return {**entry, "policy": "MultiInputPolicy" if "MultiInput" in policy else "MlpPolicy", "policy_kwargs": plain}
