// What the threads of a warp do together. The last of the lanes to come does the work for all of them.
#include "cuda_emulation/runtime.h"

#include <algorithm>

namespace cuda_emulation {

const char* name_of(Operation operation) {
    static const char* const names[] = {"__syncwarp", "shuffle", "vote", "reduction", "match", "ldmatrix", "mma.sync"};
    return names[static_cast<int>(operation)];
}

Arrival& Emulator::collective(Operation operation, int kind, uint32_t mask, Site site, const uint32_t* in, int words) {
    Thread& thread = *current;
    Arrival& arrival = thread.arrival;
    arrival.operation = operation;
    arrival.kind = kind;
    arrival.mask = mask;
    arrival.site = site;
    std::copy(in, in + words, arrival.in);
    if (!(mask >> thread.lane & 1)) {
        report(Kind::missing_participant, thread, site,
               std::string(name_of(operation)) + ": lane " + std::to_string(thread.lane) + " is not in its own mask");
        abandon();
    }
    thread.state = State::in_warp_collective;
    thread.warp->ready &= ~(1u << thread.lane);
    if (!complete(thread)) suspend();
    return arrival;
}

namespace {

// Instructions that PTX calls .aligned: the same one for all lanes, none of which has exited.
bool aligned(Operation operation) { return operation == Operation::ldmatrix || operation == Operation::mma; }

uint64_t value_of(const Arrival& arrival) { return static_cast<uint64_t>(arrival.in[1]) << 32 | arrival.in[0]; }

uint32_t reduced(Reduction kind, uint32_t a, uint32_t b) {
    const int32_t x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
    switch (kind) {
        case Reduction::add:
            return a + b;
        case Reduction::minimum:
            return static_cast<uint32_t>(std::min(x, y));
        case Reduction::maximum:
            return static_cast<uint32_t>(std::max(x, y));
        case Reduction::unsigned_minimum:
            return std::min(a, b);
        case Reduction::unsigned_maximum:
            return std::max(a, b);
        case Reduction::bit_and:
            return a & b;
        case Reduction::bit_or:
            return a | b;
        case Reduction::bit_xor:
            return a ^ b;
    }
    return 0;
}

// The lane that `lane` reads from, or its own where the source is outside of its segment.
uint32_t source_lane(Shuffle kind, uint32_t lane, int operand, int width) {
    const int segment = static_cast<int>(lane) / width * width, within = static_cast<int>(lane) - segment;
    int source = within;
    switch (kind) {
        case Shuffle::index:
            source = operand & (width - 1);
            break;
        case Shuffle::up:
            source = within - operand;
            break;
        case Shuffle::down:
            source = within + operand;
            break;
        case Shuffle::exclusive_or:
            source = within ^ operand;
            break;
    }
    return static_cast<uint32_t>(source >= 0 && source < width ? segment + source : static_cast<int>(lane));
}

}  // namespace

void multiply_matrices(Product kind, Arrival* const (&lanes)[warp_lanes]);

// The lanes that have come, all of them, each waiting to be given its result.
struct Completion {
    Emulator& emulator;
    Warp& warp;
    uint32_t lanes;
    Arrival* arrivals[warp_lanes];

    template <typename Body>
    void each(const Body& body) {
        for (uint32_t i = 0; i < warp_lanes; ++i)
            if (lanes >> i & 1) body(i, *arrivals[i]);
    }

    void shuffle(Shuffle kind) {
        each([&](uint32_t i, Arrival& arrival) {
            const uint32_t source =
                source_lane(kind, i, static_cast<int>(arrival.in[2]), static_cast<int>(arrival.in[3]));
            if (lanes >> source & 1) {
                arrival.out[0] = arrivals[source]->in[0];
                arrival.out[1] = arrivals[source]->in[1];
                return;
            }
            arrival.out[0] = arrival.out[1] = ~0u;
            emulator.report(Kind::undefined_result, emulator.lane(warp, i), arrival.site,
                            "shuffle: lane " + std::to_string(i) + " reads lane " + std::to_string(source) +
                                ", which takes no part");
        });
    }

