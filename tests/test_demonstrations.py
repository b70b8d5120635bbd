"""Demonstrations: what is recorded is what happened, what is unsafe is refused, what is written is read again."""

import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from persist_sb3.__main__ import main
from persist_sb3.batch import tree_map
from persist_sb3.buffers import DemonstrationError, Demonstrations, Transitions
from persist_sb3.buffers.minari import read_minari, write_minari
from persist_sb3.callbacks import PersistCallback
from persist_sb3.demonstrate import demonstrate
from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.oracle import BeamPlanner, OraclePolicy
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.recording import play, record
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import VecHomeostatReward, VecInternalState
from tests.toys import Walker

DIMS = ["battery", "heat"]
ALIVE = ViabilitySet(["battery >= 0.2", "heat in [0.1, 0.9]"], DIMS, mu=[0.7, 0.5])
CAREFUL = ViabilitySet(["battery >= 0.45", "heat in [0.1, 0.9]"], DIMS, mu=[0.7, 0.5])


class Lazy:
    """Prefers to do nothing, every third step something."""

    def __init__(self, action: str = "discrete") -> None:
        self.action = action
        self.count = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        self.count += 1
        n = len(episode_start)
        if self.action == "box":
            return np.full((n, 2), 0.1 * (self.count % 3 == 0), dtype=np.float32), state
        return np.full(n, int(self.count % 3 == 0)), state


def make(n: int = 3, observation: str = "box", action: str = "discrete", horizon: int = 12, **kwargs: Any) -> VecEnv:
    venv = DummyVecEnv([partial(Walker, observation, action, horizon + slot) for slot in range(n)])
    kwargs = {
        "constraints": ["battery >= 0.2", "heat in [0.1, 0.9]"],
        "mu": [0.7, 0.5],
        "low": [0, 0],
        "high": [1, 1],
    } | kwargs
    return VecHomeostatReward(VecInternalState(venv, dims=DIMS, **kwargs), alive_bonus=2.0)


def assert_same(one: Transitions, other: Transitions) -> None:
    for field in fields(Transitions):
        tree_map(np.testing.assert_array_equal, getattr(one, field.name), getattr(other, field.name))


def assert_all_kept(one: Transitions, other: Transitions) -> None:
    assert_same(one, other)
    for field in fields(Transitions):
        left, right = (getattr(transitions, field.name) for transitions in (one, other))
        tree_map(lambda a, b: np.testing.assert_equal(b.dtype, a.dtype), left, right)


# --- recording


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_recorded_is_what_happened(observation: str) -> None:
    demonstrations = record(Lazy(), make(observation=observation), 7, seed=5)
    assert demonstrations.episodes == 7
    # Environments 0, 1 and 2 run 2, 2 and 3 episodes of 12, 13 and 14 steps: the battery lasts.
    assert demonstrations.lengths.tolist() == [12, 12, 13, 13, 14, 14, 14]
    t = demonstrations.transitions
    assert len(demonstrations) == len(t) == demonstrations.lengths.sum()

    # The same once more, one environment at a time, without any of the code that records.
    row = 0
    by_hand = make(observation=observation)
    by_hand.seed(5)
    last: Any = by_hand.reset()
    x = np.array([info["internal"] for info in by_hand.reset_infos])
    agent, history = Lazy(), []
    for _ in range(200):
        action, _ = agent.predict(last, None, np.zeros(3))
        new, reward, done, infos = by_hand.step(action)
        for slot, info in enumerate(infos):
            shown = {key: value[slot] for key, value in (last if observation == "dict" else {"": last}).items()}
            history.append((slot, shown, action[slot], reward[slot], x[slot], info, done[slot]))
        x = np.array([info["internal"] for info in infos])
        for slot in np.flatnonzero(done).tolist():
            x[slot] = by_hand.reset_infos[slot]["internal"]
        last = new
    for slot, wanted in enumerate((2, 2, 3)):
        ended = 0
        for other, shown, action, reward, internal, info, done in history:
            if other != slot or ended == wanted:
                continue
            now = t.observation if observation == "dict" else {"": t.observation}
            for key, value in shown.items():
                np.testing.assert_array_equal(now[key][row], value)
            assert t.action[row] == action
            assert t.reward[row] == pytest.approx(reward, abs=1e-6)
            np.testing.assert_array_equal(t.internal[row], internal)
            np.testing.assert_array_equal(t.next_internal[row], info["internal"])
            assert t.terms["homeo"][row] == pytest.approx(info["reward_terms"]["homeo"])
            assert (t.cost[row], t.done[row]) == (info["cost"], done)
            if done and observation == "box":
                np.testing.assert_array_equal(t.next_observation[row], info["terminal_observation"])
            ended += done
            row += 1
    assert row == len(t)


