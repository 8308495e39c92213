// How does an image of any height go through all layers, with no pixel computed twice and the activations in a cache?
//
// Patch by patch, each through all layers before the next. A layer's patch lies one pixel further up and to the left
// than that of the layer before, so that it sees nothing that is still to come, and nothing is computed twice:
//
//        plane p: the activations behind p layers                what a layer reads of the plane before it
//
//        plane 0   |----- k -----|--- k + 1 ---|                    . . + + + + + + + +
//        plane 1  |----- k -----|--- k + 1 ---|                     . . + + + + + + + +    . the neighbours' pixels
//        plane 2 |----- k -----|--- k + 1 ---|                      . . o o o o o o o o    + those of the band above
//        ...                                                        . . o o o o o o o o    o the patch's own
//
// A plane's patch has two columns of its left neighbour and two rows of the band above. The columns stay with the
// thread, which does a band from left to right; the rows lie in a store as wide as the image, where patch k of a band
// finds those of patch k above it, and leaves its own last two. So a band may begin while the one above is being
// computed, if it stays a patch behind: the threads take a band each.
//
//        band 0   # # # # # # # .        # done or being done
//        band 1   # # # # . . . .        a thread waits before patch k until the band above has done patch k
//        band 2   # # . . . . . .
//
// A kernel computes a layer of a patch in blocks that begin at multiples of GRID in the patch. HEIGHT and WIDTH are
// multiples of GRID, and a block's bits depend on its own pixels and those around it alone. So a pixel's bits do not
// depend on patches, pushes or threads, nor on where in an image a strip begins, if that is at a multiple of GRID and
// it has depth x GRID columns more on each side: one a layer would do for the sum, but not for its rounding.
#pragma once

#include "network.h"

namespace vdsr {

constexpr int MARGIN = 2;       // rows and columns that a patch has of its neighbours
constexpr int MOST_BANDS = 64;  // that are awaited before they are computed together

inline char* bytes(const Floats& memory) { return reinterpret_cast<char*>(memory.get()); }
inline Floats zeroed(size_t size_bytes) {
    Floats memory = floats((size_bytes + sizeof(float) - 1) / sizeof(float));
    std::memset(memory.get(), 0, size_bytes);
    return memory;
}

// A plane's pixels in hand: [MARGIN + HEIGHT][MARGIN + WIDTH]; (0, 0) is the first of the margin.
struct Patch {
    char* data;
    size_t row_bytes, pixel_bytes;

    char* at(int y, int x) const { return data + y * row_bytes + x * pixel_bytes; }
    template <class T>
    T* at(int y, int x) const {
        return reinterpret_cast<T*>(at(y, x));
    }
};

// The part of a patch that lies inside the image.
struct Area {
    int top, bottom, left, right;
    bool empty() const { return top == bottom || left == right; }
};

// Asks for what the next layer reads, a little at a time while this one computes: it lies in level 3.
class Ahead {
public:
    Ahead(const void* above, size_t size_bytes) : parts_{{}, {static_cast<const char*>(above), size_bytes}} {}
    void weights(const void* from, size_t size_bytes) { parts_[0] = {static_cast<const char*>(from), size_bytes}; }
    void fetch(int lines) {
        while (lines > 0 && part_ < 2)
            if (at_ < parts_[part_].size_bytes) {
                __builtin_prefetch(parts_[part_].from + at_, 0, 2);
                at_ += 64, --lines;
            } else at_ = 0, ++part_;
    }

private:
    struct {
        const char* from;
        size_t size_bytes;
    } parts_[2];
    int part_ = 0;
    size_t at_ = 0;
};

// What a Kernel has:
//     depth()                                    layers
//     HEIGHT, WIDTH, GRID                        of a patch, and of what is rounded together
//     ROW_BYTES                                  from one row of a patch to the next
//     Desk                                       a thread's memory, had before the threads begin: if one failed later,
//                                                the others would wait for it for ever
//     Hands(desk)                                what a thread works with, made by itself
//     pixel_bytes(plane)                         of an activation; of plane depth(): of what sum() reads
//     first(rows, left, right, to)               a row of plane 1 from the three of plane 0 around it
//     hidden(hands, plane, from, to, area, ahead)
//     before_last(hands, from, to)               makes in `to` what sum() reads instead of the last activations, if so
//     sum(patch, y, left, right, to)             a row of the residual
template <class Kernel>
class Stream {
public:
    Stream(std::shared_ptr<const Kernel> kernel, int height, int width)
        : kernel_(std::move(kernel)), height_(height), width_(width), row_(size_t(width) + 2),
          across_((width + depth() + WIDTH - 1) / WIDTH), bands_((height + depth() + HEIGHT - 1) / HEIGHT),
          zeros_(row_) {
        for (int plane = 1; plane < depth(); ++plane) store_.emplace_back(across_ * above_bytes(plane));
    }

