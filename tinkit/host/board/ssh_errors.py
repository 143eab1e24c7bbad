"""What ssh says when it fails, as what happened and what to do next.

ssh tells its failures in English words on its standard error and ends with 255; everything else that it ends with is the
far command's own code. The words are those of OpenSSH's client (sshconnect.c, ssh.c, readconf.c). A word that is not
known here is shown as it is, never guessed about.
"""

import re
import shlex

from tinkit.errors import TinkitError
from tinkit.host.board.foreign import clean

# (what ssh says, what happened, what to do next); the first that fits. {ssh} is the command by hand.
KNOWN = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed",
        "The host key of the board is not the one that is known: another machine may answer in its place.",
        "find out why before anything else; if the board was set up anew, remove the old key with ssh-keygen -R, then "
        "run once by hand: {ssh}",
    ),
    (
        r"No \S+ host key is known|authenticity of host .* can't be established",
        "The host key of the board is not known here, and tinkit accepts none by itself.",
        "run once by hand, compare the fingerprint and accept it there: {ssh}",
    ),
    (
        r"Host key verification failed",
        "The host key of the board could not be verified.",
        "look at what ssh says by hand: {ssh}",
    ),
    (
        r"Too many authentication failures|Permission denied|No supported authentication methods",
        "The board does not let this user in.",
        "try it by hand: {ssh}   (a key: ssh-copy-id; a key with a passphrase: ssh-add)",
    ),
    (
        r"Could not resolve hostname",
        "The board's name is not known to this network.",
        "check the name, or use its address",
    ),
    (
        r"Connection refused",
        "The board refuses the connection: no ssh server answers there.",
        "check the port (Port in ~/.ssh/config), and that sshd runs on the board",
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        "The board does not answer.",
        "check that it is switched on and in this network",
    ),
    (
        r"Bad configuration option|terminating, \d+ bad configuration|Can't open user config file|Bad owner or permissions",
        "ssh does not take its configuration.",
        "correct the file that it names",
    ),
    (
        r"Unable to negotiate|no matching (host key|cipher|MAC|key exchange)",
        "ssh and the board have no algorithm in common.",
        "try it by hand: {ssh}",
    ),
    (
        r"(kex_exchange_identification|ssh_exchange_identification|Connection (closed|reset) by)",
        "The board closed the connection before anybody was let in.",
        "try it by hand: {ssh}   (too many connections at once, or its sshd does not start sessions)",
    ),
)


def by_hand(host, ssh_config=None):
    """The command that a person types to see the same."""
    return " ".join(["ssh", *(["-F", shlex.quote(ssh_config)] if ssh_config else []), "--", shlex.quote(host)])


def connecting_failed(host, code, words, python, ssh_config=None):
    """The TinkitError for a connection that ended before the agent was there.

    code: what the process ended with (negative: the signal); words: lines of its standard error, cleaned.
    """
    said, ssh = "\n".join(words), by_hand(host, ssh_config)
    seen = "; ".join(words[-3:]) or f"it ended with code {code} and said nothing"
    if code == 255 or code < 0:
        for pattern, what, then in KNOWN:
            if re.search(pattern, said):
                return TinkitError(what, where=host, seen=_telling(words, pattern), next_step=then.format(ssh=ssh))
        return TinkitError(
            "The connection to the board failed.", where=host, seen=seen, next_step=f"try by hand: {ssh}"
        )
    if code in (126, 127) or re.search(r"not found|No such file", said):
        return TinkitError(
            "The board has no Python of this name.",
            where=host,
            seen=f"{clean(python)}: {seen}",
            next_step="name one with --python; ~ and variables are not expanded there, a relative path begins at home",
        )
    return TinkitError("The agent did not start on the board.", where=host, seen=seen, next_step=f"try by hand: {ssh}")


def _telling(words, pattern):
    """The line that fits, and the last one where it is another."""
    fitting = [line for line in words if re.search(pattern, line)]
    return "; ".join(dict.fromkeys([*fitting[:1], words[-1]]))


def connection_lost(host, code, words, doing):
    """The TinkitError for a connection that ended while the agent was at work."""
    if code is None:
        seen = "it does not end either"
    elif code in (0, 255) and not words:
        seen = f"the far side ended (code {code}) without a word: killed, out of memory, or switched off"
    elif code < 0:
        seen = f"the process here was ended by signal {-code}"
    else:
        seen = "; ".join(words[-3:]) or f"code {code}"
    return TinkitError(
        "The connection to the board was lost.",
        where=f"{host}, while {doing}",
        seen=seen,
        next_step="run the same command again: what the board has is not sent twice, and it sets back what it changed",
    )
