//! The right operand of a product, packed once into column panels that serve many rows, few rows and one row alike.
//!
//! Panel `p` holds the columns `32 p .. 32 p + 32` as `[half][k][16]`, the last one padded with zeros, each row of a half
//! one cache line, so that what a kernel reads lies in one run, whether it does all columns at a time or a half. All
//! products read this layout: [`matmul`](crate::cpu::matmul()) packs first, weights stay packed. Elements are `f32` or rounded to
//! bfloat16; of these a row holds two, `k` and `k + 1` for even `k`, in the lower and the upper half of a word.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use crate::cpu::bf16::operand_bits;
use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::tile::{Elements, HALF_COLUMNS, PanelTerms};
use crate::cpu::transpose::transpose;
use crate::cpu::{Mat, SimdLevel, threads};

/// Columns of one panel.
pub const PANEL_COLUMNS: usize = 32;

/// A row of half a panel, in one cache line.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; HALF_COLUMNS]);

/// What the operands of a product are rounded to before it. Sums are in `f32` in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Not at all.
    #[default]
    F32,
    /// bfloat16, to the nearest and ties to even; numbers closer to zero than 2^-56 to zero.
    ///
    /// A sum over `k` goes in blocks of 32 terms from its begin, or from that of each run ([`Leaves`](crate::cpu::Leaves)); the last
    /// block of a run may be shorter. In a block the even terms are added from zero, in order, by fused multiply-adds, and the odd ones as well;
    /// `even + odd` is added to the accumulator. That is the order of AMX; no sum is a denormal, which AMX does not know.
    Bf16,
}

impl Dtype {
    /// `f32` or `bf16`, as it is written in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Rows of `k` that lie in one row of a panel.
    fn terms(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// A packed matrix of `rows` (the summed dim `k`) by `cols` (output columns).
#[derive(Clone, Default)]
pub struct Panels {
    /// Those of a former, larger matrix lie behind them.
    lines: Vec<Line>,
    rows: usize,
    cols: usize,
    dtype: Dtype,
}

impl Panels {
    /// Packs `b` (`[k][n]`) as elements of `dtype`. For a weight stored `[out][in]` pass its transposed view.
    pub fn pack(b: Mat<'_>, dtype: Dtype) -> Self {
        let mut panels = Self::default();
        panels.pack_from(b, dtype);
        panels
    }

    /// Packs another matrix into this one's memory, to save the allocation where shapes repeat.
    pub fn pack_from(&mut self, b: Mat<'_>, dtype: Dtype) {
        (self.rows, self.cols, self.dtype) = (b.rows, b.cols, dtype);
        let lines_a_half = self.lines_a_half();
        let lines = self.lines_in_use();
        if lines == 0 {
            return;
        }
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::zeroed());
        }
        let level = simd_level();
        threads::for_each_chunk(&mut self.lines[..lines], lines_a_half, b.rows * b.cols, |index, half| {
            let first = b.cols.min(index * HALF_COLUMNS);
            let columns = b.columns(first..b.cols.min(first + HALF_COLUMNS));
            match dtype {
                Dtype::F32 => pack_half(columns, bytemuck::cast_slice_mut(half)),
                Dtype::Bf16 => pack_half_pairs(level, columns, bytemuck::cast_slice_mut(half)),
            }
        });
    }

    /// The summed dim `k`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Output columns, without the padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed elements, padding included.
    pub fn bytes(&self) -> usize {
        self.lines_in_use() * size_of::<Line>()
    }

    /// Bytes of packed elements that fit without new memory.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// Number of panels.
    pub(crate) fn count(&self) -> usize {
        self.cols.div_ceil(PANEL_COLUMNS)
    }

    /// What the elements are rounded to.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Panel `index`, from term `first` on, which begins a pair where elements are in pairs.
    pub(crate) fn panel(&self, index: usize, first: usize) -> PanelTerms<'_> {
        let lines = &self.panel_lines(index)[first / self.dtype.terms()..];
        let elements = match self.dtype {
            Dtype::F32 => Elements::F32(bytemuck::cast_slice(lines)),
            Dtype::Bf16 => Elements::Bf16(bytemuck::cast_slice(lines)),
        };
        PanelTerms { elements, half: self.lines_a_half() * HALF_COLUMNS }
    }

    /// Copies `terms` of panel `index`, which is in pairs, to `lines` (`[half][pair]`), so that the first begins a pair; terms
    /// that `lines` has beyond them become zero.
    pub(crate) fn copy_terms(&self, index: usize, terms: Range<usize>, lines: &mut [Line]) {
        let (from, from_half) = (self.panel_lines(index), self.lines_a_half());
        let to_half = lines.len() / 2;
        for (half, to) in lines.chunks_exact_mut(to_half).enumerate() {
            let words = |term: usize| -> [u32; HALF_COLUMNS] {
                match terms.contains(&term) {
                    true => bytemuck::cast(from[half * from_half + term / 2]),
                    false => [0; HALF_COLUMNS],
                }
            };
            // The number of an even term is the lower half of its word.
            let number = |word: u32, term: usize| if term.is_multiple_of(2) { word << 16 } else { word };
            for (pair, line) in to.iter_mut().enumerate() {
                let term = terms.start + 2 * pair;
                let (first, second) = (words(term), words(term + 1));
                let both = |column: usize| {
                    number(first[column], term) >> 16 | number(second[column], term + 1) >> 16 << 16
                };
                *line = bytemuck::cast(std::array::from_fn::<u32, HALF_COLUMNS, _>(both));
            }
        }
    }

    fn lines_a_half(&self) -> usize {
        self.rows.div_ceil(self.dtype.terms())
    }

    fn lines_in_use(&self) -> usize {
        self.count() * self.lines_a_half() * (PANEL_COLUMNS / HALF_COLUMNS)
    }

    fn panel_lines(&self, index: usize) -> &[Line] {
        let lines = 2 * self.lines_a_half();
        &self.lines[index * lines..][..lines]
    }
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Panels").field("rows", &self.rows).field("cols", &self.cols).finish_non_exhaustive()
    }
}

