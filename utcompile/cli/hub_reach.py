"""Whether the model hub can be reached: where its name is unknown, its client need not try for a minute."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")  # which look the name up themselves


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Inside, the hub's client looks into its cache alone, if the name of its server cannot be resolved."""
    try:
        import huggingface_hub.constants as hub
    except ImportError:
        yield
        return
    if (
        hub.HF_HUB_OFFLINE
        or any(os.environ.get(name) for name in _PROXIES)
        or _is_known(urlparse(hub.ENDPOINT).hostname)
    ):
        yield
        return
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = False


def _is_known(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
