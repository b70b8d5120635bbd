"""HomeostatReward: what is added, when, and what it warns of."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from persist_sb3.homeostat import PaidToDieWarning
from persist_sb3.wrappers import HomeostatReward, InternalState, VectorHomeostatReward, VectorInternalState
from tests.toys import Scripted, Walker

LIMITS = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.2", "heat in [0.2, 0.8]"],
    "mu": [0.7, 0.5],
    "low": [0.0, 0.0],
    "high": [1.0, 1.0],
}
ROWS = [[0.7, 0.5], [0.6, 0.5], [0.4, 0.7], [0.1, 0.5], [0.7, 0.5]]


def rewards(**kwargs: float | str | list[float]) -> list[float]:
    env = HomeostatReward(InternalState(Scripted(ROWS, reward=1.0), **LIMITS), **kwargs)
    env.reset()
    return [env.step(0)[1] for _ in ROWS[1:]]


def test_deviation_by_hand() -> None:
    got = rewards(w=[1.0, 2.0], alive_bonus=1.0, death_penalty=4.0, weight=0.5)
    # 1 + 0.5 * (-(battery - 0.7)^2 - 2 (heat - 0.5)^2 + 1 alive - 4 dead)
    np.testing.assert_allclose(got, [1 + 0.5 * (1 - 0.01), 1 + 0.5 * (1 - 0.17), 1 + 0.5 * (-0.36 - 4), 1.5], rtol=1e-5)


def test_drive_reduction_by_hand() -> None:
    got = rewards(form="drive_reduction", w=[1.0, 1.0], alive_bonus=1.0)
    drives = np.sqrt([0.0, 0.01, 0.09 + 0.04, 0.36, 0.0])
    np.testing.assert_allclose(np.array(got) - 1.0, drives[:-1] - drives[1:] + [1, 1, 0, 1], rtol=1e-5, atol=1e-6)


def test_setpoints_default_to_those_of_the_constraints() -> None:
    assert rewards(alive_bonus=1.0) == rewards(mu=[0.7, 0.5], w=[1.0, 1.0], alive_bonus=1.0)


def test_a_reset_row_gets_no_reward() -> None:
    envs = SyncVectorEnv([Walker], autoreset_mode=AutoresetMode.NEXT_STEP)
    wrapped = VectorHomeostatReward(VectorInternalState(envs, **LIMITS), alive_bonus=1.0)
    wrapped.reset(seed=0)
    ended = False
    for _ in range(30):
        _, reward, terminated, truncated, _ = wrapped.step(np.array([0]))
        assert (reward[0] == 0.0) == ended
        ended = bool(terminated[0] or truncated[0])


def test_a_reward_that_pays_to_die_warns() -> None:
    with pytest.warns(PaidToDieWarning, match="alive_bonus"):
        rewards(w=[1.0, 1.0])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"mu": [0.7]}, RuntimeError, "mu has 1 entries for 2 internal variables"),
        ({"w": [1.0, 1.0, 1.0]}, RuntimeError, "w has 3 entries"),
        ({"w": [1.0, -1.0]}, ValueError, "w"),
        ({"weight": -1.0}, ValueError, "weight=-1.0"),
        ({"weight": np.nan}, ValueError, "weight=nan"),
        ({"form": "desire"}, ValueError, "desire"),
        ({"death_penalty": -1.0}, ValueError, "death_penalty"),
    ],
)
def test_wrong_parameters_are_refused_at_construction(kwargs: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        HomeostatReward(InternalState(Walker(), **LIMITS), **kwargs)


def test_setpoints_must_come_from_somewhere() -> None:
    env = InternalState(Walker(), dims=["battery", "heat"], constraints=["battery >= 0.2"])
    with pytest.raises(RuntimeError, match=r"give mu=\[\.\.\.\]"):
        HomeostatReward(env)
