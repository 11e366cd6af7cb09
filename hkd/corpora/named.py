"""Corpora that are known by name and laid out in ways of their own: a reader for each."""

import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkd.audio import write_wav
from hkd.corpora.cards import (
    Archive,
    Card,
    Part,
    archive_folder,
    chosen_parts,
    corpus_folder,
    find_below,
    register,
    verify,
)
from hkd.corpora.collect import Options, Report, Row, walk
from hkd.corpora.importers import kaldi_folders, kaldi_rows, leave_out_unnamed, piped_rows, read_text, table_rows
from hkd.errors import HkdError, MissingPackageError, UserError
from hkd.files import filled_lines, numbered_lines
from hkd.manifest import Utterance

logger = logging.getLogger(__name__)


def _librispeech_part(folder: Path, part: str, report: Report) -> Iterator[Row]:
    """The utterances of a part's folder by id, with `part` in the extra fields."""
    for transcript in walk(folder, report):
        if not transcript.name.endswith(".trans.txt"):
            continue
        speaker, _, chapter = transcript.name.removesuffix(".trans.txt").partition("-")
        extra = {"recording": f"{speaker}-{chapter}", "part": part}
        for place, line in filled_lines(transcript, "a transcript"):
            name, _, text = line.strip().partition(" ")
            path = str((transcript.parent / f"{name}.flac").absolute())
            yield place, Utterance(id=name, text=text.strip(), audio_filepath=path, speaker=speaker, extra=extra)


_OWN_SPLITS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "test-clean")


@register("mini_librispeech", splits={"train-clean-5": "train", "dev-clean-2": {"dev": 0.5, "test": 0.5}})
@register(
    "librispeech",
    splits={part: part.partition("-")[0] for part in _OWN_SPLITS}
    | {part: part for part in ("dev-other", "test-other")},
)
def librispeech(card: Card, options: Options) -> Iterator[Part]:
    """PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with a SPEAKER-CHAPTER.trans.txt beside them.

    The parts that are asked for; without a wish those that `root` has, or all: from a folder below `root`, else from
    the part's archive. The development part of Mini LibriSpeech is halved by speaker into `dev` and `test`.
    """
    archives = {archive.file.removesuffix(".tar.gz"): archive for archive in card.archives}
    folders: dict[str, Path] = {}
    is_needed = bool(options.parts) or not card.some_parts
    for part in chosen_parts(card, options, archives):
        above = find_below(options.root, part) if options.root is not None else None
        if above is not None:
            folders[part] = above / part
        elif options.root is None or is_needed or (options.root / archives[part].file).is_file():
            folders[part] = archive_folder(card, archives[part], options)
    if not folders:
        known = ", ".join(archives)
        raise UserError(f"{options.root} must hold parts of {card.name} ({known}), but holds none of them.")
    return ((part, folder, _librispeech_part(folder, part, options.report)) for part, folder in folders.items())


@register("common_voice")
def common_voice(card: Card, options: Options) -> Iterator[Part]:
    """A release's folder LANGUAGE/: {train,dev,test}.tsv, clips/*.mp3. Raises UserError for several languages."""
    folder = corpus_folder(card, options, "train.tsv")
    others = sorted(path.parent.name for path in folder.parent.glob("*/train.tsv"))
    if options.root is not None and folder != options.root and len(others) > 1:
        above = folder.parent
        raise UserError(
            f"--root must be one language's folder, but {above} has {', '.join(others)}. Give {above}/LANGUAGE."
        )
    rows = []
    for split in ("train", "dev", "test"):
        for place, u in table_rows(folder / f"{split}.tsv", options, audio=folder / "clips", split=split):
            has_ending = Path(u.audio_filepath or "").suffix  # not before 2019-12
            rows.append((place, u if has_ending else replace(u, audio_filepath=f"{u.audio_filepath}.mp3")))
    leave_out_unnamed(walk(folder / "clips", options.report), rows, folder, options.report)
    yield "", folder, rows


