"""The one trainer core, shared by the student and the unit LMs: `fit(task, config, folder)`.

- A step's global batch is a pure function of (seed, step), cut into world_size × accumulate shares; each loss term is
  divided by its global count. So neither processes nor accumulation change what is learnt, up to rounding.
- Dropout: torch's generator is seeded by (seed, step, share) before each share, so resuming is a cursor and needs no
  state of random generators. hkd's own encoder draws an utterance's masks from (seed, step, utterance), the same in any
  share. Modules with torch's own dropout (unit LMs, encoders of transformers) draw a share's masks: there another
  number of shares is another draw of the same training.
- Killed at any moment and started again, a run ends with the same weights and the same metrics.jsonl, byte for byte.
"""

from hkd.loop.run import LoopConfig, Task, Terminated, fit, is_main_process, learning_rate

__all__ = ["LoopConfig", "Task", "Terminated", "fit", "is_main_process", "learning_rate"]
