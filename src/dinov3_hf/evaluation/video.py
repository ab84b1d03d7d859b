"""Video classification by an attentive probe on the frozen patch tokens of frames (DINOv3, section 6.1.6)."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from ..data.columns import check_column, read_vocabulary
from ..data.sequences import Video, clip_frames, count_starts, even_starts, read_videos
from ..data.views import check_image_size
from ..errors import Refused
from ..terminal import progress_bar
from ..visualization.confusion import confusion_picture
from .bench import Bench
from .feature_store import Features
from .iou import confusion_matrix
from .labels import accuracy_by_class, hits_interval, most_frequent_hits
from .probe import step_generator, train_probe
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

NUM_BLOCKS, HEAD_WIDTH, MAX_HEADS = 4, 64, 16


class AttentiveProbe(nn.Module):
    """A transformer over the tokens of a clip: three blocks of self-attention, then cross-attention of a learnt query.

    Tokens are normalised by batch norm, projected to `width` and given fixed sinusoidal positions in time, height and
    width; attention runs over all tokens of all frames. `width` is a multiple of 64, the width of an attention head.
    The design is that of V-JEPA 2 (Assran et al., 2025), whose protocol DINOv3 follows.
    """

    def __init__(self, feature_width: int, num_frames: int, grid: tuple[int, int], num_classes: int, width: int):
        super().__init__()
        heads = width // HEAD_WIDTH
        self.norm = nn.BatchNorm1d(feature_width)
        self.project = nn.Linear(feature_width, width)
        self.register_buffer("positions", sinusoidal_positions((num_frames, *grid), width), persistent=False)
        blocks = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(NUM_BLOCKS - 1)
        ]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K] of clips [B,T,P,D]."""
        tokens = tokens.flatten(1, 2)
        tokens = self.project(self.norm(tokens.flatten(0, 1)).view_as(tokens)) + self.positions
        tokens = self.blocks(tokens)
        query = self.query.expand(len(tokens), 1, -1)
        pooled = (query + self.pool(query, tokens, tokens, need_weights=False)[0])[:, 0]
        return self.classify(pooled + self.mlp(pooled))


def sinusoidal_positions(lengths: tuple[int, ...], width: int) -> torch.Tensor:
    """Return sinusoidal encodings [N,width] of all positions of a grid; the axes share the channels equally."""
    num_waves = width // (2 * len(lengths))
    waves = 10_000 ** (-torch.arange(num_waves, dtype=torch.float64) / num_waves)
    parts = []
    for axis, length in enumerate(lengths):
        angles = torch.arange(length)[:, None] * waves
        part = torch.cat([angles.sin(), angles.cos()], dim=1)
        shape = [length if other == axis else 1 for other in range(len(lengths))]
        parts.append(part.view(*shape, -1).expand(*lengths, -1))
    positions = torch.cat(parts, dim=-1).flatten(0, -2).float()
    return F.pad(positions, (0, width - positions.shape[1]))


