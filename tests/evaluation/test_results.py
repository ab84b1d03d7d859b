"""What an evaluation writes, the table in a model card, and `dinov3 compare`."""

import json
import math
from dataclasses import replace

import pytest
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from dinov3_hf.cli import main
from dinov3_hf.evaluation.cards import update_model_card
from dinov3_hf.evaluation.result import Result
from dinov3_hf.evaluation.results import (
    compare_results,
    drop_no_metrics,
    format_table,
    summary,
    verdict,
    write_results,
)


# What is no evaluation: other keys, other types, no JSON at all.
OTHER_JSON = (
    '{"results": [{"a": 1}]}',
    "[]",
    "3",
    '{"results": 3}',
    '{"results": [[1]]}',
    '{"results": [{"task": "knn", "metrics": [{"metric": 1}]}]}',
    '{"results": [{"task": "knn", "metrics": [{"metric": "top-1", "model": "high"}]}]}',
    "{",
)


def record(model=0.5, task="knn", k=10, image_size=48, date="2025-01-02T03:04:05", **more):
    metric = {"metric": "top-1", "k": k, "model": model, "random_init": 0.2, "chance": 0.1}
    data = {"source": "some/where/birds", "test": {"split": "test", "images": 7, "fingerprint": "ab"}}
    fields = {"skipped_images": {"test": 0}, "data": data, "hub_task": "image-classification"} | more
    result = Result(task, {"image_size": image_size, "num_test": 7}, [metric], **fields)
    return {"results": [result], "model": {"path": "mine"}, "date": date}


def written(record):
    """What `read_results` gives of a record."""
    return record | {"results": [result.as_dict() for result in record["results"]]}


def test_files_and_pictures(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * index, 0, 0)) for index in range(3)]
    pictures = {"a map": Image.new("RGB", (4, 4)), "moving": frames, "curve, k=3": frames[0]}
    two = record(pictures=pictures, hits={"model": [1]}, details={"bad": float("nan")})
    two["results"].append(replace(two["results"][0], pictures={"a map": frames[0]}))
    paths = write_results(two, tmp_path / "out")
    names = ["knn-a-map.png", "knn-moving.gif", "knn-curve-k-3.png", "knn-a-map-2.png"]
    assert [path.name for path in paths] == names and all(path.is_file() for path in paths)
    assert Image.open(paths[1]).n_frames == 3
    found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert found[0]["pictures"] == dict(zip(pictures, names, strict=False)) and "hits" not in found[0]
    assert found[0]["bad"] is None
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| knn | top-1, k=10 | birds test (7 images) | 0.5000 |  | 0.2000 |  | 0.1000 | 2025-01-02 |" in table


