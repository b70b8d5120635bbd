"""
Whether a setpoint that follows the seasons keeps alive longer than any that stays: ``GridLifeSeason-v0``, whose heat
waves kill whoever has large reserves in summer, and whose cold snaps kill whoever has small ones in winter. No agent is
told the season; it feels the weather when it comes.

PPO learns to keep any setpoint of energy (``RandomSetpoint``) in a world without weather. Then it stands still, and a
year of 16 seasons goes by. In each, ``SetpointSearch`` tries some setpoints, each for a batch of lives, and remembers
the last two seasons' trials; it is told how long these lives were, and nothing else. *Adaptive* are lives at the
setpoint that it then names; *searching* are its trials. The baselines live through the same year:

- *same agent*: at one setpoint all year;
- *trained at*: PPO that has never had another setpoint, and was trained in all seasons;
- *recurrent*: RL^2 (Duan et al., 2016, arXiv:1611.02779), recurrent PPO with the declared setpoint, trained in all
  seasons. Its memory goes on for a trial of four lives in the same season (``VecTrials``), so it may take over into the
  next life what it found out in the last. It lives through 20 trials in each season, and begins each with an empty
  memory: its *first lives* are those of an agent that knows nothing yet, its *last lives* those of one that had three;
- *forgetful*: the same with a memory that is reset at the beginning of each life, so that it may find out within a life
  which season it is in, and takes nothing over into the next;
- *rule*: nothing learned; whoever is below the setpoint walks to the nearest food by its scent, and else stays.

What is there already is not trained or played again, so the benchmark can be interrupted::

    python -m benchmarks.setpoint                                  # 3 seeds, 120k steps, 20 lives a season and setpoint
    python -m benchmarks.setpoint --seeds 1 --timesteps 50000      # a quick look
    python -m benchmarks.setpoint --only recurrent forgetful       # these conditions, and the others as they were
"""

import argparse
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

from benchmarks.agents import Records, intervals
from benchmarks.kept import kept, save, saved
from benchmarks.tables import written
from persist_sb3.envs import ENV_IDS
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import survival_curve
from persist_sb3.setpoint import SetpointSearch
from persist_sb3.wrappers import VecHomeostatReward, VecInternalState, VecRandomSetpoint, VecTrials
from persist_sb3.wrappers.homeostat_reward import HomeostatRewardLayer

