#pragma once

#include "common/macros.h"

// Where the elements of matrices lie so that a warp reads its operands of mma.m16n8k16 with one 16-byte load a lane.
//
// An activation [16, K] is stored by tiles of 16 columns, a weight [K, N] by strips of 8 columns and in them by pairs of
// tiles of 16 rows; a tile holds, for lane 0, 1, ..., 31, the eight elements of that lane. The operands' own layout (which
// lane holds which element) is that of the PTX manual; host and device both multiply what they load through these maps,
// so a mistake in one of them is a wrong product on the CPU too.
namespace fastdream::resident {

constexpr int kRows = 16;   // of a product: one tile of the batch
constexpr int kLanes = 32;  // of a warp
constexpr int kStep = 16;   // columns of the left operand that one mma takes
constexpr int kStrip = 8;   // columns of the right operand that one mma takes
constexpr int kPair = 2 * kStep;

// The left operand of one mma: element i = 0 ... 7 of a lane is at this row and column of [16, 16].
FD_HD int left_row(int lane, int i) { return lane / 4 + 8 * (i / 2 % 2); }
FD_HD int left_column(int lane, int i) { return lane % 4 * 2 + i % 2 + 8 * (i / 4); }

// The right operand: element i = 0 ... 3 of a lane is at this row and column of [16, 8].
FD_HD int right_row(int lane, int i) { return lane % 4 * 2 + i % 2 + 8 * (i / 2); }
FD_HD int right_column(int lane, int) { return lane / 4; }

// The result: element i = 0 ... 3 of a lane is at this row and column of [16, 8].
FD_HD int result_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
FD_HD int result_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// Offset of element [row, column] of an activation, and back. Element [row, column + 1] follows if column is even.
FD_HD int left_offset(int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2;
  return (column / kStep * kLanes + lane) * 8 + column / 8 % 2 * 4 + row / 8 * 2 + column % 2;
}
FD_HD int left_row_at(int offset) { return left_row(offset / 8 % kLanes, offset % 8); }
FD_HD int left_column_at(int offset) {
  return offset / (8 * kLanes) * kStep + left_column(offset / 8 % kLanes, offset % 8);
}

// Offset of element [row, column] of a weight of `rows` rows: `packed` of fastdream/ops/native/resident_pack.py.
FD_HD int right_offset(int row, int column, int rows) {
  const int lane = column % kStrip * 4 + row % 8 / 2;
  const int pair = column / kStrip * (rows / kPair) + row / kPair;
  return (pair * kLanes + lane) * 8 + row / kStep % 2 * 4 + row / 8 % 2 * 2 + row % 2;
}

// Columns [first, first + count) of an activation, multiples of 16, lie in kRows * count neighbouring elements from
// kRows * first on. Columns [8 n, 8 n + 8) lie in 32 pieces of 4 neighbouring elements, one a lane.
constexpr int kPiece = 4;
FD_HD int piece_offset(int eighth, int lane) { return (eighth / 2 * kLanes + lane) * 8 + eighth % 2 * kPiece; }

}  // namespace fastdream::resident
