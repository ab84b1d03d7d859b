"""The real objective, parameter groups, schedules and loop order against a second, naive implementation in float64."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dinov3_hf import Dinov3Config, Dinov3ForPreTraining, Dinov3Model
from dinov3_hf.checkpoints import load_meta
from dinov3_hf.training.arguments import GramArguments, ObjectiveArguments, OptimizationArguments, RunArguments
from dinov3_hf.training.engine.loop import build_optimizer, clip_gradients, set_rates, train
from dinov3_hf.training.param_groups import parameter_groups
from dinov3_hf.training.schedules import Schedules
from dinov3_hf.training.self_distillation import SelfDistillation

from . import naive_step as naive


DATA = Path(__file__).parents[1] / "data"
STEPS, BATCH = 4, 3
CONFIG = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_register_tokens": 2, "patch_size": 4, "dino_head_num_prototypes": 12, "ibot_head_num_prototypes": 10,
    "dino_head_hidden_size": 24, "ibot_head_hidden_size": 20, "dino_head_bottleneck_size": 8,
    "ibot_head_bottleneck_size": 6,
}  # fmt: skip
OPTIMIZATION = {
    "steps": 6, "batch_size": BATCH, "lr": 0.1, "lr_end": 0.01, "lr_warmup_steps": 2, "weight_decay": 0.1,
    "weight_decay_end": 0.6, "clip_grad_norm": 0.5, "layerwise_decay": 0.7, "patch_embed_lr_mult": 0.3,
    "freeze_last_layer_steps": 2, "momentum": 0.8, "momentum_end": 1.0, "teacher_temperature_start": 0.05,
    "teacher_temperature": 0.08, "teacher_temperature_warmup_steps": 3, "local_weight": 1.0, "local_weight_end": 0.5,
}  # fmt: skip
CHECKPOINT = {"gram_teacher": "checkpoint", "gram_checkpoint": "given"}
EMA_COPY = {"gram_teacher": "ema_copy", "gram_start_step": 1, "gram_ramp_steps": 2}
SMALL = {
    **EMA_COPY, "gram_first_update": 2, "gram_update_every": 1, "gram_max_updates": 1,
    "local_size": (4, 8), "gram_size": (8, 16),
}  # fmt: skip
CASES = {
    "plain": {},
    "square": {"global_size": (16, 16), "local_size": (8, 8)},
    "all pairs": {"ignore_diagonal": False},
    "two neighbours, weights": {"koleo_topk": 2, "koleo_weight": 0.7, "dino_weight": 0.3, "ibot_weight": 1.7},
    "temperature, iterations": {"student_temperature": 0.2, "sinkhorn_iterations": 2},
    "nothing masked": {"masked": False},
    "no local crops": {"local_size": None},
    "gated MLP, no query and value bias, no layer scale": {
        "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False, "layerscale_value": None
    },
    "untied local norm, key bias": {"untie_global_and_local_cls_norm": True, "key_bias": True},
    "no multiple of the patch": {"global_size": (14, 22), "local_size": (9, 6)},
    "gram": {**CHECKPOINT, "global_size": (12, 12), "gram_size": (20, 20)},
    "gram, all pairs": {
        **CHECKPOINT, "global_size": (8, 16), "gram_size": (12, 20), "ignore_diagonal": False
    },
    "gram over the batch": {**CHECKPOINT, "gram_per_image": False, "gram_clamp": "both"},
    "gram of products": {**CHECKPOINT, "gram_normalize": False, "gram_clamp": "teacher", "gram_weight": 0.01},
    "gram of the EMA teacher": {"global_size": (12, 8), "gram_teacher": "ema"},
    "schedules past their end": {"steps": 3, "lr_warmup_steps": 1, "teacher_temperature_warmup_steps": 2},
    "constant schedules, no clipping": {
        "lr": 0.004, "lr_scaling": "none", "lr_end": None, "weight_decay_end": None, "momentum_end": None,
        "local_weight_end": None, "clip_grad_norm": None, "adam_betas": [0.8, 0.95], "layer_norm_eps": 1e-3,
    },
    "gram copy, ramp and refresh": {
        **EMA_COPY, "global_size": (12, 12), "gram_first_update": 1, "gram_update_every": 2, "gram_max_updates": 1
    },
}  # fmt: skip


class Run:
    """One run with random weights in both implementations, and the batches it sees."""

    def __init__(self, case: dict):
        torch.manual_seed(0)
        case = dict(case)
        sizes = [case.pop(name, size) for name, size in (("global_size", (8, 12)), ("local_size", (8, 4)))]
        gram_size, masked = case.pop("gram_size", None), case.pop("masked", True)

        def pick(kind, **defaults):
            known = [field.name for field in dataclasses.fields(kind) if field.name in case]
            arguments = kind(**{**defaults, **{name: case.pop(name) for name in known}})
            arguments.validate()
            return arguments

        objective, gram = pick(ObjectiveArguments), pick(GramArguments)
        self.optimization = pick(OptimizationArguments, **OPTIMIZATION)
        self.config = Dinov3Config(**CONFIG, **case)
        student = Dinov3ForPreTraining(self.config)
        randomize(student)
        gram_teacher = Dinov3Model(self.config) if gram.gram_teacher in ("checkpoint", "ema_copy") else None
        if gram_teacher is not None:
            randomize(gram_teacher)
        self.objective = SelfDistillation(student, objective, gram_teacher, gram)
        with torch.no_grad():
            for parameter in self.objective.teacher.parameters():
                parameter += 0.1 * parameter.std(unbiased=False) * torch.randn_like(parameter)
        self.objective.train()
        self.schedules = Schedules(self.optimization, BATCH, gram)
        self.settings = translate(self.config, objective, gram, self.optimization)
        self.batches = [make_batch(*sizes, gram_size, masked) for _ in range(STEPS)]

    def naive_state(self, dtype: torch.dtype = torch.float64) -> naive.State:
        networks = self.objective.student, self.objective.teacher, self.objective.gram_teacher
        return naive.State(*(None if net is None else cast(net.state_dict(), dtype) for net in networks))

    def real_steps(self) -> Iterator[naive.State]:
        """Take one step of the real thing per batch, in the loop's order."""
        optimization, objective = self.optimization, self.objective
        groups = parameter_groups(objective.student, optimization.layerwise_decay, optimization.patch_embed_lr_mult)
        optimizer = build_optimizer(groups, optimization.adam_betas)
        for step, batch in enumerate(self.batches):
            values = self.schedules.values_at(step)
            set_rates(optimizer, values)
            objective.before_step(step)
            optimizer.zero_grad(set_to_none=True)
            output = objective(batch, values)
            output.loss.backward()
            gradients = {name: p.grad.clone() for name, p in objective.student.named_parameters()}
            clip_gradients(objective.networks(), optimization.clip_grad_norm)
            optimizer.step()
            objective.after_step(step, values)
            yield self.state(step, output, gradients, optimizer)

    def state(self, step, output, gradients, optimizer) -> naive.State:
        """What the step gave and left, in the naive step's form."""
        objective, parameters = self.objective, dict(self.objective.student.named_parameters())
        first, second = (
            {name: optimizer.state[parameter][key].clone() for name, parameter in parameters.items()}
            for key in ("exp_avg", "exp_avg_sq")
        )
        return dataclasses.replace(
            self.naive_state(torch.float32),
            gram_updates=int(objective.gram_updates),
            step=step + 1,
            first_moment=first,
            second_moment=second,
            loss=output.loss.item(),
            metrics={name: value.item() for name, value in output.metrics.items()},
            gradients=gradients,
        )

    def naive_steps(self, dtype: torch.dtype = torch.float64) -> Iterator[naive.State]:
        state = self.naive_state(dtype)  # before the real run moves its weights
        return (naive.train_step(state, cast(batch, dtype), self.settings) for batch in self.batches)


