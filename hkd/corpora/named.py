"""Corpora that are known by name and laid out in ways of their own: a reader for each.

- LibriSpeech: PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with a SPEAKER-CHAPTER.trans.txt beside them. train-* are `train`, dev-clean
  and test-clean are `dev` and `test`; dev-other and test-other are splits of their own names. Mini LibriSpeech has a training and a
  development part; the latter is halved by speaker into `dev` and `test`.
- Common Voice, any language: a release's folder LANGUAGE/ with train.tsv, dev.tsv, test.tsv and clips/*.mp3.
- LJSpeech 1.1: metadata.csv (id|text|normalised text, which is taken) and wavs/ID.wav, one speaker.
- AN4 (CMU, 1991): spelt and spoken numbers, names and addresses; etc/an4_{train,test}.{fileids,transcription} and wav/PART/SPEAKER/ID.sph.
  Training speakers are divided into `train` and `dev`; the corpus' own test part is `test`.
- speechocean762 (OpenSLR 101): {train,test}/{wav.scp,text,utt2spk}, Kaldi data folders whose paths start at the corpus' folder. `test` is the
  corpus' own; `dev` are 15 of the 125 training speakers. A copy of the training part alone, a Kaldi folder itself, is read too.
- TIMIT as the LDC delivers it (LDC93S1): {TRAIN,TEST}/DIALECT/SPEAKER/SENTENCE.{WAV,TXT,PHN,WRD}, names in upper or lower case. The dialect
  sentences (SA), which every speaker reads, are left out; `train` is TRAIN, `test` the core test set's 24 speakers, `dev` the 50
  development speakers of Kaldi's recipe (Halberstadt's thesis, 1998). A RIFF copy beside the SPHERE file (SA1.WAV.wav) is left alone.
- yesno: sixty recordings of eight words each by one speaker, who says yes or no in Hebrew. The file's name is what is said.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hkd import lines
from hkd.corpora.cards import Card, Source, archive_folder, corpus_folder, find_below, load_card
from hkd.corpora.collect import Options, Report, Row, collect, walk
from hkd.corpora.debian import prepare_asterisk
from hkd.corpora.importers import is_kaldi_folder, kaldi_rows, tsv_rows
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance, assign_splits
from hkd.progress import Progress, no_progress


def _with_split(u: Utterance, split: str) -> Utterance:
    return replace(u, extra={**u.extra, "split": split})


def _speaker(u: Utterance) -> str:
    return u.speaker or ""


def read_librispeech_part(folder: Path, part: str, report: Report) -> Iterator[Row]:
    """The utterances of a part's folder by id, with `part` in the extra fields."""
    for transcript in walk(folder, report):
        if not transcript.name.endswith(".trans.txt"):
            continue
        speaker, _, chapter = transcript.name.removesuffix(".trans.txt").partition("-")
        extra = {"recording": f"{speaker}-{chapter}", "part": part}
        for number, line in lines.numbered_lines(transcript, "a transcript"):
            name, _, text = line.strip().partition(" ")
            if name:
                path = str((transcript.parent / f"{name}.flac").absolute())
                yield (
                    f"{transcript}:{number}",
                    Utterance(id=name, text=text.strip(), audio_filepath=path, speaker=speaker, extra=extra),
                )


def _librispeech_parts(card: Card, source: Source, progress: Progress) -> dict[str, Manifest]:
    """Part → its utterances: from a folder of that name below `root`, else from its archive."""
    archives = {archive.file.removesuffix(".tar.gz"): archive for archive in card.archives}
    folders: dict[str, Path] = {}
    for part in source.choose(card, archives):
        above = find_below(source.root, part) if source.root is not None else None
        if above is not None:
            folders[part] = above / part
        elif source.root is None or source.parts or not card.some_parts or (source.root / archives[part].file).is_file():
            folders[part] = archive_folder(card, archives[part], source, progress=progress)
    if not folders:
        raise UserError(f"{source.root} must hold parts of {card.name} ({', '.join(archives)}), but holds none of them.")
    report = source.report
    return {
        part: collect(read_librispeech_part(folder, part, report), folder, report=report, progress=progress)
        for part, folder in folders.items()
    }


