"""The short way to a step of Adam is PyTorch's own, to the last bit."""

import torch

from persist_sb3.models.adam import FusedAdam


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((2, 7, 5), (2, 1, 5), (3,))]


def test_it_is_the_step_of_pytorch() -> None:
    own, others = parameters(), parameters()
    fast, slow = FusedAdam(own, 1e-2), torch.optim.Adam(others, lr=1e-2, fused=True)
    generator = torch.Generator().manual_seed(1)
    for number in range(12):
        if number == 6:  # as a resumed training does it
            saved = fast.state_dict()
            fast = FusedAdam(own, 1e-2)
            fast.load_state_dict(saved)
        for optimizer in (fast, slow):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        for place, (one, other) in enumerate(zip(own, others, strict=True)):
            # The last one is learned at every third step only, and not at first.
            one.grad = other.grad = None
            if place < 2 or number % 3 == 2:
                one.grad = torch.randn(one.shape, generator=generator)
                other.grad = one.grad.clone()
        fast.advance()
        slow.step()
        for one, other in zip(own, others, strict=True):
            assert torch.equal(one, other)
    for one, other in zip(fast.state_dict()["state"].values(), slow.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
