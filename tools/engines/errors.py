"""What can go wrong while local engines are installed and started."""

from __future__ import annotations


class LaunchError(Exception):
    """Something on this machine keeps an engine from being installed or started.

    Its message is one sentence for the person at the terminal: what is wrong and what to do about it.
    """
