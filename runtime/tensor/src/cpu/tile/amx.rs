//! Products in bfloat16 by AMX: an instruction multiplies 16 rows of 32 terms by 32 terms of 16 columns, and adds in the order
//! of a [`PairKernel`](super::PairKernel), which is defined by it (Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2,
//! TDPBF16PS).

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod emulator;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::ops::Range;
use std::sync::OnceLock;

use super::{Elements, HALF_COLUMNS, PAIR_BLOCK, PanelTerms};
use crate::cpu::bf16::operand_bits;
use crate::cpu::panels::Line;
use crate::cpu::simd::{SimdLevel, simd_dispatch};
use crate::cpu::transpose::transpose;
use crate::cpu::{Mat, PANEL_COLUMNS, Start};

/// Rows of a tile of the left operand.
pub(crate) const ROWS: usize = 16;
/// Pairs of terms of a block, each a row of a tile of the right operand.
const PAIRS: usize = PAIR_BLOCK / 2;
/// Bytes of a row of a tile.
const LINE_BYTES: usize = size_of::<Line>();

/// Whether the processor has AMX with bfloat16 and the system lets this process use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let leaves = __cpuid(0).eax;
        let features = if leaves >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        let (bf16, tile) = (1 << 22, 1 << 24);
        features & bf16 != 0 && features & tile != 0 && is_permitted()
    })
}

/// Asks Linux for the registers, which are large, for all threads of this process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: this request changes nothing but what the process may use; an older kernel refuses it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Rows in bfloat16, as `[tile of 16][block of 32 terms][row]`, a line each. There are none without AMX.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    lines: &'a [Line],
    rows: usize,
    /// Blocks of each row.
    blocks: usize,
    /// The terms that begin with a block of their own.
    runs: &'a [Range<usize>],
}

impl<'a> Rows<'a> {
    /// Packs `a`, whose terms are summed in `runs`: a block begins with each of them, and zeros fill their last ones.
    ///
    /// # Panics
    /// The level has no AMX.
    pub(crate) fn pack(
        level: SimdLevel,
        a: Mat<'_>,
        runs: &'a [Range<usize>],
        memory: &'a mut Vec<Line>,
    ) -> Self {
        assert!(level.has_amx(), "AMX");
        let blocks = pack(level, a, runs, memory);
        Self { lines: &memory[..a.rows * blocks], rows: a.rows, blocks, runs }
    }

    /// The blocks of some terms, which begin one.
    ///
    /// # Panics
    /// They are no part of a run.
    fn blocks_of(&self, terms: &Range<usize>) -> Range<usize> {
        let mut first = 0;
        for run in self.runs {
            if run.contains(&terms.start) && terms.end <= run.end {
                first += (terms.start - run.start) / PAIR_BLOCK;
                return first..first + terms.len().div_ceil(PAIR_BLOCK);
            }
            first += run.len().div_ceil(PAIR_BLOCK);
        }
        panic!("terms {terms:?} are no part of a run")
    }
}

/// Packs lines of [`Rows`] and returns the blocks of a row.
fn pack(level: SimdLevel, a: Mat<'_>, runs: &[Range<usize>], lines: &mut Vec<Line>) -> usize {
    let blocks = runs.iter().map(|run| run.len().div_ceil(PAIR_BLOCK)).sum();
    if lines.len() < a.rows * blocks {
        lines.resize(a.rows * blocks, Line([0.0; HALF_COLUMNS]));
    }
    if blocks == 0 {
        return 0;
    }
    for (tile, lines) in lines[..a.rows * blocks].chunks_mut(ROWS * blocks).enumerate() {
        let rows = lines.len() / blocks;
        let (first, mut rest) = (tile * ROWS, lines);
        for run in runs {
            let (lines, after) = rest.split_at_mut(run.len().div_ceil(PAIR_BLOCK) * rows);
            let data = &a.data[first * a.row_stride + run.start * a.col_stride..];
            pack_tile_at(level, data, [a.row_stride, a.col_stride], [rows, run.len()], lines);
            rest = after;
        }
    }
    blocks
}