fn pack_half(columns: Mat<'_>, half: &mut [f32]) {
    if columns.cols < HALF_COLUMNS {
        half.fill(0.0);
    }
    if columns.cols == 0 {
        return;
    }
    if columns.row_stride == 1 {
        return transpose(columns.data, columns.col_stride, half, HALF_COLUMNS, columns.cols, columns.rows);
    }
    for (k, row) in half.as_chunks_mut::<HALF_COLUMNS>().0.iter_mut().enumerate() {
        let source = &columns.data[k * columns.row_stride..];
        match source.first_chunk() {
            Some(source) if columns.col_stride == 1 && columns.cols == HALF_COLUMNS => *row = *source,
            _ => {
                let source = source.iter().step_by(columns.col_stride);
                row[..columns.cols].iter_mut().zip(source).for_each(|(element, source)| *element = *source);
            }
        }
    }
}

/// Terms that are packed before they are rounded.
const PAIRED_TERMS: usize = 64;

/// [`pack_half`] with each two terms in one row of words.
fn pack_half_pairs(level: SimdLevel, columns: Mat<'_>, half: &mut [u32]) {
    let mut wide = [0.0; PAIRED_TERMS * HALF_COLUMNS];
    for (block, words) in half.chunks_mut(PAIRED_TERMS / 2 * HALF_COLUMNS).enumerate() {
        let first = block * PAIRED_TERMS;
        let terms = first..columns.rows.min(first + PAIRED_TERMS);
        let (of_terms, rest) = wide.split_at_mut(terms.len() * HALF_COLUMNS);
        pack_half(columns.row_range(terms), of_terms);
        // The second number of a last pair that has none.
        rest.fill(0.0);
        pair_at(level, &wide, words);
    }
}

simd_dispatch!(fn pair_at(wide: &[f32], words: &mut [u32]) = pair);

#[inline(always)]
fn pair(wide: &[f32], words: &mut [u32]) {
    let rows = wide.as_chunks::<{ 2 * HALF_COLUMNS }>().0;
    for (words, rows) in words.as_chunks_mut::<HALF_COLUMNS>().0.iter_mut().zip(rows) {
        let (first, second) = rows.split_at(HALF_COLUMNS);
        for (word, (&first, &second)) in words.iter_mut().zip(first.iter().zip(second)) {
            *word = operand_bits(first) >> 16 | operand_bits(second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A panel's elements as `[half][k][16]`, widened.
    fn elements(panels: &Panels, index: usize) -> Vec<f32> {
        match panels.panel(index, 0).elements {
            Elements::F32(elements) => elements.to_vec(),
            Elements::Bf16(words) => {
                let rows = words.as_chunks::<HALF_COLUMNS>().0.iter();
                let wide =
                    |word: &u32, term| f32::from_bits(if term == 0 { word << 16 } else { word >> 16 << 16 });
                rows.flat_map(|row| [0, 1].map(|term| row.map(|word| wide(&word, term)))).flatten().collect()
            }
        }
    }

    #[test]
    fn panels_hold_columns_padded_with_zeros() {
        let data: Vec<f32> = (0..3 * 40).map(|value| value as f32 + 1.0).collect();
        let b = Mat::row_major(&data, 3, 40);
        for (dtype, terms) in [(Dtype::F32, 3), (Dtype::Bf16, 4)] {
            let mut panels = Panels::pack(Mat::row_major(&[9.0; 200], 5, 40), Dtype::F32);
            panels.pack_from(b, dtype);
            assert_eq!((panels.rows(), panels.cols(), panels.count(), panels.dtype()), (3, 40, 2, dtype));
            let (first, last) = (elements(&panels, 0), elements(&panels, 1));
            assert_eq!(first[16..32], data[40..56]);
            assert_eq!(first[terms * 16 + 16..][..16], data[56..72]);
            assert_eq!(last[32..40], data[112..120]);
            assert!(last[40..].iter().chain(&first[48..terms * 16]).all(|&padding| padding == 0.0));
        }
    }

    #[test]
    fn elements_are_rounded_in_blocks_of_any_length() {
        let data: Vec<f32> = (0..131 * 5).map(|value| (value as f32).sqrt()).collect();
        let panels = Panels::pack(Mat::row_major(&data, 131, 5), Dtype::Bf16);
        let elements = elements(&panels, 0);
        for (k, row) in data.chunks_exact(5).enumerate() {
            let rounded: Vec<f32> = row.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
            assert_eq!(elements[k * 16..][..5], rounded, "term {k}");
        }
    }

    #[test]
    fn a_transposed_view_packs_like_the_copied_transpose() {
        let data: Vec<f32> = (0..7 * 45).map(|value| value as f32).collect();
        let view = Mat::row_major(&data, 45, 7).transposed();
        let copied: Vec<f32> = (0..7).flat_map(|k| (0..45).map(move |n| view.at(k, n))).collect();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let from_copy = Panels::pack(Mat::row_major(&copied, 7, 45), dtype);
            let from_view = Panels::pack(view, dtype);
            assert_eq!(elements(&from_view, 0), elements(&from_copy, 0));
            assert_eq!(elements(&from_view, 1), elements(&from_copy, 1));
        }
    }
}
