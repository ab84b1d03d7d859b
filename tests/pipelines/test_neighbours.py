"""Nearest neighbours by cosine, and the vote of k of them."""

import numpy as np
import pytest
import torch

from dinov3_hf.pipelines.neighbours import NeighbourBank, knn_classify, vote


def random_problem(num_bank=300, num_queries=90, width=12, num_classes=7, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, width, generator=generator)
    labels = torch.randint(num_classes, (num_bank + num_queries,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(len(labels), width, generator=generator) + offset
    return features[:num_bank], labels[:num_bank], features[num_bank:]


@pytest.mark.parametrize("k", [1, 10, 20])
def test_predictions_are_those_of_scikit_learn(k):
    from sklearn.neighbors import KNeighborsClassifier

    bank, labels, queries = random_problem()
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = reference.fit(bank.double().numpy(), labels.numpy()).predict(queries.double().numpy())
    assert knn_classify(bank, labels, queries, k, num_classes=7).tolist() == expected.tolist()


def test_weights_matter():
    similarities, labels = torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[0, 1, 1]])
    assert vote(similarities, labels, 2).tolist() == [0]
    assert vote(similarities, labels, 2, temperature=100.0).tolist() == [1]


def test_chunks_change_nothing():
    bank, labels, queries = random_problem()
    whole, parts = (NeighbourBank(bank, labels, 7, *sizes) for sizes in ((1024, 16384), (13, 17)))
    torch.testing.assert_close(whole.search(queries, 20)[0], parts.search(queries, 20)[0])
    assert torch.equal(whole.search(queries, 20)[1], parts.search(queries, 20)[1])


def test_several_k_from_one_search_equal_single_ones():
    bank, labels, queries = random_problem()
    together = NeighbourBank(bank, labels, 7).classify(queries, [1, 10, 20])
    for k, predictions in together.items():
        assert torch.equal(predictions, knn_classify(bank, labels, queries, k, 7))


def test_similarities_are_cosines_even_where_all_are_nearly_one():
    bank, labels, queries = random_problem(offset=0.0)
    plain = NeighbourBank(bank, labels, 7).search(queries, 5)[0]
    cosines = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2)
    torch.testing.assert_close(plain.double(), cosines.topk(5).values, rtol=0, atol=1e-6)
    # Class tokens of a randomly initialised network differ by 1e-4 and less: rounding must not change the order.
    bank, queries = 1 + 1e-5 * bank, 1 + 1e-5 * queries
    found = NeighbourBank(bank, torch.arange(len(bank)), len(bank)).search(queries, 5)[1]
    exact = (
        torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2).topk(5).indices
    )
    assert (found == exact).float().mean() > 0.9


def test_features_that_hold_the_label_score_everything():
    labels = torch.arange(7).repeat(20)
    features = torch.nn.functional.one_hot(labels, 7).float() + 0.05 * torch.rand(
        140, 7, generator=torch.manual_seed(0)
    )
    assert torch.equal(knn_classify(features[:70], labels[:70], features[70:], 10, 7), labels[70:])


def test_bank_smaller_than_k_is_refused():
    bank, labels, queries = random_problem(num_bank=5)
    with pytest.raises(ValueError, match=r"k: got 6, accepted: 1 to the size of the bank \(5\)"):
        knn_classify(bank, labels, queries, 6, 7)
