"""Which pictures to label first: `tinkit select` (Cold PAWS, Mannix and Bondell 2023, arXiv 2305.10071).

points: pictures as points with a distance; medoids, cover: ways of choosing; manifold: the map; command: the whole road;
folder, sheet: what it leaves behind.
"""

from tinkit.host.select.command import select

__all__ = ["select"]
