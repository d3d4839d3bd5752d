from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.config import TrainConfig
from videogn.engine.optim import StepSchedule
from videogn.engine.plan import TrainPlan, duration, make_plan
from videogn.errors import ConfigError

KINETICS = 234_643


def text_of(plan: TrainPlan) -> str:
    return "\n".join(plan.lines())


def line_of(plan: TrainPlan, name: str) -> str:
    (line,) = (line for line in plan.lines() if line.startswith(f"{name} "))
    return line


def test_kinetics_numbers_of_the_released_recipe() -> None:
    plan = make_plan(TrainConfig(), num_videos=KINETICS, world_size=8)
    assert plan.global_batch == 64
    assert plan.schedule.learning_rate == 0.01
    assert isinstance(plan.schedule, StepSchedule)
    assert plan.schedule.milestones == (150_000, 300_000)
    assert round(plan.epochs) == 109
    assert list(plan.lines()) == [
        "batch       8 clips per GPU x 8 GPUs = 64 clips",
        "lr          0.01 x 64/64 = 0.01, x 0.1 at 150,000, 300,000",
        "warm-up     none",
        "iterations  400,000 = 25,600,000 clips = 109.1 epochs of 234,643 videos",
    ]


def test_fewer_gpus_scale_the_rate_and_say_what_happens_to_the_epochs() -> None:
    plan = make_plan(TrainConfig(), num_videos=KINETICS, world_size=1)
    assert plan.schedule.learning_rate == pytest.approx(0.01 / 8)
    assert "train.iterations=3200000" in line_of(plan, "note")
    assert line_of(plan, "batch") == "batch       8 clips per GPU x 1 GPU = 8 clips"


def test_accumulation_is_written_out_and_scales_the_rate() -> None:
    plan = make_plan(TrainConfig(accumulation=2), num_videos=KINETICS, world_size=8, norm="bn")
    assert list(plan.lines())[:3] == [
        "batch       8 clips per GPU x 8 GPUs x 2 steps of accumulation = 128 clips",
        "BN's batch  8 clips, each GPU's own; accumulation does not enlarge it",
        "lr          0.01 x 128/64 = 0.02, x 0.1 at 150,000, 300,000",
    ]
    assert plan.epochs == pytest.approx(2 * 109.1, rel=1e-3)


IMAGENET = 1_281_167


