"""What goes wrong in training loses nothing that was already written."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3.callbacks import MetricsCallback
from persist_sb3.metrics import read_episodes
from persist_sb3.wrappers import NonFiniteError, VecInternalState
from tests.toys import Walker

LIMITS = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}


class Mortal(Walker):
    """Fails after 100 steps: its process exits, or it returns a NaN."""

    def __init__(self, exits: bool) -> None:
        super().__init__()
        self.exits = exits
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        observation, *others = super().step(action)
        if self.total == 100:
            if self.exits:
                raise SystemExit(3)
            observation[1] = np.nan
        return observation, *others


def make_exiting() -> gym.Env[Any, Any]:
    return Mortal(exits=True)


def make_diverging() -> gym.Env[Any, Any]:
    return Mortal(exits=False)


@pytest.mark.parametrize(
    ("venv", "error", "message"),
    [
        (lambda: SubprocVecEnv([Walker, make_exiting]), RuntimeError, "worker 1 .* died"),
        (lambda: DummyVecEnv([Walker, make_diverging]), NonFiniteError, r"environment 1 returned .* obs\[1\] = nan"),
    ],
    ids=["dead worker", "NaN"],
)
def test_checkpoints_and_records_survive(venv: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    envs: VecEnv = VecInternalState(venv(), **LIMITS)
    model = PPO("MlpPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    callbacks = [MetricsCallback(log_path=tmp_path), CheckpointCallback(32, str(tmp_path))]
    with pytest.raises(error, match=message):
        model.learn(1000, callback=callbacks)
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == [f"rl_model_{n}_steps.zip" for n in (128, 192, 64)]
    again = PPO.load(tmp_path / "rl_model_192_steps.zip", device="cpu")
    assert again.num_timesteps == 192
    assert "metrics" in again.persist.pending  # type: ignore[attr-defined]
    assert len(read_episodes(tmp_path / "persist.jsonl")) >= 10


TRAIN = """
import sys
from stable_baselines3 import PPO
from persist_sb3.callbacks import MetricsCallback
from persist_sb3.wrappers import InternalState
from tests.toys import Walker
env = InternalState(Walker(), dims=["battery", "heat"], constraints=["battery >= 0.2"])
model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, device="cpu")
model.learn(10_000_000, callback=MetricsCallback(log_path=sys.argv[1]))
"""


def test_a_killed_process_leaves_a_readable_record(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(tmp_path)], cwd=Path(__file__).parents[1])
    record = tmp_path / "persist.jsonl"
    try:
        deadline = time.monotonic() + 120.0
        while not (record.exists() and record.read_bytes().count(b"\n") >= 20):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    record.write_bytes(record.read_bytes() + b'{"length": 1')
    with pytest.warns(UserWarning, match="torn"):
        assert len(read_episodes(record)) >= 20
