import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foresight import PaperConfig
from foresight.engine import Offload, Run
from support import toy

# Warmup of four evaluations in which both blocks change by 1: lambda = 1 + 0.1 + 0.01 = 1.11; gamma 0.5: limit 0.555.
WARMUP = [[0, 10], [1, 11], [2, 12], [3, 13]]
GAMMA_HALF = {"warmup_steps": 4, "threshold": 0.5, "sample_rows": 0}


def kinds(stats):
    return [evaluation.kind for evaluation in stats.evaluations]


def test_a_block_that_changed_little_is_reused_and_takes_the_ones_before_it_along():
    config = PaperConfig(reuse_interval=2, **GAMMA_HALF)
    # full: block 0 changes by 1 (1 > 0.555), block 1 by 0.5 (0.25 <= 0.555), so the prefix is both blocks
    seen, stats = toy.play(config, [*WARMUP, [4, 13.5], [99, 99], [5, 14], [99, 99]], steps=8)
    assert seen[5] == [0, 13.5]  # block 0 let its input through, block 1 gave C_1
    assert seen[7] == [0, 14]
    assert kinds(stats) == ["warmup"] * 4 + ["full", "reuse"] * 2
    assert (stats.reused, stats.total) == (4, 16)
    assert stats.block_speedup == pytest.approx(16 / 12)
    # delta over gamma * lambda: 1 / 0.555 and 0.25 / 0.555
    assert stats.evaluations[4].ratio == pytest.approx([1.8018, 0.45045], rel=1e-4)
    assert stats.evaluations[5].computed == [0, 0] and stats.evaluations[5].reused == [1, 1]


def test_only_the_prefix_is_reused_and_the_blocks_after_it_run():
    config = PaperConfig(reuse_interval=2, **GAMMA_HALF)
    # full: block 0 changes by 0.5 (qualifies), block 1 by 1 (does not)
    seen, stats = toy.play(config, [*WARMUP, [3.5, 14], [99, 15]], steps=6)
    assert seen[5] == [3.5, 15]
    assert stats.evaluations[5].reused == [1, 0] and stats.evaluations[5].computed == [0, 1]


def test_the_change_is_taken_against_the_last_computed_value():
    config = PaperConfig(reuse_interval=2, **GAMMA_HALF)
    # block 0 is reused in evaluation 5; in evaluation 6 it is 4.4: 0.9 from C_0 = 3.5 (0.81 > 0.555), so it is not
    # reused in 7
    seen, stats = toy.play(config, [*WARMUP, [3.5, 14], [99, 15], [4.4, 17], [4.5, 18]], steps=8)
    assert seen[7] == [4.5, 18]
    # block 1 ran in evaluation 5 as well: 17 is 2 from 15, 4 / 0.555 = 7.2
    assert stats.evaluations[6].ratio == pytest.approx([1.459, 7.207], rel=1e-3)


@pytest.mark.parametrize(("interval", "pattern"), [(2, "WWWWCRCRCR"), (3, "WWWWCRRCRR"), (4, "WWWWCRRRCR")])
def test_every_rth_evaluation_is_full(interval, pattern):
    config = PaperConfig(reuse_interval=interval, **GAMMA_HALF)
    outputs = [*WARMUP, *([3 + 0.1 * i, 13 + 0.1 * i] for i in range(6))]
    seen, stats = toy.play(config, outputs, steps=10)
    assert "".join({"warmup": "W", "full": "C", "reuse": "R"}[kind] for kind in kinds(stats)) == pattern
    computed = [value for (_, value), row in zip(outputs, seen, strict=True) if row[1] == pytest.approx(value)]
    assert len(computed) == 10 - pattern.count("R")


def test_a_reuse_evaluation_pushes_the_prefix_deeper():
    config = PaperConfig(reuse_interval=3, **GAMMA_HALF)
    # full (4): only block 0 qualifies. reuse (5): block 1 is computed, 14 -> 14.5 is 0.25, qualifies: the slot now
    # holds it
    seen, stats = toy.play(config, [*WARMUP, [3.5, 14], [99, 14.5], [99, 99]], steps=7)
    assert seen[5] == [3.5, 14.5]
    assert seen[6] == [0, 14.5]
    assert stats.evaluations[6].reused == [1, 1]


