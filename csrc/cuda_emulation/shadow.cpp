#include "cuda_emulation/shadow.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace cuda_emulation {

void SharedMemory::Free::operator()(char* memory) const { std::free(memory); }

SharedMemory::SharedMemory()
    : shadow(capacity), base_(static_cast<char*>(std::aligned_alloc(1024, capacity))), states_(capacity, unallocated) {}

void SharedMemory::start_launch(size_t dynamic_bytes) {
    std::fill(states_.begin(), states_.begin() + static_cast<std::ptrdiff_t>(end_), unallocated);
    pieces_.clear();
    pieces_.push_back({nullptr, 0, dynamic_bytes});
    dynamic_bytes_ = dynamic_bytes;
    static_bytes_ = 0;
    end_ = (dynamic_bytes + gap - 1) / gap * gap + gap;
}

void SharedMemory::start_block() {
    for (const Piece& piece : pieces_) clear(piece);
}

// All ones is NaN as a float, and -1 or the largest index: whatever it is used for, it shows.
void SharedMemory::clear(const Piece& piece) {
    std::memset(base_.get() + piece.offset, 0xff, piece.bytes);
    std::memset(&states_[piece.offset], uninitialised, piece.bytes);
}

void* SharedMemory::array(const void* site, size_t bytes, size_t alignment) {
    for (const Piece& piece : pieces_)
        if (piece.site == site) return base_.get() + piece.offset;
    static_bytes_ = (static_bytes_ + alignment - 1) / alignment * alignment + bytes;
    const Piece piece{site, end_, bytes};
    end_ += (bytes + gap - 1) / gap * gap + gap;
    if (static_bytes_ > most_static || static_bytes_ + dynamic_bytes_ > most || end_ > capacity) return nullptr;
    pieces_.push_back(piece);
    clear(piece);
    return base_.get() + piece.offset;
}

namespace {
bool begins_after(uintptr_t address, const std::unique_ptr<Buffer>& buffer) { return address < buffer->begin; }
}  // namespace

void Registry::add(uintptr_t begin, size_t bytes, const char* name, bool read_only) {
    const auto place = std::upper_bound(buffers_.begin(), buffers_.end(), begin, begins_after);
    auto buffer = std::make_unique<Buffer>();
    *buffer = {begin, bytes, name, read_only, std::make_unique<Shadow>(bytes)};
    buffers_.insert(place, std::move(buffer));
}

void Registry::remove(uintptr_t begin) {
    last_ = nullptr;
    const auto after = std::upper_bound(buffers_.begin(), buffers_.end(), begin, begins_after);
    if (after != buffers_.begin() && (*std::prev(after))->begin == begin) buffers_.erase(std::prev(after));
}

Buffer* Registry::find(uintptr_t address) {
    if (last_ && address - last_->begin < last_->bytes) return last_;
    const auto after = std::upper_bound(buffers_.begin(), buffers_.end(), address, begins_after);
    if (after == buffers_.begin()) return nullptr;
    Buffer* const buffer = std::prev(after)->get();
    if (address - buffer->begin >= buffer->bytes) return nullptr;
    return last_ = buffer;
}

const Buffer* Registry::nearest(uintptr_t address) const {
    const Buffer* nearest = nullptr;
    uintptr_t least = UINTPTR_MAX;
    for (const auto& buffer : buffers_) {
        const uintptr_t distance = address < buffer->begin ? buffer->begin - address : address - buffer->end();
        if (distance < least) {
            least = distance;
            nearest = buffer.get();
        }
    }
    return nearest;
}

}  // namespace cuda_emulation
