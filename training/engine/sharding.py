"""Distribution of networks over processes: one process, DDP or FSDP2, as set in Accelerate's launch configuration."""

import os

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from dinov3_hf.errors import Refused
from dinov3_hf.recipe import require

from ..arguments import RunArguments
from ..objective import Objective
from .float8 import check_float8, convert_to_float8
from .freed_memory import keep_freed_memory


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """Return the launch configuration's FSDP settings, None without FSDP; raises `Refused` for FSDP version 1.

    On CPU, Accelerate ignores them, so they are read from the launch environment.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        plugin = FullyShardedDataParallelPlugin()
    if plugin is not None and plugin.fsdp_version != 2:
        raise Refused(f"fsdp_version: got {plugin.fsdp_version}, accepted: 2")
    return plugin


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a network, which are sharded, compiled and recomputed one by one."""
    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


def compute_precision(mixed_precision: str | None) -> str:
    """Return no, bf16 or fp8 from the recipe or the launch configuration; raises `Refused` if it cannot run here."""
    precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    accepted = "no, bf16 or fp8 (the launch configuration's, as the recipe names none)"
    require(precision in ("no", "bf16", "fp8"), "mixed_precision", precision, accepted)
    if precision == "fp8":
        check_float8()
    return precision


def build_accelerator(run: RunArguments) -> Accelerator:
    """Return the Accelerator of a run, with its precision and tracker; on CPU, also keep freed memory for reuse."""
    precision = compute_precision(run.mixed_precision)
    # For fp8, linear layers are replaced one by one; everything else is computed in bf16.
    autocast = "bf16" if precision == "fp8" else precision
    tracker = None if run.report_to == "none" else run.report_to
    accelerator = Accelerator(mixed_precision=autocast, log_with=tracker, project_dir=run.output_dir)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def distribute(
    objective: Objective, accelerator: Accelerator, activation_checkpointing: bool = False, float8: bool = False
) -> nn.Module:
    """Move an objective's networks to the device and distribute them; returns the module to call for the loss.

    With FSDP2, the blocks of every network and then the network itself are sharded over the processes that train it,
    or over all processes for `spanning_networks`. With activation checkpointing, trained networks recompute the
    activations of their blocks. All blocks are compiled one by one if the launch configuration names a dynamo backend.
    Optimizers must be built afterwards.
    """
    if float8:
        for block in blocks(objective):
            convert_to_float8(block)
    plugin = fsdp_plugin(accelerator)
    trained = {id(block) for network in objective.networks().values() for block in blocks(network)}
    if activation_checkpointing or (plugin is not None and plugin.activation_checkpointing):
        for network in objective.children():
            if any(id(block) in trained for block in blocks(network)):
                network.activation_checkpointing_enable()
    dynamo = accelerator.state.dynamo_plugin
    if dynamo.backend != DynamoBackend.NO:
        kwargs = dynamo.to_kwargs()
        kwargs.pop("use_regional_compilation", None)
        for block in blocks(objective):
            block.compile(**kwargs)
    if accelerator.num_processes == 1:
        return objective.to(accelerator.device)
    objective.join(dist.group.WORLD, create_group(objective))
    if plugin is not None:
        shard(objective, accelerator, plugin)
        return objective
    objective.to(accelerator.device)
    kwargs = {} if accelerator.ddp_handler is None else accelerator.ddp_handler.to_kwargs()
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    options = {"forward_sync_buffers": False} | kwargs
    return DistributedDataParallel(objective, device_ids=devices, process_group=objective.group, **options)


def create_group(objective: Objective) -> dist.ProcessGroup:
    """Return the group of processes that train the same networks as this one: all, if the objective has no groups.

    All processes must call it, because they create process groups together.
    """
    groups = objective.process_groups()
    return dist.group.WORLD if groups is None else dist.new_subgroups_by_enumeration(groups)[0]


def place_in_group(objective: Objective) -> tuple[int, int]:
    """Return this process's rank among the processes that train the same networks, and their number."""
    group = objective.group
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def shard(objective: Objective, accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Shard every network of an objective block by block (FSDP2), students and teachers alike."""
    device = accelerator.device.type
    parallelism = getattr(accelerator, "parallelism_config", None)
    replicas = getattr(parallelism, "dp_replicate_size", 1) or 1
    if replicas > 1:
        sizes = (replicas, accelerator.num_processes // replicas)
        mesh = init_device_mesh(device, sizes, mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(device, (accelerator.num_processes,))
    own_mesh, spanning = mesh, objective.spanning_networks()
    if objective.group is not dist.group.WORLD:
        own_mesh = DeviceMesh.from_group(objective.group, device)
    # Weights are gathered in the compute precision; gradients are summed in fp32 (in bf16 by Accelerate's policy).
    compute = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = plugin.cpu_offload if isinstance(plugin.cpu_offload, OffloadPolicy) else OffloadPolicy()
    for name, network in objective.named_children():
        # A teacher has no backward pass: unless resharded after forward, its weights would break the moving average.
        is_trained = any(parameter.requires_grad for parameter in network.parameters())
        reshard = bool(plugin.reshard_after_forward) or not is_trained
        placed = mesh if name in spanning else own_mesh
        options = {"mesh": placed, "mp_policy": policy, "offload_policy": offload, "reshard_after_forward": reshard}
        for module in [*blocks(network), network]:
            fully_shard(module, **options)
    if not isinstance(offload, CPUOffloadPolicy):
        for buffer in objective.buffers():
            buffer.data = buffer.data.to(accelerator.device)


def set_gradient_sync(module: nn.Module, objective: Objective, sync: bool) -> None:
    """Set whether the next backward passes sum gradients over processes (only the last of an accumulation does)."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = sync
    for network in objective.children():
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(sync)