def prepare_librispeech(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """LibriSpeech, the parts that are asked for; without a wish those that `root` has, or all."""
    parts = _librispeech_parts(load_card("librispeech"), source, progress)
    split_of = {
        part: "train" if part.startswith("train-") else {"dev-clean": "dev", "test-clean": "test"}.get(part, part)
        for part in parts
    }
    return Manifest(_with_split(u, split_of[part]) for part, found in parts.items() for u in found)


def prepare_mini_librispeech(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """Mini LibriSpeech with its splits."""
    parts = _librispeech_parts(load_card("mini_librispeech"), source, progress)
    train = [_with_split(u, "train") for u in parts.pop("train-clean-5", ())]
    held_out = Manifest(u for found in parts.values() for u in found)
    return Manifest([*train, *assign_splits(held_out, {"dev": 0.5, "test": 0.5}, by=_speaker)])


def prepare_common_voice(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """A language of Common Voice with its three splits. Raises UserError where the folder holds several languages."""
    folder = corpus_folder(load_card("common_voice"), source, "train.tsv", progress=progress)
    others = sorted(path.parent.name for path in folder.parent.glob("*/train.tsv"))
    if source.root is not None and folder != source.root and len(others) > 1:
        raise UserError(
            f"--root must be one language's folder, but {folder.parent} has {', '.join(others)}. Give {folder.parent}/LANGUAGE."
        )
    options = Options(report=source.report)
    found = [
        (
            place,
            u if Path(u.audio_filepath or "").suffix else replace(u, audio_filepath=f"{u.audio_filepath}.mp3"),
        )  # before 2019-12
        for split in ("train", "dev", "test")
        for place, u in tsv_rows(folder / f"{split}.tsv", options, audio=folder / "clips", split=split)
    ]
    return collect(found, folder, report=source.report, progress=progress)


def prepare_ljspeech(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """LJSpeech, without splits (one speaker: they are made by text)."""
    folder = corpus_folder(load_card("ljspeech"), source, "metadata.csv", progress=progress)
    table = folder / "metadata.csv"
    found = []
    for number, line in lines.numbered_lines(table, "a table"):
        if not line.strip():
            continue
        cells = line.split("|")
        if len(cells) < 2 or not cells[0].strip():
            raise UserError(f"{table}:{number}: a row must be ID|TEXT|NORMALISED TEXT, but is '{line[:60]}' instead.")
        name, text = cells[0].strip(), cells[2 if len(cells) > 2 else 1].strip()
        path = str((folder / "wavs" / f"{name}.wav").absolute())
        found.append((f"{table}:{number}", Utterance(id=name, text=text, audio_filepath=path, speaker="lj")))
    return collect(found, folder, report=source.report, progress=progress)


_AN4_LINE = re.compile(r"^(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()]+)\)$")


def read_an4_part(folder: Path, part: str) -> Iterator[Row]:
    """The utterances of `train` or `test`. Raises UserError where a line is no transcription or a file list says otherwise."""
    listed = folder / "etc" / f"an4_{part}.fileids"
    path_of = {Path(line.strip()).name: line.strip() for _, line in lines.numbered_lines(listed, "a file list") if line.strip()}
    transcription = folder / "etc" / f"an4_{part}.transcription"
    for number, line in lines.numbered_lines(transcription, "a transcription"):
        if not line.strip():
            continue
        match = _AN4_LINE.match(line.strip())
        if match is None:
            raise UserError(f"{transcription}:{number}: a line must be TEXT (ID), but is '{line[:60]}' instead.")
        name = match["id"].strip()
        if name not in path_of:
            raise UserError(f"{transcription}:{number}: '{name}' must stand in {listed.name} too, but does not.")
        stem = folder / "wav" / path_of[name]
        named = [stem.with_name(stem.name + ending) for ending in (".sph", ".wav", ".flac")]
        utterance = Utterance(
            id=name,
            text=" ".join(match["text"].split()),
            audio_filepath=str(next((path for path in named if path.exists()), named[0]).absolute()),
            speaker=stem.parent.name,
            extra={"part": part},
        )
        yield f"{transcription}:{number}", utterance


def prepare_an4(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """AN4 with its splits."""
    folder = corpus_folder(load_card("an4"), source, "etc/an4_train.fileids", progress=progress)
    train, test = (
        collect(read_an4_part(folder, part), folder, report=source.report, progress=progress) for part in ("train", "test")
    )
    return Manifest([*assign_splits(train, {"train": 0.9, "dev": 0.1}, by=_speaker), *(_with_split(u, "test") for u in test)])


def prepare_speechocean762(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """speechocean762 with its splits."""
    card = load_card("speechocean762")
    if source.root is not None and is_kaldi_folder(source.root):
        folders = {"train": source.root}
    else:
        folder = corpus_folder(card, source, "train/wav.scp", progress=progress)
        folders = {part: folder / part for part in source.choose(card, card.parts)}
    parts = {
        part: collect(kaldi_rows(folder, source.report, extra={"part": part}), folder, report=source.report, progress=progress)
        for part, folder in folders.items()
    }
    train = assign_splits(parts["train"], {"train": 0.88, "dev": 0.12}, by=_speaker) if "train" in parts else ()
    return Manifest([*train, *(_with_split(u, "test") for u in parts.get("test", ()))])


_CORE_TEST = """
fdhc0 felc0 fjlm0 fmgd0 fmld0 fnlp0 fpas0 fpkt0 mbpm0 mcmj0 mdab0 mgrt0 mjdh0 mjln0 mjmp0 mklt0 mlll0 mlnt0 mnjm0 mpam0 mtas1 mtls0 mwbt0
mwew0"""
_DEV = """
fadg0 faks0 fcal1 fcmh0 fdac1 fdms0 fdrw0 fedw0 fgjd0 fjem0 fjmg0 fjsj0 fkms0 fmah0 fmml0 fnmr0 frew0 fsem0 majc0 mbdg0 mbns0 mbwm0 mcsh0
mdlf0 mdls0 mdvc0 mers0 mgjf0 mglb0 mgwt0 mjar0 mjfc0 mjsw0 mmdb1 mmdm2 mmjr0 mmwh0 mpdf0 mrcs0 mreb0 mrjm4 mrjr0 mroa0 mrtk0 mrws1 mtaa0
mtdt0 mteb0 mthc0 mwjg0"""
CORE_TEST = frozenset(_CORE_TEST.split())
DEV = frozenset(_DEV.split())


def timit_split_of(part: str, speaker: str) -> str | None:
    """The split of a speaker (lower case) of a part (train, test); None for those of the complete test set that are in neither list."""
    if part == "train":
        return "train"
    return "test" if speaker in CORE_TEST else "dev" if speaker in DEV else None


def read_timit(folder: Path, report: Report) -> Iterator[Row]:
    """The utterances by path. Raises UserError where a sentence has no text."""
    for path in walk(folder, report):
        names = [name.lower() for name in path.relative_to(folder).parts]
        if len(names) != 4 or names[0] not in ("train", "test"):
            continue
        part, dialect, speaker, sentence = names
        split = timit_split_of(part, speaker)
        if not sentence.endswith(".wav") or sentence.startswith("sa") or sentence.count(".") > 1 or split is None:
            continue
        transcript = path.with_suffix(".TXT" if path.suffix.isupper() else ".txt")
        words = " ".join(line for _, line in lines.numbered_lines(transcript, "a transcript")).split()
        if len(words) < 3 or not (words[0].isdigit() and words[1].isdigit()):
            raise UserError(f"{transcript}:1: a transcript must be START END TEXT, but is '{' '.join(words)[:60]}' instead.")
        utterance = Utterance(
            id=f"{speaker}-{path.stem}".upper(),
            text=" ".join(words[2:]),
            audio_filepath=str(path.absolute()),
            speaker=speaker.upper(),
            extra={"split": split, "part": part, "dialect": dialect},
        )
        yield str(path), utterance


def prepare_timit(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """TIMIT with its splits."""
    folder = corpus_folder(load_card("timit"), source, "[Tt][Rr][Aa][Ii][Nn]/[Dd][Rr][1-8]", progress=progress)
    return collect(read_timit(folder, source.report), folder, report=source.report, progress=progress)


def prepare_yesno(source: Source, *, progress: Progress = no_progress) -> Manifest:
    """yesno, without splits (one speaker: they are made by text). Raises UserError for a file whose name is not eight zeros or ones."""
    folder = corpus_folder(load_card("yesno"), source, "[01]_[01]_*.wav", progress=progress)
    found = []
    for path in walk(folder, source.report, depth=1):
        if path.suffix != ".wav":
            continue
        if not re.fullmatch(r"[01](_[01]){7}", path.stem):
            raise UserError(f"{path}: a name must be eight zeros or ones with _ between them, but is '{path.stem}' instead.")
        text = " ".join("YES" if digit == "1" else "NO" for digit in path.stem.split("_"))
        found.append((str(path), Utterance(id=path.stem, text=text, audio_filepath=str(path.absolute()), speaker="yesno")))
    return collect(found, folder, report=source.report, progress=progress)


SPEECH: Mapping[str, Callable[..., Manifest]] = {
    "an4": prepare_an4,
    "asterisk": prepare_asterisk,
    "common_voice": prepare_common_voice,
    "librispeech": prepare_librispeech,
    "ljspeech": prepare_ljspeech,
    "mini_librispeech": prepare_mini_librispeech,
    "speechocean762": prepare_speechocean762,
    "timit": prepare_timit,
    "yesno": prepare_yesno,
}
