"""Numba functions behind `models.parts.kernel`: sparse forward and backward of a ReLU network.

Imported on first use only, as Numba takes a second to load. A call copies the parameters into one flat
vector, works on that, and copies them back:

    vector = [b1 | W2 | b2 | ... | WL | bL | columns of W1 that the call's inputs use, one after the other]

A column of W1 is what one input adds to the first layer: laid out in a row, zero inputs (four fifths of
an MNIST digit) are skipped and the others run at vector speed. Parameters come as addresses, (2L,) int64
in the order W1, b1, W2, ...: one compiled function serves every depth. `sizes` is (L + 1,) int64: inputs,
hidden sizes, classes. Of `vector` and its like only the part in use is touched.
"""

import numba
import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

# What lets loops use vector instructions; not "nnan" or "ninf": a diverged network must show its NaNs.
FAST = {"reassoc", "contract", "nsz", "arcp"}
# Up to so many samples are searched for inputs that none of them uses; with more, all columns count.
SEARCHED = 64


def compiled(function):
    """Compile on first call and keep the result on disk where a place for it can be written."""
    try:
        return numba.njit(function, cache=True, fastmath=FAST, error_model="numpy")
    except RuntimeError:  # no cache folder: neither beside this file nor the user's own
        return numba.njit(function, fastmath=FAST, error_model="numpy")


@intrinsic
def _pointer(context, address):
    """An int64 address as a pointer."""
    return types.voidptr(types.int64), lambda _, builder, __, arguments: builder.inttoptr(
        arguments[0], cgutils.voidptr_t
    )


@compiled
def memory(address, n, dtype):
    """The `n` numbers at an address, as an array."""
    return carray(_pointer(address), n, dtype)


@compiled
def sample(x, i):
    """The i-th sample, (n_in,) floats; raw ones lie where the next will."""
    floats, pixels, lookup, row = x
    if len(lookup) == 0:
        return floats[i]
    for j in range(len(row)):
        row[j] = lookup[pixels[i, j]]
    return row


@compiled
def copy(there, here):
    """there ← here; a loop, which becomes vector code where an array assignment does not."""
    for i in range(len(there)):
        there[i] = here[i]


@compiled
def add(there, here, factor):
    """there += factor · here."""
    for i in range(len(there)):
        there[i] += factor * here[i]


@compiled
def rectify(values, signs):
    """values ← 0 where signs ≤ 0; a NaN stays, as in torch."""
    for i in range(len(values)):
        values[i] = np.float32(0) if signs[i] <= 0 else values[i]


@compiled
def active_columns(x, n, n_in):
    """Inputs that some sample uses, (k,), and for each input its place among them, (n_in,)."""
    used = np.full(n_in, n > SEARCHED)
    for i in range(n if n <= SEARCHED else 0):
        row = sample(x, i)
        for j in range(n_in):
            used[j] |= row[j] != 0
    columns, place, n = np.empty(n_in, np.int64), np.zeros(n_in, np.int32), 0
    for j in range(n_in):
        columns[n], place[j] = j, n
        n += used[j]
    return columns[:n], place


@compiled
def read_columns(weight, columns, flat):
    """flat (n, width) ← the columns of a weight matrix (width, n_in), each in a row."""
    width, done = len(weight), len(weight) // 4 * 4
    for o in range(0, done, 4):  # four at once: a quarter of the passes over `flat`
        a, b, c, d = weight[o], weight[o + 1], weight[o + 2], weight[o + 3]
        for k in range(len(columns)):
            j, row = columns[k], flat[k]
            row[o], row[o + 1], row[o + 2], row[o + 3] = a[j], b[j], c[j], d[j]
    for o in range(done, width):
        for k in range(len(columns)):
            flat[k, o] = weight[o, columns[k]]


@compiled
def write_columns(weight, columns, flat):
    """The reverse of `read_columns`."""
    for o in range(len(weight)):
        row = weight[o]
        for k in range(len(columns)):
            row[columns[k]] = flat[k, o]


