//! Attention and rotary embedding on a GPU.

use std::cmp::Reverse;

use super::{Block, Cuda, Launch, Matrix, Run};
use crate::cpu::attention::{Segment, segments};
use crate::cpu::{self, AttentionShape, KEY_BLOCK, value_stride};

const THREADS: u32 = 256;
/// Rows of work of a block of threads.
const TILE_ROWS: usize = 64;
/// The same, where there are not more.
const FEW_ROWS: usize = 16;
/// Output columns of a block of threads.
const CHUNK_COLUMNS: usize = 64;

/// Sines and cosines of positions.
#[derive(Debug)]
pub(crate) struct RopeTable {
    half: usize,
    cosines: Block,
    sines: Block,
}

impl RopeTable {
    pub(crate) fn new(cuda: &Cuda, table: &cpu::RopeTable) -> Self {
        let [cosines, sines] = table.parts().map(|part| cuda.upload(part));
        Self { half: table.head_dim() / 2, cosines, sines }
    }
}

pub(crate) fn rope(cuda: &Cuda, x: Matrix, positions: Run, table: &RopeTable, inverse: bool) {
    if positions.len == 0 || table.half == 0 || x.cols == 0 {
        return;
    }
    let head_dim = 2 * table.half;
    assert_eq!((x.rows, x.cols % head_dim), (positions.len, 0), "shape of a rotary embedding");
    let launch =
        cuda.kernel("rope", "rope").rows(x).count(x.cols / head_dim).count(table.half).run(positions);
    let launch =
        launch.run(table.cosines.run()).run(table.sines.run()).float(if inverse { -1.0 } else { 1.0 });
    launch.launch([x.rows, 1], [THREADS, 1]);
}

pub(crate) fn attention(
    cuda: &Cuda,
    [q, k, v]: [Matrix; 3],
    shape: &AttentionShape,
    document_starts: &[usize],
    out: Matrix,
    lse_th: Run,
) {
    check(shape, [q, out], lse_th);
    check_keys(shape, [k, v]);
    let tiles = row_tiles(shape, &segments(shape, document_starts), TILE_ROWS);
    let uploaded = cuda.constants(&tiles.concat());
    let launch = cuda.kernel("attention", "attention").rows(q).rows(k).rows(v).run(uploaded.run());
    dims(launch, shape).rows(out).run(lse_th).launch(grid(shape, tiles.len()), [THREADS, 1]);
}

/// What forward read and wrote.
#[derive(Clone, Copy)]
pub(crate) struct AttentionSaved {
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    pub(crate) out: Matrix,
    pub(crate) lse_th: Run,
}

/// Writes the gradients of queries, keys and values, columns of one matrix.
pub(crate) fn attention_backward(
    cuda: &Cuda,
    d_out: Matrix,
    saved: &AttentionSaved,
    shape: &AttentionShape,
    document_starts: &[usize],
    [d_q, d_k, d_v]: [Matrix; 3],
) {
    let AttentionSaved { q, k, v, out, lse_th } = *saved;
    check(shape, [q, d_q], lse_th);
    check(shape, [out, d_out], lse_th);
    check_keys(shape, [k, v]);
    check_keys(shape, [d_k, d_v]);
    assert_eq!(d_k.row_stride, d_v.row_stride, "strides of the gradients of keys and values");
    let segments = segments(shape, document_starts);
    assert_eq!(
        segments.iter().map(|segment| segment.keys.len()).sum::<usize>(),
        shape.keys,
        "keys of the queries"
    );
    let delta = cuda.take(lse_th.len);
    let launch =
        cuda.kernel("attention_backward", "attention_delta").rows(d_out).rows(out).count(shape.q_heads);
    let launch = launch.count(shape.head_dim).size(lse_th.len).run(delta.run());
    launch.launch([lse_th.len.div_ceil(THREADS as usize / 16), 1], [THREADS, 1]);
    let begin = |kernel| {
        let launch = cuda.kernel("attention_backward", kernel).rows(d_out).rows(q).rows(k).rows(v);
        launch.run(lse_th).run(delta.run())
    };
    let tiles = row_tiles(shape, &segments, TILE_ROWS);
    let uploaded = cuda.constants(&tiles.concat());
    let launch = dims(begin("attention_backward_q").run(uploaded.run()), shape).rows(d_q);
    launch.launch(grid(shape, tiles.len()), [THREADS, 1]);
    let tiles = key_tiles(shape, &segments);
    let uploaded = cuda.constants(&tiles.concat());
    let launch = dims(begin("attention_backward_kv").run(uploaded.run()), shape);
    let launch = launch.pointer(d_k).rows(d_v);
    launch.launch(grid(shape, tiles.len()), [THREADS, 1]);
}

