"""Where pictures come from, chosen by what `images` is: today a folder of picture files."""

import os
from dataclasses import dataclass

from tinkit.errors import TinkitError
from tinkit.host.images.catalogue import Catalogue, catalogue_of
from tinkit.host.images.folder import look_into


@dataclass(frozen=True)
class Listing:
    """Candidates, nothing of them opened. pictures: a catalogue whose addresses are zero.

    source: `images`, absolute. others: counts files that are no pictures by their name. lost: (name, reason) of what could
    not be listed.
    """

    source: str
    pictures: Catalogue
    others: int
    lost: tuple[tuple[str, str], ...] = ()


def list_pictures(images, stop=None) -> Listing:
    root = require_folder(images)
    found = look_into(root, stop)
    others = found.others + len(found.tars) + len(found.tables) + len(found.compressed)
    return Listing(root, catalogue_of(root, sorted(found.pictures + found.unnamed)), others, tuple(found.lost))


def require_images(images) -> str:
    return require_folder(images)


def base_of(source) -> str:
    return source


def require_folder(folder) -> str:
    """The absolute path of an existing folder; TinkitError for anything else."""
    root = os.path.abspath(os.fspath(folder))
    if not os.path.isdir(root):
        what = "The pictures must be a folder, this is a file." if os.path.exists(root) else "The folder is missing."
        raise TinkitError(what, where=root, next_step="name a folder that holds pictures, in any depth")
    return root
