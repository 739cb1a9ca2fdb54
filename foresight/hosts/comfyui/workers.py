"""Foresight in raylight's worker processes, each of which has a ComfyUI and the model of its own.

raylight itself is not needed here: its RAY_ACTORS is a dict whose "workers" are Ray's actors, and these call a function
with their model.
"""

from collections.abc import Callable
from pathlib import Path

from ...engine import METHODS
from . import in_worker

FOLDER = str(Path(__file__).resolve().parents[3])  # of the pack


def apply_in_workers(ray_actors: dict, method: str, settings: dict) -> None:
    """Apply Foresight to the model of every worker; one that was applied before is replaced.

    Raises:
        ValueError: a setting is outside its limits, or these are no workers of raylight.
    """
    METHODS[method](**settings)  # what is wrong with it is said here, not in each worker
    _in_all(_workers_of(ray_actors), "model_function_runner", in_worker.apply, FOLDER, method, settings)


def newest_run_in(ray_actors: dict) -> list[dict]:
    """What the newest sampler run of the first worker did, as `runs_on` gives it; empty where there was none."""
    found = _in_all(_workers_of(ray_actors)[:1], "model_function_runner_get_values", in_worker.runs, FOLDER)
    return found[0][-1:]


def _workers_of(ray_actors: object) -> list:
    workers = ray_actors.get("workers") if isinstance(ray_actors, dict) else None
    if not workers or not all(hasattr(worker, "model_function_runner") for worker in workers):
        raise ValueError(
            f"these are no workers of raylight ({type(ray_actors).__name__}): connect the RAY_ACTORS of its loader"
        )
    return workers


def _in_all(workers: list, runner: str, function: Callable, *args) -> list:
    """What a function gives in every worker."""
    import ray

    ray.cloudpickle.register_pickle_by_value(in_worker)  # else it goes there by a name that nobody knows
    try:
        return ray.get([getattr(worker, runner).remote(function, *args) for worker in workers])
    finally:
        ray.cloudpickle.unregister_pickle_by_value(in_worker)
