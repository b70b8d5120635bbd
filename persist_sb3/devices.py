"""Where models are trained."""

import torch

CPU = torch.device("cpu")


def check_device(device: str) -> None:
    """
    :param device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ..., or ``"auto"``; whether this machine has it does not matter
    :raises ValueError: if it is none of these
    """
    try:
        known = device == "auto" or torch.device(device).type in ("cpu", "cuda")
    except (RuntimeError, TypeError):
        known = False
    if not known:
        raise ValueError(f"device={device!r} must be 'cpu', 'cuda', 'cuda:0', 'cuda:1' ..., or 'auto'")


def find_device(device: str) -> torch.device:
    """
    SB3's ``get_device`` makes the CPU of a CUDA device that is not there; this one says so.

    :param device: see :func:`check_device`
    :return: the device; of ``"auto"`` CUDA if there is one, and else the CPU
    :raises RuntimeError: if this machine has no such device
    """
    there = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda") if there else CPU
    found = torch.device(device)
    if found.type != "cuda":
        return found
    if not there:
        built = "this PyTorch was built without it" if torch.version.cuda is None else "PyTorch finds no GPU"
        raise RuntimeError(f"device={device!r}, and there is no CUDA here: {built}. Use device='cpu', or 'auto'")
    if found.index is not None and found.index >= torch.cuda.device_count():
        raise RuntimeError(f"device={device!r}, and the last one here is 'cuda:{torch.cuda.device_count() - 1}'")
    return found
