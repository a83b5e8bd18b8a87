"""What the kernel's source asks of a CPU, in C++ of g++ and clang++; see `source`."""

__all__ = ["HOST", "HOST_BEGIN", "HOST_END"]

HOST = r"""
#include <cmath>
#include <cstring>
#include <ctime>
#ifdef __linux__
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif
#define DEVICE static inline
#define METHOD
#define PHASE inline
#define BARRIER meet()
#define BLOCK 0
#define BLOCKS 1
#define SCRATCH 0
#define ENTRY void
#define MEMORY
#define UNROLL
#define NOTHING NAN
struct Quad { float x, y, z, w; };
typedef float Wide __attribute__((vector_size(4 * WIDE)));  // columns that are computed at once
DEVICE Wide get(const float* p)
{
    Wide a;
    memcpy(&a, p, sizeof a);
    return a;
}
DEVICE void put(float* p, Wide a) { memcpy(p, &a, sizeof a); }
DEVICE Wide fixed(const float* p) { return get(p); }
DEVICE Wide wide(float a) { return a - Wide{}; }  // less nothing is a, of either zero, so that nothing is computed
DEVICE void more(Wide& sum, Wide a, Wide b) { sum += a * b; }
// Halves are added until there is one number, whatever the width.
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));
template <typename Half, typename Whole>
DEVICE Half folded(Whole a)
{
    Half low, high;
    memcpy(&low, &a, sizeof low);
    memcpy(&high, (const char*)&a + sizeof low, sizeof high);
    return low + high;
}
DEVICE float total(Four a) { return (a[0] + a[1]) + (a[2] + a[3]); }
DEVICE float total(Eight a) { return total(folded<Four>(a)); }
DEVICE float total(Sixteen a) { return total(folded<Eight>(a)); }
// exp(x) = 2^n exp(r) with |r| < 0.35, without a branch, so that a compiler computes many at once. Off by less than two
// units in the last place; beyond 87 it stays what it is there.
DEVICE float exponential(float x)
{
    x = x < 87.0f ? x : 87.0f;
    x = x > -87.0f ? x : -87.0f;
    float n = floorf(x * 1.44269504f + 0.5f), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float tail = 1.9875691500e-4f;
    tail = tail * r + 1.3981999507e-3f;
    tail = tail * r + 8.3334519073e-3f;
    tail = tail * r + 4.1665795894e-2f;
    tail = tail * r + 1.6666665459e-1f;
    tail = tail * r + 5.0000001201e-1f;
    int bits = ((int)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return (tail * r * r + r + 1.0f) * scale;
}
template <float of(float)>
DEVICE Wide each(Wide a)
{
    float values[WIDE];
    memcpy(values, &a, sizeof a);
    for (int i = 0; i < WIDE; ++i) values[i] = of(values[i]);
    memcpy(&a, values, sizeof a);
    return a;
}

// A thread that others wait for is late by some 40 us once it slept, where a machine is a virtual one: then they sleep
// too, and all are late at every barrier. So they look for longer than that before they sleep. Where that was in vain,
// other programs have the cores: then the next barriers are short of patience, twice as many each time.
const long long PATIENCE = 100000, HASTE = 5000;  // ns
const int LOOKS = 64;  // between two looks at the clock
static long long nanoseconds()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}
static void sleep_while(int* word, int value)
{
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    (void)word; (void)value;
    sched_yield();
#endif
}
static void wake(int* word)
{
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)word;
#endif
}

// A thread has tasks side by side, whose data are side by side too.
DEVICE int share(int thread, int threads, int count) { return (int)((long long)count * thread / threads); }
#define EACH(t, count) \
    for (int t##_count = (count), t = share(THREAD, THREADS, t##_count), \
             t##_end = share(THREAD + 1, THREADS, t##_count); t < t##_end; ++t)
#define EACH_AFTER(t, count, before) EACH(t, ((void)(before), (count)))
"""

HOST_BEGIN = r"""
// Sizes are those of what is evaluated, and several threads meet between the phases of one large group.
struct Molecules {
    const int THREAD, THREADS;
    int* const meeting;  // of all threads: how many wait, how often all met, and how many sleep
    float* const memory;
    const int ROWS, PAIRS, CHUNK_FORWARD, CHUNK_ADJOINT, WORK;
    int in_haste = 0, more_haste = 1;  // barriers, this time and the next

    // A thread that waits for long sleeps: the one that it waits for may want its core.
    void meet()
    {
        if (THREADS == 1) return;
        int met = __atomic_load_n(meeting + 1, __ATOMIC_SEQ_CST);
        if (__atomic_add_fetch(meeting, 1, __ATOMIC_SEQ_CST) == THREADS) {
            __atomic_store_n(meeting, 0, __ATOMIC_SEQ_CST);
            __atomic_add_fetch(meeting + 1, 1, __ATOMIC_SEQ_CST);
            if (__atomic_load_n(meeting + 2, __ATOMIC_SEQ_CST)) wake(meeting + 1);
            return;
        }
        const bool patient = !in_haste;
        const long long until = nanoseconds() + (patient ? PATIENCE : HASTE);
        if (!patient) --in_haste;
        do {
            for (int look = 0; look < LOOKS; ++look)
                if (__atomic_load_n(meeting + 1, __ATOMIC_SEQ_CST) != met) {
                    if (patient) more_haste = 1;
                    return;
                }
        } while (nanoseconds() < until);
        if (patient) {
            more_haste *= 2;
            in_haste = more_haste;
        }
        __atomic_add_fetch(meeting + 2, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(meeting + 1, __ATOMIC_SEQ_CST) == met) sleep_while(meeting + 1, met);
        __atomic_sub_fetch(meeting + 2, 1, __ATOMIC_SEQ_CST);
    }
"""

HOST_END = r"""
};

extern "C" int widest()
{
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

extern "C" int near_numbers() { return Molecules::NEAR; }

extern "C" void evaluate(int thread, int threads, int* meeting, float* memory, float* scratch, const int* sizes,
    const float* weights, const int* numbers, const float* displacements, const int* reverse, const float* mask,
    const float* shares, int width, const int* groups, float* energies, float* forces, float* virials, float* extra,
    float* spread)
{
    Molecules one{thread, threads, meeting, memory, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    one.molecules(weights, numbers, displacements, reverse, mask, shares, width, groups, scratch, energies, forces,
        virials, extra, spread);
}
"""
