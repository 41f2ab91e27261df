// The closed-form solver as a kernel: one pass over memory, every input byte read once and every output byte written
// once. The coefficients of a block's tokens are made together in shared memory, exp and softmax fused in; means, the
// bulk, go from 16-byte loads straight into the sum. Arithmetic is float32 whatever the field's type.
#pragma once

#include "cuda/device.cuh"

namespace arcflow::cuda {

// Modes whose means a thread has under way at once: 8 loads of 16 bytes hide the memory's latency.
constexpr int kAhead = 8;

// Means of kAhead modes from `first` on, at one place of the token.
template <class T, int V>
struct Batch {
  Pack<T, V> mode[kAhead];

  ARCFLOW_DEVICE void load(const T* at, int first, int modes, int channels) {
    ARCFLOW_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      if (first + j < modes) mode[j] = load_once<T, V>(at + static_cast<long long>(first + j) * channels);
    }
  }
};

// `count` values to shared memory as floats. `from` is aligned to 16 bytes where V is more than 1.
template <class T, int V>
ARCFLOW_DEVICE void stage(const T* from, int count, float* to) {
  const int packs = count / V;
  for (int i = static_cast<int>(threadIdx.x); i < packs; i += static_cast<int>(blockDim.x)) {
    const Pack<T, V> pack = load_once<T, V>(from + i * V);
    float wide[V];
    for (int j = 0; j < V; ++j) wide[j] = to_float(pack.value[j]);
    store_floats<V>(wide, to + i * V);
  }
  for (int i = packs * V + static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    to[i] = to_float(from[i]);
  }
}

// Arguments as in arcflow_kernels.cu. V: values a load. P: positions where known when compiled, else 0.
template <class T, int V, int P>
ARCFLOW_DEVICE void advance(const T* __restrict__ means, const T* __restrict__ logweights,
                            const T* __restrict__ loggammas, const float* x, float* out, long long tokens, int modes,
                            int channels, int positions, int tokens_per_block, float start, float span, int raw_logits,
                            float* shared) {
  static_assert(V == 1 || V == kWide<T>, "a value or 16 bytes at a time");
  if (P != 0) positions = P;
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

  Batch<T, V> ahead;
  if (thread < items) ahead.load(at(thread), 0, modes, channels);

  float* const coefficients = shared;  // [here, modes, positions]
  float* const loggamma = shared + tokens_per_block * gates;
  stage<T, V>(logweights + first * gates, here * gates, coefficients);
  stage<T, V>(loggammas + first * rates, here * rates, loggamma);
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
    for (int k = 0; k < modes; k += kAhead) {
      const Batch<T, V> now = ahead;
      if (k + kAhead < modes) {
        ahead.load(at(item), k + kAhead, modes, channels);
      } else if (item + threads < items) {
        ahead.load(at(item + threads), 0, modes, channels);
      }
      const float* const row = coefficients + token * gates + k * positions;
      ARCFLOW_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        if (k + j < modes) {
          ARCFLOW_UNROLL
          for (int c = 0; c < V; ++c) {
            sum[c] += to_float(now.mode[j].value[c]) * row[j * positions + (P != 0 ? c : channel + c) % positions];
          }
        }
      }
    }
    for (int c = 0; c < V; ++c) state[c] -= sum[c];
    store_floats<V>(state, out + place);
  }
}

}  // namespace arcflow::cuda
