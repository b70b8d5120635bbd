"""
The shield's modes over one policy: who survives, how often the shield intervenes, and what a decision costs.

A PPO agent is trained without a shield, with the shipped reward and the scent of food, while callbacks train the
viability critic, the internal model, the world model and the safety network beside it, on its transitions. The policy
is then frozen, and plays the same test layouts under each mode of the shield; "true dynamics" imagines in copies of the
worlds themselves, slips and regrowth drawn anew, with the same critic. Agreement is measured on the states that the
shielded policy comes to, over all actions. "itself" asks the search again, with other chance, and "its majority" is
what it says most often of ten times: nothing that answers a state always alike can agree with it more::

    python -m benchmarks.shield_modes                                          # about 10 minutes of CPU
    python -m benchmarks.shield_modes --shielded                               # trained under the amortised shield
    python -m benchmarks.shield_modes --timesteps 20000 --episodes 40          # a quick look
    python -m benchmarks.shield_modes --agent agent.zip --modes search critic  # in parts: others' rows are kept
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from benchmarks.agents import flat_ppo
from benchmarks.kept import KINDS, models_of, save
from persist_sb3.callbacks import (
    InternalModelCallback,
    SafetyNetworkCallback,
    ViabilityCallback,
    WorldModelCallback,
)
from persist_sb3.draws import Noise
from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.imagination import LearnedDynamics
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield import Decision, EnumeratedShield
from persist_sb3.shield.amortised import AmortisedVerifier
from persist_sb3.shield.lookahead import GUARDING
from persist_sb3.shield.rollouts import Course, CriticBackup, RolloutVerifier
from persist_sb3.shield.sketch import Sketch
from persist_sb3.summary import wilson_interval
from persist_sb3.wrappers import VecActionShield, VecHomeostatReward, VecInternalState

RESULTS = Path(__file__).parent / "results" / "shield_modes.json"
SHIELDED_RESULTS = RESULTS.with_stem("shield_modes_shielded")
NEVER = 10**9
#: As shipped.
GUARDS = ["temp", "integrity"]
ENVS = 20
#: States that are asked about, and how often.
STATES, REPEATS = 1000, 10


def train(timesteps: int, shielded: bool, foresight: int) -> PPO:
    """
    :param timesteps: of the agent, and of the transitions that its models learn from
    :param shielded: whether the shield acts, guarding :data:`GUARDS`
    :param foresight: of the safety network, in steps
    :return: the agent, its models in ``model.persist``
    """
    venv = VecInternalState(GridLifeVecEnv(8, flat=True, scent=True))
    layers = VecHomeostatReward(venv, weight=0.5, alive_bonus="auto", death_penalty=20.0)
    if shielded:
        shield = VecActionShield(layers, mode="amortised", guards=GUARDS)
    else:
        # It never acts: the safety network learns from the search that it is set to.
        shield = VecActionShield(layers, mode="amortised", min_updates=NEVER)
    model = flat_ppo(VecMonitor(shield), seed=0)
    callbacks: list[BaseCallback] = [
        ViabilityCallback(train_freq=1),
        InternalModelCallback(train_freq=2),
        WorldModelCallback(train_freq=2),
        SafetyNetworkCallback(foresight=foresight, train_freq=8, gradient_steps=4),
    ]
    model.learn(timesteps, callback=callbacks)
    return model


class TrueDynamics:
    """
    Imagines in copies of the worlds. Rows that it did not return itself begin a rollout: they are the states of the
    worlds that :meth:`observe` was last shown.

    :param venv: the worlds
    :param spec: their state and actions
    """

    members = 1

    def __init__(self, venv: GridLifeVecEnv, spec: StateSpec) -> None:
        self._venv = venv
        self._spec = spec
        self._cores: dict[int, GridLifeCore] = {}
        self._generator = np.random.default_rng(0)
        self._last: Floats | None = None

    def observe(self, state: Floats) -> None:
        """
        :param state: of every world, ``(n, D)``
        """
        self._where = {row.tobytes(): i for i, row in enumerate(state)}
        self._snapshot: Snapshot = self._venv.snapshot()

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """See :class:`~persist_sb3.models.imagination.Dynamics`."""
        rows = np.arange(len(state))
        if state is not self._last:
            size = 1 << (len(state) - 1).bit_length()
            if size not in self._cores:
                self._cores[size] = GridLifeCore(size, self._venv.params, scent=True, same_step=False)
                self._cores[size].begin()
            self._core = self._cores[size]
            origin = np.array([self._where[row.tobytes()] for row in state])
            self._core.restore(self._snapshot[origin], rows)
            self._core.redraw_chance(self._generator.integers(2**63, size=len(state)), rows)
        moves = np.zeros(self._core.num_envs, dtype=np.int64)
        moves[rows] = action.argmax(axis=1)
        self._core.step(moves)
        self._last = self._spec.encode(self._core.observations[rows], self._core.internal[rows])
        return self._last


class PolicyGoesOn:
    """
    The policy's likeliest action, and the critic's value.

    :param model: whose policy
    :param spec: its state and actions
    :param critic: values the end
    """

    def __init__(self, model: PPO, spec: StateSpec, critic: Any) -> None:
        self._model = model
        self._spec = spec
        self._critic = CriticBackup(critic)

    def __call__(self, state: Floats) -> Course:
        action, _ = self._model.predict(state[:, : self._spec.observation_dim], deterministic=True)
        return self._critic(state)._replace(action=self._spec.encode_action(action))


class Outcome(NamedTuple):
    """How a policy did under a shield."""

    survived: int
    episodes: int
    interventions: float  # share of steps
    infeasible: float  # share of steps
    task_return: float  # of an episode
    states: Floats  # some that it came to, (b, D)
    proposed: NDArray[np.int64]  # what it would have done there, (b,)


def play(
    model: PPO,
    spec: StateSpec,
    episodes: int,
    make_decide: Callable[[GridLifeVecEnv], Callable[[Floats, NDArray[Any]], Decision]] | None,
) -> Outcome:
    """
    :param model: whose policy
    :param spec: its state and actions
    :param episodes: how many, the same number in each world
    :param make_decide: makes the shield for these worlds; None for no shield
    :return: how they went
    """
    venv = GridLifeVecEnv(ENVS, flat=True, scent=True, split="test")
    venv.seed(1_000_000)
    torch.manual_seed(0)
    decide = None if make_decide is None else make_decide(venv)
    observation: Any = venv.reset()
    x = venv.get_internal()
    left = np.full(ENVS, episodes // ENVS)
    survived = steps = interventions = infeasible = 0
    task_return = 0.0
    states, proposals = [], []
    while left.any():
        playing = left > 0
        action, _ = model.predict(observation, deterministic=False)
        state = spec.encode(observation, x)
        if steps % 10 == 0:
            states.append(state[playing])
            proposals.append(action[playing])
        if decide is not None:
            decision = decide(state, action)
            interventions += int(decision.intervened[playing].sum())
            infeasible += int(decision.infeasible[playing].sum())
            action = decision.action
        observation, rewards, dones, infos = venv.step(action)
        task_return += float(rewards[playing].sum())
        steps += int(playing.sum())
        survived += sum(infos[i]["TimeLimit.truncated"] for i in np.flatnonzero(dones & playing))
        left -= dones & playing
        x = venv.get_internal()
    played = episodes // ENVS * ENVS
    return Outcome(
        survived,
        played,
        interventions / steps,
        infeasible / steps,
        task_return / played,
        np.concatenate(states),
        np.concatenate(proposals),
    )


def cost(decide: Callable[[Floats, NDArray[Any]], Any], outcome: Outcome, num_envs: int) -> float:
    """
    :param decide: the shield
    :param outcome: states and proposed actions to decide about
    :param num_envs: how many at once
    :return: CPU time of a decision about all of them, ms
    """
    batches = [slice(i, i + num_envs) for i in range(0, min(len(outcome.states), 480), num_envs)][:-1]
    for batch in batches[:1]:
        decide(outcome.states[batch], outcome.proposed[batch])
    start = time.process_time()
    for batch in batches:
        decide(outcome.states[batch], outcome.proposed[batch])
    return 1e3 * (time.process_time() - start) / len(batches)


def compare(answer: NDArray[np.bool_], guess: NDArray[np.bool_]) -> dict[str, float]:
    """
    :param answer: which actions the search passes, ``(b,)``
    :param guess: which the other passes
    :return: shares
    """
    return {
        "agreement": float((answer == guess).mean()),
        "false safe, of what it passes": float((guess & ~answer).sum() / max(guess.sum(), 1)),
        "missed, of what the search rejects": float((guess & ~answer).sum() / max((~answer).sum(), 1)),
    }


def main() -> None:
    """Train, play, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=100_000, help="of the agent's training")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes a mode")
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--conf", type=float, default=0.9)
    parser.add_argument("--foresight", type=int, default=2, help="steps that the safety network looks ahead")
    parser.add_argument("--threshold", type=float, default=0.2)
    parser.add_argument("--shielded", action="store_true", help="train under the amortised shield")
    parser.add_argument("--modes", nargs="+", help="rows of the table to measure. Default: all")
    parser.add_argument("--agent", type=Path, help="where the trained agent is kept; trained anew if it is not there")
    parser.add_argument("--output", type=Path, help="file for the results")
    arguments = parser.parse_args()
    arguments.output = arguments.output or (SHIELDED_RESULTS if arguments.shielded else RESULTS)
    torch.set_num_threads(1)

    if arguments.agent is not None and arguments.agent.is_file():
        model = PPO.load(arguments.agent, device="cpu")
    else:
        model = train(arguments.timesteps, arguments.shielded, arguments.foresight)
        if arguments.agent is not None:
            model.save(arguments.agent)
    venv = GridLifeVecEnv(1, flat=True, scent=True)
    guarded = venv.viability.about(GUARDS) if arguments.shielded else venv.viability
    spec, whole = (StateSpec(venv.observation_space, venv.action_space, v) for v in (guarded, venv.viability))
    models = {name: models_of(model, spec if name in GUARDING else whole, {name: KINDS[name]})[name] for name in KINDS}
    critic, threshold = models["viability"], arguments.threshold
    if models["safety"].foresight != arguments.foresight:
        parser.error(f"--foresight {arguments.foresight}: {arguments.agent} has {models['safety'].foresight}")

    def search(dynamics: Any, backup: Any = None) -> RolloutVerifier:
        return RolloutVerifier(
            spec,
            dynamics,
            backup or CriticBackup(critic),
            arguments.conf,
            arguments.horizon,
            arguments.rollouts,
            threshold=threshold,
        )

    learned = LearnedDynamics(models["world_model"], models["internal_model"])
    policy = PolicyGoesOn(model, spec, critic)
    sketch = Sketch(spec, learned, CriticBackup(critic), models["safety"].foresight)
    amortised = AmortisedVerifier(models["safety"], critic, sketch, arguments.conf)
    shields = {
        "critic": EnumeratedShield(spec, critic, threshold),
        "verify": EnumeratedShield(spec, critic, threshold, verifier=search(learned)),
        "search": EnumeratedShield(spec, critic, threshold, verifier=search(learned), band=np.inf),
        "search, policy goes on": EnumeratedShield(
            spec, critic, threshold, verifier=search(learned, policy), band=np.inf
        ),
        "amortised": EnumeratedShield(spec, critic, threshold, verifier=amortised, band=np.inf),
    }

    def true_dynamics(backup: Any) -> Callable[[GridLifeVecEnv], Callable[[Floats, NDArray[Any]], Decision]]:
        def make(worlds: GridLifeVecEnv) -> Callable[[Floats, NDArray[Any]], Decision]:
            dynamics = TrueDynamics(worlds, spec)
            shield = EnumeratedShield(spec, critic, threshold, verifier=search(dynamics, backup), band=np.inf)

            def decide(state: Floats, action: NDArray[Any]) -> Decision:
                dynamics.observe(state)
                return shield.decide(state, action)

            return decide

        return make

    makers: dict[str, Any] = {"none": None}
    makers |= {name: (lambda worlds, shield=shield: shield.decide) for name, shield in shields.items()}
    makers["search, true dynamics"] = true_dynamics(None)
    makers["search, true dynamics, policy goes on"] = true_dynamics(policy)

    parameters = {k: v for k, v in vars(arguments).items() if isinstance(v, int | float)}
    results: dict[str, Any] = {"parameters": parameters}
    if arguments.output.is_file() and (kept := json.loads(arguments.output.read_text()))["parameters"] == parameters:
        results = kept
    table = Table(title=f"One policy, {arguments.episodes} test episodes under each mode of the shield")
    for column in (
        "",
        "survive all 512 steps",
        "intervened",
        "none passed",
        "task return",
        "ms, 8 envs",
        "ms, 64 envs",
    ):
        table.add_column(column, justify="right" if column else "left")
    outcomes: dict[str, Outcome] = {}
    for name in arguments.modes or makers:
        maker = makers[name]
        outcome = outcomes[name] = play(model, spec, arguments.episodes, maker)
        low, high = wilson_interval(outcome.survived, outcome.episodes)
        row: dict[str, Any] = {
            "survival": outcome.survived / outcome.episodes,
            "interval": [low, high],
            "intervention rate": outcome.interventions,
            "infeasible": outcome.infeasible,
            "task return": outcome.task_return,
        }
        if name in shields:
            row |= {f"ms at {n} envs": cost(shields[name].decide, outcome, n) for n in (8, 64)}
        results[name] = row
        table.add_row(
            name,
            f"{row['survival']:.1%} [{low:.1%}, {high:.1%}]",
            f"{outcome.interventions:.1%}",
            f"{outcome.infeasible:.1%}",
            f"{outcome.task_return:.1f}",
            *(f"{row[key]:.2f}" if key in row else "" for key in ("ms at 8 envs", "ms at 64 envs")),
        )
        Console(width=130).print(f"{name}: {row}")
    Console(width=130).print(table)

    save(results, arguments.output)
    if "search" not in outcomes:
        return
    agreement = compare_verdicts(outcomes["search"].states[:STATES], search(learned), amortised, critic, threshold)
    results |= agreement
    table = Table(title=f"Verdicts against the search's, which rejects {agreement['rejected by the search']:.1%}")
    for column in ("", *agreement["verdicts: itself"]):
        table.add_column(column, justify="right" if column else "left")
    for name, shares in agreement.items():
        if name.startswith("verdicts"):
            table.add_row(name.removeprefix("verdicts: "), *(f"{share:.1%}" for share in shares.values()))
    Console(width=130).print(table)
    save(results, arguments.output)


