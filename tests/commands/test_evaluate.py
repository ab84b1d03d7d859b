"""`dinov3 evaluate` from a checkpoint on disk to results.json."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, Dinov3Config, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.cli import main
from dinov3_hf.data.scenes import SCENE_CLASSES, load_scenes
from dinov3_hf.evaluation.bench import Bench
from dinov3_hf.evaluation.image_text_retrieval import evaluate_retrieval
from dinov3_hf.evaluation.knn import evaluate_knn
from dinov3_hf.evaluation.loading import load_evaluated_model, load_evaluated_text_model
from dinov3_hf.evaluation.result import Result
from dinov3_hf.evaluation.results import format_table
from dinov3_hf.evaluation.tasks import TASKS, EvaluateRecipe
from dinov3_hf.evaluation.zero_shot import evaluate_zero_shot
from dinov3_hf.evaluation.zero_shot_segmentation import evaluate_zero_shot_segmentation
from dinov3_hf.models.tokenization_dinotxt import train_tokenizer
from dinov3_hf.recipe import build_recipe


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 64,
    "layerscale_value": 0.1,
}
FEW, SMALL = ["--num-test", "12"], ["--num-train", "24", "--num-test", "12", "--k", "3"]
LEARN = ["--num-train", "24", *FEW]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A `dinov3_vit` directory as transformers writes it, with its own image statistics."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    DINOv3ViTModel(DINOv3ViTConfig(**SIZES)).save_pretrained(directory)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]}
    DINOv3ViTImageProcessor(size={"height": 64, "width": 64}, **statistics).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """A text-aligned directory whose tokenizer knows the scenes' words."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("aligned")
    backbone = Dinov3Model(Dinov3Config(**SIZES))
    tokenizer = train_tokenizer(load_scenes("train", 200, subset="crowded")["caption"], 400, context_length=24)
    text = {**{name: SIZES[name] for name in list(SIZES)[:4]}, "vocab_size": len(tokenizer), "eos_token_id": 2}
    model = DinoTxtModel.from_backbone(backbone, text | {"max_position_embeddings": 24}, projection_dim=32)
    model.save_pretrained(directory)
    DinoTxtProcessor(DINOv3ViTImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(directory)
    return directory


def test_two_tasks_in_one_call(checkpoint, tmp_path, capsys):
    argv = [
        "evaluate",
        str(checkpoint),
        "--task",
        "knn",
        "patch-knn",
        *SMALL,
        "--output-dir",
        str(tmp_path),
        "--seed",
        "3",
    ]
    assert main(argv) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    shown = capsys.readouterr().out
    knn, patches = record["results"]
    assert (knn["task"], patches["task"]) == ("knn", "patch-knn")
    assert (knn["data"]["source"], patches["data"]["source"]) == ("scenes:single", "scenes:crowded")
    assert knn["data"]["train"]["images"] == 24 and knn["data"]["test"]["images"] == 12
    assert knn["data"]["train"]["fingerprint"] and knn["protocol"]["baseline_seed"] == 3
    assert knn["protocol"]["preprocessing"] == {
        "image_size": 64,
        "resize_size": 64,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.2, 0.1],
    }
    assert record["model"]["path"] == str(checkpoint) and len(record["model"]["sha256"]["model.safetensors"]) == 64
    assert record["settings"]["seed"] == 3 and {"torch", "transformers", "dinov3_hf"} <= set(record["versions"])
    lines = [line for line in shown.splitlines() if "k=3" in line]
    assert len(lines) == 3 and len({re.search(r"[bew]\w+ (than|to) ", line).start() for line in lines}) == 1
    for line, metric in zip(lines, knn["metrics"] + patches["metrics"], strict=True):
        values = [float(cell) for cell in re.sub(r"[\[\],]", "", line.split("k=3")[1]).split()[:6]]
        expected = [metric["model"], *metric["interval"]]
        expected += [metric[name] for name in ("random_init", "raw_pixels", "chance")]
        assert values == pytest.approx(expected, abs=6e-4) and all(0 <= value <= 1 for value in values)


