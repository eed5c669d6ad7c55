"""The store's files over HTTP, for the sidecars of replicas that do not share the store's volume."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse

from gateway.endpoint_parts import Sidecar, services_of
from gateway.errors import Problem
from gateway.openapi_parts import BYTES, with_answer, with_errors
from gateway.server.asgi_messages import Receive, Scope, Send
from serving.adapters.adapter_folder import ADAPTER_FILES
from serving.adapters.errors import ArtifactError

router = APIRouter(prefix="/admin/v1", tags=["admins"])


StoreFileName = Annotated[str, Path(json_schema_extra={"enum": list(ADAPTER_FILES)})]


class StoreFile(FileResponse):
    """A file of the store, sent in larger pieces than a web page's, and always whole: nobody needs parts of it."""

    chunk_size = 1 << 20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole file and ignore ranges: errors in a range would have another form than ours."""
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"range", b"if-range")]
        await super().__call__({**scope, "headers": headers}, receive, send)


@router.get(
    "/store/{digest}/{file}",
    response_class=StoreFile,
    responses=with_errors("not_found", "invalid_value")
    | with_answer(200, "The bytes.", {"application/octet-stream": {"schema": BYTES}}),
)
def read_store_file(request: Request, digest: str, file: StoreFileName, _: Sidecar) -> StoreFile:
    """One file of an adapter by its digest. The bytes never change."""
    store = services_of(request).control.adapters.store
    try:
        path = store.path(digest) / file
    except ArtifactError as error:
        raise Problem("not_found", str(error), "digest") from None
    if file not in ADAPTER_FILES:
        raise Problem("not_found", f"An adapter has the files {' and '.join(ADAPTER_FILES)} here.", "file")
    if path.parent.is_symlink() or path.is_symlink() or not path.is_file():
        raise Problem("not_found", f"The store has no {digest}.", "digest")
    headers = {"cache-control": "private, max-age=31536000, immutable", "etag": f'"{digest}/{file}"'}
    headers["accept-ranges"] = "none"
    return StoreFile(path, media_type="application/octet-stream", headers=headers)
