"""What runs in an actor of Ray. It is sent there as code, so nothing is imported up here."""


class Actor:
    """raylight's worker as Ray starts it, on a CPU: ComfyUI, the model, and a group of processes."""

    def __init__(self, rank, size, store, comfyui, folder):
        import os
        import sys

        sys.path[:0] = [comfyui]
        sys.argv = sys.argv[:1]
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        from comfy.cli_args import args

        args.cpu = True
        torch.set_num_threads(1)
        dist = torch.distributed
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
        import comfy.samplers  # noqa: F401

        sys.path.append(folder)
        from models.demo.comfy import load

        self._folder, self.model = folder, load()
        self.model.model.diffusion_model._parallelism_config = True  # as if its tokens were split: all decide together

    def model_function_runner(self, fn, *args):
        self.model = fn(self.model, *args)

    def model_function_runner_get_values(self, fn, *args):
        return fn(self.model, *args)

    def sample(self, steps):
        import comfy.sample
        import torch

        from models.demo.prompt import embed

        noise = torch.randn((1, 12, 8, 16, 16), generator=torch.Generator().manual_seed(1))
        conds = [[[embed([text]), {}]] for text in ("red ball moving up", "")]
        with torch.inference_mode():
            zero = torch.zeros_like(noise)
            return comfy.sample.sample(
                self.model, noise, steps, 4.0, "euler", "simple", *conds, zero, disable_pbar=True
            )


def kinds(model):
    """What the newest run of a model did, evaluation by evaluation."""
    from foresight.hosts.comfyui import runs_on

    return [e["kind"] for e in runs_on(model)[-1]["evaluations"]]
