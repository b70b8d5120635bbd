"""A replay buffer that begins with demonstrations."""

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from persist_sb3.batch import take
from persist_sb3.buffers.recomputed import RecomputedBonusReplayBuffer
from persist_sb3.buffers.transitions import Transitions, as_batch


def fill(model: OffPolicyAlgorithm, shown: Transitions) -> None:
    """
    Put transitions into an algorithm's replay buffer, as if it had made them itself. Where there are several
    environments each gets an equal stretch, so the last few transitions may be left out. A stretch is cut off at its
    end, and not continued by what the environment does later.

    :param model: the algorithm
    :param shown: whole episodes, one after the other
    :raises RuntimeError: if the buffer is too small, or keeps more than transitions tell
    """
    buffer = model.replay_buffer
    # SB3's HerReplayBuffer by name, since this takes from SB3 what its algorithms have in common.
    hindsight = any(kind.__name__ == "HerReplayBuffer" for kind in type(buffer).__mro__)
    if hindsight or not isinstance(buffer, ReplayBuffer) or isinstance(buffer, RecomputedBonusReplayBuffer):
        raise RuntimeError(
            f"a {type(buffer).__name__} cannot begin with demonstrations: it keeps more than a transition tells. Use a "
            "ReplayBuffer, or one of persist_sb3.buffers.replay"
        )
    n = model.n_envs
    length = len(shown) // n
    if not 0 < length < buffer.buffer_size:
        raise RuntimeError(
            f"buffer_size={buffer.buffer_size * n} holds no more than the {len(shown)} demonstrated transitions of {n} "
            "environments: make it larger"
            if length
            else f"{len(shown)} demonstrated transitions are not one for each of {n} environments: record more"
        )
    for row in np.arange(n * length).reshape(n, length).T:
        step = Transitions(**take(as_batch(shown), row))
        cut = row[0] == length - 1
        infos = [
            {"TimeLimit.truncated": bool(truncated or (cut and not done))}
            for truncated, done in zip(step.truncated, step.done, strict=True)
        ]
        buffer.add(
            step.observation,
            step.next_observation,
            model.policy.scale_action(step.executed_action),
            step.reward,
            step.done | cut,
            infos,
        )
