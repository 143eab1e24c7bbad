"""The pictures of benchmarks/methods.py: which serve for what, and everything that is looked at in the end, rendered once.

CIFAR-10's train archive gives the training pictures and, apart from them, the validation pictures; its test archive the
held-out ones, as many of each class. The set out of distribution is PACS without the classes that CIFAR-10 knows too, as
many of each style and class, shrunk to CIFAR's size and saved like its pictures: otherwise sharpness alone would tell the
two apart. Everything is drawn by content hash, so the split is the same on every machine and no content is in two parts.
"""

import hashlib
import io
import os
import tarfile

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from tinkit import files

VALIDATION, HELD_OUT, OOD = 100, 200, 50  # pictures a class; OOD: a style and class
STYLES = ("photo", "art_painting", "cartoon", "sketch")
UNKNOWN = ("elephant", "giraffe", "guitar", "house", "person")  # PACS classes that CIFAR-10 does not have
SIDE, QUALITY = 32, 75  # of CIFAR-10's files
PARTS = ("train", "validation", "held-out", "ood")


def choose(found, counts, taken=()):
    """Indices into `found`, a list of (group, sha256), for each of `counts`: that many of every group, drawn by content.

    Equal contents count once, and those in `taken` not at all. ValueError when a group has too few.
    """
    seen, groups = set(taken), {group: [] for group, _ in found}
    ranked = sorted(range(len(found)), key=lambda i: (_rank(found[i][1]), i))
    for index in ranked:
        group, content = found[index]
        if content not in seen:
            seen.add(content)
            groups[group].append(index)
    short = [group for group, members in groups.items() if len(members) < sum(counts)]
    if short:
        raise ValueError(f"fewer than {sum(counts)} pictures: {short}")
    starts = [sum(counts[:k]) for k in range(len(counts))]
    return [
        [index for group in sorted(groups) for index in groups[group][start : start + count]]
        for start, count in zip(starts, counts)
    ]


def _rank(content):
    return hashlib.sha256(f"methods/{content}".encode()).hexdigest()


def lay_out(data, root, per_class):
    """root/{train,validation,held-out}/CLASS/NAME.jpg and root/ood/STYLE/CLASS/NAME.jpg; a finished layout is kept."""
    done = os.path.join(root, "complete")
    if os.path.exists(done):
        return
    train = _read(os.path.join(data, "cifar10-train.tar.gz"))
    test = _read(os.path.join(data, "cifar10-test.tar.gz"))
    training, validation = choose(_hashes(train), (per_class, VALIDATION))
    used = {content for _, content in _hashes(train)}
    (held_out,) = choose(_hashes(test), (HELD_OUT,), used)
    for part, archive, chosen in (
        ("train", train, training),
        ("validation", train, validation),
        ("held-out", test, held_out),
    ):
        for index in chosen:
            _write(os.path.join(root, part), *archive[index])
    strange = [
        (f"{style}/{name}", content)
        for style in STYLES
        for name, content in _read(os.path.join(data, f"pacs-{style}.tar"))
        if name.split("/")[0] in UNKNOWN
    ]
    for index in choose(_hashes(strange), (OOD,))[0]:
        name, content = strange[index]
        _write(os.path.join(root, "ood"), name, shrink(content))
    files.write_text(done, "")


def _read(path):
    """[(name, bytes)] of the pictures of a tar archive."""
    with tarfile.open(path) as archive:
        members = (member for member in archive if member.isfile())
        return [(os.path.normpath("/" + member.name)[1:], archive.extractfile(member).read()) for member in members]


def _hashes(archive):
    return [(os.path.dirname(name), hashlib.sha256(content).hexdigest()) for name, content in archive]


def _write(folder, name, content):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(content)


def shrink(content):
    """A picture as CIFAR-10 would have it: the centred square at 32 px, JPEG of the same quality."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return _jpeg(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box, reducing_gap=None), QUALITY)


def _jpeg(image, quality):
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()


def noise(image, content):
    """Gaussian, sd 0.08 of the range, drawn from the picture's hash."""
    pixels = np.asarray(image, np.float64)
    drawn = np.random.default_rng(int(content[:16], 16)).normal(0, 0.08 * 255, pixels.shape)
    return Image.fromarray(np.clip(pixels + drawn, 0, 255).round().astype(np.uint8))


# Done to the picture as it is (32 px), before any network's view of it; (image, its hash) -> image.
CORRUPTIONS = {
    "Gaussian noise (sd 0.08)": noise,
    "Gaussian blur (1 px)": lambda image, _: image.filter(ImageFilter.GaussianBlur(1)),
    "contrast (0.4)": lambda image, _: ImageEnhance.Contrast(image).enhance(0.4),
    "JPEG (quality 15)": lambda image, _: Image.open(io.BytesIO(_jpeg(image, 15))).convert("RGB"),
    "brightness (+0.25)": lambda image, _: image.point(lambda value: min(255, value + 64)),
}


def render_all(root, cache, teacher, student):
    """cache/pixels.npz: uint8 (N,3,S,S) of each part at the student's evaluation view, with labels; and the held-out ones
    corrupted. cache/teacher.npz: the teacher's global features of the same pictures at its own size, (N,D) float32.

    `teacher` and `student` are functions that load them: both files are kept once they are there.
    """
    paths = [os.path.join(cache, name) for name in ("pixels.npz", "teacher.npz")]
    if all(map(os.path.exists, paths)):
        return
    teacher, student = teacher(), student().spec.preprocessing
    pixels, features = {}, {}
    for part in PARTS:
        pictures = _pictures(os.path.join(root, part))
        variants = {part: lambda image, _: image}
        if part == "held-out":
            variants.update(CORRUPTIONS)
        else:
            classes = sorted({os.path.dirname(name) for _, _, name in pictures})
        for variant, change in variants.items():
            images = [change(image, content) for image, content, _ in pictures]
            pixels[variant] = _views(images, student, student.crop_pct)
            features[variant] = _teacher_features(teacher, images, student.crop_pct)
        if part != "ood":
            pixels[f"labels {part}"] = np.array([classes.index(os.path.dirname(name)) for _, _, name in pictures])
    files.write_npz(paths[0], pixels)
    files.write_npz(paths[1], features)


def _pictures(folder):
    """[(image, sha256, name)] below a folder, sorted by name."""
    from tinkit.device.pictures import decode
    from tinkit.host.images import scan

    return [(decode(picture.path), picture.content, picture.name) for picture in scan(folder, strict=True).usable]


def _views(images, preprocessing, crop_pct):
    from tinkit.host.views import render_evaluation

    views = (render_evaluation(image, crop_pct, preprocessing.size, preprocessing.interpolation) for image in images)
    return np.stack([view.numpy() for view in views])


def _teacher_features(teacher, images, crop_pct, batch=64):
    import torch

    parts = []
    for start in range(0, len(images), batch):
        pixels = _views(images[start : start + batch], teacher.preprocessing, crop_pct)
        parts.append(teacher.features(torch.from_numpy(pixels)).global_BD.cpu().numpy())
    return np.concatenate(parts)
