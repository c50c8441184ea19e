"""Run ONNX graphs on numpy arrays, with nothing but onnxruntime: the half of `saturation.py` that is emulated.

    python benchmarks/saturation_session.py [--exact] MODEL.onnx INPUT.npy OUTPUT.npz [MODEL INPUT OUTPUT ...]

With `--exact` onnxruntime is asked for sums in 32 bits, whatever the CPU.

Prints as JSON which of the instructions that matter this process is offered, asked of the processor itself:
under user-mode emulation /proc/cpuinfo still shows the host.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys

import numpy as np
import onnxruntime

# cpuid(leaf, subleaf, uint32[4]) in the System V calling convention; the array gets eax, ebx, ecx and edx.
CODE = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
# Leaf, subleaf, register (of eax, ebx, ecx, edx) and bit: Intel's manual, volume 2A, CPUID.
FLAGS = {
    "avx2": (7, 0, 1, 5),
    "avx512f": (7, 0, 1, 16),
    "avx512bw": (7, 0, 1, 30),
    "avx512_vnni": (7, 0, 2, 11),
    "amx_int8": (7, 0, 3, 25),
    "avx_vnni": (7, 1, 0, 4),
}


def cpu_flags() -> dict[str, bool]:
    """Whether this process may use each instruction set."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
    found = {}
    for name, (leaf, subleaf, register, bit) in FLAGS.items():
        registers = (ctypes.c_uint32 * 4)()
        cpuid(leaf, subleaf, registers)
        found[name] = bool(registers[register] >> bit & 1)
    return found


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    files = sys.argv[1:]
    if files[0] == "--exact":
        options.add_session_config_entry("session.x64quantprecision", "1")
        files = files[1:]
    for model, given, result in zip(*[iter(files)] * 3, strict=True):
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        images, name = np.load(given), session.get_inputs()[0].name
        parts = np.array_split(images, -(-len(images) // 20))
        runs = zip(*(session.run(None, {name: part}) for part in parts), strict=True)
        outputs = {o.name: np.concatenate(r) for o, r in zip(session.get_outputs(), runs, strict=True)}
        np.savez(result, allow_pickle=False, **outputs)
    print(json.dumps(cpu_flags()))


if __name__ == "__main__":
    main()
