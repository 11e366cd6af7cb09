"""Forced alignment with pocketsphinx and its English model.

- Two passes an utterance: words (silence allowed between them, pronunciation variants chosen by the sound), then HMM
  states.
- A decoder lives in a process of its own: it holds the interpreter's lock, and a crash inside it must not end the run.
- The result is a pure function of the utterance: the same bytes for any number of processes and any order.
- The decoder's frame t is a window of 25.6 ms that begins at 10 t ms; its sound lies around the window's middle, 7.8 ms
  later than that of our frame t. So boundaries move by that to the nearest one on our grid, a frame.
- The decoder may say nothing of the last frame: the last segment reaches to the end of the audio.
- Several processes work on chunks. A finished chunk is a file named by the digest of its task, so a killed run finds it
  again. When a worker dies, the chunks in flight are done again item by item, each in a process of its own: the item
  that kills it is a failed row. Workers end with their parent, even where that was killed.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import wait as wait_for_sentinels
from pathlib import Path
from typing import Any

import numpy as np

from hkd.align.alignment import Tier, UtteranceAlignment, at_least_one_apart, write_alignment
from hkd.align.fit import AlignReport, FailureError, about, check_any, finished, warn
from hkd.audio import read_audio, to_int16
from hkd.errors import HkdError, Progress, UserError, check_setting, no_progress
from hkd.files import digest_of_file, digest_of_json, num_cores, write_json
from hkd.manifest import Manifest, Utterance
from hkd.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ, samples_to_boundaries, samples_to_frames
from hkd.units.inventory import MONOPHONE, SENONE
from hkd.units.lexicon import Lexicon
from hkd.units.text import normalisation, words
from hkd.units.tying import StateTying

Row = dict[str, Any]
Task = dict[str, Any]  # its "utterances" are the items, each with an "id"; the rest is common to them
Worker = Callable[[Task], list[Row]]  # one row an item, in order; a module-level function

CRASHED = "the aligner crashed on it"


def run_chunks(
    tasks: Sequence[Task], *, worker: Worker, folder: Path, key: str, jobs: int = 0, progress: Progress = no_progress
) -> list[Row]:
    """Run `worker` over all tasks in `jobs` processes (0: one a core); all rows in order. Finished chunks stay in
    `folder`. key: whatever else the rows depend on."""
    jobs = jobs or num_cores()
    paths = [folder / f"{digest_of_json([key, task])}.json" for task in tasks]
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(task["utterances"]) for task in tasks)
    pending = [(path, task) for path, task in zip(paths, tasks, strict=True) if not path.exists()]
    done, failed = total - sum(len(task["utterances"]) for _, task in pending), 0

    def finish(row_path: Path, rows: list[Row]) -> None:
        nonlocal done, failed
        write_json(row_path, rows)
        done += len(rows)
        failed += sum("reason" in row for row in rows)
        progress(done, total, failed=failed)

    if done:
        progress(done, total)
    while pending:
        for path, task in _run_pool(pending, worker, min(jobs, len(pending)), finish):
            finish(path, _run_isolated(task, worker))
        pending = [(path, task) for path, task in pending if not path.exists()]
    return [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]


def _run_pool(
    pending: Sequence[tuple[Path, Task]], worker: Worker, jobs: int, finish: Callable[[Path, list[Row]], None]
) -> list[tuple[Path, Task]]:
    """Run until all is done, [], or a worker died: then the tasks that were in flight."""
    waiting = iter(pending)
    flying: dict[Future[list[Row]], tuple[Path, Task]] = {}
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker)
    try:
        while True:
            while len(flying) < jobs + 1 and (item := next(waiting, None)) is not None:
                flying[executor.submit(worker, item[1])] = item
            if not flying:
                return []
            ready, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in ready:
                rows = future.result()  # a dead worker raises here, and the future stays among those in flight
                finish(flying[future][0], rows)
                del flying[future]
    except BrokenProcessPool:
        return list(flying.values())
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _run_isolated(task: Task, worker: Worker) -> list[Row]:
    """Each item in a process of its own."""
    rows: list[Row] = []
    for item in task["utterances"]:
        alone = (Path(), {**task, "utterances": [item]})
        if _run_pool([alone], worker, 1, lambda _, found: rows.extend(found)):
            rows.append({"id": item["id"], "reason": CRASHED})
    return rows


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends: a pool's workers would wait for ever for a killed one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            wait_for_sentinels([parent.sentinel])
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


ALGORITHM = 3  # raised whenever the same input would give another alignment


@dataclass(frozen=True, kw_only=True, slots=True)
class SphinxConfig:
    """How pocketsphinx searches. Narrower beams lose utterances; `bestpath`, which is off, a third of short ones."""

    jobs: int = 0  # processes; 0: one a core
    model: str | None = None  # an acoustic model's folder (mdef, means ...), with its dictionary in it or beside it
    beam: float = 1e-80  # of states, as likelihood beside the best
    pbeam: float = 1e-80  # of phones
    wbeam: float = 1e-60  # of words
    min_score: float = -35.0  # least mean log-likelihood a frame (about -14 where the transcript is what was spoken)
    chunk_utterances: int = 32  # resumed after a kill by whole chunks

    def __post_init__(self) -> None:
        for name, beam in (("beam", self.beam), ("pbeam", self.pbeam), ("wbeam", self.wbeam)):
            check_setting(name, beam, "lie between 0 and 1", 0 < beam < 1, "Try 1e-80.")
        if self.jobs < 0 or self.chunk_utterances < 1:
            raise UserError(
                f"jobs must be 0 or more and chunk_utterances 1 or more, but are {self.jobs}, {self.chunk_utterances}."
            )
        is_finite, remedy = math.isfinite(self.min_score), "Use a very low number to keep all."
        check_setting("min_score", self.min_score, "be finite", is_finite, remedy)


def model_parts(model: str | None) -> tuple[Lexicon, StateTying]:
    """Dictionary and tying of an acoustic model's folder (None: the English one). Raises UserError without one."""
    if model is None:
        return Lexicon(), StateTying()
    folder = Path(model)
    dictionaries = sorted(path for place in (folder, folder.parent) for path in place.glob("*.dic*") if path.is_file())
    if not (folder / "mdef").is_file() or not dictionaries:
        missing = "a dictionary (*.dict) in it or beside it" if (folder / "mdef").is_file() else "mdef"
        raise UserError(f"model must be a folder of a pocketsphinx acoustic model, but {folder} has not {missing}.")
    near = [path for path in dictionaries if path.parent == folder] or dictionaries
    return Lexicon(near[0]), StateTying(folder / "mdef")


