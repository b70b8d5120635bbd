"""What the benchmarks of agents keep beside a run."""

import ast
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import agents
from benchmarks.agents import CPU_SECONDS, Condition, cost, train
from benchmarks.continuous import SHIELD, TASKS, earlier, name_of, options
from benchmarks.kept import save, saved
from benchmarks.mover import as_numbers
from benchmarks.tables import tabulate
from persist_sb3 import hyperparams
from persist_sb3.envs.vector import GridLifeVecEnv

#: In the place of train.py: takes twice as much CPU time as it is told to, in processes of its own.
STAND_IN = """
import subprocess, sys, time
from pathlib import Path

argument = dict(zip(sys.argv, sys.argv[1:]))
burn = f"import time\\nwhile time.process_time() < {argument['--burn']}: pass"
for _ in range(2):
    subprocess.run([sys.executable, "-c", burn], check=True)
time.sleep(float(argument["--sleep"]))
run = Path(argument["-f"], argument["--algo"], argument["--env"] + "_1")
run.mkdir(parents=True)
(run / f"{argument['--env']}.zip").touch()
sys.exit(int(argument.get("--fail", 0)))
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(agents, "ROOT", tmp_path)


def test_a_run_says_how_much_cpu_time_its_training_took(tmp_path: Path) -> None:
    slow = train("Env-v0", Condition(["--burn", "0.6", "--sleep", "0"]), 0, 64, tmp_path / "slow")
    idle = train("Env-v0", Condition(["--burn", "0", "--sleep", "1.5"], "sac"), 0, 64, tmp_path / "idle")
    assert slow == tmp_path / "slow" / "ppo" / "Env-v0_1"
    assert cost(slow)[CPU_SECONDS] > 1.2
    assert 0 < cost(idle)[CPU_SECONDS] < cost(slow)[CPU_SECONDS]
    before = (slow / "cost.json").read_text()
    train("Env-v0", Condition(["--burn", "0", "--sleep", "0"]), 0, 64, tmp_path / "slow")
    assert (slow / "cost.json").read_text() == before


def test_a_training_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        train("Env-v0", Condition(["--burn", "0", "--sleep", "0", "--fail", "3"]), 0, 64, tmp_path)
    assert cost(tmp_path / "ppo" / "Env-v0_1") == {}


def test_a_table_shows_the_cost_where_every_seed_has_it() -> None:
    rows = {"new": [{CPU_SECONDS: 10.0}, {CPU_SECONDS: 20.0}], "old": [{CPU_SECONDS: 10.0}, {}]}
    _, results = tabulate("", rows, {CPU_SECONDS: ".0f"})
    assert results[CPU_SECONDS]["new"]["mean"][0] == 15.0
    assert set(results[CPU_SECONDS]) == {"new"}


#: Callbacks of agents that learn as the whole entry does.
LEARNING = {"MetricsCallback", "BestOfCallback", "GradientStepsCallback"}


@pytest.mark.parametrize(
    ("condition", "layers", "callbacks", "equivariant"),
    [
        ("bare SB3", {"VecInternalState"}, {"MetricsCallback"}, False),
        ("memory", {"VecSpatialMemory", "VecInternalState"}, LEARNING, True),
        (
            "homeostat",
            {"VecSpatialMemory", "VecInternalState", "VecHomeostatReward"},
            LEARNING,
            True,
        ),
    ],
)
def test_agents_have_what_their_condition_says(
    condition: str, layers: set[str], callbacks: set[str], equivariant: bool
) -> None:
    env_id = "GridLifeContinuousScent-v0"
    _, *given = options(env_id, TASKS[env_id], condition)
    changed = dict(part.split(":", 1) for part in given)
    for key, expected in (("vec_env_wrapper", layers), ("callback", callbacks)):
        named = [part if isinstance(part, str) else next(iter(part)) for part in ast.literal_eval(changed.pop(key))]
        assert {name.rpartition(".")[2] for name in named} == expected
    assert "Counterfactual" in hyperparams.load("sac")[env_id]["replay_buffer_class"]
    assert "ExecutedActionDictReplayBuffer" in changed.pop("replay_buffer_class")
    # SB3's own networks are named, and the entry's left as they are.
    assert ("MultiInputPolicy" in str(changed)) is not equivariant
    assert bool(changed) is not equivariant


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "GridLifeContinuousScent-v0"])
def test_whom_demonstrations_are_shown_to(env_id: str) -> None:
    cloning = {"demonstrations": "demos.npz", "value_steps": 30}
    given = options(env_id, TASKS[env_id], "demonstrations", cloning)
    assert given[: given.index("-params")] == (["--shield"] if env_id == "Pendulum-v1" else [])
    changed = dict(part.split(":", 1) for part in given[given.index("-params") + 1 :])
    shown = {}
    for each in ast.literal_eval(changed["callback"]):
        if isinstance(each, dict):
            ((kind, parameters),) = each.items()
            shown[kind.rpartition(".")[2]] = parameters.get("demonstrations")
    assert shown.pop("GradientStepsCallback", None) is None and shown.pop("BestOfCallback", None) is None
    assert shown == {"ViabilityCallback": "demos.npz", "BehaviourCloningCallback": "demos.npz"}
    # Layers are the entry's, but for when the shield begins.
    layers = ast.literal_eval(changed.get("vec_env_wrapper", "[]"))
    assert [layer[SHIELD]["min_updates"] for layer in layers if name_of(layer) == SHIELD] == (
        [] if env_id == "Pendulum-v1" else [2_000]
    )


def test_results_of_other_sizes_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert saved(path, seeds=5) == {}
    save({"shield": 1}, path, seeds=5)
    save({"shield": 2}, path, seeds=3)
    save({**saved(path, seeds=5), "bare": 4}, path, seeds=5)
    assert saved(path, seeds=5) == {"shield": 1, "bare": 4} and saved(path, seeds=3) == {"shield": 2}
    assert json.loads(path.read_text()) == {"5 seeds": {"shield": 1, "bare": 4}, "3 seeds": {"shield": 2}}


def test_further_seeds_go_on_from_the_results() -> None:
    figures = {"task return": [1.0, 2.0, 3.0], "violations": [0.0, 4.0, 5.0]}
    result = {"timesteps": 100, "episodes": 20, "conditions": {"bare": figures, "shield": {"task return": [7.0]}}}
    found = earlier(result, ["bare"], 2, 100, 20)
    assert found == {"bare": {"task return": [1.0, 2.0], "violations": [0.0, 4.0]}}
    found["bare"]["task return"].append(9.0)
    assert figures["task return"] == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="fewer than 2 agents of 'shield'"):
        earlier(result, ["bare", "shield"], 2, 100, 20)
    with pytest.raises(ValueError, match="no figures of 100 steps and 30 test episodes"):
        earlier(result, ["bare"], 2, 100, 30)
    with pytest.raises(ValueError, match="no figures of 100 steps"):
        earlier({}, ["bare"], 2, 100, 20)


def test_a_real_valued_action_means_the_move() -> None:
    rng = np.random.default_rng(0)
    worlds = [GridLifeVecEnv(200, split="train", continuous=continuous) for continuous in (False, True)]
    worlds[0].seed(0)
    for world in worlds:
        world.reset()
    worlds[1].restore(worlds[0].snapshot())
    cells = set()
    for _ in range(5):
        moves = rng.integers(5, size=200)
        worlds[0].step(moves)
        worlds[1].step(as_numbers(moves, rng))
        one, other = (world.snapshot() for world in worlds)
        np.testing.assert_array_equal(one.cell, other.cell)
        np.testing.assert_array_equal(one.internal, other.internal)
        cells |= set(one.cell.tolist())
    assert len(cells) > 50
