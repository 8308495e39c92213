// How does an image of any height go through all layers, with no pixel computed twice and little of it in memory?
//
// As a stream. Rows of luminance go in, rows of the residual come out. A layer's band is four rows, the height of its
// tiles, and needs the layer's input down to one row below it. In wave w layer l computes band w - 2 l: what it reads
// was finished in earlier waves, so all (layer, piece of a band) of one wave are independent, and the threads share
// them as they come.
//
//        wave            0     1     2     3     4     5     6
//        layer 0       band 0  1     2     3     4     5     6
//        layer 1                   band 0  1     2     3     4
//        layer 2                               band 0  1     2     ...
//
// Of each layer a ring of 16 rows is kept: the band being written, and the last row of the one before the three being
// read. Memory is that of 16 rows a layer, whatever the image's height.
//
//        ring row:  | 0 | w pixels of 64 channels, filled up to whole tiles | 0 |     zeros beside the picture
//
// A tile's result depends on its own 6 x 6 pixels alone and tiles start at multiples of 4, so that the result is the
// same to the bit for any number of threads. So it is for a strip of the image that starts at a multiple of 4 and is
// read with one more tile a layer to each side: one more pixel a layer would do for the sum, but not for its rounding.
#include <mutex>

#include "network.h"

namespace vdsr {
namespace {

constexpr int RING = 4 * OUT;  // rows
constexpr int LAG = 2;         // waves from a layer to the next

// Lets threads through when all have come.
class Barrier {
public:
    explicit Barrier(int threads) : threads_(threads) {}
    // last: what the last one to come does while the others wait
    template <class Last>
    void wait(Last&& last) {
        const int phase = phase_.load(std::memory_order_relaxed);
        if (come_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            last();
            come_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }

private:
    const int threads_;
    std::atomic<int> come_{0}, phase_{0};
};

// Keeps the memory of one image for the next: the system's takes as long to come as a thumbnail does to compute.
class Spare {
public:
    // count: raised to what there is
    Floats take(size_t& count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (count_ < count) {
            memory_.reset(), count_ = 0;  // before there are two
            return floats(count);
        }
        count = count_, count_ = 0;
        return std::move(memory_);
    }
    void give(Floats memory, size_t count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (count > count_) memory_ = std::move(memory), count_ = count;
    }

private:
    std::mutex mutex_;
    Floats memory_;
    size_t count_ = 0;
};

struct Network {
    Weights weights;
    Spare spare;
};

class Stream {
public:
    Stream(std::shared_ptr<Network> network, int height, int width)
        : network_(std::move(network)), weights_(network_->weights), height_(height), width_(width),
          across_((width + OUT - 1) / OUT), bands_((height + OUT - 1) / OUT), row_(size_t(across_) * OUT + 2),
          plane_(RING * row_), zero_plane_(row_), zeros_(row_ * CHANNELS),
          room_(layers() * ring()), rings_(network_->spare.take(room_)) {
        const size_t right = size_t(width) + 1;
        for (size_t i = 0; i < layers() * RING; ++i) {  // all else is written before it is read
            float* const row = rings_.get() + i * row_ * CHANNELS;
            std::fill_n(row, CHANNELS, 0.0f);
            std::fill_n(row + right * CHANNELS, (row_ - right) * CHANNELS, 0.0f);
        }
    }
    ~Stream() { network_->spare.give(std::move(rings_), room_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    // Takes the next rows (count, width); writes the residual's next rows to out, and returns how many.
    int push(const float* rows, int count, float* out, int threads) {
        const int before = given_;
        const float* const end = rows + size_t(count) * width_;
        auto advance = [&] {  // to the next wave, if there are rows for it; false if not
            while (rows < end && read_ < OUT * wave_ + OUT + 1) {
                std::copy_n(rows, width_, plane_.data() + read_ % RING * row_ + 1);
                rows += width_, ++read_;
            }
            return wave_ < waves() && read_ >= std::min(height_, OUT * wave_ + OUT + 1);
        };
        bool more = advance();
        if (!more) return 0;
        std::atomic<int> next{0}, thread{0};
        const int pieces = (across_ + TILES - 1) / TILES, items = weights_.depth * pieces;
        threads = std::min(threads, items);
        // before the threads start: if one failed, the others would wait for it for ever
        const std::unique_ptr<Batch[]> batches(new Batch[threads]);
        Barrier barrier(threads);
        in_parallel(threads, [&] {
            Batch& batch = batches[thread++];
            while (more) {
                for (int item; (item = next++) < items;) {
                    const int layer = item / pieces, band = wave_ - LAG * layer;
                    if (band < 0 || band >= bands_) continue;
                    piece(layer, band, item % pieces * TILES, out, before, batch);
                }
                barrier.wait([&] {
                    given_ = std::clamp((wave_ - LAG * (weights_.depth - 1) + 1) * OUT, 0, height_);
                    ++wave_;
                    next = 0;
                    more = advance();
                });
            }
        });
        return given_ - before;
    }

private:
    const std::shared_ptr<Network> network_;
    const Weights& weights_;
    const int height_, width_, across_, bands_;
    const size_t row_;                       // pixels
    std::vector<float> plane_, zero_plane_;  // the input's ring; a row of it outside the picture
    std::vector<float> zeros_;               // a row of activations outside the picture
    size_t room_;                            // floats in rings_
    Floats rings_;
    int read_ = 0, given_ = 0, wave_ = 0;

    size_t layers() const { return size_t(weights_.depth) - 1; }
    size_t ring() const { return RING * row_ * CHANNELS; }
    int waves() const { return bands_ + LAG * (weights_.depth - 1); }
    bool outside(int y) const { return y < 0 || y >= height_; }

    // Where a layer's output row begins, at its pixel x; reads outside the picture give zeros.
    float* writable(int layer, int y, int x) {
        return rings_.get() + layer * ring() + (y % RING * row_ + x + 1) * CHANNELS;
    }
    const float* readable(int layer, int y, int x) {
        return outside(y) ? zeros_.data() + size_t(x + 1) * CHANNELS : writable(layer, y, x);
    }

    void piece(int layer, int band, int tile, float* out, int before, Batch& batch) {
        const int tiles = std::min(TILES, across_ - tile);
        if (layer == 0) return first(band, tile * OUT, tiles * OUT);
        if (layer == weights_.depth - 1) return last(band, tile * OUT, tiles * OUT, out, before);
        hidden(layer, band, tile, tiles, batch);
    }

    void first(int band, int left, int columns) {
        const int right = std::min(left + columns, width_);
        for (int y = band * OUT; y < std::min(height_, band * OUT + OUT); ++y) {
            const float* rows[3];
            for (int i = 0; i < 3; ++i)
                rows[i] = (outside(y + i - 1) ? zero_plane_.data() : plane_.data() + (y + i - 1) % RING * row_) + left + 1;
            float* to = writable(0, y, 0);
            expand(rows, weights_.first.data(), left, right,
                   [&](int x, int channel, Vector v) { store(to + x * CHANNELS + channel, positive(v)); });
        }
    }

    void hidden(int layer, int band, int tile, int tiles, Batch& batch) {
        const int top = band * OUT;
        for (int t = 0; t < tiles; ++t) {
            const float* rows[IN];
            for (int i = 0; i < IN; ++i) rows[i] = readable(layer - 1, top + i - 1, (tile + t) * OUT - 1);
            transform_input(rows, batch.points + t * CHANNELS);
        }
        multiply(batch.points, weights_.layer(layer - 1), tiles);
        for (int t = 0; t < tiles; ++t) {
            const int left = (tile + t) * OUT;
            float* rows[OUT];
            for (int i = 0; i < OUT; ++i) rows[i] = writable(layer, top + i, left);
            transform_output(
                batch.points + t * CHANNELS, std::min(OUT, height_ - top), std::min(OUT, width_ - left),
                [&](int y, int x, int channel, Vector v) { store(rows[y] + x * CHANNELS + channel, positive(v)); });
        }
    }

    void last(int band, int left, int columns, float* out, int before) {
        const int count = std::min(columns, width_ - left);
        for (int y = band * OUT; y < std::min(height_, band * OUT + OUT); ++y) {
            const float* rows[3];
            for (int i = 0; i < 3; ++i) rows[i] = readable(weights_.depth - 2, y + i - 1, left);
            contract(rows, weights_.last.data(), count, out + size_t(y - before) * width_ + left);
        }
    }
};

}  // namespace
}  // namespace vdsr

using namespace vdsr;

extern "C" {

// weights: all kernels (out, in, 3, 3) one behind the other. Null where memory did not suffice.
std::shared_ptr<Network>* vdsr_network(const float* weights, int depth, int threads) try {
    return new std::shared_ptr<Network>(new Network{{weights, depth, false, threads}, {}});
} catch (const std::bad_alloc&) {
    return nullptr;
}

void vdsr_network_free(std::shared_ptr<Network>* network) { delete network; }

// A stream of an image. It may outlive what vdsr_network gave: Python's garbage collector frees in any order. Null
// where memory did not suffice.
Stream* vdsr_stream(const std::shared_ptr<Network>* network, int height, int width) try {
    return new Stream(*network, height, width);
} catch (const std::bad_alloc&) {
    return nullptr;
}

void vdsr_stream_free(Stream* stream) { delete stream; }

// rows: the next `count` of (height, width). Writes the next rows of the residual to out, which has room for count
// and vdsr_stream_delay more, and returns how many; -1 where memory did not suffice.
int vdsr_stream_push(Stream* stream, const float* rows, int count, float* out, int threads) try {
    return stream->push(rows, count, out, threads);
} catch (const std::bad_alloc&) {
    return -1;
}

int vdsr_tile() { return OUT; }

// How many rows the residual may lag behind what was given.
int vdsr_stream_delay(int depth) { return LAG * OUT * depth; }
}
