"""Rows of tokens through a transformers model: batches, the body, the head on scored places, and what of it is kept.

- Rows run by falling length, at most `budget` tokens at once. BERT and its kin run packed (`PackedEncoder`); others on
  padded rows of like length, with a mask only where lengths differ, and none for causal models, which never look at
  what follows.
- The head is whatever the model's own forward does with its body's output: the forward is called with the body replaced
  by an earlier output of it, whose hidden states are exchanged for the gathered rows. So no architecture needs code of
  its own. Small batches share a call.
- Some models do not bear that: their head reads more of the body, or their body reads padding. So a trial at loading
  compares each of `WAYS` with the model's own logits for one text at a time, and takes the fastest that agrees. The
  slowest asks the whole model about one row at a time; only a model that answers differently each time has no way.
- On CPU each unit of work runs on one core, as many at once as torch has threads: small operations do not wait for each
  other, and the bytes do not depend on the number of cores. On CUDA two threads have a stream each: the GPU works on
  one's rows while the other's are copied (from pinned memory) or read back.

Shape letters: R rows of a batch (copies of windows), L tokens of a row, M scored places, D model width, V vocabulary.
"""

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.generic import ModelOutput

from hkd.errors import HkdError
from hkd.sparse import TopK
from hkd.teachers.load import TeacherOptions
from hkd.teachers.packed import PackedEncoder, on_device

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tokens = NDArray[np.int64]
Choose = Callable[[torch.Tensor, Tokens, Tokens], TopK]

