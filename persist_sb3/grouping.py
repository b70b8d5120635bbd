"""Which runs W&B shows as one line: those that differ by their seeds alone."""

import argparse
import importlib
import os
import runpy
from collections.abc import Sequence
from pathlib import Path

import yaml
from rl_zoo3.utils import StoreDict

from persist_sb3 import dashboards


def options(algo: str, env_id: str, config: str, others: Sequence[str]) -> list[str]:
    """
    W&B takes a run's group when the run begins, before there are layers to ask.

    :param algo: rl-zoo3's name of the algorithm
    :param env_id: environment
    :param config: hyperparameters, as rl-zoo3's ``-conf`` takes them
    :param others: further options of rl-zoo3
    :return: the option that sets the group, unless the environment variable does. It must stand before the others,
        where one of the user's own replaces it
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--track", action="store_true")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict, default={})
    own, _ = parser.parse_known_args(others)
    if not own.track or "WANDB_RUN_GROUP" in os.environ:
        return []
    if config.endswith((".yml", ".yaml")):
        entries = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    elif config.endswith(".py"):
        entries = runpy.run_path(config)["hyperparams"]
    else:
        entries = importlib.import_module(config).hyperparams
    layers = dashboards.listed_layers({**entries.get(env_id, entries.get("default", {})), **own.hyperparams})
    return ["--wandb-group", f"{env_id} {algo} {dashboards.name_layers(layers)}"]
