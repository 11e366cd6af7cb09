"""Makes the golden Kaldi files beside this script, by Kaldi's own code from the package kaldi-hmm-gmm. Needs g++ and
the extra `test`.

    python tests/golden/make_kaldi.py

kaldi/: a triphone GMM of the tiny corpus: phones.txt, tree, final.mdl (its transition model), ali.1.gz and ali.2.gz
(Viterbi, reordered), manifest.jsonl, lexicon.txt, and expected.json: each frame's pdf and phone and where phones begin,
as Kaldi's transition model says. kaldi-text/: the same model and the first alignments in Kaldi's text forms.
kaldi-chain/: a model with two pdfs a state, and its table.

The package cannot write a transition model in binary, but the library inside it can: a few lines of C++ call it.
"""

import gzip
import json
import subprocess
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import _kaldi_hmm_gmm as khg
import kaldi_native_io
import numpy as np
import torch

from hkd import manifest
from hkd.align.alignment import Alignment, aligned_to_units
from hkd.audio import import_torchaudio, read_audio
from hkd.testing.teachers import prepare_folder, tiny_corpus
from hkd.units.inventory import MONOPHONE
from hkd.units.kaldi import ConstantMap, ContextTree, Node, SplitMap, TableMap
from hkd.units.lexicon import Lexicon, split_position
from hkd.units.text import words

HERE = Path(__file__).parent
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
PROGRAM = """
#include <fstream>
extern "C" void _ZN3khg15TransitionModel4ReadERSib(void*, std::istream&, bool);
extern "C" void _ZNK3khg15TransitionModel5WriteERSob(const void*, std::ostream&, bool);
extern "C" void _ZN3khg17ContextDependency4ReadERSib(void*, std::istream&, bool);
extern "C" void _ZNK3khg17ContextDependency5WriteERSob(const void*, std::ostream&, bool);
extern "C" char _ZTVN3khg15TransitionModelE[], _ZTVN3khg17ContextDependencyE[];
alignas(16) static char object[1 << 16];
int main(int, char** a) {
  std::ifstream in(a[2]); std::ofstream out(a[3], std::ios::binary); out.write("\\0B", 2);
  bool tree = a[1][0] == 't';
  *(char**)object = (tree ? _ZTVN3khg17ContextDependencyE : _ZTVN3khg15TransitionModelE) + 16;
  if (tree) { _ZN3khg17ContextDependency4ReadERSib(object, in, false); _ZNK3khg17ContextDependency5WriteERSob(object, out, true); }
  else { _ZN3khg15TransitionModel4ReadERSib(object, in, false); _ZNK3khg15TransitionModel5WriteERSob(object, out, true); }
}
"""  # noqa: E501


def to_binary(kind: str, text: str, out: Path) -> None:
    """Kaldi's text form → its binary form, read and written by Kaldi's own code."""
    library = Path(khg.__file__).parent / "kaldi_hmm_gmm" / "lib"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "p.cpp").write_text(PROGRAM)
        (Path(folder) / "in.txt").write_text(text)
        link = [f"-L{library}", "-l:libkaldi-hmm-gmm-core.so", f"-Wl,-rpath,{library}"]
        subprocess.run(["g++", "-O0", f"{folder}/p.cpp", "-o", f"{folder}/p", *link], check=True)
        subprocess.run([f"{folder}/p", kind, f"{folder}/in.txt", str(out)], check=True)


def linear(phones: list[int], states: int, *, chain: bool = False) -> str:
    """A topology entry: states in a row, each with a self-loop."""
    lines = ["<TopologyEntry>", "<ForPhones>", " ".join(map(str, phones)), "</ForPhones>"]
    for state in range(states):
        classes = (
            f"<ForwardPdfClass> {2 * state} <SelfLoopPdfClass> {2 * state + 1}" if chain else f"<PdfClass> {state}"
        )
        lines.append(f"<State> {state} {classes} <Transition> {state} 0.5 <Transition> {state + 1} 0.5 </State>")
    return "\n".join([*lines, f"<State> {states} </State>", "</TopologyEntry>"])


def tree_of(phones: dict[str, int], classes: dict[int, int]) -> ContextTree:
    """Per phone without its place in the word (shared) and state: does a vowel stand left, does one stand right?"""
    vowels = frozenset(number for phone, number in phones.items() if split_position(phone)[0] in VOWELS)
    pdf = iter(range(10**6))
    root: Node = ConstantMap(next(pdf))  # of a phone that there is not
    for base in sorted({split_position(phone)[0] for phone in phones}):
        mine = {number for phone, number in phones.items() if split_position(phone)[0] == base}
        states: list[Node] = []
        for state in range(classes[min(mine)]):
            if base == "SIL":
                states.append(ConstantMap(next(pdf)))
            elif state == 1:
                states.append(
                    SplitMap(
                        0,
                        vowels,
                        SplitMap(2, vowels, ConstantMap(next(pdf)), ConstantMap(next(pdf))),
                        ConstantMap(next(pdf)),
                    )
                )
            else:
                states.append(SplitMap(2 if state else 0, vowels, ConstantMap(next(pdf)), ConstantMap(next(pdf))))
        root = SplitMap(1, frozenset(mine), TableMap(-1, tuple(states)), root)
    return ContextTree(width=3, central=1, root=root)


