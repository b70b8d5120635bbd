"""Adam for small networks, whose step takes less time than what PyTorch does about it."""

from typing import Any

import torch


class FusedAdam(torch.optim.Adam):
    """
    Adam (Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015) in PyTorch's fused form.

    :param parameters: of one device and type
    :param lr: learning rate
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr, fused=True)

    def advance(self) -> None:
        """
        ``step()``, to the last bit, without its hooks, its profiling and its search for devices: parameters that have
        no gradient stay as they are.
        """
        (group,) = self.param_groups
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        if not all(states):
            # PyTorch makes them at the first step.
            self.step()
            return
        taken = [state["step"] for state in states]
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            torch._foreach_add_(taken, 1)
            torch._fused_adam_(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                taken,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
