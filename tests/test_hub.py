"""What goes to the Hub comes back whole, and its card says what a report says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_sb3 import EnvironmentName
from rl_zoo3.load_from_hub import download_from_hub

from persist_sb3.evaluation import evaluate
from persist_sb3.hub import main, pull, push
from persist_sb3.report import report
from persist_sb3.runs import Run, RunError
from tests import hub

REPO = "me/ppo-CartPole-v1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and with a Hub to which it was pushed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["persist-sb3"])
        patch.setattr("persist_sb3.state._last_loaded", None)
        hub.install(patch, folder / "hub")
        assert push(hub.make_run(), REPO, episodes=4, seed=3) == f"https://huggingface.co/{REPO}"
    return folder


@pytest.fixture
def there(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Somebody else's folder, who sees the same Hub."""
    hub.install(monkeypatch, trained / "hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("persist_sb3.state._last_loaded", None)
    return tmp_path


def lives(folder: Path) -> list[Any]:
    run = Run(folder)
    venv = run.make_env(2)
    return [episode.record for episode in evaluate(run.load_model(venv, 0), venv, 2, seed=0)]


def test_what_comes_back_is_what_went(trained: Path, there: Path) -> None:
    original, first, second = trained / hub.RUN, pull(REPO), pull(REPO)
    assert (first, second) == (Path("logs/ppo/CartPole-v1_1"), Path("logs/ppo/CartPole-v1_2"))
    for file in ("CartPole-v1.zip", "CartPole-v1/vecnormalize.pkl", "CartPole-v1/config.yml", "persist.jsonl"):
        assert (first / file).read_bytes() == (original / file).read_bytes()
    assert lives(first) == lives(original)
    assert Run(first).training_episodes() == Run(original).training_episodes()


def test_rl_zoo3_finds_it_too(trained: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    download_from_hub("ppo", EnvironmentName("CartPole-v1"), 0, "logs", "me")
    assert lives(there / hub.RUN) == lives(trained / hub.RUN)


def test_the_card_says_what_a_report_says(trained: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    report([str(hub.RUN), "--episodes", "4", "--seed", "3", "--video", "none", "--output", "report"])
    expected = json.loads(Path("report", "summary.json").read_text())["runs"][0]["evaluation"]
    assert yaml.safe_load(Path("hub", REPO, "results.yml").read_text()) == expected
    card = ModelCard.load(Path("hub", REPO, "README.md"))
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["survival"] == expected["survival"]["share"]
    assert results["violations_per_1k_steps"] == pytest.approx(expected["violations_per_1k_steps"], abs=1e-4)
    assert results["intervention_rate"] == expected["intervention_rate"]
    assert card.data.library_name == "stable-baselines3" and "persist-sb3" in card.data.tags
    text = " ".join(card.text.split())
    for row in (
        f"| episodes without a violation | {expected['survival']['share']:.0%} [",
        f"| violated first: `abs(theta) <= 0.18` | {expected['deaths']['abs(theta) <= 0.18']} |",
        f"| actions that the shield changed | {expected['intervention_rate']:.1%} |",
        f"python -m persist_sb3.hub pull {REPO}",
        "do not deploy it without",
    ):
        assert row in text


def test_the_card_has_the_command_without_its_folders(trained: Path, there: Path) -> None:
    run = pull(REPO)
    typed = "/home/me/.venv/bin/python3 /home/me/.venv/bin/persist-sb3 train --env CartPole-v1 -f /home/me/logs"
    (run / "CartPole-v1" / "command.txt").write_text(typed)
    push(run, "me/again", episodes=1)
    assert (
        "```bash\npersist-sb3 train --env CartPole-v1 -f logs\n```"
        in Path(trained, "hub", "me", "again", "README.md").read_text()
    )


def test_pulling_executes_nothing(trained: Path, there: Path) -> None:
    repo = trained / "hub" / "me" / "trap"
    repo.mkdir()
    for file in ("args.yml", "config.yml"):
        (repo / file).write_text("!!python/object/apply:os.mkdir [sprung]")
    for file in ("ppo-CartPole-v1.zip", "vec_normalize.pkl"):
        (repo / file).write_bytes(b"cos\nmkdir\n(S'sprung'\ntR.")
    assert pull("me/trap").is_dir()
    assert not Path("sprung").exists()


@pytest.mark.parametrize("files", [[], ["ppo-CartPole-v1.zip"], ["args.yml", "config.yml", "model.zip"]])
def test_a_repository_without_an_agent_says_what_is_in_it(files: list[str], trained: Path, there: Path) -> None:
    repo = trained / "hub" / "me" / f"only-{len(files)}"
    repo.mkdir()
    for file in files:
        (repo / file).touch()
    with pytest.raises(RunError, match=rf"does not hold one agent.*{files[-1] if files else 'no files'}"):
        pull(f"me/only-{len(files)}")
    assert not Path("logs").exists()


def test_on_the_command_line(trained: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", REPO, "--folder", "runs"]) == 0
    assert capsys.readouterr().out.strip() == "runs/ppo/CartPole-v1_1"
    with pytest.raises(SystemExit) as stopped:
        main(["push", "runs", REPO])
    assert stopped.value.code == 2
    assert "is not the folder of one run" in capsys.readouterr().err
