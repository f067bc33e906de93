"""The key of a model endpoint: in a file of the user's, read for every request, never kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from pikuri_memory.errors import AccessError, SettingError

_LONGEST: Final = 16 * 1024


class KeyFile:
    """The present key in a file, to be called.

    Args:
        path: The file; only its owner may read it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()

    def __call__(self) -> str:
        """The key, without white space around it.

        Raises:
            AccessError: Others may read the file, or this user may not.
            SettingError: There is none, or no key in it.
        """
        path = self.path
        try:
            with open(path, encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise AccessError(
                        f"the key file of the model endpoint, {path}, may be read by other users",
                        hint=f"chmod 600 {path}",
                    )
                key = file.read(_LONGEST).strip()
        except AccessError:
            raise
        except PermissionError:
            raise AccessError(
                f"the key file of the model endpoint, {path}, cannot be read by this user",
                hint=f"ls -l {path}",
            ) from None
        except (OSError, ValueError) as error:
            raise SettingError(
                f"the key file of the model endpoint, {path}, cannot be read:"
                f" {type(error).__name__}",
                hint="give the name of a file that holds the key: --router-key-file FILE",
            ) from None
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"{path} holds no key: it must be one line of plain ASCII without spaces",
                hint="put the key into it, and nothing else",
            )
        return key
