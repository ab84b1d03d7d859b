"""Places found again: by hand-made tokens, by naive loops, and images as the network sees them."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov3_hf import DinoTxtModel, Dinov3Model, tiny_checkpoint
from dinov3_hf.pipelines.correspondence import ImagePair, draw_match, draw_mutual, encode_pair
from dinov3_hf.pipelines.encoder import Encoder


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_pretrained()


def random_tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def moved_pair():
    """Tokens moved 2 patches right and 1 down, in images of which the second is twice as large."""
    first = random_tokens(6, 8, 16)
    return ImagePair((noise(80, 60), noise(160, 120)), (first, first.roll((1, 2), (0, 1))))


def test_places_follow_the_tokens_in_pixels_of_their_images():
    # Centres of patches 10 pixels wide, and of patches 20 pixels wide.
    places, cosines = moved_pair().find(torch.tensor([[5, 5], [25, 15], [45, 45]]))
    torch.testing.assert_close(places, torch.tensor([[50.0, 30], [90, 50], [130, 110]]))
    torch.testing.assert_close(cosines, torch.ones(3))


def test_similarity_is_the_cosine_of_every_patch():
    pair = moved_pair()
    found = pair.similarity(torch.tensor([25, 15]))
    query, other = pair.tokens[0][1, 2].double(), pair.tokens[1].double()
    naive = [[(query @ other[y, x] / query.norm() / other[y, x].norm()).item() for x in range(8)] for y in range(6)]
    torch.testing.assert_close(found.double(), torch.tensor(naive, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.argmax() == 2 * 8 + 4


def test_mutual_neighbours_are_those_of_loops():
    first, second = random_tokens(4, 5, 6, seed=1), random_tokens(3, 7, 6, seed=2)
    pair = ImagePair((noise(50, 40), noise(14, 6)), (first, second))
    a, b = (torch.nn.functional.normalize(tokens.flatten(0, 1), dim=1).numpy() for tokens in (first, second))
    expected = []
    for i in range(len(a)):
        j = max(range(len(b)), key=lambda j: a[i] @ b[j])
        if max(range(len(a)), key=lambda i: a[i] @ b[j]) == i:
            centres = (10 * (i % 5) + 5, 10 * (i // 5) + 5, 2 * (j % 7) + 1, 2 * (j // 7) + 1)
            expected.append((*centres, float(a[i] @ b[j])))
    expected.sort(key=lambda row: -row[-1])
    here, there, cosines = pair.mutual()
    assert 1 < len(expected) < 20
    np.testing.assert_allclose(torch.cat([here, there, cosines[:, None]], 1).numpy(), expected, atol=1e-6)


def test_drawings_mark_the_places():
    grey = Image.new("RGB", (160, 120), (90, 90, 90))
    pair = ImagePair((grey, grey), moved_pair().tokens)
    match = torch.tensor([90.0, 50])
    first, second = (np.asarray(drawn).astype(int) for drawn in draw_match(pair, torch.tensor([50.0, 30]), match))
    # White rings around both places; of the second image's patches the match is the brightest.
    for drawn, (x, y) in ((first, (50, 30)), (second, (90, 50))):
        assert drawn.shape == (120, 160, 3) and drawn[y - 6 : y + 7, x - 6 : x + 7].min(2).max() > 240
    assert (first[:, 90:] == 90).all() and second.sum(2)[52:58, 92:98].mean() > second.sum(2).mean() + 150
    places = torch.tensor([[20.0, 20], [140, 20], [20, 100], [140, 100]])
    one, other = (np.asarray(drawn) for drawn in draw_mutual(pair, places, places.flip(0)))
    colours = one[places[:, 1].long(), places[:, 0].long()]
    assert np.array_equal(colours, other[places.flip(0)[:, 1].long(), places.flip(0)[:, 0].long()])
    assert len(np.unique(colours, axis=0)) == 4 and np.array_equal(one[60, 80], other[60, 80])


def test_an_image_of_whole_patches_reaches_the_network_as_it_is(encoder):
    image = noise(48, 32)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    model = Dinov3Model.from_pretrained(tiny_checkpoint()).eval()
    with torch.no_grad():
        expected = model((pixels - mean) / std).patch_tokens[0].view(4, 6, -1)
    torch.testing.assert_close(encoder.tokens(image, 48).cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size, grid", [((100, 60), (7, 12)), ((60, 100), (12, 7)), ((5000, 1), (1, 12))])
def test_the_longer_side_decides_the_patches(encoder, size, grid):
    pair = encode_pair(encoder, noise(*size), noise(48, 48), side=96)
    assert pair.tokens[0].shape[:2] == grid and pair.tokens[1].shape[:2] == (12, 12)


def test_sides_below_a_patch_are_refused(encoder):
    with pytest.raises(ValueError, match=r"^side: got 7, accepted: pixels, at least those of a patch \(8\)$"):
        encoder.tokens(noise(48, 48), 7)


def test_the_vision_tower_of_a_text_aligned_model_is_taken():
    network = Encoder.from_pretrained(tiny_checkpoint("text")).network
    expected = DinoTxtModel.from_pretrained(tiny_checkpoint("text")).vision_model.state_dict()
    assert all(torch.equal(value.cpu(), expected[name]) for name, value in network.state_dict().items())


def test_what_is_no_model_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="^model: no config.json in"):
        Encoder.from_pretrained(str(tmp_path))
