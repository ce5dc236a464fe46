// Who accessed which byte last, and the memory of blocks and of the host that this is kept for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cuda_emulation {

// One access, as far as its order to later ones needs it: the thread, how many block barriers that had passed, and how
// many warp barriers. In 64 bits, because there are three to a cell. Block numbers start at 1: 0 is no access at all.
class Stamp {
  public:
    static constexpr uint64_t blocks = 1u << 20, epochs = 1u << 17, clocks = 1u << 16;
    Stamp() = default;
    Stamp(uint64_t block, uint64_t epoch, uint64_t thread, uint64_t clock, bool atomic)
        : bits_(block << 44 | epoch << 27 | thread << 17 | clock << 1 | (atomic ? 1 : 0)) {}
    explicit operator bool() const { return bits_ != 0; }
    uint32_t block() const { return static_cast<uint32_t>(bits_ >> 44); }
    uint32_t epoch() const { return bits_ >> 27 & (epochs - 1); }
    uint32_t thread() const { return bits_ >> 17 & 1023; }
    uint32_t clock() const { return bits_ >> 1 & (clocks - 1); }
    bool atomic() const { return bits_ & 1; }

  private:
    uint64_t bits_ = 0;
};

// Two reads by different threads: whoever writes without order, one of them is someone else's.
struct Cell {
    Stamp write, read[2], added;  // added: an atomic operation before `write`, not ordered before that one
    int32_t write_site = 0, read_site[2] = {0, 0}, added_site = 0;
};

// Cells for a range of memory. They are of four bytes until a smaller access comes, then of one. Cells of another
// generation than the one asked for count as untouched, so that a new block or launch costs only what it touches.
class Shadow {
  public:
    explicit Shadow(size_t bytes) : pages_((bytes + page_bytes - 1) / page_bytes) {}

    template <typename Visit>
    void visit(size_t offset, size_t size, uint64_t generation, const Visit& visit) {
        while (size > 0) {
            const size_t within = offset % page_bytes;
            const size_t portion = size < page_bytes - within ? size : page_bytes - within;
            Page& page = pages_[offset / page_bytes];
            page.prepare(generation, (within | portion) % 4 == 0);
            for (size_t i = within >> page.shift; i < (within + portion) >> page.shift; ++i) visit(page.cells[i]);
            offset += portion;
            size -= portion;
        }
    }

  private:
    static constexpr size_t page_bytes = 1024;
    struct Page {
        uint64_t generation = 0;
        int shift = 2;
        std::vector<Cell> cells;

        void prepare(uint64_t wanted, bool whole_words) {
            if (generation != wanted) {
                generation = wanted;
                shift = 2;
                cells.assign(page_bytes / 4, Cell());
            }
            if (whole_words || shift == 0) return;
            std::vector<Cell> bytes(page_bytes);
            for (size_t i = 0; i < page_bytes; ++i) bytes[i] = cells[i / 4];
            cells.swap(bytes);
            shift = 0;
        }
    };
    std::vector<Page> pages_;
};

// The shared memory of the running block: the dynamic part, then one piece for each SHARED_ARRAY that was met, with
// gaps between them, so that one byte too far is nobody's.
class SharedMemory {
  public:
    enum State : uint8_t { unallocated, uninitialised, initialised, pending };
    static constexpr size_t most_static = 48 * 1024, most = 227 * 1024;

    SharedMemory();
    void start_launch(size_t dynamic_bytes);
    void start_block();
    // The address of a SHARED_ARRAY, or null when it does not fit.
    void* array(const void* site, size_t bytes, size_t alignment);
    char* base() const { return base_.get(); }
    bool contains(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(base_.get()) < capacity; }
    State* states(uintptr_t address) { return &states_[address - reinterpret_cast<uintptr_t>(base_.get())]; }

    Shadow shadow;

  private:
    static constexpr size_t capacity = 512 * 1024, gap = 128;
    struct Piece {
        const void* site;
        size_t offset, bytes;
    };
    void clear(const Piece& piece);

    struct Free {
        void operator()(char* memory) const;
    };
    std::unique_ptr<char, Free> base_;
    std::vector<State> states_;
    std::vector<Piece> pieces_;
    size_t end_ = 0, static_bytes_ = 0, dynamic_bytes_ = 0;
};

// The memory that the host registered.
struct Buffer {
    uintptr_t begin;
    size_t bytes;
    std::string name;
    bool read_only;
    std::unique_ptr<Shadow> shadow;
    uintptr_t end() const { return begin + bytes; }
};
class Registry {
  public:
    void add(uintptr_t begin, size_t bytes, const char* name, bool read_only);
    void remove(uintptr_t begin);
    // The one that holds `address`, else null.
    Buffer* find(uintptr_t address);
    // The one whose begin or end is nearest, null if there is none.
    const Buffer* nearest(uintptr_t address) const;

  private:
    std::vector<std::unique_ptr<Buffer>> buffers_;  // by begin
    Buffer* last_ = nullptr;
};

}  // namespace cuda_emulation
