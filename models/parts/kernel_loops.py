"""Numba functions behind `models.parts.kernel`: sparse forward and backward of a ReLU network.

Imported on first use only, as Numba takes a second to load. What lies where in `vector`, `layers` and `work`
says `models.parts.kernel_layout`. Callers give a `Work` as a plain tuple, which Numba takes in half the time.
"""

import numba
import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from engram.models.parts.kernel_layout import Inputs, Work

# What lets loops use vector instructions; not "nnan" or "ninf": a diverged network must show its NaNs.
FAST = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function):
    """Compile on first call and keep the result on disk, if there is a folder that can be written."""
    try:
        return numba.njit(function, cache=True, fastmath=FAST, error_model="numpy")
    except RuntimeError:  # no cache folder: neither beside this file nor the user's own
        return numba.njit(function, fastmath=FAST, error_model="numpy")


# For a function that makes views: returned from a call, they would be counted, which takes longer.
inlined = numba.njit(inline="always")


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


@inlined
def parameters(vector, layer):
    """W (n_in, n_out) and b (n_out,) of a layer, as views."""
    bias_start = layer.parameters_start + layer.n_in * layer.n_out
    W = vector[layer.parameters_start : bias_start].reshape(layer.n_in, layer.n_out)
    return W, vector[bias_start : bias_start + layer.n_out]


@inlined
def errors_of(deltas, layer, n):
    """A layer's (n, n_out) block of `Work.deltas` for n samples."""
    start = n * layer.units_start
    return deltas[start : start + n * layer.n_out].reshape(n, layer.n_out)


@compiled
def forward(vector, layers, inputs, i, columns, values, counts, acts):
    """Logits of the i-th sample; fills its lists, which are rows of `Work`."""
    for layer in layers:
        begin, unit = layer.inputs_start, layer.units_start
        if layer.index:
            n = gather(acts[unit - layer.n_in : unit], columns[begin:], values[begin:])
        elif len(inputs.lookup):
            for j in range(layer.n_in):
                values[j] = inputs.lookup[inputs.pixels[i, j]]
            n = gather(values[: layer.n_in], columns, values)  # in place: it reads ahead of what it writes
        else:
            n = gather(inputs.floats[i], columns, values)
        counts[layer.index] = n
        W, bias = parameters(vector, layer)
        z = acts[unit : unit + layer.n_out]
        copy(z, bias)
        add_rows(z, W, columns[begin : begin + n], values[begin : begin + n])
        if layer.index < len(layers) - 1:
            for o in range(len(z)):
                z[o] = np.float32(0) if z[o] <= 0 else z[o]  # a NaN stays, as in torch
    return acts[layers[-1].units_start :]


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
def hidden_errors(vector, layers, columns, counts, deltas, n, i):
    """Derivatives by the hidden layers of the i-th of n samples, from that by its logits."""
    for index in range(len(layers) - 1, 0, -1):
        layer = layers[index]
        W, _ = parameters(vector, layer)
        error, below = errors_of(deltas, layer, n)[i], errors_of(deltas, layers[index - 1], n)[i]
        below[:] = 0
        begin = layer.inputs_start
        for k in columns[begin : begin + counts[index]]:
            total = np.float32(0)
            for o in range(len(error)):
                total += W[k, o] * error[o]
            below[k] = total


@compiled
def differentiate(vector, layers, inputs, y, first, n, losses, work):
    """Lists and deltas of samples `first` to `first + n`; their losses."""
    columns, values, counts, deltas = work.columns, work.values, work.counts, work.deltas
    for i in range(n):
        logits = forward(vector, layers, inputs, first + i, columns[i], values[i], counts[i], work.acts)
        error = errors_of(deltas, layers[-1], n)[i]
        losses[first + i] = output_error(logits, y[first + i], error)
        hidden_errors(vector, layers, columns[i], counts[i], deltas, n, i)


@compiled
def descend(vector, layers, columns, values, counts, deltas, factor):
    """vector += factor · gradient of one sample."""
    for layer in layers:
        W, bias = parameters(vector, layer)
        error, begin = errors_of(deltas, layer, 1)[0], layer.inputs_start
        for k in range(begin, begin + counts[layer.index]):
            add(W[columns[k]], error, factor * values[k])
        add(bias, error, factor)


@compiled
def train(vector, layers, inputs, y, factors, start, stop, losses, work):
    """For samples `start` to `stop`, one after the other: vector += factor · gradient."""
    columns, values, counts = work.columns[0], work.values[0], work.counts[0]
    acts, deltas = work.acts, work.deltas
    error = errors_of(deltas, layers[-1], 1)[0]
    for i in range(start, stop):
        logits = forward(vector, layers, inputs, i, columns, values, counts, acts)
        losses[i] = output_error(logits, y[i], error)
        hidden_errors(vector, layers, columns, counts, deltas, 1, 0)
        descend(vector, layers, columns, values, counts, deltas, factors[i])


