"""Going on with a run on another number of GPUs."""

from videogn.errors import RunError


def share_batch(
    global_batch: int, *, world_size: int, clips_per_gpu: int, accumulation: int
) -> tuple[int, int]:
    """Clips per GPU and steps of accumulation that keep a run's clips per iteration.

    What is asked for is taken where it fits. Else the clips per GPU stay as many as they can, for
    BN takes its statistics over them, and accumulation makes up for GPUs that are missing.

    Args:
        global_batch: clips per iteration that the run began with; the order of its samples and
            its learning rate depend on it.

    Raises:
        RunError: so many GPUs cannot share it evenly.
    """
    if clips_per_gpu * accumulation * world_size == global_batch:
        return clips_per_gpu, accumulation
    if global_batch % world_size:
        divisors = [n for n in range(1, global_batch + 1) if global_batch % n == 0]
        raise RunError(
            f"the run has {global_batch} clips per iteration, which {world_size} GPUs cannot share "
            f"evenly; start it on {', '.join(map(str, divisors[:-1]))} or {divisors[-1]} of them, "
            "or choose another out="
            if len(divisors) > 1
            else f"the run has 1 clip per iteration; start it on 1 GPU, not {world_size}"
        )
    of_each = global_batch // world_size
    clips = max(n for n in range(1, min(clips_per_gpu, of_each) + 1) if of_each % n == 0)
    return clips, of_each // clips
