"""The one line that starts the agent on a board where nothing is installed.

The far Python gets a short script on its command line. It makes the user's own cache folder, answers `tinkit-want` and
takes exactly the agent's bytes from its standard input where the agent is not kept there yet, checks their hash, answers
`tinkit-have` and becomes the agent. It runs on Python 3.6 (and 2.7) too, to say kindly what is too old: that Python, or
the board itself with JetPack 4 (L4T R32). In it are no single quotes, exclamation marks or line breaks: csh and fish read
them otherwise than sh.
"""

import json
import shlex

WANT, HAVE, SORRY = "tinkit-want", "tinkit-have", "tinkit-sorry"
OLDEST = (3, 8)

# Arguments: the agent's sha256, its size, then what the agent is started with. Marks begin on a line of their own: a
# login script may have printed half a line before. A partial file is gone however the transfer ends, short of SIGKILL.
# An agent that ends may remove the folder meanwhile (tinkit/device/agent_cache.py; it spares what was touched since it
# began): then the folder is made again.
SCRIPT = """
import sys
sys.path = [place for place in sys.path if place]
import hashlib, json, os, stat
sha, size, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
def tell(*words):
    os.write(1, (chr(10) + " ".join(words) + chr(10)).encode("ascii"))
def sorry(what, where, seen, then):
    tell("SORRY", json.dumps([what, where, str(seen), then]))
    sys.exit(3)
def is_jetpack_4():
    try:
        with open("/etc/nv_tegra_release", "rb") as handle:
            return handle.read(4096).split()[1:2] == [b"R32"]
    except EnvironmentError:
        return False
if sys.version_info < OLDEST:
    if is_jetpack_4():
        sorry("JetPack 4 (the original Nano, TX2) is not supported.", sys.executable, "Python " + sys.version.split()[0],
              "tinkit needs JetPack 5 or newer, which these two cannot have; a Xavier can: flash it")
    sorry("The Python of the board is too old.", sys.executable, sys.version.split()[0],
          "tinkit needs Python WANTED or newer there: name another one with --python")
def own(folder, strictly):
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    seen, user = os.lstat(folder), os.geteuid()
    ours = stat.S_ISDIR(seen.st_mode) and seen.st_uid in (user, user if strictly else 0)
    if not ours or seen.st_mode & (0o077 if strictly else 0o002):
        sorry("Others have rights in the cache folder of the board.", folder, "mode " + oct(seen.st_mode),
              "remove it there, or take the rights of others away: chmod go-rwx")
def place():
    folder = os.environ.get("XDG_CACHE_HOME", "")
    folder = folder if os.path.isabs(folder) else os.path.expanduser(os.path.join("~", ".cache"))
    os.makedirs(folder, exist_ok=True)
    for name in ("tinkit", "agent", "agents"):
        folder = os.path.join(folder, name)
        own(folder, name in ("agent", "agents"))
    return os.path.join(folder, sha + ".pyz")
def is_kept(path):
    if not os.path.isfile(path) or os.path.islink(path):
        return False
    os.utime(path)
    with open(path, "rb") as handle:
        return hashlib.sha256(handle.read()).hexdigest() == sha
def take(path):
    partial = path + "." + str(os.getpid()) + ".partial"
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    tell("WANT", sha)
    try:
        left, digest = size, hashlib.sha256()
        while left:
            block = os.read(0, min(left, 65536))
            if not block:
                sys.exit(4)
            left -= len(block)
            digest.update(block)
            while block:
                block = block[os.write(handle, block):]
        os.fsync(handle)
        os.close(handle)
        if digest.hexdigest() == sha:
            os.rename(partial, path)
        else:
            sorry("The agent arrived damaged.", path, "sha256 " + digest.hexdigest(), "try again")
    finally:
        if os.path.lexists(partial):
            os.unlink(partial)
os.umask(0o077)
path = os.path.expanduser("~")
for attempt in range(9):
    try:
        path = place()
        if not is_kept(path):
            take(path)
        tell("HAVE", sha)
        os.execv(sys.executable, [sys.executable, path] + rest)
    except FileNotFoundError as error:
        seen = error
    except OSError as error:
        seen = error
        break
sorry("The agent could not be kept on the board.", path, seen.strerror,
      "free some space there, or set XDG_CACHE_HOME to a folder on another disk")
"""


def one_line():
    """SCRIPT as one line of Python that every shell passes on as it is when it stands between single quotes."""
    text = SCRIPT.strip()
    for word, value in (("WANT", WANT), ("HAVE", HAVE), ("SORRY", SORRY)):
        text = text.replace(f'"{word}"', f'"{value}"')
    text = text.replace("OLDEST", repr(OLDEST)).replace("WANTED", ".".join(map(str, OLDEST)))
    line = f"exec({json.dumps(text)})"
    if any(mark in line for mark in "'!\n"):
        raise ValueError("a shell would read this script otherwise")
    return line


def start_arguments(python, sha256, size, serve):
    """The arguments that start the agent; `serve` is what it gets itself. Nothing of a secret may be among them."""
    return [python, "-c", one_line(), sha256, str(size), *serve]


def start_command(arguments):
    """The same as one command for the login shell of the far side."""
    return "exec " + " ".join(shlex.quote(argument) for argument in arguments)
