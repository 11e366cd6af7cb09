"""evaluate: a run's exported student on a split, as figures with intervals.

- Needs the run's `model/` and a manifest with audio. The figures of the heads, and of a hybrid student's main output,
  are added where the run's full weights, an alignment and label stores are present and fit.
- An evaluation that is finished under the same inputs (model, references, settings) is left as it is.
"""

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hkd.align.alignment import Alignment
from hkd.audio import digest_of_sound
from hkd.decode.ctc import SearchConfig
from hkd.decode.recogniser import Recogniser
from hkd.errors import HkdError, Progress, UserError, no_progress, some
from hkd.evaluate import score
from hkd.evaluate.decoding import SHUFFLED, EvaluateConfig, check_n_best, decode, features_on_disk
from hkd.evaluate.decoding import splice as spliced
from hkd.evaluate.heads import MAIN, frame_figures, frame_inputs, piece_figures, piece_inputs, piece_teacher
from hkd.files import differences, digest_of, digest_of_file
from hkd.manifest import Manifest
from hkd.manifest import read as read_manifest
from hkd.units.sequences import MODEL_FILE
from hkd.units.text import normalisation
from hkd.units.tying import LEXICON_FILE, load_lexicon

logger = logging.getLogger(__name__)

NOT_IN_FIGURES = ("device", "batch_seconds", "n_best", "features_cache")  # settings that change no error rate


def evaluate(
    run_folder: Path,
    *,
    manifest: Path,
    split: str = "test",
    alignment: Path | None = None,
    labels: Path | None = None,
    units: Path | None = None,
    lm: str | None = None,
    tag: str = "",
    config: EvaluateConfig | None = None,
    splice: str = "",
    progress: Progress = no_progress,
) -> score.EvaluationReport:
    """Decode the split with the run's exported student, score it, and write eval-SPLIT.* into the run's folder.

    alignment, labels (folder of label stores): for the figures of the heads, left out where None, absent or unfit.
    units: the folder of the subword model, which a hybrid student does not carry, and of the project's lexicon, where
    it has one. lm: beside the decoder (see `Recogniser`). tag: names another way to decode; its figures lie beside the
    usual ones and leave out the heads. splice: "spliced" or "shuffled": the words are cut out at the alignment and
    joined again (see `hkd.evaluate.decoding`); the split is then called SPLIT-spliced or SPLIT-shuffled. Raises
    UserError for a run without exported student, an empty split, unreadable audio, or a search without `n_best`.
    """
    config = config or EvaluateConfig()
    model_folder = run_folder / "model"
    if not (model_folder / "student.json").exists():
        rule = f"must have an exported student in {model_folder}"
        raise UserError(f"a run {rule}, but has none. Run `hkd train` to its end first.")
    part = read_manifest(manifest).split(split)
    if not re.fullmatch(r"[A-Za-z0-9_-]*", tag):
        raise UserError(f"tag must be letters, digits, - and _, but is '{tag}' instead.")
    spoken_by = next((folder for folder in (model_folder, units) if folder and (folder / LEXICON_FILE).exists()), None)
    is_plain, name = not tag and not splice, f"{split}-{splice}" if splice else split
    teacher = piece_teacher(run_folder, labels) if is_plain else None
    heads: dict[str, Any] = {}
    if is_plain:
        heads = frame_inputs(run_folder, alignment=alignment, labels=labels) | piece_inputs(run_folder, teacher)
    inputs = _inputs(run_folder, part, config) | {"heads": heads, "lm": _lm_digest(lm)}
    cut_at = None
    if splice:
        if alignment is None:
            fault = "words can be cut out only where an alignment is, but there is none"
            raise UserError(f"{fault}. Run `hkd align` first.")
        cut_at = Alignment(alignment)
        inputs["splice"] = {"order": splice, "alignment": cut_at.digest}
    if (sound := digest_of_sound(part)) is not None:
        inputs["sound"] = sound
    if spoken_by is not None:
        inputs["lexicon"] = digest_of_file(spoken_by / LEXICON_FILE)
    if (finished := _finished(run_folder, name, tag, inputs)) is not None:
        logger.info("%s on %s is evaluated already", run_folder.name, name)
        return finished
    recogniser = Recogniser(model_folder, device=config.device, search=config.search, lm=lm)
    check_n_best(config.n_best, config.search, is_hybrid=recogniser.is_hybrid)
    features = None if splice else features_on_disk(recogniser, part, config.features_cache)
    read: dict[str, Any] = {"batch_seconds": config.batch_seconds, "features": features}
    with tempfile.TemporaryDirectory() as folder:
        if cut_at is not None:
            part, lost = spliced(part, cut_at, Path(folder), shuffled=splice == SHUFFLED)
            if lost:
                why = "are not aligned or have one word, and are left out"
                logger.warning("%d utterances %s (%s)", len(lost), why, some(lost))
        decoded = decode(recogniser, part, n_best=config.n_best, progress=progress, **read)
    figures = {}
    if is_plain:
        if of_main := piece_figures(recogniser, part, teacher=teacher, **read):
            figures[MAIN] = of_main
        pieces = recogniser.meta.subword_model or (units and units / MODEL_FILE)
        read |= {"alignment": alignment, "labels": labels, "units": units, "subword_model": pieces}
        try:
            figures |= frame_figures(run_folder, part, device=recogniser.device, progress=progress, **read)
        except HkdError as error:  # the error rates do not depend on them
            logger.warning("%s: the figures of its heads are left out: %s", run_folder.name, error)
    lexicon = load_lexicon(spoken_by) if spoken_by is not None else score.english()
    rows = tuple(score.with_phones(row, lexicon) for row in decoded.rows)
    scores = score.score_all(rows)
    speakers = [row.speaker for row in rows if row.speaker is not None]
    named = speakers if len(speakers) == len(rows) else None
    audio_s = sum(row.seconds for row in rows)
    rtf, extra = decoded.seconds.total / audio_s, recogniser.meta.extra
    timing: dict[str, Any] = {"rtf": rtf, "audio_s": audio_s}
    timing |= {f"{name}_s": value for name, value in asdict(decoded.seconds).items()}
    timing |= {"device": recogniser.device, "threads": torch.get_num_threads()}
    sizes: dict[str, float] = {"utterances": len(rows), "speakers": len(set(named or ()))}
    sizes |= {"hours": round(audio_s / 3600, 6), "words": scores["wer"].totals()["tokens"]}
    report = score.EvaluationReport(
        run=run_folder.name,
        split=name,
        objective=str(extra.get("objective", run_folder.name)),
        seed=extra.get("seed"),
        data=sizes,
        errors={name: error_rate(counts, named, config) for name, counts in scores.items()},
        frames=figures,
        parameters=recogniser.num_parameters,
        decoder=_decoder(config.search, recogniser, lm),
        tag=tag,
        inputs=inputs,
        rtf=rtf,
        hypotheses=rows,
    )
    score.write_result(run_folder, report, scores, n_best=decoded.n_best, timing=timing)
    return report


