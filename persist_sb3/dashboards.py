"""
Dashboards as code: a workspace and a report for W&B, and a layout for TensorBoard.

``python -m persist_sb3.dashboards --entity ME --project sb3`` saves the workspace (which needs ``pip install
'persist-sb3[dashboards]'`` and a W&B account), ``--report`` a report. TensorBoard's layout needs neither: it is written
by :class:`~persist_sb3.callbacks.TensorBoardCallback`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

#: What runs are grouped by, so that ablations compare: the layers that they were trained with.
GROUP = "persist_layers"


@dataclass(frozen=True)
class Chart:
    """
    A chart with a line a metric.

    :param title: of the chart
    :param metrics: their names, or regular expressions if they depend on the environment
    :param regex: whether they are
    """

    title: str
    metrics: tuple[str, ...]
    regex: bool = False


#: Every section, and what is in it. What a run does not log stays empty.
SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Survival": (
        Chart("episodes without a violation", ("persist/survival",)),
        Chart("steps to the first violation", ("persist/time_to_violation", "persist/time_to_violation_median")),
        Chart("recovery from near the boundary", ("persist/recovery_rate",)),
        Chart("task return", ("rollout/ep_rew_mean", "eval/mean_reward")),
    ),
    "Violations": (
        Chart("violations per 1000 steps", ("persist/violations_per_1k_steps",)),
        Chart("steps in violation so far", ("persist/violations",)),
        Chart("deaths by constraint", ("persist/deaths/.*",), regex=True),
        Chart("satisfaction by variable", ("persist/satisfaction/.*",), regex=True),
        Chart("smallest margin", ("persist/min_margin",)),
        Chart("price of a violation", ("persist/lagrange/.*",), regex=True),
    ),
    "Rewards": (
        Chart("reward terms a step", ("persist/reward_terms/.*",), regex=True),
        Chart("intrinsic share of the reward", ("persist/intrinsic_share",)),
        Chart("intrinsic reward and time alive, rank correlation", ("persist/intrinsic_correlation",)),
        Chart("bonuses a step", ("persist/bonuses/.*",), regex=True),
        Chart("share of each bonus", ("persist/bonus_share/.*",), regex=True),
        Chart("each bonus and time alive, rank correlation", ("persist/bonus_correlation/.*",), regex=True),
        Chart("novelty", ("persist/rnd/.*",), regex=True),
        Chart("surprise", ("persist/surprise/.*",), regex=True),
        Chart("empowerment", ("persist/empowerment/.*",), regex=True),
        Chart("policy entropy", ("persist/policy_entropy",)),
        Chart("setpoint", ("persist/setpoint/.*",), regex=True),
    ),
    "Shield": (
        Chart("intervention rate", ("persist/intervention_rate",)),
        Chart("calibration error", ("persist/calibration_error",)),
        Chart("threshold, and what it keeps", ("persist/calibration/.*",), regex=True),
        Chart("safety network", ("persist/safety/.*",), regex=True),
    ),
    "Models": (
        Chart("world model", ("persist/world_model/.*",), regex=True),
        Chart("internal model", ("persist/internal_model/.*",), regex=True),
        Chart("viability critic", ("persist/viability/.*",), regex=True),
        Chart("belief", ("persist/belief/.*",), regex=True),
        Chart("distance from demonstrations", ("persist/cloning/.*",), regex=True),
        Chart("curriculum", ("persist/curriculum/.*",), regex=True),
    ),
}


@dataclass(frozen=True)
class Medium:
    """
    What is no scalar, as :class:`~persist_sb3.callbacks.TrackCallback` logs it.

    :param key: under which it is logged
    :param kind: ``"lines"`` and ``"bars"`` (plots of W&B), ``"table"``, ``"video"``, or ``"histogram"`` with a regular
        expression as its key
    """

    key: str
    kind: str


#: By section.
MEDIA: dict[str, tuple[Medium, ...]] = {
    "Survival": (Medium("persist/survival_curve", "lines"), Medium("persist/video", "video")),
    "Violations": (
        Medium("persist/violations_by_constraint", "bars"),
        Medium("persist/margins/.*", "histogram"),
    ),
    "Rewards": (Medium("persist/intrinsic_by_time_alive", "lines"),),
    "Shield": (Medium("persist/interventions", "table"), Medium("persist/calibration_plot", "lines")),
}

#: W&B's plots that are drawn of a table: their names, and which of its columns mean what.
PLOTS: dict[str, tuple[str, dict[str, str]]] = {
    "lines": ("wandb/lineseries/v0", {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}),
    "bars": ("wandb/bar/v0", {"label": "constraint", "value": "steps"}),
}


def name_layers(layers: Sequence[str]) -> str:
    """
    :param layers: around an environment, in their gymnasium form, the innermost first
    :return: what runs with these layers are grouped by
    """
    return "+".join(layers) or "none"


def listed_layers(entry: Mapping[str, Any]) -> list[str]:
    """
    :param entry: hyperparameters in rl-zoo3's form, such as those of
        :meth:`PersistConfig.zoo_entry <persist_sb3.config.PersistConfig.zoo_entry>`
    :return: this package's layers in it, in their gymnasium form, the innermost first
    """
    listed: list[Any] = []
    for key in ("env_wrapper", "vec_env_wrapper"):
        layers = entry.get(key) or []
        listed += [layers] if isinstance(layers, str | Mapping) else layers
    paths = [each if isinstance(each, str) else next(iter(each)) for each in listed]
    return [path.rpartition(".")[2].removeprefix("Vec") for path in paths if path.startswith("persist_sb3.")]


def tensorboard_layout() -> dict[str, dict[str, list[Any]]]:
    """
    :return: what ``SummaryWriter.add_custom_scalars`` takes, for the tab "Custom Scalars"
    """
    return {
        section: {chart.title: ["Multiline", list(chart.metrics)] for chart in charts}
        for section, charts in SECTIONS.items()
    }


def wandb_workspace(entity: str, project: str, name: str = "Who stays alive") -> Any:
    """
    :param entity: of W&B: a person or a team
    :param project: where the runs are
    :param name: of the workspace
    :return: a ``wandb_workspaces.workspaces.Workspace``, the runs grouped by their layers; ``.save()`` uploads it
    :raises ImportError: without the extra ``dashboards``
    """
    workspaces, reports = _packages()
    sections = [
        workspaces.Section(name=section, panels=_panels(reports, section), is_open=section in MEDIA)
        for section in SECTIONS
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="global_step"),
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Config(GROUP)]),
    )


def wandb_report(entity: str, project: str, title: str = "Who stays alive") -> Any:
    """
    :param entity: of W&B: a person or a team
    :param project: where the runs are
    :param title: of the report
    :return: a ``wandb_workspaces.reports.v2.Report`` with the same charts; ``.save()`` uploads it
    :raises ImportError: without the extra ``dashboards``
    """
    _, reports = _packages()
    runs = reports.Runset(entity=entity, project=project, groupby=[f"config.{GROUP}"])
    blocks: list[Any] = [
        reports.P("Runs are grouped by the layers that they were trained with. Every interval is over the runs of one.")
    ]
    for section in SECTIONS:
        blocks += [
            reports.H2(section),
            reports.PanelGrid(runsets=[runs], panels=_panels(reports, section)),
        ]
    return reports.Report(entity=entity, project=project, title=title, blocks=blocks)


def _packages() -> tuple[Any, Any]:
    """
    :return: the modules of workspaces and reports
    :raises ImportError: naming what to install
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ImportError(
            f"{error}: pip install 'persist-sb3[dashboards]' has what dashboards are built with"
        ) from error
    return workspaces, reports


