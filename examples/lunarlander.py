"""
LunarLander with a tank: each firing of the main engine takes 0.6 % of it, of a side engine 0.1 %, and what falls below
a tenth is the reserve that must not be touched. The lander must not tilt by more than 0.8 rad either. Either violation
ends the episode. ``pip install gymnasium[box2d]``; then ``python examples/lunarlander.py``, or
``python train.py --gym-packages examples.lunarlander --algo ppo --env LunarLanderFuel-v0 --shield``.
"""

import gymnasium as gym

from persist_sb3.wrappers import InternalState, TerminateOnViolation


def make(**kwargs):
    """
    :param kwargs: of LunarLander
    :return: it, with a tank
    """
    env = InternalState(
        gym.make("LunarLander-v3", **kwargs),
        dims=["fuel", "tilt"],
        sources={"fuel": {"initial": 1.0, "action_cost": [0.0, 0.001, 0.006, 0.001]}, "tilt": "obs[4]"},
        constraints=["fuel >= 0.1", "abs(tilt) <= 0.8"],
        mu=[1.0, 0.0],
        append=True,
    )
    return TerminateOnViolation(env)


gym.register("LunarLanderFuel-v0", make)

if __name__ == "__main__":
    import sys

    from persist_sb3.train import train

    train(["--algo", "ppo", "--env", "LunarLanderFuel-v0", "--shield", *sys.argv[1:]])
