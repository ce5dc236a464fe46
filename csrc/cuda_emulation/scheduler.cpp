// Runs a launch: blocks one after another, each thread of a block a fiber that runs until it waits, exits or is
// preempted. The next to run is a ready thread of the warp with the highest priority.
//
// A program is only right if it is so in any order, and an order that keeps one warp ahead of the others for long finds
// more than one that changes at each step: hence priorities, drawn from the seed, that change rarely (Burckhardt et
// al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).
#include <algorithm>
#include <mutex>
#include <numeric>

#include "cuda_emulation/recording.h"
#include "cuda_emulation/runtime.h"

namespace cuda_emulation {

thread_local Emulator* running = nullptr;

Emulator& emulator() {
    static Emulator instance;
    return instance;
}

namespace {

// One launch at a time: what is emulated is one stream of one device.
std::mutex& device_mutex() {
    static std::mutex mutex;
    return mutex;
}

uint64_t volume(dim3 extents) { return uint64_t{extents.x} * extents.y * extents.z; }

uint3 index_in(dim3 extents, uint32_t number) {
    return {number % extents.x, number / extents.x % extents.y, number / extents.x / extents.y};
}

std::string unfit(dim3 grid, dim3 block, size_t shared_bytes) {
    if (volume(grid) == 0 || volume(block) == 0) return "an extent of the grid or the block is 0";
    if (volume(block) > most_threads || block.z > 64) return "a block has at most 1024 threads, and 64 in z";
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "a grid has at most 65535 blocks in y and z";
    if (volume(grid) >= Stamp::blocks) return "the emulator runs at most 2^20 - 1 blocks";
    if (shared_bytes > SharedMemory::most) return "a block has at most 227 KB of shared memory";
    return {};
}

}  // namespace

cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    const std::lock_guard<std::mutex> lock(device_mutex());
    const cudaError_t error = emulator().launch(kernel, grid, block, shared_bytes);
    if (error == cudaSuccess) record(kernel, grid, block, shared_bytes);
    return error;
}

cudaError_t Emulator::launch(const Kernel& what, dim3 grid_extents, dim3 block_extents, size_t shared_bytes) {
    kernel = what;
    const std::string reason = unfit(grid_extents, block_extents, shared_bytes);
    if (!reason.empty()) {
        reporter.add(Kind::invalid_launch, kernel.function, {}, {}, {}, reason, {});
        return cudaErrorInvalidConfiguration;
    }
    grid = grid_extents;
    block = block_extents;
    const uint32_t blocks = static_cast<uint32_t>(volume(grid)), threads = static_cast<uint32_t>(volume(block));
    stacks_.reserve(threads);
    threads_.resize(threads);
    warps_.resize((threads + warp_lanes - 1) / warp_lanes);
    shared.start_launch(shared_bytes);
    between_blocks_.start_launch(blocks);
    abandoned_ = false;
    ++launches_;
    counting.add_launch();
    if (options.count) counting.start_launch();
    random_state_ = options.seed;

    std::vector<uint32_t> blocks_in_order(blocks);
    std::iota(blocks_in_order.begin(), blocks_in_order.end(), 0);
    if (options.seed != 0) shuffle_order(blocks_in_order);
    running = this;
    for (const uint32_t number : blocks_in_order) {
        start_block(number);
        run_block();
        if (abandoned_) break;
    }
    running = nullptr;
    current = nullptr;
    if (options.count)
        launched.push_back({kernel.function,
                            {grid.x, grid.y, grid.z},
                            {block.x, block.y, block.z},
                            shared_bytes,
                            counting.end_launch()});
    return abandoned_ ? cudaErrorLaunchFailure : cudaSuccess;
}

void Emulator::start_block(uint32_t number) {
    block_number = number;
    ++blocks_;
    epoch_ = 0;
    between_blocks_.start_block();
    shared.start_block();
    if (options.count) counting.start_block(warps_.size());
    live_ = static_cast<uint32_t>(threads_.size());
    waiting_ = 0;
    order_.resize(warps_.size());
    std::iota(order_.begin(), order_.end(), 0);
    if (options.seed != 0) shuffle_order(order_);
    for (uint32_t w = 0; w < warps_.size(); ++w) {
        Warp& warp = warps_[w];
        const uint32_t lanes = std::min(warp_lanes, live_ - w * warp_lanes);
        warp.number = w;
        warp.lanes = warp.ready = lanes == warp_lanes ? ~0u : (1u << lanes) - 1;
        warp.done = ~warp.lanes;
        warp.first_lane = options.seed != 0 ? random(warp_lanes) : 0;
        std::fill(&warp.clock[0][0], &warp.clock[0][0] + warp_lanes * warp_lanes, 0);
        for (uint32_t i = 0; i < warp_lanes; ++i) warp.clock[i][i] = 1;
    }
    for (uint32_t i = 0; i < threads_.size(); ++i) {
        Thread& thread = threads_[i];
        thread.state = State::ready;
        thread.number = i;
        thread.lane = i % warp_lanes;
        thread.warp = &warps_[i / warp_lanes];
        thread.copies.clear();
        thread.groups = 0;
        thread.fenced = false;
        thread.fiber.prepare(stacks_.stack(i), Stacks::bytes, thread_entry);
    }
    until_preemption_ = 64;
}

void Emulator::run_block() {
    while ((current = next_thread()) != nullptr) {
        switch_fiber(scheduler_, current->fiber);
        if (abandoned_) return;
    }
    if (live_ > 0) report_deadlock();
    if (options.count)
        for (const Warp& warp : warps_) counting.flush(warp.number);
}

