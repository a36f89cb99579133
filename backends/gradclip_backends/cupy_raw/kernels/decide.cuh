// The decision, on the device: a few numbers per segment in, a few factors per segment out. To the bit
// what gradclip_core/plan.py decides.
#pragma once
#include "factors.cuh"
#include "scale.cuh"

enum { RAISE = 0, SKIP = 1, ZERO_ALL = 2, SANITIZE_ALL = 3, PROPAGATE = 4 };
enum { ONE = 0, EACH = 1, GROUPS = 2, VALUE = 3 };
enum { BAD_SCALE = 1, BAD_WEIGHTS = 2 };

struct Group {
    double limit, size;
    u32 start, count, narrow, unused;
};

struct Rule {
    Record record;
    Scale scale;
    double order;
    Group one;        // ONE: the scope. EACH: its limit, unless one of the two below is given
    u64 limits;       // EACH: the address of a limit for each segment, or 0
    u64 groups;       // GROUPS: the address of the groups
    u64 members;      // GROUPS: the address of the segments' numbers, group by group
    u64 weights;      // EACH: the address of the record of the weights, or 0
    double clipping;  // with weights: limit = clipping * max(norm of the weights, eps)
    double eps;
    u64 previous;     // the record of the rule before this one in a chain, or 0
    u32 kind, policy, scopes, buffers, symmetric, unused;
    double low[4], high[4];  // VALUE: for each storage type
};

// What all threads have to know first.
struct Context {
    double inverse;
    bool skip, zero, carried, sanitize;
};

INLINE Context context_of(const Rule& rule) {
    const State& state = *rule.record.state();
    Context context;
    context.inverse = inverse_scale(rule.scale);
    context.carried = state.carry != 0;
    context.sanitize = rule.policy == SANITIZE_ALL;
    const bool valid = rule.scale.address == 0 || is_loss_scale(loss_scale(rule.scale));
    const bool sound = rule.weights == 0 || global<const State>(rule.weights)->nonfinite == 0;
    const bool gone = rule.previous != 0 && global<const State>(rule.previous)->skip != 0;
    const bool poisoned = state.nonfinite != 0 && rule.policy <= ZERO_ALL;
    context.skip = poisoned || !valid || !sound || gone;
    context.zero = poisoned && rule.policy == ZERO_ALL && valid && sound && !gone;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        State* const out = rule.record.state();
        out->inverse = context.inverse;
        out->skip = context.skip;
        out->error = !valid ? BAD_SCALE : !sound ? BAD_WEIGHTS : 0;
    }
    return context;
}

INLINE void write_action(const Record& record, u64 segment, u32 op, double factor, double low, double high) {
    float coarse, fine;
    split(factor, &coarse, &fine);
    record.op()[segment] = static_cast<u8>(op);
    record.numbers(FACTOR)[segment] = factor;
    record.numbers(LOW)[segment] = low;
    record.numbers(HIGH)[segment] = high;
    record.coarse()[segment] = coarse;
    record.fine()[segment] = fine;
    if (op != LEAVE) atomicExch(&record.state()->acts, 1u);
}

// Radial clipping of one scope.
struct Scope {
    Members members;
    double limit, size;
    bool narrow;  // elements other than float64 take part
};

INLINE bool is_over(const Norm& norm, double limit, double inverse) {
    // Compared in units of 2^exponent: no side overflows.
    const double bound = scale_by_power(limit, -norm.exponent), root = mul(norm.root, inverse);
    const double margin = root - bound;
    // The rounded norm is over; the carries may know that the norm itself is not.
    return root > bound && !(norm.rest < 0.0 && margin + mul(norm.rest, inverse) <= 0.0);
}

template <bool GENERAL>
INLINE double factor_of(const Scope& scope, const Norm& norm, double order, double inverse) {
    const double aim = scope.narrow ? aim_float32<GENERAL>(scope.limit, norm, scope.size, order)
                                    : aim_float64<GENERAL>(scope.limit, norm, scope.size, order);
    int exponent;
    // Products with anything but a power of two are rounded, so a norm just below its limit is shaved too.
    const bool exact = split_exponent(inverse, &exponent) == 0.5;
    double factor = (exact ? is_over(norm, scope.limit, inverse) : aim < inverse) ? minimum(aim, inverse) : inverse;
    if (is_nan(norm.root)) factor = not_a_number();
    return scope.narrow ? round_down_float32(factor) : factor;
}

INLINE double limit_of_weights(const Rule& rule, u64 segment) {
    const Record weights = {rule.weights, rule.record.segments};
    const Norm norm = norm_of_scope<false>(weights, {0, segment, 1}, 2.0, false, false);
    double value = scale_by_power(norm.root, norm.exponent);
    if (value == infinity() && is_finite(norm.root)) value = LARGEST_DOUBLE;
    return minimum(mul(rule.clipping, maximum(value, rule.eps)), LARGEST_DOUBLE);
}

