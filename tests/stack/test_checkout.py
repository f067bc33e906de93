"""The source: fetched once, exactly, patched loudly, and made anew when anything is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pikuri_memory import process
from pikuri_memory.errors import CheckoutError, MissingToolError, PatchError, StackTimeoutError
from pikuri_memory.stack.checkout import Checkout, Source
from tests.conftest import require


def git(directory: Path, *words: str) -> str:
    options = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    return process.run(["git", *options, *words], cwd=directory, timeout=30).stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A repository with two commits; the first is the one that is wanted."""
    require("git", "git")
    path = tmp_path / "upstream"
    path.mkdir()
    git(path, "init", "--quiet")
    (path / "server").mkdir()
    (path / "server" / "main.py").write_text("".join(f"line {n}\n" for n in range(1, 41)))
    (path / "server" / "other.py").write_text("other\n")
    (path / ".gitignore").write_text("*.pyc\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "one")
    git(path, "tag", "wanted")
    (path / "server" / "main.py").write_text("rewritten\n")
    git(path, "commit", "--quiet", "-a", "-m", "two")
    return path


PATCH = """\
--- a/server/main.py
+++ b/server/main.py
@@ -4,5 +4,5 @@
 line 4
 line 5
-line 6
+line six
 line 7
 line 8
@@ -30,5 +30,5 @@
 line 30
 line 31
-line 32
+line thirty-two
 line 33
 line 34
"""


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    path = tmp_path / "patches"
    path.mkdir()
    (path / "01-six.patch").write_text(PATCH)
    (path / "README").write_text("no patch")
    return path


@pytest.fixture
def source(upstream: Path, patches: Path) -> Source:
    return Source.of(str(upstream), git(upstream, "rev-parse", "wanted"), patches)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "cache" / "temp" / "git", fetch_timeout=30)


def prepare(checkout: Checkout, source: Source) -> bool:
    with checkout.locked(5):
        return checkout.prepare(source)


def main_text(checkout: Checkout) -> str:
    return (checkout.directory / "server" / "main.py").read_text()


def test_row_6_exactly_the_commit_is_fetched_and_patched(
    checkout: Checkout, source: Source
) -> None:
    phases: list[str] = []
    told = Checkout(
        checkout.directory, fetch_timeout=30, report=lambda phase, detail: phases.append(phase)
    )
    assert prepare(told, source)
    assert git(checkout.directory, "rev-parse", "HEAD") == source.ref
    assert git(checkout.directory, "rev-list", "--count", "HEAD") == "1"
    assert "line six\n" in main_text(checkout)
    assert "line thirty-two\n" in main_text(checkout)
    assert list(dict.fromkeys(phases)) == ["fetch", "patch"]


def test_it_is_fetched_once_and_reused(checkout: Checkout, source: Source, upstream: Path) -> None:
    assert prepare(checkout, source)
    upstream.rename(upstream.with_name("gone"))
    assert not prepare(checkout, source)
    assert checkout.is_intact(source)


@pytest.mark.parametrize(
    "damage", ["truncated", "changed", "removed", "added", "ignored", "reverted", "index", "marker"]
)
def test_a_damaged_checkout_is_made_anew_without_the_network(
    checkout: Checkout, source: Source, upstream: Path, damage: str
) -> None:
    prepare(checkout, source)
    upstream.rename(upstream.with_name("gone"))
    main = checkout.directory / "server" / "main.py"
    before = main.read_text()
    if damage == "truncated":
        os.truncate(main, 10)
    elif damage == "changed":
        main.write_text(before.replace("line six", "line sex"))
    elif damage == "removed":
        (checkout.directory / "server" / "other.py").unlink()
    elif damage == "added":
        (checkout.directory / "server" / "stray.py").write_text("import os\n")
    elif damage == "ignored":
        (checkout.directory / "server" / "stray.pyc").write_text("x")
    elif damage == "reverted":
        git(checkout.directory, "reset", "--quiet", "--hard")
    elif damage == "index":
        (checkout.directory / ".git" / "index").write_bytes(b"nonsense")
    else:
        checkout.directory.with_name("git.json").write_text('{"ref": ')
    assert not checkout.is_intact(source)
    if damage == "index":
        (checkout.directory / ".git" / "index").unlink()
    assert prepare(checkout, source)
    assert main_text(checkout) == before
    assert not (checkout.directory / "server" / "stray.py").exists()
    assert (checkout.directory / "server" / "other.py").read_text() == "other\n"


@pytest.mark.parametrize("part", ["objects", "head", "index", "everything", "file", "link"])
def test_a_repository_that_is_no_use_is_fetched_again(
    checkout: Checkout, source: Source, part: str, tmp_path: Path
) -> None:
    prepare(checkout, source)
    inside = checkout.directory / ".git"
    if part == "objects":
        for pack in inside.glob("objects/pack/*.pack"):
            pack.chmod(0o600)
            os.truncate(pack, 20)
        for loose in inside.glob("objects/??/*"):
            loose.chmod(0o600)
            os.truncate(loose, 5)
    elif part == "head":
        (inside / "HEAD").unlink()
    elif part == "index":
        (inside / "index").write_bytes(b"nonsense")
    else:
        process.run(["rm", "-rf", str(checkout.directory)], timeout=10)
        if part == "file":
            checkout.directory.write_text("x")
        elif part == "link":
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "mine").write_text("mine")
            checkout.directory.symlink_to(tmp_path / "elsewhere")
    assert prepare(checkout, source)
    assert "line six" in main_text(checkout)
    if part == "link":
        assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"