@register("ljspeech")
def ljspeech(card: Card, options: Options) -> Iterator[Part]:
    """metadata.csv (id|text|normalised text, which is taken) and wavs/ID.wav. Splits are by text: one speaker."""
    folder = corpus_folder(card, options, "metadata.csv")
    yield "", folder, list(piped_rows(folder / "metadata.csv", folder / "wavs", options.report, speaker="lj"))


_AN4_LINE = re.compile(r"^(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()]+)\)$")


@register("an4", splits={"train": {"train": 0.9, "dev": 0.1}, "test": "test"})
def an4(card: Card, options: Options) -> Iterator[Part]:
    """AN4 (CMU, 1991): etc/an4_{train,test}.{fileids,transcription}, wav/PART/SPEAKER/ID.sph.

    `dev` is a tenth of the training speakers. Raises UserError where a line is no transcription or in no file list.
    """
    folder = corpus_folder(card, options, "etc/an4_train.fileids")
    for part in ("train", "test"):
        listed, rows = folder / "etc" / f"an4_{part}.fileids", []
        path_of = {Path(line.strip()).name: line.strip() for _, line in filled_lines(listed, "a file list")}
        for place, line in filled_lines(folder / "etc" / f"an4_{part}.transcription", "a transcription"):
            match = _AN4_LINE.match(line.strip())
            if match is None:
                raise UserError(f"{place}: a line must be TEXT (ID), but is '{line[:60]}' instead.")
            name = match["id"].strip()
            if name not in path_of:
                raise UserError(f"{place}: '{name}' must be in {listed.name} too, but does not.")
            stem = folder / "wav" / path_of[name]
            named = [stem.with_name(stem.name + ending) for ending in (".sph", ".wav", ".flac")]
            audio = str(next((path for path in named if path.exists()), named[0]).absolute())
            text, speaker, extra = " ".join(match["text"].split()), stem.parent.name, {"part": part}
            rows.append((place, Utterance(id=name, text=text, audio_filepath=audio, speaker=speaker, extra=extra)))
        yield part, folder, rows


@register("speechocean762", splits={"train": {"train": 0.88, "dev": 0.12}, "test": "test"})
def speechocean762(card: Card, options: Options) -> Iterator[Part]:
    """{train,test}/{wav.scp,text,utt2spk}, Kaldi folders whose paths start at the corpus' folder.

    `dev` are 15 of the 125 training speakers. The training part alone where `root` is a Kaldi folder itself.
    """
    if options.root is not None and kaldi_folders(options.root) == [options.root]:
        folders = {"train": options.root}
    else:
        folder = corpus_folder(card, options, "train/wav.scp")
        folders = {part: folder / part for part in chosen_parts(card, options, card.parts)}
    return ((part, here, kaldi_rows(here, options, extra={"part": part})) for part, here in folders.items())


_CORE_TEST = """
fdhc0 felc0 fjlm0 fmgd0 fmld0 fnlp0 fpas0 fpkt0 mbpm0 mcmj0 mdab0 mgrt0 mjdh0 mjln0 mjmp0 mklt0 mlll0 mlnt0 mnjm0 mpam0
mtas1 mtls0 mwbt0
mwew0"""
_DEV = """
fadg0 faks0 fcal1 fcmh0 fdac1 fdms0 fdrw0 fedw0 fgjd0 fjem0 fjmg0 fjsj0 fkms0 fmah0 fmml0 fnmr0 frew0 fsem0 majc0 mbdg0
mbns0 mbwm0 mcsh0
mdlf0 mdls0 mdvc0 mers0 mgjf0 mglb0 mgwt0 mjar0 mjfc0 mjsw0 mmdb1 mmdm2 mmjr0 mmwh0 mpdf0 mrcs0 mreb0 mrjm4 mrjr0 mroa0
mrtk0 mrws1 mtaa0
mtdt0 mteb0 mthc0 mwjg0"""
# of speakers of TEST; others are left out
TIMIT_SPLITS = dict.fromkeys(_CORE_TEST.split(), "test") | dict.fromkeys(_DEV.split(), "dev")


