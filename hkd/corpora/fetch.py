"""Getting archives: Debian packages through apt's own client, files over HTTP; checked, and unpacked where they cannot do harm.

- Nothing needs root: `apt-get download` takes a package into a folder, `dpkg-deb -x` unpacks it there. Where the system has no package
  lists, they are fetched into the cache.
- A download goes on where a broken one stopped, is checked against its card, and appears under its name only then.
- Unpacking writes below its folder or not at all: no absolute paths, no `..`, no links out, no devices, a bound on the size.
"""

import hashlib
import logging
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from hkd.corpora.card import Archive
from hkd.errors import HkdError
from hkd.lines import first_line
from hkd.progress import Progress, no_progress

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 200 << 30
MAX_RATIO = 20  # recorded sound hardly shrinks; what unpacks to more than this is a bomb
FREE_BYTES = 64 << 20  # which any archive may unpack to
MAX_MEMBERS = 5_000_000
TIMEOUT_S = 60
_USE_A_FOLDER = (
    "Give a folder of your own instead: hkd prepare FOLDER (audio files, each with a .txt of the same name beside it)."
)


def verify(path: Path, archive: Archive, *, remove: bool = True) -> None:
    """Raise HkdError (and remove the file, unless told not to) where a file is not what its card says."""
    algorithm, wanted = ("md5", archive.md5) if archive.md5 else ("sha256", archive.sha256)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if wanted is None:
        logger.warning("%s is not checked: nobody publishes its checksum. Its SHA-256 is %s", archive.file, found)
    elif found != wanted:
        if remove:
            path.unlink()
        remedy = "It was removed: try again." if remove else "Fetch it anew."
        raise HkdError(f"{path} must have the {algorithm} {wanted}, but has {found} instead. {remedy}")


def debian_packages(names: Sequence[str], archives: Sequence[Archive], cache: Path) -> Path:
    """The packages' files, unpacked in a folder below `cache`; at once where they are there. Raises HkdError with no apt or no network."""
    folder = cache / "debian" / "-".join(names)
    if folder.is_dir():
        return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise HkdError(f"the Debian packages {' and '.join(names)} need apt, which this machine has not. {_USE_A_FOLDER}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as temporary:
        work = Path(temporary)
        _apt_download(names, work, cache)
        known = {archive.file: archive for archive in archives}
        for path in sorted(work.glob("*.deb")):
            if path.name in known:
                verify(path, known[path.name])  # apt has checked it against the signed index; this is against our card
            else:
                logger.warning("%s is another version than the card's", path.name)
            _run(["dpkg-deb", "-x", str(path), str(work / "files")], work)
        (work / "files").chmod(0o755)
        (work / "files").replace(folder)
    return folder


def _apt_download(names: Sequence[str], work: Path, cache: Path) -> None:
    patient = ["-q", "-o", "Acquire::Retries=2", "-o", f"Acquire::http::Timeout={TIMEOUT_S}", "-o", "APT::Sandbox::User=root"]
    if _run(["apt-get", *patient, "download", *names], work, may_fail=True) is None:
        return
    own = cache / "apt"
    for name in ("lists/partial", "archives/partial"):
        (own / name).mkdir(parents=True, exist_ok=True)
    options = [*patient, "-o", f"Dir::State::Lists={own / 'lists'}", "-o", f"Dir::Cache={own}"]
    failure = _run(["apt-get", *options, "update"], work, may_fail=True)
    failure = _run(["apt-get", *options, "download", *names], work, may_fail=True) and (failure or "no such package")
    if failure is not None:
        raise HkdError(f"the Debian packages {' and '.join(names)} could not be had ({failure}). {_USE_A_FOLDER}")


def _run(command: Sequence[str], folder: Path, *, may_fail: bool = False) -> str | None:
    """Run a program in a folder; None, or what it said last where it failed and may. Raises HkdError where it may not."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip().startswith("E:")]
    last = said[0].removeprefix("E:").strip() if said else f"{command[0]} ended with {done.returncode}"
    if not may_fail:
        raise HkdError(f"{command[0]} failed ({last}).")
    return last


def download(url: str, path: Path, archive: Archive, *, progress: Progress = no_progress) -> Path:
    """Fetch `url` to `path`, going on where a broken download stopped; at once where it is there. Raises HkdError."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, progress)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = f"{error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise HkdError(
            f"{url} could not be fetched ({reason}). Try again, it goes on where it was; or fetch it yourself and give --root DIR."
        ) from None
    verify(part, archive)
    part.replace(path)
    return path


def _fetch(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch: the checksum will tell
            return
        raise
    with answer:
        have = have if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                have += len(block)
                progress(have, total or have)
    if total and have < total:
        raise OSError(f"the connection broke after {have} of {total} bytes")


def unpack(archive: Path, folder: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> Path:
    """Unpack a tar archive to `folder`, which appears whole or not at all; at once where it is there. Raises HkdError.

    Files and folders below `folder` alone: links, devices, pipes and names that lead out are refused, and so are bombs.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as temporary:
        work = Path(temporary) / "files"
        work.mkdir()
        try:
            limit = min(max_bytes, FREE_BYTES + MAX_RATIO * archive.stat().st_size)
            with tarfile.open(archive) as tar:
                size = 0
                for number, member in enumerate(tar, 1):
                    size += member.size
                    if size > limit or number > MAX_MEMBERS:
                        raise HkdError(
                            f"{archive} must not unpack to more than {limit} bytes or {MAX_MEMBERS} files, but does. Is it the right one?"
                        )
                    if member.issym() or member.islnk():
                        raise HkdError(f"{archive} cannot be unpacked ('{member.name}' is a link). Delete it and try again.")
                    tar.extract(member, work, filter="data")
                _read_to_the_end(tar)
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise HkdError(f"{archive} cannot be unpacked ({first_line(error)}). Delete it and try again.") from None
        work.replace(folder)
    return folder


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError where members are left: tarfile takes a damaged header for the end, and reads no checksum that follows it."""
    while block := tar.fileobj.read(BLOCK_BYTES) if tar.fileobj else b"":
        if block.strip(b"\0"):
            raise tarfile.ReadError("a header in its middle is damaged")
