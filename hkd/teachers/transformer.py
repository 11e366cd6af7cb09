"""Masked and causal LMs of transformers as teachers: text → pieces, and windows of them as rows (see forward.py).

- A teacher's pieces are its tokenizer's, for the bare words of the transcript joined by spaces (none between Chinese or
  Japanese characters); the case rule is found from the tokenizer and recorded. A piece belongs to the word where it
  begins. No space stands before the first word, as in the texts that the LM has read (Gemma 3 270M: perplexity a word
  180 without, 399 with), unless other utterances may stand there (`context`).
- The kept log-probabilities are those of the full softmax; special tokens are never kept, their mass belongs to the
  tail.

Shape letters: W tokens of a text or window, S scored positions of it, U units of a sentence, V vocabulary.
"""

import copy
import logging
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.errors import HkdError, UserError, check_choice, check_setting, first_line
from hkd.files import digest_of, digest_of_json
from hkd.sparse import NO_GOLD, TopK
from hkd.teachers.base import NO_WORD, Sentence, Teacher, TeacherInfo, cut_rows
from hkd.teachers.forward import Choose, OwnForward, RowScorer, TokenRow, Tokens, trial_texts
from hkd.teachers.load import TeacherOptions
from hkd.topk import select_sample, select_topk
from hkd.units.inventory import SUBWORD, UnitInventory
from hkd.units.text import is_spaced

logger = logging.getLogger(__name__)

SELECTIONS = ("topk", "sample")

_PRONOUN_I = ("i", "i'm", "i'll", "i've", "i'd")


def digest_of_model(model: torch.nn.Module) -> str:
    """SHA-256 over the parameters by name (each tied one once), with their shapes and types."""

    def parts() -> Iterator[str | bytes]:
        for name, value in sorted(model.named_parameters()):
            yield f"{name} {tuple(value.shape)} {value.dtype}"
            yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    return digest_of(parts())


def _uniform(sentence: Sentence, k: int) -> NDArray[np.float64]:
    """K numbers in [0, 1) for each position, a function of the sentence's units and context alone."""
    around = np.array([len(sentence.before), *sentence.before, *sentence.after], "<i8").tobytes()
    key = int(digest_of([sentence.unit_U.astype("<i4").tobytes(), around])[:32], 16)
    return np.random.Generator(np.random.Philox(key=key)).random((len(sentence.unit_U), k))


