"""Where an image may come from: file:, http: and https: URIs, judged before any is opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from nativert.runtime.image_errors import ImageError

_SCHEMES: Final = ("file", "http", "https")


def check_uri(uri: str) -> str:
    """Return the scheme of an acceptable URI; raises `ImageError`."""
    from urllib.parse import urlsplit

    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if not rest or scheme not in _SCHEMES:
        raise ImageError(
            f"cannot fetch {shown_uri(uri)!r}: not a URI of a kind that is known",
            hint="use file:///path, http:// or https://",
        )
    if re.search(r"[\x00-\x20\x7f]", uri):
        raise ImageError(f"cannot fetch {shown_uri(uri)!r}: it holds blanks or control characters")
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError as e:
        raise ImageError(f"cannot fetch {shown_uri(uri)!r}: {e}") from e
    if scheme == "file":
        if parts.query or parts.fragment:
            raise ImageError(
                f"cannot fetch {uri!r}: the path holds a bare ? or #", hint="quote them: %3F, %23"
            )
        if host not in (None, "", "localhost"):
            raise ImageError(
                f"cannot fetch {shown_uri(uri)!r}: {host} is another host",
                hint="file:///path has three /",
            )
    elif "@" in parts.netloc:
        # Not repeated in the message: it is likely to be a password.
        raise ImageError(f"cannot fetch from {host}: the URI holds a user name or password")
    elif not uri.isascii():
        raise ImageError(
            f"cannot fetch {shown_uri(uri)!r}: it is not ASCII", hint="quote it: %C3%A9"
        )
    elif not host:
        raise ImageError(f"cannot fetch {shown_uri(uri)!r}: it names no host")
    return scheme


def shown_uri(uri: str) -> str:
    """Return a URI for people: its query may hold a signature and stays out of messages."""
    return uri.partition("?")[0]


def file_path(uri: str) -> Path:
    """Return the path that a file: URI names; raises `ImageError` unless it is absolute."""
    from urllib.parse import unquote, urlsplit

    path = unquote(urlsplit(uri).path, errors="surrogateescape")
    if not path.startswith("/") or "\0" in path:
        raise ImageError(f"cannot fetch {shown_uri(uri)!r}: the path is not absolute")
    return Path(path)


def last_name(uri: str) -> str:
    """Return the last name of a URI's path, "" where there is none."""
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(uri).path.rpartition("/")[2], errors="surrogateescape")
