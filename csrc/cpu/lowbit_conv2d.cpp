// Convolution of codes by packed codes.
//
// Work      pixels * outputs * k multiply-adds of integers, k = taps * channels.
// Bytes     The codes of x, one each (four if they come as floats, once), the packed weights, and what finish writes.
// Method    Weights are unpacked into panels, once a call, or where they are more than L2 holds by each thread that
//           needs them, into a place that stays there. A task takes some rows of pixels and a panel: it notes where the
//           taps of its pixels lie, and multiplies them there; sums of products become outputs while they are in L1. A
//           panel stays in L2 while all rows pass by, and the map with it, nine times smaller than its windows.
//           Bytes that do not come by fours, weights with scales of groups, and bit planes, into which pixels are
//           turned beforehand, are gathered (im2row) into a block that stays in L2 while some panels pass by.
#include "cpu/lowbit_conv2d.h"

#include <algorithm>

#include "core/arena.h"
#include "core/parallel.h"
#include "cpu/lowbit_guess.h"
#include "cpu/lowbit_windows.h"
#include "cpu/lowbit_zeros.h"

namespace spos {
namespace {

template <typename Real>
class Convolution {
  public:
    Convolution(Isa isa, const LowbitConv2d<Real>& call, void* workspace, int threads)
        : call_(call),
          windows_(call),
          body_(lowbit_body(isa)),
          floats_(body_.in<Real>()),
          arena_(workspace),
          counting_(!workspace),
          threads_(threads),
          zeros_(call) {}

    size_t run() {
        const int64_t outputs = call_.groups * call_.outputs * call_.scale_groups;
        zeros_.prepare(arena_, counting_);
        float* const guess = arena_.take<float>(guesses() ? 3 * outputs : 0);
        if (!counting_ && guesses() && !zeros_.wide())
            guess_ = make_lowbit_guess(call_.finish, call_.multiplier, outputs, guess);
        quantize();
        // The depthwise loop sums whole results in 32 bits.
        const int64_t largest = ((int64_t{1} << call_.x_bits) - 1) * (int64_t{zeros_.multiple()} << call_.w_bits);
        if (call_.groups > 1 && call_.inputs == 1 && call_.outputs == 1 && taps() * largest <= INT32_MAX)
            depthwise();
        else if (call_.method == LowbitMethod::row)
            rows();
        else
            products();
        return arena_.used();
    }

  private:
    bool by_bits() const { return call_.method == LowbitMethod::bits; }
    int64_t in_pixels() const { return call_.batch * call_.in_height * call_.in_width; }
    int64_t taps() const { return static_cast<int64_t>(call_.kernel.height) * call_.kernel.width; }

    // Are codes all that is wanted?
    bool guesses() const {
        const LowbitFinish<Real>& finish = call_.finish;
        return call_.scale_groups == 1 && finish.codes && !finish.y && !finish.residual && !finish.residual_codes;
    }

    LowbitFinish<Real> finish_of(int64_t scale_group) const {
        LowbitFinish<Real> finish = call_.finish;
        const int64_t at = scale_group * call_.groups * call_.outputs;
        zeros_.tell(finish, at);
        finish.multiplier = call_.multiplier ? call_.multiplier + at : nullptr;
        finish.guess = guess_;
        return finish;
    }

    void quantize() {
        const int64_t channels = call_.groups * call_.inputs, pixels = in_pixels();
        codes_ = call_.codes, stride_ = call_.x_stride;
        if (!call_.floats) return;
        uint8_t* const to = arena_.take<uint8_t>(pixels * channels);
        codes_ = to, stride_ = channels;
        if (counting_) return;
        parallel_for(chunks(pixels), threads_, [&](int64_t begin, int64_t end) {
            for (int64_t pixel = begin * chunk; pixel < std::min(end * chunk, pixels); ++pixel)
                floats_.quantize(call_.floats + pixel * call_.x_stride, channels, call_.x_scale, call_.x_zero,
                                 (1 << call_.x_bits) - 1, to + pixel * channels);
        });
    }

