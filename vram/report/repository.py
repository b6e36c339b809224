"""Links to commits: the web address of the repository that a page's runs were made from."""

from __future__ import annotations

import os
import re
import subprocess
from urllib.parse import urlsplit

_SCP = re.compile(r"(?:[\w.-]+@([\w.-]+)|([\w-]+(?:\.[\w-]+)+)):(?!//)([\w./~-]+)")  # git@github.com:owner/name.git


def repository() -> str:
    """The address that the CI job or git's remote `origin` names; "" where neither does."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    known = f"{server}/{name}" if server and name else os.environ.get("CI_PROJECT_URL") or _origin()
    try:
        return web_address(known)
    except ValueError:
        return ""


def web_address(address: str) -> str:
    """The http address of a repository, from that or from what git clones; without a password that it may hold.

    Raises ValueError for anything else: a link may run nothing, and a folder of this machine is no address.
    """
    address = address.strip()
    scp = _SCP.fullmatch(address)
    parts = urlsplit(f"https://{scp[1] or scp[2]}/{scp[3]}" if scp else address)
    if parts.scheme not in ("http", "https", "ssh", "git") or not parts.hostname:
        raise ValueError(f"a repository must be an http address, as in https://github.com/owner/name, got {address!r}")
    web = parts.scheme in ("http", "https")
    port = f":{parts.port}" if web and parts.port else ""
    path = parts.path.rstrip("/").removesuffix(".git")
    return f"{parts.scheme if web else 'https'}://{parts.hostname}{port}{path}"


def commit_address(repository: str, commit: str) -> str:
    """The page of a commit; "" where the repository or a commit's id is not known."""
    if not repository or not re.fullmatch("[0-9a-f]{7,64}", commit):
        return ""
    bitbucket = (urlsplit(repository).hostname or "").startswith("bitbucket.")
    return f"{repository}/{'commits' if bitbucket else 'commit'}/{commit}"


def _origin() -> str:
    try:
        command = ["git", "config", "--get", "remote.origin.url"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeError):  # no git
        return ""
    return ended.stdout.strip()