class SphinxAligner:
    """One decoder and its dictionary."""

    def __init__(self, config: SphinxConfig) -> None:
        import pocketsphinx

        self.config = config
        self.lexicon, self.tying = model_parts(config.model)
        own = {} if config.model is None else {"hmm": config.model, "dict": str(self.lexicon.path)}
        self.decoder: Any = pocketsphinx.Decoder(
            **own, lm=None, bestpath=False, dither=False, cmn="batch", loglevel="FATAL", samprate=SAMPLE_RATE_HZ,
            beam=config.beam, pbeam=config.pbeam, wbeam=config.wbeam,
        )  # fmt: skip

    def align(self, utterance: Utterance) -> dict[str, Any]:
        """Utterance → {"id", "words", tiers by name, "score", "seconds", "guessed", "cpu_s"} or {"id", "reason"}."""
        started = time.process_time()
        try:
            return {"id": utterance.id, **self._align(utterance), "cpu_s": time.process_time() - started}
        except HkdError as error:
            return {"id": utterance.id, "reason": str(error)}

    def _align(self, utterance: Utterance) -> dict[str, Any]:
        spoken = words(utterance.text)
        if not spoken:
            raise FailureError("the transcript has no words")
        guessed = self._add_words(spoken)
        wave_S = read_audio(utterance)
        num_frames = samples_to_frames(len(wave_S))
        if not np.abs(wave_S).max() > 0:
            raise FailureError("the audio is silent")
        pcm = to_int16(wave_S).tobytes()
        self.decoder.reinit_feat()  # else its estimate of the noise is that of the utterance before
        self.decoder.set_align_text(" ".join(spoken))
        self._decode(pcm)
        if self.decoder.hyp() is None:
            raise FailureError("the decoder found no path through the transcript: is it what was spoken?")
        self.decoder.set_alignment()
        self._decode(pcm)
        tiers, mean_score = self._walk(len(spoken), num_frames)
        if mean_score < self.config.min_score:
            raise FailureError(
                f"its transcript is probably not what was spoken: the mean log-likelihood a frame is {mean_score:.1f}, "
                f"below {self.config.min_score:g} (min_score)"
            )
        seconds = len(wave_S) / SAMPLE_RATE_HZ
        return {"words": spoken, **tiers, "score": round(mean_score, 2), "seconds": seconds, "guessed": guessed}

    def _decode(self, pcm: bytes) -> None:
        try:
            self.decoder.start_utt()
            self.decoder.process_raw(pcm, full_utt=True)
            self.decoder.end_utt()
        except RuntimeError as error:
            raise FailureError(f"the decoder failed ({error})") from None

    def _add_words(self, spoken: Sequence[str]) -> dict[str, str]:
        """Teach the decoder the words that it does not know; gives their phones, or raises FailureError."""
        without = self.lexicon.unknown(spoken)
        if without:
            raise FailureError(f"no pronunciation for {', '.join(without)}")
        guessed = {word: " ".join(self.lexicon.pronounce(word)) for word in spoken if word not in self.lexicon}
        for word, phones in guessed.items():
            if self.decoder.lookup_word(word) is None:
                self.decoder.add_word(word, phones, True)
        return guessed

    def _walk(self, num_words: int, num_frames: int) -> tuple[dict[str, Any], float]:
        """The decoder's alignment as three tiers over all frames, and the mean score a frame.

        Descends inside the loops: an iterator's children die with it, and touching them then crashes the interpreter.
        """
        tiers: dict[str, list[tuple[int, int, int]]] = {"word": [], MONOPHONE: [], SENONE: []}  # unit, start, duration
        next_word, score = 0, 0.0
        alignment = self.decoder.get_alignment()
        if alignment is None:
            raise FailureError("the decoder gave no states")
        for word in alignment:
            is_silence = word.name.startswith(("<", "["))
            tiers["word"].append((-1 if is_silence else next_word, word.start, word.duration))
            next_word += not is_silence
            score += word.score
            for phone in word:
                tiers[MONOPHONE].append((self.tying.phone_id[phone.name], phone.start, phone.duration))
                tiers[SENONE] += ((int(state.name), state.start, state.duration) for state in phone)
        if next_word != num_words:
            raise FailureError(f"the decoder aligned {next_word} of {num_words} words")
        for rows in tiers.values():
            end = 0
            for _, start, duration in rows:
                if start != end or duration < 1:
                    raise FailureError(f"the decoder's segments do not follow each other at frame {start}")
                end = start + duration
        place = self._places([start for _, start, _ in tiers[SENONE]], num_frames)
        closed = {
            name: [[unit for unit, _, _ in rows], [*(place[start] for _, start, _ in rows), num_frames]]
            for name, rows in tiers.items()
        }
        return closed, score / max(1, sum(duration for _, _, duration in tiers["word"]))

    def _places(self, starts: Sequence[int], num_frames: int) -> dict[int, int]:
        """The decoder's frames where states begin → ours. Raises FailureError where the last state would be empty."""
        if not starts or starts[-1] >= num_frames:
            raise FailureError(f"the decoder's alignment does not fit into {num_frames} frames")
        window_samples = round(self.decoder.config["wlen"] * SAMPLE_RATE_HZ)
        sample_U = np.array(starts[1:], np.int64) * HOP_SAMPLES + (window_samples - HOP_SAMPLES) // 2
        bounds = at_least_one_apart([0, *samples_to_boundaries(sample_U).tolist()], num_frames - 1)
        return dict(zip(starts, bounds, strict=True))


