#pragma once

#include "cpu/params.h"

// How the stochastic part of a state enters a net.
namespace fastdream::cpu::FD_ISA {

// The stochastic part of one row's state: classes drawn, any numbers, or (both null) zeros.
template <typename T>
struct Stoch {
  const int64_t* index = nullptr;  // [S]
  const T* dense = nullptr;        // [S * C]
};

// Products with the stochastic part of states, of the first `width()` inputs of a layer. Those of one-hots are sums of rows
// of a table, one for each class of each variable; without classes they are products like any other. What was not packed
// multiplies the weight as it lies; one-hots are given as numbers then.
template <typename T>
struct Lookup {
  Layer<T> layer;
  int64_t stoch = 0, classes = 0;  // variables; classes of each, 0: they are numbers
  T* packed = nullptr;             // the table [S * C, H], the weight's columns as rows; without classes its panels

  int64_t width() const { return classes ? stoch * classes : stoch; }
  Product<T> dense() const {
    Product<T> product = product_of(layer, 0, width());
    if (!classes) product.packed = packed;
    return product;
  }
  void lay_out(Arena& arena) {
    packed = arena.take<T>(classes ? width() * layer.out : packed_size<T>(width(), layer.out));
  }

  void pack(const Team& team) {
    if (!classes) return dense().pack(team);
    constexpr int64_t kBlock = kLanes<T>;
    const Share mine = share(team, width(), kBlock);
    for (int64_t n = 0; n < layer.out; n += kBlock) {
      for (int64_t k = mine.first; k < mine.last; k += kBlock) {
        const T* from = layer.weight + n * layer.in + k;
        T* to = packed + k * layer.out + n;
        if (n + kBlock <= layer.out && k + kBlock <= mine.last) {
          transpose(from, layer.in, to, layer.out);
          continue;
        }
        for (int64_t i = 0; i < kBlock && k + i < mine.last; ++i) {
          for (int64_t j = 0; j < kBlock && n + j < layer.out; ++j) to[i * layer.out + j] = from[j * layer.in + i];
        }
      }
    }
  }

  // y[H] += the table's rows of one state.
  void add(Stoch<T> of, T* y) const {
    const int64_t n = layer.out;
    if (of.index) {
      over<T>(n, [&](auto at) {
        Vec<T> sums[2] = {at.load(y), {}};
        int64_t s = 0;
        for (; s + 2 <= stoch; s += 2) {
          sums[0] += at.load(packed + (s * classes + of.index[s]) * n);
          sums[1] += at.load(packed + ((s + 1) * classes + of.index[s + 1]) * n);
        }
        if (s < stoch) sums[0] += at.load(packed + (s * classes + of.index[s]) * n);
        at.store(y, sums[0] + sums[1]);
      });
    } else if (of.dense) {
      for (int64_t k = 0; k < width(); ++k) {
        const T x = of.dense[k];
        if (x == T(0)) continue;
        over<T>(n, [&](auto at) { at.store(y, at.load(y) + x * at.load(packed + k * n)); });
      }
    }
  }

  // y[rows, H] = those of every row, from the bias; from what y has where `start` says so.
  void multiply(Share rows, const Stoch<T>* of, Rows<T> y, Start start) const {
    if (!packed || !classes) return multiply_dense(rows, of, y, start);
    for (int64_t m = rows.first; m < rows.last; ++m) {
      begin(y.at(m), start);
      add(of[m], y.at(m));
    }
  }

  void begin(T* y, Start start) const {
    if (start == Start::zero) std::memset(y, 0, size_t(layer.out) * sizeof(T));
    if (start == Start::bias) std::memcpy(y, layer.bias, size_t(layer.out) * sizeof(T));
  }

  // Rows of states that are equally far apart are taken together.
  void multiply_dense(Share rows, const Stoch<T>* of, Rows<T> y, Start start) const {
    const Product<T> product = dense();
    for (int64_t m = rows.first, next; m < rows.last; m = next) {
      next = m + 1;
      if (!of[m].dense) {
        begin(y.at(m), start);
        continue;
      }
      const int64_t apart = next < rows.last && of[next].dense ? of[next].dense - of[m].dense : 0;
      while (next < rows.last && of[next].dense && of[next].dense == of[m].dense + (next - m) * apart) ++next;
      product.multiply(next - m, {of[m].dense, apart}, y.from(m), start, layer.bias);
    }
  }
};

}  // namespace fastdream::cpu::FD_ISA