simd_dispatch!(fn pack_tile_at(data: &[f32], strides: [usize; 2], shape: [usize; 2], lines: &mut [Line]) = pack_tile);

/// A tile of `[rows, terms]` of elements that lie `strides` apart.
#[inline(always)]
fn pack_tile(data: &[f32], strides: [usize; 2], [rows, terms]: [usize; 2], lines: &mut [Line]) {
    for (block, lines) in lines.chunks_exact_mut(rows).enumerate() {
        let first = block * PAIR_BLOCK;
        let terms = PAIR_BLOCK.min(terms - first);
        match strides {
            [row_stride, 1] => {
                for (row, line) in lines.iter_mut().enumerate() {
                    pack_line(&data[row * row_stride + first..][..terms], line);
                }
            }
            [row_stride, col_stride] => {
                let data = &data[first * col_stride..];
                pack_columns(data, row_stride, col_stride, [rows, terms], lines);
            }
        }
    }
}

/// The terms of a row, which lie side by side.
#[inline(always)]
fn pack_line(terms: &[f32], line: &mut Line) {
    let upper_half = |x: f32| (operand_bits(x) >> 16) as u16;
    let halves: &mut [u16; PAIR_BLOCK] = bytemuck::cast_mut(&mut line.0);
    match terms.first_chunk::<PAIR_BLOCK>() {
        Some(terms) => halves.iter_mut().zip(terms).for_each(|(half, x)| *half = upper_half(*x)),
        None => {
            halves.fill(0);
            halves.iter_mut().zip(terms).for_each(|(half, x)| *half = upper_half(*x));
        }
    }
}

/// Rows whose terms lie apart: pair by pair, and then transposed.
#[inline(always)]
fn pack_columns(
    data: &[f32],
    row_stride: usize,
    col_stride: usize,
    [rows, terms]: [usize; 2],
    lines: &mut [Line],
) {
    let mut words = [[0u32; ROWS]; PAIRS];
    for (pair, words) in words.iter_mut().enumerate().take(terms.div_ceil(2)) {
        let first = &data[2 * pair * col_stride..];
        let second = (2 * pair + 1 < terms).then(|| &data[(2 * pair + 1) * col_stride..]);
        match (
            row_stride,
            first.first_chunk::<ROWS>(),
            second.and_then(|second| second.first_chunk::<ROWS>()),
        ) {
            (1, Some(first), Some(second)) if rows == ROWS => {
                for (word, (first, second)) in words.iter_mut().zip(first.iter().zip(second)) {
                    *word = operand_bits(*first) >> 16 | operand_bits(*second);
                }
            }
            _ => {
                for (row, word) in words.iter_mut().enumerate().take(rows) {
                    let second = second.map_or(0.0, |second| second[row * row_stride]);
                    *word = operand_bits(first[row * row_stride]) >> 16 | operand_bits(second);
                }
            }
        }
    }
    let (words, lines): (&[f32], &mut [f32]) =
        (bytemuck::cast_slice(words.as_flattened()), bytemuck::cast_slice_mut(lines));
    transpose(words, ROWS, lines, PAIRS, PAIRS, rows);
}

