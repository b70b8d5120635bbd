"""
What TAB offers. The options of a command that reads its arguments itself are read off the source of its parser: to run
it would mean to import torch, which takes seconds.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: Modules that read what a command's own parser leaves.
BEHIND = {"train": ["rl_zoo3.train"], "enjoy": ["rl_zoo3.enjoy"]}
#: argparse's actions that take no value, and its ``nargs`` of those that take several.
FLAGS, SEVERAL = ("store_true", "store_false"), ("+", "*")


@dataclass(frozen=True)
class Option:
    """
    An option of an argparse parser.

    :param names: such as ``("-f", "--folder")``
    :param help: what it does, without its default; empty if that is put together only when it runs
    :param most: values that may follow
    :param metavar: what they are called
    :param choices: what they can be, as far as that is written down
    """

    names: tuple[str, ...]
    help: str = ""
    most: int = 1
    metavar: str = ""
    choices: tuple[str, ...] = ()


#: argparse adds it by itself.
HELP = Option(("-h", "--help"), "show what there is, with examples", most=0)


def options(module: str) -> list[Option]:
    """
    :param module: of a package, such as ``"rl_zoo3.train"``. Neither it nor the package is imported
    :return: the options that ``add_argument`` is told in it, in this order
    """
    found = []
    for node in ast.walk(_source(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = tuple(str(_constant(argument)) for argument in node.args)
            told = {keyword.arg: _constant(keyword.value) for keyword in node.keywords}
            if names[0].startswith("-"):
                found.append(
                    Option(
                        names,
                        str(told.get("help") or "").partition(" (default")[0],
                        0 if told.get("action") in FLAGS else sys.maxsize if told.get("nargs") in SEVERAL else 1,
                        str(told.get("metavar") or ""),
                        tuple(told.get("choices") or ()),
                    )
                )
    return found


def algorithms() -> list[str]:
    """
    :return: names of the algorithms that rl-zoo3 knows, and of those that are shipped beside them
    """
    from persist_sb3 import hyperparams

    known = set(hyperparams.algorithms())
    for node in ast.walk(_source("rl_zoo3.utils")):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "ALGOS":
            assert isinstance(node.value, ast.Dict)
            known |= {str(_constant(key)) for key in node.value.keys if key is not None}
    return sorted(known)


def environments() -> list[str]:
    """
    :return: ids that gymnasium knows
    """
    import gymnasium as gym

    return sorted(gym.registry)


def runs() -> list[str]:
    """
    :return: folders of runs below the current one, as rl-zoo3 lays them out: LOGS/ALGO/ENV_NUMBER/ENV/args.yml
    """
    return sorted({str(file.parents[1]) for file in Path().glob("*/*/*_*/*/args.yml")})


#: What an option takes, by its metavar. A file is the shell's to complete.
VALUES: dict[str, Callable[[], list[str]]] = {"ALGO": algorithms, "ID": environments, "RUN_DIR": runs}


def offered(
    command: str, words: Sequence[str], incomplete: str, positional: Callable[[], list[str]] | None = None
) -> Iterator[str | tuple[str, str]]:
    """
    :param command: one whose module reads its arguments itself
    :param words: typed after it
    :param incomplete: the word that is being typed
    :param positional: what the command takes besides options. Default: nothing
    :return: what the word may become, options with their help. Nothing where it is a file or a number
    """
    known = dict.fromkeys(HELP.names, HELP)
    for module in (f"persist_sb3.{command}", *BEHIND.get(command, ())):
        for option in options(module):
            # The command's own parser is asked first.
            known |= {name: option for name in option.names if name not in known}
    before = _waiting(known, words)
    if incomplete.startswith("-") or (before is None and positional is None):
        yield from ((name, option.help) for name, option in known.items() if name.startswith(incomplete))
        return
    values: list[str] = []
    if before is not None:
        values += before.choices
        for part in before.metavar.split("|"):
            # A word in small letters stands for itself, as in "oracle|RUN_DIR".
            values += VALUES[part]() if part in VALUES else [part] if part.islower() else []
    if before is None or (before.most > 1 and not values):
        values += positional() if positional is not None else []
    yield from (value for value in values if value.startswith(incomplete))


def _waiting(known: dict[str, Option], words: Sequence[str]) -> Option | None:
    """
    :param known: options by name
    :param words: typed so far; the "=" of ``--env=ID`` is a word in some shells
    :return: the option that the next word may be a value of
    """
    for count, word in enumerate(reversed([word for word in words if word != "="])):
        if word in known:
            return known[word] if count < known[word].most else None
    return None


def _source(module: str) -> ast.Module:
    package, _, name = module.partition(".")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    return ast.parse(Path(spec.submodule_search_locations[0], f"{name}.py").read_text(encoding="utf-8"))


def _constant(node: ast.expr) -> Any:
    """
    :param node: an expression
    :return: its value, if it is written down; None if it must be computed
    """
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
