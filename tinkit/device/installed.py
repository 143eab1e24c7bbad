"""What a board has installed, read from files: dpkg's list of packages, and CUDA's own word. No process is started.

Debian policy, 5.3 (the syntax of the list): paragraphs of "Key: value", an empty line between two of them.
"""

import contextlib
import json
import re

from tinkit.device.board_files import MAX_TEXT, open_file, text

MAX_LIST = 1 << 26  # letters of dpkg's list that are read; a full JetPack has about 5 million


def packages(root="/"):
    """Installed packages, name -> version; {} where there is no dpkg. One that was removed but kept its files is not."""
    found, entry, size = {}, {}, 0
    with contextlib.suppress(OSError), open_file(root, "var/lib/dpkg/status") as handle:
        while size < MAX_LIST:
            line = handle.readline(MAX_TEXT)
            size += len(line)
            key, colon, value = line.partition(":")
            if colon and key in ("Package", "Status", "Version"):
                entry[key] = value.strip()
            if not line.strip():  # between two packages, and at the end
                if entry.get("Status", "").endswith(" installed") and "Package" in entry:
                    found[entry["Package"]] = entry.get("Version", "")
                entry = {}
            if not line:
                break
    return found


def tensorrt_version(installed):
    """`10.3.0.30`: of the newest libnvinferN, which is what is loaded, else of a package that brings it; "" for none."""
    libraries = [re.match(r"libnvinfer([0-9]{1,3})\Z", name) for name in installed]
    newest = sorted(((int(match.group(1)), match.group(0)) for match in libraries if match), reverse=True)
    candidates = [name for _, name in newest] + ["tensorrt", "libnvinfer-bin"]
    versions = [re.match(r"[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}", installed.get(name, "")) for name in candidates]
    return next((match.group(0) for match in versions if match), "")


def cuda_version(root, installed):
    """`12.6`: what /usr/local/cuda is, else the newest toolkit or run-time library that is installed; "" for none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        told = json.loads(text(root, "usr/local/cuda/version.json"))["cuda"]["version"]
        match = re.match(r"[0-9]{1,3}\.[0-9]{1,3}", told)
        if match:
            return match.group(0)
    match = re.match(r"CUDA Version ([0-9]{1,3}\.[0-9]{1,3})", text(root, "usr/local/cuda/version.txt"))  # before 11.1
    if match:
        return match.group(1)
    matches = [re.match(r"cuda-(?:toolkit|cudart)-([0-9]{1,3})-([0-9]{1,3})\Z", name) for name in installed]
    versions = sorted((int(match.group(1)), int(match.group(2))) for match in matches if match)
    return "{}.{}".format(*versions[-1]) if versions else ""