def _panels(reports: Any, section: str) -> list[Any]:
    """
    :param reports: the module
    :param section: one of :data:`SECTIONS`
    :return: its charts and media
    """
    panels = []
    for chart in SECTIONS[section]:
        what = {"metric_regex": chart.metrics[0]} if chart.regex else {"y": list(chart.metrics)}
        panels.append(reports.LinePlot(title=chart.title, x="global_step", **what))
    return panels + [_panel(reports, medium) for medium in MEDIA.get(section, ())]


def _panel(reports: Any, medium: Medium) -> Any:
    title = medium.key.removeprefix("persist/")
    if medium.kind == "video":
        return reports.MediaBrowser(title=title, media_keys=[medium.key])
    if medium.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=medium.key)
    if medium.kind == "histogram":
        return reports.LinePlot(title="margins", x="global_step", metric_regex=medium.key)
    name, fields = PLOTS[medium.kind]
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": f"{medium.key}_table"}},
        chart_name=name,
        chart_fields=fields,
        chart_strings={"title": title.replace("_", " ")},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line. Default: the process's own
    :return: the exit status
    """
    parser = argparse.ArgumentParser(
        prog="python -m persist_sb3.dashboards", description="Save a W&B workspace with a section for every layer."
    )
    parser.add_argument("--entity", required=True, help="your name or team at W&B")
    parser.add_argument("--project", default="sb3", help="where the runs are (default: %(default)s, as in rl-zoo3)")
    parser.add_argument("--report", action="store_true", help="save a report instead")
    own = parser.parse_args(arguments)
    try:
        made = (wandb_report if own.report else wandb_workspace)(own.entity, own.project)
    except ImportError as error:
        parser.error(str(error))
    from wandb.errors import Error

    try:
        made.save()
    except Error as error:
        parser.error(
            f"{error} What is saved here lies at W&B and needs an account. Without one, TensorBoard's Custom Scalars "
            "has the same charts: tensorboard --logdir runs"
        )
    Console().print(made.url, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