def test_card_table_grows_and_replaces_what_is_measured_again(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\ntags: [x]\n---\n\n# Mine\n\nText.\n")
    update_model_card(card, record(0.5))
    update_model_card(card, record(0.6, k=20))
    card.write_text(card.read_text() + "\n## Licence\n\nNone.\n")
    update_model_card(card, record(0.7, date="2025-02-02"))
    text = card.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| knn")]
    assert len(rows) == 2 and "k=20" in rows[0] and "0.6000" in rows[0] and "0.7000" in rows[1]
    assert text.startswith("---\ntags") and text.count("## Evaluation") == 1 and text.endswith("## Licence\n\nNone.\n")
    assert "Text.\n\n## Evaluation\n\n| task |" in text


def test_card_metadata_is_what_the_hub_reads(tmp_path):
    card = tmp_path / "mine" / "README.md"
    card.parent.mkdir()
    card.write_text("# Mine\n")
    update_model_card(card, record(0.5))
    update_model_card(card, record(0.25, task="linear"))
    update_model_card(card, record(float("nan"), task="video"))
    data = ModelCard.load(card, ignore_metadata_errors=True).data
    first, second = data.eval_results
    assert data.model_name == "mine" and (first.metric_config, second.metric_config) == ("knn", "linear")
    assert (first.task_type, first.dataset_name, first.dataset_split) == ("image-classification", "birds", "test")
    assert (first.metric_type, first.metric_name, first.metric_value) == ("top_1", "top-1, k=10", 0.5)
    assert first.metric_args == {"k": 10, "random_init": 0.2, "chance": 0.1, "images": 7, "date": "2025-01-02"}
    # Measures of others stay, and are no lines of our table.
    other = EvalResult("image-classification", "cats", "Cats", "accuracy", 0.9)
    loaded = ModelCard.load(card, ignore_metadata_errors=True)
    loaded.data.eval_results.append(other)
    loaded.save(card)
    update_model_card(card, record(0.6))
    found = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results
    assert sorted(item.metric_value for item in found) == [0.25, 0.6, 0.9] and "Cats" in card.read_text()
    assert [line.split(" | ")[0] for line in card.read_text().splitlines() if line.startswith("| ")][2:] == [
        "| linear",
        "| knn",
    ]


def test_comparison_sets_models_side_by_side_and_names_differences():
    records = {"a": written(record(0.5)), "b": written(record(0.6, image_size=96))}
    lines, remarks = compare_results(records)
    assert lines[0] == ["", "a", "b", "random init", "chance"]
    assert lines[1:] == [["knn top-1, k=10 (birds)", "0.5000", "0.6000", "0.2000", "0.1000"]]
    assert remarks == ["knn (birds) differs in image_size: a: 48; b: 96"]
    records["b"]["results"][0]["metrics"][0]["random_init"] = 0.25
    records["c"] = written(record(0.1, task="linear"))
    lines, _ = compare_results(records)
    assert lines[0] == ["", "a", "b", "c", "random init, a", "random init, b", "random init, c", "chance"]
    assert lines[2] == ["linear top-1, k=10 (birds)", "-", "-", "0.1000", "-", "-", "0.2000", "0.1000"]


def with_interval(record, ends):
    record["results"][0].metrics[0]["interval"] = ends
    return record


def test_intervals_are_printed_written_and_compared(tmp_path, capsys):
    new = with_interval(record(0.413), [0.37, 0.456])
    new["results"][0].metrics.append({"metric": "top-5", "model": 0.9})
    head, first, second = format_table(new["results"]).splitlines()
    assert head.split() == ["model", "95%", "interval", "random", "init", "chance", "verdict"]
    assert first.split("k=10")[1].split()[:5] == ["0.4130", "[0.370,", "0.456]", "0.2000", "0.1000"]
    assert first.endswith("better than random init by 0.2130")
    assert first.index("0.4130") == second.index("0.9000") and head.index("95%") > first.index("0.4130")
    write_results(new, tmp_path / "new")
    assert "| 0.4130 | [0.370, 0.456] | 0.2000 |" in (tmp_path / "new" / "results.md").read_text()
    card = tmp_path / "README.md"
    card.write_text("# Mine\n")
    update_model_card(card, new)
    assert "| 0.4130 | [0.370, 0.456] | 0.2000 |" in card.read_text() and "| 0.9000 |  |" in card.read_text()
    # Results of before intervals still compare.
    write_results(record(0.5), tmp_path / "old")
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "0.5000  0.4130 [0.370, 0.456]" in capsys.readouterr().out
    for ends in ("wide", [1], 3):
        odd = written(with_interval(record(0.5), ends))
        (tmp_path / "odd.json").write_text(json.dumps(odd))
        assert main(["compare", str(tmp_path / "odd.json"), str(tmp_path / "new")]) == 2
        assert "is no evaluation" in capsys.readouterr().err


def test_metrics_that_an_answer_without_looking_wins_are_no_metrics():
    metrics = [
        {"metric": "mIoU", "model": 1.0, "chance": 1.0},
        {"metric": "RMSE", "model": 0.1, "chance": 0.0, "lower_is_better": True},
        {"metric": "gap", "model": 0.1, "chance": 1.0, "lower_is_better": True},
        {"metric": "accuracy", "model": 1.0, "chance": 0.999},
        {"metric": "other", "model": 1.0},
    ]
    result = drop_no_metrics(Result("depth", {}, list(metrics)))
    assert [metric["metric"] for metric in result.metrics] == ["gap", "accuracy", "other"]
    assert set(result.as_dict()["no_metrics"]) == {"mIoU", "RMSE"}
    assert "scores 1 on these rows" in result.details["no_metrics"]["mIoU"]
    with pytest.raises(ValueError, match="depth: mIoU: an answer without looking at the images scores 1"):
        drop_no_metrics(Result("depth", {}, metrics[:2]))
    assert "no_metrics" not in drop_no_metrics(Result("depth", {}, metrics[2:])).details


def test_compare_command(tmp_path, capsys):
    for name, value in (("x/first", 0.5), ("x/second", 0.6), ("y/second", 0.7)):
        write_results(record(value), tmp_path / name)
    folders = [str(tmp_path / name) for name in ("x/first", "x/second")]
    assert main(["compare", *folders]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["first", "second", "random", "init", "chance"]
    assert shown[1].split() == ["knn", "top-1,", "k=10", "(birds)", "0.5000", "0.6000", "0.2000", "0.1000"]
    files = [*folders, str(tmp_path / "y" / "second" / "results.json")]
    assert main(["compare", *files, "--markdown", "--output-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "|  | x/first | x/second | y/second | random init | chance |" in shown
    assert "| knn top-1, k=10 (birds) | 0.5000 | 0.6000 | 0.7000 |" in (tmp_path / "compare.md").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "results: got [], accepted: results.json files of dinov3 evaluate"),
        (["nowhere"], "results: nothing at 'nowhere', accepted: a results.json or the folder of one"),
        *(([f"{{tmp}}/other{number}.json"], f"other{number}.json is no evaluation") for number in range(1, 8)),
        (["{tmp}/other.json"], "other.json is no evaluation, accepted: what dinov3 evaluate writes"),
        (["{tmp}/out", "--names", "a", "b"], "names: got ['a', 'b'], accepted: 1 different names"),
    ],
)
def test_compare_refuses_in_one_line(arguments, message, tmp_path, capsys):
    for number, text in enumerate(OTHER_JSON):
        (tmp_path / f"other{number or ''}.json").write_text(text)
    write_results(record(), tmp_path / "out")
    assert main(["compare", *(text.replace("{tmp}", str(tmp_path)) for text in arguments)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    "metric, expected",
    [
        ({"model": 0.5, "random_init": 0.2, "raw_pixels": 0.3, "chance": 0.1}, "better than raw pixels by 0.2000"),
        ({"model": 0.5, "random_init": 0.7, "raw_pixels": 0.3, "chance": 0.1}, "worse than random init by 0.2000"),
        ({"model": 0.5, "random_init": 0.9, "chance": 0.7, "lower_is_better": True}, "better than chance by 0.2000"),
        ({"model": 0.5, "chance": 0.50001}, "equal to chance"),
        ({"model": 0.5, "chance": math.nan}, ""),
        ({"model": 0.5, "chance": None, "random_init": 0.4}, "better than random init by 0.1000"),
        ({"model": 0.5}, ""),
        ({"model": None, "chance": 0.1}, ""),
        ({"random_init": 0.5, "chance": 0.1}, ""),
        ({"model": 0.5, "chance": 0.45, "interval": [0.4, 0.6]}, "about equal to chance"),
        ({"model": 0.5, "chance": 0.35, "random_init": 0.6, "interval": [0.4, 0.6]}, "about equal to random init"),
        ({"model": 0.5, "chance": 0.35, "interval": [0.4, 0.6]}, "better than chance by 0.1500"),
        ({"model": 0.5, "chance": 0.65, "interval": [0.4, 0.6]}, "worse than chance by 0.1500"),
        ({"model": 0.5, "chance": 0.5, "interval": [0.4, 0.6]}, "equal to chance"),
        ({"model": 0.5, "chance": 0.55, "lower_is_better": True, "interval": [0.4, 0.6]}, "about equal to chance"),
        ({"model": 0.5, "chance": 0.45, "interval": None}, "better than chance by 0.0500"),
    ],
)
def test_a_verdict_names_the_best_baseline(metric, expected):
    assert verdict({"metric": "top-1", **metric}) == expected


def test_the_summary_counts_metrics_with_a_verdict():
    metrics = [
        {"metric": "a", "model": 2, "chance": 1},
        {"metric": "b", "model": 1, "chance": 2},
        {"metric": "c", "model": 1},
    ]
    results = [Result("knn", {}, metrics)]
    assert summary(results) == "the model is better than all baselines in 1 of 2 metrics"
    about = [Result("knn", {}, [*metrics, {"metric": "d", "model": 2, "chance": 1, "interval": [0.5, 3]}])]
    assert summary(about).endswith("in 1 of 3 metrics, about equal to the best of them in 1")
    assert summary([Result("knn", {}, metrics[2:])]) == ""
