"""The source of mem0's server: fetched once, exactly at one commit, with our patches applied.

A checkout is only used when a marker, written last, tells which commit and which patches it is,
and git finds nothing in it that differs from what was checked out and patched then. Anything
else (a fetch that was killed, a truncated file, a stray one) is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pikuri_memory import process
from pikuri_memory.errors import (
    CheckoutError,
    CommandFailedError,
    CommandNotFoundError,
    CommandTimeoutError,
    MissingToolError,
    PatchError,
    StackTimeoutError,
    WaitTimeoutError,
)
from pikuri_memory.files import write_private
from pikuri_memory.lease import ExclusiveLock
from pikuri_memory.waiting import Deadline

# Nothing of the user's own set-up may change files on their way, run hooks or leave processes.
# Their proxy and certificate settings stay: the fetch may need them.
_OPTIONS: Final = (
    *("-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
    *("-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "advice.detachedHead=false"),
    *("-c", "core.fileMode=true", "-c", "core.symlinks=true", "-c", "apply.whitespace=nowarn"),
    *("-c", "filter.lfs.smudge=", "-c", "filter.lfs.required=false", "-c", "core.attributesFile="),
)
_LOCAL_SECONDS: Final = 120.0
# The image takes the files' modes over, and another user runs it. The directory itself is private.
_UMASK: Final = 0o022
_FAILED_AT: Final = re.compile(r"patch failed: (?P<file>.+):(?P<line>\d+)$", re.M)
_HUNK: Final = re.compile(r"^@@ -(?P<line>\d+)")


@dataclass(frozen=True)
class Source:
    """Which source, patched how.

    Attributes:
        url: A repository: URL or local path.
        ref: The full id of a commit.
        patches: The patch files, in the order in which they are applied.
    """

    url: str
    ref: str
    patches: tuple[Path, ...]

    @classmethod
    def of(cls, url: str, ref: str, patch_dir: Path) -> Source:
        """The source with all patches of a directory.

        Raises:
            PatchError: There is no such directory.
        """
        if not patch_dir.is_dir():
            raise PatchError(
                f"there are no patches for {ref}: {patch_dir} is no directory",
                hint="use the commit that the patches are made for, or see docs/upgrading-mem0.md",
            )
        return cls(url, ref, tuple(sorted(patch_dir.glob("*.patch"))))

    def digest(self) -> str:
        """What the patches do, as a hash of their names and contents."""
        found = hashlib.sha256()
        for patch in self.patches:
            content = patch.read_bytes()
            found.update(f"{patch.name} {len(content)}\n".encode() + content)
        return found.hexdigest()


Report = Callable[[str, str], object]


def _silent(phase: str, detail: str) -> None:
    pass


class Checkout:
    """A directory that holds a source. One process at a time works on it.

    Args:
        directory: Where it lies; regenerable, and replaced without asking.
        fetch_timeout: Seconds for the download.
        report: Told of the phases ``fetch`` and ``patch``, with a detail.
        stop: Ends what is going on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fetch_timeout: float,
        report: Report = _silent,
        stop: threading.Event | None = None,
    ) -> None:
        self.directory = directory
        self._marker = directory.with_name(directory.name + ".json")
        self._lock = ExclusiveLock(directory.with_name(directory.name + ".lock"))
        self._fetch_timeout = fetch_timeout
        self._report = report
        self._stop = stop

    def locked(self, seconds: float) -> ExclusiveLock:
        """The lock that everything here is done under; also while an image is built from it.

        Raises:
            StackTimeoutError: Another process works on the checkout all the time.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = Deadline(seconds)
        while True:
            try:
                return self._lock.acquire(
                    Deadline(min(0.5, deadline.remaining())),
                    what=f"another process that works on the checkout {self.directory}",
                )
            except WaitTimeoutError as error:
                if deadline.expired or (self._stop is not None and self._stop.is_set()):
                    raise StackTimeoutError(error.message, hint=error.hint) from None

    def prepare(self, source: Source) -> bool:
        """Make the directory hold the source, patched. To be called under :meth:`locked`.

        Returns:
            Whether anything had to be done.

        Raises:
            MissingToolError: git is not installed.
            CheckoutError: The commit cannot be fetched or checked out.
            PatchError: A patch neither applies nor is applied; names its file and hunk.
            StackTimeoutError: The download took too long.
        """
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", source.ref):
            raise CheckoutError(
                f"{source.ref!r} is no full commit id", hint="give all of its 40 digits"
            )
        if self.is_intact(source):
            return False
        self._marker.unlink(missing_ok=True)
        used = self.directory.exists()
        try:
            self._make(source)
        except CheckoutError:
            if self._stopped or not used:
                raise
            # Damaged objects can be the reason, whatever git says. From scratch.
            self._remove()
            self._make(source)
        return True

    def is_intact(self, source: Source) -> bool:
        """Whether the directory holds exactly the source with exactly these patches."""
        try:
            marker = json.loads(self._marker.read_bytes())
            if (marker["ref"], marker["patches"]) != (source.ref, source.digest()):
                return False
            tree = str(marker["tree"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        try:
            if self._git("write-tree").strip() != tree:
                return False
            # What was truncated, changed, removed or added since; our patches are staged.
            lines = self._git(
                "status", "--porcelain", "--ignored", "--untracked-files=all", "--no-renames"
            ).splitlines()
            return all(line[0] in "MAD" and line[1] == " " for line in lines)
        except (CheckoutError, StackTimeoutError):
            return False

    # ------------------------------------------------------------ making it

    def _make(self, source: Source) -> None:
        if not (self.directory / ".git" / "HEAD").is_file():
            self._remove()
            self.directory.mkdir(parents=True, mode=0o700)
            self._git("init", "--quiet")
        self._tidy()
        if not self._had_objects(source):
            self._fetch(source)
        self._report("fetch", "checking out")
        self._git("reset", "--quiet", "--hard", source.ref)
        self._git("clean", "--quiet", "-ffdx")
        for number, patch in enumerate(source.patches, 1):
            self._report("patch", f"{number} of {len(source.patches)}: {patch.stem}")
            self._apply(patch)
        tree = self._git("write-tree").strip()
        marker = {"ref": source.ref, "patches": source.digest(), "tree": tree}
        write_private(self._marker, json.dumps(marker))

    def _fetch(self, source: Source) -> None:
        self._report("fetch", source.url)
        what = f"commit {source.ref} of {source.url}"
        try:
            process.run_tied(
                self._command(
                    *("fetch", "--progress", "--depth", "1", "--no-tags", "--no-auto-maintenance"),
                    *("--no-recurse-submodules", source.url, source.ref),
                ),
                timeout=self._fetch_timeout,
                env=_environment(),
                on_line=lambda line: self._report("fetch", line),
                stop=self._stop,
            )
        except CommandNotFoundError:
            raise _no_git() from None
        except CommandTimeoutError as error:
            raise StackTimeoutError(
                f"{what} was not fetched in time: {error.message}",
                hint="try again: a slow network needs longer; or give mem0_repo_url a mirror",
            ) from None
        except CommandFailedError as error:
            raise CheckoutError(
                f"{what} cannot be fetched: {error.message}",
                hint=f"see whether it can be reached: git ls-remote {source.url}",
            ) from None
        if not self._had_objects(source):
            raise CheckoutError(
                f"{what} was fetched and is not there",
                hint=f"see whether the commit exists: git ls-remote {source.url}",
            )

    def _apply(self, patch: Path) -> None:
        try:
            self._git("apply", "--index", "--whitespace=nowarn", str(patch))
            return
        except CheckoutError as error:
            output = error.message
        if self._stopped:
            raise CheckoutError("stopped while patching", hint="start again")
        try:
            self._git("apply", "--index", "--check", "--reverse", str(patch))
        except CheckoutError:
            raise PatchError(
                f"the patch {patch.name} does not apply: {_where(patch, output)}\n{output}",
                hint="the source differs from what the patch was made for: see"
                " docs/upgrading-mem0.md",
            ) from None

    def _tidy(self) -> None:
        """Remove what a killed git left: locks (nobody else works here), half a download."""
        inside = self.directory / ".git"
        for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/pack/*.lock"):
            for path in inside.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _had_objects(self, source: Source) -> bool:
        try:
            return self._git("cat-file", "-t", source.ref).strip() == "commit"
        except (CheckoutError, StackTimeoutError):
            return False

    def _remove(self) -> None:
        try:
            if self.directory.is_symlink() or self.directory.is_file():
                self.directory.unlink()
            elif self.directory.exists():
                shutil.rmtree(self.directory)
        except OSError as error:
            raise CheckoutError(
                f"the checkout {self.directory} cannot be removed: {error.strerror}",
                hint=f"remove it by hand: rm -rf {self.directory}",
            ) from None

    @property
    def _stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _git(self, *arguments: str) -> str:
        try:
            return process.run_tied(
                self._command(*arguments),
                timeout=_LOCAL_SECONDS,
                env=_environment(),
                stop=self._stop,
                umask=_UMASK,
            ).stdout
        except CommandNotFoundError:
            raise _no_git() from None
        except CommandTimeoutError as error:
            raise StackTimeoutError(error.message, hint=error.hint) from None
        except CommandFailedError as error:
            raise CheckoutError(
                f"git {arguments[0]} failed in {self.directory}: {error.message}", hint=error.hint
            ) from None

    def _command(self, *arguments: str) -> Sequence[str]:
        # Both named: a repository further up is never taken for ours.
        where = (f"--git-dir={self.directory / '.git'}", f"--work-tree={self.directory}")
        return ("git", *_OPTIONS, "-C", str(self.directory), *where, *arguments)


def _where(patch: Path, output: str) -> str:
    """The file and the hunk that git could not place."""
    found = _FAILED_AT.search(output)
    if found is None:
        return f"see {patch}"
    name, line = found["file"], int(found["line"])
    number = 0
    inside = False
    with contextlib.suppress(OSError, ValueError):
        for row in patch.read_text().splitlines():
            if row.startswith("--- "):
                inside = row[4:].strip().partition("/")[2] == name
                number = 0
            elif inside and (hunk := _HUNK.match(row)):
                number += 1
                if int(hunk["line"]) == line:
                    return f"{name}, hunk {number} ({row.split('@@')[1].strip()})"
    return f"{name}, the hunk at line {line}"


def _environment() -> Mapping[str, str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_")
        or name.startswith(("GIT_SSL_", "GIT_PROXY_", "GIT_CONFIG_", "GIT_SSH"))
    }
    return {**own, "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}


def _no_git() -> MissingToolError:
    return MissingToolError(
        "git is not installed or not on PATH", hint="install it: sudo apt install git"
    )
