"""Learns more from the first steps, which are the dearest, than from later ones."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from persist_sb3.schedules import Period, make_period


class GradientStepsCallback(BaseCallback):
    """
    Changes an off-policy algorithm's ``gradient_steps`` with the time step. An agent that knows nothing dies most
    often, and every gradient step spares it some of that: many in the beginning, and few once it stays alive, keep both
    violations and computation low (Chen et al., "Randomized ensembled double Q-learning", ICLR 2021, take 20 for each
    step). It takes effect with the next rollout, and goes on where a resumed training stopped.

    :param gradient_steps: after each rollout (``train_freq`` steps), by the time step from which they are so many:
        ``{0: 64, 25_000: 16}``
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if they do not begin with time step 0, or a number is below 1
    :raises TypeError: when training begins, if the algorithm is on-policy and takes no gradient steps of this kind
    """

    model: OffPolicyAlgorithm

    def __init__(self, gradient_steps: Period, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._gradient_steps = make_period(gradient_steps, "gradient_steps")

    def _init_callback(self) -> None:
        if not isinstance(self.model, OffPolicyAlgorithm):
            raise TypeError(
                f"GradientStepsCallback changes gradient_steps, which {type(self.model).__name__} does not have: take "
                "it out of the callbacks, or train with SAC, TD3, TQC, DQN or QR-DQN"
            )

    def _on_rollout_start(self) -> None:
        self.model.gradient_steps = self._gradient_steps(self.num_timesteps)

    def _on_step(self) -> bool:
        return True
