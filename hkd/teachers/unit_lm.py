"""The folder of a unit LM, and the LM in it as a teacher.

    lm/NAME/
      config.json          format version ("hkd_lm"), level, direction, given, sizes, folds, what it was trained on
      inventory.json       its units
      report.json          perplexities and the verdict: `neural` or `ngram` is the teacher; written last, so it marks a
                           finished LM
      model.safetensors    the LM
      ngram.arpa           the n-gram that it is held against (words are unit ids; over phones with given
                           `outside-phone`)
      senones.safetensors  given `outside-phone`: each senone's phone and state, counts of senones in context
      read.npy             which sentences of the text it has learnt from (`TextRead`)
      folds.json, fold-0/ …  cross-fitted: the fold of each transcript, by the digest of its words, and the last three
                             files a fold

A transcript is labelled by the LM of its fold, which has not seen it; one that no fold has, by that of fold 0.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hkd.errors import UserError, check_setting
from hkd.files import digest_of, digest_of_file
from hkd.sparse import TopK
from hkd.teachers.base import Sentence, Teacher, TeacherInfo, cut_rows
from hkd.teachers.cloze import SenoneCounts, UnitLm, UnitLmSizes, collate
from hkd.teachers.ngram import load_ngram
from hkd.topk import select_topk
from hkd.units.inventory import UnitInventory

FORMAT = 1
CONFIG, INVENTORY, REPORT, FOLDS = "config.json", "inventory.json", "report.json", "folds.json"
MODEL, NGRAM, SENONES, TEXT_READ = "model.safetensors", "ngram.arpa", "senones.safetensors", "read.npy"
MAX_KEPT = 200_000  # sentences of a TextRead
_INPUTS = 8192  # tower inputs a pass, padding included
_CELLS = 8_000_000  # logits a pass
_AGAIN = "Train the LM again with `hkd lm train --overwrite`."
_FIGURES = {"neural": "neural_lm", "ngram": "n-gram"}


class UnitLmTeacher(Teacher):
    """A neural unit LM as a teacher."""

    def __init__(self, model: UnitLm, *, inventory: UnitInventory, info: TeacherInfo, device: str = "cpu") -> None:
        super().__init__(inventory=inventory, info=info)
        self._model, self._device = model.to(device).eval(), device

    def _passes(self, sentences: Sequence[Sentence]) -> list[list[int]]:
        """Numbers of sentences (not empty) by length, cut so that a pass stays within memory."""
        order = sorted((n for n, s in enumerate(sentences) if len(s.unit_U)), key=lambda n: len(sentences[n].unit_U))
        passes: list[list[int]] = []
        positions = 0
        for number in order:
            length = len(sentences[number].unit_U)
            fits = passes and length * (len(passes[-1]) + 1) <= _INPUTS
            if not fits or (positions + length) * len(self.inventory) > _CELLS:
                passes.append([])
                positions = 0
            passes[-1].append(number)
            positions += length
        return passes

    @torch.inference_mode()
    def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
        rows = [TopK.empty(min(k, len(self.inventory)), len(temperatures))] * len(sentences)
        for numbers in self._passes(sentences):
            batch = collate([sentences[n].unit_U for n in numbers], senones=self._model.senones).to(self._device)
            whole = select_topk(self._model.logits(batch), batch.gold_N, k=k, temperatures=temperatures)
            for number, mine in zip(numbers, cut_rows(whole, [sentences[n] for n in numbers]), strict=True):
                rows[number] = mine
        return rows


class TextRead:
    """Which sentences an LM has learnt from, by the digest of their words. Of many, those whose digest is a multiple of
    `every`. The file: `every`, then the digests (uint64, sorted)."""

    def __init__(self, every: int = 1, seen: Iterable[int] = ()) -> None:
        self.every, self._seen = every, set(seen)

    def add(self, spoken: Sequence[str]) -> None:
        """A sentence's normalised words."""
        number = self._digest(spoken)
        if number % self.every == 0:
            self._seen.add(number)
        if len(self._seen) > MAX_KEPT:
            self.every *= 2
            self._seen = {number for number in self._seen if number % self.every == 0}

    def save(self, path: Path) -> None:
        """Write the file."""
        np.save(path, np.array([self.every, *sorted(self._seen)], np.uint64))

    @classmethod
    def load(cls, path: Path) -> "TextRead | None":
        """What `save` wrote; None where there is none, as of an LM that an earlier version trained."""
        if not path.exists():
            return None
        every, *seen = np.load(path).tolist()
        return cls(every, seen)

    @staticmethod
    def _digest(spoken: Sequence[str]) -> int:
        return int.from_bytes(hashlib.sha256(" ".join(spoken).encode()).digest()[:8], "little")

    def share(self, sentences: Iterable[Sequence[str]]) -> float:
        """How many of the sentences it has learnt from, of 1."""
        asked = [number for number in map(self._digest, sentences) if number % self.every == 0]
        return sum(number in self._seen for number in asked) / max(1, len(asked))


