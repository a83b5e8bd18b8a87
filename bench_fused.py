"""Scratch: the kernel of whole molecules on a GPU. python bench_fused.py OUT.json (PYTHONPATH=typings)."""

import ctypes
import json
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from cuda.bindings import driver

from painn_deploy.engines.fused.plan import Plan, groups_of
from painn_deploy.engines.fused.source import KERNEL_NAME
from painn_deploy.engines.fused.weights import pack
from painn_deploy.engines.gpu.cuda import call, compute_capability
from painn_deploy.engines.gpu.device_positions import compile_kernel
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.model.force_head import autograd_forces
from painn_deploy.export.model.student import NeighbourGraph

BEGAN, LIMIT = time.time(), 80.0
CUTOFF = 5.0
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "bench_fused.json")
RESULTS = {"figures": [], "errors": [], "profiles": []}

ETHANOL = (
    [6, 6, 8, 1, 1, 1, 1, 1, 1],
    [[1.168181, -0.400382, 0.0], [0.0, 0.559462, 0.0], [-1.190083, -0.227669, 0.0], [-1.946623, 0.381525, 0.0],
     [0.042557, 1.207508, 0.886933], [0.042557, 1.207508, -0.886933], [2.115891, 0.1448, 0.0],
     [1.128599, -1.037234, 0.885881], [1.128599, -1.037234, -0.885881]],
)


def aspirin():
    lines = (Path(__file__).parent / "calibration" / "data" / "aspirin.extxyz").read_text().split("\n")
    words = [line.split() for line in lines[2 : 2 + int(lines[0])]]
    return [{"H": 1, "C": 6, "O": 8}[w[0]] for w in words], [[float(x) for x in w[1:4]] for w in words]


def save():
    OUT.write_text(json.dumps(RESULTS, indent=1))


def left():
    return LIMIT - (time.time() - BEGAN)


def failed(what):
    text = traceback.format_exc(limit=3)
    RESULTS["errors"].append({"what": str(what), "error": text[-1500:]})
    print("FAILED", what, text.strip().split("\n")[-1][:400], flush=True)
    save()


class Kernel:
    def __init__(self, plan, code, device_weights):
        self.plan = plan
        self.library = call(driver.cuLibraryLoadData, code, [], [], 0, [], [], 0)
        kernel = call(driver.cuLibraryGetKernel, self.library, KERNEL_NAME.encode())
        self.function = call(driver.cuKernelGetFunction, kernel)
        names = driver.CUfunction_attribute
        call(driver.cuFuncSetAttribute, self.function, names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, plan.shared)
        self.attributes = {
            "registers": int(call(driver.cuFuncGetAttribute, names.CU_FUNC_ATTRIBUTE_NUM_REGS, self.function)),
            "local_bytes": int(call(driver.cuFuncGetAttribute, names.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, self.function)),
            "static_shared": int(call(driver.cuFuncGetAttribute, names.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, self.function)),
            "shared": plan.shared,
            "scratch": 4 * plan.scratch,
            "chunks": plan.chunks(),
        }
        self.occupancy = int(
            call(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor, self.function, plan.threads, plan.shared)
        )
        self.attributes["blocks_per_sm"] = self.occupancy
        self.weights = device_weights
        self.scratch = None

    def launch(self, batch, blocks):
        plan = self.plan
        pointers = [self.weights, batch["numbers"], batch["positions"], batch["first"], batch["count"], batch["groups"]]
        outs = [self.scratch, batch["energies"], batch["forces"], batch["virials"], batch["nearest"]]
        values = (*(t.data_ptr() for t in pointers), len(batch["groups"]) - 1, *(t.data_ptr() for t in outs))
        types = (*[ctypes.c_void_p] * 6, ctypes.c_int, *[ctypes.c_void_p] * 5)
        stream = torch.cuda.current_stream().cuda_stream
        call(driver.cuLaunchKernel, self.function, blocks, 1, 1, plan.threads, 1, 1, plan.shared, stream, (values, types), 0)

    def close(self):
        call(driver.cuLibraryUnload, self.library)


