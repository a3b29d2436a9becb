"""Serve saved adapters over HTTP; it needs `pip install 'peftcls[serve]'`."""

from peftcls.serving.app import make_app
from peftcls.serving.limits import Limits

__all__ = ["Limits", "make_app"]
