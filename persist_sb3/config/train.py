"""Algorithm and training."""

import difflib
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from persist_sb3.config.section import Count, Section, Share

ON_POLICY = ("a2c", "ppo", "ppo_lstm", "ppo_mask", "trpo")
DISCRETE_OFF_POLICY = ("dqn", "qrdqn")
CONTINUOUS_OFF_POLICY = ("crossq", "ddpg", "sac", "td3", "tqc")

#: How the policies in persist_sb3.risk call the algorithms that they are for.
RISKY = {"qrdqn": "QRDQN", "tqc": "TQC"}


class TrainSection(Section):
    """
    :param algo: rl-zoo3's name of the algorithm, in capitals or not
    :param n_timesteps: environment steps. Default: the hyperparameter file's
    :param batch_size: of a gradient step. Default: the hyperparameter file's
    :param gamma: discount factor. Default: the hyperparameter file's
    :param update_every: steps of each environment between updates: ``n_steps`` on-policy, ``train_freq`` (with as many
        gradient steps) off-policy. Default: the hyperparameter file's
    :param model_rollouts: rollouts of the models for each decision of the shield, or each course of the planner
    :param risk_alpha: share of the worst returns that QR-DQN or TQC goes by, see :mod:`persist_sb3.risk`. Default: all
    """

    elsewhere: ClassVar[str] = (
        ". What else the algorithm takes (learning_rate, n_envs, policy_kwargs ...) is given to its constructor in "
        "Python, or on the command line: -params learning_rate:0.001"
    )

    algo: str = "PPO"
    n_timesteps: Count | None = None
    batch_size: Annotated[int, Field(gt=1)] | None = None
    gamma: Share | None = None
    update_every: Count | None = None
    model_rollouts: Count | None = None
    risk_alpha: Share | None = None

    @model_validator(mode="after")
    def _check_algorithm(self) -> "TrainSection":
        known = (*ON_POLICY, *DISCRETE_OFF_POLICY, *CONTINUOUS_OFF_POLICY)
        if self.algo.lower() not in known:
            nearest = difflib.get_close_matches(self.algo.lower(), known, n=1)
            raise ValueError(
                f"algo={self.algo!r} is not one of {', '.join(known)}"
                + (f", did you mean {nearest[0]!r}?" if nearest else "")
            )
        if self.risk_alpha is not None and self.algo.lower() not in RISKY:
            raise ValueError(
                f"risk_alpha={self.risk_alpha} needs the quantiles of the return, which {self.algo} does not learn: "
                f"use {' or '.join(map(str.upper, RISKY))}, or leave risk_alpha out"
            )
        return self
