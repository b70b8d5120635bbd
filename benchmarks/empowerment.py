"""
Whether the estimates of empowerment rank GridLife's tiles as the exact n-step empowerment does, and what they cost.

*Rank*: Spearman's correlation, over the 100 tiles of each of 20 test layouts, between an estimate and the exact channel
capacity (``persist_sb3.envs.oracle.empowerment``), which is about the agent's tile. With the true dynamics; with the
world model that PPO's own experience has taught, for agents that are shown their tile beside what they see, and for
agents that are not; and by the network that a layer asks.

*Cost*: CPU time per 1000 environment steps with 8 environments, in one thread, beside that of PPO in the same run::

    python -m benchmarks.empowerment                 # 1 agent of each kind, 20k steps
    python -m benchmarks.empowerment --only cost
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.agents import intervals
from benchmarks.exploration import Stopwatch
from benchmarks.kept import kept, save, saved
from benchmarks.tables import written
from persist_sb3.callbacks import EmpowermentCallback, WorldModelCallback
from persist_sb3.envs.dynamics import SETPOINT, GridLifeParams, tables
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.interface import SPLITS
from persist_sb3.envs.layout import generate, padded_maps
from persist_sb3.envs.oracle import empowerment
from persist_sb3.envs.oracle.model import energy_after, integrity_after, temp_after
from persist_sb3.intrinsic.contrastive import SequenceCritic, imagine
from persist_sb3.intrinsic.likelihood import LikelihoodEstimator
from persist_sb3.intrinsic.outcomes import Outcomes, target_columns
from persist_sb3.intrinsic.sequences import SequenceSource
from persist_sb3.models.imagination import Dynamics, LearnedDynamics
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.wrappers import VecEmpowermentBonus, VecInternalState

PARAMS = GridLifeParams()
LAYOUTS = 20
RESOLUTION = 0.05
#: Gradient steps of the world model at each training, of every 32 environment steps: at half of them how much it leaves
#: to chance still differs from tile to tile, and two steps ahead the ranks are 0.1 worse.
UPDATES = 4
#: Imagined futures of each sequence in one estimate: as the callback does by default, and more.
ROLLOUTS, MANY = 4, 16
#: Futures of each sequence in all estimates of a tile, of which the mean is ranked: the layer's network averages over
#: as many of its kind. With the true dynamics, where a slip is rare, twice as many.
TOTAL, TRUE_TOTAL = 16, 32


class Located(gym.ObservationWrapper[Any, Any, Any]):
    """
    Shows the agent which tile it is on, rows and columns from 0 to 1.

    :param env: GridLife
    """

    def __init__(self, env: GridLifeEnv) -> None:
        super().__init__(env)
        inner = env.observation_space
        assert isinstance(inner, spaces.Dict)
        self.observation_space = spaces.Dict({**inner.spaces, "tile": spaces.Box(0.0, 1.0, (2,), dtype=np.float32)})
        self.world = env

    def observation(self, observation: Any) -> Any:
        return {**observation, "tile": tile(np.array([self.world.snapshot().cell]))[0]}


def make_env(located: bool) -> gym.Env[Any, Any]:
    """
    :param located: whether the tile is shown
    :return: GridLife
    """
    return Located(GridLifeEnv()) if located else GridLifeEnv()


def tile(cell: NDArray[np.int64]) -> Floats:
    """
    :param cell: ``(n,)``
    :return: rows and columns from 0 to 1, ``(n, 2)``
    """
    return (np.stack(np.divmod(cell, PARAMS.size), axis=1) / (PARAMS.size - 1)).astype(np.float32)


class TrueDynamics:
    """
    One layout of GridLife, as it is with all food and items there, of states that hold internal variables, tile,
    window, and internal variables again.

    :param layout_seed: the layout
    """

    members = 1

    def __init__(self, layout_seed: int) -> None:
        layout = generate(PARAMS, np.array([layout_seed], dtype=np.uint64))
        present = np.ones_like(layout.places, dtype=bool)
        maps = padded_maps(PARAMS, layout.heat, layout.hazard, layout.places, present).reshape(-1)
        self.windows = maps[tables(PARAMS).window]
        self.heat, self.hazard = layout.heat[0], layout.hazard[0]
        self.food = np.isin(np.arange(PARAMS.size**2), layout.places[0, : PARAMS.food])

    def states(self, located: bool) -> Floats:
        """
        :param located: whether the tile is shown
        :return: each tile, the internal variables at their setpoint, ``(100, D)``
        """
        cell = np.arange(PARAMS.size**2)
        x = np.tile(np.array(SETPOINT, dtype=np.float32), (len(cell), 1))
        return np.concatenate([x, *([tile(cell)] if located else []), self.windows, x], axis=1)

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Any) -> Floats:
        """See :class:`~persist_sb3.models.imagination.Dynamics`; the tile must be shown."""
        row, col = np.rint(state[:, 3:5] * (PARAMS.size - 1)).astype(np.intp).T
        before = row * PARAMS.size + col
        slips = noise.random(len(state)) < PARAMS.slip
        move = np.where(slips, (noise.random(len(state)) * 5).astype(np.intp), action.argmax(axis=1))
        cell = tables(PARAMS).targets[move, before]
        energy, temp, integrity = state[:, -3:].T
        x = np.stack(
            [
                energy_after(PARAMS, energy, cell != before, self.food[cell]),
                temp_after(PARAMS, temp, self.heat[cell]),
                integrity_after(PARAMS, integrity, self.hazard[cell]),
            ],
            axis=1,
        ).astype(np.float32)
        return np.concatenate([x, tile(cell), self.windows[cell], x], axis=1)


def rank(values: NDArray[np.float64], n: int) -> float:
    """
    :param values: of each tile, ``(100,)``
    :param n: length of the sequences
    :return: Spearman's correlation with the exact empowerment
    """
    return float(spearmanr(values, empowerment(PARAMS, n))[0])


def by_likelihood(
    dynamics: Dynamics,
    spec: StateSpec,
    state: Floats,
    n: int,
    target: list[str] | None,
    variance: Floats,
    rollouts: int = ROLLOUTS,
    total: int = TOTAL,
) -> NDArray[np.float64]:
    """
    :param dynamics: how the state goes on
    :param spec: the environment's state
    :param state: ``(100, D)``
    :param n: length of the sequences
    :param target: what counts as outcome
    :param variance: of the state, ``(D,)``
    :param rollouts: futures of each sequence in one estimate
    :param total: futures of each sequence
    :return: nats, mean of the estimates, ``(100,)``
    """
    outcomes = Outcomes(spec, target_columns(spec, target, [0, 1, 2]), RESOLUTION)
    outcomes.calibrate(variance)
    estimator = LikelihoodEstimator(dynamics, outcomes, rollouts)
    generator, sequences = np.random.default_rng(0), SequenceSource(spec, n).every()
    blocks = np.array_split(state, 20)
    return np.mean(
        [
            np.concatenate([estimator(block, sequences, generator) for block in blocks])
            for _ in range(total // rollouts)
        ],
        axis=0,
    )


def by_contrast(
    dynamics: Dynamics,
    spec: StateSpec,
    state: Floats,
    n: int,
    target: list[str] | None,
    variance: Floats,
    steps: int,
    total: int = TOTAL,
) -> NDArray[np.float64]:
    """
    :param dynamics: how the state goes on
    :param spec: the environment's state
    :param state: ``(b, D)``
    :param n: length of the sequences, all of which are compared
    :param target: what counts as outcome
    :param variance: of the state, ``(D,)``
    :param steps: of the critic's training, in these states
    :param total: futures of each sequence
    :return: nats, mean over the futures of all sequences, as in :func:`by_likelihood`, ``(b,)``
    """
    outcomes = Outcomes(spec, target_columns(spec, target, [0, 1, 2]), RESOLUTION)
    outcomes.calibrate(variance)
    generator, source = np.random.default_rng(0), SequenceSource(spec, n)
    every = source.every()
    torch.manual_seed(0)
    critic = SequenceCritic(spec.state_dim, outcomes.columns.tolist(), every[0].size, (64, 64), 64)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)

    def imagined(rows: Floats, taken: Floats) -> list[torch.Tensor]:
        outcome = imagine(dynamics, outcomes, rows, taken, generator)
        return [torch.as_tensor(part) for part in (rows, taken, outcome, every)]

    for _ in range(steps):
        parts = imagined(state[generator.integers(len(state), size=256)], source.draw(256, generator))
        critic.measure(parts[0], parts[2])
        loss = -critic.information(*parts, complete=True).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nats = np.zeros(len(state))
    with torch.no_grad():
        for block in np.array_split(np.arange(len(state)), max(1, len(state) // 100)):
            rows, taken = np.repeat(state[block], len(every), axis=0), np.tile(every, (len(block), 1, 1))
            for _ in range(total):
                information = critic.information(*imagined(rows, taken), complete=True).numpy()
                nats[block] += information.reshape(len(block), -1).mean(axis=1) / total
    return nats


def channel(n: int) -> NDArray[np.float64]:
    """
    :param n: length of the sequences
    :return: from each tile, of each tile, after each sequence, ``(100, 100, 5 ** n)``
    """
    area = PARAMS.size**2
    moved = np.eye(area)[tables(PARAMS).targets]
    one = (1.0 - PARAMS.slip) * moved + PARAMS.slip * moved.mean(axis=0)
    whole = one
    for _ in range(n - 1):
        whole = np.einsum("kij,ajl->kail", whole, one).reshape(-1, area, area)
    return np.ascontiguousarray(whole.transpose(1, 2, 0))


def by_best_critic(
    likelihood: NDArray[np.float64], outcomes: int, negatives: int | None, seed: int
) -> NDArray[np.float64]:
    """
    InfoNCE with the best critic, the channel's own likelihood: what is left to chance where the critic is not at fault.

    :param likelihood: what :func:`channel` returned
    :param outcomes: of each tile
    :param negatives: sequences that one drawn at random is told from, itself included; None to take all in turn, and
        tell each from all
    :param seed: of what chance brings
    :return: nats, ``(100,)``
    """
    area, _, count = likelihood.shape
    generator = np.random.default_rng(seed)
    tiles, nats = np.arange(area), np.zeros(area)
    for i in range(outcomes):
        taken = np.full(area, i % count) if negatives is None else generator.integers(count, size=area)
        below = likelihood[tiles, :, taken].cumsum(axis=1) < generator.random((area, 1))
        asked = likelihood[tiles, below.sum(axis=1).clip(max=area - 1)]
        own = asked[tiles, taken]
        others = asked if negatives is None else asked[:, generator.integers(count, size=negatives - 1)]
        total = others.sum(axis=1) + (0.0 if negatives is None else own)
        nats += np.log(own * (negatives or count) / total) / outcomes
    return nats


def true_ranks(steps: int, timesteps: int) -> dict[str, list[float]]:
    """
    :param steps: of the critic's training
    :param timesteps: of the agent beside which one learns
    :return: correlation on each layout, by name; of InfoNCE one, and of its best critic one for each of 20 seeds
    """
    spec = spec_of(True)
    results: dict[str, list[float]] = {}
    for n, name, target in ((1, "tile", ["obs.tile"]), (2, "tile", ["obs.tile"]), (2, "whole state", None)):
        scores = []
        for seed in range(SPLITS["test"][0], SPLITS["test"][0] + LAYOUTS):
            dynamics = TrueDynamics(seed)
            state = dynamics.states(located=True)
            nats = by_likelihood(dynamics, spec, state, n, target, state.var(axis=0), total=TRUE_TOTAL)
            scores.append(rank(nats, n))
        results[f"true dynamics, likelihood, {name}, n={n}"] = scores
    # Where the tile alone is the outcome, all layouts are the same.
    dynamics = TrueDynamics(SPLITS["test"][0])
    state = dynamics.states(located=True)
    nats = by_contrast(dynamics, spec, state, 2, ["obs.tile"], state.var(axis=0), steps, TRUE_TOTAL)
    results["true dynamics, InfoNCE, tile, n=2"] = [rank(nats, 2)]
    likelihood = channel(2)
    for outcomes, negatives in ((200, 256), (25 * TRUE_TOTAL, None)):
        told = "all 25 sequences" if negatives is None else f"{negatives - 1} drawn sequences"
        results[f"true dynamics, InfoNCE's best critic, {told}, {outcomes} outcomes, tile, n=2"] = [
            rank(by_best_critic(likelihood, outcomes, negatives, seed), 2) for seed in range(LAYOUTS)
        ]
    results["true dynamics, the layer's network taught by InfoNCE, tile, n=2"] = taught_ranks(0, timesteps)
    return results


def spec_of(located: bool) -> StateSpec:
    """
    :param located: whether the tile is shown
    :return: of GridLife
    """
    env = make_env(located)
    return StateSpec(env.observation_space, env.action_space, env.get_wrapper_attr("viability"))


def make_agent(located: bool, seed: int) -> PPO:
    """
    :param located: whether it is shown its tile
    :param seed: of the run
    :return: an agent whose layer pays for empowerment
    """
    env = VecEmpowermentBonus(VecInternalState(DummyVecEnv([lambda: make_env(located)] * 8)), weight=0.1)
    return PPO("MultiInputPolicy", env, n_steps=256, batch_size=256, n_epochs=4, seed=seed, device="cpu")


def taught_ranks(seed: int, timesteps: int) -> list[float]:
    """
    What the layer's network learns from InfoNCE, as the callback does by default, where the dynamics are the true ones.

    :param seed: of the run
    :param timesteps: of PPO
    :return: correlation on each layout
    """
    layouts = range(SPLITS["test"][0], SPLITS["test"][0] + LAYOUTS)
    # Which tile follows does not depend on the layout.
    callback = EmpowermentCallback(
        horizon=2,
        estimator="infonce",
        target=["obs.tile"],
        resolution=RESOLUTION,
        dynamics=TrueDynamics(layouts[0]),
    )
    make_agent(True, seed).learn(timesteps, callback=callback)
    return [rank(callback.actor.value(TrueDynamics(layout).states(located=True)), 2) for layout in layouts]


def learned_ranks(located: bool, seed: int, timesteps: int) -> dict[str, list[float]]:
    """
    :param located: whether the agent is shown its tile
    :param seed: of the run
    :param timesteps: of PPO
    :return: correlation on each layout, by name
    """
    model = make_agent(located, seed)
    target = ["obs.tile"] if located else None
    horizon = 2 if located else 1
    callback = EmpowermentCallback(horizon=horizon, target=target, resolution=RESOLUTION, states=32)
    model.learn(timesteps, callback=[WorldModelCallback(members=2, gradient_steps=UPDATES), callback])
    world = model.persist.parts["world_model"]  # type: ignore[attr-defined]
    dynamics, variance = LearnedDynamics(world), world.standardizer.var.numpy()
    shown = "tile shown" if located else "tile not shown"
    targets = (
        {"tile": ["obs.tile"], "whole state": None} if located else {"whole state": None, "window": ["obs.window"]}
    )
    results: dict[str, list[float]] = {}
    for layout in range(SPLITS["test"][0], SPLITS["test"][0] + LAYOUTS):
        state = TrueDynamics(layout).states(located)
        for n in (1, 2):
            for name, outcome in targets.items():
                for rollouts in (ROLLOUTS, MANY):
                    nats = by_likelihood(dynamics, callback.spec, state, n, outcome, variance, rollouts)
                    row = f"learned, {shown}, likelihood, {name}, n={n}, {rollouts} rollouts"
                    results.setdefault(row, []).append(rank(nats, n))
        name = f"learned, {shown}, the layer's network, {'tile' if located else 'whole state'}, n={horizon}"
        results.setdefault(name, []).append(rank(callback.actor.value(state), horizon))
    return results


def cost(continuous: bool, estimator: str, timesteps: int) -> dict[str, float]:
    """
    :param continuous: GridLife with Box actions
    :param estimator: of empowerment
    :param timesteps: environment steps
    :return: milliseconds of CPU time per 1000 of them, once the world model is asked: of the layer, of the callback, of
        the world model's, and of PPO (policy and training)
    """
    inner = VecInternalState(DummyVecEnv([lambda: GridLifeEnv(continuous=continuous, flat=True)] * 8))
    env = VecEmpowermentBonus(inner)
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, seed=0, device="cpu")
    callback = EmpowermentCallback(estimator=estimator, min_updates=1)  # type: ignore[arg-type]
    world = WorldModelCallback(learning_starts=64)
    watches = {
        "layer": Stopwatch(env.layer.after),
        "callback": Stopwatch(callback._on_step),
        "world model": Stopwatch(world._on_step),
        "all steps": Stopwatch(env.step),
    }
    env.layer.after = watches["layer"]  # type: ignore[method-assign]
    callback._on_step = watches["callback"]  # type: ignore[method-assign]
    world._on_step = watches["world model"]  # type: ignore[method-assign]
    env.step = watches["all steps"]  # type: ignore[method-assign]
    total = Stopwatch(model.learn)
    total(timesteps, callback=[world, callback])
    seconds = {name: watch.seconds for name, watch in watches.items()}
    seconds["PPO"] = total.seconds - seconds.pop("all steps") - seconds["callback"] - seconds["world model"]
    return {name: 1e6 * value / timesteps for name, value in seconds.items()}


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the agents of each kind")
    parser.add_argument("--timesteps", type=int, default=20_000, help="environment steps an agent")
    parser.add_argument("--critic-steps", type=int, default=1500, help="training of InfoNCE's critic")
    parser.add_argument("--only", choices=["true", "learned", "cost"], help="leave the others out")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/empowerment"), help="what is there is kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "empowerment.json"
    results: dict[str, Any] = {"rank": {}, "cost": {}, **saved(path)}

    ranks: dict[str, list[list[float]]] = {}
    if arguments.only in (None, "true"):
        ranks |= {name: [row] for name, row in true_ranks(arguments.critic_steps, arguments.timesteps).items()}
    if arguments.only in (None, "learned"):
        for located in (True, False):
            for seed in arguments.seeds:
                run = arguments.folder / f"{arguments.timesteps}-{located}-{seed}.json"
                for name, row in kept(run, partial(learned_ranks, located, seed, arguments.timesteps)).items():
                    ranks.setdefault(name, []).append(row)
        results |= {"timesteps": arguments.timesteps, "seeds": arguments.seeds}
    if ranks:
        table = Table(title=f"Spearman with the exact empowerment, over 100 tiles, {LAYOUTS} test layouts")
        for column in ("", "mean [95 % interval]", "least", "agents"):
            table.add_column(column, justify="right")
        bounds = intervals({name: np.mean(scores, axis=0) for name, scores in ranks.items()})
        for name, scores in ranks.items():
            least = float(np.min(scores))
            results["rank"][name] = {"mean": bounds[name], "least": least, "by agent and layout": scores}
            table.add_row(name, written(bounds[name], ".3f"), f"{least:.3f}", str(len(scores)))
        Console().print(table)

    if arguments.only in (None, "cost"):
        table = Table(title="CPU time per 1000 environment steps, 8 envs, observations of 128, ms")
        for column in ("", "PPO itself", "layer", "callback", "world model's callback"):
            table.add_column(column, justify="right")
        for name, continuous, estimator in (
            ("likelihood, Discrete(5), n=2", False, "likelihood"),
            ("InfoNCE, Discrete(5), n=2", False, "infonce"),
            ("log-det, Box(2), n=2", True, "logdet"),
        ):
            cost(continuous, estimator, 2048)
            ms = results["cost"][name] = cost(continuous, estimator, 6144)
            figures = [ms["PPO"], ms["layer"], ms["callback"], ms["world model"]]
            table.add_row(name, *(f"{figure:.1f}" for figure in figures))
        Console().print(table)

    save(results, path)


if __name__ == "__main__":
    main()
