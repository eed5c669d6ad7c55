"""Paths on the gateway's machine that an admin names: inside `import_folders`, and never links or devices."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from gateway.errors import Problem


def import_path(folders: Sequence[Path], path: Path, code: str, param: str, *, is_folder: bool = False) -> Path:
    """The path itself, if it leads to a regular file (or a folder) inside one of the folders.

    Links are refused below the folder, FIFOs and devices everywhere: reading one may never end. Blocks.
    Raises Problem with `code` and `param`; of a path outside the folders it does not say whether it exists.
    """
    if not folders:
        text = "Imports by path are off: add the folder to the setting import_folders, or upload the files."
        raise Problem(code, text, param)
    above = next((folder.absolute() for folder in folders if path.is_relative_to(folder.absolute())), None)
    if above is None or ".." in path.relative_to(above).parts:
        allowed = ", ".join(str(folder.absolute()) for folder in folders)
        raise Problem(code, f"The path is outside the setting import_folders ({allowed}): move it there.", param)
    kind = "folder" if is_folder else "regular file"
    try:
        if path.resolve(strict=True) != above.resolve() / path.relative_to(above):
            raise Problem(code, f"A symbolic link leads to {path.name}: name the {kind} itself.", param)
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise Problem(code, f"On the gateway's machine there is no {kind} {path}.", param) from None
    except (OSError, ValueError) as error:
        raise Problem(code, f"{path.name} can't be read ({error}).", param) from None
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        raise Problem(code, f"{path.name} is no {kind}.", param)
    return path