@register("timit")
def timit(card: Card, options: Options) -> Iterator[Part]:
    """TIMIT (LDC93S1): {TRAIN,TEST}/DIALECT/SPEAKER/SENTENCE.{WAV,TXT,PHN,WRD}, names in upper or lower case.

    The dialect sentences (SA), which every speaker reads, are left out, and so are RIFF copies (SA1.WAV.wav). `train`
    is TRAIN, `test` the core test set, `dev` the development speakers of Kaldi's recipe (Halberstadt's thesis, 1998).
    Raises UserError where a sentence has no text.
    """
    folder = corpus_folder(card, options, "[Tt][Rr][Aa][Ii][Nn]/[Dd][Rr][1-8]")
    rows = []
    for path in walk(folder, options.report):
        names = [name.lower() for name in path.relative_to(folder).parts]
        if len(names) != 4 or names[0] not in ("train", "test"):
            continue
        part, dialect, speaker, sentence = names
        split = "train" if part == "train" else TIMIT_SPLITS.get(speaker)
        if not sentence.endswith(".wav") or sentence.startswith("sa") or sentence.count(".") > 1 or split is None:
            continue
        transcript = path.with_suffix(".TXT" if path.suffix.isupper() else ".txt")
        words = read_text(transcript).split()
        if len(words) < 3 or not (words[0].isdigit() and words[1].isdigit()):
            found = " ".join(words)
            raise UserError(f"{transcript}:1: a transcript must be START END TEXT, but is '{found:.60}' instead.")
        utterance = Utterance(
            id=f"{speaker}-{path.stem}".upper(), text=" ".join(words[2:]), audio_filepath=str(path.absolute()),
            speaker=speaker.upper(), extra={"split": split, "part": part, "dialect": dialect},
        )  # fmt: skip
        rows.append((str(path), utterance))
    yield "", folder, rows


@register("yesno")
def yesno(card: Card, options: Options) -> Iterator[Part]:
    """Recordings of eight words, yes or no in Hebrew, which the file's name tells. Splits are by text: one speaker.

    Raises UserError for a file whose name is not eight zeros or ones.
    """
    folder = corpus_folder(card, options, "[01]_[01]_*.wav")
    rows = []
    for path in walk(folder, options.report, depth=1):
        if path.suffix != ".wav":
            continue
        if not re.fullmatch(r"[01](_[01]){7}", path.stem):
            raise UserError(f"{path}: a name must be eight zeros or ones with _ between them, but is '{path.stem}'.")
        text, audio = " ".join("YES" if digit == "1" else "NO" for digit in path.stem.split("_")), str(path.absolute())
        rows.append((str(path), Utterance(id=path.stem, text=text, audio_filepath=audio, speaker="yesno")))
    yield "", folder, rows


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
_USE_A_FOLDER = "Give a folder of your own: hkd prepare FOLDER (audio files, a .txt of the same name beside each)."


def debian_packages(names: Sequence[str], archives: Sequence[Archive], cache: Path) -> Path:
    """The packages' files, unpacked in a folder below `cache` (once). Raises HkdError with no apt or no network.

    Nothing needs root: `apt-get download` takes a package into a folder, `dpkg-deb -x` unpacks it there.
    """
    folder = cache / "debian" / "-".join(names)
    if folder.is_dir():
        return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        wanted = " and ".join(names)
        raise HkdError(f"the Debian packages {wanted} need apt, which this machine has not. {_USE_A_FOLDER}")
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
            if failure := _run(["dpkg-deb", "-x", str(path), str(work / "files")], work):
                raise HkdError(f"dpkg-deb failed ({failure}).")
        (work / "files").chmod(0o755)
        (work / "files").replace(folder)
    return folder


