"""All wire formats that are served on the request path, by their addresses."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.formats.anthropic_messages import MESSAGES
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.embeddings import EMBEDDINGS
from gateway.formats.responses import RESPONSES
from gateway.formats.wire_format import WireFormat

FORMATS: Mapping[str, WireFormat] = MappingProxyType(
    {each.path: each for each in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS)}
)
BELOW_MESSAGES = MESSAGES.path.encode() + b"/"


def get_format(path: bytes) -> WireFormat:
    """The format of a request to this address, for the shape of its errors; chat for any other address."""
    if path.startswith(BELOW_MESSAGES):
        return MESSAGES
    return FORMATS.get(path.decode("latin-1"), CHAT)
