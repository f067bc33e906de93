"""Whose certificates are trusted: those of this machine and those that come with httpx."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import httpx


def trusted() -> ssl.SSLContext:
    """A context that checks certificates and names, whatever the environment says.

    The places on this machine are those that OpenSSL was built with: the variables
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, which could add whom to trust, are not asked.
    """
    context = httpx.create_ssl_context(trust_env=False)
    paths = ssl.get_default_verify_paths()
    file = paths.openssl_cafile if Path(paths.openssl_cafile).is_file() else None
    directory = paths.openssl_capath if Path(paths.openssl_capath).is_dir() else None
    if file or directory:
        with contextlib.suppress(OSError):
            context.load_verify_locations(cafile=file, capath=directory)
    return context
