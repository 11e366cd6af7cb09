"""Teacher labels in a plain PyTorch loop: an auxiliary head on a small encoder of one's own.

python examples/plain_pytorch.py PROJECT STORE
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hkd
from hkd.torch import Collator

SHIFT_MS = 20.0
HOP = 320  # samples at 16 kHz


class Speech(Dataset):
    """Utterances of the train split that have labels: id and wave."""

    def __init__(self, project: hkd.Project, store: str) -> None:
        self.utterances = [u for u in project.manifest.split("train") if project.has_labels(store, u.id)]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, row: int) -> dict:
        u = self.utterances[row]
        return {"id": u.id, "wave": torch.from_numpy(hkd.read_audio(u))}


def pad(examples: list[dict]) -> dict:
    waves = [e["wave"] for e in examples]
    wave_BS = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return {"wave_BS": wave_BS, "length_B": torch.tensor([len(w) for w in waves])}


def frames(batch: dict) -> list[int]:
    return (batch["length_B"] // HOP).tolist()


class Encoder(nn.Module):
    """Strided convolutions: a frame each 20 ms, and a head over the teacher's units."""

    def __init__(self, num_units: int, width: int = 64) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, width, kernel_size=HOP, stride=HOP)
        layers = [nn.Conv1d(width, width, 5, padding=2) for _ in range(2)]
        self.body = nn.Sequential(nn.ReLU(), layers[0], nn.ReLU(), layers[1], nn.ReLU())
        self.head = nn.Linear(width, num_units)

    def forward(self, wave_BS: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.front(wave_BS[:, None])).transpose(1, 2))


def main(folder: str, store: str, epochs: int = 8) -> list[float]:
    torch.manual_seed(0)
    project = hkd.open_project(folder)
    model = Encoder(len(project.stores[store].spec.inventory))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    collate = Collator(project, [store], num_frames=frames, collate=pad, frame_shift_ms=SHIFT_MS)
    losses = []
    for _ in range(epochs):
        for batch in DataLoader(Speech(project, store), batch_size=2, shuffle=True, collate_fn=collate):
            labels = batch["hkd"][store]
            logits_BTV = model(batch["wave_BS"])
            loss = hkd.losses.sparse_kl(logits_BTV[labels.batch_M, labels.frame_M], **labels.teacher).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            print(f"KL to the teacher {losses[-1]:.3f} nats")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
