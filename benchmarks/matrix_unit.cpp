// What is the most that this processor's matrix unit does? The ceiling that vdsr/native/amx.cpp is measured against.
//
// g++ -std=c++17 -O3 -march=x86-64-v4 -mavx512bf16 -pthread -Ivdsr/native benchmarks/matrix_unit.cpp -o unit
// ./unit 2
//
// Products of tiles that are never loaded, in as many threads as the argument says. A pixel of VDSR takes 1.33 MFLOP;
// with three activations in two halves each, 1.55 are carried out.
#include <chrono>
#include <cstdio>

#include "amx.h"

int main(int count, char** arguments) {
    using namespace vdsr;
    if (!Tiles::permitted()) {
        std::puts("this processor has no AMX, or this process may not use it");
        return 1;
    }
    const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
    constexpr int ROUNDS = 20'000'000;
    constexpr double PRODUCT = 2.0 * 16 * 16 * 32;  // operations
    for (int trial = 0; trial < 5; ++trial) {
        const auto began = std::chrono::steady_clock::now();
        in_parallel(threads, [] {
            Tiles tiles;
            tiles.zero<4>(), tiles.zero<5>(), tiles.zero<6>();
            for (int i = 0; i < ROUNDS; ++i) {
                tiles.dot<0, 4, 5>(), tiles.dot<1, 4, 6>();
                tiles.dot<2, 4, 5>(), tiles.dot<3, 4, 6>();
            }
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
        const double operations = threads * 4.0 * ROUNDS * PRODUCT;
        std::printf("%.0f GFLOP/s with %d threads\n", operations / seconds.count() / 1e9, threads);
    }
}
