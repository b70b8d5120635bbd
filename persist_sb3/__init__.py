"""Persistence for Stable-Baselines3: agents that stay alive."""

from typing import TYPE_CHECKING, Any

from persist_sb3.envs import register_envs

if TYPE_CHECKING:
    from persist_sb3.config import PersistConfig

__version__ = "0.1.0"
__all__ = ["PersistConfig", "register_envs"]

register_envs()


def __getattr__(name: str) -> Any:
    # Late: the worker of a SubprocVecEnv imports this module for the environments alone, and must not pay for torch.
    if name == "PersistConfig":
        from persist_sb3.config import PersistConfig

        return PersistConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
