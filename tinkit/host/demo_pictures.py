"""Photographs for the demo, without a download: random crops of pictures that come inside installed packages.

scikit-image and scikit-learn bring about twenty photographs in their wheels. Each is cut into square crops of varied
scale, so that a few thousand different pictures can be distilled on any machine. The crops of one photograph overlap,
so held-out numbers of the demo are kinder than those of real folders; they show the road, not a result.
"""

import argparse
import os
import shutil
from importlib.util import find_spec

import numpy as np
from PIL import Image

from tinkit import files
from tinkit.device.pictures import crop, decode
from tinkit.errors import TinkitError, from_os_error

RECORD = ".cut.json"  # written last: a folder with it is complete
SMALLEST_SHARE, SMALLEST_SIDE = 0.2, 64  # of a crop: share of the photo's short side, and pixels

# Pages of text, drawings, silhouettes and test patterns of the same packages are left out.
PHOTOGRAPHS = {
    "skimage/data": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
        "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png",
        "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}  # fmt: skip


def photographs():
    """Paths of the photographs on this disk, in a fixed order. Raises TinkitError when there is none."""
    found = []
    for place, names in PHOTOGRAPHS.items():
        package, _, inside = place.partition("/")
        spec = find_spec(package)  # finds the package without importing it
        for root in spec.submodule_search_locations or () if spec else ():
            found += [path for path in (os.path.join(root, inside, name) for name in names) if os.path.isfile(path)]
    if not found:
        raise TinkitError(
            "No installed package brings photographs.",
            seen="neither scikit-image nor scikit-learn",
            next_step='pip install "tinkit[demo]"',
        )
    return found


def cut(folder, count=3000, size=160, seed=0):
    """Cut `count` square JPEGs of `size` pixels into `folder`, one folder a photograph; returns `folder`.

    The same arguments give the same bytes. The folder appears at once when it is complete; one that already holds just
    these crops is left alone, an older cut is replaced, anything else is refused with a TinkitError.
    """
    if count < 1 or size < 8:
        raise ValueError(f"count {count}, size {size}: wanted at least 1 picture of 8 pixels")
    folder, sources = os.path.abspath(os.fspath(folder)), photographs()
    wanted = {"count": count, "size": size, "seed": seed, "photographs": [os.path.basename(path) for path in sources]}
    if _is_free(folder) or files.read_json(os.path.join(folder, RECORD), "The record of the crops") != wanted:
        partial = f"{folder}.{os.getpid()}.partial"
        try:
            for number, path in enumerate(sources):
                own = len(range(number, count, len(sources)))  # shares that differ by one at most
                _cut_one(path, os.path.join(partial, _stem(path)), own, size, np.random.default_rng((seed, number)))
            files.write_json(os.path.join(partial, RECORD), wanted)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except OSError as error:
            raise from_os_error(error, f"writing the crops to {folder}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_free(folder):
    if not os.path.lexists(folder) or (os.path.isdir(folder) and not os.listdir(folder)):
        return True
    if not os.path.isfile(os.path.join(folder, RECORD)):
        raise TinkitError("The folder for the crops holds something else.", where=folder, next_step="choose another")
    return False


def _cut_one(path, folder, count, size, random):
    os.makedirs(folder)
    photo = decode(path)
    short = min(photo.size)
    smallest = min(short, max(SMALLEST_SIDE, SMALLEST_SHARE * short))
    for number in range(count):
        side = smallest * (short / smallest) ** random.random()  # log-uniform: small crops as often as large ones
        left, top = (random.random(2) * (photo.width - side, photo.height - side)).tolist()
        pixels = crop(photo, (left, top, left + side, top + side), size)
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        Image.fromarray(np.ascontiguousarray(pixels)).save(os.path.join(folder, f"{number:05d}.jpg"), quality=92)


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tinkit.host.demo_pictures", description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=3000, help="crops in all (default 3000)")
    parser.add_argument("--size", type=int, default=160, help="pixels of a side (default 160)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        folder = cut(given.folder, given.count, given.size, given.seed)
    except (TinkitError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{given.count} crops of {len(photographs())} photographs in {folder}")


if __name__ == "__main__":
    main()