Thread* Emulator::next_thread() {
    for (const uint32_t w : order_) {
        Warp& warp = warps_[w];
        if (warp.ready == 0) continue;
        const uint32_t first = warp.first_lane, from_first = warp.ready >> first << first;
        return &lane(warp, static_cast<uint32_t>(__builtin_ctz(from_first != 0 ? from_first : warp.ready)));
    }
    return nullptr;
}

void Emulator::suspend() { switch_fiber(current->fiber, scheduler_); }

void Emulator::thread_entry() {
    Emulator& self = *running;
    self.kernel.run(self.kernel.arguments);
    self.thread_exit();
}

void Emulator::thread_exit() {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    thread.state = State::done;
    warp.ready &= ~(1u << thread.lane);
    warp.done |= 1u << thread.lane;
    --live_;
    // Those that wait for this lane only wait no more.
    for (uint32_t i = 0; i < warp_lanes; ++i)
        if (!(warp.done >> i & 1) && lane(warp, i).state == State::in_warp_collective) complete(lane(warp, i));
    suspend();
    __builtin_unreachable();
}

void Emulator::abandon() {
    abandoned_ = true;
    suspend();
    __builtin_unreachable();
}

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
uint32_t Emulator::random(uint32_t below) {
    uint64_t z = random_state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32) % below;
}

void Emulator::shuffle_order(std::vector<uint32_t>& order) {
    for (uint32_t i = static_cast<uint32_t>(order.size()); i > 1; --i) std::swap(order[i - 1], order[random(i)]);
}

// In a random order now and then, at an access. When counting, lanes take turns, so that none runs far ahead of the
// others and the accesses that belong together stay near each other.
void Emulator::preempt() {
    if (options.seed == 0 && !options.count) return;
    if (--until_preemption_ > 0) return;
    Warp& warp = *current->warp;
    if (options.seed != 0) {
        until_preemption_ = 1 + random(256);
        const auto place = std::find(order_.begin(), order_.end(), warp.number);
        std::swap(*place, order_[random(static_cast<uint32_t>(order_.size()))]);
        warp.first_lane = random(warp_lanes);
    } else {
        until_preemption_ = 64;
        warp.first_lane = (current->lane + 1) % warp_lanes;
    }
    suspend();
}

int Emulator::block_barrier(Barrier kind, int predicate, Site site) {
    Thread& thread = *current;
    thread.barrier = site;
    thread.barrier_predicate = predicate;
    thread.state = State::at_block_barrier;
    thread.warp->ready &= ~(1u << thread.lane);
    if (++waiting_ == threads_.size())
        complete_block_barrier();
    else
        suspend();
    switch (kind) {
        case Barrier::count:
            return thread.barrier_predicate;
        case Barrier::all:
            return thread.barrier_predicate == static_cast<int>(threads_.size());
        case Barrier::any:
            return thread.barrier_predicate > 0;
        case Barrier::plain:
            break;
    }
    return 0;
}

void Emulator::complete_block_barrier() {
    int count = 0;
    for (const Thread& thread : threads_) {
        count += thread.barrier_predicate != 0;
        if (thread.barrier.line == threads_[0].barrier.line) continue;
        report(Kind::divergent_barrier, thread, thread.barrier, "waits here, another thread at the __syncthreads",
               threads_[0].barrier);
        abandon();
    }
    if (++epoch_ >= Stamp::epochs && kernel.checked) {
        report(Kind::invalid_launch, *current, current->barrier, "checks reach to 2^17 barriers of a block");
        abandon();
    }
    between_blocks_.pass_barrier();
    waiting_ = 0;
    for (Thread& thread : threads_) {
        thread.state = State::ready;
        thread.barrier_predicate = count;
    }
    for (Warp& warp : warps_) {
        warp.ready = warp.lanes;
        if (options.count) {
            counting.flush(warp.number);
            counting.add(Instruction::block_barrier);
        }
    }
}

// No thread is ready and not all have exited. Says for each place where threads wait which others do not come.
void Emulator::report_deadlock() {
    abandoned_ = true;
    for (const Thread& thread : threads_) {
        if (thread.state == State::at_block_barrier) {
            const auto missing = std::find_if(threads_.begin(), threads_.end(), [](const Thread& other) {
                return other.state != State::at_block_barrier;
            });
            const bool exited = missing->state == State::done;
            report(Kind::divergent_barrier, thread, thread.barrier,
                   std::to_string(waiting_) + " of " + std::to_string(threads_.size()) +
                       " threads wait at __syncthreads; thread " + std::to_string(missing->number) +
                       (exited ? " has exited" : " waits for its warp"),
                   exited ? Site() : missing->arrival.site);
        } else if (thread.state == State::in_warp_collective) {
            const Arrival& arrival = thread.arrival;
            std::string text = std::string(name_of(arrival.operation)) + ": lane " + std::to_string(thread.lane);
            text += " waits for lanes that do not come:";
            for (uint32_t i = 0; i < warp_lanes; ++i) {
                if (!(arrival.mask >> i & 1) || i == thread.lane) continue;
                const bool gone = thread.warp->done >> i & 1;
                const Thread* const other = gone ? nullptr : &lane(*thread.warp, i);
                if (other && other->state == State::in_warp_collective &&
                    other->arrival.operation == arrival.operation && other->arrival.mask == arrival.mask)
                    continue;
                text += " " + std::to_string(i) + (gone ? " (exited)" : "");
            }
            report(Kind::missing_participant, thread, arrival.site, text);
        }
    }
}

uint3 Emulator::thread_index(uint32_t number) const { return index_in(block, number); }
uint3 Emulator::block_index(uint32_t number) const { return index_in(grid, number); }

void Emulator::report(Kind kind, const Thread& thread, Site site, const std::string& text, Site other) {
    reporter.add(kind, kernel.function, block_index(block_number), thread_index(thread.number), site, text, other);
}

}  // namespace cuda_emulation
