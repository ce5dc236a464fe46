#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>

namespace spos {
namespace {

bool in_forked_child = false;

// Registered when the library is loaded, before any thread of ours exists.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

}  // namespace

void parallel_ranges(int64_t tasks, int threads, RangeBody body, const void* context) {
    if (tasks <= 0) return;
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads <= 1 || in_forked_child || omp_in_parallel()) {
        body(context, 0, tasks, 0);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        // The runtime may grant fewer threads than asked for.
        const int64_t team = omp_get_num_threads();
        const int64_t thread = omp_get_thread_num();
        const int64_t begin = tasks * thread / team;
        const int64_t end = tasks * (thread + 1) / team;
        if (begin < end) body(context, begin, end, static_cast<int>(thread));
    }
}

}  // namespace spos