def test_recorded_from_a_model_behind_a_normalisation() -> None:
    venv = VecNormalize(make(2))
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=32, device="cpu", seed=0).learn(64)
    venv.training = False
    demonstrations = record(model, venv, 3, seed=1, drop_unsafe=True)
    t = demonstrations.transitions
    # Observations are as they were before the normalisation: battery and heat come first.
    np.testing.assert_allclose(t.observation[:, :2], t.internal, atol=1e-6)
    np.testing.assert_allclose(t.next_observation[:, :2], t.next_internal, atol=1e-6)


def test_play_never_ends_and_counts_whole_steps() -> None:
    steps = play(Lazy(), make(2), seed=0)
    assert [len(next(steps)) for _ in range(40)] == [2] * 40


def test_the_oracle_stays_alive() -> None:
    venv = GridLifeVecEnv(4, horizon=40)
    oracle = OraclePolicy(BeamPlanner(GridLifeParams(horizon=40), width=8, depth=6), venv.snapshot)
    seen: list[int] = []
    demonstrations = record(oracle, venv, 6, seed=0, progress=seen.append)
    assert demonstrations.lengths.tolist() == [40] * 6
    assert demonstrations.transitions.truncated.sum() == 6
    assert seen == sorted(seen)
    assert seen[-1] == 6
    np.testing.assert_array_equal(
        demonstrations.transitions.observation["internal"], demonstrations.transitions.internal.astype(np.float32)
    )


def test_no_episode() -> None:
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        record(Lazy(), make(), 0)
    with pytest.raises(RuntimeError, match="nothing says what these environments' internal variables are"):
        record(Lazy(), DummyVecEnv([Walker]), 1)


# --- what is unsafe


def test_violations_are_counted_and_named() -> None:
    t = record(Lazy(), make(2), 4, seed=0).transitions
    # By hand: the battery falls below 0.45 late in the episodes.
    low = t.next_internal[:, 0] < 0.45
    ends = np.flatnonzero(t.done) + 1
    episodes = [k for k, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)) if low[begin:end].any()]
    assert episodes
    named = ", ".join(map(str, episodes))
    message = (
        f"{low.sum()} of {len(t)} demonstrated transitions violate the constraints, in {len(episodes)} of 4 episodes "
        rf"\(counted from 0\): 'battery >= 0.45' in episodes? {named}. .*--drop-unsafe"
    )
    with pytest.raises(DemonstrationError, match=message):
        Demonstrations(t, CAREFUL)


