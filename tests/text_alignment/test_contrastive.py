"""The contrastive loss against a naive one over the global batch, on one process and on two."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from dinov3_hf.text_alignment.contrastive import contrastive_loss

from ..processes import run_processes


PAIRS, WIDTH = 6, 5


def pairs():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(PAIRS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return images, texts, torch.tensor([1.3], dtype=torch.float64)


def naive(images, texts, log_scale):
    """Pair by pair, as written: minus the log share of the true partner, both ways."""
    total = 0
    images, texts = images / images.norm(dim=1, keepdim=True), texts / texts.norm(dim=1, keepdim=True)
    for i in range(len(images)):
        of_image = [(log_scale.exp() * images[i] @ texts[j]).exp() for j in range(len(texts))]
        of_text = [(log_scale.exp() * images[j] @ texts[i]).exp() for j in range(len(images))]
        total = total - (of_image[i] / sum(of_image)).log() - (of_text[i] / sum(of_text)).log()
    return total / (2 * len(images))


def gradients(loss_of, images, texts, log_scale):
    leaves = [tensor.clone().requires_grad_() for tensor in (images, texts, log_scale)]
    loss = loss_of(*leaves)
    loss.backward()
    return loss.detach().squeeze(), [leaf.grad for leaf in leaves]


def ours(group=None):
    def loss_of(images, texts, log_scale):
        return contrastive_loss(normalize(images, dim=1), normalize(texts, dim=1), log_scale.exp(), group)

    return loss_of


def test_one_process_equals_the_naive_loss():
    expected, expected_gradients = gradients(naive, *pairs())
    found, found_gradients = gradients(ours(), *(tensor.float() for tensor in pairs()))
    assert found.dtype == torch.float32 and abs(found - expected) < 1e-6
    for mine, theirs in zip(found_gradients, expected_gradients, strict=True):
        assert torch.allclose(mine.double(), theirs, atol=1e-6)


def test_features_that_say_nothing_cost_the_log_of_the_batch():
    same = normalize(torch.ones(8, 4), dim=1)
    assert contrastive_loss(same, same, torch.tensor(10.0)).item() == pytest.approx(math.log(8), abs=1e-5)


def work(rank, folder, detach):
    dist.init_process_group("gloo")
    if detach:
        from dinov3_hf.text_alignment import contrastive

        gather = contrastive.gather_rows
        contrastive.gather_rows = lambda tensor, group: gather(tensor, group).detach()
    images, texts, log_scale = (tensor.float() for tensor in pairs())
    rows = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    loss, (image_grad, text_grad, scale_grad) = gradients(
        lambda *tensors: ours(dist.group.WORLD)(*tensors) / 2, images[rows], texts[rows], log_scale
    )
    for shared in (loss, scale_grad):
        dist.all_reduce(shared)
    torch.save([loss, image_grad, text_grad, scale_grad], f"{folder}/{rank}.pt")


def two_processes(folder, detach):
    run_processes(work, str(folder), detach)
    first, second = (torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2))
    return first[0], [torch.cat([first[1], second[1]]), torch.cat([first[2], second[2]]), first[3]]


@pytest.mark.parametrize("detach", [False, True])
def test_two_processes_equal_one_unless_the_gather_is_detached(tmp_path, detach):
    expected, expected_gradients = gradients(naive, *pairs())
    loss, found = two_processes(tmp_path, detach)
    differences = [(a - b).abs().max().item() for a, b in zip(found, expected_gradients, strict=True)]
    print(f"detached {detach}: loss {abs(loss - expected):.1e}, gradients {max(differences):.1e}")
    assert abs(loss - expected) < 1e-6
    assert (max(differences) < 1e-6) is not detach