def align_chunk(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Align the utterances of a task, {"config", "utterances"}: what the pool's workers run. A decoder remembers what
    words it was taught, so each chunk has one of its own, which takes half a second to load."""
    aligner = SphinxAligner(SphinxConfig(**task["config"]))
    return [aligner.align(Utterance(**fields)) for fields in task["utterances"]]


def align_manifest(
    manifest: Manifest,
    out: Path,
    *,
    config: SphinxConfig | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> AlignReport:
    """Align a manifest's utterances and write `out` (an `Alignment`); it and the report list what fails, with reasons.

    Finished chunks are kept beside `out` until it is written, so a killed run resumes. A finished alignment with the
    same settings is left. Raises UserError where `out` is of something else, unless `overwrite`, and HkdError where not
    one utterance could be aligned.
    """
    config = config or SphinxConfig()
    settings = {key: value for key, value in asdict(config).items() if key != "jobs" and value is not None}
    aligner = {"name": "pocketsphinx", "version": version("pocketsphinx"), "algorithm": ALGORITHM}
    aligner |= {"words": normalisation(), "config": settings}
    lexicon, tying = model_parts(config.model)
    if config.model is not None:
        aligner |= {"model": digest_of_file(Path(config.model) / "mdef"), "dictionary": digest_of_file(lexicon.path)}
    if (done := finished(out, manifest, aligner, overwrite=overwrite)) is not None:
        return done
    size = config.chunk_utterances
    names = ("id", "text", "audio_filepath", "offset", "duration", "channel")
    items = [{name: getattr(utterance, name) for name in names} for utterance in manifest]
    chunks = [items[at : at + size] for at in range(0, len(items), size)]
    tasks: list[Task] = [{"config": settings, "utterances": chunk} for chunk in chunks]
    work = out.parent / f".{out.name}.work"
    rows = run_chunks(
        tasks, worker=align_chunk, folder=work, key=digest_of_json(aligner), jobs=config.jobs, progress=progress
    )
    failed = {row["id"]: row["reason"] for row in rows if "reason" in row}
    kept = [row for row in rows if "reason" not in row]
    check_any(kept, failed, manifest)
    seconds = sum(row["seconds"] for row in kept)
    report = AlignReport(
        kept=len(kept), failed=failed, seconds_of_audio=seconds,
        real_time_factor=sum(row["cpu_s"] for row in kept) / seconds,
        predicted_words={word: phones for row in kept for word, phones in sorted(row["guessed"].items())},
    )  # fmt: skip
    write_alignment(
        out, map(_aligned, kept), manifest_digest=manifest.digest, inventories=tying.inventories,
        silences=tying.silences,
        aligner=aligner | about(report, ("seconds_of_audio", "predicted_words")), failed=failed,
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return warn(report)


def _aligned(row: Row) -> UtteranceAlignment:
    def tier(name: str) -> Tier:
        unit_U, start_U1 = (np.array(numbers, np.int32) for numbers in row[name])
        return Tier(unit_U=unit_U, start_U1=start_U1)

    tiers = {level: tier(level) for level in (SENONE, MONOPHONE)}
    return UtteranceAlignment(id=row["id"], words=tuple(row["words"]), word_tier=tier("word"), tiers=tiers)
