"""The thread pool and the compilation cache: same bits however many threads, and nothing left behind."""

import errno
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import types

import numba
import numpy as np
import pytest
from numba.core import caching
from numba.extending import intrinsic, register_jitable

from gmkernels import pool, waiting
from gmkernels.pool import block_kernel

PER_BLOCK = 1000

KERNEL = """
import numpy as np
from gmkernels import pool
from gmkernels.pool import block_kernel

@block_kernel
def accumulate(block, x, y, per_block):
    total = 0.0
    for i in range(block * per_block, min((block + 1) * per_block, x.size)):
        total += x[i]
        y[i] = total
"""


@block_kernel
def accumulate(block, x, y, per_block):
    total = 0.0
    for i in range(block * per_block, min((block + 1) * per_block, x.size)):
        total += x[i]
        y[i] = total


@block_kernel
def multiply(block, x, factor, y, per_block):
    for i in range(block * per_block, min((block + 1) * per_block, x.size)):
        y[i] = x[i] * factor[0]


@pytest.fixture
def threads():
    before = pool.get_num_threads()
    yield
    pool.set_num_threads(before)


def accumulated(x):
    y = np.full_like(x, np.nan)
    accumulate(-(-x.size // PER_BLOCK), x, y, PER_BLOCK)
    return y


def script(body, **environment):
    """Run a script that has the kernel above, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", KERNEL + textwrap.dedent(body)],
        env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 999, 1001, 100_003])
def test_serial_and_parallel_agree(size, dtype, threads):
    x = np.random.default_rng(0).standard_normal(size).astype(dtype)
    parallel = accumulated(x)
    pool.set_num_threads(1)
    assert pool.get_num_threads() == 1
    assert accumulated(x).tobytes() == parallel.tobytes()
    for start in range(0, size, PER_BLOCK):
        expected = np.cumsum(x[start : start + PER_BLOCK], dtype=np.float64)
        np.testing.assert_allclose(parallel[start : start + PER_BLOCK], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [0, -1, 10_000, 1.5, "2", None])
def test_number_of_threads_is_checked(number):
    with pytest.raises(ValueError, match=rf"threads must be 1 to \d+ .*got {number!r}"):
        pool.set_num_threads(number)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the system does not tell what threads did")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"OMP_NUM_THREADS": "9"}, 4),
        ({"OMP_NUM_THREADS": " 1, 4"}, 1),  # of nested teams the outermost
        ({"NUMBA_NUM_THREADS": "1"}, 1),
        ({"NUMBA_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "many"}, 4),
    ],
    ids=str,
)
def test_threads_that_the_environment_asks_for_run_the_blocks(given, expected):
    """As many as the system says have worked."""
    done = script(
        """
        import os
        from gmkernels import pool

        def worked():
            ticks = {}
            for thread in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{thread}/schedstat") as file:
                    ticks[thread] = int(file.read().split()[0])  # nanoseconds on a processor
            return ticks

        x = np.ones(3_000_000)
        y = np.empty_like(x)
        accumulate(1000, x, y, 3000)
        before = worked()
        for _ in range(20):
            accumulate(1000, x, y, 3000)
        after = worked()
        print(pool.get_num_threads(), sum(after[t] - before.get(t, 0) > 1_000_000 for t in after))
        """,
        **{"NUMBA_NUM_THREADS": "4"} | given,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(expected)] * 2
    told = "OMP_NUM_THREADS='many' is no number of threads; kernels use 4"
    assert (told in done.stderr) == ("many" in given.values())


def test_two_python_threads_launch_at_once():
    arrays = [np.random.default_rng(i).standard_normal(50_000) for i in range(4)]
    expected = [accumulated(x) for x in arrays]
    wrong = []

    def work(i):
        for _ in range(100):
            if accumulated(arrays[i]).tobytes() != expected[i].tobytes():
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_the_number_of_threads_may_change_during_a_call():
    """A thread whose launch began with fewer gets all of Numba's back."""
    done = script(
        """
        import numba
        pool.set_num_threads(2)
        pool._in_pool(lambda: pool.set_num_threads(4), None)
        print(pool.get_num_threads(), numba.get_num_threads())
        """,
        NUMBA_NUM_THREADS="4",
        OMP_NUM_THREADS="4",
    )
    assert done.stdout.split() == ["4", "4"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_works():
    done = script("""
        import os, sys, warnings
        warnings.simplefilter("ignore")
        x = np.arange(100_000.0)
        y, z = np.empty_like(x), np.empty_like(x)
        accumulate(100, x, y, 1000)
        child = os.fork()
        if child == 0:
            accumulate(100, x, z, 1000)
            os._exit(0 if np.array_equal(y, z) else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        accumulate(100, x, z, 1000)
        sys.exit(status or (0 if np.array_equal(y, z) else 2))
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_waits_for_a_thread_that_compiles():
    """The child would otherwise find the compiler locked by a thread that it does not have, and wait for ever."""
    done = script("""
        import os, signal, sys, threading, time, warnings
        warnings.simplefilter("ignore")
        x, begun, compiled, entry_point = np.arange(5.0), threading.Event(), [], pool._entry_point

        def compile_slowly(*arguments):
            begun.set()
            time.sleep(0.3)
            compiled.append(entry_point(*arguments))
            return compiled[-1]

        pool._entry_point = compile_slowly
        other = threading.Thread(target=accumulate, args=(1, x, np.empty_like(x), 5))
        other.start()
        begun.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            y = np.empty_like(x)
            accumulate(1, x, y, 5)
            os._exit(0 if len(compiled) == 1 and np.array_equal(y, np.cumsum(x)) else 1)
        other.join()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.skipif(not pool._FLUSH_BITS, reason="denormals are not flushed on this machine")
def test_denormals_are_flushed_inside_and_only_there(threads):
    tiny = np.full(100_000, 1e-40, np.float32)
    one = np.ones(1, np.float32)
    y = np.full_like(tiny, np.nan)
    for number in (pool.get_num_threads(), 1):
        pool.set_num_threads(number)
        multiply(100, tiny, one, y, PER_BLOCK)
        assert np.all(y == 0)
        assert np.all(tiny * one > 0), "the caller's floating-point state has changed"


TO_ZERO = 3 << (22 if pool._FLUSH_BITS == 1 << 24 else 13)
"""The bits of FPCR, or of MXCSR, by which results are rounded towards zero."""


@intrinsic
def floating_point_state(typing_context):
    return numba.types.int64(), lambda context, builder, signature, arguments: pool._read_state(builder)


@block_kernel
def note_state(block, states):
    states[block] = floating_point_state()


@numba.njit
def exchange_state(state):
    before = floating_point_state()
    pool.restore_state(state)
    return before


@numba.njit(parallel=True)
def states_of_threads(count):
    states = np.empty(count, np.int64)
    for i in numba.prange(count):
        states[i] = floating_point_state()
    return states


@pytest.mark.skipif(not pool._FLUSH_BITS, reason="denormals are not flushed on this machine")
@pytest.mark.parametrize("set_by_caller", [0, pool._FLUSH_BITS, TO_ZERO], ids=hex)
def test_the_state_of_every_thread_is_as_it_was(set_by_caller, threads):
    """Also what the caller has set itself: that denormals are flushed, or another way to round."""
    flags = 0x3F  # of exceptions, which stay as anybody has left them
    inside = np.zeros(64, np.int64)
    table = pool.Launches([[pool.Launch(note_state, 64, (inside,), False)]])
    others = set(states_of_threads(64) & ~flags)
    own = exchange_state(0) & ~flags
    for number in (pool.get_num_threads(), 1):
        pool.set_num_threads(number)
        for run in (lambda: note_state(64, inside), table):
            exchange_state(own | set_by_caller)
            run()
            after = exchange_state(own) & ~flags
            assert after == own | set_by_caller
            assert np.all(inside & pool._FLUSH_BITS == pool._FLUSH_BITS)
            assert set(states_of_threads(64) & ~flags) == others
            inside[:] = 0


def test_cache_falls_back_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    done = script(
        """
        x = np.ones(5)
        y = np.empty(5)
        accumulate(1, x, y, 5)
        print(y[-1], pool.cache_folder())
        """,
        GMKERNELS_CACHE=str(tmp_path / "file" / "cache"),
    )
    assert done.returncode == 0, done.stderr
    total, folder = done.stdout.split(maxsplit=1)
    assert total == "5.0" and str(tmp_path) not in folder


def test_cache_falls_back_where_the_user_has_no_home(monkeypatch, tmp_path):
    """As in a container that runs under a number that no user has."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # which it then leaves as it is
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "XDG_CACHE_HOME", "GMKERNELS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert pool.cache_folder.__wrapped__().parent == tmp_path
    monkeypatch.setenv("GMKERNELS_CACHE", str(tmp_path / "given"))
    assert pool.cache_folder.__wrapped__().parent == tmp_path / "given"


def multiplied():
    """Whether `multiply`, as a new process has it, was loaded, after a call that gives what it should."""
    kernel, y = block_kernel(multiply.__wrapped__), np.full(5, np.nan)
    kernel(1, np.full(5, 3.0), np.full(1, 2.0), y, 5)
    assert y.tolist() == [6.0] * 5
    return kernel._compiled["d", "d", "d", ""][1].cache_hits == 1


@pytest.mark.parametrize("length", [0, 60, None], ids=["empty", "cut", "overwritten"])
@pytest.mark.parametrize("kind", ["index", "code"])
def test_broken_files_of_the_cache_are_made_anew(kind, length, monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "cache_folder", lambda: tmp_path)
    assert not multiplied()
    assert multiplied()
    (file,) = tmp_path.glob({"index": "*.nbi", "code": "*.nbc"}[kind])
    whole = file.read_bytes()
    file.write_bytes(b"?" * len(whole) if length is None else whole[:length])
    with pytest.warns(UserWarning, match=f"compiled anew whose files in {tmp_path} are broken"):
        assert not multiplied()
    assert multiplied()


def test_a_cache_that_is_full_stops_nobody(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pool, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", refuse)
    with pytest.warns(UserWarning, match=f"not kept in {tmp_path}: .*No space left"):
        assert not multiplied()


def test_kernels_that_several_processes_have_compiled_work_together(tmp_path):
    """Two processes fill one cache at once, with kernels of several families; a third has all of them from there."""
    calls = {
        "first": ["gmkernels.iwae_bound(x, axis=0)", "gmkernels.erf(x)", "gmkernels.leaky_relu(x, 0.1)"],
        "second": ["gmkernels.bernoulli_log_prob(x, x)", "gmkernels.erf(x)", "gmkernels.sum(x, axis=0)"],
    }
    calls["third"] = [*calls["second"], *calls["first"]]
    body = """
        import gmkernels
        from gmkernels import waiting
        x = np.random.default_rng(0).uniform(0, 1, (9, 7)).astype(np.float32)
        for call in {calls}:
            with gmkernels.use("cpu"):
                found = eval(call)
            with gmkernels.use("reference"):
                expected = eval(call)
            for a, b in zip(np.atleast_1d(found), np.atleast_1d(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=call)
        print(waiting.process.compiled, waiting.process.loaded)
    """
    texts = {name: "import numpy as np" + textwrap.dedent(body.format(calls=of_one)) for name, of_one in calls.items()}
    environment = os.environ | {"GMKERNELS_CACHE": str(tmp_path)}
    at_once = [
        subprocess.Popen([sys.executable, "-c", texts[name]], env=environment, stderr=subprocess.PIPE)
        for name in ("first", "second")
    ]
    for process in at_once:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    done = script(texts["third"], GMKERNELS_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    compiled, loaded = map(int, done.stdout.split())
    assert compiled == 0 and loaded >= 6


def test_second_process_hits_the_cache(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNEL)
    body = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import kernels
        kernels.accumulate(100, np.ones(100_000), np.empty(100_000), 1000)
        from gmkernels.pool import block_kernel
        scope = {{"__name__": "of_no_file"}}
        exec("def fill(block, y): y[0] = 2.0", scope)
        fill = block_kernel(scope["fill"])
        fill(1, np.empty(1))
        compiled = [kernels.accumulate._compiled["d", "d", ""], fill._compiled[("d",)]]
        print(*[function.cache_hits for _, function in compiled])
    """
    hits, files, waited = [], [], []
    for _ in range(2):
        done = script(body, GMKERNELS_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "cache").iterdir()
        waited.append(waiting.of_last_process(folder))
        hits.append(done.stdout.split())
        files.append(sorted(f.name for f in (tmp_path / "cache").rglob("*.nb*")))
    assert files[0] and files[0] == files[1]
    assert hits == [["0", "0"], ["1", "0"]], "what no module holds is compiled anew"
    first, second = waited
    assert first.compiled == second.loaded and first.loaded == second.compiled == 0
    assert second.loading < 0.5 * first.compiling
    assert waiting.of_cache(folder).compiled == first.compiled


def test_what_kernels_of_several_processes_call_is_told_apart(tmp_path):
    """Helpers of one name and one place in the order of compilation, each compiled in a process of its own."""
    (tmp_path / "factory.py").write_text(
        textwrap.dedent("""
        from gmkernels.pool import block_kernel, jitable, long_loop

        def adds(number):
            @jitable
            def helper(y):
                long_loop()
                for i in range(y.size):
                    y[i] += number

            @block_kernel
            def kernel(block, y):
                helper(y)

            return kernel
    """)
    )
    for numbers in ([1.0], [2.0], [1.0, 2.0], [2.0, 1.0]):
        done = script(
            f"""
            import sys; sys.path.insert(0, {str(tmp_path)!r})
            import factory
            for number in {numbers}:
                y = np.zeros(3)
                factory.adds(number)(1, y)
                print(*y)
            """,
            GMKERNELS_CACHE=str(tmp_path / "cache"),
        )
        assert done.returncode == 0, done.stderr
        assert [float(y) for y in done.stdout.split()] == [n for n in numbers for _ in range(3)]


def test_kernels_of_one_name_are_told_apart(monkeypatch):
    """Two kernels outside the package, of one module and name, differ in their code: the cache holds both."""
    outside = types.ModuleType("outside")
    monkeypatch.setitem(sys.modules, "outside", outside)

    def make(constant):
        exec(f"def constant(block, y):\n    y[0] = {constant}", outside.__dict__)
        return block_kernel(outside.constant)

    y = np.empty(1)
    for constant in (2.0, 3.0):
        make(constant)(1, y)
        assert y[0] == constant


def test_kernels_of_one_factory_are_told_apart():
    """The compilation cache's key sees what a kernel closes over, not only its bytecode."""

    def make(value):
        @block_kernel
        def fill(block, y):
            y[0] = value

        return fill

    y = np.zeros(1)
    for value in (2.0, 3.0):
        make(value)(1, y)
        assert y[0] == value


def test_kernels_that_differ_in_the_name_of_an_attribute_are_told_apart():
    """math.floor and math.ceil have one bytecode and one constant."""

    def down(x):
        return math.floor(x)

    def up(x):
        return math.ceil(x)

    def make(function):
        rounded = register_jitable(function)

        @block_kernel
        def fill(block, y):
            y[0] = rounded(1.5)

        return fill

    y = np.zeros(1)
    for function, expected in ((down, 1.0), (up, 2.0)):
        make(function)(1, y)
        assert y[0] == expected


def test_memory_mapped_arrays_are_arrays(tmp_path):
    x = np.memmap(tmp_path / "x", np.float64, "w+", shape=3)
    x[:] = 2.0
    y = np.full(3, np.nan)
    multiply(1, x, np.array([3.0]), y, 3)
    assert y.tolist() == [6.0, 6.0, 6.0]


# -- launches as a table --------------------------------------------------------------------------------------
@block_kernel
def _neighbours(block, x, y):
    """y = the mean of x and its mirror image: every block reads what other blocks wrote in the stage before."""
    for i in range(block * 8, min((block + 1) * 8, x.size)):
        y[i] = 0.5 * (x[i] + x[x.size - 1 - i]) + 0.25 * i


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stage_begins_when_the_one_before_has_ended(threads):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(803) for _ in range(30)]
    expected = arrays[0]
    for _ in arrays[1:]:
        expected = 0.5 * (expected + expected[::-1]) + 0.25 * np.arange(803)
    stages = [[pool.Launch(_neighbours, 101, pair, False)] for pair in zip(arrays, arrays[1:], strict=False)]
    run = pool.Launches(stages)
    before = pool.get_num_threads()
    pool.set_num_threads(min(threads, before))
    try:
        for _ in range(50):
            for array in arrays[1:]:
                array.fill(np.nan)
            run()
            np.testing.assert_array_equal(arrays[-1], expected)
    finally:
        pool.set_num_threads(before)


def test_launches_of_a_stage_all_run():
    x, out = np.arange(16.0), [np.zeros(16) for _ in range(5)]
    pool.Launches([[pool.Launch(_neighbours, 2, (x, y), False) for y in out]])()
    for y in out:
        np.testing.assert_array_equal(y, 7.5 + 0.25 * x)


def test_no_launches_are_a_call_too():
    pool.Launches([])()
    pool.Launches([[], []])()
