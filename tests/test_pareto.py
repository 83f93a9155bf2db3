"""Pareto MTL: its solver, its directions and the front of the paper's example."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlsearch.balancing import ParetoMTL, Step
from mtlsearch.balancing.pareto import direction, gramian, min_norm, spread
from tiny import make_tasks


def test_the_shortest_combination_of_two_vectors_by_hand():
    def of(*vectors):
        matrix = np.array(vectors, dtype=float)
        return min_norm(matrix @ matrix.T).tolist()

    assert of((1, 0), (0, 2)) == pytest.approx([0.8, 0.2])  # 0.8 (1, 0) + 0.2 (0, 2) = (0.8, 0.4)
    assert of((1, 0), (3, 1)) == pytest.approx([1, 0])  # (1, 0) is shorter than any other
    assert of((2, 0), (-1, 0)) == pytest.approx([1 / 3, 2 / 3])  # they cancel
    assert of((3, 4)) == [1]
    assert of((0, 0), (0, 0)) == [0.5, 0.5]


def test_the_shortest_combination_of_several_vectors_is_optimal():
    rng = np.random.default_rng(0)
    for count in (3, 5, 9):
        vectors = rng.normal(size=(count, 4)) + 0.5
        weights = min_norm(vectors @ vectors.T)
        shortest = weights @ vectors
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
        assert (vectors @ shortest >= shortest @ shortest - 1e-6).all()


def test_preferences_between_two_tasks_stand_at_equal_angles():
    angles = np.linspace(0, np.pi / 2, 5)
    np.testing.assert_allclose(spread(2, 5), np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-12)
    np.testing.assert_array_equal(spread(1, 5), [[1.0]])


def test_preferences_between_three_tasks_are_all_mixtures():
    vectors = spread(3, 3)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        vectors,
        [[1, 0, 0], [half, half, 0], [half, 0, half], [0, 1, 0], [0, half, half], [0, 0, 1]],
        atol=1e-12,
    )


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_the_direction_reduces_all_that_it_must(tasks):
    rng = np.random.default_rng(tasks)
    for _ in range(20):
        gradients, wanted = rng.normal(size=(tasks, 6)), rng.normal(size=(3, tasks))
        wanted = np.concatenate([np.eye(tasks), wanted])
        found = direction(gradients @ gradients.T, wanted) @ gradients
        assert (wanted @ gradients @ found >= -1e-6).all()


def problem(x):
    """The paper's example: two losses of n numbers, whose front is concave."""
    target = torch.full_like(x, x.numel() ** -0.5)
    return 1 - (-(x - target).square().sum()).exp(), 1 - (-(x + target).square().sum()).exp()


def optimum(preference, steps=100, rate=0.5):
    """The losses that Pareto MTL ends with on the example, from the same start."""
    start = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    x = torch.nn.Parameter(start)
    balancing = ParetoMTL(preference, preferences=5).for_tasks(make_tasks())
    for i in range(steps):
        terms = dict(zip(("semantic", "depth"), problem(x)))
        values = {name: term.detach() for name, term in terms.items()}
        balancing.backward(Step(terms, values, [x], torch.Tensor.backward, progress=i / steps))
        with torch.no_grad():
            x -= rate * x.grad
    return torch.stack(problem(x)).detach().numpy()


def test_preferences_lead_to_their_parts_of_the_front():
    found = np.array([optimum(i) for i in range(5)])
    # On the front all numbers are alike, x in [-1, 1] / sqrt(n): 1 - exp(-(1 - x)^2) and 1 - exp(-(1 + x)^2).
    along = 1 - np.sqrt(-np.log(1 - found[:, 0]))
    np.testing.assert_allclose(1 - np.exp(-((1 + along) ** 2)), found[:, 1], atol=0.01)
    angles = np.degrees(np.arctan2(found[:, 1], found[:, 0]))
    assert (np.diff(angles) > 10).all()
    assert np.abs(angles - [0, 22.5, 45, 67.5, 90]).max() < 12  # half a sector is 11.25
    np.testing.assert_allclose(optimum((1, 0)), found[0], atol=1e-6)


def test_a_loss_that_the_preference_forbids_to_fall_rises():
    x = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    balancing = ParetoMTL((1, 0)).for_tasks(make_tasks())
    terms = {"semantic": x[0] ** 2, "depth": 4 * x[1] ** 2}  # far from the first axis
    values = {name: term.detach() for name, term in terms.items()}
    factors = balancing.backward(Step(terms, values, [x], torch.Tensor.backward))
    assert factors["semantic"] < 0 < factors["depth"]
    assert sum(map(abs, factors.values())) == pytest.approx(2)
    assert not balancing.found
    later = {name: (x**2).sum() for name in terms}
    balancing.backward(Step(later, values, [x], torch.Tensor.backward, progress=0.2))
    assert balancing.found


def test_a_task_without_labels_counts_with_its_last_loss():
    x = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    balancing = ParetoMTL((1, 0), initial=0).for_tasks(make_tasks())
    one = torch.tensor(1.0)

    def factors(**terms):
        values = dict.fromkeys(terms, one)
        return balancing.backward(Step(terms, values, [x], torch.Tensor.backward))

    assert factors(semantic=x[0]) == {"semantic": 1}  # the other loss is not known yet
    factors(semantic=x[0], depth=x[1])
    assert factors(depth=x[1])["depth"] == 1  # falls: it is what is too large
    # The first one's loss must not fall while the other's is as large: nothing to be gained.
    torch.testing.assert_close(factors(semantic=x[0])["semantic"], torch.tensor(0.0))


def test_inner_products_of_gradients_that_do_not_all_meet():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    found = gramian([[a, b, None], [2 * a, None, None]])
    torch.testing.assert_close(found, torch.tensor([[14.0, 10.0], [10.0, 20.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preference": 5}, "preference must be from 0 to 4 for 2 tasks"),
        ({"preference": (1, 2, 3)}, "one number >= 0 for each of semantic, depth"),
        ({"preference": (0, 0)}, "not all 0"),
        ({"preference": (-1, 2)}, "must be a vector"),
        ({"preferences": 1}, "preferences must be at least 2, not 1"),
        ({"initial": 2}, r"initial must be in \[0, 1\], not 2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParetoMTL(**arguments).for_tasks(make_tasks())
