"""The images that the stack's files name, made from Debian's packages.

No image registry is reachable from where the tests run, and none is needed: each image is made
once, kept by the engine, and recognised by a label that holds the hash of its recipe.

    python -m tests.stack.images      makes what is missing, on the engine that DOCKER_HOST names
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

STACK: Final = Path(__file__).resolve().parents[2] / "src" / "pikuri_memory" / "stack"
STAND_IN: Final = Path(__file__).parent / "qdrant_stand_in"
LABEL: Final = "pikuri-test.recipe"
SOCAT_IMAGE: Final = "alpine/socat:1.8.0.3"
QDRANT_IMAGE: Final = "qdrant/qdrant:v1.12.4"

_PACKAGES = "python3,python3-venv,ca-certificates"
_UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
_APPLETS = (
    "cat echo env grep head id ip kill ls nc netstat ping ps sh sleep stat test timeout touch"
    " true wget"
).split()
_PATH = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_EDGE = "qdrant-edge-py"

Make = Callable[[str, str], None]


def docker_command() -> str:
    """The client that has plugins; one that has none may come before it on PATH."""
    packaged = Path("/usr/bin/docker")
    return str(packaged) if packaged.exists() else "docker"


def python_image() -> str:
    """The tag that our Dockerfile builds on."""
    for line in (STACK / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("ARG PYTHON_IMAGE="):
            return line.partition("=")[2]
    raise AssertionError("the Dockerfile names no base image")


def ensure() -> None:
    """Make the images that are missing or whose recipe has changed."""
    python = _ensure(python_image(), _recipe("1", _PACKAGES), _import_python)
    _ensure(SOCAT_IMAGE, _recipe("1", *_socat_files(), *_APPLETS), _import_socat)
    version = importlib.metadata.version(_EDGE)
    sources = sorted(path for path in STAND_IN.iterdir() if path.is_file())
    _ensure(QDRANT_IMAGE, _recipe(python, version, *sources), _build_qdrant)


def copy(socket: Path) -> None:
    """Give the images of this engine to another one, a rootless one for example."""
    tags = (python_image(), SOCAT_IMAGE, QDRANT_IMAGE)
    with subprocess.Popen([docker_command(), "save", *tags], stdout=subprocess.PIPE) as saved:
        subprocess.run(
            [docker_command(), "--host", f"unix://{socket}", "load", "--quiet"],
            stdin=saved.stdout,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    assert saved.returncode == 0


def _ensure(tag: str, recipe: str, make: Make) -> str:
    shown = subprocess.run(
        [
            *(docker_command(), "image", "inspect", tag),
            *("--format", f'{{{{index .Config.Labels "{LABEL}"}}}}'),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode != 0 or shown.stdout.strip() != recipe:
        sys.stderr.write(f"making the image {tag}\n")
        make(tag, recipe)
    return recipe


def _recipe(*parts: str | Path) -> str:
    """A hash of texts and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:24]


def _import(tag: str, recipe: str, archive: bytes | None, directory: Path | None = None) -> None:
    changes = ("--change", _PATH, "--change", f"LABEL {LABEL}={recipe}")
    command = [docker_command(), "import", *changes, "-", tag]
    if directory is None:
        subprocess.run(command, input=archive, check=True, stdout=subprocess.DEVNULL)
        return
    packer = ["tar", "--numeric-owner", "-C", str(directory), "-c", "."]
    with subprocess.Popen(packer, stdout=subprocess.PIPE) as tar:
        subprocess.run(command, stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)
    assert tar.returncode == 0


def _import_python(tag: str, recipe: str) -> None:
    """Debian 12 with its Python, which is the one that the real image builds from source."""
    with tempfile.TemporaryDirectory(prefix="pikuri-image-") as name:
        root = Path(name) / "root"
        subprocess.run(
            [
                *("debootstrap", "--variant=minbase", f"--include={_PACKAGES}"),
                *("bookworm", str(root), _mirror()),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for folder in _UNNEEDED:
            shutil.rmtree(root / folder, ignore_errors=True)
        for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"):
            for path in root.glob(pattern):
                path.unlink()
        # Not the build machine's: nothing in a container may find out where it was made.
        (root / "etc/resolv.conf").write_text("", "utf-8")
        (root / "etc/hostname").write_text("localhost\n", "utf-8")
        _import(tag, recipe, None, root)


def _mirror() -> str:
    """The Debian mirror that this machine uses."""
    shown = subprocess.run(
        [
            *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
            *("Created-By: Packages", "Origin: Debian", "Label: Debian"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    mirrors = shown.stdout.split()
    assert mirrors, "no Debian mirror among the apt sources: apt-get update"
    return mirrors[0]


@functools.cache
def _socat_files() -> tuple[Path, ...]:
    """socat and busybox with the libraries they load, all of this machine's packages."""
    socat, busybox = shutil.which("socat"), shutil.which("busybox")
    assert socat, "socat is missing (apt install socat)"
    assert busybox, "busybox is missing (apt install busybox)"
    shown = subprocess.run(["ldd", socat, busybox], check=True, capture_output=True, text=True)
    words = (word for line in shown.stdout.splitlines() for word in line.split())
    libraries = sorted({Path(w) for w in words if w.startswith("/") and not w.endswith(":")})
    return (Path(busybox), Path(socat), *libraries)


def _import_socat(tag: str, recipe: str) -> None:
    """As small as the real image, with the shell and the wget that the health checks use."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for folder in ("tmp", "etc", "bin", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        busybox, socat, *libraries = _socat_files()
        _file(archive, "bin/busybox", busybox.read_bytes())
        _file(archive, "usr/bin/socat", socat.read_bytes())
        for library in libraries:
            _file(archive, str(library).lstrip("/"), library.read_bytes())
        _file(archive, "etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        _file(archive, "etc/group", b"root:x:0:\n")
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    _import(tag, recipe, held.getvalue())


def _file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    archive.addfile(entry, io.BytesIO(content))


def _build_qdrant(tag: str, recipe: str) -> None:
    """The stand-in for Qdrant, with the engine of the environment that the tests run in."""
    found = importlib.util.find_spec("qdrant_edge")
    assert found is not None
    assert found.origin is not None
    with tempfile.TemporaryDirectory(prefix="pikuri-image-") as name:
        context = Path(name)
        for source in STAND_IN.iterdir():
            if source.is_file():
                shutil.copy(source, context)
        shutil.copytree(
            Path(found.origin).parent,
            context / "qdrant_edge",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        arguments = (
            *("--build-arg", f"PYTHON_IMAGE={python_image()}"),
            *("--label", f"{LABEL}={recipe}", "--tag", tag),
        )
        subprocess.run(
            [docker_command(), "build", "--quiet", *arguments, str(context)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
        )


if __name__ == "__main__":
    ensure()
