// Bands of a map with zero columns beside it, in which the direct kernels convolve; blocks of destination pixels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sliced_conv2d_plan.h"

namespace spos {

// Destination pixels in blocks: some rows of one image, or some whole images.
struct PixelBlocks {
    int64_t batch, height;
    int64_t images, rows, per_image, count;

    struct Block {
        int64_t image, images, first, end;  // the rows [first, end) of each of the images
    };

    // About `target` pixels a block.
    PixelBlocks(int64_t batch, int64_t height, int64_t width, int64_t target) : batch(batch), height(height) {
        const int64_t fit = std::clamp<int64_t>(target / (height * width), 1, std::max<int64_t>(batch, 1));
        images = ceil_div(batch, std::max<int64_t>(ceil_div(batch, fit), 1));  // as many in each block
        images = std::max<int64_t>(images, 1);
        per_image = images > 1 ? 1 : ceil_div(height, std::clamp<int64_t>(target / width, 1, height));
        rows = ceil_div(height, per_image);
        per_image = ceil_div(height, rows);
        count = ceil_div(batch, images) * per_image;
    }

    Block at(int64_t index) const {
        const int64_t image = index / per_image * images, first = index % per_image * rows;
        return {image, std::min(images, batch - image), first, std::min(first + rows, height)};
    }
};

// The source pixels that meet the windows of a block: for each image the rows inside of the map, for each row a pixel
// for every column that a window reaches, those outside of the map zero.
struct Band {
    Window rows, columns;
    int64_t height, width;  // of the source
    int64_t pitch;          // pixels of a row

    Band() = default;
    Band(const Window& rows, const Window& columns, int64_t height, int64_t width)
        : rows(rows),
          columns(columns),
          height(height),
          width(width),
          pitch((columns.count - 1) * columns.step + columns.taps) {}

    int64_t first_row(const PixelBlocks::Block& block) const {
        return std::clamp<int64_t>(block.first * rows.step + rows.start, 0, height);
    }
    int64_t row_count(const PixelBlocks::Block& block) const {
        const int64_t end = (block.end - 1) * rows.step + rows.start + rows.taps;
        return std::max<int64_t>(std::min(end, height) - first_row(block), 0);
    }
    // Of three taps, the first pixel of a row has one in front of the map and the last one behind it.
    bool has_edges() const {
        return columns.taps == 3 && columns.step == 1 && columns.start == -1 && columns.count == width && width > 1;
    }
    int64_t image_pixels(const PixelBlocks::Block& block) const { return row_count(block) * pitch; }
    // Of the largest block.
    int64_t most_pixels(const PixelBlocks& blocks) const {
        return blocks.images * std::min((blocks.rows - 1) * rows.step + rows.taps, height) * pitch;
    }

    // Blocks of `block` channels lie all images of the band apart.
    template <typename T>
    void fill(const SlicedConv2dBody<T>& body, const Map<const T>& source, const PixelBlocks::Block& pixels,
              int64_t channels, int64_t block, bool padded, T* to) const {
        const int64_t size = image_pixels(pixels);
        for (int64_t image = 0; image < pixels.images; ++image)
            body.direct_fill({source.data + (pixels.image + image) * source.n + first_row(pixels) * source.h, source.h,
                              source.w, width, row_count(pixels), pitch, columns.start, channels, block, padded, to,
                              pixels.images * size, image * size});
    }
};

}  // namespace spos
