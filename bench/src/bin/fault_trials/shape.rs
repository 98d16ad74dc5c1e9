//! The plan of a trial's training, as options of its stage: [`Shape`].

use sixfold_bench::dice::Dice;

/// Degrees of data, tensor and pipeline parallelism, virtual stages, and the layers of the runs if they are uneven. The
/// model has four layers.
type Layout = (&'static str, [u32; 3], u32, &'static str);

const LAYOUTS: [Layout; 9] = [
    ("dp2", [2, 1, 1], 1, ""),
    ("tp2", [1, 2, 1], 1, ""),
    ("pp2", [1, 1, 2], 1, ""),
    ("dp2·tp2", [2, 2, 1], 1, ""),
    ("tp2·pp2", [1, 2, 2], 1, ""),
    ("dp2·pp2", [2, 1, 2], 1, ""),
    ("pp2 interleaved", [1, 1, 2], 2, ""),
    ("pp2 uneven", [1, 1, 2], 1, "3, 1"),
    ("pp3 uneven", [1, 1, 3], 1, "1, 2, 1"),
];
const SERIAL: Layout = ("dp1", [1, 1, 1], 1, "");

/// How a training is spread over ranks, and what its products are rounded to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    layout: Layout,
    zero_stage: u32,
    pub(crate) dtype: &'static str,
}

impl Shape {
    /// Any shape.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let layout = *dice.pick(&LAYOUTS);
        Self { layout, zero_stage: dice.below(2) as u32, dtype: *dice.pick(&["f32", "bf16"]) }
    }

    /// One rank, whose run decides what the bits are.
    pub(crate) fn serial(dtype: &'static str) -> Self {
        Self { layout: SERIAL, zero_stage: 0, dtype }
    }

    /// Another plan for the same training.
    pub(crate) fn draw_other(self, dice: &mut Dice) -> Self {
        loop {
            let layout = *dice.pick(&[&LAYOUTS[..], &[SERIAL]].concat());
            if layout != self.layout {
                return Self { layout, zero_stage: dice.below(2) as u32, ..self };
            }
        }
    }

    /// As people write it.
    pub(crate) fn name(self) -> String {
        let zero = if self.zero_stage > 0 { ", ZeRO 1" } else { "" };
        format!("{}{zero}, {}", self.layout.0, self.dtype)
    }

    /// Ranks.
    pub(crate) fn ranks(self) -> usize {
        self.layout.1.iter().product::<u32>() as usize
    }

    /// The plan as options of the stage `train`, `KEY=VALUE` each.
    pub(crate) fn plan(self) -> Vec<String> {
        let (_, [data, tensor, pipeline], virtual_stages, layers) = self.layout;
        vec![
            format!("train.data_parallel={data}"),
            format!("train.tensor_parallel={tensor}"),
            format!("train.pipeline_parallel={pipeline}"),
            format!("train.virtual_stages={virtual_stages}"),
            format!("train.stage_layers=[{layers}]"),
            format!("train.zero_stage={}", self.zero_stage),
        ]
    }

    /// All options of the stage.
    pub(crate) fn settings(self) -> Vec<String> {
        [self.plan(), vec![format!("train.dtype={}", self.dtype)]].concat()
    }
}