def make_batch(kind, copies, rows):
    numbers, positions = ETHANOL if kind == "ethanol" else aspirin()
    n = len(numbers)
    rng = np.random.default_rng(copies)
    where = np.asarray(positions)[None] + rng.normal(size=(copies, n, 3)) * 0.05
    atoms = copies * n
    starts = np.arange(0, atoms, n)
    groups = groups_of(starts, atoms, rows)
    device = lambda a: torch.as_tensor(a).cuda()  # noqa: E731
    return {
        "n": n, "copies": copies, "where": where, "z": numbers,
        "numbers": device(np.tile(np.asarray(numbers, np.int32), copies)),
        "positions": device(where.reshape(-1, 3).copy()),
        "first": device(np.repeat(starts, n).astype(np.int32)),
        "count": device(np.full(atoms, n, np.int32)),
        "groups": device(groups),
        "energies": torch.full((atoms,), float("nan"), device="cuda"),
        "forces": torch.full((atoms, 3), float("nan"), device="cuda"),
        "virials": torch.full((atoms, 3, 3), float("nan"), device="cuda"),
        "nearest": torch.full((atoms,), float("nan"), device="cuda", dtype=torch.float64),
    }  # fmt: skip


def reference(student, batch, chosen):
    n, where = batch["n"], torch.as_tensor(batch["where"][chosen]).cuda()
    m, slots = len(chosen), n - 1
    other = torch.tensor([[j for j in range(n) if j != i] for i in range(n)], device="cuda")
    d = where[:, other] - where[:, :, None]
    base = torch.arange(m, device="cuda")[:, None, None] * n
    back = torch.tensor([[i if i < j else i - 1 for j in range(n) if j != i] for i in range(n)], device="cuda")
    neighbours = base + other
    graph = NeighbourGraph(
        torch.tensor(batch["z"], device="cuda").repeat(m),
        d.reshape(m * n, slots, 3),
        neighbours.reshape(m * n, slots),
        (neighbours * slots + back).reshape(m * n, slots),
        (d.norm(dim=-1) < CUTOFF).double().reshape(m * n, slots),
    )
    return autograd_forces(student, graph)


def check(student, batch, cache):
    copies, n = batch["copies"], batch["n"]
    chosen = np.unique(np.linspace(0, copies - 1, min(copies, 48)).astype(int))
    key = (copies, n)
    if key not in cache:
        cache[key] = reference(student, batch, chosen)
    rows = torch.as_tensor((chosen[:, None] * n + np.arange(n)).reshape(-1), device="cuda")
    got = [batch[name][rows].double() for name in ("energies", "forces", "virials")]
    errors = [float((a - b).abs().max()) for a, b in zip(got, cache[key], strict=True)]
    finite = all(bool(torch.isfinite(batch[name]).all()) for name in ("energies", "forces", "virials", "nearest"))
    return {"energy_eV": errors[0], "force_eV_A": errors[1], "virial_eV": errors[2], "finite": finite}


def times(run, repeats):
    run()
    torch.cuda.synchronize()
    found = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        run()
        b.record()
        b.synchronize()
        found.append(a.elapsed_time(b) * 1e3)
    return float(np.median(found)), float(np.min(found))


def replayed(run, inner=20, repeats=15):
    """Microseconds of a launch among `inner` in a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(inner):
            run()
    median, least = times(graph.replay, repeats)
    return median / inner, least / inner


SHORT = "#define BARRIER __syncthreads()"
LONG = """static __device__ long long profile[2048];
static __device__ long long last_clock;
static __device__ long long zero_clocks(int line) {
    long long now = clock64();
    if (threadIdx.x == 0 && blockIdx.x == 0) { profile[line] += now - last_clock; last_clock = now; }
    return 0;
}
#define BARRIER do { __syncthreads(); zero_clocks(__LINE__); } while (0)"""


