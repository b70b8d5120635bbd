"""What README and docs say works: every Python block runs, and every link leads somewhere."""

import re
import warnings
from pathlib import Path

import pytest
import yaml

from persist_sb3.config import PersistConfig
from tests.toys import BatteryEnv

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "configuration.md", "yaml")[:1]:
        (tmp_path / "gridlife.yml").write_text(block)
    # An environment for the fragments that say only how to wrap one, and trainings of one rollout.
    scope: dict[str, object] = {"env": BatteryEnv()}
    for block in blocks(page, "python"):
        short = re.sub(r"learn\([\d_]+", "learn(1", block)
        with warnings.catch_warnings():
            warnings.simplefilter("error", category=DeprecationWarning)
            exec(compile(short, page.name, "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_blocks_are_configurations(page: Path) -> None:
    for block in blocks(page, "yaml"):
        PersistConfig.model_validate(yaml.safe_load(block)).layers()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yml")), ids=lambda path: path.name)
def test_examples_make_an_environment(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an earlier test has loaded is not what a shield of this example was trained with.
    monkeypatch.setattr("persist_sb3.state._last_loaded", None)
    env = PersistConfig.from_yaml(example).make_env()
    env.reset(seed=0)
    assert "homeo" in env.step(env.action_space.sample())[4]["reward_terms"]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.*")), ids=lambda path: path.name)
def test_examples_are_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
