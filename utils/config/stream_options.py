"""Stream options: the flags of how data becomes a stream of tasks, and of how its images are seen.

Nothing here imports torch, so `--help` is quick.
"""

from dataclasses import dataclass

from engram.utils.config.options import OptionSet, option

UNSCORED = "unscored"  # of --exclude
MAX_SIDE = 4096  # of what --img_size makes: 48 MiB an image


@dataclass(frozen=True)
class StreamOptions(OptionSet):
    """How the data becomes a stream of tasks."""

    n_tasks: int = option(5, "number of tasks", ge=1)
    permute_classes: bool = option(False, "class order permuted by the seed, as in the memorization paper")
    class_order: tuple[int, ...] = option(
        (), "classes in the stream's order, e.g. 1,2,3,4,5,6,7,8,9,0 (instead of --permute_classes)", ge=0
    )
    validation: float = option(
        0.0, "hold out this %% of each class's training data and evaluate on it; the test set is not read",
        ge=0, lt=100,
    )  # fmt: skip
    half_classes_in_first_task: bool = option(
        False, "the first task has half of the classes, the others share the rest"
    )
    exclude: str | None = option(
        None, "leave training samples out: .npy of positions or a mask, memorization.intervention's file, or "
        "unscored: those without a score in --memorization_scores",
    )  # fmt: skip
    label_perc: float = option(
        1.0, "share of each class's training samples in a task that have a label, drawn by the seed; the "
        "others are left out", gt=0, le=1,
        aliases=("label_perc_by_task", "label_perc_by_class", "lpt", "lpc"),
    )  # fmt: skip
    noise_rate: float = option(
        0.0, "share of each class's training samples that get the label of another class of their task, "
        "drawn by the seed", ge=0, le=1,
    )  # fmt: skip
    multi_head: bool = option(False, "one head per task: true task-incremental training")
    img_size: int | None = option(
        None, "bring every image to this side before anything else (shorter side scaled, centre cut): once "
        "for image files, on the device for other data. A pre-trained network then takes them as they are; "
        "no --input_size is needed, which enlarges images in the network, after augmentation (default: as "
        "they are)", ge=8, le=MAX_SIDE,
    )  # fmt: skip
    test_resize: int = option(
        0, "scale the shorter side to this before the centre of --img_size is cut, e.g. 256 for 224; of "
        "image files this square is kept, from which random_resized_crop cuts; 0: --img_size itself",
        ge=0, le=MAX_SIDE,
    )  # fmt: skip
    augment: str | None = option(
        None, "of training images: none; crop_flip, windows of the image padded by an eighth; or "
        "random_resized_crop, boxes of --crop_scale of its area and of ratio 3/4 to 4/3, scaled (bicubic); "
        "both mirrored or not (default: the benchmark's)",
        choices=("none", "crop_flip", "random_resized_crop"),
    )  # fmt: skip
    crop_scale: tuple[float, ...] = option(
        (0.08, 1.0), "smallest and largest share of an image's area that random_resized_crop cuts", gt=0, le=1
    )
    pixel_mean: tuple[float, ...] = option(
        (), "mean that is subtracted from pixels in [0, 1], one or one a channel (default: the benchmark's)"
    )
    pixel_std: tuple[float, ...] = option(
        (), "deviation that they are then divided by (default: the benchmark's)", gt=0
    )
    scenario: str | None = option(
        None,
        "how tasks use the outputs: class-il, each its own; domain-il, all the same; task-il, a head each "
        "(default: the benchmark's; task-il is --multi_head)",
        choices=("class-il", "domain-il", "task-il"),
    )  # fmt: skip
    train_classes: str = option(
        "all", "class-il: classes of the training softmax: all of the stream (as in mammoth), those seen so "
        "far (van de Ven & Tolias 2019), or the sample's own task's; methods of prompts choose task",
        choices=("all", "seen", "task"),
    )  # fmt: skip
