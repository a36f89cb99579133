// The write pass: y = clamp(x * factor, low, high), for the segments whose action is not to leave them.
// Launched by gradclip_backends/gpu/passes.py.
//
// Grid as for measure. A row's target is its own memory in place, or another's. In place a segment that
// is left alone is not touched, and where all are, the launch ends after one load.
#include "pass.cuh"

// What happens to each element of a segment.
struct Action {
    double factor, low, high;
    float coarse, fine;
    bool sanitize;
};

INLINE float clamped(float y, float low, float high) {
    y = less(y, low) ? low : y;
    return less(high, y) ? high : y;
}

// By comparing, not by minimum and maximum: NaN stays NaN, and so does the sign of a zero.
INLINE double clamped(double y, double low, double high) {
    y = y < low ? low : y;
    return high < y ? high : y;
}

template <int DTYPE>
INLINE typename Storage<DTYPE>::Item acted(typename Storage<DTYPE>::Item item, const Action& action) {
    typedef Storage<DTYPE> S;
    float x = S::widen(item);
    if (action.sanitize) {
        const u32 code = __float_as_uint(x) & 0x7fffffffu;
        const float top = static_cast<float>(S::largest());
        if (code >= FLOAT32_INFINITY) x = code > FLOAT32_INFINITY ? 0.0f : __float_as_uint(x) >> 31 ? -top : top;
    }
    x = multiply(x, action.coarse);
    if (action.fine != 1.0f) x = multiply(x, action.fine);
    return S::narrow(clamped(x, double_to_float(action.low), double_to_float(action.high)));
}

template <>
INLINE double acted<3>(double x, const Action& action) {
    if (action.sanitize && !is_finite(x)) x = is_nan(x) ? 0.0 : x < 0.0 ? -LARGEST_DOUBLE : LARGEST_DOUBLE;
    return clamped(mul(x, action.factor), action.low, action.high);
}

template <int DTYPE>
struct alignas(16) Vector {
    typename Storage<DTYPE>::Item items[16 / sizeof(typename Storage<DTYPE>::Item)];
};

// `change` makes of the element that is there the one that is stored.
template <int DTYPE, class Change>
INLINE void rewrite(const Place& place, const Change& change) {
    typedef typename Storage<DTYPE>::Item Item;
    constexpr int WIDTH = Storage<DTYPE>::WIDTH, BATCHES = BLOCK / WIDTH / 32 / 8;
    const u32 thread = threadIdx.x & 31;
    if (place.n == BLOCK && (place.pointer | place.target) % 16 == 0) {
        const Vector<DTYPE>* const from = global<const Vector<DTYPE>>(place.pointer);
        Vector<DTYPE>* const to = global<Vector<DTYPE>>(place.target);
#pragma unroll 1
        for (int batch = 0; batch < BATCHES; ++batch) {
            Vector<DTYPE> values[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) values[i] = from[(batch * 8 + i) * 32 + thread];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) values[i].items[j] = change(values[i].items[j]);
                to[(batch * 8 + i) * 32 + thread] = values[i];
            }
        }
        return;
    }
    const Item* const from = global<const Item>(place.pointer);
    Item* const to = global<Item>(place.target);
    for (u32 i = thread; i < place.n; i += 32) to[i] = change(from[i]);
}

template <int DTYPE>
INLINE void zero(const Place& place) {
    typedef typename Storage<DTYPE>::Item Item;
    const u32 thread = threadIdx.x & 31;
    if (place.n == BLOCK && place.target % 16 == 0) {
        uint4* const to = global<uint4>(place.target);
        for (u32 i = thread; i < BLOCK / Storage<DTYPE>::WIDTH; i += 32) to[i] = make_uint4(0, 0, 0, 0);
        return;
    }
    Item* const to = global<Item>(place.target);
    for (u32 i = thread; i < place.n; i += 32) to[i] = Item(0);
}

template <int DTYPE>
INLINE void act(const Place& place, const Record& record, bool sanitize) {
    typedef typename Storage<DTYPE>::Item Item;
    const u8 op = record.op()[place.segment];
    if (op == LEAVE) {
        if (place.pointer != place.target) rewrite<DTYPE>(place, [](Item x) { return x; });
        return;
    }
    // Nothing is read: what is there may be NaN, and 0 * NaN is NaN.
    if (op == ZERO) return zero<DTYPE>(place);
    const Action action = {record.numbers(FACTOR)[place.segment], record.numbers(LOW)[place.segment],
                           record.numbers(HIGH)[place.segment],   record.coarse()[place.segment],
                           record.fine()[place.segment],          sanitize};
    rewrite<DTYPE>(place, [&](Item x) { return acted<DTYPE>(x, action); });
}

template <class Rows>
INLINE void apply(const Rows& rows, u64 blocks, const Record& record, u32 buffers, bool sanitize, bool in_place) {
    if (in_place && record.state()->acts == 0) return;
    for_each_block(blocks, [&](u64 block) {
        const Place place = find_block(rows, buffers, block);
        switch (place.dtype) {
            case FLOAT16: return act<FLOAT16>(place, record, sanitize);
            case BFLOAT16: return act<BFLOAT16>(place, record, sanitize);
            case FLOAT32: return act<FLOAT32>(place, record, sanitize);
            default: return act<FLOAT64>(place, record, sanitize);
        }
    });
}

KERNEL apply_inline(const __grid_constant__ RowsByValue rows, u64 blocks, const __grid_constant__ Record record,
                    u32 buffers, u32 sanitize, u32 in_place) {
    apply(rows, blocks, record, buffers, sanitize != 0, in_place != 0);
}
KERNEL apply_table(const __grid_constant__ RowsInMemory rows, u64 blocks, const __grid_constant__ Record record,
                   u32 buffers, u32 sanitize, u32 in_place) {
    apply(rows, blocks, record, buffers, sanitize != 0, in_place != 0);
}