/// `c = (c +) a · b` for a part of a run, and neighbouring panels that begin with it and have all terms of its blocks.
///
/// # Panics
/// An operand is too short.
pub(crate) fn multiply<'a>(
    a: Rows<'_>,
    terms: &Range<usize>,
    panels: impl Iterator<Item = PanelTerms<'a>> + Clone,
    start: Start,
    c: &mut [f32],
    c_step: usize,
) {
    let blocks = a.blocks_of(terms);
    assert!(blocks.start < blocks.end && blocks.end <= a.blocks, "blocks {blocks:?} of {}", a.blocks);
    assert!(a.lines.len() >= a.rows * a.blocks, "the left operand is shorter than its rows");
    let mut registers = Registers::default();
    for first in (0..a.rows).step_by(2 * ROWS) {
        let rows = [first, first + ROWS].map(|first| ROWS.min(a.rows.saturating_sub(first)));
        // SAFETY: there are rows, so the machine has AMX.
        unsafe { registers.configure(rows) };
        let tile = |first: usize, rows: usize| {
            let line = first * a.blocks + blocks.start * rows;
            // For a second tile without rows this is the end of the first, and nothing is read.
            (a.lines.as_ptr().wrapping_add(line), rows * LINE_BYTES)
        };
        let tiles = [tile(first, rows[0]), tile(first + rows[0], rows[1])];
        let c = &mut c[first * c_step..];
        for (number, panel) in panels.clone().enumerate() {
            let c = &mut c[number * PANEL_COLUMNS..];
            let Elements::Bf16(b) = panel.elements else { panic!("a panel in f32") };
            assert!(c.len() >= (rows[0] + rows[1] - 1) * c_step + PANEL_COLUMNS, "the output is too short");
            let words = blocks.len() * PAIRS * HALF_COLUMNS;
            assert!(b.len() >= panel.half + words, "the right operand is shorter than the blocks");
            // SAFETY: the registers are configured for `rows`; the assertions found all lines of `blocks` in `a`, their words in
            // both halves of `b`, and 32 elements of each row in `c`.
            unsafe {
                let b = [b.as_ptr(), b.as_ptr().add(panel.half)];
                let from_c = start == Start::FromC;
                if rows[1] > 0 {
                    two_tiles(blocks.len(), tiles, b, c.as_mut_ptr(), c_step, from_c);
                } else {
                    one_tile(blocks.len(), tiles[0], b, c.as_mut_ptr(), c_step, from_c);
                }
            }
        }
    }
}