ALL_VISION_TASKS = [name for name, task in TASKS.items() if not getattr(task, "has_text", False)]


def test_every_task_runs_on_the_scenes_and_writes_metrics_and_pictures(checkpoint, tmp_path, capsys):
    flags = ["--num-train", "24", "--num-test", "16", "--k", "3", "--steps", "2", "--sizes", "32", "64"]
    argv = ["evaluate", str(checkpoint), "--task", *ALL_VISION_TASKS, *flags, "--group-column", "label"]
    assert main([*argv, "--output-dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    repeated = ["layers of knn", "layers of patch-knn", "resolution of knn", "resolution of patch-knn", "fairness"]
    assert [result["task"] for result in results] == [*ALL_VISION_TASKS[:12], *repeated]
    for result in results:
        assert result["metrics"] and result["protocol"] and result["data"]["test"]["images"] > 0
        assert all({"model", "random_init"} <= set(metric) for metric in result["metrics"])
        for name in result["pictures"].values():
            assert (tmp_path / name).stat().st_size > 500 and f"]({name})" in (tmp_path / "results.md").read_text()
    assert sum(bool(result["pictures"]) for result in results) >= 15
    shown = capsys.readouterr().out
    assert all(f"\n{result['task']} " in shown for result in results)
    # A second run that reuses the kept features and heads gives the same metrics.
    some = ["knn", "segmentation", "tracking"]
    some_flags = flags[: flags.index("--sizes")]
    argv = ["evaluate", str(checkpoint), "--task", *some, *some_flags, "--output-dir", str(tmp_path), "--overwrite"]
    assert main(argv) == 0
    again = json.loads((tmp_path / "results.json").read_text())["results"]
    before = {result["task"]: result["metrics"] for result in results}
    assert [result["metrics"] for result in again] == [before[task] for task in some]


def test_windows_bound_what_the_network_sees(checkpoint, tmp_path, monkeypatch):
    seen, forward = set(), Dinov3Model.forward

    def watched(self, pixel_values, *arguments, **keywords):
        seen.add(tuple(pixel_values.shape[-2:]))
        return forward(self, pixel_values, *arguments, **keywords)

    monkeypatch.setattr(Dinov3Model, "forward", watched)
    flags = ["--task", "resolution", "--of", "patch-knn", "--sizes", "64", "128", "--window", "32"]
    argv = ["evaluate", str(checkpoint), *flags, *SMALL, "--output-dir", str(tmp_path)]
    assert main(argv) == 0 and seen == {(32, 32)}
    result = json.loads((tmp_path / "results.json").read_text())["results"][0]
    assert [line["image_size"] for line in result["metrics"]] == [64, 64, 128, 128]
    assert "windows of 32 px" in result["protocol"]["repeated"]


def test_half_precision_is_close(checkpoint, tmp_path):
    statistics = []
    for dtype in ("float32", "bfloat16"):
        settings = build_recipe(EvaluateRecipe, model=str(checkpoint), dtype=dtype)
        model, _, preprocessing = load_evaluated_model(settings)
        bench = Bench(model, preprocessing, progress=False, baselines=False)
        statistics.append(bench.extract(load_scenes("test", 4), "image", "cls", "images")["model"].stack())
    assert model.dtype == torch.bfloat16 and not torch.equal(*statistics)
    torch.testing.assert_close(*statistics, rtol=0, atol=0.1)


def test_model_card_of_a_local_model_grows(checkpoint, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / "README.md").write_text("# Mine\n")
    argv = ["evaluate", str(model), *SMALL, "--no-baselines", "--output-dir"]
    assert main([*argv, str(tmp_path / "a"), "--no-update-card"]) == 0
    assert (model / "README.md").read_text() == "# Mine\n"
    assert main([*argv, str(tmp_path / "b")]) == 0 and "model card:" in capsys.readouterr().out
    assert "| knn | top-1, k=3 | scenes:single test (12 images) |" in (model / "README.md").read_text()


def test_parquet_splits_pairs_and_out_of_distribution_sets(checkpoint, tmp_path):
    folder = tmp_path / "birds"
    folder.mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        load_scenes(split, 30, seed=seed).to_parquet(folder / f"{split}-0.parquet")
    (tmp_path / "far").mkdir()
    load_scenes("test", 20, subset="crowded").to_parquet(tmp_path / "far" / "test-0.parquet")
    argv = ["evaluate", str(checkpoint), "--task", "linear", "--data", str(folder), "--no-baselines", *LEARN]
    assert main([*argv, "--ood-data", str(tmp_path / "far"), "--output-dir", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]
    assert {"top-1", "top-1 (far)"} <= {line["metric"] for line in result["metrics"]}
    # The same rows as gallery and queries, each without itself.
    argv = ["evaluate", str(checkpoint), "--task", "retrieval", "--data", str(folder), "--no-baselines", *LEARN]
    flags = ["--train-split", "test", "--instance-column", "label", "--output-dir", str(tmp_path / "own")]
    assert main([*argv, *flags]) == 0
    result = json.loads((tmp_path / "own" / "results.json").read_text())["results"][0]
    assert result["protocol"]["own_row_left_out"] is True


def test_command_measures_what_the_function_does(checkpoint, tmp_path):
    settings = build_recipe(EvaluateRecipe, model=str(checkpoint), num_train=24, num_test=12, k=[3], baselines=False)
    model, _, preprocessing = load_evaluated_model(settings)
    bench = Bench(model, preprocessing, baselines=False, progress=False)
    expected = evaluate_knn(bench, *TASKS["knn"].rows(TASKS["knn"], settings), ks=[3])
    assert main(["evaluate", str(checkpoint), *SMALL, "--no-baselines", "--output-dir", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "results.json").read_text())["results"][0]
    assert result["metrics"] == expected.metrics and set(expected.metrics[0]) == {
        "metric",
        "k",
        "model",
        "chance",
        "interval",
    }


def test_config_file_gives_what_flags_give(checkpoint, tmp_path):
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        f"model: {checkpoint}\ntask: knn\nnum_train: 24\nnum_test: 5\nk: [3]\nbaselines: false\nimage_size: 32\n"
    )
    argv = ["evaluate", "--config", str(config), "--num-test", "12", "--output-dir", str(tmp_path)]
    assert main(argv) == 0
    result = json.loads((tmp_path / "results.json").read_text())["results"][0]
    assert result["protocol"]["num_test"] == 12 and result["protocol"]["preprocessing"]["image_size"] == 32


@pytest.mark.parametrize("layout", ["package", "meta"])
def test_other_layouts_load(layout, tmp_path):
    torch.manual_seed(0)
    model = Dinov3Model(Dinov3Config(**SIZES)).eval()
    if layout == "package":
        model.save_pretrained(tmp_path)
        place = tmp_path
    else:
        place = export(model, tmp_path, layout="meta") / "model.pth"
    loaded, provenance, preprocessing = load_evaluated_model(
        build_recipe(EvaluateRecipe, model=str(place), data="some/folder", image_size=56)
    )
    pixel_values = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        difference = loaded(pixel_values.to(loaded.device)).pooler_output.cpu() - model(pixel_values).pooler_output
    assert difference.abs().max() < 1e-5 and provenance["sha256"]
    assert (preprocessing.image_size, preprocessing.resize_size) == (56, 64)  # 256 to 224, the paper's ratio
    assert preprocessing.mean == (0.485, 0.456, 0.406)


def test_table_is_aligned_and_skips_missing_baselines():
    result = Result("knn", {}, [{"metric": "top-1", "k": 10, "model": 0.5, "chance": 0.1}])
    head, line = format_table([result]).splitlines()
    assert line == "knn top-1, k=10  0.5000  0.1000  better than chance by 0.4000"
    assert head == "                  model  chance  verdict"


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--task", "patch_knn"],
            "task: got 'patch_knn', accepted: knn, patch-knn, linear, linear-sgd, segmentation, depth, "
            "correspondence, tracking, discovery, retrieval, video, outliers, layers, resolution, fairness, "
            "zero-shot, image-text-retrieval, zero-shot-segmentation; did you mean patch-knn?",
        ),
        (["--task", "knn", "zero-shot"], "task: got 'knn, zero-shot', accepted: in one call either tasks of a text"),
        (["--task", "zero-shot"], "is of type 'dinov3_vit', accepted for tasks with text: a dinotxt directory"),
        (["--label-column", "class"], "label_column: got 'class', accepted: a column of the data set (image, label"),
        (
            ["--task", "fairness"],
            "group_column: missing, accepted: for fairness a column of groups",
        ),
        (
            ["--task", "fairness", "--group-column", "country"],
            "group_column: got 'country', accepted: a column of the data set (image, label",
        ),
        (
            ["--task", "layers", "--of", "fairness"],
            "of: got 'fairness', accepted: knn, patch-knn, linear, linear-sgd",
        ),
        (["--task", "layers", "--layers", "3"], "layers: got 3, accepted: 1 to the model's number of layers (2)"),
        (["--task", "depth", "--depth-column", "z"], "depth_column: got 'z', accepted: a column of the data set"),
        (["--task", "video", "--sequence-column", "film"], "sequence_column: got 'film', accepted: a column"),
        (["--window", "20"], "window: got 20, accepted: a multiple of the model's patch size (8)"),
        (
            ["--steps", "5"],
            "steps: got 5, which knn does not read; accepted: without it, or a task that reads it (linear-sgd",
        ),
        (["--dtype", "float8"], "dtype: got 'float8', accepted: float32, bfloat16 or float16"),
        (
            ["--task", "correspondence", "--thresholds", "0"],
            "thresholds: got [0], accepted: a list of numbers above 0, up to 1",
        ),
        (["--task", "depth", "--steps", "0"], "steps: got 0, accepted: a whole number of at least 1"),
        (
            ["--task", "patch-knn", "--mask-column", "masks"],
            "mask_column: got 'masks', accepted: a column of the data",
        ),
        (["--image-size", "60"], "image_size: got 60, accepted: a multiple of the model's patch size (8)"),
        (["--resize-size", "32"], "resize_size: got 32, accepted: at least image_size (64)"),
        (["--num-test", "0"], "num_test: got 0, accepted: a whole number of at least 1"),
        (["--num-train", "24", "--k", "30"], "k: got [30], accepted: 1 to the number of train images (24)"),
        (["--test-split", "train"], "test_split: got 'train', accepted: for knn another split than train_split"),
        (["--config", "nowhere.yaml"], "config: no recipe 'nowhere.yaml'"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(flags, message, checkpoint, tmp_path, capsys):
    # Tasks of a text tower refuse --num-train, which they do not read.
    few = FEW if "zero-shot" in flags or "--num-train" in flags else LEARN
    assert main(["evaluate", str(checkpoint), *few, "--output-dir", str(tmp_path), *flags]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("dinov3 evaluate: error: ") and message in shown
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("num_trian: 5\n", "config: unknown field 'num_trian'"),
        ("num_train: many\n", "num_train: got 'many', accepted: a whole number of at least 1"),
        ("k: [1, two]\n", "k: got [1, 'two'], accepted: a list of whole numbers of at least 1"),
        ("- knn\n", "holds a list, accepted: a YAML file, one `field: value` a line"),
    ],
)
def test_wrong_config_files_are_refused(text, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert main(["evaluate", "model", "--config", str(tmp_path / "c.yaml")]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert "num_trian" not in text or "did you mean num_train?" in shown


def test_wrong_models_are_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "notes.txt").write_text("no weights")
    wrong = {
        None: "model: missing, accepted",
        str(tmp_path): "is of type 'vit', accepted: dinov3_hf, dinov3_vit",
        str(tmp_path / "notes.txt"): "accepted: a directory, a hub id, or a .pth, .pt, .safetensors file",
        str(tmp_path / "absent"): "model: no config.json in",
    }
    for name, message in wrong.items():
        assert main(["evaluate", *([name] if name else []), *SMALL, "--output-dir", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_results_are_not_overwritten_unasked(checkpoint, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    argv = ["evaluate", str(checkpoint), *SMALL, "--no-baselines", "--output-dir", str(tmp_path)]
    assert main(argv) == 2 and "accepted: another folder, or --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["results"]


def test_folder_without_splits_holds_a_fifth_out(tmp_path, capsys):
    for number in range(20):
        folder = tmp_path / "images" / ("one" if number % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number, 0, 0)).save(folder / f"{number}.png")
    recipe = build_recipe(EvaluateRecipe, model="m", data=str(tmp_path / "images"), num_test=3)
    train, test = TASKS["knn"].rows(TASKS["knn"], recipe)
    assert (len(train), len(test)) == (16, 3)
    assert "has no splits: a fifth of it is held out as test" in capsys.readouterr().out
    paths = [{row["image"]["path"] for row in rows} for rows in (train, test)]
    assert len(paths[0]) == 16 and not paths[0] & paths[1]


def test_text_tasks_measure_what_the_functions_do(aligned, tmp_path, capsys):
    tasks = ["zero-shot", "image-text-retrieval", "zero-shot-segmentation"]
    argv = ["evaluate", str(aligned), "--task", *tasks, "--num-test", "12", "--output-dir", str(tmp_path)]
    assert main([*argv, "--scales", "1", "1.5", "--background-threshold", "0.05"]) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    shown = capsys.readouterr().out
    loaded, _ = load_evaluated_text_model(str(aligned))
    pair = (loaded.model, loaded.processor)
    single, crowded = (load_scenes("test", 12, subset=subset) for subset in ("single", "crowded"))
    masks = {"class_names": ["background", *SCENE_CLASSES], "background": 0, "background_threshold": 0.05}
    expected = [
        evaluate_zero_shot(*pair, single, progress=False),
        evaluate_retrieval(*pair, crowded, progress=False),
        evaluate_zero_shot_segmentation(*pair, crowded, **masks, scales=[1.0, 1.5], progress=False),
    ]
    for result, wanted, source in zip(record["results"], expected, ("single", "crowded", "crowded"), strict=True):
        assert result["data"]["source"] == f"scenes:{source}" and result["data"]["test"]["images"] == 12
        assert result["metrics"] == [
            {"metric": x["metric"], "model": pytest.approx(x["model"]), "chance": x["chance"]}
            | {"interval": pytest.approx(x["interval"])}
            for x in wanted.metrics
        ]
        assert result["protocol"] == json.loads(json.dumps(wanted.protocol))
    assert shown.startswith("data: scenes:single: rendered scenes, split test")
    lines = shown.splitlines()
    # What was read comes first, then the table.
    lines = lines[next(index for index, line in enumerate(lines) if line.endswith("verdict")) :]
    assert lines[0].split() == ["model", "95%", "interval", "chance", "verdict"]
    assert sum(line.startswith(tuple(tasks)) for line in lines) == 2 + 6 + 2
    classes = {row["class"]: row for row in record["results"][2]["per_class"]}
    table = [line for line in lines if line.split()[0] in classes]
    assert len(table) == len(classes) > 3
    for line in table:
        name, pixels, model, chance = line.split()
        assert (int(pixels), float(model)) == (
            classes[name]["pixels"],
            pytest.approx(classes[name]["model"], abs=1e-4),
        )
        assert float(chance) == pytest.approx(classes[name]["chance"], abs=1e-4)
    assert len(record["model"]["sha256"]["model.safetensors"]) == 64


def test_class_names_and_templates_from_a_config(aligned, tmp_path):
    names = [f"{name} shape" for name in SCENE_CLASSES]
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        f"model: {aligned}\ntask: zero-shot\nnum_test: 4\ntemplates: ['the {{}}']\nclass_names: {json.dumps(names)}\n"
    )
    assert main(["evaluate", "--config", str(config), "--output-dir", str(tmp_path)]) == 0
    protocol = json.loads((tmp_path / "results.json").read_text())["results"][0]["protocol"]
    assert protocol["class_names"] == names and protocol["templates"] == ["the {}"]
    assert protocol["unknown_words"] == ["shape"]


def test_a_backbone_by_reference_is_named(aligned, tmp_path):
    model = DinoTxtModel.from_pretrained(aligned)
    model.vision_model.save_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "model", backbone=str(tmp_path / "backbone"))
    DinoTxtProcessor.from_pretrained(aligned).save_pretrained(tmp_path / "model")
    argv = ["evaluate", str(tmp_path / "model"), "--task", "zero-shot", "--num-test", "4"]
    assert main([*argv, "--output-dir", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["model"]["backbone"] == {"path": str(tmp_path / "backbone"), "revision": None}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task", "knn"], "is of type 'dinotxt', accepted: dinov3_hf, dinov3_vit"),
        (
            ["--task", "zero-shot", "--image-size", "64"],
            "image_size: got 64, which zero-shot does not read; accepted: with",
        ),
        (
            ["--task", "zero-shot", "--label-column", "class"],
            "label_column: got 'class', accepted: a column of the data",
        ),
        (["--task", "zero-shot", "--class-names", "a", "b"], "class_names: got 2, accepted: 10, one a class of label"),
        (["--task", "zero-shot", "--templates", "photo"], "templates: got 'photo', accepted: a text with {}"),
        (
            ["--task", "image-text-retrieval", "--caption-columns", "alt"],
            "caption_columns: got alt, accepted: columns of the data set (image, label",
        ),
        (
            ["--task", "zero-shot-segmentation", "--background-threshold", "3"],
            "background_threshold: got 3, accepted: a number from 0 to 2 or null",
        ),
        (
            ["--task", "zero-shot-segmentation", "--scales", "0"],
            "scales: got [0], accepted: a list of numbers above 0",
        ),
    ],
)
def test_wrong_text_requests_are_refused_in_one_line(flags, message, aligned, tmp_path, capsys):
    assert main(["evaluate", str(aligned), *FEW, "--output-dir", str(tmp_path), *flags]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("dinov3 evaluate: error: ") and message in shown
    assert not (tmp_path / "results.json").exists()


def test_wrong_models_for_text_are_refused(tmp_path, capsys):
    (tmp_path / "model.pth").write_text("weights")
    (tmp_path / "config.json").write_text('{"model_type": "dinotxt"}')
    wrong = {
        tmp_path / "model.pth": "accepted for tasks with text: a dinotxt directory, as dinov3 align writes it",
        tmp_path / "absent": "accepted for tasks with text: a dinotxt directory",
        tmp_path: "has no processor (",
    }
    for name, message in wrong.items():
        assert main(["evaluate", str(name), "--task", "zero-shot", "--num-test", "4"]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1


def test_a_timm_directory_is_measured_as_what_it_was_exported_from(checkpoint, tmp_path, capsys):
    pytest.importorskip("timm")
    assert main(["export", str(checkpoint), "--layout", "timm", "--output-dir", str(tmp_path / "timm")]) == 0
    statistics = []
    for model in (checkpoint, tmp_path / "timm"):
        output = tmp_path / f"of_{model.name}"
        assert main(["evaluate", str(model), "--task", "knn", *SMALL, "--output-dir", str(output)]) == 0
        result = json.loads((output / "results.json").read_text())["results"][0]
        assert result["protocol"]["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
        statistics.append(result["metrics"])
    assert statistics[0] == statistics[1]
