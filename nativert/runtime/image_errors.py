"""What the steps of an image (download, unpacking, cache) say when they give up."""

from __future__ import annotations

import errno
from typing import Final

from nativert.errors import Code, NativertError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ImageError(NativertError):
    """An image cannot be fetched, is not what it is said to be, or may not be unpacked."""

    code = Code.IMAGE


def full_disk(error: OSError, what: str) -> ImageError | None:
    """Return the refusal for a disk, quota or file size at its end; None for other errors."""
    if error.errno not in _FULL:
        return None
    return ImageError(
        f"cannot {what}: {error.strerror}", hint="free some space where the node keeps its files"
    )
