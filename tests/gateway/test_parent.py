from __future__ import annotations

import logging
import pickle
from pathlib import Path

from gateway.configuration.settings import Settings
from gateway.parent import Parent
from gateway.siblings import ProcessMessage
from tests.gateway.test_siblings import POOLS


def test_the_parent_logs_by_the_level_that_was_read_again() -> None:
    root = logging.getLogger()
    before = root.level
    parent = Parent(Settings(pools=POOLS, general_pool="general"), Path("apprentice.yaml"), 2, ())
    read_again = Settings(pools=POOLS, general_pool="general", log_level="ERROR")
    message = ProcessMessage("settings", 0, pickle.dumps(read_again))
    try:
        parent._loop.run_until_complete(parent._relay(parent._children[0], message))
        assert root.level == logging.ERROR
    finally:
        root.setLevel(before)
        parent._loop.close()