@dataclass(frozen=True)
class Clips:
    """The videos of a split: indices of their frames in the features, their classes [V], and their first rows."""

    features: dict[str, Features]
    places: list[list[int]]
    labels: torch.Tensor
    rows: list[int]
    skipped_images: int
    skipped_videos: int
    mixed_videos: int
    num_frames: int
    stride: int

    @classmethod
    def read(
        cls,
        bench: Bench,
        rows: "Dataset",
        image_column: str,
        videos: list[Video],
        labels: list[int],
        num_frames: int,
        stride: int,
        description: str,
    ) -> "Clips":
        """Extract features, and label each video with the majority class of its rows; `labels` has one class per row.

        Frames that cannot be decoded are skipped. Of equally frequent classes the smallest index wins.
        """
        features = bench.extract(rows, image_column, "patches", description)
        place_of = {row: place for place, row in enumerate(features["model"].kept)}
        readable = [video for video in videos if any(row in place_of for row in video.rows)]
        counts = [torch.tensor([labels[row] for row in video.rows]).bincount() for video in readable]
        return cls(
            features,
            [[place_of[row] for row in video.rows if row in place_of] for video in readable],
            torch.stack([count.argmax() for count in counts]),
            [video.rows[0] for video in readable],
            len(rows) - len(place_of),
            len(videos) - len(readable),
            sum(int(count.count_nonzero()) > 1 for count in counts),
            num_frames,
            stride,
        )

    def num_starts(self, video: int) -> int:
        return count_starts(len(self.places[video]), self.num_frames, self.stride)

    def tokens(self, name: str, clips: list[tuple[int, int]]) -> torch.Tensor:
        """Return the tokens [B,T,P,D] of clips, each given as (video, first frame)."""
        frames = [
            self.places[video][frame]
            for video, start in clips
            for frame in clip_frames(len(self.places[video]), self.num_frames, self.stride, start)
        ]
        return torch.stack([self.features[name][place] for place in frames]).unflatten(0, (len(clips), -1))

    def draw(self, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
        """Draw the clips of a training step, as (video, first frame), uniformly over videos and starts."""
        generator = step_generator(seed, step)
        videos = torch.randint(len(self.places), (batch_size,), generator=generator).tolist()
        shares = torch.rand(batch_size, generator=generator, dtype=torch.float64).tolist()
        return [(video, int(share * self.num_starts(video))) for video, share in zip(videos, shares, strict=True)]

    def spread(self, num_clips: int) -> list[tuple[int, int]]:
        """Return `num_clips` clips of every video, as (video, first frame), evenly spaced in time."""
        return [
            (video, start)
            for video in range(len(self.places))
            for start in even_starts(self.num_starts(video), num_clips)
        ]


def evaluate_video(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    label_column: str = "label",
    sequence_column: str = "sequence",
    frame_column: str = "frame",
    num_frames: int = 8,
    frame_stride: int = 1,
    num_clips: int = 3,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
) -> Result:
    """Measure the top-1 accuracy of an attentive probe on videos; baselines are random initialisation and raw pixels.

    A clip is `num_frames` frames, every `frame_stride`-th of a video (evenly spaced frames if the video is shorter),
    each a square crop. The probe is trained on clips at random times and tested on the middle clip, and on the mean
    probability of `num_clips` evenly spaced clips. A video's class is the majority class of its rows. The metrics hold
    top-1 (0..1) for each number of clips; "chance" always answers the most frequent class of `train`. "per_class",
    "hits" (by the videos' first rows) and the confusion matrix belong to the middle clip. Raises `Refused` for invalid
    settings or columns.
    """
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    settings = {"num_frames": num_frames, "frame_stride": frame_stride, "steps": steps, "batch_size": batch_size}
    for name, value in (*settings.items(), ("num_clips", num_clips)):
        if value < 1:
            raise Refused(f"{name}: got {value}, accepted: a whole number of at least 1")
    if not lr > 0:
        raise Refused(f"lr: got {lr}, accepted: above 0")
    for rows in (train, test):
        check_column(rows, image_column, "image_column")
    names, *index_of = read_vocabulary(train, test, label_column)
    videos = [read_videos(rows, sequence_column, frame_column) for rows in (train, test)]
    parts = {
        split: Clips.read(
            bench,
            rows,
            image_column,
            of_split,
            [index[value] for value in rows[label_column]],
            num_frames,
            frame_stride,
            f"video: {split} images",
        )
        for split, rows, of_split, index in zip(("train", "test"), (train, test), videos, index_of, strict=True)
    }
    learnt, tested = parts.values()
    # As wide as the network, for every encoder: no baseline gets a larger or smaller probe.
    width = HEAD_WIDTH * min(MAX_HEADS, max(1, round(bench.model.config.hidden_size / HEAD_WIDTH)))
    about = (image_column, label_column, sequence_column, frame_column, names, settings, lr, weight_decay)
    views = list(dict.fromkeys([1, num_clips]))
    predictions = {}
    for name, features in learnt.features.items():
        with torch.random.fork_rng():
            torch.manual_seed(bench.seed)
            head = AttentiveProbe(features[0].shape[1], num_frames, features.grids[0], len(names), width)
        head = head.to(bench.device)

        def loss_at(step: int, name: str = name, head: AttentiveProbe = head) -> torch.Tensor:
            clips = learnt.draw(batch_size, bench.seed, step)
            labels = learnt.labels[[video for video, _ in clips]].to(bench.device)
            return F.cross_entropy(head(learnt.tokens(name, clips).to(bench.device)), labels)

        train_probe(
            head,
            loss_at,
            torch.optim.AdamW(head.parameters(), lr, weight_decay=weight_decay),
            steps,
            checkpoint=bench.checkpoint("video", name, train._fingerprint, *about),
            description=f"video: probe of {name}",
            progress=bench.progress,
        )
        predictions[name] = {
            count: _probabilities(bench, head, tested, name, count, batch_size).argmax(1) for count in views
        }
    labels = tested.labels
    hits = {name: by_count[1] == labels for name, by_count in predictions.items()}
    reasons = {f"{split}: video without a readable frame": one.skipped_videos for split, one in parts.items()}
    return Result(
        task="video",
        protocol={
            "features": "final-normed patch tokens of every frame",
            "probe": f"batch norm, linear to width {width}, sinusoidal positions in time, height and width, "
            f"{NUM_BLOCKS} pre-norm transformer blocks of {width // HEAD_WIDTH} heads over the "
            "tokens of all frames, in the last of which a learnt query attends to them, linear to classes",
            "optimizer": f"AdamW, one-cycle to lr {lr:g}, weight decay {weight_decay:g}",
            **settings,
            "num_clips": num_clips,
            "clips": "num_frames frames of a video, every frame_stride-th; of a shorter video all, evenly spaced; in "
            "training at random times; in testing the middle one, or num_clips evenly spaced whose probabilities are "
            "averaged",
            "label": "the class that most of a video's frames have",
            "videos_of_several_classes": {split: one.mixed_videos for split, one in parts.items()},
            "augmentation": "none but the clip's time: features are computed once",
            "num_train": len(learnt.labels),
            "num_test": len(labels),
            "num_classes": len(names),
            "classes_not_in_train": [
                names[index] for index in sorted(set(labels.tolist()) - set(learnt.labels.tolist()))
            ],
            "preprocessing": asdict(bench.preprocessing),
            "seed": bench.seed,
            "raw_pixels": "the pixels of the patches, normalised as the network's input, flattened",
            "chance": "always the class most frequent in test: the best constant answer, never below a random one",
        },
        skipped_images={split: one.skipped_images for split, one in parts.items()},
        skipped_rows={reason: count for reason, count in reasons.items() if count},
        metrics=[
            {
                "metric": "top-1",
                "clips": count,
                **{name: _share(by_count[count] == labels) for name, by_count in predictions.items()},
                "chance": _share(most_frequent_hits(labels)),
                "interval": hits_interval(predictions["model"][count] == labels),
            }
            for count in views
        ],
        hits={"rows": tested.rows, **hits},
        pictures={
            "confusion": confusion_picture(confusion_matrix(predictions["model"][1], labels, len(names)), names)
        },
        details={
            "per_class": [
                {"class": line.pop("class"), "videos": line.pop("images"), **line}
                for line in accuracy_by_class(hits, labels, names)
            ],
        },
    )


@torch.inference_mode()
def _probabilities(
    bench: Bench, head: AttentiveProbe, videos: Clips, name: str, num_clips: int, batch_size: int
) -> torch.Tensor:
    """Return the mean probabilities [V,K] of `num_clips` clips of each video."""
    clips, probabilities = videos.spread(num_clips), []
    for start in progress_bar(
        range(0, len(clips), batch_size),
        desc=f"video: test clips, {name}",
        unit="batch",
        disable=not bench.progress,
    ):
        tokens = videos.tokens(name, clips[start : start + batch_size])
        probabilities.append(head(tokens.to(bench.device)).double().softmax(1).cpu())
    return torch.cat(probabilities).unflatten(0, (-1, num_clips)).mean(1)


def _share(hits: torch.Tensor) -> float:
    return hits.double().mean().item()
