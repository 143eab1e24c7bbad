"""What a user asked of an evaluation: its options, checked before the work begins."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tinkit.errors import TinkitError
from tinkit.host.evaluate.others import GROUPS, group_of
from tinkit.host.images import require_images


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
        folders += [("--data", self.data)] if self.data is not None else []
        for option, path in folders:
            _require(option, path)
        if self.masks is not None and not os.path.isdir(self.masks):
            what = "is a file, and must be a folder" if os.path.exists(self.masks) else "is missing"
            raise TinkitError(f"The folder of --masks {what}.", where=os.path.abspath(self.masks))

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


def _require(option, path) -> None:
    """`require_images`, with the option in the message."""
    try:
        require_images(path)
    except TinkitError as error:
        raise TinkitError(f"{option}: {error.what}", error.where, error.seen, error.next_step) from None


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