def _apt_download(names: Sequence[str], work: Path, cache: Path) -> None:
    """Where the system has no package lists, they are fetched into the cache."""
    patient = ["-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=60", "-o", "APT::Sandbox::User=root"]
    if _run(["apt-get", *patient, "download", *names], work) is None:
        return
    own = cache / "apt"
    for name in ("lists/partial", "archives/partial"):
        (own / name).mkdir(parents=True, exist_ok=True)
    options = [*patient, "-o", f"Dir::State::Lists={own / 'lists'}", "-o", f"Dir::Cache={own}"]
    failure = _run(["apt-get", *options, "update"], work)
    failure = _run(["apt-get", *options, "download", *names], work) and (failure or "no such package")
    if failure is not None:
        raise HkdError(f"the Debian packages {' and '.join(names)} could not be had ({failure}). {_USE_A_FOLDER}")


def _run(command: Sequence[str], folder: Path) -> str | None:
    """Run a program in a folder; None, or what it said first where it failed."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip().startswith("E:")]
    return said[0].removeprefix("E:").strip() if said else f"{command[0]} ended with {done.returncode}"


def read_prompts(path: Path) -> dict[str, str]:
    """Prompt name → what is said, from core-sounds-en.txt.gz, where anything is. Text in [], () or <> is about the
    sound; the keys * and # are read as star and pound."""
    prompts: dict[str, str] = {}
    for _, line in numbered_lines(path):
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


@register("asterisk")
def asterisk(card: Card, options: Options) -> Iterator[Part]:
    """Asterisk's English prompts: 24 minutes of one speaker; their G.722 becomes FLAC in the cache's `asterisk`.

    Of `options` only the cache is used: apt knows its servers.
    """
    files = debian_packages(card.packages, card.archives, options.cache)
    said_of, voice = read_prompts(files / _TEXTS), files / _VOICE
    names = sorted(name for name in said_of if (voice / f"{name}.g722").exists())
    folder = options.cache.absolute() / "asterisk"
    rows = []
    for number, name in enumerate(names, 1):
        path = folder / f"{name}.flac"
        if not path.exists():
            write_wav(path, decode_g722(voice / f"{name}.g722"))
        rows.append((str(path), Utterance(id=name, text=said_of[name], audio_filepath=str(path), speaker=SPEAKER)))
        options.progress(number, len(names))
    yield "", folder, rows


def sentences(paragraph: str) -> Iterator[str]:
    """Sentences of a paragraph; what is not mostly letters is left out."""
    for sentence in _END.split(" ".join(paragraph.split())):
        letters = sum(c.isalpha() or c == " " for c in sentence)
        if len(sentence.split()) >= _MIN_WORDS and letters >= _MIN_LETTER_SHARE * len(sentence):
            yield sentence


def fortune_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a fortune file: cookies stand between lines of `%`, attributions end them."""
    found: list[str] = []
    for line in [*text.splitlines(), "%"]:
        if line.strip() in ("%", "") or _ATTRIBUTION.match(line):
            if found:
                yield " ".join(found)
            found = []
        else:
            found.append(line.replace("_\b", "").strip())


@register("fortunes", is_text=True)
def fortunes(card: Card, options: Options) -> Iterator[str]:
    """The sentences of all fortune files, each once; attributions, tables and ASCII art are left out."""
    folder = debian_packages(card.packages, card.archives, options.cache) / _FORTUNES
    names = (path for path in folder.iterdir() if not path.suffix and path.name not in _LEFT_OUT)
    files = sorted(path for path in names if path.is_file())
    seen: set[str] = set()
    for number, path in enumerate(files, 1):
        for paragraph in fortune_paragraphs(path.read_text(encoding="utf-8", errors="replace")):
            new = [sentence for sentence in sentences(paragraph) if sentence not in seen]
            yield from dict.fromkeys(new)
            seen.update(new)
        options.progress(number, len(files))