    // Every tap of a channel, all channels at once.
    void depthwise() {
        const int64_t channels = call_.groups, taps = this->taps();
        int32_t* const weight = arena_.take<int32_t>(taps * channels);
        uint8_t* const row = arena_.take<uint8_t>(taps);
        int32_t* const lines = arena_.take<int32_t>(threads_ * channels);
        if (counting_) return;
        const int64_t row_bytes = packed_bytes(taps, call_.w_bits);
        for (int64_t c = 0; c < channels; ++c) {
            body_.unpack(call_.weight + c * row_bytes, taps, call_.w_bits, row);
            for (int64_t tap = 0; tap < taps; ++tap)
                weight[tap * channels + c] = zeros_.multiple() * row[tap] - zeros_.of(c);
            zeros_.forget(c);
        }
        LowbitFinish<Real> finish = finish_of(0);
        finish.row_factor = nullptr, finish.shift = 0, finish.wide = false;
        parallel_for(call_.batch * call_.out_height, threads_, [&](int64_t begin, int64_t end, int slot) {
            int32_t* const acc = lines + slot * channels;
            for (int64_t pixel = begin * call_.out_width; pixel < end * call_.out_width; ++pixel) {
                std::fill(acc, acc + channels, 0);
                windows_.for_taps(pixel, [&](int64_t tap, int64_t from) {
                    if (from >= 0)
                        body_.depthwise(codes_ + from * stride_, call_.x_zero, weight + tap * channels, channels, acc);
                });
                floats_.finish(finish, {1, 0, channels, acc, channels, nullptr, pixel * channels, channels});
            }
        });
    }

    // A few rows by packed weights as they are.
    void rows() {
        const int64_t rows = call_.pixels(), k = call_.k(), outputs = call_.outputs;
        const int64_t part = k / call_.scale_groups;
        const int64_t spread = spread_size(part);  // a group's
        int8_t* const centred = arena_.take<int8_t>(rows * call_.scale_groups * spread);
        int32_t* const row_sums = arena_.take<int32_t>(rows * call_.scale_groups);
        int32_t* const acc = arena_.take<int32_t>(outputs);
        Real* const lines = arena_.take<Real>(call_.scale_groups > 1 ? outputs : 0);
        if (counting_) return;
        for (int64_t row = 0; row < rows; ++row) {
            const uint8_t* const codes = codes_ + row * stride_;
            for (int64_t group = 0; group < call_.scale_groups; ++group) {
                const int64_t at = row * call_.scale_groups + group;
                body_.spread(codes + group * part, part, call_.w_bits, centred + at * spread);
                row_sums[at] = body_.sum(codes + group * part, part);
            }
        }
        constexpr int64_t step = 32;  // outputs
        const int64_t row_bytes = packed_bytes(k, call_.w_bits);
        for (int64_t row = 0; row < rows; ++row) {
            parallel_for((outputs + step - 1) / step, threads_, [&](int64_t begin, int64_t end) {
                const int64_t first = begin * step, last = std::min(end * step, outputs);
                for (int64_t group = 0; group < call_.scale_groups; ++group) {
                    const PackedRows weight{call_.weight + group * part * call_.w_bits / 8, row_bytes, part,
                                            call_.w_bits};
                    body_.row({centred + (row * call_.scale_groups + group) * spread, weight,
                               call_.sums + group * outputs, first, last, acc});
                    const FinishRows done{1,
                                          first,
                                          last - first,
                                          acc + first,
                                          outputs,
                                          row_sums + row * call_.scale_groups + group,
                                          row * outputs,
                                          outputs};
                    finish_group(group, done, lines ? lines + first : nullptr);
                }
            });
        }
    }

    void finish_group(int64_t group, const FinishRows& done, Real* lines) const {
        const LowbitFinish<Real> finish = finish_of(group);
        if (call_.scale_groups == 1) return floats_.finish(finish, done);
        floats_.add_scaled(finish, done, lines, group == 0);
        if (group + 1 == call_.scale_groups) floats_.finish_lines(finish, done, lines);
    }