def test_a_full_evaluation_starts_over():
    config = PaperConfig(reuse_interval=2, **GAMMA_HALF)
    # in evaluation 6 nothing qualifies (both jump by 5), so evaluation 7 must not fall back on evaluation 4's slot
    seen, _ = toy.play(config, [*WARMUP, [3.1, 13.1], [99, 99], [8, 18], [9, 19]], steps=8)
    assert seen[7] == [9, 19]


def test_two_warmup_evaluations_give_one_change():
    config = PaperConfig(warmup_steps=2, threshold=0.5, sample_rows=0)
    # lambda = 1, limit 0.5: a change of 0.6875 (0.473) qualifies, one of 0.75 (0.5625) does not
    assert toy.play(config, [[0], [1], [1.6875], [99]], steps=4)[0][3] == [1.6875]
    assert toy.play(config, [[0], [1], [1.75], [99]], steps=4)[0][3] == [99]


@pytest.mark.parametrize(
    ("config", "steps", "reason"),
    [
        (PaperConfig(warmup_steps=1), 20, "warmup_steps is 1, which leaves no change"),
        (
            PaperConfig(),
            4,
            "at most 0 of 4 steps can be reused: 3 are warmup, and with reuse_interval 2 the rest is computed in full",
        ),
        (PaperConfig(threshold=0), 20, "threshold is 0"),
        (PaperConfig(reuse_interval=1), 20, "reuse_interval is 1"),
    ],
)
def test_a_run_that_cannot_gain_says_so_and_stores_nothing(config, steps, reason):
    outputs = [[float(e)] for e in range(steps)]
    seen, stats = toy.play(config, outputs, steps=steps)
    assert seen == outputs
    assert stats.inactive.startswith(reason) and stats.summary().startswith(f"inactive: {reason}")
    assert stats.peak_bytes == 0


def run_streams(net, config, evaluations, grouping, rows=1):
    """`grouping(evaluation)` gives the calls of an evaluation as lists of streams.

    Outputs by evaluation and stream, first blocks.
    """
    run = Run(config, steps=evaluations)
    outputs, starts = [], []
    for evaluation in range(evaluations):
        run.begin_evaluation()
        outputs.append({})
        starts.append([])
        for names in grouping(evaluation):
            x = (torch.cat([net.input(evaluation, rows, 0.05 * "ab".index(name)) for name in names]),)
            net.ran.clear()
            blocks = [lambda x, block=block: (net.block(block, x[0]),) for block in range(len(net.weights))]
            x = toy.one_call(run, x, blocks, names)[-1]
            starts[-1].append(net.ran[0] if net.ran else len(net.weights))
            assert net.ran == list(range(starts[-1][-1], len(net.weights)))  # the others were never called
            outputs[-1].update(zip(names, x[0].chunk(len(names)), strict=True))
    return outputs, starts, run.close()


def check_against_reference(config, grouping, rows=1, evaluations=24):
    net = toy.Drifting()
    outputs, starts, stats = run_streams(net, config, evaluations, grouping, rows)
    calls = [
        [{name: net.input(e, rows, 0.05 * "ab".index(name)) for name in names} for names in grouping(e)]
        for e in range(evaluations)
    ]
    expected, expected_starts = toy.reference(net, config, config.warmup_steps, calls)
    assert starts == expected_starts
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
    assert stats.reused == sum(
        s * len(names) for e, row in enumerate(starts) for s, names in zip(row, grouping(e), strict=True)
    )
    return stats


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("interval", [2, 3, 4])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0, 2.0])
def test_equals_the_method_with_every_output_kept(kind, interval, threshold):
    config = PaperConfig(warmup_steps=4, threshold=threshold, reuse_interval=interval, cache_kind=kind, sample_rows=0)
    stats = check_against_reference(config, lambda e: [["a", "b"]], rows=2)
    assert stats.reused or threshold < 2