def error_rate(scores: score.Scores, speakers: Sequence[str] | None, config: EvaluateConfig) -> score.ErrorRate:
    """A rate (NaN without tokens) with its intervals by utterance and, where all have speakers, by speaker."""
    draws: dict[str, Any] = {"level": config.level, "num_draws": config.num_draws, "seed": config.seed}
    by_utterance = score.bootstrap_interval(scores.errors_N, scores.tokens_N, **draws)
    by_speaker = speakers and score.bootstrap_interval(scores.errors_N, scores.tokens_N, group_N=speakers, **draws)
    intervals: dict[str, Any] = {"by_utterance": by_utterance, "by_speaker": by_speaker or None}
    return score.ErrorRate(rate=scores.rate, **{**scores.totals(), **intervals})


def _inputs(run_folder: Path, part: Manifest, config: EvaluateConfig) -> dict[str, Any]:
    """What the error rates depend on."""
    return {
        **({"n_best": config.n_best} if config.n_best else {}),
        "model": digest_of_file(run_folder / "model" / "student.json"),
        "references": part.digest,
        "utterances": digest_of(f"{u.span}:{u.speaker}" for u in part),
        "normalisation": normalisation(),
        "settings": {name: value for name, value in asdict(config).items() if name not in NOT_IN_FIGURES},
    }


def _decoder(search: SearchConfig, recogniser: Recogniser, lm: str | None) -> dict[str, Any]:
    if recogniser.is_hybrid:
        return {"name": "graph", "lm": Path(str(lm)).name, **asdict(search.hybrid)}
    if search.decoder == "greedy":
        return {"name": "greedy"}
    facts: dict[str, Any] = {"name": "beam", "beam": search.beam.beam}
    if lm is not None:
        facts |= {"lm": Path(lm).name, "lm_weight": search.lm_weight, "word_bonus": search.word_bonus}
        facts |= {"lm_parameters": recogniser.search.lm_parameters}
    return facts


def _lm_digest(lm: str | None) -> str | None:
    """A file's digest; a folder's, of its files by name; else the name."""
    path = Path(lm or "")
    if lm is None or not path.exists():
        return lm
    if path.is_file():
        return digest_of_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest_of(f"{file.relative_to(path)}:{digest_of_file(file)}" for file in files)


def _finished(run_folder: Path, split: str, tag: str, inputs: Mapping[str, Any]) -> score.EvaluationReport | None:
    """The evaluation of the same inputs, perhaps with n-best lists that nobody asks for now; its sound may be gone."""
    lists = [score.n_best_path(run_folder, split, tag)] if "n_best" in inputs else []
    wanted = (*score.result_paths(run_folder, split, tag), *lists)
    if not all(path.exists() for path in wanted):
        return None
    try:
        report = score.read_result(run_folder, split, tag)
    except UserError:
        return None
    known = {name: value for name, value in report.inputs.items() if name not in ("n_best", "sound") or name in inputs}
    return None if differences(known, inputs) else report