def randomize(network: torch.nn.Module) -> None:
    """Give every tensor weights at which it matters."""
    for name, parameter in network.named_parameters():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.5 if name.endswith("lambda1") else 0.0
        matrix = parameter.ndim > 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean, parameter[0].numel() ** -0.5 if matrix else 0.2)


def cast(tensors: dict, dtype: torch.dtype = torch.float64) -> dict:
    """Copy tensors, those of floats in `dtype`."""
    return {
        name: value.detach().clone().to(dtype if value.is_floating_point() else value.dtype)
        for name, value in tensors.items()
    }


def translate(config, objective, gram, optimization) -> naive.Settings:
    """The recipe in the words of the naive step: many are the same."""
    scale = 4 * (BATCH / 1024) ** 0.5 if optimization.lr_scaling == "sqrt_wrt_1024" else 1.0
    steps, temperature = optimization.steps, optimization.teacher_temperature
    lr_end = None if optimization.lr_end is None else optimization.lr_end * scale

    def cosine(peak, end, warmup=0, start=None):
        """Cosine over the rest of the run; without an end the peak stays."""
        length = 0 if end is None else steps - warmup
        return naive.Schedule(peak if start is None else start, peak, peak if end is None else end, warmup, length)

    # The ramp leaves 0 one step before the loss starts and is at its end after `gram_ramp_steps` further steps.
    begin, ramp = gram.gram_start_step, gram.gram_ramp_steps
    words = {field.name for field in dataclasses.fields(naive.Settings)}
    same = {**vars(objective), **vars(gram), **vars(optimization)}
    translated = {
        "heads": config.num_attention_heads,
        "norm_eps": config.layer_norm_eps,
        "gram": {"none": None, "ema": "ema_teacher"}.get(gram.gram_teacher, "gram_teacher"),
        "gram_load_step": begin if gram.gram_teacher == "ema_copy" else None,
        "gram_first_update": gram.gram_first_update if gram.gram_update_every else None,
        "gram_update_frequency": gram.gram_update_every or 1,
        "gram_weight": naive.Schedule(0.0, 0.0, gram.gram_weight, cosine=ramp + 2, first=begin - 1),
        "local_weight": cosine(optimization.local_weight, optimization.local_weight_end),
        "teacher_temperature": cosine(
            temperature, None, optimization.teacher_temperature_warmup_steps, optimization.teacher_temperature_start
        ),
        "learning_rate": cosine(optimization.lr * scale, lr_end, optimization.lr_warmup_steps, 0.0),
        "weight_decay": cosine(optimization.weight_decay, optimization.weight_decay_end),
        "momentum": cosine(optimization.momentum, optimization.momentum_end),
        "layer_decay": optimization.layerwise_decay,
        "clip": optimization.clip_grad_norm or math.inf,
        "betas": tuple(optimization.adam_betas),
    }
    return naive.Settings(**{name: value for name, value in same.items() if name in words} | translated)