GROUPINGS = {
    "each in a call of its own": lambda e: [["a"], ["b"]],
    "order changes": lambda e: [["a", "b"] if e % 3 else ["b", "a"]],
    "split in mid-run": lambda e: [["a", "b"]] if e < 9 or e > 14 else [["b"], ["a"]],
    "one is away for two evaluations": lambda e: [["a"], ["b"]] if e not in (7, 8) else [["a"]],
    "one comes late": lambda e: [["a"], ["b"]] if e >= 8 else [["a"]],
    "one comes late into the other's call": lambda e: [["a", "b"]] if e >= 8 else [["a"]],
}


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_any_grouping_of_streams_into_calls(grouping, kind):
    config = PaperConfig(warmup_steps=4, threshold=2.0, reuse_interval=3, cache_kind=kind, sample_rows=0)
    assert check_against_reference(config, GROUPINGS[grouping]).reused


def test_streams_in_calls_of_their_own_do_not_touch_each_other():
    config = PaperConfig(warmup_steps=4, threshold=1.0, sample_rows=0)
    net = toy.Drifting()
    apart, _, stats = run_streams(net, config, 20, lambda e: [["a"], ["b"]])
    assert stats.reused
    for name in "ab":
        alone, _, _ = run_streams(net, config, 20, lambda e, name=name: [[name]])
        assert all(torch.equal(x[name], y[name]) for x, y in zip(apart, alone, strict=True))


def test_heun_counts_steps_not_evaluations():
    # 4 warmup steps of Heun are 8 evaluations, at levels s0, s1 | s1, s2 | s2, s3 | s3, s4
    schedule = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0]
    run = Run(PaperConfig(warmup_steps=4), schedule=schedule)
    levels = [level for pair in zip(schedule[:-1], schedule[1:], strict=True) for level in pair][:-1]
    for level in levels:
        run.begin_evaluation(torch.tensor([level]))
    stats = run.close()
    assert kinds(stats) == ["warmup"] * 8 + ["full", "reuse"] * 2 + ["full"]
    assert [e.level for e in stats.evaluations] == pytest.approx(levels)


def test_outside_the_range_everything_is_computed():
    config = PaperConfig(start_percent=0.5, end_percent=0.8, threshold=2.0, sample_rows=0, warmup_steps=3)
    outputs = [[e * 0.5] for e in range(20)]
    seen, stats = toy.play(config, outputs, steps=20)
    assert kinds(stats) == ["warmup"] * 3 + ["outside"] * 7 + ["reuse", "full"] * 3 + ["plain"] * 4
    # each evaluation moves by 0.5: lambda = 1.1 * 0.25, limit 0.55. After reuse in 10, evaluation 11 is 1.0 from C_9: 1
    # > 0.55,
    # so 12 is computed; 13 is 0.5 from 12 again, so 14 is reused
    assert [e for e in range(20) if seen[e] != outputs[e]] == [10, 14]


def test_range_by_noise_level():
    run = Run(PaperConfig(warmup_steps=2), schedule=[1.0, 0.8, 0.6, 0.4, 0.2, 0.0], region=(0.7, 0.3))
    for level in (1.0, 0.8, 0.6, 0.4, 0.2):
        run.begin_evaluation(torch.tensor([level]))
    assert kinds(run.close()) == ["warmup", "warmup", "full", "reuse", "plain"]


def one_call(run, x, blocks=2, keys=("a",)):
    return toy.one_call(run, x, [lambda x: (x[0] + 1,)] * blocks, keys)[-1]


def test_another_shape_is_computed_and_measured_afresh():
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), steps=12)
    for evaluation in range(12):
        run.begin_evaluation()
        out = one_call(run, (torch.full((1, 4 if evaluation < 5 else 6, 2), 1.0 + evaluation * 0.1),))
        assert out[0].shape[1] == (4 if evaluation < 5 else 6)
    reused = [sum(e.reused) for e in run.close().evaluations]
    assert reused[3] == 2 and reused[5] == 0 and sum(reused[6:])


