"""Teacher labels in lhotse's sampler and dataset, as icefall's recipes use them: an auxiliary head and `sparse_kl` in
the recipe's loss.

hkd manifest export cuts --to lhotse
python examples/lhotse_icefall.py PROJECT STORE cuts
"""

import sys
import warnings
from pathlib import Path

import torch
from lhotse import CutSet, Fbank
from lhotse.dataset import DynamicBucketingSampler, K2SpeechRecognitionDataset, OnTheFlyFeatures
from torch import nn

import hkd
from hkd.lhotse import with_labels

SUBSAMPLING = 4  # 10 ms features → 40 ms frames, as a Zipformer's or Conformer's front end


class Encoder(nn.Module):
    """In place of the recipe's encoder: features → frames of 40 ms, and the auxiliary head."""

    def __init__(self, num_units: int, width: int = 64) -> None:
        super().__init__()
        self.front = nn.Conv1d(80, width, kernel_size=SUBSAMPLING, stride=SUBSAMPLING)
        self.head = nn.Linear(width, num_units)

    def forward(self, x_BTF: torch.Tensor) -> torch.Tensor:
        return self.head(self.front(x_BTF.transpose(1, 2)).transpose(1, 2).relu())


def frames(batch: dict) -> list[int]:
    return (batch["supervisions"]["num_frames"] // SUBSAMPLING).tolist()


def main(folder: str, store: str, cuts_folder: str) -> list[float]:
    torch.manual_seed(0)
    project = hkd.open_project(folder)
    [path] = Path(cuts_folder).glob("*cuts_train*")
    cuts = CutSet.from_file(path).filter(lambda cut: project.has_labels(store, cut.supervisions[0].id)).to_eager()
    cuts = cuts + cuts.perturb_speed(0.9) + cuts.perturb_speed(1.1)
    sampler = DynamicBucketingSampler(cuts, max_duration=20.0, num_buckets=2, shuffle=True, seed=0)
    dataset = K2SpeechRecognitionDataset(return_cuts=True, input_strategy=OnTheFlyFeatures(Fbank()))
    labelled = with_labels(dataset, project, [store], num_frames=frames, frame_shift_ms=10.0 * SUBSAMPLING)
    loader = torch.utils.data.DataLoader(labelled, sampler=sampler, batch_size=None)
    model = Encoder(len(project.stores[store].spec.inventory))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for batch in loader:
        labels = batch["hkd"][store]
        logits_BTV = model(batch["inputs"])
        kl = hkd.losses.sparse_kl(logits_BTV[labels.batch_M, labels.frame_M], **labels.teacher).mean()
        optimiser.zero_grad()
        kl.backward()  # in a recipe: (transducer_or_ctc_loss + scale * kl).backward()
        optimiser.step()
        losses.append(kl.item())
        print(f"KL to the teacher {losses[-1]:.3f} nats, {len(set(labels.batch_M.tolist()))} utterances with labels")
    return losses


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        main(*sys.argv[1:4])