@pytest.mark.parametrize(("images", "iterations"), [(32, 500_500), (16, 1_001_000), (2, 8_007_300)])
def test_epochs_follow_the_batch_as_in_the_paper(images, iterations) -> None:
    # 100 epochs of 8 GPUs; 5,005 iterations an epoch at 32 images each.
    train = TrainConfig(clips_per_gpu=images, base_lr=0.1, base_batch=256, epochs=100, val_epochs=1)
    plan = make_plan(
        replace(train, lr_milestones=(0.3, 0.6, 0.9)), num_videos=IMAGENET, world_size=8
    )
    assert plan.iterations == iterations
    assert plan.val_interval * 100 == iterations
    assert isinstance(plan.schedule, StepSchedule)
    assert plan.schedule.milestones == tuple(iterations * tenths // 10 for tenths in (3, 6, 9))
    assert plan.schedule.learning_rate == pytest.approx(0.1 * images / 32)
    assert "note" not in text_of(plan)


@given(st.integers(1, 10_000), st.integers(1, 64), st.floats(0.01, 50))
def test_validations_of_epochs_end_with_the_last_iteration(videos, clips, epochs) -> None:
    train = TrainConfig(clips_per_gpu=clips, epochs=epochs, val_epochs=epochs)
    plan = make_plan(train, num_videos=videos, world_size=1)
    assert plan.val_interval == plan.iterations >= 1


def test_warm_up_longer_than_the_epochs_is_refused() -> None:
    train = TrainConfig(clips_per_gpu=10, epochs=2, warmup_iterations=20)
    with pytest.raises(ConfigError, match=r"below the 20 iterations of train\.epochs=2"):
        make_plan(train, num_videos=100, world_size=1)


@pytest.mark.parametrize(
    ("norm", "batch"),
    [
        ("bn", "BN's batch  4 clips, each GPU's own"),
        ("sync_bn", "BN's batch  32 clips, those of all GPUs in one step"),
    ],
)
def test_batch_of_bn_stands_apart_from_the_batch(norm, batch) -> None:
    plan = make_plan(TrainConfig(clips_per_gpu=4), num_videos=100, world_size=8, norm=norm)
    assert batch in list(plan.lines())


def test_a_single_clip_is_one_clip() -> None:
    plan = make_plan(TrainConfig(clips_per_gpu=1), num_videos=9, world_size=1, norm="bn")
    assert line_of(plan, "batch") == "batch       1 clip per GPU x 1 GPU = 1 clip"
    assert "BN's batch  1 clip, each GPU's own" in list(plan.lines())


@pytest.mark.parametrize("norm", ["gn", "ln", "in", "frozen_bn", "none", None])
def test_other_norms_have_no_batch(norm) -> None:
    plan = make_plan(TrainConfig(clips_per_gpu=2), num_videos=100, world_size=2, norm=norm)
    assert plan.as_dict()["bn_batch"] is None
    assert "BN" not in text_of(plan)


@pytest.mark.parametrize(
    ("norm", "clips", "world_size", "hinted"),
    [
        ("bn", 4, 8, True),
        ("bn", 7, 8, True),
        ("bn", 8, 1, False),
        ("sync_bn", 4, 1, True),
        ("sync_bn", 4, 2, False),
        ("gn", 4, 1, False),
    ],
)
def test_hint_of_the_paper_where_bn_has_few_clips(norm, clips, world_size, hinted) -> None:
    train = TrainConfig(clips_per_gpu=clips, accumulation=4)
    plan = make_plan(train, num_videos=100, world_size=world_size, norm=norm)
    text = text_of(plan)
    # Table 8: BN and GN at 8 and 4 clips of 32 frames, and at 4 clips of 64 frames.
    for part in ("73.3 to 72.1", "73.0 to 72.8", "BN had 73.3, GN 74.5", "model.norm=gn"):
        assert (part in text) == hinted


@pytest.mark.parametrize(
    ("norm", "images", "hinted"),
    [("bn", 2, True), ("bn", 8, True), ("bn", 16, False), ("gn", 2, False)],
)
def test_hint_of_the_paper_where_bn_has_few_images(norm, images, hinted) -> None:
    train = TrainConfig(clips_per_gpu=images, base_batch=256)
    plan = make_plan(train, num_videos=100, world_size=8, norm=norm, of_images=True)
    text = text_of(plan)
    # Table 2: BN and GN at 32 and at 2 images.
    for part in ("23.6 to 34.7", "24.1 to 24.1", "model.norm=gn"):
        assert (part in text) == hinted
    assert "Kinetics" not in text
    # 0.01 happens to be the rate of the video recipe, which is not the one of images.
    assert "not the recipe's" not in text


def test_a_batch_that_is_changed_without_the_rate_is_noted() -> None:
    plan = make_plan(TrainConfig(base_batch=8), num_videos=1000, world_size=1)
    note = line_of(plan, "note")
    assert note == (
        "note        train.base_batch=8 is not the recipe's, train.base_lr is: the recipe's 0.01 "
        "at 64 clips would be 0.00125 at 8, here it is 0.01"
    )


def test_the_recipes_own_rate_is_never_called_scaled_by_hand() -> None:
    plan = make_plan(TrainConfig(base_batch=8), num_videos=1000, world_size=8)
    assert "would be 0.01 at 64, here it is 0.08" in text_of(plan)
    assert "by itself" not in text_of(plan)


def test_a_rate_that_is_changed_without_the_batch_is_noted() -> None:
    plan = make_plan(TrainConfig(base_lr=0.03), num_videos=1000, world_size=8)
    assert line_of(plan, "note").endswith("0.01 at 64 clips would be 0.01 at 64, here it is 0.03")
    assert "by itself" not in text_of(plan)


def test_a_rate_that_is_scaled_by_hand_and_again_is_noted() -> None:
    plan = make_plan(TrainConfig(base_lr=0.00125), num_videos=1000, world_size=1)
    assert "would be 0.00125 at 8, here it is 0.00015625" in text_of(plan)
    assert "scaled to the batch by itself: train.base_lr=0.01 gives 0.00125" in text_of(plan)


def test_a_recipe_of_its_own_has_no_note() -> None:
    train = TrainConfig(base_lr=0.005, base_batch=32, clips_per_gpu=4)
    assert "note" not in text_of(make_plan(train, num_videos=1000, world_size=8))


def test_a_cosine_is_described_by_its_ends() -> None:
    train = TrainConfig(iterations=1000, schedule="cosine", warmup_iterations=50)
    plan = make_plan(train, num_videos=1000, world_size=16)
    # 0.02 (1 + cos(pi 999 / 1000)) / 2
    assert line_of(plan, "lr") == "lr          0.01 x 128/64 = 0.02, a cosine down to 4.9e-08"
    assert line_of(plan, "warm-up") == "warm-up     50 iterations from 0.002"
    found = plan.as_dict()
    assert found["schedule"] == "cosine"
    assert found["learning_rate"] == 0.02
    assert "lr_milestones" not in found


counts = st.integers(1, 1000)


@given(
    clips=counts,
    world_size=counts,
    accumulation=st.integers(1, 64),
    base_batch=counts,
    base_lr=st.floats(1e-6, 10),
    iterations=st.integers(1, 10**7),
    num_videos=st.integers(1, 10**7),
    norm=st.sampled_from([None, "bn", "sync_bn", "gn"]),
)
def test_numbers_of_any_plan_agree(
    clips, world_size, accumulation, base_batch, base_lr, iterations, num_videos, norm
) -> None:
    train = TrainConfig(
        clips_per_gpu=clips,
        accumulation=accumulation,
        base_batch=base_batch,
        base_lr=base_lr,
        iterations=iterations,
    )
    plan = make_plan(train, num_videos=num_videos, world_size=world_size, norm=norm)
    found = plan.as_dict()
    batch = clips * world_size * accumulation
    assert found["global_batch"] == batch
    assert found["learning_rate"] / batch == pytest.approx(base_lr / base_batch)
    assert found["epochs"] * num_videos == pytest.approx(iterations * batch)
    # The same clips an update, however they come together, have the same rate and epochs.
    alone = replace(train, clips_per_gpu=batch, accumulation=1)
    other = make_plan(alone, num_videos=num_videos, world_size=1).as_dict()
    same = ("global_batch", "learning_rate", "epochs", "lr_milestones")
    assert [found[key] for key in same] == [other[key] for key in same]
    # Nothing that only grows the batch of an update is seen by BN.
    once = replace(train, accumulation=1)
    once = make_plan(once, num_videos=num_videos, world_size=world_size, norm=norm)
    assert found["bn_batch"] == once.as_dict()["bn_batch"]
    assert line_of(plan, "batch").endswith(f" = {batch} clip{'s' * (batch > 1)}")


def test_end_is_a_date_and_a_time() -> None:
    plan = make_plan(TrainConfig(iterations=36_000), num_videos=1000, world_size=1)
    now = datetime(2026, 12, 31, 20, 0)
    assert plan.ends_line(0.5, now) == (
        "ends        2027-01-01 01:00, in 5 h 0 min at 0.50 s per iteration, before validation"
    )
    assert plan.ends_line(0.5, now, done=35_880).startswith(
        "ends        2026-12-31 20:01, in 1 min"
    )
    zoned = now.replace(tzinfo=timezone(timedelta(hours=2), "CEST"))
    assert "2027-01-01 01:00 CEST, in" in plan.ends_line(0.5, zoned)


@given(st.integers(1, 10**9), st.floats(0, 1e6), st.datetimes(datetime(1970, 1, 2)))
def test_end_is_now_and_what_is_left(iterations, pace, now) -> None:
    plan = make_plan(TrainConfig(iterations=iterations), num_videos=1000, world_size=1)
    line = plan.ends_line(pace, now)
    if "after the year 9999" in line:
        assert now.timestamp() + iterations * pace > datetime(9999, 12, 31).timestamp()
    else:
        shown = datetime.strptime(line[12:28], "%Y-%m-%d %H:%M")
        left = (shown - now).total_seconds() - iterations * pace
        assert -60.01 < left < 1e-3 + 1e-9 * iterations * pace


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (90, "2 min"),
        (3600, "1 h 0 min"),
        (5 * 3600 + 600, "5 h 10 min"),
        (47 * 3600, "47 h 0 min"),
        (76 * 3600, "3 d 4 h"),
    ],
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text