def test_a_block_that_is_no_longer_called_makes_the_call_be_repeated():
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), steps=8)
    for evaluation in range(4):
        run.begin_evaluation()
        call = run.begin_call(["a"], 2)
        x = (torch.full((1, 4, 2), 1.0 + 0.1 * evaluation),)
        for block in range(1 if evaluation == 3 else 2):
            x = call.block(block, x, lambda x=x: (x[0] + 1,))
        assert run.end_call(call) == (evaluation != 3)
    assert run.begin_call(["a"], 2) is None  # once more, plainly
    stats = run.close()
    assert stats.inactive.startswith("block 1 was not called")
    assert stats.evaluations[3].computed == [1, 1] and stats.evaluations[3].reused == [0, 0]


def test_a_block_that_runs_twice_in_a_call_ends_reuse():
    run = Run(PaperConfig(), steps=20)
    run.begin_evaluation()
    call = run.begin_call(["a"], 2)
    x = (torch.zeros(1, 2, 2),)
    for block in (0, 1, 0):
        x = call.block(block, x, lambda x=x: (x[0] + 1,))
    assert x[0].unique().tolist() == [3.0]
    assert run.close().inactive == "block 0 ran after block 1 in one call of the model"


def test_rows_that_do_not_divide_among_the_streams_end_reuse():
    run = Run(PaperConfig(), steps=20)
    run.begin_evaluation()
    out = one_call(run, (torch.zeros(3, 2, 2),), keys=("a", "b"))
    assert out[0].unique().tolist() == [2.0]
    assert run.close().inactive == "a batch of 3 does not divide among 2 conds"


def test_over_budget_is_said_before_anything_is_stored():
    run = Run(PaperConfig(sample_rows=0), steps=20)
    run.set_budget(2 * 4096, None)
    run.begin_evaluation()
    one_call(run, (torch.zeros(1, 64, 16),))  # 4096 bytes a hidden state, 2 blocks of samples: 3 * 4096 in all
    stats = run.close()
    assert stats.inactive == "the stored features of 1 streams need 0.0 MiB, the budget is 0.0 MiB"
    assert stats.peak_bytes == 0


@pytest.mark.parametrize("step", ["refresh", "keep_where"])
def test_out_of_memory_ends_reuse_and_keeps_the_result(step, monkeypatch):
    from foresight.engine.prefix.stream import Group

    plain, _, _ = run_streams(toy.Drifting(), PaperConfig(threshold=0), 8, lambda e: [["a"]])

    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Group, step, full)
    outputs, _, stats = run_streams(toy.Drifting(), PaperConfig(warmup_steps=2, threshold=2.0), 8, lambda e: [["a"]])
    assert all(torch.equal(x["a"], y["a"]) for x, y in zip(outputs, plain, strict=True))
    assert stats.inactive == "out of memory while storing or handing over features"


def test_the_last_evaluation_has_no_time_where_the_host_cannot_say_when_it_ended():
    for timed in (True, False):
        run = Run(PaperConfig(), steps=10)
        for _ in range(2):
            run.begin_evaluation()
        seconds = [e.seconds for e in run.close(timed).evaluations]
        assert seconds[0] is not None and (seconds[1] is not None) == timed


