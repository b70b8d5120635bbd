"""
What each intrinsic reward adds on top of the homeostat: survival of PPO on GridLife with the shipped layers, and with
one bonus more: `RNDBonus`, `SurpriseBonus` as written, which pays for what is foreseen, seeking surprise, or
`EmpowermentBonus`. Everything else is that of ``persist_sb3/hyperparams/ppo.yml``.

Every agent is trained by ``train.py`` and evaluated on layouts that it has not seen. Agents that are there already are
neither trained nor evaluated again, so the benchmark can be interrupted. The weights are the layers' ``weight``; of all
but empowerment a weight of 1 makes the discounted sum of the bonus vary by 1, and empowerment is at most its weight a
step. Beside the survival: the share of what was paid in training that was intrinsic, and the rank correlation between
an episode's bonus a step and how long it stayed alive, in the second half of training. Intervals are over seeds;
``gain`` in the JSON is an agent with a bonus minus the one without it of the same seed::

    python -m benchmarks.intrinsic                                  # 5 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.intrinsic --seeds 1 --timesteps 20000      # a quick look
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr

from benchmarks.agents import STYLES, Condition, Records, evaluate_run, figures, intervals, parse, trained
from benchmarks.kept import kept, save
from benchmarks.tables import tabulate
from persist_sb3 import hyperparams
from persist_sb3.metrics import read_episodes
from persist_sb3.summary import training_figures

ENV = "GridLife-v0"
SURPRISE, WORLD = "persist_sb3.wrappers.VecSurpriseBonus", "persist_sb3.callbacks.WorldModelCallback"
RND, EMPOWERMENT = "persist_sb3.callbacks.RNDCallback", "persist_sb3.callbacks.EmpowermentCallback"
#: A small model, which learns at every eighth step: five large ones would cost more than the agent.
SMALL = {WORLD: {"net_arch": [64, 64], "members": 2, "train_freq": 8}}
#: Half as many questions as by default, to a model that has taken its steps after an eighth of 100k.
ASK = {EMPOWERMENT: {"horizon": 2, "train_freq": 32, "min_updates": 200}}
SHARE, CURVE = "intrinsic share of the reward", "bonus a step against time alive, rank correlation"
#: Of training, with how they are written.
PAID = {SHARE: ".2f", CURVE: ".2f"}


def paying(layer: dict[str, Any], *learning: Any) -> Condition:
    """
    :param layer: pays the bonus
    :param learning: callbacks that train what it needs
    :return: the shipped layers, and that
    """
    layers = [*hyperparams.load("ppo")[ENV]["vec_env_wrapper"], layer]
    callbacks = ["persist_sb3.callbacks.MetricsCallback", *learning]
    return Condition(["-params", f"vec_env_wrapper:{layers!r}", f"callback:{callbacks!r}"])


CONDITIONS = {
    "homeostat": Condition([]),
    "+ RND": paying({"persist_sb3.wrappers.VecRNDBonus": {"weight": 0.3}}, RND),
    "+ surprise": paying({SURPRISE: {"weight": 3.0, "beta": 0.0}}, SMALL),
    "+ seeking surprise": paying({SURPRISE: {"weight": 3.0, "beta": 0.0, "seek": True}}, SMALL),
    "+ empowerment": paying({"persist_sb3.wrappers.VecEmpowermentBonus": {"weight": 0.3}}, SMALL, ASK),
}


def measure(path: Path, episodes: int) -> dict[str, float]:
    """
    :param path: the run's folder
    :param episodes: of its test
    :return: the figures
    """
    test, training = evaluate_run(path, episodes), read_episodes(path / "persist.jsonl")
    return figures(test, training) | paid(training)


def paid(training: Records) -> dict[str, float]:
    """
    :param training: episodes of a training
    :return: what the intrinsic reward was in it; nothing if there was none
    """
    share = training_figures(training)["intrinsic_share"]
    if share is None:
        return {}
    late = [episode for episode in training if episode.timestep > 0.5 * max(e.timestep for e in training)]
    bonus = [episode.reward_terms["intrinsic"] / episode.length for episode in late]
    return {SHARE: share, CURVE: float(spearmanr(bonus, [episode.duration for episode in late])[0])}


def main() -> None:
    """Train what is missing, evaluate, and write the table."""
    own = parse(__doc__, "intrinsic", CONDITIONS, seeds=5, timesteps=300_000, episodes=200)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in own.only}
    for name, run in trained(ENV, CONDITIONS, own):
        rows[name].append(kept(run / f"figures-{own.episodes}.json", partial(measure, run, own.episodes)))

    title = f"PPO on {ENV}, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, STYLES | PAID)
    Console(width=150).print(table)
    for found in results.values():
        scores = {name: np.array(estimate["seeds"]) for name, estimate in found.items()}
        if "homeostat" in scores:
            alone = scores.pop("homeostat")
            for name, gain in intervals({name: values - alone for name, values in scores.items()}).items():
                found[name]["gain"] = gain
    size = {key: value for key, value in vars(own).items() if isinstance(value, int)}
    save({**size, **results}, own.output / "intrinsic.json")


if __name__ == "__main__":
    main()
