//! Rows of embedding tables on a GPU.

use super::{Cuda, Launch, Run};

const SOURCE: &str = "embedding";
const THREADS: u32 = 128;

/// An embedding table or its gradient, the first of whose rows is that of id `first_id`.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) rows: Run,
    pub(crate) width: usize,
    pub(crate) first_id: usize,
}

impl Table {
    fn check(&self, ids: Run, of_ids: Run) {
        let Self { rows, width, .. } = *self;
        assert_eq!((rows.len % width, of_ids.len), (0, ids.len * width), "shapes of an embedding");
    }

    /// Its dims and `ids`.
    fn dims<'a>(&self, launch: Launch<'a>, ids: Run) -> Launch<'a> {
        launch.count(self.width).size(self.rows.len / self.width).size(self.first_id).run(ids)
    }
}

pub(crate) fn embed(cuda: &Cuda, table: Table, ids: Run, out: Run) {
    table.check(ids, out);
    let launch = table.dims(cuda.kernel(SOURCE, "embed").run(table.rows), ids);
    launch.run(out).launch([ids.len, 1], [THREADS, 1]);
}

pub(crate) fn embed_add(cuda: &Cuda, table: Table, ids: Run, out: Run) {
    table.check(ids, out);
    let launch = table.dims(cuda.kernel(SOURCE, "embed_add").run(table.rows), ids);
    launch.run(out).launch([ids.len, 1], [THREADS, 1]);
}

pub(crate) fn embed_backward(cuda: &Cuda, d_out: Run, ids: Run, groups: Option<usize>, d_table: Table) {
    d_table.check(ids, d_out);
    if ids.len == 0 {
        return;
    }
    let links = cuda.take(2 * ids.len);
    cuda.kernel(SOURCE, "embed_links").run(ids).count(ids.len).run(links.run()).over(ids.len);
    let kernel = if groups.is_some() { "embed_backward_groups" } else { "embed_backward" };
    let mut launch = d_table.dims(cuda.kernel(SOURCE, kernel).run(d_out), ids).run(links.run());
    if let Some(groups) = groups {
        assert!((1..=ids.len).contains(&groups), "{} rows in {groups} groups", ids.len);
        launch = launch.count(groups).count(ids.len / groups);
    }
    launch.run(d_table.rows).launch([ids.len, 1], [THREADS, 1]);
}
