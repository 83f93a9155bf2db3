import math

import pytest
import torch

from mtlsearch.nn.gates import Gates, concrete, deterministic, straight_through


def gates_at(probabilities, **settings):
    gates = Gates(len(probabilities), **settings)
    gates.logits.data = torch.tensor(probabilities).logit()
    return gates


def test_deterministic_gates_are_the_probabilities():
    gates = gates_at([0.1, 0.5, 0.9])
    assert torch.allclose(gates(), torch.tensor([0.1, 0.5, 0.9]))


def test_concrete_gates_round_to_on_as_often_as_the_probability_says():
    # With α in the place of log α in Eq. 6, no gate would be on more than half the time.
    torch.manual_seed(0)
    p = torch.tensor([0.1, 0.3, 0.6, 0.95])
    draws = concrete(p.logit().expand(20000, 4), torch.tensor(0.01))
    assert torch.allclose((draws > 0.5).float().mean(0), p, atol=0.015)


def test_concrete_gates_get_harder_as_the_temperature_falls():
    def softness(temperature):
        torch.manual_seed(0)
        gates = concrete(torch.zeros(1000), torch.tensor(temperature))
        return (gates * (1 - gates)).mean()

    assert softness(2.0) > softness(0.5) > softness(0.05)


@pytest.mark.parametrize("relaxation", [concrete, straight_through(concrete)])
def test_gradients_are_numbers_at_temperature_zero(relaxation):
    gates = gates_at([0.2, 0.5, 0.999], relaxation=relaxation)
    gates.temperature.fill_(0.0)
    gates().sum().backward()
    assert gates.logits.grad.isfinite().all()


def test_evaluation_takes_the_probabilities():
    gates = gates_at([0.2, 0.7], relaxation=concrete).eval()
    assert torch.equal(gates(), gates.probabilities())


def test_straight_through_is_hard_forward_and_soft_backward():
    logits = torch.tensor([-1.0, 2.0], requires_grad=True)
    values = straight_through(deterministic)(logits, torch.ones(()))
    assert torch.equal(values.detach(), torch.tensor([0.0, 1.0]))
    values.sum().backward()
    p = logits.detach().sigmoid()
    assert torch.allclose(logits.grad, p * (1 - p))


def test_entropy_by_hand():
    p, q = 0.25, 0.5
    by_hand = (-p * math.log(p) - (1 - p) * math.log(1 - p) + math.log(2)) / 2
    assert gates_at([p, q]).entropy().item() == pytest.approx(by_hand, rel=1e-6)


def test_entropy_is_finite_and_falls_to_zero_at_the_ends():
    gates = Gates(2)
    gates.logits.data = torch.tensor([200.0, -200.0])
    entropy = gates.entropy()
    entropy.backward()
    assert entropy.item() == 0
    assert gates.logits.grad.isfinite().all()


def test_the_entropy_moves_a_gate_away_from_one_half_only_if_it_is_a_little_off():
    gates = gates_at([0.5, 0.51, 0.49])
    gates.entropy().backward()
    assert gates.logits.grad[0] == 0
    assert gates.logits.grad[1] < 0 < gates.logits.grad[2]  # descent pushes 0.51 up and 0.49 down


def test_a_tie_is_off():
    gates = Gates(3)
    gates.logits.data = torch.tensor([0.0, 1e-3, -1e-3])
    assert gates.hard().tolist() == [False, True, False]


def test_samples_follow_the_probabilities_and_the_generator():
    gates = gates_at([0.0001, 0.3, 0.9999])
    draws = torch.stack([gates.sample(torch.Generator().manual_seed(i)) for i in range(500)])
    assert draws[:, 1].float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert draws[:, 0].sum() <= 1 and draws[:, 2].sum() >= 499
    again = gates.sample(torch.Generator().manual_seed(7))
    assert torch.equal(again, draws[7])