def test_out_of_memory_while_handing_over_repeats_the_call(monkeypatch):
    from foresight.engine.prefix.slot import Slot

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Slot, "read", full)
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), steps=8)
    for evaluation in range(4):
        run.begin_evaluation()
        call = run.begin_call(["a"], 1)
        call.block(
            0,
            (torch.full((1, 4, 2), 0.1 * evaluation),),
            lambda evaluation=evaluation: (torch.full((1, 4, 2), 0.1 * evaluation),),
        )
        assert run.end_call(call) == (evaluation < 3)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation under it creates and that is still alive.

    `peak` is the most at once.
    """

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        known = {
            x.untyped_storage()._cdata
            for x in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in known:
                storage = x.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(x, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("blocks", [2, 8, 32])
def test_a_stream_holds_one_hidden_state_and_the_samples_whatever_the_depth(blocks, interval):
    tokens, dim, wanted = 32768, 16, 1024
    hidden = tokens * dim * 4
    sample = 1057 * dim * 4  # every 31st of 32768 rows
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0, reuse_interval=interval, sample_rows=wanted), steps=10)
    held = 0
    for evaluation in range(10):
        run.begin_evaluation()
        call = run.begin_call(["a"], blocks)
        x = (torch.full((1, tokens, dim), 0.1 * evaluation),)
        for block in range(blocks):
            value = evaluation * 0.1 + block
            # what the host computes is the host's; all that the engine allocates around it is counted, handed-out
            # tensors aside
            x = call.block(block, x, lambda value=value: (torch.full((1, tokens, dim), value),))
            held = max(held, sum(t.nbytes for t in _tensors(run)))
        run.end_call(call)
    stats = run.close()
    assert stats.reused
    assert held <= 1.25 * hidden + blocks * sample + 4096
    assert held >= hidden  # the count is not of nothing
    assert stats.peak_bytes == pytest.approx(held, abs=4096)
    assert not [t for t in _tensors(run) if t.nbytes > 4096]  # closed: nothing is left


def _tensors(run):
    """Every distinct tensor storage that is reachable from a run."""
    import gc

    found, queue, visited = {}, [run], set()
    while queue:
        item = queue.pop()
        if id(item) in visited or isinstance(item, type) or callable(item) and not hasattr(item, "__dict__"):
            continue
        visited.add(id(item))
        if isinstance(item, torch.Tensor):
            found[item.untyped_storage()._cdata] = item.untyped_storage()
            continue
        if type(item).__module__.startswith("foresight") or isinstance(item, (dict, list, tuple, set)):
            queue.extend(gc.get_referents(item))
    return [storage for storage in map(_Storage, found.values())]


class _Storage:
    def __init__(self, storage):
        self.nbytes = storage.nbytes()


def test_no_temporary_of_the_size_of_a_hidden_state():
    tokens, dim, blocks = 8192, 16, 4
    hidden = tokens * dim * 4
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0, sample_rows=256), steps=10)
    count = LiveBytes()
    for evaluation in range(7):
        run.begin_evaluation()
        call = run.begin_call(["a"], blocks)
        x = torch.full((1, tokens, dim), 0.1 * evaluation)
        outputs = [torch.full((1, tokens, dim), 0.1 * evaluation + block) for block in range(blocks)]
        with count:
            for block in range(blocks):
                call.block(block, (x,), lambda output=outputs[block]: (output,))
            run.end_call(call)
    # one slot, one handed-out copy and one copy of the first block's input at the most; samples are 1/31 each
    assert 2.0 * hidden <= count.peak <= 3.0 * hidden + blocks * hidden / 31 * 3
    assert run.close().reused


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", ["output", "residual"])
def test_beside_the_samples_a_run_adds_one_hidden_state_to_the_peak(in_place, kind):
    """LTX-Video's blocks change the tensor that enters them, which its forward holds all the time."""
    tokens, dim, blocks, steps = 8192, 16, 4, 9
    hidden = tokens * dim * 4

    def model(evaluation, call):
        x = first = torch.full((1, tokens, dim), 0.1 * evaluation)  # as an outer frame does, it keeps `first`
        for i in range(blocks):

            def block(x=x):
                wide = torch.cat([x, x], -1)  # so that the most is held in here
                return (x.add_(1.0) if in_place else wide[..., :dim] + 1.0,)

            (x,) = block() if call is None else call.block(i, (x,), block, in_place=in_place)
        return x.clone(), first

    config = PaperConfig(warmup_steps=2, threshold=2.0, sample_rows=256, cache_kind=kind)
    run, peaks, results = Run(config, steps=steps), {}, []
    for evaluation in range(steps):
        run.begin_evaluation()
        call = run.begin_call(["a"], blocks)
        count = LiveBytes()
        with count:
            results.append(model(evaluation, call)[0].mean().item())
        assert run.end_call(call)
        peaks[run.kind] = max(peaks.get(run.kind, 0), count.peak)
    with LiveBytes() as plain:
        model(0, None)
    assert run.close().reused
    # what was made in earlier evaluations is not counted: in one that reuses that is the slot, which there is one of
    assert peaks["reuse"] <= plain.peak + (kind == "residual") * hidden + blocks * hidden / 31 * 2
    full = [0.1 * e + blocks for e in range(steps)]
    reused = [e for e in range(steps) if results[e] != pytest.approx(full[e], abs=1e-3)]
    kept = full if kind == "residual" else [full[e - (e in reused)] for e in range(steps)]
    assert results == pytest.approx(kept, abs=1e-3)
    assert bool(reused) == (kind == "output")