_TOKENS_CUDA = 65_536  # of a batch
_VALUES_CPU = 3 << 19  # tokens × model width of a batch on CPU, where larger ones leave the caches
_TOKENS_CPU = 8192  # of a batch of a narrow model, which needs no more to keep a core busy
_HEAD_ROWS = 256  # scored rows of a head call, at least where there are as many: the weights are read once a call
_HEAD_BYTES_CUDA, _HEAD_BYTES = 1 << 30, 32 << 20  # logits of a head call
_UNIT_FLOPS = 1e11  # about a second of one core: the work of one thread at a time, if a batch is not more
_CUDA_STREAMS = 2
_EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)
# rows longer than this run beside rows of their own length alone: models change their attention at some lengths
_PADDED_TOKENS = 512
# tolerance of a logit, against the largest one of its row, and the share of the places that must be within it
_AGREEING = {torch.float32: (2e-4, 1.0)}
_AGREEING_ELSE = 5e-2, 0.75  # rounding to bfloat16 sends some tokens to other experts


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One pass of one window through the body: its tokens, which of them are masked, and which are scored for whom."""

    token_L: Tokens  # one array for all copies of a window
    masked: Tokens  # places in token_L that are masked
    at: Tokens  # places in token_L whose output is scored
    gold: Tokens  # the unit at each scored position
    to: Tokens  # the row of the result, over all sentences


def _matrix_weights(modules: Iterable[Any]) -> int:
    found = [module.parameters(recurse=False) for module in modules if not isinstance(module, _EMBEDDINGS)]
    return sum(value.numel() for parameters in found for value in parameters if value.dim() > 1)


@dataclass(frozen=True, slots=True)
class ForwardMode:
    """How rows are scored."""

    packed: bool = False  # by `PackedEncoder`
    gathered: bool = True  # the head reads the scored places alone
    rows: str = "padded"  # what shares a batch: padded | equal (rows of one length) | single (a row at a time)


_UNPACKED = product((True, False), ("padded", "equal", "single"))
WAYS = (ForwardMode(packed=True), *(ForwardMode(gathered=gathered, rows=rows) for gathered, rows in _UNPACKED))


class OwnForward:
    """What a model itself says of one text after the other: what every faster way is held against."""

    def __init__(self, model: Any, *, causal: bool) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self.causal = causal

    def arguments(self, module: Any, token_RL: torch.Tensor, real_RL: torch.Tensor | None = None) -> dict[str, Any]:
        """What the model, or its body, is called with; `real_RL` tells tokens from padding."""
        given: dict[str, Any] = {"input_ids": token_RL}
        if self.causal:
            # the module's own forward may be replaced
            parameters = inspect.signature(type(module).forward).parameters.values()
            if any(value.name == "use_cache" or value.kind is value.VAR_KEYWORD for value in parameters):
                given["use_cache"] = False
        elif real_RL is not None:
            given["attention_mask"] = real_RL
        return given

    @torch.inference_mode()
    def __call__(self, token_L: Tokens) -> torch.Tensor:
        """Logits (L, V) of one text."""
        token_RL = on_device(np.ascontiguousarray(token_L[None]), self.device)
        logits: torch.Tensor = self.model(**self.arguments(self.model, token_RL, torch.ones_like(token_RL))).logits
        return logits[0]

    def agree(self, got_MV: torch.Tensor, own_MV: torch.Tensor) -> bool:
        """Whether two answers are one, up to rounding."""
        got_MV, own_MV = got_MV.float(), own_MV.float()
        if got_MV.shape != own_MV.shape or not len(own_MV):
            return False
        size_M = (own_MV - own_MV.mean(-1, keepdim=True)).abs().amax(-1)
        gap_M = (got_MV - own_MV).abs().amax(-1) / size_M.clamp_min(torch.finfo(torch.float32).tiny)
        tolerance, share = _AGREEING.get(self.model.dtype, _AGREEING_ELSE)
        return float((gap_M <= tolerance).float().mean()) >= share

    def reads_ahead(self, token_L: Tokens) -> bool:
        """Whether later tokens, or their number, change what the model says at earlier places."""
        kept = len(token_L) // 2
        other_L = np.concatenate([token_L[:kept], np.roll(token_L, 1)[kept:]])
        own_LV = self(token_L)
        got_LV = torch.cat([self(other_L)[:kept], self(token_L[:kept])])
        return not self.agree(got_LV, torch.cat([own_LV[:kept], own_LV[:kept]]))


def _exchange(output: Any, hidden: torch.Tensor) -> Any:
    if isinstance(output, ModelOutput):
        changed = copy.copy(output)
        changed[next(iter(output))] = hidden
        return changed
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _hidden_of(output: Any) -> Any:
    """The hidden states among what a module gives: the first value, or the only one."""
    if isinstance(output, ModelOutput | tuple):
        return output[0] if len(output) else None
    return output


@torch.inference_mode()
def find_body(own: OwnForward, token_L: Tokens) -> tuple[Any, Any]:
    """The body and its output for a text: the first module that the model's own forward calls with token ids and that
    gives hidden states of the text. (None, None) where there is none."""
    depth, seen = 0, []
    token_RL = on_device(token_L[None], own.device)

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: Any, _: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        hidden = _hidden_of(output)
        if depth == 1 and isinstance(hidden, torch.Tensor) and hidden.dim() == 3 and hidden.shape[1] >= len(token_L):
            seen.append((module, output))

    handles = [
        handle
        for module in own.model.modules()
        for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        own.model(**own.arguments(own.model, token_RL, torch.ones_like(token_RL)))
    finally:
        for handle in handles:
            handle.remove()
    taking_ids = (found for found in seen if "input_ids" in inspect.signature(type(found[0]).forward).parameters)
    return next(taking_ids, (None, None))


class RowScorer:
    """A model that scores rows. `budget` is the tokens of a batch; running out of memory halves it."""

    def __init__(
        self, own: OwnForward, tokenizer: Any, options: TeacherOptions, *, name: str, length: int, ordinary: Tokens
    ) -> None:
        """`own`: of a model on its device, in evaluation mode; `length`: tokens of the longest row; `ordinary`: ids of
        tokens that are not special. Raises HkdError where no way gives what the model itself gives."""
        model, mask_id = own.model, tokenizer.mask_token_id
        self._own, self._model, self._device, self._causal = own, model, own.device, own.causal
        self._kind = own.device.type
        self._pad_id, self._mask_id = tokenizer.pad_token_id or 0, mask_id or 0
        self._head_bytes = _HEAD_BYTES_CUDA if self._kind == "cuda" else _HEAD_BYTES
        # calls of `score` side by side, so that the device never waits
        self.shards_at_once = 2 if self._kind == "cuda" else 1
        self._given = threading.local()
        self._counting = threading.Lock()
        self.flops = 0.0
        texts = trial_texts(ordinary, length)
        self._body, self._output = find_body(self._own, texts[-1])
        of_width = _TOKENS_CPU
        if self._body is not None:
            of_width = min(_TOKENS_CPU, _VALUES_CPU // int(_hidden_of(self._output).shape[-1]))
        self.budget = options.token_budget or (_TOKENS_CUDA if self._kind == "cuda" else of_width)
        self._packed = None
        if not own.causal and mask_id is not None and self._body is model.base_model:
            self._packed = PackedEncoder.of(self._body, mask_id=mask_id, length=length)
        if self._body is not None:
            self._forward: Any = self._body.forward
            self._body.forward = self._body_or_given
        self.way = self._proven_way(name, texts)
        if not self.way.packed:
            self._packed = None
        if not self.way.gathered:
            self.budget = min(self.budget, max(1, self._head_bytes // self._vocabulary))
        if options.compile:
            if self._packed is not None:
                self._packed.compile()
            elif self._body is not None:
                self._forward = torch.compile(self._forward)
        in_body = set(self._body.modules()) if self._body is not None else set(model.modules())
        outside = [module for module in model.modules() if module not in in_body]
        self._weights = _matrix_weights(in_body), _matrix_weights(outside)

    def _proven_way(self, name: str, texts: Sequence[Tokens]) -> ForwardMode:
        """The first of `WAYS` that gives what the model gives for a text at a time, in the texts and at their ends."""
        none, rows, own = np.zeros(0, np.int64), [], []
        for text_L in texts:
            places = np.unique([1 % len(text_L), len(text_L) // 2, max(0, len(text_L) - 2), len(text_L) - 1])
            masked = none if self._causal else places[:1]
            given_L = text_L.copy()
            given_L[masked] = self._mask_id
            own.append(self._own(given_L)[places])
            rows.append(TokenRow(text_L, masked, places, none, none))
        own_MV = torch.cat(own)
        self._vocabulary = int(own_MV.shape[-1])
        for way in WAYS:
            if (way.packed and self._packed is None) or (way.gathered and self._body is None):
                continue
            self.way = way
            try:
                hidden = [self._hidden(batch) for batch in self._batches(rows)]
                with torch.inference_mode():
                    if self._own.agree(self._head(torch.cat(hidden)), own_MV):
                        logger.debug("%s is asked by %s", name, way)
                        return way
            except Exception as error:  # whatever a model makes of a call that it was not written for
                logger.debug("%s cannot be asked by %s: %s: %s", name, way, type(error).__name__, error)
        kind = type(self._model).__name__
        raise HkdError(f"LM {name} must give logits for each token of a text, but {kind} does not. Take another LM.")

    # ---- batches ----

    def score(self, rows: Sequence[TokenRow], choose: Choose) -> tuple[TopK, Tokens]:
        """What `choose` makes of the logits of all scored places, and the result row of each."""
        falling = sorted(rows, key=lambda row: -len(row.token_L))
        with self._counting:
            self.flops += self._flops(rows)
        threads = {"cpu": torch.get_num_threads(), "cuda": _CUDA_STREAMS}.get(self._kind, 1)
        with ThreadPoolExecutor(threads, initializer=self._start_thread) as pool:
            units = pool.map(partial(self._score_unit, choose=choose), self._units(falling))
            parts = [part for unit in units for part in unit]
        return TopK.concatenate(parts), np.concatenate([row.to for row in falling])

    def _flops(self, rows: Sequence[TokenRow]) -> float:
        body, head = self._weights
        of_head = 2.0 * head * sum(len(row.at) for row in rows)
        if self._packed is not None:
            return of_head + self._packed.flops([row.token_L for row in rows], [row.at for row in rows])
        length_R = np.array([len(row.token_L) for row in rows], np.float64)
        config = self._model.config.get_text_config()
        width = int(getattr(config, "hidden_size", 0) or 0) * int(getattr(config, "num_hidden_layers", 0) or 0)
        scores = float((length_R**2).sum()) / (2 if self._causal else 1)
        return of_head + 2.0 * body * float(length_R.sum()) + 4.0 * width * scores

    def _units(self, rows: Sequence[TokenRow]) -> Iterator[Sequence[TokenRow]]:
        """The work of one thread: one batch, or some while they are cheap and have few scored places for the head."""
        waiting: list[TokenRow] = []
        for batch in self._batches(rows):
            waiting += batch
            if sum(len(row.at) for row in waiting) >= _HEAD_ROWS or self._flops(waiting) >= _UNIT_FLOPS:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[Sequence[TokenRow]]:
        """Neighbours in the order given, by falling length: one, or as many as the token budget holds with padding."""
        start = tokens = 0
        for end, row in enumerate(rows):
            longest = len(rows[start].token_L)
            cost = len(row.token_L) if self.way.packed else longest
            alone = self.way.rows == "single" or (
                len(row.token_L) != longest
                and not self.way.packed
                and (self.way.rows == "equal" or longest > _PADDED_TOKENS)
            )
            if end > start and (alone or tokens + cost > self.budget):
                yield rows[start:end]
                start, tokens = end, 0
                cost = len(row.token_L)
            tokens += cost
        if start < len(rows):
            yield rows[start:]

    def _start_thread(self) -> None:
        if self._kind == "cpu":
            torch.set_num_threads(1)
        elif self._kind == "cuda":
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.default_stream(self._device))
            torch.cuda.set_stream(stream)

    @torch.inference_mode()
    def _score_unit(self, unit: Sequence[TokenRow], choose: Choose) -> list[TopK]:
        """The rows of a unit, its batches one after the other and their scored places together."""
        hidden_MD = torch.cat([part for batch in self._batches(unit) for part in self._bodies(batch)])
        gold_M, to_M = (np.concatenate(column) for column in zip(*((row.gold, row.to) for row in unit), strict=True))
        step = max(_HEAD_ROWS // 2, self._head_bytes // (4 * self._vocabulary))
        # even: a call with few rows costs nearly as much
        ends = np.linspace(0, len(to_M), -(-len(to_M) // step) + 1).astype(int).tolist()

        def run(a: int, b: int) -> TopK:
            return choose(self._head(hidden_MD[a:b]), gold_M[a:b], to_M[a:b])

        def shrink(a: int, b: int) -> None:
            if b - a == 1:
                raise HkdError(f"the logits of one position must fit into the memory of {self._device}, but do not.")
            logger.warning("Out of memory with the logits of %d positions: they are halved.", b - a)

        return [part for a, b in pairwise(ends) for part in self._within_memory(run, a, b, shrink)]

    # ---- memory ----

    def _bodies(self, batch: Sequence[TokenRow]) -> list[torch.Tensor]:
        """The body's output at the scored places; out of memory halves the batch, and from there on the budget."""

        def shrink(a: int, b: int) -> None:
            tokens = sum(len(row.token_L) for row in batch[a:b])
            if b - a == 1:
                raise HkdError(f"one row of {tokens} tokens must fit into the memory of {self._device}, but does not.")
            self.budget = max(1, min(self.budget, tokens // 2))
            logger.warning(
                "Out of memory with %d rows of %d tokens: the token budget is now %d.", b - a, tokens, self.budget
            )

        return self._within_memory(lambda a, b: self._hidden(batch[a:b]), 0, len(batch), shrink)

    def _within_memory(
        self, run: Callable[[int, int], T], start: int, stop: int, shrink: Callable[[int, int], None]
    ) -> list[T]:
        """`run(start, stop)`, in halves where memory does not suffice: `shrink(start, stop)` says so, or raises."""
        try:
            return [run(start, stop)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not is_memory and "can't allocate memory" not in str(error):
                raise
        shrink(start, stop)
        if self._kind == "cuda":
            torch.cuda.empty_cache()
        middle = (start + stop) // 2
        return self._within_memory(run, start, middle, shrink) + self._within_memory(run, middle, stop, shrink)

    # ---- body and head ----

    def _hidden(self, batch: Sequence[TokenRow]) -> torch.Tensor:
        """The body's output (M, D) at the scored places, in order; logits (M, V) where the head reads whole rows."""
        if self.way.packed and self._packed is not None:
            return self._packed(*zip(*((row.token_L, row.masked, row.at) for row in batch), strict=True))
        length_R = np.array([len(row.token_L) for row in batch])
        longest = int(length_R.max())
        token_RL = np.full((len(batch), longest), self._pad_id, np.int64)
        for number, row in enumerate(batch):
            token_RL[number, : len(row.token_L)] = row.token_L
            if len(row.masked):
                token_RL[number, row.masked] = self._mask_id
        real_RL = None
        if not self._causal and int(length_R.min()) < longest:
            real_RL = on_device((np.arange(longest) < length_R[:, None]).astype(np.int64), self._device)
        asked: Any = self._body if self.way.gathered else self._model
        output = asked(**self._own.arguments(asked, on_device(token_RL, self._device), real_RL))
        hidden_RLD: torch.Tensor = _hidden_of(output) if self.way.gathered else output.logits
        at_M = np.concatenate([number * hidden_RLD.shape[1] + row.at for number, row in enumerate(batch)])
        return hidden_RLD.reshape(-1, hidden_RLD.shape[-1])[on_device(at_M, self._device)]

    def _head(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V) of the model's own head for rows of its body's output."""
        if not self.way.gathered:
            return hidden_MD
        token_RL = torch.zeros((1, 1), dtype=torch.long, device=self._device)
        self._given.output = _exchange(self._output, hidden_MD[None])
        try:
            logits: torch.Tensor = self._model(input_ids=token_RL).logits
        finally:
            self._given.output = None
        return logits[0]

    def _body_or_given(self, *arguments: Any, **options: Any) -> Any:
        """The body's forward, or, while this thread asks the head, the rows that the head shall have."""
        given = getattr(self._given, "output", None)
        return self._forward(*arguments, **options) if given is None else given


def trial_texts(ordinary: Tokens, length: int) -> list[Tokens]:
    """Three texts of falling length, out of tokens that are not special."""
    longest = max(2, min(length, 24))
    drawn = np.random.default_rng(0).choice(ordinary, longest).astype(np.int64)
    return [drawn[:size] for size in sorted({longest, max(2, 2 * longest // 3), max(2, longest // 3)}, reverse=True)]
