"""
What each part adds: agents on GridLife with the scent of food, trained with and without the homeostat, the shield, and
demonstrations by the planner, all evaluated on layouts that they have not seen. All remember what they saw and have
equivariant networks, as shipped, but "task reward": that is SB3's PPO as it is.

Beside them stands what others do: a fixed price of dying ("death penalty"), one that is learned so that at most one in
20 episodes ends in death ("PPO-Lagrangian"); and, as the ceiling of masking, MaskablePPO with the masks of a planner
that knows the true dynamics ("oracle masks").

Every agent is trained by ``train.py`` with the shipped hyperparameters. Agents that are there already are not trained
again, so the benchmark can be interrupted::

    python -m benchmarks.shield                               # 5 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.shield --seeds 2 --timesteps 50000   # a quick look
    python -m benchmarks.shield --only "task reward" "shield" # some conditions

Results of other conditions are kept, and those of other seeds, steps or episodes beside them. The picture is drawn when
"task reward" is among the conditions.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.agents import (
    CPU_SECONDS,
    PLAIN,
    STYLES,
    Condition,
    Records,
    cost,
    evaluate_run,
    figures,
    parse,
    size,
    trained,
)
from benchmarks.kept import save, saved
from benchmarks.tables import tabulate
from persist_sb3 import hyperparams, plots
from persist_sb3.metrics import read_episodes

ENV = "GridLifeScent-v0"
#: Demonstrations are recorded once, on training layouts, and show what the agents see.
EPISODES = 20
MEMORY, INTERNAL, HOMEOSTAT, SHIELD = hyperparams.load("ppo")[ENV]["vec_env_wrapper"]
METRICS, VIABILITY = hyperparams.load("ppo")[ENV]["callback"]
CLONING = "persist_sb3.callbacks.BehaviourCloningCallback"
#: Price of dying, which is a single step: as much as the homeostat's.
PENALTY = {"persist_sb3.wrappers.VecCostPenalty": {"weight": 20.0}}
#: A multiplier that the price of dying is reached with after a third of 300k steps, if most episodes end in death.
LAGRANGE = {"persist_sb3.callbacks.LagrangeCallback": {"target": 0.05, "ki": 0.5, "kp": 0.5, "maximum": 50.0}}
ORACLE = "persist_sb3.envs.oracle.OracleMasks"
#: What the picture compares the others with.
BASELINE = "task reward"
SHIELD_OFF = "survival share, shield off"
#: A large critic that is cautious about chance: few steps on large batches that grow ever smaller, since the expectile
#: of a noisy value is too low, and the backup adds that up.
CAUTIOUS = {
    "net_arch": [256, 256],
    "gamma": 0.98,
    "objective_kwargs": {"expectile": 0.2},
    "batch_size": 1024,
    "train_freq": 8,
    "learning_rate": "lin_0.001",
}

#: Weight of homeostasis in GridLife-v0, and in the conditions that were measured with it.
MILDER = 0.5
#: A critic that learns values and not differences, and is trusted once it has seen harm.
USUAL = {"net_arch": [64, 64], "train_freq": 1, "augment": True}
USUAL_SHIELD = {"threshold": 0.1, "guards": ["temp", "integrity"]}


def conditions(demonstrations: Path) -> dict[str, Condition]:
    """
    :param demonstrations: their file
    :return: how agents are trained, by name
    """
    cloning = {CLONING: {"demonstrations": str(demonstrations)}}
    learning = {name: {**parameters, "demonstrations": str(demonstrations)} for name, parameters in VIABILITY.items()}
    # The critic is asked once it has seen harm, too, of which the demonstrations show none.
    patient = {name: {**parameters, "min_updates": 3000} for name, parameters in SHIELD.items()}

    def given(layers: list[Any], callbacks: list[Any]) -> list[str]:
        return ["-params", f"vec_env_wrapper:{[MEMORY, INTERNAL, *layers]}", f"callback:{[METRICS, *callbacks]}"]

    alone = ["-params", f"vec_env_wrapper:{[INTERNAL]}", f"callback:{[METRICS]}", *PLAIN]
    cautious = {
        name: {**parameters, **CAUTIOUS, "train_freq": {0: 1, 25_000: 8}} for name, parameters in VIABILITY.items()
    }
    milder = {name: {**parameters, "weight": MILDER} for name, parameters in HOMEOSTAT.items()}

    def usual(shield: dict[str, Any], critic: dict[str, Any]) -> Condition:
        layers = [milder, {name: {**USUAL_SHIELD, **shield} for name in SHIELD}]
        return Condition(given(layers, [{name: {**USUAL, **critic} for name in VIABILITY}]), "ppo_mask")

    return {
        BASELINE: Condition(alone),
        "task reward, memory": Condition(given([], [])),
        "homeostat": Condition(given([HOMEOSTAT], [])),
        "milder homeostat": Condition(given([milder], [])),
        "death penalty": Condition(given([PENALTY], [])),
        "PPO-Lagrangian": Condition(given(["persist_sb3.wrappers.VecCostPenalty"], [LAGRANGE])),
        "oracle masks": Condition(given([milder, ORACLE], []), "ppo_mask"),
        "shield": Condition([]),
        "shield, masks": Condition([], "ppo_mask"),
        "shield, masks, milder homeostat": Condition(given([milder, SHIELD], [VIABILITY]), "ppo_mask"),
        "shield, masks, usual critic": usual({}, {}),
        # All constraints, energy among them, which the shipped shield leaves to the policy.
        "shield, masks, all guarded": usual({"guards": None}, {}),
        "shield, masks, cautious critic": usual({"threshold": 0.05}, CAUTIOUS),
        "shield, masks, cautious residual critic": Condition(given([HOMEOSTAT, SHIELD], [cautious]), "ppo_mask"),
        "homeostat, demonstrations": Condition(given([HOMEOSTAT], [cloning])),
        "shield, masks, demonstrations": Condition(given([HOMEOSTAT, patient], [learning, cloning]), "ppo_mask"),
    }


def record(path: Path, *options: str) -> None:
    """
    :param path: where the demonstrations are to be
    :param options: further options of ``persist_sb3.demonstrate``
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "persist_sb3.demonstrate", "--env", ENV, "--episodes", str(EPISODES)]
        command += ["--task-weight", "3", "--output", str(path), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Record and train what is missing, evaluate, and write the table and the plot."""
    own = parse(__doc__, "shield", conditions(Path()), seeds=5, timesteps=300_000, episodes=200)
    demonstrations = (own.folder / "demonstrations-memory.npz").resolve()
    if any(name.endswith("demonstrations") for name in own.only):
        record(demonstrations, "--algo", "ppo_mask")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in own.only}
    tests: dict[str, Records] = {name: [] for name in own.only}
    for name, run in trained(ENV, conditions(demonstrations), own):
        test = evaluate_run(run, own.episodes)
        off = evaluate_run(run, own.episodes, shield=False) if "shield" in name else test
        tests[name] += test
        survival_off = float(np.mean([e.survived for e in off]))
        training = read_episodes(run / "persist.jsonl")
        rows[name].append({**figures(test, training), SHIELD_OFF: survival_off, **cost(run)})

    title = f"{ENV}, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, {**STYLES, SHIELD_OFF: STYLES["survival share"], CPU_SECONDS: ".0f"})
    rates = {name: float(np.mean([(e.interventions or 0) / e.length for e in test])) for name, test in tests.items()}
    table.add_row("intervention rate", *(f"{rate:.3f}" for rate in rates.values()))
    Console(width=200).print(table)
    path = own.output / "shield.json"
    before = saved(path, **size(own))
    found = {**results, "intervention rate": rates}
    save({**before, **{name: {**before.get(name, {}), **row} for name, row in found.items()}}, path, **size(own))
    if BASELINE in tests:
        plots.save(plots.survival(tests), own.output / "shield.png")


if __name__ == "__main__":
    main()
