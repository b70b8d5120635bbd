"""
Whether the shield's confidence is true: declared against realised safety of decisions near the boundary, while the
agent learns and afterwards, on layouts that it has not seen.

PPO learns on GridLife with the scent of food, its temperature and integrity shielded by a critic that learns beside it,
at the threshold that ``CalibrationCallback`` finds for each confidence. Every decision near the boundary (a smallest
scaled margin below 0.5) is kept: the threshold in force, what the critic gave the executed action, the ``p_safe`` that
was declared of it, and whether a constraint broke within the next 8 steps. Then policy, critic and threshold are
frozen, and play test layouts, again in closed loop::

    python -m benchmarks.calibration                              # 3 seeds, 60k steps, 200 test episodes a confidence
    python -m benchmarks.calibration --seeds 1 --timesteps 10000  # a quick look

Trainings that are there already are not repeated. A confidence is one of episodes (a decision drawn from each, since
those of one depend on each other), so what is realised is a mean over episodes; ``p_safe`` is of decisions.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from benchmarks.agents import flat_ppo
from benchmarks.kept import models_of, save
from persist_sb3 import plots
from persist_sb3.buffers import Transitions
from persist_sb3.callbacks import CalibrationCallback, ViabilityCallback
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield import EnumeratedShield
from persist_sb3.shield.calibration import Calibration
from persist_sb3.wrappers import VecActionShield, VecHomeostatReward, VecInternalState

CONFIDENCES = 0.8, 0.9, 0.95, 0.99
HORIZON, NEAR = 8, 0.5
#: As the shipped shield does.
GUARDS = ["temp", "integrity"]
#: Episodes before those that count: there must be something to go by.
FIRST = 50
#: Steps in which more episodes than that end after the critic has begun to judge.
LEAST = 10_000
ENVS, TEST_ENVS = 8, 20

#: Of an episode's decisions near the boundary, those that passed: the ``p_safe`` declared, and whether they were safe.
Passed = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Stream:
    """What was decided in ``T`` steps of ``n`` environments, and what came of it."""

    passed: NDArray[np.bool_]  # whether it was near the boundary, and let through, (T, n)
    declared: NDArray[np.float32]  # its p_safe, (T, n)
    broken: NDArray[np.bool_]  # whether a constraint is broken after the step, (T, n)
    done: NDArray[np.bool_]  # (T, n)

    def episodes(self) -> list[Passed]:
        """
        :return: of each episode that ended, in the order in which they did; decisions whose fate lies beyond the end
            are left out
        """
        found = []
        begun = np.zeros(self.done.shape[1], dtype=np.intp)
        for end, slot in np.argwhere(self.done):
            begin, begun[slot] = begun[slot], end + 1
            rows = begin + np.flatnonzero(self.passed[begin : end + 1, slot])
            breaks = begin + np.flatnonzero(self.broken[begin : end + 1, slot])
            # The first step at or after the decision that breaks something.
            following = np.append(breaks, np.iinfo(np.intp).max)[np.searchsorted(breaks, rows)]
            safe = following >= rows + HORIZON
            known = ~safe | (rows + HORIZON <= end + 1)
            found.append((self.declared[rows, slot][known], safe[known]))
        return found


class Recorder(CalibrationCallback):
    """Keeps what :class:`~persist_sb3.callbacks.CalibrationCallback` reads and declares."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._rows: list[tuple[NDArray[Any], ...]] = []

    def _decide(self, step: Transitions) -> None:
        super()._decide(step)
        row = self._now % self.horizon
        passed = self._open[row] & (self._value[row] >= np.float32(self.calibration.threshold))
        broken = self.spec.viability.margins(step.next_internal).min(axis=1) < 0.0
        self._rows.append((passed, self._declared[row].copy(), broken, step.done))

    def stream(self) -> Stream:
        """
        :return: everything so far
        """
        return Stream(*map(np.array, zip(*self._rows, strict=True)))


def train(conf: float, seed: int, timesteps: int, folder: Path) -> tuple[PPO, Stream]:
    """
    :param conf: confidence asked for
    :param seed: of everything
    :param timesteps: of the agent
    :param folder: where agent and stream are kept; trained anew if they are not there
    :return: the agent, with its critic and calibration, and what was decided while it learned
    """
    agent, kept = (folder / f"{timesteps}-{conf}-{seed}{suffix}" for suffix in (".zip", ".npz"))
    if agent.is_file() and kept.is_file():
        return PPO.load(agent, device="cpu"), Stream(**np.load(kept))
    venv = VecInternalState(GridLifeVecEnv(ENVS, flat=True, scent=True))
    layers = VecHomeostatReward(venv, w=[1.0, 0.5, 1.5], weight=0.5, alive_bonus="auto", death_penalty=20.0)
    model = flat_ppo(VecMonitor(VecActionShield(layers, threshold="calibrated", conf=conf, guards=GUARDS)), seed)
    recorder = Recorder(horizon=HORIZON, near=NEAR)
    model.learn(timesteps, callback=[ViabilityCallback(train_freq=1, augment=True), recorder])
    stream = recorder.stream()
    folder.mkdir(parents=True, exist_ok=True)
    model.save(agent)
    np.savez_compressed(kept, **vars(stream))
    return model, stream


