// The closed-form solver as a kernel: one pass over memory, every input byte read once and every output byte written
// once. The coefficients of a block's tokens are made together in shared memory, exp and softmax fused in; means, the
// bulk, go from 16-byte loads straight into the sum. Arithmetic is float32 whatever the field's type.
#pragma once

#include "cuda/device.cuh"

namespace arcflow::cuda {

// Modes whose means a thread has under way at once where their number is not known when compiled: 8 loads of 16 bytes.
constexpr int kAhead = 8;

// Means of N modes from `first` on, at one place of the token.
template <class T, int V, int N>
struct Batch {
  Loaded<T, V> mode[N];

  ARCFLOW_DEVICE void load(const T* at, int first, int modes, int channels) {
    ARCFLOW_UNROLL
    for (int j = 0; j < N; ++j) {
      if (first + j < modes) mode[j] = load_once<T, V>(at + static_cast<long long>(first + j) * channels);
    }
  }
};

// `count` values to shared memory as floats. `from` is aligned to 16 bytes where V is more than 1. M: what `count` is
// known to be a multiple of.
template <class T, int V, int M>
ARCFLOW_DEVICE void stage(const T* from, int count, float* to) {
  const int packs = count / V;
  for (int i = static_cast<int>(threadIdx.x); i < packs; i += static_cast<int>(blockDim.x)) {
    const Loaded<T, V> loaded = load_once<T, V>(from + i * V);
    float wide[V];
    ARCFLOW_UNROLL
    for (int j = 0; j < V; ++j) wide[j] = loaded[j];
    store_floats<V>(wide, to + i * V);
  }
  if constexpr (M % V != 0) {
    for (int i = packs * V + static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      to[i] = to_float(from[i]);
    }
  }
}

// Arguments as in arcflow_kernels.cu. V: values a load. P, K: positions and modes where known when compiled, else 0.
// With K all modes of a place are one batch, loaded before the coefficients are made; else batches take turns.
template <class T, int V, int P, int K>
ARCFLOW_DEVICE void advance(const T* __restrict__ means, const T* __restrict__ logweights,
                            const T* __restrict__ loggammas, const float* x, float* out, long long tokens, int modes,
                            int channels, int positions, int tokens_per_block, float start, float span, int raw_logits,
                            float* shared) {
  static_assert(V == 1 || V == kWide<T>, "a value or 16 bytes at a time");
  if (P != 0) positions = P;
  if (K != 0) modes = K;
  constexpr int kBatch = K != 0 ? K : kAhead;
  constexpr int kGates = P * (K != 0 ? K : 1), kRates = P * (K != 0 ? K - 1 : 1);  // Gates, rates: multiples of these.
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const long long first = static_cast<long long>(blockIdx.x) * tokens_per_block;
  const int here = tokens - first < tokens_per_block ? static_cast<int>(tokens - first) : tokens_per_block;
  const int gates = modes * positions;
  const int rates = gates - positions;
  const int lanes = channels / V;
  const int items = here * lanes;
  const T* const block_means = means + first * modes * channels;
  const auto at = [&](int item) {
    const int token = item / lanes;
    return block_means + static_cast<long long>(token) * modes * channels + (item - token * lanes) * V;
  };

  Batch<T, V, kBatch> ahead;
  if (thread < items) ahead.load(at(thread), 0, modes, channels);

  float* const coefficients = shared;  // [here, modes, positions]
  float* const loggamma = shared + tokens_per_block * gates;
  stage<T, V, kGates>(logweights + first * gates, here * gates, coefficients);
  stage<T, V, kRates>(loggammas + first * rates, here * rates, loggamma);
  __syncthreads();
  if (raw_logits != 0) {
    for (int i = thread; i < here * positions; i += threads) {
      float* const column = coefficients + i / positions * gates + i % positions;
      const float total = formula::log_sum_exp(column, modes, positions);
      for (int k = 0; k < modes; ++k) column[k * positions] -= total;
    }
    __syncthreads();
  }
  for (int i = thread; i < here * gates; i += threads) {
    const int token = i / gates;
    const int place = i - token * gates;
    coefficients[i] =
        place < positions
            ? formula::straight_coefficient(coefficients[i], span)
            : formula::coefficient(coefficients[i], loggamma[token * rates + place - positions], start, span);
  }
  __syncthreads();

  for (int item = thread; item < items; item += threads) {
    const int token = item / lanes;
    const int channel = (item - token * lanes) * V;
    const long long place = (first + token) * channels + channel;
    float state[V];
    load_floats<V>(x + place, state);
    float sum[V] = {};
    for (int k = 0; k < modes; k += kBatch) {
      const Batch<T, V, kBatch> now = ahead;
      if (k + kBatch < modes) {
        ahead.load(at(item), k + kBatch, modes, channels);
      } else if (K == 0 && item + threads < items) {
        ahead.load(at(item + threads), 0, modes, channels);
      }
      const float* const row = coefficients + token * gates + k * positions;
      ARCFLOW_UNROLL
      for (int j = 0; j < kBatch; ++j) {
        if (k + j < modes) {
          ARCFLOW_UNROLL
          for (int c = 0; c < V; ++c) {
            sum[c] += now.mode[j][c] * row[j * positions + (P != 0 ? c : channel + c) % positions];
          }
        }
      }
    }
    // A second batch beside the first would take more registers than a thread has here.
    if (K != 0 && item + threads < items) ahead.load(at(item + threads), 0, modes, channels);
    for (int c = 0; c < V; ++c) state[c] -= sum[c];
    store_floats<V>(state, out + place);
  }
}

}  // namespace arcflow::cuda