    void products() {
        const int64_t outputs = call_.outputs, k = call_.k(), part = k / call_.scale_groups;
        lanes_ = by_bits() ? body_.bit_lanes : body_.lanes;
        const int64_t vectors = (outputs + lanes_ - 1) / lanes_, widest = by_bits() ? body_.bit_panel : body_.panel;
        panels_ = (vectors + widest - 1) / widest;
        words_ = (call_.inputs + 63) / 64;
        record_ = by_bits() ? call_.x_bits * words_ * 8 : call_.inputs;
        steps_ = (part + 3) / 4;
        row_ = by_bits() ? taps() * record_ : (k + 3) / 4 * 4;
        const bool in_place = taps() == 1 && call_.stride.height == 1 && call_.stride.width == 1 &&
                              call_.padding.height == 0 && call_.padding.width == 0 && (by_bits() || k % 4 == 0);
        const bool pointed = !by_bits() && call_.inputs % 4 == 0 && (call_.scale_groups == 1 || in_place);
        const int64_t width = widest * lanes_;
        // The bytes, or the words of all planes, of one column.
        const int64_t column = by_bits() ? call_.w_bits * taps() * words_ * 8 : call_.scale_groups * steps_ * 4;

        // Rows of a block: whole tiles of every height. Where all panels stay in L2 a block meets all of them, or
        // enough.
        constexpr int64_t block_bytes = 256 << 10, near_panels = 512 << 10;
        const int64_t tile = by_bits() ? 24 : body_.dot_rows;
        const int64_t pixels = call_.pixels(), tiles = (pixels + tile - 1) / tile, enough = 16 * threads_;
        const int64_t most =
            tile * std::clamp<int64_t>(pointed ? tiles * panels_ / enough : block_bytes / row_ / tile, 1, 4);
        const int64_t blocks = (pixels + most - 1) / most;
        const bool by_panels = pointed && vectors * lanes_ * column > near_panels;
        const int64_t cuts = by_panels ? panels_ : std::clamp<int64_t>((enough + blocks - 1) / blocks, 1, panels_);

        const int64_t own_panel = width * (column + 64);  // of a thread: tiles are read to their end
        uint8_t* const panels =
            arena_.take<uint8_t>(by_panels ? threads_ * own_panel : vectors * lanes_ * column + 64 * width);
        constexpr int64_t apart = 8;  // lines of cache
        int64_t* const packed_panels = arena_.take<int64_t>(threads_ * apart);
        uint8_t* const planes = arena_.take<uint8_t>(by_bits() ? in_pixels() * record_ : 0);
        int32_t* const pixel_sums = arena_.take<int32_t>(in_pixels() * call_.scale_groups);
        uint8_t* const outside = arena_.take<uint8_t>(record_ + 64);
        const int64_t rounded = (k + 63) / 64 * 64;
        const int64_t scratch = by_bits() ? rounded + 64 * words_ : lanes_ * ((part + 63) / 64 * 64);
        const int64_t sums = most * call_.scale_groups;
        uint8_t* const scratches = arena_.take<uint8_t>(threads_ * scratch);
        const uint8_t** const places = arena_.take<const uint8_t*>(by_bits() ? 0 : threads_ * most * taps());
        uint8_t* const gathered = arena_.take<uint8_t>(pointed || in_place ? 0 : threads_ * most * row_);
        int32_t* const accs = arena_.take<int32_t>(threads_ * most * width);
        Real* const lines = arena_.take<Real>(call_.scale_groups > 1 ? threads_ * most * width : 0);
        int32_t* const row_sums = arena_.take<int32_t>(threads_ * sums);
        if (counting_) return;

        for (int64_t group = 0; group < call_.groups; ++group) {
            if (!by_panels) pack_panels(group, panels, column, scratches, scratch);
            prepare_pixels(group, planes, pixel_sums);
            const uint8_t* const source = by_bits() ? planes : codes_ + group * call_.inputs;
            const int64_t stride = by_bits() ? record_ : stride_;
            make_outside(outside);
            std::fill(packed_panels, packed_panels + threads_ * apart, int64_t{-1});
            parallel_for(blocks * cuts, threads_, [&](int64_t begin, int64_t end, int slot) {
                uint8_t* const own = gathered + slot * most * row_;
                Rows rows{0, 0, own, row_, places + slot * most * taps(), most, 1, row_sums + slot * sums};
                int64_t& packed = packed_panels[slot * apart];
                for (int64_t task = begin; task < end; ++task) {
                    const int64_t block = by_panels ? task % blocks : task / cuts;
                    const int64_t cut = by_panels ? task / blocks : task % cuts;
                    rows.first = tiles * block / blocks * tile;
                    rows.end = std::min(tiles * (block + 1) / blocks * tile, pixels);
                    if (in_place)
                        rows.a = source + rows.first * stride, rows.a_m = stride;
                    else if (!pointed)
                        windows_.gather(body_, rows.first, rows.end, source, stride, outside, record_, row_, own);
                    if (zeros_.any_factor()) windows_.sum_rows(rows.first, rows.end, pixel_sums, rows.sums);
                    if (pointed && !in_place) {
                        windows_.point(rows.first, rows.end, source, stride, outside, most, rows.places);
                        rows.taps = taps();
                    } else if (!by_bits()) {
                        for (int64_t row = 0; row < rows.count(); ++row) rows.places[row] = rows.a + row * rows.a_m;
                    }
                    for (int64_t panel = panels_ * cut / cuts; panel < panels_ * (cut + 1) / cuts; ++panel) {
                        uint8_t* b = panels + first_vector(panel) * lanes_ * column;
                        if (by_panels) {
                            b = panels + slot * own_panel;
                            if (panel != packed) pack_panel(group, panel, scratches + slot * scratch, b);
                            packed = panel;
                        }
                        multiply(group, panel, rows, b, accs + slot * most * width,
                                 lines + (call_.scale_groups > 1 ? slot * most * width : 0));
                    }
                }
            });
        }
    }