def test_unsafe_episodes_are_dropped_as_a_whole() -> None:
    t = record(Lazy(), make(2), 4, seed=0).transitions
    ends = np.flatnonzero(t.done) + 1
    lowest = np.minimum.reduceat(t.next_internal[:, 0], [0, *ends[:-1]])
    limit = float(np.sort(lowest)[1:3].mean())
    strict = ViabilitySet([f"battery >= {limit}"], DIMS)
    kept = Demonstrations(t, strict, drop_unsafe=True)
    assert (kept.episodes, kept.dropped) == (2, 2)
    np.testing.assert_array_equal(kept.lengths, np.diff(ends, prepend=0)[lowest >= limit])
    assert kept.transitions.next_internal[:, 0].min() >= limit
    sums = [t.reward[begin:end].sum() for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    np.testing.assert_allclose(kept.returns, np.array(sums)[lowest >= limit])
    with pytest.raises(DemonstrationError, match="none of the 4 episodes stays alive throughout"):
        Demonstrations(t, ViabilitySet(["battery >= 0.95"], DIMS), drop_unsafe=True)


@pytest.mark.parametrize("where", ["internal", "next_internal"])
def test_the_first_state_and_nan_count_too(where: str) -> None:
    t = record(Lazy(), make(1), 2, seed=0).transitions
    x = getattr(t, where).copy()
    x[0 if where == "internal" else -1, 1] = np.nan if where == "internal" else 0.95
    with pytest.raises(
        DemonstrationError, match=r"1 of \d+ .*, in 1 of 2 episodes .*'heat in \[0.1, 0.9\]' in episode"
    ):
        Demonstrations(replace(t, **{where: x}), ALIVE)


def test_episodes_must_be_whole() -> None:
    t = record(Lazy(), make(1), 2, seed=0).transitions
    with pytest.raises(DemonstrationError, match="the last episode is cut off"):
        Demonstrations(replace(t, done=np.zeros_like(t.done)), ALIVE)
    torn = t.internal.copy()
    torn[3] += 0.01
    with pytest.raises(
        DemonstrationError, match="transition 3 does not begin where the one before it ended, at 1 place"
    ):
        Demonstrations(replace(t, internal=torn), ALIVE)
    with pytest.raises(DemonstrationError, match=r"constraints on 1 variables need \(\d+, 1\)"):
        Demonstrations(t, ViabilitySet(["battery >= 0.2"], ["battery"]))


# --- files


@pytest.mark.parametrize("observation", ["box", "dict", "tuple", "discrete"])
def test_a_file_holds_everything(observation: str, tmp_path: Path) -> None:
    space = observation if observation != "tuple" else "dict"
    demonstrations = record(Lazy("box"), make(observation=space, action="box"), 4, seed=0)
    if observation == "tuple":
        # SB3 has no tuples.
        parts = [tuple(part.values()) for part in (demonstrations.transitions.observation,) * 2]
        t = replace(demonstrations.transitions, observation=parts[0], next_observation=parts[1])
        demonstrations = Demonstrations(t, ALIVE)
    path = demonstrations.save(tmp_path / "demos.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["demos.npz"]
    assert_all_kept(Demonstrations.load(path, ALIVE).transitions, demonstrations.transitions)
    with pytest.raises(DemonstrationError, match="violate the constraints"):
        Demonstrations.load(path, ViabilitySet(["battery >= 0.9"], DIMS))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demonstrations = record(Lazy(), make(1), 1, seed=0)
    path = demonstrations.save(tmp_path / "demos.npz")
    before = path.read_bytes()

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space left"):
        demonstrations.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = record(Lazy(), make(1), 1, seed=0).save(tmp_path / "demos.npz")
    with pytest.raises(DemonstrationError, match=r"recorded with the internal variables \['battery', 'heat'\]"):
        Demonstrations.load(path, ViabilitySet(["heat >= 0.2"], ["heat", "battery"]))
    with pytest.raises(FileNotFoundError):
        Demonstrations.load(tmp_path / "nothing.npz", ALIVE)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not a zip file"):
        path.write_bytes(content)
        with pytest.raises(DemonstrationError, match=r"demos.npz holds no demonstrations, or is damaged"):
            Demonstrations.load(path, ALIVE)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(DemonstrationError, match="holds no demonstrations"):
        Demonstrations.load(path, ALIVE)
    np.savez(path, header=np.array('{"format": 99}'))
    with pytest.raises(DemonstrationError, match="has format 99, and this version of the package reads 1 only"):
        Demonstrations.load(path, ALIVE)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "demos.npz", header=np.array([Trap()], dtype=object))
    with pytest.raises(DemonstrationError, match="damaged"):
        Demonstrations.load(tmp_path / "demos.npz", ALIVE)
    assert not (tmp_path / "sprung").exists()


# --- Minari


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_minari_round_trip(observation: str, minari: Any) -> None:
    venv = make(observation=observation)
    demonstrations = record(Lazy(), venv, 4, seed=0)
    written = write_minari(demonstrations, "walker/lazy-v0", venv.observation_space, venv.action_space, author="me")
    assert (written.total_episodes, written.total_steps) == (4, len(demonstrations))
    assert minari.load_dataset("walker/lazy-v0").spec.dataset_id == "walker/lazy-v0"
    assert_same(read_minari("walker/lazy-v0", ALIVE).transitions, demonstrations.transitions)
    with pytest.raises(ValueError, match="already exists"):
        write_minari(demonstrations, "walker/lazy-v0", venv.observation_space, venv.action_space)


class _Episode:
    """An episode as Minari reads it, of a dataset without infos."""

    def __init__(self, observations: np.ndarray, ended: bool) -> None:
        steps = len(observations) - 1
        self.observations, self.actions = observations, np.arange(steps) % 3
        self.rewards, self.infos = np.ones(steps), None
        self.terminations, self.truncations = np.zeros(steps, dtype=bool), np.zeros(steps, dtype=bool)
        self.truncations[-1] = ended

    def __len__(self) -> int:
        return len(self.rewards)


class _Dataset:
    id = "walker/other-v0"
    observation_space = gym.spaces.Box(-10.0, 10.0, (4,), dtype=np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, episodes: list[_Episode]) -> None:
        self.episodes = episodes

    def __iter__(self) -> Any:
        return iter(self.episodes)


def test_internal_variables_in_the_observations_of_a_dataset() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.uniform(0.3, 0.7, (steps + 1, 4)).astype(np.float32) for steps in (5, 8)]
    dataset = _Dataset([_Episode(rows[0], True), _Episode(rows[1], False)])
    sources = {"battery": "obs[2]", "heat": "obs[0]"}
    demonstrations = read_minari(dataset, ALIVE, sources=sources)
    t = demonstrations.transitions
    assert demonstrations.lengths.tolist() == [5, 8]
    assert t.truncated.tolist() == [False] * 4 + [True] + [False] * 7 + [True]
    np.testing.assert_array_equal(t.internal, np.concatenate([r[:-1, [2, 0]] for r in rows]))
    np.testing.assert_array_equal(t.next_internal, np.concatenate([r[1:, [2, 0]] for r in rows]))
    assert np.isnan(t.cost).all()
    np.testing.assert_array_equal(t.executed_action, t.action)
    with pytest.raises(
        DemonstrationError, match=r"walker/other-v0 does not say .* \['battery', 'heat'\] are: .*internal"
    ):
        read_minari(dataset, ALIVE)
    with pytest.raises(TypeError, match="'heat' cannot be simulated beside a dataset"):
        read_minari(dataset, ALIVE, sources={"battery": "obs[2]", "heat": {"initial": 0.5}})  # type: ignore[dict-item]
    with pytest.raises(DemonstrationError, match="has no episodes"):
        read_minari(_Dataset([]), ALIVE, sources=sources)


