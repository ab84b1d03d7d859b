"""Tokens between patches, and the place that matches best."""

import numpy as np
import pytest
import torch

from dinov3_hf.pipelines.matching import find_matches, sample_tokens


def random_tokens(seed, height=5, width=7, channels=6):
    return torch.randn(height, width, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_are_interpolated_as_scipy_does(seed):
    from scipy.ndimage import map_coordinates

    tokens = random_tokens(seed)
    places = torch.rand(40, 2, generator=torch.Generator().manual_seed(seed + 9)) * torch.tensor([7.0, 5.0])
    # Patch i covers i to i+1: its centre, where its token is, lies at i + 1/2.
    coordinates = places.numpy().T[::-1] - 0.5
    expected = [map_coordinates(channel, coordinates, order=1, mode="nearest") for channel in tokens.permute(2, 0, 1)]
    torch.testing.assert_close(sample_tokens(tokens, places), torch.tensor(np.array(expected)).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_match_is_that_of_a_naive_search(seed):
    tokens, queries = random_tokens(seed), random_tokens(seed + 50, 1, 12)[0]
    found = find_matches(queries, tokens)
    for query, place in zip(queries, found, strict=True):
        cosines = torch.cosine_similarity(query, tokens, dim=2)
        best = divmod(int(cosines.argmax()), 7)
        highest = -2.0
        for down in range(-16, 17):
            for right in range(-16, 17):
                x = min(max(best[1] + 0.5 + right / 16, 0.5), 6.5)
                y = min(max(best[0] + 0.5 + down / 16, 0.5), 4.5)
                token = sample_tokens(tokens, torch.tensor([[x, y]]))[0]
                highest = max(highest, torch.cosine_similarity(query, token, dim=0).item())
        assert (place - torch.tensor([best[1] + 0.5, best[0] + 0.5])).abs().max() <= 1
        at_place = torch.cosine_similarity(query, sample_tokens(tokens, place[None])[0], dim=0).item()
        assert at_place == pytest.approx(highest, abs=1e-5)
        # The search is worth something: no patch alone is as near.
        assert at_place >= cosines.max().item() - 1e-6


def test_places_between_patches_are_found_again():
    tokens = random_tokens(0, channels=32)
    places = torch.tensor([[1.25, 2.75], [3.5, 0.5], [6.4375, 4.3125], [0.5, 1.0625]])
    torch.testing.assert_close(find_matches(sample_tokens(tokens, places), tokens), places)


def test_equal_tokens_give_the_centre_of_the_first_patch():
    assert find_matches(torch.ones(2, 6), torch.ones(4, 5, 6)).tolist() == [[0.5, 0.5]] * 2