@pytest.mark.parametrize("rows", [8, 1])
def test_a_block_that_is_given_something_else_is_not_written_into(rows):
    """Another pack's patch may shorten what enters a block; what enters the first one tells nothing of that."""
    config = PaperConfig(warmup_steps=2, threshold=2.0, sample_rows=0)
    run, entered = Run(config, steps=9), torch.zeros(1, rows, 4)
    for evaluation in range(9):
        run.begin_evaluation()
        call = run.begin_call(["a"], 2)
        (x,) = call.block(0, (torch.full((1, 8, 4), 0.1 * evaluation),), lambda: (torch.zeros(1, 8, 4),), in_place=True)
        inputs = (x,) if run.kind != "reuse" else (entered,)
        call.block(1, inputs, lambda e=evaluation: (torch.full((1, 8, 4), 0.1 * e),), in_place=True)
        run.end_call(call)
    assert run.close().reused and (rows == 8 or not entered.any())


def test_one_device_read_per_evaluation(monkeypatch):
    reads = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (reads.append("tolist"), original(self))[1])
    for name in ("item", "__bool__", "__float__", "__int__", "numpy", "cpu", "nonzero"):
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, name=name, **k: pytest.fail(f"{name} reads the device")
        )
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), schedule=[1 - 0.1 * i for i in range(11)])
    for evaluation in range(10):
        before = len(reads)
        run.begin_evaluation(torch.tensor([1 - 0.1 * evaluation]))
        one_call(run, (torch.ones(2, 4, 2),), keys=("a", "b"))
        assert len(reads) - before == 1
    run.close()


def test_a_reused_prefix_leaves_the_first_input_and_the_slot_alone_when_the_host_writes_in_place():
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0, reuse_interval=3), steps=12)
    expected = None
    for evaluation in range(12):
        run.begin_evaluation()
        call = run.begin_call(["a"], 3)
        first = torch.full((1, 4, 2), 0.1 * evaluation)
        x, reused = (first,), False
        for block in range(3):
            ran = []
            x = call.block(block, x, lambda x=x, ran=ran: (ran.append(1), x[0] + 1)[1:])
            reused |= not ran
            x[0].add_(100)  # between-block code, like a ControlNet's residual
        assert run.end_call(call)
        assert first.unique().tolist() == pytest.approx([0.1 * evaluation])
        if reused:  # the last block's stored output, then one addition
            assert x[0].unique().tolist() == pytest.approx([expected])
        else:
            expected = x[0][0, 0, 0].item()
    assert run.close().reused


def test_over_the_device_budget_hidden_states_wait_in_ram():
    """64 rows of 16 floats: 4096 bytes a slot; 2 blocks with exact samples: 8192 bytes of samples a stream."""
    config, ram = PaperConfig(sample_rows=0, warmup_steps=2, threshold=2.0), torch.device("cpu")
    run = Run(config, steps=8, offload=Offload(fallback=ram))
    for evaluation in range(8):
        short = evaluation > 0  # by a byte for two slots at once, from the second evaluation on
        run.set_budget(2 * 8192 + 2 * 4096 - short, 2 * 4096)
        run.begin_evaluation()
        for key in "ab":
            one_call(run, (torch.zeros(1, 64, 16),), keys=(key,))
        assert run.stats.inactive is None and run.stats.in_ram == short
    run.set_budget(2 * 8192 + 4096 - 1, 2 * 4096)
    stats = run.close()
    assert stats.inactive == (
        "the stored features of 2 streams need 0.0 MiB beside 0.0 MiB in RAM, the budgets are 0.0 MiB and 0.0 MiB"
    )
    assert stats.reused and "(partly in RAM)" in stats.summary()