@compiled
def sort_by_input(n, layer, factors, work):
    """Fill `ends`, `samples` and `amounts` from a layer's lists, which are sorted by sample."""
    columns, values, ends = work.columns, work.values, work.ends
    begin, stops = layer.inputs_start, layer.inputs_start + work.counts[:, layer.index]
    ends[: layer.n_in + 1] = 0
    for i in range(n):
        for k in range(begin, stops[i]):
            ends[columns[i, k] + 1] += 1
    for j in range(layer.n_in):
        ends[j + 1] += ends[j]
    for i in range(n):  # moves every entry of `ends` from its input's begin to its end
        for k in range(begin, stops[i]):
            slot = ends[columns[i, k]]
            work.samples[slot], work.amounts[slot] = i, factors[i] * values[i, k]
            ends[columns[i, k]] = slot + 1


@compiled
def accumulate(target, layers, n, factors, work):
    """target += Σ_i factors_i · gradient of sample i of the n that were differentiated.

    The target may be the vector itself: the weights are not read here.
    """
    for layer in layers:
        W, bias = parameters(target, layer)
        errors = errors_of(work.deltas, layer, n)
        sort_by_input(n, layer, factors, work)
        begin = 0
        for j in range(layer.n_in):  # an input at a time: its row stays in the fastest memory
            add_rows(W[j], errors, work.samples[begin : work.ends[j]], work.amounts[begin : work.ends[j]])
            begin = work.ends[j]
        for i in range(n):
            add(bias, errors[i], factors[i])


@compiled
def transpose(vector, layers, out):
    """out ← vector with every W as PyTorch has it, (n_out, n_in)."""
    for layer in layers:
        W, bias = parameters(vector, layer)
        place, out_bias = parameters(out, layer)
        T = place.reshape(layer.n_out, layer.n_in)
        for o in range(layer.n_out):
            for k in range(layer.n_in):
                T[o, k] = W[k, o]
        copy(out_bias, bias)


@compiled
def arrays(layers, x_at, y_at, n, lookup):
    """Inputs and labels at their addresses."""
    y = memory(y_at, n, np.int64)
    if n and (y.min() < 0 or y.max() >= layers[-1].n_out):  # it would write outside the arrays
        raise IndexError("a label is out of range")
    n_in, raw = layers[0].n_in, len(lookup) > 0
    floats = memory(x_at, 0 if raw else n * n_in, np.float32).reshape(-1, n_in)
    pixels = memory(x_at, n * n_in if raw else 0, np.uint8).reshape(-1, n_in)
    return Inputs(floats, pixels, lookup), y


@compiled
def reptile(
    vector, copies, layers, space, x_at, y_at, scale_at, losses_at, n, lookup, lr, n_batches, beta, gamma
):
    """See `MLPKernel.reptile`. copies: (2, P) to work in; `_at`: addresses, 0 if there is no scale."""
    inputs, y = arrays(layers, x_at, y_at, n, lookup)
    losses, factors = memory(losses_at, n, np.float32), np.full(n, -lr, np.float32)
    if scale_at:
        factors *= memory(scale_at, n, np.float32)
    before, start, work = copies[0], copies[1], Work(*space)
    if gamma != 1:
        copy(before, vector)
    size = n // n_batches
    for first in range(0, size * n_batches, max(size, 1)):
        if beta != 1:
            copy(start, vector)
        train(vector, layers, inputs, y, factors, first, first + size, losses, work)
        if beta != 1:
            interpolate(vector, start, np.float32(beta))
    if gamma != 1:
        interpolate(vector, before, np.float32(gamma))


@compiled
def step(vector, layers, space, x_at, y_at, weights_at, n, lookup, lr):
    """One SGD step on Σ_i weights_i CE_i, which is returned. `_at`: addresses."""
    inputs, y = arrays(layers, x_at, y_at, n, lookup)
    work = Work(*space)
    weights, losses = memory(weights_at, n, np.float32), np.empty(n, np.float32)
    differentiate(vector, layers, inputs, y, 0, n, losses, work)
    accumulate(vector, layers, n, weights * np.float32(-lr), work)
    return (weights * losses).sum()


@compiled
def gradients(vector, scratch, layers, space, x_at, y_at, weights_at, n, lookup, counts, out):
    """out[t] ← gradient of Σ_i weights_i CE_i over the t-th part, of counts[t] samples; out is (T, P)."""
    inputs, y = arrays(layers, x_at, y_at, n, lookup)
    work = Work(*space)
    weights, losses = memory(weights_at, n, np.float32), np.empty(n, np.float32)
    first = 0
    for t in range(len(counts)):
        differentiate(vector, layers, inputs, y, first, counts[t], losses, work)
        scratch[:] = 0
        accumulate(scratch, layers, counts[t], weights[first : first + counts[t]], work)
        transpose(scratch, layers, out[t])
        first += counts[t]
