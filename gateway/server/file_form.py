"""One file in a multipart form, beside text fields. Its bytes are passed on as they arrive."""

from __future__ import annotations

from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers

from gateway.errors import Problem
from gateway.server.form_reader import FormReader, read_boundary

FILE_FIELD = "file"
FIELD_BYTES_MAX = 1000
NAME_LENGTH_MAX = 200


class FileForm(FormReader):
    """The form of a request with these headers. `fields` has its texts, `file_name` the caller's name of the file."""

    def __init__(self, headers: Headers, known_fields: Collection[str]) -> None:
        """Raises Problem (400, 415) if the body is not a form."""
        super().__init__()
        self.fields: dict[str, str] = {}
        self.file_name = ""
        self._known_fields = known_fields
        self._parser = self.parser(read_boundary(headers, "the file"))
        self._field = ""
        self._text = b""
        self._piece = bytearray()
        self._has_file = False

    def feed(self, piece: bytes) -> bytes:
        """The bytes of the file in the next piece of the body. Raises Problem (400)."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise Problem("invalid_value", f"The body is not well-formed multipart/form-data: {error}.") from None
        out = bytes(self._piece)
        self._piece.clear()
        return out

    def end(self) -> None:
        """End the form. Raises Problem (400) if it is not complete."""
        if not self.has_ended:
            raise Problem("invalid_value", "The form ends before its closing boundary: send it again.")
        if not self._has_file:
            raise Problem("missing_field", f"The form has no file named {FILE_FIELD}: add it.", FILE_FIELD)

    def begin_file(self, field: str, name: str) -> None:
        """The one file."""
        if field != FILE_FIELD or self._has_file:
            raise Problem("invalid_value", f"Send one file, in the field {FILE_FIELD}.", FILE_FIELD)
        self._has_file, self._field = True, ""
        self.file_name = name.encode("latin-1").decode(errors="replace")[:NAME_LENGTH_MAX]

    def begin_field(self, field: str) -> None:
        """A text field, each at most once."""
        if field not in self._known_fields or field in self.fields:
            text = f"{field[:80]!r} is not known here, or came twice: the text fields are"
            raise Problem("unknown_parameter", f"{text} {', '.join(self._known_fields)}.", field[:80])
        self._field, self._text, self.fields[field] = field, b"", ""

    def take(self, data: bytes) -> None:
        """Bytes of the file, or of a field."""
        if not self._field:
            self._piece += data
            return
        self._text += data
        if len(self._text) > FIELD_BYTES_MAX:
            text = f"{self._field} is longer than {FIELD_BYTES_MAX} bytes: shorten it."
            raise Problem("invalid_value", text, self._field)
        self.fields[self._field] = self._text.decode(errors="replace")