def load_tree(binary: Path) -> Any:
    """Kaldi's tree object from a file that Kaldi wrote."""
    loaded = khg.ContextDependency.__new__(khg.ContextDependency)
    loaded.__setstate__(([value - 256 if value > 127 else value for value in binary.read_bytes()[2:]],))
    return loaded


def viterbi(loglike_TS: Any) -> list[int]:
    """The best path through states in a row: the state of each frame (kaldi-hmm-gmm's own aligner does not take
    kaldifst's graphs here)."""
    frames, states = loglike_TS.shape
    best, back = np.full(states, -np.inf), np.zeros((frames, states), np.int64)
    best[0] = loglike_TS[0, 0]
    for t in range(1, frames):
        moved = np.concatenate([[-np.inf], best[:-1]])
        back[t] = moved > best
        best = np.maximum(moved, best) + loglike_TS[t]
    path = [states - 1]
    for t in range(frames - 1, 0, -1):
        path.append(path[-1] - int(back[t, path[-1]]))
    return path[::-1]


def align(feat_TF: Any, phones: list[int], model: Any, context: Any, gmm: Any, classes: dict[int, int]) -> list[int]:
    """Transition ids of a sequence of phones, reordered as Kaldi has them: the arc that leaves a state stands before
    its self-loops."""
    id_of: dict[tuple[int, int, int, bool], int] = {}
    for number in range(1, model.num_transition_ids + 1):
        phone, hmm_state, pdf, _ = model.tuples[model.id2state[number] - 1].__getstate__()
        id_of[phone, hmm_state, pdf, model.is_self_loop(number)] = number
    padded = [0, *phones, 0]
    states = []
    for at, phone in enumerate(phones):
        for pdf_class in range(classes[phone]):
            _, pdf = context.compute(padded[at : at + 3], pdf_class)
            states.append((phone, pdf_class, pdf))
    pdfs = sorted({state[2] for state in states})
    loglike = {pdf: np.array([gmm.log_likelihood(pdf, feat_F) for feat_F in feat_TF]) for pdf in pdfs}
    path = viterbi(np.stack([loglike[state[2]] for state in states], 1))
    return [id_of[(*states[at], t > 0 and path[t - 1] == at)] for t, at in enumerate(path)]


def main() -> None:
    """Train, align, write."""
    out, text_out, chain_out = (HERE / name for name in ("kaldi", "kaldi-text", "kaldi-chain"))
    for folder in (out, text_out, chain_out):
        folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        path = tiny_corpus(Path(name))
        prepare_folder(Path(name))
        whole = manifest.read(path)
        ours = Alignment(Path(name) / "alignment.arrow")
        feats = {u.id: mfcc(u) for u in whole}
    lexicon = Lexicon()
    spoken = sorted({word for u in whole for word in words(u.text)})
    bases = sorted({phone for word in spoken for variant in lexicon.variants(word) for phone in variant})
    symbols = ["SIL", *(f"{base}_{place}" for base in bases for place in "BIES")]
    phones = {symbol: number for number, symbol in enumerate(symbols, 1)}

    def numbered(variant: tuple[str, ...]) -> list[int]:
        places = "S" if len(variant) == 1 else "B" + "I" * (len(variant) - 2) + "E"
        return [phones[f"{phone}_{place}"] for phone, place in zip(variant, places, strict=True)]

    topology = khg.HmmTopology()
    topology.read(f"<Topology>\n{linear(list(phones.values())[1:], 3)}\n{linear([1], 5)}\n</Topology>")
    classes = {number: topology.num_pdf_classes(number) for number in phones.values()}
    tree = tree_of(phones, classes)
    to_binary("tree", tree.to_text(), out / "tree")
    context = load_tree(out / "tree")
    model = khg.TransitionModel(context, topology)
    gmm = start_gmm(model, feats, ours, phones)
    symbols_of = ours.inventories[MONOPHONE].symbols
    aligned: dict[str, list[int]] = {}
    for utterance in whole:
        row = ours[utterance.id]
        unit_U, word_U = aligned_to_units(row, MONOPHONE, ())
        said: list[int] = []
        for word, group in groupby(zip(word_U.tolist(), unit_U.tolist(), strict=True), key=lambda pair: pair[0]):
            spelled = tuple(symbols_of[unit] for _, unit in group)
            said += numbered(spelled) if word >= 0 else [1]
        aligned[utterance.id] = align(feats[utterance.id], said, model, context, gmm, classes)
    write(out, text_out, whole, phones, model, tree, aligned)
    (out / "lexicon.txt").write_text(
        "".join(f"{word} {' '.join(variant)}\n" for word in spoken for variant in lexicon.variants(word)),
        encoding="utf-8",
    )
    chain(chain_out)


