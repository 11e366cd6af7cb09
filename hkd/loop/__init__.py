"""The one trainer core, shared by the student and the unit LMs: `fit(task, config, folder)`.

- A step's global batch is a pure function of (seed, step); it is cut into world_size × accumulate shares, and each loss term is
  divided by its global count, so that neither the number of processes nor accumulation changes what is learnt.
- Dropout and the like are seeded by (seed, step, share), so resuming is a cursor and needs no state of random generators.
- Killed at any moment and started again, a run ends with the same weights and the same metrics.jsonl, byte for byte.
"""

from hkd.loop.config import LoopConfig, Task, learning_rate
from hkd.loop.run import Terminated, fit

__all__ = ["LoopConfig", "Task", "Terminated", "fit", "learning_rate"]