    // Takes the next rows (count, width); writes the residual's next rows to out, and returns how many.
    int push(const float* rows, int count, float* out, int threads) {
        const int before = given_;
        const int together = std::clamp(2 * threads, 8, MOST_BANDS);
        do {
            const int taken = std::clamp((done_ + together) * HEIGHT - read_, 0, count);
            for (int y = 0; y < taken; ++y, rows += width_) {  // between two zeros each
                plane_.push_back(0);
                plane_.insert(plane_.end(), rows, rows + width_);
                plane_.push_back(0);
            }
            read_ += taken, count -= taken;
            const int ready = (read_ == height_ ? bands_ : read_ / HEIGHT) - done_;
            if (ready >= together || (ready > 0 && read_ == height_)) compute(ready, out, before, threads);
        } while (count > 0);
        return given_ - before;
    }

    static int delay(int depth) { return MOST_BANDS * HEIGHT + depth; }

private:
    static constexpr int HEIGHT = Kernel::HEIGHT, WIDTH = Kernel::WIDTH;
    static_assert(HEIGHT % Kernel::GRID == 0 && WIDTH % Kernel::GRID == 0, "a patch is made of whole blocks");

    // What one thread has in hand.
    struct Scratch {
        Floats patches[2];                       // a plane and the next, in turn
        std::vector<std::vector<char>> columns;  // each plane's last ones for the next patch: [2 + HEIGHT][2] pixels
        typename Kernel::Desk desk;

        explicit Scratch(const Stream& stream) {
            for (Floats& patch : patches) patch = zeroed((MARGIN + HEIGHT) * Kernel::ROW_BYTES);
            for (int plane = 1; plane < stream.depth(); ++plane) columns.emplace_back(stream.columns_bytes(plane));
        }
    };

    const std::shared_ptr<const Kernel> kernel_;
    const int height_, width_;
    const size_t row_;                      // of plane 0
    const int across_, bands_;              // patches in a band; bands
    std::vector<float> zeros_;              // a row of plane 0 outside the image
    std::vector<float> plane_;              // the rows of plane 0 that bands to come need, from first_ on
    std::vector<std::vector<char>> store_;  // each plane's rows for the band below: [patch][2][WIDTH] pixels
    std::vector<Scratch> scratch_;          // a thread
    int first_ = 0, read_ = 0, done_ = 0, given_ = 0;

    int depth() const { return kernel_->depth(); }
    // Of a pixel that a patch lends its neighbours. The last plane is lent as what the residual is summed of.
    size_t lent_bytes(int plane) const { return kernel_->pixel_bytes(plane == depth() - 1 ? depth() : plane); }
    size_t above_bytes(int plane) const { return MARGIN * WIDTH * lent_bytes(plane); }
    size_t columns_bytes(int plane) const { return (MARGIN + HEIGHT) * MARGIN * lent_bytes(plane); }
    char* above(int plane, int patch) { return store_[plane - 1].data() + patch * above_bytes(plane); }
    Patch patch_of(const Scratch& scratch, int plane) const {
        return {bytes(scratch.patches[plane % 2]), Kernel::ROW_BYTES, kernel_->pixel_bytes(plane)};
    }
    const float* input(int y) const {
        return (y < 0 || y >= height_ ? zeros_.data() : plane_.data() + (y - first_) * row_) + 1;
    }

    // The next bands; out: the residual's rows from `before` on.
    void compute(int count, float* out, int before, int threads) {
        threads = std::min({threads, count, across_});
        while (int(scratch_.size()) < threads) scratch_.emplace_back(*this);
        const std::unique_ptr<std::atomic<int>[]> finished(new std::atomic<int>[count]);  // patches of each band
        for (int i = 0; i < count; ++i) finished[i] = 0;
        std::atomic<int> thread{0}, next{0};
        in_parallel(threads, [&] {
            Scratch& scratch = scratch_[thread++];
            typename Kernel::Hands hands(scratch.desk);
            for (int i; (i = next++) < count;) {
                for (auto& columns : scratch.columns)  // zeros lie left of the image
                    std::fill(columns.begin(), columns.end(), 0);
                for (int patch = 0; patch < across_; ++patch) {
                    if (i > 0) spin_until([&] { return finished[i - 1].load(std::memory_order_acquire) > patch; });
                    through_all_layers(hands, scratch, done_ + i, patch, out, before);
                    finished[i].store(patch + 1, std::memory_order_release);
                }
            }
        });
        done_ += count;
        given_ = std::clamp(done_ * HEIGHT - depth(), 0, height_);
        const int needed = std::min(done_ * HEIGHT - MARGIN, read_);
        plane_.erase(plane_.begin(), plane_.begin() + (needed - first_) * row_);
        first_ = needed;
    }