/// One layer in the blocks of a cache.
#[derive(Clone, Copy)]
pub(crate) struct BlockLayer {
    /// Where its first KV head begins in a block.
    pub(crate) start: usize,
    /// Elements of a KV head.
    pub(crate) head_len: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Writes tokens of keys and values to the blocks of a sequence, from position `first` on.
pub(crate) fn write_blocks(
    cuda: &Cuda,
    layer: BlockLayer,
    first: usize,
    [k, v]: [Run; 2],
    blocks: impl ExactSizeIterator<Item = Run>,
) {
    let BlockLayer { start, head_len, kv_heads, head_dim } = layer;
    let end = first + k.len / (kv_heads * head_dim);
    assert!(end <= blocks.len() * KEY_BLOCK, "{end} positions in {} blocks", blocks.len());
    for (index, block) in blocks.enumerate() {
        let positions = first.max(index * KEY_BLOCK)..end.min((index + 1) * KEY_BLOCK);
        if positions.is_empty() {
            continue;
        }
        assert!(start + kv_heads * head_len <= block.len, "a block of {} elements", block.len);
        let launch = cuda.kernel("attention", "write_block").run(block).size(start).size(head_len);
        let launch = launch.count(value_stride(head_dim)).count(kv_heads).count(head_dim).run(k).run(v);
        let launch = launch.count(positions.start - first).count(positions.start % KEY_BLOCK);
        launch.launch([positions.len(), 1], [THREADS, 1]);
    }
}

pub(crate) fn attention_blocks(
    cuda: &Cuda,
    q: Matrix,
    layer: BlockLayer,
    blocks: impl ExactSizeIterator<Item = Run>,
    shape: &AttentionShape,
    out: Matrix,
    lse_th: Run,
) {
    check(shape, [q, out], lse_th);
    assert_eq!((layer.kv_heads, layer.head_dim), (shape.kv_heads, shape.head_dim), "heads of a cache");
    assert!(
        blocks.len() >= shape.keys.div_ceil(KEY_BLOCK),
        "{} blocks for {} keys",
        blocks.len(),
        shape.keys
    );
    let addresses: Vec<u32> = blocks
        .flat_map(|block| {
            let end = layer.start + layer.kv_heads * layer.head_len;
            assert!(end <= block.len, "a block of {} elements", block.len);
            [block.pointer as u32, (block.pointer >> 32) as u32]
        })
        .collect();
    let segments = segments(shape, &[0]);
    let is_few = segments.iter().all(|segment| segment.rows(shape) <= FEW_ROWS);
    let tiles = row_tiles(shape, &segments, if is_few { FEW_ROWS } else { TILE_ROWS });
    let (addresses, uploaded) = (cuda.constants(&addresses), cuda.constants(&tiles.concat()));
    let launch = cuda.kernel("attention", "attention_blocks").rows(q).run(addresses.run());
    let launch = launch.size(layer.start).size(layer.head_len).size(value_stride(layer.head_dim));
    let launch = dims(launch.run(uploaded.run()).u32(is_few.into()), shape);
    launch.rows(out).run(lse_th).launch(grid(shape, tiles.len()), [THREADS, 1]);
}

fn dims<'a>(launch: Launch<'a>, shape: &AttentionShape) -> Launch<'a> {
    let launch = launch.count(shape.q_heads).count(shape.group()).count(shape.head_dim);
    launch.size(shape.window()).float(shape.scale())
}

fn grid(shape: &AttentionShape, tiles: usize) -> [usize; 2] {
    [tiles, shape.kv_heads * shape.head_dim.div_ceil(CHUNK_COLUMNS)]
}

/// Tiles of rows of work. Those that see the most keys come first, so that none of them is begun when all others are done.
fn row_tiles(shape: &AttentionShape, segments: &[Segment], tile_rows: usize) -> Vec<[u32; 5]> {
    let tiles = segments.iter().flat_map(|segment| {
        let firsts = (0..segment.rows(shape)).step_by(tile_rows);
        firsts.map(|first| place(shape, segment, first))
    });
    let mut tiles: Vec<_> = tiles.collect();
    let group = shape.group() as u32;
    tiles.sort_by_key(|&[.., position, _, first]| Reverse(position + first / group));
    tiles
}

/// Blocks of keys, with the number of the document's keys. Those that the most rows see come first.
fn key_tiles(shape: &AttentionShape, segments: &[Segment]) -> Vec<[u32; 6]> {
    let tiles = segments.iter().flat_map(|segment| {
        (0..segment.keys.len()).step_by(KEY_BLOCK).map(|first| {
            let [a, b, c, d, e] = place(shape, segment, first);
            [a, b, c, d, e, segment.keys.len() as u32]
        })
    });
    let mut tiles: Vec<_> = tiles.collect();
    tiles.sort_by_key(|&[.., first, keys]| Reverse(keys - first));
    tiles
}

fn place(shape: &AttentionShape, segment: &Segment, first: usize) -> [u32; 5] {
    let document = [segment.queries.start, segment.keys.start, segment.first_position(), segment.rows(shape)];
    let [a, b, c, d] = document.map(|number| number as u32);
    [a, b, c, d, first as u32]
}

fn check(shape: &AttentionShape, of_queries: [Matrix; 2], lse_th: Run) {
    let AttentionShape { tokens, q_heads, kv_heads, head_dim, keys, query_offset, .. } = *shape;
    assert!(q_heads.is_multiple_of(kv_heads), "{q_heads} query heads, {kv_heads} KV heads");
    assert!(query_offset + tokens <= keys, "a query lies beyond the keys");
    for rows in of_queries {
        assert_eq!((rows.rows, rows.cols), (tokens, q_heads * head_dim), "shape of the queries or outputs");
    }
    assert_eq!(lse_th.len, tokens * q_heads, "one log-sum-exp a query head");
}

fn check_keys(shape: &AttentionShape, of_keys: [Matrix; 2]) {
    for rows in of_keys {
        let width = shape.kv_heads * shape.head_dim;
        assert_eq!((rows.rows, rows.cols), (shape.keys, width), "shape of the keys or values");
    }
}