def compare_verdicts(
    states: Floats, search: RolloutVerifier, amortised: AmortisedVerifier, critic: ViabilityCritic, threshold: float
) -> dict[str, Any]:
    """
    :param states: ``(n, D)``
    :param search: whose answers count
    :param amortised: the safety network
    :param critic: values actions
    :param threshold: of the critic
    :return: how often the others' verdicts on all actions are the search's
    """
    spec = critic.spec
    everything = (
        np.repeat(states, len(spec.actions), axis=0),
        np.tile(spec.encode_action(spec.actions), (len(states), 1)),
    )
    # A change too small to matter, which draws other chance.
    answers = np.array([search(everything[0] * np.float32(1.0 + 1e-6 * i), everything[1]).safe for i in range(REPEATS)])
    once, majority = answers[0], answers[1:].mean(axis=0) >= 0.5
    network = amortised(*everything).safe
    judged = critic.values(states)[:, :, 0].ravel() >= threshold
    return {
        "rejected by the search": float((~once).mean()),
        "verdicts: itself": compare(once, answers[1]),
        "verdicts: its majority": compare(once, majority),
        "verdicts: amortised": compare(once, network),
        "verdicts: critic": compare(once, judged),
        "verdicts: asked once, against its majority": compare(majority, once),
        "verdicts: amortised, against its majority": compare(majority, network),
        "verdicts: critic, against its majority": compare(majority, judged),
    }


if __name__ == "__main__":
    main()
