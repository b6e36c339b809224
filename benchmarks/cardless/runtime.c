/* A CUDA runtime, driver, cuBLAS and cuDNN without a card: memory is given out and copied, kernels are not run.

   Preloaded, so that a PyTorch that was built with CUDA 13 believes in a card and runs its own code up to the launch of
   each kernel. building.py adds what is missing here: functions that have nothing to do, and, of all others,
   ones that end the process and say their name.
   CARDLESS: bytes, bytes of the context, capability (two numbers), multiprocessors, what its kernels are
   built for (as 86), name; by commas. */

#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SPACE_BYTES (8ull << 40) /* of addresses, not of memory */
#define PAGE_BYTES (2ull << 20)
#define COPIED_BYTES (64ull << 20) /* larger copies, as of weights, are left out: nobody reads them */
#define HANDLES 65536

static struct { size_t total, context; int major, minor, multiprocessors, kernels; char name[256]; } card;
static struct block { char *at; size_t bytes; } *blocks; /* that are given out */
static size_t n_blocks, room, end, used;
static char *space;
static cudaError_t last;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void read_card(void)
{
    if (space)
        return;
    const char *said = getenv("CARDLESS");
    if (!said || sscanf(said, "%zu,%zu,%d,%d,%d,%d,%255[^\n]", &card.total, &card.context, &card.major,
                        &card.minor, &card.multiprocessors, &card.kernels, card.name) != 7) {
        fprintf(stderr, "cardless: CARDLESS names no card\n");
        abort();
    }
    space = mmap(NULL, SPACE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) {
        perror("cardless: mmap");
        abort();
    }
}

static int on_card(const void *p) { read_card(); return (char *)p >= space && (char *)p < space + SPACE_BYTES; }

/* Memory */

/* Addresses only rise: between free blocks of one size PyTorch's allocator takes the lowest, and a driver's choice of
   addresses is not known here. */
