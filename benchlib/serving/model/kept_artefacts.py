"""What inductor has compiled, kept from one process to the next.

Each process compiles in a folder of its own. `keep` puts what is new there into a pack: an archive
that is named by its SHA-256, under BENCHLIB_CACHE. The next process with the same torch, card and
version of ours unpacks all packs before it compiles, and torch finds its work done. A pack that does
not have the digest of its name is thrown away. So a spoiled cache costs time alone.

Knows files and processes. Ignorant of recipes and shapes: torch looks a graph up by its operators,
shapes, dtypes and flags, and recompiles what differs (torch/_inductor/codecache.py, FxGraphCache).
Triton's own cache is left out, since its files name folders. torch keeps the kernels beside each
graph (torch/_inductor/triton_bundler.py).

With a kernel that it has tuned, torch keeps the full path of the kernel's source, and looks for the
configuration it chose beside it (torch/_inductor/runtime/autotune_cache.py). That path is in the
folder of the process that compiled. So a pack names its folder, and a link leads from there to the
folder of the process that unpacks it. Without the link torch tunes each kernel again.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import io
import logging
import os
import platform
import shutil
import tarfile
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from benchlib.machine import version_of

log = logging.getLogger("benchlib")

TORCHS_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_TRITONS_FOLDER = "TRITON_CACHE_DIR"
_PREFIX = "benchlib-artefacts-"
_LEFT_OUT = ("triton", "locks")
_MADE_IN = "comment"  # the field of an archive that names the folder it was made in
MODEL = "model"
MOST_PACKS = 64


@dataclass(frozen=True)
class Restored:
    """What a process found: the folder of packs, a model's that were unpacked, those thrown away."""

    folder: str
    packs: int
    spoiled: int


class KeptArtefacts:
    """The artefacts of one process. `restore` and `keep` may be called from any thread, and often.

    If the user has set TORCHINDUCTOR_CACHE_DIR, torch itself keeps the artefacts there, and both do
    nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: Path | None = None  # where this process compiles
        self._held = -1  # the descriptor that says that `_work` is in use
        self._known: set[str] = set()  # files of `_work` that are in a pack
        self._restored: dict[Path, Restored] = {}

    def restore(self, device: torch.device) -> Restored | None:
        """Unpack what earlier processes have compiled for this kind of device, once.

        Returns None if torch keeps the artefacts itself.
        """
        with self._lock:
            if self._work is None:
                if _users_own_folder():
                    return None
                self._begin()
            folder = packs_folder(device)
            if folder not in self._restored:
                self._restored[folder] = self._unpack_all(folder)
            return self._restored[folder]

    @property
    def has_found_packs(self) -> bool:
        """Whether a model's graphs of earlier processes were unpacked, for any device."""
        with self._lock:
            return any(restored.packs for restored in self._restored.values())

    def keep(self, device: torch.device, *, of: str = MODEL) -> None:
        """Put the files that are new since the last call into a pack. A full disk is told of.

        `of` says what compiled them, and may be no model: a trial of the compiler.
        """
        with self._lock:
            if self._work is None:
                return
            new = sorted(_files_of(self._work) - self._known)
            if not new:
                return
            try:
                write_pack(self._work, new, packs_folder(device), of=of)
            except OSError as error:
                log.warning("compiled artefacts are not kept: %s", error)
                return
            self._known |= set(new)

    def _begin(self) -> None:
        """Make the folder of this process, and remove those of processes that were killed."""
        _remove_abandoned()
        self._work = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = os.open(self._work, os.O_RDONLY)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        os.environ[TORCHS_FOLDER] = str(self._work)
        os.environ.pop(_TRITONS_FOLDER, None)
        atexit.register(_remove_own, self._work, os.getpid())

    def _unpack_all(self, folder: Path) -> Restored:
        assert self._work is not None
        packs = spoiled = 0
        for pack in sorted(folder.glob("*.tar")):
            try:
                self._known |= unpack(pack, self._work)
                _link(made_in(pack), self._work)
                packs += pack.name.startswith(MODEL)
            except (OSError, ValueError, tarfile.TarError) as error:
                log.warning("compiled artefacts are thrown away: %s: %s", pack.name, error)
                pack.unlink(missing_ok=True)
                spoiled += 1
        return Restored(str(folder), packs, spoiled)


ARTEFACTS = KeptArtefacts()
"""Those of this process: torch's folder is one for the whole process."""


