// What is asked of each access to shared and global memory, and the order of accesses.
//
// Two accesses to a byte, not both reads and not both atomic, must be ordered: by a block barrier between them, by
// warp barriers (vector clocks within the warp), or, between blocks, by what these tell each other
// (between_blocks.h). A missing order is found whether or not the schedule that was run shows a wrong value.
#include <link.h>

#include "cuda_emulation/runtime.h"

namespace cuda_emulation {
namespace {

const char* verb(Access access) {
    return access == Access::read ? "read" : access == Access::write ? "write" : "atomic operation";
}

std::string bytes_of(size_t size) { return std::to_string(size) + (size == 1 ? " byte" : " bytes"); }

// Constants, literals and tables of the program and its libraries, which are a kernel's own on a device too. Variables
// of the host are not.
bool is_constant(uintptr_t address) {
    const auto visit = [](dl_phdr_info* module, size_t, void* wanted) {
        const uintptr_t address = *static_cast<const uintptr_t*>(wanted);
        for (int i = 0; i < module->dlpi_phnum; ++i) {
            const auto& segment = module->dlpi_phdr[i];
            if (segment.p_type == PT_LOAD && !(segment.p_flags & PF_W) &&
                address - (module->dlpi_addr + segment.p_vaddr) < segment.p_memsz)
                return 1;
        }
        return 0;
    };
    return dl_iterate_phdr(visit, &address) != 0;
}

}  // namespace

void Emulator::access(uintptr_t address, size_t size, Access access, bool aligned, uintptr_t pc) {
    const uintptr_t stack = reinterpret_cast<uintptr_t>(stacks_.stack(current->number));
    if (address - stack < Stacks::bytes) return;
    const uintptr_t arguments = reinterpret_cast<uintptr_t>(kernel.arguments);
    if (address - arguments < kernel.argument_bytes) return;
    preempt();
    Thread& thread = *current;
    if (aligned && address % size != 0) {
        report(Kind::misaligned, thread, {pc},
               std::string(verb(access)) + " of " + bytes_of(size) + " at an address that is not a multiple of it");
        abandon();
    }
    if (shared.contains(address)) {
        check_shared(thread, address, size, access, pc);
        if (options.count && access != Access::atomic)
            counting.add_access(thread.warp->number, thread.lane, pc,
                                access == Access::read ? Instruction::shared_load : Instruction::shared_store, address,
                                size);
    } else {
        check_global(thread, address, size, access, pc);
        if (options.count && access != Access::atomic)
            counting.add_access(thread.warp->number, thread.lane, pc,
                                access == Access::read ? Instruction::global_load : Instruction::global_store, address,
                                size);
    }
    if (options.count && access == Access::atomic) counting.add_atomic(address, !shared.contains(address));
}

void Emulator::check_shared(Thread& thread, uintptr_t address, size_t size, Access access, uintptr_t pc) {
    const size_t offset = address - reinterpret_cast<uintptr_t>(shared.base());
    bool uninitialised = false, pending = false;
    for (size_t i = 0; i < size; ++i) {
        if (!shared.contains(address + i) || *shared.states(address + i) == SharedMemory::unallocated) {
            report(
                Kind::out_of_bounds, thread, {pc},
                std::string(verb(access)) + " of " + bytes_of(size) + " of shared memory that are not all of an array");
            abandon();
        }
        SharedMemory::State& state = *shared.states(address + i);
        uninitialised |= state == SharedMemory::uninitialised;
        pending |= state == SharedMemory::pending;
        if (access != Access::read && state != SharedMemory::pending) state = SharedMemory::initialised;
    }
    if (uninitialised && access != Access::write)
        report(Kind::uninitialised_shared, thread, {pc},
               std::string(verb(access)) + " of " + bytes_of(size) + " of shared memory that no thread has written");
    if (pending)
        report(Kind::pending_copy, thread, {pc},
               std::string(verb(access)) + " of " + bytes_of(size) + " that a cp.async not yet waited for writes");
    check_order(thread, shared.shadow, offset, size, blocks_, access, pc, Kind::shared_race);
}

void Emulator::check_global(Thread& thread, uintptr_t address, size_t size, Access access, uintptr_t pc) {
    Buffer* const buffer = registry.find(address);
    if (!buffer || buffer->end() - address < size) {
        if (!buffer && access == Access::read && is_constant(address)) return;
        std::string text = std::string(verb(access)) + " of " + bytes_of(size);
        const Buffer* const near = registry.nearest(address);
        if (!near)
            text += ", and no global memory is registered";
        else if (address < near->begin)
            text += " that begin " + bytes_of(near->begin - address) + " before '" + near->name + "'";
        else
            text += " that end " + bytes_of(address + size - near->end()) + " beyond '" + near->name + "'";
        report(Kind::out_of_bounds, thread, {pc}, text);
        abandon();
    }
    if (access != Access::read && buffer->read_only) {
        report(Kind::write_to_constant, thread, {pc},
               std::string(verb(access)) + " of " + bytes_of(size) + " of '" + buffer->name + "', which is read-only");
        abandon();
    }
    check_order(thread, *buffer->shadow, address - buffer->begin, size, launches_, access, pc, Kind::global_race);
}

Stamp Emulator::stamp(const Thread& thread, Access access) const {
    return {block_number + 1u, epoch_, thread.number, thread.warp->clock[thread.lane][thread.lane],
            access == Access::atomic};
}

bool Emulator::ordered(Stamp earlier, const Thread& thread) const {
    if (!earlier) return true;
    if (earlier.block() != block_number + 1) return between_blocks_.ordered(earlier, here(thread));
    if (earlier.epoch() < epoch_) return true;
    if (earlier.thread() / warp_lanes == thread.warp->number &&
        thread.warp->clock[thread.lane][earlier.thread() % warp_lanes] >= earlier.clock())
        return true;
    return between_blocks_.ordered(earlier, here(thread));  // warps of a block tell each other in the same way
}

std::string Emulator::describe(Stamp stamp) const {
    const uint3 t = thread_index(stamp.thread()), b = block_index(stamp.block() - 1);
    const auto triple = [](uint3 index) {
        return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
    };
    return "thread " + triple(t) + " of block " + triple(b);
}

void Emulator::check_order(Thread& thread, Shadow& shadow, size_t offset, size_t size, uint64_t generation,
                           Access access, uintptr_t pc, Kind kind) {
    const Stamp now = stamp(thread, access);
    const int32_t here = distance(pc);
    bool reported = false;
    const auto race = [&](Stamp earlier, int32_t where, const char* what) {
        if (!reported)
            report(kind, thread, {pc},
                   std::string(verb(access)) + " not ordered after the " + what + " by " + describe(earlier),
                   {pc_at(where)});
        reported = true;
    };
    shadow.visit(offset, size, generation, [&](Cell& cell) {
        if (!(access == Access::atomic && cell.write.atomic()) && !ordered(cell.write, thread))
            race(cell.write, cell.write_site, "write");
        if (access != Access::atomic && !ordered(cell.added, thread)) race(cell.added, cell.added_site, "write");
        if (access == Access::read) {
            // In the place of this thread's own, or of one that is ordered before; else one of each block stays.
            int place = 1;
            if (cell.read[0].thread() == now.thread() && cell.read[0].block() == now.block())
                place = 0;
            else if (!ordered(cell.read[1], thread))
                place = ordered(cell.read[0], thread) ||
                                (cell.read[0].block() == now.block() && cell.read[1].block() != now.block())
                            ? 0
                            : 1;
            cell.read[place] = now;
            cell.read_site[place] = here;
            return;
        }
        for (int i = 0; i < 2; ++i)
            if (!ordered(cell.read[i], thread)) race(cell.read[i], cell.read_site[i], "read");
        if (access != Access::atomic)
            cell.added = Stamp();
        else if (ordered(cell.added, thread)) {
            cell.added = cell.write.atomic() && !ordered(cell.write, thread) ? cell.write : Stamp();
            cell.added_site = cell.write_site;
        }
        cell.write = now;
        cell.write_site = here;
        cell.read[0] = cell.read[1] = Stamp();
    });
}

BetweenBlocks::Here Emulator::here(const Thread& thread) const {
    return {block_number + 1u, epoch_, thread.warp->number, thread.lane, thread.warp->clock[thread.lane]};
}

void Emulator::order_through(uintptr_t address) {
    between_blocks_.atomic(address, current->fenced, here(*current));
    // What this thread does from now on is not what it has told of.
    uint32_t& clock = current->warp->clock[current->lane][current->lane];
    if (current->fenced && ++clock >= Stamp::clocks && kernel.checked) {
        report(Kind::invalid_launch, *current, {},
               "checks reach to 2^16 fenced atomic operations and warp barriers of a thread");
        abandon();
    }
}

void Emulator::start_copy(char* to, const char* from, int bytes, int source_bytes, uintptr_t pc) {
    Thread& thread = *current;
    const uintptr_t target = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
    const uintptr_t width = static_cast<uintptr_t>(bytes);
    if (!shared.contains(target)) {
        report(Kind::out_of_bounds, thread, {pc}, "cp.async to memory that is not shared");
        abandon();
    }
    if (target % width != 0 || source % width != 0 || source_bytes < 0 || source_bytes > bytes) {
        report(Kind::misaligned, thread, {pc},
               "cp.async of " + std::to_string(source_bytes) + " of " + std::to_string(bytes) +
                   " bytes between addresses not aligned to it");
        abandon();
    }
    if (kernel.checked) {
        if (source_bytes > 0) check_global(thread, source, static_cast<size_t>(source_bytes), Access::read, pc);
        check_shared(thread, target, width, Access::write, pc);
        for (uintptr_t i = 0; i < width; ++i) *shared.states(target + i) = SharedMemory::pending;
    }
    if (options.count) {
        counting.add_access(thread.warp->number, thread.lane, pc, Instruction::cp_async, source,
                            static_cast<size_t>(source_bytes));
        counting.add_access(thread.warp->number, thread.lane, pc, Counting::copy_target, target, width);
    }
    thread.copies.push_back({to, from, bytes, source_bytes, thread.groups + 1, pc});
}

// As late as the program allows: when it waits.
void Emulator::deliver_copies(uint64_t up_to_group) {
    Thread& thread = *current;
    size_t kept = 0;
    for (const AsyncCopy& copy : thread.copies) {
        if (copy.group > up_to_group) {
            thread.copies[kept++] = copy;
            continue;
        }
        std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
        if (copy.source_bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.source_bytes));
        if (!kernel.checked) continue;
        const uintptr_t target = reinterpret_cast<uintptr_t>(copy.to);
        for (int i = 0; i < copy.bytes; ++i)
            *shared.states(target + static_cast<uintptr_t>(i)) = SharedMemory::initialised;
        check_order(thread, shared.shadow, target - reinterpret_cast<uintptr_t>(shared.base()),
                    static_cast<size_t>(copy.bytes), blocks_, Access::write, copy.pc, Kind::shared_race);
    }
    thread.copies.resize(kept);
}

}  // namespace cuda_emulation
