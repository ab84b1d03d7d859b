"""`transformers.Trainer` with the loss and metrics of a task, and layer-wise learning rates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import ModelOutput

from ..models.layers_dinov3 import layer_number
from ..terminal import progress_bar
from .adapters import TOKENS, backbone_of, freeze_patch_embedding
from .arguments import FinetuneRecipe
from .classification import Classification
from .depth import Depth
from .detection import Detection
from .examples import Examples, collate
from .segmentation import Segmentation


if TYPE_CHECKING:
    from datasets import Dataset
    from tqdm import tqdm

Task = Classification | Depth | Detection | Segmentation
# The labels of a batch: those of detection differ in shape from image to image.
Labels: TypeAlias = torch.Tensor | list[dict[str, torch.Tensor]]


class Progress(TrainerCallback):
    """Progress of training and of the test, shown as that of every other verb."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def _show(self, name: str, state: TrainerState, total: int, done: int = 0) -> None:
        disable = not state.is_world_process_zero
        self.bar = progress_bar(desc=name, unit="step", total=total, initial=done, disable=disable)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **given: Any) -> None:
        self._show("train", state, state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **given: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **given: Any) -> None:
        if self.bar is not None and "loss" in given["logs"]:
            self.bar.set_postfix(loss=f"{float(given['logs']['loss']):.3f}")

    def on_train_end(self, *_: Any, **given: Any) -> None:
        self._close()

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **given: Any) -> None:
        if self.bar is None:
            self._show("test", state, len(given["eval_dataloader"]))
        assert self.bar is not None
        self.bar.update()

    def on_predict(self, *_: Any, **given: Any) -> None:
        self._close()


class FinetuneTrainer(Trainer):
    """A `Trainer` with the parameter groups of a recipe and the loss and metrics of a task."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, recipe: FinetuneRecipe, model: nn.Module, task: Task, train: "Dataset", test: "Dataset"):
        self.task, self.recipe = task, recipe
        super().__init__(
            model=model,
            args=training_arguments(recipe),
            data_collator=collate,
            train_dataset=Examples(train, task.read, train=True),
            eval_dataset=Examples(test, task.read, train=False),
            callbacks=[Progress()],
        )
        self.remove_callback(PrinterCallback)
        # Our losses are means over the batch: with gradient accumulation Trainer has to divide them.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        # When PEFT loads a checkpoint, it makes all of the embeddings trainable again.
        freeze_patch_embedding(self.model)
        if self.optimizer is None:
            optimization = self.recipe.optimization
            decay = optimization.layerwise_decay if self.recipe.task.method == "full" else 1.0
            groups = parameter_groups(self.model, self.args.learning_rate, optimization.weight_decay, decay)
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        outputs, labels = self.predict_batch(model, inputs)
        loss = self.task.loss(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    def predict_batch(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[ModelOutput, Labels]:
        """Return the model's outputs for a batch, and the labels of the batch."""
        inputs = {name: value for name, value in inputs.items() if name != "valid"}
        labels = inputs.pop("labels")
        return model(**inputs, **self.task.targets(labels)), labels

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            statistics = self.task.statistics(*self.predict_batch(model, inputs)).float()
        statistics[~inputs["valid"]] = torch.nan
        return None, statistics, None

    def measure(self) -> torch.Tensor:
        """Return the task's statistics of every test example [N,F], NaN for examples that could not be read."""
        return torch.from_numpy(self.predict(self.eval_dataset).predictions)


def training_arguments(recipe: FinetuneRecipe) -> TrainingArguments:
    """Translate a recipe into the arguments of `Trainer`; it saves a checkpoint per epoch and keeps the last one."""
    optimization = recipe.optimization
    return TrainingArguments(
        output_dir=str(Path(recipe.output.output_dir) / "checkpoints"),
        num_train_epochs=optimization.epochs,
        per_device_train_batch_size=optimization.batch_size,
        per_device_eval_batch_size=optimization.batch_size,
        learning_rate=optimization.lr,
        lr_scheduler_type="cosine",
        warmup_steps=optimization.warmup,
        bf16=optimization.precision == "bfloat16",
        seed=optimization.seed,
        dataloader_num_workers=optimization.num_workers,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        # `Progress` shows it instead.
        disable_tqdm=True,
    )


def parameter_groups(model: nn.Module, lr: float, weight_decay: float, layerwise_decay: float) -> list[dict]:
    """Group trainable parameters by learning rate and weight decay (BEiT, appendix).

    Block i of n has the learning rate `lr * layerwise_decay ** (n - i)`, with i from 0 to n - 1; the embeddings have
    that of i = -1; the final norm and the head have `lr`. Vectors and tokens have no weight decay.
    """
    prefix, backbone = backbone_of(model)
    blocks, inside = len(backbone.layer), f"{prefix}." if prefix else ""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = layer_number(name.removeprefix(inside), blocks) if name.startswith(inside) else blocks + 1
        is_decayed = parameter.ndim > 1 and name.split(".")[-1] not in TOKENS
        rate = lr * layerwise_decay ** (blocks + 1 - depth)
        decay = weight_decay if is_decayed else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