def test_streams_that_come_and_go_do_not_pile_up():
    run = Run(PaperConfig(sample_rows=0), steps=20)
    held = []
    for evaluation in range(12):
        run.begin_evaluation()
        one_call(run, (torch.zeros(1, 64, 16),), keys=(f"window {evaluation}",))
        held.append(run.held_bytes)
    assert held[1:] == [2 * held[0]] * 11  # this evaluation's and the last one's
    assert run.close().reused == 0


def test_out_of_memory_while_fetching_ends_reuse_and_not_the_run(monkeypatch):
    from foresight.engine.prefix.slot import Slot

    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), steps=8)
    for evaluation in range(4):
        if evaluation == 3:

            def full(*_):
                raise torch.OutOfMemoryError

            monkeypatch.setattr(Slot, "prefetch", full)
        run.begin_evaluation()
        assert one_call(run, (torch.full((1, 4, 2), 0.1 * evaluation),))[0].shape == (1, 4, 2)
    assert run.close().inactive == "out of memory while storing or handing over features"


def test_out_of_memory_in_the_comparison_ends_reuse_and_not_the_run(monkeypatch):
    from foresight.engine.prefix import formulas

    calls, qualifies = [], formulas.qualifies

    def second_fails(*args):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return qualifies(*args)

    monkeypatch.setattr(formulas, "qualifies", second_fails)
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), steps=8)
    for evaluation in range(5):
        run.begin_evaluation()
        one_call(run, (torch.full((1, 4, 2), 0.1 * evaluation),))
    stats = run.close()
    assert stats.inactive.startswith("out of memory") and len(stats.evaluations) == 5


def test_a_block_that_runs_twice_within_a_reused_prefix_makes_the_call_be_repeated():
    run = Run(PaperConfig(warmup_steps=2, threshold=2.0), steps=8)
    for evaluation in range(4):
        run.begin_evaluation()
        call, x = run.begin_call(["a"], 2), (torch.full((1, 4, 2), 0.1 * evaluation),)
        for block in (0, 1, 0) if evaluation == 3 else (0, 1):
            x = call.block(block, x, lambda x=x: (x[0] + 1,))
        assert run.end_call(call) == (evaluation < 3)
    assert run.close().inactive == "block 0 ran after block 1 in one call of the model"


def test_a_later_block_may_be_larger_after_streams_have_parted():
    """Text and video apart in one call, then each in a call of its own, in a full evaluation."""
    run = Run(PaperConfig(warmup_steps=3, threshold=2.0, sample_rows=0), steps=12)
    for evaluation in range(8):
        run.begin_evaluation()
        for keys in [["a", "b"]] if evaluation < 4 else [["a"], ["b"]]:
            x = (torch.full((len(keys), 4, 2), 0.1 * evaluation),)
            blocks = [lambda x: (x[0] + 1,), lambda x: (torch.cat([x[0]] * 3, 1),)]
            out = toy.one_call(run, x, blocks, keys)[-1]
            assert out[0].shape == (len(keys), 12, 2)
    assert run.close().inactive is None


def test_beyond_the_range_and_back_streams_warm_up_anew():
    levels = [1.0, 0.9, 0.8, 0.7, 0.2, 0.1, 0.2, 0.1, 0.65, 0.6, 0.55, 0.5, 0.45]
    run = Run(PaperConfig(warmup_steps=4, threshold=2.0, end_percent=0.7), region=(2.0, 0.3))
    for evaluation, level in enumerate(levels):
        run.begin_evaluation(level)
        one_call(run, (torch.full((1, 4, 2), 0.1 * evaluation),))
    measured = [any(ratio is not None for ratio in e.ratio) for e in run.close().evaluations]
    assert measured.index(True) >= 8 + 4  # four evaluations after it came back


def test_what_is_dropped_by_another_thread_is_not_stored_again():
    run = Run(PaperConfig(), steps=20)
    run.begin_evaluation()
    call = run.begin_call(["a"], 1)
    run.deactivate("another thread ran out of memory")
    call.block(0, (torch.zeros(1, 4, 2),), lambda: (torch.ones(1, 4, 2),))
    assert run.end_call(call) and run.held_bytes == 0
