"""The command line: faces without logic, one file per group of verbs."""

import sys

if sys.platform == "win32":  # before anything below asks for what only POSIX systems have
    sys.exit(
        "error: pikuri-memory runs on Linux and macOS\nhint: on Windows use WSL: wsl --install"
    )