RANGE = (0.45, 0.95)
FIXED = (0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
TRAINED = (0.45, 0.65, 0.85)
YEAR = 128
SEASONS = tuple(range(0, YEAR, 8))
#: Setpoints that are tried in a season, and the number of seasons whose trials are remembered.
TRIALS, MEMORY = 6, 2
LIVES = 20
HORIZON = 512
#: Lives in a trial, and the setpoint of those who have one and the same all year.
TRIAL, DECLARED = 4, 0.7
GAMMA = 0.98

#: Share of the lives that are survived, and mean life, by season.
Year = dict[str, list[float]]


def make_env(
    num_envs: int,
    split: str,
    season: int | Sequence[int] | None = None,
    setpoint: float | None = None,
    mild: bool = False,
) -> VecRandomSetpoint:
    """
    :param num_envs: how many
    :param split: of the layouts
    :param season: that all lives begin in, or all lives of each environment. Default: a life has its own
    :param setpoint: of energy, of all lives. Default: drawn for each
    :param mild: leave out the weather
    :return: the world in its layers. The agent sees its own tile and the scent of food only, which is quickly learned
    """
    world: dict[str, Any] = {**ENV_IDS["GridLifeSeason-v0"], "radius": 0, "items": 0, "flat": True, "split": split}
    world |= {"climate": 0.0} if mild else {}
    if isinstance(season, Sequence):
        worlds: VecEnv = DummyVecEnv([partial(GridLifeEnv, season=own, **world) for own in season])
    else:
        worlds = GridLifeVecEnv(num_envs, season=season, **world)
    venv = VecRandomSetpoint(VecInternalState(worlds), ranges={"energy": RANGE})
    venv.set_setpoint(None if setpoint is None else {"energy": setpoint})
    return venv


def rewarded(venv: VecEnv, death_penalty: float = 20.0) -> VecHomeostatReward:
    """
    :param venv: the world in its layers
    :param death_penalty: of the homeostat
    :return: the same, with the reward that agents learn from
    """
    return VecHomeostatReward(venv, w=[8.0, 0.5, 1.5], weight=0.5, alive_bonus="auto", death_penalty=death_penalty)


def make_trials(split: str, seasons: Sequence[int]) -> VecTrials:
    """
    :param split: of the layouts
    :param seasons: of each environment, in which all of its lives begin
    :return: trials of :data:`TRIAL` lives. Death is not the end of a trial but the beginning of a life in good order,
        so the penalty has to come to what a life is worth at most, for dying not to pay
    """
    venv = make_env(len(seasons), split, seasons, DECLARED)
    layer = rewarded(venv).layer
    assert isinstance(layer, HomeostatRewardLayer)
    return VecTrials(rewarded(venv, death_penalty=layer.homeostat.alive_bonus / (1.0 - GAMMA)), TRIAL)


class Agent(NamedTuple):
    """One that has learned, and how it sees: observations less their mean, in standard deviations."""

    model: BaseAlgorithm
    seen: RunningMeanStd

    def predict(self, observation: Any, **kwargs: Any) -> Any:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        seen = (observation - self.seen.mean) / np.sqrt(self.seen.var + 1e-8)
        return self.model.predict(seen.clip(-10.0, 10.0).astype(np.float32), **kwargs)


def train(
    kind: type[BaseAlgorithm], setpoint: float | None, seed: int, timesteps: int, path: Path, trials: bool = False
) -> Agent:
    """
    :param kind: PPO, or recurrent PPO
    :param setpoint: of energy, in all seasons; None: drawn for each life, without weather
    :param seed: of everything
    :param timesteps: of the training
    :param path: the agent's file; one that is there is not trained again
    :param trials: whether a memory lasts for a trial of several lives. Otherwise it is reset at the beginning of each
    :return: the agent
    """
    if not path.is_file():
        # In seasons that it does not know, staying alive would have an agent ignore most setpoints.
        layered: VecEnv = (
            make_trials("train", range(0, YEAR, 4))
            if trials
            else rewarded(make_env(32, "train", setpoint=setpoint, mild=setpoint is None))
        )
        layered.seed(1000 * seed)
        # Setpoints differ by little: as they are, a network hardly sees them.
        env = VecNormalize(layered, gamma=GAMMA)
        common: dict[str, Any] = {"n_steps": 64, "learning_rate": 7e-4, "gamma": GAMMA}
        common |= {"gae_lambda": 0.9, "seed": seed, "device": "cpu"}
        if kind is RecurrentPPO:
            # One memory for policy and value, and large batches: each step back through time is a call of its own.
            kwargs: dict[str, Any] = {"lstm_hidden_size": 64, "shared_lstm": True, "enable_critic_lstm": False}
            kwargs |= {"net_arch": [64], "activation_fn": nn.ReLU}
            model: BaseAlgorithm = RecurrentPPO(
                "MlpLstmPolicy", env, batch_size=512, n_epochs=4, policy_kwargs=kwargs, **common
            )
        else:
            kwargs = {"net_arch": [64, 64], "activation_fn": nn.ReLU}
            model = PPO("MlpPolicy", env, batch_size=256, n_epochs=6, policy_kwargs=kwargs, **common)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.learn(timesteps)
        env.save(str(path.with_suffix(".pkl")))
        model.save(path)
    with path.with_suffix(".pkl").open("rb") as file:
        seen = pickle.load(file).obs_rms
    return Agent(kind.load(path, device="cpu"), seen)


class Rule:
    """Walks to the nearest food, by its scent, where the energy is below the setpoint, and else stays."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[Any], Any]:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        energy, (down, right), setpoint = observation[:, -6], observation[:, -3:-1].T, observation[:, -1]
        vertical = np.abs(down) >= np.abs(right)
        way = np.where(vertical, np.where(down > 0, 2, 1), np.where(right > 0, 4, 3))
        return np.where((energy < setpoint) & (np.abs(down) + np.abs(right) > 0), way, 0), state


def live(model: Any, setpoint: float, season: int, seed: int) -> Records:
    """
    :param model: an agent
    :param setpoint: that it is given
    :param season: that the lives begin in
    :param seed: of the worlds
    :return: :data:`LIVES` lives on test layouts
    """
    venv = make_env(LIVES, "test", season, setpoint)
    return [episode.record for episode in evaluate(model, venv, LIVES, deterministic=False, seed=seed)]


def figures(lives: Records) -> tuple[float, float]:
    """
    :param lives: some
    :return: share of them that are survived, and mean length
    """
    return float(np.mean([e.survived for e in lives])), survival_curve(lives).restricted_mean(HORIZON)


def fixed_year(model: Any, setpoint: float, seed: int) -> Year:
    """
    :param model: an agent
    :param setpoint: that it is given all year
    :param seed: of the worlds
    :return: how it lives
    """
    # All at once, each in the season of its layout: that takes a fifth of the time.
    lives = LIVES * len(SEASONS)
    venv = make_env(lives, "test", setpoint=setpoint)
    venv.seed(seed)
    venv.reset()
    season = np.array([info["layout_seed"] % YEAR for info in venv.reset_infos])
    nearest = np.rint(season / YEAR * len(SEASONS)).astype(int) % len(SEASONS)
    records = [episode.record for episode in evaluate(model, venv, lives, deterministic=False, seed=seed)]
    seasons = [figures([record for record in records if nearest[record.env] == i]) for i in range(len(SEASONS))]
    return dict(zip(("survival", "life"), map(list, zip(*seasons, strict=True)), strict=True))


def trials_year(model: Any, seed: int) -> dict[str, Year]:
    """
    :param model: an agent whose memory lasts for a trial
    :param seed: of the worlds
    :return: how it lives through :data:`LIVES` trials in each season: all lives, the first of each trial and the last
    """
    venv = make_trials("test", np.repeat(SEASONS, LIVES).tolist())
    episodes = evaluate(model, venv, TRIAL * venv.num_envs, deterministic=False, seed=seed)
    # Environment by environment, and in each life by life.
    records = np.array([episode.record for episode in episodes]).reshape(len(SEASONS), LIVES, TRIAL)
    years: dict[str, Year] = {}
    for name, chosen in (("", records), (", first lives", records[..., :1]), (", last lives", records[..., -1:])):
        seasons = [figures(season.ravel().tolist()) for season in chosen]
        years[f"recurrent{name}"] = dict(zip(("survival", "life"), map(list, zip(*seasons, strict=True)), strict=True))
    return years


def adaptive_year(model: Any, seed: int) -> dict[str, Year]:
    """
    :param model: an agent
    :param seed: of the worlds and of the search
    :return: how it lives with the setpoints that are found, with those that are tried, and what was found
    """
    search = SetpointSearch({"energy": RANGE}, window=TRIALS * MEMORY, startup=TRIALS, seed=seed)
    years: dict[str, Year] = {name: {"survival": [], "life": []} for name in ("adaptive", "searching")}
    found = []
    for season in SEASONS:
        tried = []
        for trial in range(TRIALS):
            setpoint = search.ask()
            worlds = 1_000_000 + 1000 * season + 31 * trial + seed
            tried.append(figures(live(model, setpoint["energy"], season, worlds)))
            search.tell(setpoint, tried[-1][1])
        assert search.best is not None
        found.append(search.best["energy"])
        outcome = figures(live(model, found[-1], season, 1000 * season + seed))
        for name, (survival, life) in (("adaptive", outcome), ("searching", tuple(np.mean(tried, axis=0).tolist()))):
            years[name]["survival"].append(survival)
            years[name]["life"].append(life)
    return {**years, "found": {"setpoint": found}}


def plot(results: dict[str, Any], path: Path) -> None:
    """
    :param results: years of all conditions, by name, a list of seeds each
    :param path: picture file
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1])
    for name, years in results.items():
        if name in ("adaptive", "recurrent") or name.startswith("same agent"):
            style: dict[str, Any] = {"linewidth": 2.5} if name == "adaptive" else {"linewidth": 1.0, "linestyle": "--"}
            above.plot(SEASONS, np.mean([year["survival"] for year in years], axis=0), label=name, **style)
    for year in results["found"]:
        below.plot(SEASONS, year["setpoint"], color="C0", linewidth=1.0)
    above.set(ylabel="survival share", title="GridLifeSeason-v0: midsummer at 0, midwinter at 64")
    above.legend(fontsize=7)
    below.set(xlabel="season", ylabel="setpoint found", ylim=RANGE)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def measure(seed: int, timesteps: int, folder: Path, progress: Any, only: list[str]) -> dict[str, Any]:
    """
    :param seed: of everything
    :param timesteps: of a training
    :param folder: where agents and figures are kept
    :param progress: is told of each condition
    :param only: conditions, by their first word or words
    :return: years, by condition
    """
    here = folder / f"{timesteps}-{seed}"
    years: dict[str, Any] = {}

    def add(name: str, call: Any) -> None:
        years[name] = kept(here / f"{name.replace(' ', '-')}.json", call)
        progress()

    if "rule" in only:
        adaptive = kept(here / "rule.json", partial(adaptive_year, Rule(), seed))
        years |= {f"rule {name}": year for name, year in adaptive.items()}
        for setpoint in FIXED:
            add(f"rule at {setpoint}", partial(fixed_year, Rule(), setpoint, seed))
    if "same agent" in only:
        agent = train(PPO, None, seed, timesteps, here / "any.zip")
        years |= kept(here / "adaptive.json", partial(adaptive_year, agent, seed))
        for setpoint in FIXED:
            add(f"same agent at {setpoint}", partial(fixed_year, agent, setpoint, seed))
    for setpoint in TRAINED if "trained at" in only else ():
        agent = train(PPO, setpoint, seed, timesteps, here / f"{setpoint}.zip")
        add(f"trained at {setpoint}", partial(fixed_year, agent, setpoint, seed))
    if "recurrent" in only:
        agent = train(RecurrentPPO, DECLARED, seed, timesteps, here / "recurrent.zip", trials=True)
        years |= kept(here / "recurrent.json", partial(trials_year, agent, seed))
    if "forgetful" in only:
        agent = train(RecurrentPPO, DECLARED, seed, timesteps, here / "forgetful.zip")
        add("forgetful", partial(fixed_year, agent, DECLARED, seed))
    return years


