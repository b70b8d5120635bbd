"""Lets SAC's critics choose among the actor's proposals only once they know what they choose."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from persist_sb3.schedules import Period, make_period


class BestOfCallback(BaseCallback):
    """
    Changes ``best_of`` of SAC's equivariant policies (see
    :class:`~persist_sb3.equivariant.EquivariantSACPolicy`) with the time step of a training. Young critics think most
    of what they know least, and whoever asks them does that. Afterwards, and in the zip, the policy has the ``best_of``
    that it was made with; evaluations in between are of the policy as it is then. It takes effect with the next
    rollout, and goes on where a resumed training stopped.

    :param best_of: proposals, in all of the training, or by the time step from which they are so many: 1, or
        ``{0: 1, 50_000: 16}``
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: if they do not begin with time step 0, or a number is below 1
    :raises TypeError: when training begins, if the policy has no ``best_of``
    """

    def __init__(self, best_of: Period, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._best_of = make_period(best_of, "best_of")

    def _init_callback(self) -> None:
        if not hasattr(self.model.policy, "best_of"):
            raise TypeError(
                f"BestOfCallback changes best_of, which {type(self.model.policy).__name__} does not have: take it out "
                "of the callbacks, or train SAC with EquivariantSACPolicy or EquivariantSACMultiInputPolicy"
            )

    def _on_training_start(self) -> None:
        self._own = self._policy.best_of

    def _on_rollout_start(self) -> None:
        self._policy.best_of = self._best_of(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._policy.best_of = self._own

    @property
    def _policy(self) -> Any:
        return self.model.policy
