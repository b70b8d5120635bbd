"""
When the world is not as it was: agents trained on GridLife with the scent of food, evaluated in its shifted forms, with
the shield off, on, and cautious where the models disagree.

The agents are MaskablePPO as shipped, shield and all, and an internal model beside them, whose disagreement tells what
is unfamiliar. Then nothing learns any more, and the policy plays the same test layouts in each world under each shield.
``excess`` is by how many times the disagreement exceeds what is typical, averaged over the steps without a shield:
whether the shift is noticed at all. What was trained or played already is kept::

    python -m benchmarks.shift                                               # 3 seeds, 300k steps, 200 episodes each
    python -m benchmarks.shift --seeds 1 --timesteps 30000 --episodes 40     # a quick look
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.agents import Condition, Records, intervals, parse, shield_layer, size, trained
from benchmarks.kept import kept, models_of, save
from benchmarks.tables import written
from persist_sb3 import hyperparams
from persist_sb3.envs import ENV_IDS
from persist_sb3.evaluation import declared_viability, evaluate
from persist_sb3.metrics import EpisodeRecord, survival_curve
from persist_sb3.models.familiarity import Familiarity
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.spec import StateSpec
from persist_sb3.recording import play
from persist_sb3.runs import Run
from persist_sb3.wrappers import InternalState, PartialObservation

ENV = "GridLifeScent-v0"
WORLDS = {
    "as it was": "GridLife-v0",
    "sensors fail": "GridLifeDropout-v0",
    "hunger grows": "GridLifeDrift-v0",
    "hazards hurt more": "GridLifeRare-v0",
    "food is scarce": "GridLifeScarce-v0",
}
#: What each shield raises its threshold by, in scaled margins, where the models disagree twice as much as usual; None
#: for no shield.
SHIELDS = {"off": None, "on": 0.0, "cautious": 0.05}
AGENTS = "shield, masks, internal model"
MODEL = {"persist_sb3.callbacks.InternalModelCallback": {"net_arch": [64, 64], "members": 3, "train_freq": 8}}
CONDITIONS = {
    AGENTS: Condition(["-params", f"callback:{[*hyperparams.load('ppo')[ENV]['callback'], MODEL]}"], "ppo_mask")
}


class Dropout(PartialObservation):
    """
    Sensors that fail as in ``GridLifeDropout-v0``, beneath the layers of a run.

    :param env: GridLife
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(InternalState(env), dropout=ENV_IDS["GridLifeDropout-v0"]["dropout"])


def make(run: Run, world: str, num_envs: int) -> VecEnv:
    """
    :param run: an agent's
    :param world: one of :data:`WORLDS`
    :param num_envs: how many environments
    :return: that world in the run's layers, on test layouts
    """
    changes = dict(ENV_IDS[WORLDS[world]])
    fails = changes.pop("dropout", None) is not None
    return run.make_env(num_envs, env_kwargs=changes, innermost=Dropout if fails else None)


def play_under(path: Path, world: str, shield: str, episodes: int) -> list[str]:
    """
    :param path: a run's folder
    :param world: one of :data:`WORLDS`
    :param shield: one of :data:`SHIELDS`
    :param episodes: how many
    :return: their records, a line each
    """
    run = Run(path)
    venv = make(run, world, 20)
    layer, caution = shield_layer(venv), SHIELDS[shield]
    if caution is None:
        layer.min_updates = sys.maxsize
    else:
        layer.caution = caution
    model = run.load_model(venv, seed=0)
    records = [episode.record for episode in evaluate(model, venv, episodes, deterministic=False, seed=1_000_000)]
    venv.close()
    return [record.to_json() for record in records]


def excess(path: Path, world: str, steps: int = 200) -> float:
    """
    :param path: a run's folder
    :param world: one of :data:`WORLDS`
    :param steps: of 20 environments
    :return: by how many times the internal model's disagreement exceeds what is typical without a shield, on average
    """
    run = Run(path)
    venv = make(run, world, 20)
    shield_layer(venv).min_updates = sys.maxsize
    model: Any = run.load_model(venv, seed=0)
    spec = StateSpec(model.observation_space, model.action_space, declared_viability(venv))
    models = models_of(model, spec, {"internal_model": InternalModel, "familiarity": Familiarity})
    total = []
    for _, step in zip(range(steps), play(model, venv, deterministic=False, seed=1_000_000), strict=False):
        state = spec.encode(step.observation, step.internal)
        disagreement = models["internal_model"].disagreement(state, spec.encode_action(step.executed_action))
        total.append(float(models["familiarity"].excess(disagreement).mean()))
    venv.close()
    return float(np.mean(total))


def main() -> None:
    """Train what is missing, evaluate, and write the table."""
    own = parse(__doc__, "shift", CONDITIONS, seeds=3, timesteps=300_000, episodes=200)
    survival: dict[str, list[float]] = {}
    lives: dict[str, list[float]] = {}
    noticed: dict[str, list[float]] = {world: [] for world in WORLDS}
    for _, path in trained(ENV, CONDITIONS, own):
        for world in WORLDS:
            noticed[world].append(kept(path / f"excess-{world}.json", partial(excess, path, world)))
            for shield in SHIELDS:
                file = path / f"{own.episodes}-{world}-{shield}.json"
                lines = kept(file, partial(play_under, path, world, shield, own.episodes))
                records: Records = [EpisodeRecord.from_json(line) for line in lines]
                key = f"{world}, {shield}"
                survival.setdefault(key, []).append(float(np.mean([record.survived for record in records])))
                lives.setdefault(key, []).append(survival_curve(records).restricted_mean(512.0))

    shares, means = (intervals({key: np.array(found) for key, found in s.items()}) for s in (survival, lives))
    title = (
        f"{AGENTS}, trained on {ENV}, {own.timesteps:,} steps, {own.seeds} seeds: survival [95 % interval], mean life"
    )
    table = Table("", *(f"shield {name}" for name in SHIELDS), "excess", title=title)
    for world in WORLDS:
        keys = [f"{world}, {shield}" for shield in SHIELDS]
        cells = (f"{written(shares[key], '.3f')}, {means[key][0]:.0f}" for key in keys)
        table.add_row(world, *cells, f"{np.mean(noticed[world]):.2f}")
    Console(width=160).print(table)
    results = {
        **size(own),
        "survival share": {key: {"mean": shares[key], "seeds": values} for key, values in survival.items()},
        "mean life": {key: {"mean": means[key], "seeds": values} for key, values in lives.items()},
        "excess disagreement": noticed,
    }
    save(results, own.output / "shift.json")


if __name__ == "__main__":
    main()
