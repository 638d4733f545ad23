"""Whether Zenoh is there: it is an extra of the package."""

from __future__ import annotations

from importlib.util import find_spec

from nativert.errors import Code, NativertError


def require() -> None:
    """Raise NativertError REQUIREMENTS where it is not installed."""
    if find_spec("zenoh") is None:
        raise NativertError(
            "zenoh: the package eclipse-zenoh is not installed",
            code=Code.REQUIREMENTS,
            hint="scripts/setup --zenoh, or scripts/install --zenoh, installs it",
        )
