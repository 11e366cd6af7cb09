"""The packed encoder: what the model itself gives, for whatever is masked and asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.teachers.packed import PackedEncoder
from hkd.testing.teachers import MASKED

Folder = Callable[[str], Path]
BUILT_LIKE_BERT = ("bert", "roberta", "electra", "xlm-roberta")
MASK = 4


def load(folder: Path) -> Any:
    return transformers.AutoModelForMaskedLM.from_pretrained(folder).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", MASKED)
def test_it_is_there_for_bert_and_its_kin_alone(teacher_folder: Folder, kind: str) -> None:
    encoder = PackedEncoder.of(load(teacher_folder(kind)).base_model, mask_id=MASK, length=20)
    assert (encoder is not None) == (kind in BUILT_LIKE_BERT)


def test_a_body_that_only_looks_like_bert_is_left_alone(teacher_folder: Folder) -> None:
    body = load(teacher_folder("bert")).base_model
    body.encoder.layer[1].attention.self.scaling = 1.0
    assert PackedEncoder.of(body, mask_id=MASK, length=20) is None


@pytest.fixture(scope="module", params=BUILT_LIKE_BERT)
def both(request: pytest.FixtureRequest, teacher_folder: Folder) -> tuple[Any, PackedEncoder]:
    """A body and its encoder."""
    body = load(teacher_folder(request.param)).base_model
    encoder = PackedEncoder.of(body, mask_id=MASK, length=30)
    assert encoder is not None
    return body, encoder


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_it_gives_what_the_body_gives(both: tuple[Any, PackedEncoder], data: st.DataObject) -> None:
    body, encoder = both
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    tokens, masked, at = [], [], []
    for size in sorted(sizes, reverse=True):
        text_L = np.array(data.draw(st.lists(st.integers(5, 40), min_size=size, max_size=size)), np.int64)
        for _ in range(data.draw(st.integers(1, 3))):
            tokens.append(text_L)
            places = st.sets(st.integers(0, size - 1), min_size=1).map(lambda s: np.array(sorted(s), np.int64))
            masked.append(data.draw(places))
            at.append(data.draw(places))
    got_MD = encoder(tokens, masked, at)
    expected = []
    for token_L, hidden_places, asked in zip(tokens, masked, at, strict=True):
        given_L = token_L.copy()
        given_L[hidden_places] = MASK
        expected.append(body(input_ids=torch.from_numpy(given_L)[None])[0][0, asked])
    torch.testing.assert_close(got_MD, torch.cat(expected), atol=2e-5, rtol=1e-4)
