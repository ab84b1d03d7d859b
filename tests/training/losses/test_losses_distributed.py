"""Two processes equal one at the same global batch, in value and gradient; a detached gather does not."""

import pytest
import torch
import torch.distributed as dist

from dinov3_hf.training.losses import koleo_loss, sinkhorn_knopp

from ...processes import run_processes


def work(rank, folder, detach):
    dist.init_process_group("gloo")
    group = dist.group.WORLD
    generator = torch.Generator().manual_seed(0)
    logits, features = torch.randn(10, 6, generator=generator), torch.randn(8, 5, generator=generator)
    # Ranks hold different numbers of rows, as with masked patches: 7 and 3.
    mine = logits[:7] if rank == 0 else logits[7:]
    results = {"sinkhorn": sinkhorn_knopp(mine, 0.1, group=group)}
    empty = logits[:0] if rank else logits
    results["one_rank_only"] = sinkhorn_knopp(empty, 0.1, group=group)
    if detach:
        from dinov3_hf.training.losses import koleo

        gather = koleo.gather_rows
        koleo.gather_rows = lambda tensor, group: gather(tensor, group).detach()
    for size in (None, 4):
        local = features[rank * 4 : rank * 4 + 4].clone().requires_grad_()
        loss = koleo_loss(local, topk=2, group_size=size, group=group)
        # Processes average their losses and gradients.
        (loss / 2).backward()
        total = loss.detach() / 2
        dist.all_reduce(total)
        results[f"koleo_{size}"], results[f"koleo_{size}_grad"] = total, local.grad
    if not detach:
        try:
            koleo_loss(features[:4], group_size=6, group=group)
        except ValueError as error:
            results["refused"] = torch.tensor("group_size: got 6" in str(error))
    torch.save(results, f"{folder}/{rank}.pt")


def run(folder, detach=False):
    run_processes(work, str(folder), detach)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


def single(size):
    generator = torch.Generator().manual_seed(0)
    logits, features = torch.randn(10, 6, generator=generator), torch.randn(8, 5, generator=generator)
    features.requires_grad_()
    parts = features.split(size or 8)
    loss = torch.stack([koleo_loss(part, topk=2) for part in parts]).mean()
    loss.backward()
    return sinkhorn_knopp(logits, 0.1), loss.detach(), features.grad


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ranks"))


def test_sinkhorn_over_processes_equals_one(ranks):
    expected = single(None)[0]
    assert torch.allclose(torch.cat([rank["sinkhorn"] for rank in ranks]), expected, atol=1e-6)
    assert torch.allclose(torch.cat([rank["one_rank_only"] for rank in ranks]), expected, atol=1e-6)


@pytest.mark.parametrize("size", [None, 4])
def test_koleo_over_processes_equals_one(ranks, size):
    _, loss, gradient = single(size)
    assert all(torch.allclose(rank[f"koleo_{size}"], loss, rtol=1e-6) for rank in ranks)
    assert torch.allclose(torch.cat([rank[f"koleo_{size}_grad"] for rank in ranks]), gradient, rtol=1e-5, atol=1e-7)


def test_koleo_refuses_a_group_that_does_not_fit(ranks):
    assert all(rank["refused"] for rank in ranks)


def test_detached_gather_is_caught(tmp_path):
    """The negative control: without gradient through the gather the same comparison must fail."""
    _, _, gradient = single(None)
    found = torch.cat([rank["koleo_None_grad"] for rank in run(tmp_path, detach=True)])
    assert (found - gradient).abs().max() > 1e-2 * gradient.abs().max()
