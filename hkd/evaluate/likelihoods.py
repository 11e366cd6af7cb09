"""A hybrid student's output for Kaldi's decoders: scaled log-likelihoods as a table (ark and scp)."""

from pathlib import Path

from hkd.decode.hybrid import log_likelihoods, log_priors
from hkd.decode.recogniser import Recogniser
from hkd.errors import UserError
from hkd.evaluate.decoding import batches
from hkd.files import write_bytes
from hkd.manifest import read as read_manifest
from hkd.progress import Progress, no_progress

ARK, SCP = "likelihoods.ark", "likelihoods.scp"


def write_likelihoods(
    run_folder: Path,
    out: Path,
    *,
    manifest: Path,
    split: str = "test",
    prior_scale: float = 1.0,
    device: str = "auto",
    batch_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> int:
    """Write out/likelihoods.{ark,scp}: a float matrix an utterance, (10 ms frames, senones), log p(senone | frame) − prior_scale · log p(senone).

    The scp is sorted by id, as Kaldi wants its tables. Returns their number. Raises UserError where the student is no hybrid, or the
    package kaldi-native-io is missing.
    """
    try:
        import kaldi_native_io
    except ImportError:
        raise UserError(
            "writing Kaldi's tables needs the package kaldi-native-io. Install it: pip install 'hkd[kaldi]'."
        ) from None
    recogniser = Recogniser(run_folder / "model", device=device)
    log_prior_V = log_priors(recogniser.senone_frames())
    part = read_manifest(manifest).split(split)
    done = 0
    out.mkdir(parents=True, exist_ok=True)
    with kaldi_native_io.FloatMatrixWriter(f"ark,scp:{out / ARK},{out / SCP}") as writer:
        for rows, waves in batches(part, batch_seconds):
            logits_BTV, length_B, _ = recogniser.logits(waves)
            for row, logits_TV, length in zip(rows, logits_BTV, length_B.tolist(), strict=True):
                writer.write(part[row].id, log_likelihoods(logits_TV[:length], log_prior_V, prior_scale=prior_scale))
            done += len(rows)
            progress(done, len(part))
    lines = (out / SCP).read_bytes().splitlines(keepends=True)
    write_bytes(out / SCP, b"".join(sorted(lines)))  # as `LC_ALL=C sort`; the ark lies as it was computed
    return done