template <class Rows>
INLINE Scope scope_of(const Rows& rows, const Rule& rule, u64 number) {
    if (rule.kind == ONE)
        return {{0, 0, rule.one.count}, rule.one.limit, rule.one.size, rule.one.narrow != 0};
    if (rule.kind == GROUPS) {
        const Group group = global<const Group>(rule.groups)[number];
        return {{rule.members, group.start, group.count}, group.limit, group.size, group.narrow != 0};
    }
    const Row& row = rows[find_row<true>(rows, rule.buffers, number)];
    const double limit = rule.weights  ? limit_of_weights(rule, number)
                         : rule.limits ? global<const double>(rule.limits)[number]
                                       : rule.one.limit;
    return {{0, number, 1}, limit, static_cast<double>(row.length), row.dtype != FLOAT64 && row.length != 0};
}

template <class Work>
INLINE void for_each_scope(const Rule& rule, const Work& work) {
    for (u64 scope = static_cast<u64>(blockIdx.x) * WARPS + threadIdx.x / 32; scope < rule.scopes;
         scope += static_cast<u64>(gridDim.x) * WARPS)
        work(scope);
}

// Whether a scope of float64 alone is over its limit by the rounded sums: its carries are to be measured.
template <class Rows>
INLINE void ask_for_carries(const Rows& rows, const Rule& rule) {
    const double inverse = inverse_scale(rule.scale);
    for_each_scope(rule, [&](u64 number) {
        const Scope scope = scope_of(rows, rule, number);
        if (scope.narrow) return;
        const Norm norm = norm_of_scope<false>(rule.record, scope.members, rule.order, false, rule.policy == SANITIZE_ALL);
        if ((threadIdx.x & 31) == 0 && is_over(norm, scope.limit, inverse))
            atomicExch(&rule.record.state()->carry, 1u);
    });
}

// GENERAL: of an order other than 1, 2 and infinity.
template <bool GENERAL, class Rows>
INLINE void decide_norms(const Rows& rows, const Rule& rule) {
    const Context context = context_of(rule);
    for_each_scope(rule, [&](u64 number) {
        const Scope scope = scope_of(rows, rule, number);
        u32 op = context.zero ? ZERO : LEAVE;
        double factor = context.zero ? 0.0 : 1.0;
        if (!context.skip) {
            const Norm norm =
                norm_of_scope<GENERAL>(rule.record, scope.members, rule.order, context.carried, context.sanitize);
            factor = factor_of<GENERAL>(scope, norm, rule.order, context.inverse);
            op = factor == 0.0 && is_finite(norm.root) ? ZERO : factor == 1.0 ? LEAVE : SCALE;
        }
        for (u64 i = threadIdx.x & 31; i < scope.members.count; i += 32) {
            const u64 segment = scope.members[i];
            const bool unclean = rule.record.counts(INFS)[segment] + rule.record.counts(NANS)[segment] != 0;
            const bool cleans = !context.skip && context.sanitize && unclean && op == LEAVE;
            write_action(rule.record, segment, cleans ? SCALE : op, factor, -infinity(), infinity());
        }
    });
}

template <class Rows>
INLINE void decide_value(const Rows& rows, const Rule& rule) {
    const Context context = context_of(rule);
    const Record& record = rule.record;
    for (u64 segment = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x; segment < record.segments;
         segment += static_cast<u64>(gridDim.x) * THREADS) {
        if (context.skip) {
            write_action(record, segment, context.zero ? ZERO : LEAVE, context.zero ? 0.0 : 1.0, -infinity(), infinity());
            continue;
        }
        const u32 dtype = rows[find_row<true>(rows, rule.buffers, segment)].dtype;
        const double low = rule.low[dtype], high = rule.high[dtype];
        const bool infinite = record.counts(INFS)[segment] != 0, nan = record.counts(NANS)[segment] != 0;
        const bool beyond = !rule.symmetric
                                ? record.counts(OUTSIDE)[segment] != 0
                                : mul(record.numbers(LARGEST)[segment], context.inverse) > high ||
                                      (!context.sanitize && infinite && is_finite(high));
        const double factor = dtype == FLOAT64 ? context.inverse : round_down_float32(context.inverse);
        const bool touched = beyond || factor != 1.0 || (context.sanitize && (infinite || nan));
        write_action(record, segment, touched ? SCALE : LEAVE, factor, low, high);
        if (beyond) atomicExch(&record.state()->clipped, 1u);
    }
}

// A decision works on a few numbers: one thread block a processor will do, and has all registers.
#define DECISION extern "C" __global__ void __launch_bounds__(THREADS, 1)