    void vote(Vote kind) {
        uint32_t ballot = 0;
        each([&](uint32_t i, Arrival& arrival) { ballot |= (arrival.in[0] != 0 ? 1u : 0u) << i; });
        const uint32_t result = kind == Vote::ballot ? ballot : kind == Vote::all ? ballot == lanes : ballot != 0;
        each([&](uint32_t, Arrival& arrival) { arrival.out[0] = result; });
    }

    void reduce(Reduction kind, uint32_t first) {
        uint32_t result = arrivals[first]->in[0];
        each([&](uint32_t i, Arrival& arrival) {
            if (i != first) result = reduced(kind, result, arrival.in[0]);
        });
        each([&](uint32_t, Arrival& arrival) { arrival.out[0] = result; });
    }

    void match(Match kind) {
        each([&](uint32_t, Arrival& arrival) {
            uint32_t equal = 0;
            each([&](uint32_t j, Arrival& other) { equal |= (value_of(other) == value_of(arrival) ? 1u : 0u) << j; });
            arrival.out[0] = kind == Match::any || equal == lanes ? equal : 0;
        });
    }
};

// Whether all lanes that `thread` waits for have come; if so they have their results and go on.
bool Emulator::complete(Thread& thread) {
    Warp& warp = *thread.warp;
    const Arrival& wanted = thread.arrival;
    const uint32_t lanes = aligned(wanted.operation) ? wanted.mask : wanted.mask & ~warp.done;
    if (lanes & warp.done) return false;
    Completion completion{*this, warp, lanes, {}};
    for (uint32_t i = 0; i < warp_lanes; ++i) {
        if (!(lanes >> i & 1)) continue;
        Thread& other = lane(warp, i);
        if (other.state != State::in_warp_collective || other.arrival.operation != wanted.operation ||
            other.arrival.kind != wanted.kind || other.arrival.mask != wanted.mask ||
            (aligned(wanted.operation) && other.arrival.site.line != wanted.site.line))
            return false;
        completion.arrivals[i] = &other.arrival;
    }
    switch (wanted.operation) {
        case Operation::synchronise:
            synchronise(warp, lanes);
            break;
        case Operation::shuffle:
            completion.shuffle(static_cast<Shuffle>(wanted.kind));
            break;
        case Operation::vote:
            completion.vote(static_cast<Vote>(wanted.kind));
            break;
        case Operation::reduce:
            completion.reduce(static_cast<Reduction>(wanted.kind), static_cast<uint32_t>(__builtin_ctz(lanes)));
            break;
        case Operation::match:
            completion.match(static_cast<Match>(wanted.kind));
            break;
        case Operation::ldmatrix:
            load_matrices(warp);
            break;
        case Operation::mma:
            multiply_matrices(static_cast<Product>(wanted.kind), completion.arrivals);
            break;
    }
    if (options.count) {
        static constexpr Instruction counted[] = {Instruction::warp_barrier, Instruction::shuffle,
                                                  Instruction::vote,         Instruction::reduce,
                                                  Instruction::match,        Instruction::ldmatrix};
        counting.add(wanted.operation == Operation::mma
                         ? static_cast<Instruction>(static_cast<int>(Instruction::mma_f16) + wanted.kind)
                         : counted[static_cast<int>(wanted.operation)]);
    }
    for (uint32_t i = 0; i < warp_lanes; ++i)
        if (lanes >> i & 1) lane(warp, i).state = State::ready;
    warp.ready |= lanes;
    return true;
}

// Vector clocks: each of these lanes now knows what any of them knew.
void Emulator::synchronise(Warp& warp, uint32_t lanes) {
    uint32_t known[warp_lanes] = {};
    for (uint32_t i = 0; i < warp_lanes; ++i)
        if (lanes >> i & 1)
            for (uint32_t j = 0; j < warp_lanes; ++j) known[j] = std::max(known[j], warp.clock[i][j]);
    for (uint32_t i = 0; i < warp_lanes; ++i) {
        if (!(lanes >> i & 1)) continue;
        std::copy(known, known + warp_lanes, warp.clock[i]);
        if (++warp.clock[i][i] >= Stamp::clocks && kernel.checked) {
            report(Kind::invalid_launch, lane(warp, i), lane(warp, i).arrival.site,
                   "checks reach to 2^16 warp barriers");
            abandon();
        }
    }
    if (options.count && lanes == (warp.lanes & ~warp.done)) counting.flush(warp.number);
}

}  // namespace cuda_emulation
