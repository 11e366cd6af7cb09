"""The cloze and causal LMs: no leak, no influence of the batch, and a Markov chain's true conditional entropy."""

import numpy as np
import pytest
import torch

from hkd.errors import UserError
from hkd.teachers.cloze import SenoneMap, UnitLmSizes, collate, make_unit_lm

SIZES = UnitLmSizes(width=16, num_layers=2, dropout=0.3)
NUM_UNITS = 9
# four phones; of each state two senones a phone
SENONES = SenoneMap(phone_of_V=np.repeat(np.arange(4), 6), state_of_V=np.tile(np.repeat(np.arange(3), 2), 4))


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small lose by threads, and lose much where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logp(model, sentences):
    """Log-probabilities (U, V) of every sentence, from one batch."""
    with torch.inference_mode():
        rows = torch.log_softmax(model.eval().logits(collate(sentences, senones=model.senones)), -1).numpy()
    return np.split(rows, np.cumsum([len(s) for s in sentences])[:-1])


def one(model, unit_U):
    return logp(model, [np.asarray(unit_U, np.int32)])[0]


def lm(direction="cloze", senones=None, seed=1):
    num = NUM_UNITS if senones is None else len(senones.phone_of_V)
    return make_unit_lm(SIZES, num_units=num, direction=direction, senones=senones, seed=seed)


def test_a_unit_never_changes_its_own_distribution_but_its_neighbours_do():
    model, rng = lm(), np.random.default_rng(0)
    unit_U = rng.integers(NUM_UNITS, size=7)
    before = one(model, unit_U)
    for n in range(7):
        changed = unit_U.copy()
        changed[n] = (changed[n] + 1) % NUM_UNITS
        after = one(model, changed)
        np.testing.assert_array_equal(after[n], before[n])
        for other in set(range(7)) - {n}:  # every other position reads it, from one side or the other
            assert np.abs(after[other] - before[other]).max() > 1e-6


def test_a_causal_lm_reads_only_what_came_before():
    model, rng = lm("causal"), np.random.default_rng(0)
    unit_U = rng.integers(NUM_UNITS, size=7)
    before = one(model, unit_U)
    for n in range(7):
        changed = unit_U.copy()
        changed[n] = (changed[n] + 1) % NUM_UNITS
        after = one(model, changed)
        np.testing.assert_array_equal(after[: n + 1], before[: n + 1])
        for later in range(n + 1, 7):
            assert np.abs(after[later] - before[later]).max() > 1e-6


def senone_sentence(phones, rng):
    return np.array([6 * q + 2 * state + rng.integers(2) for q in phones for state in range(3)])


def test_outside_phone_reads_no_senone_and_no_part_of_its_own_phone():
    model, rng = lm(senones=SENONES), np.random.default_rng(0)
    phones = [0, 2, 2, 1, 3]  # the same phone twice in a row
    unit_U = senone_sentence(phones, rng)
    before = one(model, unit_U)
    np.testing.assert_array_equal(one(model, senone_sentence(phones, rng)), before)  # other senones of the same phones
    for place in range(len(phones)):
        other = list(phones)
        other[place] = 0 if place == 3 else (phones[place] + 1) % 4
        after = one(model, senone_sentence(other, rng))
        own = slice(3 * place, 3 * place + 3)
        np.testing.assert_array_equal(after[own], before[own])
        rest = np.delete(np.abs(after - before).max(1), np.arange(15)[own])
        assert (rest > 1e-6).all()


def test_outside_phone_gives_mass_only_to_senones_of_the_state():
    model, rng = lm(senones=SENONES), np.random.default_rng(0)
    p_UV = np.exp(one(model, senone_sentence([0, 2, 1], rng)))
    for n in range(9):
        assert p_UV[n][SENONES.state_of_V == n % 3].sum() == pytest.approx(1, abs=1e-5)
        assert p_UV[n][SENONES.state_of_V != n % 3].max() == 0


@pytest.mark.parametrize(("direction", "senones"), [("cloze", None), ("causal", None), ("cloze", SENONES)])
def test_batch_mates_change_nothing(direction, senones):
    model, rng = lm(direction, senones), np.random.default_rng(3)
    sentences = [
        (rng.integers(NUM_UNITS, size=n) if senones is None else senone_sentence(rng.integers(4, size=n), rng)).astype(
            np.int32
        )
        for n in (1, 4, 9, 2, 15)
    ]
    for sentence, row in zip(sentences, logp(model, sentences), strict=True):
        np.testing.assert_allclose(row, one(model, sentence), atol=2e-5)


@pytest.mark.parametrize("senones", [None, SENONES])
def test_the_loss_is_the_cross_entropy_of_the_logits(senones):
    model, rng = lm(senones=senones).eval(), np.random.default_rng(3)
    sentences = [senone_sentence(rng.integers(4, size=n), rng) % (NUM_UNITS if senones is None else 24) for n in (2, 5)]
    batch = collate([s.astype(np.int32) for s in sentences], senones=senones)
    want = torch.nn.functional.cross_entropy(model.logits(batch), batch.gold_N, reduction="sum")
    torch.testing.assert_close(model.loss_sum(batch), want)


def markov(rng, start_V, step_VV, length):
    unit = [rng.choice(len(start_V), p=start_V)]
    while len(unit) < length:
        unit.append(rng.choice(len(start_V), p=step_VV[unit[-1]]))
    return np.array(unit, np.int32)


@pytest.mark.parametrize("direction", ["cloze", "causal"])
def test_on_a_markov_chain_it_reaches_the_true_conditional_entropy(direction):
    rng = np.random.default_rng(0)
    num, length = 5, 8
    start_V, step_VV = np.full(num, 1 / num), rng.dirichlet(np.full(num, 0.3), size=num) * 0.95 + 0.05 / num
    train = [markov(rng, start_V, step_VV, length) for _ in range(2000)]
    held = [markov(rng, start_V, step_VV, length) for _ in range(500)]

    def true_nats(unit_U):
        total = 0.0
        for n in range(length):
            p_V = start_V if n == 0 else step_VV[unit_U[n - 1]]
            if direction == "cloze" and n + 1 < length:
                p_V = p_V * step_VV[:, unit_U[n + 1]]
            total -= np.log(p_V[unit_U[n]] / p_V.sum())
        return total

    model = make_unit_lm(UnitLmSizes(width=16, dropout=0.0), num_units=num, direction=direction, seed=0)
    steps = 150
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = collate([train[i] for i in rng.integers(len(train), size=64)])
        optimizer.zero_grad()
        (model.loss_sum(batch) / len(batch.gold_N)).backward()
        optimizer.step()
        decay.step()
    got = float(model.eval().loss_sum(collate(held)).detach()) / (len(held) * length)
    want = float(np.mean([true_nats(u) for u in held])) / length
    assert want < 0.8 * np.log(num)  # there is something to learn
    assert got == pytest.approx(want, abs=0.03)


def test_the_same_seed_draws_the_same_weights_whatever_was_drawn_before():
    first = lm(seed=5).state_dict()
    torch.rand(3)
    for name, value in lm(seed=5).state_dict().items():
        assert torch.equal(value, first[name])


def test_what_makes_no_lm_is_refused():
    with pytest.raises(UserError, match="width"):
        UnitLmSizes(width=0)
    with pytest.raises(UserError, match="direction"):
        lm("sideways")
