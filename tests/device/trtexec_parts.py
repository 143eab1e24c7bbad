"""A board with a trtexec of a chosen version and behaviour, which refuses options that this version does not know."""

import json
import sys
from pathlib import Path

from tests.device.small_parts import SIZE
from tinkit.device.commands import Commands
from tinkit.device.runtime import Tensor

DATA = Path(__file__).resolve().parents[1] / "data" / "boards" / "trtexec"
INPUTS = (Tensor("image", "float32", ("batch", 3, SIZE, SIZE)),)


def trtexec_board(folder, version="10.3.0", behave="pass", times="times-10.3.json"):
    """`Commands` of a board under `folder` whose trtexec plays `times` back; see fake_trtexec.py for what it may do."""
    tools = Path(folder) / "usr/src/tensorrt/bin"
    tools.mkdir(parents=True, exist_ok=True)
    path = tools / "trtexec"
    path.write_text("#!{}\n{}".format(sys.executable, (DATA / "fake_trtexec.py").read_text()))
    path.chmod(0o755)
    config = {"version": version, "behave": behave, "times": str(DATA / times)}
    (tools / "trtexec.json").write_text(json.dumps(config))
    return Commands(str(folder))


def calls(folder):
    """The arguments of each call of that trtexec, in order."""
    text = (Path(folder) / "usr/src/tensorrt/bin/calls.json").read_text()
    return [json.loads(line) for line in text.splitlines()]
