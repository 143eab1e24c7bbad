"""Pictures, wherever they lie: found, tried, catalogued and split."""

from tinkit.host.images.catalogue import Catalogue, Pictures, catalogue_of, names_of
from tinkit.host.images.picture import Picture
from tinkit.host.images.scan import MIN_SIDE, scan
from tinkit.host.images.sources import (
    base_of,
    class_folder,
    find_picture,
    is_row,
    is_there,
    list_pictures,
    require_images,
)
from tinkit.host.images.split import HELD_OUT_MAX, HELD_OUT_MIN, HELD_OUT_SHARE, split

__all__ = [
    "HELD_OUT_MAX",
    "HELD_OUT_MIN",
    "HELD_OUT_SHARE",
    "MIN_SIDE",
    "Catalogue",
    "Picture",
    "Pictures",
    "base_of",
    "catalogue_of",
    "class_folder",
    "find_picture",
    "is_row",
    "is_there",
    "list_pictures",
    "names_of",
    "require_images",
    "scan",
    "split",
]