@compiled
def exchange(addresses, sizes, columns, vector, store):
    """Fill the vector from the parameters, or with `store` the parameters from it."""
    n_in, width, at = sizes[0], sizes[1], 0
    for tensor in range(1, len(addresses)):
        layer = tensor // 2
        n = sizes[layer + 1] * (1 if tensor % 2 else sizes[layer])
        there, here = memory(addresses[tensor], n, np.float32), vector[at : at + n]
        to, source = (there, here) if store else (here, there)
        copy(to, source)
        at += n
    weight = memory(addresses[0], n_in * width, np.float32).reshape(width, n_in)
    flat = vector[at : at + len(columns) * width].reshape(len(columns), width)
    if store:
        write_columns(weight, columns, flat)
    else:
        read_columns(weight, columns, flat)


@compiled
def gather(row, place, where, values):
    """The non-zero inputs of a sample, their places and values; returns how many there are."""
    n = 0
    for j in range(len(row)):
        where[n], values[n] = place[j], row[j]
        n += row[j] != 0
    return n


@compiled
def add_columns(z, columns, where, values):
    """z += Σ_k values_k · columns_k; columns (K, width), one in each row."""
    done = len(where) // 4 * 4
    for k in range(0, done, 4):  # four at once: z is read and written a quarter as often
        t, u, v, w = values[k], values[k + 1], values[k + 2], values[k + 3]
        a, b = columns[where[k]], columns[where[k + 1]]
        c, d = columns[where[k + 2]], columns[where[k + 3]]
        for o in range(len(z)):
            z[o] += t * a[o] + u * b[o] + v * c[o] + w * d[o]
    for k in range(done, len(where)):
        add(z, columns[where[k]], values[k])


