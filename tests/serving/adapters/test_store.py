from __future__ import annotations

import os
import resource
import stat
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.base_model import Base
from serving.adapters.errors import ArtifactError
from serving.adapters.incoming_folder import make_incoming_folder
from serving.adapters.store import FOLDER_MODE, Store
from serving.adapters.verification import Artifact, verify
from tests.fakes.adapters import write_adapter

NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "v1")


@pytest.fixture
def artifact(source: Path, base: Base) -> Artifact:
    return verify(source, base, ArtifactLimits())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


def left_over(store: Store) -> list[str]:
    return [entry.name for entry in store.folder.iterdir() if entry.name.startswith(".")]


def test_adapter_lies_under_its_digest(store: Store, source: Path, artifact: Artifact) -> None:
    assert not store.holds(artifact.digest)
    folder = store.put(source, artifact)
    assert folder.is_absolute()
    assert folder == store.path(artifact.digest) == store.folder / artifact.digest.removeprefix("sha256:")
    assert store.holds(artifact.digest)
    assert [entry.name for entry in store.folder.iterdir()] == [folder.name]
    assert digest_adapter(folder) == artifact.digest
    store.verify_copy(artifact.digest)
    assert left_over(store) == []


def test_only_the_two_files_are_copied_and_nobody_may_write_them(
    store: Store, source: Path, artifact: Artifact
) -> None:
    (source / "README.md").write_text("not copied")
    folder = store.put(source, artifact)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"adapter_config.json": 0o444, "adapter_model.safetensors": 0o444}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555


def test_other_users_can_read_the_store_whatever_the_umask(tmp_path: Path, source: Path, artifact: Artifact) -> None:
    before = os.umask(0o077)
    try:
        store = Store(tmp_path / "shared")
        store.put(source, artifact)
    finally:
        os.umask(before)
    found = [store.folder, *store.folder.rglob("*")]
    assert {path.name: path.stat().st_mode & 0o444 for path in found} == {path.name: 0o444 for path in found}


def test_putting_the_same_again_changes_nothing(store: Store, source: Path, artifact: Artifact) -> None:
    folder = store.put(source, artifact)
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    assert store.put(source, artifact) == folder
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


def test_versions_lie_side_by_side(store: Store, source: Path, artifact: Artifact, base: Base) -> None:
    second = write_adapter(source.parent / "v2", seed=2)
    other = verify(second, base, ArtifactLimits())
    folders = [store.put(source, artifact), store.put(second, other)]
    assert sorted(store.folder.iterdir()) == sorted(folders)
    assert store.holds(artifact.digest)
    assert store.holds(other.digest)


def test_many_gateways_put_the_same_at_once(tmp_path: Path, source: Path, artifact: Artifact) -> None:
    stores = [Store(tmp_path / "store") for _ in range(8)]
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda store=store: folders.append(store.put(source, artifact))) for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [stores[0].path(artifact.digest)] * 8
    stores[0].verify_copy(artifact.digest)
    assert left_over(stores[0]) == []


def test_source_changed_after_verification_does_not_get_in(store: Store, source: Path, artifact: Artifact) -> None:
    write_adapter(source, seed=7)
    with pytest.raises(ArtifactError, match="changed after it was verified") as caught:
        store.put(source, artifact)
    assert caught.value.code == "changed"
    assert not store.holds(artifact.digest)
    assert left_over(store) == []


@pytest.mark.parametrize("size_bytes", [-1, 100])
def test_source_that_shrank_or_grew_does_not_get_in(
    store: Store, source: Path, artifact: Artifact, size_bytes: int
) -> None:
    weights = source / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size + size_bytes)
    with pytest.raises(ArtifactError) as caught:
        store.put(source, artifact)
    assert caught.value.code == "changed"
    assert left_over(store) == []


def test_source_replaced_by_a_link_does_not_get_in(store: Store, source: Path, artifact: Artifact) -> None:
    weights = source / "adapter_model.safetensors"
    weights.rename(source.parent / "elsewhere")
    weights.symlink_to(source.parent / "elsewhere")
    with pytest.raises(ArtifactError):
        store.put(source, artifact)
    assert left_over(store) == []