def mfcc(utterance: Any) -> Any:
    """Cepstra with deltas, Kaldi's framing."""
    wave_1S = torch.from_numpy(read_audio(utterance))[None] * 32768
    import_torchaudio()
    import torchaudio.compliance.kaldi as compliance

    ceps_TF = compliance.mfcc(wave_1S, sample_frequency=16_000.0, dither=0.0).numpy()
    ceps_TF -= ceps_TF.mean(0)
    return np.concatenate([ceps_TF, np.gradient(ceps_TF, axis=0)], 1).astype(np.float32)


def start_gmm(model: Any, feats: dict[str, Any], ours: Alignment, phones: dict[str, int]) -> Any:
    """One Gaussian a pdf: the mean of its phone's frames as pocketsphinx aligned them, state by thirds."""
    every = np.concatenate(list(feats.values()))
    sums: dict[tuple[str, int], list[Any]] = {}
    for name, feat_TF in feats.items():
        tier = ours[name].tiers[MONOPHONE]
        for unit, start, stop in zip(tier.unit_U, tier.start_U1[:-1], tier.start_U1[1:], strict=True):
            base = ours.inventories[MONOPHONE].symbols[unit]
            for at in range(start, min(stop, len(feat_TF))):
                sums.setdefault((base, 3 * (at - start) // (stop - start)), []).append(feat_TF[at])
    proto = khg.DiagGmm(1, every.shape[1])
    proto.set_weights(np.ones(1, np.float32))
    proto.set_invvars_and_means((1 / every.var(0))[None].astype(np.float32), every.mean(0)[None].astype(np.float32))
    proto.compute_gconsts()
    gmm = khg.AmDiagGmm()
    gmm.init(proto, model.num_pdfs)
    base_of = {number: split_position(phone)[0] for phone, number in phones.items()}
    for state in model.tuples:
        phone, hmm_state, pdf, _ = state.__getstate__()
        rows = sums.get((base_of[phone], min(hmm_state, 2)))
        if rows:
            gmm.set_gaussian_mean(pdf, 0, np.mean(rows, 0).astype(np.float32))
    gmm.compute_gconsts()
    return gmm


def write(
    out: Path, text_out: Path, whole: Any, phones: dict[str, int], model: Any, tree: Any, aligned: dict[str, Any]
) -> None:
    """The files, and what Kaldi says of each frame."""
    to_binary("model", str(model), out / "final.mdl")
    (text_out / "final.mdl").write_text(str(model))
    (text_out / "tree").write_text(tree.to_text())
    table = "".join(f"{phone} {number}\n" for phone, number in [("<eps>", 0), *phones.items(), ("#0", len(phones) + 1)])
    for folder in (out, text_out):
        (folder / "phones.txt").write_text(table)
    names = sorted(aligned)
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            writer = kaldi_native_io.Int32VectorWriter(f"ark:{folder}/x.ark")
            for name in part:
                writer[name] = aligned[name]
            writer.close()
            (out / f"ali.{number}.gz").write_bytes(gzip.compress(Path(f"{folder}/x.ark").read_bytes(), mtime=0))
        writer = kaldi_native_io.Int32VectorWriter(f"ark,t:{text_out}/ali.1.ark")
        for name in names[:2]:
            writer[name] = aligned[name]
        writer.close()
    expected = {
        name: {
            "pdf": [model.transition_id_to_pdf(i) for i in ids],
            "phone": [model.transition_id_to_phone(i) for i in ids],
            "stays": [int(model.is_self_loop(i)) for i in ids],
        }
        for name, ids in aligned.items()
    }
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    rows = [{"id": u.id, "text": u.text, "duration": u.duration, "speaker": u.speaker, "split": u.split} for u in whole]
    (out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def chain(out: Path) -> None:
    """A chain topology: one state a phone, two pdfs a state."""
    topology = khg.HmmTopology()
    topology.read(f"<Topology>\n{linear([1, 2, 3], 1, chain=True)}\n</Topology>")
    context = khg.monophone_context_dependency([1, 2, 3], topology.get_phone_to_num_pdf_classes())
    model = khg.TransitionModel(context, topology)
    to_binary("model", str(model), out / "final.mdl")
    context.write(True, str(out / "tree"))
    (out / "phones.txt").write_text("<eps> 0\nSIL 1\nA_S 2\nB_S 3\n")
    ids = range(1, model.num_transition_ids + 1)
    table = {
        "pdf": [model.transition_id_to_pdf(i) for i in ids],
        "phone": [model.transition_id_to_phone(i) for i in ids],
        "stays": [int(model.is_self_loop(i)) for i in ids],
        "ends": [int(model.is_final(i)) for i in ids],
    }
    (out / "expected.json").write_text(json.dumps(table) + "\n")


if __name__ == "__main__":
    main()
