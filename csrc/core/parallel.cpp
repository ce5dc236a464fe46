#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

namespace spos {
namespace {

bool in_forked_child = false;

// Registered when the library is loaded, before any thread of ours exists.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

struct Tasks {
    uint32_t begin, end;
    bool empty() const { return begin >= end; }
};

// What a thread has left to do: it takes from the front, others from the back. Begin and end are one number, exchanged
// as one, so that every task is taken once whoever comes first.
class alignas(64) Share {
  public:
    void put(Tasks tasks) { left_.store(pack(tasks), std::memory_order_relaxed); }

    Tasks take_front() {
        return take([](Tasks left, uint32_t count) {
            const uint32_t middle = left.begin + std::max(1u, count / 4);
            return Split{{left.begin, middle}, {middle, left.end}};
        });
    }

    Tasks take_back() {
        return take([](Tasks left, uint32_t count) {
            const uint32_t middle = left.end - std::max(1u, count / 2);
            return Split{{middle, left.end}, {left.begin, middle}};
        });
    }

  private:
    struct Split {
        Tasks taken, left;
    };

    // Relaxed: the tasks' data are ordered by the start and the end of the parallel region.
    template <typename Cut>
    Tasks take(const Cut& cut) {
        uint64_t value = left_.load(std::memory_order_relaxed);
        for (;;) {
            const Tasks left{static_cast<uint32_t>(value >> 32), static_cast<uint32_t>(value)};
            if (left.empty()) return left;
            const Split split = cut(left, left.end - left.begin);
            if (left_.compare_exchange_weak(value, pack(split.left), std::memory_order_relaxed)) return split.taken;
        }
    }

    static uint64_t pack(Tasks tasks) { return static_cast<uint64_t>(tasks.begin) << 32 | tasks.end; }

    std::atomic<uint64_t> left_;
};

constexpr int most_shares = 64;

void work(Share* shares, int team, int thread, RangeBody body, const void* context) {
    for (;;) {
        Tasks tasks = shares[thread].take_front();
        for (int other = 1; tasks.empty() && other < team; ++other) {
            const Tasks stolen = shares[(thread + other) % team].take_back();
            if (stolen.empty()) continue;
            shares[thread].put(stolen);
            tasks = shares[thread].take_front();
        }
        if (tasks.empty()) return;
        body(context, tasks.begin, tasks.end, thread);
    }
}

}  // namespace

void parallel_ranges(int64_t tasks, int threads, RangeBody body, const void* context) {
    if (tasks <= 0) return;
    threads = static_cast<int>(std::min<int64_t>({threads, tasks, most_shares}));
    if (threads <= 1 || tasks > UINT32_MAX || in_forked_child || omp_in_parallel()) {
        body(context, 0, tasks, 0);
        return;
    }
    Share shares[most_shares];
    // The runtime may grant fewer threads than asked for: what falls to the others is taken from them.
    for (int64_t thread = 0; thread < threads; ++thread)
        shares[thread].put(
            {static_cast<uint32_t>(tasks * thread / threads), static_cast<uint32_t>(tasks * (thread + 1) / threads)});
#pragma omp parallel num_threads(threads)
    work(shares, threads, omp_get_thread_num(), body, context);
}

}  // namespace spos
