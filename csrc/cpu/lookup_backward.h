#pragma once

#include "cpu/gradients.h"
#include "cpu/lookup.h"

// The gradient of the weight that the stochastic part of states enters by.
namespace fastdream::cpu::FD_ISA {

// That of one-hots is collected in a table like that of `Lookup`; each thread has variables of its own.
template <typename T>
struct LookupGradient {
  Lookup<T> lookup;
  T* weight = nullptr;  // [H, in], of which the first inputs are the state's; null: not wanted
  T* table = nullptr;

  int64_t units() const { return lookup.layer.out; }

  void lay_out(Arena& arena) {
    if (lookup.classes && weight) table = arena.take<T>(lookup.width() * units());
  }

  void clear(const Team& team) {
    const Share mine = share(team, lookup.stoch);
    const int64_t row = lookup.classes * units();
    if (table) std::memset(table + mine.first * row, 0, size_t((mine.last - mine.first) * row) * sizeof(T));
  }

  // Adds a piece's rows, whose gradients of what the layer gives are `slopes`. of(m): the state of row m; dense: states that
  // are numbers, in the order of time.
  template <typename Of>
  void sum(const Piece& piece, Rows<T> slopes, Of of, Rows<T> dense, T* scratch) const {
    if (!weight) return;
    if (!lookup.classes) {
      return weight_gradient<T>(piece, slopes, units(), operand(piece, dense), lookup.width(), weight, lookup.layer.in,
                                scratch);
    }
    const Share mine = share(piece.team, lookup.stoch);
    const int64_t classes = lookup.classes, units = lookup.layer.out;
    for (int64_t m = 0; m < piece.rows(); ++m) {
      const T* const d = slopes.at(m);
      const Stoch<T> state = of(m);
      for (int64_t s = mine.first; state.index && s < mine.last; ++s) {
        add(units, d, T(1), table + (s * classes + state.index[s]) * units);
      }
      for (int64_t k = mine.first * classes; state.dense && k < mine.last * classes; ++k) {
        if (state.dense[k] != T(0)) add(units, d, state.dense[k], table + k * units);
      }
    }
  }

  static void add(int64_t n, const T* x, T factor, T* to) {
    over<T>(n, [=](auto i) { i.store(to, i.load(to) + factor * i.load(x)); });
  }

  void finish(const Team& team) const {
    if (!table) return;
    const Share mine = share(team, units());
    for (int64_t n = mine.first; n < mine.last; ++n) {
      for (int64_t k = 0; k < lookup.width(); ++k) weight[n * lookup.layer.in + k] = table[k * units() + n];
    }
  }
};

}  // namespace fastdream::cpu::FD_ISA