def profiled(plan, weights, batch, what):
    source = plan.source().replace(SHORT, LONG).replace("static __device__ long long profile", 'extern "C" __device__ long long profile')
    kernel = Kernel(plan, compile_kernel(CAPABILITY, source, fmad=True), weights)
    kernel.scratch = torch.empty(plan.scratch * SMS * max(1, kernel.occupancy), device="cuda")
    address, size = call(driver.cuLibraryGetGlobal, kernel.library, b"profile")
    blocks = min(len(batch["groups"]) - 1, SMS * kernel.occupancy)
    repeats = 5
    for step in range(repeats + 1):
        if step == 1:
            torch.cuda.synchronize()
            call(driver.cuMemsetD8, address, 0, size)
        kernel.launch(batch, blocks)
    torch.cuda.synchronize()
    clocks = np.zeros(2048, np.int64)
    call(driver.cuMemcpyDtoH, clocks.ctypes.data, address, clocks.nbytes)
    lines = source.split("\n")
    found = []
    for number in np.flatnonzero(clocks):
        before = " | ".join(line.strip() for line in lines[max(0, number - 4) : number - 1])[-160:]
        found.append({"line": int(number), "clocks": int(clocks[number] / repeats), "ends": before})
    first = min(f["line"] for f in found)  # the loop's barrier also holds the time between launches
    found = [f for f in found if f["line"] != first]
    RESULTS["profiles"].append({"what": what, "total": sum(f["clocks"] for f in found), "phases": found})
    print("PROFILE", what, sum(f["clocks"] for f in found), "clocks")
    for f in sorted(found, key=lambda f: -f["clocks"])[:14]:
        print("   ", f["line"], f["clocks"], f["ends"][-110:])
    save()
    kernel.close()


def variants():
    e = {"kind": "ethanol", "largest": 9}
    alone = [
        dict(rows=9, row_tile=9, threads=384),
        dict(rows=9, row_tile=9, threads=256),
        dict(rows=9, row_tile=9, threads=512),
        dict(rows=9, row_tile=9, threads=384, unroll=4),
        dict(rows=9, row_tile=5, threads=512),
        dict(rows=9, row_tile=3, threads=768, unroll=2),
    ]
    many = [
        dict(rows=27, row_tile=9, threads=384),
        dict(rows=18, row_tile=9, threads=384),
        dict(rows=18, row_tile=9, threads=256, blocks=2, spilled=True),
        dict(rows=18, row_tile=6, threads=256, blocks=2, spilled=True),
        dict(rows=9, row_tile=9, threads=256, blocks=2),
        dict(rows=9, row_tile=9, threads=192, blocks=3),
        dict(rows=18, row_tile=18, threads=256),
        dict(rows=27, row_tile=9, threads=512),
        dict(rows=27, row_tile=14, threads=256),
        dict(rows=27, row_tile=9, threads=384, spilled=True),
        dict(rows=27, row_tile=9, threads=384, unroll=4),
    ]
    big = [
        dict(rows=21, row_tile=7, pair_tile=10, threads=384),
        dict(rows=21, row_tile=7, pair_tile=10, threads=512),
        dict(rows=21, row_tile=11, pair_tile=10, threads=256),
        dict(rows=21, row_tile=7, pair_tile=10, threads=384, spilled=True),
    ]
    for v in alone:
        yield {**e, **v}, (1, 64)
    for v in many:
        yield {**e, **v}, (64, 1024, 16384)
    for v in big:
        yield {"kind": "aspirin", "largest": 21, **v}, (1, 1024)


