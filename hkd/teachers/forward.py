"""Rows of tokens through a transformers model: batches, the body, the head on scored places alone, and what of it is kept.

- Rows run by falling length, at most `budget` tokens at once. BERT and its kin run packed (`PackedEncoder`); others on padded rows of
  like length, with a mask only where lengths differ, and none for causal models, which never look at what follows.
- The head is whatever the model's own forward does with its body's output: it is called with the body replaced by the gathered
  rows, so that no architecture needs code of its own. Several batches share a call of it where they are small.
- On CPU each unit of work runs on one core, as many at once as torch has threads: no waiting for each other inside every small
  operation, and the bytes do not depend on the number of cores. On CUDA two threads have a stream each, so that the GPU works while
  the other one's rows are copied (from pinned memory) or read back.

Shape letters: R rows of a batch (copies of windows), L tokens of a row, M scored places, D model width, V vocabulary.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from hkd.errors import HkdError
from hkd.sparse import TopK
from hkd.teachers.packed import PackedEncoder, on_device

log = logging.getLogger(__name__)

Tokens = NDArray[np.int64]
Choose = Callable[[torch.Tensor, Tokens, Tokens], TopK]

TOKEN_BUDGET = {"cuda": 65_536}
VALUES_CPU = 3 << 19  # tokens × model width of a batch on CPU, where larger ones leave the caches
_TOKENS_CPU = 8192  # of a batch of a narrow model, which needs no more to keep a core busy
_HEAD_ROWS = 256  # scored rows of a head call, at least where there are as many: the weights are read once a call
_HEAD_BYTES = {"cuda": 1 << 30}  # logits of a head call
_HEAD_BYTES_CPU = 32 << 20
_UNIT_FLOPS = 1e11  # about a second of one core: the work of one thread at a time, if a batch is not more
_CUDA_STREAMS = 2
_EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)


@dataclass(frozen=True, slots=True)
class Row:
    """One pass of one window through the body: its tokens, which of them are masked, and which are scored for whom.

    Copies of one window share the array `token_L`.
    """

    token_L: Tokens
    masked: Tokens  # places in token_L that are masked
    at: Tokens  # places in token_L whose output is scored
    gold: Tokens  # the unit at each scored position
    to: Tokens  # the row of the result, over all sentences


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _matrix_weights(modules: Iterable[Any]) -> int:
    """Elements of all matrices but embedding tables."""
    found = [module.parameters(recurse=False) for module in modules if not isinstance(module, _EMBEDDINGS)]
    return sum(value.numel() for parameters in found for value in parameters if value.dim() > 1)


class RowScorer:
    """A model that scores rows. `budget` is the tokens of a batch; running out of memory halves it."""

    def __init__(
        self, model: Any, *, budget: int, length: int, pad_id: int | None, mask_id: int | None, causal: bool, compiled: bool
    ) -> None:
        """`length`: tokens of the longest row; `model` stands on its device, in evaluation mode."""
        self._model, self._body = model, model.base_model
        self._device: torch.device = next(model.parameters()).device
        self._kind = self._device.type
        of_width = min(_TOKENS_CPU, VALUES_CPU // int(self._body.config.get_text_config().hidden_size))
        self.budget = budget or TOKEN_BUDGET.get(self._kind, of_width)
        self._pad_id, self._mask_id, self._causal = pad_id or 0, mask_id or 0, causal
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._packed = None if causal or mask_id is None else PackedEncoder.of(self._body, mask_id=mask_id, length=length)
        if compiled and self._packed is not None:
            self._packed.compile()
        self._given = threading.local()
        self._forward: Any = torch.compile(self._body.forward) if compiled and self._packed is None else self._body.forward
        self._body.forward = self._body_or_given
        self.flops = 0.0
        self._counting = threading.Lock()
        in_body = set(self._body.modules())
        outside = [module for module in model.modules() if module not in in_body]
        self._weights = _matrix_weights(self._body.modules()), _matrix_weights(outside)

    @property
    def shards_at_once(self) -> int:
        """Calls of `score` that should run side by side, so that the device never waits for what comes before and after."""
        return 2 if self._kind == "cuda" else 1

    # ---- batches ----

    def score(self, rows: Sequence[Row], choose: Choose) -> tuple[TopK, Tokens]:
        """What `choose` makes of the logits of all scored places, and the result row of each."""
        falling = sorted(rows, key=lambda row: -len(row.token_L))
        with self._counting:
            self.flops += self._flops(rows)
        parts = [part for unit in self._run(self._units(falling), choose) for part in unit]
        return TopK.concatenate(parts), np.concatenate([row.to for row in falling])

    def _flops(self, rows: Sequence[Row]) -> float:
        """Floating-point operations of the matrix products for some rows: 2 a weight and token, and those of attention."""
        body, head = self._weights
        of_head = 2.0 * head * sum(len(row.at) for row in rows)
        if self._packed is not None:
            return of_head + self._packed.flops([row.token_L for row in rows], [row.at for row in rows])
        length_R = np.array([len(row.token_L) for row in rows], np.float64)
        config = self._body.config.get_text_config()
        scores = float((length_R**2).sum()) / (2 if self._causal else 1)
        return of_head + 2.0 * body * float(length_R.sum()) + 4.0 * int(config.hidden_size * config.num_hidden_layers) * scores

    def _units(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """The work of one thread: one batch, or some while they are cheap and have few scored places for a call of the head."""
        waiting: list[Row] = []
        for batch in self._batches(rows):
            waiting += batch
            if sum(len(row.at) for row in waiting) >= _HEAD_ROWS or self._flops(waiting) >= _UNIT_FLOPS:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _batches(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Neighbours in the order given (by falling length), as many as the token budget holds with padding, at least one."""
        start = tokens = 0
        for end, row in enumerate(rows):
            cost = len(row.token_L) if self._packed is not None else len(rows[start].token_L)
            if end > start and tokens + cost > self.budget:
                yield rows[start:end]
                start, tokens = end, 0
                cost = len(row.token_L)
            tokens += cost
        if start < len(rows):
            yield rows[start:]

    def _run(self, units: Iterable[Sequence[Row]], choose: Choose) -> Iterator[list[TopK]]:
        """All units in order, some at once."""
        threads = {"cpu": torch.get_num_threads(), "cuda": _CUDA_STREAMS}.get(self._kind, 1)
        with ThreadPoolExecutor(threads, initializer=self._start_thread) as pool:
            waiting: deque[Future[list[TopK]]] = deque()
            try:
                for unit in units:
                    waiting.append(pool.submit(self._score_unit, unit, choose))
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for task in waiting:
                    task.cancel()

    def _start_thread(self) -> None:
        if self._kind == "cpu":
            torch.set_num_threads(1)
        elif self._kind == "cuda":
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.default_stream(self._device))
            torch.cuda.set_stream(stream)

    @torch.inference_mode()
    def _score_unit(self, unit: Sequence[Row], choose: Choose) -> list[TopK]:
        """The rows of a unit, its batches one after the other and their scored places together."""
        hidden_MD = torch.cat([part for batch in self._batches(unit) for part in self._body_within_memory(batch)])
        gold_M, to_M = (np.concatenate(column) for column in zip(*((row.gold, row.to) for row in unit), strict=True))
        step = max(_HEAD_ROWS // 2, _HEAD_BYTES.get(self._kind, _HEAD_BYTES_CPU) // (4 * self._vocabulary))
        ends = (
            np.linspace(0, len(to_M), -(-len(to_M) // step) + 1).astype(int).tolist()
        )  # even: a call with few rows costs nearly as much
        cuts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        return [part for cut in cuts for part in self._head_within_memory(hidden_MD, gold_M, to_M, cut, choose)]

    # ---- memory ----

    def _body_within_memory(self, batch: Sequence[Row]) -> list[torch.Tensor]:
        """The body's output at the scored places; out of memory halves the batch, and the token budget from there on."""
        try:
            return [self._hidden(batch)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
        tokens = sum(len(row.token_L) for row in batch)
        if len(batch) == 1:
            raise HkdError(f"one row of {tokens} tokens must fit into the memory of {self._device}, but does not.")
        self.budget = max(1, min(self.budget, tokens // 2))
        log.warning("Out of memory with %d rows of %d tokens: the token budget is now %d.", len(batch), tokens, self.budget)
        self._free()
        half = len(batch) // 2
        return self._body_within_memory(batch[:half]) + self._body_within_memory(batch[half:])

    def _head_within_memory(
        self, hidden_MD: torch.Tensor, gold_M: Tokens, to_M: Tokens, cut: slice, choose: Choose
    ) -> list[TopK]:
        """What `choose` makes of some scored places; out of memory halves them."""
        try:
            return [choose(self._head(hidden_MD[cut]), gold_M[cut], to_M[cut])]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
        if cut.stop - cut.start == 1:
            raise HkdError(f"the logits of one position must fit into the memory of {self._device}, but do not.")
        log.warning("Out of memory with the logits of %d positions: they are halved.", cut.stop - cut.start)
        self._free()
        middle = (cut.start + cut.stop) // 2
        halves = slice(cut.start, middle), slice(middle, cut.stop)
        return [part for half in halves for part in self._head_within_memory(hidden_MD, gold_M, to_M, half, choose)]

    def _free(self) -> None:
        if self._kind == "cuda":
            torch.cuda.empty_cache()

    # ---- body and head ----

    def _hidden(self, batch: Sequence[Row]) -> torch.Tensor:
        """The body's output (M, D) at the scored places of all rows, in order."""
        if self._packed is not None:
            return self._packed([row.token_L for row in batch], [row.masked for row in batch], [row.at for row in batch])
        length_R = np.array([len(row.token_L) for row in batch])
        longest = int(length_R.max())
        token_RL = np.full((len(batch), longest), self._pad_id, np.int64)
        for number, row in enumerate(batch):
            token_RL[number, : len(row.token_L)] = row.token_L
            if len(row.masked):
                token_RL[number, row.masked] = self._mask_id
        at_M = np.concatenate([number * longest + row.at for number, row in enumerate(batch)])
        given: dict[str, Any] = {"input_ids": on_device(token_RL, self._device)}
        if self._causal:
            given["use_cache"] = False
        elif int(length_R.min()) < longest:
            given["attention_mask"] = on_device((np.arange(longest) < length_R[:, None]).astype(np.int64), self._device)
        hidden_RLD: torch.Tensor = self._body(**given)[0]
        return hidden_RLD.reshape(-1, hidden_RLD.shape[-1])[on_device(at_M, self._device)]

    def _head(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V) of the model's own head for rows of its body's output."""
        self._given.output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden_MD[None])
        try:
            logits: torch.Tensor = self._model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self._device)).logits
        finally:
            self._given.output = None
        return logits[0]

    def _body_or_given(self, *arguments: Any, **options: Any) -> Any:
        """The body's forward, or, while this thread asks the head, the rows that the head shall have."""
        given = getattr(self._given, "output", None)
        return self._forward(*arguments, **options) if given is None else given
