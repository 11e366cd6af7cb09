"""Output layers: model frames → logits.

- A head with one slot is LayerNorm and a linear layer.
- A head with several slots a frame gives each slot its own projection D → slots × d_head and shares one output matrix d_head × V: a
  senone sounds the same in each 10 ms, only what the frame says of that moment differs. With V = 5,126 and D = 144 that is
  0.83 M parameters instead of 2.97 M, and no slower: the output matrix is applied to every slot either way.

Shape letters: B utterances, T encoder frames, S = T · slots slots, M chosen slots, D model width, V units.
"""

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """LayerNorm (where asked for), a projection for each slot of a frame (where there are several), and the output matrix."""

    def __init__(self, d_model: int, num_units: int, *, slots: int = 1, d_head: int = 0, norm: bool = True) -> None:
        super().__init__()
        self.slots = slots
        self.norm = nn.LayerNorm(d_model) if norm else nn.Identity()
        width = (d_head or d_model) if slots > 1 else d_model
        self.place = nn.Linear(d_model, slots * width) if slots > 1 else nn.Identity()
        self.out = nn.Linear(width, num_units)

    def forward(self, x_BTD: Tensor, slot_M: Tensor | None = None) -> Tensor:
        """logits_BSV, or logits_MV of the slots of slot_M alone (flat indices b · S + s), which saves the output matrix elsewhere."""
        b, t, _ = x_BTD.shape
        x_BSD = self.place(self.norm(x_BTD)).reshape(b, t * self.slots, -1)
        if slot_M is not None:
            x_BSD = x_BSD.flatten(0, 1).index_select(0, slot_M)
        return torch.as_tensor(self.out(x_BSD))
