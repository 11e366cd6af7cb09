"""Data that other tools prepared: which kinds there are, which of them a path is, and reading it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hkd import lines, manifest
from hkd.corpora import hf, kaldi, lhotse, nemo
from hkd.corpora.collect import collect
from hkd.corpora.folder import read_folder, read_tsv
from hkd.errors import UserError
from hkd.manifest import Manifest, parse_json
from hkd.progress import Progress, no_progress


class Reader(Protocol):
    """Makes a manifest of a path; sound that lies inside other files is written below `audio_to`."""

    def __call__(self, source: str, *, audio_to: Path, progress: Progress) -> Manifest: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of data: what people call it, and its reader."""

    title: str
    read: Reader


def _own(source: str, *, audio_to: Path, progress: Progress) -> Manifest:
    path = Path(source)
    numbered = ((f"{path}:{number}", utterance) for number, utterance in manifest.numbered_lines(path))
    return collect(numbered, path, progress=progress)


def _folder(source: str, *, audio_to: Path, progress: Progress) -> Manifest:
    path = Path(source)
    return read_folder(path, progress=progress) if path.is_dir() else read_tsv(path, progress=progress)


KINDS = {
    "folder": Kind(title="a folder of audio with .txt or one .tsv", read=_folder),
    "kaldi": Kind(
        title="a Kaldi data folder", read=lambda source, *, audio_to, progress: kaldi.read_kaldi(Path(source), progress=progress)
    ),
    "nemo": Kind(
        title="a NeMo manifest", read=lambda source, *, audio_to, progress: nemo.read_nemo(Path(source), progress=progress)
    ),
    "lhotse": Kind(
        title="manifests of lhotse's",
        read=lambda source, *, audio_to, progress: lhotse.read_lhotse(Path(source), audio_to=audio_to, progress=progress),
    ),
    "hf": Kind(title="a Hugging Face data set", read=hf.read_hf),
    "hkd": Kind(title="a manifest of hkd's", read=_own),
}


def read_path(source: str, kind: str, *, audio_to: Path, progress: Progress = no_progress) -> Manifest:
    """The utterances of a path (or, for `hf`, a name) of that kind. Raises UserError, HkdError."""
    if kind not in KINDS:
        raise UserError(f"--from must be one of {', '.join(KINDS)}, but is '{kind}' instead.")
    if kind != "hf" and not Path(source).exists():
        raise UserError(f"{source} must be {KINDS[kind].title}, but is not there.")
    return KINDS[kind].read(source, audio_to=audio_to, progress=progress)


def guess_kind(path: Path) -> str:
    """Which kind of data a path is. Raises UserError where it could be several, or none."""
    kinds = sorted(set(_folder_clues(path) if path.is_dir() else _file_clues(path)))
    if len(kinds) > 1:
        raise UserError(
            f"{path} could be {' or '.join(KINDS[kind].title for kind in kinds)}. Say which: --from {'|'.join(kinds)}."
        )
    if not kinds and not path.is_dir():
        raise UserError(f"{path} must be a folder, a .tsv or a .jsonl, or what --from names, but is none of them.")
    return kinds[0] if kinds else "folder"


def _folder_clues(folder: Path) -> Iterator[str]:
    if kaldi.is_kaldi_folder(folder) or kaldi.split_folders(folder):
        yield "kaldi"
    arrow = (
        "dataset_dict.json",
        "state.json",
        "*.parquet",
        "data/*.parquet",
        "metadata.csv",
        "metadata.jsonl",
        "*/metadata.csv",
        "*/metadata.jsonl",
    )
    if any(next(folder.glob(name), None) is not None for name in arrow):
        yield "hf"
    elif any(_peek(path) in ("nemo", "hkd") for path in nemo.nemo_files(folder)):
        yield "nemo"
    if any(path.name.endswith(lhotse.ENDINGS) and (path.suffix == ".gz" or _peek(path) == "lhotse") for path in folder.iterdir()):
        yield "lhotse"


def _file_clues(path: Path) -> Iterator[str]:
    by_ending = {".tsv": "folder", ".parquet": "hf", ".json": "nemo"}
    if path.suffix in by_ending:
        yield by_ending[path.suffix]
    elif path.name.endswith(lhotse.ENDINGS):
        yield _peek(path) or ("lhotse" if path.suffix == ".gz" else "hkd")


def _peek(path: Path) -> str | None:
    """Whose manifest a JSONL file is by its first row; None where that cannot be told."""
    try:
        row = next((parse_json(line) for _, line in lines.numbered_lines(path) if line.strip()), {})
    except UserError:
        return None
    if "recording" in row or "sources" in row or "recording_id" in row:
        return "lhotse"
    if "id" in row and "text" in row:
        return "hkd"
    return "nemo" if "audio_filepath" in row else None
