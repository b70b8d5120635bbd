"""
What symmetry adds to demonstrations: policies cloned from 20 episodes of the planner on GridLife with the scent of
food, from these alone, from their images under the world's eight symmetries, too, and into networks that are
equivariant to them; on layouts that they have not seen. They take no further step of learning, and have no shield::

    python -m benchmarks.mirror_images             # 3 seeds, 100 test episodes a policy; about 7 minutes of CPU
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from stable_baselines3 import PPO
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.agents import STYLES, Records, figures
from benchmarks.kept import save
from benchmarks.shield import record
from benchmarks.tables import tabulate
from persist_sb3.callbacks import BehaviourCloningCallback
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.equivariant import EquivariantMultiInputPolicy
from persist_sb3.evaluation import evaluate
from persist_sb3.wrappers import VecInternalState

#: Whether images are cloned, too, and whether networks are equivariant.
CONDITIONS = {"as they are": (False, False), "and their images": (True, False), "equivariant": (False, True)}
SCORES = ("survival share", "median time to violation", "task return an episode")


def clone(demonstrations: Path, augment: bool, equivariant: bool, seed: int, episodes: int) -> Records:
    """
    :param demonstrations: their file
    :param augment: whether images are cloned, too
    :param equivariant: whether networks are
    :param seed: of the policy's weights, and of what is drawn
    :param episodes: how many the cloned policy plays
    :return: these episodes
    """
    # As the shipped entries have it: standardised internal variables, and this network.
    venv = VecNormalize(VecInternalState(GridLifeVecEnv(20, scent=True)), norm_obs_keys=["internal"])
    network: dict[str, Any] = {"net_arch": [256, 256], "activation_fn": torch.nn.ReLU}
    if equivariant:
        network["symmetries"] = "GridLifeScent-v0"
    policy = EquivariantMultiInputPolicy if equivariant else MultiInputActorCriticPolicy
    model = PPO(policy, venv, n_steps=8, batch_size=160, policy_kwargs=network, seed=seed, device="cpu")
    model.learn(1, callback=BehaviourCloningCallback(demonstrations, gradient_steps=3000, augment=augment))
    layered = VecInternalState(GridLifeVecEnv(20, scent=True, split="test"))
    unseen = VecNormalize(layered, training=False, norm_obs_keys=["internal"])
    unseen.obs_rms = venv.obs_rms
    return [episode.record for episode in evaluate(model, unseen, episodes, deterministic=False, seed=1_000_000)]


def main() -> None:
    """Clone, evaluate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="policies a condition")
    parser.add_argument("--episodes", type=int, default=100, help="test episodes a policy")
    parser.add_argument("--demonstrations", type=Path, default=Path("logs/benchmarks/shield/demonstrations.npz"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()

    demonstrations = own.demonstrations.resolve()
    record(demonstrations)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CONDITIONS}
    with Progress() as progress:
        cloning = progress.add_task("cloning", total=own.seeds * len(CONDITIONS))
        for seed in range(own.seeds):
            for name, form in CONDITIONS.items():
                rows[name].append(figures(clone(demonstrations, *form, seed, own.episodes), []))
                progress.advance(cloning)

    title = f"Cloned from 20 demonstrations, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, {name: STYLES[name] for name in SCORES})
    Console(width=100).print(table)
    save({"seeds": own.seeds, "episodes": own.episodes, **results}, own.output / "mirror_images.json")


if __name__ == "__main__":
    main()