def main() -> None:
    """Train, let the years go by, and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=120_000, help="environment steps an agent")
    kinds = ["rule", "same agent", "trained at", "recurrent", "forgetful"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="conditions. Default: all")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/setpoint"), help="where all is kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    torch.set_num_threads(1)

    with Progress() as progress:
        task = progress.add_task("years", total=None)
        seeds = [
            measure(seed, own.timesteps, own.folder, partial(progress.advance, task), own.only)
            for seed in range(own.seeds)
        ]
    results = {name: [years[name] for years in seeds] for name in seeds[0]}
    summer, winter = (
        [i for i, season in enumerate(SEASONS) if np.cos(2.0 * np.pi * season / YEAR) * sign > 0.7] for sign in (1, -1)
    )
    columns: dict[str, tuple[str, list[int]]] = {
        "survival": ("survival", list(range(len(SEASONS)))),
        "in summer": ("survival", summer),
        "in winter": ("survival", winter),
        "mean life": ("life", list(range(len(SEASONS)))),
    }
    table = Table(title=f"A year, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]")
    for column in ("", *columns):
        table.add_column(column, justify="right")
    file = own.output / "setpoint.json"
    size = {"seeds": own.seeds, "timesteps": own.timesteps, "lives": LIVES}
    summary = saved(file, **size)
    lived = [name for name in results if not name.endswith("found")]
    cells: dict[str, list[str]] = {name: [] for name in lived}
    for column, (figure, which) in columns.items():
        scores = {name: np.array([np.mean(np.array(y[figure])[which]) for y in results[name]]) for name in lived}
        for name, estimate in intervals(scores).items():
            cells[name].append(written(estimate, ".0f" if figure == "life" else ".2f"))
            summary.setdefault(name, {})[column] = {"mean": estimate, "seeds": scores[name].tolist()}
    for name in lived:
        table.add_row(name, *cells[name])
    Console(width=130).print(table)
    found = {name: results[name] for name in results if name.endswith("found")}
    save({**summary, **found}, file, **size)
    if "found" in results:
        plot(results, own.output / "setpoint.png")


if __name__ == "__main__":
    main()