def packs_folder(device: torch.device) -> Path:
    """The folder of the packs of this torch, kind of device, Python, machine and version of ours."""
    chosen = os.environ.get("BENCHLIB_CACHE")
    cache = Path(chosen or platformdirs.user_cache_path("benchlib"))
    card = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        card = torch.cuda.get_device_name(device)
    parts = [
        torch.__version__,
        version_of("triton") or "none",
        version_of("torchao") or "none",
        version_of("benchlib") or "none",
        platform.python_version(),
        platform.machine(),
        device.type,
        card,
    ]
    kind = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache / "artefacts" / kind


def write_pack(work: Path, names: list[str], folder: Path, *, of: str = MODEL) -> None:
    """Archive the files `names` of `work` into `folder`, and drop packs beyond MOST_PACKS."""
    archive = io.BytesIO()
    made = {_MADE_IN: str(work)}
    with tarfile.open(fileobj=archive, mode="w", pax_headers=made) as tar:
        for name in names:
            try:
                tar.add(work / name, arcname=name, recursive=False)
            except FileNotFoundError:
                continue  # torch renames its files into place
    content = archive.getvalue()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, aside = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        digest = hashlib.sha256(content).hexdigest()
        os.replace(aside, folder / f"{of}-{digest}.tar")
    except OSError:
        Path(aside).unlink(missing_ok=True)
        raise
    packs = sorted(folder.glob("*.tar"), key=lambda pack: pack.stat().st_mtime)
    for pack in packs[:-MOST_PACKS]:
        pack.unlink(missing_ok=True)


def unpack(pack: Path, work: Path) -> set[str]:
    """Unpack into `work`, and return the names of the files. Raises ValueError if it is spoiled."""
    content = pack.read_bytes()
    if hashlib.sha256(content).hexdigest() != pack.stem.rpartition("-")[2]:
        raise ValueError("its digest is not that of its name")
    names = set()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            if not (work / member.name).exists():
                tar.extract(member, work, filter="data")
            names.add(member.name)
    return names


def made_in(pack: Path) -> Path | None:
    """The folder of the process that compiled what is in a pack; None if the pack does not say."""
    with tarfile.open(pack) as tar:
        folder = tar.pax_headers.get(_MADE_IN)
    return None if folder is None else Path(folder)


def _link(made: Path | None, work: Path) -> None:
    """Let the folder `made` of an ended process lead to `work`, unless it leads somewhere already.

    A link that can't be made costs the time of tuning alone.
    """
    if made is None or made.parent != _temporary() or not made.name.startswith(_PREFIX):
        return
    with suppress(OSError):
        made.symlink_to(work)


def _files_of(work: Path) -> set[str]:
    """The files that may be kept, relative to `work`."""
    names = set()
    for path in work.rglob("*"):
        name = path.relative_to(work)
        if name.parts[0] in _LEFT_OUT or path.suffix in (".lock", ".tmp") or not path.is_file():
            continue
        names.add(str(name))
    return names


def _users_own_folder() -> bool:
    """Whether the user has set torch's folder: it is neither torch's usual one nor a parent's."""
    folder = os.environ.get(TORCHS_FOLDER)
    if folder is None:
        return False
    name = Path(folder).name
    is_usual = name.startswith("torchinductor_") and Path(folder).parent == _temporary()
    return not (is_usual or name.startswith(_PREFIX))


def _remove_abandoned() -> None:
    """Remove the folders of processes that ended without removing theirs, and links to nowhere."""
    for folder in _temporary().glob(f"{_PREFIX}*"):
        if folder.is_symlink():
            if not folder.exists():
                folder.unlink(missing_ok=True)
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # another user's, or just gone
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        except OSError:
            continue  # in use
        finally:
            os.close(descriptor)


def _remove_own(work: Path, owner: int) -> None:
    """Remove the folder of this process. A forked child leaves it."""
    if os.getpid() == owner:
        _remove(work)


def _remove(work: Path) -> None:
    """Remove a folder, and before it the links to it: torch can't write through a link to nowhere."""
    for link in _temporary().glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if link.readlink() == work:
                link.unlink()
    shutil.rmtree(work, ignore_errors=True)


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def describe(restored: Restored | None) -> dict[str, Any]:
    """For a pipeline's spec: how many packs were found, and how many were thrown away."""
    if restored is None:
        return {"packs": None, "spoiled": None}
    return {"packs": restored.packs, "spoiled": restored.spoiled}