@compiled
def propagate(vector, sizes, columns, where, values, acts):
    """Activations of every layer, one layer after the other, into `acts`; the last are the logits."""
    width = sizes[1]
    z = acts[:width]
    copy(z, vector)
    add_columns(z, columns, where, values)
    at, here = width, 0
    for layer in range(1, len(sizes) - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        h, z = acts[here : here + n_in], acts[here + n_in : here + n_in + n_out]
        rectify(h, h)
        for o in range(n_out):
            row, total = vector[at + o * n_in : at + (o + 1) * n_in], vector[at + n_out * n_in + o]
            for i in range(n_in):
                total += row[i] * h[i]
            z[o] = total
        at, here = at + (n_in + 1) * n_out, here + n_in


@compiled
def output_error(logits, label, delta):
    """Cross-entropy of one sample; `delta` becomes its derivative by the logits."""
    top, total = logits.max(), np.float32(0)
    for c in range(len(logits)):
        delta[c] = np.exp(logits[c] - top)
        total += delta[c]
    for c in range(len(logits)):
        delta[c] /= total
    delta[label] -= 1
    return np.log(total) + top - logits[label]


@compiled
def backpropagate(vector, target, sizes, columns, where, values, acts, deltas, factor):
    """target += factor · gradient; `deltas` holds the logits' derivative and becomes every layer's.

    `columns` are the target's. The target may be the vector itself: a row is read before it changes.
    """
    at, here = len(vector), len(acts)
    for layer in range(len(sizes) - 2, 0, -1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        at, here = at - (n_in + 1) * n_out, here - n_out
        h, error = acts[here - n_in : here], deltas[here : here + n_out]
        below = deltas[here - n_in : here]
        below[:] = 0
        for o in range(n_out):
            e = error[o]
            first, last = at + o * n_in, at + (o + 1) * n_in
            if e != 0:
                add(below, vector[first:last], e)
                add(target[first:last], h, factor * e)
                target[at + n_in * n_out + o] += factor * e
        rectify(below, h)
    error = deltas[: sizes[1]]
    add(target[: sizes[1]], error, factor)
    for k in range(len(where)):
        add(columns[where[k]], error, factor * values[k])


@compiled
def train(flat, target, upper, sizes, x, y, place, factors, start, stop, losses):
    """For samples `start` to `stop`: target += factor · gradient; columns start at `upper` in both."""
    n_units = sizes[1:].sum()
    top = n_units - sizes[len(sizes) - 1]
    acts, deltas = np.empty(n_units, np.float32), np.empty(n_units, np.float32)
    where, values = np.empty(sizes[0], np.int64), np.empty(sizes[0], np.float32)
    columns, target_columns = flat[upper:].reshape(-1, sizes[1]), target[upper:].reshape(-1, sizes[1])
    for i in range(start, stop):
        n = gather(sample(x, i), place, where, values)
        propagate(flat[:upper], sizes, columns, where[:n], values[:n], acts)
        losses[i] = output_error(acts[top:], y[i], deltas[top:])
        backpropagate(
            flat[:upper], target[:upper], sizes, target_columns,
            where[:n], values[:n], acts, deltas, factors[i],
        )  # fmt: skip


@compiled
def interpolate(flat, start, rate):
    """flat ← start + rate (flat − start)."""
    for i in range(len(flat)):
        flat[i] = start[i] + rate * (flat[i] - start[i])


@compiled
def prepare(addresses, sizes, space, data, n, lookup):
    """Inputs, labels, the columns in use, places of inputs among them, length of the vector's upper part."""
    y = memory(data[1], n, np.int64)
    if n and (y.min() < 0 or y.max() >= sizes[len(sizes) - 1]):  # it would write outside the arrays
        raise IndexError("a label is out of range")
    n_in, raw = sizes[0], len(lookup) > 0
    floats = memory(data[0], 0 if raw else n * n_in, np.float32).reshape(-1, n_in)
    pixels = memory(data[0], n * n_in if raw else 0, np.uint8).reshape(-1, n_in)
    x = floats, pixels, lookup, np.empty(n_in, np.float32)
    columns, place = active_columns(x, n, n_in)
    exchange(addresses, sizes, columns, space[0], False)
    return x, y, columns, place, space.shape[1] - n_in * sizes[1]


@compiled
def sequence(addresses, sizes, space, data, n, lookup, lr, n_batches, beta, gamma):
    """See `MLPKernel.reptile`. space: (3, P) to work in; data: addresses of x, y, scale, losses."""
    x, y, columns, place, upper = prepare(addresses, sizes, space, data, n, lookup)
    length, losses = upper + len(columns) * sizes[1], memory(data[3], n, np.float32)
    flat, start, before = space[0, :length], space[1, :length], space[2, :length]
    factors = np.full(n, -lr, np.float32)
    if data[2]:
        factors *= memory(data[2], n, np.float32)
    if gamma != 1:
        copy(before, flat)
    size = n // n_batches
    for first in range(0, size * n_batches, max(size, 1)):
        if beta != 1:
            copy(start, flat)
        train(flat, flat, upper, sizes, x, y, place, factors, first, first + size, losses)
        if beta != 1:
            interpolate(flat, start, np.float32(beta))
    if gamma != 1:
        interpolate(flat, before, np.float32(gamma))
    exchange(addresses, sizes, columns, flat, True)


@compiled
def accumulate(addresses, outputs, sizes, space, data, n, lookup, lr):
    """Gradient of Σ_i weights_i CE_i: into `outputs` (addresses of zeros) if any, else one SGD step."""
    x, y, columns, place, upper = prepare(addresses, sizes, space, data, n, lookup)
    length, losses = upper + len(columns) * sizes[1], np.empty(n, np.float32)
    flat, gradient = space[0, :length], space[1, :length]
    gradient[:] = 0
    weights = memory(data[2], n, np.float32)
    train(flat, gradient, upper, sizes, x, y, place, weights, 0, n, losses)
    if len(outputs):
        exchange(outputs, sizes, columns, gradient, True)
    else:
        add(flat, gradient, np.float32(-lr))
        exchange(addresses, sizes, columns, flat, True)
    return (weights * losses).sum()