    // The windows of pixels first .. end - 1: as rows a_m apart, or for bytes by their places, [tap][row].
    struct Rows {
        int64_t first, end;
        const uint8_t* a;
        int64_t a_m;
        const uint8_t** places;
        int64_t places_tap, taps;
        int32_t* sums;
        int64_t count() const { return end - first; }
    };

    // Panels are vectors spread evenly.
    int64_t first_vector(int64_t panel) const { return (call_.outputs + lanes_ - 1) / lanes_ * panel / panels_; }

    void pack_panels(int64_t group, uint8_t* panels, int64_t column, uint8_t* scratches, int64_t scratch) {
        parallel_for(panels_, call_.outputs * call_.k() > 16384 ? threads_ : 1,
                     [&](int64_t begin, int64_t end, int slot) {
                         for (int64_t panel = begin; panel < end; ++panel)
                             pack_panel(group, panel, scratches + slot * scratch,
                                        panels + first_vector(panel) * lanes_ * column);
                     });
    }

    void pack_panel(int64_t group, int64_t panel, uint8_t* scratch, uint8_t* to) const {
        const int64_t row_bytes = packed_bytes(call_.k(), call_.w_bits), part = call_.k() / call_.scale_groups;
        const uint8_t* const weight = call_.weight + group * call_.outputs * row_bytes;
        const int64_t vector = first_vector(panel), first = vector * lanes_;
        const int vectors = static_cast<int>(first_vector(panel + 1) - vector);
        const int64_t count = std::min(vectors * lanes_, call_.outputs - first);
        if (by_bits())
            return body_.pack_bits({weight, row_bytes, call_.k(), call_.w_bits, taps()}, first, count, vectors, scratch,
                                   reinterpret_cast<uint64_t*>(to));
        for (int64_t i = 0; i < call_.scale_groups; ++i)
            body_.pack_dots({weight + i * part * call_.w_bits / 8, row_bytes, part, call_.w_bits}, first, count,
                            vectors, zeros_.weight_codes(), scratch,
                            reinterpret_cast<int8_t*>(to + i * steps_ * 4 * vectors * lanes_));
    }

