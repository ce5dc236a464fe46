// parallel_for over OpenMP: a list of tasks cut into one contiguous range per thread.
//
// The ranges depend on the thread count, so a caller whose result must not depend on it writes disjoint outputs from
// its tasks, or one partial sum per task that it combines in task order afterwards.
#pragma once

#include <cstdint>

namespace spos {

using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);

// Calls body(context, begin, end) for ranges that cover [0, tasks) once, on at most `threads` threads, and returns when
// all are done. Serial inside another parallel region, and in a forked child: libgomp's threads do not survive fork(),
// so a child that used them after its parent did would wait for ever. The body must not throw.
void parallel_ranges(int64_t tasks, int threads, RangeBody body, const void* context);

// The same for a callable body(begin, end).
template <typename Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
    parallel_ranges(
        tasks, threads,
        [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
        &body);
}

}  // namespace spos
