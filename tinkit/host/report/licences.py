"""Licences of what a model is made of: read where they are declared, and "unknown: ask" where nothing declares them.

A licence is an SPDX expression when it can be read as one, else the words that were found; it always says where it was
read. Nothing is concluded here: tinkit does not read licence texts, and does not answer whether a teacher's licence reaches
a student that was distilled from it.
"""

import re
from dataclasses import dataclass
from importlib import metadata

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

UNKNOWN = "unknown: ask"
NOTHING = ("", "unknown", "none", "other", "n/a")  # what a field says that says nothing
LONGEST_NAME = 100  # characters; a longer field is the text of a licence
TROVE = {  # classifiers that name one licence; "BSD License" and "Apache Software License" leave the version open
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
LOCAL_FILE = "the weights are a local file, and a weights file does not say what its licence is"
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """name: an SPDX expression (`spdx`), or the words that were found, or "" when unknown. source: where it was read."""

    name: str
    source: str
    spdx: bool = False

    @property
    def told(self) -> str:
        return self.name or UNKNOWN

    @property
    def non_commercial(self) -> bool:
        """By its name alone; False says nothing."""
        return bool(NON_COMMERCIAL.search(self.name))

    def to_json(self):
        return {"name": self.told, "known": bool(self.name), "spdx": self.spdx, "source": self.source}


def licence_of(text, source) -> Licence:
    """A licence from the text of a field; "" and words such as "UNKNOWN" are none. Only the first line is taken."""
    words = " ".join((str(text or "").strip().splitlines() or [""])[0].split())
    if words.lower() in NOTHING:
        return Licence("", source)
    try:
        return Licence(str(canonicalize_license_expression(words)), source, spdx=True)
    except InvalidLicenseExpression:
        return Licence(words[:LONGEST_NAME], source)


def package_licence(name, version=None) -> Licence:
    """What the installed package declares: License-Expression, License, then its classifiers, the first that is SPDX.

    version: the one that is meant; the licence of another version is given with a word about it, of none when the
    package is not installed here.
    """
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Licence("", f"{name} is not installed where this was written")
    installed = told["Version"]
    of_it = f"the metadata of {name} {installed}"
    if version is not None and _plain(installed) != _plain(version):
        of_it += f", which is installed here; {version} was used"
    trove = [
        entry.rpartition(" :: ")[2] for entry in told.get_all("Classifier") or [] if entry.startswith("License ::")
    ]
    texts = [told["License-Expression"], told["License"], *(TROVE.get(entry, entry) for entry in trove)]
    found = [licence for licence in (licence_of(text, of_it) for text in texts) if licence.name]
    return next((licence for licence in found if licence.spdx), next(iter(found), Licence("", of_it)))


def teacher_licence(identity, weights=None, settings_known=True) -> Licence:
    """The licence of a teacher's weights. identity: `Teacher.identity`, as run.json and a manifest keep it.

    weights: the local file that was given (--teacher-weights), None for the name's own; where that is not known
    (`settings_known` false, a manifest without its run), the licence of the name's own weights is not claimed.
    """
    from tinkit.host.teacher import PACKAGED  # torch and timm

    name = str(identity.get("name") or "")
    if not name:
        return Licence("", "the teacher is not recorded")
    if name in PACKAGED:
        return Licence("Apache-2.0", f"the LICENSE file of the package {PACKAGED[name][0]}", spdx=True)
    if weights is not None or identity.get("architecture") == "onnx":
        return Licence("", LOCAL_FILE)
    own = _of_timm(name)
    if not settings_known and own.name:
        return Licence(
            "", f"timm says {own.name} for its own weights of {name}; whether these were used is not known here"
        )
    return own


def _of_timm(name) -> Licence:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return Licence("", f"timm has no pretrained weights of {name}")
    return licence_of(
        config.license, f"timm's record of {name}.{config.tag}" if config.tag else f"timm's record of {name}"
    )


def _plain(version):
    """Without the local part: 2.8.0+cpu is 2.8.0."""
    return str(version).partition("+")[0]
