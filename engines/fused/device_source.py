"""What the kernel's source asks of a GPU, in CUDA C++; see `source`."""

__all__ = ["DEVICE"]

DEVICE = r"""
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define PHASE DEVICE
#define BARRIER __syncthreads()
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define BLOCKS ((int)gridDim.x)
#define ENTRY extern "C" __global__ void __launch_bounds__(THREADS, LEAST_BLOCKS)
#define MEMORY extern __shared__ float4 memory[]
#define UNROLL _Pragma("unroll")
#define NOTHING __int_as_float(0x7fffffff)
typedef float4 Quad;
typedef float4 Wide;  // columns that a thread computes at once
DEVICE Wide get(const float* p) { return *(const Wide*)p; }
DEVICE void put(float* p, Wide a) { *(Wide*)p = a; }
DEVICE Wide fixed(const float* p) { return __ldg((const Wide*)p); }
DEVICE Wide wide(float a) { return make_float4(a, a, a, a); }
DEVICE Wide operator+(Wide a, Wide b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEVICE Wide operator*(Wide a, Wide b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
DEVICE Wide operator/(Wide a, Wide b) { return make_float4(a.x / b.x, a.y / b.y, a.z / b.z, a.w / b.w); }
DEVICE Wide operator*(float a, Wide b) { return wide(a) * b; }
DEVICE void more(Wide& sum, Wide a, Wide b)
{
    sum.x += a.x * b.x; sum.y += a.y * b.y; sum.z += a.z * b.z; sum.w += a.w * b.w;
}
DEVICE float total(Wide a) { return (a.x + a.y) + (a.z + a.w); }
DEVICE float exponential(float x) { return expf(x); }
template <float of(float)>
DEVICE Wide each(Wide a) { return make_float4(of(a.x), of(a.y), of(a.z), of(a.w)); }
#define EACH(t, count) for (int t = THREAD, t##_end = (count); t < t##_end; t += THREADS)
// The same after so many tasks of a loop that no barrier ends: the threads that were left out there come first.
#define EACH_AFTER(t, count, before) \
    for (int t = (THREAD + THREADS - (before) % THREADS) % THREADS, t##_end = (count); t < t##_end; t += THREADS)
"""
