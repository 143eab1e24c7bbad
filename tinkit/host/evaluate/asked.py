"""What a user asked of an evaluation: its options, checked before the work begins."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tinkit.errors import TinkitError
from tinkit.host.evaluate.others import GROUPS, group_of


@dataclass(frozen=True)
class Asked:
    """ood, domains: folders. corruptions: of how many pictures, 0 for none. See `tinkit.host.evaluate.command.evaluate`."""

    data: str | None
    labels: str | None
    ood: tuple[str, ...]
    domains: tuple[str, ...]
    masks: str | None
    corruptions: int
    dense: bool
    limit: int | None
    workers: int | None
    seed: int

    def __post_init__(self):
        """TinkitError for a number out of its range, and a folder that is not there."""
        at_least = (("--limit", self.limit, 1), ("--workers", self.workers, 0), ("--seed", self.seed, 0))
        for option, value, least in (*at_least, ("--corruption-pictures", self.corruptions, 0)):
            if value is not None and value < least:
                raise TinkitError(f"{option} is a number from {least} on.", seen=str(value))
        folders = [("--ood", group_of(entry)[1]) for entry in self.ood]
        folders += [("--domains", path) for path in self.domains]
        folders += [
            (option, path) for option, path in (("--data", self.data), ("--masks", self.masks)) if path is not None
        ]
        for option, path in folders:
            if not os.path.isdir(path):
                what = "is a file, and must be a folder" if os.path.exists(path) else "is missing"
                raise TinkitError(f"The folder of {option} {what}.", where=os.path.abspath(path))

    def needs(self) -> dict[str, bool]:
        """What a measure may need (tinkit.host.evaluate.names) -> whether it was given."""
        groups = {group_of(entry)[0] for entry in self.ood}
        return {
            "labels": self.labels != "none",
            "ood": bool(self.ood),
            "domains": bool(self.domains),
            "masks": self.masks is not None,
            "corruptions": self.corruptions > 0,
            "dense": self.dense,
            **{group: group in groups for group in GROUPS},
        }


def several(folders: Sequence | str | os.PathLike | None) -> tuple[str, ...]:
    """Folders as text, a single one too."""
    if isinstance(folders, (str, os.PathLike)):
        folders = (folders,)
    for folder in folders or ():
        if not isinstance(folder, (str, os.PathLike)):
            raise TinkitError(
                "A folder is a text.", seen=repr(folder), next_step='a list such as ["strange", "near:others"]'
            )
    return tuple(os.fspath(folder) for folder in folders or ())
