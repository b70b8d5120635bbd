"""Guards the folders that the repository shows a second time at its root."""


def refuse_root_import(name: str) -> None:
    """
    The repository's root has links to some of the package's folders. Imported through one, every class of the folder
    would exist twice, and ``isinstance`` would fail between the two.

    :param name: ``__name__`` of the package that asks
    :raises ImportError: if it was imported by its short name
    """
    if not name.startswith("persist_sb3."):
        raise ImportError(
            f"`import {name}` is not the package's own name: import persist_sb3.{name} instead", name=name
        )
