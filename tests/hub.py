"""A folder that stands for the Hugging Face Hub, and a small run to share there."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, RepoUrl

from persist_sb3.train import train

RUN = Path("logs", "ppo", "CartPole-v1_1")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """
    Put a folder in the place of the Hub. Calls are held against the signatures of what they would have called.

    :param monkeypatch: ends it
    :param folder: keeps the repositories, ``OWNER/NAME``
    """

    def create_repo(repo_id: str, **_: Any) -> RepoUrl:
        (folder / repo_id).mkdir(parents=True, exist_ok=True)
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(repo_id: str, folder_path: str, **_: Any) -> None:
        shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id: str, local_dir: str, **_: Any) -> str:
        return str(shutil.copytree(folder / repo_id, local_dir, dirs_exist_ok=True))

    def hf_hub_download(repo_id: str, filename: str, **_: Any) -> str:
        return str(folder / repo_id / filename)

    for fake in (create_repo, upload_folder, snapshot_download):
        signature = inspect.signature(getattr(HfApi, fake.__name__))

        def call(self: HfApi, *args: Any, fake: Any = fake, signature: Any = signature, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs).arguments
            return fake(**{name: value for name, value in bound.items() if name != "self"})

        monkeypatch.setattr(HfApi, fake.__name__, call)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)


def make_run() -> Path:
    """
    :return: the folder of a run that was just trained in the current one, with a shield
    """
    small = ["-n", "256", "--eval-freq", "-1", "--device", "cpu", "--verbose", "0"]
    params = ["-params", "n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:1", "normalize:True"]
    train(["--algo", "ppo", "--env", "CartPole-v1", "--shield", *small, *params])
    return RUN
