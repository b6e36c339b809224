"""Makes the runtime without a card, for the PyTorch that is installed: of runtime.c, and of what that lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_SOURCE = Path(__file__).with_name("runtime.c")
_PREFIXES = ("cuda", "__cuda", "cublas", "cudnn")
# They answer without a card.
_REAL = {"cublasLtGetVersion", "cudnnGetVersion", "cudnnGetCudartVersion", "cudnnGetProperty", "cudnnGetErrorString"}

# They have nothing to do where no kernel runs, and nothing to tell.
_NOTHING = """
__cudaInitModule __cudaLaunchKernel __cudaRegisterFatBinaryEnd __cudaRegisterFunction __cudaRegisterVar
__cudaUnregisterFatBinary cublasDdot_v2 cublasDestroy_v2 cublasDgemm_v2 cublasDgemmStridedBatched cublasDgemv_v2
cublasDotEx cublasGemmEx cublasGemmStridedBatchedEx cublasLtMatmul cublasLtMatmulDescDestroy
cublasLtMatmulDescSetAttribute cublasLtMatmulPreferenceDestroy cublasLtMatmulPreferenceSetAttribute
cublasLtMatrixLayoutDestroy cublasLtMatrixLayoutSetAttribute cublasSdot_v2 cublasSetMathMode cublasSetPointerMode_v2
cublasSetStream_v2 cublasSetWorkspace_v2 cublasSgemm_v2 cublasSgemmEx cublasSgemmStridedBatched cublasSgemv_v2
cuCtxSetCurrent cudaDeviceSynchronize cudaEventDestroy cudaEventQuery cudaEventRecord cudaEventRecordWithFlags
cudaEventSynchronize cudaFuncSetAttribute cudaLaunchCooperativeKernel cudaLaunchKernel cudaLaunchKernelExC
cudaStreamDestroy cudaStreamQuery cudaStreamSynchronize cudaStreamWaitEvent cudaThreadExchangeStreamCaptureMode
cudnnBackendDestroyDescriptor cudnnBackendExecute cudnnBackendFinalize cudnnBackendSetAttribute
cudnnBatchNormalizationBackwardEx cudnnBatchNormalizationForwardInference cudnnBatchNormalizationForwardTrainingEx
cudnnDestroyTensorDescriptor cudnnSetStream cudnnSetTensorNdDescriptor cuLaunchKernel cuModuleGetFunction
cuModuleLoadData
"""


def build(folder: Path) -> list[Path]:
    """The libraries to preload, made in `folder`. Raises RuntimeError with what is missing."""
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"cardless: needs {tool}")
    packages = Path(sysconfig.get_paths()["purelib"])
    libraries = [packages / "torch" / "lib" / f"lib{name}.so" for name in ("c10_cuda", "torch_cuda", "torch_python")]
    includes = [f"-I{path}" for path in _includes(packages)]
    runtime, driver = folder / "runtime.so", folder / "driver.so"
    missing = folder / "missing.c"
    _compile(_SOURCE, runtime, *includes)
    missing_names = {name for library in libraries for name in _symbols(library, "--undefined-only")}
    missing_names = {name for name in missing_names if name.startswith(_PREFIXES)} - _REAL
    have = set(_symbols(runtime, "--defined-only"))
    driven = [
        name for name in _symbols(libraries[0].with_name("libcaffe2_nvrtc.so"), "--undefined-only")
        if re.match("cu[A-Z]", name)
    ]  # fmt: skip
    missing.write_text(_missing(missing_names - have), encoding="utf-8")
    _compile(missing, folder / "missing.so")
    missing.write_text(_missing(set(driven) - have), encoding="utf-8")
    # Loaded by that name, and for the runtime's functions too.
    _compile(missing, driver, "-Wl,--no-as-needed,-soname,libcuda.so.1", str(runtime))
    return [runtime, folder / "missing.so", driver]


def _includes(packages: Path) -> list[Path]:
    """Where CUDA's headers are: some come with one package of a torch with CUDA, some with another."""
    found = []
    for name in ("cuda_runtime_api.h", "crt/host_defines.h"):
        places = [*packages.glob(f"nvidia/*/include/{name}"), *packages.glob(f"triton/**/include/{name}")]
        places.append(Path("/usr/local/cuda/include") / name)
        place = next((each for each in places if each.exists()), None)
        if place is None:
            raise RuntimeError(f"cardless: found no {name}")
        found.append(place.parents[name.count("/")])
    return found


def _compile(source: Path, target: Path, *arguments: str) -> None:
    command = ["cc", "-w", "-O1", "-shared", "-fPIC", *arguments, str(source), "-o", str(target)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if ended.returncode:
        raise RuntimeError(f"cardless: {source.name} does not compile:\n{ended.stderr}")


def _symbols(library: Path, which: str) -> list[str]:
    printed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607
    return [line.split()[-1].split("@")[0] for line in printed.splitlines()]


def _missing(names: Iterable[str]) -> str:
    """Functions that do nothing, or say their name and end the process."""
    nothing = set(_NOTHING.split())
    lines = ["#include <stdio.h>", "#include <stdlib.h>"]
    for name in sorted(names):
        ends = f'fprintf(stderr, "cardless: {name} is not modelled\\n"); abort();'
        lines.append(f"int {name}(void) {{ {'' if name in nothing else ends} return 0; }}")
    return "\n".join(lines) + "\n"