class TransformerTeacher(Teacher):
    """A transformers LM as a teacher over its own pieces. Frozen: evaluation mode, no gradients."""

    kind: str
    direction: str
    spaced = False  # whether a space stands between all words, those of Chinese and Japanese characters, too

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        options: TeacherOptions,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not tokenizer.is_fast:
            rule = f"teacher {name} must have a tokenizer of the tokenizers library (tokenizer.json)"
            raise HkdError(f"{rule}, but has none.")
        weights = digest_of_model(model)
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._name, self._tokenizer, self._options, self.device, self.dtype = name, tokenizer, options, device, dtype
        self._num_words = self._num_unknown = 0
        ordinary = self._find_special_tokens()
        self._prove_direction(ordinary)
        self._find_case_rule(ordinary)
        length = self._model_length()
        room = min(length, options.context or length) - len(self._begin) - len(self._end)
        self.room = max(1, room)  # tokens of text in a window, special ones left out
        self.num_candidates = int((~self._exclude_V).sum())  # units that may be kept: all but the special ones
        rules = {"case": self._case, "leading_space": self._leading_space, "final_mark": options.final_mark}
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        recorded = {**options.that_change_labels(), **rules, "precision": precision}
        pieces = digest_of_json(tokenizer.backend_tokenizer.to_str())
        info = TeacherInfo(
            name=name,
            kind=self.kind,
            direction=self.direction,
            digest=digest_of([weights, pieces, digest_of_json(recorded)]),
            given="left" if self.direction == "left" else "outside-position",
            options={
                **recorded, "architecture": type(model).__name__, "weights": weights, "tokenizer": pieces,
                "revision": getattr(model.config, "_commit_hash", None),
            },
            trained_on_transcripts="unknown",
        )  # fmt: skip
        super().__init__(inventory=UnitInventory(level=SUBWORD, symbols=self._symbols()), info=info)
        self._scorer = RowScorer(self._own, tokenizer, options, name=name, length=length, ordinary=ordinary)
        self.shards_at_once = self._scorer.shards_at_once

    @property
    def flops(self) -> float:
        """Floating-point operations so far."""
        return self._scorer.flops

    # ---- text ----

    def _find_special_tokens(self) -> Tokens:
        """Find the special tokens; gives the ids of others. Raises HkdError where tokenizer and model do not fit."""
        tokenizer, config = self._tokenizer, self.model.config.get_text_config()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = {i for i in {*tokenizer.all_special_ids, *added} if i is not None}
        ordinary = np.array(sorted({*tokenizer.get_vocab().values()} - self._special), np.int64)
        weight = getattr(self.model.get_input_embeddings(), "weight", None)
        rows = self._num_embeddings = int(config.vocab_size if weight is None else weight.shape[0])
        remedy = "Fetch the tokenizer and the weights again, from one place."
        if not len(ordinary) or int(ordinary[-1]) >= rows:
            has = f"{len(ordinary)} tokens with ids up to {ordinary[-1]}" if len(ordinary) else "no tokens"
            raise HkdError(
                f"LM {self._name} must have an embedding for each token of its tokenizer, but it has {rows} embeddings "
                f"and its tokenizer {has}. {remedy}"
            )
        prefix, suffix = self._around_texts(ordinary)
        ids = (getattr(config, key, None) for key in ("pad_token_id", "bos_token_id", "eos_token_id"))
        silent = {i for i in ids if isinstance(i, int)}
        plain = ordinary[~np.isin(ordinary, list(silent))]
        ordinary = plain if len(plain) else ordinary
        self._own = OwnForward(self.model, causal=self.direction == "left")
        try:
            self._vocabulary = int(self._own(trial_texts(ordinary, 16)[-1]).shape[-1])
        except Exception as error:  # whatever a model makes of plain texts that it was not written for
            raise HkdError(
                f"LM {self._name} must read texts alone, but {type(self.model).__name__} does not: "
                f"{first_line(error)}. Take another LM."
            ) from None
        if int(ordinary[-1]) >= self._vocabulary:
            raise HkdError(
                f"LM {self._name} must give a logit for each token of its tokenizer, but it has {self._vocabulary} "
                f"logits and its tokenizer ids up to {ordinary[-1]}. {remedy}"
            )
        exclude_V = torch.ones(self._vocabulary, dtype=torch.bool)  # ids of no token, too
        exclude_V[[i for i in tokenizer.get_vocab().values() if i not in self._special and i < len(exclude_V)]] = False
        self._exclude_V = exclude_V.to(self.device)
        self._begin, self._end = (np.array(tokens, np.int64) for tokens in self._around(prefix, suffix))
        return ordinary

    @abstractmethod
    def _around(self, prefix: list[int], suffix: list[int]) -> tuple[list[int], list[int]]:
        """The tokens before and after each text, given the tokenizer's own. Raises HkdError where one is lacking."""

    def _around_texts(self, ordinary: Tokens) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text, whatever it says."""
        backend = self._tokenizer.backend_tokenizer
        for token in ordinary.tolist():
            bare = backend.encode(backend.decode([token]), add_special_tokens=False)
            if not bare.ids or self._special & {*bare.ids}:
                continue
            size, full = len(bare.ids), backend.post_process(bare).ids
            for start in range(len(full) - size + 1):
                if full[start : start + size] == bare.ids:
                    return full[:start], full[start + size :]
        return [], []

    def _prove_direction(self, ordinary: Tokens) -> None:
        """Raises UserError for a model that reads in another direction, answers by chance, or gives no numbers."""
        text_L, of = trial_texts(ordinary, 16)[0], type(self.model).__name__
        logits_LV = self._own(text_L)
        if not bool(logits_LV.isfinite().any(-1).all()):
            raise UserError(
                f"LM {self._name} must give numbers as logits, but {of} gives none. Its weights may be broken; "
                "fetch them again. In bf16 numbers can overflow: --set precision=fp32."
            )
        if not self._own.agree(self._own(text_L), logits_LV):
            raise UserError(
                f"LM {self._name} must say the same of a text each time, but {of} does not. Take another LM."
            )
        ahead = self._own.reads_ahead(text_L)
        if ahead and self.direction == "left":
            remedy = "Take another LM."
            if getattr(self.model.config, "is_decoder", None) is False:
                remedy = (
                    "Set is_decoder to true in its config.json if it was trained from left to right; if it was trained "
                    "with masks, name its class for masked LMs as architectures."
                )
            found = f"{of} reads later tokens, or how many follow"
            raise UserError(f"LM {self._name} must read from left to right, but {found}. {remedy}")
        if not ahead and self.direction == "both":
            raise UserError(
                f"LM {self._name} must read both sides of a word, but {of} reads from left to right alone. "
                "Set is_decoder to false in its config.json, or name its class for causal LMs as architectures."
            )

    def _find_case_rule(self, ordinary: Tokens) -> None:
        self._case = self._options.case
        if self._case == "auto":
            uncased = self._knows("Ab Cd") and self._pieces("Ab Cd") == self._pieces("ab cd")
            self._case = "lower" if uncased else self._case_of_pieces(ordinary)
        first, spaced = self._pieces("the cat"), self._pieces(" the cat")
        self._leading_space = self._options.context > 0 and first != spaced and len(first) == len(spaced)

    def _case_of_pieces(self, ordinary: Tokens) -> str:
        """The case in which a cased tokenizer knows words: sentence where it knows both, else upper or lower."""
        sample = ordinary[:: -(-len(ordinary) // 20_000)].tolist()
        decoded = self._tokenizer.backend_tokenizer.decode_batch([[i] for i in sample])
        texts = ["".join(filter(str.isalpha, text)) for text in decoded]
        long = [text for text in texts if len(text) > 1 and text.lower() != text.upper()]
        upper, lower = sum(map(str.isupper, long)), sum(map(str.islower, long))
        letters = sorted({letter.lower() for text in texts for letter in text if letter.lower() != letter.upper()})
        known = {case: sum(self._knows(written) for written in map(case, letters)) for case in (str.lower, str.upper)}
        if known[str.lower] and all(self._pieces(letter) == self._pieces(letter.upper()) for letter in letters):
            return "lower"  # uncased, in a script of its own
        if upper > len(long) / 2 or 2 * known[str.lower] < known[str.upper]:
            case = "upper"
        elif 2 * known[str.upper] < known[str.lower] and lower > len(long) / 2:
            case = "lower"
        else:
            return "sentence"
        said = "LM %s: words are written in %s case, as its tokenizer's pieces are; --case says otherwise."
        logger.warning(said, self._name, case)
        return case

    def _knows(self, text: str) -> bool:
        pieces = self._pieces(text)
        return bool(pieces) and self._tokenizer.unk_token_id not in pieces

    def _pieces(self, text: str) -> list[int]:
        pieces: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return pieces

    def _symbols(self) -> tuple[str, ...]:
        own = {number: token for token, number in self._tokenizer.get_vocab().items()}
        symbols: dict[str, int] = {}  # each once
        for number, token in enumerate(map(own.get, range(self._vocabulary))):
            symbols[f"<unused {number}>" if token is None or token in symbols else token] = number
        return tuple(symbols)

    def _model_length(self) -> int:
        """Tokens that the model takes at once, special ones included, by its config and its tables of positions."""
        config = self.model.config.get_text_config()
        length = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 512)
        if length <= 0:  # relative positions only
            length = 512
        if getattr(config, "attention_type", "") == "block_sparse":
            # BigBird attends in full to a shorter text, and to every text after it
            length = min(length, (5 + 2 * config.num_random_blocks) * config.block_size)
        for name, module in self.model.named_modules():
            if "position" in name.rpartition(".")[2] and isinstance(module, torch.nn.Embedding):
                # RoBERTa and its kin count positions from the padding id on; OPT and BART from an offset
                padding, offset = getattr(module, "padding_idx", None), getattr(module, "offset", 0)
                first = offset if isinstance(offset, int) and offset else 0 if padding is None else padding + 1
                length = min(length, module.num_embeddings - first)
        return int(min(length, self._tokenizer.model_max_length, 8192))

    def _written(self, words: Sequence[str]) -> list[str]:
        if self._case == "upper":
            return [word.upper() for word in words]
        if self._case != "sentence":
            return list(words)
        return [
            word[:1].title() + word[1:] if place == 0 or word in _PRONOUN_I else word
            for place, word in enumerate(words)
        ]

    def encode(self, words: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Words → (unit_U, word_U): the tokenizer's pieces of the bare text, each with the word in which it begins."""
        written = [unicodedata.normalize("NFC", word) for word in self._written(words)]
        text, spans, last = "", [], ""
        word_at = np.full(sum(map(len, written)) + len(written) + 1, NO_WORD, np.int32)
        for number, word in enumerate(written):
            begin = len(text)  # a space belongs to the word after it
            if number or self._leading_space:
                text += " " * (self.spaced or is_spaced(last, word))
            text += word
            spans.append((len(text) - len(word), len(text)))
            word_at[begin : len(text)] = number
            last = word
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets: list[tuple[int, int]] = coded["offset_mapping"]
        word_U = np.array([word_at[a] for a, _ in offsets], np.int32).reshape(-1)
        unit_U = np.array(coded["input_ids"], np.int32).reshape(-1)
        # not known are words with the unknown token, or with letters in no piece (one may reach over several words)
        read = {place for a, b in offsets for place in range(a, b)}
        unk = self._tokenizer.unk_token_id
        unknown = set() if unk is None else {*word_U[unit_U == unk].tolist()}
        unknown |= {number for number, span in enumerate(spans) if not read.issuperset(range(*span))}
        self._num_words += len(spans)
        self._num_unknown += len(unknown - {NO_WORD})
        return unit_U, word_U

    def words_unknown(self) -> str:
        """A sentence on the words so far that the tokenizer does not know; nothing where it knows all."""
        if not self._num_unknown:
            return ""
        return (
            f"LM {self._name}: its tokenizer does not know {self._num_unknown} of {self._num_words} words, written in "
            f"{self._case} case. Should that be most of them, try another case (--case lower, sentence or upper)."
        )

    # ---- scoring ----

    @abstractmethod
    def _rows(self, token_W: Tokens, at_S: Tokens, to_S: Tokens) -> Iterator[TokenRow]:
        """The passes that score some places of a text; place at_S[s] goes to row to_S[s] of the result."""

    def _gold(self, unit_U: Tokens) -> Tokens:
        """The units, −1 for special ones (an unknown word is no gold unit)."""
        return np.where(np.isin(unit_U, list(self._special)), NO_GOLD, unit_U)

    def _windows(
        self, token_W: Tokens, at_S: Tokens, to_S: Tokens, *, aim: float
    ) -> Iterator[tuple[Tokens, Tokens, Tokens]]:
        """Cut a text into windows of at most `room` tokens: (tokens, places of scored positions, result rows).

        One window where all fits; else windows that overlap by half, each position scored where it stands nearest to
        the share `aim` of the window.
        """
        room = self.room
        if len(token_W) <= room:
            yield token_W, at_S, to_S
            return
        stride = max(1, room // 2)
        starts = np.unique(np.append(np.arange(0, len(token_W) - room, stride), len(token_W) - room))
        best_S = np.abs(at_S[:, None] - (starts + (room - 1) * aim)[None]).argmin(1)
        for number, start in enumerate(starts.tolist()):
            mine = best_S == number
            if mine.any():
                yield token_W[start : start + room], at_S[mine] - start, to_S[mine]

    def _texts(self, sentences: Sequence[Sentence]) -> Iterator[tuple[Tokens, Tokens, Tokens]]:
        """Sentences of one text (before, units, after) together: (tokens, places of scored positions, result rows)."""
        together: dict[bytes, list[tuple[Tokens, Tokens]]] = {}
        first = 0
        for s in sentences:
            size = len(s.unit_U)
            whole = np.array([*s.before, *s.unit_U.tolist(), *s.after], np.int64)
            if size:
                places = np.arange(size)
                together.setdefault(whole.tobytes(), []).append((places + len(s.before), places + first))
            first += size
        for text, parts in together.items():
            at_S, to_S = (np.concatenate(column) for column in zip(*parts, strict=True))
            yield np.frombuffer(text, np.int64), at_S, to_S

    @torch.inference_mode()
    def score(
        self, sentences: Sequence[Sentence], *, k: int, temperatures: Sequence[float] = (), selection: str = "topk"
    ) -> list[TopK]:
        """Per sentence the rows of all positions: the top k, or k draws ("sample", a function of the texts alone)."""
        check_setting("k", k, "be at least 1", k >= 1)
        rows = [row for text in self._texts(sentences) for row in self._rows(*text)]
        choose = self._selection(sentences, selection, k, temperatures=temperatures, exclude_V=self._exclude_V)
        if not rows:
            none = np.zeros(0, np.int64)
            return [choose(torch.zeros((0, self._vocabulary)), none, none) for _ in sentences]
        scored, to = self._scorer.score(rows, choose)
        return cut_rows(scored[np.argsort(to)], sentences)

    def _selection(self, sentences: Sequence[Sentence], selection: str, k: int, **given: Any) -> Choose:
        """What makes rows of logits, given each row's gold unit and its place among all positions."""
        check_choice("selection", selection, SELECTIONS)
        if selection == "topk":
            return lambda logits_MV, gold_M, _: select_topk(logits_MV, torch.from_numpy(gold_M), k=k, **given)
        drawn_NK = torch.from_numpy(np.concatenate([np.zeros((0, k)), *(_uniform(s, k) for s in sentences)]))
        return lambda logits_MV, gold_M, to_M: select_sample(
            logits_MV, torch.from_numpy(gold_M), drawn_NK[to_M], **given
        )


def _dense(rows: TopK, size: int) -> NDArray[np.float64]:
    """Rows of all candidates as log-probabilities (N, V + 1), the rest last; what is impossible stands at e^-80."""
    out_NV = np.full((len(rows), size + 1), -80.0)
    np.put_along_axis(out_NV, rows.ids_NK.astype(np.int64), np.maximum(rows.logp_NK, -80.0), 1)
    out_NV[:, -1] = np.maximum(rows.tail_N, -80.0)
    return out_NV


class MaskedTeacher(TransformerTeacher):
    """BERT and its kin."""

    kind = "masked"
    direction = "both"

    def _around(self, prefix: list[int], suffix: list[int]) -> tuple[list[int], list[int]]:
        mask = self._tokenizer.mask_token_id
        if mask is None or mask >= self._num_embeddings:
            has = "none" if mask is None else f"one without an embedding (id {mask})"
            remedy = "Fetch the tokenizer that it was trained with."
            raise HkdError(f"LM {self._name} must have a mask token, but its tokenizer has {has}. {remedy}")
        mark = self._options.final_mark
        own = self._tokenizer.get_vocab().get(mark)  # written alone, some tokenizers put a space before it
        return prefix, [*(self._pieces(mark) if own is None else [own]), *suffix]

    def _rows(self, token_W: Tokens, at_S: Tokens, to_S: Tokens) -> Iterator[TokenRow]:
        """Exact: a row a position. `mask_every` m: row r masks the places n ≡ r (mod m), and scores those asked for."""
        first, every = len(self._begin), self._options.mask_every
        for window_W, at_M, to_M in self._windows(token_W, at_S, to_S, aim=0.5):
            token_L = np.concatenate([self._begin, window_W, self._end])
            at_M = at_M + first
            gold_M = self._gold(token_L[at_M])
            if not every:
                for n in range(len(at_M)):
                    one = slice(n, n + 1)
                    yield TokenRow(token_L, at_M[one], at_M[one], gold_M[one], to_M[one])
                continue
            for part in range(every):
                mine = (at_M - first) % every == part
                if mine.any():
                    masked = np.arange(part, len(window_W), every) + first
                    yield TokenRow(token_L, masked, at_M[mine], gold_M[mine], to_M[mine])

    def measured(self, sentences: Sequence[Sentence]) -> dict[str, float]:
        """What `mask_every` costs: the mean KL(exact rule ‖ `mask_every`) a position in nats, with one rest."""
        if not self._options.mask_every:
            return {}
        exact = copy.copy(self)
        exact._options = replace(self._options, mask_every=0)
        total, count = 0.0, 0
        for sentence in sentences:
            rows = [teacher.score([sentence], k=self.num_candidates)[0] for teacher in (exact, self)]
            p_NV, q_NV = (_dense(own, self._vocabulary) for own in rows)
            total += float((np.exp(p_NV) * (p_NV - q_NV)).sum())
            count += len(p_NV)
        return {"mask_every_kl_nats": total / max(1, count)}


class CausalTeacher(TransformerTeacher):
    """GPT-2, Llama, Qwen, Gemma, Mistral and their kin. What comes after is never read, as context neither."""

    kind = "causal"
    direction = "left"

    def _around(self, prefix: list[int], suffix: list[int]) -> tuple[list[int], list[int]]:
        """Before a text the tokenizer's own prefix, else the start token, else the end token (as GPT-2 was trained)."""
        if prefix:
            return prefix, []
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return [token], []
        raise HkdError(
            f"LM {self._name} must have a start or an end token, but its tokenizer has neither. Give it one: set "
            "bos_token in its tokenizer_config.json."
        )

    def _rows(self, token_W: Tokens, at_S: Tokens, to_S: Tokens) -> Iterator[TokenRow]:
        """A row a window; a position is scored by the output one place to its left, the first by the start token's."""
        none = np.zeros(0, np.int64)
        read_W = token_W[: int(at_S.max()) + 1]  # what follows the last scored position is not needed
        for window_W, at_M, to_M in self._windows(read_W, at_S, to_S, aim=0.75):
            token_L = np.concatenate([self._begin, window_W])
            at_M = at_M + len(self._begin)
            yield TokenRow(token_L[: int(at_M.max())], none, at_M - 1, self._gold(token_L[at_M]), to_M)
