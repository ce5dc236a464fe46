// parallel_for over OpenMP: a list of tasks cut into one contiguous range per thread. A thread that is done with its
// own takes tasks from the others, and so those of threads that the runtime does not grant.
//
// Which thread does which task, in how many calls of the body, depends on the thread count and on chance, so a caller
// whose result must not depend on it writes disjoint outputs from its tasks, or one partial sum per task that it
// combines in task order afterwards.
#pragma once

#include <cstdint>
#include <type_traits>

namespace spos {

using RangeBody = void (*)(const void* context, int64_t begin, int64_t end, int slot);

// Calls body(context, begin, end, slot) for ranges that cover [0, tasks) once, on at most `threads` threads, and
// returns when all are done. `slot` < threads is different for ranges that run at the same time: it numbers their
// scratch memory. Serial inside another parallel region, and in a forked child: libgomp's threads do not survive
// fork(), so a child that used them after its parent did would wait for ever. The body must not throw.
void parallel_ranges(int64_t tasks, int threads, RangeBody body, const void* context);

// The same for a callable body(begin, end) or body(begin, end, slot).
template <typename Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
    parallel_ranges(
        tasks, threads,
        [](const void* context, int64_t begin, int64_t end, [[maybe_unused]] int slot) {
            if constexpr (std::is_invocable_v<const Body&, int64_t, int64_t, int>)
                (*static_cast<const Body*>(context))(begin, end, slot);
            else
                (*static_cast<const Body*>(context))(begin, end);
        },
        &body);
}

}  // namespace spos