    void through_all_layers(typename Kernel::Hands& hands, Scratch& scratch, int band, int patch, float* out,
                            int before) {
        for (int plane = 1; plane < depth(); ++plane) {
            const Area area = inside(plane, band, patch);
            const Patch from = patch_of(scratch, plane - 1), to = patch_of(scratch, plane);
            if (!area.empty()) {
                const int next = std::min(plane + 1, depth() - 1);
                Ahead ahead(above(next, patch), above_bytes(next));
                if (plane == 1) first(to, band, patch, area);
                else kernel_->hidden(hands, plane, from, to, area, ahead);
            }
            clear_around(to, area);
            if (plane < depth() - 1) exchange(scratch, plane, patch, to);
        }
        Patch last = patch_of(scratch, depth() - 1);
        const Patch other = patch_of(scratch, depth());
        if (kernel_->before_last(hands, last, other)) last = other;
        exchange(scratch, depth() - 1, patch, last);
        const Area area = inside(depth(), band, patch);
        for (int y = area.top; y < area.bottom; ++y) {
            float* const to = out + ptrdiff_t(band * HEIGHT - depth() + y - before) * width_;
            kernel_->sum(last, y, area.left, area.right, to + patch * WIDTH - depth());
        }
    }

    Area inside(int plane, int band, int patch) const {
        const int y = band * HEIGHT - plane, x = patch * WIDTH - plane;
        return {std::clamp(-y, 0, HEIGHT), std::clamp(height_ - y, 0, HEIGHT), std::clamp(-x, 0, WIDTH),
                std::clamp(width_ - x, 0, WIDTH)};
    }

    void first(const Patch& to, int band, int patch, const Area& area) const {
        for (int y = area.top; y < area.bottom; ++y) {
            const float* rows[3];
            for (int i = 0; i < 3; ++i) rows[i] = input(band * HEIGHT - 1 + y + i - 1) + patch * WIDTH - 1 + area.left;
            kernel_->first(rows, area.left, area.right, to.at(MARGIN + y, MARGIN));
        }
    }

    // The image lies among zeros, whatever a block that reaches beyond it has made: as far as the next one sees.
    void clear_around(const Patch& patch, const Area& area) const {
        constexpr int SEEN = 2 * Kernel::GRID;
        const int left = std::max(area.left - SEEN, 0), right = std::min(area.right + SEEN, WIDTH);
        const int bottom = std::min(area.bottom + SEEN, HEIGHT);
        auto clear = [&](int y, int from, int to) {
            if (from < to) std::memset(patch.at(MARGIN + y, MARGIN + from), 0, (to - from) * patch.pixel_bytes);
        };
        for (int y = std::max(area.top - SEEN, 0); y < bottom; ++y)
            if (y < area.top || y >= area.bottom) clear(y, left, right);
            else clear(y, left, area.left), clear(y, area.right, right);
    }

    // Takes the margins of a plane's patch from its neighbours, and leaves theirs for the next ones.
    void exchange(Scratch& scratch, int plane, int patch, const Patch& of) {
        const size_t across = WIDTH * of.pixel_bytes, beside = MARGIN * of.pixel_bytes;
        char* const columns = scratch.columns[plane - 1].data();
        char* const rows = above(plane, patch);
        for (int y = 0; y < MARGIN; ++y) std::memcpy(of.at(y, MARGIN), rows + y * across, across);
        for (int y = 0; y < MARGIN + HEIGHT; ++y) {
            std::memcpy(of.at(y, 0), columns + y * beside, beside);
            std::memcpy(columns + y * beside, of.at(y, WIDTH), beside);
        }
        for (int y = 0; y < MARGIN; ++y) std::memcpy(rows + y * across, of.at(HEIGHT + y, MARGIN), across);
    }
};

// The residuals of images of one size (count, height, width), each thread one image after the other.
template <class Kernel>
void residuals(const std::shared_ptr<const Kernel>& kernel, const float* planes, int count, int height, int width,
               float* out, int threads) {
    const size_t size = size_t(height) * width;
    share(count, threads,
          [&](int i) { Stream<Kernel>(kernel, height, width).push(planes + i * size, height, out + i * size, 1); });
}

}  // namespace vdsr
