"""TIMIT as the LDC delivers it (LDC93S1): {TRAIN,TEST}/DIALECT/SPEAKER/SENTENCE.{WAV,TXT,PHN,WRD}, names in upper or lower case.

- The usual experiment: the two dialect sentences (SA), which every speaker reads, are left out; `train` is TRAIN, `test` the core test
  set's 24 speakers, `dev` the 50 development speakers of Kaldi's recipe (Halberstadt's thesis, 1998).
- Sound is SPHERE without compression, which libsndfile reads; a RIFF copy beside it (SA1.WAV.wav) is left alone.
"""

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from hkd import lines
from hkd.corpora.card import load_card
from hkd.corpora.collect import Found, collect
from hkd.corpora.place import Place, corpus_folder
from hkd.errors import UserError
from hkd.manifest import Manifest, Utterance
from hkd.progress import Progress, no_progress

_CORE_TEST = """
fdhc0 felc0 fjlm0 fmgd0 fmld0 fnlp0 fpas0 fpkt0 mbpm0 mcmj0 mdab0 mgrt0 mjdh0 mjln0 mjmp0 mklt0 mlll0 mlnt0 mnjm0 mpam0 mtas1 mtls0 mwbt0
mwew0"""
_DEV = """
fadg0 faks0 fcal1 fcmh0 fdac1 fdms0 fdrw0 fedw0 fgjd0 fjem0 fjmg0 fjsj0 fkms0 fmah0 fmml0 fnmr0 frew0 fsem0 majc0 mbdg0 mbns0 mbwm0 mcsh0
mdlf0 mdls0 mdvc0 mers0 mgjf0 mglb0 mgwt0 mjar0 mjfc0 mjsw0 mmdb1 mmdm2 mmjr0 mmwh0 mpdf0 mrcs0 mreb0 mrjm4 mrjr0 mroa0 mrtk0 mrws1 mtaa0
mtdt0 mteb0 mthc0 mwjg0"""
CORE_TEST = frozenset(_CORE_TEST.split())
DEV = frozenset(_DEV.split())
_MARKER = "[Tt][Rr][Aa][Ii][Nn]/[Dd][Rr][1-8]"


def split_of(part: str, speaker: str) -> str | None:
    """The split of a speaker (lower case) of a part (train, test); None for those of the complete test set that are in neither list."""
    if part == "train":
        return "train"
    return "test" if speaker in CORE_TEST else "dev" if speaker in DEV else None


def read(folder: Path) -> Iterator[Found]:
    """The utterances by path. Raises UserError where a sentence has no text."""
    for path in sorted(folder.glob("*/*/*/*")):
        part, dialect, speaker, sentence = (name.lower() for name in (*path.relative_to(folder).parts[:3], path.name))
        split = split_of(part, speaker) if part in ("train", "test") else None
        if not sentence.endswith(".wav") or sentence.startswith("sa") or sentence.count(".") > 1 or split is None:
            continue
        upper = path.suffix.isupper()
        transcript = path.with_suffix(".TXT" if upper else ".txt")
        words = " ".join(line for _, line in lines.numbered_lines(transcript, "a transcript")).split()
        if len(words) < 3 or not (words[0].isdigit() and words[1].isdigit()):
            raise UserError(f"{transcript}:1: a transcript must be START END TEXT, but is '{' '.join(words)[:60]}' instead.")
        yield (
            str(path),
            Utterance(
                id=f"{speaker}-{path.stem}".upper(), text=" ".join(words[2:]), audio_filepath=str(path.absolute()), speaker=speaker.upper(),
                extra=MappingProxyType({"split": split, "part": part, "dialect": dialect}),
            ),
        )  # fmt: skip


def prepare(place: Place, *, progress: Progress = no_progress) -> Manifest:
    """TIMIT with its splits."""
    folder = corpus_folder(load_card("timit"), place, _MARKER, progress=progress)
    return collect(read(folder), folder, progress=progress)