cudaError_t cudaMalloc(void **into, size_t bytes)
{
    cudaError_t error = cudaSuccess;
    bytes = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    pthread_mutex_lock(&lock);
    read_card();
    if (end + bytes > SPACE_BYTES) {
        fprintf(stderr, "cardless: no addresses are left\n");
        abort();
    }
    if (used + bytes + card.context > card.total) {
        error = last = cudaErrorMemoryAllocation;
    } else {
        if (n_blocks == room)
            blocks = realloc(blocks, (room = room ? 2 * room : 1024) * sizeof *blocks);
        *into = space + end;
        blocks[n_blocks++] = (struct block){*into, bytes};
        end += bytes;
        used += bytes;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

cudaError_t cudaFree(void *p)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; p && i < n_blocks; i++)
        if (blocks[i].at == p) {
            used -= blocks[i].bytes;
            madvise(p, blocks[i].bytes, MADV_DONTNEED);
            blocks[i] = blocks[--n_blocks];
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_, size_t *total)
{
    read_card();
    *total = card.total;
    *free_ = card.total - card.context - used;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **into, size_t bytes, unsigned flags)
{
    return posix_memalign(into, 4096, bytes ? bytes : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *into, const void *p)
{
    memset(into, 0, sizeof *into);
    into->type = on_card(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    into->devicePointer = on_card(p) ? (void *)p : NULL;
    into->hostPointer = on_card(p) ? NULL : (void *)p;
    return cudaSuccess;
}

/* What a kernel would have written where the host reads a number next: values.py says it. */
static long long numbers[64];
static int n_said, n_read;

void cardless_say(long long number)
{
    if (n_said < 64)
        numbers[n_said++] = number;
}

void cardless_forget(void) { n_said = n_read = 0; }

static void copy(void *to, const void *from, size_t bytes)
{
    if (n_read < n_said && bytes <= 8 && on_card(from) && !on_card(to))
        memcpy(to, &numbers[n_read++], bytes);
    else if (bytes <= COPIED_BYTES)
        memmove(to, from, bytes);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    copy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    copy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    for (size_t row = 0; row < height; row++)
        copy((char *)to + row * to_pitch, (char *)from + row * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *into, int value, size_t bytes)
{
    if (bytes <= COPIED_BYTES)
        memset(into, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *into, int value, size_t bytes, cudaStream_t stream)
{
    return cudaMemset(into, value, bytes);
}

/* The card */

cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *n) { *n = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int n) { return n ? last = cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }

static int shared_bytes(void) /* that a block may opt in to, by the CUDA programming guide */
{
    switch (10 * card.major + card.minor) {
    case 70: return 96 << 10;
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: case 121: return 99 << 10;
    default: return 227 << 10;
    }
}

static int threads(void) /* of a multiprocessor */
{
    switch (10 * card.major + card.minor) {
    case 75: return 1024;
    case 86: case 87: case 89: case 120: case 121: return 1536;
    default: return 2048;
    }
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *into, int device)
{
    read_card();
    memset(into, 0, sizeof *into);
    strcpy(into->name, card.name);
    into->totalGlobalMem = card.total;
    into->major = card.major;
    into->minor = card.minor;
    into->multiProcessorCount = card.multiprocessors;
    into->warpSize = 32;
    into->maxThreadsPerBlock = 1024;
    into->maxThreadsPerMultiProcessor = threads();
    into->maxBlocksPerMultiProcessor = 32;
    into->sharedMemPerBlock = 48 << 10;
    into->sharedMemPerBlockOptin = shared_bytes();
    into->sharedMemPerMultiprocessor = shared_bytes() + (1 << 10);
    into->regsPerBlock = into->regsPerMultiprocessor = 65536;
    into->maxThreadsDim[0] = into->maxThreadsDim[1] = 1024;
    into->maxThreadsDim[2] = 64;
    into->maxGridSize[0] = 2147483647;
    into->maxGridSize[1] = into->maxGridSize[2] = 65535;
    into->totalConstMem = 65536;
    into->textureAlignment = 512;
    into->unifiedAddressing = into->concurrentKernels = into->managedMemory = into->cooperativeLaunch = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *into, enum cudaDeviceAttr attribute, int device)
{
    read_card();
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *into = card.major; break;
    case cudaDevAttrComputeCapabilityMinor: *into = card.minor; break;
    case cudaDevAttrMultiProcessorCount: *into = card.multiprocessors; break;
    case cudaDevAttrWarpSize: *into = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *into = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *into = threads(); break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *into = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *into = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *into = shared_bytes(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *into = shared_bytes() + (1 << 10); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *into = 1 << 10; break;
    case cudaDevAttrMaxRegistersPerBlock: *into = 65536; break;
    case cudaDevAttrMaxGridDimX: *into = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *into = 65535; break;
    default:
        fprintf(stderr, "cardless: attribute %d of a card is not modelled\n", attribute);
        abort();
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *into, int length, int device)
{
    snprintf(into, length, "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *into, int one, int other) { *into = 0; return cudaSuccess; }

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return cudaSuccess;
}

/* Errors */

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : error ? "cudaError" : "cudaSuccess";
}

const char *cudaGetErrorString(cudaError_t error)
{
    static char text[32];
    snprintf(text, sizeof text, "error %d", error);
    return error == cudaErrorMemoryAllocation ? "out of memory" : error ? text : "no error";
}

cudaError_t cudaGetLastError(void) { cudaError_t error = last; last = cudaSuccess; return error; }
cudaError_t cudaPeekAtLastError(void) { return last; }

/* Handles: nothing is behind them. */

static void *handle(void)
{
    static char handles[HANDLES][16];
    static unsigned n;
    return handles[__sync_fetch_and_add(&n, 1) % HANDLES];
}

#define GIVES_A_HANDLE(function) int function(void **into) { *into = handle(); return 0; }

cudaError_t cudaStreamCreate(cudaStream_t *into) { *into = handle(); return cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *into, unsigned f, int p) { *into = handle(); return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *into) { *into = 0; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *into) { *into = handle(); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *into, unsigned flags) { *into = handle(); return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *into, cudaEvent_t from, cudaEvent_t to) { *into = 0; return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *into)
{
    *into = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *n)
{
    *status = cudaStreamCaptureStatusNone;
    if (id)
        *id = 0;
    return cudaSuccess;
}

/* Kernels, of which none is launched */

void **__cudaRegisterFatBinary(void *binary) { static void *it; return &it; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *s, void *stream) { return cudaErrorUnknown; }
cudaError_t __cudaGetKernel(void **into, const void *function) { *into = (void *)function; return cudaSuccess; }
cudaError_t cudaGetSymbolAddress(void **into, const void *symbol) { *into = handle(); return cudaSuccess; }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *into, const void *function)
{
    read_card();
    memset(into, 0, sizeof *into);
    into->maxThreadsPerBlock = 1024;
    into->numRegs = 32;
    into->binaryVersion = into->ptxVersion = card.kernels;
    into->maxDynamicSharedSizeBytes = 48 << 10;
    return cudaSuccess;
}

/* As many as have threads, as if no kernel needed registers or shared memory. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *into, const void *function, int block,
                                                                   size_t shared, unsigned flags)
{
    const char *said = getenv("CARDLESS_OCCUPANCY");
    *into = said ? atoi(said) : threads() / block > 0 ? threads() / block : 1;
    return cudaSuccess;
}

static int nothing(void) { return 0; }

static int active(int device, unsigned *flags, int *into)
{
    *flags = 0;
    *into = 1;
    return 0;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *into) { return active(device, flags, into); }
int cuCtxGetCurrent(void **into) { *into = handle(); return 0; }

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **into, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result)
{
    *into = strcmp(symbol, "cuDevicePrimaryCtxGetState") ? (void *)nothing : (void *)active;
    if (result)
        *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* cuBLAS. No heuristic of cuBLASLt asks for a workspace: PyTorch gives it one all the same. */

GIVES_A_HANDLE(cublasCreate_v2)
GIVES_A_HANDLE(cublasLtMatmulPreferenceCreate)
int cublasLtMatmulDescCreate(void **into, int compute, int scale) { *into = handle(); return 0; }
int cublasGetMathMode(void *of, int *into) { *into = 0; return 0; }
int cublasGetPointerMode_v2(void *of, int *into) { *into = 0; return 0; }

int cublasLtMatrixLayoutCreate(void **into, int type, unsigned long long rows, unsigned long long columns, long long ld)
{
    *into = handle();
    return 0;
}

struct algorithm { unsigned long long data[8]; size_t workspace; int state; float waves; int reserved[4]; };

int cublasLtMatmulAlgoGetHeuristic(void *of, void *product, void *a, void *b, void *c, void *d, void *preference, int n,
                                   struct algorithm *into, int *found)
{
    memset(into, 0, sizeof *into);
    *found = 1;
    return 0;
}

/* cuDNN. One plan for everything, without a workspace: what real ones want is not known here. */

GIVES_A_HANDLE(cudnnCreate)
GIVES_A_HANDLE(cudnnCreateTensorDescriptor)
GIVES_A_HANDLE(cudnnCreateFilterDescriptor)
GIVES_A_HANDLE(cudnnCreateConvolutionDescriptor)
/* What batch normalisation takes in training is the library's choice: nothing, here. */
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *of, int mode, int with, void *x, void *z, void *y,
                                                             void *scale, void *activation, size_t *into)
{
    *into = 0;
    return 0;
}

int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *of, int mode, int with, void *activation, void *x,
                                                         size_t *into)
{
    *into = 0;
    return 0;
}

int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *of, int mode, int with, void *x, void *y, void *dy,
                                                      void *dz, void *dx, void *scale, void *activation, size_t *into)
{
    *into = 0;
    return 0;
}

int cudnnGetStream(void *of, void **into) { *into = NULL; return 0; }
int cudnnBackendCreateDescriptor(int type, void **into) { *into = handle(); return 0; }

enum { NOTE = 11, DESCRIPTOR = 15, BEHAVIOR = 19, CHAR = 24, INT64 = 3 }; /* cudnnBackendAttributeType_t */

int cudnnBackendGetAttribute(void *of, int name, int type, long long most, long long *n, void *into)
{
    if (n)
        *n = type == NOTE || type == BEHAVIOR ? 0 : 1;
    if (!into || most < 1)
        return 0;
    if (type == INT64)
        *(long long *)into = 0;
    else if (type == CHAR)
        *(char *)into = 0;
    else if (type == DESCRIPTOR && !*(void **)into)
        *(void **)into = handle();
    else if (type != DESCRIPTOR && type != NOTE && type != BEHAVIOR)
        *(int *)into = 0;
    return 0;
}
