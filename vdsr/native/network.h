// What do all kernels have in common? Memory, threads, and the two ends of the network: the first layer makes 64
// channels of a plane, the last makes a plane of 64 channels.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace vdsr {

constexpr int TAPS = 9;

struct Free {
    void operator()(void* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;

// Uninitialised, on huge pages where there are any.
inline Floats floats(size_t count) {
#if defined(__SANITIZE_ADDRESS__)
    constexpr size_t PAGE = 64;  // it sees only what lies beyond all of the memory
#else
    constexpr size_t PAGE = size_t(2) << 20;
#endif
    const size_t bytes = (count * sizeof(float) + PAGE - 1) / PAGE * PAGE;
    void* p = std::aligned_alloc(PAGE, bytes);
    if (!p) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return Floats(static_cast<float*>(p));
}

// A structure of numbers, uninitialised, in the same way.
template <class T>
std::unique_ptr<T, Free> structure() {
    return std::unique_ptr<T, Free>(reinterpret_cast<T*>(floats(sizeof(T) / sizeof(float)).release()));
}

// Waits for another thread. That is microseconds or a few milliseconds, for which a sleep would cost more; but if the
// other has lost its processor to somebody else, who waits must not keep one busy.
template <class Done>
void spin_until(Done&& done) {
    constexpr int SPINS = 4000, YIELDS = 100;  // about 0.1 ms
    for (int waits = 0; !done(); ++waits) {
        if (waits > SPINS + YIELDS) std::this_thread::sleep_for(std::chrono::microseconds(50));
        else if (waits > SPINS) std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
        else _mm_pause();
#endif
    }
}

// Runs work() in so many threads, this one included; throws what one of them throws. None begins before all are there:
// work may wait for the others. That the system starts no more threads is told as too little memory.
template <class Work>
void in_parallel(int threads, Work&& work) {
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr failure;
    auto guarded = [&] {
        try {
            work();
        } catch (...) {
            if (!failed.test_and_set()) failure = std::current_exception();
        }
    };
    enum { WAIT, GO, GIVE_UP };
    std::atomic<int> start{WAIT};
    auto other = [&] {
        spin_until([&] { return start.load(std::memory_order_acquire) != WAIT; });
        if (start == GO) guarded();
    };
    std::vector<std::thread> others;
    others.reserve(size_t(std::max(threads, 1)));
    try {
        for (int i = 1; i < threads; ++i) others.emplace_back(other);
        start.store(GO, std::memory_order_release);
        guarded();
    } catch (...) {  // of too many threads, or too little memory for one more
        start.store(GIVE_UP, std::memory_order_release);
    }
    for (auto& thread : others) thread.join();
    if (start == GIVE_UP) throw std::bad_alloc();
    if (failure) std::rethrow_exception(failure);
}

// Calls work(item) for 0 <= item < items, each once.
template <class Work>
void share(int items, int threads, Work&& work) {
    std::atomic<int> next{0};
    in_parallel(std::min(threads, items), [&] {
        for (int item; (item = next++) < items;) work(item);
    });
}

// The kernel of the first layer or the last, 64 channels of 3 x 3, as [tap][64].
inline std::vector<float> by_tap(const float* w) {
    std::vector<float> taps(TAPS * CHANNELS);
    for (int tap = 0; tap < TAPS; ++tap)
        for (int channel = 0; channel < CHANNELS; ++channel) taps[tap * CHANNELS + channel] = w[channel * TAPS + tap];
    return taps;
}

// In both: rows[y] points at a row's pixel `from`, and the pixels beside and above what is computed can be read.

// finish(x, channel, vector): 64 channels of every pixel from..to of the middle row.
template <class Finish>
void expand(const float* const rows[3], const float* w, int from, int to, Finish&& finish) {
    for (int group = 0; group < GROUPS; ++group) {
        Vector taps[TAPS];
        for (int i = 0; i < TAPS; ++i) taps[i] = load(w + i * CHANNELS + group * LANES);
        for (int x = from; x < to; ++x) {
            Vector sum = {};
            for (int i = 0; i < TAPS; ++i) sum = fma(every(rows[i / 3][x - from + i % 3 - 1]), taps[i], sum);
            finish(x, group * LANES, sum);
        }
    }
}

inline float total(Vector v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += v[lane];
    return sum;
}

// to[0 .. count]: the plane of the middle row's pixels.
inline void contract(const float* const rows[3], const float* w, int count, float* to) {
    for (int x = 0; x < count; ++x) {
        Vector sum[3] = {};
        for (int i = 0; i < TAPS; ++i)
            for (int group = 0; group < GROUPS; ++group)
                sum[i / 3] = fma(load(rows[i / 3] + ptrdiff_t(x + i % 3 - 1) * CHANNELS + group * LANES),
                                 load(w + i * CHANNELS + group * LANES), sum[i / 3]);
        to[x] = total(sum[0] + sum[1] + sum[2]);
    }
}

}  // namespace vdsr