# --- learning from them


class Learner(PersistCallback):
    """
    Preloads.

    :param demonstrations: what to preload
    """

    def __init__(self, demonstrations: Demonstrations) -> None:
        super().__init__()
        self.demonstrations = demonstrations

    def _on_training_start(self) -> None:
        self.store.preload(self.demonstrations.transitions)
        self.first = self.store.sample(16, np.random.default_rng(0), demonstration_share=1.0)
        super()._on_training_start()


def test_models_can_learn_from_them_before_the_first_step() -> None:
    demonstrations = record(Lazy(), make(), 3, seed=0)
    learner = Learner(demonstrations)
    PPO("MlpPolicy", make(), n_steps=8, batch_size=24, device="cpu").learn(24, callback=learner)
    assert learner.store.demonstrated == len(demonstrations)
    known = set(demonstrations.transitions.internal[:, 1].tolist())
    assert set(learner.first.internal[:, 1].tolist()) <= known


# --- the command


def test_the_command_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, minari: Any) -> None:
    monkeypatch.chdir(tmp_path)
    entry_point = "persist_sb3.envs.gridlife:GridLifeEnv"
    spec = gym.envs.registration.EnvSpec("GridLifeShort-v0", entry_point, kwargs={"continuous": True, "horizon": 30})
    monkeypatch.setitem(gym.registry, spec.id, spec)
    command = ["--env", "GridLifeShort-v0", "--episodes", "2", "--minari", "gridlife/two-v0", "--seed", "3"]
    assert demonstrate(command) == 0
    printed = capsys.readouterr().out
    assert "30 to 30" in printed
    venv = GridLifeVecEnv(1, continuous=True)
    demonstrations = Demonstrations.load("demos.npz", venv.viability)
    assert demonstrations.lengths.tolist() == [30, 30]
    assert all(venv.action_space.contains(action) for action in demonstrations.transitions.action)
    assert_same(read_minari("gridlife/two-v0", venv.viability).transitions, demonstrations.transitions)
    assert demonstrate(command) == 1
    assert "already exists" in capsys.readouterr().out


def test_the_planner_is_shown_and_paid_as_an_entry_has_it(tmp_path: Path) -> None:
    path = tmp_path / "demos.npz"
    command = ["--env", "GridLifeContinuousScent-v0", "--algo", "sac", "--episodes", "1", "--output", str(path)]
    assert demonstrate(command) == 0
    with gym.make("GridLifeContinuousScentMemory-v0") as env:
        seen = env.observation_space
    shown = Demonstrations.load(path, GridLifeVecEnv(1, continuous=True).viability).transitions
    assert isinstance(seen, spaces.Dict) and isinstance(shown.observation, dict) and set(shown.observation) == set(seen)
    assert shown.observation["window"].shape[1:] == seen["window"].shape
    assert set(shown.terms) == {"task", "homeo"} and (shown.terms["homeo"] != 0.0).any()
    np.testing.assert_allclose(shown.reward, sum(shown.terms.values()), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "at least one is needed"),
        (["--env", "CartPole-v1"], "the oracle plays GridLife only, not CartPole-v1"),
        (["--agent", "nowhere"], "nowhere is not the folder of one run: there is no such folder"),
        (["--agent", "logs", "--env", "GridLife-v0"], "is about the oracle"),
        (["--output", "nowhere/demos.npz"], "there is no folder nowhere"),
        (["--env", "GridLifeExplore-v0", "--task-weight", "1"], "the planner can only collect items"),
        (["--gym-packages", "no_such_module"], "no_such_module"),
        (
            ["--env", "GridLifeExplore-v0", "--algo", "sac"],
            "there is no entry for GridLifeExplore-v0, but for GridLifeC",
        ),
        (["--agent", "logs", "--algo", "sac"], "--algo sac is about the oracle"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        demonstrate(arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_the_command_shows_examples(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["persist-sb3", "demonstrate", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:\n  persist-sb3 demonstrate --env GridLife-v0 --episodes 20 --output demos.npz" in printed
