"""Corpora from Debian packages: Asterisk's English prompts (speech) and fortune cookies (text without sound, for language models).

- Nothing needs root: `apt-get download` takes a package into a folder, `dpkg-deb -x` unpacks it there. Where the system has no package
  lists, they are fetched into the cache.
- The prompts are 24 minutes of one speaker, G.722 without a header, which becomes FLAC at 16 kHz in the cache. Text in [], () or <> is about
  the sound and is not spoken; the keys * and # are read as star and pound.
- `fortunes`: 0.4 million words, one sentence a line; attributions, tables and ASCII art are left out.
"""

import gzip
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.audio import probe, write_wav
from hkd.corpora.cards import TIMEOUT_S, Archive, Source, load_card, verify
from hkd.errors import HkdError, MissingPackageError
from hkd.files import atomic_write
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

logger = logging.getLogger(__name__)

SPEAKER = "allison"
_NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
_TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_FORTUNES = "usr/share/games/fortunes"
_LEFT_OUT = frozenset({"ascii-art", "translate-me"})
_ATTRIBUTION = re.compile(r"^\s*--")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
_MIN_LETTER_SHARE = 0.7
_MIN_WORDS = 2
_USE_A_FOLDER = (
    "Give a folder of your own instead: hkd prepare FOLDER (audio files, each with a .txt of the same name beside it)."
)


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


def read_prompts(path: Path) -> dict[str, str]:
    """Prompt name → what is said, from core-sounds-en.txt.gz; prompts without speech are left out."""
    prompts: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            name, colon, said = line.partition(":")
            said = " ".join(_NOTES.sub(" ", said).replace("*", " star ").replace("#", " pound ").split())
            if colon and not name.startswith(";") and any(c.isalnum() for c in said):
                prompts[name.strip()] = said
    return prompts


def decode_g722(path: Path) -> NDArray[np.float32]:
    """Raw G.722 → wave_S at 16 kHz."""
    try:
        import av
    except ImportError:
        raise MissingPackageError("av", "demo", "Decoding the Asterisk prompts (G.722)") from None
    try:
        with av.open(str(path), format="g722") as file:
            blocks = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    except (av.error.FFmpegError, OSError) as error:
        raise HkdError(f"{path} cannot be decoded as G.722 ({error}).") from None
    wave_S: NDArray[np.float32] = np.concatenate(blocks).astype(np.float32) / np.float32(32768)
    return wave_S


def prepare_asterisk(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """All prompts with speech, without splits; audio in the cache's `asterisk`. Of `source` only the cache is used: apt knows its servers."""
    card = load_card("asterisk")
    files = debian_packages(card.packages, card.archives, source.cache)
    prompts = {name: said for name, said in read_prompts(files / _TEXTS).items() if (files / _VOICE / f"{name}.g722").exists()}
    utterances = []
    for number, (name, said) in enumerate(sorted(prompts.items()), 1):
        path = source.cache.absolute() / "asterisk" / f"{name}.flac"
        if not path.exists():
            write_wav(path, decode_g722(files / _VOICE / f"{name}.g722"))
        utterances.append(
            Utterance(id=name, text=said, audio_filepath=str(path), duration=probe(path).duration_s, speaker=SPEAKER)
        )
        progress(number, len(prompts))
    return Manifest(utterances)


def sentences(paragraph: str) -> Iterator[str]:
    """Sentences of a paragraph; what is not mostly letters is left out."""
    for sentence in _END.split(" ".join(paragraph.split())):
        letters = sum(c.isalpha() or c == " " for c in sentence)
        if len(sentence.split()) >= _MIN_WORDS and letters >= _MIN_LETTER_SHARE * len(sentence):
            yield sentence


def fortune_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a fortune file: cookies stand between lines of `%`, attributions end them."""
    lines: list[str] = []
    for line in [*text.splitlines(), "%"]:
        if line.strip() in ("%", "") or _ATTRIBUTION.match(line):
            if lines:
                yield " ".join(lines)
            lines = []
        else:
            lines.append(line.replace("_\b", "").strip())


def prepare_fortunes(cache: Path, out: Path, *, progress: Progress = no_progress) -> int:
    """Write the sentences of all fortune files, each once, to `out`; their number."""
    card = load_card("fortunes")
    folder = debian_packages(card.packages, card.archives, cache) / _FORTUNES
    files = sorted(path for path in folder.iterdir() if not path.suffix and path.name not in _LEFT_OUT and path.is_file())
    seen: set[str] = set()
    with atomic_write(out) as file:
        for number, path in enumerate(files, 1):
            for paragraph in fortune_paragraphs(path.read_text(encoding="utf-8", errors="replace")):
                for sentence in sentences(paragraph):
                    if sentence not in seen:
                        seen.add(sentence)
                        file.write((sentence + "\n").encode())
            progress(number, len(files))
    return len(seen)