def make_batch(global_size, local_size, gram_size, masked: bool) -> dict[str, torch.Tensor]:
    """Noise images; masks of any size, one crop without a masked patch."""
    patches = global_size[0] // CONFIG["patch_size"] * (global_size[1] // CONFIG["patch_size"])
    masks = torch.rand(2, BATCH, patches) < torch.tensor([[[0.1], [0.3], [0]], [[0.5], [0.4], [0.2]]]) * masked
    masks[0, 0, 0] = masked
    sizes = {"global_crops": global_size, "local_crops": local_size, "gram_crops": gram_size}
    images = {name: torch.randn(2, BATCH, 3, *size) for name, size in sizes.items() if size is not None}
    return {**images, "masks": masks}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm: AdamW divides single near-zero gradients by themselves, noise and all."""
    return ((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


def difference(ours: dict, theirs: dict) -> float:
    assert ours.keys() == theirs.keys()
    return max(relative(ours[name], theirs[name]) for name in theirs)


# Not part of the loss; tests/training/test_health.py holds them to their own naive versions.
HEALTH = {"prototype_usage", "assignment_entropy", "teacher_entropy"}


def disagreements(real: naive.State, state: naive.State, settings: naive.Settings) -> list[str]:
    """Name what differs by more than rounding."""
    # Before its first step the Gram loss may be omitted: its weight is 0.
    omitted = state.metrics.keys() - real.metrics.keys()
    assert omitted <= ({"gram"} if settings.gram_weight.at(state.step - 1) == 0 else set())
    found = {"loss": abs(real.loss / state.loss - 1) / 2e-6}
    for name in real.metrics.keys() - HEALTH:
        value = real.metrics[name]
        found[name] = abs(value - state.metrics[name]) / (5e-6 * abs(value) + 1e-6)
    tolerances = {"gradients": 5e-5, "first_moment": 5e-5, "second_moment": 5e-5}
    for part in (*tolerances, "student", "teacher", "gram_teacher"):
        if getattr(state, part) is not None:
            found[part] = difference(getattr(real, part), getattr(state, part)) / tolerances.get(part, 1e-5)
    return [f"{name}: {ratio:.1f} times the tolerance" for name, ratio in found.items() if not ratio < 1]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_step_of_a_run_equals_the_naive_one(case):
    """Loss, terms, the gradient of every parameter, and the weights of student, teacher and Gram teacher."""
    run = Run(case)
    start = cast(run.objective.student.state_dict())
    for real, state in zip(run.real_steps(), run.naive_steps(), strict=True):
        assert disagreements(real, state, run.settings) == []
        assert (real.step, real.gram_updates) == (state.step, state.gram_updates)
    for name, tensor in state.student.items():
        assert relative(start[name], tensor) > 1e-3 or (name.startswith("ibot_head") and "masked" in case), name


def test_the_real_step_rounds_no_worse_than_the_naive_one_in_fp32():
    run = Run(SMALL)
    for real, exact, rounded in zip(run.real_steps(), run.naive_steps(), run.naive_steps(torch.float32), strict=True):
        assert difference(real.student, exact.student) <= 3 * difference(rounded.student, exact.student) + 1e-7


class Loader(list):
    """Given batches, as the loop reads them."""

    readers = [1, 0, BATCH]

    def __iter__(self):
        counts = {"images_read": BATCH, "bad_images": 0, "bad_examples": [], "epoch": 0, "num_images": 4}
        return (batch | counts for batch in super().__iter__())

    state_dict = staticmethod(dict)


def test_the_loop_itself_takes_the_naive_steps(tmp_path):
    run = Run({**SMALL, "steps": STEPS})
    *_, last = states = [dataclasses.replace(state) for state in run.naive_steps()]
    student, rates = run.objective.student, (run.optimization.layerwise_decay, run.optimization.patch_embed_lr_mult)
    train(
        run.objective, lambda: parameter_groups(student, *rates), lambda step, epoch: Loader(run.batches),
        run.schedules, Accelerator(cpu=True), run.optimization, RunArguments(output_dir=str(tmp_path), log_every=1),
        {}, export=lambda *args: None,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx([state.loss for state in states], rel=2e-6)
    for network in ("student", "teacher", "gram_teacher"):
        assert difference(getattr(run.objective, network).state_dict(), getattr(last, network)) < 1e-5


@pytest.fixture(scope="module")
def recorded():
    run = Run(SMALL)
    run.start = run.naive_state()
    run.history = list(run.real_steps())
    assert first_disagreement(run, run.settings) == []
    return run


def first_disagreement(recorded: Run, settings: naive.Settings) -> list[str]:
    state = naive.State(dict(recorded.start.student), dict(recorded.start.teacher), recorded.start.gram_teacher)
    for real, batch in zip(recorded.history, recorded.batches, strict=True):
        state = naive.train_step(state, cast(batch), settings)
        if found := disagreements(real, state, recorded.settings):
            return found
    return []


MISTAKES = {
    "adam_eps": 1e-6, "betas": (0.9, 0.998), "clip": 0.505, "freeze_last_layer_steps": 1, "gram": "ema_teacher",
    "gram_first_update": 3, "gram_load_step": 0, "gram_max_updates": 2, "layer_decay": 0.71, "norm_eps": 1e-6,
    "patch_embed_lr_mult": 0.31, "rope_theta": 101.0, "sinkhorn_iterations": 4,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MISTAKES.items(), ids=MISTAKES)
def test_the_comparison_notices_a_slightly_different_setting(recorded, name, value):
    assert first_disagreement(recorded, dataclasses.replace(recorded.settings, **{name: value}))


def clip_together(grads, largest):
    norm = sum(float(grad.square().sum()) for grad in grads.values()) ** 0.5
    return {name: grad * min(1.0, largest / norm) for name, grad in grads.items()}


WRONG_RULES = {
    "everything decayed": ("is_decayed", lambda name: True),
    "tokens not decayed": ("is_decayed", lambda name: name.endswith("weight") and "norm" not in name),
    "one clip for all networks": ("clip", clip_together),
}


@pytest.mark.parametrize(("function", "wrong"), WRONG_RULES.values(), ids=WRONG_RULES)
def test_the_comparison_notices_a_wrong_rule(recorded, monkeypatch, function, wrong):
    monkeypatch.setattr(naive, function, wrong)
    assert first_disagreement(recorded, recorded.settings)


def test_the_naive_backbone_and_head_meet_the_published_ones():
    golden = load_file(DATA / "vit_a.safetensors")
    params = cast(load_meta(naive.part(golden, "sd/")).state_dict())
    settings = dataclasses.replace(Run({}).settings, heads=4)
    for run, images, masks in (
        ("eval64_masked", "in/x64", golden["in/mask"]),
        ("eval96x48", "in/x96x48", (None, None)),
    ):
        for i in range(2):
            outputs = naive.backbone(params, golden[images][i].double(), settings, masks[i])
            for name, ours in zip(("norm_clstoken", "storage_tokens", "norm_patchtokens"), outputs, strict=True):
                torch.testing.assert_close(ours.float(), golden[f"{run}/x_{name}"][i], atol=2e-5, rtol=0)
    golden = load_file(DATA / "head.safetensors")
    for layers in ("n2", "n3"):
        ours = torch.stack([naive.head(naive.part(golden, f"{layers}/sd/"), x) for x in golden["x"]])
        torch.testing.assert_close(ours, golden[f"{layers}/out"], atol=2e-5, rtol=0)


def test_the_naive_targets_and_cross_entropies_meet_the_published_ones():
    golden = load_file(DATA / "dino.safetensors")
    targets = naive.sinkhorn(list(golden["teacher_logits"].flatten(0, 1)), 0.07)
    torch.testing.assert_close(torch.tensor(targets), golden["sinkhorn_temp0.07"], atol=1e-6, rtol=1e-5)
    probs = golden["teacher_probs"].tolist()
    for loss in ("global_all_pairs", "global_ignore_diag", "local", "local_ignore_diag_rect"):
        logits = golden[f"student_logits_{loss.split('_')[0]}"].clone().requires_grad_()
        ours = naive.image_loss([list(crop) for crop in logits], probs, 0.1, "ignore_diag" in loss)
        ours.backward()
        assert ours.item() == pytest.approx(golden[f"loss_{loss}"].item(), rel=1e-5)
        assert relative(logits.grad, golden[f"grad_{loss}"]) < 1e-5
    golden = load_file(DATA / "ibot.safetensors")
    targets = naive.sinkhorn(list(golden["teacher_logits"]), 0.07)
    torch.testing.assert_close(torch.tensor(targets), golden["teacher_probs"], atol=1e-6, rtol=1e-5)
    rows = zip(golden["student_logits"], targets, golden["masks_weight"], strict=True)
    loss = sum(weight * naive.cross_entropy(logits, target, 0.1) for logits, target, weight in rows) / 4
    assert loss.item() == pytest.approx(golden["loss_masked_std"].item(), rel=1e-5)


@pytest.mark.parametrize("clamp", [None, "both", "teacher"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_naive_gram_loss_meets_the_published_one(normalize, per_image, clamp):
    golden = load_file(DATA / "gram.safetensors")
    clamps = {None: "none", "both": "remove_neg", "teacher": "remove_only_teacher_neg"}
    key = f"norm{int(normalize)}_img{int(per_image)}_{clamps[clamp]}"
    student = golden["student"].requires_grad_()
    loss = naive.gram(list(student), list(golden["teacher"]), normalize, per_image, clamp)
    loss.backward()
    assert loss.item() == pytest.approx(golden[f"{key}/loss"].item(), rel=1e-5)
    assert relative(student.grad, golden[f"{key}/grad"]) < 1e-5


def test_the_naive_resize_is_the_bicubic_one_of_torch():
    patches = torch.randn(5 * 7, 3, dtype=torch.float64)
    image = patches.T.reshape(1, 3, 5, 7)
    for grid in ((3, 5), (4, 4), (9, 8)):
        resized = torch.nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
        ours = naive.resize_bicubic(patches, (5, 7), grid)
        torch.testing.assert_close(ours, resized[0].flatten(1).T)


def test_the_naive_schedule_meets_the_published_one():
    for case in json.loads((DATA / "schedules.json").read_text())["linear_warmup_cosine_decay"]:
        start, peak, end, warmup, total = list(case["kwargs"].values())[:5]
        schedule = naive.Schedule(start, peak, end, warmup, case["kwargs"].get("cosine_iterations", total - warmup))
        assert [schedule.at(step) for step in range(total)] == pytest.approx(case["values"], rel=1e-9, abs=1e-15)