class CrossFitTeacher(Teacher):
    """Several teachers of one kind, each for the utterances that it has not seen."""

    def __init__(self, teachers: Sequence[Teacher], fold_of: dict[bytes, int]) -> None:
        """fold_of: `text_digest` of a transcript → the fold that has not seen it."""
        self._teachers, self._fold_of = teachers, fold_of
        first = teachers[0].info
        texts = (text + bytes([fold]) for text, fold in sorted(fold_of.items()))
        digest = digest_of([*(teacher.info.digest for teacher in teachers), *texts])
        options = {**first.options, "folds": len(teachers), "unknown_texts": "fold 0"}
        info = replace(first, digest=digest, options=options, trained_on_transcripts="cross-fitted")
        super().__init__(inventory=teachers[0].inventory, info=info)

    def fold(self, text: bytes) -> int:
        """Whose LM labels a text: the one that has not seen it; that of fold 0 where none has."""
        return self._fold_of.get(text, 0)

    def score(self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = ()) -> list[TopK]:
        """Each sentence by the teacher of its fold."""
        rows: dict[int, TopK] = {}
        for fold, teacher in enumerate(self._teachers):
            mine = [number for number, sentence in enumerate(sentences) if self.fold(sentence.text) == fold]
            scored = teacher.score([sentences[number] for number in mine], k=k, temperatures=temperatures)
            rows.update(zip(mine, scored, strict=True))
        return [rows[number] for number in range(len(sentences))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a unit LM's folder. Raises UserError where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Run `hkd lm train` first, to its end.") from None
    except ValueError:
        raise UserError(f"{path} must be JSON, but is not. {_AGAIN}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, but does not. {_AGAIN}")
    return value


def load_unit_lm(folder: Path, *, device: str = "cpu") -> Teacher:
    """The teacher of a folder that `hkd lm train` made, by its report's verdict. Raises UserError where the folder is
    none, not finished, or of a newer format."""
    config = read_json(folder / CONFIG)
    made, rule = config.get("hkd_lm"), f"be a unit LM of format {FORMAT}"
    check_setting(str(folder), f"of {made}", rule, made == FORMAT, "Update hkd.")
    report = read_json(folder / REPORT)
    inventory = UnitInventory.load(folder / INVENTORY)
    given: dict[str, Any] = {"config": config, "inventory": inventory, "name": folder.name, "device": device}
    kind = report["teacher"]
    if config["transcripts"] == "none":
        teacher = load_part(folder, kind, **given)
    else:
        parts = [load_part(folder / f"fold-{fold}", kind, **given) for fold in range(int(config["folds"]))]
        if config["identity"].get("folds_by") != "text":
            why = f"{folder} was made by an earlier hkd, whose folds are of utterances, not of texts"
            raise UserError(f"{why}. Run `hkd lm train --overwrite`.")
        fold_of = {bytes.fromhex(text): int(fold) for text, fold in read_json(folder / FOLDS).items()}
        teacher = CrossFitTeacher(parts, fold_of)
    read = TextRead.load(folder / TEXT_READ)
    teacher.has_read = None if read is None else read.share
    if "figures" in report:  # what `hkd lm train` measured, like against like
        judged = report["figures"][report["judged_on"]]
        teacher.figures = {"judged_on": f"unseen {report['judged_on']}"}
        for lm, called in _FIGURES.items():
            if lm in judged:
                teacher.figures[f"{called}_perplexity"] = round(judged[lm]["perplexity"], 2)
    return teacher


def load_part(
    part: Path, kind: str, *, config: dict[str, Any], inventory: UnitInventory, name: str, device: str = "cpu"
) -> Teacher:
    """The LM of a folder or of one of its folds: `neural`, or `ngram`, which always runs on the CPU."""
    given, direction = str(config["given"]), str(config["direction"])
    trained = "no" if config["transcripts"] == "none" else "cross-fitted"
    counts = part / SENONES if given == "outside-phone" else None
    if kind == "ngram":
        known = {"tokens": "id", "name": name, "trained_on_transcripts": trained}
        return load_ngram(part / NGRAM, inventory=inventory, given=given, counts_path=counts, **known)
    senones = SenoneCounts.load(counts).senones if counts else None
    model = UnitLm(UnitLmSizes(**config["sizes"]), num_units=len(inventory), direction=direction, senones=senones)
    try:
        model.load_state_dict(load_file(part / MODEL))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = f"cannot be read ({str(error).splitlines()[0]})"
        raise UserError(f"{part / MODEL} must hold this LM's weights, but {why}. Train it again.") from None
    info = TeacherInfo(
        name=name,
        kind=direction,
        direction="left" if given == "left" else "both",
        digest=digest_of([digest_of_file(part / MODEL), inventory.digest, given]),
        given=given,
        trained_on_transcripts=trained,
    )
    return UnitLmTeacher(model, inventory=inventory, info=info, device=device)
