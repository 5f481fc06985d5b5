"""Tracking in the browser: `ostrack-fast serve` (the extra `serve`)."""

from .app import create_app
from .session import Limits

__all__ = ["Limits", "create_app"]
