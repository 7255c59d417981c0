"""Numba functions behind `models.parts.kernel`: sparse forward and backward of a ReLU network.

Imported on first use only, as Numba takes a second to load. All parameters lie in one flat vector,

    vector = [W1 | b1 | W2 | b2 | ... | WL | bL],   W of a layer (n_in, n_out), one row for each input,

so that a zero input (four fifths of an MNIST digit, about half of a ReLU layer's units) skips its whole
row and the others run at vector speed. `sizes` is (L + 1,) int64: inputs, hidden sizes, classes.

A sample's inputs to all layers are lists of the non-zero ones, `columns` and `values`, (S,) each with
S = sizes[:-1].sum(): layer l's begin at sizes[:l].sum() and are `counts[l]` long. Derivatives of the loss
by what a layer gives before its ReLU are `deltas`: for n samples, layer after layer an (n, n_out) block.
"""

import numba
import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

# What lets loops use vector instructions; not "nnan" or "ninf": a diverged network must show its NaNs.
FAST = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function):
    """Compile on first call and keep the result on disk, if there is a folder that can be written."""
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
def interpolate(flat, start, rate):
    """flat ← start + rate (flat − start)."""
    for i in range(len(flat)):
        flat[i] = start[i] + rate * (flat[i] - start[i])


@compiled
def gather(row, columns, values):
    """The non-zero numbers of a row, their columns and values; returns how many there are."""
    n = 0
    for j in range(len(row)):
        columns[n], values[n] = j, row[j]
        n += row[j] != 0
    return n


@compiled
def add_rows(z, rows, columns, values):
    """z += Σ_k values_k · rows[columns_k]."""
    done = len(columns) // 4 * 4
    for k in range(0, done, 4):  # four at once: z is read and written a quarter as often
        t, u, v, w = values[k], values[k + 1], values[k + 2], values[k + 3]
        a, b, c, d = rows[columns[k]], rows[columns[k + 1]], rows[columns[k + 2]], rows[columns[k + 3]]
        for o in range(len(z)):
            z[o] += t * a[o] + u * b[o] + v * c[o] + w * d[o]
    for k in range(done, len(columns)):
        add(z, rows[columns[k]], values[k])