if __name__ == "__main__":
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    CAPABILITY = compute_capability(0)
    SMS = torch.cuda.get_device_properties(0).multi_processor_count
    RESULTS["device"] = {"name": torch.cuda.get_device_name(0), "capability": CAPABILITY, "sms": SMS, "torch": torch.__version__}
    double = load_student("student:base", dtype=torch.float64)
    packed = pack(double)
    double = double.cuda()
    weights = torch.as_tensor(packed.weights).cuda()
    cache = {}
    plans = []
    for given, sizes in variants():
        try:
            arguments = {k: v for k, v in given.items() if k != "kind"}
            plans.append((given, sizes, Plan(packed, CUTOFF, **arguments)))
        except Exception:
            failed(given)
    pool = ThreadPoolExecutor(12)
    futures = [pool.submit(compile_kernel, CAPABILITY, plan.source(), fmad=True) for _, _, plan in plans]
    batches = {}
    best = {}
    for (given, sizes, plan), future in zip(plans, futures, strict=True):
        if left() < 8:
            print("out of time before", given)
            break
        try:
            kernel = Kernel(plan, future.result(timeout=60), weights)
            print(given, kernel.attributes, flush=True)
            if kernel.occupancy < 1:
                raise RuntimeError("no block fits")
        except Exception:
            failed(given)
            continue
        for copies in sizes:
            try:
                key = (given["kind"], copies, plan.rows)
                if key not in batches:
                    batches[key] = make_batch(given["kind"], copies, plan.rows)
                batch = batches[key]
                for name in ("energies", "forces", "virials", "nearest"):
                    batch[name].fill_(float("nan"))
                blocks = min(len(batch["groups"]) - 1, SMS * kernel.occupancy)
                kernel.scratch = torch.empty(plan.scratch * blocks, device="cuda")
                run = lambda: kernel.launch(batch, blocks)  # noqa: B023,E731
                run()
                torch.cuda.synchronize()
                errors = check(double, batch, cache)
                before = batch["forces"].clone()
                median, least = times(run, 30 if copies < 10000 else 10)
                errors["repeats_bitwise"] = bool(torch.equal(before, batch["forces"]))
                figure = {**given, "copies": copies, "blocks_launched": blocks, **kernel.attributes, **errors,
                          "launch_us": median, "launch_us_min": least}  # fmt: skip
                RESULTS["figures"].append(figure)
                save()
                try:
                    graph_median, graph_least = replayed(run, 20 if copies < 1000 else 3, 15 if copies < 10000 else 5)
                    figure["graph_us"], figure["graph_us_min"] = graph_median, graph_least
                    figure["us_per_molecule"] = graph_median / copies
                except Exception:
                    failed(("graph", given, copies))
                save()
                shown = {k: round(v, 9) if isinstance(v, float) else v for k, v in figure.items() if k in (
                    "copies", "launch_us", "graph_us", "us_per_molecule", "energy_eV", "force_eV_A", "virial_eV", "finite",
                    "repeats_bitwise")}  # fmt: skip
                print("   ", shown, flush=True)
                place = (given["kind"], copies)
                if figure.get("graph_us", 1e30) < best.get(place, (1e30,))[0] and figure["force_eV_A"] < 1e-4:
                    best[place] = (figure["graph_us"], given, plan, batch)
            except Exception:
                failed((given, copies))
        try:
            kernel.close()
        except Exception:
            failed(("close", given))
    for place, (_, given, plan, batch) in sorted(best.items(), key=lambda item: item[0][1]):
        if place in (("ethanol", 1), ("ethanol", 1024), ("aspirin", 1)) and left() > 6:
            try:
                profiled(plan, weights, batch, {"place": place, **given})
            except Exception:
                failed(("profile", place))
    RESULTS["best"] = {f"{k[0]} x {k[1]}": {"graph_us": v[0], **v[1]} for k, v in best.items()}
    RESULTS["seconds"] = time.time() - BEGAN
    save()
    print(json.dumps(RESULTS["best"], indent=1))
    print("seconds", RESULTS["seconds"])
