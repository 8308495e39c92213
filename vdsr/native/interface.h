// What Python calls (vdsr/native/__init__.py) of a library whose Kernel (stream.h) has been defined before this.
#pragma once

#include "stream.h"

using namespace vdsr;

extern "C" {

// weights: all kernels (out, in, 3, 3) one behind the other. Null where memory did not suffice.
std::shared_ptr<const Kernel>* vdsr_network(const float* weights, int depth, int threads) try {
    return new std::shared_ptr<const Kernel>(new Kernel(weights, depth, threads));
} catch (const std::bad_alloc&) {
    return nullptr;
}

void vdsr_network_free(std::shared_ptr<const Kernel>* network) { delete network; }

// A stream of an image. It may outlive what vdsr_network gave: Python's garbage collector frees in any order. Null
// where memory did not suffice.
Stream<Kernel>* vdsr_stream(const std::shared_ptr<const Kernel>* network, int height, int width) try {
    return new Stream<Kernel>(*network, height, width);
} catch (const std::bad_alloc&) {
    return nullptr;
}

void vdsr_stream_free(Stream<Kernel>* stream) { delete stream; }

// rows: the next `count` of (height, width). Writes the next rows of the residual to out, which has room for count
// and vdsr_stream_delay more, and returns how many; -1 where memory did not suffice.
int vdsr_stream_push(Stream<Kernel>* stream, const float* rows, int count, float* out, int threads) try {
    return stream->push(rows, count, out, threads);
} catch (const std::bad_alloc&) {
    return -1;
}

// (count, height, width) images that are computed each by one thread, and their residuals; -1 as above.
int vdsr_residuals(const std::shared_ptr<const Kernel>* network, const float* planes, int count, int height, int width,
                   float* out, int threads) try {
    residuals(*network, planes, count, height, width, out, threads);
    return 0;
} catch (const std::bad_alloc&) {
    return -1;
}

int vdsr_tile() { return Kernel::GRID; }

// Channels that lie in one register.
int vdsr_lanes() { return LANES; }

// How many rows the residual may lag behind what was given.
int vdsr_stream_delay(int depth) { return Stream<Kernel>::delay(depth); }
}
