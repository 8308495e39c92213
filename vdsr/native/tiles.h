// Which tiles does a layer have to compute of a patch, and which channels of them can it leave out?
//
// All tiles that touch the image, row by row, in batches of about one size. ReLU leaves many channels without a number
// other than zero in all that a patch reads: what is multiplied by them adds nothing, to the bit. So the products leave
// them out. In the weights that ship, that is about two fifths of all products on photographs, and a fifth on noise.
#pragma once

#include <cstdint>
#include <utility>

#include "stream.h"

namespace vdsr {

typedef int32_t Bits __attribute__((vector_size(LANES * sizeof(int32_t))));

// Calls batch(count, place) for each; place(t) is the top and left in the patch of its tile t, of OUT x OUT pixels.
template <int OUT, int TILES, class Batch>
void in_batches(const Area& area, Batch&& batch) {
    const int top = area.top / OUT * OUT, left = area.left / OUT * OUT;
    const int across = (area.right - left + OUT - 1) / OUT, down = (area.bottom - top + OUT - 1) / OUT;
    const int tiles = across * down, batches = (tiles + TILES - 1) / TILES;
    for (int i = 0; i < batches; ++i) {
        const int begin = tiles * i / batches, end = tiles * (i + 1) / batches;
        batch(end - begin, [=](int t) {
            return std::make_pair(top + (begin + t) / across * OUT, left + (begin + t) % across * OUT);
        });
    }
}

// Winograd's transform of a tile by its one-dimensional one: of its columns, then of its rows.
// rows[i]: where row i of the tile's IN x IN pixels begins; groups: registers of channels, from the first on
// keep(point, channel, vector): what to do with LANES channels from `channel` on
template <int IN, class Transform, class Keep>
inline void transform_tile(const float* const rows[IN], int groups, Transform&& transform, Keep&& keep) {
    for (int group = 0; group < groups; ++group) {
        Vector half[IN][IN];  // [point down][pixel across]
        for (int x = 0; x < IN; ++x) {
            Vector pixels[IN], column[IN];
            for (int y = 0; y < IN; ++y) pixels[y] = load(rows[y] + x * CHANNELS + group * LANES);
            transform(pixels, column);
            for (int p = 0; p < IN; ++p) half[p][x] = column[p];
        }
        for (int p = 0; p < IN; ++p) {
            Vector row[IN];
            transform(half[p], row);
            for (int q = 0; q < IN; ++q) keep(p * IN + q, group * LANES, row[q]);
        }
    }
}

// What is not zero everywhere: channels, or groups of them.
struct Live {
    int count = 0;
    size_t list[CHANNELS];
    bool has[CHANNELS] = {};

    void add(int i) {
        list[count++] = i;
        has[i] = true;
    }
};

inline const Live& every_channel() {
    static const Live every = [] {
        Live live;
        for (int channel = 0; channel < CHANNELS; ++channel) live.add(channel);
        return live;
    }();
    return every;
}

// Of the pixels, of 64 floats, in the rows top..bottom and columns left..right of a patch.
inline Live live_channels(const Patch& patch, int top, int bottom, int left, int right) {
    Bits any[GROUPS] = {};
    for (int y = top; y < bottom; ++y) {
        const float* pixel = patch.at<float>(y, left);
        for (int x = left; x < right; ++x, pixel += CHANNELS)
            for (int group = 0; group < GROUPS; ++group) any[group] |= (Bits)load(pixel + group * LANES);
    }
    Live live;
    for (int channel = 0; channel < CHANNELS; ++channel)
        if (any[channel / LANES][channel % LANES]) live.add(channel);
    return live;
}

// Of what the tiles first..last of a batch read.
template <int OUT, class Place>
Live live_channels(const Patch& patch, const Area& area, Place&& place, int first, int last) {
    const auto [top, left] = place(first);
    const auto [bottom, right] = place(last);
    const bool one_row = top == bottom;
    return live_channels(patch, top, bottom + OUT + MARGIN, one_row ? left : area.left / OUT * OUT,
                         one_row ? right + OUT + MARGIN : (area.right + OUT - 1) / OUT * OUT + MARGIN);
}

}  // namespace vdsr
