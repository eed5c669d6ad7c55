"""Errors of installing and starting local engines."""

from __future__ import annotations


class LaunchError(Exception):
    """An engine can't be installed or started on this machine.

    The message is one sentence for the terminal: the problem and the remedy.
    """
