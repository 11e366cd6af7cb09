"""A small student with every kind of head."""

from collections.abc import Callable, Iterator

import pytest
import torch

from hkd.student.config import EncoderConfig, HeadConfig, StudentConfig
from hkd.student.model import StudentModel

ENCODER = EncoderConfig(d_model=24, num_layers=3, num_heads=2, conv_kernel=5, num_bins=16)
HEADS = (
    HeadConfig(name="senone-hard", level="senone", kind="hard", num_units=30, tap=1, slots=4),
    HeadConfig(name="senone-aux", level="senone", num_units=30, tap=1, slots=4, d_head=8),
    HeadConfig(name="monophone-aux", level="monophone", num_units=7, tap=2),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config() -> StudentConfig:
    return StudentConfig(encoder=ENCODER, num_main_units=12, heads=HEADS)


@pytest.fixture
def make() -> Callable[..., StudentModel]:
    """Builds a seeded student in eval mode with a mean and deviation that are not the trivial ones."""

    def build(config: StudentConfig, seed: int = 0) -> StudentModel:
        torch.manual_seed(seed)
        student = StudentModel(config)
        student.set_cmvn(
            torch.linspace(-2, 2, config.encoder.num_bins), torch.linspace(0.5, 2, config.encoder.num_bins)
        )
        return student.eval()

    return build
