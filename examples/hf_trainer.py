"""Teacher labels in Hugging Face's Trainer: a CTC model like wav2vec 2.0 with an auxiliary head on a middle layer.

python examples/hf_trainer.py PROJECT STORE OUT
"""

import sys

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence as padded

import hkd
from hkd.torch import Collator  # before transformers: see hkd/torch.py

# isort: split
from transformers import Trainer, TrainingArguments, Wav2Vec2Config, Wav2Vec2ForCTC

SHIFT_MS, WINDOW, STRIDE = 20.0, 400, 320  # of wav2vec 2.0's convolutions, in samples at 16 kHz


class TaughtForCTC(Wav2Vec2ForCTC):
    """CTC over characters, and a head on layer `tap` that an LM teaches; without it a plain Wav2Vec2ForCTC."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.teacher_head = nn.Linear(config.hidden_size, config.teacher_units)

    def forward(self, input_values, attention_mask=None, labels=None, teacher=None):
        out = super().forward(input_values, attention_mask, output_hidden_states=True, labels=labels)
        logits_BTV = self.teacher_head(out.hidden_states[self.config.tap])
        on = teacher.to(logits_BTV.device)
        kl = hkd.losses.sparse_kl(logits_BTV[on.batch_M, on.frame_M], **on.teacher).mean()
        return {"loss": out.loss + kl, "logits": out.logits}


def main(folder: str, store: str, out: str, steps: int = 4) -> list[float]:
    project = hkd.open_project(folder)
    chosen = [u for u in project.manifest.split("train") if project.has_labels(store, u.id)]
    letters = sorted({c for u in chosen for c in u.text})
    data = [{"id": u.id, "wave": hkd.read_audio(u), "labels": [letters.index(c) + 1 for c in u.text]} for u in chosen]

    def pad(examples: list[dict]) -> dict:
        waves = [torch.as_tensor(e["wave"]) for e in examples]
        mask = [torch.ones(len(w)).long() for w in waves]
        labels = padded([torch.tensor(e["labels"]) for e in examples], batch_first=True, padding_value=-100)
        inputs = {"input_values": padded(waves, batch_first=True), "attention_mask": padded(mask, batch_first=True)}
        return {**inputs, "labels": labels}

    def frames(batch: dict) -> list[int]:
        return ((batch["attention_mask"].sum(1) - WINDOW) // STRIDE + 1).tolist()

    times = {"frame_shift_ms": SHIFT_MS, "first_frame_ms": WINDOW / 32}
    add_labels = Collator(project, [store], num_frames=frames, collate=pad, **times)

    def collate(examples: list[dict]) -> dict:
        batch = add_labels(examples)
        batch["teacher"] = batch.pop("hkd")[store]
        return batch

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = Wav2Vec2Config(
        vocab_size=len(letters) + 1, mask_time_prob=0.0, ctc_loss_reduction="mean", ctc_zero_infinity=True,
        conv_dim=(32,) * 7, **small,
    )  # fmt: skip
    config.teacher_units, config.tap = len(project.stores[store].spec.inventory), 1
    arguments = TrainingArguments(
        output_dir=out, max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
        report_to=[], save_strategy="no", remove_unused_columns=False, use_cpu=not torch.cuda.is_available(), seed=0,
    )  # fmt: skip
    trainer = Trainer(TaughtForCTC(config), arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