@compiled
def forward(vector, sizes, x, i, columns, values, counts, acts):
    """Logits of the i-th sample; fills its lists. `acts` is (sizes[1:].sum(),) to work in."""
    at, pos, unit = 0, 0, 0
    floats, pixels, lookup = x
    for layer in range(len(sizes) - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        if layer:
            n = gather(acts[unit - n_in : unit], columns[pos:], values[pos:])
        elif len(lookup):
            for j in range(n_in):
                values[j] = lookup[pixels[i, j]]
            n = gather(values[:n_in], columns, values)  # in place: what is read lies ahead of what is written
        else:
            n = gather(floats[i], columns, values)
        counts[layer] = n
        W, z = vector[at : at + n_in * n_out].reshape(n_in, n_out), acts[unit : unit + n_out]
        copy(z, vector[at + n_in * n_out : at + (n_in + 1) * n_out])
        add_rows(z, W, columns[pos : pos + n], values[pos : pos + n])
        if layer < len(sizes) - 2:
            for o in range(n_out):
                z[o] = np.float32(0) if z[o] <= 0 else z[o]  # a NaN stays, as in torch
        at, pos, unit = at + (n_in + 1) * n_out, pos + n_in, unit + n_out
    return acts[unit - sizes[-1] : unit]


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
def hidden_errors(vector, sizes, columns, counts, deltas, n, i):
    """Derivatives by the hidden layers of the i-th of n samples, from that by its logits."""
    at, pos, unit = len(vector), sizes[:-1].sum(), sizes[1:].sum()
    for layer in range(len(sizes) - 2, 0, -1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        at, pos, unit = at - (n_in + 1) * n_out, pos - n_in, unit - n_out
        error = deltas[n * unit + i * n_out : n * unit + (i + 1) * n_out]
        first = n * (unit - n_in) + i * n_in
        below = deltas[first : first + n_in]
        below[:] = 0
        W = vector[at : at + n_in * n_out].reshape(n_in, n_out)
        for k in columns[pos : pos + counts[layer]]:
            total = np.float32(0)
            for o in range(n_out):
                total += W[k, o] * error[o]
            below[k] = total


@compiled
def descend(vector, sizes, columns, values, counts, deltas, factor):
    """vector += factor · gradient of one sample."""
    at, pos, unit = 0, 0, 0
    for layer in range(len(sizes) - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        W, error = vector[at : at + n_in * n_out].reshape(n_in, n_out), deltas[unit : unit + n_out]
        for k in range(pos, pos + counts[layer]):
            add(W[columns[k]], error, factor * values[k])
        add(vector[at + n_in * n_out : at + (n_in + 1) * n_out], error, factor)
        at, pos, unit = at + (n_in + 1) * n_out, pos + n_in, unit + n_out


@compiled
def train(vector, sizes, x, y, factors, start, stop, losses, work):
    """For samples `start` to `stop`, one after the other: vector += factor · gradient."""
    columns, values, counts, acts, deltas = work[0][0], work[1][0], work[2][0], work[3], work[4]
    top = sizes[1:-1].sum()
    for i in range(start, stop):
        logits = forward(vector, sizes, x, i, columns, values, counts, acts)
        losses[i] = output_error(logits, y[i], deltas[top:])
        hidden_errors(vector, sizes, columns, counts, deltas, 1, 0)
        descend(vector, sizes, columns, values, counts, deltas, factors[i])


@compiled
def differentiate(vector, sizes, x, y, first, n, losses, work):
    """Lists and deltas of samples `first` to `first + n`; their losses."""
    columns, values, counts, acts, deltas = work[0], work[1], work[2], work[3], work[4]
    n_classes, top = sizes[-1], n * sizes[1:-1].sum()
    for i in range(n):
        logits = forward(vector, sizes, x, first + i, columns[i], values[i], counts[i], acts)
        delta = deltas[top + i * n_classes : top + (i + 1) * n_classes]
        losses[first + i] = output_error(logits, y[first + i], delta)
        hidden_errors(vector, sizes, columns[i], counts[i], deltas, n, i)


@compiled
def by_input(n, n_in, pos, layer, factors, work):
    """A layer's lists sorted by input instead of by sample: ends of the inputs' lists; samples, amounts."""
    columns, values, counts, ends, samples, amounts = work[0], work[1], work[2], work[5], work[6], work[7]
    ends[: n_in + 1] = 0
    for i in range(n):
        for k in range(pos, pos + counts[i, layer]):
            ends[columns[i, k] + 1] += 1
    for j in range(n_in):
        ends[j + 1] += ends[j]
    for i in range(n):  # moves every entry of `ends` from its input's begin to its end
        for k in range(pos, pos + counts[i, layer]):
            slot = ends[columns[i, k]]
            samples[slot], amounts[slot] = i, factors[i] * values[i, k]
            ends[columns[i, k]] = slot + 1
    return ends, samples, amounts


@compiled
def accumulate(target, sizes, n, factors, work):
    """target += Σ_i factors_i · gradient of sample i of the n that were differentiated.

    The target may be the vector itself: the weights are not read here.
    """
    at, pos, unit = 0, 0, 0
    for layer in range(len(sizes) - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        W = target[at : at + n_in * n_out].reshape(n_in, n_out)
        errors = work[4][n * unit : n * (unit + n_out)].reshape(n, n_out)
        ends, samples, amounts = by_input(n, n_in, pos, layer, factors, work)
        begin = 0
        for j in range(n_in):  # an input at a time: its row stays in the fastest memory
            add_rows(W[j], errors, samples[begin : ends[j]], amounts[begin : ends[j]])
            begin = ends[j]
        bias = target[at + n_in * n_out : at + (n_in + 1) * n_out]
        for i in range(n):
            add(bias, errors[i], factors[i])
        at, pos, unit = at + (n_in + 1) * n_out, pos + n_in, unit + n_out


@compiled
def transpose(vector, sizes, out):
    """out ← vector with every W as PyTorch has it, (n_out, n_in)."""
    at = 0
    for layer in range(len(sizes) - 1):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        size = n_in * n_out
        W, T = vector[at : at + size].reshape(n_in, n_out), out[at : at + size].reshape(n_out, n_in)
        for o in range(n_out):
            for k in range(n_in):
                T[o, k] = W[k, o]
        copy(out[at + size : at + size + n_out], vector[at + size : at + size + n_out])
        at += size + n_out


@compiled
def arrays(sizes, data, n, lookup):
    """Inputs and labels at their addresses."""
    y = memory(data[1], n, np.int64)
    if n and (y.min() < 0 or y.max() >= sizes[-1]):  # it would write outside the arrays
        raise IndexError("a label is out of range")
    n_in, raw = sizes[0], len(lookup) > 0
    floats = memory(data[0], 0 if raw else n * n_in, np.float32).reshape(-1, n_in)
    pixels = memory(data[0], n * n_in if raw else 0, np.uint8).reshape(-1, n_in)
    return (floats, pixels, lookup), y


@compiled
def sequence(vector, copies, sizes, work, data, n, lookup, lr, n_batches, beta, gamma):
    """See `MLPKernel.reptile`. copies: (2, P) to work in; data: addresses of x, y, scale, losses."""
    x, y = arrays(sizes, data, n, lookup)
    losses, factors = memory(data[3], n, np.float32), np.full(n, -lr, np.float32)
    if data[2]:
        factors *= memory(data[2], n, np.float32)
    before, start = copies[0], copies[1]
    if gamma != 1:
        copy(before, vector)
    size = n // n_batches
    for first in range(0, size * n_batches, max(size, 1)):
        if beta != 1:
            copy(start, vector)
        train(vector, sizes, x, y, factors, first, first + size, losses, work)
        if beta != 1:
            interpolate(vector, start, np.float32(beta))
    if gamma != 1:
        interpolate(vector, before, np.float32(gamma))


@compiled
def step(vector, sizes, work, data, n, lookup, lr):
    """One SGD step on Σ_i weights_i CE_i, which is returned; data: addresses of x, y, weights."""
    x, y = arrays(sizes, data, n, lookup)
    weights, losses = memory(data[2], n, np.float32), np.empty(n, np.float32)
    differentiate(vector, sizes, x, y, 0, n, losses, work)
    accumulate(vector, sizes, n, weights * np.float32(-lr), work)
    return (weights * losses).sum()


@compiled
def gradients(vector, scratch, sizes, work, data, n, lookup, counts, out):
    """out[t] ← gradient of Σ_i weights_i CE_i over the t-th part, of counts[t] samples; out is (T, P)."""
    x, y = arrays(sizes, data, n, lookup)
    weights, losses = memory(data[2], n, np.float32), np.empty(n, np.float32)
    first = 0
    for t in range(len(counts)):
        differentiate(vector, sizes, x, y, first, counts[t], losses, work)
        scratch[:] = 0
        accumulate(scratch, sizes, counts[t], weights[first : first + counts[t]], work)
        transpose(scratch, sizes, out[t])
        first += counts[t]
