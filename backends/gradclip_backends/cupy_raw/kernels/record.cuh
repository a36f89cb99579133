// What kernels and launcher share: gradclip_backends/gpu/layout.py has the same offsets.
#pragma once
#include "arithmetic.cuh"

#define LANES 256
#define BLOCK 4096
#define WARPS 8  // in a thread block
#define THREADS (WARPS * 32)

enum { FLOAT16 = 0, BFLOAT16 = 1, FLOAT32 = 2, FLOAT64 = 3 };
enum { LEAVE = 0, SCALE = 1, ZERO = 2 };

// A buffer: `rows` segments of `length` elements. Its elements are summed in blocks of 4096, and
// its first block is number `first_block` among those of all buffers.
struct Row {
    u64 pointer, target, length, first_block;
    u32 first_segment, rows, dtype, unused;
};

// Few rows go with the launch, as a kernel parameter; more stand in device memory.
#define INLINE_ROWS 80
struct RowsByValue {
    Row rows[INLINE_ROWS];
    INLINE const Row& operator[](u32 i) const { return rows[i]; }
};
struct RowsInMemory {
    u64 address;
    INLINE const Row& operator[](u32 i) const { return global<const Row>(address)[i]; }
};

// What a call leaves behind: one of these, then an entry a segment of each array below.
struct State {
    double inverse;  // 1 / loss scale
    u64 nonfinite;   // elements
    u32 rescale;     // some float64 segment is to be measured again, scaled
    u32 carry;       // some float64 scope is over its limit: measure what rounding took
    u32 skip;        // non-finite values: nothing more is done
    u32 acts;        // some segment is to be written
    u32 clipped;     // by value: some element is beyond its limits
    u32 error;       // an argument that is known on the device alone is not valid
    u32 unused[4];
};

enum { SUMS, LARGEST, CARRIES, UNITS, EXPONENTS, INFS, NANS, OUTSIDE, FACTOR, LOW, HIGH, COLUMNS };

struct Record {
    u64 address;
    u64 segments;
    INLINE State* state() const { return global<State>(address); }
    INLINE double* numbers(u32 column) const { return global<double>(address + sizeof(State)) + column * segments; }
    INLINE u64* counts(u32 column) const { return global<u64>(address + sizeof(State)) + column * segments; }
    INLINE float* coarse() const { return global<float>(address + sizeof(State) + 8 * COLUMNS * segments); }
    INLINE float* fine() const { return coarse() + segments; }
    INLINE u8* op() const { return global<u8>(address + sizeof(State) + (8 * COLUMNS + 8) * segments); }
};

// Where a block of 4096 elements belongs.
struct Place {
    u64 pointer, target;  // of its first element
    u64 segment;
    u64 first;  // the segment's first block, among those of all buffers
    u64 index;  // this block, among those of its segment
    u64 count;  // the segment's blocks
    u32 n;      // elements here
    u32 dtype;
};

INLINE u32 itemsize(u32 dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

// The row whose range of blocks (or of segments) holds `number`: the last that begins at or before it.
// Rows without elements begin where the next one does, so they are never the last.
template <bool SEGMENTS, class Rows>
INLINE u32 find_row(const Rows& rows, u32 count, u64 number) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if ((SEGMENTS ? rows[middle].first_segment : rows[middle].first_block) <= number) low = middle;
        else high = middle;
    }
    return low;
}

template <class Rows>
INLINE Place find_block(const Rows& rows, u32 count, u64 block) {
    const Row& row = rows[find_row<false>(rows, count, block)];
    Place place;
    place.count = (row.length + BLOCK - 1) / BLOCK;
    const u64 within = block - row.first_block;
    // A 64-bit division takes a hundred instructions, and is needed for rows of a matrix alone.
    const u64 which = row.rows == 1 ? 0 : place.count == 1 ? within : within / place.count;
    place.index = within - which * place.count;
    place.first = block - place.index;
    place.segment = row.first_segment + which;
    place.dtype = row.dtype;
    const u64 done = place.index * BLOCK;
    const u64 offset = (which * row.length + done) * itemsize(row.dtype);
    place.pointer = row.pointer + offset;
    place.target = row.target + offset;
    place.n = row.length - done < BLOCK ? static_cast<u32>(row.length - done) : BLOCK;
    return place;
}