@pytest.mark.parametrize(
    "digest",
    ["", "..", "../../etc", "sha256:..", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 64 + "\n"],
)
def test_no_other_string_becomes_a_path(store: Store, digest: str) -> None:
    for ask in (store.path, store.holds, store.verify_copy):
        with pytest.raises(ArtifactError) as caught:
            ask(digest)
        assert caught.value.code == "bad_digest"


def test_copy_that_is_not_there_is_said_to_be_missing(store: Store, artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="push the adapter again") as caught:
        store.verify_copy(artifact.digest)
    assert caught.value.code == "not_held"


@pytest.mark.parametrize("damage", ["byte", "cut", "gone", "more", "link"])
def test_damaged_copy_is_found_and_never_served_as_whole(
    store: Store, source: Path, artifact: Artifact, damage: str
) -> None:
    folder = store.put(source, artifact)
    folder.chmod(0o755)
    weights = folder / "adapter_model.safetensors"
    weights.chmod(0o644)
    if damage == "byte":
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        os.truncate(weights, 100)
    elif damage == "gone":
        weights.unlink()
    elif damage == "more":
        (folder / "adapter_model.bin").touch()
    else:
        weights.rename(store.folder.parent / "elsewhere")
        weights.symlink_to(store.folder.parent / "elsewhere")
    for ask in (lambda: store.verify_copy(artifact.digest), lambda: store.put(source, artifact)):
        with pytest.raises(ArtifactError, match="is damaged") as caught:
            ask()
        assert caught.value.code == "damaged"


def test_crashed_copies_are_swept_and_young_ones_stay(store: Store, source: Path, artifact: Artifact) -> None:
    store.put(source, artifact)
    crashed = store.folder / ".incoming-crashed"
    crashed.mkdir(mode=0o555)
    now = crashed.stat().st_mtime + 10
    assert store.sweep(older_than_seconds=60, now=now) == 0
    assert store.sweep(older_than_seconds=5, now=now) == 1
    assert left_over(store) == []
    assert store.holds(artifact.digest)


def test_what_a_pull_has_left_is_swept_by_its_own_time_alone(store: Store) -> None:
    pulled = store.folder / ".incoming-pull-0123456789abcdef"
    pulled.mkdir()
    now = pulled.stat().st_mtime + 10
    assert store.sweep(older_than_seconds=5, now=now) == 0, "a gateway's start leaves a pull that is under way"
    assert store.sweep(older_than_seconds=60, now=now, pulled=True) == 0
    assert store.sweep(older_than_seconds=5, now=now, pulled=True) == 1


def test_limit_of_the_store_holds_for_copies_too(tmp_path: Path, source: Path, artifact: Artifact) -> None:
    small = Store(tmp_path / "store", ArtifactLimits(size_bytes_max=100))
    with pytest.raises(ArtifactError) as caught:
        small.put(source, artifact)
    assert caught.value.code == "too_large"
    assert left_over(small) == []


def test_a_copy_that_would_leave_the_disk_with_too_little_room_is_not_begun(
    tmp_path: Path, source: Path, artifact: Artifact
) -> None:
    store = Store(tmp_path / "store", free_bytes_min=1 << 60)
    with pytest.raises(OSError, match="too little room"):
        store.put(source, artifact)
    assert list(store.folder.iterdir()) == []


def test_a_disk_that_takes_no_more_is_no_fault_of_the_adapter(store: Store, source: Path, artifact: Artifact) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.put(source, artifact)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_over(store) == []


async def test_copy_of_the_slower_of_two_pulls_is_removed_though_it_is_read_only() -> None:
    with TemporaryDirectory() as shared:
        user = os.geteuid()
        os.chown(shared, user or NOBODY, -1)
        os.seteuid(user or NOBODY)  # root may do anything in a read-only folder
        try:
            async with make_incoming_folder(Path(shared)) as folder:
                (folder / "adapter_config.json").touch()
                folder.chmod(FOLDER_MODE)
            assert os.listdir(shared) == []
        finally:
            os.seteuid(user)