def test_another_commit_or_another_patch_is_another_checkout(
    checkout: Checkout, source: Source, patches: Path, upstream: Path
) -> None:
    prepare(checkout, source)
    before = source.digest()
    (patches / "01-six.patch").write_text(PATCH.replace("line six", "line SIX"))
    changed = Source.of(source.url, source.ref, patches)
    assert changed.digest() != before
    assert prepare(checkout, changed)
    assert "line SIX" in main_text(checkout)
    newer = Source(source.url, git(upstream, "rev-parse", "HEAD"), ())
    assert prepare(checkout, newer)
    assert main_text(checkout) == "rewritten\n"


def test_a_patch_that_does_not_apply_names_its_file_and_hunk(
    checkout: Checkout, source: Source, patches: Path
) -> None:
    (patches / "02-bad.patch").write_text(
        PATCH.replace("line six", "six").replace("line 6", "line six").replace("line 31", "line 0")
    )
    with pytest.raises(PatchError) as caught:
        prepare(checkout, Source.of(source.url, source.ref, patches))
    assert "02-bad.patch" in caught.value.message
    assert "server/main.py, hunk 2 (-30,5 +30,5)" in caught.value.message
    assert "upgrading-mem0" in caught.value.hint
    (patches / "02-bad.patch").unlink()
    assert prepare(checkout, source)


def test_a_patch_that_is_applied_upstream_already_is_passed_over(
    checkout: Checkout, source: Source, patches: Path
) -> None:
    (patches / "02-again.patch").write_text(PATCH)
    assert prepare(checkout, Source.of(source.url, source.ref, patches))
    assert main_text(checkout).count("line six") == 1


def test_what_cannot_be_fetched_is_told_with_gits_own_words(
    checkout: Checkout, source: Source, tmp_path: Path
) -> None:
    with pytest.raises(CheckoutError, match=r"not our ref|did not|no such|not found"):
        prepare(checkout, Source(source.url, "0" * 40, ()))
    with pytest.raises(CheckoutError, match=r"does not appear to be a git repository|not exist"):
        prepare(checkout, Source(str(tmp_path / "nowhere"), source.ref, ()))
    with pytest.raises(CheckoutError, match="no full commit id"):
        prepare(checkout, Source(source.url, "main", ()))
    with pytest.raises(PatchError, match="is no directory"):
        Source.of(source.url, source.ref, tmp_path / "nothing")
    assert prepare(checkout, source)


def test_missing_git_is_an_error_of_its_own(
    checkout: Checkout, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MissingToolError, match="git is not installed"):
        prepare(checkout, source)


@pytest.fixture
def slow_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git whose fetch stands still once it has begun; tells that by a file."""
    found = process.run(["sh", "-c", "command -v git"], timeout=5).stdout.strip()
    directory = tmp_path / "slow"
    directory.mkdir()
    script = directory / "git"
    script.write_text(
        f"""#!/bin/sh
case " $* " in
  *" $SLOW "*) touch {directory}/begun; sleep 600;;
esac
exec {found} "$@"
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


@pytest.fixture
def victim(tmp_path: Path, source: Source, checkout: Checkout) -> list[str]:
    script = f"""
        from pathlib import Path
        from pikuri_memory.stack.checkout import Checkout, Source
        source = Source.of({source.url!r}, {source.ref!r}, Path({str(source.patches[0].parent)!r}))
        checkout = Checkout(Path({str(checkout.directory)!r}), fetch_timeout=60)
        with checkout.locked(5):
            checkout.prepare(source)
    """
    return [sys.executable, "-c", textwrap.dedent(script)]


@pytest.mark.parametrize("step", ["init", "fetch", "reset", "apply", "write-tree"])
def test_killed_in_the_middle_the_next_one_goes_on_and_nothing_is_left(
    checkout: Checkout, source: Source, victim: list[str], slow_git: Path, step: str
) -> None:
    with subprocess.Popen(victim, env={**os.environ, "SLOW": step}) as running:
        while not (slow_git / "begun").exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    while process.find_by_argument(str(checkout.directory)) and time.monotonic() < end:
        time.sleep(0.05)
    assert process.find_by_argument(str(checkout.directory)) == []
    assert not checkout.is_intact(source)
    assert prepare(checkout, source)
    assert "line six" in main_text(checkout)


def test_locks_and_half_a_download_of_a_killed_git_are_no_obstacle(
    checkout: Checkout, source: Source
) -> None:
    prepare(checkout, source)
    inside = checkout.directory / ".git"
    for name in ("index.lock", "HEAD.lock", "shallow.lock", "config.lock"):
        (inside / name).touch()
    (inside / "objects" / "pack" / "tmp_pack_x").write_bytes(b"half")
    (checkout.directory / "server" / "main.py").unlink()
    assert prepare(checkout, source)
    assert not (inside / "objects" / "pack" / "tmp_pack_x").exists()


def test_one_process_at_a_time_works_on_it(checkout: Checkout, source: Source) -> None:
    other = Checkout(checkout.directory, fetch_timeout=30)
    with checkout.locked(5), pytest.raises(StackTimeoutError, match="checkout"):
        other.locked(0.2)


def test_the_users_own_git_settings_change_nothing(
    checkout: Checkout, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    hook = hooks / "post-checkout"
    hook.write_text("#!/bin/sh\necho hooked > $HOME/hooked\nexit 1\n")
    hook.chmod(0o755)
    (Path.home() / ".gitconfig").write_text(
        f"[core]\n autocrlf = true\n hooksPath = {hooks}\n[apply]\n whitespace = error-all\n"
        "[status]\n showUntrackedFiles = no\n relativePaths = false\n[color]\n ui = always\n"
    )
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "wrong"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert prepare(checkout, source)
    assert "\r" not in main_text(checkout)
    assert not (Path.home() / "hooked").exists()
    assert checkout.is_intact(source)