/// The shape of the tile registers of this thread: 0 and 1 are 16 columns of `c` each for the first tile of rows, 2 and 3 for the second, 4 and 5
/// the tiles of rows, 6 and 7 of columns. Released when it is dropped.
#[derive(Default)]
struct Registers {
    rows: [usize; 2],
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
#[derive(Default)]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Registers {
    /// # Safety
    /// The machine has AMX, and each tile 16 rows at most.
    unsafe fn configure(&mut self, rows: [usize; 2]) {
        if self.rows == rows {
            return;
        }
        self.rows = rows;
        let mut configuration = Configuration { palette: 1, ..Configuration::default() };
        for (register, rows) in
            [rows[0], rows[0], rows[1], rows[1], rows[0], rows[1], PAIRS, PAIRS].into_iter().enumerate()
        {
            configuration.rows[register] = rows as u8;
            configuration.row_bytes[register] = if rows == 0 { 0 } else { LINE_BYTES as u16 };
        }
        // SAFETY: the caller promises AMX, and this is a valid configuration of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        if self.rows != [0, 0] {
            // SAFETY: the machine has AMX, or the registers would not be configured.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Up to 32 rows by 32 columns; a tile of rows is its first line and the bytes from block to block.
///
/// # Safety
/// As [`multiply`] says where it calls this.
unsafe fn two_tiles(
    blocks: usize,
    [(a0, a0_step), (a1, a1_step)]: [(*const Line, usize); 2],
    [b0, b1]: [*const u32; 2],
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    // SAFETY: the caller promises what is read and written.
    unsafe {
        asm!(
            "test {from_c:e}, {from_c:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c0} + {c_bytes}*1]",
            "tileloadd tmm1, [{c0} + {c_bytes}*1 + 64]",
            "tileloadd tmm2, [{c1} + {c_bytes}*1]",
            "tileloadd tmm3, [{c1} + {c_bytes}*1 + 64]",
            "3:",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, {a0_step}",
            "add {a1}, {a1_step}",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {blocks}",
            "jnz 3b",
            "tilestored [{c0} + {c_bytes}*1], tmm0",
            "tilestored [{c0} + {c_bytes}*1 + 64], tmm1",
            "tilestored [{c1} + {c_bytes}*1], tmm2",
            "tilestored [{c1} + {c_bytes}*1 + 64], tmm3",
            from_c = in(reg) u32::from(from_c),
            c0 = in(reg) c,
            c1 = in(reg) c.wrapping_add(ROWS * c_step),
            c_bytes = in(reg) c_step * size_of::<f32>(),
            line = in(reg) LINE_BYTES,
            a0 = inout(reg) a0 => _,
            a1 = inout(reg) a1 => _,
            a0_step = in(reg) a0_step,
            a1_step = in(reg) a1_step,
            b0 = inout(reg) b0 => _,
            b1 = inout(reg) b1 => _,
            blocks = inout(reg) blocks => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Up to 16 rows by 32 columns.
///
/// # Safety
/// As for [`two_tiles`].
unsafe fn one_tile(
    blocks: usize,
    (a, a_step): (*const Line, usize),
    [b0, b1]: [*const u32; 2],
    c: *mut f32,
    c_step: usize,
    from_c: bool,
) {
    // SAFETY: the caller promises what is read and written.
    unsafe {
        asm!(
            "test {from_c:e}, {from_c:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {c_bytes}*1]",
            "tileloadd tmm1, [{c} + {c_bytes}*1 + 64]",
            "3:",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tileloadd tmm4, [{a} + {line}*1]",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, {a_step}",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {blocks}",
            "jnz 3b",
            "tilestored [{c} + {c_bytes}*1], tmm0",
            "tilestored [{c} + {c_bytes}*1 + 64], tmm1",
            from_c = in(reg) u32::from(from_c),
            c = in(reg) c,
            c_bytes = in(reg) c_step * size_of::<f32>(),
            line = in(reg) LINE_BYTES,
            a = inout(reg) a => _,
            a_step = in(reg) a_step,
            b0 = inout(reg) b0 => _,
            b1 = inout(reg) b1 => _,
            blocks = inout(reg) blocks => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packing needs no AMX: what the instruction would read of a row, run by run, and zeros up to the end of a block.
    #[test]
    fn rows_are_packed_in_blocks_that_begin_with_runs() {
        let (rows, terms) = (37, 83);
        let data: Vec<f32> = (0..2 * rows * terms).map(|i| ((i * 7919) % 256) as f32 - 128.0).collect();
        let runs = [40..83, 0..33, 36..37];
        let matrices = [
            Mat::row_major(&data, rows, terms),
            Mat::row_major(&data, terms, rows).transposed(),
            Mat::with_strides(&data, rows, terms, 2, 2 * rows),
        ];
        for a in matrices {
            for level in SimdLevel::available() {
                let mut lines = vec![Line([f32::NAN; HALF_COLUMNS]); 5];
                let blocks = pack(level, a, &runs, &mut lines);
                assert_eq!(blocks, 2 + 2 + 1);
                for row in 0..rows {
                    let (tile, in_tile) = (row / ROWS, ROWS.min(rows - row / ROWS * ROWS));
                    let of_row = (0..blocks).flat_map(|block| {
                        let line = lines[tile * ROWS * blocks + block * in_tile + row % ROWS];
                        bytemuck::cast::<_, [u16; PAIR_BLOCK]>(line)
                    });
                    let expected = runs.iter().flat_map(|run| {
                        let zeros = run.len().next_multiple_of(PAIR_BLOCK) - run.len();
                        run.clone()
                            .map(|k| half::bf16::from_f32(a.at(row, k)).to_bits())
                            .chain(vec![0; zeros])
                    });
                    assert!(of_row.eq(expected), "row {row} {}", level.name());
                }
            }
        }
    }
}
