// Do the matrix instructions that the compiler wrote say what was meant? Carries them out where no processor can.
//
// Linked to a program, it catches the signal for an unknown instruction and does what Intel's Software Developer's
// Manual says of it: volume 2, TILELOADD, TDPBF16PS and so on. Register numbers, addresses, strides, and that tiles are
// configured when they are used and released in the end, are so tested on the very machine code that ships.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace {

struct Unit {
    bool configured = false;
    uint32_t tiles[8][16][16];
};
thread_local Unit unit;
std::atomic<int> configured{0}, multiplied{0};

[[noreturn]] void give_up(const char* why) {
    const ssize_t ignored = write(2, why, std::strlen(why));
    _exit(3 + (ignored < 0));
}

float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// dst += a b
void multiply(uint32_t (&dst)[16][16], const uint32_t (&a)[16][16], const uint32_t (&b)[16][16]) {
    for (int m = 0; m < 16; ++m) {
        float even[16] = {}, odd[16] = {};
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n) {
                even[n] = __builtin_fmaf(as_float(a[m][k] << 16), as_float(b[k][n] << 16), even[n]);
                odd[n] = __builtin_fmaf(as_float(a[m][k] & 0xffff0000), as_float(b[k][n] & 0xffff0000), odd[n]);
            }
        for (int n = 0; n < 16; ++n) {
            const float sum = as_float(dst[m][n]) + (even[n] + odd[n]);
            std::memcpy(&dst[m][n], &sum, sizeof sum);
        }
    }
}

constexpr int REGISTERS[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// A VEX instruction of the map 0F38, with a memory operand or without.
struct Instruction {
    int prefix, opcode, mod, reg, rm, third;  // prefix: 0 none, 1 66, 2 F3, 3 F2
    uint64_t base = 0, index = 0;             // of the memory operand, displacement in base
    int size;

    Instruction(const uint8_t* at, const greg_t* registers) {
        if (at[0] != 0xc4 || (at[1] & 31) != 2) give_up("an instruction that is not for tiles\n");
        const int extend_base = at[1] & 0x20 ? 0 : 8, extend_index = at[1] & 0x40 ? 0 : 8;
        prefix = at[2] & 3, third = ~(at[2] >> 3) & 15, opcode = at[3];
        mod = at[4] >> 6, reg = at[4] >> 3 & 7, rm = at[4] & 7;
        size = 5;
        if (mod == 3) return;
        int number = rm;
        if (rm == 4) {
            const uint8_t sib = at[size++];
            const int index_number = (sib >> 3 & 7) | extend_index;
            if (index_number != 4) index = uint64_t(registers[REGISTERS[index_number]]) << (sib >> 6);
            number = sib & 7;
        }
        if (mod == 0 && number == 5) give_up("an address without a base\n");
        base = uint64_t(registers[REGISTERS[number | extend_base]]);
        if (mod == 1) base += uint64_t(int64_t(int8_t(at[size]))), size += 1;
        if (mod == 2) {
            int32_t displacement;
            std::memcpy(&displacement, at + size, sizeof displacement);
            base += uint64_t(int64_t(displacement)), size += 4;
        }
    }
};

void configure(const uint8_t* shape) {
    for (int tile = 0; tile < 8; ++tile)
        if (shape[16 + 2 * tile] != 64 || shape[17 + 2 * tile] || shape[48 + tile] != 16)
            give_up("a tile of another shape\n");
    for (int i = 1; i < 16; ++i)
        if (shape[i]) give_up("a reserved byte of the configuration is set\n");
    if (shape[0] != 1) give_up("another palette\n");
    unit.configured = true;
    std::memset(unit.tiles, 0, sizeof unit.tiles);
    ++configured;
}

void carry_out(int, siginfo_t*, void* context) {
    greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const Instruction i(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
    const int code = i.opcode << 4 | i.prefix;
    _mm_setcsr(_mm_getcsr() | 0x8040);  // denormals count as zero, in this handler
    if (code == 0x490 && i.mod != 3) {
        configure(reinterpret_cast<const uint8_t*>(i.base + i.index));
    } else if (!unit.configured) {
        give_up("tiles are used before they are configured, or after\n");
    } else if (code == 0x490) {
        unit.configured = false;
        --configured;
    } else if (code == 0x493) {
        std::memset(unit.tiles[i.reg], 0, sizeof unit.tiles[i.reg]);
    } else if (code == 0x4b3) {
        for (int row = 0; row < 16; ++row)
            std::memcpy(unit.tiles[i.reg][row], reinterpret_cast<const char*>(i.base) + row * i.index, 64);
    } else if (code == 0x4b2) {
        for (int row = 0; row < 16; ++row)
            std::memcpy(reinterpret_cast<char*>(i.base) + row * i.index, unit.tiles[i.reg][row], 64);
    } else if (code == 0x5c2) {
        multiply(unit.tiles[i.reg], unit.tiles[i.rm], unit.tiles[i.third]);
        ++multiplied;
    } else {
        give_up("an instruction that is not known here\n");
    }
    registers[REG_RIP] += i.size;
}

struct Trap {
    Trap() {
        struct sigaction action = {};
        action.sa_sigaction = carry_out;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGILL, &action, nullptr);
    }
    ~Trap() {
        if (configured != 0) give_up("a thread has not released its tiles\n");
        if (multiplied == 0) give_up("nothing was multiplied\n");
    }
} trap;

}  // namespace