def play(model: PPO, spec: StateSpec, critic: ViabilityCritic, calibration: Calibration, episodes: int) -> Stream:
    """
    :param model: whose policy
    :param spec: the environment's state and actions
    :param critic: judges
    :param calibration: its threshold is in force
    :param episodes: on test layouts, the same number in each environment
    :return: what was decided, by policy and shield
    """
    venv = GridLifeVecEnv(TEST_ENVS, flat=True, scent=True, split="test")
    venv.seed(1_000_000)
    torch.manual_seed(0)
    shield = EnumeratedShield(spec, critic, calibration.threshold)
    observation: Any = venv.reset()
    x = venv.get_internal()
    left = np.full(TEST_ENVS, episodes // TEST_ENVS)
    rows = []
    while left.any():
        proposed, _ = model.predict(observation, deterministic=False)
        state = spec.encode(observation, x)
        action = shield.decide(state, proposed).action
        value = critic.values(state)[np.arange(TEST_ENVS), action, 0]
        near = spec.viability.margins(x).min(axis=1) < NEAR
        observation, _, dones, infos = venv.step(action)
        broken = spec.viability.margins(np.stack([info["internal"] for info in infos])).min(axis=1) < 0.0
        passed = near & (left > 0) & (value >= np.float32(calibration.threshold))
        rows.append((passed, calibration.p_safe(value), broken, dones))
        left -= dones & (left > 0)
        x = venv.get_internal()
    return Stream(*map(np.array, zip(*rows, strict=True)))


def figures(episodes: list[Passed]) -> dict[str, Any]:
    """
    :param episodes: what passed in each
    :return: ``realised``, the mean over episodes of their shares of safe decisions, which is what a threshold declares
        to be ``conf`` at least, and the limits of its 95 % bootstrap interval; ``decisions``, the share of all
        decisions that was safe, which is what ``declared``, their mean ``p_safe``, says
    """
    episodes = [episode for episode in episodes if len(episode[1])]
    shares = np.array([safe.mean() for _, safe in episodes])
    draws = np.random.default_rng(0).integers(len(shares), size=(2000, len(shares)))
    declared, safe = (np.concatenate(parts) for parts in zip(*episodes, strict=True))
    told = np.isfinite(declared)
    return {
        "episodes": len(shares),
        "realised": float(shares.mean()),
        "interval": np.quantile(shares[draws].mean(axis=1), [0.025, 0.975]).tolist(),
        "decisions": float(safe[told].mean()),
        "declared": float(declared[told].mean()),
    }


def draw(results: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """
    :param results: figures of each seed, by phase and confidence
    :param path: of the PNG
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    for axis, said, came in zip(axes, ("conf", "declared"), ("realised", "decisions"), strict=True):
        axis.plot([0.75, 1.0], [0.75, 1.0], "k:", linewidth=1)
        axis.fill_between([0.75, 1.0], [0.73, 0.98], [0.77, 1.02], color="k", alpha=0.08)
        for number, (phase, by_conf) in enumerate(results.items()):
            points = [
                ({**seed, "conf": float(conf)}[said], seed[came]) for conf, seeds in by_conf.items() for seed in seeds
            ]
            axis.plot(*np.array(points).T, "o", color=f"C{number}", markersize=4, alpha=0.7, label=phase)
    axes[0].set_xlabel("confidence asked for")
    axes[0].set_ylabel("safe for 8 steps: mean share of an episode")
    axes[1].set_xlabel("mean p_safe of what passed")
    axes[1].set_ylabel("safe for 8 steps: share of all decisions")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    plots.save(figure, path)


def main() -> None:
    """Train what is missing, read the streams, play, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents")
    parser.add_argument("--timesteps", type=int, default=60_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent and confidence")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/calibration"), help="where agents are kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    if own.timesteps < LEAST:
        parser.error(f"--timesteps {own.timesteps}: in fewer than {LEAST:,} too few episodes end to measure anything")
    torch.set_num_threads(1)

    phases = "while it learns", "afterwards, test layouts"
    results: dict[str, dict[str, list[dict[str, Any]]]] = {p: {str(c): [] for c in CONFIDENCES} for p in phases}
    venv = GridLifeVecEnv(1, flat=True, scent=True)
    spec = StateSpec(venv.observation_space, venv.action_space, venv.viability.about(GUARDS))
    with Progress() as progress:
        bar = progress.add_task("training and playing", total=own.seeds * len(CONFIDENCES))
        for conf, seed in product(CONFIDENCES, range(own.seeds)):
            model, stream = train(conf, seed, own.timesteps, own.folder)
            models = models_of(model, spec, {"viability": ViabilityCritic, "calibration": Calibration})
            calibration: Calibration = models["calibration"]
            after = play(model, spec, models["viability"], calibration, own.episodes)
            ends = {"threshold": calibration.threshold, "certified": calibration.certified}
            for phase, episodes in zip(phases, (stream.episodes()[FIRST:], after.episodes()), strict=True):
                results[phase][str(conf)].append({**figures(episodes), **ends})
            progress.advance(bar)

    title = f"Decisions near the boundary, {own.timesteps:,} steps, {own.seeds} seeds: mean (range)"
    table = Table("", "confidence", "realised", "p_safe", "safe decisions", "threshold", "episodes", title=title)
    for phase, by_conf in results.items():
        for asked, seeds in by_conf.items():
            cells = []
            for key in ("realised", "declared", "decisions", "threshold"):
                values = [seed[key] for seed in seeds]
                cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            table.add_row(phase, asked, *cells, f"{np.mean([seed['episodes'] for seed in seeds]):.0f}")
    Console(width=170).print(table)
    parameters = {key: getattr(own, key) for key in ("seeds", "timesteps", "episodes")}
    save({"parameters": parameters, **results}, own.output / "calibration.json")
    draw(results, own.output / "calibration.png")


if __name__ == "__main__":
    main()