    // Bit planes of the pixels, and the sums of their codes.
    void prepare_pixels(int64_t group, uint8_t* planes, int32_t* sums) {
        if (!by_bits() && !zeros_.any_factor()) return;
        const int64_t pixels = in_pixels(), part = call_.inputs / call_.scale_groups;
        parallel_for(chunks(pixels), threads_, [&](int64_t begin, int64_t end) {
            for (int64_t pixel = begin * chunk; pixel < std::min(end * chunk, pixels); ++pixel) {
                const uint8_t* const codes = codes_ + pixel * stride_ + group * call_.inputs;
                if (by_bits())
                    body_.planes(codes, call_.inputs, call_.x_bits, words_,
                                 reinterpret_cast<uint64_t*>(planes + pixel * record_));
                for (int64_t i = 0; zeros_.any_factor() && i < call_.scale_groups; ++i)
                    sums[pixel * call_.scale_groups + i] = body_.sum(codes + i * part, part);
            }
        });
    }

    // The record of a pixel outside of the map: zeros of x.
    void make_outside(uint8_t* to) {
        if (!by_bits()) return static_cast<void>(std::fill(to, to + record_, static_cast<uint8_t>(call_.x_zero)));
        uint64_t* const words = reinterpret_cast<uint64_t*>(to);
        for (int plane = 0; plane < call_.x_bits; ++plane)
            for (int64_t word = 0; word < words_; ++word) {
                const int64_t bits = std::min<int64_t>(64, call_.inputs - 64 * word);
                const uint64_t ones = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
                words[plane * words_ + word] = call_.x_zero >> plane & 1 ? ones : 0;
            }
    }

    void multiply(int64_t group, int64_t panel, const Rows& rows, const uint8_t* b, int32_t* acc, Real* lines) const {
        const int64_t vector = first_vector(panel), n0 = vector * lanes_, count = rows.count();
        const int vectors = static_cast<int>(first_vector(panel + 1) - vector);
        const int64_t width = vectors * lanes_, part = call_.k() / call_.scale_groups;
        const int64_t all = call_.groups * call_.outputs;
        for (int64_t i = 0; i < call_.scale_groups; ++i) {
            if (by_bits()) {
                body_.bits({count, taps(), words_, call_.x_bits, call_.w_bits,
                            reinterpret_cast<const uint64_t*>(rows.a), rows.a_m / 8,
                            reinterpret_cast<const uint64_t*>(b), vectors, acc, width});
            } else {
                body_.dots({count, rows.taps, steps_ / rows.taps, rows.places, rows.places_tap, i * part,
                            reinterpret_cast<const int8_t*>(b + i * steps_ * 4 * width), vectors, acc, width,
                            zeros_.large()});
            }
            finish_group(i,
                         {count, group * call_.outputs + n0, std::min(width, call_.outputs - n0), acc, width,
                          rows.sums + i * count, rows.first * all, all},
                         lines);
        }
    }

    static constexpr int64_t chunk = 64;  // pixels
    static int64_t chunks(int64_t pixels) { return (pixels + chunk - 1) / chunk; }

    const LowbitConv2d<Real>& call_;
    LowbitWindows windows_;
    LowbitBody body_;
    LowbitFloatBody<Real> floats_;
    Arena arena_;
    bool counting_;
    int threads_;
    LowbitZeros<Real> zeros_;
    LowbitGuess guess_{};
    const uint8_t* codes_ = nullptr;
    int64_t stride_ = 0;
    int64_t lanes_ = 0, panels_ = 0, words_ = 0, record_ = 0, steps_ = 0, row_ = 0;
};

}  // namespace

template <typename Real>
size_t lowbit_conv2d_workspace(Isa isa, const LowbitConv2d<Real>& call, int threads) {
    return Convolution<Real>(isa, call, nullptr, threads).run();
}

template <typename Real>
void lowbit_conv2d(Isa isa, const LowbitConv2d<Real>& call, void* workspace, int threads) {
    Convolution<Real>(isa, call, workspace, threads).run();
}

template size_t lowbit_conv2d_workspace(Isa, const LowbitConv2d<float>&, int);
template size_t lowbit_conv2d_workspace(Isa, const LowbitConv2d<double>&, int);
template void lowbit_conv2d(Isa, const LowbitConv2d<float>&, void*, int);
template void lowbit_conv2d(Isa, const LowbitConv2d<double>&, void*, int);

}  // namespace spos
